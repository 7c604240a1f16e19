// Package bench measures the core beside its floors: the least code that does
// the same work, in the same run. `make bench` interleaves the cases.
package bench

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
)

const batch = 1000

var quiet = courier.WithLogger(slog.New(slog.DiscardHandler))

func records(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i
	}
	return s
}

// sum keeps the compiler from removing what is measured.
var sum int

func add(_ context.Context, n int) error {
	sum += n
	return nil
}

// perRecord reports what one record of n an operation costs.
func perRecord(b *testing.B, n int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/record")
	b.ReportMetric(0, "ns/op")
}

// The floor of a pass: a plain loop through a func value.
func BenchmarkPass_Floor(b *testing.B) {
	in, fn, ctx := records(batch), add, context.Background()
	done := make([]int, 0, batch)
	b.ReportAllocs()
	for b.Loop() {
		done = done[:0]
		for _, r := range in {
			if fn(ctx, r) == nil {
				done = append(done, r)
			}
		}
		sum += len(done)
	}
	perRecord(b, batch)
}

func pass(b *testing.B, applier courier.Applier[int]) {
	in := records(batch)
	ctx, stop := context.WithCancel(context.Background())
	left := b.N
	c := courier.NewPollingCoordinator(courier.BatchSourceFunc[int]{
		FetchFunc: func(context.Context) ([]int, error) { return in, nil },
		MarkFunc: func(context.Context, []int) error {
			if left--; left == 0 {
				stop()
			}
			return nil
		},
	}, applier, courier.WithBatchSize(batch), quiet)
	b.ReportAllocs()
	b.ResetTimer()
	if err := c.Start(ctx); err != nil {
		b.Fatal(err)
	}
	perRecord(b, batch)
}

func BenchmarkPass_Courier(b *testing.B) { pass(b, courier.ProcessFunc(add)) }

func BenchmarkPass_CourierResilient(b *testing.B) {
	applier, _ := courier.ResilientApplier(courier.ProcessFunc(add), nil)
	pass(b, applier)
}

// The floor of the decorators: a direct call through an interface.
func BenchmarkApply_Floor(b *testing.B) { apply(b, courier.ProcessFunc(add)) }

func apply(b *testing.B, applier courier.Applier[int]) {
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		if err := applier.Apply(ctx, 1); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkApply_Retry(b *testing.B) { apply(b, courier.WithRetry(courier.ProcessFunc(add))) }

func BenchmarkApply_Breaker(b *testing.B) {
	apply(b, courier.WithCircuitBreaker(courier.ProcessFunc(add)))
}

func BenchmarkApply_Resilient(b *testing.B) {
	applier, _ := courier.ResilientApplier(courier.ProcessFunc(add), nil)
	apply(b, applier)
}

// What one would write by hand: a counter under a mutex for a breaker, and a
// loop for the retries.
func BenchmarkApply_HandWritten(b *testing.B) {
	var mu sync.Mutex
	var failures int
	errOpen := errors.New("open")
	fn := add
	apply(b, courier.ProcessFunc(func(ctx context.Context, n int) error {
		var err error
		for attempt := range 5 {
			mu.Lock()
			open := failures >= 5
			mu.Unlock()
			if open {
				return errOpen
			}
			err = fn(ctx, n)
			mu.Lock()
			if err != nil {
				failures++
			} else {
				failures = 0
			}
			mu.Unlock()
			if err == nil {
				return nil
			}
			time.Sleep(time.Duration(attempt) * time.Millisecond)
		}
		return err
	}))
}

// The floor of streaming: a buffered channel, four goroutines, select on ctx.
func BenchmarkStream_Floor(b *testing.B) {
	ctx := b.Context()
	ch := make(chan int, batch)
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for range 4 {
		wg.Go(func() {
			n := 0
			for {
				select {
				case r, ok := <-ch:
					if !ok {
						return
					}
					n += r
				case <-ctx.Done():
					return
				}
			}
		})
	}
	for i := range b.N {
		select {
		case ch <- i:
		case <-ctx.Done():
		}
	}
	close(ch)
	wg.Wait()
}

func BenchmarkStream_Courier(b *testing.B) {
	ctx := b.Context()
	ch := make(chan int, batch)
	source := courier.NewChannelSource(ch, func(context.Context, []int) error { return nil })
	c := courier.NewStreamingCoordinator(source, courier.ProcessFunc(func(context.Context, int) error { return nil }),
		courier.WithStreamWorkers(4), courier.WithBatchSize(batch), quiet)
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range b.N {
			select {
			case ch <- i:
			case <-ctx.Done():
			}
		}
		close(ch)
	})
	if err := c.Start(ctx); err != nil {
		b.Fatal(err)
	}
	wg.Wait()
}
