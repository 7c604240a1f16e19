package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/stretchr/testify/require"
)

// A fetch whose answer is lost has leased rows that the relay does not know of. Its next
// fetch returns them, before any later row.
func TestATablesFetchWhoseAnswerIsLost(t *testing.T) {
	eachTable(t, 6, func(t *testing.T, r *relayed) {
		table := r.table()
		s := table.Source()
		inHand, names := fetchNames(t, s, 2)
		require.Equal(t, []string{"1", "2"}, names)
		require.NoError(t, table.ask(t.Context(), func(ctx context.Context, conn *sql.Conn) error {
			batch, err := table.store.fetch(ctx, conn, claim{owner: s.owner, lease: table.lease, limit: 2, known: s.known()}, func(row *handedOut, scan func(...any) error) error {
				_, _, err := s.read(row, scan)
				return err
			})
			require.NotZero(t, batch)
			return err
		}))
		_, names = fetchNames(t, s, 10)
		require.Equal(t, []string{"3", "4", "5", "6"}, names)
		require.NoError(t, s.Renew(t.Context(), inHand), "what it has in hand it keeps")
		_, names = fetchNames(t, table.Source(), 10)
		require.Empty(t, names)
	})
}

// A fetch whose context ends gives back what it has leased: the process may be at its end.
func TestATablesFetchThatEndsWithItsContext(t *testing.T) {
	eachTable(t, 3, func(t *testing.T, r *relayed) {
		ctx, stop := context.WithCancelCause(t.Context())
		scanRow := r.config.Scan
		r.config.Scan = func(scan func(...any) error) (happening, error) {
			if _, err := scanRow(scan); err != nil {
				return happening{}, err
			}
			stop(errors.New("stopped"))
			<-ctx.Done()
			return happening{}, ctx.Err()
		}
		_, err := r.table().Source().Fetch(ctx, 10)
		require.ErrorIs(t, err, context.Canceled)
		r.config.Scan = scanRow
		_, names := fetchNames(t, r.table().Source(), 10)
		require.Equal(t, []string{"1", "2", "3"}, names)
	})
}

// Fetches of one source at once hand out each row once.
func TestATablesFetchesAtOnce(t *testing.T) {
	eachTable(t, 30, func(t *testing.T, r *relayed) {
		s := r.table().Source()
		fetched := make(chan []string)
		for range 3 {
			go func() {
				var all []string
				for {
					rows, err := s.Fetch(t.Context(), 2)
					if err != nil {
						t.Error(err)
					}
					if len(rows) == 0 {
						fetched <- all
						return
					}
					for _, row := range rows {
						all = append(all, row.Name)
					}
				}
			}()
		}
		all := slices.Concat(<-fetched, <-fetched, <-fetched)
		require.Len(t, all, 30)
		slices.Sort(all)
		require.Len(t, slices.Compact(all), 30)
	})
}

// A function of the user's that panics leaves neither a lock nor a transaction: what is
// called next works.
func TestATablesFunctionsThatPanic(t *testing.T) {
	eachTable(t, 3, func(t *testing.T, r *relayed) {
		r.db.SetMaxOpenConns(1)
		scan, keyOf := r.config.Scan, r.config.KeyOf
		var scans, keys bool
		r.config.Scan = func(read func(...any) error) (happening, error) {
			if scans {
				panic("in Scan")
			}
			return scan(read)
		}
		r.config.KeyOf = func(e happening) []any {
			if keys {
				panic("in KeyOf")
			}
			return keyOf(e)
		}
		s := r.table().Source()
		for _, which := range []*bool{&scans, &keys} {
			*which = true
			require.Panics(t, func() { _, _ = s.Fetch(t.Context(), 10) })
			*which = false
			rows, names := fetchNames(t, s, 10)
			require.Equal(t, []string{"1", "2", "3"}, names)
			require.NoError(t, s.Release(t.Context(), rows, 0))
		}
		rows, _ := fetchNames(t, s, 10)
		for name, call := range map[string]func() error{
			"Mark":    func() error { return s.Mark(t.Context(), rows[:1]) },
			"Release": func() error { return s.Release(t.Context(), rows[1:2], 0) },
			"Renew":   func() error { return s.Renew(t.Context(), rows[2:]) },
			"Fail":    func() error { return s.Fail(t.Context(), []courier.FailedRecord[happening]{{Record: rows[2]}}) },
		} {
			keys = true
			require.Panics(t, func() { _ = call() }, name)
			keys = false
			require.NoError(t, s.Renew(t.Context(), rows), name)
		}
		require.NoError(t, s.Mark(t.Context(), rows))
		require.Zero(t, r.count(r.state()+"_batches"))
	})
}

// A relay that lost the leases of its rows may be the one that fetches them again.
func TestATablesRowsThatARelayFetchesAgain(t *testing.T) {
	eachTable(t, 3, func(t *testing.T, r *relayed) {
		s := r.table().Source()
		rows, _ := fetchNames(t, s, 10)
		r.advance(DefaultTableLease)
		lag, err := s.Lag(t.Context())
		require.NoError(t, err)
		require.Equal(t, 3, lag.Pending, "a lease that is over holds nothing")
		again, names := fetchNames(t, s, 10)
		require.Equal(t, []string{"1", "2", "3"}, names)
		require.NoError(t, s.Renew(t.Context(), rows))
		require.NoError(t, s.Mark(t.Context(), again))
		require.Empty(t, s.inHand)
		require.Empty(t, s.left)
		require.Zero(t, r.count(r.state()+"_batches"))
	})
}

// What is done to a row counts no more once its lease is lost, or it is marked by others.
func TestATablesRowsThatOthersChange(t *testing.T) {
	eachTable(t, 2, func(t *testing.T, r *relayed) {
		r.config.MaxCrashes = -1
		s, other := r.table().Source(), r.table().Source()
		rows, _ := fetchNames(t, s, 10)
		require.NoError(t, s.Fail(t.Context(), failing(nil, rows...)))
		r.advance(time.Second)
		rows, _ = fetchNames(t, s, 10)
		r.advance(DefaultTableLease)
		taken, names := fetchNames(t, other, 10)
		require.Equal(t, []string{"1", "2"}, names)
		require.Len(t, lostIndices(s.Renew(t.Context(), rows[:1])), 1)
		require.NoError(t, s.Renew(t.Context(), rows[:1]), "it is told once")
		require.NoError(t, s.Mark(t.Context(), rows))
		require.Equal(t, 2, r.count(r.state()), "the failures are the other's now")

		require.NoError(t, other.Mark(t.Context(), taken))
		r.rows(3, 3)
		rows, _ = fetchNames(t, other, 10)
		if r.config.Mark == "" {
			execute(t, r.db, `DELETE FROM `+r.ownTable.table())
		} else {
			execute(t, r.db, `UPDATE `+r.ownTable.table()+` SET `+r.config.Mark)
		}
		require.NoError(t, other.Fail(t.Context(), failing(nil, rows...)))
		require.Zero(t, r.count(r.state()), "a failure of a row that is pending no more")
		require.Zero(t, r.count(r.state()+"_batches"))
	})
}

// A record that a call has twice counts once, and calls at once end a lease together.
func TestATablesRowsThatAreMarkedOneByOne(t *testing.T) {
	eachTable(t, 8, func(t *testing.T, r *relayed) {
		s := r.table().Source()
		pair, _ := fetchNames(t, s, 2)
		require.NoError(t, s.Mark(t.Context(), []happening{pair[0], pair[0]}))
		require.Equal(t, 1, r.count(r.state()+"_batches"), "the other row is in hand")
		rows, _ := fetchNames(t, s, 10)
		var group sync.WaitGroup
		for _, row := range append(rows, pair[1]) {
			group.Go(func() {
				if err := s.Mark(t.Context(), []happening{row}); err != nil {
					t.Error(err)
				}
			})
			group.Go(func() {
				if err := s.Renew(t.Context(), rows); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		require.Zero(t, r.count(r.state()+"_batches"))
		require.Empty(t, s.left)
	})
}

// So many rows that cannot be read are no exception.
func TestATableOfRowsThatCannotBeRead(t *testing.T) {
	r := newRelayed(t, SQLite, ownTables(SQLite)["updates"], mostUnreadable+3)
	s := r.table().Source()
	_, names := fetchNames(t, s, 1)
	require.Equal(t, []string{"1"}, names)
	execute(t, r.db, `UPDATE events SET name = NULL WHERE id > 1`)
	_, err := s.Fetch(t.Context(), 10)
	require.ErrorContains(t, err, "reading the row")
	require.Equal(t, mostUnreadable, r.count(r.state()))
}

// A column of the key that changes with the row keeps a mark from a row that is not what was
// delivered.
func TestATablesRowThatChangesWhileInHand(t *testing.T) {
	for dialect, of := range databases {
		t.Run(of, func(t *testing.T) {
			r := newRelayed(t, dialect, ownTables(dialect)["several columns"], 2)
			s := r.table().Source()
			rows, _ := fetchNames(t, s, 10)
			execute(t, r.db, `UPDATE events SET number = 7, name = 'changed' WHERE number = 1`)
			require.NoError(t, s.Mark(t.Context(), rows))
			_, names := fetchNames(t, s, 10)
			require.Equal(t, []string{"Changed"}, names)
		})
	}
}
