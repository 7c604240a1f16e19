package courier_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

// A failing record costs the healthy ones no time (D3, I-1): 2,000 records of 1 ms each,
// in batches of 100, go through in as long as if none failed, however they are applied.

const (
	isolated = 2000
	oneTakes = time.Millisecond
)

// trial is one run of a stack over all records: it tells when each was through.
type trial struct {
	workers   int
	keys      int // 0 is no order, isolated a key for each record
	streaming bool
	batches   bool
	stack     string
	fails     func(record, attempt int) bool
	unlimited bool
	hand      int // 0 is 100
}

func (tr *trial) around(applier courier.Applier[int], policy courier.RetryPolicy) courier.Applier[int] {
	if tr.unlimited {
		policy.MaxAttempts = courier.UnlimitedAttempts
	}
	switch tr.stack {
	case "ResilientApplier":
		// Where every tenth call fails, five in a row come by chance, once in 50 runs, and
		// no breaker could tell; eight do not.
		const inARow = 8
		policy.MaxAttempts = max(policy.MaxAttempts, inARow)
		stack, _ := courier.ResilientApplier(applier, &courier.ResilientConfig[int]{Retry: policy, Breaker: courier.BreakerPolicy{FailureThreshold: inARow}})
		return stack
	case "DLQ(Retry)":
		queue := &courier.MemoryDLQ[int]{}
		return courier.NewDLQApplier(courier.NewRetryableApplier(applier, policy), courier.DLQ[int](queue), courier.DLQPolicy[int]{MaxParkRate: courier.AnyParkRate})
	}
	return courier.NewRetryableApplier(applier, policy)
}

func (tr *trial) run(t *testing.T) (through [isolated]time.Duration, openings, calls []time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var mu sync.Mutex
		var attempts [isolated]int
		left := isolated
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		apply := courier.ProcessFunc(func(_ context.Context, r int) error {
			time.Sleep(oneTakes)
			mu.Lock()
			defer mu.Unlock()
			attempts[r]++
			calls = append(calls, time.Since(began))
			if tr.fails(r, attempts[r]) {
				return errTest
			}
			if through[r] == 0 {
				through[r] = time.Since(began)
			}
			return nil
		})
		applier := apply
		if tr.batches {
			applier = eachOfBatch[int]{apply}
		}
		random := rand.New(rand.NewPCG(1, 2))
		uniform := func() float64 {
			mu.Lock()
			defer mu.Unlock()
			return random.Float64()
		}
		applier = tr.around(applier, courier.RetryPolicy{Random: uniform})
		opts := []courier.Option{quiet, unspread, courier.WithObserver(courier.Observer{
			Paused: func(_ context.Context, e courier.PauseEvent) {
				if e.Err != courier.ErrFullHand {
					openings = append(openings, time.Since(began))
				}
			},
			Marked: func(_ context.Context, e courier.MarkEvent) {
				if left -= e.Records; left <= 0 {
					cancel()
				}
			},
		})}
		hand := 100
		if tr.hand > 0 {
			hand = tr.hand
		}
		opts = append(opts, courier.WithBatchSize(hand))
		if tr.keys > 0 {
			opts = append(opts, courier.WithOrderKey(func(r int) string { return fmt.Sprint(r % tr.keys) }))
		}
		if tr.batches {
			opts = append(opts, courier.WithApplyBatchSize(5))
		}
		var coordinator running
		if tr.streaming {
			rest := numbers(isolated)
			coordinator = courier.NewStreamingCoordinator(sourceFuncs{
				fetch: func(ctx context.Context, limit int) (records []int, _ error) {
					if len(rest) == 0 {
						<-ctx.Done()
						return nil, ctx.Err()
					}
					n := min(limit, len(rest))
					records, rest = rest[:n:n], rest[n:]
					return records, nil
				},
				mark: nop[[]int],
			}, applier, append(opts, courier.WithStreamWorkers(tr.workers))...)
		} else {
			shelf := newShelf(numbers(isolated)...)
			coordinator = courier.NewPollingCoordinator(courier.BatchSourceFunc[int]{
				FetchFunc: func(ctx context.Context) ([]int, error) { return shelf.Fetch(ctx, hand) },
				MarkFunc:  shelf.Mark,
			}, applier, append(opts, courier.WithFastPolling(), courier.WithWorkers(tr.workers))...)
		}
		ctx, timeout := context.WithTimeout(ctx, time.Minute) // some are never through
		defer timeout()
		err := coordinator.Start(ctx)
		if unsettled := (*courier.UnsettledError[int])(nil); !errors.As(err, &unsettled) { // what waits when a stream ends that takes nothing back
			require.NoError(t, err)
		}
	})
	return through, openings, calls
}

// misfits is records that fail, and the policy by which they are tried again.
type misfits struct {
	fails     func(record, attempt int) bool
	unlimited bool
	random    bool // of all calls: a breaker opens over some of them, and every key has some
	hand      int  // how many records may be in hand, where that is not 100
}

func randomly(share float64) func(record, attempt int) bool {
	return func(record, attempt int) bool {
		return rand.New(rand.NewPCG(uint64(record), uint64(attempt))).Float64() < share
	}
}

func TestD3_AFailingRecordCostsTheOthersNoTime(t *testing.T) {
	failures := map[string]misfits{
		// Of these, up to 200 are of a key that waits.
		"5 % fail twice":         {fails: func(r, n int) bool { return r%20 == 7 && n <= 2 }, hand: 400},
		"1 % never succeed":      {fails: func(r, _ int) bool { return r%100 == 37 }},
		"a key of 50 is dead":    {fails: func(r, _ int) bool { return r%50 == 3 }, unlimited: true},
		"10 % of the calls fail": {fails: randomly(0.1), random: true},
		// 8 workers make 8 calls a millisecond, and what fails waits for 50 ms or more.
		"30 % of the calls fail": {fails: randomly(0.3), random: true, hand: 400},
	}
	for _, stack := range few("Retry", "DLQ(Retry)", "ResilientApplier") {
		for _, shape := range []struct{ workers, keys int }{{8, 0}, {8, 50}, {1, isolated}} {
			for _, streaming := range []bool{false, true} {
				for _, batches := range []bool{false, true} {
					tr := trial{workers: shape.workers, keys: shape.keys, streaming: streaming, batches: batches, stack: stack, fails: func(int, int) bool { return false }}
					well, _, _ := tr.run(t)
					for name, f := range failures {
						if f.random && (stack == "ResilientApplier" || shape.keys == 50) || f.unlimited && shape.keys != 50 {
							continue
						}
						t.Run(fmt.Sprintf("%s/%d workers, %d keys, %s, %s/%s", stack, shape.workers, shape.keys, coordinatorOf(streaming), batched(batches), name), func(t *testing.T) {
							tr := tr
							tr.fails, tr.unlimited, tr.hand = f.fails, f.unlimited, f.hand
							got, openings, calls := tr.run(t)
							var healthy, floor time.Duration
							for r := range isolated {
								floor = max(floor, well[r])
								if !f.fails(r, 1) && (shape.keys != 50 || !keyFails(f.fails, r%50)) {
									healthy = max(healthy, got[r])
									require.NotZero(t, got[r], "record %d", r)
								}
							}
							made := 0 // which the workers have to make, too
							for _, at := range calls {
								if at <= healthy {
									made++
								}
							}
							floor = max(floor, time.Duration(made/shape.workers)*oneTakes)
							t.Logf("%.2f times as long: %v instead of %v", float64(healthy)/float64(floor), healthy, floor)
							require.LessOrEqual(t, healthy, floor*12/10)
							for _, at := range openings {
								require.Greater(t, at, healthy, "a breaker opened while others were applied")
							}
						})
					}
				}
			}
		}
	}
}

// keyFails reports whether a record of a key fails at first.
func keyFails(fails func(record, attempt int) bool, key int) bool {
	for r := key; r < isolated; r += 50 {
		if fails(r, 1) {
			return true
		}
	}
	return false
}
