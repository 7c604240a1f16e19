package courier_test

// The delivery contract of docs/contract.md, by number, for the polling coordinator.
// contract_stream_test.go has the same for the streaming one.

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

func TestD1_AtLeastOnce_EveryRecordIsAppliedAndMarked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf(numbers(1000)...)
		s := &sink[int]{fail: func(_ context.Context, _, call int) error {
			if call%7 == 0 {
				return errTest
			}
			return nil
		}}
		stop := start(t, courier.NewPollingCoordinator(source, s, quiet, courier.WithFastPolling()))
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		require.Empty(t, source.left())
		require.ElementsMatch(t, numbers(1000), s.got())
	})
}

func TestD2_NothingIsMarkedThatWasNotApplied(t *testing.T) {
	source := newShelf(numbers(10)...)
	s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
		if r%2 == 1 {
			return errTest
		}
		return nil
	}}
	err := courier.NewPollingCoordinator(source, s, quiet).RunOnce(t.Context())
	require.ErrorIs(t, err, errTest)
	require.Equal(t, s.got(), source.marked())
	require.Equal(t, []int{1, 3, 5, 7, 9}, source.left())
}

func TestD3_OneFailingRecordHoldsBackNoOther(t *testing.T) {
	source := newShelf(numbers(5)...)
	s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
		if r == 2 {
			return fmt.Errorf("order 2: %w", errTest)
		}
		return nil
	}}
	err := courier.NewPollingCoordinator(source, s, quiet).RunOnce(t.Context())

	require.ErrorIs(t, err, errTest)
	require.Equal(t, [][]int{{0, 1, 3, 4}}, source.marks, "the good records are marked in one call")
	require.Equal(t, []int{2}, source.left())
	var list *courier.BatchError
	require.ErrorAs(t, err, &list)
	require.Len(t, list.Failures, 1)
	require.Equal(t, 2, list.Failures[0].Index)
}

func TestD3_OneBadRecordDoesNotTakeItsBatchWithIt(t *testing.T) {
	for name, fail := range map[string]func() error{
		"error":     func() error { return errTest },
		"permanent": func() error { return courier.Permanent(errTest) },
		"panic":     func() error { panic(errTest) },
		"goexit":    func() error { runtime.Goexit(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			source := newShelf(numbers(5)...)
			s := &batchSink[int]{failBatch: func(_ context.Context, records []int, _ int) error {
				if slices.Contains(records, 2) {
					return fail()
				}
				return nil
			}}
			s.fail = func(_ context.Context, r, _ int) error {
				if r == 2 {
					return fail()
				}
				return nil
			}
			err := courier.NewPollingCoordinator(source, s, quiet).RunOnce(t.Context())
			require.Error(t, err)
			require.Equal(t, [][]int{{0, 1, 3, 4}}, source.marks)
			require.Equal(t, []int{2}, source.left())
		})
	}
}

func TestD4_OneWorkerAppliesInFetchOrder(t *testing.T) {
	var applied []int // no lock: the calls are one after the other
	source := newShelf(numbers(250)...)
	stop := start(t, courier.NewPollingCoordinator(source, courier.ProcessFunc(func(_ context.Context, r int) error {
		applied = append(applied, r)
		return nil
	}), quiet, courier.WithInterval(time.Millisecond)))
	require.Eventually(t, func() bool { return len(source.left()) == 0 }, 30*time.Second, time.Millisecond)
	require.NoError(t, stop())
	require.Equal(t, numbers(250), applied)
}

func TestD5_WhatWasNotAttemptedBurnsNoAttemptAndIsNeverParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf(numbers(3)...)
		var down atomic.Bool
		down.Store(true)
		s := &sink[int]{fail: func(context.Context, int, int) error {
			if down.Load() {
				return errTest
			}
			return nil
		}}
		applier, dlq := courier.ResilientApplier(s, nil)
		stop := start(t, courier.NewPollingCoordinator(source, applier, quiet))
		time.Sleep(time.Hour)
		down.Store(false)
		time.Sleep(2 * time.Minute)
		require.NoError(t, stop())

		parked, err := dlq.Receive(t.Context(), 100)
		require.NoError(t, err)
		require.Empty(t, parked)
		require.ElementsMatch(t, numbers(3), source.marked())
	})
}

func TestD5_AContextThatEndsIsNoAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf(1, 2)
		applier, dlq := courier.ResilientApplier(courier.ProcessFunc(func(ctx context.Context, _ int) error {
			<-ctx.Done()
			return ctx.Err()
		}), nil)
		stop := start(t, courier.NewPollingCoordinator(source, applier, quiet, courier.WithDrainTimeout(time.Second)))
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		parked, _ := dlq.Receive(t.Context(), 10)
		require.Empty(t, parked)
		require.Equal(t, []int{1, 2}, source.left())
		require.Empty(t, source.marked())
	})
}

func TestD6_AnOutagePausesIntake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf(numbers(100)...)
		start1 := time.Now()
		outage := 10 * time.Minute
		s := &sink[int]{fail: func(context.Context, int, int) error {
			if time.Since(start1) < outage {
				return errTest
			}
			return nil
		}}
		applier, dlq := courier.ResilientApplier(s, nil)
		stop := start(t, courier.NewPollingCoordinator(source, applier, quiet, courier.WithFastPolling()))
		time.Sleep(outage)
		synctest.Wait()
		// 5 calls open the breaker; then one probe for each open period, which
		// doubles from 1 s to 1 min, a fifth less at the least.
		require.LessOrEqual(t, s.called(), 5+8+13)
		require.LessOrEqual(t, source.fetchCount(), 1+8+13, "no fetch but for a probe")
		time.Sleep(3 * time.Minute)
		require.NoError(t, stop())
		parked, _ := dlq.Receive(t.Context(), 100)
		require.Empty(t, parked)
		require.Empty(t, source.left())
	})
}

func TestD7_AFailedMarkIsRetriedBeforeTheNextFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf(numbers(3)...)
		source.markErr = func(n int) error {
			if n <= 4 {
				return errors.New("the database is away")
			}
			return nil
		}
		s := &sink[int]{}
		stop := start(t, courier.NewPollingCoordinator(source, s, quiet))
		synctest.Wait()
		require.Equal(t, 1, source.fetchCount())
		time.Sleep(4 * time.Second)
		require.Equal(t, 1, source.fetchCount(), "nothing is fetched while the mark fails")
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		require.Equal(t, [][]int{{0, 1, 2}}, source.marks)
		require.Equal(t, numbers(3), s.got(), "nothing is applied again")
	})
}

func TestD8_AStopInMidBatchMarksWhatWasAppliedAndReleasesTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newLeasing(numbers(10)...)
		ctx, cancel := context.WithCancel(t.Context())
		applied := courier.ProcessFunc(func(ctx context.Context, r int) error {
			if r == 3 {
				cancel()
				time.Sleep(time.Second) // the work in flight goes on
			}
			return ctx.Err()
		})
		require.NoError(t, courier.NewPollingCoordinator(source, applied, quiet).Start(ctx))
		require.Equal(t, [][]int{{0, 1, 2, 3}}, source.marks)
		require.Equal(t, []error{nil}, source.markCtx, "the mark has a live context")
		require.Equal(t, [][]int{{4, 5, 6, 7, 8, 9}}, source.released)
		require.Equal(t, []time.Duration{0}, source.afters)
	})
}

func TestD8_TheDrainTimeoutCancelsHard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newLeasing(numbers(3)...)
		var cause error
		stop := start(t, courier.NewPollingCoordinator(source, courier.ProcessFunc(func(ctx context.Context, r int) error {
			if r == 0 {
				return nil
			}
			<-ctx.Done()
			cause = context.Cause(ctx)
			return ctx.Err()
		}), quiet, courier.WithDrainTimeout(7*time.Second)))
		synctest.Wait()
		before := time.Now()
		require.NoError(t, stop())
		require.Equal(t, 7*time.Second, time.Since(before))
		require.ErrorIs(t, cause, courier.ErrDrainTimeout)
		require.Equal(t, [][]int{{0}}, source.marks)
		require.Equal(t, []error{nil}, source.markCtx, "what was applied is marked under a live context all the same")
		require.Equal(t, [][]int{{1, 2}}, source.released)
	})
}

func TestD8_AMarkThatFailsUntilTheEndIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf(1)
		source.markErr = func(int) error { return errTest }
		stop := start(t, courier.NewPollingCoordinator(source, &sink[int]{}, quiet))
		synctest.Wait()
		before := time.Now()
		err := stop()
		require.ErrorIs(t, err, courier.ErrMark)
		require.ErrorIs(t, err, errTest)
		require.LessOrEqual(t, time.Since(before), 10*time.Second, "no apply was in flight: the marks have the drain timeout")
	})
}

func TestD8_AStopInterruptsTheDelayOfARetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newShelf(1)
		applier := courier.NewRetryableApplier(courier.ProcessFunc(func(context.Context, int) error { return errTest }),
			courier.RetryPolicy{InitialDelay: time.Hour, MaxDelay: time.Hour, Jitter: courier.NoJitter})
		applier, dlq := withDLQ(applier)
		stop := start(t, courier.NewPollingCoordinator(source, applier, quiet))
		synctest.Wait()
		before := time.Now()
		require.NoError(t, stop())
		require.Zero(t, time.Since(before))
		require.Equal(t, []int{1}, source.left())
		require.Zero(t, countOf(dlq))
	})
}

func TestD9_APanicIsTheRecordsFailure(t *testing.T) {
	source := newShelf(numbers(4)...)
	s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
		if r == 1 {
			panic(fmt.Errorf("bad order: %w", errTest))
		}
		return nil
	}}
	err := courier.NewPollingCoordinator(source, s, quiet).RunOnce(t.Context())
	var p *courier.PanicError
	require.ErrorAs(t, err, &p)
	require.ErrorIs(t, err, courier.ErrPanic)
	require.ErrorIs(t, err, errTest, "a panic with an error is that error")
	require.Contains(t, string(p.Stack), "contract_test.go", "the stack is the panic's")
	require.Equal(t, []int{0, 2, 3}, source.marked())
}

func TestD9_AGoexitIsTheRecordsFailure(t *testing.T) {
	source := newShelf(numbers(4)...)
	s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
		if r == 1 || r == 2 {
			runtime.Goexit()
		}
		return nil
	}}
	err := courier.NewPollingCoordinator(source, s, quiet).RunOnce(t.Context())
	var p *courier.PanicError
	require.ErrorAs(t, err, &p)
	require.True(t, p.Goexit())
	require.Equal(t, []int{0, 3}, source.marked())
	require.Equal(t, []int{1, 2}, source.left())
}

func TestD9_FetchAndMarkMayPanicOrExitToo(t *testing.T) {
	for name, end := range map[string]func(){
		"panic":  func() { panic("boom") },
		"goexit": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := newShelf(numbers(3)...)
				source.fetchErr = func(n int) error {
					if n <= 2 {
						source.mu.Unlock() // end leaves through the shelf's deferred unlock
						defer source.mu.Lock()
						end()
					}
					return nil
				}
				source.markErr = func(n int) error {
					if n <= 2 {
						source.mu.Unlock()
						defer source.mu.Lock()
						end()
					}
					return nil
				}
				s := &sink[int]{}
				stop := start(t, courier.NewPollingCoordinator(source, s, quiet))
				time.Sleep(time.Minute)
				require.NoError(t, stop())
				require.Equal(t, numbers(3), source.marked())
				require.Equal(t, numbers(3), s.got())
			})
		})
	}
}

func TestD11_MoreThanTheLimitIsWorkedOffInBatches(t *testing.T) {
	var marks [][]int
	err := courier.RunOnce(t.Context(),
		func(context.Context) ([]int, error) { return numbers(25), nil },
		nop[int],
		func(_ context.Context, records []int) error {
			marks = append(marks, slices.Clone(records))
			return nil
		}, courier.WithBatchSize(10), quiet)
	require.NoError(t, err)
	require.Equal(t, [][]int{numbers(25)[:10], numbers(25)[10:20], numbers(25)[20:]}, marks)
}

func TestD11_AFullDLQRefusesAndTheRecordStaysPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged strings.Builder
		source := newShelf(numbers(4)...)
		queue := &courier.MemoryDLQ[int]{Capacity: 1}
		s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
			if r < 2 {
				return courier.Permanent(errTest)
			}
			return nil
		}}
		applier := courier.NewDLQApplier(s, courier.DLQ[int](queue), courier.DLQPolicy[int]{})
		stop := start(t, courier.NewPollingCoordinator(source, applier, courier.WithLogger(textLogger(&logged)), courier.WithFastPolling()))
		time.Sleep(time.Hour)
		require.NoError(t, stop())

		require.Equal(t, 1, countOf(queue))
		require.Equal(t, []int{1}, source.left(), "the refused record stays, the others went on")
		require.Contains(t, logged.String(), "the dead letter queue is full")
		require.Less(t, source.fetchCount(), 200, "no busy loop: the coordinator backs off")
	})
}

func TestD12_BadInputIsOneClearError(t *testing.T) {
	fetch := func(context.Context) ([]int, error) { panic("fetched in spite of a bad configuration") }
	mark := nop[[]int]
	process := nop[int]
	policy := func(p courier.RetryPolicy) interface{ Start(context.Context) error } {
		return courier.NewPollingCoordinator(courier.BatchSourceFunc[int]{FetchFunc: fetch, MarkFunc: mark},
			courier.NewRetryableApplier(courier.ProcessFunc(process), p))
	}
	breaker := func(p courier.BreakerPolicy) interface{ Start(context.Context) error } {
		return courier.NewPollingCoordinator(courier.BatchSourceFunc[int]{FetchFunc: fetch, MarkFunc: mark},
			courier.NewCircuitBreakerApplier(courier.ProcessFunc(process), courier.NewBreaker(p)))
	}
	resilient := func(c courier.ResilientConfig[int]) interface{ Start(context.Context) error } {
		applier, _ := courier.ResilientApplier(courier.ProcessFunc(process), &c)
		return courier.NewPollingCoordinator(courier.BatchSourceFunc[int]{FetchFunc: fetch, MarkFunc: mark}, applier)
	}
	var noApplier courier.Applier[int]
	ch := make(chan int)
	for _, test := range []struct {
		field string
		c     interface{ Start(context.Context) error }
	}{
		{"fetch", courier.Sync(nil, process, mark)},
		{"process", courier.Sync[int](fetch, nil, mark)},
		{"mark", courier.Sync(fetch, process, nil)},
		{"source", courier.NewPollingCoordinator[int](nil, courier.ProcessFunc(process))},
		{"applier", courier.NewPollingCoordinator(courier.BatchSourceFunc[int]{FetchFunc: fetch, MarkFunc: mark}, noApplier)},
		{"maxAttempts", courier.SyncWithRetry(fetch, process, mark, 0)},
		{"maxAttempts", courier.SyncWithRetry(fetch, process, mark, -1)},
		{"WithBatchSize", courier.Sync(fetch, process, mark, courier.WithBatchSize(0))},
		{"WithInterval", courier.Sync(fetch, process, mark, courier.WithInterval(-time.Second))},
		{"WithInterval", courier.Sync(fetch, process, mark, courier.WithInterval(0))},
		{"WithStallAfter", courier.Sync(fetch, process, mark, courier.WithStallAfter(-time.Second))},
		{"WithDrainTimeout", courier.Sync(fetch, process, mark, courier.WithDrainTimeout(0))},
		{"WithClock", courier.Sync(fetch, process, mark, courier.WithClock(nil))},
		{"WithRandom", courier.Sync(fetch, process, mark, courier.WithRandom(nil))},
		{"WithLogger", courier.Sync(fetch, process, mark, courier.WithLogger(nil))},
		{"option", courier.Sync(fetch, process, mark, nil)},
		{"WithStreamWorkers", courier.Sync(fetch, process, mark, courier.WithStreamWorkers(2))},
		{"WithFlushInterval", courier.Sync(fetch, process, mark, courier.WithFlushInterval(time.Second))},
		{"WithStreamWorkers", courier.NewStreamingCoordinator(courier.NewChannelSource(ch, mark), courier.ProcessFunc(process), courier.WithStreamWorkers(0))},
		{"WithInterval", courier.NewStreamingCoordinator(courier.NewChannelSource(ch, mark), courier.ProcessFunc(process), courier.WithInterval(time.Second))},
		{"WithPrefetch", courier.NewPollingCoordinator(newLeasing[int](), courier.ProcessFunc(process), courier.WithPrefetch(1), courier.WithOrderKey(byRest(2)))},
		{"WithPrefetch", courier.NewPollingCoordinator(newShelf[int](), courier.ProcessFunc(process), courier.WithPrefetch(1))},
		{"WithApplyBatchSize", courier.NewPollingCoordinator(newShelf[int](), courier.ProcessFunc(process), courier.WithApplyBatchSize(5))},
		{"WithApplyBatchSize", courier.NewPollingCoordinator(newShelf[int](), courier.WithRetry(courier.ProcessFunc(process)), courier.WithApplyBatchSize(5))},
		{"WithApplyBatchSize", courier.NewStreamingCoordinator(newLeasing[int](), courier.ProcessFunc(process), courier.WithApplyBatchSize(5))},
		{"WithFixedInterval", courier.NewStreamingCoordinator(courier.NewChannelSource(ch, mark), courier.ProcessFunc(process), courier.WithFixedInterval())},
		{"channel", courier.NewStreamingCoordinator(courier.NewChannelSource(nil, mark), courier.ProcessFunc(process))},
		{"markDone", courier.NewStreamingCoordinator(courier.NewChannelSource(ch, nil), courier.ProcessFunc(process))},
		{"RetryPolicy.MaxAttempts", policy(courier.RetryPolicy{MaxAttempts: -1})},
		{"RetryPolicy.InitialDelay", policy(courier.RetryPolicy{InitialDelay: -1})},
		{"RetryPolicy.MaxDelay", policy(courier.RetryPolicy{MaxDelay: -1})},
		{"RetryPolicy.MaxDelay", policy(courier.RetryPolicy{InitialDelay: 2, MaxDelay: 1})},
		{"RetryPolicy.Multiplier", policy(courier.RetryPolicy{Multiplier: math.NaN()})},
		{"RetryPolicy.Multiplier", policy(courier.RetryPolicy{Multiplier: math.Inf(1)})},
		{"RetryPolicy.Multiplier", policy(courier.RetryPolicy{Multiplier: 0.5})},
		{"RetryPolicy.Jitter", policy(courier.RetryPolicy{Jitter: 9})},
		{"RetryPolicy.MaxRetryAfter", policy(courier.RetryPolicy{MaxRetryAfter: -1})},
		{"RetryPolicy.MaxElapsed", policy(courier.RetryPolicy{MaxElapsed: -1})},
		{"BudgetPolicy.Ratio", policy(courier.RetryPolicy{Budget: courier.NewRetryBudget(courier.BudgetPolicy{Ratio: math.NaN()})})},
		{"BudgetPolicy.Floor", policy(courier.RetryPolicy{Budget: courier.NewRetryBudget(courier.BudgetPolicy{Floor: -1})})},
		{"BudgetPolicy.Burst", policy(courier.RetryPolicy{Budget: courier.NewRetryBudget(courier.BudgetPolicy{Burst: 0.5})})},
		{"attempt timeout", courier.NewPollingCoordinator(courier.BatchSourceFunc[int]{FetchFunc: fetch, MarkFunc: mark}, courier.NewAttemptTimeoutApplier(courier.ProcessFunc(process), 0, nil))},
		{"BreakerPolicy.FailureThreshold", breaker(courier.BreakerPolicy{FailureThreshold: -1})},
		{"BreakerPolicy.FailureRate", breaker(courier.BreakerPolicy{FailureRate: 1.1})},
		{"BreakerPolicy.FailureRate", breaker(courier.BreakerPolicy{FailureRate: math.NaN()})},
		{"BreakerPolicy.SlowCallRate", breaker(courier.BreakerPolicy{SlowCallRate: -0.1, SlowCall: 1})},
		{"BreakerPolicy.SlowCall", breaker(courier.BreakerPolicy{SlowCall: -1})},
		{"BreakerPolicy.SlowCall", breaker(courier.BreakerPolicy{SlowCallRate: 0.5})},
		{"BreakerPolicy.SlowCall", breaker(courier.BreakerPolicy{SlowCall: time.Second})},
		{"BreakerPolicy.MinCalls", breaker(courier.BreakerPolicy{MinCalls: -1})},
		{"BreakerPolicy.MinCalls", breaker(courier.BreakerPolicy{FailureRate: 0.5, WindowCalls: 10})},
		{"BreakerPolicy.Window", breaker(courier.BreakerPolicy{Window: -1})},
		{"BreakerPolicy.WindowCalls", breaker(courier.BreakerPolicy{WindowCalls: -1})},
		{"BreakerPolicy.WindowCalls", breaker(courier.BreakerPolicy{WindowCalls: 10, Window: 1})},
		{"BreakerPolicy.OpenMultiplier", breaker(courier.BreakerPolicy{OpenMultiplier: 0.5})},
		{"BreakerPolicy.OpenMultiplier", breaker(courier.BreakerPolicy{OpenMultiplier: math.NaN()})},
		{"BreakerPolicy.Jitter", breaker(courier.BreakerPolicy{Jitter: 1})},
		{"BreakerPolicy.Jitter", breaker(courier.BreakerPolicy{Jitter: 0.1, DisableJitter: true})},
		{"BreakerPolicy.Jitter", breaker(courier.BreakerPolicy{Jitter: math.NaN()})},
		{"BreakerPolicy.OpenFor", breaker(courier.BreakerPolicy{OpenFor: -1})},
		{"BreakerPolicy.MaxOpenFor", breaker(courier.BreakerPolicy{MaxOpenFor: -1})},
		{"BreakerPolicy.MaxOpenFor", breaker(courier.BreakerPolicy{MaxOpenFor: time.Millisecond})},
		{"BreakerPolicy.MaxRetryAfter", breaker(courier.BreakerPolicy{MaxRetryAfter: -1})},
		{"breaker", courier.NewPollingCoordinator(courier.BatchSourceFunc[int]{FetchFunc: fetch, MarkFunc: mark}, courier.NewCircuitBreakerApplier(courier.ProcessFunc(process), new(courier.Breaker)))},
		{"coordinator", new(courier.PollingCoordinator[int])},
		{"coordinator", new(courier.StreamingCoordinator[int])},
		{"source", courier.NewPollingCoordinator(courier.NewChannelSource(ch, mark), courier.ProcessFunc(process))},
		{"source", courier.NewStreamingCoordinator(courier.BatchSourceFunc[int]{FetchFunc: fetch, MarkFunc: mark}, courier.ProcessFunc(process))},
		{"BreakerPolicy.Probes", breaker(courier.BreakerPolicy{Probes: -1})},
		{"BreakerPolicy.Successes", breaker(courier.BreakerPolicy{Successes: -1})},
		{"BreakerPolicy.ProbeTimeout", breaker(courier.BreakerPolicy{ProbeTimeout: -1})},
		{"breaker", courier.NewPollingCoordinator(courier.BatchSourceFunc[int]{FetchFunc: fetch, MarkFunc: mark}, courier.NewCircuitBreakerApplier(courier.ProcessFunc(process), nil))},
		{"dlq", courier.NewPollingCoordinator(courier.BatchSourceFunc[int]{FetchFunc: fetch, MarkFunc: mark}, courier.NewDLQApplier(courier.ProcessFunc(process), nil, courier.DLQPolicy[int]{}))},
		{"branches", courier.NewPollingCoordinator(courier.BatchSourceFunc[int]{FetchFunc: fetch, MarkFunc: mark}, courier.NewFanOutApplier[int]())},
		{"branches[1]", courier.NewPollingCoordinator(courier.BatchSourceFunc[int]{FetchFunc: fetch, MarkFunc: mark}, courier.NewFanOutApplier(courier.ProcessFunc(process), noApplier))},
		{"decode", courier.NewPollingCoordinator(courier.BatchSourceFunc[int]{FetchFunc: fetch, MarkFunc: mark}, courier.NewDecodingApplier[int](courier.ProcessFunc(process), nil))},
		{"applier", policyOver(noApplier, fetch, mark)},
		{"RetryPolicy.MaxAttempts", resilient(courier.ResilientConfig[int]{Retry: courier.RetryPolicy{MaxAttempts: 1}})},
		{"BreakerPolicy.FailureThreshold", resilient(courier.ResilientConfig[int]{Breaker: courier.BreakerPolicy{FailureThreshold: 1}})},
		{"BreakerPolicy.FailureThreshold", resilient(courier.ResilientConfig[int]{Breaker: courier.BreakerPolicy{FailureThreshold: 6}})},
		{"RetryPolicy.Multiplier", resilient(courier.ResilientConfig[int]{Retry: courier.RetryPolicy{Multiplier: -1}})},
		{"BreakerPolicy.OpenFor", resilient(courier.ResilientConfig[int]{Breaker: courier.BreakerPolicy{OpenFor: -1}})},
	} {
		t.Run(test.field, func(t *testing.T) {
			err := test.c.Start(t.Context())
			var bad *courier.ConfigError
			require.ErrorAs(t, err, &bad)
			require.ErrorIs(t, err, courier.ErrConfig)
			require.Equal(t, test.field, bad.Field)
			require.Contains(t, err.Error(), test.field)
			require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), err))
		})
	}
}

func policyOver(a courier.Applier[int], fetch func(context.Context) ([]int, error), mark func(context.Context, []int) error) *courier.PollingCoordinator[int] {
	return courier.NewPollingCoordinator(courier.BatchSourceFunc[int]{FetchFunc: fetch, MarkFunc: mark}, courier.WithRetry(a))
}

func TestD12_RecordsTogetherWithAnErrorAreWorkedOff(t *testing.T) {
	cause := errors.New("the second page failed")
	var marked []int
	err := courier.RunOnce(t.Context(),
		func(context.Context) ([]int, error) { return []int{1, 2}, cause },
		nop[int],
		func(_ context.Context, records []int) error { marked = append(marked, records...); return nil }, quiet)
	require.ErrorIs(t, err, cause)
	require.Equal(t, []int{1, 2}, marked)
}

func TestD12_TheSameRecordTwiceIsTwoRecords(t *testing.T) {
	var applied, marked []int
	err := courier.RunOnce(t.Context(),
		func(context.Context) ([]int, error) { return []int{1, 1}, nil },
		func(_ context.Context, r int) error { applied = append(applied, r); return nil },
		func(_ context.Context, records []int) error { marked = append(marked, records...); return nil }, quiet)
	require.NoError(t, err)
	require.Equal(t, []int{1, 1}, applied)
	require.Equal(t, []int{1, 1}, marked)
}

func TestStart_ASecondOneIsAClearError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := courier.Sync(func(context.Context) ([]int, error) { return nil, nil }, nop[int], nop[[]int], quiet)
		stop := start(t, c)
		synctest.Wait()
		require.ErrorIs(t, c.Start(t.Context()), courier.ErrRunning)
		require.ErrorIs(t, c.RunOnce(t.Context()), courier.ErrRunning)
		require.NoError(t, stop())
		stop = start(t, c) // Start after a stop works
		require.NoError(t, stop())
	})
}

// D1, D2, D3 as a property, whatever the shape: every record has one verdict,
// and what is marked is what was applied.
func TestD1_Property_EveryShapeSettlesWhatItAppliesAndNoMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 120).Draw(t, "records")
		workers := rapid.IntRange(1, 9).Draw(t, "workers")
		keys := rapid.IntRange(0, 6).Draw(t, "keys")
		bad := rapid.SliceOfN(rapid.IntRange(0, 3), n, n).Draw(t, "bad")
		outcome := func(_ context.Context, r, _ int) error {
			switch bad[r] {
			case 2:
				panic(errTest)
			case 3:
				return errTest
			}
			return nil
		}
		opts := []courier.Option{quiet, courier.WithWorkers(workers), courier.WithBatchSize(rapid.IntRange(1, 50).Draw(t, "batch"))}
		if keys > 0 {
			opts = append(opts, courier.WithOrderKey(byRest(keys)))
		}
		s := &batchSink[int]{sink: sink[int]{fail: outcome}, failBatch: func(_ context.Context, records []int, _ int) error {
			var failed courier.BatchError
			for i, r := range records {
				if bad[r] > 1 {
					failed.Add(i, errTest)
				}
			}
			return failed.ErrorOrNil()
		}}
		var applier courier.Applier[int] = s
		if !rapid.Bool().Draw(t, "together") {
			applier = &s.sink
		}
		pending := numbers(n)
		fetch := func(context.Context) ([]int, error) { return pending, nil }
		var marked []int
		mark := func(_ context.Context, records []int) error {
			marked = append(marked, records...)
			return nil
		}
		_ = courier.NewPollingCoordinator(courier.BatchSourceFunc[int]{FetchFunc: fetch, MarkFunc: mark}, applier, opts...).RunOnce(context.Background())

		var want []int // everything that is not bad, nor behind something bad of its key
		blocked := map[int]bool{}
		for r := range n {
			if keys > 0 && blocked[r%keys] {
				continue
			}
			if bad[r] > 1 {
				blocked[r%max(1, keys)] = true
				continue
			}
			want = append(want, r)
		}
		slices.Sort(marked)
		if !slices.Equal(want, marked) {
			t.Fatalf("marked %v, want %v", marked, want)
		}
		got := s.got()
		slices.Sort(got)
		if !slices.Equal(want, got) {
			t.Fatalf("applied %v, want %v", got, want)
		}
	})
}

// D12: a fetch of more than the limit is worked off in batches, and a record
// without a name is told of by its place in the fetch.
func TestD12_ARecordBeyondTheLimitIsToldOfByItsPlace(t *testing.T) {
	var told courierttest.ObserverRecorder
	type secret struct{ n int }
	source := courier.BatchSourceFunc[secret]{
		FetchFunc: func(context.Context) ([]secret, error) { return []secret{{0}, {1}, {2}, {3}, {4}}, nil },
		MarkFunc:  nop[[]secret],
	}
	s := courier.ProcessFunc(func(_ context.Context, r secret) error {
		if r.n == 3 {
			return errTest
		}
		return nil
	})
	_ = courier.NewPollingCoordinator(source, s, quiet, courier.WithBatchSize(2), courier.WithObserver(told.Observer())).RunOnce(t.Context())
	failed := courierttest.EventsOf[courier.FailEvent](&told)
	require.Len(t, failed, 1)
	require.Equal(t, "record 4 of the batch (the first is 1)", failed[0].Record)
	applied := courierttest.EventsOf[courier.ApplyEvent](&told)
	require.Len(t, applied, 3)
	require.Equal(t, "record 4 of the batch (the first is 1)", applied[1].Record)
}

// D6, D8: neither a pause nor a stop goes on with the rest of a fetch of more
// than the limit.
func TestD12_TheRestOfAFetchIsGivenBack(t *testing.T) {
	for _, how := range []string{"pause", "stop"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				memory := newLeasing(numbers(5)...)
				source := beyond{memory}
				s := &sink[int]{fail: func(context.Context, int, int) error {
					if how == "stop" {
						cancel()
						return nil
					}
					return &courier.OpenError{Until: time.Now().Add(time.Hour)}
				}}
				c := courier.NewPollingCoordinator(source, s, quiet, courier.WithBatchSize(1))
				_ = c.RunOnce(ctx)
				require.Equal(t, 1, s.called())
				require.Zero(t, c.Stats().InHand)
				back := slices.Concat(memory.released...)
				slices.Sort(back)
				require.Equal(t, memory.left(), back)
			})
		})
	}
}
