package courier

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// NewChannelSource returns a source for a streaming coordinator that takes its
// records from a channel and marks them with a function. Closing the channel
// ends the stream: see [StreamingCoordinator.Start]. Both arguments are
// required; a markDone for records that need no mark returns nil.
func NewChannelSource[T any](ch <-chan T, markDone func(ctx context.Context, records []T) error) *ChannelSource[T] {
	return &ChannelSource[T]{ch, markDone}
}

// ChannelSource is a [Source] over a channel. A channel takes nothing back: see
// [UnsettledError] for what that means for records that cannot be applied.
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

// Fetch blocks until a record arrives, then takes up to limit of those that are
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

// handsOutOnce tells a polling coordinator that it is not for this source.
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

// UnsettledError hands records back that a streaming coordinator could neither
// settle before its end nor give back to a source that is no [Releaser]. They
// exist nowhere else in Courier: the caller decides what becomes of them.
type UnsettledError[T any] struct {
	Records []T
	Err     error // the first record's error, nil when it was not attempted
}

func (e *UnsettledError[T]) Error() string {
	text := fmt.Sprintf("courier: %d records ended neither applied nor parked, and the source takes none back", len(e.Records))
	if e.Err != nil {
		text += fmt.Sprintf("; first error: %v", e.Err)
	}
	return text
}

// Is reports whether err is [ErrUnsettled].
func (e *UnsettledError[T]) Is(err error) bool { return err == ErrUnsettled }

// Unwrap returns Err.
func (e *UnsettledError[T]) Unwrap() error { return e.Err }
