// Package bench measures Courier beside its floors: the least code that does
// the same work, in the same file and the same run. `make bench` runs the cases
// in rounds and prints them as ratios to their floors; which floor belongs to
// which case, and what ratio is the goal, is in bench/report/plan.go.
package bench

import (
	"context"
	"io"
	"log/slog"
	"testing"

	"go.uber.org/goleak"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/bench/internal/meter"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// batch is how many records are fetched and marked at a time, unless a case is
// about just that.
const batch = 1000

var quiet = courier.WithLogger(slog.New(slog.DiscardHandler))

func nop(context.Context, int) error { return nil }

func records(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i
	}
	return s
}

// feed is a source that never makes anybody wait: it hands the same records out
// again and again, until there were enough of them.
type feed[T any] struct {
	records   []T
	unfetched int
	unmarked  int
	marked    func() // all
}

func newFeed[T any](records []T, total int, marked func()) *feed[T] {
	return &feed[T]{records, total, total, marked}
}

func (f *feed[T]) Fetch(_ context.Context, limit int) ([]T, error) {
	n := min(limit, len(f.records), f.unfetched)
	if n == 0 {
		return nil, io.EOF
	}
	f.unfetched -= n
	return f.records[:n:n], nil
}

func (f *feed[T]) Mark(_ context.Context, records []T) error {
	if f.unmarked -= len(records); f.unmarked == 0 {
		f.marked()
	}
	return nil
}

// poll measures a polling coordinator whose batches are all of the records.
func poll[T any](b *testing.B, records []T, applier courier.Applier[T], opts ...courier.Option) {
	b.Helper()
	opts = append(opts, courier.WithBatchSize(len(records)), quiet)
	meter.Records(b, len(records), func(batches int) {
		ctx, stop := context.WithCancel(b.Context())
		source := newFeed(records, batches*len(records), stop)
		if err := courier.NewPollingCoordinator(source, applier, opts...).Start(ctx); err != nil {
			b.Error(err)
		}
	})
}

// stream measures a streaming coordinator that is asked for as many records at
// a time as there are.
func stream[T any](b *testing.B, records []T, applier courier.Applier[T], opts ...courier.Option) {
	b.Helper()
	opts = append(opts, courier.WithBatchSize(len(records)), quiet)
	meter.Records(b, len(records), func(batches int) {
		source := newFeed(records, batches*len(records), func() {})
		if err := courier.NewStreamingCoordinator(source, applier, opts...).Start(b.Context()); err != nil {
			b.Error(err)
		}
	})
}
