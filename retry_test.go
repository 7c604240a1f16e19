package courier_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

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
