//go:build !race

package courier_test

// Allocations are counted exactly; the race detector adds its own.

import (
	"context"
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
