package courier

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// StreamingCoordinator takes records from a source as they arrive, applies them with one
// or more workers and marks them in batches. Its methods are safe for concurrent use.
type StreamingCoordinator[T any] struct {
	*control
	source  Source[T]
	applier Applier[T]
	config  config
	fault   error
}

// NewStreamingCoordinator returns a coordinator for a source that hands each record out
// once. Nothing happens before Start, which reports invalid arguments.
func NewStreamingCoordinator[T any](source Source[T], applier Applier[T], opts ...Option) *StreamingCoordinator[T] {
	c := &StreamingCoordinator[T]{source: source, applier: applier, config: newConfig(opts)}
	c.control = newControl(source, applier, &c.config)
	if c.config.prefetch < 0 {
		c.config.prefetch = 1
	}
	c.fault = commonFault(source, applier, &c.config)
	if c.fault == nil && c.config.polling != "" {
		c.fault = &ConfigError{c.config.polling, "is for a polling coordinator; a streaming one has no use for it"}
	}
	if c.config.workers > 1 || c.config.keyOf != nil {
		c.watch.retries = heldRetries(applier)
	} else {
		c.watch.retries = keyedFanOuts(applier)
	}
	if _, ok := source.(interface{ ignoresLimit() }); ok && c.fault == nil {
		c.fault = &ConfigError{"source", "returns a record again until it is marked, and does not block: use NewPollingCoordinator"}
	}
	return c
}

// Start runs the coordinator and blocks until ctx ends, or until the source returns
// io.EOF and the records before it are settled, or were retried a few times and given
// back. With one worker, records are applied in the order fetched, except failed ones.
//
// At io.EOF a [Releaser] gets its failed records back immediately, with the rest of their
// delays, unless an order was asked for. Otherwise Start waits for each delay: with
// [RetryAfter] that is up to 24 hours before each of at most three deliveries, or up to
// RetryPolicy.MaxRetryAfter for a record that a retry gave up. It waits for a record that
// asks to come later ([Later], or the breaker of a key) until that has asked ten times and
// nothing was applied for five minutes. Stop ends the wait.
//
// When ctx ends, nothing more is fetched. Records in progress are finished and marked.
// The others go back to the source if it is a [Releaser], and are applied within the
// drain timeout if it is not. A failed record is released, or else tried again later,
// with growing delays, as long as the coordinator runs. All of that takes at most twice
// the drain timeout ([WithDrainTimeout]) if the user's functions obey their contexts.
// Start waits for a function that does not, and for observers and hooks such as
// DLQPolicy.OnPark. No goroutine of the coordinator outlives Start.
//
// The error is a [*ConfigError] if the configuration is bad, [ErrRunning] if the
// coordinator runs already, a [*MarkError] if applied records could not be marked at the
// end, and an [*UnsettledError] if records are left that the source does not take back.
func (c *StreamingCoordinator[T]) Start(ctx context.Context) error {
	if c == nil || c.control == nil {
		return &ConfigError{"coordinator", "is nil or the zero value: make it with NewStreamingCoordinator"}
	}
	if c.fault != nil {
		return c.fault
	}
	if fault := contextFault(ctx); fault != nil {
		return fault
	}
	ctx, err := c.begin(ctx, false)
	if err != nil {
		return err
	}
	defer c.end()
	return newStream(ctx, c).run()
}

// NewChannelSource returns a source for a streaming coordinator that receives its records
// from a channel and marks them with a function. Closing the channel ends the stream: see
// [StreamingCoordinator.Start]. Both arguments are required; if records need no mark,
// markDone just returns nil.
func NewChannelSource[T any](ch <-chan T, markDone func(ctx context.Context, records []T) error) *ChannelSource[T] {
	return &ChannelSource[T]{ch, markDone}
}

// ChannelSource is a [Source] over a channel. A channel takes nothing back: records that
// cannot be applied end in an [UnsettledError].
type ChannelSource[T any] struct {
	ch       <-chan T
	markDone func(ctx context.Context, records []T) error
}

// Validate reports a nil channel or function.
func (s *ChannelSource[T]) Validate() error {
	switch {
	case s == nil || s.ch == nil:
		return &ConfigError{"channel", "is nil: pass the channel to receive records from"}
	case s.markDone == nil:
		return &ConfigError{"markDone", "is nil: pass the function that marks records as done"}
	}
	return nil
}

// Fetch blocks until a record arrives, then takes up to limit of the records that are
// ready. It returns io.EOF when the channel is closed and empty.
func (s *ChannelSource[T]) Fetch(ctx context.Context, limit int) ([]T, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	var records []T
	select {
	case record, ok := <-s.ch:
		if !ok {
			return nil, io.EOF
		}
		records = append(make([]T, 0, min(limit, len(s.ch)+1)), record)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for len(records) < limit {
		select {
		case record, ok := <-s.ch:
			if !ok {
				return records, nil // io.EOF is for the next call
			}
			records = append(records, record)
		default:
			return records, nil
		}
	}
	return records, nil
}

// handsOutOnce tells a polling coordinator that the source is not for it.
func (s *ChannelSource[T]) handsOutOnce() {}

// Mark calls markDone.
func (s *ChannelSource[T]) Mark(ctx context.Context, records []T) error {
	if err := s.Validate(); err != nil {
		return err
	}
	return s.markDone(ctx, records)
}

// ErrUnsettled is what every [*UnsettledError] is, to errors.Is.
var ErrUnsettled = errors.New("courier: records ended neither applied nor parked")

// UnsettledError returns the records that a streaming coordinator could neither settle
// before its end nor give back, because the source is no [Releaser]. Nothing else in
// Courier holds them: the caller decides what to do with them.
type UnsettledError[T any] struct {
	Records []T
	Err     error // the first record's error, nil when it was not attempted
}

func (e *UnsettledError[T]) Error() string {
	text := fmt.Sprintf("courier: %d records ended neither applied nor parked, and the source takes none back", len(e.Records))
	if e.Err != nil {
		text += "; first error: " + inner(e.Err)
	}
	return text
}

// Is reports whether err is [ErrUnsettled].
func (e *UnsettledError[T]) Is(err error) bool { return err == ErrUnsettled }

// Unwrap returns Err.
func (e *UnsettledError[T]) Unwrap() error { return e.Err }
