package courierkafka

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// joinPatience is how long a Fetch waits for the client to join its group without a word.
	joinPatience = 30 * time.Second
	// wellAfter is for how long nothing may have failed until a Fetch that was preceded by an
	// error returns without records, so that nobody takes that for the last word.
	wellAfter = 5 * time.Second
)

// standing is how a source stands with its group, for the times when no records come.
type standing struct {
	joined bool      // the client is in the group
	failed bool      // the last Fetch returned an error
	report time.Time // when a Fetch without records returns all the same; zero if it need not
}

// until returns when a Fetch that brings nothing has to return, zero if it need not.
func (s *standing) until(now time.Time) time.Time {
	switch {
	case !s.report.IsZero():
	case !s.joined:
		s.report = now.Add(joinPatience)
	case s.failed:
		s.report = now.Add(wellAfter)
	}
	return s.report
}

func (s *standing) join(joined bool) { s.joined, s.report = joined, time.Time{} }

// inside reports whether the client is in its group.
func (g *group) inside() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.joined
}

// fetchEnded notes how a Fetch has ended.
func (g *group) fetchEnded(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.failed, g.report = err != nil, time.Time{}
}

// overdue reports whether a Fetch that has brought nothing returns all the same, and with
// which error.
func (s *Source) overdue(ctx context.Context) (over bool, err error) {
	s.group.mu.Lock()
	at, joined := s.group.report, s.group.joined
	s.group.mu.Unlock()
	if at.IsZero() || time.Now().Before(at) {
		return false, nil
	}
	if !joined {
		err = fmt.Errorf("courierkafka: the client has not joined its consumer group within %v, and tries on: %w", joinPatience, s.whyOutside(ctx))
	}
	return ctx.Err() == nil, err
}

// whyOutside asks the brokers why the client is not in its group.
func (s *Source) whyOutside(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.group.commitTimeout())
	defer cancel()
	request := kmsg.NewPtrMetadataRequest()
	request.Topics = []kmsg.MetadataRequestTopic{} // nil is all
	for _, name := range s.client.GetConsumeTopics() {
		topic := kmsg.NewMetadataRequestTopic()
		topic.Topic = &name
		request.Topics = append(request.Topics, topic)
	}
	err := errNoTopics
	for _, broker := range append(s.client.DiscoveredBrokers(), s.client.SeedBrokers()...) {
		var answer *kmsg.MetadataResponse
		if answer, err = request.RequestWith(ctx, broker); err != nil {
			continue
		}
		err = errNoTopics
		for _, t := range answer.Topics {
			if err = kerr.ErrorForCode(t.ErrorCode); err == nil {
				return errNotJoined
			}
			if t.Topic != nil {
				err = fmt.Errorf("topic %q: %w%s", clip(*t.Topic), err, sourceAdvice(err))
			}
		}
		return err
	}
	return fmt.Errorf("no broker answers: %w", err)
}
