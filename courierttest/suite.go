package courierttest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// check is one thing that a suite asks of an implementation. It is made with a
// fresh one each time, and reports through a TB, so that the suites themselves
// can be tested on implementations that are broken.
type check[S any] struct {
	name string
	run  func(s *S)
}

// runSuite runs checks as subtests, each on what open makes for it.
func runSuite[S any](t *testing.T, bubble bool, open func(t *testing.T) *S, checks []check[S]) {
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			if !bubble {
				c.run(open(t))
				return
			}
			synctest.Test(t, func(t *testing.T) { c.run(open(t)) })
		})
	}
}

// glance is how long a suite looks at a call that should wait. It costs real
// time outside of a bubble.
const glance = 20 * time.Millisecond

// attempt makes a call of an implementation, with the patience there is for it.
type attempt struct {
	tb       TB
	patience time.Duration
}

func newAttempt(tb TB, patience time.Duration) attempt {
	if patience <= 0 {
		patience = 10 * time.Second
	}
	return attempt{tb, patience}
}

// do returns the error of the call, and whether it came before the patience
// ended. It is the end of the test when the call panics, or does not return
// after its context has ended.
func (a attempt) do(ctx context.Context, what string, call func(ctx context.Context) error) (err error, soon bool) {
	a.tb.Helper()
	limit, stopLimit := context.WithTimeout(context.Background(), a.patience)
	defer stopLimit()
	// A call that ends with its context comes after the limit.
	ctx, cancel := context.WithTimeout(ctx, a.patience+time.Millisecond)
	defer cancel()
	end, stop := context.WithTimeout(context.Background(), 2*a.patience)
	defer stop()
	type result struct{ err, panicked error }
	done := make(chan result, 1)
	go func() {
		r := result{panicked: errors.New("it ended the goroutine")}
		defer func() {
			if v := recover(); v != nil {
				r.panicked = fmt.Errorf("it panicked: %v", v)
			}
			done <- r
		}()
		err := call(ctx)
		r = result{err: err}
	}()
	select {
	case r := <-done:
		if r.panicked != nil {
			a.tb.Fatalf("%s: %v", what, r.panicked)
		}
		return r.err, limit.Err() == nil
	case <-end.Done():
		a.tb.Fatalf("%s did not return within %v, %v after its context had ended", what, 2*a.patience, a.patience)
		return nil, false
	}
}

// must is do for a call that has to succeed.
func (a attempt) must(what string, call func(ctx context.Context) error) {
	a.tb.Helper()
	if err, soon := a.do(context.Background(), what, call); err != nil {
		late := ""
		if !soon {
			late = fmt.Sprintf(" after %v", a.patience)
		}
		a.tb.Fatalf("%s returned an error%s: %v", what, late, err)
	}
}

// ended returns a context that has ended.
func ended() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errEnded)
	return ctx
}

var errEnded = errors.New("the suite ended the context")

// nameBy returns the function that names records.
func nameBy[T any](name func(T) string) func(T) string {
	if name != nil {
		return name
	}
	return func(record T) string { return fmt.Sprint(record) }
}

func namesBy[T any](name func(T) string, records []T) []string {
	names := make([]string, len(records))
	for i, record := range records {
		names[i] = name(record)
	}
	return names
}

// same compares names, in order or as sets.
func same(got, want []string, ordered bool) bool {
	if !ordered {
		got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
	}
	return slices.Equal(got, want)
}
