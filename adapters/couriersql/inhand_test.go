package couriersql

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// Rows come in order or not, and are settled as neighbours or here and there, some of
// them twice and some that are not in hand.
func TestRowKeys(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var keys rowKeys
		model := make(map[rowKey]bool)
		for range 20 {
			var rows []Row
			first := random.Int64N(100)
			for seq := first; seq < first+random.Int64N(20); seq++ {
				rows = append(rows, Row{Seq: seq, ID: fmt.Sprint(random.IntN(2))})
			}
			if random.IntN(2) == 0 {
				keys.add(rows)
				for _, row := range rows {
					model[row.key()] = true
				}
			} else {
				if random.IntN(2) == 0 {
					random.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
				}
				rows = append(rows, rows[:len(rows)/2]...)
				keys.remove(len(rows), func(i int) rowKey { return rows[i].key() })
				for _, row := range rows {
					delete(model, row.key())
				}
			}
			require.Len(t, keys.keys, len(model))
			require.True(t, slices.IsSortedFunc(keys.keys, compareKeys))
			for seq := range int64(120) {
				for _, id := range []string{"0", "1"} {
					key := rowKey{seq, id}
					_, found := keys.find(key)
					require.Equal(t, model[key], found, key)
				}
			}
		}
	}
}

func TestMultirange(t *testing.T) {
	o := newPostgres(t)
	for text, seqs := range map[string][]int64{
		"{}":                               nil,
		"{[1,1]}":                          {1},
		"{[1,3],[5,5],[7,8]}":              {1, 2, 3, 5, 7, 8},
		"{[-3,-2],[9223372036854775806,]}": {-3, -2, math.MaxInt64 - 1, math.MaxInt64},
		"{[-9223372036854775808,-9223372036854775808],[5,5],[5,6]}": {math.MinInt64, 5, 5, 6},
	} {
		require.Equal(t, text, multirange(seqs))
		for seq := int64(-5); seq < 10; seq++ {
			var in bool
			require.NoError(t, o.db.QueryRowContext(t.Context(), `SELECT $1::int8multirange @> $2::bigint`, text, seq).Scan(&in))
			require.Equal(t, slices.Contains(seqs, seq), in, "%d in %s", seq, text)
		}
	}
}
