package courierttest_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// A day of retries takes no time.
func ExampleBubble() {
	t := new(testing.T) // of the example; a test has its own
	courierttest.Bubble(t, func(t *testing.T) {
		var records courierttest.Recorder[string]
		shop := records.Applier(courierttest.MustParse("delay 10m; error if during 0s..3h"))
		coordinator := courier.NewPollingCoordinator(records.Source("a", "b"), shop, quiet)
		began := time.Now()
		courierttest.RunFor(t, coordinator, 24*time.Hour)
		courierttest.AssertDeliveredOnce(t, &records)
		fmt.Println(time.Since(began), records.Names(courierttest.Applied))
	})
	fmt.Println("failed:", t.Failed())
	// Output:
	// 24h0m0s [a b]
	// failed: false
}

// A coordinator that runs while the test goes on.
func ExampleStart() {
	t := new(testing.T) // of the example; a test has its own
	courierttest.Bubble(t, func(t *testing.T) {
		var records courierttest.Recorder[string]
		source := records.Source()
		running := courierttest.Start(t, courier.NewPollingCoordinator(source, records.Applier(nil)))
		source.Add("a")
		time.Sleep(time.Minute) // of the bubble
		fmt.Println(running.Stop(), records.Names(courierttest.Marked))
	})
	// Output: <nil> [a]
}

// Retries, looked at one by one.
func ExampleClock() {
	t := new(testing.T) // of the example; a test has its own
	courierttest.Bubble(t, func(t *testing.T) {
		clock := courierttest.NewClock()
		records := courierttest.Recorder[string]{Clock: clock}
		shop := records.Applier(courierttest.MustParse("error if attempt 1..3"))
		retrying := courier.NewRetryableApplier(shop, courier.RetryPolicy{InitialDelay: time.Second, Jitter: courier.NoJitter, Clock: clock})
		go func() { _ = retrying.Apply(context.Background(), "a") }()
		for {
			d, ok := clock.Next()
			if !ok {
				break
			}
			fmt.Println("after", d, records.Names(courierttest.Failed), records.Names(courierttest.Applied))
		}
	})
	// Output:
	// after 1s [a a] []
	// after 2s [a a a] []
	// after 4s [a a a] [a]
}

// A pipeline that leaves a goroutine behind.
func ExampleAssertNoGoroutines() {
	end := make(chan struct{})
	shop := courier.ProcessFunc(func(context.Context, int) error { <-end; return nil })
	go func() { _ = shop.Apply(context.Background(), 1) }()
	reports := 0
	courierttest.AssertNoGoroutines(counting{reports: &reports})
	close(end)
	courierttest.AssertNoGoroutines(printing{})
	fmt.Println(reports)
	// Output: 1
}
