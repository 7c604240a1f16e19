package courierkafka

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// commit commits what is settled and not committed, of all partitions. If ctx ends first,
// the commit goes on by itself, within its timeout: one that the client has given up may
// still arrive, after a later one.
func (g *group) commit(ctx context.Context, client *kgo.Client) error {
	select {
	case g.sending <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	done := make(chan error, 1)
	go func() {
		err := g.send(client)
		for err == errFenced || err == errTooLong { // without the partitions that are gone, or the text
			err = g.send(client)
		}
		<-g.sending
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// commitStarts commits where partitions begin of which the group has no commit, before their
// first records are handed out. A member after this one would not find the place by itself: a
// group that begins at the end begins at another one then.
func (g *group) commitStarts(ctx context.Context, client *kgo.Client) error {
	g.mu.Lock()
	owed := false
	for _, a := range g.partitions {
		owed = owed || a.window != nil && a.committed.Offset < 0
	}
	g.mu.Unlock()
	if !owed {
		return nil
	}
	return g.commit(ctx, client)
}

// commitLast commits before partitions are given back: nobody repeats it later.
func (g *group) commitLast(client *kgo.Client) error {
	const pause = 50 * time.Millisecond
	ctx, cancel := context.WithTimeout(client.Context(), g.commitTimeout())
	defer cancel()
	for {
		err := g.commit(ctx, client)
		if err == nil || isExpelled(err) {
			return err
		}
		if !rest(ctx, pause, nil) {
			return err
		}
	}
}

// isExpelled reports whether a commit failed because the group goes on without the member.
func isExpelled(err error) bool {
	return errors.Is(err, kerr.UnknownMemberID) || errors.Is(err, kerr.IllegalGeneration) || errors.Is(err, kerr.FencedInstanceID)
}

// offered is the offsets of one commit.
type offered map[*assignment]place

// send makes one commit.
func (g *group) send(client *kgo.Client) (err error) {
	g.mu.Lock()
	offers := make(offered)
	offsets := make(map[string]map[int32]kgo.EpochOffset)
	for _, a := range g.partitions {
		now := g.place(a)
		if now == a.committed {
			continue
		}
		offers[a] = now
		if offsets[a.topic] == nil {
			offsets[a.topic] = make(map[int32]kgo.EpochOffset)
		}
		offsets[a.topic][a.number] = now.EpochOffset
	}
	g.mu.Unlock()
	if len(offers) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), g.commitTimeout())
	defer cancel()
	// The client waits for the end of a rebalance first. What is another member's then
	// must not be committed over what that one has committed.
	ctx = kgo.PreCommitFnContext(ctx, func(request *kmsg.OffsetCommitRequest) error { return g.check(offers, request) })
	client.CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, request *kmsg.OffsetCommitRequest, answer *kmsg.OffsetCommitResponse, failed error) {
		if failed != nil {
			err = failed
			return
		}
		err = g.committed(client, offers, request, answer)
	})
	if errors.Is(err, errFenced) {
		return errFenced
	}
	if err == nil || err == errTooLong {
		return err
	}
	return &commitError{err}
}

// check reports errFenced if one of the partitions is gone, and adds what is settled
// beyond the offsets. A client that has joined as another member is not told at once which
// partitions it still has; until then nothing is committed.
func (g *group) check(offers offered, request *kmsg.OffsetCommitRequest) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if request.MemberID != g.member {
		return kerr.RebalanceInProgress
	}
	beyond := make(map[partition]*string)
	for a, at := range offers {
		if a.gone {
			return errFenced
		}
		beyond[a.partition] = &at.beyond
	}
	for i := range request.Topics {
		t := &request.Topics[i]
		for j := range t.Partitions {
			if text := beyond[partition{t.Topic, t.Partitions[j].Partition}]; text != nil {
				t.Partitions[j].Metadata = text
			}
		}
	}
	return nil
}

// committed notes what the answer to a commit says.
func (g *group) committed(client *kgo.Client, offers offered, request *kmsg.OffsetCommitRequest, answer *kmsg.OffsetCommitResponse) (first error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	names := make(map[[16]byte]string) // newer answers do not have the topics' names
	for _, t := range request.Topics {
		names[t.TopicID] = t.Topic
	}
	results := make(map[partition]error)
	for _, t := range answer.Topics {
		topic := t.Topic
		if topic == "" {
			topic = names[t.TopicID]
		}
		for _, p := range t.Partitions {
			results[partition{topic, p.Partition}] = kerr.ErrorForCode(p.ErrorCode)
		}
	}
	for a, at := range offers {
		switch err, answered := results[a.partition]; {
		case errors.Is(err, kerr.OffsetMetadataTooLarge) && !g.noText:
			g.noText = true
			return errTooLong
		case isGone(err):
			if a.missing.IsZero() {
				a.missing = time.Now()
			}
			if !g.missed(client, a) {
				first = err
			}
		case err != nil:
			first = err
		case !answered:
			first = errNoCommitAnswer
		default:
			a.committed = at
			a.missing = time.Time{}
		}
	}
	return first
}
