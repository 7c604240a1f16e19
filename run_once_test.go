package courier_test

// RunOnce.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

func TestD7_RunOnceGivesAMarkSeveralTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cause := errors.New("the database is away")
		source := newShelf(numbers(3)...)
		source.markErr = func(int) error { return cause }
		err := courier.NewPollingCoordinator(source, &sink[int]{}, quiet).RunOnce(t.Context())
		require.ErrorIs(t, err, courier.ErrMark)
		require.ErrorIs(t, err, cause)
		require.Equal(t, 6, source.markN)
		require.Contains(t, err.Error(), "3 records were applied but not marked")
	})
}

func TestRunOnce_TellsOfAnEndedContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the job was called off")
	var calls atomic.Int32
	err := courier.RunOnce(ctx,
		func(context.Context) ([]int, error) { return numbers(3), nil },
		func(context.Context, int) error { calls.Add(1); cancel(cause); return nil },
		nop[[]int], quiet)
	require.ErrorIs(t, err, cause)
	require.EqualValues(t, 1, calls.Load())
	require.ErrorIs(t, courier.RunOnce(ctx, func(context.Context) ([]int, error) { panic("fetched") }, nop[int], nop[[]int], quiet), cause)
}

// RunOnce: "errors.Is and errors.As see the errors of the records, of the fetch".
func TestRunOnce_TheErrorOfTheFetchIsSeenBesideAPause(t *testing.T) {
	source := sourceFuncs{func(context.Context, int) ([]int, error) { return []int{1}, errTest }, nop[[]int]}
	err := courier.NewPollingCoordinator(source, courier.ProcessFunc(func(context.Context, int) error {
		return &courier.OpenError{Until: time.Now().Add(time.Hour)}
	}), quiet).RunOnce(t.Context())
	require.ErrorIs(t, err, errTest)
}

// C-7: a run takes no longer than its drain timeout for breakers, whatever the
// interval is and however many successes a breaker wants.
func TestC7_RunOnceWaitsForNoInterval(t *testing.T) {
	for _, successes := range []int{1, 2, 3} {
		for _, poison := range []int{1, 2} {
			for with, opts := range map[string][]courier.Option{"the defaults": nil, "a fixed interval": {courier.WithFixedInterval()}, "3 workers": {courier.WithWorkers(3)}} {
				t.Run(fmt.Sprintf("%d successes, %d poison, %s", successes, poison, with), func(t *testing.T) {
					courierttest.Bubble(t, func(t *testing.T) {
						s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
							if r < poison {
								return errTest
							}
							return nil
						}}
						source := newShelf(numbers(poison + 1)...)
						a, _ := courier.ResilientApplier[int](s, &courier.ResilientConfig[int]{Breaker: courier.BreakerPolicy{Successes: successes}})
						began := time.Now()
						_ = courier.NewPollingCoordinator[int](source, a, append(opts, quiet, courier.WithInterval(24*time.Hour))...).RunOnce(t.Context())
						require.Less(t, time.Since(began), 20*time.Second)
						require.Equal(t, []int{poison}, s.got())
					})
				})
			}
		}
	}
}

// The error of a run lists every record that was not applied, also those that it did
// not come to.
func TestRunOnce_ListsWhatItDidNotReach(t *testing.T) {
	for _, batch := range []int{2, 100} {
		courierttest.Bubble(t, func(t *testing.T) {
			source := newShelf(numbers(7)...)
			s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
				if r < 2 {
					return nil
				}
				return errTest
			}}
			a, _ := courier.ResilientApplier[int](s, nil)
			c := courier.NewPollingCoordinator[int](beyond{newLeasing(numbers(7)...)}, a, quiet, courier.WithBatchSize(batch), courier.WithDrainTimeout(3*time.Second))
			if batch > 7 {
				c = courier.NewPollingCoordinator[int](source, a, quiet, courier.WithDrainTimeout(3*time.Second))
			}
			var list *courier.BatchError
			require.ErrorAs(t, c.RunOnce(t.Context()), &list)
			var indices []int
			for _, f := range list.Failures {
				indices = append(indices, f.Index)
			}
			require.Equal(t, []int{2, 3, 4, 5, 6}, indices)
			require.ErrorIs(t, list, errTest)
			require.ErrorContains(t, list.Failures[4].Err, "before this record was attempted")
		})
	}
}

// A run by cron delivers what it can, though a poison record is in front, and parks
// that (D3, D10). It waits for a breaker within its drain timeout.
func TestD3_RunOnceGoesOnBehindAPoisonRecord(t *testing.T) {
	for _, fresh := range []bool{false, true} { // a new process each time
		for _, workers := range []int{1, 4} {
			for _, leasing := range []bool{false, true} {
				for _, batches := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s, workers %d, %s, %s", choose(fresh, "new processes", "one process"), workers, choose(leasing, "leasing", "not leasing"), batched(batches)), func(t *testing.T) {
						courierttest.Bubble(t, func(t *testing.T) {
							var r courierttest.Recorder[int]
							polled, leased := r.Source(numbers(20)...), r.LeasingSource(time.Minute, numbers(20)...)
							queue := &courier.MemoryDLQ[int]{}
							job := func() *courier.PollingCoordinator[int] {
								apply := courier.ProcessFunc(func(_ context.Context, n int) error {
									if n < 2 {
										return errTest
									}
									return nil
								})
								inner := apply
								if batches {
									inner = inBatches{apply, func(records []int) error {
										var failed courier.BatchError
										for i, n := range records {
											if n < 2 {
												failed.Add(i, errTest)
											}
										}
										return failed.ErrorOrNil()
									}}
								}
								stack, _ := courier.ResilientApplier(inner, &courier.ResilientConfig[int]{DLQ: queue})
								if leasing {
									return courier.NewPollingCoordinator[int](leased, stack, quiet, courier.WithWorkers(workers))
								}
								return courier.NewPollingCoordinator[int](polled, stack, quiet, courier.WithWorkers(workers))
							}
							c := job()
							for range 3 {
								if fresh {
									c = job()
								}
								began := time.Now()
								_ = c.RunOnce(t.Context())
								require.LessOrEqual(t, time.Since(began), 15*time.Second)
								time.Sleep(time.Minute)
							}
							left := map[bool][]int{false: polled.Pending(), true: leased.Pending()}[leasing]
							for _, n := range left { // with nobody else left, nothing tells them from an outage
								require.Less(t, n, 2)
							}
							require.Equal(t, 2, len(left)+countOf(queue))
							if workers == 1 && !batches {
								require.Empty(t, left)
							}
						})
					})
				}
			}
		}
	}
}

// In an outage a run ends soon, parks nothing and says which record failed.
func TestD6_RunOnceEndsInAnOutage(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		table := newShelf(numbers(10)...)
		calls := 0
		stack, queue := courier.ResilientApplier(courier.ProcessFunc(func(context.Context, int) error { calls++; return errTest }), nil)
		c := courier.NewPollingCoordinator(table, stack, quiet)
		began := time.Now()
		err := c.RunOnce(t.Context())
		require.ErrorIs(t, err, courier.ErrOpen)
		var failed *courier.BatchError
		require.ErrorAs(t, err, &failed)
		require.Equal(t, 0, failed.Failures[0].Index)
		require.Less(t, time.Since(began), 20*time.Second)
		require.Less(t, calls, 10)
		require.Equal(t, 1, table.fetches)
		require.Len(t, table.left(), 10)
		n, _ := queue.Count(t.Context())
		require.Zero(t, n)
		require.Zero(t, c.Stats().InHand)
	})
}

// The errors of a run are those of the records in the order fetched, though they
// were tried in another order.
func TestRunOnce_KeepsTheIndicesOverAPause(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		stack := courier.WithRetry(courier.WithCircuitBreaker(courier.ProcessFunc(func(_ context.Context, n int) error {
			if n == 1 || n == 8 {
				return errTest
			}
			return nil
		})))
		c := courier.NewPollingCoordinator(newShelf(numbers(10)...), stack, quiet, courier.WithBatchSize(10))
		err := c.RunOnce(t.Context())
		var failed *courier.BatchError
		require.ErrorAs(t, err, &failed)
		var indices []int
		for _, f := range failed.Failures {
			indices = append(indices, f.Index)
		}
		require.Equal(t, []int{1, 8}, indices)
	})
}

// A cron job that parks in memory loses the letters: RunOnce says so, once, and only
// where nobody has asked for such a queue.
func TestRunOnce_WarnsOfAQueueThatIsGoneWithTheProcess(t *testing.T) {
	const warning = "the dead letter queue is in memory"
	ok := courier.ProcessFunc(func(context.Context, int) error { return nil })
	resilient := func(dlq courier.DLQ[int]) courier.Applier[int] {
		a, _ := courier.ResilientApplier(ok, &courier.ResilientConfig[int]{DLQ: dlq})
		return a
	}
	simple, _ := courier.WithDLQ(courier.WithRetry(ok))
	for name, test := range map[string]struct {
		applier courier.Applier[int]
		warned  bool
	}{
		"ResilientApplier":        {resilient(nil), true},
		"in a fan-out":            {courier.NewFanOutApplier(ok, resilient(nil)), true},
		"WithDLQ":                 {simple, true},
		"a queue of the caller's": {resilient(&courier.MemoryDLQ[int]{}), false},
		"none":                    {ok, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				c := courier.NewPollingCoordinator(newShelf(1), test.applier, courier.WithLogger(timeless(&log)))
				stop := start(t, c)
				synctest.Wait()
				require.NoError(t, stop())
				require.NotContains(t, log.String(), warning)
				for range 2 {
					require.NoError(t, c.RunOnce(t.Context()))
				}
				want := 0
				if test.warned {
					want = 1
				}
				require.Equal(t, want, strings.Count(log.String(), warning), log.String())
			})
		})
	}
}

// All that RunOnce waits for a breaker is the drain timeout, however often it opens.
func TestC7_RunOnceWaitsForTheDrainTimeoutInAll(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		s := &sink[int]{fail: func(_ context.Context, _, call int) error {
			if call%2 == 1 {
				return errTest
			}
			return nil
		}}
		breaker := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, OpenFor: 3 * time.Second, DisableJitter: true})
		began := time.Now()
		err := courier.NewPollingCoordinator[int](newShelf(numbers(100)...), courier.NewCircuitBreakerApplier(s, breaker), quiet, courier.WithDrainTimeout(10*time.Second)).RunOnce(t.Context())
		require.ErrorIs(t, err, errTest)
		require.LessOrEqual(t, time.Since(began), 10*time.Second)
		require.Len(t, s.got(), 3, "a probe every three seconds")
	})
}
