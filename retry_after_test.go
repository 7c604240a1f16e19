package courier_test

// RetryAfter is obeyed wherever it is returned: the next try is no sooner than was
// asked, up to a cap, and not much later.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

const year = 365 * 24 * time.Hour

func TestRetryAfter_OfARecordThatComesAgain(t *testing.T) {
	retry := func(a courier.Applier[int], most time.Duration) courier.Applier[int] {
		return courier.NewRetryableApplier(a, courier.RetryPolicy{MaxAttempts: 1, MaxRetryAfter: most})
	}
	wrapped := func(a courier.Applier[int]) courier.Applier[int] {
		return courier.ProcessFunc(func(ctx context.Context, r int) error {
			return errors.Join(errTest, fmt.Errorf("order %d: %w", r, a.Apply(ctx, r)), courier.RetryAfter(errTest, time.Second))
		})
	}
	stacks := map[string]struct {
		most  time.Duration
		stack func(a courier.Applier[int]) courier.Applier[int]
	}{
		"no retry":         {24 * time.Hour, func(a courier.Applier[int]) courier.Applier[int] { return a }},
		"wrapped":          {24 * time.Hour, wrapped},
		"a minute":         {time.Minute, func(a courier.Applier[int]) courier.Applier[int] { return retry(a, time.Minute) }},
		"a minute wrapped": {time.Minute, func(a courier.Applier[int]) courier.Applier[int] { return wrapped(retry(a, time.Minute)) }},
		"the default":      {30 * time.Second, func(a courier.Applier[int]) courier.Applier[int] { return retry(a, 0) }},
		"two days":         {48 * time.Hour, func(a courier.Applier[int]) courier.Applier[int] { return retry(a, 48*time.Hour) }},
		"fan-out": {2 * time.Hour, func(a courier.Applier[int]) courier.Applier[int] {
			return courier.NewFanOutApplier(retry(a, time.Minute), retry(a, 2*time.Hour), retry(a, time.Hour))
		}},
		"cut short": {time.Minute, func(a courier.Applier[int]) courier.Applier[int] {
			return courier.NewRetryableApplier(a, courier.RetryPolicy{MaxElapsed: time.Nanosecond, MaxRetryAfter: time.Minute})
		}},
	}
	shapes := map[string]func(a courier.Applier[int]) courierttest.Starter{
		"channel": func(a courier.Applier[int]) courierttest.Starter { return channelOf(a) },
		"channel, by key": func(a courier.Applier[int]) courierttest.Starter {
			return channelOf(a, courier.WithOrderKey(func(int) string { return "k" }))
		},
		"channel, marks in order": func(a courier.Applier[int]) courierttest.Starter { return channelOf(a, courier.WithOrderedMarks()) },
		"stream, given back": func(a courier.Applier[int]) courierttest.Starter {
			var r courierttest.Recorder[int]
			return courier.NewStreamingCoordinator(r.StreamSource(1), a, quiet)
		},
		"stream, given back, by key": func(a courier.Applier[int]) courierttest.Starter {
			var r courierttest.Recorder[int]
			return courier.NewStreamingCoordinator(r.StreamSource(1), a, quiet, courier.WithOrderKey(func(int) string { return "k" }))
		},
		"stream, scheduled": func(a courier.Applier[int]) courierttest.Starter {
			var r courierttest.Recorder[int]
			return courier.NewStreamingCoordinator(waiting{r.SchedulingSource(year, 1)}, a, quiet)
		},
		"polling, scheduled": func(a courier.Applier[int]) courierttest.Starter {
			var r courierttest.Recorder[int]
			return courier.NewPollingCoordinator(r.SchedulingSource(year, 1), a, quiet, courier.WithSlowPolling())
		},
	}
	for name, s := range stacks {
		for shape, build := range shapes {
			for _, asked := range []time.Duration{-1, time.Second, time.Hour, year, math.MaxInt64} {
				if shape == "polling, scheduled" && name == "cut short" { // it was no attempt, and is released
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/asks for %v", name, shape, asked), func(t *testing.T) {
					courierttest.Bubble(t, func(t *testing.T) {
						var at []time.Time
						var mu sync.Mutex
						stack := s.stack(courier.ProcessFunc(func(context.Context, int) error {
							mu.Lock()
							defer mu.Unlock()
							if n := len(at); n == 0 || !at[n-1].Equal(time.Now()) { // once for all branches
								at = append(at, time.Now())
							}
							return courier.RetryAfter(errTest, asked)
						}))
						run := courierttest.Start(t, build(stack))
						least := min(max(0, asked), s.most)
						time.Sleep(3*least + 5*time.Minute)
						if err := run.Stop(); err != nil {
							require.ErrorIs(t, err, courier.ErrUnsettled)
						}
						require.GreaterOrEqual(t, len(at), 3)
						for i := 1; i < 4 && i < len(at); i++ {
							require.GreaterOrEqual(t, at[i].Sub(at[i-1]), least)
							require.LessOrEqual(t, at[i].Sub(at[i-1]), max(least, 31*time.Second)+33*time.Second, "its own pace, and a fetch")
						}
					})
				})
			}
		}
	}
}

// channelOf streams one record from a channel that stays open.
func channelOf(a courier.Applier[int], opts ...courier.Option) courierttest.Starter {
	ch := make(chan int, 1)
	ch <- 1
	return courier.NewStreamingCoordinator(courier.NewChannelSource(ch, nop[[]int]), a, append(opts, quiet)...)
}

// waiting is a source for a poller whose Fetch waits for a record.
type waiting struct {
	*courierttest.SchedulingSource[int]
}

func (w waiting) Fetch(ctx context.Context, limit int) ([]int, error) {
	for {
		records, err := w.SchedulingSource.Fetch(ctx, limit)
		if len(records) > 0 || err != nil {
			return records, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(30 * time.Second):
		}
	}
}

// asking is a source whose Fetch and Mark ask for time as they are told to, and
// note when they are called.
type asking struct {
	*leasing[int]
	some bool // records come with the error of Fetch

	mu          sync.Mutex
	fetch, mark time.Duration // 0 is no error
	calls       map[string][]time.Time
}

func (a *asking) call(kind string, asked *time.Duration) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.calls == nil {
		a.calls = map[string][]time.Time{}
	}
	a.calls[kind] = append(a.calls[kind], time.Now())
	return *asked
}

func (a *asking) at(kind string) []time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.calls[kind])
}

func (a *asking) ask(fetch, mark time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fetch, a.mark = fetch, mark
}

func (a *asking) Fetch(ctx context.Context, limit int) ([]int, error) {
	asked := a.call("fetch", &a.fetch)
	if asked == 0 {
		return a.leasing.Fetch(ctx, limit)
	}
	var records []int
	if a.some {
		records, _ = a.leasing.Fetch(ctx, limit)
	}
	return records, fmt.Errorf("source: %w", courier.RetryAfter(errTest, asked))
}

func (a *asking) Mark(ctx context.Context, records []int) error {
	if asked := a.call("mark", &a.mark); asked != 0 {
		return fmt.Errorf("source: %w", courier.RetryAfter(errTest, asked))
	}
	return a.leasing.Mark(ctx, records)
}

// Wake tells of work at any time.
func (a *asking) Wake() <-chan struct{} {
	always := make(chan struct{}, 100)
	for range 100 {
		always <- struct{}{}
	}
	return always
}

var askingShapes = map[string]func(a *asking, applier courier.Applier[int]) running{
	"polling": func(a *asking, applier courier.Applier[int]) running {
		return courier.NewPollingCoordinator(a, applier, quiet, courier.WithBatchSize(2))
	},
	"polling, by key": func(a *asking, applier courier.Applier[int]) running {
		return courier.NewPollingCoordinator(a, applier, quiet, courier.WithBatchSize(2), courier.WithOrderKey(func(int) string { return "k" }))
	},
	"fetching ahead": func(a *asking, applier courier.Applier[int]) running {
		return courier.NewPollingCoordinator(a, applier, quiet, courier.WithBatchSize(2), courier.WithPrefetch(2))
	},
	"stream": func(a *asking, applier courier.Applier[int]) running {
		a.wait = true
		return courier.NewStreamingCoordinator(a, applier, quiet, courier.WithBatchSize(2))
	},
	"stream, marks in order": func(a *asking, applier courier.Applier[int]) running {
		a.wait = true
		return courier.NewStreamingCoordinator(a, applier, quiet, courier.WithBatchSize(2), courier.WithOrderedMarks())
	},
}

// spaced checks that calls are as far apart as was asked for, or as the pace of
// failures is where that is longer.
func spaced(t *testing.T, at []time.Time, asked time.Duration) {
	t.Helper()
	require.GreaterOrEqual(t, len(at), 3)
	least := min(max(0, asked), time.Hour)
	for i := 1; i < len(at); i++ {
		require.GreaterOrEqual(t, at[i].Sub(at[i-1]), least, "call %d", i)
		require.LessOrEqual(t, at[i].Sub(at[i-1]), max(least, 30*time.Second)+100*time.Millisecond, "call %d", i)
	}
}

func TestRetryAfter_OfASource(t *testing.T) {
	for shape, build := range askingShapes {
		for _, asked := range []time.Duration{-1, time.Second, time.Minute, time.Hour, year, math.MaxInt64} {
			for _, some := range []bool{false, true} {
				t.Run(fmt.Sprintf("fetch/%s/asks for %v/%s", shape, asked, choose(some, "records", "no records")), func(t *testing.T) {
					courierttest.Bubble(t, func(t *testing.T) {
						a := &asking{leasing: newLeasing(numbers(100)...), fetch: asked, some: some}
						s := &sink[int]{fail: func(context.Context, int, int) error { time.Sleep(10 * time.Millisecond); return nil }}
						stop := start(t, build(a, s))
						time.Sleep(4*min(asked, time.Hour) + 5*time.Minute)
						require.NoError(t, stop())
						spaced(t, a.at("fetch"), asked)
						require.Equal(t, some, len(s.got()) > 0)
					})
				})
			}
			t.Run(fmt.Sprintf("mark/%s/asks for %v", shape, asked), func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					a := &asking{leasing: newLeasing(1, 2), mark: asked}
					stop := start(t, build(a, &sink[int]{}))
					time.Sleep(4*min(asked, time.Hour) + 5*time.Minute + time.Millisecond)
					marked := len(a.at("mark"))
					stopped := time.Now()
					require.ErrorIs(t, stop(), courier.ErrMark)
					spaced(t, a.at("mark")[:marked], asked)
					require.Equal(t, stopped, a.at("mark")[marked], "a stop has it tried once more at once")
				})
			})
		}
	}
}

// A mark that asks for time at a stop is tried as often as there is time for: when it
// asks for more than there is, at the coordinator's own pace, which begins anew.
func TestRetryAfter_OfAMarkAtAStop(t *testing.T) {
	for shape, build := range askingShapes {
		for _, asked := range []time.Duration{-1, time.Second, 4 * time.Second, 6 * time.Second, 20 * time.Second, time.Hour} {
			for _, recovers := range []time.Duration{3 * time.Second, time.Hour} {
				t.Run(fmt.Sprintf("%s/asks for %v/recovers after %v", shape, asked, recovers), func(t *testing.T) {
					courierttest.Bubble(t, func(t *testing.T) {
						a := &asking{leasing: newLeasing(1, 2), mark: asked}
						stop := start(t, build(a, &sink[int]{}))
						time.Sleep(3*time.Hour + 5*time.Millisecond) // its pace is long by now
						before, stopped := len(a.at("mark")), time.Now()
						time.AfterFunc(recovers, func() { a.ask(0, 0) })
						err := stop()
						took := time.Since(stopped)
						at := a.at("mark")[before:]
						require.Equal(t, stopped, at[0])
						if recovers == time.Hour {
							require.ErrorIs(t, err, courier.ErrMark)
							require.LessOrEqual(t, took, 20*time.Second)
							require.GreaterOrEqual(t, len(at), 3)
						} else {
							require.NoError(t, err)
							require.LessOrEqual(t, took, 8*time.Second)
						}
						for i := 1; i < len(at)-1 && 0 < asked && asked <= 5*time.Second; i++ { // the last is at the end of the time
							require.GreaterOrEqual(t, at[i].Sub(at[i-1]), asked)
						}
					})
				})
			}
		}
	}
}

// A wake-up by hand ends the wait for a fetch, and none for a mark.
func TestRetryAfter_AndAWakeUp(t *testing.T) {
	for shape, build := range askingShapes {
		t.Run(shape, func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				a := &asking{leasing: newLeasing(1), fetch: time.Minute}
				c := build(a, &sink[int]{})
				stop := start(t, c)
				time.Sleep(10 * time.Second)
				c.Wake()
				time.Sleep(time.Second)
				fetched := a.at("fetch")
				require.Len(t, fetched, 2)
				require.Equal(t, 10*time.Second, fetched[1].Sub(fetched[0]))
				a.ask(0, time.Minute)
				c.Wake()
				time.Sleep(time.Second)
				require.Len(t, a.at("mark"), 1)
				c.Wake()
				time.Sleep(50 * time.Second)
				require.Len(t, a.at("mark"), 1)
				a.ask(0, 0)
				time.Sleep(10 * time.Second)
				require.Len(t, a.at("mark"), 2)
				require.NoError(t, stop())
			})
		})
	}
}

// A pause over a breaker is no shorter than a fetch that failed with it asks for.
func TestRetryAfter_OfAFetchWithRecordsThatABreakerRefuses(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		a := &asking{leasing: newLeasing(numbers(4)...), fetch: time.Minute, some: true}
		b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1})
		stop := start(t, courier.NewPollingCoordinator(a, courier.NewCircuitBreakerApplier(always(errTest), b), quiet))
		time.Sleep(10 * time.Minute)
		require.NoError(t, stop())
		at := a.at("fetch")
		require.Greater(t, len(at), 5)
		for i := 1; i < len(at); i++ {
			require.GreaterOrEqual(t, at[i].Sub(at[i-1]), time.Minute)
		}
	})
}

// RunOnce waits for a mark up to the drain timeout at a time, and does not sit out
// an hour.
func TestRetryAfter_OfAMarkInRunOnce(t *testing.T) {
	for asked, want := range map[time.Duration]time.Duration{time.Second: 5 * time.Second, 10 * time.Second: 50 * time.Second, 11 * time.Second: 0, year: 0} {
		courierttest.Bubble(t, func(t *testing.T) {
			a := &asking{leasing: newLeasing(1), mark: asked}
			began := time.Now()
			err := courier.NewPollingCoordinator(a, &sink[int]{}, quiet).RunOnce(t.Context())
			require.ErrorIs(t, err, courier.ErrMark)
			require.InDelta(t, want, time.Since(began), float64(5*time.Second))
			if want > 0 {
				require.Len(t, a.at("mark"), 6)
			} else {
				require.Len(t, a.at("mark"), 1)
			}
		})
	}
}

// A breaker stays open for as long as the failure asks that opened it, or that of
// the probe, up to a cap of its own: above the longest open period, or below.
func TestRetryAfter_OfABreaker(t *testing.T) { // B-1, B-14
	for _, most := range []time.Duration{5 * time.Second, 15 * time.Second, 10 * time.Minute, 0} {
		t.Run(choose(most == 0, "the default cap", "a cap of "+most.String()), func(t *testing.T) { testRetryAfterOfABreaker(t, most, cmp.Or(most, time.Hour)) })
	}
}

func testRetryAfterOfABreaker(t *testing.T, policy, most time.Duration) {
	const first = 10 * time.Second
	record := func(asked time.Duration) error {
		return fmt.Errorf("order 1: %w", courier.RetryAfter(errTest, asked))
	}
	ways := map[string]func(b *courier.Breaker, asked time.Duration) error{
		"Apply": func(b *courier.Breaker, asked time.Duration) error {
			return courier.NewCircuitBreakerApplier(always(record(asked)), b).Apply(context.Background(), 1)
		},
		"ApplyBatch, as one": func(b *courier.Breaker, asked time.Duration) error {
			s := &batchSink[int]{failBatch: func(context.Context, []int, int) error { return record(asked) }}
			return asBatch(courier.NewCircuitBreakerApplier[int](s, b)).ApplyBatch(context.Background(), numbers(2))
		},
		"ApplyBatch, listed": func(b *courier.Breaker, asked time.Duration) error {
			s := &batchSink[int]{failBatch: func(context.Context, []int, int) error {
				return &courier.BatchError{Failures: []courier.BatchFailure{{Index: 0, Err: record(asked / 2)}, {Index: 1, Err: record(asked)}, {Index: 2, Err: errTest}}}
			}}
			return asBatch(courier.NewCircuitBreakerApplier[int](s, b)).ApplyBatch(context.Background(), numbers(3))
		},
		"Report": func(b *courier.Breaker, asked time.Duration) error {
			permit, err := b.Acquire(context.Background())
			if err != nil {
				return err
			}
			return b.Report(context.Background(), permit, record(asked))
		},
	}
	for way, call := range ways {
		for _, asked := range []time.Duration{0, first - 1, first + 1, 15 * time.Second, time.Minute, time.Hour, time.Hour + 1, math.MaxInt64} {
			for _, random := range []float64{0, 0.5, math.Nextafter(1, 0)} {
				t.Run(fmt.Sprintf("%s/asks for %v/random %v", way, asked, random), func(t *testing.T) {
					courierttest.Bubble(t, func(t *testing.T) {
						var told courier.BreakerChange
						b := courier.NewBreaker(courier.BreakerPolicy{
							FailureThreshold: 1, OpenFor: first, MaxOpenFor: time.Minute, MaxRetryAfter: policy, Random: func() float64 { return random },
							OnStateChange: func(_ context.Context, change courier.BreakerChange) { told = change },
						})
						for _, own := range []time.Duration{first, 2 * first, 4 * first} { // of failed probes, the later two
							began := time.Now()
							var open *courier.OpenError
							require.ErrorAs(t, call(b, asked), &open)
							spread := time.Duration(float64(own) * (0.8 + 0.4*random))
							period := open.Until.Sub(began)
							require.InDelta(t, max(spread, min(asked, most)), period, 2)
							require.GreaterOrEqual(t, period, min(asked, most))
							for _, until := range []time.Time{open.RetryAt(), b.RetryAt(), b.Metrics().Until, told.Until} {
								require.Equal(t, open.Until, until)
							}
							time.Sleep(period - 1)
							require.False(t, b.Ready())
							time.Sleep(time.Nanosecond)
							require.True(t, b.Ready())
						}
					})
				})
			}
		}
	}
}

// So a coordinator leaves a destination alone for as long as it asks, whoever reads
// the source.
func TestRetryAfter_OfADestinationBehindABreaker(t *testing.T) {
	for _, stack := range []string{"breaker", "resilient", "fan-out"} {
		for shape, build := range askingShapes {
			t.Run(stack+"/"+shape, func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					const asked = 10 * time.Minute
					var at []time.Time
					a := courier.ProcessFunc(func(context.Context, int) error {
						at = append(at, time.Now())
						return courier.RetryAfter(errTest, asked)
					})
					policy := courier.BreakerPolicy{FailureThreshold: 2}
					resilient, _ := courier.ResilientApplier(a, &courier.ResilientConfig[int]{Breaker: policy})
					applier := map[string]courier.Applier[int]{
						"breaker":   courier.NewCircuitBreakerApplier(a, courier.NewBreaker(policy)),
						"resilient": resilient,
						"fan-out":   courier.NewFanOutApplier(resilient, &sink[int]{}),
					}[stack]
					stop := start(t, build(&asking{leasing: newLeasing(numbers(10)...)}, applier))
					time.Sleep(time.Hour)
					require.NoError(t, stop())
					require.GreaterOrEqual(t, len(at), 5)
					for i := 2; i < len(at); i++ { // the first two open it
						require.GreaterOrEqual(t, at[i].Sub(at[i-1]), asked)
						require.LessOrEqual(t, at[i].Sub(at[i-1]), asked+time.Second)
					}
				})
			})
		}
	}
}

// MaxRetryAfter caps what an error asks for, and not the policy's own delay; nor does
// what a coordinator obeys of other errors cap what the policy allows.
func TestRetryAfter_CapsNothingElse(t *testing.T) {
	for asked, want := range map[time.Duration][]time.Duration{
		0:                {10 * time.Second, 15 * time.Second, 15 * time.Second},
		11 * time.Second: {11 * time.Second, 15 * time.Second, 15 * time.Second},
		time.Hour:        {12 * time.Second, 15 * time.Second, 15 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			var delays []time.Duration
			_ = courier.NewRetryableApplier(always(courier.RetryAfter(errTest, asked)), courier.RetryPolicy{
				MaxAttempts: 4, InitialDelay: 10 * time.Second, MaxDelay: 15 * time.Second, Jitter: courier.NoJitter, MaxRetryAfter: 12 * time.Second,
				OnRetry: func(_ context.Context, e courier.RetryEvent) { delays = append(delays, e.Delay) },
			}).Apply(t.Context(), 1)
			require.Equal(t, want, delays)
		})
	}
	down := courier.BreakerPolicy{FailureThreshold: 1, OpenFor: 2 * time.Hour, DisableJitter: true}
	for name, test := range map[string]struct {
		applier func() courier.Applier[int]
		want    time.Duration
	}{
		"no retry": {func() courier.Applier[int] { return always(courier.RetryAfter(errTest, 40*time.Hour)) }, 24 * time.Hour},
		"a retry": {func() courier.Applier[int] {
			return courier.NewRetryableApplier(always(courier.RetryAfter(errTest, 40*time.Hour)), courier.RetryPolicy{MaxAttempts: 1, MaxRetryAfter: 48 * time.Hour})
		}, 40 * time.Hour},
		"later": {func() courier.Applier[int] { return always(courier.Later(errTest, 40*time.Hour)) }, 24 * time.Hour},
		"several": {func() courier.Applier[int] {
			return always(errors.Join(courier.Later(errTest, 2*time.Hour), courier.Later(errTest, time.Hour)))
		}, 2 * time.Hour},
		"keyed breaker": {func() courier.Applier[int] {
			return courier.NewKeyedCircuitBreakerApplier(always(errTest), func(int) string { return "host" }, down)
		}, 2 * time.Hour},
		"12 seconds": {func() courier.Applier[int] { return always(courier.Later(errTest, 12*time.Second)) }, 12 * time.Second}, // longer than it may wait in hand
	} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
				source.add(1)
				applier := test.applier()
				var came atomic.Bool
				began := time.Now()
				c := make(courier.ProcessFunc(func(ctx context.Context, r int) error {
					if came.Swap(true) { // the source hands out at once what it gets back
						return nil
					}
					return applier.Apply(ctx, r)
				}))
				stop := start(t, c)
				time.Sleep(time.Second)
				next := c.Stats().NextAttempt
				source.mu.Lock()
				got := slices.Clone(source.afters)
				source.mu.Unlock()
				require.NoError(t, stop())
				if !next.IsZero() { // it waits in hand, with what the breaker knows of it
					got = []time.Duration{next.Sub(began)}
				}
				require.NotEmpty(t, got)
				require.Equal(t, test.want, got[0])
			})
		})
	}
}

// D3: the time that one record's error asks for is that record's.
func TestD3_Stream_ARecordsRetryAfterHoldsBackNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newLeasing(0, 1)
		source.wait = true
		s := &sink[int]{fail: func(_ context.Context, r, call int) error {
			switch {
			case call > 2:
				return nil
			case r == 0:
				return courier.RetryAfter(errTest, time.Hour)
			}
			return errTest
		}}
		stop := start(t, courier.NewStreamingCoordinator(source, s, quiet))
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		for i, records := range source.released {
			if slices.Contains(records, 1) {
				require.LessOrEqual(t, source.afters[i], time.Minute, "released %v after %v", source.released, source.afters)
			}
		}
	})
}
