package courierttest_test

import (
	"context"
	"strconv"
	"testing"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// The source of the example keeps the contract, and so does an applier that has
// nothing but what the contract asks for.
func TestOnesOwn(t *testing.T) {
	t.Run("source", func(t *testing.T) {
		courierttest.TestSource(t, openTable, courierttest.SourceFeatures{Ordered: true})
	})
	t.Run("applier", func(t *testing.T) {
		courierttest.TestApplier(t, func(*testing.T) courierttest.ApplierFixture[string] {
			return courierttest.ApplierFixture[string]{
				Applier: courier.ProcessFunc(func(ctx context.Context, _ string) error { return context.Cause(ctx) }),
				Record:  strconv.Itoa,
			}
		}, courierttest.ApplierFeatures{Concurrent: true})
	})
}
