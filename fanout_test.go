package courier_test

import (
	"context"
	"errors"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

func TestF1_EveryBranchRunsAndTheErrorNamesTheBranch(t *testing.T) {
	a, b, c := &sink[int]{}, &sink[int]{fail: func(context.Context, int, int) error { return errTest }}, &sink[int]{}
	err := courier.NewFanOutApplier(a, b, c).Apply(t.Context(), 1)
	var fan *courier.FanOutError
	require.ErrorAs(t, err, &fan)
	require.ErrorIs(t, err, errTest)
	require.Equal(t, []courier.BranchFailure{{Branch: 1, Err: errTest}}, fan.Failures)
	require.Equal(t, []int{1}, a.got())
	require.Equal(t, []int{1}, c.got())
	require.NoError(t, courier.NewFanOutApplier(a, c).Apply(t.Context(), 2))
}

func TestF4_TheClassOfSeveralBranches(t *testing.T) {
	open, permanent := error(&courier.OpenError{Cause: errTest}), courier.Permanent(errTest)
	skip := courier.Skip(errTest)
	for _, test := range []struct {
		errs []error
		want courier.Class
	}{
		{[]error{open, permanent, errTest}, courier.NotAttempted},
		{[]error{permanent, errTest}, courier.Retryable},
		{[]error{permanent, permanent, nil}, courier.PermanentClass},
		{[]error{permanent, skip}, courier.PermanentClass},
		{[]error{skip, nil}, courier.Skipped},
	} {
		branches := make([]courier.Applier[int], len(test.errs))
		for i, err := range test.errs {
			branches[i] = always(err)
		}
		err := courier.NewFanOutApplier(branches...).Apply(t.Context(), 1)
		require.Equal(t, test.want, courier.Classify(t.Context(), err), "%v", test.errs)
		require.Equal(t, test.want, courier.Classify(t.Context(), errors.Join(errTest, err)), "joined: %v", test.errs)
	}
}

func TestF5_APanicInABranchIsItsFailure(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic(errTest) }, "goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			a := &sink[int]{}
			b := courier.ProcessFunc(func(context.Context, int) error { end(); return nil })
			err := courier.NewFanOutApplier(b, courier.Applier[int](a)).Apply(t.Context(), 1)
			require.ErrorIs(t, err, courier.ErrPanic)
			require.Equal(t, []int{1}, a.got())
		})
	}
}

func TestFanOut_Batches(t *testing.T) {
	a := &batchSink[int]{}
	b := &sink[int]{fail: func(_ context.Context, r, _ int) error {
		if r == 1 {
			return errTest
		}
		return nil
	}}
	applier := courier.NewFanOutApplier[int](a, b)
	err := asBatch(applier).ApplyBatch(t.Context(), []int{0, 1, 2})
	require.Equal(t, [][]int{{0, 1, 2}}, a.batches)
	require.Equal(t, []int{0, 2}, b.got())
	var list *courier.BatchError
	require.ErrorAs(t, err, &list)
	require.Len(t, list.Failures, 1)
	require.Equal(t, 1, list.Failures[0].Index)
	var fan *courier.FanOutError
	require.ErrorAs(t, list.Failures[0].Err, &fan)
	require.Equal(t, 1, fan.Failures[0].Branch)
}

func TestFanOut_AStackForEachBranch(t *testing.T) {
	// Branch a's poison is parked in a's queue, b is not bothered.
	a, qa := withDLQ(always(courier.Permanent(errTest)))
	s := &sink[int]{}
	b, qb := withDLQ[int](s)
	source := newShelf(1, 2)
	require.NoError(t, courier.NewPollingCoordinator(source, courier.NewFanOutApplier(a, b), quiet).RunOnce(t.Context()))
	require.Equal(t, 2, qa.Len())
	require.Zero(t, qb.Len())
	require.Equal(t, []int{1, 2}, s.got())
	require.Empty(t, source.left())
}
