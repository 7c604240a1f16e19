package courier_test

// Attempt timeouts.

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// A process function that hangs until its context ends holds a record up for the
// timeout, in all three functions, and by the clock of the coordinator.
func TestWithAttemptTimeout(t *testing.T) {
	for name, attempts := range map[string]int{"Sync": 1, "SyncWithRetry": 3, "RunOnce": 1} {
		t.Run(name, func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				source := newShelf(1, 2, 3)
				calls := 0
				fetch := func(ctx context.Context) ([]int, error) { return source.Fetch(ctx, 100) }
				process := func(ctx context.Context, n int) error {
					if n != 2 {
						return nil
					}
					calls++
					began := time.Now()
					<-ctx.Done()
					require.Equal(t, 7*time.Second, time.Since(began))
					require.ErrorIs(t, context.Cause(ctx), courier.ErrAttemptTimeout)
					return ctx.Err()
				}
				opts := []courier.Option{quiet, courier.WithAttemptTimeout(7 * time.Second)}
				if name == "RunOnce" {
					err := courier.RunOnce(t.Context(), fetch, process, source.Mark, opts...)
					require.ErrorIs(t, err, courier.ErrAttemptTimeout)
				} else {
					opts = append(opts, courier.WithInterval(time.Hour))
					c := courier.Sync(fetch, process, source.Mark, opts...)
					if name == "SyncWithRetry" {
						c = courier.SyncWithRetry(fetch, process, source.Mark, attempts, opts...)
					}
					stop := start(t, c)
					time.Sleep(time.Minute)
					require.NoError(t, stop())
				}
				require.Equal(t, []int{2}, source.left())
				require.Equal(t, attempts, calls)
			})
		})
	}
}

// Anywhere else, and with a value of no use, it is a configuration error.
func TestWithAttemptTimeout_IsRefused(t *testing.T) {
	source, a := newShelf(1), courier.ProcessFunc(nop[int])
	fetch := func(ctx context.Context) ([]int, error) { return source.Fetch(ctx, 100) }
	second := courier.WithAttemptTimeout(time.Second)
	for name, err := range map[string]error{
		"polling":   courier.NewPollingCoordinator(source, a, second).Start(t.Context()),
		"streaming": courier.NewStreamingCoordinator(source, a, second).Start(t.Context()),
		"zero":      courier.Sync(fetch, nop[int], source.Mark, courier.WithAttemptTimeout(0)).Start(t.Context()),
		"negative":  courier.SyncWithRetry(fetch, nop[int], source.Mark, 3, courier.WithAttemptTimeout(-1)).Start(t.Context()),
		"RunOnce":   courier.RunOnce(t.Context(), fetch, nop[int], source.Mark, courier.WithAttemptTimeout(-1)),
	} {
		require.ErrorIs(t, err, courier.ErrConfig, name)
		require.ErrorContains(t, err, "courier: WithAttemptTimeout is ", name)
	}
	require.Zero(t, source.fetchCount())
}

// T-1: by either clock, the context of an attempt says why it has ended.
func TestAttemptTimeout_TheContextSaysWhy(t *testing.T) {
	for name, clock := range map[string]courier.Clock{"system": nil, "injected": &wallClock{}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var err, cause error
				b := newBreaker(1)
				stack := courier.NewCircuitBreakerApplier(courier.NewAttemptTimeoutApplier(courier.ProcessFunc(func(ctx context.Context, _ int) error {
					child, cancel := context.WithCancel(ctx)
					defer cancel()
					<-child.Done()
					err, cause = ctx.Err(), context.Cause(child)
					return ctx.Err()
				}), time.Second, clock), b)
				require.ErrorIs(t, stack.Apply(t.Context(), 1), courier.ErrAttemptTimeout)
				require.Equal(t, context.DeadlineExceeded, err)
				require.ErrorIs(t, cause, courier.ErrAttemptTimeout)
				require.EqualValues(t, "open", b.State())
			})
		})
	}
	synctest.Test(t, func(t *testing.T) { // and a hung queue is known by it
		asked := 0
		hung := &dlqFunc{send: func(ctx context.Context, _ courier.DeadLetter[int]) error {
			asked++
			<-ctx.Done()
			return ctx.Err()
		}}
		s := &batchSink[int]{failBatch: func(_ context.Context, records []int, _ int) error { return failures(numbers(len(records))...) }}
		applier := courier.NewDLQApplier[int](s, courier.DLQ[int](hung), courier.DLQPolicy[int]{Clock: &wallClock{}})
		_ = asBatch(applier).ApplyBatch(t.Context(), numbers(100))
		require.Equal(t, 1, asked)
	})
}

// T-2: a permanent error, or one of the breaker, is not a timeout for being late.
func TestAttemptTimeout_NamesOnlyWhatItCaused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, late := range []error{courier.Permanent(errTest), &courier.OpenError{Cause: errTest}, courier.Skip(errTest)} {
			applier := courier.NewAttemptTimeoutApplier(courier.ProcessFunc(func(ctx context.Context, _ int) error {
				<-ctx.Done()
				return late
			}), time.Second, nil)
			require.Same(t, late, applier.Apply(t.Context(), 1))
		}
	})
}

func TestAttemptTimeout(t *testing.T) {
	slow := func(ctx context.Context, d time.Duration, late error) error {
		select {
		case <-ctx.Done():
			time.Sleep(d)
			if late != nil {
				return late
			}
			return nil
		case <-time.After(time.Hour):
			return nil
		}
	}
	t.Run("an attempt that fails late is a timeout, retryable", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			policy := plain
			policy.MaxAttempts = 2
			began := time.Now()
			timed := courier.NewAttemptTimeoutApplier(courier.ProcessFunc(func(ctx context.Context, _ int) error {
				return slow(ctx, 0, errTest)
			}), 10*time.Second, nil)
			err := courier.NewRetryableApplier(timed, policy).Apply(t.Context(), 1)
			require.ErrorIs(t, err, courier.ErrAttemptTimeout)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorIs(t, err, errTest)
			require.ErrorIs(t, err, courier.ErrExhausted)
			require.Equal(t, 21*time.Second, time.Since(began))
		})
	})
	t.Run("a late success is a success", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			applier := courier.NewAttemptTimeoutApplier(courier.ProcessFunc(func(ctx context.Context, _ int) error {
				return slow(ctx, time.Minute, nil)
			}), time.Second, nil)
			require.NoError(t, applier.Apply(t.Context(), 1))
		})
	})
	t.Run("the caller's context is not the attempt's", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			applier := courier.NewAttemptTimeoutApplier(courier.ProcessFunc(func(ctx context.Context, _ int) error {
				return slow(ctx, 0, errTest)
			}), time.Minute, nil)
			err := applier.Apply(ctx, 1)
			require.NotErrorIs(t, err, courier.ErrAttemptTimeout)
			require.ErrorIs(t, err, errTest)
		})
	})
	t.Run("a permanent error stays one", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			applier := courier.NewAttemptTimeoutApplier(courier.ProcessFunc(func(ctx context.Context, _ int) error {
				return slow(ctx, 0, courier.Permanent(errTest))
			}), time.Second, nil)
			require.Equal(t, courier.ClassPermanent, courier.Classify(t.Context(), applier.Apply(t.Context(), 1)))
		})
	})
	t.Run("it is inside the breaker of a resilient stack", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			calls := 0
			stack, dlq := courier.ResilientApplier(courier.ProcessFunc(func(ctx context.Context, _ int) error {
				calls++
				return slow(ctx, 0, errTest)
			}), &courier.ResilientConfig[int]{AttemptTimeout: time.Second, Retry: courier.RetryPolicy{MaxAttempts: 3}})
			err := stack.Apply(t.Context(), 1)
			require.ErrorIs(t, err, courier.ErrOpen)
			require.ErrorIs(t, err, courier.ErrAttemptTimeout)
			require.Equal(t, 3, calls)
			parked, _ := dlq.Receive(t.Context(), 1)
			require.Empty(t, parked)
		})
	})
	t.Run("a batch is one attempt", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &batchSink[int]{failBatch: func(ctx context.Context, records []int, _ int) error {
				<-ctx.Done()
				return failures(1)
			}}
			err := asBatch(courier.NewAttemptTimeoutApplier[int](s, time.Second, nil)).ApplyBatch(t.Context(), numbers(3))
			var list *courier.BatchError
			require.ErrorAs(t, err, &list)
			require.Len(t, list.Failures, 1)
			require.ErrorIs(t, list.Failures[0].Err, courier.ErrAttemptTimeout)
			require.True(t, slices.Equal([]int{0, 2}, s.got()))
		})
	})
	t.Run("nothing is left behind", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { // the bubble fails if a goroutine is
			applier := courier.NewAttemptTimeoutApplier(courier.ProcessFunc(nop[int]), time.Second, courierttest.NewClock())
			require.NoError(t, applier.Apply(t.Context(), 1))
		})
	})
}
