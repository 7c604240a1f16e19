package bench

import (
	"context"
	"fmt"
	"testing"

	"github.com/erfanmomeniii/courier"
)

// How the cost of a record depends on the shape of the load. It should not,
// from batches of 100 on.

func BenchmarkShape_PollingBatch(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { poll(b, records(n), courier.ProcessFunc(nop)) })
	}
}

func BenchmarkShape_StreamingBatch(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { stream(b, records(n), courier.ProcessFunc(nop)) })
	}
}

func BenchmarkShape_PollingWorkers(b *testing.B) {
	for _, n := range []int{1, 4, 16, 64, 256} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			poll(b, records(batch), courier.ProcessFunc(nop), courier.WithWorkers(n))
		})
	}
}

// The floor of a pass by workers is not flat itself: each goroutine that is
// woken for a batch has its price, whether or not it gets a record.
func BenchmarkShape_HandOut(b *testing.B) {
	for _, n := range []int{1, 4, 16, 64, 256} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { handOut(b, n, nop) })
	}
}

func BenchmarkShape_StreamingWorkers(b *testing.B) {
	for _, n := range []int{1, 4, 16, 64, 256} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			stream(b, records(batch), courier.ProcessFunc(nop), courier.WithStreamWorkers(n))
		})
	}
}

// message is a record with a payload of its own.
type message struct{ payload []byte }

func BenchmarkShape_PollingPayload(b *testing.B) {
	size := 0
	process := courier.ProcessFunc(func(_ context.Context, m *message) error {
		size += len(m.payload)
		return nil
	})
	for _, n := range []int{64, 1 << 10, 8 << 10, 64 << 10} {
		b.Run(fmt.Sprint(n, "B"), func(b *testing.B) {
			in := make([]*message, batch)
			for i := range in {
				in[i] = &message{make([]byte, n)}
			}
			poll(b, in, process)
		})
	}
}
