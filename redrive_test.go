package courier_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

func failing(records ...int) func(context.Context, int, int) error {
	return func(_ context.Context, r, _ int) error {
		if slices.Contains(records, r) {
			return errTest
		}
		return nil
	}
}

func TestRedrive_RemovesWhatSucceedsAndKeepsWhatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		q := queueOf(numbers(250)...) // full
		s := &sink[int]{fail: failing(3, 249)}
		policy := plain
		policy.MaxAttempts = 2
		result, err := courier.Redrive(t.Context(), q, courier.NewRetryableApplier(s, policy), nil)
		require.NoError(t, err)
		require.Equal(t, courier.RedriveResult{Attempted: 250, Succeeded: 248, Failed: 2}, result)
		require.Equal(t, []int{3, 249}, recordsIn(t, q))
		left, _ := q.Receive(t.Context(), 1)
		require.ErrorIs(t, left[0].Error, courier.ErrExhausted)
		require.Equal(t, 1, left[0].FailedRedrives)
		require.Equal(t, 2, left[0].Attempts)
		require.Equal(t, began.Add(time.Second), left[0].FailedAt)
		require.Equal(t, time.Unix(1, 0), left[0].FirstFailedAt)

		_, err = courier.Redrive(t.Context(), q, always(courier.Permanent(errTest)), nil)
		require.NoError(t, err)
		left, _ = q.Receive(t.Context(), 1)
		require.Equal(t, 2, left[0].FailedRedrives)
		require.Equal(t, courier.ReasonPermanent, left[0].Reason)
	})
}

func TestRedrive_ABatchApplierGetsBatches(t *testing.T) {
	q := queueOf(numbers(25)...)
	s := &batchSink[int]{}
	s.failBatch = func(_ context.Context, records []int, _ int) error {
		var list courier.BatchError
		for i, r := range records {
			if r%10 == 7 {
				list.Add(i, errTest)
			}
		}
		return list.ErrorOrNil()
	}
	result, err := courier.Redrive(t.Context(), q, s, &courier.RedriveConfig[int]{BatchSize: 10})
	require.NoError(t, err)
	require.Equal(t, courier.RedriveResult{Attempted: 25, Succeeded: 23, Failed: 2}, result)
	require.Len(t, s.batches, 3)
	require.Equal(t, []int{7, 17}, recordsIn(t, q))
}

func TestRedrive_StopsAtWhatIsNotAttempted(t *testing.T) {
	until := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	q := queueOf(numbers(5)...)
	s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
		switch r {
		case 1:
			return errTest
		case 2:
			return &courier.OpenError{Until: until, Cause: errTest}
		}
		return nil
	}}
	result, err := courier.Redrive(t.Context(), q, s, nil)
	require.ErrorIs(t, err, courier.ErrRedrive)
	require.ErrorIs(t, err, courier.ErrOpen)
	var stopped *courier.RedriveError
	require.ErrorAs(t, err, &stopped)
	require.Equal(t, until, stopped.Until)
	require.ErrorContains(t, err, "to go on from 2026-01-01T12:00:00Z")
	require.Equal(t, courier.RedriveResult{Attempted: 2, Succeeded: 1, Failed: 1, Left: 3}, result)
	require.Equal(t, 3, s.called(), "nothing behind it is attempted")
	require.Equal(t, []int{1, 2, 3, 4}, recordsIn(t, q))
	letters, _ := q.Receive(t.Context(), 10)
	require.Equal(t, 1, letters[0].FailedRedrives)
	require.Zero(t, letters[1].FailedRedrives, "not attempted is not redriven")
	require.Equal(t, 5, letters[1].Attempts)
}

func TestRedrive_StopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("the operator had enough")
	q := queueOf(numbers(5)...)
	s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
		if r == 1 {
			cancel(reason)
		}
		return nil
	}}
	result, err := courier.Redrive(ctx, q, s, nil)
	require.ErrorIs(t, err, reason)
	require.Equal(t, courier.RedriveResult{Attempted: 2, Succeeded: 2, Left: 3}, result)
	require.Equal(t, []int{2, 3, 4}, recordsIn(t, q), "what was applied is removed all the same")
	_, err = courier.Redrive(ctx, q, s, nil)
	require.ErrorIs(t, err, reason)
	require.Equal(t, 2, s.called())
}

// What failed before ctx ended has failed, and an error that came after is not
// what the redrive stopped for.
func TestRedrive_AFailureBeforeTheEndOfItsContextCounts(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("the operator had enough")
	q := queueOf(numbers(5)...)
	s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
		if r == 2 {
			cancel(reason)
		}
		if r != 1 {
			return errTest
		}
		return nil
	}}
	result, err := courier.Redrive(ctx, q, s, nil)
	require.ErrorIs(t, err, reason)
	require.Equal(t, courier.RedriveResult{Attempted: 2, Succeeded: 1, Failed: 1, Left: 3}, result)
	letters, _ := q.Receive(t.Context(), 10)
	require.Len(t, letters, 4)
	require.Equal(t, 1, letters[0].FailedRedrives)
	require.Zero(t, letters[1].FailedRedrives, "its error may tell of the end")
}

// The record of a letter fails again in the pipeline, and is parked anew, while
// the redrive has it in hand.
func TestRedrive_NeverRemovesANewerFailure(t *testing.T) {
	for name, outcome := range map[string]error{"success": nil, "failure": errTest} {
		t.Run(name, func(t *testing.T) {
			newer := errors.New("the newer failure")
			q := &courier.MemoryDLQ[int]{Identity: func(r int) string { return fmt.Sprint(r) }}
			require.NoError(t, q.Send(t.Context(), courier.DeadLetter[int]{Record: 7, Error: errTest}))
			s := &sink[int]{fail: func(ctx context.Context, r, _ int) error {
				require.NoError(t, q.Send(ctx, courier.DeadLetter[int]{Record: r, Error: newer}))
				return outcome
			}}
			_, err := courier.Redrive(t.Context(), q, s, nil)
			require.NoError(t, err)
			left, _ := q.Receive(t.Context(), 10)
			require.Len(t, left, 1)
			require.Equal(t, newer, left[0].Error)
		})
	}
}

// brokenDLQ is a queue whose calls fail as told, before or after they are made.
type brokenDLQ struct {
	courier.DLQ[int]
	before, after func(call string) error
}

func (b *brokenDLQ) call(name string, call func() error) error {
	if b.before != nil {
		if err := b.before(name); err != nil {
			return err
		}
	}
	err := call()
	if b.after != nil && err == nil {
		err = b.after(name)
	}
	return err
}

func (b *brokenDLQ) List(ctx context.Context, after string, max int) (l []courier.DeadLetter[int], err error) {
	err = b.call("list", func() error { l, err = b.DLQ.List(ctx, after, max); return err })
	return l, err
}

func (b *brokenDLQ) Update(ctx context.Context, letter courier.DeadLetter[int]) error {
	return b.call("update", func() error { return b.DLQ.Update(ctx, letter) })
}

func (b *brokenDLQ) Delete(ctx context.Context, ids ...string) error {
	return b.call("delete", func() error { return b.DLQ.Delete(ctx, ids...) })
}

func (b *brokenDLQ) Count(ctx context.Context) (n int, err error) {
	err = b.call("count", func() error { n, err = b.DLQ.Count(ctx); return err })
	return n, err
}

func TestRedrive_AFailureOfTheQueueLosesNothing(t *testing.T) {
	broken := errors.New("disk full")
	for _, call := range []string{"count", "list", "update", "delete"} {
		for _, how := range []string{"error", "panic", "lost answer", "goexit"} {
			t.Run(call+" "+how, func(t *testing.T) {
				inner := queueOf(1, 2, 3)
				fail := func(name string) error {
					switch {
					case name != call:
						return nil
					case how == "panic":
						panic(broken)
					case how == "goexit":
						runtime.Goexit()
					}
					return broken
				}
				q := &brokenDLQ{DLQ: inner, before: fail}
				if how == "lost answer" {
					q.before, q.after = nil, fail
				}
				s := &sink[int]{fail: failing(2)}
				result, err := courier.Redrive(t.Context(), q, s, nil)
				require.ErrorIs(t, err, courier.ErrRedrive)
				if how != "goexit" {
					require.ErrorIs(t, err, broken)
				}
				require.Equal(t, 3, result.Attempted+result.Left+map[string]int{"count": 3}[call])
				q.before, q.after = nil, nil
				_, err = courier.Redrive(t.Context(), q, s, nil)
				require.NoError(t, err)
				require.Equal(t, []int{2}, recordsIn(t, q))
				require.Subset(t, s.got(), []int{1, 3})
			})
		}
	}
}

func TestRedrive_UserCodeThatPanicsIsAFailure(t *testing.T) {
	q := queueOf(1, 2, 3)
	s := &sink[int]{fail: func(_ context.Context, r, _ int) error {
		switch r {
		case 1:
			panic("boom")
		case 2:
			runtime.Goexit()
		}
		return nil
	}}
	result, err := courier.Redrive(t.Context(), q, s, nil)
	require.NoError(t, err)
	require.Equal(t, courier.RedriveResult{Attempted: 3, Succeeded: 1, Failed: 2}, result)

	_, err = courier.Redrive(t.Context(), q, s, &courier.RedriveConfig[int]{Match: func(courier.DeadLetter[int]) bool { panic("boom") }})
	require.ErrorIs(t, err, courier.ErrPanic)
	require.Equal(t, []int{1, 2}, recordsIn(t, q))
}

func TestRedrive_MatchAndLimit(t *testing.T) {
	q := queueOf(numbers(10)...)
	s := &sink[int]{}
	odd := func(letter courier.DeadLetter[int]) bool { return letter.Record%2 == 1 }
	result, err := courier.Redrive(t.Context(), q, s, &courier.RedriveConfig[int]{Match: odd, Limit: 3, BatchSize: 4})
	require.NoError(t, err)
	require.Equal(t, courier.RedriveResult{Attempted: 3, Succeeded: 3, Left: 7}, result)
	require.Equal(t, []int{1, 3, 5}, s.got())

	skip := always(courier.Skip(errTest))
	result, err = courier.Redrive(t.Context(), q, skip, nil)
	require.NoError(t, err)
	require.Equal(t, 7, result.Succeeded, "skipped is settled")
	require.Zero(t, countOf(q))
}

// A letter that stays holds the later ones of its key in its own branch, and
// those of another branch go on: within a page and beyond it, whether it fails or
// does not match.
func TestRedrive_AKeyWaitsWithinItsBranch(t *testing.T) {
	for _, size := range []int{1, 100} {
		q := &courier.MemoryDLQ[int]{}
		for i, branch := range []string{"a", "b", "a", "b", "b"} {
			require.NoError(t, q.Send(t.Context(), courier.DeadLetter[int]{Record: i, Key: "k", Branch: branch, Error: errTest}))
		}
		only := func(branch string) *courier.RedriveConfig[int] {
			return &courier.RedriveConfig[int]{BatchSize: size, Match: func(l courier.DeadLetter[int]) bool { return l.Branch == branch }}
		}
		s := &sink[int]{fail: failing(0)}
		result, err := courier.Redrive(t.Context(), q, s, &courier.RedriveConfig[int]{BatchSize: size, Limit: 3})
		require.NoError(t, err)
		require.Equal(t, courier.RedriveResult{Attempted: 3, Succeeded: 2, Failed: 1, Left: 2}, result)
		require.Equal(t, []int{0, 2, 4}, recordsIn(t, q))
		result, err = courier.Redrive(t.Context(), q, always(nil), only("b"))
		require.NoError(t, err)
		require.Equal(t, courier.RedriveResult{Attempted: 1, Succeeded: 1, Left: 2}, result)
		result, err = courier.Redrive(t.Context(), q, always(nil), only("a"))
		require.NoError(t, err)
		require.Equal(t, courier.RedriveResult{Attempted: 2, Succeeded: 2}, result)
	}
}

func TestRedrive_EndsThoughLettersComeAsFastAsItGoes(t *testing.T) {
	q := &courier.MemoryDLQ[int]{}
	require.NoError(t, q.Send(t.Context(), courier.DeadLetter[int]{}))
	require.NoError(t, q.Send(t.Context(), courier.DeadLetter[int]{}))
	s := &sink[int]{fail: func(ctx context.Context, r, call int) error {
		require.Less(t, call, 10)
		return q.Send(ctx, courier.DeadLetter[int]{Record: r + 1}) // by way of a topic, say
	}}
	result, err := courier.Redrive(t.Context(), q, s, nil)
	require.NoError(t, err)
	require.Equal(t, 2, result.Succeeded)
	require.Equal(t, 2, countOf(q))
}

func TestQ7_ARedriveIntoItsOwnQueueIsRefused(t *testing.T) {
	q := queueOf(1)
	other := &courier.MemoryDLQ[int]{}
	parking := courier.NewDLQApplier(always(errTest), courier.DLQ[int](q), courier.DLQPolicy[int]{})
	plainSink := &sink[int]{}
	decoding := courier.NewDLQApplier(courier.NewDecodingApplier(always(errTest), func(r int) (int, error) { return r, nil }), courier.DLQ[int](q), courier.DLQPolicy[int]{})
	resilient, _ := courier.ResilientApplier(always(errTest), &courier.ResilientConfig[int]{DLQ: q})
	for name, applier := range map[string]courier.Applier[int]{
		"itself":    parking,
		"resilient": resilient,
		"branch":    courier.NewFanOutApplier[int](plainSink, parking),
		"decoding":  decoding,
		"nested":    courier.NewDLQApplier(courier.NewFanOutApplier[int](plainSink, parking), courier.DLQ[int](other), courier.DLQPolicy[int]{}),
		"shared":    courier.NewDLQApplier(always(errTest), courier.DLQ[int](&sharing{DLQ: q}), courier.DLQPolicy[int]{}),
	} {
		t.Run(name, func(t *testing.T) {
			result, err := courier.Redrive(t.Context(), q, applier, nil)
			require.ErrorIs(t, err, courier.ErrConfig)
			require.ErrorContains(t, err, "pass the applier inside the dead letter queue")
			require.Zero(t, result)
			require.Empty(t, plainSink.got())
		})
	}
	t.Run("hidden", func(t *testing.T) {
		_, err := courier.Redrive(t.Context(), q, courier.ProcessFunc(parking.Apply), nil)
		require.ErrorIs(t, err, courier.ErrConfig)
		require.Equal(t, []int{1}, recordsIn(t, q))
	})
	t.Run("another queue", func(t *testing.T) {
		elsewhere, dlq := courier.WithDLQ(always(errTest))
		result, err := courier.Redrive(t.Context(), q, elsewhere, nil)
		require.NoError(t, err)
		require.Equal(t, 1, result.Succeeded)
		require.Equal(t, []int{1}, recordsIn(t, dlq))
		require.Empty(t, recordsIn(t, q))
	})
}

// sharing is a wrapper around a queue that passes the question on. It cannot be
// compared.
type sharing struct {
	courier.DLQ[int]
	_ []int
}

func (s *sharing) SameQueue(other courier.DeadLetterSink[int]) bool { return s.DLQ == other }

func TestRedrive_BadInputIsOneClearError(t *testing.T) {
	q := queueOf(1)
	s := &sink[int]{}
	for want, redrive := range map[string]func() (courier.RedriveResult, error){
		"queue is nil": func() (courier.RedriveResult, error) { return courier.Redrive[int](t.Context(), nil, s, nil) },
		"applier is nil": func() (courier.RedriveResult, error) {
			return courier.Redrive(t.Context(), q, courier.Applier[int](nil), nil)
		},
		"process is nil": func() (courier.RedriveResult, error) {
			return courier.Redrive(t.Context(), q, courier.ProcessFunc[int](nil), nil)
		},
		"RedriveConfig.Limit is -1": func() (courier.RedriveResult, error) {
			return courier.Redrive(t.Context(), q, s, &courier.RedriveConfig[int]{Limit: -1})
		},
		"RedriveConfig.BatchSize is ": func() (courier.RedriveResult, error) {
			return courier.Redrive(t.Context(), q, s, &courier.RedriveConfig[int]{BatchSize: -1})
		},
	} {
		_, err := redrive()
		require.ErrorIs(t, err, courier.ErrConfig, want)
		require.ErrorContains(t, err, want)
	}
	for _, err := range courier.Letters[int](t.Context(), nil) {
		require.ErrorIs(t, err, courier.ErrConfig)
	}
}

func TestLetters_MeetsEveryLetterOnceWhateverHappens(t *testing.T) {
	q := &courier.MemoryDLQ[int]{}
	for i := range 350 {
		require.NoError(t, q.Send(t.Context(), courier.DeadLetter[int]{Record: i}))
	}
	var met []int
	for letter, err := range courier.Letters(t.Context(), q) {
		require.NoError(t, err)
		met = append(met, letter.Record)
		switch n := letter.Record; {
		case n >= 350:
		case n%3 == 0:
			require.NoError(t, q.Delete(t.Context(), letter.ID))
		case n%3 == 1:
			require.NoError(t, q.Update(t.Context(), letter))
		case n < 100:
			require.NoError(t, q.Send(t.Context(), courier.DeadLetter[int]{Record: 350 + n}))
		}
	}
	slices.Sort(met)
	require.Equal(t, slices.Compact(slices.Clone(met)), met, "none twice")
	require.Equal(t, numbers(350), met[:350])
	require.Len(t, met, 350+33)
	for _, err := range courier.Letters(t.Context(), q) {
		require.NoError(t, err)
		break
	}
}

func TestLetters_EndsWithAnError(t *testing.T) {
	last := func(ctx context.Context, q courier.DLQ[int]) (n int, last error) {
		for _, err := range courier.Letters(ctx, q) {
			require.NoError(t, last)
			n, last = n+1, err
		}
		return n, last
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errTest)
	_, err := last(ctx, queueOf(1))
	require.ErrorIs(t, err, errTest)
	_, err = last(t.Context(), &brokenDLQ{DLQ: queueOf(1), before: func(string) error { return errTest }})
	require.ErrorIs(t, err, errTest)
	_, err = last(t.Context(), &stuck{queueOf(1)})
	require.ErrorContains(t, err, "after itself")
}

// stuck is a queue that takes no notice of the place.
type stuck struct{ courier.DLQ[int] }

func (s *stuck) List(ctx context.Context, _ string, max int) ([]courier.DeadLetter[int], error) {
	return s.Receive(ctx, max)
}

func TestRedrive_AnEndedContextSaysWhatIsLeft(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	result, err := courier.Redrive(ctx, courier.DLQ[int](queueOf(1, 2, 3)), always(nil), nil)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, courier.RedriveResult{Left: 3}, result)
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
