package courier_test

// Order (D4): several workers, the order by key, and records without a key.

import (
	"context"
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

// WithWorkers is for both coordinators.
func TestWithWorkers_OfAStream(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var r courierttest.Recorder[int]
		source := r.StreamSource()
		together, most := 0, 0
		var mu sync.Mutex
		slow := courier.ProcessFunc(func(context.Context, int) error {
			mu.Lock()
			together++
			most = max(most, together)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			together--
			mu.Unlock()
			return nil
		})
		run := courierttest.Start(t, courier.NewStreamingCoordinator[int](source, slow, courier.WithWorkers(4), quiet))
		source.Add(1, 2, 3, 4, 5, 6, 7, 8)
		time.Sleep(time.Minute)
		require.NoError(t, run.Stop())
		require.Equal(t, 4, most)
	})
}

func TestD9_AStreamWhoseOrderKeyPanicsHoldsUpThatRecordAlone(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		key := func(r int) string {
			if r == 2 {
				panic("no key")
			}
			return fmt.Sprint(r % 2)
		}
		var records courierttest.Recorder[int]
		source := records.StreamSource(numbers(6)...)
		var told courierttest.ObserverRecorder
		courierttest.RunFor(t, courier.NewStreamingCoordinator(source, records.Applier(nil), courier.WithOrderKey(key), courier.WithStreamWorkers(2), courier.WithObserver(told.Observer()), quiet), time.Minute)
		require.ElementsMatch(t, []int{0, 1, 3, 4, 5}, records.Records(courierttest.Marked))
		require.Equal(t, []int{2}, source.Pending())
		failed := courierttest.EventsOf[courier.FailEvent](&told)
		require.NotEmpty(t, failed)
		for _, e := range failed {
			require.ErrorContains(t, e.Err, "the record's order key is not known")
			require.ErrorIs(t, e.Err, courier.ErrPanic)
		}
	})
}

// A batch of one record of each key is with a worker as a whole: nothing of it
// can be taken away for an idle one.
func TestD4_NothingIsTakenBackFromABatchInWork(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var records courierttest.Recorder[int]
		sink := records.BatchApplier(courierttest.MustParse(`delay 1s`))
		source := records.StreamSource(numbers(6)...)
		courierttest.RunFor(t, courier.NewStreamingCoordinator(source, courier.Applier[int](sink), courier.WithOrderKey(byRest(3)), courier.WithStreamWorkers(2), quiet), time.Minute)
		courierttest.AssertDeliveredOnce(t, &records)
		courierttest.AssertOrder(t, &records, byRest(3))
	})
}

// A record whose key is "" is in no order: it waits for no other one.
func TestD4_RecordsWithoutAKeyAreInNoOrder(t *testing.T) {
	for _, shape := range []string{"polling", "leasing", "streaming"} {
		t.Run(shape, func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				var mu sync.Mutex
				var order []int
				a := courier.ProcessFunc(func(_ context.Context, n int) error {
					if n == 0 || n == 1 { // without a key, and with one
						return errTest
					}
					time.Sleep(time.Second)
					mu.Lock()
					defer mu.Unlock()
					order = append(order, n)
					return nil
				})
				key := courier.WithOrderKey(func(n int) string {
					if n%2 == 0 {
						return ""
					}
					return "odd"
				})
				var r courierttest.Recorder[int]
				began := time.Now()
				c := map[string]courierttest.Starter{
					"polling":   courier.NewPollingCoordinator[int](r.Source(numbers(18)...), a, quiet, key, courier.WithWorkers(8)),
					"leasing":   courier.NewPollingCoordinator[int](r.LeasingSource(time.Hour, numbers(18)...), a, quiet, key, courier.WithWorkers(8)),
					"streaming": courier.NewStreamingCoordinator[int](r.StreamSource(numbers(18)...), a, quiet, key, courier.WithStreamWorkers(8)),
				}[shape]
				run := courierttest.Start(t, c)
				time.Sleep(1500 * time.Millisecond)
				mu.Lock()
				require.ElementsMatch(t, []int{2, 4, 6, 8, 10, 12, 14, 16}, order, "%v", time.Since(began))
				mu.Unlock()
				time.Sleep(time.Minute)
				require.NoError(t, run.Stop())
				require.Len(t, order, 8, "the later ones of the key wait")
			})
		})
	}
}

// lanes is an applier that knows which records belong together, and notes what
// breaks their order.
type lanes struct {
	key  func(int) string
	work func(ctx context.Context, record int) error

	mu       sync.Mutex
	busy     map[string]bool
	most     int // at once
	now      int
	applied  []int
	settled  map[int]bool
	problems []string
}

func newLanes(keys int, work func(context.Context, int) error) *lanes {
	return &lanes{key: byRest(keys), work: work, busy: map[string]bool{}, settled: map[int]bool{}}
}

func (l *lanes) Apply(ctx context.Context, record int) error {
	key := l.key(record)
	l.mu.Lock()
	if l.busy[key] {
		l.problems = append(l.problems, fmt.Sprintf("record %d at the same time as another of its key", record))
	}
	for before := range record {
		if l.key(before) == key && !l.settled[before] {
			l.problems = append(l.problems, fmt.Sprintf("record %d before record %d", record, before))
		}
	}
	l.busy[key] = true
	l.now++
	l.most = max(l.most, l.now)
	l.mu.Unlock()
	err := error(nil)
	if l.work != nil {
		err = l.work(ctx, record)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.busy, key)
	l.now--
	if err == nil {
		l.applied = append(l.applied, record)
		l.settled[record] = true
	}
	return err
}

// takes is a piece of work that takes some time.
func takes(d time.Duration) func(context.Context, int) error {
	return func(context.Context, int) error {
		time.Sleep(d)
		return nil
	}
}

func TestD4_WorkersApplyTogetherAndABatchTakesItsShareOfTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf(numbers(100)...)
		l := newLanes(100, takes(time.Second))
		began := time.Now()
		require.NoError(t, courier.NewPollingCoordinator(source, l, courier.WithWorkers(10), quiet).RunOnce(t.Context()))
		require.Equal(t, 10, l.most)
		require.Equal(t, 10*time.Second, time.Since(began))
		require.Empty(t, source.left())
		require.Equal(t, numbers(100), source.marked(), "in the order fetched, whoever came first")
	})
}

// A slow record keeps at most a few others waiting behind it.
func TestD3_ASlowRecordDoesNotKeepAWorkersShareWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf(numbers(100)...)
		l := newLanes(100, func(_ context.Context, r int) error {
			if r == 0 {
				time.Sleep(time.Minute)
			}
			time.Sleep(time.Second)
			return nil
		})
		began := time.Now()
		require.NoError(t, courier.NewPollingCoordinator(source, l, courier.WithWorkers(4), quiet).RunOnce(t.Context()))
		require.Less(t, time.Since(began), 70*time.Second)
	})
}

func TestD4_RecordsOfAKeyAreAppliedInOrderAndNeverAtTheSameTime(t *testing.T) {
	for _, workers := range []int{1, 3, 16} {
		for _, keys := range []int{1, 7, 100} {
			for _, coordinator := range []string{"polling", "streaming"} {
				t.Run(fmt.Sprintf("%s, %d workers, %d keys", coordinator, workers, keys), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						var failed sync.Map
						l := newLanes(keys, func(_ context.Context, r int) error {
							time.Sleep(time.Duration(r%5) * time.Millisecond)
							if _, before := failed.LoadOrStore(r, true); !before && r%9 == 0 {
								return errTest
							}
							return nil
						})
						opts := []courier.Option{courier.WithOrderKey(byRest(keys)), quiet}
						if coordinator == "polling" {
							source := newShelf(numbers(200)...)
							stop := start(t, courier.NewPollingCoordinator(source, l, append(opts, courier.WithWorkers(workers))...))
							time.Sleep(time.Hour)
							require.NoError(t, stop())
							require.Empty(t, source.left())
						} else {
							var marked collector
							ch := stream(200)
							require.NoError(t, courier.NewStreamingCoordinator(courier.NewChannelSource(ch, marked.mark), courier.Applier[int](l), append(opts, courier.WithStreamWorkers(workers))...).Start(t.Context()))
							require.ElementsMatch(t, numbers(200), marked.all())
						}
						require.Empty(t, l.problems)
						require.Len(t, l.applied, 200)
						require.LessOrEqual(t, l.most, min(workers, keys))
						if workers > 1 && keys > 1 {
							require.Greater(t, l.most, 1)
						}
					})
				})
			}
		}
	}
}

func TestD4_OneWorkerKeepsTheFetchOrderOfAllKeys(t *testing.T) {
	source := newShelf(numbers(50)...)
	l := newLanes(5, nil)
	require.NoError(t, courier.NewPollingCoordinator(source, l, courier.WithOrderKey(byRest(5)), quiet).RunOnce(t.Context()))
	require.Equal(t, numbers(50), l.applied)
}

// What is behind a failed record of its key is not attempted, in that pass.
func TestD4_AFailedRecordHoldsBackOnlyTheLaterOnesOfItsKey(t *testing.T) {
	for _, workers := range []int{1, 4} {
		for _, batches := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d workers, %s", workers, batched(batches)), func(t *testing.T) {
				source := newShelf(numbers(20)...)
				fail := func(_ context.Context, r, _ int) error {
					if r == 6 {
						return errTest
					}
					return nil
				}
				s := &batchSink[int]{sink: sink[int]{fail: fail}, failBatch: func(_ context.Context, records []int, _ int) error {
					var failed courier.BatchError
					for i, r := range records {
						if r == 6 {
							failed.Add(i, errTest)
						}
					}
					return failed.ErrorOrNil()
				}}
				var applier courier.Applier[int] = s
				if !batches {
					applier = &s.sink
				}
				err := courier.NewPollingCoordinator(source, applier, courier.WithWorkers(workers), courier.WithOrderKey(byRest(4)), quiet).RunOnce(t.Context())
				require.ErrorIs(t, err, errTest)
				require.Equal(t, []int{6, 10, 14, 18}, source.left())
				var list *courier.BatchError
				require.ErrorAs(t, err, &list)
				require.Len(t, list.Failures, 4)
				for _, f := range list.Failures[1:] {
					require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), f.Err))
					require.ErrorContains(t, f.Err, "earlier record of the same key")
				}
				for _, batch := range s.batches {
					keys := map[string]bool{}
					for _, r := range batch {
						require.False(t, keys[byRest(4)(r)], "two of a key in %v", batch)
						keys[byRest(4)(r)] = true
					}
				}
			})
		}
	}
}

func TestD4_AfterARecordIsParkedItsKeyGoesOn(t *testing.T) {
	for _, coordinator := range []string{"polling", "streaming"} {
		t.Run(coordinator, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
					if r == 3 {
						return courier.Permanent(errTest)
					}
					return nil
				}}
				applier, dlq := courier.WithDLQ[int](s)
				opts := []courier.Option{courier.WithOrderKey(byRest(1)), quiet}
				if coordinator == "polling" {
					source := newShelf(numbers(10)...)
					require.NoError(t, courier.NewPollingCoordinator(source, applier, append(opts, courier.WithWorkers(4))...).RunOnce(t.Context()))
				} else {
					require.NoError(t, courier.NewStreamingCoordinator(courier.NewChannelSource(stream(10), nop[[]int]), applier, append(opts, courier.WithStreamWorkers(4))...).Start(t.Context()))
				}
				require.Equal(t, []int{0, 1, 2, 4, 5, 6, 7, 8, 9}, s.got())
				n, err := dlq.Count(t.Context())
				require.NoError(t, err)
				require.Equal(t, 1, n)
			})
		})
	}
}

// A source that leases hands out what it was not given back: the coordinator
// keeps the later records of a key from overtaking the ones that it gave back.
func TestD4_WhatALeasingSourceHandsOutSoonerWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newLeasing(numbers(40)...)
		var calls atomic.Int64
		l := newLanes(4, func(_ context.Context, r int) error {
			if n := calls.Add(1); r < 8 && n < 20 {
				return errTest
			}
			return nil
		})
		stop := start(t, courier.NewPollingCoordinator(source, l, courier.WithWorkers(4), courier.WithBatchSize(5), courier.WithOrderKey(byRest(4)), quiet))
		time.Sleep(10 * time.Minute)
		require.NoError(t, stop())
		require.Empty(t, source.left())
		require.Empty(t, l.problems)
	})
}

// D4 with a breaker in an outage: whatever the probes do, no key is out of order.
func TestD4_AnOutageKeepsTheOrder(t *testing.T) {
	for _, keys := range []int{1, 3} {
		for _, coordinator := range []string{"polling", "leasing", "streaming", "streaming from a leasing source"} {
			t.Run(fmt.Sprintf("%s, %d keys", coordinator, keys), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					began := time.Now()
					l := newLanes(keys, func(_ context.Context, r int) error {
						time.Sleep(time.Millisecond)
						if up := time.Since(began); up > 50*time.Millisecond && up < 20*time.Minute {
							return errTest
						}
						return nil
					})
					applier, dlq := courier.ResilientApplier[int](l, nil)
					opts := []courier.Option{courier.WithOrderKey(byRest(keys)), courier.WithBatchSize(10), quiet}
					var marked func() []int
					var c interface{ Start(context.Context) error }
					switch coordinator {
					case "polling":
						source := newShelf(numbers(200)...)
						marked = source.marked
						c = courier.NewPollingCoordinator(source, applier, append(opts, courier.WithWorkers(4))...)
					case "leasing":
						source := newLeasing(numbers(200)...)
						marked = source.marked
						c = courier.NewPollingCoordinator(source, applier, append(opts, courier.WithWorkers(4))...)
					case "streaming":
						var all collector
						marked = all.all
						c = courier.NewStreamingCoordinator(courier.NewChannelSource(stream(200), all.mark), applier, append(opts, courier.WithStreamWorkers(4))...)
					default:
						source := newLeasing(numbers(200)...)
						source.wait = true
						marked = source.marked
						c = courier.NewStreamingCoordinator(source, applier, append(opts, courier.WithStreamWorkers(4))...)
					}
					stop := start(t, c)
					time.Sleep(time.Hour)
					require.NoError(t, stop())
					require.Empty(t, l.problems)
					require.ElementsMatch(t, numbers(200), marked())
					n, err := dlq.Count(t.Context())
					require.NoError(t, err)
					require.Zero(t, n)
				})
			})
		}
	}
}

// D9 for the key function.
func TestD9_AKeyFunctionMayPanic(t *testing.T) {
	source := newShelf(numbers(10)...)
	s := &sink[int]{}
	err := courier.NewPollingCoordinator(source, s, courier.WithOrderKey(func(r int) string {
		if r == 4 {
			panic("no key")
		}
		return fmt.Sprint(r % 2)
	}), courier.WithWorkers(2), quiet).RunOnce(t.Context())
	require.ErrorIs(t, err, courier.ErrPanic)
	require.ErrorContains(t, err, "order key")
	require.Equal(t, []int{4}, source.left())
}

// lateRelease is a source that counts the time, for which it takes a record back,
// from close to the end of a call that takes some itself.
type lateRelease struct{ *leasing[int] }

func (s lateRelease) Release(ctx context.Context, records []int, after time.Duration) error {
	time.Sleep(10 * time.Millisecond)
	time.AfterFunc(after, func() { _ = s.leasing.Release(ctx, records, after) })
	time.Sleep(time.Millisecond)
	return nil
}

// D4: a later record of a key does not go first because the source hands the one
// that was given back out a moment after its time.
func TestD4_ALaterRecordWaitsForTheSourceToHandTheFirstOutAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := lateRelease{newLeasing(numbers(6)...)}
		began := time.Now()
		l := newLanes(1, func(context.Context, int) error {
			if time.Since(began) < 10*time.Second {
				return errTest
			}
			return nil
		})
		applier := courier.NewCircuitBreakerApplier(courier.ProcessFunc(l.Apply), courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1}))
		stop := start(t, courier.NewPollingCoordinator(source, applier, courier.WithBatchSize(1), courier.WithOrderKey(byRest(1)), quiet))
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		require.Empty(t, source.left(), "all within the minute")
		require.Empty(t, l.problems)
	})
}

// D4: records that were taken back from a slow worker, and looked at by a renewal, come
// before those that waited for the slow one.
func TestD4_WhatIsTakenBackFromASlowWorkerKeepsItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &renewable{leasing: newLeasing(1, 10, 20, 2, 30, 40, 3, 4), every: 100 * time.Millisecond, renew: nop[[]int]}
		source.wait = true
		key := func(r int) string { // 1, 2, 3 and 4 have one key
			if r < 10 {
				return "a"
			}
			return strconv.Itoa(r)
		}
		var mu sync.Mutex
		var begun []int
		applier := courier.ProcessFunc(func(_ context.Context, r int) error {
			mu.Lock()
			begun = append(begun, r)
			mu.Unlock()
			switch r {
			case 1:
				time.Sleep(time.Second)
			case 10:
				time.Sleep(3 * time.Second)
			default:
				time.Sleep(time.Millisecond)
			}
			return nil
		})
		stop := start(t, courier.NewStreamingCoordinator(source, applier, quiet, courier.WithWorkers(2), courier.WithOrderKey(key)))
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		require.Empty(t, source.left())
		require.Equal(t, []int{1, 2, 3, 4}, slices.DeleteFunc(begun, func(r int) bool { return r >= 10 }))
	})
}

// A record without a key holds back nobody.
func TestD4_ARecordWithoutAKeyHoldsBackNobody(t *testing.T) {
	for _, workers := range []int{1, 2} {
		source := newShelf(numbers(6)...)
		_ = courier.NewPollingCoordinator(source, &sink[int]{}, courier.WithWorkers(workers), courier.WithOrderKey(func(r int) string {
			if r == 2 {
				panic("no key")
			}
			return ""
		}), quiet).RunOnce(t.Context())
		require.Equal(t, []int{2}, source.left())
	}
}

// D4: a record without a key (its function panics) holds back no record whose
// key is the empty string.
func TestD4_Stream_ARecordWithoutAKeyHoldsBackNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var marked collector
		s := &sink[int]{}
		stop := start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(full(20, false), marked.mark), courier.Applier[int](s),
			courier.WithOrderKey(func(r int) string {
				if r == 3 {
					panic("no key")
				}
				return "" // no order for these
			}), courier.WithStreamWorkers(2), quiet))
		time.Sleep(5 * time.Second)
		got := s.got()
		_ = stop()
		require.Len(t, got, 19)
	})
}
