package courierkafka

import (
	"context"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Fits reports whether a sink takes a record, by its size.
func Fits[T any](s *Sink[T], r *kgo.Record) bool { return s.producer.fits(r) == nil }

// Unanswered returns how many records the sinks of a client remember.
func Unanswered(client *kgo.Client) int {
	p, _ := newProducer(client, nil)
	p.link.unanswered.mu.Lock()
	defer p.link.unanswered.mu.Unlock()
	return len(p.link.unanswered.records)
}

// Waiting returns how many calls wait for answers to records that others have sent.
func Waiting(client *kgo.Client) (n int) {
	p, _ := newProducer(client, nil)
	p.link.unanswered.mu.Lock()
	defer p.link.unanswered.mu.Unlock()
	for _, a := range p.link.unanswered.records {
		n += len(a.waiting)
	}
	return n
}

// Share takes a turn as a call does that produces, so that no other is alone before leave.
func Share(client *kgo.Client) (leave func()) {
	p, _ := newProducer(client, nil)
	_ = p.link.turns.enter(context.Background(), false)
	return p.link.turns.leave
}

// Watched returns the options of a client of a [Source] whose events a test sees: partitions
// that are assigned, kept by a client that is another member now, about to be revoked,
// revoked, and lost.
func Watched(event func(what string, of map[string][]int32)) []kgo.Opt {
	type callback = func(context.Context, *kgo.Client, map[string][]int32)
	tell := func(before string, call func(*group) callback, then string) callback {
		return func(ctx context.Context, client *kgo.Client, of map[string][]int32) {
			after := then
			g := groupOf(client)
			if isProbe(ctx) {
				return
			}
			event(before, of)
			if before == "assigned" {
				event("kept", g.keptAs(client, of))
			}
			losses := g.losses.Load()
			if call(g)(ctx, client, of); after == "revoked" && g.losses.Load() > losses {
				after = "lost"
			}
			event(after, of)
		}
	}
	return append(SourceOptions(),
		kgo.OnPartitionsAssigned(tell("assigned", func(g *group) callback { return g.assigned }, "")),
		kgo.OnPartitionsRevoked(tell("revoking", func(g *group) callback { return g.revoking }, "revoked")),
		kgo.OnPartitionsLost(tell("lost", func(g *group) callback { return g.lost }, "")))
}

// keptAs lists the partitions that the client keeps as another member than before.
func (g *group) keptAs(client *kgo.Client, added map[string][]int32) map[string][]int32 {
	g.mu.Lock()
	defer g.mu.Unlock()
	kept := make(map[string][]int32)
	if member, _ := client.GroupMetadata(); g.member != "" && g.member != member {
		for p := range g.partitions {
			if !slices.Contains(added[p.topic], p.number) {
				kept[p.topic] = append(kept[p.topic], p.number)
			}
		}
	}
	return kept
}
