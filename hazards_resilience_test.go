package courier_test

// Hazards of the decorators, found by attack: what a hung probe, a short budget,
// a time in a record's own error, a dead branch or a queue hidden in a closure
// does to the others.

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// A time in a record's own error is the record's, whatever became of it.
func TestD3_ARecordsOwnTimePausesNobody(t *testing.T) {
	full := courier.DLQ[int](&dlqFunc{send: func(context.Context, courier.DeadLetter[int]) error { return courier.ErrDLQFull }})
	own := func() courier.Applier[int] {
		at := time.Now().Add(24 * time.Hour)
		return failsOn(map[int]error{0: &tooMany{at}})
	}
	for name, stack := range map[string]func() courier.Applier[int]{
		"full queue": func() courier.Applier[int] { return courier.NewDLQApplier(own(), full, courier.DLQPolicy[int]{}) },
		"cut retry": func() courier.Applier[int] {
			return courier.NewRetryableApplier(own(), courier.RetryPolicy{MaxElapsed: time.Nanosecond, Jitter: courier.NoJitter})
		},
		"budget": func() courier.Applier[int] {
			return courier.NewRetryableApplier(own(), courier.RetryPolicy{Budget: courier.NewRetryBudget(courier.BudgetPolicy{Burst: 1, Floor: 1e-9})})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := newShelf(numbers(10)...)
				run(t, source, stack(), time.Hour)
				require.Equal(t, []int{0}, source.left())
			})
		})
	}
}
