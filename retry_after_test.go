package courier_test

// RetryAfter is obeyed wherever it is returned: the next try is no sooner than was
// asked, up to a cap, and not much later.

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"
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
				t.Run(fmt.Sprintf("%s/%s/%v", name, shape, asked), func(t *testing.T) {
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
