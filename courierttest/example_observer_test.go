package courierttest_test

import (
	"context"
	"fmt"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

func ExampleObserverRecorder() {
	var records courierttest.Recorder[string]
	var told courierttest.ObserverRecorder
	shop := records.Applier(courierttest.MustParse(`permanent if record "b"`))
	coordinator := courier.NewPollingCoordinator(records.Source("a", "b", "c"), shop, quiet, courier.WithObserver(told.Observer()))
	_ = coordinator.RunOnce(context.Background())
	for _, event := range told.Events() {
		fmt.Printf("%T\n", event)
	}
	failed := courierttest.EventsOf[courier.FailEvent](&told)
	fmt.Println(len(failed), failed[0].Record, failed[0].Class)
	// Output:
	// courier.FetchEvent
	// courier.FailEvent
	// courier.ApplyEvent
	// courier.MarkEvent
	// courier.StopEvent
	// 1 b permanent
}

func ExampleEventsOf() {
	var records courierttest.Recorder[string]
	told := courierttest.ObserverRecorder{PerRecord: true}
	coordinator := courier.NewPollingCoordinator(records.Source("a", "b"), records.Applier(nil), courier.WithObserver(told.Observer()))
	_ = coordinator.RunOnce(context.Background())
	for _, started := range courierttest.EventsOf[courierttest.RecordStarted](&told) {
		fmt.Println(started.Record)
	}
	// Output:
	// a
	// b
}
