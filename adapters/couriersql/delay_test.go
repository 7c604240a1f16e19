package couriersql

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// delaying is an outbox whose time is moved on, where the server has its own by moving rows.
type delaying struct {
	*Outbox
	clock *ticking
}

func (d delaying) advance(t *testing.T, by time.Duration) {
	t.Helper()
	d.clock.advance(by)
	switch d.dialect {
	case MySQL:
		execute(t, d.db, `UPDATE courier_outbox_courier SET available_at = available_at - $1`, by.Microseconds())
	case Postgres:
		execute(t, d.db, `UPDATE courier_outbox SET available_at = available_at - $1 * interval '1 microsecond', requeued_at = requeued_at - $1 * interval '1 microsecond',
			created_at = created_at - $1 * interval '1 microsecond'`, by.Microseconds())
	}
}

// inEachHold runs a test in each way to hold rows.
func inEachHold(t *testing.T, test func(t *testing.T, o delaying)) {
	for name, newOutbox := range ways() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			clock := &ticking{fixed: fixed{time.Now().Truncate(time.Microsecond)}}
			test(t, delaying{newOutbox(t, WithClock(clock), WithBackoff(time.Second, time.Second)), clock})
		})
	}
}

func TestNotBefore(t *testing.T) {
	inEachHold(t, func(t *testing.T, o delaying) {
		s := o.Source()
		s.RenewEvery()
		later := o.clock.Now().Add(time.Hour)
		write(t, o.Outbox, Message{ID: "a", Topic: "t"}, Message{ID: "late", Topic: "t", NotBefore: later}, Message{ID: "b", Topic: "t"},
			Message{ID: "past", Topic: "t", NotBefore: o.clock.Now()}, Message{ID: "later", Topic: "t", NotBefore: later.Add(time.Hour), Payload: []byte("x")})
		require.Equal(t, []string{"a", "late", "b", "past", "later"}, contents(t, o.db, `SELECT id FROM courier_outbox ORDER BY seq`))
		rows := take(t, s, 10)
		require.Equal(t, []string{"a", "b", "past"}, idsOf(rows))
		require.NoError(t, s.Mark(t.Context(), rows))
		pending, err := o.Pending(t.Context())
		require.NoError(t, err)
		require.Equal(t, 2, pending)
		lag, err := s.Lag(t.Context())
		require.NoError(t, err)
		require.Equal(t, courier.Lag{}, lag, "none is due")
		status, err := o.Status(t.Context())
		require.NoError(t, err)
		require.Empty(t, status.Failing, "none has failed")

		o.advance(t, 59*time.Minute)
		require.Empty(t, take(t, s, 10))
		o.advance(t, 3*time.Minute)
		if o.dialect != Postgres { // whose rows are older now
			lag, err = s.Lag(t.Context())
			require.NoError(t, err)
			require.Equal(t, courier.Lag{Pending: 1, Oldest: 2 * time.Minute}, lag, "since it is due")
		}
		rows = take(t, s, 10)
		require.Equal(t, []string{"late"}, idsOf(rows))
		require.Zero(t, rows[0].Attempts)
		require.NoError(t, s.Renew(t.Context(), rows))
		require.NoError(t, s.Release(t.Context(), rows, 0))
		rows = take(t, s, 10)
		require.Equal(t, []string{"late"}, idsOf(rows), "what is given back is due")

		for attempts := 1; attempts < 3; attempts++ {
			require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom"), rows...)))
			require.Empty(t, take(t, s, 10))
			status, err = o.Status(t.Context())
			require.NoError(t, err)
			require.Equal(t, []Failing{{"late", attempts, "boom"}}, status.Failing)
			o.advance(t, 2*time.Second)
			rows = take(t, s, 10)
			require.Equal(t, []string{"late"}, idsOf(rows))
			require.Equal(t, attempts, rows[0].Attempts)
		}
		require.NoError(t, s.Mark(t.Context(), rows))

		o.advance(t, time.Hour)
		rows = take(t, s, 10)
		require.Equal(t, []string{"later"}, idsOf(rows))
		require.Equal(t, "x", string(rows[0].Payload))
		require.NoError(t, s.DLQ().Send(t.Context(), courier.DeadLetter[Row]{Record: rows[0], Error: errors.New("poison"), Reason: courier.ReasonPermanent}))
		require.NoError(t, s.Mark(t.Context(), rows))
		pending, err = o.Pending(t.Context())
		require.NoError(t, err)
		require.Zero(t, pending)
	})
}

// Where the order is that of writing, later messages of the key wait; one that is due does
// not overtake an earlier one of its key.
func TestNotBefore_AndTheOrderOfAKey(t *testing.T) {
	inEachHold(t, func(t *testing.T, o delaying) {
		s := o.Source()
		s.RenewEvery()
		write(t, o.Outbox, Message{ID: "a", Topic: "t", Key: "k"}, Message{ID: "late", Topic: "t", Key: "k", NotBefore: o.clock.Now().Add(time.Hour)},
			Message{ID: "b", Topic: "t", Key: "k"}, Message{ID: "c", Topic: "t", Key: "other"})
		strict := o.strict || o.dialect == SQLite && o.lease == 0
		rows := take(t, s, 10)
		if strict {
			require.Equal(t, []string{"a", "c"}, idsOf(rows))
		} else {
			require.Equal(t, []string{"a", "b", "c"}, idsOf(rows))
		}
		require.NoError(t, s.Release(t.Context(), rows, 0))

		o.advance(t, 2*time.Hour)
		if !strict {
			rows = take(t, s, 10)
			require.ElementsMatch(t, []string{"a", "late", "b", "c"}, idsOf(rows))
			return
		}
		var got []string
		for range 4 {
			rows = take(t, s, 1)
			require.Len(t, rows, 1)
			got = append(got, rows[0].ID)
			require.NoError(t, s.Mark(t.Context(), rows))
		}
		require.Equal(t, []string{"a", "late", "b", "c"}, got)
	})
}

// More messages than go into a statement, in PostgreSQL by a transaction of pgx.
func TestNotBefore_OfManyMessages(t *testing.T) {
	inEach(t, func(t *testing.T, newOutbox maker) {
		clock := &ticking{fixed: fixed{time.Now()}}
		o := newOutbox(t, WithClock(clock))
		var messages []Message
		for i := range 2500 {
			m := Message{ID: fmt.Sprint(i), Topic: "t"}
			if i%1250 >= 100 {
				m.NotBefore = clock.Now().Add(time.Duration(i) * time.Hour)
			}
			messages = append(messages, m)
		}
		writes := func() { write(t, o, messages...) }
		if o.dialect == Postgres {
			writes = func() {
				conn, err := o.db.Conn(t.Context())
				require.NoError(t, err)
				defer conn.Close()
				require.NoError(t, native(conn, func(c *pgx.Conn) error {
					return pgx.BeginFunc(t.Context(), c, func(tx pgx.Tx) error { return o.WritePgx(t.Context(), tx, messages...) })
				}))
			}
		}
		writes()
		require.Equal(t, 2500, count(t, o.db, `SELECT count(*) FROM courier_outbox`))
		if o.dialect == MySQL {
			require.Equal(t, 2300, count(t, o.db, `SELECT count(*) FROM courier_outbox_courier`))
		} else {
			require.Equal(t, 200, count(t, o.db, `SELECT count(*) FROM courier_outbox WHERE attempts = 0`))
		}
		ids := contents(t, o.db, `SELECT id FROM courier_outbox ORDER BY seq`)
		for i, id := range ids {
			require.Equal(t, fmt.Sprint(i), id)
		}
		require.Len(t, take(t, o.Source(), 1000), 200)

		tx, err := o.db.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		defer tx.Rollback()
		err = o.Write(t.Context(), tx, Message{ID: "new", Topic: "t", NotBefore: clock.Now().Add(time.Hour)}, Message{ID: "200", Topic: "t", NotBefore: clock.Now().Add(time.Hour)})
		require.ErrorIs(t, err, ErrDuplicateID)
		require.ErrorContains(t, err, `"200"`)
	})
}

// A fetch does not walk past rows that wait for their time.
func TestNotBefore_CostsNoFetch(t *testing.T) {
	o := newPostgres(t)
	execute(t, o.db, `INSERT INTO courier_outbox (id, topic, payload, key, available_at, attempts)
		SELECT gen_random_uuid(), 'orders', '', 'k' || i % 100, now() + interval '1 h', 1073741824 FROM generate_series(1, 20000) i`)
	fill(t, o, 10, false)
	for _, analyze := range []bool{false, true} {
		if analyze {
			execute(t, o.db, `ANALYZE courier_outbox`)
		}
		for _, plan := range []string{
			explain(t, o.db, o.sql(o.grammar.lock), 100, 0, DefaultFetchBytes),
			explain(t, o.db, o.sql(o.grammar.ordered), 100, 1, 0, 0, DefaultFetchBytes, "{}", "{}"),
			explain(t, o.db, o.sql(o.grammar.claim), 100, "me", 1, 0, DefaultFetchBytes, always.Microseconds()),
		} {
			require.Contains(t, plan, "Index Scan using courier_outbox_waiting")
			require.NotContains(t, plan, "Seq Scan")
			require.NotRegexp(t, `Rows Removed by Filter: [1-9]\d{2}`, plan)
			require.NotRegexp(t, `rows=\d{4}`, plan)
		}
	}
}
