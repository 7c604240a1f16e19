package courier_test

// Ready tells of every standstill.

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// limited is a decorator of the user's own, which hides what is inside it.
type limited struct{ inner courier.Applier[int] }

func (l limited) Apply(ctx context.Context, record int) error { return l.inner.Apply(ctx, record) }

// Ready gives the reason whenever nothing is settled for a while, and is nil again
// once the reason is gone.
func TestReady_TellsOfEveryStandstill(t *testing.T) {
	type world struct {
		down  atomic.Bool
		queue *courier.MemoryDLQ[int]
	}
	bad := func(w *world) courier.Applier[int] {
		return courier.ProcessFunc(func(context.Context, int) error {
			if w.down.Load() {
				return courier.Permanent(errTest)
			}
			return nil
		})
	}
	stacks := map[string]struct {
		make func(w *world) courier.Applier[int]
		want error
	}{
		"the guard's pause": {func(w *world) courier.Applier[int] {
			w.queue = &courier.MemoryDLQ[int]{}
			return courier.NewDLQApplier(bad(w), courier.DLQ[int](w.queue), courier.DLQPolicy[int]{})
		}, courier.ErrParkRate},
		"a full queue": {func(w *world) courier.Applier[int] {
			w.queue = &courier.MemoryDLQ[int]{Capacity: 1}
			return courier.NewDLQApplier(bad(w), courier.DLQ[int](w.queue), courier.DLQPolicy[int]{})
		}, courier.ErrDLQFull},
		"a breaker that is hidden": {func(w *world) courier.Applier[int] {
			return limited{courier.WithCircuitBreaker(courier.ProcessFunc(func(context.Context, int) error {
				if w.down.Load() {
					return errTest
				}
				return nil
			}))}
		}, courier.ErrOpen},
	}
	for name, s := range stacks {
		for _, streaming := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, %s", name, coordinatorOf(streaming)), func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					var r courierttest.Recorder[int]
					w := new(world)
					w.down.Store(true)
					a := s.make(w)
					polled, streamed := r.Source(numbers(60)...), r.StreamSource(numbers(60)...)
					var c pausable = courier.NewPollingCoordinator[int](polled, a, quiet)
					if streaming {
						c = courier.NewStreamingCoordinator[int](streamed, a, quiet)
					}
					run := courierttest.Start(t, c)
					red := 0
					for range 120 {
						time.Sleep(500 * time.Millisecond)
						if err := c.Ready(); err != nil {
							require.ErrorIs(t, err, s.want)
							red++
						}
					}
					require.Greater(t, red, 90, "of 120 looks")
					w.down.Store(false)
					if w.queue != nil {
						letters, _ := w.queue.Receive(t.Context(), 1000)
						for _, l := range letters {
							_ = w.queue.Delete(t.Context(), l.ID)
						}
					}
					time.Sleep(3 * time.Minute)
					require.NoError(t, c.Ready())
					require.NoError(t, run.Stop())
					require.ErrorIs(t, c.Ready(), courier.ErrNotRunning)
				})
			})
		}
	}
}

// A stream whose hand is full says so, too, while it waits before the next fetch, since the last one failed.
func TestReady_OfAStreamWhoseHandIsFullAfterAFetchThatFailed(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		var fetches atomic.Int32
		source := sourceFuncs{
			fetch: func(context.Context, int) ([]int, error) {
				if fetches.Add(1) < 6 {
					return nil, errTest
				}
				return []int{1}, errTest
			},
			mark: nop[[]int],
		}
		c := courier.NewStreamingCoordinator(source, always(courier.Later(errTest, time.Hour)), quiet, unspread,
			courier.WithBatchSize(1), courier.WithPrefetch(0), courier.WithStreamWorkers(2), courier.WithObserver(told.Observer()))
		stop := start(t, c)
		for fetches.Load() < 6 {
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(100 * time.Millisecond)
		pauses := courierttest.EventsOf[courier.PauseEvent](&told)
		require.Len(t, pauses, 1)
		require.ErrorIs(t, pauses[0].Err, courier.ErrFullHand)
		require.Equal(t, 1, pauses[0].Waiting)
		require.ErrorIs(t, stop(), courier.ErrUnsettled)
		require.EqualValues(t, 6, fetches.Load())
	})
}

// A stream whose hand is full of records that wait to be tried again says so: by an
// event, by Ready, and by the end of both.
func TestReady_OfAStreamWhoseHandIsFull(t *testing.T) {
	for _, workers := range []int{1, 4} {
		for name, opt := range map[string]courier.Option{
			"ordered marks": courier.WithOrderedMarks(),
			"keys":          courier.WithOrderKey(func(n int) string { return fmt.Sprint(n % 3) }),
			"one key":       courier.WithOrderKey(func(int) string { return "all" }),
		} {
			t.Run(fmt.Sprintf("%s, %d workers", name, workers), func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					var r courierttest.Recorder[int]
					var told courierttest.ObserverRecorder
					var down atomic.Bool
					down.Store(true)
					source := r.StreamSource(numbers(50)...)
					c := courier.NewStreamingCoordinator[int](source, courier.ProcessFunc(func(context.Context, int) error {
						if down.Load() {
							return errTest
						}
						return nil
					}), quiet, opt, courier.WithStreamWorkers(workers), courier.WithBatchSize(5), courier.WithObserver(told.Observer()))
					run := courierttest.Start(t, c)
					time.Sleep(time.Minute)
					require.ErrorIs(t, c.Ready(), courier.ErrFullHand)
					pauses := courierttest.EventsOf[courier.PauseEvent](&told)
					require.Len(t, pauses, 1)
					require.ErrorIs(t, pauses[0].Err, courier.ErrFullHand)
					down.Store(false)
					time.Sleep(2 * time.Minute)
					require.NoError(t, c.Ready())
					// Each time that what is left fills the hand again.
					pauses = courierttest.EventsOf[courier.PauseEvent](&told)
					require.Less(t, len(pauses), 5)
					require.Len(t, courierttest.EventsOf[courier.ResumeEvent](&told), len(pauses))
					require.Empty(t, source.Pending())
					require.NoError(t, run.Stop())
				})
			})
		}
	}
}

// A stream with room left, or with work under way, is no full one.
func TestReady_OfAStreamThatIsBusy(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var r courierttest.Recorder[int]
		source := r.StreamSource(numbers(50)...)
		c := courier.NewStreamingCoordinator[int](source, courier.ProcessFunc(func(_ context.Context, n int) error {
			time.Sleep(time.Second)
			if n == 0 {
				return errors.New("one that fails")
			}
			return nil
		}), quiet, courier.WithOrderedMarks(), courier.WithBatchSize(50))
		run := courierttest.Start(t, c)
		for range 40 {
			time.Sleep(time.Second)
			require.NoError(t, c.Ready())
		}
		require.NoError(t, run.Stop())
	})
}

// hangingSource answers no call of one kind for a while.
type hangingSource struct {
	*leasing[int]
	kind string
	open chan struct{}
}

func (s *hangingSource) wait(kind string) {
	if kind == s.kind {
		<-s.open
	}
}

func (s *hangingSource) Fetch(ctx context.Context, limit int) ([]int, error) {
	s.wait("fetch")
	return s.leasing.Fetch(ctx, limit)
}

func (s *hangingSource) Mark(ctx context.Context, records []int) error {
	s.wait("mark")
	return s.leasing.Mark(ctx, records)
}

func (s *hangingSource) Release(ctx context.Context, records []int, after time.Duration) error {
	s.wait("release")
	return s.leasing.Release(ctx, records, after)
}

func (s *hangingSource) Fail(_ context.Context, failed []courier.FailedRecord[int]) error {
	s.wait("note of failures")
	return s.leasing.Release(context.Background(), []int{failed[0].Record}, 0) // only one of them fails
}

// releasing hides that a source can fail records.
type releasing struct {
	courier.Source[int]
	courier.Releaser[int]
}

// A hand is full of records that wait to be tried again only if all in it do. While one is in
// work, or the others of its key or those to be marked wait for it, or for a mark, that is
// told of nowhere as a full hand.
func TestReady_AHandFullOfWorkIsNotToldAsWaiting(t *testing.T) {
	type call func(hold chan struct{}, n int) error
	hangs := func(hold chan struct{}, _ int) error { <-hold; return nil }
	fails := func(chan struct{}, int) error { return errTest }
	slow := func(hold chan struct{}, n int) error {
		if n == 0 {
			<-hold
		}
		return nil
	}
	causes := map[string]struct {
		apply, mark call
		waits       bool
	}{
		"one is slow":        {apply: slow},
		"all are slow":       {apply: hangs},
		"the mark hangs":     {mark: hangs},
		"the mark fails":     {mark: fails},
		"they fail":          {apply: fails, waits: true},
		"they ask for later": {apply: func(chan struct{}, int) error { return courier.Later(errTest, 20*time.Second) }, waits: true},
	}
	shapes := map[string][]courier.Option{
		"plain":         nil,
		"ordered marks": {courier.WithOrderedMarks()},
		"keys":          {courier.WithOrderKey(func(n int) string { return fmt.Sprint(n % 3) })},
		"one key":       {courier.WithOrderKey(func(int) string { return "all" })},
	}
	for cause, world := range causes {
		for shape, opts := range shapes {
			for _, streaming := range []bool{false, true} {
				if !streaming && shape == "ordered marks" {
					continue
				}
				for _, workers := range []int{1, 4} {
					for _, batch := range []int{1, 5} {
						t.Run(fmt.Sprintf("%s, %s, %s, %d workers, batch %d", cause, shape, coordinatorOf(streaming), workers, batch), func(t *testing.T) {
							courierttest.Bubble(t, func(t *testing.T) {
								var told courierttest.ObserverRecorder
								var well atomic.Bool
								hold := make(chan struct{})
								say := func(f call, n int) error {
									if f == nil || well.Load() {
										return nil
									}
									return f(hold, n)
								}
								source := newLeasing(numbers(60)...)
								source.wait = streaming
								source.markErr = func(n int) error { return say(world.mark, n) }
								apply := courier.ProcessFunc(func(_ context.Context, n int) error { return say(world.apply, n) })
								opts := append([]courier.Option{quiet, courier.WithBatchSize(batch), courier.WithObserver(told.Observer())}, opts...)
								var c interface {
									running
									Ready() error
								}
								if streaming {
									c = courier.NewStreamingCoordinator[int](hiding{source}, apply, append(opts, courier.WithPrefetch(0), courier.WithStreamWorkers(workers))...)
								} else {
									c = courier.NewPollingCoordinator[int](hiding{source}, apply, append(opts, courier.WithWorkers(workers))...)
								}
								stop := start(t, c)
								for range 120 {
									time.Sleep(time.Second)
									if !world.waits {
										require.NotErrorIs(t, c.Ready(), courier.ErrFullHand)
									}
								}
								for _, e := range courierttest.EventsOf[courier.PauseEvent](&told) {
									require.True(t, world.waits, "told %v", e.Err)
									require.Positive(t, e.Waiting)
								}
								well.Store(true)
								close(hold)
								time.Sleep(5 * time.Minute)
								require.NoError(t, stop())
							})
						})
					}
				}
			}
		}
	}
}

// hiding is a source without the capabilities of the one inside it.
type hiding struct{ courier.Source[int] }

// A hand that is full stays so, and Ready and the events say so, when something else
// stops the stream for a while: a breaker, a queue that refuses a record, or Pause.
func TestReady_OfAFullHandAfterAnotherStop(t *testing.T) {
	for _, stop := range []string{"breaker", "queue", "pause"} {
		t.Run(stop, func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				var r courierttest.Recorder[int]
				var told courierttest.ObserverRecorder
				source := r.StreamSource(numbers(50)...)
				queue := &courier.MemoryDLQ[int]{Capacity: 1}
				require.NoError(t, queue.Send(t.Context(), courier.DeadLetter[int]{Record: 100, Error: errTest}))
				dlq := courier.NewDLQApplier(always(courier.Permanent(errTest)), courier.DLQ[int](queue), courier.DLQPolicy[int]{MaxParkRate: courier.AnyParkRate})
				var mode atomic.Value
				mode.Store("")
				a := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(ctx context.Context, n int) error {
					switch mode := mode.Load(); {
					case mode == "over", n == 0 && mode == "probe":
						return nil
					case n == 0 && mode == "breaker":
						return errTest
					case n == 0 && mode == "queue":
						return dlq.Apply(ctx, n)
					}
					return courier.Permanent(errTest)
				}), courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1}))
				// The first one is applied in the end, and that is too few.
				c := courier.NewStreamingCoordinator[int](source, a, quiet, courier.WithOrderedMarks(), courier.WithBatchSize(5), courier.WithObserver(told.Observer()))
				run := courierttest.Start(t, c)
				time.Sleep(time.Minute)
				require.ErrorIs(t, c.Ready(), courier.ErrFullHand)
				mode.Store(stop)
				if stop == "pause" {
					c.Pause()
				}
				time.Sleep(2 * time.Minute)
				mode.Store("probe")
				c.Resume()
				time.Sleep(5 * time.Minute)
				require.ErrorIs(t, c.Ready(), courier.ErrFullHand, "nothing is fetched or settled")
				require.Empty(t, courierttest.EventsOf[courier.ResumeEvent](&told), "it has not gone on")
				mode.Store("over")
				time.Sleep(5 * time.Minute)
				require.NoError(t, c.Ready())
				require.Empty(t, source.Pending())
				require.NotEmpty(t, courierttest.EventsOf[courier.ResumeEvent](&told))
				require.NoError(t, run.Stop())
			})
		})
	}
}

// However often the clock is set back, Ready tells of a standstill and of a call that
// hangs while they last, and no longer.
func TestReady_WhenTheClockIsSetBack(t *testing.T) {
	for _, shape := range []string{"polling", "streaming"} {
		for _, cause := range []string{"queue", "breaker outside", "call"} {
			for _, step := range []time.Duration{0, -time.Minute, -time.Hour, -24 * time.Hour} {
				t.Run(fmt.Sprintf("%s, %s, %v", shape, cause, step), func(t *testing.T) {
					courierttest.Bubble(t, func(t *testing.T) {
						clock := new(wallClock)
						s := &hangingSource{newLeasing(numbers(4)...), "none", make(chan struct{})}
						s.leasing.wait = shape == "streaming"
						var down atomic.Bool
						down.Store(true)
						queue := &courier.MemoryDLQ[int]{Capacity: 1}
						require.NoError(t, queue.Send(t.Context(), courier.DeadLetter[int]{Record: 100, Error: errTest}))
						outside := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, int) error {
							if down.Load() {
								return errTest
							}
							return nil
						}), courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, OpenFor: time.Minute, Clock: clock}))
						a := courier.ProcessFunc(outside.Apply)
						want := courier.ErrOpen
						if cause != "breaker outside" {
							want = courier.ErrDLQFull
							a = courier.NewDLQApplier(courier.ProcessFunc(func(context.Context, int) error {
								if down.Load() && cause == "queue" {
									return courier.Permanent(errTest)
								}
								return nil
							}), courier.DLQ[int](queue), courier.DLQPolicy[int]{MaxParkRate: courier.AnyParkRate, Clock: clock})
						}
						if cause == "call" {
							s.kind, want = "mark", nil
						}
						answer := sync.OnceFunc(func() { close(s.open) })
						defer answer()
						var c pausable = courier.NewPollingCoordinator[int](s, a, quiet, courier.WithClock(clock))
						if shape == "streaming" {
							c = courier.NewStreamingCoordinator[int](s, a, quiet, courier.WithClock(clock))
						}
						run := courierttest.Start(t, c)
						time.Sleep(9 * time.Second)
						clock.step(step)
						for range 15 { // the first one sees the step
							time.Sleep(5 * time.Second)
							_ = c.Ready()
						}
						if want == nil {
							require.ErrorContains(t, c.Ready(), "the source has not answered a mark")
						} else {
							require.ErrorIs(t, c.Ready(), want)
						}
						down.Store(false)
						answer()
						time.Sleep(5 * time.Minute)
						require.Empty(t, s.left())
						require.NoError(t, c.Ready(), "all was applied minutes ago")
						require.NoError(t, run.Stop())
					})
				})
			}
		}
	}
}

// A call of the source that does not return shows within a minute or so, and is
// forgotten once it does.
func TestReady_OfACallThatHangs(t *testing.T) {
	for kind := range map[string]bool{"fetch": true, "mark": true, "release": true, "note of failures": true} {
		for _, shape := range []string{"polling", "prefetch", "streaming"} {
			if kind == "fetch" && shape == "streaming" {
				continue // it waits for records
			}
			t.Run(kind+", "+shape, func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					s := &hangingSource{newLeasing(numbers(20)...), kind, make(chan struct{})}
					s.leasing.wait = shape == "streaming"
					var source courier.Source[int] = s
					if kind == "release" {
						source = releasing{s, s}
					}
					var failed atomic.Bool
					a := courier.ProcessFunc(func(_ context.Context, n int) error {
						if n == 3 && (kind == "release" || kind == "note of failures") && failed.CompareAndSwap(false, true) {
							return errTest
						}
						return nil
					})
					var c pausable = courier.NewPollingCoordinator(source, a, quiet, courier.WithBatchSize(5))
					switch shape {
					case "prefetch":
						c = courier.NewPollingCoordinator(source, a, quiet, courier.WithBatchSize(5), courier.WithPrefetch(2))
					case "streaming":
						c = courier.NewStreamingCoordinator(source, a, quiet, courier.WithBatchSize(5))
					}
					answer := sync.OnceFunc(func() { close(s.open) })
					defer answer()
					run := courierttest.Start(t, c)
					time.Sleep(50 * time.Second)
					require.NoError(t, c.Ready())
					time.Sleep(15 * time.Second)
					require.EqualError(t, c.Ready(), "courier: the source has not answered a "+kind+" for 1m5s")
					answer()
					time.Sleep(10 * time.Second)
					require.NoError(t, c.Ready())
					_ = run.Stop()
				})
			})
		}
	}
}

func TestReady_SaysWhatStandsInTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf(1)
		var fetchErr, markErr, applyErr fault
		source.fetchErr = func(int) error { return fetchErr.get() }
		source.markErr = func(int) error { return markErr.get() }
		applier, _ := courier.ResilientApplier[int](&sink[int]{fail: func(context.Context, int, int) error { return applyErr.get() }}, nil)
		c := courier.NewPollingCoordinator(source, applier, courier.WithFastPolling(), quiet)
		require.ErrorIs(t, c.Ready(), courier.ErrNotRunning)

		refused, readOnly := errors.New("connection refused"), errors.New("read-only")
		fetchErr.set(refused)
		stop := start(t, c)
		synctest.Wait()
		require.ErrorIs(t, c.Ready(), refused)
		fetchErr.set(nil)
		markErr.set(readOnly)
		time.Sleep(time.Minute)
		require.ErrorIs(t, c.Ready(), readOnly)
		markErr.set(nil)
		time.Sleep(time.Minute)
		require.NoError(t, c.Ready())

		applyErr.set(errTest)
		source.add(2, 3, 4)
		time.Sleep(time.Minute)
		require.ErrorIs(t, c.Ready(), courier.ErrOpen)
		require.Len(t, c.Stats().Breakers, 1)
		require.Equal(t, courier.BreakerOpen, c.Stats().Breakers[0].State)
		require.ErrorIs(t, c.Stats().Breakers[0].Cause, errTest)
		applyErr.set(nil)
		time.Sleep(2 * time.Minute)
		require.NoError(t, c.Ready())
		require.NoError(t, stop())
	})
}

// A fetch that the stop or a pause cancels has not succeeded.
func TestReady_ACancelledFetchIsNoSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		source := sourceFuncs{func(ctx context.Context, _ int) ([]int, error) {
			if n++; n == 1 {
				return nil, errTest
			}
			<-ctx.Done() // the connection hangs
			return nil, ctx.Err()
		}, nop[[]int]}
		c := courier.NewStreamingCoordinator(source, courier.Applier[int](&sink[int]{}), quiet)
		stop := start(t, c)
		time.Sleep(time.Second)
		require.ErrorIs(t, c.Ready(), errTest)
		c.Pause()
		synctest.Wait()
		c.Resume()
		synctest.Wait()
		err := c.Ready()
		require.NoError(t, stop())
		require.ErrorIs(t, err, errTest, "no fetch has succeeded since")
	})
}

// Ready is ErrStopped from the moment that a stop begins until Start returns.
func TestReady_OnceAStopHasBegun(t *testing.T) {
	inShapes(t, func(t *testing.T, shape string, with func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
		for _, by := range []string{"context", "Stop"} {
			c, _ := with(courier.ProcessFunc(func(context.Context, int) error { time.Sleep(5 * time.Second); return nil }), numbers(1))
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				if once, ok := c.(interface{ RunOnce(context.Context) error }); ok && shape == "RunOnce" {
					_ = once.RunOnce(ctx)
				} else {
					_ = c.Start(ctx)
				}
			}()
			time.Sleep(time.Second)
			require.NoError(t, c.Ready())
			if by == "Stop" {
				go func() { _ = c.Stop(context.Background()) }()
				time.Sleep(time.Nanosecond)
			} else {
				cancel()
			}
			require.ErrorIs(t, c.Ready(), courier.ErrStopped)
			c.Pause()
			require.ErrorIs(t, c.Ready(), courier.ErrStopped)
			c.Resume()
			time.Sleep(3 * time.Second)
			require.ErrorIs(t, c.Ready(), courier.ErrStopped)
			<-ended
			time.Sleep(time.Nanosecond)
			require.ErrorIs(t, c.Ready(), courier.ErrNotRunning)
			cancel()
		}
	})
}

// A queue that refuses everything keeps the coordinator red all the time, and not only
// between its passes, until something is settled.
func TestReady_WhileTheQueueRefuses(t *testing.T) {
	inShapes(t, func(t *testing.T, shape string, with func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
		if shape == "RunOnce" {
			return
		}
		var down fault
		down.set(courier.Permanent(errTest))
		a := courier.NewDLQApplier(courier.WithRetry(courier.ProcessFunc(func(context.Context, int) error {
			time.Sleep(time.Second) // a pass takes a while
			return down.get()
		})), courier.DLQ[int](refusing{}), courier.DLQPolicy[int]{})
		c, run := with(a, numbers(3))
		run(4 * time.Second)
		for range 600 {
			run(time.Second)
			require.ErrorContains(t, c.Ready(), "courier: a record could not be settled, and none has been since: ")
			require.ErrorIs(t, c.Ready(), courier.ErrDLQFull)
		}
		down.set(nil)
		run(time.Minute)
		require.NoError(t, c.Ready())
	})
}

// A stream whose hand was full is well again as soon as it takes records in, be the most of the
// hand still waiting.
func TestReady_OfAStreamWhoseHandWasFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newLeasing[int]()
		source.wait = true
		var down atomic.Int64
		down.Store(2) // of four hosts
		applier, _ := courier.ResilientApplier(courier.ProcessFunc(func(_ context.Context, r int) error {
			if int64(r%4) < down.Load() {
				return errTest
			}
			return nil
		}), &courier.ResilientConfig[int]{BreakerKey: byRest(4)})
		c := courier.NewStreamingCoordinator[int](struct{ courier.Source[int] }{source}, applier, quiet, courier.WithStreamWorkers(4), courier.WithBatchSize(50))
		stop := start(t, c)
		source.add(numbers(240)...)
		time.Sleep(10 * time.Minute)
		require.ErrorIs(t, c.Ready(), courier.ErrFullHand)
		down.Store(1)
		for r := 240; r < 300; r++ {
			if r%4 != 0 {
				source.add(r)
			}
		}
		time.Sleep(10 * time.Minute)
		stats := c.Stats()
		require.Less(t, stats.InHand, int64(100))
		require.Greater(t, stats.InHand, int64(50))
		require.NoError(t, c.Ready())
		for r := range 50 {
			source.add(1000 + 4*r) // of the host that is down
		}
		time.Sleep(10 * time.Minute)
		require.ErrorIs(t, c.Ready(), courier.ErrFullHand, "it is full again")
		require.Error(t, stop(), "what waits is not settled")
	})
}

// A destination that refuses for a second, and then takes ten to say so again, is down all the
// time.
func TestReady_WhileAPauseOfTheUsersIsTriedAgain(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		source.add(numbers(5)...)
		var up atomic.Bool
		stack := courier.ProcessFunc(func(context.Context, int) error {
			time.Sleep(10 * time.Second)
			if up.Load() {
				return nil
			}
			return maintenance{time.Now().Add(time.Second)}
		})
		c := make(stack)
		stop := start(t, c)
		time.Sleep(11 * time.Second)
		for range 100 {
			require.ErrorAs(t, c.Ready(), new(maintenance))
			time.Sleep(time.Second)
		}
		up.Store(true)
		time.Sleep(2 * time.Minute)
		require.NoError(t, c.Ready())
		require.NoError(t, stop())
	})
}

// A fetch that fails makes Ready red while none gets through. A stream's next fetch, which
// waits for records for hours, is a sign that it does, unless the failures take as long.
func TestReady_AfterAFetchThatFailed(t *testing.T) {
	for name, test := range map[string]struct {
		fails func(n int) bool
		takes time.Duration // a fetch that fails
		every time.Duration // between records
		red   [2]time.Duration
	}{
		"one, and no record after it": {func(n int) bool { return n == 2 }, 0, 24 * time.Hour, [2]time.Duration{0, 15 * time.Second}},
		"one after an hour":           {func(n int) bool { return n == 2 }, time.Hour, 24 * time.Hour, [2]time.Duration{0, 2 * time.Minute}},
		"all after the first":         {func(n int) bool { return n > 1 }, 0, time.Minute, [2]time.Duration{3*time.Hour - time.Minute, 3 * time.Hour}},
		"all, by timeouts":            {func(n int) bool { return n > 1 }, 30 * time.Second, time.Minute, [2]time.Duration{3*time.Hour - 2*time.Minute, 3 * time.Hour}},
	} {
		for _, streaming := range []bool{true, false} {
			t.Run(name+", "+coordinatorOf(streaming), func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					source := newLeasing(1)
					source.wait = streaming
					calls := 0
					s := sourceFuncs{func(ctx context.Context, limit int) ([]int, error) {
						if calls++; !test.fails(calls) {
							return source.Fetch(ctx, limit)
						}
						select {
						case <-time.After(test.takes):
						case <-ctx.Done():
						}
						return nil, errTest
					}, source.Mark}
					var c interface {
						running
						Ready() error
					} = courier.NewPollingCoordinator[int](s, always(nil), quiet)
					if streaming {
						c = courier.NewStreamingCoordinator[int](s, always(nil), quiet)
					}
					stop := start(t, c)
					red := time.Duration(0)
					for at := time.Duration(0); at < 3*time.Hour; at += time.Second {
						time.Sleep(time.Second)
						if at%test.every == 0 {
							source.add(int(at / time.Second))
						}
						switch err := c.Ready(); {
						case err == nil:
						case streaming || test.takes < time.Minute:
							require.ErrorIs(t, err, errTest)
							red += time.Second
						}
					}
					require.GreaterOrEqual(t, red, test.red[0])
					require.LessOrEqual(t, red, test.red[1])
					_ = stop()
				})
			})
		}
	}
}
