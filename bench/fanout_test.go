package bench

import (
	"context"
	"strconv"
	"sync"
	"testing"

	"github.com/erfanmomeniii/courier"
)

// branches beside the failing one.
const branches = 2

// The floor of a fan-out: a goroutine for each branch, and an error each.
func BenchmarkFanOut_Floor(b *testing.B) {
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		var wg sync.WaitGroup
		errs := make([]error, branches)
		for i := range branches {
			wg.Go(func() { errs[i] = nop(ctx, i) })
		}
		wg.Wait()
	}
}

func nop(context.Context, int) error { return nil }

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
	f := courier.NewFanOut(c)
	for i := range waiting {
		if f.Apply(b.Context(), -1-i) == nil {
			b.Fatal("a record was applied that should wait")
		}
	}
	return f
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
	ctx, in := context.Background(), records(batch)
	b.ReportAllocs()
	for b.Loop() {
		if err := applier.(courier.BatchApplier[int]).ApplyBatch(ctx, in); err != nil {
			b.Fatal(err)
		}
	}
	perRecord(b, batch)
}
