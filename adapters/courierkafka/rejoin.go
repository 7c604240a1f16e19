package courierkafka

import (
	"context"
	"fmt"
	"maps"

	"github.com/twmb/franz-go/pkg/kgo"
)

// rejoined begins the partitions anew that the client has kept though it is another member
// now: the group had expelled it, and others may have had them since. Nothing is read of such
// a partition before the next Fetch has asked for its last commit.
func (g *group) rejoined(client *kgo.Client) {
	kept := maps.Clone(g.partitions)
	for _, old := range kept {
		g.fence(client, old)
		from := old.from
		if old.window != nil {
			from = old.window.Position().EpochOffset
		}
		anew := newAssignment(old.partition)
		anew.unknown, anew.from = true, from
		g.partitions[old.partition] = anew
	}
	g.losses.Add(uint64(len(kept)))
	if g.polling != nil { // it may wait for records beyond the last commit
		g.polling.cancel()
	}
}

// resume asks for the last commits of partitions that a member has kept after it was
// expelled. Such a partition goes on where the last commit says, or without one at the first
// record that is not settled. The caller polls the client after it, and nobody else does
// meanwhile.
func (g *group) resume(ctx context.Context, client *kgo.Client) error {
	g.mu.Lock()
	unknown := make(map[partition]*assignment)
	for p, a := range g.partitions {
		if a.unknown && !a.leaving {
			unknown[p] = a
		}
	}
	g.mu.Unlock()
	if len(unknown) == 0 {
		return nil
	}
	commits, err := g.askCommits(ctx, client, unknown)
	if err != nil {
		return fmt.Errorf("courierkafka: the group had expelled this member, which reads nothing before it knows the last commits of its partitions: ask for them: %w%s", err, sourceAdvice(err))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	from := make(map[string]map[int32]kgo.EpochOffset)
	for p, a := range unknown {
		if a.leaving {
			continue
		}
		next := commits[p].EpochOffset
		if next.Offset < 0 {
			next = a.from
		}
		if from[p.topic] == nil {
			from[p.topic] = make(map[int32]kgo.EpochOffset)
		}
		from[p.topic][p.number] = next
		a.unknown, g.found[p] = false, commits[p]
	}
	client.SetOffsets(from) // passes over offsets below 0: nothing was read of such a partition
	return nil
}
