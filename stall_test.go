package courier_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// stallShape is a way to have records applied.
type stallShape struct {
	once, stream, batches bool
	workers               int
	opts                  []courier.Option
}

func stallShapes() map[string]stallShape {
	byKey := courier.WithOrderKey(func(n int) string { return strconv.Itoa(n % 7) })
	perRecord := courier.WithObserver(courier.Observer{RecordEnded: func(context.Context, courier.RecordEvent) {}})
	return map[string]stallShape{
		"polling":                       {workers: 1},
		"polling, 4 workers":            {workers: 4},
		"polling, by key":               {workers: 1, opts: []courier.Option{byKey}},
		"polling, 4 workers, by key":    {workers: 4, opts: []courier.Option{byKey}},
		"polling, each record observed": {workers: 1, opts: []courier.Option{perRecord}},
		"polling, batches":              {workers: 1, batches: true},
		"polling, 4 workers, batches":   {workers: 4, batches: true},
		"RunOnce":                       {workers: 1, once: true},
		"RunOnce, 4 workers":            {workers: 4, once: true},
		"streaming":                     {workers: 1, stream: true},
		"streaming, 4 workers":          {workers: 4, stream: true},
		"streaming, 4 workers, by key":  {workers: 4, stream: true, opts: []courier.Option{byKey}},
		"streaming, batches":            {workers: 1, stream: true, batches: true},
		"streaming, 4 workers, batches": {workers: 4, stream: true, batches: true},
	}
}

// start runs a coordinator of the shape, and returns what ends it.
func (s stallShape) start(t *testing.T, source courier.Source[int], a courier.Applier[int], opts ...courier.Option) (c teller, stop func() error) {
	opts = append(slices.Clone(s.opts), opts...)
	if s.stream {
		c := courier.NewStreamingCoordinator(source, a, append(opts, courier.WithStreamWorkers(s.workers))...)
		return c, start(t, c)
	}
	polling := courier.NewPollingCoordinator(source, a, append(opts, courier.WithWorkers(s.workers))...)
	if !s.once {
		return polling, start(t, polling)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- polling.RunOnce(ctx) }()
	return polling, func() error { cancel(); return <-ended }
}

// inEachStall runs a test in a bubble for each shape and each stack around a process
// function.
func inEachStall(t *testing.T, test func(t *testing.T, s stallShape, wrap func(func(context.Context, int) error) courier.Applier[int])) {
	for name, s := range stallShapes() {
		for _, stack := range []string{"plain", "resilient", "fan-out", "two branches"} {
			t.Run(name+", "+stack, func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					test(t, s, func(f func(context.Context, int) error) courier.Applier[int] {
						a := courier.ProcessFunc(f)
						if s.batches {
							a = oneAfterOther{a}
						}
						switch stack {
						case "resilient":
							a, _ = courier.ResilientApplier(a, &courier.ResilientConfig[int]{DLQ: &courier.MemoryDLQ[int]{}})
						case "fan-out":
							a = courier.NewFanOutApplier(a)
						case "two branches":
							a = courier.NewFanOutApplier(courier.WithRetry(a), courier.ProcessFunc(nop[int]))
						}
						return a
					})
				})
			})
		}
	}
}

// oneAfterOther applies a batch record by record.
type oneAfterOther struct{ courier.Applier[int] }

func (e oneAfterOther) ApplyBatch(ctx context.Context, records []int) error {
	for _, r := range records {
		if err := e.Apply(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

func stalledLines(log *lines) (warn, info []string) {
	for line := range strings.Lines(log.String()) {
		switch {
		case strings.Contains(line, "has been in progress for a long time"):
			warn = append(warn, line)
		case strings.Contains(line, "was in progress for a long time"):
			info = append(info, line)
		}
	}
	return warn, info
}

// A process function that hangs shows: once in the log and to the observer, in Stats,
// and in Ready until it returns.
func TestStall_ARecordThatHangs(t *testing.T) {
	inEachStall(t, func(t *testing.T, s stallShape, wrap func(func(context.Context, int) error) courier.Applier[int]) {
		var log lines
		var began time.Time
		var told courierttest.ObserverRecorder
		a := wrap(func(_ context.Context, n int) error {
			if n == 17 {
				time.Sleep(100 * time.Second)
			}
			return nil
		})
		source := newLeasing(numbers(20)...)
		source.wait = s.stream
		began = time.Now()
		c, stop := s.start(t, source, a, courier.WithLogger(timedLog(&log, &began)), courier.WithObserver(told.Observer()), courier.WithBatchSize(20))
		for range 299 {
			time.Sleep(100 * time.Millisecond)
			require.NoError(t, c.Ready())
			require.Empty(t, log.String())
			require.Less(t, c.Stats().OldestInWork, 30*time.Second)
		}
		time.Sleep(8 * time.Second) // 37.9 s
		synctest.Wait()
		warn, info := stalledLines(&log)
		require.Len(t, warn, 1, log.String())
		require.Empty(t, info)
		name := "record=17 "
		if s.batches {
			name = `record=("\d+ in one call, the first of them \d+"|17) ` // a worker of four has it alone
		}
		require.Regexp(t, `^after=37.5s level=WARN msg="courier: a record has been in progress for a long time: its call has not returned, and a call that can hang needs a timeout" `+name+`attempt=1 for_at_least=30s\n$`, warn[0])
		require.Regexp(t, `^courier: in progress for at least 30s, in attempt 1: (17|\d+ in one call, the first of them \d+)$`, c.Ready().Error())
		stats := c.Stats()
		require.Equal(t, 30*time.Second, stats.OldestInWork)
		events := courierttest.EventsOf[courier.StallEvent](&told)
		require.Len(t, events, 1)
		require.Equal(t, courier.StallEvent{Record: stats.OldestRecord, Records: events[0].Records, Attempt: 1, InWork: 30 * time.Second}, events[0])
		require.Equal(t, strings.Contains(stats.OldestRecord, "in one call"), events[0].Records > 1)

		time.Sleep(62 * time.Second) // 99.9 s
		require.Error(t, c.Ready())
		time.Sleep(200 * time.Millisecond)
		if !s.once {
			require.NoError(t, c.Ready(), "at once, when the call has returned")
		}
		require.Zero(t, c.Stats().OldestInWork)
		require.Empty(t, c.Stats().OldestRecord)
		time.Sleep(8 * time.Second)
		synctest.Wait()
		warn, info = stalledLines(&log)
		require.Len(t, warn, 1)
		require.Len(t, info, 1)
		require.Regexp(t, `level=INFO msg="courier: the call of a record that was in progress for a long time has returned" `+name+`attempt=1 for_at_least=1m30s`, info[0])
		events = courierttest.EventsOf[courier.StallEvent](&told)
		require.Len(t, events, 2)
		require.True(t, events[1].Over)
		require.Equal(t, 90*time.Second, events[1].InWork)
		require.NoError(t, stop())
		require.Len(t, source.marked(), 20)
	})
}

// Records that take long, each of them less than the limit, are no matter: neither where
// a worker has claimed many at once, nor in batches of one, nor where they are of one name.
func TestStall_NotOfRecordsThatAreSlow(t *testing.T) {
	for name, s := range stallShapes() {
		if s.batches || s.once {
			continue
		}
		for _, size := range []int{1, 20, 300} {
			for _, fast := range []int{0, 1000} {
				t.Run(fmt.Sprintf("%s, batches of %d, after %d quick ones", name, size, fast), func(t *testing.T) {
					courierttest.Bubble(t, func(t *testing.T) {
						var log lines
						var told courierttest.ObserverRecorder
						source := newLeasing(numbers(fast + 200)...)
						source.wait = s.stream
						a := courier.ProcessFunc(func(_ context.Context, n int) error {
							if n >= fast {
								time.Sleep(7400 * time.Millisecond)
							}
							return nil
						})
						c, stop := s.start(t, source, a, courier.WithStallAfter(8*time.Second), courier.WithObserver(told.Observer()),
							courier.WithLogger(slog.New(slog.NewTextHandler(&log, nil))), courier.WithBatchSize(max(size, s.workers)))
						for range 1200 {
							time.Sleep(2 * time.Second)
							require.NoError(t, c.Ready())
							require.Less(t, c.Stats().OldestInWork, 7400*time.Millisecond)
						}
						require.Empty(t, courierttest.EventsOf[courier.StallEvent](&told))
						require.NotContains(t, log.String(), "in work")
						require.NoError(t, stop())
						require.Len(t, source.marked(), fast+200)
					})
				})
			}
		}
	}
}

// Of a worker that was quick until then, the range is told that has the record.
func TestStall_ARecordThatHangsAfterQuickOnes(t *testing.T) {
	for _, workers := range []int{1, 3} {
		courierttest.Bubble(t, func(t *testing.T) {
			var log lines
			source := newLeasing(numbers(1000)...)
			a := courier.ProcessFunc(func(_ context.Context, n int) error {
				if n == 917 {
					time.Sleep(time.Minute)
				}
				return nil
			})
			c, stop := stallShape{workers: workers}.start(t, source, a, courier.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
			time.Sleep(40 * time.Second)
			warn, _ := stalledLines(&log)
			require.Len(t, warn, 1)
			name := regexp.MustCompile(`record="([^"]*)"`).FindStringSubmatch(warn[0])
			require.NotNil(t, name, warn[0])
			require.True(t, namesRecord(name[1], 917), warn[0])
			require.Contains(t, name[1], "one of the ")
			require.ErrorContains(t, c.Ready(), "in attempt 1: "+name[1])
			time.Sleep(time.Minute)
			require.NoError(t, c.Ready())
			require.NoError(t, stop())
		})
	}
}

// failsFirst fails a record a few times, and then hangs.
func failsFirst(times int) func(ctx context.Context, n int) error {
	return func(ctx context.Context, _ int) error {
		if courier.AttemptFromContext(ctx) <= times {
			return errTest
		}
		time.Sleep(time.Hour)
		return nil
	}
}

// What counts is one attempt, and not what the waits before it took.
func TestStall_TheAttemptThatHangs(t *testing.T) {
	policy := courier.RetryPolicy{MaxAttempts: 5, InitialDelay: 3 * time.Minute, MaxDelay: 3 * time.Minute, Jitter: courier.NoJitter}
	for name, s := range stallShapes() {
		for _, fanned := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, %s", name, choose(fanned, "fan-out", "no fan-out")), func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					var told courierttest.ObserverRecorder
					source := newLeasing(7)
					source.wait = s.stream
					a := courier.ProcessFunc(failsFirst(2))
					if s.batches {
						a = hangingBatches{a}
					}
					a = courier.NewRetryableApplier(a, policy)
					if fanned {
						a = courier.NewFanOutApplier(a, courier.ProcessFunc(nop[int]), courier.NewRetryableApplier(always(errTest), policy))
					}
					c, stop := s.start(t, &renewable{leasing: source, every: time.Minute, renew: nop[[]int]}, a, quiet, courier.WithObserver(told.Observer()))
					defer func() { _ = stop() }()
					for range 12 {
						time.Sleep(30 * time.Second)
						require.NoError(t, c.Ready())
					}
					require.Zero(t, c.Stats().OldestInWork)
					time.Sleep(38 * time.Second) // 6m38s, and the third attempt began after 6m
					require.ErrorContains(t, c.Ready(), "s, in attempt 3: 7")
					events := courierttest.EventsOf[courier.StallEvent](&told)
					require.Len(t, events, 1)
					require.Equal(t, 3, events[0].Attempt)
					require.InDelta(t, 30, events[0].InWork.Seconds(), 7.5)
				})
			})
		}
	}
}

// A branch that hangs shows while another one waits between its attempts.
func TestStall_ABranchThatHangs(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		waits := courier.NewRetryableApplier(always(errTest), courier.RetryPolicy{MaxAttempts: 100, InitialDelay: 10 * time.Second, MaxDelay: 10 * time.Second, Jitter: courier.NoJitter})
		a := courier.NewFanOutApplier(courier.ProcessFunc(func(context.Context, int) error { time.Sleep(time.Minute); return nil }), waits)
		c, stop := stallShape{workers: 1}.start(t, newLeasing(7), a, quiet)
		defer func() { _ = stop() }()
		time.Sleep(38 * time.Second)
		require.ErrorContains(t, c.Ready(), "in progress for at least 30s")
		time.Sleep(time.Minute)
		require.NoError(t, c.Ready(), "now all that goes on is a wait")
	})
}

// After the retries of one record the next one is at its first attempt again, also where
// an attempt has ended its goroutine.
func TestStall_TheAttemptOfTheNextRecord(t *testing.T) {
	for name, end := range map[string]func() error{"error": func() error { return errTest }, "goexit": func() error { runtime.Goexit(); return nil }} {
		for _, batches := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, %s", name, batched(batches)), func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					a := courier.ProcessFunc(func(_ context.Context, n int) error {
						if n == 0 {
							return end()
						}
						time.Sleep(time.Minute)
						return nil
					})
					if batches {
						a = hangingBatches{a}
					}
					a = courier.NewDLQApplier(courier.NewRetryableApplier(a, courier.RetryPolicy{MaxAttempts: 3}), courier.DLQ[int](&courier.MemoryDLQ[int]{}), courier.DLQPolicy[int]{MaxParkRate: courier.AnyParkRate})
					opts := []courier.Option{quiet, courier.WithBatchSize(2)}
					if batches {
						opts = append(opts, courier.WithApplyBatchSize(1))
					}
					c, stop := stallShape{workers: 1}.start(t, newLeasing(0, 1), a, opts...)
					defer func() { _ = stop() }()
					time.Sleep(50 * time.Second)
					require.ErrorContains(t, c.Ready(), ", in attempt 1: 1")
				})
			})
		}
	}
}

// A batch that is applied record by record after it has failed is as slow as each of them.
func TestStall_NotOfABatchThatIsTakenApart(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		source := newLeasing(numbers(20)...)
		a := courier.NewRetryableApplier[int](failsAsOne{courier.ProcessFunc(func(context.Context, int) error { time.Sleep(20 * time.Second); return nil })}, courier.RetryPolicy{})
		_, stop := stallShape{workers: 1}.start(t, source, a, quiet, courier.WithObserver(told.Observer()))
		time.Sleep(10 * time.Minute)
		require.NoError(t, stop())
		require.Empty(t, courierttest.EventsOf[courier.StallEvent](&told))
		require.Len(t, source.marked(), 20)
	})
}

type failsAsOne struct{ courier.Applier[int] }

func (failsAsOne) ApplyBatch(context.Context, []int) error { return errTest }

// What a worker has done is not in work, though the coordinator has not looked: here an
// observer keeps it.
func TestStall_NotOfWhatIsDone(t *testing.T) {
	for name, s := range stallShapes() {
		t.Run(name, func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				source := newLeasing(numbers(40)...)
				source.wait = s.stream
				a := courier.ProcessFunc(func(context.Context, int) error { time.Sleep(10 * time.Millisecond); return nil })
				if s.batches {
					a = hangingBatches{a}
				}
				hangs := courier.Observer{
					Fetched: func(context.Context, courier.FetchEvent) { time.Sleep(2 * time.Minute) },
					Applied: func(context.Context, courier.ApplyEvent) { time.Sleep(2 * time.Minute) },
					Marked:  func(context.Context, courier.MarkEvent) { time.Sleep(2 * time.Minute) },
				}
				c, stop := s.start(t, source, a, quiet, courier.WithObserver(hangs), courier.WithBatchSize(10))
				for range 200 {
					time.Sleep(10 * time.Second)
					if err := c.Ready(); err != nil {
						require.NotContains(t, err.Error(), "in work")
					}
				}
				require.NoError(t, stop())
			})
		})
	}
}

// While it lasts it is said every 5 minutes, and to the observer once.
func TestStall_IsSaidAgain(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var log lines
		var told courierttest.ObserverRecorder
		began := time.Now()
		a := courier.ProcessFunc(func(context.Context, int) error { time.Sleep(16 * time.Minute); return nil })
		_, stop := stallShape{workers: 1}.start(t, newLeasing(7), a, courier.WithLogger(timedLog(&log, &began)), courier.WithObserver(told.Observer()))
		time.Sleep(20 * time.Minute)
		require.NoError(t, stop())
		warn, info := stalledLines(&log)
		require.Len(t, warn, 4)
		for i, after := range []string{"37.5s", "5m37.5s", "10m37.5s", "15m37.5s"} {
			require.Contains(t, warn[i], "after="+after+" ")
		}
		require.Len(t, info, 1)
		require.Len(t, courierttest.EventsOf[courier.StallEvent](&told), 2)
	})
}

// Many that hang together do not flood the log.
func TestStall_OfManyWorkers(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var log lines
		var told courierttest.ObserverRecorder
		a := courier.ProcessFunc(func(context.Context, int) error { time.Sleep(61 * time.Second); return nil })
		c, stop := stallShape{workers: 50}.start(t, newLeasing(numbers(50)...), a, courier.WithLogger(slog.New(slog.NewTextHandler(&log, nil))), courier.WithObserver(told.Observer()))
		time.Sleep(50 * time.Second)
		warn, _ := stalledLines(&log)
		require.Len(t, warn, 5)
		require.Contains(t, warn[0], "workers=50")
		require.Error(t, c.Ready())
		time.Sleep(30 * time.Second)
		_, info := stalledLines(&log)
		require.Len(t, info, 5)
		require.NotContains(t, info[0], "workers=")
		require.NoError(t, c.Ready())
		require.Len(t, courierttest.EventsOf[courier.StallEvent](&told), 100)
		require.NoError(t, stop())
	})
}

// At a stop the end of what hung is told before the end of the run, and Ready says first
// that it stops.
func TestStall_AndAStop(t *testing.T) {
	for name, s := range stallShapes() {
		t.Run(name, func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				var told courierttest.ObserverRecorder
				source := newLeasing(7)
				source.wait = s.stream
				a := courier.ProcessFunc(func(context.Context, int) error { time.Sleep(time.Minute); return nil })
				if s.batches {
					a = hangingBatches{a}
				}
				c, stop := s.start(t, source, a, quiet, courier.WithObserver(told.Observer()), courier.WithStallAfter(10*time.Second))
				time.Sleep(15 * time.Second)
				require.ErrorContains(t, c.Ready(), "in progress for at least")
				c.(pausable).Pause()
				require.ErrorIs(t, c.Ready(), courier.ErrPaused, "which somebody asked for")
				c.(pausable).Resume()
				ended := make(chan struct{})
				go func() { _ = stop(); close(ended) }()
				synctest.Wait()
				require.ErrorIs(t, c.Ready(), courier.ErrStopped)
				require.Positive(t, c.Stats().OldestInWork)
				<-ended
				require.ErrorIs(t, c.Ready(), courier.ErrNotRunning)
				require.Zero(t, c.Stats().OldestInWork)
				events := told.Events()
				require.IsType(t, courier.StopEvent{}, events[len(events)-1])
				stalls := courierttest.EventsOf[courier.StallEvent](&told)
				require.Len(t, stalls, 2)
				require.True(t, stalls[1].Over)
			})
		})
	}
}

// A record that hangs is told before the failure of the last mark, which may be of
// hours ago.
func TestStall_BeforeTheLastMark(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var hang atomic.Bool
		source := courier.BatchSourceFunc[int]{
			FetchFunc: func(context.Context) ([]int, error) { return numbers(2), errTest },
			MarkFunc:  nop[[]int],
		}
		a := courier.ProcessFunc(func(context.Context, int) error {
			if hang.Load() {
				time.Sleep(time.Minute)
			}
			return nil
		})
		c, stop := stallShape{workers: 1}.start(t, source, a, quiet)
		time.Sleep(time.Minute)
		require.ErrorIs(t, c.Ready(), errTest)
		hang.Store(true)
		time.Sleep(52 * time.Second)
		require.ErrorContains(t, c.Ready(), "in progress for at least")
		hang.Store(false)
		require.NoError(t, stop())
	})
}

// A coordinator that has nothing in work sets no timer, and one that has sets one at a time.
func TestStall_NoTimerWhenIdle(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		clock := courierttest.NewClock()
		source := newLeasing[int]()
		source.wait = true
		release := make(chan struct{})
		_, stop := stallShape{stream: true, workers: 2}.start(t, source, courier.ProcessFunc(func(context.Context, int) error { <-release; return nil }), quiet, courier.WithClock(clock))
		clock.Advance(time.Hour)
		require.Zero(t, clock.Timers(), "nothing was ever in work")
		source.add(1)
		source.more <- struct{}{}
		clock.Settle()
		require.Equal(t, 1, clock.Timers())
		d, _ := clock.Next()
		require.Equal(t, 7500*time.Millisecond, d)
		require.Equal(t, 1, clock.Timers())
		close(release)
		clock.Settle()
		clock.Advance(time.Minute)
		require.Zero(t, clock.Timers())
		source.add(2) // and it begins again
		source.more <- struct{}{}
		clock.Settle()
		require.Equal(t, 1, clock.Timers())
		require.NoError(t, stop())
	})
}

// However the clock is set back, a record that hangs shows no sooner than it should, and
// by its time.
func TestStall_WhenTheClockIsSetBack(t *testing.T) {
	for _, step := range []time.Duration{-time.Minute, -24 * time.Hour} {
		courierttest.Bubble(t, func(t *testing.T) {
			clock := new(wallClock)
			a := courier.ProcessFunc(func(context.Context, int) error { time.Sleep(time.Minute); return nil })
			c, stop := stallShape{workers: 1}.start(t, newLeasing(7), a, quiet, courier.WithClock(clock))
			time.Sleep(20 * time.Second)
			clock.step(step)
			time.Sleep(9 * time.Second)
			require.NoError(t, c.Ready())
			time.Sleep(10 * time.Second)
			require.ErrorContains(t, c.Ready(), "in progress for at least 3")
			require.NoError(t, stop())
		})
	}
}

// Neither a name that panics nor a log or observer that ends its goroutine does harm.
func TestStall_WhenWhatIsToldPanics(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		a := courier.ProcessFunc(func(context.Context, int) error { time.Sleep(time.Minute); return nil })
		bad := courier.Observer{Stalled: func(context.Context, courier.StallEvent) { runtime.Goexit() }}
		var told courierttest.ObserverRecorder
		c, stop := stallShape{workers: 1}.start(t, newLeasing(7), a, courier.WithLogger(slog.New(rude{})), courier.WithObserver(bad), courier.WithObserver(told.Observer()),
			courier.WithIdentity(func(int) string { panic("no name") }))
		time.Sleep(40 * time.Second)
		require.ErrorContains(t, c.Ready(), ": record 1 of the batch (the first is 1)")
		require.Len(t, courierttest.EventsOf[courier.StallEvent](&told), 1)
		require.NoError(t, stop())
	})
}

// rude is a log that ends the goroutine of whoever logs.
type rude struct{ slog.Handler }

func (rude) Enabled(context.Context, slog.Level) bool { return true }

func (rude) Handle(context.Context, slog.Record) error { runtime.Goexit(); return nil }

// LogObserver says the same.
func TestStall_ByLogObserver(t *testing.T) {
	var log lines
	o := courier.LogObserver(slog.New(slog.NewTextHandler(&log, nil)))
	o.Stalled(t.Context(), courier.StallEvent{Record: "order 7", Records: 1, Attempt: 2, InWork: 31 * time.Second})
	o.Stalled(t.Context(), courier.StallEvent{Record: "order 7", Records: 1, Attempt: 2, InWork: time.Minute, Over: true})
	warn, info := stalledLines(&log)
	require.Len(t, warn, 1)
	require.Contains(t, warn[0], `record="order 7" attempt=2 for_at_least=31s`)
	require.Len(t, info, 1)
}

// A limit of any length will do, and one that is none is refused.
func TestStall_Limits(t *testing.T) {
	for _, d := range []time.Duration{1, time.Microsecond, math.MaxInt64} {
		courierttest.Bubble(t, func(t *testing.T) {
			var told courierttest.ObserverRecorder
			a := courier.ProcessFunc(func(context.Context, int) error { time.Sleep(time.Second); return nil })
			_, stop := stallShape{workers: 1}.start(t, newLeasing(7), a, quiet, courier.WithStallAfter(d), courier.WithObserver(told.Observer()))
			time.Sleep(2 * time.Second)
			require.NoError(t, stop())
			require.Equal(t, d < time.Second, len(courierttest.EventsOf[courier.StallEvent](&told)) == 2)
		})
	}
	for _, d := range []time.Duration{0, -1, math.MinInt64} {
		c := courier.NewPollingCoordinator[int](newLeasing(1), courier.ProcessFunc(nop[int]), courier.WithStallAfter(d))
		var fault *courier.ConfigError
		require.True(t, errors.As(c.RunOnce(t.Context()), &fault))
		require.Equal(t, "WithStallAfter", fault.Field)
	}
}

// Stats tells of the record that has been in work for the longest, whichever worker has it.
func TestStall_StatsTellOfTheOldest(t *testing.T) {
	for _, long := range []int{1, 2} {
		t.Run(fmt.Sprint("record ", long, " hangs"), func(t *testing.T) {
			both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
				source.add(1, 2, 3)
				workers := courier.WithWorkers(2)
				if source.wait {
					workers = courier.WithStreamWorkers(2)
				}
				var mu sync.Mutex
				hangs := map[string]time.Time{} // since when
				c := make(courier.ProcessFunc(func(_ context.Context, r int) error {
					if r == long || r == 3 {
						mu.Lock()
						hangs[fmt.Sprint(r)] = time.Now()
						mu.Unlock()
						time.Sleep(10 * time.Minute)
					} else {
						time.Sleep(30 * time.Second)
					}
					return nil
				}), workers, courier.WithBatchSize(3), courier.WithStallAfter(20*time.Second), courier.WithDrainTimeout(time.Hour))
				stop := start(t, c)
				time.Sleep(5 * time.Minute)
				mu.Lock()
				oldest := hangs[c.Stats().OldestRecord]
				for _, since := range hangs {
					require.False(t, since.Before(oldest) || oldest.IsZero())
				}
				mu.Unlock()
				require.NoError(t, stop())
			})
		})
	}
}
