package courier_test

// Breaker: permits, probes, windows, open periods, listeners and forced states.

import (
	"context"
	"errors"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
)

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

func TestB11_TheFailureRateOpensIt(t *testing.T) {
	b := courier.NewBreaker(courier.BreakerPolicy{FailureRate: 0.5, MinCalls: 10, WindowCalls: 400})
	report := func(err error, n int) {
		for range n {
			permit, acquired := b.Acquire(t.Context())
			require.NoError(t, acquired)
			_ = b.Report(t.Context(), permit, err)
		}
	}
	report(nil, 201)
	report(errTest, 199)
	require.EqualValues(t, "closed", b.State(), "199 of 400 are not half")
	report(errTest, 1)
	require.EqualValues(t, "open", b.State(), "a success has left the window: 200 of 400")
}

func TestB11_ARateAloneSwitchesTheThresholdOff(t *testing.T) {
	b := courier.NewBreaker(courier.BreakerPolicy{FailureRate: 1})
	for range 19 {
		permit, err := b.Acquire(t.Context())
		require.NoError(t, err)
		_ = b.Report(t.Context(), permit, errTest)
	}
	require.EqualValues(t, "closed", b.State())
	m := b.Metrics()
	require.Equal(t, 19, m.Calls)
	require.Equal(t, 19, m.Failures)
	permit, _ := b.Acquire(t.Context())
	require.ErrorIs(t, b.Report(t.Context(), permit, errTest), courier.ErrOpen)
}

func TestB12_MetricsForgetWhatHasLeftTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := courier.NewBreaker(courier.BreakerPolicy{FailureRate: 0.5})
		permit, _ := b.Acquire(t.Context())
		_ = b.Report(t.Context(), permit, errTest)
		require.Equal(t, 1, b.Metrics().Failures)
		time.Sleep(time.Hour)
		require.Zero(t, b.Metrics().Calls)
	})
}

func TestB13_CallsThatOutlastTheWindowCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := courier.NewBreaker(courier.BreakerPolicy{FailureRate: 0.5, Window: 10 * time.Second})
		applier := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, int) error {
			time.Sleep(11 * time.Second)
			return errTest
		}), b)
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() { _ = applier.Apply(t.Context(), 1) })
		}
		wg.Wait()
		require.EqualValues(t, "open", b.State())
	})
}

func TestB14_OpenPeriodsAndTheirCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, OpenFor: 10 * time.Second, OpenMultiplier: 3, DisableJitter: true})
		applier := courier.NewCircuitBreakerApplier(always(errTest), b)
		var periods []time.Duration
		for range 5 {
			require.Error(t, applier.Apply(t.Context(), 1))
			periods = append(periods, time.Until(b.RetryAt()))
			time.Sleep(time.Until(b.RetryAt()))
		}
		require.Equal(t, []time.Duration{10 * time.Second, 30 * time.Second, time.Minute, time.Minute, time.Minute}, periods)
	})
}

func TestB16_ListenersAreToldInOrderOutsideTheLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []courier.BreakerChange
		var b *courier.Breaker
		b = courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, OpenFor: time.Second, Random: half, OnStateChange: func(_ context.Context, c courier.BreakerChange) {
			told = append(told, c)
			_, _ = b.State(), b.Metrics() // it may call any method
			switch len(told) {
			case 1:
				b.ForceOpen() // even one that makes a transition
			case 3:
				panic("a listener's panic harms nobody")
			case 4:
				runtime.Goexit()
			}
		}})
		applier := courier.NewCircuitBreakerApplier(always(errTest), b)
		require.ErrorIs(t, applier.Apply(t.Context(), 1), courier.ErrOpen)
		b.Reset()
		require.ErrorIs(t, applier.Apply(t.Context(), 1), courier.ErrOpen)
		time.Sleep(time.Second)
		require.ErrorIs(t, applier.Apply(t.Context(), 1), courier.ErrOpen)

		var path []courier.BreakerState
		for i, c := range told {
			path = append(path, c.To)
			if i > 0 {
				require.Equal(t, told[i-1].To, c.From)
				require.Equal(t, told[i-1].Generation+1, c.Generation, "each exactly once")
			}
		}
		require.Equal(t, []courier.BreakerState{"open", "forced open", "closed", "open", "half-open", "open"}, path)
		require.ErrorIs(t, told[0].Cause, errTest)
		require.ErrorIs(t, told[1].Cause, courier.ErrForcedOpen)
	})
}

func TestB16_ManyGoroutinesTellEachTransitionOnce(t *testing.T) {
	var mu sync.Mutex
	var last uint64
	b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, OpenFor: 1, MaxOpenFor: 1, OnStateChange: func(_ context.Context, c courier.BreakerChange) {
		mu.Lock()
		defer mu.Unlock()
		if last != 0 && c.Generation != last+1 {
			t.Errorf("generation %d was told after %d", c.Generation, last)
		}
		last = c.Generation
	}})
	applier := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(_ context.Context, n int) error {
		if n%3 == 0 {
			return errTest
		}
		return nil
	}), b)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 500 {
				_ = applier.Apply(t.Context(), i)
			}
		})
	}
	wg.Wait()
	require.Positive(t, last)
}

func TestB17_AClockThatStepsBack(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	clock := &handClock{now: now}
	b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, OpenFor: 10 * time.Second, Random: half, Clock: clock})
	applier := courier.NewCircuitBreakerApplier(always(errTest), b)
	require.Error(t, applier.Apply(t.Context(), 1))
	until := b.RetryAt()
	clock.now = now.Add(-time.Hour)
	require.False(t, b.Ready())
	var open *courier.OpenError
	require.ErrorAs(t, applier.Apply(t.Context(), 1), &open)
	require.Equal(t, until.Add(-time.Hour), b.RetryAt(), "it is as long as it was, by the clock as it is now")
	require.Equal(t, b.RetryAt(), open.Until)
	require.Equal(t, b.RetryAt(), b.Metrics().Until)
	clock.now = b.RetryAt().Add(-1)
	require.False(t, b.Ready())
	clock.now = b.RetryAt()
	require.True(t, b.Ready())
}

// Nor does it make a window longer, or the time that a probe has.
func TestB17_AClockThatStepsBackWhileAProbeHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clock := &wallClock{}
		b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 2, FailureRate: 1, OpenFor: time.Second, Random: half, Clock: clock})
		report := func() {
			permit, err := b.Acquire(t.Context())
			require.NoError(t, err)
			_ = b.Report(t.Context(), permit, errTest)
		}
		report()
		time.Sleep(20 * time.Second)
		require.Equal(t, 1, b.Metrics().Calls) // nobody knows of the time since the clock was last read
		clock.step(-time.Hour)
		require.Equal(t, 1, b.Metrics().Calls)
		time.Sleep(20 * time.Second)
		require.Zero(t, b.Metrics().Calls)
		report()
		time.Sleep(time.Second)
		_, err := b.Acquire(t.Context()) // and it never comes back
		require.NoError(t, err)
		time.Sleep(30 * time.Second)
		require.False(t, b.Ready())
		clock.step(-time.Hour)
		require.False(t, b.Ready())
		time.Sleep(30*time.Second - 1)
		require.False(t, b.Ready())
		time.Sleep(time.Nanosecond)
		require.True(t, b.Ready())
		_, err = b.Acquire(t.Context())
		require.ErrorIs(t, err, courier.ErrProbeTimeout)
	})
}

func TestB18_ForcedStatesStayUntilReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(1)
		s := &sink[int]{fail: func(context.Context, int, int) error { return errTest }}
		applier := courier.NewCircuitBreakerApplier[int](s, b)
		b.ForceOpen()
		time.Sleep(365 * 24 * time.Hour)
		err := applier.Apply(t.Context(), 1)
		var open *courier.OpenError
		require.ErrorAs(t, err, &open)
		require.True(t, open.Until.IsZero())
		require.ErrorIs(t, err, courier.ErrForcedOpen)
		require.Zero(t, s.called())
		b.ForceClosed()
		for range 10 {
			require.Equal(t, errTest, applier.Apply(t.Context(), 1))
		}
		require.Equal(t, courier.BreakerForcedClosed, b.State())
		b.Reset()
		require.ErrorIs(t, applier.Apply(t.Context(), 1), courier.ErrOpen)
	})
}

func TestB19_ReadyTellsTheTimeAndTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(1)
		require.True(t, b.Ready())
		require.True(t, b.RetryAt().IsZero())
		applier := courier.NewCircuitBreakerApplier(always(errTest), b)
		require.Error(t, applier.Apply(t.Context(), 1))
		require.False(t, b.Ready())
		require.Equal(t, 10*time.Second, time.Until(b.RetryAt()))
		time.Sleep(10 * time.Second)
		for range 10 {
			require.True(t, b.Ready(), "asking takes no probe slot")
		}
		require.Equal(t, courier.BreakerOpen, b.State(), "nothing happens until somebody calls")
		permit, err := b.Acquire(t.Context())
		require.NoError(t, err)
		require.Equal(t, courier.BreakerHalfOpen, b.State())
		require.False(t, b.Ready())
		require.NoError(t, b.Report(t.Context(), permit, nil))
		require.True(t, b.Ready())
	})
}

// A goroutine of the breaker's, or a timer, would keep it from being collected; and its clock
// panics when it is asked for a timer.
func TestB20_ABreakerHasNoGoroutineAndNoTimer(t *testing.T) {
	use := func() weak.Pointer[courier.Breaker] {
		clock := newHandClock()
		b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, OpenFor: time.Second, Random: half, Clock: clock})
		fails := courier.NewCircuitBreakerApplier(always(errTest), b)
		require.ErrorIs(t, fails.Apply(t.Context(), 1), courier.ErrOpen)
		require.ErrorIs(t, fails.Apply(t.Context(), 1), courier.ErrOpen)
		clock.advance(time.Second)
		hung, err := b.Acquire(t.Context())
		require.NoError(t, err)
		clock.advance(time.Hour)
		require.ErrorIs(t, fails.Apply(t.Context(), 1), courier.ErrProbeTimeout)
		_ = b.Report(t.Context(), hung, nil)
		clock.advance(time.Hour)
		require.NoError(t, courier.NewCircuitBreakerApplier(always(nil), b).Apply(t.Context(), 1))
		require.Equal(t, courier.BreakerClosed, b.State())
		b.ForceClosed()
		b.ForceOpen()
		b.Reset()
		require.Error(t, fails.Apply(t.Context(), 1))
		return weak.Make(b)
	}
	b := use()
	runtime.GC()
	runtime.GC()
	require.Nil(t, b.Value())
}

func TestBreaker_Metrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(2)
		applier := courier.NewCircuitBreakerApplier(always(errTest), b)
		_ = applier.Apply(t.Context(), 1)
		require.Equal(t, courier.BreakerMetrics{State: "closed", Consecutive: 1}, b.Metrics())
		slow, _ := b.Acquire(t.Context())
		_ = applier.Apply(t.Context(), 1)
		_ = applier.Apply(t.Context(), 1)
		_ = b.Report(t.Context(), slow, nil)
		m := b.Metrics()
		require.ErrorIs(t, m.Cause, errTest)
		m.Cause = nil
		require.Equal(t, courier.BreakerMetrics{State: "open", Until: time.Now().Add(10 * time.Second), Opened: 1, Rejected: 1, Stale: 1}, m)
	})
}

func TestBreaker_AcquireRefusesABadPolicyAndAnEndedContext(t *testing.T) {
	_, err := courier.NewBreaker(courier.BreakerPolicy{FailureRate: math.NaN()}).Acquire(t.Context())
	require.ErrorIs(t, err, courier.ErrConfig)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("called off")
	cancel(cause)
	_, err = newBreaker(1).Acquire(ctx)
	require.ErrorIs(t, err, cause)
	require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), err))
}

// The breaker as its users see it, against a model of the consecutive rule: it
// is never open without the failures, never passes a call while open, and every
// call it admits is made.
func TestBreaker_Model(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		threshold := rapid.IntRange(1, 4).Draw(rt, "threshold")
		calls := rapid.SliceOfN(rapid.IntRange(0, 5), 1, 60).Draw(rt, "calls")
		synctest.Test(t, func(t *testing.T) {
			b := newBreaker(threshold)
			streak := 0
			for _, kind := range calls {
				if kind == 5 {
					time.Sleep(7 * time.Second)
					continue
				}
				before, ready := b.State(), b.Ready()
				made := false
				err := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, int) error {
					made = true
					return []error{nil, errTest, courier.Permanent(errTest), courier.Skip(errTest), &courier.OpenError{}}[kind]
				}), b).Apply(t.Context(), 1)
				if made != ready {
					rt.Fatalf("ready %v, made %v", ready, made)
				}
				if !made {
					if !errors.Is(err, courier.ErrOpen) {
						rt.Fatalf("refused with %v", err)
					}
					continue
				}
				switch kind {
				case 3, 4:
				case 1:
					streak++
				default:
					streak = 0
				}
				open := kind == 1 && (before != courier.BreakerClosed || streak >= threshold)
				if open {
					streak = 0
				}
				want := courier.BreakerState("closed")
				switch {
				case open:
					want = courier.BreakerOpen
				case kind >= 3 && before != courier.BreakerClosed:
					want = courier.BreakerHalfOpen
				}
				if b.State() != want {
					rt.Fatalf("%v after a call of kind %d in %v, want %v", b.State(), kind, before, want)
				}
			}
		})
	})
}

func TestB15_SomebodyElsesHungProbeStopsNoCoordinator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(1)
		permit, _ := b.Acquire(t.Context())
		_ = b.Report(t.Context(), permit, errTest)
		time.Sleep(10 * time.Second)
		_, err := b.Acquire(t.Context()) // and it never comes back
		require.NoError(t, err)
		source := newShelf(1, 2, 3)
		run(t, source, courier.NewCircuitBreakerApplier(always(nil), b), 10*time.Minute)
		require.Empty(t, source.left())
	})
}

// B-15: what counts is progress: probes that come back keep the breaker asking.
func TestB15_ProgressPutsTheProbeTimeoutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, OpenFor: 10 * time.Second, Random: half, Probes: 2, Successes: 10})
		permit, _ := b.Acquire(t.Context())
		_ = b.Report(t.Context(), permit, errTest)
		time.Sleep(10 * time.Second)
		_, err := b.Acquire(t.Context()) // hangs
		require.NoError(t, err)
		other, err := b.Acquire(t.Context())
		require.NoError(t, err)
		time.Sleep(50 * time.Second)
		require.NoError(t, b.Report(t.Context(), other, nil))
		_, err = b.Acquire(t.Context())
		require.NoError(t, err)
		time.Sleep(50 * time.Second)
		_, err = b.Acquire(t.Context())
		require.ErrorIs(t, err, courier.ErrOpen)
		require.Equal(t, courier.BreakerHalfOpen, b.State(), "the last verdict is 50 s old")
	})
}

func TestB2_APermitReportedTwiceFreesNoOthersSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(1)
		permit, _ := b.Acquire(t.Context())
		_ = b.Report(t.Context(), permit, errTest)
		time.Sleep(10 * time.Second)
		permit, _ = b.Acquire(t.Context())
		for range 3 {
			_ = b.Report(t.Context(), permit, &courier.OpenError{})
		}
		_, err := b.Acquire(t.Context())
		require.NoError(t, err)
		_, err = b.Acquire(t.Context())
		require.ErrorIs(t, err, courier.ErrOpen)
	})
}

// C-6: of failures that began one after the other, a success ends the streak of those
// that had been counted when its call began, and of the others only their row.
func TestB3_ALateSuccessOfACalmPhaseIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(3)
		hold := make(chan error)
		applier := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(_ context.Context, r int) error {
			if r == 0 {
				return <-hold
			}
			return nil
		}), b)
		done := make(chan error, 2)
		both := func() {
			for range 2 {
				go func() { done <- applier.Apply(t.Context(), 0) }()
			}
			synctest.Wait()
		}
		both()
		hold <- errTest
		require.Error(t, <-done)
		require.Equal(t, 1, b.Metrics().Consecutive)
		hold <- nil
		require.NoError(t, <-done)
		require.Equal(t, 1, b.Metrics().Consecutive, "the success is of before the failure")
		require.NoError(t, applier.Apply(t.Context(), 2))
		require.Zero(t, b.Metrics().Consecutive)

		both()
		hold <- errTest
		hold <- errTest
		require.Error(t, errors.Join(<-done, <-done))
		require.Equal(t, 2, b.Metrics().Consecutive)
		require.NoError(t, applier.Apply(t.Context(), 2))
		require.Zero(t, b.Metrics().Consecutive)
	})
}

// The fast path of a calm breaker, under the race detector.
func TestB3_ACalmBreakerUnderManyGoroutines(t *testing.T) {
	b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 3, OpenFor: time.Nanosecond, MaxOpenFor: time.Nanosecond})
	var n atomic.Int64
	applier := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, int) error {
		if n.Add(1)%5 == 0 {
			return errTest
		}
		return nil
	}), b)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 2000 {
				_ = applier.Apply(t.Context(), 1)
			}
		})
	}
	wg.Wait()
	require.Eventually(t, func() bool { return applier.Apply(t.Context(), 1) == nil && b.State() == "closed" }, 30*time.Second, time.Microsecond)
}
