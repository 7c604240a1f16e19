package bench

import (
	"context"
	"io"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/bench/internal/meter"
)

// How much memory it takes to work a long source off. It should not depend on
// how long the source is.

func BenchmarkMemory_Polling1M(b *testing.B)    { memory(b, pollAll, 1_000_000) }
func BenchmarkMemory_Polling10M(b *testing.B)   { memory(b, pollAll, 10_000_000) }
func BenchmarkMemory_Streaming1M(b *testing.B)  { memory(b, streamAll, 1_000_000) }
func BenchmarkMemory_Streaming10M(b *testing.B) { memory(b, streamAll, 10_000_000) }

func pollAll(ctx context.Context, source *maker) error {
	ctx, source.marked = context.WithCancel(ctx)
	defer source.marked()
	return courier.NewPollingCoordinator(source, courier.ProcessFunc(read),
		courier.WithBatchSize(batch), quiet).Start(ctx)
}

func streamAll(ctx context.Context, source *maker) error {
	source.marked = func() {}
	return courier.NewStreamingCoordinator(source, courier.ProcessFunc(read),
		courier.WithStreamWorkers(streamWorkers), courier.WithBatchSize(batch), quiet).Start(ctx)
}

func read(_ context.Context, r *row) error {
	r.payload[0]++
	return nil
}

// row is a record as a database would return it.
type row struct {
	id      int
	payload [120]byte
}

// maker is a source whose records are new ones, as they are in life, so that
// what is kept of them by mistake can be seen.
type maker struct {
	unfetched, unmarked int
	marked              func() // all
	kept                uint64 // bytes, at most
}

func (m *maker) Fetch(_ context.Context, limit int) ([]*row, error) {
	n := min(limit, m.unfetched)
	if n == 0 {
		return nil, io.EOF
	}
	if m.unfetched%(250*batch) == 0 {
		m.look()
	}
	rows := make([]*row, n)
	for i := range rows {
		rows[i] = &row{id: m.unfetched - i}
	}
	m.unfetched -= n
	return rows, nil
}

// look finds out what is in use when all garbage is collected.
func (m *maker) look() {
	var stats runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&stats)
	m.kept = max(m.kept, stats.HeapAlloc)
}

func (m *maker) Mark(_ context.Context, rows []*row) error {
	if m.unmarked -= len(rows); m.unmarked == 0 {
		m.marked()
	}
	return nil
}

func memory(b *testing.B, work func(context.Context, *maker) error, rows int) {
	b.Helper()
	var kept uint64
	var peak usage
	meter.Records(b, rows, func(operations int) {
		for range operations {
			source := &maker{unfetched: rows, unmarked: rows}
			peak.during(func() {
				if err := work(b.Context(), source); err != nil {
					b.Error(err)
				}
			})
			kept = max(kept, source.kept)
		}
	})
	b.ReportMetric(float64(kept), "kept-B")
	b.ReportMetric(float64(peak.heap), "peak-heap-B")
	b.ReportMetric(float64(peak.resident), "peak-resident-B")
}

// usage is the most memory that was seen in use. It moves with the moments at
// which garbage is collected, and so says less about Courier than what is kept.
type usage struct {
	heap     uint64 // objects, garbage included
	resident uint64 // what the Go runtime has of the system and has not given back
}

// during looks at the memory every few milliseconds while work runs.
func (u *usage) during(work func()) {
	debug.FreeOSMemory() // what earlier cases left behind
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		samples := []metrics.Sample{
			{Name: "/memory/classes/heap/objects:bytes"},
			{Name: "/memory/classes/total:bytes"},
			{Name: "/memory/classes/heap/released:bytes"},
		}
		for {
			metrics.Read(samples)
			u.heap = max(u.heap, samples[0].Value.Uint64())
			u.resident = max(u.resident, samples[1].Value.Uint64()-samples[2].Value.Uint64())
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	work()
	close(stop)
	<-stopped
}
