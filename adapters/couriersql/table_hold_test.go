package couriersql

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/stretchr/testify/require"
)

// relayed is a table of somebody's own, with rows, and how it is relayed.
type relayed struct {
	ownTable
	t     *testing.T
	db    *sql.DB
	clock *ticking
	log   *bytes.Buffer
}

// eachTable runs a test over each kind of table, with n rows that have their numbers for names.
func eachTable(t *testing.T, n int, test func(t *testing.T, r *relayed)) {
	eachTableOf(t, databases, n, test)
}

func eachTableOf(t *testing.T, databases map[Dialect]string, n int, test func(t *testing.T, r *relayed)) {
	for dialect, of := range databases {
		for name, own := range tested(dialect) {
			t.Run(of+" "+name, func(t *testing.T) {
				t.Parallel()
				test(t, newRelayed(t, dialect, own, n))
			})
		}
	}
}

func newRelayed(t *testing.T, dialect Dialect, own ownTable, n int) *relayed {
	t.Helper()
	r := &relayed{ownTable: own, t: t, db: databaseOf(t, dialect), clock: &ticking{fixed: fixed{start}}, log: new(bytes.Buffer)}
	for _, text := range own.create {
		execute(t, r.db, text)
	}
	r.config.Clock, r.config.Logger = r.clock, slog.New(slog.NewTextHandler(r.log, nil))
	r.rows(1, n)
	return r
}

// rows adds rows from a number to another.
func (r *relayed) rows(first, last int) {
	r.t.Helper()
	var names []string
	for i := first; i <= last; i++ {
		names = append(names, fmt.Sprint(i))
	}
	r.add(r.t, r.db, first, names...)
}

func (r *relayed) table() *Table[happening] {
	r.t.Helper()
	table := NewTable(r.db, r.dialect, r.config)
	require.NoError(r.t, table.Migrate(r.t.Context()))
	return table
}

// advance lets time pass for leases and failures.
func (r *relayed) advance(d time.Duration) {
	r.t.Helper()
	r.clock.advance(d)
	r.ownTable.advance(r.t, r.db, d)
}

func (r *relayed) count(table string) int {
	r.t.Helper()
	if r.dialect == MySQL && strings.HasSuffix(table, "_batches") {
		table += " WHERE id > 1" // which is no lease
	}
	return count(r.t, r.db, "SELECT count(*) FROM "+table)
}

// fetchNames fetches, and returns the names in order too.
func fetchNames(t *testing.T, s courier.Source[happening], limit int) (records []happening, names []string) {
	t.Helper()
	records, err := s.Fetch(t.Context(), limit)
	require.NoError(t, err)
	names = []string{}
	for _, record := range records {
		names = append(names, record.Name)
	}
	return records, names
}

func failing(err error, records ...happening) (list []courier.FailedRecord[happening]) {
	for _, record := range records {
		list = append(list, courier.FailedRecord[happening]{Record: record, Error: err})
	}
	return list
}

func TestATablesBatchInParts(t *testing.T) {
	eachTable(t, 7, func(t *testing.T, r *relayed) {
		s, other := r.table().Source(), r.table().Source()
		rows, names := fetchNames(t, s, 5)
		require.Equal(t, []string{"1", "2", "3", "4", "5"}, names)
		require.NoError(t, s.Mark(t.Context(), rows[1:2]))
		require.NoError(t, s.Release(t.Context(), rows[3:4], time.Hour))
		require.NoError(t, s.Fail(t.Context(), failing(errors.New("boom"), rows[0])))
		if r.config.Strict {
			_, names = fetchNames(t, other, 10)
			require.Empty(t, names, "another relay has rows in hand")
		} else {
			_, names = fetchNames(t, other, 10)
			require.Equal(t, []string{"4", "6", "7"}, names, "what is free")
		}
		require.NoError(t, s.Mark(t.Context(), rows[2:3]))
		require.NoError(t, s.Mark(t.Context(), rows)) // the fifth, and four that are not in hand
		if r.config.Strict {
			require.Zero(t, r.count(r.state()+"_batches"), "a lease is left")
			_, names = fetchNames(t, other, 10)
			require.Equal(t, []string{"4", "6", "7"}, names)
		}
		r.advance(time.Second)
		again, names := fetchNames(t, other, 10)
		require.Equal(t, []string{"1"}, names, "what failed comes again after its backoff")
		require.NoError(t, other.Mark(t.Context(), again))
		require.Zero(t, r.count(r.state()), "a failure is left of a row that is marked")
		require.Equal(t, 1, r.count(r.state()+"_batches"), "the other's first")
		require.Empty(t, r.log.String())
	})
}

func TestATablesRowThatFailedWaitsLongerEachTime(t *testing.T) {
	eachTable(t, 1, func(t *testing.T, r *relayed) {
		r.config.InitialBackoff, r.config.LongestBackoff = 10*time.Second, 25*time.Second
		s := r.table().Source()
		for _, wait := range []time.Duration{10 * time.Second, 20 * time.Second, 25 * time.Second, 25 * time.Second} {
			rows, _ := fetchNames(t, s, 10)
			require.Len(t, rows, 1)
			require.NoError(t, s.Fail(t.Context(), failing(errors.New("no \x00 answer"), rows...)))
			r.advance(wait - time.Second)
			_, names := fetchNames(t, s, 10)
			require.Empty(t, names, wait)
			r.advance(time.Second)
		}
		require.Equal(t, []string{"no � answer"}, namesIn(t, r.db, "SELECT last_error FROM "+r.state()))
		require.Equal(t, 4, count(t, r.db, "SELECT attempts FROM "+r.state()))
		rows, _ := fetchNames(t, s, 10)
		require.NoError(t, s.Fail(t.Context(), []courier.FailedRecord[happening]{{Record: rows[0], After: time.Hour}}))
		r.advance(time.Hour - time.Second)
		_, names := fetchNames(t, s, 10)
		require.Empty(t, names, "the error asked for an hour")
	})
}

func TestATablesLeaseThatWasTaken(t *testing.T) {
	eachTable(t, 3, func(t *testing.T, r *relayed) {
		r.config.MaxCrashes = -1
		s, other := r.table().Source(), r.table().Source()
		rows, _ := fetchNames(t, s, 10)
		r.advance(DefaultTableLease - time.Second)
		require.NoError(t, s.Renew(t.Context(), rows[:1]), "all of the batch")
		r.advance(DefaultTableLease - time.Second)
		_, names := fetchNames(t, other, 10)
		require.Empty(t, names)
		r.advance(2 * time.Second)
		taken, names := fetchNames(t, other, 2)
		require.Equal(t, []string{"1", "2"}, names)
		require.NoError(t, s.Fail(t.Context(), failing(errors.New("boom"), rows[2])), "passed over")
		require.Zero(t, r.count(r.state()))
		require.NoError(t, s.Mark(t.Context(), rows[:1]))
		require.Contains(t, r.log.String(), "their lease was lost")
		require.Contains(t, r.log.String(), "rows=1")
		require.Equal(t, []int{1}, lostIndices(s.Renew(t.Context(), rows[:2])), "the first is in hand no more")
		require.NoError(t, other.Mark(t.Context(), taken))
		left, _ := r.table().Pending(t.Context())
		require.Equal(t, 1, left)
	})
}

// A mark whose answer was lost is made again, and has nothing to tell.
func TestATablesMarkMadeTwice(t *testing.T) {
	eachTable(t, 3, func(t *testing.T, r *relayed) {
		table := r.table()
		s := table.Source()
		rows, _ := fetchNames(t, s, 10)
		parts := s.parts(rows, nil)
		require.NoError(t, table.ask(t.Context(), func(ctx context.Context, conn *sql.Conn) error {
			_, lost, err := table.store.settle(ctx, conn, s.owner, toMark, parts, false)
			require.Empty(t, lost)
			return err
		}))
		s.nowSettling(parts)
		require.NoError(t, s.Renew(t.Context(), rows), "while a mark is under way, its lease is not lost")
		s.nowSettling(nil)
		require.NoError(t, s.Mark(t.Context(), rows))
		require.Empty(t, r.log.String())
		require.Empty(t, s.inHand)
		require.Empty(t, s.left)
	})
}

func TestATableInStrictOrder(t *testing.T) {
	for dialect, of := range databases {
		t.Run(of, func(t *testing.T) {
			r := newRelayed(t, dialect, ownTables(dialect)["strict"], 0)
			r.add(t, r.db, 1, "a", "b", "a", "", "", "b")
			s, other := r.table().Source(), r.table().Source()
			require.True(t, s.Ordered())
			rows, _ := fetchNames(t, s, 2)
			_, names := fetchNames(t, other, 10)
			require.Empty(t, names)
			more, names := fetchNames(t, s, 2)
			require.Equal(t, []string{"a", ""}, names, "its own it may fetch ahead")
			require.NoError(t, s.Fail(t.Context(), failing(errors.New("boom"), rows[0], more[1])))
			require.NoError(t, s.Release(t.Context(), []happening{rows[1], more[0]}, 0))
			free, names := fetchNames(t, other, 10)
			require.Equal(t, []string{"b", "", "b"}, names, "no later row of a that waits; rows without a key wait for none")
			require.NoError(t, other.Mark(t.Context(), free))
			r.advance(time.Second)
			_, names = fetchNames(t, s, 10)
			require.Equal(t, []string{"a", "a", ""}, names)
		})
	}
}

// Relays share the order keys, and none has rows of a key in hand that another one has.
func TestATablesOrderKeysAreShared(t *testing.T) {
	for dialect, of := range databases {
		t.Run(of, func(t *testing.T) {
			own := ownTables(dialect)["updates"]
			own.config.OrderKey, own.config.MaxCrashes = "name", -1
			r := newRelayed(t, dialect, own, 0)
			var all []string
			for i := range 20 {
				all = append(all, fmt.Sprintf("key %d", i))
			}
			r.add(t, r.db, 1, all...)
			r.add(t, r.db, 101, all...)
			r.add(t, r.db, 201, "", "")
			s, other := r.table().Source(), r.table().Source()
			require.False(t, s.Ordered())
			first, names := fetchNames(t, s, 20)
			require.Equal(t, all, names, "one that is alone has all of them")
			none, names := fetchNames(t, other, 10)
			require.Equal(t, []string{"", ""}, names, "rows without a key wait for none")
			_, names = fetchNames(t, other, 10)
			require.Empty(t, names)
			ahead, names := fetchNames(t, s, 40)
			require.Greater(t, len(names), 2, "its own it may fetch ahead")
			require.Less(t, len(names), 18, "and leaves some to the other one")
			require.NoError(t, s.Mark(t.Context(), first))
			require.NoError(t, other.Mark(t.Context(), none))
			mine := names
			_, names = fetchNames(t, other, 40)
			require.ElementsMatch(t, all, slices.Concat(mine, names), "the other one has the others")
			require.NoError(t, s.Fail(t.Context(), failing(errors.New("boom"), ahead[0])))
			_, names = fetchNames(t, s, 40)
			require.Empty(t, names)
			r.advance(DefaultTableLease)
			_, names = fetchNames(t, other, 40)
			require.Len(t, names, 20, "a lease that is over holds no key, and its relay is none of those that share")
			_, names = fetchNames(t, s, 40)
			require.Empty(t, names)
		})
	}
}

// A relay that fetches no more, such as one whose destination is down, keeps the order keys of
// what it has in hand, and no others.
func TestATablesOrderKeysOfARelayThatPauses(t *testing.T) {
	for dialect, of := range databases {
		t.Run(of, func(t *testing.T) {
			own := ownTables(dialect)["updates"]
			own.config.OrderKey, own.config.MaxCrashes = "name", -1
			r := newRelayed(t, dialect, own, 0)
			for first := range 3 {
				r.add(t, r.db, 1+100*first, "a", "b", "c", "d", "e", "f", "g", "h")
			}
			s, other := r.table().Source(), r.table().Source()
			keys := map[string]bool{}
			var mine []happening
			others := 0
			for range 3 {
				rows, names := fetchNames(t, s, 1)
				for _, name := range names {
					keys[name] = true
				}
				mine = append(mine, rows...)
				_, names = fetchNames(t, other, 1)
				others += len(names)
			}
			r.advance(5 * time.Second)
			require.NoError(t, s.Renew(t.Context(), mine))
			_, names := fetchNames(t, other, 100)
			require.Equal(t, 24-3*len(keys), others+len(names), "all rows but those of %v", keys)
		})
	}
}

// Several relays deliver the rows of each order key in order and one at a time, whatever
// fails.
func TestSeveralRelaysKeepTheOrderOfAKey(t *testing.T) {
	const rows, keys = 300, 7
	for dialect, of := range databases {
		t.Run(of, func(t *testing.T) {
			own := ownTables(dialect)["updates"]
			own.config.OrderKey = fmt.Sprintf("id %% %d", keys)
			own.config.InitialBackoff, own.config.LongestBackoff, own.config.QueryTimeout, own.config.Lease = time.Millisecond, time.Millisecond, time.Minute, time.Hour
			r := newRelayed(t, dialect, own, rows)
			r.config.Clock, r.config.Logger = nil, slog.New(slog.DiscardHandler)
			var mu sync.Mutex
			var delivered [keys][]int64
			var busy [keys]bool
			left := rows
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			applier := courier.ProcessFunc(func(_ context.Context, e happening) error {
				key := e.ID % keys
				mu.Lock()
				defer mu.Unlock()
				if busy[key] {
					t.Errorf("two rows of key %d at once", key)
				}
				busy[key] = true
				mu.Unlock()
				runtime.Gosched()
				mu.Lock()
				busy[key] = false
				if rand.IntN(10) == 0 {
					return errors.New("not yet")
				}
				delivered[key] = append(delivered[key], e.ID)
				if left--; left == 0 {
					stop()
				}
				return nil
			})
			var group sync.WaitGroup
			for i := range 4 {
				table := r.table()
				group.Go(func() {
					opts := []courier.Option{
						courier.WithBatchSize(3 + rand.IntN(10)), courier.WithWorkers(1 + rand.IntN(3)), courier.WithLogger(slog.New(slog.DiscardHandler)),
						courier.WithOrderKey(func(e happening) string { return fmt.Sprint(e.ID % keys) }),
					}
					var err error
					if i == 0 {
						err = courier.NewStreamingCoordinator(table.Stream(time.Millisecond), applier, opts...).Start(ctx)
					} else {
						err = courier.NewPollingCoordinator(table.Source(), applier, append(opts, courier.WithInterval(time.Millisecond))...).Start(ctx)
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
			group.Wait()
			for key, ids := range delivered {
				require.True(t, slices.IsSorted(ids), "key %d: %v", key, ids)
			}
			require.Zero(t, left)
		})
	}
}

// A row of which no record can be made holds up no other, nor does it if it is the first that
// a relay comes to. It is tried again as any that failed.
func TestATablesRowThatCannotBeRead(t *testing.T) {
	eachTable(t, 3, func(t *testing.T, r *relayed) {
		s := r.table().Source()
		execute(t, r.db, fmt.Sprintf(`UPDATE %s SET name = NULL WHERE name = '1'`, r.ownTable.table()))
		_, names := fetchNames(t, s, 10)
		require.Equal(t, []string{"2", "3"}, names)
		require.Equal(t, 1, r.count(r.state()))
		require.Contains(t, namesIn(t, r.db, "SELECT last_error FROM "+r.state())[0], "reading the row")
		require.Contains(t, r.log.String(), "cannot be read")
		require.Contains(t, r.log.String(), "attempts=1 retry_in=1s")
		r.advance(time.Second)
		_, names = fetchNames(t, s, 10)
		require.Empty(t, names)
		require.Contains(t, r.log.String(), "attempts=2 retry_in=2s")
		execute(t, r.db, fmt.Sprintf(`UPDATE %s SET name = '1' WHERE name IS NULL`, r.ownTable.table()))
		r.advance(2 * time.Second)
		_, names = fetchNames(t, s, 10)
		require.Equal(t, []string{"1"}, names)
	})
}

// If no row can be read, the fetch fails, as TableConfig.Scan may be to blame. It goes on
// failing while the rows wait.
func TestATableOfWhichNoRowCanBeRead(t *testing.T) {
	eachTable(t, 3, func(t *testing.T, r *relayed) {
		s := r.table().Source()
		execute(t, r.db, fmt.Sprintf(`UPDATE %s SET name = NULL`, r.ownTable.table()))
		for range 2 {
			_, err := s.Fetch(t.Context(), 10)
			require.ErrorContains(t, err, "reading the row")
		}
		require.Equal(t, 3, r.count(r.state()))
		require.Zero(t, r.count(r.state()+"_batches"), "a lease of rows that are in nobody's hand")
	})
}

func TestATableWhoseMarkDoesNotMark(t *testing.T) {
	eachTable(t, 3, func(t *testing.T, r *relayed) {
		if r.config.Mark == "" {
			if r.dialect == MySQL {
				return // in which nothing keeps a row from being deleted without an error
			}
			if r.dialect == Postgres {
				execute(t, r.db, `CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$`)
				execute(t, r.db, `CREATE TRIGGER keep BEFORE DELETE ON events FOR EACH ROW EXECUTE FUNCTION keep()`)
			} else {
				execute(t, r.db, `CREATE TRIGGER keep BEFORE DELETE ON events BEGIN SELECT raise(IGNORE); END`)
			}
		} else {
			r.config.Mark = "name = name"
		}
		s := r.table().Source()
		rows, _ := fetchNames(t, s, 2)
		for range 3 { // as a coordinator tries it again
			err := s.Mark(t.Context(), rows)
			require.ErrorIs(t, err, ErrSuppressed)
			require.ErrorContains(t, err, "2 of 2")
			require.ErrorContains(t, err, "TableConfig.Pending")
		}
		require.NoError(t, s.Renew(t.Context(), rows), "they stay in hand")
		_, names := fetchNames(t, r.table().Source(), 10)
		require.NotContains(t, names, "1", "and are not delivered again")
	})
}

// A trigger that comes later, and keeps some of the rows from being marked, is found too;
// once it is gone, the mark is made.
func TestATablesMarkThatIsSuppressedLater(t *testing.T) {
	eachTable(t, 5, func(t *testing.T, r *relayed) {
		if r.dialect == MySQL && r.config.Mark == "" {
			return // in which nothing keeps a row from being deleted without an error
		}
		s := r.table().Source()
		first, _ := fetchNames(t, s, 1)
		require.NoError(t, s.Mark(t.Context(), first))
		rows, _ := fetchNames(t, s, 2)
		require.NoError(t, s.Fail(t.Context(), failing(nil, rows...)))
		r.advance(time.Second)
		rows, names := fetchNames(t, s, 3)
		require.Equal(t, []string{"2", "3", "4"}, names)
		back := r.suppress("3")
		for range 2 {
			require.ErrorIs(t, s.Mark(t.Context(), rows), ErrSuppressed)
		}
		back()
		require.NoError(t, s.Mark(t.Context(), rows))
		require.Zero(t, r.count(r.state()+"_batches"), "a lease is left")
		require.Zero(t, r.count(r.state()), "a failure is left")
		_, names = fetchNames(t, s, 10)
		require.Equal(t, []string{"5"}, names)
		require.Empty(t, r.log.String())
	})
}

// suppress has the database leave a row as it is, without an error, until back is called.
func (r *relayed) suppress(name string) (back func()) {
	r.t.Helper()
	table, operation := r.ownTable.table(), "UPDATE"
	if r.config.Mark == "" {
		operation = "DELETE"
	}
	if r.dialect == Postgres {
		execute(r.t, r.db, `CREATE OR REPLACE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$`)
		execute(r.t, r.db, fmt.Sprintf(`CREATE TRIGGER keep BEFORE %s ON %s FOR EACH ROW WHEN (OLD.name = '%s') EXECUTE FUNCTION keep()`, operation, table, name))
		return func() { execute(r.t, r.db, `DROP TRIGGER keep ON `+table) }
	}
	if r.dialect == MySQL {
		execute(r.t, r.db, fmt.Sprintf(`CREATE TRIGGER keep BEFORE UPDATE ON %s FOR EACH ROW IF OLD.name = '%s' THEN SET NEW.sent_at = OLD.sent_at; END IF`, table, name))
		return func() { execute(r.t, r.db, `DROP TRIGGER keep`) }
	}
	execute(r.t, r.db, fmt.Sprintf(`CREATE TRIGGER keep BEFORE %s ON %s WHEN old.name = '%s' BEGIN SELECT raise(IGNORE); END`, operation, table, name))
	return func() { execute(r.t, r.db, `DROP TRIGGER keep`) }
}

func TestTwoRelaysOfATableWithDifferentMarks(t *testing.T) {
	for dialect, of := range databases {
		t.Run(of, func(t *testing.T) {
			r := newRelayed(t, dialect, ownTables(dialect)["updates"], 2)
			execute(t, r.db, "ALTER TABLE events ADD COLUMN indexed_at integer")
			first := r.table().Source()
			r.config.Pending, r.config.Mark, r.config.State = "indexed_at IS NULL", "indexed_at = 1", "events_search"
			second := r.table().Source()
			rows, names := fetchNames(t, first, 10)
			require.Equal(t, []string{"1", "2"}, names)
			again, names := fetchNames(t, second, 10)
			require.Equal(t, []string{"1", "2"}, names)
			require.NoError(t, first.Mark(t.Context(), rows))
			require.NoError(t, second.Mark(t.Context(), again[:1]))
			require.Equal(t, 1, count(t, r.db, "SELECT count(*) FROM events WHERE indexed_at IS NULL AND sent_at IS NOT NULL"))
		})
	}
}

func TestATablesLag(t *testing.T) {
	eachTable(t, 4, func(t *testing.T, r *relayed) {
		r.config.Age = "10 - " + r.dialect.identifier(r.config.Key[len(r.config.Key)-1])
		s := r.table().Source()
		lag, err := s.Lag(t.Context())
		require.NoError(t, err)
		require.Equal(t, courier.Lag{Pending: 4, Oldest: 9 * time.Second}, lag)
		rows, _ := fetchNames(t, s, 2)
		require.NoError(t, s.Fail(t.Context(), failing(errors.New("boom"), rows[0])))
		lag, err = s.Lag(t.Context())
		require.NoError(t, err)
		require.Equal(t, courier.Lag{Pending: 2, Oldest: 7 * time.Second}, lag, "neither what is in hand nor what waits")
	})
}

// Relays of a table at once, some of whose deliveries fail: each row is delivered once, as
// no lease ends, whatever is marked, failed and given back in which parts.
func TestSeveralRelaysOfATable(t *testing.T) {
	const rows = 200
	eachTable(t, rows, func(t *testing.T, r *relayed) {
		r.config.InitialBackoff, r.config.LongestBackoff, r.config.Clock = time.Millisecond, time.Millisecond, nil
		r.config.QueryTimeout, r.config.Lease = time.Minute, time.Hour
		r.config.Logger = slog.New(slog.DiscardHandler)
		var mu sync.Mutex
		delivered, failures := map[string]int{}, map[string]int{}
		for i := 1; i <= rows; i += 7 {
			failures[fmt.Sprint(i)] = 1 + i%3
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		applier := courier.ProcessFunc(func(_ context.Context, e happening) error {
			mu.Lock()
			defer mu.Unlock()
			if failures[e.Name] > 0 {
				failures[e.Name]--
				return errors.New("not yet")
			}
			if delivered[e.Name]++; len(delivered) == rows {
				stop()
			}
			return nil
		})
		var group sync.WaitGroup
		for i := range 3 {
			table := r.table()
			group.Go(func() {
				opts := []courier.Option{
					courier.WithBatchSize(5 + rand.IntN(20)), courier.WithWorkers(1 + rand.IntN(3)),
					courier.WithLogger(slog.New(slog.DiscardHandler)),
				}
				var err error
				if i == 0 {
					err = courier.NewStreamingCoordinator(table.Stream(time.Millisecond), applier, opts...).Start(ctx)
				} else {
					err = courier.NewPollingCoordinator(table.Source(), applier, append(opts, courier.WithPrefetch(i), courier.WithInterval(time.Millisecond))...).Start(ctx)
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		for name, n := range delivered {
			if n != 1 {
				t.Errorf("%s was delivered %d times", name, n)
			}
		}
		require.Len(t, slices.Collect(maps.Keys(delivered)), rows)
		require.Zero(t, r.count(r.state()+"_batches"), "coordinators that stop give back what they have")
		left, err := r.table().Pending(t.Context())
		require.NoError(t, err)
		require.Zero(t, left)
	})
}

// Keys of all kinds of types come back from the database as they were sent there.
func TestATablesKeyTypes(t *testing.T) {
	for dialect, kinds := range map[Dialect]map[string][]string{
		Postgres: {
			"uuid":                     {"6f1c2a9e-0000-4000-8000-000000000001", "6f1c2a9e-0000-4000-8000-000000000002"},
			"text":                     {"", `a "b", {c}\d`, "NULL", "null", "é €", "x'; DROP TABLE events; --"},
			"varchar(10)":              {"a", "b c"},
			"smallint":                 {"-3", "4"},
			"numeric(10,2)":            {"-1.50", "12345678.25"},
			"date":                     {"2026-01-02", "2026-01-03"},
			"boolean":                  {"false", "true"},
			`"Mood"`:                   {"sad", "so so"},
			"apart.number":             {"7", "8"},
			"timestamp with time zone": {"2026-01-02 03:04:05.678901+00"},
		},
		SQLite: {
			"TEXT":        {"", `a "b", [c]\d`, "null", "é €", "12", "a\x00b", "x'; DROP TABLE events; --"},
			"VARCHAR(10)": {"1", "01"},
			"INTEGER":     {"-3", "9223372036854775807"},
			"BIGINT":      {"1", "10"},
			"REAL":        {"0.30000000000000004", "100000.0"},
		},
		MySQL: {
			"varchar(40)": {"", `a "b", {c}\d`, "NULL", "é € 😀", "x'; DROP TABLE events; -- ", "a\x00b"},
			"varchar(40) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin": {"a", "A", "ä"},
			"varchar(20) CHARACTER SET latin1":                      {"é", "b c"},
			"varchar(3000) CHARACTER SET ascii":                     {strings.Repeat("x", 3000), "x"},
			"char(36) CHARACTER SET ascii":                          {"6f1c2a9e-0000-4000-8000-000000000001", "6f1c2a9e-0000-4000-8000-000000000002"},
			"binary(4)":                                             {"\x00\xff\x27\x5c", "abcd"},
			"varbinary(10)":                                         {"", "\xff", "\xff\x00"},
			"tinyint":                                               {"-3", "4"},
			"int(8) UNSIGNED ZEROFILL":                              {"7", "4294967295"},
			"bigint":                                                {"-9223372036854775808", "9223372036854775807"},
			"bigint unsigned":                                       {"9007199254740993", "18446744073709551615"},
			"decimal(10,2)":                                         {"-1.50", "12345678.25"},
			"date":                                                  {"2026-01-02", "2026-01-03"},
			"datetime(6)":                                           {"2026-01-02 03:04:05.678901", "2026-10-25 02:30:00.000000"},
			"time(3)":                                               {"-12:30:00.500", "100:00:00.000"},
			"year":                                                  {"2026"},
			"enum('sad', 'so so')":                                  {"sad", "so so"},
		},
	} {
		for kind, keys := range kinds {
			t.Run(fmt.Sprint(dialect, " ", kind), func(t *testing.T) {
				t.Parallel()
				db := databaseOf(t, dialect)
				if dialect == Postgres {
					execute(t, db, `CREATE TYPE "Mood" AS ENUM ('sad', 'so so')`)
				}
				declared := kind
				if kind == "apart.number" { // a type of a schema that is not in the path
					schema := namesIn(t, db, "SELECT current_schema()")[0] + "_apart"
					declared = schema + ".number"
					execute(t, db, "CREATE SCHEMA "+schema)
					t.Cleanup(func() {
						_, err := db.ExecContext(context.Background(), "DROP SCHEMA "+schema+" CASCADE")
						require.NoError(t, err)
					})
					execute(t, db, "CREATE DOMAIN "+declared+" AS integer")
				}
				execute(t, db, fmt.Sprintf(`CREATE TABLE events (id %s NOT NULL PRIMARY KEY, sent integer NOT NULL DEFAULT 0)`, declared))
				asText := "CAST(id AS text)"
				for _, key := range keys {
					if dialect == MySQL {
						asText = "id"
						execute(t, db, `INSERT INTO events (id) VALUES (?)`, key)
						continue
					}
					execute(t, db, fmt.Sprintf(`INSERT INTO events (id) VALUES (CAST(CAST($1 AS text) AS %s))`, declared), key)
				}
				table := NewTable(db, dialect, TableConfig[string]{
					Table: "events", Key: []string{"id"}, KeyOf: func(id string) []any { return []any{id} }, Columns: []string{asText},
					Scan:    func(scan func(...any) error) (id string, err error) { return id, scan(&id) },
					Pending: "sent = 0", Mark: "sent = 1", Logger: slog.New(slog.DiscardHandler),
				})
				require.NoError(t, table.Migrate(t.Context()))
				s := table.Source()
				got, err := s.Fetch(t.Context(), 10)
				require.NoError(t, err)
				require.ElementsMatch(t, keys, got)
				require.NoError(t, s.Fail(t.Context(), []courier.FailedRecord[string]{{Record: got[0]}}))
				require.NoError(t, s.Release(t.Context(), got[1:], 0))
				again, err := table.Source().Fetch(t.Context(), 10)
				require.NoError(t, err)
				require.ElementsMatch(t, got[1:], again, "without the one that failed")
				require.Equal(t, 1, count(t, db, "SELECT count(*) FROM events_courier"))
				lag, err := s.Lag(t.Context())
				require.NoError(t, err)
				require.Zero(t, lag.Pending)
				require.NoError(t, s.Mark(t.Context(), again), "not in its hand")
				left, err := table.Pending(t.Context())
				require.NoError(t, err)
				require.Equal(t, len(keys), left)
			})
		}
	}
}

// A role with the rights that the README names, and no others, relays a table.
func TestATablesRights(t *testing.T) {
	for _, name := range []string{"updates", "deletes"} {
		t.Run(name, func(t *testing.T) {
			dsn := pgtest.Schema(t)
			as := roles(t, dsn, "relay")
			r := newRelayed(t, Postgres, ownTables(Postgres)[name], 0)
			r.db = openPostgres(t, dsn)
			for _, text := range r.create {
				execute(t, r.db, text)
			}
			r.rows(1, 3)
			r.table()
			relay := schemaNamed(t, r.db) + "_relay"
			_, err := NewTable(as["relay"], Postgres, r.config).Source().Fetch(t.Context(), 1)
			require.ErrorContains(t, err, "a relay needs to SELECT in the table")
			right := map[string]string{"updates": "UPDATE", "deletes": "DELETE"}[name]
			execute(t, r.db, "GRANT SELECT, "+right+" ON events TO "+relay)
			execute(t, r.db, "GRANT SELECT, INSERT, UPDATE, DELETE ON events_courier, events_courier_batches TO "+relay)
			execute(t, r.db, "GRANT SELECT ON courier_migrations TO "+relay)
			r.db = as["relay"]
			s := r.table().Source()
			rows, _ := fetchNames(t, s, 10)
			require.NoError(t, s.Fail(t.Context(), failing(nil, rows[0])))
			require.NoError(t, s.Release(t.Context(), rows[1:2], 0))
			require.NoError(t, s.Renew(t.Context(), rows[2:]))
			require.NoError(t, s.Mark(t.Context(), rows[2:]))
			_, err = s.Lag(t.Context())
			require.NoError(t, err)
		})
	}
}
