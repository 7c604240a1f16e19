package courier_test

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// A failed record is tried again after about the interval, and no sooner than its
// error asks for, however much else there is to fetch meanwhile.
func TestPace_OfAFailedRecord(t *testing.T) {
	type shape struct {
		backlog, keyed, leasing, limitless bool
	}
	for _, after := range []time.Duration{0, time.Second, time.Minute} {
		for _, s := range []shape{{}, {backlog: true}, {keyed: true}, {backlog: true, keyed: true}, {leasing: true}, {backlog: true, limitless: true}, {leasing: true, keyed: true}} {
			t.Run(fmt.Sprintf("after %v, %+v", after, s), func(t *testing.T) {
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
			t.Run(fmt.Sprintf("%s, leasing %v", name, leasing), func(t *testing.T) {
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
