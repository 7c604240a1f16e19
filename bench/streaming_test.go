package bench

import (
	"context"
	"sync"
	"testing"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/bench/internal/meter"
)

// What a record costs that comes by a channel and is applied by one of four
// workers.

const streamWorkers = 4

// The floor that a user would write: a buffered channel, and a select so that
// nobody waits for ever.
func BenchmarkStream_Floor(b *testing.B) {
	ctx, process := b.Context(), courier.ProcessFunc(nop)
	meter.Records(b, 1, func(records int) {
		ch := make(chan int, batch)
		var workers sync.WaitGroup
		for range streamWorkers {
			workers.Go(func() {
				for {
					select {
					case record, ok := <-ch:
						if !ok {
							return
						}
						_ = process.Apply(ctx, record)
					case <-ctx.Done():
						return
					}
				}
			})
		}
		send(ctx, ch, records)
		workers.Wait()
	})
}

func send(ctx context.Context, ch chan<- int, records int) {
	defer close(ch)
	for i := range records {
		select {
		case ch <- i:
		case <-ctx.Done():
			return
		}
	}
}

// The floor of all that move records between goroutines: one channel operation
// for 64 of them. It asks the producer to collect a slice first.
func BenchmarkStream_Slices(b *testing.B) {
	const size = 64
	ctx, process := b.Context(), courier.ProcessFunc(nop)
	meter.Records(b, size, func(slices int) {
		ch := make(chan []int, batch/size)
		var workers sync.WaitGroup
		for range streamWorkers {
			workers.Go(func() {
				for slice := range ch {
					for _, record := range slice {
						_ = process.Apply(ctx, record)
					}
				}
			})
		}
		in := records(size)
		for range slices {
			ch <- in
		}
		close(ch)
		workers.Wait()
	})
}

func BenchmarkStream_Courier(b *testing.B) {
	ctx := b.Context()
	meter.Records(b, 1, func(records int) {
		ch := make(chan int, batch)
		source := courier.NewChannelSource(ch, func(context.Context, []int) error { return nil })
		coordinator := courier.NewStreamingCoordinator(source, courier.ProcessFunc(nop),
			courier.WithStreamWorkers(streamWorkers), courier.WithBatchSize(batch), quiet)
		var producer sync.WaitGroup
		producer.Go(func() { send(ctx, ch, records) })
		if err := coordinator.Start(ctx); err != nil {
			b.Error(err)
		}
		producer.Wait()
	})
}

// The same from a source that has records at any time, without a channel.
func BenchmarkStream_CourierSource(b *testing.B) {
	stream(b, records(batch), courier.ProcessFunc(nop), courier.WithStreamWorkers(streamWorkers))
}
