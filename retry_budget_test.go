package courier_test

// Retry budgets.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
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
			t.Run(fmt.Sprintf("%s, %s", form, choose(held, "in hand", "in a call")), func(t *testing.T) {
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
			t.Run(batched(together)+", "+choose(paused, "paused", "running"), func(t *testing.T) {
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
			})
		}
	}
}

// left says whether a budget has a retry left, and takes it.
func left(t *testing.T, budget *courier.RetryBudget) bool {
	policy := plain
	policy.Budget, policy.MaxAttempts = budget, 2
	err := courier.NewRetryableApplier(always(errTest), policy).Apply(t.Context(), 1)
	return errors.Is(err, courier.ErrExhausted)
}

func TestR17_ABudgetInBatches(t *testing.T) {
	fresh := func(burst float64) *courier.RetryBudget {
		return courier.NewRetryBudget(courier.BudgetPolicy{Burst: burst, Floor: 1e-9, Ratio: 0.2})
	}
	with := func(budget *courier.RetryBudget, s courier.Applier[int]) courier.BatchApplier[int] {
		policy := plain
		policy.Budget, policy.MaxAttempts = budget, 2
		return asBatch(courier.NewRetryableApplier(s, policy))
	}
	t.Run("each record that is retried costs one", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			budget := fresh(3)
			s := &batchSink[int]{failBatch: func(context.Context, []int, int) error { return failures(0, 1) }}
			_ = with(budget, s).ApplyBatch(t.Context(), numbers(2))
			require.True(t, left(t, budget))
			require.False(t, left(t, budget))
		})
	})
	t.Run("a retry that succeeds is refunded", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			budget := fresh(2)
			s := &batchSink[int]{failBatch: func(_ context.Context, _ []int, call int) error {
				if call == 1 {
					return failures(0, 1)
				}
				return nil
			}}
			require.NoError(t, with(budget, s).ApplyBatch(t.Context(), numbers(2)))
			require.True(t, left(t, budget))
			require.True(t, left(t, budget))
		})
	})
	t.Run("first attempts that succeed pay, in a batch that partly fails too", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			budget := fresh(1)
			require.True(t, left(t, budget))
			require.False(t, left(t, budget))
			s := &batchSink[int]{failBatch: func(context.Context, []int, int) error {
				return &courier.BatchError{Failures: []courier.BatchFailure{{Index: 0, Err: courier.Permanent(errTest)}}}
			}}
			_ = with(budget, s).ApplyBatch(t.Context(), numbers(5)) // four of a fifth each: not enough
			require.False(t, left(t, budget))
			_ = with(budget, s).ApplyBatch(t.Context(), numbers(3))
			require.True(t, left(t, budget))
		})
	})
	t.Run("a batch that is taken apart is one retry", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &batchSink[int]{failBatch: func(context.Context, []int, int) error { return errTest }}
			require.NoError(t, with(fresh(1), s).ApplyBatch(t.Context(), numbers(100)))
		})
	})
	t.Run("what a breaker refused costs nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			budget := fresh(1)
			calls := 0
			policy := plain
			policy.Budget = budget
			applier := courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error {
				if calls++; calls%2 == 1 {
					return errTest
				}
				return &courier.OpenError{Cause: errTest}
			}), policy)
			for range 5 {
				require.ErrorIs(t, applier.Apply(t.Context(), 1), courier.ErrOpen)
			}
			require.True(t, left(t, budget))
		})
	})
	t.Run("an interrupted wait is refunded", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			budget := fresh(1)
			policy := plain
			policy.Budget = budget
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Millisecond, cancel)
			_ = courier.NewRetryableApplier(always(errTest), policy).Apply(ctx, 1)
			require.True(t, left(t, budget))
		})
	})
}

func TestR16_APanicSpendsTheBudgetAsAnErrorDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		policy := plain
		policy.Budget = courier.NewRetryBudget(courier.BudgetPolicy{Burst: 2, Floor: 1e-9, Ratio: 1e-9})
		calls := 0
		applier := courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error {
			calls++
			panic("boom")
		}), policy)
		var gaveUp *courier.RetryError
		require.ErrorAs(t, applier.Apply(t.Context(), 1), &gaveUp)
		require.Equal(t, courier.ReasonBudget, gaveUp.Reason)
		require.Equal(t, 3, calls, "the first attempt and the two retries that the budget had")
	})
}

func TestR17_ABudgetBoundsTheRetriesOfASustainedFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		policy := plain
		policy.Budget = courier.NewRetryBudget(courier.BudgetPolicy{Burst: 10, Floor: 1e-9})
		applier := courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error {
			calls++
			return errTest
		}), policy)
		var empty int
		for range 30 {
			err := applier.Apply(t.Context(), 1)
			var gaveUp *courier.RetryError
			require.ErrorAs(t, err, &gaveUp)
			require.ErrorIs(t, err, errTest, "R-18: the last error is there")
			if gaveUp.Reason == courier.ReasonBudget {
				empty++
				require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), err))
			}
		}
		require.Equal(t, 30+10, calls)
		require.Positive(t, empty)
	})
}

func TestR17_TheBudgetRefusesBeforeTheDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		policy := courier.RetryPolicy{InitialDelay: time.Hour, MaxDelay: time.Hour, Jitter: courier.NoJitter,
			Budget: courier.NewRetryBudget(courier.BudgetPolicy{Burst: 1, Floor: 1e-9})}
		applier := courier.NewRetryableApplier(always(errTest), policy)
		_ = applier.Apply(t.Context(), 1)
		began := time.Now()
		_ = applier.Apply(t.Context(), 1)
		require.Zero(t, time.Since(began))
	})
}

// A retry that succeeds is paid back, whoever waits for it.
func TestR17_ARetryThatSucceedsIsPaidBack(t *testing.T) {
	inCallAndInHand(t, func(t *testing.T, deliver func(courier.Applier[int])) {
		policy := plain
		policy.Budget = courier.NewRetryBudget(courier.BudgetPolicy{Burst: 1, Floor: 1e-9, Ratio: 1e-9})
		require.Equal(t, seconds(1), delays(deliver, policy, errTest, nil))
		require.True(t, left(t, policy.Budget))
		require.False(t, left(t, policy.Budget), "it has paid nothing in")
	})
}

// What one retry has used up is not there for another of the same budget, until the floor
// has filled it: at its rate, and up to the burst.
func TestR17_OneBudgetForAllThatShareIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		policy := plain
		policy.MaxAttempts, policy.Budget = 3, courier.NewRetryBudget(courier.BudgetPolicy{Burst: 4, Floor: 0.01})
		first := courier.NewRetryableApplier(always(errTest), policy)
		require.ErrorIs(t, first.Apply(t.Context(), 1), courier.ErrExhausted)
		require.True(t, left(t, policy.Budget))
		require.True(t, left(t, policy.Budget))
		require.NotErrorIs(t, first.Apply(t.Context(), 1), courier.ErrExhausted)
		time.Sleep(90 * time.Second)
		require.False(t, left(t, policy.Budget))
		time.Sleep(10 * time.Second)
		require.True(t, left(t, policy.Budget))
		time.Sleep(time.Hour)
		for range 4 {
			require.True(t, left(t, policy.Budget))
		}
		require.False(t, left(t, policy.Budget))
	})
}

func TestR17_SuccessesPayForRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		policy := plain
		policy.MaxAttempts = 2
		policy.Budget = courier.NewRetryBudget(courier.BudgetPolicy{Burst: 1, Floor: 1e-9, Ratio: 0.5})
		var fail atomic.Bool
		calls := 0
		applier := courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error {
			calls++
			if fail.Load() {
				return errTest
			}
			return nil
		}), policy)
		attempts := func() int {
			calls = 0
			_ = applier.Apply(t.Context(), 1)
			return calls
		}
		fail.Store(true)
		require.Equal(t, 2, attempts())
		require.Equal(t, 1, attempts(), "used up")
		fail.Store(false)
		attempts()
		attempts()
		fail.Store(true)
		require.Equal(t, 2, attempts())
	})
}

// inside a coordinator a record waits for an empty budget and keeps its attempts,
// others go on, and no call is made that is not paid for. Were it delivered anew each time,
// a budget would multiply the calls.
func TestR17_ARecordWaitsForTheBudgetAndKeepsItsAttempts(t *testing.T) {
	const records, attempts, burst, minutes = 100, 3, 5, 5
	bad := func(r int) bool { return r%10 < 3 }
	for _, workers := range []int{1, 2} {
		t.Run(fmt.Sprint(workers, " workers"), func(t *testing.T) {
			inKinds(t, func(t *testing.T, s *courierttest.LeasingSource[int], with coordinate) {
				s.Add(numbers(records)...)
				var mu sync.Mutex
				calls := make(map[int]int)
				retries, told := 0, 0
				var queue courier.MemoryDLQ[int]
				budget := courier.NewRetryBudget(courier.BudgetPolicy{Burst: burst, Floor: 1, Ratio: 1e-9})
				c := with(func(r int) error {
					mu.Lock()
					defer mu.Unlock()
					if calls[r]++; calls[r] > 1 {
						retries++
					}
					if bad(r) {
						return errTest
					}
					return nil
				}, func(a courier.Applier[int]) courier.Applier[int] {
					return courier.NewDLQApplier(courier.NewRetryableApplier(a, courier.RetryPolicy{MaxAttempts: attempts, Budget: budget, OnRetry: func(_ context.Context, e courier.RetryEvent) {
						mu.Lock()
						told += e.Records
						mu.Unlock()
					}}), courier.DLQ[int](&queue), courier.DLQPolicy[int]{MaxParkRate: courier.AnyParkRate})
				}, courier.WithWorkers(workers))
				stop := start(t, c)
				for second := range 60 * minutes {
					time.Sleep(time.Second)
					mu.Lock()
					require.LessOrEqual(t, retries, burst+second+1)
					for r := range records {
						require.True(t, second < 30 || bad(r) || calls[r] == 1, "healthy record %d", r)
					}
					mu.Unlock()
				}
				require.NoError(t, stop())
				require.Equal(t, records/10*3, countOf(&queue))
				require.Equal(t, records/10*3*(attempts-1), retries)
				require.Equal(t, retries, told)
				for r, n := range calls {
					require.Equal(t, map[bool]int{false: 1, true: attempts}[bad(r)], n, r)
				}
			})
		})
	}
}

// when a breaker has refused a record, and the budget then has it wait, its error is that
// of its last attempt. An error that says the breaker is open would end the pass.
func TestR17_WhatABreakerRefusedWaitsForTheBudget(t *testing.T) {
	inKinds(t, func(t *testing.T, s *courierttest.LeasingSource[int], with coordinate) {
		s.Add(numbers(6)...)
		var mu sync.Mutex
		var errs []error
		budget := courier.NewRetryBudget(courier.BudgetPolicy{Burst: 2, Floor: 0.05, Ratio: 1e-9})
		c := with(func(r int) error {
			if r < 6 {
				return errTest
			}
			return nil
		}, func(a courier.Applier[int]) courier.Applier[int] {
			return courier.NewRetryableApplier(courier.NewCircuitBreakerApplier(a, newBreaker(3)), courier.RetryPolicy{MaxAttempts: 100, Budget: budget, OnRetry: func(_ context.Context, e courier.RetryEvent) {
				mu.Lock()
				errs = append(errs, e.Err)
				mu.Unlock()
			}})
		})
		stop := start(t, c)
		for i := range 200 {
			time.Sleep(time.Second)
			s.Add(100 + i)
		}
		require.NoError(t, stop())
		require.NotEmpty(t, errs)
		for _, err := range errs {
			require.NotErrorIs(t, err, courier.ErrOpen)
		}
	})
}

// asked is a clock that counts how often a budget is asked.
type asked struct {
	courier.Clock
	times *atomic.Int64
}

func (a asked) Now() time.Time {
	a.times.Add(1)
	return a.Clock.Now()
}

// a record asks an empty budget less and less often, and not for longer than MaxElapsed.
func TestR17_ARecordAsksTheBudgetLessOften(t *testing.T) {
	for _, limit := range []time.Duration{0, time.Minute} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			inKinds(t, func(t *testing.T, s *courierttest.LeasingSource[int], with coordinate) {
				s.Add(1)
				var times atomic.Int64
				var mu sync.Mutex
				var ends []*courier.RetryError
				budget := courier.NewRetryBudget(courier.BudgetPolicy{Burst: 1, Floor: 1.0 / 300, Ratio: 1e-9, Clock: asked{&wallClock{}, &times}})
				c := with(func(int) error { return errTest }, func(a courier.Applier[int]) courier.Applier[int] {
					return courier.NewRetryableApplier(a, courier.RetryPolicy{MaxAttempts: 100, MaxElapsed: limit, Budget: budget, OnGiveUp: func(_ context.Context, err *courier.RetryError) {
						mu.Lock()
						ends = append(ends, err)
						mu.Unlock()
					}})
				})
				stop := start(t, c)
				time.Sleep(4 * time.Minute)
				mu.Lock()
				until := slices.Clone(ends)
				mu.Unlock()
				require.NoError(t, stop())
				if limit == 0 {
					require.Empty(t, until)
					require.Less(t, times.Load(), int64(100))
					return
				}
				require.NotEmpty(t, until)
				require.Equal(t, courier.ReasonDeadline, until[0].Reason)
				require.Equal(t, 2, until[0].Attempts)
				require.LessOrEqual(t, until[0].Elapsed, limit)
			})
		})
	}
}
