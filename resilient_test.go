package courier_test

// ResilientApplier and ResilientConfig.

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// An outage whose symptom is a panic is an outage.
func TestResilient_APanickingOutageParksNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		source := newShelf(numbers(10)...)
		stack, dlq := courier.ResilientApplier(courier.ProcessFunc(func(context.Context, int) error {
			if time.Since(began) < time.Hour {
				panic("nil connection")
			}
			return nil
		}), nil)
		stop := start(t, courier.NewPollingCoordinator(source, stack, quiet))
		time.Sleep(2 * time.Hour)
		require.NoError(t, stop())
		parked, _ := dlq.Receive(t.Context(), 1)
		require.Empty(t, parked)
		require.Empty(t, source.left())
	})
}

func TestResilient_TheDefaultThresholdFollowsMaxAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		stack, _ := courier.ResilientApplier(courier.ProcessFunc(func(context.Context, int) error {
			calls++
			return errTest
		}), &courier.ResilientConfig[int]{Retry: courier.RetryPolicy{MaxAttempts: 3}})
		require.ErrorIs(t, stack.Apply(t.Context(), 1), courier.ErrOpen)
		require.Equal(t, 3, calls)
	})
}

func TestResilient_UsesTheGivenQueueAndClock(t *testing.T) {
	clock := courierttest.NewClock()
	queue := &courier.MemoryDLQ[int]{Capacity: 1}
	stack, dlq := courier.ResilientApplier(always(courier.Permanent(errTest)), &courier.ResilientConfig[int]{DLQ: queue, Clock: clock})
	require.Same(t, queue, dlq)
	require.NoError(t, stack.Apply(t.Context(), 1))
	parked, _ := queue.Receive(t.Context(), 1)
	require.Equal(t, clock.Now(), parked[0].FailedAt)
}

// charged counts the records that pass it.
type charged struct {
	courier.Applier[int]
	records *atomic.Int64
}

func (c charged) Apply(ctx context.Context, record int) error {
	c.records.Add(1)
	return c.Applier.Apply(ctx, record)
}

// chargedBatches does so for batches too, and shows what is inside it.
type chargedBatches struct{ charged }

func (c chargedBatches) Unwrap() courier.Applier[int] { return c.Applier }

func (c chargedBatches) ApplyBatch(ctx context.Context, records []int) error {
	c.records.Add(int64(len(records)))
	return c.Applier.(courier.BatchApplier[int]).ApplyBatch(ctx, records)
}

// Each attempt passes a decorator between retry and breaker, and none that an open
// period makes wait; what the stack does, and what a coordinator tells of it, is the
// same as without.
func TestResilient_AroundBreaker(t *testing.T) {
	var passed atomic.Int64
	ways := map[string]func(courier.Applier[int]) courier.Applier[int]{
		"a function": func(a courier.Applier[int]) courier.Applier[int] {
			return courier.ProcessFunc(charged{a, &passed}.Apply)
		},
		"a decorator":              func(a courier.Applier[int]) courier.Applier[int] { return charged{a, &passed} },
		"that shows what is in it": func(a courier.Applier[int]) courier.Applier[int] { return chargedBatches{charged{a, &passed}} },
		"with a timeout": func(a courier.Applier[int]) courier.Applier[int] {
			return courier.NewAttemptTimeoutApplier(courier.ProcessFunc(charged{a, &passed}.Apply), time.Hour, nil)
		},
	}
	for name, around := range ways {
		t.Run(name, func(t *testing.T) {
			inShapes(t, func(t *testing.T, shape string, with func(courier.Applier[int], []int, ...courier.Option) (teller, func(time.Duration))) {
				passed.Store(0)
				var made atomic.Int64
				var down fault
				apply := func(_ context.Context, n int) error {
					made.Add(1)
					if n == 3 {
						return errors.Join(errTest, down.get())
					}
					return down.get()
				}
				config := &courier.ResilientConfig[int]{AroundBreaker: around}
				stack, queue := courier.ResilientApplier(courier.ProcessFunc(apply), config)
				c, run := with(stack, numbers(20))
				require.Len(t, c.Stats().Breakers, 1)
				down.set(errTest)
				run(time.Second)
				if shape == "RunOnce" {
					require.Equal(t, made.Load(), passed.Load())
					return
				}
				red := 0
				for range 60 {
					run(time.Second)
					if err := c.Ready(); err != nil {
						require.ErrorIs(t, err, courier.ErrOpen)
						red++
					}
				}
				require.Greater(t, red, 45)
				run(10 * time.Minute)
				down.set(nil)
				run(10 * time.Minute)
				require.NoError(t, c.Ready())
				require.EqualValues(t, 20, c.Stats().Applied)
				letters, err := queue.Receive(t.Context(), 100)
				require.NoError(t, err)
				require.Len(t, letters, 1)
				require.Equal(t, 3, letters[0].Record)
				require.Equal(t, made.Load(), passed.Load(), "one for each attempt")
			})
		})
	}
}

// A batch stays one where the decorator takes batches, and goes one by one else.
func TestResilient_AroundBreakerOfBatches(t *testing.T) {
	var passed atomic.Int64
	for name, test := range map[string]struct {
		around  func(courier.Applier[int]) courier.Applier[int]
		batches int
	}{
		"takes batches": {func(a courier.Applier[int]) courier.Applier[int] { return chargedBatches{charged{a, &passed}} }, 1},
		"does not":      {func(a courier.Applier[int]) courier.Applier[int] { return charged{a, &passed} }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			passed.Store(0)
			s := &batchSink[int]{}
			stack, _ := courier.ResilientApplier[int](s, &courier.ResilientConfig[int]{AroundBreaker: test.around})
			require.NoError(t, asBatch(stack).ApplyBatch(t.Context(), numbers(10)))
			require.Len(t, s.batches, test.batches)
			require.EqualValues(t, 10, passed.Load())
			require.NoError(t, stack.Apply(t.Context(), 10))
			require.EqualValues(t, 11, passed.Load())
		})
	}
}

// What the decorator refuses before the breaker is asked is no failure of the
// destination, and what it says counts no attempt counts none.
func TestResilient_AroundBreakerThatRefuses(t *testing.T) {
	courierttest.Bubble(t, func(t *testing.T) {
		var full atomic.Bool
		full.Store(true)
		stack, queue := courier.ResilientApplier(courier.ProcessFunc(nop[int]), &courier.ResilientConfig[int]{
			AroundBreaker: func(a courier.Applier[int]) courier.Applier[int] {
				return courier.ProcessFunc(func(ctx context.Context, n int) error {
					if full.Load() {
						return rateLimited{}
					}
					return a.Apply(ctx, n)
				})
			},
		})
		source := newShelf(numbers(10)...)
		c := courier.NewPollingCoordinator(source, stack, quiet)
		stop := start(t, c)
		time.Sleep(time.Hour)
		require.Len(t, source.left(), 10)
		full.Store(false)
		time.Sleep(time.Minute)
		require.NoError(t, stop())
		require.Empty(t, source.left())
		letters, err := queue.Receive(t.Context(), 100)
		require.NoError(t, err)
		require.Empty(t, letters)
	})
}

// A function that gives no applier, or one with a fault, is a configuration error of
// its field; a decorator that may not be there is one as anywhere else.
func TestResilient_AroundBreakerThatIsWrong(t *testing.T) {
	type around = func(courier.Applier[int]) courier.Applier[int]
	for name, test := range map[string]struct {
		around around
		want   string
	}{
		"nil":    {func(courier.Applier[int]) courier.Applier[int] { return nil }, "courier: ResilientConfig.AroundBreaker is nil: it is required"},
		"panics": {func(courier.Applier[int]) courier.Applier[int] { panic("no") }, "courier: ResilientConfig.AroundBreaker did not return an applier: user code panicked: no"},
		"fault":  {func(courier.Applier[int]) courier.Applier[int] { return courier.ProcessFunc[int](nil) }, "courier: process is nil"},
		"retry":  {courier.WithRetry[int], twice},
		"timeout": {func(a courier.Applier[int]) courier.Applier[int] {
			return courier.NewAttemptTimeoutApplier(a, time.Second, nil)
		}, blind},
		"queue": {func(a courier.Applier[int]) courier.Applier[int] { a, _ = courier.WithDLQ(a); return a }, "has a dead letter queue inside a retry"},
	} {
		t.Run(name, func(t *testing.T) {
			stack, _ := courier.ResilientApplier(courier.ProcessFunc(nop[int]), &courier.ResilientConfig[int]{AroundBreaker: test.around})
			source := newShelf(1)
			err := courier.NewPollingCoordinator(source, stack).Start(t.Context())
			require.ErrorIs(t, err, courier.ErrConfig)
			require.ErrorContains(t, err, test.want)
			require.Equal(t, err, stack.Apply(t.Context(), 1))
			require.Zero(t, source.fetchCount())
		})
	}
}
