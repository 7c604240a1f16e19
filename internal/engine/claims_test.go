package engine_test

import (
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier/internal/engine"
)

// Workers that claim at the same time have every record between them, each once, and
// never more of them at a time than they may.
func TestClaimsHaveEveryRecordOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c engine.Claims // is reused from batch to batch
		for range 2 {
			records := rapid.IntRange(0, 200).Draw(t, "records")
			workers := rapid.IntRange(1, 8).Draw(t, "workers")
			step := rapid.IntRange(0, 5).Draw(t, "step")
			var keys []string
			chained, whole := rapid.Bool().Draw(t, "chained"), false
			if chained {
				whole = rapid.Bool().Draw(t, "whole chains")
				for range records {
					keys = append(keys, rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "key"))
				}
			}
			c.Reset(records, keys, workers)
			c.Step(step)
			require.Equal(t, chained && records > 0, c.Chained())
			require.Equal(t, records > 0, c.Left())
			claimed := make([][]int, workers)
			var all sync.WaitGroup
			for w := range workers {
				all.Go(func() {
					for {
						claim := c.Claim
						if whole {
							claim = func() (from, to int) { return c.ClaimChains(max(1, step)) }
						}
						from, to := claim()
						if from == to {
							return
						}
						if !whole && to-from > max(step, engine.MaxClaim) {
							t.Errorf("%d units at a time, with a step of %d", to-from, step)
						}
						for unit := from; unit < to; unit++ {
							if !chained {
								claimed[w] = append(claimed[w], unit)
								continue
							}
							for i := c.Chains.Heads[unit]; i >= 0; i = c.Chains.After[i] {
								claimed[w] = append(claimed[w], i)
							}
						}
					}
				})
			}
			all.Wait()
			require.False(t, c.Left())
			got := slices.Concat(claimed...)
			slices.Sort(got)
			require.Len(t, got, records)
			for i, record := range got {
				require.Equal(t, i, record)
			}
		}
	})
}

// What an only worker has finished is what it had claimed before its last claim, and
// behind a cut it begins nothing.
func TestClaimsOfAnOnlyWorker(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c engine.Claims
		records, step := rapid.IntRange(1, 30).Draw(t, "records"), rapid.IntRange(1, 4).Draw(t, "step")
		c.Reset(records, nil, 1)
		c.Step(step)
		require.Equal(t, records, c.Share())
		done, begun := 0, 0 // where the last claim begins, and ends
		for range rapid.IntRange(0, 10).Draw(t, "claims") {
			if from, to := c.Claim(); from < to {
				require.Equal(t, begun, from)
				done, begun = from, to
			}
			require.Equal(t, done, c.Finished())
			require.Equal(t, begun, c.Begun())
		}
		require.Equal(t, begun, c.CutShort())
		from, to := c.Claim()
		require.Equal(t, from, to)
		require.Equal(t, begun, c.Begun())
		require.False(t, c.Left())
	})
}
