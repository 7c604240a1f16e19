package bench

import (
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/bench/internal/byhand"
	"github.com/erfanmomeniii/courier/bench/internal/meter"
)

// What a record costs in a pass of one worker: fetch a batch, apply it in
// order, mark it, fetch the next.

func BenchmarkPass_Floor(b *testing.B) {
	in := records(batch)
	meter.Records(b, batch, func(batches int) { byhand.Pass(b.Context(), batches, in, nop) })
}

func BenchmarkPass_Courier(b *testing.B) {
	poll(b, records(batch), courier.ProcessFunc(nop))
}

// The same with an applier that takes the whole batch in one call.
func BenchmarkPass_CourierBatch(b *testing.B) {
	poll(b, records(batch), courier.Applier[int](sinkOfBatches{}))
}

func BenchmarkPass_HandWritten(b *testing.B) {
	in := records(batch)
	h := &byhand.RetryBreaker{Process: nop, Sleep: time.Sleep}
	meter.Records(b, batch, func(batches int) { byhand.Pass(b.Context(), batches, in, h.Apply) })
}

func BenchmarkPass_CourierResilient(b *testing.B) {
	applier, _ := courier.ResilientApplier(courier.ProcessFunc(nop), nil)
	poll(b, records(batch), applier)
}
