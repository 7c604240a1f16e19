package courierttest_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// quiet is for failures that are on purpose.
var quiet = courier.WithLogger(slog.New(slog.DiscardHandler))

// printing is a TB that prints what is reported to it. A test passes its t.
type printing struct{}

func (printing) Helper()                           {}
func (printing) Errorf(format string, args ...any) { fmt.Printf(format+"\n", args...) }
func (printing) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (printing) Cleanup(func())                    {}

func ExampleRecorder() {
	var records courierttest.Recorder[string]
	source := records.Source("a", "b", "c")
	shop := records.Applier(courierttest.MustParse(`error if record "b" and attempt 1`))
	coordinator := courier.NewPollingCoordinator(source, shop, quiet)

	fmt.Println(coordinator.RunOnce(context.Background()) != nil, source.Pending())
	fmt.Println(coordinator.RunOnce(context.Background()) != nil, source.Pending())
	for _, e := range records.Events() {
		if e.Name == "b" {
			fmt.Println(e.Kind)
		}
	}
	// Output:
	// true [b]
	// false []
	// added
	// fetched
	// failed
	// fetched
	// applied
	// marked
}

// A process function of one's own, between faults: here the shop charges, and
// its answer is lost. The charge that follows shows that it is not idempotent.
func ExampleApplier() {
	charged := map[string]int{}
	charge := func(_ context.Context, customer string) error {
		charged[customer]++
		return nil
	}

	var records courierttest.Recorder[string]
	source := records.Source("ann", "bob")
	shop := records.Applier(courierttest.Faults{{Effect: courierttest.Lost, When: courierttest.Calls(1, 1)}})
	shop.ApplyFunc = charge
	coordinator := courier.NewPollingCoordinator(source, shop, quiet)
	_ = coordinator.RunOnce(context.Background())
	_ = coordinator.RunOnce(context.Background())
	fmt.Println(charged)
	// Output: map[ann:2 bob:1]
}

func ExampleRecorder_DLQ() {
	var records courierttest.Recorder[string]
	source := records.Source("good", "bad")
	shop := records.Applier(courierttest.MustParse(`permanent if record "bad"`))
	queue := records.DLQ(0)
	queue.SendFaults.Set(courierttest.Fault{Effect: courierttest.Error, When: courierttest.Calls(1, 1)})
	coordinator := courier.NewPollingCoordinator(source, courier.NewDLQApplier(shop, queue, courier.DLQPolicy[string]{}), quiet)

	err := coordinator.RunOnce(context.Background())
	fmt.Println("refused:", errors.Is(err, courierttest.ErrInjected), source.Pending())
	err = coordinator.RunOnce(context.Background())
	fmt.Println("parked:", err, source.Pending(), records.Names(courierttest.Parked))
	// Output:
	// refused: true [bad]
	// parked: <nil> [] [bad]
}

// An applier that tells of success before it has done its work.
func ExampleAssertMarkedAfterApplied() {
	var records courierttest.Recorder[string]
	source := records.Source("a")
	shop := records.Applier(courierttest.MustParse("error"))
	hasty := courier.ProcessFunc(func(ctx context.Context, record string) error {
		_ = shop.Apply(ctx, record) // and the error is lost
		return nil
	})
	_ = courier.NewPollingCoordinator(source, hasty, quiet).RunOnce(context.Background())

	reports := 0
	courierttest.AssertMarkedAfterApplied(counting{reports: &reports}, &records)
	fmt.Println(reports)
	courierttest.AssertDrained(printing{}, source) // it is, which is the harm
	// Output: 1
}

// counting is a TB that counts reports.
type counting struct {
	printing
	reports *int
}

func (c counting) Errorf(string, ...any) { *c.reports++ }
