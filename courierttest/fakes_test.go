package courierttest

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// The suites say that the fakes keep the contract. Here is what they do beyond
// it, and under faults.

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

type order struct {
	id    string
	lines []string
}

func TestFakesAreWatched(t *testing.T) {
	r := Recorder[order]{Name: func(o order) string { return o.id }}
	mine := []order{{"a", nil}, {"b", []string{"tea"}}}
	source := r.Source()
	source.FetchFunc = func(context.Context, int) ([]order, error) { return mine, nil }
	source.MarkFunc = func(_ context.Context, records []order) error {
		if len(records) > 1 {
			return errors.New("one at a time")
		}
		return nil
	}
	shop := r.Applier(nil)
	shop.ApplyFunc = func(_ context.Context, o order) error {
		switch {
		case o.id == "c":
			panic("boom")
		case o.lines == nil:
			return courier.Skip(errors.New("empty"))
		}
		return nil
	}
	records, err := source.Fetch(t.Context(), 10)
	require.NoError(t, err)
	require.Equal(t, mine, records)
	require.True(t, courier.Classify(t.Context(), shop.Apply(t.Context(), mine[0])) == courier.ClassSkipped)
	require.NoError(t, shop.Apply(t.Context(), mine[1]))
	require.Panics(t, func() { _ = shop.Apply(t.Context(), order{id: "c"}) })
	require.Error(t, source.Mark(t.Context(), mine))
	require.NoError(t, source.Mark(t.Context(), mine[1:]))

	require.Equal(t, []string{"a", "b"}, r.Names(Fetched))
	require.Equal(t, []string{"a"}, r.Names(Skipped))
	require.Equal(t, []order{mine[1]}, r.Records(Applied, Unacked))
	require.Equal(t, []string{"c"}, r.Names(Failed))
	require.Equal(t, []string{"a", "b"}, r.Names(MarkFailed))
	require.Equal(t, []string{"b"}, r.Names(Marked))
	require.Equal(t, "b", source.Identity(mine[1]))
}

func TestSourceFaults(t *testing.T) {
	var r Recorder[string]
	source := r.Source("a", "b", "c")
	source.FetchFaults.Set(MustParse("error if call 1; lost if call 2")...)
	for range 2 {
		records, err := source.Fetch(t.Context(), 2)
		require.ErrorIs(t, err, ErrInjected)
		require.Empty(t, records)
	}
	records, err := source.Fetch(t.Context(), 2)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, records)
	source.MarkFaults.Set(MustParse("error if call 1; lost if call 2")...)
	require.ErrorIs(t, source.Mark(t.Context(), records), ErrInjected)
	require.Equal(t, []string{"a", "b", "c"}, source.Pending())
	require.ErrorIs(t, source.Mark(t.Context(), records), ErrInjected)
	require.Equal(t, []string{"c"}, source.Pending(), "the answer was lost, not the mark")
	require.Empty(t, r.Names(Marked))
	source.FetchFaults.Set(Fault{Effect: Panic})
	require.Panics(t, func() { _, _ = source.Fetch(t.Context(), 2) })
	require.Equal(t, 4, source.FetchFaults.Calls())
}

func TestWhatIsKeptAndWhatIsForgotten(t *testing.T) {
	for _, retain := range []bool{false, true} {
		var r Recorder[string]
		source := r.Source("a")
		source.Retain = retain
		source.Add("a") // is there
		require.Equal(t, []string{"a"}, source.Pending())
		require.NoError(t, source.Mark(t.Context(), []string{"a"}))
		source.Add("a")
		require.Equal(t, retain, len(source.Pending()) == 0)
	}
}

func TestLostFetchHasLeased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r Recorder[string]
		source := r.LeasingSource(lease, "a")
		source.FetchFaults.Set(Fault{Lost, Calls(1, 1)})
		_, err := source.Fetch(t.Context(), 1)
		require.ErrorIs(t, err, ErrInjected)
		require.Equal(t, []string{"a"}, source.InHand())
		records, err := source.Fetch(t.Context(), 1)
		require.NoError(t, err)
		require.Empty(t, records)
		time.Sleep(lease)
		require.Empty(t, source.InHand())
		records, err = source.Fetch(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, []string{"a"}, records)
	})
}

func TestAStaleMarkHasNoEffect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r Recorder[string]
		first := r.LeasingSource(lease, "a")
		second := first.Join()
		_, _ = first.Fetch(t.Context(), 1)
		time.Sleep(lease)
		_, _ = second.Fetch(t.Context(), 1)
		require.NoError(t, first.Mark(t.Context(), []string{"a"}))
		require.Equal(t, []string{"a"}, first.Pending())
		require.Equal(t, []string{"a"}, r.Names(Stale))
		require.Empty(t, r.Names(Marked))
		require.NoError(t, second.Mark(t.Context(), []string{"a"}))
		require.Empty(t, first.Pending())
	})
}

func TestSchedulingSourceBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r Recorder[string]
		source := r.SchedulingSource(lease, "a")
		for _, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
			records, err := source.Fetch(t.Context(), 1)
			require.NoError(t, err)
			require.Len(t, records, 1)
			require.NoError(t, source.Fail(t.Context(), []courier.FailedRecord[string]{{Record: "a", Error: errors.New("boom")}}))
			time.Sleep(want - time.Nanosecond)
			records, _ = source.Fetch(t.Context(), 1)
			require.Empty(t, records)
			time.Sleep(time.Nanosecond)
		}
		require.Equal(t, []string{"a", "a", "a"}, r.Names(Released))
		source.Backoff = time.Minute
		require.ErrorIs(t, source.Fail(canceled(), nil), context.Canceled)
	})
}

func TestBatchFaults(t *testing.T) {
	for _, own := range []bool{false, true} {
		var r Recorder[int]
		shop := r.BatchApplier(MustParse(`error if record "1"; permanent if record "2"; lost if record "3"`))
		var took []int
		if own {
			shop.ApplyBatchFunc = func(_ context.Context, records []int) error {
				took = records
				return &courier.BatchError{Failures: []courier.BatchFailure{{Index: 2, Err: errors.New("its own")}}}
			}
		} else {
			shop.ApplyFunc = func(_ context.Context, record int) error {
				took = append(took, record)
				if record == 4 {
					return errors.New("its own")
				}
				return nil
			}
		}
		var list *courier.BatchError
		require.ErrorAs(t, shop.ApplyBatch(t.Context(), numbers(6)), &list)
		require.Equal(t, []int{0, 3, 4, 5}, took)
		errs := make([]error, 6)
		for _, f := range list.Failures {
			errs[f.Index] = f.Err
		}
		require.NoError(t, errs[0])
		require.ErrorIs(t, errs[1], ErrInjected)
		require.Equal(t, courier.ClassPermanent, courier.Classify(t.Context(), errs[2]))
		require.ErrorIs(t, errs[3], ErrInjected)
		require.EqualError(t, errs[4], "its own")
		require.NoError(t, errs[5])
		require.Equal(t, []int{0, 5}, r.Records(Applied))
		require.Equal(t, []int{3}, r.Records(Unacked))
		require.ElementsMatch(t, []int{1, 2, 4}, r.Records(Failed))
	}
}

func TestFaultsOfAWholeBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r Recorder[int]
		shop := r.BatchApplier(MustParse("delay 1s if call 2; delay 3s if call 1; whole if call 1..3; panic if call 4..6; hang if call 7..9"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		before := time.Now()
		err := shop.ApplyBatch(ctx, numbers(3))
		require.ErrorIs(t, err, ErrInjected)
		require.NotErrorAs(t, err, new(*courier.BatchError))
		require.Equal(t, 3*time.Second, time.Since(before))
		require.Panics(t, func() { _ = shop.ApplyBatch(ctx, numbers(3)) })
		require.ErrorIs(t, shop.ApplyBatch(ctx, numbers(3)), context.DeadlineExceeded)
		require.Empty(t, r.Records(Applied, Unacked))
		require.NoError(t, shop.ApplyBatch(t.Context(), numbers(3)))

		failing := r.BatchApplier(nil)
		failing.ApplyBatchFunc = func(context.Context, []int) error { return errors.New("all of it") }
		require.EqualError(t, failing.ApplyBatch(t.Context(), numbers(3)), "all of it")
	})
}

func TestDLQFaults(t *testing.T) {
	var r Recorder[string]
	queue := r.DLQ(2)
	queue.SendFaults.Set(MustParse("error if call 1; lost if call 2")...)
	letter := courier.DeadLetter[string]{Record: "a", Error: errors.New("boom")}
	require.ErrorIs(t, queue.Send(t.Context(), letter), ErrInjected)
	require.Empty(t, queue.Letters())
	require.ErrorIs(t, queue.Send(t.Context(), letter), ErrInjected)
	require.Len(t, queue.Letters(), 1)
	require.NoError(t, queue.Send(t.Context(), letter))
	require.Len(t, queue.Letters(), 1)
	require.Equal(t, []string{"a"}, r.Names(Parked))
	require.Equal(t, []string{"a", "a"}, r.Names(ParkFailed))
	require.ErrorIs(t, queue.Send(canceled(), letter), context.Canceled)
}
