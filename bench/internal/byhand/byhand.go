// Package byhand is what one would write by hand in place of Courier, as the
// floor that its cases are measured against.
package byhand

import (
	"context"
	"errors"
	"sync"
	"time"
)

// RetryBreaker is a loop for the retries, and a counter under a mutex for a
// breaker, around a call that may fail. It knows no dead letters, no half-open
// state, no jitter, no panic and no stop; that is what makes it the floor of
// the appliers that do.
type RetryBreaker struct {
	Process func(context.Context, int) error
	Sleep   func(time.Duration)

	mu       sync.Mutex
	failures int // in a row
}

var errOpen = errors.New("the breaker is open")

// Apply processes a record, five times if need be.
func (r *RetryBreaker) Apply(ctx context.Context, n int) error {
	var err error
	for attempt := range 5 {
		r.mu.Lock()
		open := r.failures >= 5
		r.mu.Unlock()
		if open {
			return errOpen
		}
		err = r.Process(ctx, n)
		r.mu.Lock()
		if err != nil {
			r.failures++
		} else {
			r.failures = 0
		}
		r.mu.Unlock()
		if err == nil {
			return nil
		}
		r.Sleep(time.Duration(attempt) * time.Millisecond)
	}
	return err
}

// Retry is the loop alone, that does not wait.
func Retry(process func(context.Context, int) error) func(context.Context, int) error {
	return func(ctx context.Context, n int) error {
		var err error
		for range 5 {
			if err = process(ctx, n); err == nil {
				return nil
			}
		}
		return err
	}
}

// Pass applies the records in a plain loop through a func value, and notes
// which it would mark, for a number of batches. It is not inlined, lest the
// compiler find out which function that is.
//
//go:noinline
func Pass(ctx context.Context, batches int, records []int, process func(context.Context, int) error) {
	done := make([]int, 0, len(records))
	for range batches {
		done = done[:0]
		for _, record := range records {
			if process(ctx, record) == nil {
				done = append(done, record)
			}
		}
	}
}
