package courier_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
)

func TestR1_HooksAreCalledOnceARetryAndOnceAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var retries []courier.RetryEvent
		var gaveUp []*courier.RetryError
		policy := plain
		policy.MaxAttempts = 3
		policy.OnRetry = func(_ context.Context, e courier.RetryEvent) { retries = append(retries, e) }
		policy.OnGiveUp = func(_ context.Context, e *courier.RetryError) { gaveUp = append(gaveUp, e) }
		err := courier.NewRetryableApplier(always(errTest), policy).Apply(t.Context(), 1)
		require.Equal(t, []courier.RetryEvent{{Records: 1, Attempt: 1, Delay: time.Second, Err: errTest}, {Records: 1, Attempt: 2, Delay: 2 * time.Second, Err: errTest}}, retries)
		require.Equal(t, []*courier.RetryError{err.(*courier.RetryError)}, gaveUp)

		retries, gaveUp = nil, nil
		s := &sink[int]{fail: func(_ context.Context, _, call int) error {
			if call == 1 {
				return errTest
			}
			return nil
		}}
		require.NoError(t, courier.NewRetryableApplier[int](s, policy).Apply(t.Context(), 1))
		require.Len(t, retries, 1)
		require.Empty(t, gaveUp)
	})
}

// Hooks change no delay, whatever they do.
func TestR1_HooksAdvanceNoScheduleAndMayPanic(t *testing.T) {
	for name, hook := range map[string]func(){"nothing": func() {}, "panic": func() { panic("boom") }, "goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				policy := plain
				policy.OnRetry = func(context.Context, courier.RetryEvent) { hook() }
				policy.OnGiveUp = func(context.Context, *courier.RetryError) { hook() }
				began := time.Now()
				require.ErrorIs(t, courier.NewRetryableApplier(always(errTest), policy).Apply(t.Context(), 1), courier.ErrExhausted)
				require.Equal(t, 15*time.Second, time.Since(began))
			})
		})
	}
}

func TestR10_MaxElapsedCountsFromTheCallAndInterruptsNoAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		policy := plain
		policy.MaxElapsed = time.Minute
		applier := courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error {
			calls++
			time.Sleep(time.Hour)
			return errTest
		}), policy)
		began := time.Now()
		err := applier.Apply(t.Context(), 1)
		require.Equal(t, time.Hour, time.Since(began))
		require.Equal(t, 1, calls)
		var gaveUp *courier.RetryError
		require.ErrorAs(t, err, &gaveUp)
		require.Equal(t, courier.DeadlineTooClose, gaveUp.Reason)
		require.Equal(t, courier.NotAttempted, courier.Classify(t.Context(), err), "D-2: it stays pending")
	})
	synctest.Test(t, func(t *testing.T) { // off by default
		policy := plain
		policy.MaxAttempts = 3
		applier := courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error {
			time.Sleep(24 * time.Hour)
			return errTest
		}), policy)
		require.ErrorIs(t, applier.Apply(t.Context(), 1), courier.ErrExhausted)
	})
}

func TestR13_APolicyServesManyGoroutines(t *testing.T) {
	policy := courier.RetryPolicy{MaxAttempts: 3, InitialDelay: 1, Budget: courier.NewRetryBudget(courier.BudgetPolicy{Burst: 1 << 20})}
	var calls atomic.Int64
	applier := courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error {
		calls.Add(1)
		return errTest
	}), policy)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for range 20 {
				if !errors.Is(applier.Apply(t.Context(), 1), courier.ErrExhausted) {
					t.Error("not exhausted")
				}
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 64*20*3, calls.Load())
}

func TestR15_ADelayOfNothingArmsNoTimerAndSeesTheContext(t *testing.T) {
	clock := &waits{}
	policy := courier.RetryPolicy{MaxAttempts: 4, Jitter: courier.FullJitter, Random: func() float64 { return 0 }, Clock: clock}
	require.ErrorIs(t, courier.NewRetryableApplier(always(errTest), policy).Apply(t.Context(), 1), courier.ErrExhausted)
	require.Zero(t, clock.armed)

	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	err := courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error {
		calls++
		cancel()
		return errTest
	}), policy).Apply(ctx, 1)
	require.ErrorIs(t, err, errTest)
	require.Equal(t, 1, calls)
}

// waits is a clock that counts its timers.
type waits struct{ armed int }

func (*waits) Now() time.Time { return time.Time{} }
func (w *waits) After(time.Duration) <-chan time.Time {
	w.armed++
	ch := make(chan time.Time, 1)
	ch <- time.Time{}
	return ch
}

func TestR16_APanicSpendsTheBudgetAsAnErrorDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		policy := plain
		policy.Budget = courier.NewRetryBudget(courier.BudgetPolicy{Burst: 2, Floor: 1e-9, Ratio: 1e-9})
		calls := 0
		applier := courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error {
			calls++
			panic("boom")
		}), policy)
		var gaveUp *courier.RetryError
		require.ErrorAs(t, applier.Apply(t.Context(), 1), &gaveUp)
		require.Equal(t, courier.BudgetEmpty, gaveUp.Reason)
		require.Equal(t, 3, calls, "the first attempt and the two retries that the budget had")
	})
}

func TestR17_ABudgetBoundsTheRetriesOfASustainedFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		policy := plain
		policy.Budget = courier.NewRetryBudget(courier.BudgetPolicy{Burst: 10, Floor: 1e-9})
		applier := courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error {
			calls++
			return errTest
		}), policy)
		var empty int
		for range 30 {
			err := applier.Apply(t.Context(), 1)
			var gaveUp *courier.RetryError
			require.ErrorAs(t, err, &gaveUp)
			require.ErrorIs(t, err, errTest, "R-18: the last error is there")
			if gaveUp.Reason == courier.BudgetEmpty {
				empty++
				require.Equal(t, courier.NotAttempted, courier.Classify(t.Context(), err))
			}
		}
		require.Equal(t, 30+10, calls)
		require.Positive(t, empty)
	})
}

func TestR17_TheBudgetRefusesBeforeTheDelay(t *testing.T) { // V14
	synctest.Test(t, func(t *testing.T) {
		policy := courier.RetryPolicy{InitialDelay: time.Hour, MaxDelay: time.Hour, Jitter: courier.NoJitter,
			Budget: courier.NewRetryBudget(courier.BudgetPolicy{Burst: 1, Floor: 1e-9})}
		applier := courier.NewRetryableApplier(always(errTest), policy)
		_ = applier.Apply(t.Context(), 1)
		began := time.Now()
		_ = applier.Apply(t.Context(), 1)
		require.Zero(t, time.Since(began))
	})
}

func TestR17_SuccessesPayForRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		policy := plain
		policy.MaxAttempts = 2
		policy.Budget = courier.NewRetryBudget(courier.BudgetPolicy{Burst: 1, Floor: 1e-9, Ratio: 0.5})
		var fail atomic.Bool
		calls := 0
		applier := courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error {
			calls++
			if fail.Load() {
				return errTest
			}
			return nil
		}), policy)
		attempts := func() int {
			calls = 0
			_ = applier.Apply(t.Context(), 1)
			return calls
		}
		fail.Store(true)
		require.Equal(t, 2, attempts())
		require.Equal(t, 1, attempts(), "used up")
		fail.Store(false)
		attempts()
		attempts()
		fail.Store(true)
		require.Equal(t, 2, attempts())
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
			policy.AttemptTimeout, policy.MaxAttempts = 10*time.Second, 2
			began := time.Now()
			err := courier.NewRetryableApplier(courier.ProcessFunc(func(ctx context.Context, _ int) error {
				return slow(ctx, 0, errTest)
			}), policy).Apply(t.Context(), 1)
			require.ErrorIs(t, err, courier.ErrAttemptTimeout)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorIs(t, err, errTest)
			require.ErrorIs(t, err, courier.ErrExhausted)
			require.Equal(t, 21*time.Second, time.Since(began))
		})
	})
	t.Run("a late success is a success", func(t *testing.T) { // V12, V11
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
			require.Equal(t, courier.PermanentClass, courier.Classify(t.Context(), applier.Apply(t.Context(), 1)))
		})
	})
	t.Run("it is inside the breaker of a resilient stack", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			calls := 0
			stack, dlq := courier.ResilientApplier(courier.ProcessFunc(func(ctx context.Context, _ int) error {
				calls++
				return slow(ctx, 0, errTest)
			}), &courier.ResilientConfig[int]{Retry: courier.RetryPolicy{AttemptTimeout: time.Second, MaxAttempts: 3}})
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
			applier := courier.NewAttemptTimeoutApplier(courier.ProcessFunc(nop[int]), time.Second, stopped(time.Now()))
			require.NoError(t, applier.Apply(t.Context(), 1))
		})
	})
}

// V11: a call that succeeded has succeeded, whatever became of its context.
func TestRetry_ASuccessUnderAnEndedContextIsASuccess(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := &batchSink[int]{failBatch: func(context.Context, []int, int) error { cancel(); return nil }}
	require.NoError(t, asBatch(courier.WithRetry[int](s)).ApplyBatch(ctx, []int{1}))
	ctx, cancel = context.WithCancel(t.Context())
	applier := courier.WithRetry(courier.ProcessFunc(func(context.Context, int) error { cancel(); return nil }))
	require.NoError(t, applier.Apply(ctx, 1))
}

// The schedule against a model: for any script of outcomes the calls, the time
// they take and the reason of the end are what the rules say.
func TestRetry_ScheduleModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const (
			fails = iota
			succeeds
			isPermanent
			isOpen
			isSkipped
			asksForTime
		)
		attempts := rapid.IntRange(1, 8).Draw(rt, "attempts")
		script := rapid.SliceOfN(rapid.SampledFrom([]int{fails, fails, fails, succeeds, isPermanent, isOpen, isSkipped, asksForTime}), attempts, attempts).Draw(rt, "script")
		ask := time.Duration(rapid.IntRange(0, 100).Draw(rt, "ask")) * time.Second
		maxElapsed := time.Duration(rapid.IntRange(0, 200).Draw(rt, "max elapsed")) * time.Second
		synctest.Test(t, func(t *testing.T) {
			policy := plain
			policy.MaxAttempts, policy.MaxElapsed = attempts, maxElapsed
			errs := []error{errTest, nil, courier.Permanent(errTest), &courier.OpenError{Cause: errTest}, courier.Skip(errTest), courier.RetryAfter(errTest, ask)}
			calls := 0
			began := time.Now()
			err := courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error {
				calls++
				return errs[script[calls-1]]
			}), policy).Apply(t.Context(), 1)

			wantCalls, want, reason := 0, time.Duration(0), courier.Reason("")
			for delay := time.Second; ; delay = min(2*delay, policy.MaxDelay) {
				kind := script[wantCalls]
				wantCalls++
				if kind == succeeds || kind == isOpen || kind == isSkipped {
					break
				}
				if kind == isPermanent {
					reason = courier.PermanentFailure
					break
				}
				if wantCalls == attempts {
					reason = courier.Exhausted
					break
				}
				wait := delay
				if kind == asksForTime {
					wait = max(delay, min(ask, policy.MaxDelay))
				}
				if maxElapsed > 0 && want+wait > maxElapsed {
					reason = courier.DeadlineTooClose
					break
				}
				want += wait
			}
			var gaveUp *courier.RetryError
			switch last := script[wantCalls-1]; {
			case calls != wantCalls || time.Since(began) != want:
				rt.Fatalf("%d calls in %v, want %d in %v", calls, time.Since(began), wantCalls, want)
			case reason == "" && last == succeeds && err != nil:
				rt.Fatalf("a success ended with %v", err)
			case reason == "" && last != succeeds && !errors.Is(err, errTest):
				rt.Fatalf("ended with %v", err)
			case reason != "" && (!errors.As(err, &gaveUp) || gaveUp.Reason != reason || gaveUp.Attempts != wantCalls):
				rt.Fatalf("ended with %v, want %s after %d", err, reason, wantCalls)
			}
		})
	})
}
