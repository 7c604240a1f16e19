package couriersql

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/stretchr/testify/require"
)

// Each call works in each of the ways in which pgx executes statements, directly and behind a
// pooler that gives each transaction another session, and whatever isolation is set.
func TestPostgresTableInEachMode(t *testing.T) {
	inEachMode(t, func(t *testing.T, dsn string) {
		ways := []string{dsn, dsn + " default_transaction_isolation=serializable"}
		if _, mode, _ := strings.Cut(dsn, "default_query_exec_mode="); mode != "cache_statement" && mode != "describe_exec" { // which prepare statements
			ways = append(ways, transactionPooler(t, pgtest.Schema(t), 3)+" default_query_exec_mode="+mode)
		}
		for _, dsn := range ways {
			for _, name := range []string{"several columns", "several columns, deletes", "strict", "deletes"} {
				r := newRelayed(t, Postgres, ownTables(Postgres)[name], 0)
				r.db = openPostgres(t, dsn)
				for _, text := range r.create {
					execute(t, r.db, text)
				}
				r.rows(1, 6)
				s := r.table().Source()
				rows, names := fetchNames(t, s, 4)
				require.Equal(t, []string{"1", "2", "3", "4"}, names)
				require.NoError(t, s.Mark(t.Context(), rows[:1]))
				require.NoError(t, s.Fail(t.Context(), failing(errors.New("it's \x00"), rows[1])))
				require.NoError(t, s.Release(t.Context(), rows[2:3], 0))
				require.NoError(t, s.Renew(t.Context(), rows[3:]))
				require.NoError(t, s.Mark(t.Context(), rows[3:]))
				_, err := s.Lag(t.Context())
				require.NoError(t, err)
				rows, names = fetchNames(t, s, 10)
				require.Equal(t, []string{"3", "5", "6"}, names)
				require.NoError(t, s.Mark(t.Context(), rows))
				_, err = r.table().Explain(t.Context())
				require.NoError(t, err)
				require.Zero(t, r.count(r.state()+"_batches"))
				for _, table := range []string{"refused", "events", r.state(), r.state() + "_batches", "courier_migrations"} {
					execute(t, r.db, "DROP TABLE IF EXISTS "+table)
				}
			}
		}
	})
}

// A database whose transactions are serializable, or that is altered, hides or generates
// what it likes.
func TestPostgresTableInADatabaseOfItsOwnWill(t *testing.T) {
	for name, texts := range map[string][]string{
		"partitioned":       {`DROP TABLE events`, `CREATE TABLE events (id bigint PRIMARY KEY, name text, sent_at timestamptz) PARTITION BY HASH (id)`, `CREATE TABLE events_0 PARTITION OF events FOR VALUES WITH (MODULUS 2, REMAINDER 0)`, `CREATE TABLE events_1 PARTITION OF events FOR VALUES WITH (MODULUS 2, REMAINDER 1)`},
		"generated":         {`ALTER TABLE events ADD COLUMN sent boolean GENERATED ALWAYS AS (sent_at IS NOT NULL) STORED`},
		"row security":      {`ALTER TABLE events ENABLE ROW LEVEL SECURITY`, `ALTER TABLE events FORCE ROW LEVEL SECURITY`, `CREATE POLICY all_rows ON events USING (true)`},
		"a trigger":         {`CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.name := NEW.name; RETURN NEW; END $$`, `CREATE TRIGGER touch BEFORE UPDATE ON events FOR EACH ROW EXECUTE FUNCTION touch()`},
		"serializable":      {},
		"'repeatable read'": {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRelayed(t, Postgres, ownTables(Postgres)["updates"], 0)
			if len(texts) == 0 {
				r.db = openPostgres(t, pgtest.Schema(t)+" default_transaction_isolation="+name)
				texts = r.create
			}
			for _, text := range texts {
				execute(t, r.db, text)
			}
			r.rows(1, 60)
			if name == "generated" {
				r.config.Pending = "NOT sent"
			}
			r.deliverAll(3)
		})
	}
}

// deliverAll has some relays at once deliver what is pending, and alters the table meanwhile.
func (r *relayed) deliverAll(relays int) {
	r.t.Helper()
	t := r.t
	r.config.Logger, r.config.InitialBackoff, r.config.LongestBackoff = slog.New(slog.DiscardHandler), time.Millisecond, time.Millisecond
	want, err := r.table().Pending(t.Context())
	require.NoError(t, err)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	var mu sync.Mutex
	delivered := map[string]int{}
	var group sync.WaitGroup
	for range relays {
		table := r.table()
		group.Go(func() {
			if err := courier.NewPollingCoordinator(table.Source(), courier.ProcessFunc(func(_ context.Context, e happening) error {
				mu.Lock()
				defer mu.Unlock()
				if delivered[e.Name]++; len(delivered) == want {
					stop()
				}
				return nil
			}), courier.WithBatchSize(7), courier.WithInterval(time.Millisecond), courier.WithPrefetch(1), courier.WithLogger(slog.New(slog.DiscardHandler))).Start(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	for i := range 5 {
		_, err := r.db.ExecContext(ctx, fmt.Sprintf(`ALTER TABLE events ADD COLUMN extra%d text DEFAULT 'x'`, i))
		require.True(t, err == nil || ctx.Err() != nil, err)
	}
	group.Wait()
	require.False(t, errors.Is(ctx.Err(), context.DeadlineExceeded))
	for name, n := range delivered {
		if n != 1 {
			t.Errorf("%s was delivered %d times", name, n)
		}
	}
	left, err := r.table().Pending(t.Context())
	require.NoError(t, err)
	require.Zero(t, left)
	require.Zero(t, r.count(r.state()+"_batches"))
}
