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
// with [WithWakeUp], and looking for one every interval. In PostgreSQL the
// outbox needs [WithLease] or [WithStrictOrder]: the rows of a transaction can only be
// settled together, as a polling coordinator does.
func (o *Outbox) Stream(interval time.Duration) *Stream {
	s := &Stream{Source: o.Source(), interval: interval, fault: o.fault}
	_, transactions := s.holder.(*locked)
	switch {
	case s.fault != nil:
	case interval <= 0:
		s.fault = noInterval(interval)
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
	return await(ctx, s.interval, s.Wake(), limit, s.Source.Fetch)
}

// await fetches until there is a record, at each value of wake and each interval.
func await[T any](ctx context.Context, interval time.Duration, wake <-chan struct{}, limit int, fetch func(context.Context, int) ([]T, error)) ([]T, error) {
	for {
		records, err := fetch(ctx, limit)
		if len(records) > 0 || err != nil || limit <= 0 {
			return records, err
		}
		select {
		case <-wake:
		case <-time.After(interval):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// TableStream is a source for a streaming coordinator, which applies a batch while it
// marks another one and fetches a third. It is made by [Table.Stream].
type TableStream[T any] struct {
	*TableSource[T]
	interval time.Duration
	fault    error
}

// Stream returns a source whose Fetch waits for a row, looking for one every interval.
func (t *Table[T]) Stream(interval time.Duration) *TableStream[T] {
	s := &TableStream[T]{TableSource: t.Source(), interval: interval, fault: t.fault}
	if s.fault == nil && interval <= 0 {
		s.fault = noInterval(interval)
	}
	return s
}

// Validate reports what the stream, or its table, was misconfigured with.
func (s *TableStream[T]) Validate() error { return s.fault }

// Fetch returns up to limit rows that are due, and waits until there is one, ctx ends, or
// the database fails.
func (s *TableStream[T]) Fetch(ctx context.Context, limit int) ([]T, error) {
	if s.fault != nil {
		return nil, s.fault
	}
	return await(ctx, s.interval, nil, limit, s.TableSource.Fetch)
}

func noInterval(interval time.Duration) error {
	return &courier.ConfigError{Field: "interval", Problem: fmt.Sprintf("is %v: pass how long to wait before looking again, such as a second", interval)}
}
