package courierttest_test

import (
	"testing"
	"time"

	"github.com/erfanmomeniii/courier/courierttest"
)

// What the examples of the suites show, which need the t of a test to run.
func TestTheExamplesOfTheSuites(t *testing.T) {
	t.Run("source", func(t *testing.T) {
		courierttest.TestSource(t, openTable, courierttest.SourceFeatures{Ordered: true})
	})
	t.Run("stream", func(t *testing.T) {
		courierttest.TestStreamSource(t, openChannel, courierttest.SourceFeatures{Bubble: true, Ordered: true, Releaser: true, Renewer: true, Waker: true, Lagger: true, Identifier: true})
	})
	t.Run("applier", func(t *testing.T) {
		courierttest.TestApplier(t, openShop, courierttest.ApplierFeatures{Concurrent: true})
	})
	t.Run("batch applier", func(t *testing.T) {
		courierttest.TestBatchApplier(t, openStore, courierttest.ApplierFeatures{Bubble: true, Ordered: true, Concurrent: true})
	})
	t.Run("queue", func(t *testing.T) {
		courierttest.TestDLQ(t, openQueue, courierttest.DLQFeatures{Bubble: true, Keyed: true, Capacity: 100, Precision: time.Nanosecond})
	})
}
