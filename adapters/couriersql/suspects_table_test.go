package couriersql

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/stretchr/testify/require"
)

// suspecting are the databases in which crashes are counted.
var suspecting = map[Dialect]string{SQLite: "sqlite", Postgres: "postgres"}

// relaySource is a source whose coordinator runs.
func (r *relayed) relaySource() *TableSource[happening] {
	s := r.table().Source()
	s.RenewEvery()
	return s
}

func (r *relayed) crashes() int {
	r.t.Helper()
	return count(r.t, r.db, `SELECT coalesce(max(crashes), 0) FROM `+r.state())
}

// outlive is outlive for a table.
func (r *relayed) outlive(kills ...string) (delivered []string, sizes []int) {
	r.t.Helper()
	for range 1000 {
		s, died := r.relaySource(), false
		for range 1000 {
			rows, names := fetchNames(r.t, s, 100)
			if len(rows) == 0 {
				break
			}
			if slices.ContainsFunc(names, func(name string) bool { return slices.Contains(kills, name) }) {
				died, sizes = true, append(sizes, len(rows))
				break
			}
			require.NoError(r.t, s.Mark(r.t.Context(), rows))
			delivered = append(delivered, names...)
		}
		if !died {
			return delivered, sizes
		}
		r.advance(DefaultTableLease)
	}
	require.Fail(r.t, "there is no end of it")
	return nil, nil
}

func TestARowThatKillsItsProcess(t *testing.T) {
	eachTableOf(t, suspecting, 250, func(t *testing.T, r *relayed) {
		// The expression of several columns writes a first letter large, which a number has not.
		queue := NewDLQ(r.db, r.dialect, DLQConfig[happening]{Table: "dead", Identity: func(e happening) string { return e.Name }})
		require.NoError(t, queue.Migrate(t.Context()))
		r.config.DLQ = queue
		delivered, sizes := r.outlive("57")
		require.Len(t, delivered, 249)
		require.NotContains(t, delivered, "57")
		require.Equal(t, []int{100, 10, 1, 1, 1}, sizes)
		if r.config.Strict {
			var inOrder []string
			for i := range 250 {
				if i+1 != 57 {
					inOrder = append(inOrder, fmt.Sprint(i+1))
				}
			}
			require.Equal(t, inOrder, delivered)
		}
		letters, err := queue.Receive(t.Context(), 10)
		require.NoError(t, err)
		require.Len(t, letters, 1)
		require.Equal(t, "57", letters[0].Record.Name)
		require.Equal(t, courier.ReasonCrashed, letters[0].Reason)
		require.Equal(t, DefaultMaxCrashes, letters[0].Attempts)
		require.Contains(t, r.log.String(), "a record is parked, as each relay that had it in hand, alone, died")
		pending, err := r.table().Pending(t.Context())
		require.NoError(t, err)
		require.Zero(t, pending)
		require.Zero(t, r.count(r.state()), "nothing is left beside")
	})
}

// Without a queue it is held back for good, and the log says so once.
func TestARowThatIsHeldBack(t *testing.T) {
	eachTableOf(t, suspecting, 30, func(t *testing.T, r *relayed) {
		r.config.MaxCrashes = 1
		delivered, _ := r.outlive("7")
		require.Len(t, delivered, 29)
		require.Equal(t, aloneFrom+1, r.crashes())
		require.Contains(t, r.log.String(), "rows are held back, as each relay that had one of them in hand, alone, died")
		s := r.relaySource()
		for range 3 {
			s.apart.looked = time.Time{}
			_, names := fetchNames(t, s, 100)
			require.Empty(t, names)
		}
		pending, err := r.table().Pending(t.Context())
		require.NoError(t, err)
		require.Equal(t, 1, pending)
		execute(t, r.db, `DELETE FROM `+r.state())
		_, names := fetchNames(t, s, 100)
		require.Equal(t, []string{"7"}, names)
	})
}

// A record that cannot be parked holds up no other, and is parked later.
func TestARowThatCannotBeParked(t *testing.T) {
	eachTableOf(t, suspecting, 30, func(t *testing.T, r *relayed) {
		r.config.MaxCrashes = 1
		queue := NewDLQ(r.db, r.dialect, DLQConfig[happening]{Table: "dead"})
		r.config.DLQ = queue // which has no table yet
		delivered, _ := r.outlive("7", "8")
		require.Len(t, delivered, 28)
		require.Contains(t, r.log.String(), "could not be parked")
		require.Zero(t, r.count(r.state()+"_batches"), "a lease is left")
		require.NoError(t, queue.Migrate(t.Context()))
		_, names := fetchNames(t, r.relaySource(), 100)
		require.Empty(t, names)
		n, err := queue.Count(t.Context())
		require.NoError(t, err)
		require.Equal(t, 2, n)
	})
}

func TestWhatClearsCrashesOfATable(t *testing.T) {
	eachTableOf(t, suspecting, 6, func(t *testing.T, r *relayed) {
		s := r.relaySource()
		rows, _ := fetchNames(t, s, 6)
		require.NoError(t, s.Fail(t.Context(), failing(errors.New("boom"), rows[5])))
		r.advance(DefaultTableLease)
		fetchNames(t, s, 6) // its own leases are no crash
		require.Zero(t, r.crashes())
		r.advance(DefaultTableLease)
		s = r.relaySource()
		for _, settle := range []func(rows []happening) error{
			func(rows []happening) error { return s.Mark(t.Context(), rows) },
			func(rows []happening) error { return s.Fail(t.Context(), failing(errors.New("boom"), rows...)) },
			func(rows []happening) error { return s.Release(t.Context(), rows, 0) },
		} {
			before := count(t, r.db, `SELECT count(*) FROM `+r.state()+` WHERE crashes > 0`)
			s.apart.others = false
			rows, _ := fetchNames(t, s, 6)
			if before == 0 { // they were six
				before = 6
			}
			require.Len(t, rows, 1, "alone")
			require.Equal(t, 1, count(t, r.db, `SELECT count(*) FROM `+r.state()+`_batches WHERE alone`+map[Dialect]string{SQLite: " = 1"}[r.dialect]))
			require.NoError(t, settle(rows))
			require.Equal(t, before-1, count(t, r.db, `SELECT count(*) FROM `+r.state()+` WHERE crashes > 0`))
		}
		require.Zero(t, count(t, r.db, `SELECT count(*) FROM `+r.state()+` WHERE crashes = 0 AND attempts = 0`), "nothing is left beside of a row that was released")
	})
}

func TestAnOutageIsNoCrashOfATable(t *testing.T) {
	eachTableOf(t, suspecting, 10, func(t *testing.T, r *relayed) {
		s, other := r.relaySource(), r.relaySource()
		for range 3 {
			_, names := fetchNames(t, s, 10)
			require.Len(t, names, 10)
			r.advance(DefaultTableLease)
		}
		execute(t, r.db, `ALTER TABLE `+r.state()+`_batches RENAME TO away`)
		_, err := other.Fetch(t.Context(), 10)
		require.Error(t, err)
		execute(t, r.db, `ALTER TABLE away RENAME TO `+r.state()+`_batches`)
		_, names := fetchNames(t, other, 10)
		require.Len(t, names, 10, "the other relay did not reach the database either")
		require.Zero(t, r.crashes())
		other.apart.reached = time.Now().Add(-2 * DefaultTableLease)
		r.advance(DefaultTableLease)
		_, names = fetchNames(t, r.relaySource(), 10)
		require.Len(t, names, 1, "a crash, to one that never met the database away")
		r.advance(DefaultTableLease)
		s.apart.reached = time.Now().Add(-2 * DefaultTableLease)
		clear(s.inHand)
		clear(s.left)
		fetchNames(t, s, 10)
		require.Equal(t, aloneFrom+1, r.crashes())
	})
}

func TestCrashesOfATableAreNotCounted(t *testing.T) {
	eachTableOf(t, suspecting, 10, func(t *testing.T, r *relayed) {
		r.config.MaxCrashes = -1
		for range 3 {
			_, names := fetchNames(t, r.relaySource(), 10)
			require.Len(t, names, 10)
			r.advance(DefaultTableLease)
		}
		require.Zero(t, r.crashes())
	})
	db := open(t, filepath.Join(t.TempDir(), "test.db"))
	config := ownTables(SQLite)["updates"].config
	wrong := TableConfig[Row]{Table: "t", Key: []string{"id"}, KeyOf: func(Row) []any { return nil }, Columns: []string{"id"}, Pending: "true",
		Scan: func(func(...any) error) (Row, error) { return Row{}, nil }, DLQ: New(db, SQLite).Source().DLQ()}
	require.ErrorContains(t, NewTable(db, SQLite, wrong).Source().Validate(), "TableConfig.DLQ marks what it is sent")
	require.NoError(t, NewTable(db, SQLite, config).Source().Validate())
}

// The rows of the key of a suspect wait for it, in order.
func TestSuspectsKeepTheOrderOfAKey(t *testing.T) {
	for dialect, of := range suspecting {
		for _, strict := range []bool{true, false} {
			t.Run(fmt.Sprint(of, " strict ", strict), func(t *testing.T) {
				t.Parallel()
				r := newRelayed(t, dialect, ownTables(dialect)["strict"], 0)
				r.config.Strict, r.config.MaxCrashes = strict, 1
				r.add(t, r.db, 1, "a", "b", "a", "c")
				fetchNames(t, r.relaySource(), 3)
				r.advance(DefaultTableLease)
				r.add(t, r.db, 5, "b", "d")
				s := r.relaySource()
				var order []int64
				for range 6 {
					rows, _ := fetchNames(t, s, 10)
					for _, row := range rows {
						order = append(order, row.ID)
					}
					if len(rows) > 0 && rows[0].ID == 2 { // it kills
						r.advance(DefaultTableLease)
						s = r.relaySource()
						continue
					}
					require.NoError(t, s.Mark(t.Context(), rows))
				}
				if strict {
					require.Equal(t, []int64{1, 2, 3, 4, 6}, order, "the fifth waits for the second, which is held back")
				} else {
					require.Equal(t, []int64{4, 6, 1, 2, 3}, order)
				}
			})
		}
	}
}

// In strict order a relay that knows of no crash hands out nothing before the suspects that
// another has counted.
func TestStrictOrderAcrossACrash(t *testing.T) {
	for dialect, of := range suspecting {
		t.Run(of, func(t *testing.T) {
			t.Parallel()
			r := newRelayed(t, dialect, ownTables(dialect)["strict"], 12)
			other := r.relaySource()
			dead, _ := fetchNames(t, r.relaySource(), 5)
			require.Len(t, dead, 5)
			_, names := fetchNames(t, other, 5)
			require.Empty(t, names)
			r.advance(DefaultTableLease)
			first, names := fetchNames(t, r.relaySource(), 5)
			require.Equal(t, []string{"1"}, names)
			_, names = fetchNames(t, other, 5)
			require.Empty(t, names, "while one is in hand")
			execute(t, r.db, `DELETE FROM `+r.state()+`_batches`)
			execute(t, r.db, `UPDATE events SET sent_at = `+map[Dialect]string{SQLite: "1", Postgres: "now()"}[dialect]+` WHERE id = $1`, first[0].ID)
			other.apart.known, other.apart.looked = false, time.Now() // it has just looked
			second, names := fetchNames(t, other, 5)
			require.Equal(t, []string{"2"}, names)
			require.NoError(t, other.Release(t.Context(), second, 0)) // which clears its crashes
			_, names = fetchNames(t, r.relaySource(), 5)
			require.Equal(t, []string{"2"}, names, "before the suspects behind it")
		})
	}
}

// A row of an order key that waits for its next try goes before those of the key that were in
// hand at a crash.
func TestSuspectsOfAnOrderKeyWaitForEarlierRows(t *testing.T) {
	for dialect, of := range suspecting {
		t.Run(of, func(t *testing.T) {
			own := ownTables(dialect)["updates"]
			own.config.OrderKey = "substr(name, 1, 1)"
			r := newRelayed(t, dialect, own, 0)
			r.add(t, r.db, 1, "a1", "a2", "b1", "a3")
			dies := r.relaySource()
			rows, _ := fetchNames(t, dies, 3)
			require.NoError(t, dies.Fail(t.Context(), failing(errors.New("boom"), rows[0])))
			r.advance(DefaultTableLease)
			var order []string
			s := r.relaySource()
			for range 10 {
				rows, names := fetchNames(t, s, 100)
				order = append(order, names...)
				require.NoError(t, s.Mark(t.Context(), rows))
			}
			require.Equal(t, []string{"a1", "a2", "b1", "a3"}, order)
		})
	}
}

// A row that is pending no more, however that came to be, holds up no other of its order key.
func TestANoteOfARowThatIsNotPendingHoldsUpNone(t *testing.T) {
	for dialect, of := range databases {
		sent := map[Dialect]string{SQLite: "1", Postgres: "now()", MySQL: "now()"}[dialect]
		for what, text := range map[string]string{
			"deleted":   "DELETE FROM events WHERE id = 1",
			"marked":    "UPDATE events SET sent_at = " + sent + " WHERE id = 1",
			"rewritten": "UPDATE events SET id = 100 WHERE id = 1", // as a version in the key would
		} {
			for _, strict := range []bool{false, true} {
				t.Run(fmt.Sprint(of, " ", what, ", strict ", strict), func(t *testing.T) {
					t.Parallel()
					own := ownTables(dialect)["updates"]
					own.config.OrderKey, own.config.Strict = "'k'", strict
					if dialect != MySQL {
						own.config.MaxCrashes = 1
					}
					r := newRelayed(t, dialect, own, 0)
					r.table()
					left := []string{"2"}
					if what == "rewritten" {
						left = []string{"2", "1"}
					}
					for _, holdUp := range []func(){
						func() { // it fails
							s := r.relaySource()
							rows, _ := fetchNames(t, s, 1)
							require.NoError(t, s.Fail(t.Context(), failing(errors.New("boom"), rows...)))
						},
						func() { // it is in hand at a crash
							fetchNames(t, r.relaySource(), 1)
							r.advance(DefaultTableLease)
						},
						func() { // and at so many that it is held back
							for range aloneFrom + 2 {
								fetchNames(t, r.relaySource(), 1)
								r.advance(DefaultTableLease)
							}
						},
					} {
						for _, table := range []string{"events", r.state(), r.state() + "_batches"} {
							execute(t, r.db, "DELETE FROM "+table)
						}
						r.rows(1, 2)
						holdUp()
						execute(t, r.db, text)
						s := r.relaySource()
						var order []string
						for range 3 {
							rows, names := fetchNames(t, s, 1)
							order = append(order, names...)
							require.NoError(t, s.Mark(t.Context(), rows))
						}
						require.Equal(t, left, order)
					}
				})
			}
		}
	}
}

// A mark that is under way when its lease runs out is seen by who counts the crash.
func TestACrashIsNotCountedInARowThatIsBeingMarked(t *testing.T) {
	own := ownTables(Postgres)["updates"]
	own.config.Lease = time.Second
	r := newRelayed(t, Postgres, own, 3)
	s, other := r.relaySource(), r.relaySource()
	rows, names := fetchNames(t, s, 3)
	require.Len(t, names, 3)
	waiting := func(n int) {
		t.Helper()
		require.Eventually(t, func() bool {
			return r.count(`pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%events%'`) == n
		}, 10*time.Second, 5*time.Millisecond)
	}
	tx, err := r.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	_, err = tx.ExecContext(t.Context(), `SELECT 1 FROM events WHERE id = 1 FOR UPDATE`)
	require.NoError(t, err)
	marked, fetched := make(chan error), make(chan []string)
	go func() { marked <- s.Mark(t.Context(), rows[:1]) }()
	waiting(1)
	require.Eventually(t, func() bool { return r.count(r.state()+`_batches WHERE until <= now()`) == 1 }, 10*time.Second, 5*time.Millisecond)
	go func() {
		_, names := fetchNames(t, other, 10)
		fetched <- names
	}()
	waiting(2)
	require.NoError(t, tx.Rollback())
	require.NoError(t, <-marked)
	require.Equal(t, []string{"2"}, <-fetched)
	require.Equal(t, 2, r.count(r.state()), "of the rows that are pending")
}

// A table may have columns of the names that those beside it have.
func TestATableWithColumnsOfTheNamesBesideIt(t *testing.T) {
	for dialect, of := range suspecting {
		for _, strict := range []bool{false, true} {
			t.Run(fmt.Sprint(of, " strict ", strict), func(t *testing.T) {
				own := ownTables(dialect)["updates"]
				own.create = append(own.create, `ALTER TABLE events ADD crashes int DEFAULT 0`, `ALTER TABLE events ADD attempts int DEFAULT 0`, `ALTER TABLE events ADD order_key text DEFAULT 'k'`)
				own.config.Pending, own.config.OrderKey, own.config.Strict = "sent_at IS NULL AND crashes + attempts = 0", "order_key", strict
				r := newRelayed(t, dialect, own, 2)
				fetchNames(t, r.relaySource(), 1)
				r.advance(DefaultTableLease)
				s := r.relaySource()
				for _, want := range []string{"1", "2"} {
					rows, names := fetchNames(t, s, 1)
					require.Equal(t, []string{want}, names)
					require.NoError(t, s.Mark(t.Context(), rows))
				}
			})
		}
	}
}
