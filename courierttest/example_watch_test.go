package courierttest_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// Types of one's own, watched: table is a source.
func ExampleRecorder_WatchSource() {
	var records courierttest.Recorder[int]
	source := records.WatchSource(&table{rows: []int{7, 8, 9}})
	shop := records.WatchApplier(courier.ProcessFunc(func(_ context.Context, row int) error {
		if row == 8 {
			return courier.Skip(errors.New("is of no interest"))
		}
		return nil
	}))
	_ = courier.NewPollingCoordinator(source, shop, quiet).RunOnce(context.Background())
	courierttest.AssertDeliveredOnce(printing{}, &records)
	courierttest.AssertMarkedAfterApplied(printing{}, &records)
	courierttest.AssertOrder(printing{}, &records, nil)
	fmt.Println(records.Names(courierttest.Applied), records.Names(courierttest.Skipped), records.Names(courierttest.Marked))
	// Output: [7 9] [8] [7 8 9]
}

// A destination of one's own that has half of a batch.
func ExampleRecorder_WatchApplier() {
	var records courierttest.Recorder[int]
	shop := records.WatchApplier(halves{})
	_ = courier.NewPollingCoordinator(records.Source(1, 2, 3, 4), shop, quiet).RunOnce(context.Background())
	fmt.Println(records.Names(courierttest.Applied), records.Names(courierttest.Failed), records.Names(courierttest.Marked))
	// Output: [2 4] [1 3] [2 4]
}

// halves takes even numbers.
type halves struct{}

func (h halves) Apply(ctx context.Context, n int) error { return h.ApplyBatch(ctx, []int{n}) }

func (halves) ApplyBatch(_ context.Context, numbers []int) error {
	var failed courier.BatchError
	for i, n := range numbers {
		if n%2 != 0 {
			failed.Add(i, errors.New("odd"))
		}
	}
	return failed.ErrorOrNil()
}
