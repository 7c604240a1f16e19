package courierkafka

import "github.com/twmb/franz-go/pkg/kgo"

// Fits reports whether a sink takes a record, by its size.
func Fits[T any](s *Sink[T], r *kgo.Record) bool { return s.producer.fits(r) == nil }

// Unanswered returns how many records the sinks of a client remember.
func Unanswered(client *kgo.Client) int {
	p, _ := newProducer(client, nil)
	p.link.unanswered.mu.Lock()
	defer p.link.unanswered.mu.Unlock()
	return len(p.link.unanswered.records)
}
