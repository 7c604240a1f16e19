//go:build !race

package courier_test

// Allocations are counted exactly; the race detector adds its own.

import (
	"context"
	"io"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

func TestAllocs_ASuccessAllocatesNothing(t *testing.T) {
	ctx := t.Context()
	for name, applier := range stacks(courier.ProcessFunc(nop[int])) {
		t.Run(name, func(t *testing.T) {
			require.Zero(t, testing.AllocsPerRun(1000, func() { _ = applier.Apply(ctx, 1) }))
		})
	}
}

// A batch that succeeds pays into a budget as one.
func TestAllocs_ABudgetCostsABatchNothing(t *testing.T) {
	ctx, records := t.Context(), numbers(100)
	cost := func(budget *courier.RetryBudget) float64 {
		applier := courier.NewRetryableApplier(courier.Applier[int](eachOfBatch[int]{courier.ProcessFunc(nop[int])}), courier.RetryPolicy{Budget: budget})
		return testing.AllocsPerRun(100, func() { _ = applier.(courier.BatchApplier[int]).ApplyBatch(ctx, records) })
	}
	require.Equal(t, cost(nil), cost(courier.NewRetryBudget(courier.BudgetPolicy{})))
}

// Nor does one of a keyed breaker, whether or not its key has failed before, and in a batch
// no record does.
func TestAllocs_ASuccessOfAKeyedBreakerAllocatesNothing(t *testing.T) {
	ctx := t.Context()
	fails := true
	apply := courier.ProcessFunc(func(_ context.Context, r int) error {
		if fails && r == 1 {
			return errTest
		}
		return nil
	})
	keys := []string{"a", "b"}
	for _, policy := range []courier.BreakerPolicy{{}, {FailureRate: 0.9}} {
		applier, _ := courier.ResilientApplier(apply, &courier.ResilientConfig[int]{Breaker: policy, BreakerKey: func(r int) string { return keys[r%2] }})
		keyed := courier.NewKeyedCircuitBreakerApplier(apply, func(r int) string { return keys[r%2] }, policy)
		fails = true
		require.Error(t, keyed.Apply(ctx, 1))
		fails = false
		for r := range 2 {
			_ = applier.Apply(ctx, r)
			_ = keyed.Apply(ctx, r)
			require.Zero(t, testing.AllocsPerRun(1000, func() { _ = applier.Apply(ctx, r) }))
			require.Zero(t, testing.AllocsPerRun(1000, func() { _ = keyed.Apply(ctx, r) }))
		}
		batch := courier.NewKeyedCircuitBreakerApplier(courier.Applier[int](eachOfBatch[int]{apply}), func(r int) string { return keys[r%2] }, policy)
		cost := func(n int) float64 {
			records := numbers(n)
			return testing.AllocsPerRun(100, func() { _ = batch.ApplyBatch(ctx, records) })
		}
		require.InDelta(t, cost(10), cost(1000), 1)
	}
}

func TestAllocs_ARejectionAllocatesNothing(t *testing.T) {
	ctx := t.Context()
	for name, applier := range stacks(courier.NewCircuitBreakerApplier(
		courier.ProcessFunc(func(context.Context, int) error { return errTest }),
		courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, OpenFor: time.Hour, MaxOpenFor: time.Hour}))) {
		t.Run(name, func(t *testing.T) {
			_ = applier.Apply(ctx, 1) // opens it
			require.Zero(t, testing.AllocsPerRun(1000, func() { _ = applier.Apply(ctx, 1) }))
		})
	}
}

// A pass costs the same whatever its length: nothing is allocated per record.
func TestAllocs_APassAllocatesNothingPerRecord(t *testing.T) {
	pass := func(n int, applier courier.Applier[int]) float64 {
		records := numbers(n)
		c := courier.NewPollingCoordinator(courier.BatchSourceFunc[int]{
			FetchFunc: func(context.Context) ([]int, error) { return records, nil },
			MarkFunc:  func(context.Context, []int) error { return nil },
		}, applier, courier.WithBatchSize(n), quiet)
		return testing.AllocsPerRun(50, func() { _ = c.RunOnce(context.Background()) })
	}
	for name, applier := range stacks(courier.ProcessFunc(nop[int])) {
		t.Run(name, func(t *testing.T) {
			require.InDelta(t, pass(10, applier), pass(10_000, applier), 2)
		})
	}
}

// Nor is it with workers, an order by key aside, which has a list of keys.
func TestAllocs_WorkersAllocateNothingPerRecord(t *testing.T) {
	for _, workers := range []int{4, 16} {
		pass := func(n int) float64 {
			records := numbers(n)
			c := courier.NewPollingCoordinator(courier.BatchSourceFunc[int]{
				FetchFunc: func(context.Context) ([]int, error) { return records, nil },
				MarkFunc:  func(context.Context, []int) error { return nil },
			}, courier.ProcessFunc(nop[int]), courier.WithBatchSize(n), courier.WithWorkers(workers), quiet)
			return testing.AllocsPerRun(50, func() { _ = c.RunOnce(context.Background()) })
		}
		require.InDelta(t, pass(1000), pass(100_000), 5, "%d workers", workers)
	}
}

// sameBatch is a streaming source of the same batch, some times over.
type sameBatch struct {
	records []int
	left    int
}

func (b *sameBatch) Fetch(_ context.Context, limit int) ([]int, error) {
	if b.left--; b.left < 0 {
		return nil, io.EOF
	}
	return b.records[:min(limit, len(b.records))], nil
}

func (*sameBatch) Mark(context.Context, []int) error { return nil }

// A stream allocates for batches and shares, and not for records.
func TestAllocs_AStreamAllocatesNothingPerRecord(t *testing.T) {
	const batch = 10_000
	run := func(times int) float64 {
		records := numbers(batch)
		return testing.AllocsPerRun(5, func() {
			c := courier.NewStreamingCoordinator[int](&sameBatch{records, times}, courier.ProcessFunc(nop[int]), courier.WithBatchSize(batch), courier.WithStreamWorkers(4), quiet)
			require.NoError(t, c.Start(context.Background()))
		})
	}
	require.Less(t, (run(100)-run(10))/(90*batch), 0.01)
}

// A record that failed once costs the context that carries its attempt.
func TestAllocs_ARetryAllocatesOnce(t *testing.T) {
	failing := false
	applier := courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error {
		if failing = !failing; failing {
			return errTest
		}
		return nil
	}), courier.RetryPolicy{Clock: instantly{}})
	ctx := t.Context()
	for _, record := range []int{1, 1000} { // which Go boxes without an allocation, and with one
		require.LessOrEqual(t, testing.AllocsPerRun(1000, func() { _ = applier.Apply(ctx, record) }), 1.0)
	}
}

// instantly is a clock for which every wait is over.
type instantly struct{}

var over = func() chan time.Time { ch := make(chan time.Time); close(ch); return ch }()

func (instantly) Now() time.Time                       { return time.Time{} }
func (instantly) After(time.Duration) <-chan time.Time { return over }

// A fan-out pays for its goroutines, by branch. In a batch nothing is allocated
// by record, and the memory costs nothing while no record waits.
func TestAllocs_AFanOut(t *testing.T) {
	ctx := t.Context()
	for n, want := range map[int]struct{ one, batch float64 }{1: {2, 10}, 3: {9, 27}, 8: {19, 62}} {
		var single, many []courier.Branch[int]
		for i := range n {
			single = append(single, courier.Branch[int]{Name: strconv.Itoa(i), Applier: courier.ProcessFunc(nop[int])})
			many = append(many, courier.Branch[int]{Name: strconv.Itoa(i), Applier: takesAll{}})
		}
		one := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: single, Identity: strconv.Itoa})
		require.LessOrEqual(t, testing.AllocsPerRun(1000, func() { _ = one.Apply(ctx, 1) }), want.one, "%d branches", n)
		batch := asBatch(courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: many, Identity: strconv.Itoa}))
		for _, size := range []int{1, 10_000} {
			records := numbers(size)
			require.LessOrEqual(t, testing.AllocsPerRun(100, func() { _ = batch.ApplyBatch(ctx, records) }), want.batch, "%d branches, %d records", n, size)
		}
	}
}

type takesAll struct{ courier.BatchApplier[int] }

func (takesAll) ApplyBatch(context.Context, []int) error { return nil }
