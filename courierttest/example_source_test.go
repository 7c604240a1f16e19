package courierttest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// The process that leased a record dies, and another one gets it when the lease
// has ended. What the first does late has no effect.
func ExampleLeasingSource() {
	t := new(testing.T) // of the example; a test has its own
	courierttest.Bubble(t, func(t *testing.T) {
		ctx := context.Background()
		var records courierttest.Recorder[string]
		first := records.LeasingSource(time.Minute, "a")
		second := first.Join()
		stale, _ := first.Fetch(ctx, 10)
		none, _ := second.Fetch(ctx, 10)
		fmt.Println(stale, none, first.InHand())
		time.Sleep(time.Minute)
		again, _ := second.Fetch(ctx, 10)
		_ = first.Mark(ctx, stale)
		fmt.Println(again, first.Pending(), records.Names(courierttest.Stale))
	})
	// Output:
	// [a] [] [a]
	// [a] [a] [a]
}

func ExampleRecorder_StreamSource() {
	var records courierttest.Recorder[string]
	source := records.StreamSource("a", "b")
	source.End() // once all are marked
	err := courier.NewStreamingCoordinator(source, records.Applier(nil)).Start(context.Background())
	fmt.Println(err, records.Names(courierttest.Marked))
	// Output: <nil> [a b]
}

// A source that keeps the schedule of retries itself.
func ExampleSchedulingSource() {
	t := new(testing.T) // of the example; a test has its own
	courierttest.Bubble(t, func(t *testing.T) {
		var records courierttest.Recorder[string]
		source := records.SchedulingSource(time.Minute, "a")
		source.Backoff = 10 * time.Minute
		shop := records.Applier(courierttest.MustParse("error if attempt 1..2"))
		began := time.Now()
		courierttest.RunFor(t, courier.NewPollingCoordinator(source, shop, quiet), 24*time.Hour)
		for _, e := range records.Events() {
			if e.Kind == courierttest.Failed || e.Kind == courierttest.Applied {
				fmt.Println(e.Kind, e.At.Sub(began).Round(10*time.Minute))
			}
		}
	})
	// Output:
	// failed 0s
	// failed 10m0s
	// applied 30m0s
}

// A batch of which some records fail, and then one that fails as a whole, whose
// records are applied one by one.
func ExampleBatchApplier() {
	var records courierttest.Recorder[string]
	shop := records.BatchApplier(courierttest.MustParse(`error if record "b" and attempt 1`))
	ctx := context.Background()
	var failed *courier.BatchError
	fmt.Println(errors.As(shop.ApplyBatch(ctx, []string{"a", "b", "c"}), &failed), failed.Failures[0].Index)
	shop.Faults.Set(courierttest.Fault{Effect: courierttest.Whole})
	fmt.Println(errors.As(shop.ApplyBatch(ctx, []string{"b"}), &failed), records.Names(courierttest.Applied))
	// Output:
	// true 1
	// false [a c]
}

// Records of a key in their order, and one that was overtaken.
func ExampleAssertOrder() {
	var records courierttest.Recorder[string]
	source := records.Source("a1", "b1", "a2", "b2")
	shop := records.Applier(courierttest.MustParse(`error if record "a1" and attempt 1`))
	coordinator := courier.NewPollingCoordinator(source, shop, quiet) // and no order key
	for coordinator.RunOnce(context.Background()) != nil {
	}
	key := func(record string) string { return record[:1] }
	reports := 0
	courierttest.AssertOrder(counting{reports: &reports}, &records, key)
	fmt.Println(records.Names(courierttest.Applied), reports)
	// Output: [b1 a2 b2 a1] 1
}
