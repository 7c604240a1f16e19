package couriersql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/stretchr/testify/require"
)

// suppress has the database leave the rows of a table as they are, by a trigger, where a
// command (INSERT, UPDATE, DELETE) is to change those that the condition is for.
func suppress(t *testing.T, o *Outbox, table, command, condition string) {
	t.Helper()
	name := "suppress_" + strings.ToLower(command)
	if o.dialect == SQLite {
		execute(t, o.db, fmt.Sprintf(`CREATE TRIGGER %s BEFORE %s ON %s WHEN %s BEGIN SELECT raise(IGNORE); END`, name, command, table, condition))
		return
	}
	execute(t, o.db, `CREATE OR REPLACE FUNCTION suppress() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'`)
	execute(t, o.db, fmt.Sprintf(`CREATE TRIGGER %s BEFORE %s ON %s FOR EACH ROW WHEN (%s) EXECUTE FUNCTION suppress()`, name, command, table, condition))
}

func allow(t *testing.T, o *Outbox, table, command string) {
	t.Helper()
	text := "DROP TRIGGER suppress_" + strings.ToLower(command)
	if o.dialect == Postgres {
		text += " ON " + table
	}
	execute(t, o.db, text)
}

func requireSuppressed(t *testing.T, o *Outbox, err error, text string) {
	t.Helper()
	require.ErrorIs(t, err, ErrSuppressed)
	require.ErrorContains(t, err, text+"; look for "+o.grammar.suppressors+" on courier_outbox")
}

// A mark that the database leaves out is an error, for those rows and for as long as
// it does, in every way to hold rows; the others are marked.
func TestAMarkThatIsSuppressed(t *testing.T) {
	for name, newOutbox := range waysOfRows() {
		for keep, opts := range keeping {
			t.Run(name+"/"+keep, func(t *testing.T) {
				t.Parallel()
				o := newOutbox(t, opts...)
				command, condition := "DELETE", "OLD.id <> 'a'"
				if keep != "delete" {
					command, condition = "UPDATE", "OLD.id <> 'a' AND NEW.processed_at IS NOT NULL"
				}
				s := o.Source()
				s.RenewEvery()
				write(t, o, named("a", "b", "c")...)
				suppress(t, o, "courier_outbox", command, condition)
				rows := take(t, s, 3)
				for range 2 {
					requireSuppressed(t, o, s.Mark(t.Context(), rows), ": 2 of 3")
				}
				require.Equal(t, 2, count(t, o.db, `SELECT count(*) FROM courier_outbox WHERE processed_at IS NULL`))
				allow(t, o, "courier_outbox", command)
				require.NoError(t, s.Mark(t.Context(), rows))
				require.NoError(t, s.Mark(t.Context(), rows), "a row that is gone is no fault")
				require.Zero(t, count(t, o.db, `SELECT count(*) FROM courier_outbox WHERE processed_at IS NULL`))
			})
		}
	}
}

// The same of a rule, which leaves out the whole statement.
func TestAMarkThatARuleSuppresses(t *testing.T) {
	for name, opts := range postgresHolds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newPostgres(t, opts...)
			s := o.Source()
			s.RenewEvery()
			write(t, o, named("a", "b")...)
			execute(t, o.db, `CREATE RULE audit AS ON DELETE TO courier_outbox DO INSTEAD NOTHING`)
			rows := take(t, s, 2)
			requireSuppressed(t, o, s.Mark(t.Context(), rows), ": 2 of 2")
			execute(t, o.db, `DROP RULE audit ON courier_outbox`)
			// What a connection has prepared under the rule stays as it is.
			require.Eventually(t, func() bool { return s.Mark(t.Context(), rows) == nil }, 10*time.Second, time.Millisecond)
			require.Zero(t, count(t, o.db, `SELECT count(*) FROM courier_outbox`))
		})
	}
}

// A failure that the database does not note is an error; those of the others are noted,
// and the rows come back.
func TestAFailureThatIsSuppressed(t *testing.T) {
	for name, newOutbox := range waysOfRows() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOutbox(t)
			s := o.Source()
			s.RenewEvery()
			write(t, o, named("a", "b", "c")...)
			if o.lease == 0 {
				suppress(t, o, "courier_outbox", "UPDATE", "OLD.id <> 'a'")
			}
			rows := take(t, s, 3)
			if o.lease > 0 { // which they have by an UPDATE
				suppress(t, o, "courier_outbox", "UPDATE", "OLD.id <> 'a'")
			}
			requireSuppressed(t, o, s.Fail(t.Context(), failedWith(errors.New("boom"), rows...)), ": 2 of 3")
			require.Equal(t, 1, count(t, o.db, `SELECT count(*) FROM courier_outbox WHERE attempts = 1`))
			allow(t, o, "courier_outbox", "UPDATE")
			makeDue(t, o)
			if o.lease > 0 {
				execute(t, o.db, `UPDATE courier_outbox SET available_at = created_at`) // the lease ends
			}
			require.Len(t, take(t, s, 3), 3)
			require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom"), rows[0])), "of a row that came back since")
		})
	}
}

// One of a row that a relay with a lease has claimed meanwhile is passed over, as
// documented: the row is in other hands, and no fault of the database.
func TestAFailureOfARowThatIsLeasedByNow(t *testing.T) {
	for name, newOutbox := range waysOfRows() {
		if strings.Contains(name, "leased") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			o := newOutbox(t)
			write(t, o, named("a")...)
			s, other := o.Source(), New(o.db, o.dialect, WithLease(time.Minute), WithClock(&fixed{start})).Source()
			rows := take(t, s, 1)
			if isLocked(s) {
				lose(t, s, rows)
			}
			require.Eventually(t, func() bool { return len(take(t, other, 1)) == 1 }, 10*time.Second, time.Millisecond)
			require.NoError(t, s.Fail(t.Context(), failedWith(errors.New("boom"), rows...)))
			require.Zero(t, count(t, o.db, `SELECT attempts FROM courier_outbox`))
		})
	}
}

// So it is where other rows of the batch are still in hand.
func TestAFailureThatIsSuppressedBesideOthers(t *testing.T) {
	for name, newOutbox := range waysOfRows() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOutbox(t)
			s := o.Source()
			s.RenewEvery()
			write(t, o, named("a", "b", "c")...)
			rows := take(t, s, 3)
			suppress(t, o, "courier_outbox", "UPDATE", "OLD.id = 'b' AND NEW.attempts > 0")
			requireSuppressed(t, o, s.Fail(t.Context(), failedWith(errors.New("boom"), rows[:2]...)), ": 1 of 2")
			require.NoError(t, s.Mark(t.Context(), rows[2:]))
			require.Equal(t, []string{"a", "b"}, pendingOf(t, o))
			require.Equal(t, 1, count(t, o.db, `SELECT attempts FROM courier_outbox WHERE id = 'a'`))
		})
	}
}

// A letter that the database does not write leaves its row pending, and one whose row it
// leaves is not written; Send says so.
func TestALetterThatIsSuppressed(t *testing.T) {
	for name, newOutbox := range waysOfRows() {
		for _, at := range []struct{ table, command, row string }{
			{"courier_outbox", "DELETE", "OLD"}, {"courier_outbox_dlq", "INSERT", "NEW"},
		} {
			t.Run(name+"/"+at.command, func(t *testing.T) {
				t.Parallel()
				o := newOutbox(t)
				s := o.Source()
				s.RenewEvery()
				write(t, o, named("a")...)
				suppress(t, o, at.table, at.command, at.row+".id = 'a'")
				rows := take(t, s, 1)
				l := letter("a", errors.New("boom"))
				l.Record = rows[0]
				requireSuppressed(t, o, s.DLQ().Send(t.Context(), l), ": 1 of 1")
				require.Equal(t, 1, count(t, o.db, `SELECT count(*) FROM courier_outbox`))
				require.NoError(t, s.Release(t.Context(), rows, 0))
				allow(t, o, at.table, at.command)
				rows = take(t, s, 1)
				l.Record = rows[0]
				require.NoError(t, s.DLQ().Send(t.Context(), l))
				require.NoError(t, s.Mark(t.Context(), rows))
				require.Zero(t, count(t, o.db, `SELECT count(*) FROM courier_outbox`))
				require.Equal(t, 1, count(t, o.db, `SELECT count(*) FROM courier_outbox_dlq`))
			})
		}
	}
}

// What else is done about letters, and messages, is done or is an error.
func TestWhatElseIsSuppressed(t *testing.T) {
	for what, c := range map[string]struct {
		table, command, row string
		do                  func(ctx context.Context, o *Outbox, letter courier.DeadLetter[Row]) error
		text                string
	}{
		"write": {"courier_outbox", "INSERT", "NEW", func(ctx context.Context, o *Outbox, _ courier.DeadLetter[Row]) error {
			tx, err := o.db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			defer func() { _ = tx.Rollback() }() // does nothing after Commit
			if err := o.Write(ctx, tx, named("x", "a", "y")...); err != nil {
				return err
			}
			return tx.Commit()
		}, "writing 3 messages"},
		"send": {"courier_outbox_dlq", "UPDATE", "OLD", func(ctx context.Context, o *Outbox, l courier.DeadLetter[Row]) error {
			return o.DLQ().Send(ctx, l)
		}, "parking"},
		"update": {"courier_outbox_dlq", "UPDATE", "OLD", func(ctx context.Context, o *Outbox, l courier.DeadLetter[Row]) error {
			return o.DLQ().Update(ctx, l)
		}, "updating"},
		"delete": {"courier_outbox_dlq", "DELETE", "OLD", func(ctx context.Context, o *Outbox, l courier.DeadLetter[Row]) error {
			return o.DLQ().Delete(ctx, l.ID)
		}, "deleting"},
		"requeue": {"courier_outbox_dlq", "DELETE", "OLD", func(ctx context.Context, o *Outbox, l courier.DeadLetter[Row]) error {
			_, err := o.Requeue(ctx, l.ID)
			return err
		}, "putting"},
		"requeue, no row": {"courier_outbox", "INSERT", "NEW", func(ctx context.Context, o *Outbox, l courier.DeadLetter[Row]) error {
			_, err := o.Requeue(ctx, l.ID)
			return err
		}, "putting"},
	} {
		t.Run(what, func(t *testing.T) {
			inEachOfRows(t, func(t *testing.T, newOutbox maker) {
				o := newOutbox(t)
				require.NoError(t, o.DLQ().Send(t.Context(), letter("a", errors.New("boom"))))
				letters, err := o.DLQ().List(t.Context(), "", 1)
				require.NoError(t, err)
				suppress(t, o, c.table, c.command, c.row+".id = 'a'")
				err = c.do(t.Context(), o, letters[0])
				require.ErrorIs(t, err, ErrSuppressed)
				require.ErrorContains(t, err, "couriersql: "+c.text)
				require.Zero(t, count(t, o.db, `SELECT count(*) FROM courier_outbox`))
				same, err := o.DLQ().List(t.Context(), "", 10)
				require.NoError(t, err)
				require.Equal(t, letters, same)
				allow(t, o, c.table, c.command)
				require.NoError(t, c.do(t.Context(), o, letters[0]))
			})
		})
	}
	t.Run("a letter of its key that was there before", func(t *testing.T) {
		inEachOfRows(t, func(t *testing.T, newOutbox maker) {
			o := newOutbox(t)
			l := letter("a", errors.New("boom"))
			l.Branch = "search\xff" // which no database stores as it is
			require.NoError(t, o.DLQ().Send(t.Context(), l))
			l.Reason = courier.ReasonKeyParked
			require.NoError(t, o.DLQ().Send(t.Context(), l))
			suppress(t, o, "courier_outbox_dlq", "INSERT", "NEW.id = 'a'")
			l.Branch = "mail"
			require.ErrorIs(t, o.DLQ().Send(t.Context(), l), ErrSuppressed, "the letter of another branch is no better one")
		})
	})
	t.Run("one letter of several", func(t *testing.T) {
		inEachOfRows(t, func(t *testing.T, newOutbox maker) {
			o := newOutbox(t)
			ids := []string{idAt("1.1"), idAt("2.1"), idAt("9.9")}
			for _, id := range []string{"a", "b"} {
				require.NoError(t, o.DLQ().Send(t.Context(), letter(id, errors.New("boom"))))
			}
			suppress(t, o, "courier_outbox_dlq", "DELETE", "OLD.id = 'a'")
			err := o.DLQ().Delete(t.Context(), ids...)
			require.ErrorIs(t, err, ErrSuppressed)
			require.ErrorContains(t, err, ": 1 of 3; look for "+o.grammar.suppressors+" on courier_outbox_dlq")
			require.Equal(t, []string{"a.1"}, lettersOf(t, o))
			allow(t, o, "courier_outbox_dlq", "DELETE")
			require.NoError(t, o.DLQ().Delete(t.Context(), ids...))
			require.Empty(t, lettersOf(t, o))
		})
	})
}

// A claim that the database leaves out is an error of the fetch, and none that is merely
// late or in other hands.
func TestAClaimThatIsSuppressed(t *testing.T) {
	for name, h := range holdsOfRows() {
		if len(h.opts) == 0 {
			continue
		}
		t.Run(name, func(t *testing.T) {
			clock := &fixed{start}
			o := h.newOutbox(t, append(h.opts, WithClock(clock))...)
			s, other := o.Source(), o.Source()
			_, err := s.Fetch(t.Context(), 10) // the first look
			require.NoError(t, err)
			write(t, o, named("a", "b")...)
			clock.now = clock.now.Add(hiddenEvery)
			require.Len(t, take(t, other, 1), 1)
			suppress(t, o, "courier_outbox", "UPDATE", "OLD.id = 'b'")
			for range 2 {
				_, err = s.Fetch(t.Context(), 10)
				requireSuppressed(t, o, err, "row 2 is due, and cannot be claimed")
			}
			allow(t, o, "courier_outbox", "UPDATE")
			require.Len(t, take(t, s, 10), 1)
			require.Empty(t, take(t, s, 10), "both are in hand")
			require.Empty(t, take(t, s, 10))
		})
	}
}

// broken is a database whose answers break off before their first row.
type broken struct{}

func (broken) Connect(context.Context) (driver.Conn, error) { return broken{}, nil }
func (broken) Driver() driver.Driver                        { return nil }
func (broken) Prepare(string) (driver.Stmt, error)          { return nil, driver.ErrSkip }
func (broken) Begin() (driver.Tx, error)                    { return nil, driver.ErrSkip }
func (broken) Columns() []string                            { return []string{"count"} }
func (broken) Next([]driver.Value) error                    { return io.ErrUnexpectedEOF }
func (broken) Close() error                                 { return nil }
func (broken) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	return broken{}, nil
}

// A recount that breaks off is an error, and does not say that nothing is left.
func TestARecountThatBreaksOff(t *testing.T) {
	db := sql.OpenDB(broken{})
	o := New(db, SQLite)
	require.ErrorIs(t, o.recountAlone(t.Context(), 1, o.grammar.left, ""), io.ErrUnexpectedEOF)
	require.NoError(t, db.Close())
}

// The look for a row that is due hands out what it claims, and takes no row that came
// meanwhile for one that cannot be claimed.
func TestALookForWhatIsDue(t *testing.T) {
	for name, h := range holdsOfRows() {
		if len(h.opts) == 0 {
			continue
		}
		t.Run(name, func(t *testing.T) {
			o := h.newOutbox(t, h.opts...)
			s := o.Source()
			look := func() []string {
				t.Helper()
				rows, err := s.fetchHidden(t.Context(), 10, math.MinInt64)
				require.NoError(t, err)
				return idsOf(rows)
			}
			require.Empty(t, look())
			write(t, o, named("a")...)
			require.Equal(t, []string{"a"}, look())
			require.Empty(t, look(), "it is in hand")

			write(t, o, named("b")...)
			const change = `DELETE FROM courier_outbox WHERE id = 'b'; INSERT INTO courier_outbox (id, topic, key, payload, headers, trace, created_at)
				SELECT 'c', topic, key, payload, headers, trace, created_at FROM courier_outbox WHERE id = 'a';`
			if o.dialect == SQLite {
				execute(t, o.db, `CREATE TRIGGER other BEFORE UPDATE ON courier_outbox WHEN OLD.id = 'b' BEGIN `+change+` SELECT raise(IGNORE); END`)
			} else {
				execute(t, o.db, `CREATE FUNCTION other() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN `+change+` RETURN NULL; END $$;
					CREATE TRIGGER other BEFORE UPDATE ON courier_outbox FOR EACH ROW WHEN (OLD.id = 'b') EXECUTE FUNCTION other()`)
			}
			require.Empty(t, look(), "b is gone, and c was not there")
			require.Equal(t, []string{"c"}, look())
		})
	}
}

// A relay whose role lacks a policy of row-level security says so, from its first fetch
// on, and later when one is dropped; with all of them, or without the need, it is content.
func TestPolicies(t *testing.T) {
	for name, opts := range postgresHolds {
		for keep, more := range keeping {
			t.Run(name+"/"+keep, func(t *testing.T) {
				t.Parallel()
				dsn := pgtest.Schema(t)
				owner := outboxIn(t, openPostgres(t, dsn))
				as := roles(t, dsn, "relay")["relay"]
				execute(t, owner.db, fmt.Sprintf(`GRANT ALL ON ALL TABLES IN SCHEMA %[1]s TO %[1]s_relay`, schemaNamed(t, owner.db)))
				clock := &fixed{start}
				s := New(as, Postgres, append(append(opts, more...), WithClock(clock))...).Source()
				t.Cleanup(func() { require.NoError(t, s.outbox.Close()) })
				without := func(commands string) {
					t.Helper()
					_, err := s.Fetch(t.Context(), 10)
					require.ErrorIs(t, err, ErrSuppressed)
					require.ErrorContains(t, err, "this role has no policy for "+commands+":")
				}
				write(t, owner, named("a")...)
				execute(t, owner.db, `ALTER TABLE courier_outbox ENABLE ROW LEVEL SECURITY`)
				all := "SELECT, UPDATE, DELETE"
				if keep != "delete" {
					all = "SELECT, UPDATE"
				}
				without(all)
				execute(t, owner.db, `CREATE POLICY reading ON courier_outbox FOR SELECT USING (true)`)
				execute(t, owner.db, `CREATE POLICY others ON courier_outbox TO CURRENT_USER USING (true)`)
				without(strings.TrimPrefix(all, "SELECT, "))
				execute(t, owner.db, `CREATE POLICY deleting ON courier_outbox FOR DELETE USING (true)`)
				without("UPDATE")
				execute(t, owner.db, `CREATE POLICY updating ON courier_outbox FOR UPDATE USING (true)`)
				rows := take(t, s, 10)
				require.Len(t, rows, 1)
				require.NoError(t, s.Mark(t.Context(), rows))

				execute(t, owner.db, `DROP POLICY updating ON courier_outbox`)
				require.Empty(t, take(t, s, 10))
				clock.now = clock.now.Add(hiddenEvery)
				without("UPDATE")
				execute(t, owner.db, `CREATE POLICY every ON courier_outbox USING (true)`)
				require.Empty(t, take(t, s, 10))

				execute(t, owner.db, `DROP POLICY every ON courier_outbox`)
				require.Empty(t, take(t, s, 10), "it has looked just now")
				clock.now = clock.now.Add(-time.Hour) // it was set back, and the next look is not an hour away
				without("UPDATE")
			})
		}
	}
}

// A relay whose marks are suppressed delivers each row once, and is not ready.
func TestARelayWhoseMarksAreSuppressed(t *testing.T) {
	for name, newOutbox := range waysOfRows() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOutbox(t)
			write(t, o, named("a", "b")...)
			suppress(t, o, "courier_outbox", "DELETE", "OLD.id = 'a'")
			delivered := make(chan string, 1000)
			c := courier.NewPollingCoordinator(o.Source(), courier.ProcessFunc(func(_ context.Context, row Row) error {
				delivered <- row.ID
				return nil
			}), courier.WithInterval(time.Millisecond))
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- c.Start(ctx) }()
			require.Eventually(t, func() bool {
				return c.Stats().MarkFailures >= 3 && errors.Is(c.Ready(), ErrSuppressed)
			}, 30*time.Second, time.Millisecond)
			require.Len(t, delivered, 2)
			allow(t, o, "courier_outbox", "DELETE")
			require.Eventually(t, func() bool {
				return count(t, o.db, `SELECT count(*) FROM courier_outbox`) == 0
			}, 30*time.Second, time.Millisecond)
			cancel()
			require.NoError(t, <-ended)
			require.Len(t, delivered, 2)
		})
	}
}
