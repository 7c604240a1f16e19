package courier_test

// Pauses: by Pause and Resume, over a breaker, over a full hand.

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// pausable is what both coordinators are.
type pausable interface {
	courierttest.Starter
	Pause()
	Resume()
	Wake()
	Ready() error
	Stats() courier.Stats
}

// A paused coordinator holds nothing that it has not begun: other instances have it.
func TestPause_HoldsNothingThatWasFetchedAhead(t *testing.T) {
	for _, prefetch := range []int{0, 1, 3} {
		for _, late := range []bool{false, true} { // while a batch is in work, or after it
			t.Run(fmt.Sprintf("prefetch %d, %s", prefetch, choose(late, "between two batches", "during a batch")), func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					var r courierttest.Recorder[int]
					source := r.LeasingSource(10*time.Second, numbers(20)...)
					a := r.Applier(nil)
					a.ApplyFunc = func(context.Context, int) error { time.Sleep(time.Second); return nil }
					var told courierttest.ObserverRecorder
					opts := []courier.Option{quiet, courier.WithBatchSize(2), courier.WithPrefetch(prefetch), courier.WithObserver(told.Observer())}
					if late { // the pause comes while the coordinator rests between two batches
						opts = append(opts, courier.WithFixedInterval(), courier.WithInterval(time.Minute))
					}
					c := courier.NewPollingCoordinator[int](source, a, opts...)
					run := courierttest.Start(t, c)
					time.Sleep(1500 * time.Millisecond)
					if late {
						time.Sleep(time.Second)
					}
					require.EqualValues(t, len(source.InHand()), c.Stats().InHand, "with what was fetched ahead")
					c.Pause()
					time.Sleep(2 * time.Second)
					require.Empty(t, source.InHand())
					require.Zero(t, c.Stats().InHand)
					require.ErrorIs(t, c.Ready(), courier.ErrPaused)
					renewals := len(courierttest.EventsOf[courier.RenewEvent](&told))
					other := courierttest.Start(t, courier.NewPollingCoordinator[int](source.Join(), r.Applier(nil), quiet))
					time.Sleep(time.Minute)
					require.Empty(t, source.Pending(), "another instance has delivered the rest")
					require.NoError(t, other.Stop())
					require.Len(t, courierttest.EventsOf[courier.RenewEvent](&told), renewals, "nothing is in hand to be renewed")
					source.Add(100)
					c.Resume()
					time.Sleep(2 * time.Second)
					require.Empty(t, source.Pending(), "after Resume the coordinator goes on at once")
					require.NoError(t, run.Stop())
					courierttest.AssertDeliveredOnce(t, &r)
				})
			})
		}
	}
}

// Pause calls a Fetch back that waits, so that nothing is applied which came after
// the pause had begun.
func TestPause_CallsAFetchBack(t *testing.T) {
	for _, streaming := range []bool{false, true} {
		t.Run(coordinatorOf(streaming), func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				var r courierttest.Recorder[int]
				source := r.StreamSource() // whose Fetch waits
				var told courierttest.ObserverRecorder
				var c pausable = courier.NewPollingCoordinator[int](source, r.Applier(nil), quiet, courier.WithObserver(told.Observer()))
				if streaming {
					c = courier.NewStreamingCoordinator[int](source, r.Applier(nil), quiet, courier.WithObserver(told.Observer()))
				}
				run := courierttest.Start(t, c)
				for n := range 3 {
					time.Sleep(time.Second)
					c.Pause()
					time.Sleep(time.Second)
					source.Add(n)
					time.Sleep(time.Minute)
					require.Len(t, r.Records(courierttest.Applied), n)
					c.Resume()
					time.Sleep(time.Millisecond)
					require.Len(t, r.Records(courierttest.Applied), n+1, "at once")
				}
				require.NoError(t, run.Stop())
				require.Zero(t, c.Stats().FetchFailures, "a fetch that was called back has not failed")
				require.Len(t, courierttest.EventsOf[courier.PauseEvent](&told), 3)
				require.Len(t, courierttest.EventsOf[courier.ResumeEvent](&told), 3)
			})
		})
	}
}

// An operator who closes a breaker ends the pause over it; Wake does not, while the
// breaker is open.
func TestPause_EndsWhenAnOperatorClosesTheBreaker(t *testing.T) {
	for name, operate := range map[string]func(b *courier.Breaker){"Auto": (*courier.Breaker).Reset, "ForceClosed": (*courier.Breaker).ForceClosed} {
		for _, forced := range []bool{false, true} { // opened by failures, or by hand
			for _, streaming := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %s, %s", name, choose(forced, "forced", "not forced"), coordinatorOf(streaming)), func(t *testing.T) {
					courierttest.Bubble(t, func(t *testing.T) {
						var r courierttest.Recorder[int]
						var down atomic.Bool
						down.Store(!forced)
						b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 2, OpenFor: 12 * time.Hour})
						var calls atomic.Int64
						a := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, int) error {
							if calls.Add(1); down.Load() {
								return errTest
							}
							return nil
						}), b)
						if forced {
							b.ForceOpen()
						}
						polled, streamed := r.Source(1, 2, 3), r.StreamSource(1, 2, 3)
						var c pausable = courier.NewPollingCoordinator[int](polled, a, quiet)
						pending := polled.Pending
						if streaming {
							c, pending = courier.NewStreamingCoordinator[int](streamed, a, quiet), streamed.Pending
						}
						run := courierttest.Start(t, c)
						time.Sleep(time.Minute)
						before := calls.Load()
						c.Wake()
						time.Sleep(time.Minute)
						require.Equal(t, before, calls.Load(), "Wake opens no breaker")
						require.ErrorIs(t, c.Ready(), courier.ErrOpen)
						down.Store(false)
						operate(b)
						require.NoError(t, c.Ready())
						time.Sleep(6 * time.Second)
						require.Empty(t, pending())
						require.NoError(t, run.Stop())
					})
				})
			}
		}
	}
}

// Wake ends a pause that no breaker of the stack has caused.
func TestPause_OverSomethingElseEndsByWake(t *testing.T) {
	for _, streaming := range []bool{false, true} {
		courierttest.Bubble(t, func(t *testing.T) {
			var r courierttest.Recorder[int]
			var calls atomic.Int64
			a := courier.ProcessFunc(func(context.Context, int) error {
				if calls.Add(1) == 1 {
					return maintenance{time.Now().Add(time.Hour)}
				}
				return nil
			})
			polled, streamed := r.Source(1), r.StreamSource(1)
			var c pausable = courier.NewPollingCoordinator[int](polled, a, quiet)
			if streaming {
				c = courier.NewStreamingCoordinator[int](streamed, a, quiet)
			}
			run := courierttest.Start(t, c)
			time.Sleep(10 * time.Minute)
			require.EqualValues(t, 1, calls.Load())
			c.Wake()
			time.Sleep(time.Second)
			require.EqualValues(t, 2, calls.Load())
			require.NoError(t, run.Stop())
		})
	}
}

// maintenance is a destination's word that it takes nothing for now.
type maintenance struct{ until time.Time }

func (maintenance) Error() string        { return "closed for maintenance" }
func (maintenance) NotAttempted() bool   { return true }
func (m maintenance) RetryAt() time.Time { return m.until }

// The pauses that a run has ended in are not those of the next one.
func TestPause_AResumeCountsThePausesOfItsRun(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		var told courierttest.ObserverRecorder
		source.add(1)
		var down fault
		down.set(errTest)
		b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, OpenFor: time.Minute, DisableJitter: true})
		c := make(courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, int) error { return down.get() }), b), courier.WithObserver(told.Observer()))
		stop := start(t, c)
		time.Sleep(time.Second)
		require.NoError(t, stop())
		down.set(nil)
		stop = start(t, c)
		time.Sleep(time.Hour)
		require.NoError(t, stop())
		require.Len(t, courierttest.EventsOf[courier.PauseEvent](&told), 2)
		require.Equal(t, []courier.ResumeEvent{{Pauses: 1}}, courierttest.EventsOf[courier.ResumeEvent](&told))
	})
}

// A pause over a full hand says how many records it is full of.
func TestPause_AFullHandIsCounted(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		var told courierttest.ObserverRecorder
		source.add(numbers(6)...)
		opts := []courier.Option{courier.WithBatchSize(3), courier.WithInterval(time.Second), courier.WithObserver(told.Observer())}
		if source.wait {
			opts = append(opts[:1], opts[2], courier.WithPrefetch(0))
		}
		stop := start(t, make(always(courier.Later(errTest, 9*time.Second)), opts...))
		time.Sleep(3 * time.Second)
		require.NoError(t, stop())
		pauses := courierttest.EventsOf[courier.PauseEvent](&told)
		require.Len(t, pauses, 1)
		require.ErrorIs(t, pauses[0].Err, courier.ErrFullHand)
		require.Equal(t, 3, pauses[0].Waiting)
	})
}

func TestPause_NothingIsFetchedUntilResume(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		s := &sink[int]{}
		c := make(s)
		c.Pause() // before Start too
		c.Pause()
		require.ErrorIs(t, c.Ready(), courier.ErrNotRunning)
		stop := start(t, c)
		synctest.Wait()
		require.ErrorIs(t, c.Ready(), courier.ErrPaused)
		source.add(1, 2)
		time.Sleep(time.Hour)
		require.Empty(t, s.got())
		c.Resume()
		synctest.Wait()
		require.NoError(t, c.Ready())
		require.Equal(t, []int{1, 2}, s.got())

		c.Pause()
		synctest.Wait()
		source.add(3)
		time.Sleep(time.Hour)
		require.Equal(t, []int{1, 2}, s.got(), "a fetch that blocks is called back")
		c.Resume()
		synctest.Wait()
		require.Equal(t, []int{1, 2, 3}, s.got())
		require.NoError(t, stop())
		require.ErrorIs(t, c.Ready(), courier.ErrNotRunning)
	})
}

// What is in hand when Pause is called is worked off and marked.
func TestPause_WorksOffWhatIsInHand(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		source.add(numbers(10)...)
		c := make(&sink[int]{fail: func(context.Context, int, int) error { time.Sleep(time.Second); return nil }})
		stop := start(t, c)
		time.Sleep(1500 * time.Millisecond)
		c.Pause()
		time.Sleep(time.Minute)
		require.Equal(t, numbers(10), source.marked())
		require.NoError(t, stop())
	})
}

func TestPause_AStopEndsIt(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		c := make(&sink[int]{})
		c.Pause()
		stop := start(t, c)
		synctest.Wait()
		began := time.Now()
		require.NoError(t, stop())
		require.Zero(t, time.Since(began))
	})
}

// A resume is one fetch: the wake-up that it is does not end the rest behind that.
func TestPause_AResumeFetchesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fetches atomic.Int32
		source := courier.BatchSourceFunc[int]{
			FetchFunc: func(context.Context) ([]int, error) { fetches.Add(1); return nil, nil },
			MarkFunc:  nop[[]int],
		}
		c := courier.NewPollingCoordinator(source, courier.ProcessFunc(nop[int]), quiet, courier.WithInterval(time.Minute))
		c.Pause()
		stop := start(t, c)
		time.Sleep(time.Second)
		c.Resume()
		time.Sleep(time.Second)
		require.EqualValues(t, 1, fetches.Load())
		require.NoError(t, stop())
	})
}

// A record that pauses keeps the others from being begun.
func TestD6_NothingIsBegunBehindARecordThatPauses(t *testing.T) {
	for _, workers := range []int{1, 4} {
		synctest.Test(t, func(t *testing.T) {
			source := newShelf(numbers(100)...)
			var calls atomic.Int64
			s := courier.ProcessFunc(func(_ context.Context, r int) error {
				calls.Add(1)
				time.Sleep(time.Second)
				if r == 0 {
					return &courier.OpenError{Until: time.Now().Add(time.Hour)}
				}
				return nil
			})
			_ = courier.NewPollingCoordinator(source, s, courier.WithWorkers(workers), quiet).RunOnce(t.Context())
			require.LessOrEqual(t, calls.Load(), int64(2*workers-1), "each of the others may have begun one more")
			require.Contains(t, source.left(), 99)
		})
	}
}

// Of several records that pause, the first in the order fetched has the say, not
// the last to return.
func TestPause_IsThatOfTheFirstRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var until time.Time
		o := courier.Observer{Paused: func(_ context.Context, e courier.PauseEvent) { until = e.Until }}
		s := courier.ProcessFunc(func(_ context.Context, r int) error {
			time.Sleep(time.Duration(r+1) * time.Second)
			return &courier.OpenError{Until: began.Add(time.Duration(r+1) * time.Hour)}
		})
		_ = courier.NewPollingCoordinator(newShelf(0, 1), s, courier.WithWorkers(2), courier.WithObserver(o), quiet).RunOnce(t.Context())
		require.Equal(t, began.Add(time.Hour), until)
	})
}

// A time in a record's own error is the record's, whatever became of it.
func TestD3_ARecordsOwnTimePausesNobody(t *testing.T) {
	full := courier.DLQ[int](&dlqFunc{send: func(context.Context, courier.DeadLetter[int]) error { return courier.ErrDLQFull }})
	own := func() courier.Applier[int] {
		at := time.Now().Add(24 * time.Hour)
		return failsOn(map[int]error{0: &tooMany{at}})
	}
	for name, stack := range map[string]func() courier.Applier[int]{
		"full queue": func() courier.Applier[int] { return courier.NewDLQApplier(own(), full, courier.DLQPolicy[int]{}) },
		"cut retry": func() courier.Applier[int] {
			return courier.NewRetryableApplier(own(), courier.RetryPolicy{MaxElapsed: time.Nanosecond, Jitter: courier.NoJitter})
		},
		"budget": func() courier.Applier[int] {
			return courier.NewRetryableApplier(own(), courier.RetryPolicy{Budget: courier.NewRetryBudget(courier.BudgetPolicy{Burst: 1, Floor: 1e-9})})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := newShelf(numbers(10)...)
				run(t, source, stack(), time.Hour)
				require.Equal(t, []int{0}, source.left())
			})
		})
	}
}

// Pause and breaker: one of them over is not both over.
func TestPause_Stream_ResumedIsToldWhenThePauseIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		fail := true
		s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
			if fail {
				fail = false
				return &courier.OpenError{Until: time.Now().Add(time.Minute)}
			}
			return nil
		}}
		c := courier.NewStreamingCoordinator(courier.NewChannelSource(full(2, false), nop[[]int]), courier.Applier[int](s), courier.WithObserver(told.Observer()), quiet)
		stop := start(t, c)
		time.Sleep(time.Second)
		c.Pause()
		time.Sleep(2 * time.Minute) // the breaker closes meanwhile
		require.ErrorIs(t, c.Ready(), courier.ErrPaused)
		early := courierttest.EventsOf[courier.ResumeEvent](&told)
		c.Resume()
		synctest.Wait()
		require.NoError(t, stop())
		require.Empty(t, early, "in the middle of Pause")
		require.Len(t, courierttest.EventsOf[courier.ResumeEvent](&told), 1)
	})
}

// And the other way round.
func TestPause_Stream_ResumeDoesNotTellThatABreakersPauseIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		s := &sink[int]{fail: func(context.Context, int, int) error { return &courier.OpenError{Until: time.Now().Add(time.Hour)} }}
		c := courier.NewStreamingCoordinator(courier.NewChannelSource(full(2, false), nop[[]int]), courier.Applier[int](s), courier.WithObserver(told.Observer()), quiet)
		stop := start(t, c)
		time.Sleep(time.Second)
		c.Pause()
		time.Sleep(time.Second)
		c.Resume()
		time.Sleep(time.Second)
		early := courierttest.EventsOf[courier.ResumeEvent](&told)
		_ = stop()
		require.Empty(t, early, "an hour too early")
	})
}

func TestD3_ARetryableErrorWithATimePausesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf(numbers(10)...)
		s := &batchSink[int]{failBatch: func(context.Context, []int, int) error { return errTest }}
		s.fail = func(_ context.Context, r, _ int) error {
			if r == 0 {
				return &tooMany{time.Now().Add(time.Minute)}
			}
			return nil
		}
		stop := start(t, courier.NewPollingCoordinator(source, courier.WithRetry[int](s), quiet))
		time.Sleep(time.Hour)
		require.NoError(t, stop())
		require.Equal(t, []int{0}, source.left())
	})
}

// A hand that is full for hours is told again every five minutes, with a record and its error.
// Ready is red all the time, and the end is told though a part of the records waits on, but
// not by a stop.
func TestPause_OfAFullHandThatLasts(t *testing.T) {
	for _, streaming := range []bool{false, true} {
		for _, later := range last(false, true) {
			for _, ends := range last(false, true) {
				t.Run(fmt.Sprintf("%s, later %v, ends %v", coordinatorOf(streaming), later, ends), func(t *testing.T) {
					courierttest.Bubble(t, func(t *testing.T) {
						var log lines
						began := time.Now()
						n := 100
						if streaming {
							n = 200
						}
						source := newLeasing(numbers(n)...)
						source.wait = streaming
						a := courier.ProcessFunc(func(_ context.Context, r int) error {
							switch {
							case r < n*6/10, r < n && (!ends || time.Since(began) < time.Hour):
								if later {
									return courier.Later(errTest, 5*time.Second)
								}
								return errTest
							}
							return nil
						})
						a = courier.NewRetryableApplier(a, courier.RetryPolicy{MaxAttempts: 100000})
						opts := []courier.Option{courier.WithLogger(timedLog(&log, &began)), courier.WithWorkers(4)}
						var s courier.Source[int] = source.shelf
						if streaming {
							s = hiding{source}
						}
						var c teller = courier.NewPollingCoordinator(s, a, opts...)
						if streaming {
							c = courier.NewStreamingCoordinator(s, a, opts...)
						}
						stop := start(t, c)
						for i := range 3600 {
							time.Sleep(time.Second)
							source.add(1000 + i)
							if i > 60 {
								require.ErrorIs(t, c.Ready(), courier.ErrFullHand)
								require.ErrorIs(t, c.Ready(), errTest)
							}
						}
						full := regexp.MustCompile(`msg="courier: paused, records stay pending".* record=\d+ .*error="courier: every record that may be in hand .*; the last error of one of them: the record's own error"`)
						told := len(full.FindAllString(log.String(), -1))
						require.GreaterOrEqual(t, told, 11, log.String())
						require.LessOrEqual(t, told, 14)
						require.NotContains(t, log.String(), "resumed")
						if ends {
							for i := range 600 {
								time.Sleep(time.Second)
								source.add(10_000 + i)
							}
							require.NoError(t, c.Ready())
							require.Equal(t, 1, strings.Count(log.String(), "resumed"))
						}
						_ = stop()
						require.Equal(t, ends, strings.Contains(log.String(), "resumed"))
					})
				})
			}
		}
	}
}
