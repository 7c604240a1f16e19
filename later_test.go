package courier_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// busy is a destination that takes some records from a time on only.
type busy struct {
	mu      sync.Mutex
	began   time.Time
	records map[int]bool
	until   time.Duration
	calls   map[int][]time.Duration
}

func newBusy(until time.Duration, records ...int) *busy {
	b := &busy{began: time.Now(), until: until, records: map[int]bool{}, calls: map[int][]time.Duration{}}
	for _, r := range records {
		b.records[r] = true
	}
	return b
}

func (b *busy) Apply(_ context.Context, r int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Since(b.began)
	b.calls[r] = append(b.calls[r], now)
	if left := b.until - now; b.records[r] && left > 0 {
		return courier.Later(errTest, left)
	}
	return nil
}

func (b *busy) called(r int) []time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.calls[r])
}

// A record that asks for another time is applied then, with the others gone on
// meanwhile, and none of it is held against the record or the destination.
func TestLater_TheRecordWaitsAndTheOthersGoOn(t *testing.T) {
	for _, workers := range []int{1, 3} {
		for _, together := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d workers, %s", workers, batched(together)), func(t *testing.T) {
				both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
					destination := newBusy(5*time.Second, 1)
					var applier courier.Applier[int] = destination
					if together {
						applier = eachOfBatch[int]{destination}
					}
					breaker := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1})
					stack := courier.NewRetryableApplier(courier.NewCircuitBreakerApplier(applier, breaker), courier.RetryPolicy{MaxAttempts: 1})
					applier, queue := courier.WithDLQ(stack)
					source.add(numbers(5)...)
					option := courier.WithWorkers(workers)
					if source.wait {
						option = courier.WithStreamWorkers(workers)
					}
					c := make(applier, unspread, option)
					stop := start(t, c)
					time.Sleep(2 * time.Second)
					synctest.Wait()
					require.Equal(t, []int{1}, source.left(), "the others are marked")
					source.add(5)
					time.Sleep(5 * time.Second)
					require.NoError(t, stop())
					require.Empty(t, source.left())
					require.Len(t, destination.called(1), 2)
					require.Equal(t, 5*time.Second, destination.called(1)[1])
					require.Equal(t, courier.BreakerClosed, breaker.State())
					letters, err := queue.Receive(t.Context(), 1)
					require.NoError(t, err)
					require.Empty(t, letters)
				})
			})
		}
	}
}

func TestLater_StatsTellHowManyWaitAndUntilWhen(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		source.add(numbers(4)...)
		began := time.Now()
		c := make(newBusy(5*time.Second, 1, 2), unspread)
		stop := start(t, c)
		time.Sleep(time.Second)
		stats := c.(interface{ Stats() courier.Stats }).Stats()
		require.Equal(t, 2, stats.Waiting)
		require.EqualValues(t, 2, stats.InHand)
		require.Equal(t, 5*time.Second, stats.NextAttempt.Sub(began))
		require.Zero(t, stats.Failed)
		time.Sleep(9 * time.Second)
		stats = c.(interface{ Stats() courier.Stats }).Stats()
		require.Zero(t, stats.Waiting)
		require.Zero(t, stats.NextAttempt)
		require.NoError(t, stop())
	})
}

// With an order key the later records of the key wait with it, and no other.
func TestLater_KeepsTheOrderOfItsKey(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		destination := newBusy(5*time.Second, 1)
		source.add(numbers(6)...)
		stop := start(t, make(destination, unspread, courier.WithOrderKey(func(r int) string { return string(rune('a' + r%2)) })))
		time.Sleep(2 * time.Second)
		require.Equal(t, []int{1, 3, 5}, source.left())
		require.Empty(t, destination.called(3))
		time.Sleep(8 * time.Second)
		require.NoError(t, stop())
		require.Empty(t, source.left())
		require.LessOrEqual(t, destination.called(1)[1], destination.called(3)[0])
		require.LessOrEqual(t, destination.called(3)[0], destination.called(5)[0])
	})
}

// A stop gives the record back for the rest of its time.
func TestLater_AStopGivesTheRecordBack(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		source.add(numbers(2)...)
		stop := start(t, make(newBusy(8*time.Second, 1), unspread))
		time.Sleep(3 * time.Second)
		require.NoError(t, stop())
		require.Equal(t, []int{1}, source.left())
		require.Equal(t, [][]int{{1}}, source.released)
		require.Equal(t, []time.Duration{5 * time.Second}, source.afters)
	})
}

// With an order key a stop gives the record back at once, and with it the later ones of its
// key, which could go first while the source keeps the time.
func TestLater_AStopKeepsTheOrderOfItsKey(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		source.add(numbers(3)...)
		stop := start(t, make(newBusy(8*time.Second, 1), unspread, courier.WithOrderKey(func(r int) string { return string(rune('a' + min(r, 1))) })))
		time.Sleep(3 * time.Second)
		require.NoError(t, stop())
		require.Equal(t, [][]int{{1, 2}}, source.released)
		require.Equal(t, []time.Duration{0}, source.afters)
	})
}

// A run gives a record that asks for more than its drain timeout back for that time, and at
// once where there is an order.
func TestLater_RunOnceLeavesTheTimeToTheSource(t *testing.T) {
	for _, keyed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			source := newLeasing(numbers(2)...)
			opts, after := []courier.Option{quiet, unspread}, time.Minute
			if keyed {
				opts, after = append(opts, courier.WithOrderKey(func(int) string { return "a" })), 0
			}
			c := courier.NewPollingCoordinator[int](source, newBusy(time.Minute, 1), opts...)
			require.ErrorIs(t, c.RunOnce(t.Context()), errTest)
			require.Equal(t, [][]int{{1}}, source.released)
			require.Equal(t, []time.Duration{after}, source.afters)
		})
	}
}

// What waits for longer than a lease that is not renewed may last goes back at once.
func TestLater_ALongWaitIsTheSourcesToKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r courierttest.Recorder[int]
		destination := newBusy(time.Hour, 1)
		source := r.LeasingSource(time.Minute, numbers(2)...)
		c := courier.NewPollingCoordinator(courier.Source[int](struct {
			courier.Source[int]
			courier.Releaser[int]
		}{source, source}), courier.Applier[int](destination), quiet, unspread)
		stop := start(t, c)
		time.Sleep(3 * time.Second)
		require.EqualValues(t, 1, c.Stats().Released)
		require.Zero(t, c.Stats().InHand)
		time.Sleep(2 * time.Hour)
		require.NoError(t, stop())
		require.Len(t, destination.called(1), 2)
		require.GreaterOrEqual(t, destination.called(1)[1], time.Hour)
		require.EqualValues(t, 2, c.Stats().Marked)
	})
}

// A record that waited in hand and then goes back takes the later ones of its key along,
// which waited with it.
func TestLater_ALongWaitTakesTheLaterRecordsOfItsKeyAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r courierttest.Recorder[int]
		began := time.Now()
		var order []int
		applier := courier.ProcessFunc(func(_ context.Context, n int) error {
			switch now := time.Since(began); {
			case n == 0 && now < 5*time.Second:
				return courier.Later(errTest, 5*time.Second-now)
			case n == 0 && now < time.Hour:
				return courier.Later(errTest, time.Hour-now)
			}
			order = append(order, n)
			return nil
		})
		source := r.LeasingSource(2*time.Hour, numbers(4)...)
		c := courier.NewPollingCoordinator(courier.Source[int](struct {
			courier.Source[int]
			courier.Releaser[int]
		}{source, source}), applier, quiet, unspread, courier.WithOrderKey(func(n int) string { return string(rune('a' + n%2)) }))
		stop := start(t, c)
		time.Sleep(2 * time.Hour)
		require.NoError(t, stop())
		require.Equal(t, []int{1, 3, 0, 2}, order)
	})
}

func TestLater_RunOnceWaitsWithinTheDrainTimeout(t *testing.T) {
	for _, until := range []time.Duration{5 * time.Second, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			shelf := newShelf(numbers(3)...)
			destination := newBusy(until, 1)
			began := time.Now()
			err := courier.RunOnce(t.Context(), func(ctx context.Context) ([]int, error) { return shelf.Fetch(ctx, 10) }, destination.Apply, shelf.Mark, quiet)
			if until < 10*time.Second {
				require.NoError(t, err)
				require.Empty(t, shelf.left())
				require.Equal(t, until, time.Since(began))
				return
			}
			require.ErrorIs(t, err, errTest)
			require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), err))
			require.Equal(t, []int{1}, shelf.left())
			require.Zero(t, time.Since(began))
		})
	}
}

// A destination that asks for another second each time, or a host whose breaker opens for a
// second each time, does not keep a run for as long as it does so.
func TestLater_RunOnceEndsThoughEachWaitIsShort(t *testing.T) {
	for name, applier := range map[string]courier.Applier[int]{
		"a record that asks each time": courier.ProcessFunc(func(_ context.Context, n int) error {
			if n > 0 {
				return nil
			}
			return courier.Later(errTest, time.Second)
		}),
		"a host that is down": courier.NewKeyedCircuitBreakerApplier(courier.ProcessFunc(func(_ context.Context, n int) error {
			if n > 0 {
				return nil
			}
			return errTest
		}), strconv.Itoa, courier.BreakerPolicy{FailureThreshold: 1, OpenFor: time.Second, MaxOpenFor: time.Second}),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := newShelf(numbers(3)...)
				began := time.Now()
				err := courier.NewPollingCoordinator(source, applier, quiet).RunOnce(t.Context())
				require.ErrorIs(t, err, errTest)
				require.LessOrEqual(t, time.Since(began), 11*time.Second, "the drain timeout, and a last wait")
				require.Equal(t, []int{0}, source.left())
			})
		})
	}
}

// A branch that asks for another time gets the record then, and the others do not get
// it again.
func TestLater_OfABranchIsThatBranchsAlone(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		late, other := newBusy(5*time.Second, 1), newBusy(0)
		source.add(numbers(3)...)
		option := courier.WithWorkers(2)
		if source.wait {
			option = courier.WithStreamWorkers(2)
		}
		stop := start(t, make(courier.NewFanOutApplier[int](late, other), unspread, option))
		time.Sleep(10 * time.Second)
		require.NoError(t, stop())
		require.Empty(t, source.left())
		require.Len(t, late.called(1), 2)
		require.Equal(t, 5*time.Second, late.called(1)[1])
		require.Len(t, other.called(1), 1)
	})
}

func TestLater_OutsideOfACoordinatorIsReturned(t *testing.T) {
	applier, queue := courier.ResilientApplier(courier.ProcessFunc(func(context.Context, int) error {
		return courier.Later(errTest, time.Minute)
	}), nil)
	err := applier.Apply(t.Context(), 1)
	require.ErrorIs(t, err, errTest)
	require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), err))
	letters, receiveErr := queue.Receive(t.Context(), 1)
	require.NoError(t, receiveErr)
	require.Empty(t, letters)
	require.NoError(t, courier.Later(nil, time.Minute))
	require.Equal(t, "the record's own error", courier.Later(errTest, -1).Error())
	require.True(t, errors.Is(courier.Later(errTest, 0), errTest))
}

// A run does not wait for a record that asks for more than its drain timeout, and does not
// ask again either while the breaker, which was not told, still wants a probe.
func TestLater_RunOnceLeavesWhatIsDueAfterItsEnd(t *testing.T) {
	for _, fanOut := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			calls := 0
			applier, _ := courier.ResilientApplier(courier.ProcessFunc(func(context.Context, string) error {
				switch calls++; {
				case calls <= 2:
					return errTest
				case calls > 10:
					return nil
				}
				return courier.Later(errTest, time.Minute)
			}), &courier.ResilientConfig[string]{Breaker: courier.BreakerPolicy{FailureThreshold: 2, OpenFor: 50 * time.Millisecond}})
			if fanOut {
				applier = courier.NewFanOutApplier(applier, courier.ProcessFunc(func(context.Context, string) error { return nil }))
			}
			var records courierttest.Recorder[string]
			c := courier.NewPollingCoordinator(records.Source("a"), applier, unspread, courier.WithDrainTimeout(time.Second))
			require.ErrorIs(t, c.RunOnce(t.Context()), errTest)
			require.Equal(t, 3, calls, "with the fan-out %v", fanOut)
			require.Empty(t, records.Names(courierttest.Marked))
		})
	}
}

// Where a probe asks for another time, nothing is known of the destination: the record over
// which the breaker has opened is the next probe, as no other is left.
func TestLater_IsNoVerdictOnAProbe(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		source.add(0, 1)
		var calls []time.Duration
		began := time.Now()
		breaker := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, OpenFor: time.Second, DisableJitter: true})
		stop := start(t, make(courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(_ context.Context, r int) error {
			switch {
			case r == 1:
				return courier.Later(errTest, 9*time.Second) // so short that it stays in hand
			case time.Since(began) < time.Second:
				return errTest
			}
			calls = append(calls, time.Since(began))
			return nil
		}), breaker)))
		time.Sleep(30 * time.Second) // less than suspects are left alone for
		synctest.Wait()
		require.Len(t, calls, 1)
		require.Equal(t, courier.BreakerClosed, breaker.State())
		require.NoError(t, stop())
	})
}

// A source that takes nothing back returns a record that waits for its time as soon as it
// is asked after a breaker's pause: not sooner is the record applied.
func TestLater_TheTimeOutlastsABreakersPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf(numbers(3)...)
		destination := newBusy(5*time.Minute, 0)
		var well atomic.Bool
		breaker := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1})
		stack := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(ctx context.Context, r int) error {
			if r > 0 && !well.Load() {
				return errTest
			}
			return destination.Apply(ctx, r)
		}), breaker)
		stop := start(t, courier.NewPollingCoordinator[int](source, stack, quiet, courier.WithInterval(time.Second)))
		time.Sleep(10 * time.Second)
		well.Store(true)
		time.Sleep(4 * time.Minute)
		require.Equal(t, []int{0}, source.left(), "the others are applied")
		time.Sleep(4 * time.Minute)
		require.Empty(t, source.left())
		calls := destination.called(0)
		require.Len(t, calls, 2)
		require.GreaterOrEqual(t, calls[1], 5*time.Minute)
		require.NoError(t, stop())
	})
}

// parcel is a record that cannot be known again unless it is named.
type parcel struct{ n int }

// parcels is a destination that keeps the order of keys inside a call.
type parcels struct{ courier.Applier[*parcel] }

func (parcels) OrderedBatches() bool { return true }

func (b parcels) ApplyBatch(ctx context.Context, records []*parcel) error {
	var list courier.BatchError
	failed := map[int]bool{}
	for i, r := range records {
		err := courier.ErrBehindFailed
		if !failed[r.n%3] {
			err = b.Apply(ctx, r)
		}
		if err != nil {
			failed[r.n%3] = true
			list.Add(i, err)
		}
	}
	return list.ErrorOrNil()
}

// A record that asks for its time is applied then and not before, whatever a breaker does
// meanwhile: by each coordinator, of each kind of source, with an order and without.
func TestLater_TheTimeOutlastsABreakersPauseInEachShape(t *testing.T) {
	const until, well = 8 * time.Second, 2 * time.Second
	type source = courier.Source[*parcel]
	sources := map[string]func(records []*parcel) (source, func() []*parcel){
		"rereading": func(records []*parcel) (source, func() []*parcel) {
			s := newShelf(records...)
			return s, s.left
		},
		"leasing": func(records []*parcel) (source, func() []*parcel) {
			s := new(courierttest.Recorder[*parcel]).LeasingSource(time.Minute, records...)
			return struct {
				source
				courier.Releaser[*parcel]
			}{s, s}, s.Pending
		},
		"renewing": func(records []*parcel) (source, func() []*parcel) {
			s := new(courierttest.Recorder[*parcel]).LeasingSource(5*time.Second, records...)
			return s, s.Pending
		},
	}
	type applier = courier.Applier[*parcel]
	batch := func(a applier, ordered bool) applier {
		if ordered {
			return parcels{a}
		}
		return eachOfBatch[*parcel]{a}
	}
	appliers := map[string]func(a applier) applier{
		"plain":         func(a applier) applier { return a },
		"batch":         func(a applier) applier { return batch(a, false) },
		"ordered batch": func(a applier) applier { return batch(a, true) },
	}
	for of, newSource := range sources {
		for by, shaped := range appliers {
			for _, how := range []string{"polling", "streaming", "once"} {
				for _, named := range []bool{false, true} {
					for _, keyed := range []bool{false, true} {
						for _, fanOut := range []bool{false, true} {
							if how == "streaming" && of == "rereading" {
								continue
							}
							t.Run(fmt.Sprintf("%s %s %s, %s, %s, %s", how, of, by, choose(named, "named", "no name"), choose(keyed, "keyed", "no key"), choose(fanOut, "fan-out", "no fan-out")), func(t *testing.T) {
								synctest.Test(t, func(t *testing.T) {
									var records []*parcel
									for n := range 5 {
										records = append(records, &parcel{n: n})
									}
									src, left := newSource(records)
									destination := newBusy(until, 0)
									began := time.Now()
									open := courier.BreakerPolicy{FailureThreshold: 1, OpenFor: time.Second, DisableJitter: true}
									fails := func(_ context.Context, p *parcel) error {
										if (p.n > 0 || fanOut) && time.Since(began) < well {
											return errTest
										}
										return nil
									}
									stack := courier.NewCircuitBreakerApplier(shaped(courier.ProcessFunc(func(ctx context.Context, p *parcel) error {
										if err := fails(ctx, p); err != nil && !fanOut {
											return err
										}
										return destination.Apply(ctx, p.n)
									})), courier.NewBreaker(open))
									if fanOut {
										stack = courier.NewFanOutApplier(stack, courier.NewCircuitBreakerApplier(shaped(courier.ProcessFunc(fails)), courier.NewBreaker(open)))
									}
									opts := []courier.Option{quiet, unspread}
									if named {
										opts = append(opts, courier.WithIdentity(func(p *parcel) string { return fmt.Sprint(p.n) }))
									}
									if keyed {
										opts = append(opts, courier.WithOrderKey(func(p *parcel) string { return string(rune('a' + p.n%3)) }))
									}
									switch how {
									case "polling":
										defer func(stop func() error) { require.NoError(t, stop()) }(start(t, courier.NewPollingCoordinator(src, stack, opts...)))
									case "streaming":
										defer func(stop func() error) { require.NoError(t, stop()) }(start(t, courier.NewStreamingCoordinator(src, stack, opts...)))
									default:
										require.NoError(t, courier.NewPollingCoordinator(src, stack, opts...).RunOnce(t.Context()))
									}
									if how != "once" {
										time.Sleep(30 * time.Second)
										synctest.Wait()
									}
									require.Empty(t, left())
									calls := destination.called(0)
									require.Len(t, calls, 2)
									require.GreaterOrEqual(t, calls[1], until)
									if keyed {
										require.GreaterOrEqual(t, destination.called(3)[0], calls[1], "it comes after 0 in its order")
									}
									for n := 1; n < 5; n++ {
										if !keyed || n != 3 {
											require.Less(t, destination.called(n)[0], until, "the others go on")
										}
									}
								})
							})
						}
					}
				}
			}
		}
	}
}

// A branch of a fan-out gets its record when it has asked for that, also if another branch
// of the record waits for a retry when a breaker opens.
func TestLater_OfABranchOutlastsAPauseBesideARetry(t *testing.T) {
	for _, once := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			until := func(d time.Duration, failing int) courier.Applier[int] {
				return courier.ProcessFunc(func(_ context.Context, r int) error {
					if r == failing && time.Since(began) < d {
						return errTest
					}
					return nil
				})
			}
			late := newBusy(8*time.Second, 0)
			breaker := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, OpenFor: time.Second, DisableJitter: true})
			applier := courier.NewFanOutApplier(
				courier.Applier[int](late),
				courier.NewRetryableApplier(until(time.Second, 0), courier.RetryPolicy{InitialDelay: 2 * time.Second, Jitter: courier.NoJitter}),
				courier.NewCircuitBreakerApplier(until(3*time.Second, 1), breaker),
			)
			shelf := newShelf(numbers(3)...)
			c := courier.NewPollingCoordinator[int](shelf, applier, quiet, unspread, courier.WithOrderKey(func(r int) string { return string(rune('a' + r)) }))
			if once {
				require.NoError(t, c.RunOnce(t.Context()))
			} else {
				stop := start(t, c)
				time.Sleep(30 * time.Second)
				require.NoError(t, stop())
			}
			require.Empty(t, shelf.left())
			require.Len(t, late.called(0), 2)
			require.GreaterOrEqual(t, late.called(0)[1], 8*time.Second)
		})
	}
}

// A run that leaves a record to the source, which asks for more than its drain timeout, is
// not to go on with the later ones of its key: they were in hand already, because the
// breaker was probed with the first.
func TestD4_RunOnceLeavesTheLaterRecordsOfItsKeyToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var applied []int
		began := time.Now()
		breaker := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, OpenFor: time.Second, DisableJitter: true})
		stack := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(_ context.Context, r int) error {
			switch {
			case time.Since(began) < time.Second:
				return errTest
			case r == 1:
				return courier.Later(errTest, time.Hour)
			}
			applied = append(applied, r)
			return nil
		}), breaker)
		shelf := newShelf(numbers(4)...)
		c := courier.NewPollingCoordinator[int](shelf, stack, quiet, courier.WithOrderKey(func(n int) string { return string(rune('a' + min(n, 1))) }))
		require.ErrorIs(t, c.RunOnce(t.Context()), errTest)
		require.Equal(t, []int{0}, applied)
		require.Equal(t, []int{1, 2, 3}, shelf.left())
	})
}
