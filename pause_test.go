package courier_test

import (
	"context"
	"fmt"
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
			t.Run(fmt.Sprintf("prefetch %d, late %v", prefetch, late), func(t *testing.T) {
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
		t.Run(fmt.Sprintf("streaming %v", streaming), func(t *testing.T) {
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
				t.Run(fmt.Sprintf("%s, forced %v, streaming %v", name, forced, streaming), func(t *testing.T) {
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

// What is left at the end is told as Start returns it.
func TestStop_WhatIsLeftIsTold(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		var told courierttest.ObserverRecorder
		source.add(numbers(25)...)
		source.markErr = func(int) error { return errTest }
		c := make(always(nil), courier.WithBatchSize(10), courier.WithObserver(told.Observer()))
		stop := start(t, c)
		time.Sleep(time.Second)
		var lost *courier.MarkError
		require.ErrorAs(t, stop(), &lost)
		marks := courierttest.EventsOf[courier.MarkEvent](&told)
		require.Zero(t, marks[len(marks)-1].RetryIn)
		require.Equal(t, lost.Records, marks[len(marks)-1].Records)
		require.ErrorAs(t, courierttest.EventsOf[courier.StopEvent](&told)[0].Err, &lost)
	})
	synctest.Test(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		ch := make(chan int, 3)
		ch <- 1
		ch <- 2
		ch <- 3
		close(ch)
		c := courier.NewStreamingCoordinator(courier.NewChannelSource(ch, nop[[]int]), courier.ProcessFunc(func(_ context.Context, r int) error {
			if r == 2 {
				return errTest
			}
			return nil
		}), quiet, courier.WithObserver(told.Observer()))
		err := c.Start(t.Context())
		require.Error(t, err)
		require.Equal(t, []courier.StopEvent{{Unsettled: 1, Err: err}}, courierttest.EventsOf[courier.StopEvent](&told))
	})
}
