package courier_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

func TestQ1_ParksWhatIsExhaustedOrPermanent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		policy := plain
		policy.MaxAttempts = 3
		for _, test := range []struct {
			err      error
			reason   courier.Reason
			attempts int
		}{
			{errTest, courier.ReasonExhausted, 3},
			{courier.Permanent(errTest), courier.ReasonPermanent, 1},
		} {
			applier, dlq := courier.WithDLQ(courier.NewRetryableApplier(always(test.err), policy))
			require.NoError(t, applier.Apply(t.Context(), 7))
			parked, err := dlq.Receive(t.Context(), 100)
			require.NoError(t, err)
			require.Len(t, parked, 1)
			require.Equal(t, 7, parked[0].Record)
			require.ErrorIs(t, parked[0].Error, errTest)
			require.Equal(t, test.reason, parked[0].Reason)
			require.Equal(t, test.attempts, parked[0].Attempts)
			require.Equal(t, time.Now(), parked[0].FailedAt)
		}
	})
}

func TestQ2_NeverParksWhatWasNotAttempted(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, test := range map[string]struct {
		ctx context.Context
		err error
	}{
		"breaker open":      {t.Context(), &courier.OpenError{Cause: errTest}},
		"wrapped":           {t.Context(), fmt.Errorf("send: %w", &courier.OpenError{Cause: errTest})},
		"joined":            {t.Context(), errors.Join(errTest, &courier.OpenError{Cause: errTest})},
		"context ended":     {cancelled, context.Canceled},
		"misconfigured":     {t.Context(), &courier.ConfigError{Field: "x", Problem: "is bad"}},
		"retry interrupted": {t.Context(), &courier.RetryError{Reason: courier.ReasonInterrupted, Last: errTest}},
		"deadline":          {t.Context(), &courier.RetryError{Reason: courier.ReasonDeadline, Last: errTest}},
		"own":               {t.Context(), rateLimited{}},
	} {
		t.Run(name, func(t *testing.T) {
			applier, queue := withDLQ(always(test.err))
			require.Equal(t, test.err, applier.Apply(test.ctx, 1))
			require.Zero(t, countOf(queue))
		})
	}
}

func TestQ3_TheHandOverOutlivesTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		store := &dlqFunc{send: func(ctx context.Context, _ courier.DeadLetter[int]) error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			deadline, ok := ctx.Deadline()
			require.True(t, ok, "it is bounded")
			require.Equal(t, 10*time.Second, time.Until(deadline))
			return nil
		}}
		applier := courier.NewDLQApplier(courier.ProcessFunc(func(context.Context, int) error {
			cancel()
			return courier.Permanent(errTest)
		}), courier.DLQ[int](store), courier.DLQPolicy[int]{})
		require.NoError(t, applier.Apply(ctx, 1))
	})
}

func TestQ4_ARefusalLeavesTheRecordPending(t *testing.T) {
	refusal := errors.New("disk full")
	for name, send := range map[string]func(context.Context, courier.DeadLetter[int]) error{
		"error": func(context.Context, courier.DeadLetter[int]) error { return refusal },
		"panic": func(context.Context, courier.DeadLetter[int]) error { panic(refusal) },
	} {
		t.Run(name, func(t *testing.T) {
			applier := courier.NewDLQApplier(always(errTest), courier.DLQ[int](&dlqFunc{send}), courier.DLQPolicy[int]{})
			err := applier.Apply(t.Context(), 1)
			require.ErrorIs(t, err, courier.ErrPark)
			require.ErrorIs(t, err, errTest)
			require.ErrorIs(t, err, refusal)
			require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), err))
			require.Contains(t, err.Error(), "stays pending")
		})
	}
}

func TestDLQ_APanicIsAFailureAsAnyOther(t *testing.T) {
	applier, dlq := courier.WithDLQ(courier.ProcessFunc(func(context.Context, int) error { panic("boom") }))
	require.NoError(t, applier.Apply(t.Context(), 1))
	parked, _ := dlq.Receive(t.Context(), 1)
	require.ErrorIs(t, parked[0].Error, courier.ErrPanic)
}

func TestDLQ_SkippedIsNotParked(t *testing.T) {
	applier, queue := withDLQ(always(courier.Skip(errTest)))
	source := newShelf(1, 2)
	require.NoError(t, courier.NewPollingCoordinator(source, applier, quiet).RunOnce(t.Context()))
	require.Zero(t, countOf(queue))
	require.Empty(t, source.left(), "skipped records are marked")
}

func TestDLQ_ABatchParksOnlyWhatFailed(t *testing.T) {
	for name, err := range map[string]error{
		"listed": &courier.BatchError{Failures: []courier.BatchFailure{{Index: 1, Err: errTest}}},
		"as one": errTest, // then record by record
	} {
		t.Run(name, func(t *testing.T) {
			s := &batchSink[int]{failBatch: func(context.Context, []int, int) error { return err }}
			s.fail = func(_ context.Context, r, _ int) error {
				if r == 11 {
					return errTest
				}
				return nil
			}
			applier, queue := withDLQ[int](s)
			require.NoError(t, asBatch(applier).ApplyBatch(t.Context(), []int{10, 11, 12}))
			parked, _ := queue.Receive(t.Context(), 10)
			require.Len(t, parked, 1)
			require.Equal(t, 11, parked[0].Record)
			require.ElementsMatch(t, []int{10, 12}, s.got())
		})
	}
}

// A queue without a retry or a breaker inside takes the healthy records of an
// outage: the coordinator says so once, when it first runs.
func TestDLQ_ThatIsExposedToOutagesIsWarnedOf(t *testing.T) {
	queue := &courier.MemoryDLQ[int]{}
	nop := courier.ProcessFunc(nop[int])
	park := func(a courier.Applier[int]) courier.Applier[int] {
		return courier.NewDLQApplier(a, courier.DLQ[int](queue), courier.DLQPolicy[int]{})
	}
	resilient, _ := courier.ResilientApplier(nop, nil)
	for name, test := range map[string]struct {
		applier courier.Applier[int]
		warned  bool
	}{
		"plain":             {nop, false},
		"queue":             {park(nop), true},
		"queue, decoding":   {park(courier.NewDecodingApplier(nop, func(n int) (int, error) { return n, nil })), true},
		"queue, retry":      {park(courier.WithRetry(nop)), false},
		"queue, breaker":    {park(courier.WithCircuitBreaker(nop)), false},
		"resilient":         {resilient, false},
		"branch":            {courier.NewFanOutApplier(courier.WithRetry(nop), park(nop)), true},
		"queue of a branch": {courier.NewFanOutApplier(park(courier.WithRetry(nop)), nop), false},
	} {
		for shape, run := range map[string]func(a courier.Applier[int], o courier.Option) error{
			"polling": func(a courier.Applier[int], o courier.Option) error {
				c := courier.NewPollingCoordinator(newShelf(1), a, o)
				return errors.Join(c.RunOnce(t.Context()), c.RunOnce(t.Context()))
			},
			"streaming": func(a courier.Applier[int], o courier.Option) error {
				ch := make(chan int)
				close(ch)
				return courier.NewStreamingCoordinator(courier.NewChannelSource(ch, func(context.Context, []int) error { return nil }), a, o).Start(t.Context())
			},
		} {
			t.Run(name+", "+shape, func(t *testing.T) {
				var logged bytes.Buffer
				require.NoError(t, run(test.applier, courier.WithLogger(textLogger(&logged))))
				want := 0
				if test.warned {
					want = 1
				}
				require.Equal(t, want, strings.Count(logged.String(), "neither a retry nor a breaker"))
			})
		}
	}
}

// topic is a sink that only takes letters.
type topic struct{ letters []courier.DeadLetter[int] }

func (t *topic) Send(_ context.Context, letter courier.DeadLetter[int]) error {
	t.letters = append(t.letters, letter)
	return nil
}

// counted is one that counts them too.
type counted struct{ topic }

func (c *counted) Count(context.Context) (int, error) { return len(c.letters), nil }

func TestDLQ_ASinkNeedsNoMoreThanSend(t *testing.T) {
	poison := courier.ProcessFunc(func(context.Context, int) error { return courier.Permanent(errTest) })
	sink := new(topic)
	require.NoError(t, courier.NewDLQApplier(poison, courier.DeadLetterSink[int](sink), courier.DLQPolicy[int]{}).Apply(t.Context(), 7))
	require.Equal(t, 7, sink.letters[0].Record)

	applier, queue := courier.ResilientApplier(poison, &courier.ResilientConfig[int]{DLQ: sink})
	require.NoError(t, applier.Apply(t.Context(), 8))
	require.Len(t, sink.letters, 2)
	_, received := queue.Receive(t.Context(), 1)
	_, listed := queue.List(t.Context(), "", 1)
	_, count := queue.Count(t.Context())
	_, redriven := courier.Redrive(t.Context(), queue, poison, nil)
	for _, err := range []error{received, listed, count, redriven, queue.Update(t.Context(), sink.letters[0]), queue.Delete(t.Context(), "1")} {
		require.ErrorIs(t, err, courier.ErrSendOnly)
	}
	require.NoError(t, queue.Send(t.Context(), courier.DeadLetter[int]{Record: 9}))
	require.Len(t, sink.letters, 3)

	_, queue = courier.ResilientApplier(poison, &courier.ResilientConfig[int]{DLQ: &counted{*sink}})
	n, err := queue.Count(t.Context())
	require.NoError(t, err)
	require.Equal(t, 3, n)
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

func TestQ4_Stream_ARefusingQueueHasNoSourceDrainedAgainstIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newLeasing(numbers(100)...)
		source.wait = true
		s := &sink[int]{fail: func(context.Context, int, int) error { return courier.Permanent(errTest) }}
		queue := &courier.MemoryDLQ[int]{Capacity: 1}
		stop := start(t, courier.NewStreamingCoordinator(source, courier.NewDLQApplier(s, queue, courier.DLQPolicy[int]{}), quiet))
		time.Sleep(time.Hour)
		require.NoError(t, stop())
		require.Less(t, s.called(), 50_000, "a batch a time, at growing intervals")
		require.Equal(t, 1, countOf(queue))
	})
}
