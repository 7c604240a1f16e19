package courier_test

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// elapsed returns how long a coordinator took to settle all of a source.
func elapsed(t *testing.T, source interface{ left() []int }, c *courier.PollingCoordinator[int]) time.Duration {
	t.Helper()
	began := time.Now()
	stop := start(t, c)
	synctest.Wait()
	for len(source.left()) > 0 {
		time.Sleep(time.Second)
		synctest.Wait()
	}
	took := time.Since(began)
	require.NoError(t, stop())
	return took
}

func TestPace_AFullBatchIsFollowedByTheNextAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf(numbers(1000)...)
		require.Zero(t, elapsed(t, source, courier.NewPollingCoordinator(source, &sink[int]{}, quiet)))
	})
}

func TestPace_AFixedIntervalIsFixed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf(numbers(1000)...)
		c := courier.NewPollingCoordinator(source, &sink[int]{}, quiet, courier.WithFixedInterval(), courier.WithInterval(7*time.Second))
		require.Equal(t, 9*7*time.Second, elapsed(t, source, c))
	})
}

// A query with a LIMIT below the batch size is not one batch a tick.
func TestPace_AFetchFunctionWithALimitOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf(numbers(1000)...)
		c := courier.Sync(func(ctx context.Context) ([]int, error) { return source.Fetch(ctx, 50) }, nop[int], source.Mark, quiet)
		require.Zero(t, elapsed(t, source, c))
	})
}

// paged is a leasing source whose fetches end after so many records, whatever their
// limit.
type paged struct {
	*leasing[int]
	page int
	mute bool // it does not say that there is more
	more bool
}

func (p *paged) Fetch(ctx context.Context, limit int) ([]int, error) {
	records, err := p.leasing.Fetch(ctx, min(limit, p.page))
	p.more = len(records) == p.page
	return records, err
}

func (p *paged) More() bool { return p.more && !p.mute }

// A fetch that ends before its limit though there is more, as one with a bound in
// bytes, is followed as one that reaches the limit is.
func TestPager_AFetchThatLeavesSomethingIsFollowedAtOnce(t *testing.T) {
	const interval = 7 * time.Second
	for name, test := range map[string]struct {
		mute bool
		want time.Duration
		opts []courier.Option
	}{
		"plain":          {},
		"prefetch":       {opts: []courier.Option{courier.WithPrefetch(3)}},
		"workers":        {opts: []courier.Option{courier.WithWorkers(4)}},
		"key":            {opts: []courier.Option{courier.WithOrderKey(strconv.Itoa)}},
		"fixed interval": {opts: []courier.Option{courier.WithFixedInterval()}, want: 2 * interval},
		"says nothing":   {mute: true, want: 2 * interval},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &paged{leasing: newLeasing(numbers(30)...), page: 10, mute: test.mute}
				opts := append([]courier.Option{quiet, unspread, courier.WithInterval(interval)}, test.opts...)
				require.Equal(t, test.want, elapsed(t, source, courier.NewPollingCoordinator(source, &sink[int]{}, opts...)))
			})
		})
	}
}

// That there is more is no reason to fetch at once where nothing can be marked, and a
// More that panics is a fetch that failed.
func TestPager_NoBusyLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &paged{leasing: newLeasing(numbers(30)...), page: 10}
		s := &sink[int]{fail: func(context.Context, int, int) error { return errTest }}
		stop := start(t, courier.NewPollingCoordinator(source, s, quiet, unspread))
		time.Sleep(time.Minute - time.Nanosecond)
		require.NoError(t, stop())
		require.LessOrEqual(t, source.fetchCount(), 12)
	})
	for _, prefetch := range []int{0, 2} {
		synctest.Test(t, func(t *testing.T) {
			source := &panickyPager{paged{leasing: newLeasing(numbers(30)...), page: 10}}
			c := courier.NewPollingCoordinator(source, &sink[int]{}, quiet, unspread, courier.WithPrefetch(prefetch))
			stop := start(t, c)
			time.Sleep(time.Minute)
			require.ErrorContains(t, c.Ready(), "boom")
			require.NoError(t, stop())
			require.Less(t, source.fetchCount(), 30) // failed ones, up to 5 s apart
		})
	}
}

type panickyPager struct{ paged }

func (p *panickyPager) More() bool { panic("boom") }

func TestPace_ACaughtUpSourceIsAskedOnceAnInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf(1, 2, 3)
		stop := start(t, courier.NewPollingCoordinator(source, &sink[int]{}, quiet, unspread))
		time.Sleep(time.Minute - time.Nanosecond)
		require.NoError(t, stop())
		require.Equal(t, 12, source.fetchCount(), "every 5 seconds")
	})
}

func TestPace_WhatCannotBeMarkedIsNotTriedInALoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf(numbers(200)...)
		s := &sink[int]{fail: func(context.Context, int, int) error { return errTest }}
		stop := start(t, courier.NewPollingCoordinator(source, s, quiet, unspread))
		time.Sleep(time.Minute - time.Nanosecond)
		require.NoError(t, stop())
		require.Equal(t, 12, source.fetchCount())
	})
}

func TestPace_FetchErrorsBackOffToACap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf(1)
		failing := true
		source.fetchErr = func(int) error {
			if failing {
				return errTest
			}
			return nil
		}
		stop := start(t, courier.NewPollingCoordinator(source, &sink[int]{}, quiet, courier.WithRandom(func() float64 { return 0 })))
		time.Sleep(100 * time.Millisecond)
		require.LessOrEqual(t, source.fetchCount(), 3)
		time.Sleep(time.Hour)
		// The longest delay is 5 s, of which the jitter leaves half.
		require.InDelta(t, 1440, source.fetchCount(), 10)
		synctest.Wait()
		source.mu.Lock()
		failing = false
		source.mu.Unlock()
		time.Sleep(15 * time.Second)
		require.Empty(t, source.left())
		require.NoError(t, stop())
	})
}

// The longest durations are waited out as any other.
func TestPace_TheLongestIntervalIsNoLoop(t *testing.T) {
	for _, interval := range []time.Duration{math.MaxInt64, math.MaxInt64 - 1, math.MaxInt64 / 11 * 10} {
		for _, random := range []float64{0, 0.5, 0.999, math.Nextafter(1, 0)} {
			synctest.Test(t, func(t *testing.T) {
				source := newShelf[int]()
				c := courier.NewPollingCoordinator(source, &sink[int]{}, quiet, courier.WithInterval(interval), courier.WithRandom(func() float64 { return random }))
				stop := start(t, c)
				time.Sleep(1000 * time.Hour)
				require.Equal(t, 1, source.fetchCount())
				c.Wake()
				synctest.Wait()
				require.Equal(t, 2, source.fetchCount())
				require.NoError(t, stop())
			})
		}
	}
}

// The shortest interval is no shorter than the clock can tell, and a loop that lets
// nobody else go on.
func TestPace_TheShortestIntervalPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf[int]()
		stop := start(t, courier.NewPollingCoordinator(source, &sink[int]{}, quiet, courier.WithInterval(1), courier.WithRandom(func() float64 { return 0 })))
		time.Sleep(100 * time.Nanosecond)
		require.NoError(t, stop())
		require.InDelta(t, 100, source.fetchCount(), 1)
	})
}

// A source that takes nothing back returns a failed record with the next fetch,
// and its key is held no longer than that.
func TestPace_AFailedKeyComesWithTheNextFetch(t *testing.T) { // D4
	for source, of := range map[string]func(s *shelf[int]) courier.Source[int]{
		"plain":  func(s *shelf[int]) courier.Source[int] { return s },
		"Failer": func(s *shelf[int]) courier.Source[int] { return told{s} },
		"functions": func(s *shelf[int]) courier.Source[int] {
			return courier.BatchSourceFunc[int]{FetchFunc: func(ctx context.Context) ([]int, error) { return s.Fetch(ctx, 100) }, MarkFunc: s.Mark}
		},
	} {
		for _, random := range []float64{0, 0.4, 0.6, math.Nextafter(1, 0), -1} { // -1 is a wake-up
			t.Run(fmt.Sprintf("%s/random %v", source, random), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					began := time.Now()
					var at []time.Duration
					want := time.Duration(float64(5*time.Second) * (0.9 + 0.2*random))
					opts := []courier.Option{quiet, courier.WithOrderKey(func(int) string { return "k" }), courier.WithRandom(func() float64 { return max(0, random) })}
					var order []int
					c := courier.NewPollingCoordinator(of(newShelf(1, 2)), courier.ProcessFunc(func(_ context.Context, r int) error {
						if r == 1 {
							if at = append(at, time.Since(began)); len(at) == 1 {
								return errTest
							}
						}
						order = append(order, r)
						return nil
					}), opts...)
					stop := start(t, c)
					if random < 0 {
						want = time.Second
						time.Sleep(want)
						c.Wake()
					}
					time.Sleep(time.Minute)
					require.NoError(t, stop())
					require.Len(t, at, 2)
					require.InDelta(t, want, at[1], 1)
					require.Equal(t, []int{1, 2}, order)
				})
			})
		}
	}
}

// told hears of failed records, and takes none back.
type told struct{ *shelf[int] }

func (told) Fail(context.Context, []courier.FailedRecord[int]) error { return nil }
