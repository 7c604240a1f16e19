package courier_test

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// What goes on for hours is told again at least every five minutes, or with the next
// event after that, and is a few lines an hour all the same.
func TestLog_WhatGoesOnIsToldAgain(t *testing.T) {
	kinds := []string{"records", "one record", "outage", "full queue", "fetch", "mark"}
	for _, kind := range kinds {
		for _, shape := range few("polling", "plain", "batches", "streaming") {
			t.Run(kind+", "+shape, func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					var log lines
					began := time.Now()
					a := courier.ProcessFunc(func(_ context.Context, n int) error {
						if kind == "one record" && n != 3 || kind == "mark" {
							return nil
						}
						return fmt.Errorf("order %d: %w", n, errTest)
					})
					if shape == "batches" {
						a = eachOfBatch[int]{a}
					}
					switch kind {
					case "outage":
						a, _ = courier.ResilientApplier(a, nil)
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
					time.Sleep(6 * time.Hour)
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
					require.LessOrEqual(t, max(most, 6*time.Hour-last), 7*time.Minute, told)
					require.LessOrEqual(t, n, 2*(6*12+6), "of two messages at the most")
				})
			})
		}
	}
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
