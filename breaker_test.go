package courier_test

import (
	"cmp"
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

	"github.com/erfanmomeniii/courier"
)

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

func TestB2_NoMoreProbesThanAllowedAreInFlight(t *testing.T) {
	var inflight, most atomic.Int32
	var fail atomic.Bool
	fail.Store(true)
	b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, OpenFor: 1, MaxOpenFor: 1, Probes: 3, Successes: 1 << 30})
	applier := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, int) error {
		if fail.Load() {
			return errTest
		}
		n := inflight.Add(1)
		defer inflight.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		runtime.Gosched()
		return nil
	}), b)
	require.Error(t, applier.Apply(t.Context(), 1))
	fail.Store(false)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for range 200 {
				_ = applier.Apply(t.Context(), 1)
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, most.Load(), int32(3))
	require.Positive(t, most.Load())
}

func TestB3_AStaleResultIsNoVerdict(t *testing.T) {
	for _, late := range []error{nil, errTest} {
		synctest.Test(t, func(t *testing.T) {
			b := newBreaker(1)
			hold := make(chan error)
			applier := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(_ context.Context, r int) error {
				if r == 0 {
					return <-hold
				}
				return errTest
			}), b)
			slow := make(chan error, 1)
			go func() { slow <- applier.Apply(t.Context(), 0) }()
			synctest.Wait()
			require.ErrorIs(t, applier.Apply(t.Context(), 1), courier.ErrOpen)
			hold <- late
			require.ErrorIs(t, <-slow, late)
			require.EqualValues(t, "open", b.State())
		})
	}
}

func TestB4_EveryPermitIsReportedOnce(t *testing.T) {
	for name, probe := range map[string]func() error{
		"return":  func() error { return errTest },
		"panic":   func() error { panic("boom") },
		"goexit":  func() error { runtime.Goexit(); return nil },
		"ignored": func() error { return &courier.OpenError{Cause: errTest} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBreaker(1)
				do := func() error { return errTest }
				applier := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, int) error { return do() }), b)
				require.Error(t, applier.Apply(t.Context(), 1))
				time.Sleep(10 * time.Second)
				do = probe
				var wg sync.WaitGroup
				wg.Go(func() {
					defer func() { _ = recover() }()
					_ = applier.Apply(t.Context(), 1)
				})
				wg.Wait()
				time.Sleep(time.Hour)
				do = func() error { return nil }
				require.NoError(t, applier.Apply(t.Context(), 1), "the next probe is admitted")
				require.EqualValues(t, "closed", b.State())
			})
		})
	}
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

func TestB15_HungProbesDoNotWedgeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(1)
		hold := make(chan error)
		do := func() error { return errTest }
		applier := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, int) error { return do() }), b)
		require.Error(t, applier.Apply(t.Context(), 1))
		time.Sleep(10 * time.Second)
		do = func() error { return <-hold }
		hung := make(chan error, 1)
		go func() { hung <- applier.Apply(t.Context(), 1) }()
		synctest.Wait()
		do = func() error { return nil }
		err := applier.Apply(t.Context(), 1)
		var open *courier.OpenError
		require.ErrorAs(t, err, &open) // E-2
		require.Equal(t, time.Now(), open.Until, "all slots are taken: asking again is worth it any time")
		time.Sleep(time.Minute)
		require.ErrorIs(t, applier.Apply(t.Context(), 1), courier.ErrProbeTimeout)
		time.Sleep(time.Minute)
		require.NoError(t, applier.Apply(t.Context(), 1))
		require.EqualValues(t, "closed", b.State())
		hold <- errTest
		err = <-hung
		require.ErrorIs(t, err, errTest)
		require.ErrorAs(t, err, &open)
		require.False(t, courier.Counted(open), "P-1: a probe's failure counts against no record, late or not")
		require.EqualValues(t, "closed", b.State())
	})
}

func TestBreaker_ASuccessEndsTheStreak(t *testing.T) {
	b := newBreaker(3)
	s := &sink[int]{fail: func(_ context.Context, _, call int) error {
		if call%3 == 0 {
			return nil
		}
		return errTest
	}}
	applier := courier.NewCircuitBreakerApplier[int](s, b)
	for range 100 {
		_ = applier.Apply(t.Context(), 1)
	}
	require.EqualValues(t, "closed", b.State())
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
