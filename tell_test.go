package courier_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

func TestLog_TellsOfEveryPark(t *testing.T) {
	inShapes(t, func(t *testing.T, _ string, with func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
		var log bytes.Buffer
		applier, queue := courier.ResilientApplier(courier.ProcessFunc(func(_ context.Context, r int) error {
			if r < 12 {
				return courier.Permanent(errors.New("no such customer"))
			}
			return nil
		}), nil)
		c, run := with(applier, numbers(40), courier.WithLogger(timeless(&log)))
		run(time.Minute)
		n, err := queue.(*courier.MemoryDLQ[int]).Count(t.Context())
		require.NoError(t, err)
		require.Equal(t, 12, n)
		const parked = `level=WARN msg="courier: the dead letter queue has taken a record, which is marked as done"( record=0)? reason=permanent error="courier: gave up after 1 attempt \(permanent\): no such customer"` + "\n"
		require.Regexp(t, parked, log.String())
		require.Contains(t, log.String(), "times=10")
		require.EqualError(t, c.Stats().LastError, "courier: gave up after 1 attempt (permanent): no such customer")
	})
}

// A letter that waits for another of its key has not failed itself.
func TestLog_AParkedKey(t *testing.T) {
	inShapes(t, func(t *testing.T, _ string, with func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
		var log bytes.Buffer
		applier := courier.NewDLQApplier(courier.ProcessFunc(func(context.Context, int) error { return courier.Permanent(errTest) }),
			courier.DLQ[int](&courier.MemoryDLQ[int]{}), courier.DLQPolicy[int]{Key: func(int) string { return "all" }})
		c, run := with(applier, numbers(3), courier.WithLogger(timeless(&log)))
		run(time.Second)
		require.Equal(t, int64(3), c.Stats().Parked)
		require.Contains(t, log.String(), `reason="key parked"`)
		require.ErrorIs(t, c.Stats().LastError, errTest)
	})
}

// Outside of a coordinator nobody logs a park.
func TestLog_AParkWithoutACoordinator(t *testing.T) {
	applier, queue := courier.WithDLQ(courier.ProcessFunc(func(context.Context, int) error { return courier.Permanent(errTest) }))
	require.NoError(t, applier.Apply(t.Context(), 1))
	letters, err := queue.Receive(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, letters, 1)
}

// An outage in which no call succeeds shows in Stats.
func TestStats_LastErrorOfAnOutage(t *testing.T) {
	inShapes(t, func(t *testing.T, _ string, with func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
		applier, _ := courier.ResilientApplier(courier.ProcessFunc(func(context.Context, int) error { return errTest }), nil)
		c, run := with(applier, numbers(5))
		run(time.Minute)
		require.ErrorIs(t, c.Stats().LastError, errTest)
		require.WithinDuration(t, time.Now(), c.Stats().LastErrorAt, time.Minute)
	})
}

// A breaker that an operator opens is no failure.
func TestStats_ForcedOpenIsNoError(t *testing.T) {
	inShapes(t, func(t *testing.T, _ string, with func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
		b := courier.NewBreaker(courier.BreakerPolicy{})
		b.ForceOpen()
		c, run := with(courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, int) error { return nil }), b), numbers(5))
		run(time.Minute)
		require.NoError(t, c.Stats().LastError)
	})
}

// A run that ends at a deadline has records left that have failed: that is no fault of
// anything.
func TestLog_TheEndOfARunWithADeadline(t *testing.T) {
	for _, shape := range []string{"polling", "streaming", "RunOnce"} {
		t.Run(shape, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				source := newLeasing(1)
				a := courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error { return errTest }), courier.RetryPolicy{InitialDelay: time.Minute, Jitter: courier.NoJitter})
				switch shape {
				case "polling":
					require.NoError(t, courier.NewPollingCoordinator(source, a, courier.WithLogger(timeless(&log))).Start(ctx))
				case "streaming":
					source.wait = true
					require.NoError(t, courier.NewStreamingCoordinator(source, a, courier.WithLogger(timeless(&log))).Start(ctx))
				default:
					require.ErrorIs(t, courier.NewPollingCoordinator(source, a, courier.WithLogger(timeless(&log))).RunOnce(ctx), errTest)
				}
				require.Contains(t, log.String(), `level=WARN msg="courier: records failed and stay pending, and the run does not wait for their next attempt; this is the first of them"`)
				require.Contains(t, log.String(), "gave up after 1 attempt (deadline too near): the record's own error; the context of Start or RunOnce ends before the next attempt")
				require.NotContains(t, log.String(), "level=ERROR")
			})
		})
	}
}

// A record without a name goes by its value where that is no secret, or by its place,
// which counts from 1: in a stream from the first record since Start.
func TestObserver_NamesOfRecords(t *testing.T) {
	long := strings.Repeat("é", 100)
	for want, record := range map[string]any{
		"order 7": "order 7", "7": 7, "-7": int8(-7), "8": uint16(8), "1.5": 1.5, "true": true,
		strings.Repeat("é", 32) + "…":             long,
		strings.Repeat("é", 31) + "x…":            strings.Repeat("é", 31) + "x" + long,
		"record 2 of the batch (the first is 1)":  struct{ secret string }{"s"},
		"record 2 of the batch (the first is 1) ": []byte("secret"),
		"1m0s": time.Minute,
	} {
		synctest.Test(t, func(t *testing.T) {
			var told courierttest.ObserverRecorder
			told.PerRecord = true
			n := 0
			a := courier.ProcessFunc(func(_ context.Context, _ any) error {
				if n++; n == 2 {
					return errTest
				}
				return nil
			})
			source := courier.BatchSourceFunc[any]{FetchFunc: func(context.Context) ([]any, error) { return []any{record, record}, nil }, MarkFunc: nop[[]any]}
			_ = courier.NewPollingCoordinator(source, a, quiet, courier.WithObserver(told.Observer())).RunOnce(t.Context())
			want := strings.TrimSpace(want)
			require.Equal(t, want, courierttest.EventsOf[courier.FailEvent](&told)[0].Record)
			require.Equal(t, want, courierttest.EventsOf[courier.ApplyEvent](&told)[0].Record)
			require.Equal(t, want, courierttest.EventsOf[courierttest.RecordEnded](&told)[1].Record)
		})
	}
	synctest.Test(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		told.PerRecord = true
		type secret struct{ n int }
		ch := make(chan secret, 100)
		for i := range 100 {
			ch <- secret{i}
		}
		a := courier.ProcessFunc(func(_ context.Context, r secret) error {
			if r.n == 76 {
				return errTest
			}
			return nil
		})
		c := courier.NewStreamingCoordinator(courier.NewChannelSource(ch, nop[[]secret]), a, quiet, courier.WithStreamWorkers(3), courier.WithBatchSize(7), courier.WithObserver(told.Observer()))
		stop := start(t, c)
		synctest.Wait()
		const want = "record 77 since Start (the first is 1)"
		require.Equal(t, want, courierttest.EventsOf[courier.FailEvent](&told)[0].Record)
		ended := courierttest.EventsOf[courierttest.RecordEnded](&told)
		require.Len(t, ended, 100)
		for _, e := range ended {
			require.Equal(t, e.Err != nil, e.Record == want)
		}
		time.Sleep(time.Minute)
		require.Error(t, courierttest.EventsOf[courier.FailEvent](&told)[3].Err)
		require.Equal(t, want, courierttest.EventsOf[courier.FailEvent](&told)[3].Record, "again and again")
		_ = stop()
	})
}

// The log tells, once and with the next event, that failing records are well again.
func TestLog_FailingRecordsAreWellAgain(t *testing.T) {
	inShapes(t, func(t *testing.T, shape string, with func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
		if shape == "RunOnce" {
			return // which ends with the first failure
		}
		var log bytes.Buffer
		var down fault
		down.set(errors.New("no such customer"))
		applier := courier.ProcessFunc(func(_ context.Context, r int) error {
			if r%2 == 0 {
				return down.get()
			}
			return nil
		})
		_, run := with(applier, numbers(10), courier.WithLogger(timeless(&log)))
		run(10 * time.Minute)
		require.Contains(t, log.String(), `level=WARN msg="courier: records failed and stay pending; this is the first of them" record=0 failed=5 refused=0 batch=10 error="no such customer"`)
		require.Contains(t, log.String(), "seen_in_batches=10\n")
		require.NotContains(t, log.String(), "level=INFO")
		down.set(nil)
		run(30 * time.Minute)
		if strings.HasPrefix(shape, "streaming") {
			return // nothing has happened since, see below
		}
		require.Regexp(t, `level=INFO msg="courier: no record has failed and stayed pending for 1m0s" seen_in_batches=\d+\n$`, log.String())
		require.Equal(t, 1, strings.Count(log.String(), "level=INFO"))
	})
}

func TestLogObserver_WhatOnlyTimeTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		o := courier.LogObserver(timeless(&log))
		lines := func() (n int) {
			n = strings.Count(log.String(), "\n")
			log.Reset()
			return n
		}
		applied := func(failed int) {
			e := courier.ApplyEvent{Records: 10, Applied: 10 - failed, Failed: failed}
			if failed > 0 {
				e.Err = errTest
			}
			o.Applied(t.Context(), e)
		}
		applied(1)
		require.Equal(t, 1, lines())
		for range 20 { // a record that fails each ten seconds, among others
			applied(0)
			time.Sleep(10 * time.Second)
			applied(1)
		}
		require.Equal(t, 1, lines(), "the 10th")
		time.Sleep(time.Minute)
		applied(0)
		require.Contains(t, log.String(), `level=INFO msg="courier: no record has failed and stayed pending for 1m0s" seen_in_batches=21`)
		applied(0)
		require.Equal(t, 1, lines())
		for range 100 { // a schedule of ten minutes is no recovery
			time.Sleep(10 * time.Minute)
			applied(0)
			applied(1)
		}
		require.Equal(t, 100, lines(), "none is soon after another")
		time.Sleep(time.Hour)
		o.Fetched(t.Context(), courier.FetchEvent{})
		require.Contains(t, log.String(), "no record has failed and stayed pending for 22m0s")
		lines()

		pause := func() {
			o.Paused(t.Context(), courier.PauseEvent{Until: time.Now().Add(time.Minute), Err: &courier.ParkRateError{Parked: 20, Of: 20, Until: time.Now().Add(time.Minute)}})
			time.Sleep(time.Minute)
			o.Resumed(t.Context(), courier.ResumeEvent{Pauses: 1})
			applied(0)
			time.Sleep(5 * time.Second)
		}
		for range 60 {
			pause()
		}
		require.Equal(t, 13, strings.Count(log.String(), "level=WARN"), log.String())
		require.Equal(t, 13, lines(), "60 in 65 minutes")
		time.Sleep(time.Minute)
		applied(0)
		require.Equal(t, `level=INFO msg="courier: resumed, with no new pause because of too many dead letters for 1m0s" pauses=60`+"\n", log.String())
		lines()
		o.Paused(t.Context(), courier.PauseEvent{Err: courier.ErrForcedOpen})
		o.Resumed(t.Context(), courier.ResumeEvent{Pauses: 1})
		require.Equal(t, 2, lines(), "any other pause ends with its end")
	})
}

// What RunOnce does not do it does not announce.
func TestLog_RunOnceTriesNoFetchAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		source := newShelf(1)
		source.fetchErr = func(int) error { return courier.RetryAfter(errTest, time.Hour) }
		require.Error(t, courier.NewPollingCoordinator(source, courier.ProcessFunc(nop[int]), courier.WithLogger(timeless(&log))).RunOnce(t.Context()))
		require.Equal(t, `level=WARN msg="courier: fetch failed" records=0 error="the record's own error"`+"\n", log.String())
	})
}

// The drain timeout names a record that it cut short.
func TestLog_TheDrainTimeoutNamesARecord(t *testing.T) {
	for _, shape := range []string{"polling", "streaming"} {
		t.Run(shape, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				source := newLeasing(1, 2, 3)
				source.wait = shape == "streaming"
				a := courier.ProcessFunc(func(ctx context.Context, r int) error {
					if r == 2 {
						<-ctx.Done()
						return ctx.Err()
					}
					return nil
				})
				var c running = courier.NewPollingCoordinator(source, a, courier.WithLogger(timeless(&log)))
				if shape == "streaming" {
					c = courier.NewStreamingCoordinator(source, a, courier.WithLogger(timeless(&log)))
				}
				stop := start(t, c)
				synctest.Wait()
				require.NoError(t, stop())
				require.Contains(t, log.String(), `msg="courier: the drain timeout cut the work short; the records that were not applied stay pending" record=2 pending=2 batch=3 error="context canceled"`)
			})
		})
	}
}

// A pause that goes on is one, however often the coordinator looks.
func TestObserver_AForcedOpenBreakerIsOnePause(t *testing.T) {
	inShapes(t, func(t *testing.T, shape string, with func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
		if shape == "RunOnce" {
			return // which asks the breaker once
		}
		for _, records := range []int{0, 20} {
			var told courierttest.ObserverRecorder
			var log bytes.Buffer
			b := courier.NewBreaker(courier.BreakerPolicy{})
			c, run := with(courier.NewCircuitBreakerApplier(courier.ProcessFunc(nop[int]), b), numbers(records), courier.WithObserver(told.Observer()), courier.WithLogger(timeless(&log)))
			b.ForceOpen()
			run(time.Hour)
			pauses := courierttest.EventsOf[courier.PauseEvent](&told)
			require.Len(t, pauses, 1)
			require.ErrorIs(t, pauses[0].Err, courier.ErrForcedOpen)
			require.ErrorIs(t, c.Ready(), courier.ErrForcedOpen)
			require.Empty(t, courierttest.EventsOf[courier.ResumeEvent](&told))
			b.Reset()
			run(time.Minute)
			require.Equal(t, []courier.ResumeEvent{{Pauses: 1}}, courierttest.EventsOf[courier.ResumeEvent](&told))
			require.Equal(t, 2, strings.Count(log.String(), "\n"), log.String())
			b.ForceOpen()
			run(time.Minute)
			require.Len(t, courierttest.EventsOf[courier.PauseEvent](&told), 2)
			b.ForceClosed()
			run(time.Minute)
			require.Len(t, courierttest.EventsOf[courier.ResumeEvent](&told), 2)
		}
	})
}

// In an outage there is a pause for each time that the breaker opens, and the intake is
// open again once it has closed: not while somebody else's probe is out, and not after a
// probe that has told nothing.
func TestObserver_PausesAreThoseOfTheBreaker(t *testing.T) {
	inShapes(t, func(t *testing.T, shape string, with func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
		if shape == "RunOnce" {
			return
		}
		var told courierttest.ObserverRecorder
		opened := 0
		var down fault
		down.set(errTest)
		b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 2, ProbeTimeout: time.Hour, OnStateChange: func(_ context.Context, c courier.BreakerChange) {
			if c.To == courier.BreakerOpen {
				opened++
			}
		}})
		a := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, int) error { return down.get() }), b)
		c, run := with(a, numbers(20), courier.WithObserver(told.Observer()), courier.WithClock(slow{}))
		run(10 * time.Minute)
		require.Greater(t, opened, 5)
		require.Len(t, courierttest.EventsOf[courier.PauseEvent](&told), opened)
		// Somebody else's probe is out for half an hour, and comes back without a verdict.
		time.Sleep(time.Until(b.RetryAt()))
		permit, err := b.Acquire(t.Context())
		require.NoError(t, err)
		run(30 * time.Minute)
		require.Len(t, courierttest.EventsOf[courier.PauseEvent](&told), opened)
		require.Empty(t, courierttest.EventsOf[courier.ResumeEvent](&told))
		down.set(courier.Skip(errTest)) // of which a probe learns nothing
		_ = b.Report(t.Context(), permit, courier.Skip(errTest))
		run(10 * time.Minute)
		require.Equal(t, courier.BreakerHalfOpen, b.State())
		require.Empty(t, courierttest.EventsOf[courier.ResumeEvent](&told))
		require.Len(t, courierttest.EventsOf[courier.PauseEvent](&told), opened)
		permit, err = b.Acquire(t.Context()) // and somebody else's probe goes well
		require.NoError(t, err)
		require.NoError(t, b.Report(t.Context(), permit, nil))
		c.(interface{ Wake() }).Wake()
		run(time.Minute)
		require.Equal(t, []courier.ResumeEvent{{Pauses: opened}}, courierttest.EventsOf[courier.ResumeEvent](&told))
	})
}

// slow is a clock whose timers are late.
type slow struct{}

func (slow) Now() time.Time                         { return time.Now() }
func (slow) After(d time.Duration) <-chan time.Time { return time.After(d + time.Millisecond) }

// refusing is a queue that is always full.
type refusing struct{ *courier.MemoryDLQ[int] }

func (refusing) Send(context.Context, courier.DeadLetter[int]) error { return courier.ErrDLQFull }

// A letter that the queue refuses because of a stop is told.
func TestLog_ALetterThatIsRefusedAtAStop(t *testing.T) {
	for _, shape := range []string{"polling", "streaming"} {
		t.Run(shape, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				source := newLeasing(7)
				source.wait = shape == "streaming"
				a := courier.NewDLQApplier(courier.WithRetry(courier.ProcessFunc(func(context.Context, int) error { return courier.Permanent(errTest) })), courier.DLQ[int](lateQueue{}), courier.DLQPolicy[int]{})
				opts := []courier.Option{courier.WithLogger(timeless(&log)), courier.WithDrainTimeout(2 * time.Second)}
				var c teller = courier.NewPollingCoordinator(source, a, opts...)
				if shape == "streaming" {
					c = courier.NewStreamingCoordinator(source, a, opts...)
				}
				stop := start(t, c)
				synctest.Wait()
				require.NoError(t, stop())
				require.Contains(t, log.String(), "level=ERROR")
				require.Contains(t, log.String(), "record=7")
				require.Contains(t, log.String(), "courier: the dead letter queue did not take a record")
				require.ErrorIs(t, c.Stats().LastError, courier.ErrPark)
			})
		})
	}
}

// A quota that the source keeps with a time of its own is no trouble; a failure that is
// asked about again sooner than that is.
func TestLog_AQuotaOfTheSourceIsNoWarning(t *testing.T) {
	for name, test := range map[string]struct {
		err   error
		level string
	}{
		"a quota":               {courier.RetryAfter(errors.New("429"), time.Minute), "level=INFO"},
		"a time that is no use": {courier.RetryAfter(errors.New("429"), time.Nanosecond), "level=WARN"},
		"a failure":             {errors.New("refused"), "level=WARN"},
	} {
		t.Run(name, func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				var log bytes.Buffer
				fetch := func(context.Context) ([]int, error) { return nil, test.err }
				mark := func(context.Context, []int) error { return nil }
				run := courierttest.Start(t, courier.Sync(fetch, nop[int], mark, courier.WithLogger(timeless(&log))))
				time.Sleep(time.Second)
				require.NoError(t, run.Stop())
				require.Contains(t, log.String(), test.level+` msg="courier: fetch failed"`)
			})
		})
	}
}
