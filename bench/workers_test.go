package bench

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/bench/internal/meter"
)

// What a record costs in a pass of many workers. The floor is a batch handed
// out by an atomic index to goroutines that live as long as the run; the next
// batch begins when the last record of this one is done, as it must where a
// batch is marked before the next is fetched.

func BenchmarkWorkers4_Floor(b *testing.B)  { handOut(b, 4, nop) }
func BenchmarkWorkers16_Floor(b *testing.B) { handOut(b, 16, nop) }

func BenchmarkWorkers4_Courier(b *testing.B)  { pollWith(b, 4) }
func BenchmarkWorkers16_Courier(b *testing.B) { pollWith(b, 16) }

// In order within each of 100 keys.
func BenchmarkWorkers4_CourierByKey(b *testing.B) {
	keys := make([]string, 100)
	for i := range keys {
		keys[i] = strconv.Itoa(i)
	}
	pollWith(b, 4, courier.WithOrderKey(func(record int) string { return keys[record%len(keys)] }))
}

func pollWith(b *testing.B, workers int, opts ...courier.Option) {
	b.Helper()
	poll(b, records(batch), courier.ProcessFunc(nop), append(opts, courier.WithWorkers(workers))...)
}

func handOut(b *testing.B, workers int, process func(context.Context, int) error) {
	b.Helper()
	ctx, in := b.Context(), records(batch)
	errs := make([]error, batch)
	var next atomic.Int64
	var done sync.WaitGroup // the barrier
	begin := make(chan struct{}, workers)
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for range begin {
				for i := next.Add(1) - 1; i < int64(len(in)); i = next.Add(1) - 1 {
					errs[i] = process(ctx, in[i])
				}
				done.Done()
			}
		})
	}
	meter.Records(b, batch, func(batches int) {
		for range batches {
			next.Store(0)
			done.Add(workers)
			for range workers {
				begin <- struct{}{}
			}
			done.Wait()
		}
	})
	close(begin)
	all.Wait()
}
