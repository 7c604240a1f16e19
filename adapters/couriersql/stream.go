package couriersql

import (
	"context"
	"fmt"
	"time"

	"github.com/erfanmomeniii/courier"
)

// Stream is a source for a streaming coordinator, which applies a batch while it
// marks another one and fetches a third. It is made by [Outbox.Stream].
type Stream struct {
	*Source
	interval time.Duration
	fault    error
}

// Stream returns a source whose Fetch waits for a row: until one is committed,
// with [WithWakeUp], and looking for one every interval. It has to be one of
// [WithLease] or [WithStrictOrder], or in SQLite: the rows of a transaction can
// only be settled together, as a polling coordinator does.
func (o *Outbox) Stream(interval time.Duration) *Stream {
	s := &Stream{Source: o.Source(), interval: interval, fault: o.fault}
	_, transactions := s.holder.(*locked)
	switch {
	case s.fault != nil:
	case interval <= 0:
		s.fault = &courier.ConfigError{Field: "interval", Problem: fmt.Sprintf("is %v: pass how long to wait before looking again, such as a second", interval)}
	case transactions:
		s.fault = &courier.ConfigError{Field: "Stream", Problem: "needs WithLease or WithStrictOrder in PostgreSQL: a stream settles the rows of a batch one by one"}
	default:
		s.head.begin()
		s.holder.begin()
	}
	return s
}

// Validate reports what the stream, or its outbox, was misconfigured with.
func (s *Stream) Validate() error {
	if s.fault != nil {
		return s.fault
	}
	return s.Source.Validate()
}

// Fetch returns up to limit rows that are due, and waits until there is one, ctx
// ends, or the database fails.
func (s *Stream) Fetch(ctx context.Context, limit int) ([]Row, error) {
	if s.fault != nil {
		return nil, s.fault
	}
	wake := s.Wake()
	for {
		rows, err := s.Source.Fetch(ctx, limit)
		if len(rows) > 0 || err != nil || limit <= 0 {
			return rows, err
		}
		select {
		case <-wake:
		case <-time.After(s.interval):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
