package courier_test

// Appliers that keep the order inside a call: several records of a key in one call.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// fate is what becomes of a record, for some attempts or calls.
type fate struct {
	kind  string
	times int
}

// ordered is a destination that keeps the order inside a call, and notes what has been
// broken of the order by key. Behind a failed record it ends the call, or goes on with
// other keys.
type ordered struct {
	key    func(int) string
	goesOn bool
	cost   time.Duration // of a call
	began  func(call int)

	mu       sync.Mutex
	fates    map[int]fate
	settled  map[int]bool
	busy     map[string]bool
	applied  []int
	calls    [][]int
	problems []string
}

func newOrdered(keys int) *ordered {
	return &ordered{key: byRest(keys), fates: map[int]fate{}, settled: map[int]bool{}, busy: map[string]bool{}}
}

func (o *ordered) OrderedBatches() bool { return true }

// enter notes that a call has begun, and what is wrong with it.
func (o *ordered) enter(records []int) (leave func()) {
	o.mu.Lock()
	o.calls = append(o.calls, slices.Clone(records))
	call := len(o.calls)
	last := map[string]int{}
	for _, r := range records {
		key := o.key(r)
		if before, met := last[key]; met && before >= r {
			o.problems = append(o.problems, fmt.Sprintf("record %d behind record %d in one call", r, before))
		} else if !met && o.busy[key] {
			o.problems = append(o.problems, fmt.Sprintf("record %d while another call has its key", r))
		}
		last[key] = r
		o.busy[key] = true
	}
	o.mu.Unlock()
	if o.began != nil {
		o.began(call)
	}
	time.Sleep(o.cost)
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		for key := range last {
			delete(o.busy, key)
		}
	}
}

// meets returns what becomes of a record now.
func (o *ordered) meets(r int) (kind string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f := o.fates[r]
	if f.times == 0 {
		return ""
	}
	f.times--
	o.fates[r] = f
	return f.kind
}

func (o *ordered) settle(r int, applied bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.settled[r] = true
	if applied {
		o.applied = append(o.applied, r)
	}
}

func (o *ordered) attempt(ctx context.Context, r int) error {
	o.mu.Lock()
	for before := range r {
		if o.key(before) == o.key(r) && !o.settled[before] {
			o.problems = append(o.problems, fmt.Sprintf("record %d before record %d", r, before))
		}
	}
	o.mu.Unlock()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	switch o.meets(r) {
	case "fail", "whole":
		return errTest
	case "permanent":
		return courier.Permanent(errTest)
	case "panic":
		panic(errTest)
	case "goexit":
		runtime.Goexit()
	case "later":
		return courier.Later(errTest, 3*time.Second)
	case "refuse":
		return &courier.ConfigError{Field: "of another pipeline", Problem: "is refused"}
	case "skip":
		o.settle(r, false)
		return courier.Skip(errTest)
	}
	o.settle(r, true)
	return nil
}

func (o *ordered) Apply(ctx context.Context, r int) error {
	defer o.enter([]int{r})()
	return o.attempt(ctx, r)
}

func (o *ordered) ApplyBatch(ctx context.Context, records []int) error {
	defer o.enter(records)()
	for _, r := range records {
		o.mu.Lock()
		whole := o.fates[r].kind == "whole" && o.fates[r].times > 0
		o.mu.Unlock()
		if whole {
			o.meets(r)
			return errTest
		}
	}
	var list courier.BatchError
	behind := map[string]bool{}
	for i, r := range records {
		if behind[o.key(r)] || len(behind) > 0 && !o.goesOn {
			list.Add(i, courier.ErrBehindFailed)
			continue
		}
		if err := o.attempt(ctx, r); err != nil {
			list.Add(i, err)
			if courier.Classify(ctx, err) != courier.ClassSkipped {
				behind[o.key(r)] = true
			}
		}
	}
	return list.ErrorOrNil()
}

// got is what was applied so far, and called the calls.
func (o *ordered) got() []int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.applied)
}

func (o *ordered) called() [][]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.calls)
}

// shared is how many calls have had several records of a key.
func (o *ordered) shared() (n int) {
	for _, call := range o.calls {
		met := map[string]bool{}
		for _, r := range call {
			if met[o.key(r)] {
				n++
				break
			}
			met[o.key(r)] = true
		}
	}
	return n
}

// parks is a queue and a policy of which the destination hears what is parked.
func (o *ordered) parks(keyed bool) (courier.DLQ[int], courier.DLQPolicy[int]) {
	policy := courier.DLQPolicy[int]{MaxParkRate: courier.AnyParkRate, OnPark: func(_ context.Context, l courier.DeadLetter[int]) { o.settle(l.Record, false) }}
	if keyed {
		policy.Key = o.key
	}
	return &courier.MemoryDLQ[int]{}, policy
}

// One key, a hundred records: one call where it takes a hundred without the order.
func TestOrderedBatches_AKeyTakesOneCall(t *testing.T) {
	for _, workers := range []int{1, 4} {
		for _, is := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d workers, %s", workers, choose(is, "ordered", "not ordered")), func(t *testing.T) {
				both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
					o := newOrdered(1)
					o.cost = time.Millisecond
					var applier courier.Applier[int] = o
					want := 1
					if !is {
						applier = struct{ courier.BatchApplier[int] }{o} // hides it
						want = 100
					}
					source.add(numbers(100)...)
					option := courier.WithWorkers(workers)
					if source.wait {
						option = courier.WithStreamWorkers(workers)
					}
					stop := start(t, make(applier, option, courier.WithBatchSize(100), courier.WithOrderKey(o.key)))
					time.Sleep(10 * time.Second)
					require.NoError(t, stop())
					require.Empty(t, source.left())
					require.Equal(t, numbers(100), o.applied)
					require.Len(t, o.calls, want)
				})
			})
		}
	}
}

// Keys are shared out to the workers as a whole, and none gets more than fit in a call.
func TestOrderedBatches_WorkersShareTheKeys(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		o := newOrdered(8)
		o.cost = time.Second
		source.add(numbers(96)...)
		option := courier.WithWorkers(4)
		if source.wait {
			option = courier.WithStreamWorkers(4)
		}
		stop := start(t, make(o, option, courier.WithBatchSize(96), courier.WithApplyBatchSize(20), courier.WithOrderKey(o.key)))
		time.Sleep(2100 * time.Millisecond)
		synctest.Wait()
		require.Len(t, o.got(), 96, "24 each, 20 at most in a call")
		require.NoError(t, stop())
		require.Empty(t, o.problems)
		for _, call := range o.calls {
			require.LessOrEqual(t, len(call), 20)
			require.IsIncreasing(t, append([]int{-1}, call...), "as they were fetched")
		}
	})
}

// What is behind a failed record of another key goes in the next call at once; what is
// of its key waits for it.
func TestOrderedBatches_OnlyTheKeyOfAFailedRecordWaits(t *testing.T) {
	for _, goesOn := range []bool{false, true} {
		t.Run(choose(goesOn, "goes on behind a failure", "ends at a failure"), func(t *testing.T) {
			both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
				o := newOrdered(2)
				o.goesOn = goesOn
				o.fates[2] = fate{"fail", 2}
				source.add(numbers(8)...)
				policy := courier.RetryPolicy{InitialDelay: time.Second, Multiplier: 1, Jitter: courier.NoJitter}
				stop := start(t, make(courier.NewRetryableApplier[int](o, policy), unspread, courier.WithOrderKey(o.key)))
				time.Sleep(500 * time.Millisecond)
				require.ElementsMatch(t, []int{0, 1, 3, 5, 7}, o.got())
				time.Sleep(1600 * time.Millisecond)
				require.NoError(t, stop())
				require.Empty(t, source.left())
				require.Empty(t, o.problems)
				calls := 4 // all; behind the failed one; when it is due twice
				if goesOn {
					calls = 3
				}
				require.LessOrEqual(t, len(o.calls), calls+1)
				require.Equal(t, []int{2, 4, 6}, o.calls[len(o.calls)-1], "with what waits behind it")
			})
		})
	}
}

// Behind a record that was parked its key goes on at once; where the queue keeps the
// order of keys, it is parked too.
func TestOrderedBatches_ParkedRecords(t *testing.T) {
	for _, keyed := range []bool{false, true} {
		t.Run(choose(keyed, "the queue keeps the order", "no order in the queue"), func(t *testing.T) {
			both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
				o := newOrdered(2)
				o.fates[2] = fate{"permanent", 1}
				queue, policy := o.parks(keyed)
				source.add(numbers(8)...)
				stop := start(t, make(courier.NewDLQApplier[int](o, queue, policy), courier.WithOrderKey(o.key)))
				time.Sleep(500 * time.Millisecond)
				require.NoError(t, stop())
				require.Empty(t, source.left())
				require.Empty(t, o.problems)
				require.Len(t, o.calls, 2)
				letters, err := queue.List(t.Context(), "", 10)
				require.NoError(t, err)
				if keyed {
					require.Len(t, letters, 3)
					require.Equal(t, courier.ReasonKeyParked, letters[1].Reason)
					require.Equal(t, courier.ReasonKeyParked, letters[2].Reason)
					require.Equal(t, []int{0, 1, 3, 5, 7}, o.applied)
					return
				}
				require.Len(t, letters, 1)
				require.Equal(t, []int{0, 1, 3, 4, 5, 6, 7}, o.applied)
			})
		})
	}
}

// Outside of a coordinator a retry takes along what is behind the record that failed.
func TestOrderedBatches_RetryKeepsTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOrdered(1)
		o.fates[1] = fate{"fail", 2}
		o.fates[3] = fate{"fail", 1}
		budget := courier.NewRetryBudget(courier.BudgetPolicy{})
		retry := courier.NewRetryableApplier[int](o, courier.RetryPolicy{Budget: budget})
		require.NoError(t, asBatch(retry).ApplyBatch(t.Context(), numbers(6)))
		require.Equal(t, numbers(6), o.applied)
		require.Empty(t, o.problems)
		require.Equal(t, [][]int{{0, 1, 2, 3, 4, 5}, {1, 2, 3, 4, 5}, {1, 2, 3, 4, 5}, {3, 4, 5}}, o.calls)

		o.fates[7] = fate{"permanent", 1}
		err := asBatch(retry).ApplyBatch(t.Context(), []int{6, 7, 8})
		var list *courier.BatchError
		require.ErrorAs(t, err, &list)
		require.Len(t, list.Failures, 2)
		require.ErrorIs(t, list.Failures[1].Err, courier.ErrBehindFailed)
		require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), list.Failures[1].Err))

		o.settled[7] = true
		o.fates[8] = fate{"whole", 3} // the batch is taken apart
		require.NoError(t, asBatch(retry).ApplyBatch(t.Context(), []int{8, 9, 10}))
		require.Equal(t, []int{6, 8, 9, 10}, o.applied[6:])
		require.Empty(t, o.problems)
	})
}

func TestOrderedBatches_WhoHasIt(t *testing.T) {
	is := func(a courier.Applier[int]) bool {
		o, ok := a.(courier.OrderedBatcher)
		return ok && o.OrderedBatches()
	}
	name := func(r int) string { return fmt.Sprint(r) }
	fan := func(c courier.FanOutConfig[int], appliers ...courier.Applier[int]) courier.Applier[int] {
		for i, a := range appliers {
			c.Branches = append(c.Branches, courier.Branch[int]{Name: fmt.Sprint(i), Applier: a, Optional: c.OnBranchFailure != nil && i > 0 && c.Quorum == 0})
		}
		return courier.NewFanOutFromConfig(c)
	}
	quietly := func(context.Context, int, string, error) {}
	o, unordered := newOrdered(1), eachOfBatch[int]{newOrdered(1)}
	for _, wrap := range []func(courier.Applier[int]) courier.Applier[int]{
		func(a courier.Applier[int]) courier.Applier[int] { return a },
		courier.WithRetry[int],
		courier.WithCircuitBreaker[int],
		func(a courier.Applier[int]) courier.Applier[int] { a, _ = courier.WithDLQ(a); return a },
		func(a courier.Applier[int]) courier.Applier[int] { a, _ = courier.ResilientApplier(a, nil); return a },
		func(a courier.Applier[int]) courier.Applier[int] {
			return courier.NewAttemptTimeoutApplier(a, time.Minute, nil)
		},
		func(a courier.Applier[int]) courier.Applier[int] {
			return courier.NewDecodingApplier(a, func(r int) (int, error) { return r, nil })
		},
		func(a courier.Applier[int]) courier.Applier[int] { return courier.NewFanOutApplier(a) },
		func(a courier.Applier[int]) courier.Applier[int] {
			return fan(courier.FanOutConfig[int]{Identity: name, Clone: func(r int) int { return r }}, a, a)
		},
	} {
		require.True(t, is(wrap(o)), "%T", wrap(o))
		require.False(t, is(wrap(unordered)), "%T", wrap(unordered))
		require.False(t, is(wrap(courier.ProcessFunc(nop[int]))), "%T", wrap(unordered))
	}
	require.False(t, is(fan(courier.FanOutConfig[int]{}, o, o)), "it would give one branch a record again behind a later one")
	require.False(t, is(fan(courier.FanOutConfig[int]{Identity: name}, o, unordered)))
	require.False(t, is(fan(courier.FanOutConfig[int]{Identity: name}, o, courier.ProcessFunc(nop[int]))))
	require.False(t, is(fan(courier.FanOutConfig[int]{Identity: name, OnBranchFailure: quietly}, o, o)), "an optional branch")
	require.False(t, is(fan(courier.FanOutConfig[int]{Identity: name, Quorum: 1, OnBranchFailure: quietly}, o, o)))
	require.False(t, is(courier.WithRetry[int](panicky{o})), "one that panics has promised nothing")
	require.False(t, is(courier.WithRetry[int](seenThrough{o})), "a decorator without the method")
}

type panicky struct{ courier.BatchApplier[int] }

func (panicky) OrderedBatches() bool { panic(errTest) }

// seenThrough is a decorator that takes batches, and does not say what it makes of their
// order.
type seenThrough struct{ courier.BatchApplier[int] }

func (s seenThrough) Unwrap() courier.Applier[int] { return s.BatchApplier }

// An optional branch that ends a call at a bad record gets the ones behind it all the
// same, as nobody else would give it them.
func TestOrderedBatches_AnOptionalBranchGetsWhatIsBehind(t *testing.T) {
	required, optional := newOrdered(1), newOrdered(100)
	optional.fates[1], optional.fates[4] = fate{"fail", 1}, fate{"fail", 1}
	var failed []int
	f := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{
		Branches:        []courier.Branch[int]{{Name: "a", Applier: required}, {Name: "b", Applier: optional, Optional: true}},
		OnBranchFailure: func(_ context.Context, r int, _ string, _ error) { failed = append(failed, r) },
	})
	require.NoError(t, asBatch(f).ApplyBatch(t.Context(), numbers(6)))
	require.Equal(t, []int{1, 4}, failed)
	require.Equal(t, []int{0, 2, 3, 5}, optional.applied)
	require.Len(t, optional.calls, 3)
}

// An undecodable row ends the call, so that none of its key overtakes it.
func TestOrderedBatches_NothingOvertakesAnUndecodableRow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOrdered(1)
		bad := true
		decoding := courier.NewDecodingApplier[int](o, func(r int) (int, error) {
			if r == 2 && bad {
				bad = false
				return 0, errTest
			}
			return r, nil
		})
		source := newShelf(numbers(5)...)
		stop := start(t, courier.NewPollingCoordinator(source, decoding, courier.WithOrderKey(byRest(1)), quiet))
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		require.Empty(t, source.left())
		require.Empty(t, o.problems)
		require.Equal(t, numbers(5), o.applied)
	})
}

// A list that says of every record that it is behind another one is not believed: the
// call is not made again at once, without end.
func TestOrderedBatches_AllBehindIsNoProgress(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		s := &batchSink[int]{failBatch: func(_ context.Context, records []int, _ int) error {
			var list courier.BatchError
			for i := range records {
				list.Add(i, courier.ErrBehindFailed)
			}
			return list.ErrorOrNil()
		}}
		source.add(numbers(4)...)
		stop := start(t, make(s, unspread))
		time.Sleep(3 * time.Second)
		require.NoError(t, stop())
		require.Len(t, source.left(), 4)
		require.Less(t, len(s.batches), 20)
	})
}

// A record that asks for another time while an earlier one of its key was left behind a
// failed one waits for that: it does not hold the earlier one back, and none goes past it.
func TestOrderedBatches_AWaitingRecordHoldsNoEarlierOneOfItsKeyBack(t *testing.T) {
	for _, pauses := range []bool{false, true} {
		t.Run(choose(pauses, "behind a pause", "behind a failure"), func(t *testing.T) {
			both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
				began := time.Now()
				var applied []int
				first := true
				applier := courier.BatchProcessFunc(func(_ context.Context, records []int) error {
					var list courier.BatchError
					waits := false
					for i, r := range records {
						switch now := time.Since(began); {
						case r == 0 && now < time.Second && pauses:
							list.Add(i, &courier.OpenError{Until: began.Add(time.Second)})
						case r == 0 && now < time.Second:
							list.Add(i, errTest)
						case r == 1 && first, r == 3 && waits:
							list.Add(i, courier.ErrBehindFailed)
						case r == 2 && now < 5*time.Second:
							waits = true
							list.Add(i, courier.Later(errTest, 5*time.Second-now))
						default:
							applied = append(applied, r)
						}
					}
					first = false
					return list.ErrorOrNil()
				})
				source.add(numbers(4)...)
				key := func(r int) string { return strconv.Itoa(min(r, 1)) }
				stop := start(t, make(boasting{applier}, unspread, courier.WithWorkers(1), courier.WithOrderKey(key)))
				time.Sleep(time.Minute)
				require.NoError(t, stop())
				require.Empty(t, source.left())
				require.Equal(t, []int{1, 2, 3}, slices.DeleteFunc(applied, func(r int) bool { return r == 0 }))
			})
		})
	}
}

// An applier that breaks its promise is believed about what it has applied.
func TestOrderedBatches_WhatWasAppliedBehindAFailedOneIsMarked(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		var r courierttest.Recorder[int]
		broken := r.BatchApplier(courierttest.Faults{{Effect: courierttest.Error, When: courierttest.And(courierttest.OnRecord("0"), courierttest.Attempts(1, 1))}})
		source.add(numbers(3)...)
		stop := start(t, make(boasting{broken}, unspread, courier.WithOrderKey(byRest(1))))
		time.Sleep(time.Millisecond)
		synctest.Wait()
		require.Equal(t, []string{"1", "2"}, r.Names(courierttest.Applied))
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		require.Equal(t, []string{"1", "2", "0"}, r.Names(courierttest.Applied))
	})
}

// boasting says that it keeps an order.
type boasting struct{ courier.BatchApplier[int] }

func (boasting) OrderedBatches() bool { return true }

// A stop in the middle of a call leaves what was not begun, in order, for the next run.
func TestOrderedBatches_AStopInTheMiddle(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		o := newOrdered(2)
		o.cost = time.Second
		o.fates[3] = fate{"fail", 1}
		source.add(numbers(20)...)
		stop := start(t, make(o, unspread, courier.WithOrderKey(o.key), courier.WithApplyBatchSize(5)))
		time.Sleep(500 * time.Millisecond)
		require.NoError(t, stop())
		require.Equal(t, []int{0, 1, 2}, o.applied)
		require.Len(t, source.left(), 17)
		stop = start(t, make(o, unspread, courier.WithOrderKey(o.key), courier.WithApplyBatchSize(5)))
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		require.Empty(t, source.left())
		require.Empty(t, o.problems)
		require.Len(t, o.applied, 20)
	})
}

// What the stop keeps a retry from attempting is not overtaken in the same call.
func TestOrderedBatches_NothingOvertakesARetryThatAStopInterrupts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOrdered(1)
		o.key = func(r int) string { return []string{"x", "y", "a", "a"}[r] }
		o.goesOn = true
		o.fates = map[int]fate{0: {"later", 1}, 1: {"later", 1}, 2: {"fail", 1}}
		o.began = func(call int) {
			if call == 3 {
				time.Sleep(time.Second)
			}
		}
		var marked collector
		retry := courier.NewRetryableApplier[int](o, courier.RetryPolicy{InitialDelay: 3 * time.Second, Jitter: courier.NoJitter})
		ch := make(chan int, 4)
		for r := range 4 {
			ch <- r
		}
		stop := start(t, courier.NewStreamingCoordinator(courier.NewChannelSource(ch, marked.mark), retry, quiet,
			courier.WithOrderKey(o.key), courier.WithApplyBatchSize(2), courier.WithFlushInterval(time.Millisecond)))
		time.Sleep(3500 * time.Millisecond)
		require.Equal(t, [][]int{{0, 1}, {2, 3}, {0, 1}}, o.called())
		var left *courier.UnsettledError[int]
		require.ErrorAs(t, stop(), &left)
		require.Equal(t, []int{2, 3}, left.Records)
		require.Equal(t, []int{0, 1}, marked.all())
		require.Empty(t, o.problems)
	})
}

// A queue that keeps the order of keys parks what is behind a parked record in the same
// call, and leaves what is behind one that stays pending.
func TestOrderedBatches_DeadLetterKeys(t *testing.T) {
	o := newOrdered(2)
	o.goesOn = true
	o.fates = map[int]fate{0: {"permanent", 1}, 1: {"refuse", 1}}
	queue, policy := o.parks(true)
	dlq := courier.NewDLQApplier[int](o, queue, policy)
	var list *courier.BatchError
	require.ErrorAs(t, asBatch(dlq).ApplyBatch(t.Context(), numbers(4)), &list)
	require.Len(t, list.Failures, 2)
	require.Equal(t, 3, list.Failures[1].Index)
	require.ErrorIs(t, list.Failures[1].Err, courier.ErrConfig, "why the one before it is pending")
	letters, err := queue.List(t.Context(), "", 10)
	require.NoError(t, err)
	require.Len(t, letters, 2)
	require.Equal(t, courier.ReasonKeyParked, letters[1].Reason)
	require.Len(t, o.calls, 1)
}

// The key of the dead letters may be finer than that of the order: a record that could
// not be parked is not overtaken by one of another dead letter key.
func TestOrderedBatches_NothingOvertakesARecordThatCouldNotBeParked(t *testing.T) {
	var r courierttest.Recorder[int]
	queue := r.DLQ(0)
	require.NoError(t, queue.Send(t.Context(), courier.DeadLetter[int]{Record: 7, Key: "0"}))
	queue.SendFaults.Set(courierttest.Fault{Effect: courierttest.Error})
	o := newOrdered(1)
	dlq := courier.NewDLQApplier[int](o, courier.DLQ[int](queue), courier.DLQPolicy[int]{Key: func(r int) string { return fmt.Sprint(r) }})
	var list *courier.BatchError
	require.ErrorAs(t, asBatch(dlq).ApplyBatch(t.Context(), []int{0, 1}), &list)
	require.Len(t, list.Failures, 2)
	require.ErrorIs(t, list.Failures[0].Err, courier.ErrPark)
	require.Equal(t, courier.ErrBehindFailed, list.Failures[1].Err)
	require.Empty(t, o.applied)
}

// Whatever fails, and however: the records of a key are applied in the order fetched, no
// two calls have them at once, and each is settled once.
func TestOrderedBatches_Property(t *testing.T) {
	kinds := []string{"fail", "whole", "panic", "goexit", "later", "refuse", "skip", "permanent"}
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 60).Draw(rt, "records")
		keys := rapid.SampledFrom([]int{1, 2, 5, 100}).Draw(rt, "keys")
		workers := rapid.IntRange(1, 4).Draw(rt, "workers")
		portion := rapid.SampledFrom([]int{0, 1, 7, 100}).Draw(rt, "portion")
		size := rapid.SampledFrom([]int{10, 100}).Draw(rt, "batch size")
		shape := rapid.SampledFrom([]string{"polling", "leasing", "streaming"}).Draw(rt, "shape")
		stack := rapid.SampledFrom([]string{"plain", "retry", "DLQ", "DLQ(retry)", "keyed DLQ(retry)", "ResilientApplier", "fan-out"}).Draw(rt, "stack")
		goesOn := rapid.Bool().Draw(rt, "goes on with other keys")
		stops := rapid.SliceOfN(rapid.IntRange(1, 3000), 0, 2).Draw(rt, "stops after ms")
		o := newOrdered(keys)
		o.goesOn, o.cost = goesOn, time.Millisecond
		for range rapid.IntRange(0, 6).Draw(rt, "bad ones") {
			o.fates[rapid.IntRange(0, n-1).Draw(rt, "bad")] = fate{rapid.SampledFrom(kinds).Draw(rt, "kind"), rapid.IntRange(1, 3).Draw(rt, "times")}
		}
		synctest.Test(t, func(t *testing.T) {
			half := func() float64 { return 0.5 }
			policy := courier.RetryPolicy{MaxAttempts: 20, Random: half}
			queue, parking := o.parks(stack == "keyed DLQ(retry)")
			applier := courier.Applier[int](o)
			twin := newOrdered(keys)
			switch stack {
			case "retry":
				applier = courier.NewRetryableApplier(applier, policy)
			case "DLQ":
				applier = courier.NewDLQApplier(applier, queue, parking)
			case "DLQ(retry)", "keyed DLQ(retry)":
				applier = courier.NewDLQApplier(courier.NewRetryableApplier(applier, policy), queue, parking)
			case "ResilientApplier":
				applier, _ = courier.ResilientApplier(applier, &courier.ResilientConfig[int]{Retry: policy, DLQ: queue, Parking: parking})
			case "fan-out":
				applier = courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: []courier.Branch[int]{
					{Name: "a", Applier: courier.NewRetryableApplier(applier, policy)}, {Name: "b", Applier: twin},
				}, Identity: func(r int) string { return fmt.Sprint(r) }})
			}
			source := newLeasing(numbers(n)...)
			source.wait = shape == "streaming"
			run := func() (stop func() error) {
				opts := []courier.Option{quiet, unspread, courier.WithBatchSize(size), courier.WithOrderKey(o.key)}
				if portion > 0 {
					opts = append(opts, courier.WithApplyBatchSize(portion))
				}
				switch shape {
				case "polling":
					return start(t, courier.NewPollingCoordinator[int](source.shelf, applier, append(opts, courier.WithWorkers(workers))...))
				case "leasing":
					return start(t, courier.NewPollingCoordinator[int](source, applier, append(opts, courier.WithWorkers(workers))...))
				}
				return start(t, courier.NewStreamingCoordinator[int](source, applier, append(opts, courier.WithStreamWorkers(workers))...))
			}
			for _, ms := range stops {
				stop := run()
				time.Sleep(time.Duration(ms) * time.Millisecond)
				if err := stop(); err != nil {
					rt.Fatalf("stopped with an error: %v", err)
				}
			}
			stop := run()
			time.Sleep(time.Hour)
			if err := stop(); err != nil {
				rt.Fatalf("stopped with an error: %v", err)
			}
			if left := source.left(); len(left) > 0 {
				rt.Fatalf("not settled: %v", left)
			}
		})
		if len(o.problems) > 0 {
			rt.Fatalf("%q", o.problems)
		}
		for r := range n {
			if !o.settled[r] {
				rt.Fatalf("record %d is marked, and not settled", r)
			}
		}
		if n >= 2*keys && portion != 1 && o.shared() == 0 {
			rt.Fatalf("no two records of a key have shared a call: %v", o.calls)
		}
	})
}

func TestOrderedBatches_ErrBehindFailed(t *testing.T) {
	require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), courier.ErrBehindFailed))
	require.EqualError(t, courier.ErrBehindFailed, "not attempted: an earlier record of the same call has failed")
	require.False(t, errors.Is(courier.ErrBehindFailed, courier.ErrOpen))
}

// What is behind a record that is given up waits for it to be settled, and does not go
// along with the retry of another one.
func TestOrderedBatches_ARetryDoesNotTakeAlongWhatIsBehindAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOrdered(2)
		o.goesOn = true
		o.fates[0], o.fates[1] = fate{"fail", 1}, fate{"permanent", 1}
		err := courier.NewRetryableApplier(o, courier.RetryPolicy{}).(courier.BatchApplier[int]).ApplyBatch(t.Context(), []int{0, 1, 2, 3})
		require.Equal(t, [][]int{{0, 1, 2, 3}, {0}}, o.calls)
		require.Empty(t, o.problems)
		var list *courier.BatchError
		require.ErrorAs(t, err, &list)
		left := map[int]courier.ErrorClass{}
		for _, f := range list.Failures {
			left[f.Index] = courier.Classify(t.Context(), f.Err)
		}
		require.Equal(t, map[int]courier.ErrorClass{1: courier.ClassPermanent, 2: courier.ClassNotAttempted, 3: courier.ClassNotAttempted}, left)
	})
}

// orderedShelf is a source whose order is to be kept.
type orderedShelf struct{ shelf[int] }

func (*orderedShelf) Ordered() bool { return true }

// D4: who may break the order of a source that has one is told so when the coordinator
// first runs.
func TestOrderedBatches_TheApplierThatMayBreakTheOrderIsTold(t *testing.T) {
	single := courier.ProcessFunc(func(context.Context, int) error { return nil })
	batch := courier.BatchProcessFunc(func(context.Context, []int) error { return nil })
	byKey := courier.WithOrderKey(func(n int) string { return strconv.Itoa(n) })
	for name, test := range map[string]struct {
		source  courier.Source[int]
		applier courier.Applier[int]
		option  courier.Option
		told    bool
	}{
		"a batch applier":                         {&orderedShelf{}, batch, courier.WithWorkers(1), true},
		"several workers":                         {&orderedShelf{}, single, courier.WithWorkers(2), true},
		"a batch applier with an order key":       {&orderedShelf{}, batch, byKey, false},
		"one worker":                              {&orderedShelf{}, single, courier.WithWorkers(1), false},
		"a breaker":                               {&orderedShelf{}, courier.NewCircuitBreakerApplier(single, courier.NewBreaker(courier.BreakerPolicy{})), courier.WithWorkers(1), true},
		"a breaker with an order key":             {&orderedShelf{}, courier.NewCircuitBreakerApplier(single, courier.NewBreaker(courier.BreakerPolicy{})), byKey, false},
		"an applier that keeps the order":         {&orderedShelf{}, newOrdered(3), courier.WithWorkers(1), false},
		"a batch applier of a source without one": {&shelf[int]{}, batch, courier.WithWorkers(2), false},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			c := courier.NewPollingCoordinator(test.source, test.applier, test.option, courier.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
			for range 2 {
				require.NoError(t, c.RunOnce(t.Context()))
			}
			require.Equal(t, map[bool]int{true: 1}[test.told], strings.Count(log.String(), "the order of the source may be broken"), log.String())
		})
	}
}

// orderly is a batch applier that keeps the order, as the function does.
type orderly struct {
	courier.BatchApplier[int]
}

func (orderly) OrderedBatches() bool { return true }

// D4: a record that is refused behind one of its key, which is refused too and waits in hand
// for its next attempt, stays behind that in hand. At the source it would be overtaken by one
// that is fetched meanwhile.
func TestD4_OrderedBatches_WhatIsRefusedBehindAWaitingRecordStaysInHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &renewable{leasing: newLeasing[int](), every: time.Hour, renew: func(context.Context, []int) error { return nil }}
		var got []int
		calls := 0
		applier := orderly{courier.BatchProcessFunc(func(_ context.Context, records []int) error {
			err := error(rateLimited{})
			if calls++; calls == 1 {
				err = courier.Later(errTest, 100*time.Millisecond)
			}
			if records[0] == 1 && calls < 4 {
				return err // of all records: the first failed, and those behind it were not attempted
			}
			got = append(got, records...)
			return nil
		})}
		source.add(1)
		stop := start(t, courier.NewPollingCoordinator(source, applier, quiet, unspread, courier.WithOrderKey(func(int) string { return "a" }), courier.WithInterval(100*time.Millisecond),
			courier.WithObserver(courier.Observer{Released: func(_ context.Context, e courier.ReleaseEvent) { t.Errorf("released: %+v", e) }})))
		time.Sleep(50 * time.Millisecond)
		source.add(2) // is fetched when the first is due
		time.Sleep(100 * time.Millisecond)
		source.add(3)
		time.Sleep(5 * time.Second)
		require.NoError(t, stop())
		require.Equal(t, []int{1, 2, 3}, got)
	})
}
