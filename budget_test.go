package courier_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// asOne fails every call of several records as one.
type asOne struct{ eachOfBatch[int] }

func (a asOne) ApplyBatch(ctx context.Context, records []int) error {
	if len(records) > 1 {
		return errTest
	}
	return a.eachOfBatch.ApplyBatch(ctx, records)
}

// a retry costs one, and comes back unless it has failed; a first attempt that
// succeeds pays its share. A batch that is taken apart costs one, whoever waits between
// the attempts.
func TestR17_WhatEachRetryCosts(t *testing.T) {
	const before = 10
	for form, want := range map[string]int{"single": before - 3 + 1, "listed": before - 3 + 1, "as one": before - 3} {
		for _, held := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, held %v", form, held), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					budget := courier.NewRetryBudget(courier.BudgetPolicy{Burst: 2 * before, Floor: 1e-9, Ratio: 0.25})
					for range before { // so that more can be saved up
						require.True(t, left(t, budget))
					}
					var mu sync.Mutex
					tries := map[int]int{}
					one := courier.ProcessFunc(func(_ context.Context, r int) error {
						mu.Lock()
						defer mu.Unlock()
						tries[r]++
						switch {
						case r == 4 && tries[r] <= 3, r >= 5 && tries[r] == 1: // two retries of 4 are in vain
							return errTest
						case r == 5: // and one of 5
							return courier.Permanent(errTest)
						case r == 6 && tries[r] == 2: // but none of 6
							return errRefused
						}
						return nil
					})
					applier := one
					opts := []courier.Option{quiet, courier.WithWorkers(2)}
					if form != "single" {
						opts = append(opts, courier.WithApplyBatchSize(7))
					}
					switch form {
					case "listed":
						applier = eachOfBatch[int]{one}
					case "as one":
						applier = asOne{eachOfBatch[int]{one}}
					}
					policy := plain
					policy.Budget, policy.MaxAttempts = budget, 10
					applier = courier.NewRetryableApplier(applier, policy)
					if held {
						_ = courier.NewPollingCoordinator[int](newShelf(numbers(7)...), applier, opts...).RunOnce(t.Context())
					} else {
						_ = asBatch(applier).ApplyBatch(t.Context(), numbers(7))
					}
					got := 0
					for left(t, budget) {
						got++
					}
					require.Equal(t, want, got)
				})
			})
		}
	}
}

// what was left behind a failed record of its call is no retry when it comes along.
func TestR17_WhatComesAlongCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		budget := courier.NewRetryBudget(courier.BudgetPolicy{Burst: 5, Floor: 1e-9, Ratio: 1e-9})
		calls := 0
		policy := plain
		policy.Budget = budget
		s := &batchSink[int]{failBatch: func(context.Context, []int, int) error {
			switch calls++; calls {
			case 1:
				return &courier.BatchError{Failures: []courier.BatchFailure{{Index: 0, Err: errTest}, {Index: 1, Err: errTest}, {Index: 2, Err: courier.ErrBehindFailed}}}
			case 2: // the first goes well now, and the last, which came after it
				return failures(1)
			}
			return nil
		}}
		require.NoError(t, asBatch(courier.NewRetryableApplier[int](s, policy)).ApplyBatch(t.Context(), numbers(3)))
		got := 0
		for left(t, budget) {
			got++
		}
		require.Equal(t, 5-1, got)
	})
}

// a retry that was withdrawn, and is not made because the coordinator stops, is paid
// back: of records that wait, and of those that a breaker's pause has returned to the source.
func TestR17_ARetryThatAStopForestallsIsPaidBack(t *testing.T) {
	for _, together := range []bool{false, true} {
		for _, paused := range []bool{false, true} {
			both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
				source.add(numbers(5)...)
				applier := always(errTest)
				if together {
					applier = eachOfBatch[int]{applier}
				}
				breaker := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 100})
				policy := plain
				policy.Budget = courier.NewRetryBudget(courier.BudgetPolicy{Burst: 10, Floor: 1e-9})
				workers := courier.WithWorkers(2)
				if source.wait {
					workers = courier.WithStreamWorkers(2)
				}
				stop := start(t, make(courier.NewRetryableApplier(courier.NewCircuitBreakerApplier(applier, breaker), policy), workers, courier.WithIdentity(strconv.Itoa)))
				time.Sleep(500 * time.Millisecond)
				if paused {
					breaker.ForceOpen()
					source.add(5)
					time.Sleep(time.Minute)
				}
				synctest.Wait()
				require.NoError(t, stop())
				got := 0
				for left(t, policy.Budget) {
					got++
				}
				require.Equal(t, 10, got, "together %v, paused %v", together, paused)
			})
		}
	}
}
