package courier_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// An order of decorators that cannot do what it looks like is refused.
func TestComposition_AWrongOrderIsAConfigError(t *testing.T) {
	process := courier.ProcessFunc(nop[int])
	dlq, _ := courier.WithDLQ(process)
	b := newBreaker(3)
	rows := func(a courier.Applier[int]) courier.Applier[string] {
		return courier.NewDecodingApplier(a, func(string) (int, error) { return 0, nil })
	}
	for name, stack := range map[string]interface {
		courier.Applier[int]
		courier.Validator
	}{
		"breaker outside retry":               courier.WithCircuitBreaker(courier.WithRetry(process)).(validated),
		"DLQ inside retry":                    courier.WithRetry(dlq).(validated),
		"DLQ inside breaker":                  courier.WithCircuitBreaker(dlq).(validated),
		"DLQ deep inside retry":               courier.WithRetry(courier.WithCircuitBreaker(dlq)).(validated),
		"retry inside timeout inside breaker": courier.WithCircuitBreaker(courier.NewAttemptTimeoutApplier(courier.WithRetry(process), 1, nil)).(validated),
		"the same breaker twice":              courier.NewCircuitBreakerApplier(courier.NewCircuitBreakerApplier(process, b), b).(validated),
	} {
		t.Run(name, func(t *testing.T) {
			require.ErrorIs(t, stack.Validate(), courier.ErrConfig)
			require.ErrorIs(t, stack.Apply(t.Context(), 1), courier.ErrConfig)
			source := newShelf(1)
			require.ErrorIs(t, courier.NewPollingCoordinator[int](source, stack).Start(t.Context()), courier.ErrConfig)
			require.Zero(t, source.fetchCount())
		})
	}
	require.ErrorIs(t, courier.WithCircuitBreaker(rows(courier.WithRetry(process))).(courier.Validator).Validate(), courier.ErrConfig, "through a decoder")

	for name, stack := range map[string]any{
		"resilient": func() any { a, _ := courier.ResilientApplier(process, nil); return a }(),
		"by hand":   func() any { a, _ := courier.WithDLQ(courier.WithRetry(courier.WithCircuitBreaker(process))); return a }(),
		"resilient in a fan-out": func() any {
			a, _ := courier.ResilientApplier(process, nil)
			return courier.NewFanOutApplier(a, process)
		}(),
		"two breakers":                    courier.NewCircuitBreakerApplier(courier.NewCircuitBreakerApplier(process, b), newBreaker(1)),
		"a retry of one's own in a retry": courier.WithRetry(courier.WithRetry(process)),
	} {
		require.NoError(t, stack.(courier.Validator).Validate(), name)
	}
}

type validated interface {
	courier.Applier[int]
	courier.Validator
}

// C-2: a coordinator asks a breaker that it shares before it fetches.
func TestC2_NothingIsFetchedForAnOpenBreaker(t *testing.T) {
	for name, coordinator := range map[string]func(courier.Source[int], courier.Applier[int]) interface{ Start(context.Context) error }{
		"polling": func(s courier.Source[int], a courier.Applier[int]) interface{ Start(context.Context) error } {
			return courier.NewPollingCoordinator(s, a, quiet)
		},
		"streaming": func(s courier.Source[int], a courier.Applier[int]) interface{ Start(context.Context) error } {
			return courier.NewStreamingCoordinator(s, a, quiet)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBreaker(1)
				_ = courier.NewCircuitBreakerApplier(always(errTest), b).Apply(t.Context(), 1) // another pipeline's
				source := newLeasing(numbers(5)...)
				source.wait = true
				s := &sink[int]{}
				stop := start(t, coordinator(source, courier.NewCircuitBreakerApplier[int](s, b)))
				time.Sleep(10*time.Second - time.Millisecond)
				synctest.Wait()
				require.Zero(t, source.fetchCount())
				time.Sleep(time.Minute)
				require.NoError(t, stop())
				require.ElementsMatch(t, numbers(5), s.got())
			})
		})
	}
}

// C-3, C-4: while the breaker is forced open nobody is busy, and afterwards all
// goes on.
func TestC3_AForcedOpenBreakerKeepsNobodyBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(1)
		b.ForceOpen()
		source := newShelf(numbers(5)...)
		s := &sink[int]{}
		stop := start(t, courier.NewPollingCoordinator(source, courier.NewCircuitBreakerApplier[int](s, b), quiet))
		time.Sleep(24 * time.Hour)
		require.Zero(t, source.fetchCount())
		b.Auto()
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		require.Equal(t, numbers(5), s.got())
	})
}

// C-1: what an outage leaves stays pending, unmarked and in order; only the
// record that showed the destination to be well went before.
func TestC1_WhatAnOutageLeavesStaysPendingAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &destination{began: time.Now(), outage: time.Minute, poison: -1, applied: map[int]int{}}
		var order []int
		stack, _ := courier.ResilientApplier(courier.ProcessFunc(func(ctx context.Context, r int) error {
			err := d.Apply(ctx, r)
			if err == nil {
				order = append(order, r)
			}
			return err
		}), nil)
		source := newShelf(numbers(10)...)
		stop := start(t, courier.NewPollingCoordinator(source, stack, quiet))
		time.Sleep(50 * time.Second)
		synctest.Wait()
		require.Equal(t, numbers(10), source.left())
		require.Empty(t, source.marked())
		time.Sleep(2 * time.Minute)
		require.NoError(t, stop())
		require.Len(t, order, 10)
		require.IsIncreasing(t, order[1:])
	})
}

// C-4: after an open period one record goes for each probe slot, and no other
// until it is back.
func TestC4_OneRecordForAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls, inflight, most atomic.Int32
		var probing atomic.Bool
		b := newBreaker(1)
		applier := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(context.Context, int) error {
			if calls.Add(1) == 1 {
				return errTest
			}
			if n := inflight.Add(1); probing.Load() && n > most.Load() {
				most.Store(n)
			}
			time.Sleep(10 * time.Second)
			inflight.Add(-1)
			return nil
		}), b)
		source := newLeasing(numbers(20)...)
		source.wait = true
		probing.Store(true)
		require.ErrorIs(t, applier.Apply(t.Context(), 0), courier.ErrOpen)
		stop := start(t, courier.NewStreamingCoordinator(source, applier, quiet, courier.WithStreamWorkers(8)))
		time.Sleep(19 * time.Second) // open for 10 s, then the probe is out
		synctest.Wait()
		require.EqualValues(t, 1, most.Load())
		require.EqualValues(t, 2, calls.Load())
		probing.Store(false)
		time.Sleep(5 * time.Minute)
		require.NoError(t, stop())
		require.ElementsMatch(t, numbers(20), source.marked())
	})
}

// marksToo is a queue whose Send marks the record at its source, if it says so.
type marksToo struct {
	courier.DLQ[int]
	marks bool
}

func (q marksToo) MarksRecords() bool { return q.marks }

// Letters of two branches in one queue are told apart by the branches' names.
func TestFanOut_BranchesThatParkInOneQueueUnderOneNameAreRefused(t *testing.T) {
	q, other := courier.NewMemoryDLQ[int](0), courier.NewMemoryDLQ[int](0)
	into := func(q courier.DLQ[int], branch string) courier.Applier[int] {
		return courier.NewDLQApplierWith(courier.ProcessFunc(nop[int]), q, courier.DLQPolicy[int]{Branch: branch})
	}
	resilient := func(branch string) courier.Applier[int] {
		a, _ := courier.ResilientApplier(courier.ProcessFunc(nop[int]), &courier.ResilientConfig[int]{DLQ: q, Parking: courier.DLQPolicy[int]{Branch: branch}})
		return a
	}
	once := into(q, "a")
	for name, branches := range map[string][]courier.Applier[int]{
		"no name":                  {into(q, ""), into(q, "")},
		"one name":                 {into(other, "a"), into(q, "a"), into(q, "a")},
		"inside a decorator":       {into(q, "a"), courier.NewAttemptTimeoutApplier(into(q, "a"), time.Second, nil)},
		"in a fan-out of a branch": {into(q, "a"), courier.NewFanOutApplier(into(other, "a"), into(q, "a"))},
		"resilient":                {resilient(""), resilient("")},
		"another of the store":     {into(twin{q, 1}, "a"), into(twin{q, 2}, "a")},
		"one applier":              {once, once},
	} {
		t.Run(name, func(t *testing.T) {
			err := courier.NewFanOutApplier(branches...).Apply(t.Context(), 1)
			require.ErrorIs(t, err, courier.ErrConfig)
			require.ErrorContains(t, err, "parks in the same dead letter queue as the branch")
			require.ErrorContains(t, err, "DLQPolicy.Branch")
		})
	}
	for name, branches := range map[string][]courier.Applier[int]{
		"names":      {into(q, "a"), into(q, "b"), resilient("")},
		"queues":     {into(q, ""), into(other, "")},
		"one of two": {into(q, ""), courier.ProcessFunc(nop[int])},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, courier.NewFanOutApplier(branches...).Apply(t.Context(), 1))
		})
	}
}

// twin is a queue over the store of others.
type twin struct {
	courier.DLQ[int]
	number int
}

func (q twin) SameQueue(other courier.DLQ[int]) bool {
	o, ok := other.(twin)
	return ok && o.DLQ == q.DLQ
}

// A branch may not mark what the other branches have not got.
func TestFanOut_ABranchThatWouldMarkTheRecordIsRefused(t *testing.T) {
	process := courier.ProcessFunc(nop[int])
	into := func(marks bool) courier.Applier[int] {
		return courier.NewDLQApplier(process, courier.DLQ[int](marksToo{courier.NewMemoryDLQ[int](0), marks}))
	}
	for name, branch := range map[string]courier.Applier[int]{
		"in a branch":              into(true),
		"inside a decorator":       courier.NewAttemptTimeoutApplier(into(true), time.Second, nil),
		"in a fan-out of a branch": courier.NewFanOutApplier(process, into(true)),
	} {
		t.Run(name, func(t *testing.T) {
			fan := courier.NewFanOutApplier(process, branch)
			require.ErrorIs(t, fan.(courier.Validator).Validate(), courier.ErrConfig)
			require.ErrorContains(t, fan.Apply(t.Context(), 1), "marks the record at its source")
		})
	}
	require.NoError(t, courier.NewFanOutApplier(process, into(false)).(courier.Validator).Validate())
	around := courier.NewDLQApplier(courier.NewFanOutApplier(process, process), courier.DLQ[int](marksToo{courier.NewMemoryDLQ[int](0), true}))
	require.NoError(t, around.(courier.Validator).Validate())
}
