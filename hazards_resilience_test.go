package courier_test

// Hazards of the decorators, found by attack: what a hung probe, a short budget,
// a time in a record's own error, a dead branch or a queue hidden in a closure
// does to the others.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

func TestB15_SomebodyElsesHungProbeStopsNoCoordinator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(1)
		permit, _ := b.Acquire(t.Context())
		_ = b.Report(t.Context(), permit, errTest)
		time.Sleep(10 * time.Second)
		_, err := b.Acquire(t.Context()) // and it never comes back
		require.NoError(t, err)
		source := newShelf(1, 2, 3)
		run(t, source, courier.NewCircuitBreakerApplier(always(nil), b), 10*time.Minute)
		require.Empty(t, source.left())
	})
}

// B-15: what counts is progress: probes that come back keep the breaker asking.
func TestB15_ProgressPutsTheProbeTimeoutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, OpenFor: 10 * time.Second, Random: half, Probes: 2, Successes: 10})
		permit, _ := b.Acquire(t.Context())
		_ = b.Report(t.Context(), permit, errTest)
		time.Sleep(10 * time.Second)
		_, err := b.Acquire(t.Context()) // hangs
		require.NoError(t, err)
		other, err := b.Acquire(t.Context())
		require.NoError(t, err)
		time.Sleep(50 * time.Second)
		require.NoError(t, b.Report(t.Context(), other, nil))
		_, err = b.Acquire(t.Context())
		require.NoError(t, err)
		time.Sleep(50 * time.Second)
		_, err = b.Acquire(t.Context())
		require.ErrorIs(t, err, courier.ErrOpen)
		require.Equal(t, courier.BreakerHalfOpen, b.State(), "the last verdict is 50 s old")
	})
}

func TestB2_APermitReportedTwiceFreesNoOthersSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(1)
		permit, _ := b.Acquire(t.Context())
		_ = b.Report(t.Context(), permit, errTest)
		time.Sleep(10 * time.Second)
		permit, _ = b.Acquire(t.Context())
		for range 3 {
			_ = b.Report(t.Context(), permit, &courier.OpenError{})
		}
		_, err := b.Acquire(t.Context())
		require.NoError(t, err)
		_, err = b.Acquire(t.Context())
		require.ErrorIs(t, err, courier.ErrOpen)
	})
}

// C-6: of failures that began one after the other, a success ends the streak of those
// that had been counted when its call began, and of the others only their row.
func TestB3_ALateSuccessOfACalmPhaseIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker(3)
		hold := make(chan error)
		applier := courier.NewCircuitBreakerApplier(courier.ProcessFunc(func(_ context.Context, r int) error {
			if r == 0 {
				return <-hold
			}
			return nil
		}), b)
		done := make(chan error, 2)
		both := func() {
			for range 2 {
				go func() { done <- applier.Apply(t.Context(), 0) }()
			}
			synctest.Wait()
		}
		both()
		hold <- errTest
		require.Error(t, <-done)
		require.Equal(t, 1, b.Metrics().Consecutive)
		hold <- nil
		require.NoError(t, <-done)
		require.Equal(t, 1, b.Metrics().Consecutive, "the success is of before the failure")
		require.NoError(t, applier.Apply(t.Context(), 2))
		require.Zero(t, b.Metrics().Consecutive)

		both()
		hold <- errTest
		hold <- errTest
		require.Error(t, errors.Join(<-done, <-done))
		require.Equal(t, 2, b.Metrics().Consecutive)
		require.NoError(t, applier.Apply(t.Context(), 2))
		require.Zero(t, b.Metrics().Consecutive)
	})
}

func TestB4_ABatchThatPanicsIsAFailure(t *testing.T) {
	b := newBreaker(1)
	s := &batchSink[int]{failBatch: func(context.Context, []int, int) error { panic("boom") }}
	err := asBatch(courier.NewCircuitBreakerApplier[int](s, b)).ApplyBatch(t.Context(), []int{1})
	require.ErrorIs(t, err, courier.ErrPanic)
	require.EqualValues(t, "open", b.State())
}

func TestB5_ThePanicKeepsItsOrigin(t *testing.T) {
	for _, failures := range []int{0, 1} { // on the fast path, and off it
		b := newBreaker(5)
		for range failures {
			_ = courier.NewCircuitBreakerApplier(always(errTest), b).Apply(t.Context(), 1)
		}
		dlq := &courier.MemoryDLQ[int]{}
		stack := courier.NewDLQApplier(courier.NewCircuitBreakerApplier(courier.ProcessFunc(panics), b), courier.DLQ[int](dlq), courier.DLQPolicy[int]{})
		require.NoError(t, stack.Apply(t.Context(), 1))
		parked, _ := dlq.Receive(t.Context(), 1)
		var p *courier.PanicError
		require.ErrorAs(t, parked[0].Error, &p)
		require.Contains(t, string(p.Stack), "courier_test.panics(", "the stack has the frame that panicked")
		require.Equal(t, 1, strings.Count(string(p.Stack), "panic("), "and nobody panicked again")
	}
}

func panics(context.Context, int) error { panic("boom") }

func TestB8_AnEndedContextTakesNoPermitForABatch(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := &batchSink[int]{}
	err := asBatch(courier.NewCircuitBreakerApplier[int](s, newBreaker(1))).ApplyBatch(ctx, []int{1})
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, s.batches)
}

// P-1: a batch that fails as one counts against no record of it.
func TestP1_AFailedBatchThatOpensTheBreakerIsNoRecordsAttempt(t *testing.T) {
	s := &batchSink[int]{failBatch: func(context.Context, []int, int) error { return errTest }}
	for n, counted := range map[int]bool{1: true, 2: false} {
		err := asBatch(courier.NewCircuitBreakerApplier[int](s, newBreaker(1))).ApplyBatch(t.Context(), numbers(n))
		var open *courier.OpenError
		require.ErrorAs(t, err, &open)
		require.Equal(t, counted, courier.Counted(open), "a batch of %d", n)
	}
	s.failBatch = func(context.Context, []int, int) error { return failures(0, 0) }
	b := newBreaker(2)
	for range 3 {
		_ = asBatch(courier.NewCircuitBreakerApplier[int](s, b)).ApplyBatch(t.Context(), numbers(2))
		require.EqualValues(t, "closed", b.State(), "one record is listed twice, and the other got through")
	}
}

func TestR12_TheAttemptOfABatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []int
		s := &batchSink[int]{failBatch: func(ctx context.Context, _ []int, _ int) error {
			got = append(got, courier.AttemptFromContext(ctx))
			return failures(0)
		}}
		policy := plain
		policy.MaxAttempts = 3
		_ = asBatch(courier.NewRetryableApplier[int](s, policy)).ApplyBatch(t.Context(), numbers(2))
		require.Equal(t, []int{1, 2, 3}, got)
	})
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

func TestF3_ADeadBranchBeyondTheQuorumAndPoisonStarveNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead := courier.WithCircuitBreaker(always(errTest))
		poison := failsOn(map[int]error{0: errTest, 5: errTest})
		fan := courier.NewFanOutFromConfig(courier.FanOutConfig[int]{Branches: named(dead, always(nil), poison), Quorum: 2, OnBranchFailure: new(missed).note})
		source := newShelf(numbers(200)...)
		run(t, source, fan, time.Hour)
		require.Equal(t, []int{0, 5}, source.left())
	})
}

// the guard is about records that were decided.
func TestQ9_WhatTheGuardCounts(t *testing.T) {
	keyed := courier.DLQPolicy[int]{Key: func(r int) string { return fmt.Sprint(r) }}
	t.Run("skipped records are decided", func(t *testing.T) {
		for _, policy := range []courier.DLQPolicy[int]{{}, keyed} {
			applier := courier.NewDLQApplier(courier.ProcessFunc(func(_ context.Context, r int) error {
				if r%40 == 0 {
					return courier.Permanent(errTest)
				}
				return courier.Skip(errTest)
			}), courier.DLQ[int](&courier.MemoryDLQ[int]{}), policy)
			for i := range 4000 {
				require.NotErrorIs(t, applier.Apply(t.Context(), i), courier.ErrPark)
			}
		}
	})
	t.Run("the records of a batch count before its failures", func(t *testing.T) {
		s := &batchSink[int]{failBatch: func(context.Context, []int, int) error {
			var e courier.BatchError
			for i := range 25 {
				e.Add(i, courier.Permanent(errTest))
			}
			return &e
		}}
		for _, policy := range []courier.DLQPolicy[int]{{}, keyed} {
			queue := &courier.MemoryDLQ[int]{}
			applier := courier.NewDLQApplier[int](s, courier.DLQ[int](queue), policy)
			require.NoError(t, asBatch(applier).ApplyBatch(t.Context(), numbers(100)))
			require.Equal(t, 25, countOf(queue))
		}
	})
}

func TestQ7_AKeyedQueueHiddenFromARedrive(t *testing.T) {
	for _, identity := range []func(int) string{nil, func(r int) string { return fmt.Sprint(r) }} {
		queue := &courier.MemoryDLQ[int]{Identity: identity}
		parking := courier.NewDLQApplier(always(errTest), courier.DLQ[int](queue), courier.DLQPolicy[int]{Key: func(int) string { return "k" }})
		require.NoError(t, parking.Apply(t.Context(), 1))
		before, _ := queue.Receive(t.Context(), 1)
		hidden := courier.ProcessFunc(func(ctx context.Context, r int) error { return parking.Apply(ctx, r) })
		result, err := courier.Redrive(t.Context(), courier.DLQ[int](queue), hidden, nil)
		require.ErrorIs(t, err, courier.ErrConfig)
		require.Zero(t, result.Succeeded)
		after, _ := queue.Receive(t.Context(), 1)
		require.Equal(t, before, after, "the letter is as it was")
	}
}

func TestRedrive_ALimitPassesNoLetterOver(t *testing.T) {
	for _, pageSize := range []int{3, 100} {
		queue := &courier.MemoryDLQ[string]{}
		for _, r := range []string{"a1", "a2", "b1", "b2"} {
			require.NoError(t, queue.Send(t.Context(), courier.DeadLetter[string]{Record: r, Key: r[:1], Error: errTest}))
		}
		var got []string
		result, err := courier.Redrive(t.Context(), courier.DLQ[string](queue), courier.ProcessFunc(func(_ context.Context, r string) error {
			got = append(got, r)
			if r == "a1" {
				return errTest
			}
			return nil
		}), &courier.RedriveConfig[string]{Limit: 2, BatchSize: pageSize})
		require.NoError(t, err)
		require.Equal(t, []string{"a1", "b1"}, got, "a2 is behind a1, and b2 behind b1")
		require.Equal(t, 2, result.Attempted)
	}
}

// T-1: by either clock, the context of an attempt says why it has ended.
func TestAttemptTimeout_TheContextSaysWhy(t *testing.T) {
	for name, clock := range map[string]courier.Clock{"system": nil, "injected": bubbleClock{}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var err, cause error
				b := newBreaker(1)
				stack := courier.NewCircuitBreakerApplier(courier.NewAttemptTimeoutApplier(courier.ProcessFunc(func(ctx context.Context, _ int) error {
					child, cancel := context.WithCancel(ctx)
					defer cancel()
					<-child.Done()
					err, cause = ctx.Err(), context.Cause(child)
					return ctx.Err()
				}), time.Second, clock), b)
				require.ErrorIs(t, stack.Apply(t.Context(), 1), courier.ErrAttemptTimeout)
				require.Equal(t, context.DeadlineExceeded, err)
				require.ErrorIs(t, cause, courier.ErrAttemptTimeout)
				require.EqualValues(t, "open", b.State())
			})
		})
	}
	synctest.Test(t, func(t *testing.T) { // and a hung queue is known by it
		asked := 0
		hung := &dlqFunc{send: func(ctx context.Context, _ courier.DeadLetter[int]) error {
			asked++
			<-ctx.Done()
			return ctx.Err()
		}}
		s := &batchSink[int]{failBatch: func(_ context.Context, records []int, _ int) error { return failures(numbers(len(records))...) }}
		applier := courier.NewDLQApplier[int](s, courier.DLQ[int](hung), courier.DLQPolicy[int]{Clock: bubbleClock{}})
		_ = asBatch(applier).ApplyBatch(t.Context(), numbers(100))
		require.Equal(t, 1, asked)
	})
}

// bubbleClock is the system's clock as if it were another.
type bubbleClock struct{}

func (bubbleClock) Now() time.Time                         { return time.Now() }
func (bubbleClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// T-2: a permanent error, or one of the breaker, is not a timeout for being late.
func TestAttemptTimeout_NamesOnlyWhatItCaused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, late := range []error{courier.Permanent(errTest), &courier.OpenError{Cause: errTest}, courier.Skip(errTest)} {
			applier := courier.NewAttemptTimeoutApplier(courier.ProcessFunc(func(ctx context.Context, _ int) error {
				<-ctx.Done()
				return late
			}), time.Second, nil)
			require.Same(t, late, applier.Apply(t.Context(), 1))
		}
	})
}

// what is exhausted is parked, but not under a context that has ended: then
// nobody knows.
func TestQ2_NotUnderAnEndedContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	applier, queue := withDLQ(courier.ProcessFunc(func(context.Context, int) error {
		cancel()
		return &courier.RetryError{Reason: courier.ReasonExhausted, Last: errTest}
	}))
	require.ErrorIs(t, applier.Apply(ctx, 1), courier.ErrExhausted)
	require.Zero(t, countOf(queue))
}

// D3, P-3: a record that is refused, and never attempted, tells nothing of the
// destination when it is the probe. The next probe is another record, whatever the
// batch size: else this one would keep the breaker half-open, and all others waiting.
func TestP3_Polling_AProbeThatWasNotAttemptedIsNotTheNextOne(t *testing.T) {
	for _, batch := range []int{2, 10} { // of one, the record would hide all others
		t.Run(fmt.Sprint("batch ", batch), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := newShelf(numbers(10)...)
				applier, queue := courier.ResilientApplier(courier.ProcessFunc(func(_ context.Context, r int) error {
					switch r {
					case 0:
						return rateLimited{}
					case 1:
						return errTest
					}
					return nil
				}), nil)
				stop := start(t, courier.NewPollingCoordinator(source, applier, quiet, courier.WithBatchSize(batch)))
				time.Sleep(time.Hour)
				require.NoError(t, stop())
				letters, err := queue.Receive(t.Context(), 10)
				require.NoError(t, err)
				require.Equal(t, []int{0}, source.left())
				require.Len(t, letters, 1)
				require.Equal(t, 1, letters[0].Record)
			})
		})
	}
}

// versions is a source whose leases cannot be renewed, and whose records no two
// fetches return alike: each is its number, and how many were handed out before.
type versions struct {
	*leasing[int]
	handed int
}

func (s *versions) Fetch(ctx context.Context, limit int) (records [][2]int, err error) {
	list, err := s.leasing.Fetch(ctx, limit)
	for _, r := range list {
		s.handed++
		records = append(records, [2]int{r, s.handed})
	}
	return records, err
}

func (s *versions) Mark(ctx context.Context, records [][2]int) error {
	return s.leasing.Mark(ctx, numbersOf(records))
}

func (s *versions) Release(ctx context.Context, records [][2]int, after time.Duration) error {
	return s.leasing.Release(ctx, numbersOf(records), after)
}

func numbersOf(records [][2]int) (list []int) {
	for _, r := range records {
		list = append(list, r[0])
	}
	return list
}

// D3, P-3: likewise where nobody can tell which record was the probe.
func TestP3_Polling_AProbeThatWasNotAttemptedAndHasNoNameIsNotTheNextOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &versions{leasing: newLeasing(numbers(10)...)}
		applier, _ := courier.ResilientApplier(courier.ProcessFunc(func(_ context.Context, r [2]int) error {
			switch r[0] {
			case 0, 2:
				return errTest
			case 1:
				return rateLimited{}
			}
			return nil
		}), nil)
		stop := start(t, courier.NewPollingCoordinator(source, applier, quiet))
		time.Sleep(time.Hour)
		require.NoError(t, stop())
		require.Subset(t, []int{0, 1, 2}, source.left())
	})
}

// D3, P-3: nor does it tell a stream that the destination is well, which would have the
// records that an outage left in hand wait for another minute, and at the next refusal
// for one more.
func TestP3_Stream_AProbeThatWasNotAttemptedKeepsNoRecordsWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newLeasing(numbers(5)...)
		source.wait = true
		began := time.Now()
		applier, _ := courier.ResilientApplier(courier.ProcessFunc(func(_ context.Context, r int) error {
			switch {
			case r == 0:
				return rateLimited{}
			case time.Since(began) < time.Minute:
				return errTest
			}
			return nil
		}), nil)
		stop := start(t, courier.NewStreamingCoordinator(source, applier, quiet))
		time.Sleep(6 * time.Minute)
		require.NoError(t, stop())
		require.Equal(t, []int{0}, source.left())
	})
}

// D3, P-3: a run that begins while the breaker is half-open has another record be the
// probe than the run before it: else one bad record at the head would have every run end
// over it, and no other record be delivered.
func TestP3_RunOnce_ABadRecordIsNotTheProbeOfEveryRun(t *testing.T) {
	for i := range 12 {
		successes, batch, refusing := []int{1, 3}[i%2], []int{1, 3, 100}[i/2%3], i >= 6
		t.Run(fmt.Sprint("successes ", successes, ", batch ", batch, ", another is refused ", refusing), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := newShelf(numbers(10)...)
				applier, _ := courier.ResilientApplier(courier.ProcessFunc(func(_ context.Context, r int) error {
					switch {
					case r == 0:
						return errTest
					case r == 1 && refusing:
						return rateLimited{}
					}
					return nil
				}), &courier.ResilientConfig[int]{Breaker: courier.BreakerPolicy{Successes: successes, OpenFor: 30 * time.Second}})
				c := courier.NewPollingCoordinator(source, applier, quiet, courier.WithBatchSize(batch))
				for i := range 100 {
					source.add(10 + i)
					began := time.Now()
					_ = c.RunOnce(t.Context())
					require.Less(t, time.Since(began), time.Minute)
					time.Sleep(time.Minute)
				}
				left := slices.DeleteFunc(source.left(), func(r int) bool { return r >= 10 || r == 1 && refusing })
				require.Subset(t, []int{0}, left)
			})
		})
	}
}

// C-7: a run takes no longer than its drain timeout for breakers, whatever the
// interval is and however many successes a breaker wants.
func TestC7_RunOnceWaitsForNoInterval(t *testing.T) {
	for _, successes := range []int{1, 2, 3} {
		for _, poison := range []int{1, 2} {
			for _, opts := range [][]courier.Option{nil, {courier.WithFixedInterval()}, {courier.WithWorkers(3)}} {
				t.Run(fmt.Sprintf("%d successes, %d poison, %d options", successes, poison, len(opts)), func(t *testing.T) {
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

// D6: after the breaker has opened anew, a suspect is a probe as before: it is left
// to others only while the breaker wants more successes than it had.
func TestD6_ASecondOutageLeavesNoSuspectAlone(t *testing.T) {
	both(t, func(t *testing.T, source *leasing[int], make func(courier.Applier[int], ...courier.Option) running) {
		began := time.Now()
		down := func(at time.Duration) bool {
			return at < time.Second/2 || at > 10*time.Second && at < 20*time.Second
		}
		s := &sink[int]{fail: func(context.Context, int, int) error {
			if down(time.Since(began)) {
				return errTest
			}
			return nil
		}}
		source.add(0)
		a := courier.NewCircuitBreakerApplier[int](s, courier.NewBreaker(courier.BreakerPolicy{FailureThreshold: 1, DisableJitter: true}))
		var opts []courier.Option
		if !source.wait {
			opts = append(opts, courier.WithFastPolling())
		}
		stop := start(t, make(a, opts...))
		time.Sleep(11 * time.Second)
		source.add(1)
		time.Sleep(24 * time.Second)
		require.ElementsMatch(t, []int{0, 1}, s.got())
		require.NoError(t, stop())
	})
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

// After a probe that went well the others come at once, and not after the interval.
func TestOutage_AfterAGoodProbeTheOthersComeAtOnce(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var r courierttest.Recorder[int]
		first := onSecond(func() {}, errTest)
		c := courier.NewPollingCoordinator(r.LeasingSource(24*time.Hour, 1, 2, 3), courier.NewCircuitBreakerApplier(applierOf(first), exactBreaker(nil)), quiet, courier.WithInterval(time.Hour))
		courierttest.Start(t, c)
		time.Sleep(longWait + 5*time.Second)
		require.EqualValues(t, 3, c.Stats().Marked)
	})
}

// Of two breakers that are open, the pause is until the later one may be probed.
func TestOutage_TheLaterOfTwoBreakersIsWaitedFor(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var told courierttest.ObserverRecorder
		long := exactBreaker(nil, func(p *courier.BreakerPolicy) { p.OpenFor, p.MaxOpenFor = 6*longWait, 6*longWait })
		short := exactBreaker(nil)
		began := time.Now()
		_ = courier.NewCircuitBreakerApplier(always(errTest), long).Apply(t.Context(), 1)
		_ = courier.NewCircuitBreakerApplier(always(errTest), short).Apply(t.Context(), 1)
		a := courier.NewCircuitBreakerApplier(courier.NewCircuitBreakerApplier(always(nil), short), long)
		courierttest.Start(t, courier.NewPollingCoordinator(newShelf(1), a, quiet, courier.WithObserver(told.Observer())))
		time.Sleep(longWait / 2)
		events := courierttest.EventsOf[courier.PauseEvent](&told)
		require.NotEmpty(t, events)
		require.Equal(t, began.Add(6*longWait), events[0].Until)
	})
}
