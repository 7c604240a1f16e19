package courier_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// inner builds a pipeline for each record, as for tenants of their own, one of which
// cannot be built.
func inner(ctx context.Context, r int) error {
	policy := courier.RetryPolicy{}
	if r == bad {
		policy.MaxAttempts = -1
	}
	return courier.NewRetryableApplier(courier.ProcessFunc(nop[int]), policy).Apply(ctx, r)
}

// D12, D3, D5: a configuration fault that comes while a coordinator runs is of
// somebody else's pipeline, since those of its own are known before. Its record stays
// pending, nothing is held against it, and the others are delivered.
func TestD12_AFaultOfAnotherPipelineIsItsRecords(t *testing.T) {
	for name, apply := range map[string]func(context.Context, int) error{
		"an inner pipeline": inner,
		"wrapped": func(_ context.Context, r int) error {
			if r == bad {
				return errors.Join(errTest, &courier.ConfigError{Field: "tenant", Problem: "has no address"})
			}
			return nil
		},
	} {
		one := courier.ProcessFunc(apply)
		together := &batchSink[int]{sink: sink[int]{fail: func(ctx context.Context, r, _ int) error { return apply(ctx, r) }}, failBatch: func(ctx context.Context, records []int, _ int) error {
			var failed courier.BatchError
			for i, r := range records {
				if err := apply(ctx, r); err != nil {
					failed.Add(i, err)
				}
			}
			return failed.ErrorOrNil()
		}}
		for _, a := range []courier.Applier[int]{one, together} {
			for _, p := range pipelines {
				for _, run := range runs {
					t.Run(name+" "+p.name+" "+run.name, func(t *testing.T) {
						courierttest.Bubble(t, func(t *testing.T) {
							var h heard
							var r courierttest.Recorder[int]
							source, err := run.run(t, &r, p.wrap(a), h.options(), 0, 1, bad, 3, 4)
							require.NoError(t, err)
							left := source.Pending()
							if len(left) == 2 && left[1] == 9+later { // RunOnce has not seen the last one
								left = left[:1]
							}
							require.Equal(t, []int{bad}, left)
							told := false
							for _, err := range h.errs {
								told = told || errors.Is(err, courier.ErrConfig)
							}
							require.True(t, told)
						})
					})
				}
			}
		}
	}
}

// RunOnce returns it as the record's error, and a redrive stops at it as at
// everything that was not attempted: the letter stays as it is.
func TestD12_AFaultOfAnotherPipelineIsTold(t *testing.T) {
	source := newShelf(0, 1, bad, 3)
	err := courier.NewPollingCoordinator(source, courier.ProcessFunc(inner), quiet).RunOnce(t.Context())
	var list *courier.BatchError
	require.ErrorAs(t, err, &list)
	require.Len(t, list.Failures, 1)
	require.Equal(t, 2, list.Failures[0].Index)
	require.ErrorIs(t, list.Failures[0].Err, courier.ErrConfig)
	require.Equal(t, []int{bad}, source.left())

	q := queueOf(0, bad, 3)
	before, _ := q.Receive(t.Context(), 9)
	result, err := courier.Redrive(t.Context(), q, courier.ProcessFunc(inner), nil)
	require.ErrorIs(t, err, courier.ErrRedrive)
	require.ErrorIs(t, err, courier.ErrConfig)
	require.Equal(t, 1, result.Succeeded)
	require.Zero(t, result.Failed)
	after, _ := q.Receive(t.Context(), 9)
	require.Equal(t, before[1:], after)
}

// A fault of the stack itself that a decorator of the user's own hides from the
// coordinator is found out at the first record. Nothing is lost, parked or counted,
// nobody is kept busy, and the log and the observer say it.
func TestD12_AFaultThatIsHiddenRefusesEveryRecord(t *testing.T) {
	hidden := courier.NewRetryableApplier(courier.ProcessFunc(nop[int]), courier.RetryPolicy{MaxAttempts: -1})
	own := courier.ProcessFunc(func(ctx context.Context, r int) error { return hidden.Apply(ctx, r) })
	for _, stream := range []bool{false, true} {
		courierttest.Bubble(t, func(t *testing.T) {
			var told courierttest.ObserverRecorder
			var r courierttest.Recorder[int]
			stack, q := courier.ResilientApplier(own, nil)
			var c interface {
				courierttest.Starter
				Stats() courier.Stats
			}
			var pending func() []int
			opts := []courier.Option{quiet, courier.WithObserver(told.Observer())}
			if stream {
				source := r.StreamSource(numbers(10)...)
				pending = source.Pending
				c = courier.NewStreamingCoordinator(source, stack, opts...)
			} else {
				source := r.Source(numbers(10)...)
				pending = source.Pending
				c = courier.NewPollingCoordinator(source, stack, opts...)
			}
			courierttest.RunFor(t, c, time.Hour)
			require.Equal(t, numbers(10), pending())
			n, _ := q.Count(t.Context())
			require.Zero(t, n)
			require.Zero(t, c.Stats().Failed)
			require.Zero(t, c.Stats().Marked)
			require.Less(t, len(courierttest.EventsOf[courier.FetchEvent](&told)), 1000, "it keeps a processor busy")
			refusals := courierttest.EventsOf[courier.FailEvent](&told)
			require.NotEmpty(t, refusals)
			require.Equal(t, courier.NotAttempted, refusals[0].Class)
			require.ErrorIs(t, refusals[0].Err, courier.ErrConfig)
		})
	}
}
