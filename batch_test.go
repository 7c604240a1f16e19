package courier_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier"
)

func TestBatchError_Text(t *testing.T) {
	require.Equal(t, "courier: 1 of the batch's records failed: index 4: record 4: the record's own error", failures(4).Error())
	require.Contains(t, failures(1, 2, 3, 4, 5).Error(), "; and 2 more")
	require.ErrorIs(t, failures(1), errTest)
	var none *courier.BatchError
	require.NoError(t, none.ErrorOrNil())
	require.NoError(t, new(courier.BatchError).ErrorOrNil())
}

// What a batch applier says of its records is what is marked.
func TestD2_BatchError_OnlyTheListedRecordsStayPending(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		left []int
	}{
		{"some", failures(1, 3), []int{1, 3}},
		{"wrapped", fmt.Errorf("publish: %w", failures(0)), []int{0}},
		{"none listed", &courier.BatchError{}, nil},
		{"typed nil", (*courier.BatchError)(nil), nil},
		{"no error given", &courier.BatchError{Failures: []courier.BatchFailure{{Index: 2}}}, []int{2}},
		{"listed twice", &courier.BatchError{Failures: []courier.BatchFailure{{Index: 2, Err: errTest}, {Index: 2, Err: errTest}}}, []int{2}},
		{"a skipped one", &courier.BatchError{Failures: []courier.BatchFailure{{Index: 2, Err: courier.Skip(errTest)}}}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			source := newShelf(numbers(4)...)
			s := &batchSink[int]{failBatch: func(context.Context, []int, int) error { return test.err }}
			_ = courier.NewPollingCoordinator(source, s, quiet).RunOnce(t.Context())
			require.ElementsMatch(t, test.left, source.left())
			require.Zero(t, s.called(), "a list is a verdict on each: nothing is applied again")
		})
	}
}

// A list that cannot be believed means that nothing was applied; so does a list
// that is one part of several.
func TestD2_BatchError_InDoubtEachRecordIsAppliedOnItsOwn(t *testing.T) {
	for name, err := range map[string]error{
		"out of range": failures(9),
		"negative":     failures(-1),
		"skipped":      &courier.BatchError{Failures: []courier.BatchFailure{{Index: 9, Err: courier.Skip(errTest)}}},
		"joined":       errors.Join(failures(0), errors.New("the flush failed")),
		"panicked":     &courier.PanicError{Value: failures(0)},
	} {
		t.Run(name, func(t *testing.T) {
			s := &batchSink[int]{failBatch: func(context.Context, []int, int) error { return err }}
			shapes := stacks(s)
			shapes["fan-out"] = courier.NewFanOutApplier[int](s, courier.ProcessFunc(nop[int]))
			for shape, stack := range shapes {
				synctest.Test(t, func(t *testing.T) {
					s.calls, s.applied = 0, nil
					source := newShelf(numbers(4)...)
					c := courier.NewPollingCoordinator(source, stack, quiet)
					require.NoError(t, c.RunOnce(t.Context()), shape)
					require.Equal(t, 4, s.called(), shape)
					require.Empty(t, source.left(), shape)
					require.Zero(t, c.Stats().Parked, shape)
				})
			}
			s.calls, s.applied = 0, nil
			q := queueOf(numbers(4)...)
			result, problem := courier.Redrive(t.Context(), q, courier.Applier[int](s), nil)
			require.NoError(t, problem)
			require.Equal(t, 4, result.Succeeded, "redriven")
			require.Equal(t, 4, s.called(), "redriven")
		})
	}
}

// The error that a breaker refuses a batch with carries its cause, which may be
// the list of another batch. It says nothing of this one.
func TestD2_ARefusedBatchIsNotTheBatchThatOpenedTheBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &batchSink[int]{failBatch: func(context.Context, []int, int) error { return failures(0) }}
		applier := asBatch(courier.NewCircuitBreakerApplier[int](s, newBreaker(1)))
		require.ErrorIs(t, applier.ApplyBatch(t.Context(), []int{1}), courier.ErrOpen)
		source := newShelf(numbers(4)...)
		for _, a := range []courier.Applier[int]{applier, courier.WithRetry[int](applier)} {
			require.ErrorIs(t, courier.NewPollingCoordinator(source, a, quiet).RunOnce(t.Context()), courier.ErrOpen)
			require.Equal(t, numbers(4), source.left())
		}
	})
}

// A stack of decorators reports exactly the records that the sink failed,
// whatever the batch: indices never shift.
func TestBatch_IndicesNeverShift(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		fate := rapid.SliceOfN(rapid.IntRange(0, 3), 1, 30).Draw(rt, "fate") // 0 ok, 1 permanent, 2 undecodable, 3 fails twice
		rows := make([]string, len(fate))
		for i := range rows {
			rows[i] = strconv.Itoa(i)
			if fate[i] == 2 {
				rows[i] = "x" + rows[i]
			}
		}
		synctest.Test(t, func(t *testing.T) {
			seen := map[int]int{}
			s := &batchSink[int]{failBatch: func(_ context.Context, records []int, _ int) error {
				var e courier.BatchError
				for j, r := range records {
					seen[r]++
					if fate[r] == 1 || fate[r] == 3 && seen[r] <= 2 {
						err := fmt.Errorf("fate of %d", r)
						if fate[r] == 1 {
							err = courier.Permanent(err)
						}
						e.Add(j, err)
					}
				}
				return e.ErrorOrNil()
			}}
			stack, dlq := courier.ResilientApplier(courier.NewDecodingApplier[string](s, strconv.Atoi), &courier.ResilientConfig[string]{
				Parking: courier.DLQPolicy[string]{MaxParkRate: courier.AnyParkRate}, // most of a batch may be bad
			})
			err := stack.(courier.BatchApplier[string]).ApplyBatch(t.Context(), rows)
			if err != nil {
				rt.Fatalf("not all settled: %v", err)
			}
			want := map[string]bool{}
			applied := map[int]bool{}
			for i, f := range fate {
				if f == 1 || f == 2 {
					want[rows[i]] = true
				} else {
					applied[i] = true
				}
			}
			parked, _ := dlq.Receive(t.Context(), 100)
			for _, letter := range parked {
				if !want[letter.Record] {
					rt.Fatalf("%s was parked with %v", letter.Record, letter.Error)
				}
				delete(want, letter.Record)
			}
			if len(want) > 0 {
				rt.Fatalf("not parked: %v", want)
			}
			for _, r := range s.got() {
				if !applied[r] {
					rt.Fatalf("%d was applied, or twice", r)
				}
				delete(applied, r)
			}
			if len(applied) > 0 {
				rt.Fatalf("not applied: %v", applied)
			}
		})
	})
}

func TestBatchError_AMarkAroundItIsMeantForAllThatItLists(t *testing.T) {
	for name, mark := range map[string]func(error) error{
		"permanent": courier.Permanent,
		"wrapped":   func(err error) error { return fmt.Errorf("insert: %w", courier.Permanent(err)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := &batchSink[int]{failBatch: func(context.Context, []int, int) error {
				var failed courier.BatchError
				failed.Add(1, errTest)
				return mark(failed.ErrorOrNil())
			}}
			err := courier.WithRetry[int](s).(courier.BatchApplier[int]).ApplyBatch(t.Context(), numbers(3))
			var list *courier.BatchError
			require.ErrorAs(t, err, &list)
			require.Len(t, list.Failures, 1)
			require.Equal(t, courier.ClassPermanent, courier.Classify(t.Context(), list.Failures[0].Err))
			require.Len(t, s.batches, 1, "no retry")
		})
	}
}

// A function for batches is an applier: its error for a record that is alone is the
// record's own.
func TestBatch_OfAFunction(t *testing.T) {
	odd := courier.BatchProcessFunc(func(_ context.Context, records []int) error {
		var failed courier.BatchError
		for i, r := range records {
			if r%2 == 1 {
				failed.Add(i, errTest)
			}
		}
		return failed.ErrorOrNil()
	})
	require.Equal(t, errTest, odd.Apply(t.Context(), 1))
	require.NoError(t, odd.Apply(t.Context(), 2))
	var list *courier.BatchError
	require.ErrorAs(t, odd.ApplyBatch(t.Context(), []int{1, 2, 3}), &list)
	require.Len(t, list.Failures, 2)

	var fault *courier.ConfigError
	none := courier.BatchProcessFunc[int](nil)
	require.ErrorAs(t, none.Apply(t.Context(), 1), &fault)
	require.ErrorAs(t, none.ApplyBatch(t.Context(), []int{1}), &fault)
	require.ErrorAs(t, courier.NewPollingCoordinator[int](courier.BatchSourceFunc[int]{
		FetchFunc: func(context.Context) ([]int, error) { return nil, nil }, MarkFunc: nop[[]int],
	}, none).Start(t.Context()), &fault)
}

// Batch appliers get portions, by default an equal share for each worker.
func TestBatch_RecordsAreHandedOutInPortions(t *testing.T) {
	sizes := func(t *testing.T, opts ...courier.Option) (sizes []int) {
		source := newShelf(numbers(100)...)
		s := &batchSink[int]{}
		require.NoError(t, courier.NewPollingCoordinator(source, s, append(opts, quiet)...).RunOnce(t.Context()))
		require.Empty(t, source.left())
		require.ElementsMatch(t, numbers(100), slices.Concat(s.batches...))
		for _, b := range s.batches {
			sizes = append(sizes, len(b))
		}
		return sizes
	}
	require.Equal(t, []int{100}, sizes(t))
	require.Equal(t, []int{25, 25, 25, 25}, sizes(t, courier.WithWorkers(4)))
	require.Equal(t, []int{40, 40, 20}, sizes(t, courier.WithApplyBatchSize(40)))
	require.Len(t, sizes(t, courier.WithApplyBatchSize(10), courier.WithWorkers(3)), 10)
}

func TestBatch_AStreamHandsOutPortionsToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var marked collector
		ch := make(chan int, 100)
		for i := range 100 {
			ch <- i
		}
		close(ch)
		s := &batchSink[int]{}
		require.NoError(t, courier.NewStreamingCoordinator(courier.NewChannelSource(ch, marked.mark), courier.Applier[int](s),
			courier.WithStreamWorkers(3), courier.WithApplyBatchSize(7), quiet).Start(t.Context()))
		require.ElementsMatch(t, numbers(100), marked.all())
		for _, b := range s.batches {
			require.LessOrEqual(t, len(b), 7)
		}
	})
}

// What a batch did not attempt does not go alone.
func TestD5_ABatchThatWasNotAttemptedDoesNotGoAlone(t *testing.T) {
	s := &batchSink[int]{failBatch: func(context.Context, []int, int) error { return rateLimited{} }}
	_ = courier.NewPollingCoordinator(newShelf(numbers(5)...), s, quiet).RunOnce(t.Context())
	require.Zero(t, s.called())
	require.Len(t, s.batches, 1)
}
