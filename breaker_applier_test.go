package courier_test

// The applier with a circuit breaker: what it counts as a failure, alone and in batches.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

func TestBreaker_SlowCallsOpenItAndLeaveTheRecordApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := courier.NewBreaker(courier.BreakerPolicy{SlowCall: time.Second, SlowCallRate: 0.5, MinCalls: 4})
		applier := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, int) error {
			time.Sleep(2 * time.Second)
			return nil
		}), b)
		for range 4 {
			require.NoError(t, applier.Apply(t.Context(), 1))
		}
		err := applier.Apply(t.Context(), 1)
		require.ErrorIs(t, err, courier.ErrOpen)
		require.ErrorIs(t, err, courier.ErrSlow)
	})
}

// A record that cannot be decoded says nothing of the destination: it neither opens the
// breaker nor ends a row of failures.
func TestBreaker_AnUndecodableRecordEndsNoRow(t *testing.T) {
	b := newBreaker(2)
	fails := courier.NewCircuitBreakerApplier(always(errTest), b)
	bad := courier.NewCircuitBreakerApplier(courier.NewDecodingApplier(always(nil), func(int) (int, error) { return 0, errTest }), b)
	_ = fails.Apply(t.Context(), 1)
	require.ErrorIs(t, bad.Apply(t.Context(), 2), courier.ErrDecode)
	require.Equal(t, 1, b.Metrics().Consecutive)
	_ = fails.Apply(t.Context(), 3)
	require.Equal(t, courier.BreakerOpen, b.State())
}

func TestB1_AnOpenBreakerMakesNoCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink[int]{fail: func(context.Context, int, int) error { return errTest }}
		b := newBreaker(2)
		applier := courier.NewCircuitBreakerApplier[int](s, b)
		require.Equal(t, errTest, applier.Apply(t.Context(), 1))
		require.EqualValues(t, "closed", b.State())

		err := applier.Apply(t.Context(), 1) // the one it opens over
		var open *courier.OpenError
		require.ErrorAs(t, err, &open)
		require.ErrorIs(t, err, courier.ErrOpen)
		require.ErrorIs(t, err, errTest, "E-1: the cause is there to be found")
		require.True(t, courier.Counted(open), "P-1: it reached the destination while closed")
		require.Equal(t, time.Now().Add(10*time.Second), open.Until)
		require.EqualValues(t, "open", b.State())

		time.Sleep(10*time.Second - 1)
		err = applier.Apply(t.Context(), 1)
		require.ErrorIs(t, err, courier.ErrOpen)
		require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), err)) // E-3
		require.Equal(t, 2, s.called())

		time.Sleep(time.Nanosecond)
		err = applier.Apply(t.Context(), 1) // a probe
		require.ErrorAs(t, err, &open)
		require.False(t, courier.Counted(open), "P-1: a failed probe counts against no record")
		require.Equal(t, 3, s.called())
	})
}

func TestB6_ACancelledCallIsNoVerdict(t *testing.T) {
	b := newBreaker(1)
	ctx, cancel := context.WithCancel(t.Context())
	applier := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(ctx context.Context, r int) error {
		cancel()
		if r == 0 {
			return nil
		}
		return ctx.Err()
	}), b)
	require.ErrorIs(t, applier.Apply(ctx, 1), context.Canceled)
	require.EqualValues(t, "closed", b.State())
	live, stop := context.WithCancel(t.Context())
	defer stop()
	cancel = stop
	require.NoError(t, applier.Apply(live, 0), "a success is one, cancelled or not")
}

func TestB7_ATimeoutOfTheAppliersOwnIsAFailure(t *testing.T) {
	b := newBreaker(1)
	applier := courier.NewCircuitBreakerApplier(always(context.DeadlineExceeded), b)
	require.ErrorIs(t, applier.Apply(t.Context(), 1), courier.ErrOpen)
}

// In every form: an attempt's timeout and the caller's deadline are failures, as long as the
// destination was asked; the caller's cancel is none.
func TestB7_TheTimeoutsOfABatch(t *testing.T) {
	hang := func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	forms := map[string]func(err error) error{
		"as one": func(err error) error { return err },
		"listed": func(err error) error {
			return &courier.BatchError{Failures: []courier.BatchFailure{{Index: 0, Err: err}, {Index: 1, Err: err}}}
		},
	}
	for form, listed := range forms {
		for name, test := range map[string]struct {
			attempt, deadline, cancel time.Duration
			err                       func(error) error
			want                      courier.BreakerState
		}{
			"attempt timeout": {attempt: time.Second, want: courier.BreakerOpen},
			"deadline":        {deadline: time.Second, want: courier.BreakerOpen},
			"cancel":          {cancel: time.Second, want: courier.BreakerClosed},
			"not asked": {deadline: time.Second, want: courier.BreakerClosed, err: func(err error) error {
				return &courier.OpenError{Cause: err}
			}},
		} {
			t.Run(form+"/"+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := newBreaker(1)
					var a courier.Applier[int] = &batchSink[int]{failBatch: func(ctx context.Context, _ []int, _ int) error {
						err := hang(ctx)
						if test.err != nil {
							err = test.err(err)
						}
						return listed(err)
					}}
					if test.attempt > 0 {
						a = courier.NewAttemptTimeoutApplier(a, test.attempt, nil)
					}
					ctx, cancel := context.WithTimeout(t.Context(), cmp.Or(test.deadline, time.Hour))
					defer cancel()
					if test.cancel > 0 {
						time.AfterFunc(test.cancel, cancel)
					}
					require.Error(t, asBatch(courier.NewCircuitBreakerApplier(a, b)).ApplyBatch(ctx, numbers(2)))
					require.Equal(t, test.want, b.State())
				})
			})
		}
	}
}

func TestB8_AnEndedContextTakesNoPermit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(1)
		s := &sink[int]{fail: func(_ context.Context, _, call int) error {
			if call == 1 {
				return errTest
			}
			return nil
		}}
		applier := courier.NewCircuitBreakerApplier[int](s, b)
		require.Error(t, applier.Apply(t.Context(), 1))
		time.Sleep(10 * time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, applier.Apply(ctx, 1), context.Canceled)
		require.Equal(t, 1, s.called())
		require.NoError(t, applier.Apply(t.Context(), 1), "the probe slot is free")
	})
}

func TestB9_APermanentErrorIsAnAnswer(t *testing.T) {
	b := newBreaker(1)
	applier := courier.NewCircuitBreakerApplier(always(courier.Permanent(errTest)), b)
	for range 100 {
		require.ErrorIs(t, applier.Apply(t.Context(), 1), errTest)
	}
	require.EqualValues(t, "closed", b.State())
}

func TestB10_ABreakerInsideABreaker(t *testing.T) {
	inner, outer := newBreaker(1), newBreaker(1)
	applier := courier.NewCircuitBreakerApplier(courier.NewCircuitBreakerApplier(always(errTest), inner), outer)
	for range 10 {
		require.ErrorIs(t, applier.Apply(t.Context(), 1), courier.ErrOpen)
	}
	require.EqualValues(t, "open", inner.State())
	require.EqualValues(t, "closed", outer.State(), "what was not attempted is no verdict")
}

func TestBreaker_ABatchIsOneCall(t *testing.T) {
	list := func(errs ...error) error {
		var e courier.BatchError
		for i, err := range errs {
			if err != nil {
				e.Add(i, err)
			}
		}
		return e.ErrorOrNil()
	}
	for _, test := range []struct {
		name  string
		err   error
		opens int // the threshold at which it opens after one failure before, 0 for none
	}{
		{"all failed", list(errTest, errTest), 2},
		{"as one", errTest, 2},
		{"one got through", list(errTest, nil), 1},
		{"one was answered", list(errTest, courier.Permanent(errTest)), 1},
		{"permanent as one", courier.Permanent(errTest), 0},
		{"not attempted", &courier.OpenError{Cause: errTest}, 0},
		{"applied", nil, 0},
	} {
		for _, threshold := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s, threshold %d", test.name, threshold), func(t *testing.T) {
				b := newBreaker(threshold)
				s := &batchSink[int]{failBatch: func(_ context.Context, _ []int, call int) error {
					if call < threshold {
						return errTest
					}
					return test.err
				}}
				batch := asBatch(courier.NewCircuitBreakerApplier[int](s, b))
				for range threshold - 1 {
					require.Equal(t, errTest, batch.ApplyBatch(t.Context(), []int{1, 2}))
				}
				err := batch.ApplyBatch(t.Context(), []int{1, 2})
				if threshold <= test.opens {
					require.Equal(t, courier.BreakerOpen, b.State())
					require.ErrorIs(t, err, courier.ErrOpen)
				} else {
					require.Equal(t, courier.BreakerClosed, b.State())
					require.Equal(t, test.err, err)
				}
			})
		}
	}
}

func TestWithCircuitBreaker_TheDefaultOpensAtFive(t *testing.T) {
	s := &sink[int]{fail: func(context.Context, int, int) error { return errTest }}
	applier := courier.WithCircuitBreaker[int](s)
	for range 20 {
		require.ErrorIs(t, applier.Apply(t.Context(), 1), errTest)
	}
	require.Equal(t, 5, s.called())
}

// A batch over which a breaker opens tells of each record its own failure, and of
// one that was refused further inside that it was.
func TestBreaker_ABatchThatOpensItKeepsEachFailureApart(t *testing.T) {
	refused := &courier.OpenError{Until: time.Now().Add(time.Hour), Cause: errors.New("another breaker's")}
	failures := []error{errors.New("first"), refused, errors.New("third")}
	s := &batchSink[int]{failBatch: func(context.Context, []int, int) error {
		var list courier.BatchError
		for i, err := range failures {
			list.Add(i, err)
		}
		return &list
	}}
	b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1})
	err := asBatch(courier.NewCircuitBreakerApplier(s, b)).ApplyBatch(t.Context(), []int{1, 2, 3})
	var list *courier.BatchError
	require.ErrorAs(t, err, &list)
	require.Len(t, list.Failures, 3)
	for i, f := range list.Failures {
		require.Equal(t, i, f.Index)
		var open *courier.OpenError
		require.ErrorAs(t, f.Err, &open)
		if i == 1 {
			require.Same(t, refused, open)
			continue
		}
		require.Equal(t, failures[i], open.Cause)
		require.Equal(t, b.RetryAt(), open.Until)
		require.True(t, courier.Counted(open))
	}
}

func TestB4_ABatchThatPanicsIsAFailure(t *testing.T) {
	b := newBreaker(1)
	s := &batchSink[int]{failBatch: func(context.Context, []int, int) error { panic("boom") }}
	err := asBatch(courier.NewCircuitBreakerApplier[int](s, b)).ApplyBatch(t.Context(), []int{1})
	require.ErrorIs(t, err, courier.ErrPanic)
	require.EqualValues(t, "open", b.State())
}

func TestB5_ThePanicKeepsItsOrigin(t *testing.T) {
	for _, failures := range []int{0, 1} { // on the fast path, and off it
		b := newBreaker(5)
		for range failures {
			_ = courier.NewCircuitBreakerApplier(always(errTest), b).Apply(t.Context(), 1)
		}
		dlq := &courier.MemoryDLQ[int]{}
		stack := courier.NewDLQApplier(courier.NewCircuitBreakerApplier(courier.ProcessFunc(panics), b), courier.DLQ[int](dlq), courier.DLQPolicy[int]{})
		require.NoError(t, stack.Apply(t.Context(), 1))
		parked, _ := dlq.Receive(t.Context(), 1)
		var p *courier.PanicError
		require.ErrorAs(t, parked[0].Error, &p)
		require.Contains(t, string(p.Stack), "courier_test.panics(", "the stack has the frame that panicked")
		require.Equal(t, 1, strings.Count(string(p.Stack), "panic("), "and nobody panicked again")
	}
}

func panics(context.Context, int) error { panic("boom") }

func TestB8_AnEndedContextTakesNoPermitForABatch(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := &batchSink[int]{}
	err := asBatch(courier.NewCircuitBreakerApplier[int](s, newBreaker(1))).ApplyBatch(ctx, []int{1})
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, s.batches)
}

func TestB7_TheCallersDeadlineIsAFailureOfTheDestination(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(3)
		applier := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(ctx context.Context, _ int) error {
			<-ctx.Done()
			return ctx.Err()
		}), b)
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_ = applier.Apply(ctx, 1)
			cancel()
		}
		require.EqualValues(t, "open", b.State())
	})
}
