package bench

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/bench/internal/meter"
)

// How much of the possible throughput is left where a record takes 1 ms. The
// limit is as many goroutines with loops of their own, that wait for nobody;
// what a coordinator loses against it is workers that stand idle.

func BenchmarkSlow64_Limit(b *testing.B)    { ownLoops(b, 64) }
func BenchmarkSlow64_Courier(b *testing.B)  { slowStream(b, 64) }
func BenchmarkSlow256_Limit(b *testing.B)   { ownLoops(b, 256) }
func BenchmarkSlow256_Courier(b *testing.B) { slowStream(b, 256) }

// slowRecords is what a worker has to do in an operation: enough for the end of
// the run, when there is not work for all any more, to be small beside it.
const slowRecords = 500

func slow(context.Context, int) error {
	time.Sleep(time.Millisecond)
	return nil
}

func ownLoops(b *testing.B, workers int) {
	b.Helper()
	ctx := b.Context()
	meter.Records(b, workers*slowRecords, func(operations int) {
		var next atomic.Int64
		var all sync.WaitGroup
		for range workers {
			all.Go(func() {
				for next.Add(1) <= int64(operations*workers*slowRecords) {
					_ = slow(ctx, 0)
				}
			})
		}
		all.Wait()
	})
}

// Many workers want much in hand: what has been applied and not marked, and what
// is being fetched, is in nobody's work.
func slowStream(b *testing.B, workers int) {
	b.Helper()
	in := records(1024)
	meter.Records(b, workers*slowRecords, func(operations int) {
		source := newFeed(in, operations*workers*slowRecords, func() {})
		err := courier.NewStreamingCoordinator(source, courier.ProcessFunc(slow),
			courier.WithStreamWorkers(workers), courier.WithBatchSize(len(in)), courier.WithPrefetch(7), quiet).Start(b.Context())
		if err != nil {
			b.Error(err)
		}
	})
}
