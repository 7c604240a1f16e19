package courierttest_test

import (
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// The test that the package comment shows.
func TestOrdersSurviveAFlakyShop(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var records courierttest.Recorder[string]
		source := records.Source("order 1", "order 2", "order 3")
		// Every second call fails, and order 3 panics on its first attempt.
		shop := records.Applier(courierttest.MustParse(`error if every 2; panic if record "order 3" and attempt 1`))
		coordinator := courier.NewPollingCoordinator(source, courier.WithRetry(shop))
		courierttest.RunFor(t, coordinator, time.Minute) // of the bubble's time
		courierttest.AssertDelivered(t, &records)
		courierttest.AssertDrained(t, source)
	})
}
