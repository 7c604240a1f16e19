package courier_test

// The log: what it says once, what it repeats, and what it remembers.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// The log names the record, and shows where a panic came from.
func TestLog_NamesTheRecord(t *testing.T) {
	var logged strings.Builder
	source := newShelf(name("a"), name("b"))
	err := courier.NewPollingCoordinator(source, courier.ProcessFunc(func(_ context.Context, n name) error {
		if n == "b" {
			panic("boom")
		}
		return nil
	}), courier.WithLogger(textLogger(&logged))).RunOnce(t.Context())
	require.ErrorIs(t, err, courier.ErrPanic)
	require.Contains(t, logged.String(), `record="order b"`)
	require.Contains(t, logged.String(), "log_test.go")

	logged.Reset()
	synctest.Test(t, func(t *testing.T) {
		stop := start(t, courier.NewPollingCoordinator(newShelf(1, 2), courier.ProcessFunc(func(ctx context.Context, _ int) error {
			<-ctx.Done()
			return ctx.Err()
		}), courier.WithLogger(textLogger(&logged))))
		synctest.Wait()
		require.NoError(t, stop())
	})
	require.Contains(t, logged.String(), "the drain timeout cut the work short")
}

type name string

func (n name) String() string { return "order " + string(n) }

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
	require.Contains(t, log.String(), said+" times=251", "it is news again after it was over, and goes on")
}

// Errors whose texts are never the same are a few lines all the same, of each message for
// itself.
func TestLogObserver_ErrorsThatDiffer(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var log bytes.Buffer
		o := courier.LogObserver(timeless(&log))
		differing := func(i int) {
			err := errors.New(strings.Repeat("x", i))
			o.Applied(t.Context(), courier.ApplyEvent{Records: 1, Failed: 1, Err: err})
			o.Fetched(t.Context(), courier.FetchEvent{Err: errors.New("gone")})
		}
		for i := range 1000 {
			differing(i)
		}
		require.Equal(t, 4, strings.Count(log.String(), "error=gone"), "the 1st, 10th, 100th and 1000th time")
		require.Equal(t, 14, strings.Count(log.String(), "\n"))
		log.Reset()
		for i := range 3600 {
			time.Sleep(time.Second)
			differing(1000 + i)
		}
		require.Equal(t, 24+12, strings.Count(log.String(), "\n"))
		require.Contains(t, log.String(), "seen_in_batches=4600", "it tells how many there were")
		time.Sleep(time.Hour)
		o.Fetched(t.Context(), courier.FetchEvent{})
		log.Reset()
		differing(1)
		require.Equal(t, 2, strings.Count(log.String(), "level=WARN"))
		require.NotContains(t, log.String(), "seen_in_batches=", "it is news again")
	})
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
		if i >= 10 { // which is not said any more
			continue
		}
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

// What goes on for hours is told again at least every five minutes, or with the next
// event after that, and is a few lines an hour all the same.
func TestLog_WhatGoesOnIsToldAgain(t *testing.T) {
	for _, kind := range few("records", "one record", "outage", "full queue", "one later", "host", "fetch", "mark", "later") {
		for _, shape := range few("polling", "plain", "batches", "streaming") {
			t.Run(kind+", "+shape, func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					var log lines
					began := time.Now()
					a := courier.ProcessFunc(func(_ context.Context, n int) error {
						switch {
						case n != 3 && (kind == "one record" || kind == "one later" || kind == "host"), kind == "mark":
							return nil
						case kind == "later" || kind == "one later":
							return courier.Later(errTest, 10*time.Second)
						}
						return fmt.Errorf("order %d: %w", n, errTest)
					})
					if shape == "batches" {
						a = eachOfBatch[int]{a}
					}
					switch kind {
					case "outage":
						a, _ = courier.ResilientApplier(a, nil)
					case "host":
						a, _ = courier.ResilientApplier(a, &courier.ResilientConfig[int]{BreakerKey: strconv.Itoa})
					case "full queue":
						a = courier.NewDLQApplier(a, courier.DLQ[int](refusing{}), courier.DLQPolicy[int]{})
					}
					source := &asking{leasing: newLeasing(numbers(50)...)}
					switch kind {
					case "fetch":
						source.ask(time.Second, 0)
					case "mark":
						source.ask(0, time.Second)
					}
					source.wait = shape == "streaming"
					var s courier.Source[int] = source
					opts := []courier.Option{courier.WithLogger(timedLog(&log, &began))}
					if shape == "plain" {
						s = courier.BatchSourceFunc[int]{FetchFunc: func(ctx context.Context) ([]int, error) {
							if kind == "fetch" {
								return nil, errTest
							}
							return source.shelf.Fetch(ctx, 1000)
						}, MarkFunc: source.Mark}
					}
					var c courierttest.Starter = courier.NewPollingCoordinator(s, a, opts...)
					if shape == "streaming" {
						if kind != "fetch" && kind != "mark" {
							var r courierttest.Recorder[int]
							s = r.StreamSource(numbers(50)...)
						}
						c = courier.NewStreamingCoordinator(s, a, opts...)
					}
					run := courierttest.Start(t, c)
					const lasts = 2 * time.Hour
					time.Sleep(lasts)
					told := log.String()
					_ = run.Stop()
					last, most := time.Duration(0), time.Duration(0)
					n := 0
					for _, line := range strings.Split(strings.TrimSpace(told), "\n") {
						if !strings.Contains(line, "level=WARN") && !strings.Contains(line, "level=ERROR") {
							continue
						}
						n++
						at, err := time.ParseDuration(regexp.MustCompile(`after=(\S+)`).FindStringSubmatch(line)[1])
						require.NoError(t, err)
						most, last = max(most, at-last), at
					}
					require.LessOrEqual(t, max(most, lasts-last), 7*time.Minute, told)
					require.LessOrEqual(t, n, 2*(2*12+6), "of two messages at the most")
				})
			})
		}
	}
}

// A poison record among few others opens the breaker for a moment, again and again. The log
// does not grow with that, and each pause that it has is followed by its end.
func TestLog_APauseThatComesAgain(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		var log lines
		var fails atomic.Bool
		fails.Store(true)
		a := courier.ProcessFunc(func(_ context.Context, n int) error {
			if fails.Load() && n%10 == 0 {
				return errTest
			}
			return nil
		})
		var pauses atomic.Int64
		observer := courier.Observer{Paused: func(context.Context, courier.PauseEvent) { pauses.Add(1) }}
		applier, _ := courier.ResilientApplier(a, nil)
		stop := start(t, make(applier, courier.WithLogger(timeless(&log)), courier.WithObserver(observer)))
		n := 0
		run := func(lasts time.Duration) string {
			before := len(log.String())
			for range lasts / (2 * time.Second) {
				source.add(n, n+1)
				n += 2
				time.Sleep(2 * time.Second)
			}
			return log.String()[before:]
		}
		told := run(time.Hour)
		require.Greater(t, pauses.Load(), int64(100))
		paused, resumed := strings.Count(told, "courier: paused"), strings.Count(told, "courier: resumed")
		require.LessOrEqual(t, paused, 5+12, told)
		require.LessOrEqual(t, paused-resumed, 1, told)
		require.LessOrEqual(t, resumed, paused, told)
		fails.Store(false)
		run(time.Hour)
		fails.Store(true)
		require.Equal(t, 1, strings.Count(run(10*time.Second), "courier: paused"), "after a while it is news")
		require.NoError(t, stop())
	})
}

// What comes and goes for an hour is a few lines, be the texts of the errors the same or not,
// and its end is told.
func TestLog_WhatComesAndGoes(t *testing.T) {
	differs := 0
	for name, test := range map[string]struct {
		fetch, mark error // every second time
		apply       func(n int) error
		keyed       bool
		takes       time.Duration
		workers     int
		end         string
	}{
		"fetch": {fetch: errTest, end: "fetch works again"},
		"mark":  {mark: errTest, end: "mark works again"},
		"quota": {fetch: courier.RetryAfter(errTest, 20*time.Second), end: "fetch works again"},
		"hosts": {apply: func(int) error { return errTest }, keyed: true, end: "no record has asked again to be tried later for"},
		"texts": {apply: func(int) error {
			differs++
			return errors.New(strings.Repeat("x", differs))
		}, end: "no record has failed and stayed pending for"},
		"slow calls": {takes: 45 * time.Second, workers: 16, end: "the call of a record that was in progress for a long time has returned"},
	} {
		for _, streaming := range last(false, true) {
			t.Run(name+", "+coordinatorOf(streaming), func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					source := newLeasing(numbers(300)...)
					source.wait = streaming
					var log lines
					began := time.Now()
					bad := func() bool { return time.Since(began) < time.Hour }
					every := func(err error) func(int) error {
						return func(n int) error {
							if n%2 == 0 && bad() {
								return err
							}
							return nil
						}
					}
					source.markErr = every(test.mark)
					fetches, fetchErr := 0, every(test.fetch)
					hidden := sourceFuncs{func(ctx context.Context, limit int) ([]int, error) {
						if fetches++; fetchErr(fetches) != nil {
							return nil, test.fetch
						}
						return source.Fetch(ctx, limit)
					}, source.Mark}
					var mu sync.Mutex
					a := courier.ProcessFunc(func(_ context.Context, n int) error {
						mu.Lock()
						defer mu.Unlock()
						if bad() && test.apply != nil && n < 300 {
							return test.apply(n)
						}
						mu.Unlock()
						defer mu.Lock()
						if bad() {
							time.Sleep(test.takes)
						}
						return nil
					})
					if test.keyed {
						a, _ = courier.ResilientApplier(a, &courier.ResilientConfig[int]{BreakerKey: func(n int) string { return strings.Repeat("x", n%1000) }, Retry: courier.RetryPolicy{MaxAttempts: 1000}})
					}
					opts := []courier.Option{courier.WithLogger(timedLog(&log, &began)), courier.WithWorkers(max(1, test.workers)), courier.WithBatchSize(1000)}
					var c running = courier.NewPollingCoordinator[int](hidden, a, opts...)
					if streaming {
						c = courier.NewStreamingCoordinator[int](hidden, a, opts...)
					}
					stop := start(t, c)
					for i := range 1440 {
						time.Sleep(5 * time.Second)
						source.add(1000 + i)
						if test.takes > 0 && i < 720 {
							for j := range 16 {
								source.add(10_000 + 16*i + j)
							}
						}
					}
					told := log.String()
					require.NoError(t, stop())
					require.LessOrEqual(t, strings.Count(told, "\n"), 42, told)
					require.Contains(t, told[strings.LastIndex(strings.TrimSpace(told), "\n")+1:], test.end)
				})
			})
		}
	}
}

// A record whose retries go on for long is told, and that no record has failed is not said
// meanwhile. A few that fail twice are silent.
func TestLog_RetriesThatGoOnForLong(t *testing.T) {
	for _, shape := range few("one worker", "two workers", "keyed", "batches", "blocking batches") {
		for _, attempts := range few(1000, 20, 3) {
			for _, streaming := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %d attempts, %s", shape, attempts, coordinatorOf(streaming)), func(t *testing.T) {
					courierttest.Bubble(t, func(t *testing.T) {
						var log lines
						began := time.Now()
						source := newLeasing(7)
						source.wait = streaming
						calls := 0
						a := courier.ProcessFunc(func(_ context.Context, n int) error {
							if n != 7 {
								return nil
							}
							if calls++; attempts == 3 && calls == 3 || time.Since(began) > 2*time.Hour {
								return nil
							}
							return errTest
						})
						if strings.HasSuffix(shape, "batches") {
							a = eachOfBatch[int]{a}
						}
						a = courier.NewRetryableApplier(a, courier.RetryPolicy{MaxAttempts: attempts})
						opts := []courier.Option{courier.WithLogger(timedLog(&log, &began)), courier.WithWorkers(2), courier.WithDrainTimeout(time.Minute)}
						switch shape {
						case "one worker", "blocking batches":
							opts = append(opts, courier.WithWorkers(1))
						case "keyed":
							opts = append(opts, courier.WithOrderKey(byRest(3)))
						}
						var c teller = courier.NewPollingCoordinator[int](source.shelf, a, opts...)
						if streaming {
							c = courier.NewStreamingCoordinator[int](hiding{source}, a, opts...)
						}
						stop := start(t, c)
						for i := range 720 {
							time.Sleep(10 * time.Second)
							source.add(100 + i)
						}
						told := log.String()
						if attempts == 3 {
							require.Empty(t, told)
							require.NoError(t, c.Stats().LastError)
							require.NoError(t, stop())
							return
						}
						require.Regexp(t, `msg="courier: a record has failed for a long time, and is tried again" record=7 records=1 attempt=\d+ for=[3-6]\S+ retry_in=\S+ error="the record's own error"\n`, told)
						require.ErrorIs(t, c.Stats().LastError, errTest)
						require.NotContains(t, told, "no record has failed")
						require.GreaterOrEqual(t, strings.Count(told, "failed for a long time"), 20)
						require.LessOrEqual(t, strings.Count(told, "\n"), 2*48)
						for i := range 30 {
							time.Sleep(10 * time.Second)
							source.add(2000 + i)
						}
						require.Contains(t, log.String(), "no record has failed and stayed pending")
						require.NoError(t, stop())
					})
				})
			}
		}
	}
}

// In an outage in which new records come, it is not so that all have failed as a probe.
func TestLog_AnOutageIsNotStuck(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		source := newShelf[int]()
		a, _ := courier.ResilientApplier(always(errTest), nil)
		stop := start(t, courier.NewPollingCoordinator[int](source, a, quiet, courier.WithObserver(told.Observer()), courier.WithWorkers(4)))
		for i := range 3600 {
			source.add(i)
			time.Sleep(time.Second)
		}
		require.NoError(t, stop())
		stuck := 0
		for _, e := range courierttest.EventsOf[courier.PauseEvent](&told) {
			if e.Stuck {
				stuck++
			}
		}
		require.LessOrEqual(t, stuck, 1, "at the begin there are few records")
	})
}

// The outage of a branch is told also soon after that of another one.
func TestLog_TheSecondBranchOfAnOutage(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		var log lines
		began := time.Now()
		down := func(name string, from, to time.Duration) courier.Applier[int] {
			a, _ := courier.ResilientApplier(courier.ProcessFunc(func(context.Context, int) error {
				if since := time.Since(began); since > from && since < to {
					return errors.New(name + ": 503")
				}
				return nil
			}), nil)
			return a
		}
		a := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: named(down("a", time.Minute, 70*time.Second), down("b", 90*time.Second, 140*time.Second)), Identity: byRest(1e9)})
		stop := start(t, make(a, courier.WithLogger(timedLog(&log, &began)), courier.WithWorkers(4)))
		for i := range 600 {
			time.Sleep(300 * time.Millisecond)
			source.add(i)
		}
		require.NoError(t, stop())
		for _, branch := range []string{"a", "b"} {
			require.Contains(t, log.String(), "branch="+branch+" ")
		}
		require.Equal(t, 2, strings.Count(log.String(), "courier: resumed"), log.String())
	})
}

// A batch of rows that all fail hides the rows after it from a source that returns
// what is not marked, in its order. The second time the log says so.
func TestLog_RowsThatAreNotSeen(t *testing.T) {
	const hidden = "hides the records after them"
	type row struct{ n *int } // which cannot be known again
	for name, test := range map[string]struct {
		poison  int // of the first rows
		limit   bool
		takes   bool
		batches bool
		want    bool
	}{
		"a full batch":                  {100, false, false, false, true},
		"a full batch, in one call":     {100, false, false, true, true},
		"a full batch, by its limit":    {100, true, false, false, true},
		"all but one":                   {99, false, false, false, false},
		"none":                          {0, false, false, false, false},
		"a source that takes them back": {100, true, true, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				var log lines
				var rows []row
				for i := range 200 {
					rows = append(rows, row{&i})
				}
				source := newLeasing(rows...)
				process := courier.ProcessFunc(func(_ context.Context, r row) error {
					if *r.n < test.poison {
						return errTest
					}
					return nil
				})
				if test.batches {
					process = eachOfBatch[row]{process}
				}
				var s courier.Source[row] = source.shelf
				switch {
				case test.takes:
					s = source
				case !test.limit:
					s = courier.BatchSourceFunc[row]{FetchFunc: func(ctx context.Context) ([]row, error) { return source.shelf.Fetch(ctx, 100) }, MarkFunc: source.Mark}
				}
				began := time.Now()
				c := courier.NewPollingCoordinator(s, process, courier.WithLogger(timedLog(&log, &began)))
				stop := start(t, c)
				time.Sleep(time.Second)
				require.NotContains(t, log.String(), hidden)
				time.Sleep(time.Hour)
				require.NoError(t, stop())
				require.Equal(t, test.want, strings.Contains(log.String(), hidden), log.String())
				if n := strings.Count(log.String(), hidden); test.want {
					require.Regexp(t, `after=[45]\S+ level=WARN msg="courier: all records of a full batch have failed twice in a row; .*" records=100\n`, log.String())
					require.LessOrEqual(t, n, 16)
				}
				require.Equal(t, test.want, !test.takes && len(source.left()) == 200)
			})
		})
	}
}

// Passes of RunOnce count too, by one coordinator; a batch that gets through ends it.
func TestLog_RowsThatAreNotSeenByRunOnce(t *testing.T) {
	var log bytes.Buffer
	fails := true
	c := courier.NewPollingCoordinator(courier.BatchSourceFunc[int]{FetchFunc: func(context.Context) ([]int, error) { return numbers(100), nil }, MarkFunc: nop[[]int]},
		courier.ProcessFunc(func(context.Context, int) error {
			if fails {
				return errTest
			}
			return nil
		}), courier.WithLogger(timeless(&log)))
	for pass, want := range []int{0, 1, 1, 1, 2} {
		fails = pass != 2
		_ = c.RunOnce(t.Context())
		if pass == 3 {
			continue
		}
		require.LessOrEqual(t, strings.Count(log.String(), "twice in a row"), want)
	}
	require.Equal(t, 1, strings.Count(log.String(), "twice in a row"), "the second time is no news yet")
}

// When Start returns, and RunOnce, one line says how many letters the process takes
// along.
func TestLog_LettersThatAreLostWithTheProcess(t *testing.T) {
	const lost = `level=WARN msg="courier: the dead letter queue is in memory, and its letters are lost when this process ends, while their records are marked as done: redrive or store them before that" letters=`
	bad := courier.ProcessFunc(func(_ context.Context, n int) error {
		if n < 3 {
			return courier.Permanent(errTest)
		}
		return nil
	})
	queue := &courier.MemoryDLQ[int]{}
	with := func(q courier.DLQ[int], branch string) courier.Applier[int] {
		a, _ := courier.ResilientApplier(bad, &courier.ResilientConfig[int]{DLQ: q, Parking: courier.DLQPolicy[int]{Branch: branch}})
		return a
	}
	for name, test := range map[string]struct {
		stack func() courier.Applier[int]
		want  int
	}{
		"its own":                 {func() courier.Applier[int] { return with(nil, "") }, 3},
		"seen through":            {func() courier.Applier[int] { return show(with(nil, "")) }, 3},
		"two branches, one queue": {func() courier.Applier[int] { return courier.NewFanOutApplier(with(queue, "a"), with(queue, "b")) }, 6},
		"two queues":              {func() courier.Applier[int] { return courier.NewFanOutApplier(with(nil, ""), with(nil, "")) }, 6},
		"wrapped by the user":     {func() courier.Applier[int] { return with(marksToo{queue, false}, "") }, 0},
		"none parked":             {func() courier.Applier[int] { a, _ := courier.WithDLQ(courier.ProcessFunc(nop[int])); return a }, 0},
		"no queue":                {func() courier.Applier[int] { return bad }, 0},
		"of no use": {func() courier.Applier[int] {
			return courier.NewDLQApplier(courier.ProcessFunc(nop[int]), courier.DLQ[int](refusing{}), courier.DLQPolicy[int]{})
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inShapes(t, func(t *testing.T, _ string, shape func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
				letters, _ := queue.Receive(t.Context(), 100)
				for _, l := range letters {
					require.NoError(t, queue.Delete(t.Context(), l.ID))
				}
				var log lines
				c, run := shape(test.stack(), numbers(20), courier.WithLogger(timedLog(&log, new(time.Time))))
				run(time.Minute)
				require.NoError(t, c.Stop(t.Context()))
				if test.want == 0 {
					require.NotContains(t, log.String(), "redrive or store them")
					return
				}
				require.Equal(t, 1, strings.Count(log.String(), lost))
				require.True(t, strings.HasSuffix(log.String(), fmt.Sprint(lost, test.want, "\n")), log.String())
			})
		})
	}
}

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

// Likewise of rows that are known again by their value. Those that ask for a time are looked
// past for as long.
func TestLog_KnownRowsThatAreNotSeen(t *testing.T) {
	for asks, after := range map[string]time.Duration{"plain": 0, "with RetryAfter": 6 * time.Hour} {
		t.Run(asks, func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				var log lines
				source := newShelf(numbers(200)...)
				s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
					switch {
					case r >= 100:
						return nil
					case after > 0:
						return courier.RetryAfter(errTest, after)
					}
					return errTest
				}}
				stop := start(t, courier.NewPollingCoordinator[int](source, s, courier.WithLogger(textLogger(&log))))
				time.Sleep(5 * time.Hour)
				require.NoError(t, stop())
				require.Equal(t, after == 0, strings.Contains(log.String(), "hides the records after them"))
				if after > 0 {
					require.Len(t, source.left(), 100)
					require.Equal(t, 200, s.called())
				}
			})
		})
	}
}
