package courier_test

import (
	"context"
	"errors"
	"fmt"
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

// inCallAndInHand runs a test of one record's retries where Apply waits for them, and where
// a coordinator does with the record in its hand.
func inCallAndInHand(t *testing.T, test func(t *testing.T, deliver func(courier.Applier[int]))) {
	t.Helper()
	t.Run("in a call", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			test(t, func(a courier.Applier[int]) { _ = a.Apply(t.Context(), 1) })
		})
	})
	t.Run("in hand", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			test(t, func(a courier.Applier[int]) {
				a, _ = courier.WithDLQ(a) // so that nothing is delivered again
				stop := start(t, courier.NewPollingCoordinator(newShelf(1), a, quiet, courier.WithWorkers(2)))
				time.Sleep(time.Hour)
				require.NoError(t, stop())
			})
		})
	})
}

// delays applies a record whose attempts fail with the errors of a script, of which the
// last one goes on, and returns the times between them.
func delays(deliver func(courier.Applier[int]), policy courier.RetryPolicy, script ...error) (between []time.Duration) {
	var last time.Time
	calls := 0
	deliver(courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error {
		if calls++; calls > 1 {
			between = append(between, time.Since(last))
		}
		last = time.Now()
		return script[min(calls, len(script))-1]
	}), policy))
	return between
}

func seconds(s ...float64) (d []time.Duration) {
	for _, s := range s {
		d = append(d, time.Duration(s*float64(time.Second)))
	}
	return d
}

func TestR3_TheDelaysOfEachJitter(t *testing.T) {
	for _, test := range []struct {
		jitter courier.Jitter
		random float64
		want   []time.Duration
	}{
		{courier.NoJitter, 0.5, seconds(1, 2, 4, 8, 10, 10)},
		{courier.FullJitter, 0.5, seconds(0.5, 1, 2, 4, 5, 5)},
		{courier.EqualJitter, 0.5, seconds(0.75, 1.5, 3, 6, 7.5, 7.5)},
		{courier.EqualJitter, 0, seconds(0.5, 1, 2, 4, 5, 5)},
		{courier.DecorrelatedJitter, 0.5, seconds(2, 3.5, 5.5, 5.5, 5.5, 5.5)},
		{courier.DecorrelatedJitter, 0, seconds(1, 1, 1, 1, 1, 1)},
	} {
		inCallAndInHand(t, func(t *testing.T, deliver func(courier.Applier[int])) {
			policy := courier.RetryPolicy{MaxAttempts: 7, InitialDelay: time.Second, MaxDelay: 10 * time.Second, Jitter: test.jitter, Random: func() float64 { return test.random }}
			require.Equal(t, test.want, delays(deliver, policy, errTest))
		})
	}
}

// A time that one failure asks for is the next delay's alone: the others are as long as
// they would have been without it.
func TestR11_WhatIsAskedForChangesNoLaterDelay(t *testing.T) {
	for jitter, want := range map[courier.Jitter][]time.Duration{
		courier.NoJitter:           seconds(1, 30, 4, 8),
		courier.DecorrelatedJitter: seconds(2, 30, 5.75, 9.125),
	} {
		inCallAndInHand(t, func(t *testing.T, deliver func(courier.Applier[int])) {
			policy := courier.RetryPolicy{MaxAttempts: 5, InitialDelay: time.Second, MaxDelay: time.Minute, Jitter: jitter, Random: half}
			require.Equal(t, want, delays(deliver, policy, errTest, courier.RetryAfter(errTest, 30*time.Second), errTest))
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
		require.Equal(t, courier.ReasonDeadline, gaveUp.Reason)
		require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), err), "Q-2: it stays pending")
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

// the time between the attempts of a record that waits in hand counts as well.
func TestR10_MaxElapsedOfARecordThatWaitsInHand(t *testing.T) {
	for _, together := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			calls := 0
			applier := courier.ProcessFunc(func(_ context.Context, r int) error {
				mu.Lock()
				defer mu.Unlock()
				calls += 1 - r // those of record 0
				return errTest
			})
			opts := []courier.Option{quiet, courier.WithWorkers(2)}
			if together {
				applier, opts = eachOfBatch[int]{applier}, append(opts, courier.WithApplyBatchSize(2))
			}
			policy := plain
			policy.MaxElapsed, policy.MaxAttempts = 10*time.Second, courier.UnlimitedAttempts
			err := courier.NewPollingCoordinator(newShelf(numbers(2)...), courier.NewRetryableApplier(applier, policy), opts...).RunOnce(t.Context())
			var gaveUp *courier.RetryError
			require.ErrorAs(t, err, &gaveUp)
			require.Equal(t, courier.ReasonDeadline, gaveUp.Reason)
			require.Equal(t, 4, calls, "after 0, 1, 3 and 7 seconds, together %v", together)
		})
	}
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

func TestR15_EachDelayArmsOneTimer(t *testing.T) {
	for _, maxElapsed := range []time.Duration{0, 24 * time.Hour} {
		for name, test := range map[string]struct {
			err    error
			budget float64
			armed  int
		}{
			"success":         {nil, 100, 0},
			"permanent":       {courier.Permanent(errTest), 100, 0},
			"not attempted":   {&courier.OpenError{Cause: errTest}, 100, 0},
			"exhausted":       {errTest, 100, 3},
			"budget empty":    {errTest, 2, 2},
			"much asked for":  {courier.RetryAfter(errTest, time.Hour), 100, 3},
			"nothing is left": {courier.RetryAfter(errTest, 25*time.Hour), 100, 3},
		} {
			t.Run(fmt.Sprintf("%s, MaxElapsed %v", name, maxElapsed), func(t *testing.T) {
				if name == "nothing is left" && maxElapsed > 0 {
					test.armed = 0
				}
				clock := &waits{}
				policy := courier.RetryPolicy{MaxAttempts: 4, MaxRetryAfter: 48 * time.Hour, MaxElapsed: maxElapsed, Clock: clock,
					Budget: courier.NewRetryBudget(courier.BudgetPolicy{Burst: test.budget, Floor: 1e-9})}
				_ = courier.NewRetryableApplier(always(test.err), policy).Apply(t.Context(), 1)
				require.Equal(t, test.armed, clock.armed)
			})
		}
	}
	clock := &waits{}
	require.NoError(t, courier.NewRetryableApplier(always(nil), courier.RetryPolicy{Clock: clock}).Apply(t.Context(), 1))
	require.Zero(t, clock.read)
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

// waits is a clock that stands still, and counts its timers and how often it is read.
type waits struct{ armed, read int }

func (w *waits) Now() time.Time { w.read++; return time.Time{} }
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
		require.Equal(t, courier.ReasonBudget, gaveUp.Reason)
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
			if gaveUp.Reason == courier.ReasonBudget {
				empty++
				require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), err))
			}
		}
		require.Equal(t, 30+10, calls)
		require.Positive(t, empty)
	})
}

func TestR17_TheBudgetRefusesBeforeTheDelay(t *testing.T) {
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

// A retry that succeeds is paid back, whoever waits for it.
func TestR17_ARetryThatSucceedsIsPaidBack(t *testing.T) {
	inCallAndInHand(t, func(t *testing.T, deliver func(courier.Applier[int])) {
		policy := plain
		policy.Budget = courier.NewRetryBudget(courier.BudgetPolicy{Burst: 1, Floor: 1e-9, Ratio: 1e-9})
		require.Equal(t, seconds(1), delays(deliver, policy, errTest, nil))
		require.True(t, left(t, policy.Budget))
		require.False(t, left(t, policy.Budget), "it has paid nothing in")
	})
}

// What one retry has used up is not there for another of the same budget, until the floor
// has filled it: at its rate, and up to the burst.
func TestR17_OneBudgetForAllThatShareIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		policy := plain
		policy.MaxAttempts, policy.Budget = 3, courier.NewRetryBudget(courier.BudgetPolicy{Burst: 4, Floor: 0.01})
		first := courier.NewRetryableApplier(always(errTest), policy)
		require.ErrorIs(t, first.Apply(t.Context(), 1), courier.ErrExhausted)
		require.True(t, left(t, policy.Budget))
		require.True(t, left(t, policy.Budget))
		require.NotErrorIs(t, first.Apply(t.Context(), 1), courier.ErrExhausted)
		time.Sleep(90 * time.Second)
		require.False(t, left(t, policy.Budget))
		time.Sleep(10 * time.Second)
		require.True(t, left(t, policy.Budget))
		time.Sleep(time.Hour)
		for range 4 {
			require.True(t, left(t, policy.Budget))
		}
		require.False(t, left(t, policy.Budget))
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
			applier := courier.NewAttemptTimeoutApplier(courier.ProcessFunc(nop[int]), time.Second, stopped(time.Now()))
			require.NoError(t, applier.Apply(t.Context(), 1))
		})
	})
}

// A call that succeeded has succeeded, whatever became of its context.
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
					reason = courier.ReasonPermanent
					break
				}
				if wantCalls == attempts {
					reason = courier.ReasonExhausted
					break
				}
				wait := delay
				if kind == asksForTime {
					wait = max(delay, min(ask, policy.MaxDelay))
				}
				if maxElapsed > 0 && want+wait > maxElapsed {
					reason = courier.ReasonDeadline
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
