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
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// diary is an observer that writes everything down, the per-record events where
// they are asked for.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

func (d *diary) read() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.lines)
}

func (d *diary) observer(perRecord bool) courier.Observer {
	type ctx = context.Context
	o := courier.Observer{
		Fetched: func(_ ctx, e courier.FetchEvent) { d.note("fetched %d %v in %v", e.Records, e.Err, e.Took) },
		Applied: func(_ ctx, e courier.ApplyEvent) {
			d.note("applied %d of %d, %d failed, %d refused, first %q %v, in %v", e.Applied, e.Records, e.Failed, e.Refused, e.Record, e.Err, e.Took)
		},
		Failed:  func(_ ctx, e courier.FailEvent) { d.note("failed %q %v %v", e.Record, e.Class, e.Err) },
		Retried: func(_ ctx, e courier.RetryEvent) { d.note("retried %d %v", e.Attempt, e.Err) },
		Parked:  func(_ ctx, e courier.ParkEvent) { d.note("parked %q %v", e.Record, e.Reason) },
		Marked: func(_ ctx, e courier.MarkEvent) {
			d.note("marked %d %v again in %v, in %v", e.Records, e.Err, e.RetryIn, e.Took)
		},
		Released: func(_ ctx, e courier.ReleaseEvent) { d.note("released %d after %v", e.Records, e.After) },
		Paused:   func(_ ctx, e courier.PauseEvent) { d.note("paused %v %v", e.Err != nil, e.Stuck) },
		Resumed:  func(_ ctx, e courier.ResumeEvent) { d.note("resumed after %d", e.Pauses) },
		Stopped:  func(_ ctx, e courier.StopEvent) { d.note("stopped %v", e.Err) },
	}
	if perRecord {
		o.RecordStarted = func(_ ctx, e courier.RecordEvent) { d.note("started %q", e.Record) }
		o.RecordEnded = func(_ ctx, e courier.RecordEvent) { d.note("ended %q %v", e.Record, e.Err) }
	}
	return o
}

// namedShelf names its records.
type namedShelf struct{ *shelf[int] }

func (namedShelf) Identity(r int) string { return fmt.Sprintf("order %d", r) }

func TestObserver_IsToldInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
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
		err := courier.NewPollingCoordinator(source, applier, quiet, unspread, courier.WithObserver(d.observer(false))).RunOnce(t.Context())
		require.ErrorIs(t, err, errTest)
		require.Equal(t, []string{
			"fetched 3 <nil> in 0s",
			`failed "order 2" retryable the record's own error`,
			`applied 2 of 3, 1 failed, 0 refused, first "order 2" the record's own error, in 3s`,
			"marked 2 the record's own error again in 75ms, in 0s",
			"marked 2 <nil> again in 0s, in 0s",
			"stopped " + err.Error(),
		}, d.read())
	})
}

func TestObserver_PerRecordWhenAsked(t *testing.T) {
	for _, coordinator := range []string{"polling", "streaming"} {
		t.Run(coordinator, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var d diary
				source := newLeasing(1, 2)
				panicked := false
				applier := courier.ProcessFunc(func(_ context.Context, r int) error {
					if r == 2 && !panicked {
						panicked = true
						panic(errTest)
					}
					return nil
				})
				o := courier.WithObserver(d.observer(true))
				if coordinator == "polling" {
					_ = courier.NewPollingCoordinator(source, applier, quiet, o).RunOnce(t.Context())
				} else {
					source.wait = true
					stop := start(t, courier.NewStreamingCoordinator(source, applier, quiet, o))
					synctest.Wait()
					require.NoError(t, stop())
				}
				lines := slices.DeleteFunc(d.read(), func(l string) bool { return !strings.HasPrefix(l, "started") && !strings.HasPrefix(l, "ended") })
				require.Equal(t, []string{
					`started "#0 of the batch"`, `ended "#0 of the batch" <nil>`,
					`started "#1 of the batch"`, `ended "#1 of the batch" courier: user code panicked: the record's own error`,
				}, lines[:4])
			})
		})
	}
}

func TestObserver_DecoratorsTellTheirCoordinators(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		source := namedShelf{newShelf(1)}
		applier, _ := courier.ResilientApplier(courier.ProcessFunc(func(context.Context, int) error { return errTest }),
			&courier.ResilientConfig[int]{Retry: courier.RetryPolicy{MaxAttempts: 2}, Breaker: courier.BreakerPolicy{FailureThreshold: 2}})
		stop := start(t, courier.NewPollingCoordinator(source, applier, quiet, unspread, courier.WithObserver(d.observer(false))))
		time.Sleep(time.Second)
		require.NoError(t, stop())
		lines := d.read()
		require.Contains(t, lines, "retried 1 the record's own error")
		require.Contains(t, lines, "paused true false")
	})
	synctest.Test(t, func(t *testing.T) {
		var d diary
		applier, _ := courier.WithDLQ(courier.ProcessFunc(func(context.Context, int) error { return courier.Permanent(errTest) }))
		require.NoError(t, courier.NewPollingCoordinator(namedShelf{newShelf(1)}, applier, quiet, courier.WithObserver(d.observer(false))).RunOnce(t.Context()))
		require.Contains(t, d.read(), `parked "order 1" permanent`)
	})
}

// C-1: an outage and its end, and that nothing but suspects is left, is told.
func TestC1_Observer_PausesAreToldAndStuckOnes(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		var d diary
		var down fault
		down.set(errTest)
		source.add(numbers(5)...)
		applier, _ := courier.ResilientApplier[int](&sink[int]{fail: func(context.Context, int, int) error {
			return down.get()
		}}, nil)
		stop := start(t, make(applier, courier.WithObserver(d.observer(false)), courier.WithOrderKey(byRest(1))))
		time.Sleep(10 * time.Minute)
		require.Contains(t, d.read(), "paused true true", "a strict order is stuck behind its first record")
		down.set(nil)
		time.Sleep(10 * time.Minute)
		require.NoError(t, stop())
		lines := d.read()
		i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "resumed after") })
		require.Positive(t, i)
		for _, l := range lines[i:] {
			require.NotContains(t, l, "paused")
		}
		require.Len(t, source.marked(), 5)
	})
}

func TestD9_AnObserverMayPanicOrExit(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic(errTest) }, "goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
				source.add(numbers(10)...)
				var d diary
				bad := courier.Observer{
					Fetched:       func(context.Context, courier.FetchEvent) { end() },
					Applied:       func(context.Context, courier.ApplyEvent) { end() },
					Marked:        func(context.Context, courier.MarkEvent) { end() },
					Stopped:       func(context.Context, courier.StopEvent) { end() },
					RecordStarted: func(context.Context, courier.RecordEvent) { end() },
					RecordEnded:   func(context.Context, courier.RecordEvent) { end() },
				}
				s := &sink[int]{}
				stop := start(t, make(s, courier.WithObserver(bad), courier.WithObserver(d.observer(false))))
				time.Sleep(time.Minute)
				require.NoError(t, stop())
				require.Equal(t, numbers(10), s.got())
				require.Equal(t, numbers(10), source.marked())
				require.Contains(t, strings.Join(d.read(), "\n"), "marked 10", "the next one is told all the same")
			})
		})
	}
}

func TestTeeObservers(t *testing.T) {
	require.Nil(t, courier.TeeObservers().Fetched, "an event that nobody asked for stays free")
	require.Nil(t, courier.TeeObservers(courier.Observer{}, courier.Observer{}).Marked)
	var a, b diary
	tee := courier.TeeObservers(a.observer(true), courier.Observer{}, b.observer(false))
	tee.Marked(t.Context(), courier.MarkEvent{Records: 3})
	tee.RecordStarted(t.Context(), courier.RecordEvent{Record: "r"})
	require.Len(t, a.read(), 2)
	require.Len(t, b.read(), 1)
}

// timeless is a log without times.
func timeless(w *bytes.Buffer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

func TestSlogObserver_SaysOnceWhatRepeats(t *testing.T) {
	var log bytes.Buffer
	o := courier.SlogObserver(timeless(&log))
	ctx := t.Context()
	for range 250 {
		o.Marked(ctx, courier.MarkEvent{Records: 7, Err: errors.New("read-only"), RetryIn: time.Second})
	}
	o.Marked(ctx, courier.MarkEvent{Records: 7})
	o.Marked(ctx, courier.MarkEvent{Records: 7})
	const said = `msg="courier: mark failed, nothing is fetched until it succeeds" records=7 retry_in=1s error=read-only`
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
func TestSlogObserver_RemembersABoundedNumber(t *testing.T) {
	var log bytes.Buffer
	o := courier.SlogObserver(timeless(&log))
	for i := range 2000 {
		err := fmt.Errorf("order %s", strings.Repeat("x", i))
		o.Applied(t.Context(), courier.ApplyEvent{Records: 1, Failed: 1, Err: err})
	}
	require.Equal(t, 2000, strings.Count(log.String(), "\n"))
}

func TestSlogObserver_ANumberMakesNoNews(t *testing.T) {
	var log bytes.Buffer
	o := courier.SlogObserver(timeless(&log))
	for i := range 100 {
		o.Applied(t.Context(), courier.ApplyEvent{Records: 10, Failed: 1, Record: fmt.Sprint(i), Err: fmt.Errorf("order %d: 404", 7*i)})
	}
	require.Equal(t, 3, strings.Count(log.String(), "\n"), log.String())
}

func TestSlogObserver_AnOutageIsAFewLines(t *testing.T) {
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
		require.LessOrEqual(t, len(lines), 8, log.String())
		require.Contains(t, log.String(), "courier: resumed")
	})
}
