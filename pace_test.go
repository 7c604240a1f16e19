package courier_test

// When a coordinator fetches again, and when it tries a record again.

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
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

// A failed record is tried again after about the interval, and no sooner than its
// error asks for, however much else there is to fetch meanwhile.
func TestPace_OfAFailedRecord(t *testing.T) {
	type shape struct {
		backlog, keyed, leasing, limitless bool
	}
	for _, after := range []time.Duration{0, time.Second, time.Minute} {
		for name, s := range map[string]shape{
			"plain": {}, "backlog": {backlog: true}, "keyed": {keyed: true}, "keyed backlog": {backlog: true, keyed: true},
			"leasing": {leasing: true}, "limitless backlog": {backlog: true, limitless: true}, "keyed leasing": {leasing: true, keyed: true},
		} {
			t.Run(fmt.Sprintf("after %v, %s", after, name), func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					var r courierttest.Recorder[int]
					table := newShelf(0)
					var source courier.Source[int] = table
					if s.leasing {
						source = r.LeasingSource(time.Hour, 0)
					}
					busy := &backlog{}
					if s.backlog {
						source = busy
					}
					if s.limitless && s.backlog {
						source = courier.BatchSourceFunc[int]{FetchFunc: func(ctx context.Context) ([]int, error) { return busy.Fetch(ctx, 100) }, MarkFunc: busy.Mark}
					}
					began := time.Now()
					var at []time.Duration
					a := courier.ProcessFunc(func(_ context.Context, n int) error {
						if n == 0 {
							at = append(at, time.Since(began))
							return courier.RetryAfter(errTest, after)
						}
						time.Sleep(time.Millisecond)
						return nil
					})
					opts := []courier.Option{quiet, courier.WithWorkers(1)}
					if s.keyed {
						opts = append(opts, courier.WithOrderKey(strconv.Itoa))
					}
					run := courierttest.Start(t, courier.NewPollingCoordinator(source, a, opts...))
					time.Sleep(95 * time.Second)
					require.NoError(t, run.Stop())
					least, most := max(after, 4500*time.Millisecond), max(after, 5*time.Second)+5600*time.Millisecond
					require.Greater(t, len(at), 1)
					for i := 1; i < len(at); i++ {
						gap := at[i] - at[i-1]
						require.True(t, least <= gap && gap <= most, "%v after the last attempt, want from %v to %v", gap, least, most)
					}
					if s.backlog {
						require.Greater(t, busy.done, 80_000, "the others are not held up")
					}
				})
			})
		}
	}
}

// Wake ends the wait of a record, unless its error asked for that.
func TestPace_Wake(t *testing.T) {
	for _, after := range []time.Duration{0, time.Hour} {
		courierttest.Bubble(t, func(t *testing.T) {
			calls := 0
			c := courier.NewPollingCoordinator(newShelf(1), courier.ProcessFunc(func(context.Context, int) error {
				calls++
				return courier.RetryAfter(errTest, after)
			}), quiet)
			run := courierttest.Start(t, c)
			for range 3 {
				time.Sleep(time.Second)
				c.Wake()
			}
			time.Sleep(time.Millisecond)
			require.NoError(t, run.Stop())
			require.Equal(t, map[bool]int{true: 4, false: 1}[after == 0], calls)
		})
	}
}

// Of a record that cannot be known again the whole next fetch waits for what its
// error asks for, a minute at the most.
func TestPace_OfARecordThatCannotBeKnownAgain(t *testing.T) {
	for after, want := range map[time.Duration]time.Duration{30 * time.Second: 30 * time.Second, time.Hour: time.Minute} {
		courierttest.Bubble(t, func(t *testing.T) {
			table := &rows[*row]{read: func(id int) *row { return &row{ID: id} }, id: func(r *row) int { return r.ID }}
			table.add(0, 1, 2)
			began := time.Now()
			var at []time.Duration
			c := courier.NewPollingCoordinator[*row](table, courier.ProcessFunc(func(_ context.Context, r *row) error {
				r.Status = "tried"
				if r.ID == 0 {
					at = append(at, time.Since(began))
					return courier.RetryAfter(errTest, after)
				}
				return nil
			}), quiet)
			run := courierttest.Start(t, c)
			time.Sleep(100 * time.Second)
			require.NoError(t, run.Stop())
			require.Equal(t, []int{0}, table.left())
			require.Equal(t, []time.Duration{0, want}, at[:2])
		})
	}
}

// A value that does not equal itself is none to know a record by: the records that have
// one take up no room among those that are known again, and the others keep theirs.
func TestPace_OfRecordsThatDoNotEqualThemselves(t *testing.T) {
	type measure struct {
		id   int
		read [1]struct{ v float64 }
	}
	nan := [1]struct{ v float64 }{{math.NaN()}}
	for name, opt := range map[string]courier.Option{"by value": quiet, "by name": courier.WithIdentity(func(m measure) string { return fmt.Sprint(m.id) })} {
		t.Run(name, func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				fetched, calls := 0, 0
				c := courier.Sync(func(context.Context) (list []measure, _ error) {
					if fetched == 12_000 {
						return []measure{{id: -1}}, nil
					}
					for range 1000 {
						fetched++
						list = append(list, measure{fetched, nan})
					}
					return list, nil
				}, func(_ context.Context, m measure) error {
					if m.id > 0 {
						return errTest
					}
					calls++
					return courier.RetryAfter(errTest, time.Hour)
				}, func(context.Context, []measure) error { return nil }, quiet, opt, courier.WithInterval(time.Second))
				run := courierttest.Start(t, c)
				time.Sleep(50 * time.Minute)
				require.NoError(t, run.Stop())
				require.Equal(t, 12_000, fetched)
				require.Equal(t, 1, calls, "it asked for an hour")
			})
		})
	}
}

// backlog is a table whose first row stays, and that has no end.
type backlog struct{ done int }

func (b *backlog) Fetch(_ context.Context, limit int) ([]int, error) {
	records := []int{0}
	for n := 1; n < limit; n++ {
		records = append(records, b.done+n)
	}
	return records, nil
}

func (b *backlog) Mark(_ context.Context, done []int) error {
	b.done += len(done)
	return nil
}

// D3, P-3: of a source that takes nothing back, the records that wait for their time
// hide none of the others from the probe of a breaker.
func TestPace_RecordsThatWaitHideNoProbe(t *testing.T) {
	for name, asked := range map[string]time.Duration{"the interval": 0, "as asked": time.Hour} {
		for _, waiting := range []int{1, 5} {
			t.Run(fmt.Sprintf("%d wait for %s", waiting, name), func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					source := newShelf(numbers(waiting + 2)...)
					s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
						switch {
						case r < waiting:
							return courier.Permanent(courier.RetryAfter(errTest, asked))
						case r == waiting:
							return errTest
						}
						return nil
					}}
					a := courier.NewRetryableApplier(courier.WithCircuitBreaker[int](s), courier.RetryPolicy{MaxRetryAfter: time.Hour})
					run := courierttest.Start(t, courier.NewPollingCoordinator(source, a, quiet, courier.WithInterval(time.Hour)))
					time.Sleep(20 * time.Minute)
					require.Equal(t, []int{waiting + 1}, s.got())
					require.NoError(t, run.Stop())
				})
			})
		}
	}
}

// A record that asks for a time is not tried before, also where it cannot be known
// again, and where a breaker halts the pass in which it asked.
func TestPace_OfAnUnknownRecordBesideAnOpenBreaker(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		rows := []*row{{ID: 0}, {ID: 1}}
		began := time.Now()
		var at []time.Duration
		a := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(_ context.Context, r *row) error {
			if r.ID == 0 {
				at = append(at, time.Since(began))
				return courier.Permanent(courier.RetryAfter(errTest, 50*time.Second))
			}
			return errTest
		}), courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1}))
		fetch := func(context.Context) ([]*row, error) { return rows, nil }
		source := courier.BatchSourceFunc[*row]{FetchFunc: fetch, MarkFunc: nop[[]*row]}
		run := courierttest.Start(t, courier.NewPollingCoordinator[*row](source, a, quiet))
		time.Sleep(5 * time.Minute)
		require.NoError(t, run.Stop())
		require.Greater(t, len(at), 1)
		for i := 1; i < len(at); i++ {
			require.GreaterOrEqual(t, at[i]-at[i-1], 50*time.Second)
		}
	})
}

// A record that is refused, and not attempted, holds up no other.
func TestPace_ARefusedRecordSlowsNoOther(t *testing.T) {
	refusals := map[string]func(a courier.Applier[int]) courier.Applier[int]{
		"a foreign configuration": func(a courier.Applier[int]) courier.Applier[int] { return a },
		"no time to retry": func(a courier.Applier[int]) courier.Applier[int] {
			return courier.NewRetryableApplier(a, courier.RetryPolicy{InitialDelay: time.Second, Jitter: courier.NoJitter, MaxElapsed: time.Millisecond})
		},
	}
	for name, stack := range refusals {
		for _, leasing := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, %s", name, choose(leasing, "leasing", "not leasing")), func(t *testing.T) {
				courierttest.Bubble(t, func(t *testing.T) {
					var r courierttest.Recorder[int]
					calls := 0
					a := stack(courier.ProcessFunc(func(_ context.Context, n int) error {
						switch {
						case n > 0:
							return nil
						case name == "no time to retry":
							calls++
							return errTest
						}
						calls++
						return &courier.ConfigError{Field: "x", Problem: "is of a pipeline of its own"}
					}))
					polled, leased := newShelf(numbers(20000)...), r.LeasingSource(time.Hour, numbers(20000)...)
					c := courier.NewPollingCoordinator(polled, a, quiet)
					if leasing {
						c = courier.NewPollingCoordinator[int](leased, a, quiet)
					}
					run := courierttest.Start(t, c)
					time.Sleep(5 * time.Minute)
					require.NoError(t, run.Stop())
					left := polled.left()
					if leasing {
						left = leased.Pending()
					}
					require.Equal(t, []int{0}, left)
					require.LessOrEqual(t, calls, 100)
				})
			})
		}
	}
}

// A record is not tried before the time that its error asks for, also where its
// retries end because the deadline of the run is nearer than that.
func TestPace_AsAskedThoughTheRunEndsBefore(t *testing.T) {
	for _, shape := range []string{"polling", "leasing", "streaming"} {
		t.Run(shape, func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				calls := 0
				a := courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error {
					calls++
					return courier.RetryAfter(errTest, time.Hour)
				}), courier.RetryPolicy{MaxRetryAfter: 2 * time.Hour})
				var r courierttest.Recorder[int]
				c := map[string]courierttest.Starter{
					"polling":   courier.NewPollingCoordinator[int](r.Source(0), a, quiet),
					"leasing":   courier.NewPollingCoordinator[int](r.LeasingSource(2*time.Hour, 0), a, quiet),
					"streaming": courier.NewStreamingCoordinator[int](r.StreamSource(0), a, quiet),
				}[shape]
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
				defer cancel()
				_ = c.Start(ctx)
				require.Equal(t, 1, calls)
			})
		})
	}
}

// Of two records that cannot be known again the longer wait counts.
func TestPace_TheLongestWaitOfUnknownRecordsCounts(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		type rec struct{ after time.Duration }
		records := []*rec{{50 * time.Second}, {5 * time.Second}}
		source := fetchedPointers[rec]{func(int) []*rec { return records }, func([]*rec) {}}
		var calls []time.Time
		run := start(t, courier.NewPollingCoordinator[*rec](source, courier.ProcessFunc(func(_ context.Context, r *rec) error {
			if r == records[0] {
				calls = append(calls, time.Now())
			}
			return courier.RetryAfter(errTest, r.after)
		}), quiet, courier.WithInterval(time.Second)))
		time.Sleep(2 * time.Minute)
		require.NoError(t, run())
		require.GreaterOrEqual(t, len(calls), 2)
		require.GreaterOrEqual(t, calls[1].Sub(calls[0]), 50*time.Second)
	})
}

// Failed records that go back to the source come again before all others. Those that
// take long to fail leave the workers some time for the others all the same.
func TestPace_SlowFailuresLeaveTimeForTheOthers(t *testing.T) { // D3
	const bad, good = 12, 20
	for _, shape := range []string{"polling", "streaming"} {
		t.Run(shape, func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				shop := courier.ProcessFunc(func(_ context.Context, r int) error {
					time.Sleep(time.Second)
					if r < bad {
						return errTest
					}
					return nil
				})
				var records courierttest.Recorder[int]
				var source *courierttest.LeasingSource[int]
				var c courierttest.Starter
				if shape == "polling" {
					source = records.LeasingSource(time.Hour, numbers(bad+good)...)
					c = courier.NewPollingCoordinator[int](source, shop, quiet, courier.WithBatchSize(bad))
				} else {
					source = records.StreamSource(numbers(bad + good)...)
					c = courier.NewStreamingCoordinator[int](source, shop, quiet, courier.WithBatchSize(2))
				}
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
				defer cancel()
				_ = c.Start(ctx)
				require.Len(t, source.Pending(), bad)
			})
		})
	}
}

// outOfOrder is a queue that takes nothing for a while.
type outOfOrder struct {
	courier.DLQ[int]
	down atomic.Bool
}

func (q *outOfOrder) Send(ctx context.Context, letter courier.DeadLetter[int]) error {
	if q.down.Load() {
		return errTest
	}
	return q.DLQ.Send(ctx, letter)
}

// However many records a queue has refused, together or one after another, the stream's
// pause grows with the time that the queue was away, and not with their number. A fetch
// that waits as the queue returns would hide it: here records come all the time.
func TestPace_RefusalsOfMany(t *testing.T) {
	for _, down := range few(time.Second, time.Minute, 10*time.Second) {
		for _, every := range few(10*time.Millisecond, 100*time.Millisecond, time.Second) {
			for _, keyed := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v, one each %v, %s", down, every, choose(keyed, "keyed", "no key")), func(t *testing.T) {
					courierttest.Bubble(t, func(t *testing.T) {
						var r courierttest.Recorder[int]
						source := r.StreamSource()
						queue := &outOfOrder{DLQ: &courier.MemoryDLQ[int]{Capacity: 100000}}
						queue.down.Store(true)
						a := courier.NewDLQApplier(courier.ProcessFunc(func(_ context.Context, i int) error {
							if i > 0 {
								return courier.Permanent(errors.New("poison"))
							}
							return nil
						}), courier.DLQ[int](queue), courier.DLQPolicy[int]{MaxParkRate: courier.AnyParkRate})
						opts := []courier.Option{quiet, courier.WithBatchSize(10000)}
						if keyed {
							opts = append(opts, courier.WithOrderKey(func(i int) string { return fmt.Sprint(i) }))
						}
						run := courierttest.Start(t, courier.NewStreamingCoordinator[int](source, a, opts...))
						for i, began := 1, time.Now(); time.Since(began) < down; i++ {
							source.Add(i)
							time.Sleep(every)
						}
						queue.down.Store(false)
						source.Add(0)
						time.Sleep(min(2*down, 30*time.Second) + time.Second)
						require.False(t, slices.Contains(source.Pending(), 0))
						require.NoError(t, run.Stop())
					})
				})
			}
		}
	}
}

// While a queue refuses records from time to time, those between them are settled as ever.
func TestPace_RefusedRecordsSlowNoOther(t *testing.T) {
	for _, shape := range []string{"polling", "streaming"} {
		t.Run(shape, func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				var r courierttest.Recorder[int]
				queue := &outOfOrder{DLQ: &courier.MemoryDLQ[int]{Capacity: 100}}
				queue.down.Store(true)
				a := courier.NewDLQApplier(courier.ProcessFunc(func(_ context.Context, i int) error {
					if i%5 == 0 {
						return courier.Permanent(errors.New("poison"))
					}
					return nil
				}), courier.DLQ[int](queue), courier.DLQPolicy[int]{MaxParkRate: courier.AnyParkRate})
				source := r.LeasingSource(time.Hour)
				var c courierttest.Starter = courier.NewPollingCoordinator[int](source, a, quiet)
				if shape == "streaming" {
					source = r.StreamSource()
					c = courier.NewStreamingCoordinator[int](source, a, quiet)
				}
				run := courierttest.Start(t, c)
				for i := 1; i < 300; i++ {
					source.Add(i)
					time.Sleep(5 * time.Second)
					late := slices.DeleteFunc(slices.Clone(source.Pending()), func(n int) bool { return n%5 == 0 })
					require.Empty(t, late)
				}
				require.NoError(t, run.Stop())
			})
		})
	}
}

// The pause of a coordinator that can settle nothing grows from refusal to refusal, by the
// time and not by the number of the records refused meanwhile, and begins anew once one
// was settled.
func TestPace_OfRefusals(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		noted := &noted{source: source, nth: map[string]int{}, tries: map[int]int{}, state: map[int]string{}}
		noted.fetch = source.Fetch
		var down atomic.Bool
		noted.work = func(_ context.Context, r int) error {
			time.Sleep(time.Duration(r%10) * 10 * time.Millisecond)
			if down.Load() {
				return errRefused
			}
			return nil
		}
		opts := []courier.Option{quiet, unspread, courier.WithBatchSize(3)}
		var c running
		if source.wait {
			c = courier.NewStreamingCoordinator[int](notedLease{noted}, noted, append(opts, courier.WithStreamWorkers(3), courier.WithPrefetch(0))...)
		} else {
			c = courier.NewPollingCoordinator[int](notedLease{noted}, noted, append(opts, courier.WithWorkers(3))...)
		}
		// pauses are between the first refusal of a batch, or the last where the batch is
		// settled as one, and the next fetch.
		pauses := func() (list []time.Duration) {
			var refused time.Time
			fetched := noted.of("fetch", "apply", "release")
			slices.SortStableFunc(fetched, func(a, b notedCall) int { return a.began.Compare(b.began) })
			for _, f := range fetched {
				switch {
				case f.what == "apply" && f.err != nil && (refused.IsZero() || !source.wait && f.ended.After(refused)), f.what == "release" && !source.wait:
					refused = f.ended
				case f.what == "fetch" && !refused.IsZero():
					list = append(list, f.began.Sub(refused))
					refused = time.Time{}
				}
			}
			return list
		}
		stop := start(t, c)
		for round := range 2 {
			down.Store(true)
			source.add(10*round+1, 10*round+2, 10*round+3)
			time.Sleep(2 * time.Second)
			down.Store(false)
			time.Sleep(time.Hour)
			require.Empty(t, source.left())
			got := pauses()
			require.GreaterOrEqual(t, len(got), 3)
			require.Equal(t, []time.Duration{paceOf(1), paceOf(2), paceOf(3)}, got[:3])
			noted.mu.Lock()
			noted.calls = nil
			noted.mu.Unlock()
		}
		require.NoError(t, stop())
	})
}

// A full batch of which some are to be retried is followed by the next at once. If nothing
// of it was marked by the time that all have failed for good, the source has the interval.
func TestPace_AFullBatchThatFailsForGoodWaitsForTheInterval(t *testing.T) {
	for name, workers := range map[string]int{"one worker": 1, "two workers": 2} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fetches := 0
				fetch := func(context.Context) (records []*int, _ error) {
					fetches++
					for i := range 5 {
						records = append(records, &i)
					}
					return records, nil
				}
				fail := func(context.Context, *int) error { return errTest }
				applier := courier.NewRetryableApplier(courier.ProcessFunc(fail), courier.RetryPolicy{MaxAttempts: 2, InitialDelay: 10 * time.Millisecond})
				source := courier.BatchSourceFunc[*int]{FetchFunc: fetch, MarkFunc: func(context.Context, []*int) error { return nil }}
				stop := start(t, courier.NewPollingCoordinator[*int](source, applier, quiet, unspread,
					courier.WithBatchSize(5), courier.WithWorkers(workers), courier.WithInterval(time.Second)))
				time.Sleep(20*time.Second + time.Millisecond)
				require.NoError(t, stop())
				require.LessOrEqual(t, fetches, 21)
				require.Greater(t, fetches, 15)
			})
		})
	}
}
