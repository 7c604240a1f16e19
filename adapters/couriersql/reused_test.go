package couriersql

import (
	"errors"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/stretchr/testify/require"
)

// takeBack does to an outbox what a failover to a replica does that misses the last
// commits: no session is left, no row, and the numbers begin again.
func takeBack(t *testing.T, o *Outbox) {
	t.Helper()
	if o.dialect == SQLite {
		execute(t, o.db, `DELETE FROM courier_outbox`)
		execute(t, o.db, `DELETE FROM sqlite_sequence WHERE name = 'courier_outbox'`)
		return
	}
	if o.dialect == MySQL {
		for _, table := range []string{"courier_outbox", "courier_outbox_courier", "courier_outbox_courier_batches"} {
			execute(t, o.db, `TRUNCATE `+table)
		}
		return
	}
	execute(t, o.db, `SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a JOIN pg_locks l USING (pid)
		WHERE l.relation = 'courier_outbox'::regclass AND a.pid <> pg_backend_pid()`)
	execute(t, o.db, `TRUNCATE courier_outbox RESTART IDENTITY`)
}

// A number that is given twice is another row's: whatever a relay does about the row
// that it had, it leaves the other one alone, in every way to hold rows.
func TestANumberThatIsGivenTwice(t *testing.T) {
	boom := errors.New("boom")
	for what, settle := range map[string]func(t *testing.T, s *Source, old []Row) error{
		"mark":    func(t *testing.T, s *Source, old []Row) error { return s.Mark(t.Context(), old) },
		"fail":    func(t *testing.T, s *Source, old []Row) error { return s.Fail(t.Context(), failedWith(boom, old...)) },
		"release": func(t *testing.T, s *Source, old []Row) error { return s.Release(t.Context(), old, 0) },
		"renew": func(t *testing.T, s *Source, old []Row) error {
			err := s.Renew(t.Context(), old)
			if s.outbox.lease > 0 && s.outbox.dialect != MySQL { // in which the number of the lease is given twice too, to this relay
				require.ErrorIs(t, err, ErrLeaseLost)
			}
			return nil
		},
		"park": func(t *testing.T, s *Source, old []Row) error {
			for _, row := range old {
				require.Error(t, s.DLQ().Send(t.Context(), courier.DeadLetter[Row]{Record: row, Error: boom, FailedAt: start}))
			}
			letters, err := s.outbox.DLQ().List(t.Context(), "", 10)
			require.NoError(t, err)
			require.Empty(t, letters, "the rows are gone, and were never written as far as the database knows")
			return nil
		},
	} {
		for name, newOutbox := range ways() {
			for keep, opts := range keeping {
				if keep != "delete" && what != "mark" && what != "park" {
					continue
				}
				for _, again := range []bool{false, true} { // the other row is in this relay's hand as well
					t.Run(what+"/"+name+"/"+keep+"/"+map[bool]string{false: "pending", true: "in hand"}[again], func(t *testing.T) {
						var log logged
						o := newOutbox(t, append([]Option{log.option()}, opts...)...)
						s := o.Source()
						s.RenewEvery()
						write(t, o, named("old1", "old2")...)
						old := take(t, s, 10)
						require.Len(t, old, 2)
						takeBack(t, o)
						write(t, o, named("new1", "new2", "new3")...)
						require.Equal(t, 2, count(t, o.db, `SELECT count(*) FROM courier_outbox WHERE seq <= 2`), "the numbers are given twice")
						var rows []Row
						if again { // of them those that are not passed over as the numbers of rows in hand
							require.Eventually(t, func() bool {
								got, err := s.Fetch(t.Context(), 10)
								rows = append(rows, got...)
								return err == nil && len(rows) > 0
							}, 10*time.Second, time.Millisecond)
						}
						require.Eventually(t, func() bool { return settle(t, s, old) == nil }, 10*time.Second, time.Millisecond)
						require.Equal(t, []string{"new1", "new2", "new3"}, pendingOf(t, o))
						for _, id := range pendingOf(t, o) {
							require.Zero(t, failures(t, o, id))
						}
						if what == "mark" && o.dialect != MySQL { // in which a row is never known by its number alone
							require.Contains(t, log.String(), "rows were delivered whose numbers other messages have by now")
						}
						if again {
							require.NoError(t, s.Mark(t.Context(), rows))
							require.Equal(t, 3-len(rows), count(t, o.db, `SELECT count(*) FROM courier_outbox WHERE processed_at IS NULL`))
						}
					})
				}
			}
		}
	}
}

// A letter that is sent again, as its answer was lost, is known also where another
// message has the number of its row by then, which stays pending.
func TestALetterIsKnownWhoseNumberIsGivenTwice(t *testing.T) {
	inEachWay(t, func(t *testing.T, o *Outbox) {
		write(t, o, named("a")...)
		s := o.Source()
		rows := take(t, s, 10)
		require.NoError(t, s.DLQ().Send(t.Context(), letterFor(rows[0])))
		if isLocked(s) {
			require.NoError(t, s.Mark(t.Context(), rows))
		}
		execute(t, o.db, `DELETE FROM courier_outbox`)
		write(t, o, named("b")...)
		execute(t, o.db, `UPDATE courier_outbox SET seq = $1`, rows[0].Seq)
		require.NoError(t, s.DLQ().Send(t.Context(), letterFor(rows[0])))
		require.Equal(t, []string{"a.1"}, lettersOf(t, o))
		require.Equal(t, []string{"b"}, pendingOf(t, o))
	})
}

// A letter's number that is given twice is another letter's: whatever is done about the
// letter that was read before leaves the other one alone.
func TestALettersNumberThatIsGivenTwice(t *testing.T) {
	for what, settle := range map[string]func(t *testing.T, o *Outbox, old courier.DeadLetter[Row]){
		"delete": func(t *testing.T, o *Outbox, old courier.DeadLetter[Row]) {
			require.NoError(t, o.DLQ().Delete(t.Context(), old.ID))
		},
		"update": func(t *testing.T, o *Outbox, old courier.DeadLetter[Row]) {
			require.NoError(t, o.DLQ().Update(t.Context(), old))
		},
		"requeue": func(t *testing.T, o *Outbox, old courier.DeadLetter[Row]) {
			requeued, err := o.Requeue(t.Context(), old.ID)
			require.NoError(t, err)
			require.Empty(t, requeued)
		},
	} {
		t.Run(what, func(t *testing.T) {
			inEach(t, func(t *testing.T, newOutbox maker) {
				o := newOutbox(t)
				q := o.DLQ()
				require.NoError(t, q.Send(t.Context(), letter("old", errors.New("boom"))))
				old, err := q.Receive(t.Context(), 1)
				require.NoError(t, err)
				switch o.dialect {
				case SQLite:
					execute(t, o.db, `DELETE FROM courier_outbox_dlq`)
					execute(t, o.db, `DELETE FROM sqlite_sequence WHERE name = 'courier_outbox_dlq'`)
				case MySQL:
					execute(t, o.db, `TRUNCATE courier_outbox_dlq`)
				default:
					execute(t, o.db, `TRUNCATE courier_outbox_dlq RESTART IDENTITY`)
				}
				other := letter("new", errors.New("other"))
				other.FailedAt = start.Add(time.Microsecond)
				require.NoError(t, q.Send(t.Context(), other))
				before, err := q.Receive(t.Context(), 2)
				require.NoError(t, err)
				require.Len(t, before, 1)
				require.Equal(t, "1.1.", before[0].ID[:4], "the number is given twice")
				settle(t, o, old[0])
				after, err := q.Receive(t.Context(), 2)
				require.NoError(t, err)
				require.Equal(t, before, after)
				require.Empty(t, pendingOf(t, o))
			})
		})
	}
}
