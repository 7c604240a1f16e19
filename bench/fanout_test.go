package bench

import (
	"context"
	"strconv"
	"sync"
	"testing"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/bench/internal/meter"
)

// What a record costs that goes to several destinations, also while others are
// remembered as delivered to some of them only.

// branches beside the failing one.
const branches = 2

// The floor of a fan-out: a goroutine for each branch, and an error each.
func BenchmarkFanOut_Floor(b *testing.B) {
	ctx := b.Context()
	meter.Records(b, 1, func(records int) {
		for range records {
			var wg sync.WaitGroup
			errs := make([]error, branches+1)
			for i := range errs {
				wg.Go(func() { errs[i] = nop(ctx, i) })
			}
			wg.Wait()
		}
	})
}

// fanOut is one whose branches take no time. waiting is how many records it
// remembers as delivered to some branches only.
func fanOut(b *testing.B, applier courier.Applier[int], waiting int) courier.Applier[int] {
	b.Helper()
	c := courier.FanOutConfig[int]{Identity: strconv.Itoa}
	for i := range branches {
		c.Branches = append(c.Branches, courier.Branch[int]{Name: strconv.Itoa(i), Applier: applier})
	}
	c.Branches = append(c.Branches, courier.Branch[int]{Name: "failing", Applier: courier.ProcessFunc(func(_ context.Context, n int) error {
		if n < 0 {
			return courier.ErrStopped
		}
		return nil
	})})
	f := courier.NewFanOutFromConfig(c)
	for i := range waiting {
		if f.Apply(b.Context(), -1-i) == nil {
			b.Fatal("a record was applied that should wait")
		}
	}
	return f
}

func apply(b *testing.B, applier courier.Applier[int]) {
	b.Helper()
	ctx := b.Context()
	meter.Records(b, 1, func(records int) {
		for range records {
			if err := applier.Apply(ctx, 1); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkFanOut_One(b *testing.B) { apply(b, fanOut(b, courier.ProcessFunc(nop), 0)) }

func BenchmarkFanOut_OneWhileOthersWait(b *testing.B) {
	apply(b, fanOut(b, courier.ProcessFunc(nop), 1000))
}

type sinkOfBatches struct{}

func (sinkOfBatches) Apply(context.Context, int) error        { return nil }
func (sinkOfBatches) ApplyBatch(context.Context, []int) error { return nil }

func BenchmarkFanOut_Batch(b *testing.B) { applyBatch(b, fanOut(b, sinkOfBatches{}, 0)) }

func BenchmarkFanOut_BatchWhileOthersWait(b *testing.B) {
	applyBatch(b, fanOut(b, sinkOfBatches{}, 1000))
}

func applyBatch(b *testing.B, applier courier.Applier[int]) {
	b.Helper()
	ctx, in := b.Context(), records(batch)
	batches := applier.(courier.BatchApplier[int])
	meter.Records(b, batch, func(n int) {
		for range n {
			if err := batches.ApplyBatch(ctx, in); err != nil {
				b.Fatal(err)
			}
		}
	})
}
