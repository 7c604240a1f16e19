package courier_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
)

func TestR1_MaxAttemptsCallsAndOneWaitLess(t *testing.T) {
	for attempts := 1; attempts <= 5; attempts++ {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			var at []time.Duration
			policy := plain
			policy.MaxAttempts = attempts
			applier := courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error {
				at = append(at, time.Since(began))
				return errTest
			}), policy)
			err := applier.Apply(t.Context(), 1)
			want := []time.Duration{0, 1, 3, 7, 15}[:attempts]
			for i := range want {
				want[i] *= time.Second
			}
			require.Equal(t, want, at)

			var gaveUp *courier.RetryError
			require.ErrorAs(t, err, &gaveUp)
			require.ErrorIs(t, err, courier.ErrExhausted)
			require.ErrorIs(t, err, errTest)
			require.Equal(t, courier.ReasonExhausted, gaveUp.Reason)
			require.Equal(t, attempts, gaveUp.Attempts)
			require.Equal(t, want[attempts-1], gaveUp.Elapsed)
			require.Equal(t, errTest, gaveUp.Last)
			require.Equal(t, courier.ClassRetryable, courier.Classify(t.Context(), err))
		})
	}
}

func TestRetry_ASuccessEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink[int]{fail: func(_ context.Context, _, call int) error {
			if call < 3 {
				return errTest
			}
			return nil
		}}
		require.NoError(t, courier.WithRetry[int](s).Apply(t.Context(), 1))
		require.Equal(t, 3, s.called())
	})
}

func TestRetry_AnEndedContextMakesNoCall(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("called off")
	cancel(cause)
	s := &batchSink[int]{}
	err := courier.WithRetry[int](s).Apply(ctx, 1)
	require.ErrorIs(t, err, cause)
	require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), err))
	err = asBatch(courier.WithRetry[int](s)).ApplyBatch(ctx, []int{1})
	require.ErrorIs(t, err, cause)
	require.Zero(t, s.called())
	require.Empty(t, s.batches)
}

func TestR6_ADeadlineThatIsTooNearEndsItAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		err := courier.NewRetryableApplier(always(errTest), plain).Apply(ctx, 1)
		require.Zero(t, time.Since(began))
		var gaveUp *courier.RetryError
		require.ErrorAs(t, err, &gaveUp)
		require.Equal(t, courier.ReasonDeadline, gaveUp.Reason)
		require.ErrorIs(t, err, errTest)
		require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), err), "Q-2: it stays pending")
	})
}

func TestR7_ACancelDuringTheDelayKeepsBothErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cause := errors.New("called off")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(500*time.Millisecond, func() { cancel(cause) })
		began := time.Now()
		err := courier.NewRetryableApplier(always(errTest), plain).Apply(ctx, 1)
		require.Equal(t, 500*time.Millisecond, time.Since(began))
		require.ErrorIs(t, err, cause)
		require.ErrorIs(t, err, errTest)
		require.NotErrorIs(t, err, courier.ErrExhausted)
		require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), err))
	})
}

func TestR8_APermanentErrorIsOneCall(t *testing.T) {
	type refusal struct{ error }
	s := &sink[int]{fail: func(context.Context, int, int) error {
		return fmt.Errorf("order 1: %w", courier.Permanent(refusal{errTest}))
	}}
	err := courier.WithRetry[int](s).Apply(t.Context(), 1)
	require.Equal(t, 1, s.called())
	require.ErrorIs(t, err, refusal{errTest})
	var r refusal
	require.ErrorAs(t, err, &r)
	require.Contains(t, err.Error(), "order 1: ")
	require.Equal(t, courier.ClassPermanent, courier.Classify(t.Context(), err))
	require.NotErrorIs(t, err, courier.ErrExhausted)
}

func TestR11_RetryAfterIsAMinimumWithACap(t *testing.T) {
	for _, test := range []struct{ ask, limit, want time.Duration }{
		{10 * time.Second, 0, 10 * time.Second},
		{time.Millisecond, 0, time.Second}, // the policy's own delay is longer
		{-time.Hour, 0, time.Second},
		{time.Hour, 0, time.Minute}, // MaxDelay
		{time.Hour, 2 * time.Minute, 2 * time.Minute},
		{time.Hour, time.Millisecond, time.Second}, // the cap is of what is asked for
	} {
		synctest.Test(t, func(t *testing.T) {
			policy := plain
			policy.MaxAttempts, policy.MaxRetryAfter = 2, test.limit
			began := time.Now()
			err := courier.NewRetryableApplier(always(courier.RetryAfter(errTest, test.ask)), policy).Apply(t.Context(), 1)
			require.Equal(t, test.want, time.Since(began), "asked for %v", test.ask)
			require.ErrorIs(t, err, errTest)
		})
	}
}

func TestR12_TheAttemptReachesTheSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []int
		policy := plain
		policy.MaxAttempts = 3
		_ = courier.NewRetryableApplier(courier.ProcessFunc(func(ctx context.Context, _ int) error {
			got = append(got, courier.AttemptFromContext(ctx))
			return errTest
		}), policy).Apply(t.Context(), 1)
		require.Equal(t, []int{1, 2, 3}, got)
	})
	require.Equal(t, 1, courier.AttemptFromContext(t.Context()))
}

func TestRetry_UnlimitedGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		policy := plain
		policy.MaxAttempts = courier.UnlimitedAttempts
		s := &sink[int]{fail: func(_ context.Context, _, call int) error {
			if call < 1000 {
				return errTest
			}
			return nil
		}}
		require.NoError(t, courier.NewRetryableApplier[int](s, policy).Apply(t.Context(), 1))
	})
}

func TestRetry_WhatIsNotAttemptedOrSkippedPassesAsItIs(t *testing.T) {
	for _, err := range []error{&courier.OpenError{Cause: errTest}, courier.Skip(errTest)} {
		s := &sink[int]{fail: func(context.Context, int, int) error { return err }}
		require.Same(t, err, courier.WithRetry[int](s).Apply(t.Context(), 1))
		require.Equal(t, 1, s.called())
	}
}

// In a batch only what failed is applied again, and each record has its own
// verdict.
func TestRetry_BatchAppliesOnlyWhatFailedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &batchSink[int]{failBatch: func(_ context.Context, records []int, call int) error {
			var e courier.BatchError
			for i, r := range records {
				switch {
				case r == 1:
					e.Add(i, errTest)
				case r == 3:
					e.Add(i, courier.Permanent(errTest))
				case r == 4 && call < 3:
					e.Add(i, errTest)
				}
			}
			return e.ErrorOrNil()
		}}
		policy := plain
		policy.MaxAttempts = 4
		began := time.Now()
		err := asBatch(courier.NewRetryableApplier[int](s, policy)).ApplyBatch(t.Context(), numbers(6))
		require.Equal(t, [][]int{{0, 1, 2, 3, 4, 5}, {1, 4}, {1, 4}, {1}}, s.batches)
		require.Equal(t, 7*time.Second, time.Since(began))
		require.ElementsMatch(t, []int{0, 2, 4, 5}, s.got())

		var list *courier.BatchError
		require.ErrorAs(t, err, &list)
		require.Len(t, list.Failures, 2)
		require.Equal(t, 1, list.Failures[0].Index)
		require.ErrorIs(t, list.Failures[0].Err, courier.ErrExhausted)
		require.Equal(t, 3, list.Failures[1].Index)
		require.Equal(t, courier.ClassPermanent, courier.Classify(t.Context(), list.Failures[1].Err))
	})
}

// A batch that fails as one is held against none of its records: each is then
// tried alone.
func TestRetry_ABatchThatFailsAsOneGoesOnRecordByRecord(t *testing.T) {
	for name, fail := range map[string]error{"error": errTest, "permanent": courier.Permanent(errTest)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &batchSink[int]{failBatch: func(context.Context, []int, int) error { return fail }}
				poison := 0
				s.fail = func(_ context.Context, r, _ int) error {
					if r == 2 {
						poison++
						return errTest
					}
					return nil
				}
				policy := plain
				policy.MaxAttempts = 3
				err := asBatch(courier.NewRetryableApplier[int](s, policy)).ApplyBatch(t.Context(), numbers(4))
				require.Equal(t, [][]int{{0, 1, 2, 3}}, s.batches)
				require.Equal(t, []int{0, 1, 3}, s.got())
				require.Equal(t, 3, poison)
				var list *courier.BatchError
				require.ErrorAs(t, err, &list)
				require.Len(t, list.Failures, 1)
				require.Equal(t, 2, list.Failures[0].Index)
				require.ErrorIs(t, err, courier.ErrExhausted)
				var gaveUp *courier.RetryError
				require.ErrorAs(t, err, &gaveUp)
				require.Equal(t, 3, gaveUp.Attempts)
			})
		})
	}
}

// A panic in a later round is caught where the results of the earlier rounds
// are known, so that what was applied is not applied again.
func TestRetry_APanicInALaterRoundLosesNoResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &batchSink[int]{failBatch: func(_ context.Context, _ []int, call int) error {
			if call > 1 {
				panic("boom")
			}
			return failures(2)
		}}
		policy := plain
		policy.MaxAttempts = 3
		err := asBatch(courier.NewRetryableApplier[int](s, policy)).ApplyBatch(t.Context(), numbers(4))
		var list *courier.BatchError
		require.ErrorAs(t, err, &list)
		require.Len(t, list.Failures, 1)
		require.Equal(t, 2, list.Failures[0].Index)
		require.ErrorIs(t, err, courier.ErrPanic)
		require.Equal(t, [][]int{{0, 1, 2, 3}, {2}, {2}}, s.batches)
	})
}

func TestRetry_ABatchIsCutShortByADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		s := &batchSink[int]{failBatch: func(context.Context, []int, int) error {
			return &courier.BatchError{Failures: []courier.BatchFailure{{Index: 0, Err: errTest}}}
		}}
		err := asBatch(courier.NewRetryableApplier[int](s, plain)).ApplyBatch(ctx, []int{7, 8})
		require.Len(t, s.batches, 2)
		var gaveUp *courier.RetryError
		require.ErrorAs(t, err, &gaveUp)
		require.Equal(t, courier.ReasonDeadline, gaveUp.Reason)
	})
}

func TestR12_TheAttemptOfABatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []int
		s := &batchSink[int]{failBatch: func(ctx context.Context, _ []int, _ int) error {
			got = append(got, courier.AttemptFromContext(ctx))
			return failures(0)
		}}
		policy := plain
		policy.MaxAttempts = 3
		_ = asBatch(courier.NewRetryableApplier[int](s, policy)).ApplyBatch(t.Context(), numbers(2))
		require.Equal(t, []int{1, 2, 3}, got)
	})
}

func TestRetry_EachRecordOfABatchKeepsItsOwnLastError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		errA, errB := errors.New("a"), errors.New("b")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		s := &batchSink[int]{failBatch: func(context.Context, []int, int) error {
			return &courier.BatchError{Failures: []courier.BatchFailure{{Index: 0, Err: errA}, {Index: 1, Err: courier.RetryAfter(errB, time.Hour)}}}
		}}
		err := asBatch(courier.NewRetryableApplier[int](s, plain)).ApplyBatch(ctx, []int{0, 1})
		var list *courier.BatchError
		require.ErrorAs(t, err, &list)
		require.ErrorIs(t, list.Failures[0].Err, errA)
		require.NotErrorIs(t, list.Failures[0].Err, errB)
		require.ErrorIs(t, list.Failures[1].Err, errB)
	})
}

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
		name   string
		jitter courier.Jitter
		random float64
		want   []time.Duration
	}{
		{"none", courier.NoJitter, 0.5, seconds(1, 2, 4, 8, 10, 10)},
		{"full", courier.FullJitter, 0.5, seconds(0.5, 1, 2, 4, 5, 5)},
		{"equal", courier.EqualJitter, 0.5, seconds(0.75, 1.5, 3, 6, 7.5, 7.5)},
		{"equal", courier.EqualJitter, 0, seconds(0.5, 1, 2, 4, 5, 5)},
		{"decorrelated", courier.DecorrelatedJitter, 0.5, seconds(2, 3.5, 5.5, 5.5, 5.5, 5.5)},
		{"decorrelated", courier.DecorrelatedJitter, 0, seconds(1, 1, 1, 1, 1, 1)},
	} {
		t.Run(fmt.Sprintf("%s, random %v", test.name, test.random), func(t *testing.T) {
			inCallAndInHand(t, func(t *testing.T, deliver func(courier.Applier[int])) {
				policy := courier.RetryPolicy{MaxAttempts: 7, InitialDelay: time.Second, MaxDelay: 10 * time.Second, Jitter: test.jitter, Random: func() float64 { return test.random }}
				require.Equal(t, test.want, delays(deliver, policy, errTest))
			})
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
		t.Run(choose(jitter == courier.NoJitter, "no jitter", "decorrelated jitter"), func(t *testing.T) {
			inCallAndInHand(t, func(t *testing.T, deliver func(courier.Applier[int])) {
				policy := courier.RetryPolicy{MaxAttempts: 5, InitialDelay: time.Second, MaxDelay: time.Minute, Jitter: jitter, Random: half}
				require.Equal(t, want, delays(deliver, policy, errTest, courier.RetryAfter(errTest, 30*time.Second), errTest))
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
