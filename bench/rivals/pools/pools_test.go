// Package pools measures a batch of 1000 records that take no time, applied by
// four workers: by Courier, and by the libraries that one would give the batch
// to instead. All of them wait for the end of a batch before the next, as one
// that fetches and marks must; none but Courier fetches, marks, retries or
// notes which record failed.
package pools

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/alitto/pond/v2"
	"github.com/panjf2000/ants/v2"
	"github.com/sourcegraph/conc/iter"
	"github.com/sourcegraph/conc/pool"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/bench/internal/meter"
)

// ants starts a pool of its own when it is imported, which stays.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) }

const (
	batch   = 1000
	workers = 4
)

func process(context.Context, int) error { return nil }

var errFailed = errors.New("a record failed")

// verdict is the error of a batch, where a library has none.
func verdict(failed *atomic.Bool) error {
	if failed.Load() {
		return errFailed
	}
	return nil
}

// measure gives apply one batch after the other.
func measure(b *testing.B, apply func(ctx context.Context, batch []int) error) {
	b.Helper()
	ctx, records := b.Context(), make([]int, batch)
	meter.Records(b, batch, func(batches int) {
		for range batches {
			if err := apply(ctx, records); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// The floor: goroutines of one's own, started for each batch, that take records
// off an atomic index.
func BenchmarkPool_Floor(b *testing.B) {
	measure(b, func(ctx context.Context, records []int) error {
		var next atomic.Int64
		var failed atomic.Bool
		var all sync.WaitGroup
		for range workers {
			all.Go(func() {
				for i := next.Add(1) - 1; i < int64(len(records)); i = next.Add(1) - 1 {
					if process(ctx, records[i]) != nil {
						failed.Store(true)
					}
				}
			})
		}
		all.Wait()
		return verdict(&failed)
	})
}

// feed hands the same records out again and again, until there were enough.
type feed struct {
	records []int
	left    int
}

func (f *feed) Fetch(_ context.Context, limit int) ([]int, error) {
	n := min(limit, len(f.records), f.left)
	if n == 0 {
		return nil, io.EOF
	}
	f.left -= n
	return f.records[:n:n], nil
}

func (f *feed) Mark(context.Context, []int) error { return nil }

var quiet = courier.WithLogger(slog.New(slog.DiscardHandler))

func BenchmarkPool_CourierPolling(b *testing.B) {
	meter.Records(b, batch, func(batches int) {
		ctx, stop := context.WithCancel(b.Context())
		records := make([]int, batch)
		source := courier.BatchSourceFunc[int]{
			FetchFunc: func(context.Context) ([]int, error) { return records, nil },
			MarkFunc: func(context.Context, []int) error {
				if batches--; batches == 0 {
					stop()
				}
				return nil
			},
		}
		err := courier.NewPollingCoordinator(source, courier.ProcessFunc(process),
			courier.WithWorkers(workers), courier.WithBatchSize(batch), quiet).Start(ctx)
		if err != nil {
			b.Error(err)
		}
	})
}

func BenchmarkPool_CourierStreaming(b *testing.B) {
	meter.Records(b, batch, func(batches int) {
		source := &feed{make([]int, batch), batches * batch}
		err := courier.NewStreamingCoordinator(source, courier.ProcessFunc(process),
			courier.WithStreamWorkers(workers), courier.WithBatchSize(batch), quiet).Start(b.Context())
		if err != nil {
			b.Error(err)
		}
	})
}

func BenchmarkPool_Errgroup(b *testing.B) {
	measure(b, func(ctx context.Context, records []int) error {
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(workers)
		for _, record := range records {
			group.Go(func() error { return process(ctx, record) })
		}
		return group.Wait()
	})
}

func BenchmarkPool_ConcPool(b *testing.B) {
	measure(b, func(ctx context.Context, records []int) error {
		group := pool.New().WithMaxGoroutines(workers).WithErrors()
		for _, record := range records {
			group.Go(func() error { return process(ctx, record) })
		}
		return group.Wait()
	})
}

func BenchmarkPool_ConcForEach(b *testing.B) {
	each := iter.Iterator[int]{MaxGoroutines: workers}
	measure(b, func(ctx context.Context, records []int) error {
		var failed atomic.Bool
		each.ForEach(records, func(record *int) {
			if process(ctx, *record) != nil {
				failed.Store(true)
			}
		})
		return verdict(&failed)
	})
}

func BenchmarkPool_Pond(b *testing.B) {
	shared := pond.NewPool(workers)
	measure(b, func(ctx context.Context, records []int) error {
		group := shared.NewGroupContext(ctx)
		for _, record := range records {
			group.SubmitErr(func() error { return process(ctx, record) })
		}
		return group.Wait()
	})
	shared.StopAndWait()
}

func BenchmarkPool_Ants(b *testing.B) {
	ctx := b.Context()
	var left sync.WaitGroup
	var failed atomic.Bool
	shared, err := ants.NewPoolWithFuncGeneric(workers, func(record int) {
		if process(ctx, record) != nil {
			failed.Store(true)
		}
		left.Done()
	})
	if err != nil {
		b.Fatal(err)
	}
	measure(b, func(_ context.Context, records []int) error {
		left.Add(len(records))
		for _, record := range records {
			if err := shared.Invoke(record); err != nil {
				return err
			}
		}
		left.Wait()
		return verdict(&failed)
	})
	if err := shared.ReleaseContext(ctx); err != nil {
		b.Fatal(err)
	}
}
