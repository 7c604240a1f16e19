package courier_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// outOfOrder is a queue that takes nothing for a while.
type outOfOrder struct {
	courier.DLQ[int]
	down atomic.Bool
}

func (q *outOfOrder) Send(ctx context.Context, letter courier.DeadLetter[int]) error {
	if q.down.Load() {
		return errTest
	}
	return q.DLQ.Send(ctx, letter)
}

// However many records a queue has refused, together or one after another, the stream's
// pause grows with the time that the queue was away, and not with their number. A fetch
// that waits as the queue returns would hide it: here records come all the time.
func TestPace_RefusalsOfMany(t *testing.T) {
	for _, down := range []time.Duration{time.Second, 10 * time.Second, time.Minute} {
		for _, every := range []time.Duration{10 * time.Millisecond, 100 * time.Millisecond, time.Second} {
			for _, keyed := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v, one each %v, keyed %v", down, every, keyed), func(t *testing.T) {
					courierttest.Bubble(t, func(t *testing.T) {
						var r courierttest.Recorder[int]
						source := r.StreamSource()
						queue := &outOfOrder{DLQ: courier.NewMemoryDLQ[int](100000)}
						queue.down.Store(true)
						a := courier.NewDLQApplierWith(courier.ProcessFunc(func(_ context.Context, i int) error {
							if i > 0 {
								return courier.Permanent(errors.New("poison"))
							}
							return nil
						}), courier.DLQ[int](queue), courier.DLQPolicy[int]{MaxParkRate: courier.AnyParkRate})
						opts := []courier.Option{quiet, courier.WithBatchSize(10000)}
						if keyed {
							opts = append(opts, courier.WithOrderKey(func(i int) string { return fmt.Sprint(i) }))
						}
						run := courierttest.Start(t, courier.NewStreamingCoordinator[int](source, a, opts...))
						for i, began := 1, time.Now(); time.Since(began) < down; i++ {
							source.Add(i)
							time.Sleep(every)
						}
						queue.down.Store(false)
						source.Add(0)
						time.Sleep(min(2*down, 30*time.Second) + time.Second)
						require.False(t, slices.Contains(source.Pending(), 0))
						require.NoError(t, run.Stop())
					})
				})
			}
		}
	}
}

// While a queue refuses records from time to time, those between them are settled as ever.
func TestPace_RefusedRecordsSlowNoOther(t *testing.T) {
	for _, shape := range []string{"polling", "streaming"} {
		t.Run(shape, func(t *testing.T) {
			courierttest.Bubble(t, func(t *testing.T) {
				var r courierttest.Recorder[int]
				queue := &outOfOrder{DLQ: courier.NewMemoryDLQ[int](100)}
				queue.down.Store(true)
				a := courier.NewDLQApplierWith(courier.ProcessFunc(func(_ context.Context, i int) error {
					if i%5 == 0 {
						return courier.Permanent(errors.New("poison"))
					}
					return nil
				}), courier.DLQ[int](queue), courier.DLQPolicy[int]{MaxParkRate: courier.AnyParkRate})
				source := r.LeasingSource(time.Hour)
				var c courierttest.Starter = courier.NewPollingCoordinator[int](source, a, quiet)
				if shape == "streaming" {
					source = r.StreamSource()
					c = courier.NewStreamingCoordinator[int](source, a, quiet)
				}
				run := courierttest.Start(t, c)
				for i := 1; i < 300; i++ {
					source.Add(i)
					time.Sleep(5 * time.Second)
					late := slices.DeleteFunc(slices.Clone(source.Pending()), func(n int) bool { return n%5 == 0 })
					require.Empty(t, late)
				}
				require.NoError(t, run.Stop())
			})
		})
	}
}
