package engine_test

import (
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/erfanmomeniii/courier/internal/engine"
)

// The leases against a model: what is renewed is all in hand, in the order fetched, and
// what is settled cannot be lost.
func TestLeases(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l engine.Leases[int]
		record := make(map[uint64]int) // in hand
		settled, lost := make(map[uint64]bool), make(map[uint64]bool)
		number, asked := uint64(0), false
		inHand := func(n uint64) bool { _, ok := record[n]; return ok }
		draw := func() uint64 { return rapid.Uint64Range(1, number+2).Draw(t, "number") }
		for range rapid.IntRange(0, 60).Draw(t, "operations") {
			switch rapid.IntRange(0, 6).Draw(t, "operation") {
			case 0:
				records := rapid.SliceOfN(rapid.Int(), 0, 8).Draw(t, "records")
				require.Equal(t, asked && len(records) > 0, l.Enter(number+1, records))
				asked = asked && len(records) == 0
				for _, r := range records {
					number++
					record[number] = r
				}
			case 1:
				first, n := draw(), rapid.IntRange(0, 3).Draw(t, "settled")
				l.Settle(first, n)
				for i := range n {
					if n := first + uint64(i); inHand(n) && !lost[n] {
						settled[n] = true
					}
				}
			case 2, 3:
				some := []uint64{draw(), draw(), draw()}
				l.Leave(some...)
				for _, n := range some {
					delete(record, n)
					delete(lost, n)
				}
			case 4:
				n, again := draw(), rapid.Int().Draw(t, "record")
				l.Regain(n, again)
				require.False(t, l.Lose(n), "the renewal is of the lease before")
				delete(lost, n)
				if inHand(n) {
					record[n] = again
				}
			case 5:
				n := draw()
				ok := inHand(n) && !settled[n] && !lost[n]
				require.Equal(t, ok, l.Lose(n))
				if ok {
					lost[n] = true
				}
			case 6:
				l.Ask()
				asked = true
			}
			var records []int
			var numbers []uint64
			for _, n := range slices.Sorted(maps.Keys(record)) {
				require.Equal(t, lost[n], l.Lost(n))
				records, numbers = append(records, record[n]), append(numbers, n)
			}
			gotRecords, gotNumbers := l.Renewable()
			require.Equal(t, records, gotRecords)
			require.Equal(t, numbers, gotNumbers)
			require.Equal(t, len(lost) > 0, l.Some())
		}
	})
}

// A source that wants no leases renewed has none.
func TestLeases_NilHoldsNone(t *testing.T) {
	var l *engine.Leases[int]
	require.False(t, l.Enter(1, []int{1}))
	l.Settle(1, 1)
	l.Regain(1, 2)
	l.Leave(1)
	require.False(t, l.Some())
	require.False(t, l.Lost(1))
}

// Losses are told while records come and go.
func TestLeases_ByManyGoroutines(t *testing.T) {
	var l engine.Leases[int]
	var all sync.WaitGroup
	all.Go(func() {
		for n := range uint64(200) {
			l.Enter(2*n+1, []int{1, 2})
			l.Settle(2*n+1, 1)
			l.Leave(2*n+1, 2*n+2)
		}
	})
	all.Go(func() {
		for range 200 {
			_, numbers := l.Renewable()
			for _, n := range numbers {
				l.Lose(n)
				l.Lost(n)
			}
		}
	})
	all.Wait()
	require.False(t, l.Some())
	records, _ := l.Renewable()
	require.Empty(t, records)
}
