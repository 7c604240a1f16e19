//go:build !race

package courier_test

import (
	"context"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

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
