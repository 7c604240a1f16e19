package couriersql

import (
	"database/sql"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A fetch begins at the first number as long as that is cheap, at the lowest that the
// last one found when it is not, and at the first again in time.
func TestHead(t *testing.T) {
	now := start
	h := new(head)
	fetch := func(took time.Duration, rows ...Row) int64 {
		from, moves := h.from(now)
		h.sees(rows, from, moves, now, took)
		return from
	}
	const first = math.MinInt64
	fetch(time.Hour, Row{Seq: 5})
	require.EqualValues(t, first, fetch(time.Hour, Row{Seq: 5}), "plain functions give nothing back")

	h.begin()
	require.EqualValues(t, first, fetch(headCheap, Row{Seq: 7}))
	require.EqualValues(t, first, fetch(time.Minute, Row{Seq: 7}))
	require.EqualValues(t, first, fetch(headCheap, Row{Seq: 7}), "one took long, as in an outage")
	require.EqualValues(t, first, fetch(time.Minute, Row{Seq: 7}))
	require.EqualValues(t, first, fetch(100*time.Millisecond, Row{Seq: 6, Attempts: 1}, Row{Seq: 8}, Row{Seq: 9}))
	require.EqualValues(t, 8, fetch(time.Minute), "nothing is there")
	require.EqualValues(t, 8, fetch(time.Minute, Row{Seq: 7, Attempts: 1}), "a failed row is found by its time")
	require.EqualValues(t, 8, fetch(time.Minute, Row{Seq: 20}))
	require.EqualValues(t, 20, fetch(time.Minute, Row{Seq: 30}))
	now = now.Add(headShare*100*time.Millisecond - 1)
	require.EqualValues(t, 30, fetch(time.Minute))
	now = now.Add(1)
	require.EqualValues(t, first, fetch(time.Minute, Row{Seq: 30}), "of the time, one part in 20")
	now = now.Add(headShare * 100 * time.Millisecond)
	require.EqualValues(t, first, fetch(time.Minute, Row{Seq: 30}))
	now = now.Add(headLate - 1)
	require.EqualValues(t, 30, fetch(0))
	now = now.Add(1)
	require.EqualValues(t, first, fetch(time.Minute), "and no later than that")
	now = now.Add(time.Minute)
	require.EqualValues(t, first, fetch(time.Minute, Row{Seq: 1}), "there was nothing, and so no lowest")
	now = now.Add(-time.Hour)
	require.EqualValues(t, first, fetch(time.Minute, Row{Seq: 1}), "the clock was set back")

	h.begin()
	fetch(time.Second, Row{Seq: 50})
	require.EqualValues(t, first, fetch(time.Second, Row{Seq: 50}))
	require.EqualValues(t, 50, fetch(0))
	h.back()
	require.EqualValues(t, first, fetch(time.Second, Row{Seq: 60}))
	from, moves := h.from(now)
	require.EqualValues(t, 60, from)
	h.back() // while the fetch is under way
	h.sees([]Row{{Seq: 70}}, from, moves, now, time.Second)
	require.EqualValues(t, first, fetch(0))
}

// The fetches of an elected relay begin at a number once two looks have shown that no
// pending row has a lower one and that nobody is left who could commit one.
func TestFloor(t *testing.T) {
	const first = math.MinInt64
	now := start
	f := newFloor()
	fetch := func(took time.Duration, rows ...Row) (from int64, look bool) {
		from = f.from(now)
		return from, f.sees(rows, from, now, took)
	}
	begins := func(want int64, wantLook bool, took time.Duration, rows ...Row) {
		t.Helper()
		from, look := fetch(took, rows...)
		require.Equal(t, want, from)
		require.Equal(t, wantLook, look)
	}
	look := func(lowest int64, before, after []string) {
		var p *int64
		if lowest > 0 {
			p = &lowest
		}
		f.looked(p, before, after, now, time.Millisecond)
		now = now.Add(headShare * time.Millisecond)
	}
	begins(first, false, floorCheap, Row{Seq: 5})
	begins(first, true, time.Second, Row{Seq: 6})
	look(6, nil, []string{"a", "b"})
	now = now.Add(-headShare * time.Millisecond) // after a first look, the second is due
	begins(first, true, time.Second, Row{Seq: 7})
	look(7, []string{"b", "c"}, []string{"d"})
	begins(first, true, time.Second, Row{Seq: 8})
	look(8, []string{"c", "d"}, []string{"c", "d"})
	begins(6, true, time.Second, Row{Seq: 9})
	look(4, []string{"e"}, []string{"f"})
	begins(4, true, time.Second)
	now = now.Add(-headShare * time.Millisecond)
	begins(4, false, time.Second)
	now = now.Add(headShare * time.Millisecond)
	look(0, nil, []string{"g"})
	begins(4, true, time.Second)
	look(0, nil, nil)
	begins(10, false, floorCheap)
	begins(10, true, time.Second)
	look(0, nil, nil)
	begins(10, true, time.Second, Row{Seq: 3, Attempts: 1})
	now = now.Add(headLate)
	begins(first, false, time.Hour)
	begins(10, true, time.Second)
	now = now.Add(-time.Hour)
	begins(first, false, time.Hour)
	now = now.Add(headLate)
	begins(first, true, time.Hour, Row{Seq: 2})
	begins(first, false, floorCheap)
	begins(first, true, time.Second)

	unknown := newFloor()
	unknown.looked(nil, nil, nil, now, 0)
	unknown.looked(nil, nil, nil, now, 0)
	require.EqualValues(t, first, unknown.from(now), "no number is known that was given")
}

// In strict order, a row comes before the later ones of its key however late it is
// committed, and though fetches begin at a number: beside rows that were delivered and
// are still there, they do.
func TestAFloorPassesOverNoRowThatIsCommittedLate(t *testing.T) {
	o := newPostgres(t, WithStrictOrder(), WithClock(&slow{fixed{start}}))
	s := o.Source()
	s.RenewEvery()
	floor := func() int64 { return s.holder.(*elected).floor.seq }
	relay := func(n int) (got []string) {
		for range n {
			rows := take(t, s, 1)
			require.NoError(t, s.Mark(t.Context(), rows))
			got = append(got, idsOf(rows)...)
		}
		return got
	}
	var ids []string
	for i := range 200 {
		ids = append(ids, fmt.Sprintf("x%d", i))
	}
	write(t, o, named(ids[:50]...)...)
	require.Equal(t, ids[:50], relay(50))
	require.Greater(t, floor(), int64(20), "fetches begin at the first number, and the test finds nothing")

	var open []*sql.Tx
	for _, id := range []string{"late1", "late2"} { // they have their numbers, and are not committed
		tx, err := o.db.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		require.NoError(t, o.Write(t.Context(), tx, Message{ID: id, Topic: "t", Key: id}))
		open = append(open, tx)
	}
	write(t, o, named(ids[50:150]...)...)
	require.Equal(t, ids[50:100], relay(50))
	require.LessOrEqual(t, floor(), int64(51))
	require.NoError(t, open[0].Commit())
	write(t, o, Message{ID: "after1", Topic: "t", Key: "late1"})
	require.Equal(t, append([]string{"late1"}, ids[100:120]...), relay(21))
	require.LessOrEqual(t, floor(), int64(52))
	require.NoError(t, open[1].Commit())
	write(t, o, Message{ID: "after2", Topic: "t", Key: "late2"})
	require.Equal(t, append([]string{"late2"}, ids[120:150]...), relay(31))
	require.Equal(t, []string{"after1", "after2"}, relay(4))
	require.Greater(t, floor(), int64(140))

	// Another leader knows nothing.
	s.holder.(*elected).resign("", nil)
	write(t, o, named("y")...)
	var rows []Row
	for len(rows) == 0 { // until the server has noticed that the connection is closed
		rows = take(t, s, 1)
	}
	require.Equal(t, []string{"y"}, idsOf(rows))
	require.NoError(t, s.Mark(t.Context(), rows))
	require.NoError(t, o.Close())
}

// A fetch walks past no rows that were delivered and that a snapshot keeps.
func TestAnElectedRelayWalksPastNoDeadRows(t *testing.T) {
	o := newPostgres(t, WithStrictOrder(), WithClock(&slow{fixed{start}}))
	s := o.Source()
	s.RenewEvery()
	snapshot, err := o.db.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	require.NoError(t, err)
	defer func() { require.NoError(t, snapshot.Rollback()) }()
	_, err = snapshot.ExecContext(t.Context(), `SELECT count(*) FROM courier_outbox`)
	require.NoError(t, err)
	fill(t, o, 20_000, false)
	for range 20 {
		require.NoError(t, s.Mark(t.Context(), take(t, s, 1000)))
	}
	for range 20 { // by this clock, a look takes some time
		require.Empty(t, take(t, s, 1000))
	}
	fill(t, o, 10, false)
	touched := func(from int64) (blocks int) {
		tx, err := o.db.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		defer func() { require.NoError(t, tx.Rollback()) }()
		_, err = tx.ExecContext(t.Context(), o.grammar.plan)
		require.NoError(t, err)
		var plan string
		require.NoError(t, tx.QueryRowContext(t.Context(), "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "+o.fetch.text, 1000, 1, 0, from, o.share(1000), "{}", "{}").Scan(&plan))
		for _, count := range regexp.MustCompile(`"Shared (?:Hit|Read) Blocks": (\d+)`).FindAllStringSubmatch(plan, 2) { // of the whole
			n, err := strconv.Atoi(count[1])
			require.NoError(t, err)
			blocks += n
		}
		return blocks
	}
	require.Greater(t, touched(math.MinInt64), 200, "the rows are gone, and the test finds nothing")
	require.Less(t, touched(s.holder.(*elected).floor.seq), 20)
	require.Len(t, take(t, s, 1000), 10)
	require.NoError(t, o.Close())
}

// slow is a clock by which each fetch takes a second.
type slow struct{ fixed }

func (c *slow) Now() time.Time { c.now = c.now.Add(time.Second / 2); return c.now }

// Rows below the number at which fetches begin are found in time: those that this
// relay gives back or cannot note as failed at the next fetch, others within seconds.
func TestRowsBelowTheHead(t *testing.T) {
	for name, newOutbox := range ways() {
		t.Run(name, func(t *testing.T) {
			o := newOutbox(t, WithClock(&slow{fixed{start}}))
			write(t, o, named("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")...)
			execute(t, o.db, `UPDATE courier_outbox SET seq = seq + 100`)
			s := o.Source()
			s.RenewEvery()
			mark := func(rows []Row) { require.NoError(t, s.Mark(t.Context(), rows)) }
			first, rows := take(t, s, 2), take(t, s, 1)
			require.Equal(t, []string{"a", "b", "c"}, append(idsOf(first), idsOf(rows)...))
			mark(rows)
			require.NoError(t, s.Release(t.Context(), first, 0))
			rows = take(t, s, 2)
			require.Equal(t, []string{"a", "b"}, idsOf(rows), "what was given back is there at once")
			mark(rows[:1])
			require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom"), rows[1:]...)))
			makeDue(t, o)
			rows = take(t, s, 2)
			require.Equal(t, []string{"b", "d"}, idsOf(rows), "and what failed when it is due")
			mark(rows)

			// Committed late, by a transaction that had its number long since.
			write(t, o, named("late")...)
			execute(t, o.db, `UPDATE courier_outbox SET seq = 50 WHERE id = 'late'`)
			var got []string
			for range 30 {
				rows := take(t, s, 1)
				mark(rows)
				got = append(got, idsOf(rows)...)
			}
			require.ElementsMatch(t, []string{"late", "e", "f", "g", "h", "i", "j"}, got)
			if o.dialect == Postgres && !o.strict {
				require.NotEqual(t, "late", got[0], "fetches begin at the first number, and the test finds nothing")
			}
		})
	}
}

// A row that this relay has lost, and that is free again, is found at the next fetch.
func TestARowThatIsLostBelowTheHead(t *testing.T) {
	for name, h := range holdsOfRows() {
		t.Run(name, func(t *testing.T) {
			o := h.newOutbox(t, append(h.opts, WithClock(&slow{fixed{start}}))...)
			write(t, o, named("a", "b", "c", "d")...)
			s := o.Source()
			s.RenewEvery()
			lost := take(t, s, 1)
			for range 2 { // from here on fetches begin at a later number
				require.NoError(t, s.Mark(t.Context(), take(t, s, 1)))
			}
			if o.lease > 0 {
				execute(t, o.db, `UPDATE courier_outbox SET claim = claim + 1, owner = '' WHERE id = 'a'`) // another relay gave it back
			}
			lose(t, s, lost)
			if o.lease > 0 {
				require.ErrorIs(t, s.Renew(t.Context(), lost), ErrLeaseLost)
			} else {
				require.Eventually(t, func() bool {
					return count(t, o.db, `SELECT count(*) FROM (SELECT FROM courier_outbox WHERE id = 'a' FOR UPDATE SKIP LOCKED) AS free`) == 1
				}, 10*time.Second, time.Millisecond)
			}
			require.Equal(t, []string{"a"}, idsOf(take(t, s, 1)))
		})
	}
}

// So is one whose failure could not be noted.
func TestARowBelowTheHeadWhoseFailureIsNotNoted(t *testing.T) {
	o := newPostgres(t, WithClock(&slow{fixed{start}}))
	write(t, o, named("a", "b", "c", "d")...)
	s := o.Source()
	s.RenewEvery()
	rows := take(t, s, 1)
	for range 2 { // from here on fetches begin at a later number
		require.NoError(t, s.Mark(t.Context(), take(t, s, 1)))
	}
	suppress(t, o, "courier_outbox", "UPDATE", "OLD.id = 'a'")
	require.ErrorIs(t, s.Fail(t.Context(), failedWith(errors.New("boom"), rows...)), ErrSuppressed)
	require.Equal(t, []string{"a"}, idsOf(take(t, s, 1)))
}

// A row that waited for an earlier one of its key comes before the later ones of that
// key, though others were fetched meanwhile.
func TestARowThatWaitedForItsKeyIsNotPassedOver(t *testing.T) {
	for name, newOutbox := range ways() {
		if name != "shared" && name != "elected" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			o := newOutbox(t, WithClock(&slow{fixed{start}}), WithBackoff(time.Hour, time.Hour))
			for _, id := range []string{"k1", "k2", "x", "y", "z", "k3"} {
				write(t, o, Message{ID: id, Topic: "t", Key: id[:1]})
			}
			s := o.Source()
			s.RenewEvery()
			rows := take(t, s, 1)
			require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom"), rows...)))
			for _, id := range []string{"x", "y"} {
				rows := take(t, s, 1)
				require.Equal(t, []string{id}, idsOf(rows))
				require.NoError(t, s.Mark(t.Context(), rows))
			}
			makeDue(t, o)
			require.Equal(t, []string{"k1", "k2", "z", "k3"}, idsOf(take(t, s, 10)))
		})
	}
}

// Whatever there is in the table, and whatever the limit: a row of a key comes after
// all earlier ones of it that are due, and not before one that waits for its retry;
// and while a row is due of which that is not to be said, there is one.
func TestTheOrderOfKeysByAnyLimit(t *testing.T) {
	for name, newOutbox := range map[string]maker{"sqlite": newOutbox, "postgres": newPostgres} {
		t.Run(name, func(t *testing.T) {
			var opts []Option
			rounds := uint64(400)
			if name == "postgres" {
				opts, rounds = []Option{WithStrictOrder()}, 400
			}
			o := newOutbox(t, opts...)
			s := o.Source()
			for seed := range rounds {
				random := rand.New(rand.NewPCG(seed, 0))
				execute(t, o.db, `DELETE FROM courier_outbox`)
				type message struct {
					id, key  string
					attempts int
					waits    bool
				}
				var all []message
				tx, err := o.db.BeginTx(t.Context(), nil)
				require.NoError(t, err)
				for i := range 1 + random.IntN(10) {
					m := message{id: fmt.Sprint(i), key: []string{"", "k", "k", "l"}[random.IntN(4)], attempts: min(random.IntN(4), 1)}
					at := start.Add(-time.Duration(random.IntN(4)) * time.Hour)
					if o.dialect == Postgres { // which asks its own clock
						at = time.Now().Add(-time.Duration(1+random.IntN(4)) * time.Hour)
					}
					if m.attempts > 0 && random.IntN(6) == 0 {
						m.waits, at = true, time.Now().Add(time.Hour)
					}
					require.NoError(t, o.Write(t.Context(), tx, Message{ID: m.id, Topic: "t", Key: m.key, Payload: make([]byte, random.IntN(10))}))
					_, err := tx.ExecContext(t.Context(), `UPDATE courier_outbox SET attempts = $1, available_at = $2 WHERE id = $3`, m.attempts, o.grammar.time(at.UnixMicro()), m.id)
					require.NoError(t, err)
					all = append(all, m)
				}
				require.NoError(t, tx.Commit())
				limit := 1 + random.IntN(4)
				o.fetchBytes = int64(1 + random.IntN(40))
				rows := take(t, s, limit)
				got := idsOf(rows)
				about := fmt.Sprintf("seed %d: of %+v up to %d and %d bytes: %v", seed, all, limit, o.fetchBytes, got)
				require.LessOrEqual(t, len(got), limit, about)
				require.True(t, slices.IsSortedFunc(rows, func(a, b Row) int { return int(a.Seq - b.Seq) }), about)
				free := 0 // rows that nothing keeps back
				for i, m := range all {
					kept := m.waits
					for _, earlier := range all[:i] {
						if earlier.key != m.key || m.key == "" {
							continue
						}
						kept = kept || earlier.attempts > 0
						if slices.Contains(got, m.id) {
							require.Contains(t, got, earlier.id, about)
						}
					}
					if !kept {
						free++
					}
				}
				if bytesOf(rows) < o.fetchBytes {
					require.GreaterOrEqual(t, len(got), min(free, limit), about)
				} else {
					require.Less(t, bytesOf(rows[:len(rows)-1]), o.fetchBytes, about)
				}
			}
		})
	}
}
