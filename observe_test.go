package courier_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// namedShelf names its records.
type namedShelf struct{ *shelf[int] }

func (namedShelf) Identity(r int) string { return fmt.Sprintf("order %d", r) }

func TestObserver_IsToldInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		source := namedShelf{newShelf(1, 2, 3)}
		source.markErr = func(n int) error {
			if n == 1 {
				return errTest
			}
			return nil
		}
		applier := courier.ProcessFunc(func(_ context.Context, r int) error {
			time.Sleep(time.Second)
			if r == 2 {
				return errTest
			}
			return nil
		})
		err := courier.NewPollingCoordinator(source, applier, quiet, unspread, courier.WithObserver(told.Observer())).RunOnce(t.Context())
		require.ErrorIs(t, err, errTest)
		require.Equal(t, []any{
			courier.FetchEvent{Records: 3},
			courier.FailEvent{Record: "order 2", Err: errTest},
			courier.ApplyEvent{Records: 3, Elapsed: 3 * time.Second, Applied: 2, Failed: 1, Record: "order 2", Err: errTest},
			courier.MarkEvent{Records: 2, Err: errTest, RetryIn: 75 * time.Millisecond},
			courier.MarkEvent{Records: 2},
			courier.StopEvent{Err: err},
		}, told.Events())
	})
}

func TestObserver_PerRecordWhenAsked(t *testing.T) {
	for _, coordinator := range []string{"polling", "streaming"} {
		t.Run(coordinator, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				told := courierttest.ObserverRecorder{PerRecord: true}
				source := newLeasing(1, 2)
				panicked := false
				applier := courier.ProcessFunc(func(_ context.Context, r int) error {
					if r == 2 && !panicked {
						panicked = true
						panic(errTest)
					}
					return nil
				})
				o := courier.WithObserver(told.Observer())
				if coordinator == "polling" {
					_ = courier.NewPollingCoordinator(source, applier, quiet, o).RunOnce(t.Context())
				} else {
					source.wait = true
					stop := start(t, courier.NewStreamingCoordinator(source, applier, quiet, o))
					synctest.Wait()
					require.NoError(t, stop())
				}
				ended := courierttest.EventsOf[courierttest.RecordEnded](&told)
				require.Equal(t, courierttest.RecordEnded{Record: "1"}, ended[0])
				require.Equal(t, "2", ended[1].Record)
				require.ErrorIs(t, ended[1].Err, courier.ErrPanic)
				perRecord := slices.DeleteFunc(told.Events(), func(e any) bool {
					switch e.(type) {
					case courierttest.RecordStarted, courierttest.RecordEnded:
						return false
					}
					return true
				})
				require.Equal(t, []any{
					courierttest.RecordStarted{Record: "1"}, ended[0],
					courierttest.RecordStarted{Record: "2"}, ended[1],
				}, perRecord[:4])
			})
		})
	}
}

func TestObserver_DecoratorsTellTheirCoordinators(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		source := namedShelf{newShelf(1)}
		applier, _ := courier.ResilientApplier(courier.ProcessFunc(func(context.Context, int) error { return errTest }),
			&courier.ResilientConfig[int]{Retry: courier.RetryPolicy{MaxAttempts: 2}, Breaker: courier.BreakerPolicy{FailureThreshold: 2}})
		stop := start(t, courier.NewPollingCoordinator(source, applier, quiet, unspread, courier.WithObserver(told.Observer())))
		time.Sleep(time.Second)
		require.NoError(t, stop())
		retry := courierttest.EventsOf[courier.RetryEvent](&told)[0]
		require.Equal(t, 1, retry.Attempt)
		require.Equal(t, errTest, retry.Err)
		pause := courierttest.EventsOf[courier.PauseEvent](&told)[0]
		require.ErrorIs(t, pause.Err, errTest)
		require.False(t, pause.Stuck)
	})
	synctest.Test(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		applier, _ := courier.WithDLQ(courier.ProcessFunc(func(context.Context, int) error { return courier.Permanent(errTest) }))
		require.NoError(t, courier.NewPollingCoordinator(namedShelf{newShelf(1)}, applier, quiet, courier.WithObserver(told.Observer())).RunOnce(t.Context()))
		require.Equal(t, "order 1", courierttest.EventsOf[courier.ParkEvent](&told)[0].Record)
		require.Equal(t, courier.ReasonPermanent, courierttest.EventsOf[courier.ParkEvent](&told)[0].Reason)
	})
}

// C-1: an outage and its end, and that nothing but suspects is left, is told.
func TestC1_Observer_PausesAreToldAndStuckOnes(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		var told courierttest.ObserverRecorder
		var down fault
		down.set(errTest)
		source.add(numbers(5)...)
		applier, _ := courier.ResilientApplier[int](&sink[int]{fail: func(context.Context, int, int) error {
			return down.get()
		}}, nil)
		stop := start(t, make(applier, courier.WithObserver(told.Observer()), courier.WithOrderKey(byRest(1))))
		time.Sleep(10 * time.Minute)
		pauses := courierttest.EventsOf[courier.PauseEvent](&told)
		require.True(t, pauses[len(pauses)-1].Stuck, "a strict order is stuck behind its first record")
		down.set(nil)
		time.Sleep(10 * time.Minute)
		require.NoError(t, stop())
		_, after, resumed := strings.Cut(told.String(), "ResumeEvent")
		require.True(t, resumed)
		require.NotContains(t, after, "PauseEvent")
		require.Len(t, source.marked(), 5)
	})
}

func TestD9_AnObserverMayPanicOrExit(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic(errTest) }, "goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
				source.add(numbers(10)...)
				var told courierttest.ObserverRecorder
				bad := courier.Observer{
					Fetched:       func(context.Context, courier.FetchEvent) { end() },
					Applied:       func(context.Context, courier.ApplyEvent) { end() },
					Marked:        func(context.Context, courier.MarkEvent) { end() },
					Stopped:       func(context.Context, courier.StopEvent) { end() },
					RecordStarted: func(context.Context, courier.RecordEvent) { end() },
					RecordEnded:   func(context.Context, courier.RecordEvent) { end() },
				}
				s := &sink[int]{}
				stop := start(t, make(s, courier.WithObserver(bad), courier.WithObserver(told.Observer())))
				time.Sleep(time.Minute)
				require.NoError(t, stop())
				require.Equal(t, numbers(10), s.got())
				require.Equal(t, numbers(10), source.marked())
				require.Equal(t, 10, courierttest.EventsOf[courier.MarkEvent](&told)[0].Records, "the next one is told all the same")
			})
		})
	}
}

func TestObserver_SeveralAtOnce(t *testing.T) {
	require.Nil(t, courier.TeeObservers().Fetched, "an event that nobody asked for stays free")
	require.Nil(t, courier.TeeObservers(courier.Observer{}, courier.Observer{}).Marked)
	a, b := courierttest.ObserverRecorder{PerRecord: true}, courierttest.ObserverRecorder{}
	tee := courier.TeeObservers(a.Observer(), courier.Observer{}, b.Observer())
	tee.Marked(t.Context(), courier.MarkEvent{Records: 3})
	tee.RecordStarted(t.Context(), courier.RecordEvent{Record: "r"})
	require.Len(t, a.Events(), 2)
	require.Len(t, b.Events(), 1)
}

func TestLogObserver_SaysOnceWhatRepeats(t *testing.T) {
	var log bytes.Buffer
	o := courier.LogObserver(timeless(&log))
	ctx := t.Context()
	for range 250 {
		o.Marked(ctx, courier.MarkEvent{Records: 7, Err: errors.New("read-only"), RetryIn: time.Second})
	}
	o.Marked(ctx, courier.MarkEvent{Records: 7})
	o.Marked(ctx, courier.MarkEvent{Records: 7})
	const said = `msg="courier: mark failed, and is tried again" records=7 retry_in=1s error=read-only`
	require.Equal(t, strings.Join([]string{
		`level=WARN ` + said,
		`level=WARN ` + said + ` times=10`,
		`level=WARN ` + said + ` times=100`,
		`level=INFO msg="courier: mark works again" failures=250`,
		``,
	}, "\n"), log.String())

	log.Reset()
	o.Marked(ctx, courier.MarkEvent{Records: 7, Err: errors.New("read-only"), RetryIn: time.Second})
	require.Contains(t, log.String(), said, "it is news again after it was over")
}

// An error whose text is never the same is not remembered for ever.
func TestLogObserver_RemembersABoundedNumber(t *testing.T) {
	var log bytes.Buffer
	o := courier.LogObserver(timeless(&log))
	for i := range 2000 {
		err := fmt.Errorf("order %s", strings.Repeat("x", i))
		o.Applied(t.Context(), courier.ApplyEvent{Records: 1, Failed: 1, Err: err})
	}
	require.Equal(t, 2000, strings.Count(log.String(), "\n"))
}

// What is said again and again among many errors that differ is not forgotten
// for them: the one not said for the longest makes room.
func TestLogObserver_ForgetsTheOldest(t *testing.T) {
	var log bytes.Buffer
	o := courier.LogObserver(timeless(&log))
	differing := func(i int) {
		o.Applied(t.Context(), courier.ApplyEvent{Records: 1, Failed: 1, Err: errors.New(strings.Repeat("x", i))})
	}
	for i := range 1000 {
		differing(i)
		o.Fetched(t.Context(), courier.FetchEvent{Err: errors.New("gone")})
	}
	require.Equal(t, 4, strings.Count(log.String(), "error=gone"), "the 1st, 10th, 100th and 1000th time")
	log.Reset()
	differing(1000 - 255)
	require.Empty(t, log.String(), "the latest are known")
	differing(1000 - 256)
	require.NotEmpty(t, log.String())
}

// However long the texts are, the observer remembers little of them and logs a
// part, from which the error can still be got.
func TestLogObserver_LongTexts(t *testing.T) {
	const size = 200_000
	var log bytes.Buffer
	var logged error
	o := courier.LogObserver(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if err, ok := a.Value.Any().(error); ok {
			logged = err
		}
		return a
	}})))
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for i := range 300 {
		log.Reset()
		err := &courier.PanicError{Value: strings.Repeat(string(rune('a'+i%26))+string(rune('a'+i/26)), size/2), Stack: bytes.Repeat([]byte("s"), size)}
		o.Applied(t.Context(), courier.ApplyEvent{Records: 1, Failed: 1, Err: err, Record: strings.Repeat("é", size/2)})
		require.Equal(t, 3, strings.Count(log.String(), " bytes left out)"), "of the error, the stack and the name")
		require.Less(t, log.Len(), 3*(8<<10)+1000)
		require.True(t, utf8.ValidString(log.String()))
		require.ErrorIs(t, logged, courier.ErrPanic)
		logged = nil
	}
	if after := heap(); after > before+2_000_000 {
		t.Errorf("the log remembers %d bytes of 300 errors", after-before)
	}
	log.Reset()
	o.Stopped(t.Context(), courier.StopEvent{Unsettled: 1, Err: errors.New(strings.Repeat("x", size))})
	require.Contains(t, log.String(), fmt.Sprintf("… (%d bytes left out)", size-8<<10))
	runtime.KeepAlive(o)
}

func TestLogObserver_ANumberMakesNoNews(t *testing.T) {
	var log bytes.Buffer
	o := courier.LogObserver(timeless(&log))
	for i := range 100 {
		o.Applied(t.Context(), courier.ApplyEvent{Records: 10, Failed: 1, Record: fmt.Sprint(i), Err: fmt.Errorf("order %d: 404", 7*i)})
	}
	require.Equal(t, 3, strings.Count(log.String(), "\n"), log.String())
}

func TestLogObserver_AnOutageIsAFewLines(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		var log bytes.Buffer
		source.add(numbers(50)...)
		began := time.Now()
		applier, _ := courier.ResilientApplier[int](&sink[int]{fail: func(context.Context, int, int) error {
			if time.Since(began) < 24*time.Hour {
				return errTest
			}
			return nil
		}}, nil)
		stop := start(t, make(applier, courier.WithLogger(timeless(&log))))
		time.Sleep(25 * time.Hour)
		require.NoError(t, stop())
		require.Empty(t, source.left())
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		require.LessOrEqual(t, len(lines), 8+24*12, log.String())
		require.Contains(t, log.String(), "courier: resumed")
	})
}

// What a call took is told though it ended its goroutine, or panicked.
func TestObserver_TellsHowLongACallTookThatDidNotReturn(t *testing.T) {
	for name, end := range map[string]func(){"goexit": runtime.Goexit, "panic": func() { panic("on purpose") }} {
		for _, shape := range []string{"polling", "fetched ahead", "streaming"} {
			t.Run(name+", "+shape, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var told courierttest.ObserverRecorder
					source := abruptSource{newLeasing(1, 2, 3), end}
					applier := courier.ProcessFunc(func(context.Context, int) error {
						time.Sleep(time.Second)
						end()
						return nil
					})
					opts := []courier.Option{quiet, unspread, courier.WithBatchSize(1), courier.WithObserver(told.Observer())}
					var c running = courier.NewPollingCoordinator(source, applier, append(opts, courier.WithPrefetch(map[string]int{"fetched ahead": 1}[shape]))...)
					if shape == "streaming" {
						c = courier.NewStreamingCoordinator(source, applier, opts...)
					}
					stop := start(t, c)
					time.Sleep(20 * time.Second)
					require.NoError(t, stop())
					fetches, applies := 0, 0
					for _, e := range told.Events() {
						switch e := e.(type) {
						case courier.FetchEvent:
							fetches++
							require.Equal(t, time.Second, e.Elapsed)
						case courier.ApplyEvent:
							applies++
							require.Equal(t, time.Duration(e.Records)*time.Second, e.Elapsed)
						}
					}
					require.Positive(t, fetches)
					require.Positive(t, applies)
				})
			})
		}
	}
}

// abruptSource takes a second for a fetch, and ends every second one otherwise than by
// returning.
type abruptSource struct {
	*leasing[int]
	end func()
}

func (s abruptSource) Fetch(ctx context.Context, limit int) ([]int, error) {
	records, err := s.leasing.Fetch(ctx, limit)
	time.Sleep(time.Second)
	if s.fetchCount()%2 == 0 {
		_ = s.Release(ctx, records, 0)
		s.end()
	}
	return records, err
}
