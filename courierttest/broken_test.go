package courierttest

import (
	"slices"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// Every check of a suite has an implementation here that is broken in just the
// way that the check is there for.

// broken is a defect of an implementation, and the check that has to find it.
type broken[S any] struct {
	defect, check string
	open          func(t *testing.T, tb TB) *S
}

// testBroken runs each check that is meant for a defect on it, and makes sure
// that no check is without a defect.
func testBroken[S any](t *testing.T, checks []check[S], table []broken[S]) {
	unmet := make(map[string]bool)
	for _, c := range checks {
		unmet[c.name] = true
	}
	for _, b := range table {
		delete(unmet, b.check)
		t.Run(b.check+"/"+b.defect, func(t *testing.T) {
			at := slices.IndexFunc(checks, func(c check[S]) bool { return c.name == b.check })
			require.GreaterOrEqual(t, at, 0, "there is no such check")
			synctest.Test(t, func(t *testing.T) {
				reports := reportsOf(t, func(tb TB) { checks[at].run(b.open(t, tb)) })
				require.NotEmpty(t, reports.failures, "the check did not find the defect")
				t.Log(reports.failures[0])
			})
		})
	}
	require.Empty(t, unmet, "checks that no broken implementation fails")
}
