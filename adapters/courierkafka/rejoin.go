package courierkafka

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// rejoined begins the partitions anew that the client has kept though it is another member
// now: the group had expelled it, and others may have had them since. Such a partition goes
// on where the last commit says, or without one at the first record that is not settled.
// Nothing is polled before.
func (g *group) rejoined(ctx context.Context, client *kgo.Client) {
	kept := maps.Clone(g.partitions)
	if len(kept) == 0 {
		return
	}
	for _, a := range kept {
		g.fence(client, a)
	}
	g.losses.Add(uint64(len(kept)))
	g.awaitPoll()
	turn := &polling{cancel: func() {}, done: make(chan struct{})}
	g.polling = turn
	g.mu.Unlock()
	commits, err := g.askUntilAnswered(ctx, client, kept)
	g.mu.Lock()
	g.polling = nil
	close(turn.done)
	if err != nil { // the client is closed
		return
	}
	from := make(map[string]map[int32]kgo.EpochOffset)
	for p, old := range kept {
		last := commits[p]
		if last.Offset < 0 && old.window != nil {
			last.EpochOffset = old.window.Position().EpochOffset
		}
		if from[p.topic] == nil {
			from[p.topic] = make(map[int32]kgo.EpochOffset)
		}
		from[p.topic][p.number] = last.EpochOffset
		g.partitions[p], g.found[p] = &assignment{partition: p}, last.settled
	}
	client.SetOffsets(from) // passes over offsets below 0: nothing was read of such a partition
}

// askUntilAnswered asks for the last commits until it knows them, or the client is closed.
func (g *group) askUntilAnswered(ctx context.Context, client *kgo.Client, of map[partition]*assignment) (map[partition]lastCommit, error) {
	for {
		commits, err := g.askCommits(ctx, client, of)
		if err == nil {
			return commits, nil
		}
		g.mu.Lock()
		g.tell(fmt.Errorf("courierkafka: the group had expelled this member, which reads nothing before it knows the last commits of its partitions: ask for them: %w", err))
		g.mu.Unlock()
		if !rest(ctx, time.Second, nil) {
			return nil, context.Cause(ctx)
		}
	}
}
