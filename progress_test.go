package courier_test

// What the log says at the moment that the drain timeout passes.

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// timedLog writes each line with how long ago some moment was.
func timedLog(w io.Writer, since *time.Time) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.String("after", a.Value.Time().Sub(*since).String())
		}
		return a
	}}))
}

// At the moment that the drain timeout passes, and not when the work returns, the log
// names what is in work: exactly where that is known, else as a range that has it.
func TestLog_WhenTheDrainTimeoutPasses(t *testing.T) {
	byKey := courier.WithOrderKey(func(n int) string { return strconv.Itoa(n % 7) })
	var told courierttest.ObserverRecorder
	told.PerRecord = true
	perRecord := courier.WithObserver(told.Observer())
	shapes := map[string]struct {
		stream, batches, once bool
		opts                  []courier.Option
		exact                 bool
		workers               int
	}{
		"polling":                        {workers: 1},
		"polling, 4 workers":             {workers: 4, opts: []courier.Option{courier.WithWorkers(4)}},
		"polling, 200 workers":           {workers: 100, exact: true, opts: []courier.Option{courier.WithWorkers(200)}},
		"polling, by key":                {workers: 1, exact: true, opts: []courier.Option{byKey}},
		"polling, 4 workers, by key":     {workers: 4, exact: true, opts: []courier.Option{byKey, courier.WithWorkers(4)}},
		"polling, each record observed":  {workers: 1, exact: true, opts: []courier.Option{perRecord}},
		"polling, batches":               {workers: 1, batches: true},
		"polling, 4 workers, batches":    {workers: 4, batches: true, opts: []courier.Option{courier.WithWorkers(4)}},
		"polling, batches, by key":       {workers: 1, batches: true, opts: []courier.Option{byKey}},
		"RunOnce":                        {workers: 1, once: true},
		"RunOnce, 4 workers":             {workers: 4, once: true, opts: []courier.Option{courier.WithWorkers(4)}},
		"streaming":                      {workers: 1, exact: true, stream: true},
		"streaming, 4 workers":           {workers: 4, exact: true, stream: true, opts: []courier.Option{courier.WithStreamWorkers(4)}},
		"streaming, 4 workers, by key":   {workers: 4, exact: true, stream: true, opts: []courier.Option{byKey, courier.WithStreamWorkers(4)}},
		"streaming, batches":             {workers: 1, batches: true, stream: true},
		"streaming, 4 workers, batches":  {workers: 4, batches: true, stream: true, opts: []courier.Option{courier.WithStreamWorkers(4)}},
		"streaming, batches, by key":     {workers: 1, batches: true, stream: true, opts: []courier.Option{byKey}},
		"streaming, each record seen":    {workers: 1, exact: true, stream: true, opts: []courier.Option{perRecord}},
		"streaming, marks in order":      {workers: 1, exact: true, stream: true, opts: []courier.Option{courier.WithOrderedMarks()}},
		"streaming, each, batches, keys": {workers: 2, batches: true, stream: true, opts: []courier.Option{perRecord, byKey, courier.WithStreamWorkers(2)}},
	}
	for name, shape := range shapes {
		for _, stack := range []string{"plain", "resilient", "fan-out"} {
			for _, heeds := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %s, %s", name, stack, choose(heeds, "heeds its context", "ignores its context")), func(t *testing.T) {
					courierttest.Bubble(t, func(t *testing.T) {
						var log lines
						stopped := time.Now().Add(time.Second)
						var mu sync.Mutex
						inWork := map[int]bool{}
						work := func(ctx context.Context, first int) error {
							mu.Lock()
							inWork[first] = true
							mu.Unlock()
							defer func() { mu.Lock(); defer mu.Unlock(); delete(inWork, first) }()
							if first < 20 && !shape.batches {
								return nil // some are through
							}
							if heeds {
								<-ctx.Done()
								return ctx.Err()
							}
							time.Sleep(30 * time.Second)
							return nil
						}
						a := courier.ProcessFunc(work)
						if shape.batches {
							a = hangingBatches{a}
						}
						switch stack {
						case "resilient":
							a, _ = courier.ResilientApplier(a, &courier.ResilientConfig[int]{DLQ: &courier.MemoryDLQ[int]{}})
						case "fan-out":
							a = courier.NewFanOutApplier(a)
						}
						source := newLeasing(numbers(100)...)
						source.wait = shape.stream
						opts := append([]courier.Option{courier.WithLogger(timedLog(&log, &stopped)), courier.WithDrainTimeout(10 * time.Second)}, shape.opts...)
						if shape.workers < 10 {
							opts = append(opts, courier.WithBatchSize(100))
						}
						ctx, cancel := context.WithCancel(t.Context())
						ended := make(chan error, 1)
						polling := courier.NewPollingCoordinator[int](source, a, opts...)
						switch {
						case shape.once:
							go func() { ended <- polling.RunOnce(ctx) }()
						case shape.stream:
							go func() { ended <- courier.NewStreamingCoordinator[int](source, a, opts...).Start(ctx) }()
						default:
							go func() { ended <- polling.Start(ctx) }()
						}
						time.Sleep(time.Second)
						cancel()
						time.Sleep(9 * time.Second)
						mu.Lock()
						want := len(inWork)
						var these []int
						for n := range inWork {
							these = append(these, n)
						}
						mu.Unlock()
						time.Sleep(time.Second)
						synctest.Wait()
						line, _, _ := strings.Cut(log.String(), "\n")
						if heeds { // others come at the same time
							line = regexp.MustCompile(`(?m)^.*the drain timeout has passed.*$`).FindString(log.String())
						}
						require.Contains(t, line, `after=10s level=WARN msg="courier: the drain timeout has passed, and records are still in progress; `)
						require.Contains(t, line, fmt.Sprintf(" workers=%d ", want), line)
						require.Equal(t, 1, strings.Count(log.String(), "has passed"))
						named := regexp.MustCompile(`(names|record)=("[^"]*"|\S+)`).FindStringSubmatch(line)
						names := named[2]
						require.Equal(t, strings.Contains(names, " "), named[1] == "names", "one record is told as record: %s", line)
						all := strings.Split(strings.Trim(names, `"`), ", ")
						if want > 10 {
							require.Contains(t, line, fmt.Sprintf("more=%d", want-10))
							require.Len(t, all, 10)
						}
						if shape.exact {
							require.NotContains(t, names, "one of")
						}
						if want <= 10 {
							for _, n := range these {
								require.True(t, namesRecord(names, n), "%d is in work, and the log says %s", n, names)
							}
						}
						err := <-ended
						require.Equal(t, shape.once, err != nil)
					})
				})
			}
		}
	}
}

// namesRecord reports whether a text as in the log has a record in it.
func namesRecord(text string, n int) bool {
	text = strings.Trim(text, `"`)
	for _, range_ := range regexp.MustCompile(`one of the \d+ from (\d+) to (\d+)`).FindAllStringSubmatch(text, -1) {
		from, _ := strconv.Atoi(range_[1])
		to, _ := strconv.Atoi(range_[2])
		if from <= n && n <= to {
			return to-from < 16
		}
	}
	return regexp.MustCompile(fmt.Sprintf(`(^|, |first of them )%d($|, )`, n)).MatchString(text)
}

// hangingBatches applies a batch as its first record.
type hangingBatches struct{ courier.Applier[int] }

func (h hangingBatches) ApplyBatch(ctx context.Context, records []int) error {
	return h.Apply(ctx, records[0])
}

// Names are the user's functions, and so are records without one: a place.
func TestLog_WhenTheDrainTimeoutPassesOverRecordsWithoutAName(t *testing.T) {
	type secret struct{ n int }
	for name, test := range map[string]struct {
		opts  []courier.Option
		first string // when it is in the first batch
		want  string // when it is after quick ones
	}{
		"by place":       {nil, `record="record 18 of the batch (the first is 1)"`, `names="one of the 4 from record 17 of the batch (the first is 1) to record 20 of the batch (the first is 1)"`},
		"by identity":    {[]courier.Option{courier.WithIdentity(func(s secret) string { return fmt.Sprintf("order %d", s.n) })}, `record="order 17"`, `names="one of the 4 from order 16 to order 19"`},
		"that panics":    {[]courier.Option{courier.WithIdentity(func(secret) string { panic("no") })}, "record 18 of the batch", "record 17 of the batch"},
		"with a history": {[]courier.Option{courier.WithOrderKey(func(secret) string { return "" })}, `record="record 18 of the batch (the first is 1)"`, `record="record 18 of the batch (the first is 1)"`},
	} {
		for batch, want := range map[int]string{1: test.first, 3: test.want} {
			t.Run(fmt.Sprintf("%s, batch %d", name, batch), func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					var log bytes.Buffer
					var records []secret
					for i := range 20 {
						records = append(records, secret{i})
					}
					fetches := 0
					source := courier.BatchSourceFunc[secret]{FetchFunc: func(context.Context) ([]secret, error) { fetches++; return records, nil }, MarkFunc: nop[[]secret]}
					a := courier.ProcessFunc(func(_ context.Context, s secret) error {
						if s.n == 17 && fetches == batch {
							time.Sleep(20 * time.Second)
						}
						return nil
					})
					stop := start(t, courier.NewPollingCoordinator(source, a, append(test.opts, courier.WithLogger(timeless(&log)))...))
					time.Sleep(time.Second)
					require.NoError(t, stop())
					require.Contains(t, log.String(), want)
				})
			})
		}
	}
}

// A fetch that does not heed its context is told in the same way.
func TestLog_WhenTheDrainTimeoutPassesOverAFetch(t *testing.T) {
	for _, shape := range []string{"polling", "streaming"} {
		t.Run(shape, func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				var log lines
				var stopped time.Time
				s := &hangingSource{newLeasing(numbers(20)...), "fetch", make(chan struct{})}
				opts := []courier.Option{courier.WithLogger(timedLog(&log, &stopped)), courier.WithDrainTimeout(2 * time.Second)}
				var c running = courier.NewPollingCoordinator[int](s, courier.ProcessFunc(nop[int]), opts...)
				if shape == "streaming" {
					c = courier.NewStreamingCoordinator[int](s, courier.ProcessFunc(nop[int]), opts...)
				}
				run := courierttest.Start(t, c)
				time.Sleep(time.Second)
				stopped = time.Now()
				ended := make(chan error, 1)
				go func() { ended <- run.Stop() }()
				time.Sleep(time.Minute)
				synctest.Wait()
				require.Equal(t, `after=2s level=WARN msg="courier: the drain timeout has passed, and the source has not answered a fetch whose context was cancelled; Start returns when the fetch returns"`+"\n", log.String())
				close(s.open)
				require.NoError(t, <-ended)
			})
		})
	}
}

// A stop whose work ends in time says nothing, whatever marks and releases take.
func TestLog_AStopInTimeSaysNothing(t *testing.T) {
	for _, shape := range []string{"polling", "streaming"} {
		for _, kind := range []string{"none", "mark"} {
			t.Run(shape+", "+kind, func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					var log bytes.Buffer
					s := &hangingSource{newLeasing(numbers(20)...), kind, make(chan struct{})}
					s.leasing.wait = shape == "streaming"
					a := courier.ProcessFunc(func(context.Context, int) error { time.Sleep(time.Second); return nil })
					opts := []courier.Option{courier.WithLogger(timeless(&log)), courier.WithBatchSize(5), courier.WithDrainTimeout(6 * time.Second)}
					var c running = courier.NewPollingCoordinator[int](s, a, opts...)
					if shape == "streaming" {
						c = courier.NewStreamingCoordinator[int](s, a, opts...)
					}
					run := courierttest.Start(t, c)
					time.Sleep(2500 * time.Millisecond)
					time.AfterFunc(time.Minute, func() { close(s.open) })
					_ = run.Stop()
					require.NotContains(t, log.String(), "has passed")
				})
			})
		}
	}
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
