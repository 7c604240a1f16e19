package courier_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
)

// coordinate returns a coordinator of a kind that applies records by take, with decorators
// around it.
type coordinate func(take func(int) error, around func(courier.Applier[int]) courier.Applier[int], opts ...courier.Option) running

// inKinds runs a test in a bubble for each coordinator, with and without leases that are
// renewed, and for records that are applied one by one, in batches and by key.
func inKinds(t *testing.T, test func(t *testing.T, s *courierttest.LeasingSource[int], with coordinate)) {
	for _, streaming := range []bool{false, true} {
		for _, renews := range []bool{false, true} {
			for _, kind := range []string{"one by one", "batches", "keyed"} {
				t.Run(fmt.Sprintf("%s/%s/%s", coordinatorOf(streaming), choose(renews, "renewed", "not renewed"), kind), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						var r courierttest.Recorder[int]
						s := r.LeasingSource(0)
						if streaming {
							s = r.StreamSource()
						}
						test(t, s, func(take func(int) error, around func(courier.Applier[int]) courier.Applier[int], opts ...courier.Option) running {
							a := courier.ProcessFunc(func(_ context.Context, r int) error { return take(r) })
							opts = append([]courier.Option{quiet, courier.WithWorkers(2)}, opts...)
							switch kind {
							case "batches":
								a = eachOfBatch[int]{a}
							case "keyed":
								opts = append(opts, courier.WithOrderKey(func(r int) string { return fmt.Sprint(r) }))
							}
							a = around(a)
							var source courier.Source[int] = releasing{s, s}
							if renews {
								source = struct {
									releasing
									courier.Renewer[int]
								}{releasing{s, s}, s}
							}
							if streaming {
								return courier.NewStreamingCoordinator(source, a, opts...)
							}
							return courier.NewPollingCoordinator(source, a, append(opts, courier.WithFastPolling())...)
						})
					})
				})
			}
		}
	}
}

// D3: the attempts of each record count, of however many that wait at once, whether these
// are in hand or with the source. So poison is parked, and the healthy records get through.
func TestD3_TheAttemptsOfManyRecordsAreRemembered(t *testing.T) {
	const bad, attempts = 1500, 3
	inKinds(t, func(t *testing.T, s *courierttest.LeasingSource[int], with coordinate) {
		s.Add(numbers(bad + 100)...)
		var mu sync.Mutex
		calls := make(map[int]int)
		var queue courier.MemoryDLQ[int]
		c := with(func(r int) error {
			mu.Lock()
			defer mu.Unlock()
			if calls[r]++; r < bad {
				return courier.RetryAfter(errTest, 20*time.Second)
			}
			return nil
		}, func(a courier.Applier[int]) courier.Applier[int] {
			return courier.NewDLQApplier(courier.NewRetryableApplier(a, courier.RetryPolicy{MaxAttempts: attempts, MaxDelay: 20 * time.Second}), courier.DLQ[int](&queue), courier.DLQPolicy[int]{MaxParkRate: courier.AnyParkRate})
		})
		stop := start(t, c)
		time.Sleep(3 * time.Minute)
		if _, polling := c.(*courier.PollingCoordinator[int]); polling { // a stream has no more out than in hand
			mu.Lock()
			for r := range 100 {
				require.Equal(t, 1, calls[bad+r], "a healthy record")
			}
			mu.Unlock()
		}
		time.Sleep(17 * time.Minute)
		require.NoError(t, stop())
		require.Equal(t, bad, countOf(&queue))
		require.Empty(t, s.Pending())
		for r, n := range calls {
			want := 1
			if r < bad {
				want = attempts
			}
			require.Equal(t, want, n, r)
		}
	})
}

// unnamed is a source that renews leases, of records that have no names and are no values.
type unnamed struct {
	s *courierttest.LeasingSource[int]
}

type document struct{ number int }

func inDocuments(docs []*document) (list []int) {
	for _, d := range docs {
		list = append(list, d.number)
	}
	return list
}

func (d unnamed) Fetch(ctx context.Context, limit int) (docs []*document, err error) {
	list, err := d.s.Fetch(ctx, limit)
	for _, r := range list {
		docs = append(docs, &document{r})
	}
	return docs, err
}

func (d unnamed) Mark(ctx context.Context, docs []*document) error {
	return d.s.Mark(ctx, inDocuments(docs))
}

func (d unnamed) Release(ctx context.Context, docs []*document, after time.Duration) error {
	return d.s.Release(ctx, inDocuments(docs), after)
}

func (unnamed) RenewEvery() time.Duration                { return time.Minute }
func (unnamed) Renew(context.Context, []*document) error { return nil }

// A record that cannot be known again does not go back to its source between its attempts,
// however many wait.
func TestD3_RecordsWithoutNamesWaitInHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const records, attempts = 40, 3
		var mu sync.Mutex
		calls := make(map[int]int)
		a := courier.NewRetryableApplier(courier.ProcessFunc(func(_ context.Context, d *document) error {
			mu.Lock()
			defer mu.Unlock()
			calls[d.number]++
			return courier.RetryAfter(errTest, 20*time.Second)
		}), courier.RetryPolicy{MaxAttempts: attempts})
		parked := courier.NewDLQApplier(a, courier.DLQ[*document](&courier.MemoryDLQ[*document]{}), courier.DLQPolicy[*document]{MaxParkRate: courier.AnyParkRate})
		var r courierttest.Recorder[int]
		c := courier.NewPollingCoordinator(unnamed{r.LeasingSource(0, numbers(records)...)}, parked, quiet, courier.WithWorkers(2), courier.WithBatchSize(10))
		stop := start(t, c)
		time.Sleep(10 * time.Minute)
		require.NoError(t, stop())
		for r := range records {
			require.Equal(t, attempts, calls[r], r)
		}
	})
}
