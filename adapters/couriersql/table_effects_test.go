package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// spelled inserts the name of a record into the table effects, but fails for some names.
func spelled(bad ...string) func(context.Context, *sql.Tx, happening) error {
	return func(ctx context.Context, tx *sql.Tx, e happening) error {
		if _, err := tx.ExecContext(ctx, fmt.Sprintf(`INSERT INTO effects (name) VALUES ('%s')`, e.Name)); err != nil {
			return err
		}
		for _, name := range bad {
			if name == e.Name {
				return courier.Permanent(errors.New("bad name"))
			}
		}
		return nil
	}
}

func (r *relayed) effects() []string {
	r.t.Helper()
	return namesIn(r.t, r.db, "SELECT name FROM effects ORDER BY name")
}

// eachWithEffects is eachTable with a table that effects write to.
func eachWithEffects(t *testing.T, n int, test func(t *testing.T, r *relayed)) {
	eachTable(t, n, func(t *testing.T, r *relayed) {
		execute(t, r.db, `CREATE TABLE effects (name text NOT NULL)`)
		test(t, r)
	})
}

func TestATablesEffects(t *testing.T) {
	eachWithEffects(t, 5, func(t *testing.T, r *relayed) {
		s := r.table().Source()
		rows, _ := fetchNames(t, s, 4)
		require.NoError(t, s.Fail(t.Context(), failing(nil, rows[0])))
		r.advance(time.Second)
		again, names := fetchNames(t, s, 1)
		require.Equal(t, []string{"1"}, names)
		applier := s.Effects(spelled("3"))
		err := applier.ApplyBatch(t.Context(), append(again, rows[1:]...))
		var list *courier.BatchError
		require.ErrorAs(t, err, &list)
		require.Len(t, list.Failures, 1)
		require.Equal(t, 2, list.Failures[0].Index)
		require.ErrorContains(t, err, "bad name")
		require.Equal(t, []string{"1", "2", "4"}, r.effects())
		require.Zero(t, r.count(r.state()), "a failure is left of a row that is marked")
		require.Equal(t, 1, r.count(r.state()+"_batches"), "the one of the row that failed")
		left, err := r.table().Pending(t.Context())
		require.NoError(t, err)
		require.Equal(t, 2, left)
		require.NoError(t, s.Mark(t.Context(), rows[1:2]), "as a coordinator does")
		require.NoError(t, s.Effects(spelled()).Apply(t.Context(), rows[2]))
		require.Zero(t, r.count(r.state()+"_batches"))
		require.Equal(t, []string{"1", "2", "3", "4"}, r.effects())
		require.Empty(t, r.log.String())
	})
}

// Of a row that an earlier try has marked, though its answer was lost, the effect is there.
func TestATablesEffectsAfterACommitOfUnknownOutcome(t *testing.T) {
	eachWithEffects(t, 3, func(t *testing.T, r *relayed) {
		s := r.table().Source()
		rows, _ := fetchNames(t, s, 10)
		where := fmt.Sprintf("FROM %s WHERE name = '2'", r.ownTable.table())
		if r.config.Mark == "" {
			execute(t, r.db, "DELETE "+where)
		} else {
			execute(t, r.db, fmt.Sprintf("UPDATE %s SET %s WHERE name = '2'", r.ownTable.table(), r.config.Mark))
		}
		require.NoError(t, s.Effects(spelled()).ApplyBatch(t.Context(), rows))
		require.Equal(t, []string{"1", "3"}, r.effects())
		require.Empty(t, s.inHand)
		require.Zero(t, r.count(r.state()+"_batches"))
	})
}

func TestATablesEffectsOfALostLease(t *testing.T) {
	eachWithEffects(t, 3, func(t *testing.T, r *relayed) {
		s, other := r.table().Source(), r.table().Source()
		rows, _ := fetchNames(t, s, 10)
		r.advance(DefaultTableLease + time.Second)
		taken, _ := fetchNames(t, other, 1)
		err := s.Effects(spelled()).ApplyBatch(t.Context(), rows)
		var list *courier.BatchError
		require.ErrorAs(t, err, &list)
		require.Len(t, list.Failures, 3)
		for _, f := range list.Failures {
			require.ErrorIs(t, f.Err, ErrLeaseLost)
		}
		require.NoError(t, other.Effects(spelled()).ApplyBatch(t.Context(), taken))
		require.ErrorIs(t, other.Effects(spelled()).Apply(t.Context(), taken[0]), ErrLeaseLost, "as where a letter of it is redriven")
		require.Equal(t, []string{"1"}, r.effects())
	})
}

// The lease ends while an effect runs, and another relay is quicker.
func TestATablesEffectsWhoseLeaseEndsMeanwhile(t *testing.T) {
	for _, dialect := range []Dialect{Postgres, MySQL} { // SQLite has one writer at a time
		t.Run(databases[dialect], func(t *testing.T) { effectsWhoseLeaseEnds(t, newRelayed(t, dialect, ownTables(dialect)["updates"], 2)) })
	}
}

func effectsWhoseLeaseEnds(t *testing.T, r *relayed) {
	execute(t, r.db, `CREATE TABLE effects (name text NOT NULL)`)
	s, other := r.table().Source(), r.table().Source()
	rows, _ := fetchNames(t, s, 10)
	once := true
	err := s.BatchEffects(func(ctx context.Context, tx *sql.Tx, fresh []happening) error {
		if once {
			once = false
			require.NoError(t, s.Renew(ctx, rows), "the transaction keeps nobody from the lease")
			r.advance(DefaultTableLease + time.Second)
			taken, _ := fetchNames(t, other, 1)
			require.NoError(t, other.Effects(spelled()).ApplyBatch(ctx, taken))
		}
		return spelled()(ctx, tx, fresh[0])
	}).ApplyBatch(t.Context(), rows)
	require.ErrorIs(t, err, ErrLeaseLost, "the second row is pending, and may be in other hands")
	require.Equal(t, []string{"1"}, r.effects())
}

func TestATablesEffectsByPgx(t *testing.T) {
	r := newRelayed(t, Postgres, ownTables(Postgres)["several columns"], 3)
	execute(t, r.db, `CREATE TABLE effects (name text NOT NULL)`)
	s := r.table().Source()
	rows, _ := fetchNames(t, s, 10)
	require.NoError(t, s.PgxEffects(func(ctx context.Context, tx pgx.Tx, e happening) error {
		_, err := tx.Exec(ctx, `INSERT INTO effects (name) VALUES ($1)`, e.Name)
		return err
	}).ApplyBatch(t.Context(), rows))
	require.Equal(t, []string{"1", "2", "3"}, r.effects())
	sqlite := newRelayed(t, SQLite, ownTables(SQLite)["updates"], 0).table().Source()
	require.ErrorContains(t, sqlite.PgxEffects(nil).(courier.Validator).Validate(), "effect")
	require.ErrorContains(t, sqlite.PgxEffects(func(context.Context, pgx.Tx, happening) error { return nil }).(courier.Validator).Validate(), "not one of the driver")
}

// A relay that is frozen between the mark and the commit keeps others from its lease for no
// longer than a minute.
func TestAMarkThatIsNotCommitted(t *testing.T) {
	r := newRelayed(t, Postgres, ownTables(Postgres)["updates"], 3)
	s := r.table().Source()
	rows, _ := fetchNames(t, s, 3)
	store, err := s.table.described(t.Context())
	require.NoError(t, err)
	for before, want := range map[string]string{"0": "1min", "10s": "10s", "1h": "1min"} {
		tx, err := r.db.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		in := func(ctx context.Context, query string, args ...any) ([]string, error) {
			return texts(ctx, tx, query, args...)
		}
		_, err = in(t.Context(), `SELECT set_config('idle_in_transaction_session_timeout', $1, true)`, before)
		require.NoError(t, err)
		n, err := store.markIn(t.Context(), in, s.owner, s.parts(rows, nil)[0])
		require.NoError(t, err)
		require.Equal(t, 3, n)
		got, err := in(t.Context(), `SELECT current_setting('idle_in_transaction_session_timeout')`)
		require.NoError(t, err)
		require.Equal(t, []string{want}, got)
		require.NoError(t, tx.Rollback())
	}
}

// In MySQL too, half a minute, and the session is as it was before.
func TestAMarkThatIsNotCommittedInMySQL(t *testing.T) {
	r := newRelayed(t, MySQL, ownTables(MySQL)["updates"], 3)
	r.db.SetMaxOpenConns(1)
	s := r.table().Source()
	rows, _ := fetchNames(t, s, 3)
	const settings = `SELECT concat(@@SESSION.wait_timeout, ' ', @@SESSION.net_write_timeout)`
	before := namesIn(t, r.db, settings)
	var in, marked []string
	applier := s.Effects(func(ctx context.Context, tx *sql.Tx, e happening) (err error) {
		if in, err = texts(ctx, tx, settings); e.ID == 2 {
			err = errors.New("no")
		}
		return err
	}).(*effects[happening, *sql.Tx])
	begin := applier.begin
	applier.begin = func(ctx context.Context, d *database, conn *sql.Conn, use func(transacting[*sql.Tx]) error) error {
		return begin(ctx, d, conn, func(tx transacting[*sql.Tx]) error {
			commit := tx.commit
			tx.commit = func(ctx context.Context) (err error) {
				if marked, err = tx.texts(ctx, settings); err != nil {
					return err
				}
				return commit(ctx)
			}
			return use(tx)
		})
	}
	require.ErrorContains(t, applier.ApplyBatch(t.Context(), rows), "no")
	require.Equal(t, before, in, "an effect may take its time")
	require.Equal(t, []string{"30 30"}, marked)
	require.Equal(t, before, namesIn(t, r.db, settings))
}

// Workers of one lease, and several relays, some of whose effects fail: each happens once.
func TestSeveralRelaysOfATablesEffects(t *testing.T) {
	const rows = 150
	eachWithEffects(t, rows, func(t *testing.T, r *relayed) {
		r.config.InitialBackoff, r.config.LongestBackoff, r.config.Clock = time.Millisecond, time.Millisecond, nil
		r.config.QueryTimeout, r.config.Lease = time.Minute, time.Hour
		r.config.Logger = slog.New(slog.DiscardHandler)
		var mu sync.Mutex
		failures := map[string]int{}
		for i := 1; i <= rows; i += 9 {
			failures[fmt.Sprint(i)] = 1 + i%2
		}
		effect := func(ctx context.Context, tx *sql.Tx, e happening) error {
			if err := spelled()(ctx, tx, e); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if failures[e.Name] > 0 {
				failures[e.Name]--
				return errors.New("not yet")
			}
			return nil
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var group sync.WaitGroup
		for i := range 2 {
			table := r.table()
			source := table.Source()
			group.Go(func() {
				if err := courier.NewPollingCoordinator(source, source.Effects(effect), courier.WithInterval(time.Millisecond), courier.WithBatchSize(20),
					courier.WithWorkers(3), courier.WithPrefetch(i), courier.WithLogger(slog.New(slog.DiscardHandler))).Start(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		table := r.table()
		require.Eventually(t, func() bool {
			left, err := table.Pending(t.Context())
			return err == nil && left == 0
		}, time.Minute, 5*time.Millisecond)
		stop()
		group.Wait()
		require.Len(t, r.effects(), rows)
		require.Equal(t, rows, count(t, r.db, "SELECT count(DISTINCT name) FROM effects"))
		require.Zero(t, r.count(r.state()+"_batches"))
		require.Zero(t, r.count(r.state()))
	})
}
