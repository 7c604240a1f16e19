package couriersql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync/atomic"
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

func TestLongestRun(t *testing.T) {
	for _, test := range []struct{ seqs, run, others []int64 }{
		{nil, []int64{1, 0}, nil},
		{[]int64{5}, []int64{5, 5}, nil},
		{[]int64{5, 6, 7}, []int64{5, 7}, nil},
		{[]int64{5, 5, 6}, []int64{5, 6}, nil},
		{[]int64{1, 3, 4, 6}, []int64{3, 4}, []int64{1, 6}},
		{[]int64{1, 2, 4, 5, 6}, []int64{4, 6}, []int64{1, 2}},
		{[]int64{1, 2, 4, 5}, []int64{1, 2}, []int64{4, 5}},
		{[]int64{math.MinInt64, math.MaxInt64 - 1, math.MaxInt64}, []int64{math.MaxInt64 - 1, math.MaxInt64}, []int64{math.MinInt64}},
	} {
		var keys rowKeys
		for i, seq := range test.seqs {
			keys.keys = append(keys.keys, rowKey{seq, fmt.Sprint(i)})
		}
		first, last, others := keys.run()
		require.Equal(t, test.run, []int64{first, last}, test.seqs)
		require.ElementsMatch(t, test.others, others, test.seqs)
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
		var keys rowKeys
		for _, seq := range seqs {
			keys.keys = append(keys.keys, rowKey{seq: seq})
		}
		require.Equal(t, text, keys.multirange(1))
		if len(seqs) == 6 {
			require.Equal(t, "{[1,3],[7,8]}", keys.multirange(2))
			require.Equal(t, "{[1,3]}", keys.multirange(3))
			require.Equal(t, "{}", keys.multirange(4))
		}
		for seq := int64(-5); seq < 10; seq++ {
			var in bool
			require.NoError(t, o.db.QueryRowContext(t.Context(), `SELECT $1::int8multirange @> $2::bigint`, text, seq).Scan(&in))
			require.Equal(t, slices.Contains(seqs, seq), in, "%d in %s", seq, text)
		}
	}
}

// PostgreSQL reads the lists of a mark as they were meant, whatever characters an ID holds.
func TestPostgresLists(t *testing.T) {
	db := newPostgres(t).db
	for _, rows := range [][]Row{
		nil,
		{{Seq: math.MinInt64, claim: math.MaxInt64, ID: ""}},
		{{Seq: 1, ID: "NULL"}, {Seq: -2, claim: 3, ID: `"`}, {Seq: 3, ID: `\`}, {Seq: 4, ID: `\"`}, {Seq: 5, ID: `{a,b}`}, {Seq: 6, ID: " \n\t "}, {Seq: 7, ID: "é\u2028"}},
	} {
		var seqs, claims, ids string
		args := postgresClaims(rows)
		require.NoError(t, db.QueryRowContext(t.Context(), `SELECT to_json($1::bigint[]), to_json($2::bigint[]), to_json($3::text[])`, args...).Scan(&seqs, &claims, &ids))
		wantSeqs, wantClaims, wantIDs := []int64{}, []int64{}, []string{}
		for _, row := range rows {
			wantSeqs, wantClaims, wantIDs = append(wantSeqs, row.Seq), append(wantClaims, row.claim), append(wantIDs, row.ID)
		}
		for text, want := range map[string]any{seqs: wantSeqs, claims: wantClaims, ids: wantIDs} {
			said, err := json.Marshal(want)
			require.NoError(t, err)
			require.JSONEq(t, string(said), text)
		}
	}
}

// So does SQLite.
func TestSQLiteLists(t *testing.T) {
	db := newOutbox(t).db
	for _, id := range []string{"", "NULL", `"`, `\`, `\"`, "[1]", " \n\t ", "a<b>&c", "é\u2028", "\x7f"} {
		rows := []Row{{Seq: math.MinInt64, claim: 2, Attempts: 3, ID: id}, {Seq: 4, claim: 5, Attempts: 6, ID: "next"}}
		for name, list := range map[string][]any{"": sqliteKnownRows(rows), "2.": sqliteClaims(rows), "2.3.": sqliteAttempted(rows)} {
			var n int
			var first string
			require.NoError(t, db.QueryRowContext(t.Context(), `SELECT count(*) OVER (), value FROM json_each(?1) LIMIT 1`, list...).Scan(&n, &first))
			require.Equal(t, 2, n)
			require.Equal(t, "-9223372036854775808."+name+id, first)
		}
	}
}

// A fetch of a relay that is alone leaves out the rows that it has in hand, and no others:
// rows that are committed late or given back lie between, before and after them.
func TestFetchLeavesOutWhatIsInHand(t *testing.T) {
	t.Run("PostgreSQL", func(t *testing.T) {
		testLeavesOutWhatIsInHand(t, newPostgres(t, WithStrictOrder()), `INSERT INTO courier_outbox (seq, id, topic, payload)
			SELECT s::bigint, 'm' || s, 'orders', '' FROM json_array_elements_text($1::json) AS s`)
	})
	t.Run("SQLite", func(t *testing.T) {
		testLeavesOutWhatIsInHand(t, newOutbox(t), `INSERT INTO courier_outbox (seq, id, topic, key, payload, headers, trace, created_at)
			SELECT value, 'm' || value, 'orders', '', x'', '', '', 0 FROM json_each(?1)`)
	})
}

func testLeavesOutWhatIsInHand(t *testing.T, o *Outbox, insert string) {
	random := rand.New(rand.NewPCG(7, 8))
	s := o.Source()
	s.RenewEvery() // as a coordinator does when it begins
	add := func(seqs ...int64) {
		list, err := json.Marshal(seqs)
		require.NoError(t, err)
		execute(t, o.db, insert, string(list))
	}
	pending, held := map[int64]bool{}, map[int64]Row{}
	var first []int64
	for seq := int64(1); seq < 1500; seq++ {
		if random.IntN(150) > 0 { // the others come later
			first, pending[seq] = append(first, seq), true
		}
	}
	add(first...)
	for round := range 40 {
		limit := 1 + random.IntN(200)
		var want []int64
		for _, seq := range slices.Sorted(maps.Keys(pending)) {
			if _, in := held[seq]; !in && len(want) < limit {
				want = append(want, seq)
			}
		}
		var got []int64
		for _, row := range take(t, s, limit) {
			got, held[row.Seq] = append(got, row.Seq), row
		}
		require.Equal(t, want, got, "round %d", round)
		var marked, back []Row
		for _, seq := range slices.Sorted(maps.Keys(held)) {
			switch {
			case random.IntN(400) == 0: // here and there
				back = append(back, held[seq])
			case len(held) > 900 && len(marked) < 300: // from the head
				marked = append(marked, held[seq])
				delete(pending, seq)
			}
		}
		require.NoError(t, s.Release(t.Context(), back, 0))
		require.NoError(t, s.Mark(t.Context(), marked))
		for _, row := range append(back, marked...) {
			delete(held, row.Seq)
		}
		for seq := int64(1); seq < 1500; seq += 1 + random.Int64N(500) {
			if !slices.Contains(first, seq) {
				first, pending[seq] = append(first, seq), true
				add(seq)
			}
		}
	}
}

// However many rows are in hand, a fetch reads those that it returns.
func TestElectedReadsNothingThatIsInHand(t *testing.T) {
	o := newPostgres(t, WithStrictOrder())
	fill(t, o, 3000, false)
	e := newElected(o)
	e.begin()
	e.add(take(t, o.Source(), 2000))
	all, long, first, last := e.ranges()
	plan := explain(t, o.db, o.fetch.text, 100, first, last, math.MinInt64, DefaultFetchBytes, all, long)
	require.Contains(t, plan, "Index Scan using courier_outbox_pending")
	require.NotContains(t, plan, "Rows Removed by Filter")
	plan = explain(t, o.db, o.fetch.text, 100, first, last, math.MinInt64, DefaultFetchBytes, all, "{}")
	require.Contains(t, plan, "Rows Removed by Filter: 2000")
}

// breaking is a driver whose results break off behind the first row while it is told to.
type breaking struct {
	counting
	breaks *atomic.Bool
}

func (b breaking) Connect(context.Context) (driver.Conn, error) {
	conn, err := b.Driver().Open(b.dsn)
	return breakingConn{conn, b.breaks}, err
}

type breakingConn struct {
	driver.Conn
	breaks *atomic.Bool
}

func (c breakingConn) Prepare(query string) (driver.Stmt, error) {
	stmt, err := c.Conn.Prepare(query)
	return breakingStmt{stmt, c.breaks}, err
}

type breakingStmt struct {
	driver.Stmt
	breaks *atomic.Bool
}

func (s breakingStmt) Query(args []driver.Value) (driver.Rows, error) {
	rows, err := s.Stmt.Query(args) //nolint:staticcheck // the form without a context is the one to wrap
	return &breakingRows{Rows: rows, breaks: s.breaks.Load()}, err
}

type breakingRows struct {
	driver.Rows
	breaks bool
	read   int
}

func (r *breakingRows) Next(dest []driver.Value) error {
	if r.read++; r.breaks && r.read > 1 {
		return errors.New("disk I/O error")
	}
	return r.Rows.Next(dest)
}

// A fetch that breaks off has handed out nothing, and its rows are not in hand: nobody
// would ever settle them.
func TestAFetchThatBreaksOffHoldsNothing(t *testing.T) {
	breaks := new(atomic.Bool)
	db := sql.OpenDB(breaking{counting{dsn: SQLiteDSN(filepath.Join(t.TempDir(), "test.db"))}, breaks})
	defer db.Close()
	o := outboxIn(t, db)
	write(t, o, named("a", "b", "c")...)
	s := o.Source()
	s.RenewEvery()
	breaks.Store(true)
	rows, err := s.Fetch(t.Context(), 10)
	require.ErrorContains(t, err, "disk I/O error")
	require.Empty(t, rows)
	breaks.Store(false)
	require.Equal(t, []string{"a", "b", "c"}, idsOf(take(t, s, 10)))
}
