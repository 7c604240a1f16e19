package couriersql

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
)

// explain returns the plan of a statement, with the number of rows that each
// step came across.
func explain(t *testing.T, db *sql.DB, text string, args ...any) string {
	t.Helper()
	return explainWith(t, db, postgresGrammar().plan, text, args...)
}

func explainWith(t *testing.T, db *sql.DB, settings, text string, args ...any) string {
	t.Helper()
	tx, err := db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	defer tx.Rollback()
	_, err = tx.ExecContext(t.Context(), settings)
	require.NoError(t, err)
	rows, err := tx.QueryContext(t.Context(), "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) "+text, args...)
	require.NoError(t, err)
	defer rows.Close()
	var plan []string
	for rows.Next() {
		var line string
		require.NoError(t, rows.Scan(&line))
		plan = append(plan, line)
	}
	require.NoError(t, rows.Err())
	return strings.Join(plan, "\n")
}

// fill adds n rows, processed or pending.
func fill(t *testing.T, o *Outbox, n int, processed bool) {
	t.Helper()
	execute(t, o.db, `INSERT INTO courier_outbox (id, topic, payload, processed_at)
		SELECT gen_random_uuid(), 'orders', '', CASE WHEN $2::bool THEN now() END FROM generate_series(1, $1)`, n, processed)
}

// The planner must take the pending rows from their index, in order, whatever
// its statistics say: those of a time when there were none, or nothing else.
func TestPostgresFetchGoesByThePartialIndex(t *testing.T) {
	o := newPostgres(t, WithKeep())
	for _, step := range []func(){
		func() {}, // no statistics yet
		func() { execute(t, o.db, `VACUUM ANALYZE courier_outbox`) }, // by which all costs the same
		func() { fill(t, o, 50_000, true) },
		func() { execute(t, o.db, `ANALYZE courier_outbox`) },
		func() { fill(t, o, 50_000, false) }, // a backlog of which the statistics know nothing
		func() { execute(t, o.db, `ANALYZE courier_outbox`) },
		func() { execute(t, o.db, `UPDATE courier_outbox SET processed_at = now()`) },
		func() { fill(t, o, 10, false) },
	} {
		step()
		for name, text := range map[string]string{"lock": o.grammar.lock, "ordered": o.grammar.ordered, "claim": o.grammar.claim} {
			args := []any{100}
			switch name {
			case "claim":
				args = append(args, "me", 1, 0, DefaultFetchBytes, always.Microseconds())
			case "ordered":
				args = append(args, 1, 0, 0, DefaultFetchBytes, "{}", "{}")
			case "lock":
				args = append(args, 0, DefaultFetchBytes)
			}
			plan := explain(t, o.db, o.sql(text), args...)
			require.Contains(t, plan, "Index Scan using courier_outbox_pending", name)
			require.Contains(t, plan, "Index Scan using courier_outbox_waiting", name)
			require.NotContains(t, strings.ReplaceAll(strings.ReplaceAll(plan, "Sort Key: failed.seq", ""), "Sort Key: courier_outbox.seq", ""), "Sort Key", name) // but numbers of what is returned
			require.NotContains(t, plan, "Seq Scan", name)
			if name == "ordered" {
				require.Contains(t, plan, "Scan using courier_outbox_failed")
			}
		}
	}
	// The statements that mark find their rows, and do not look for them.
	known := o.grammar.known(make([]Row, 1000))
	for _, text := range []string{o.grammar.delete, o.grammar.keep, o.grammar.deleteKnown, o.grammar.keepKnown,
		o.grammar.deleteFree, o.grammar.keepFree, o.grammar.left, o.grammar.reused, o.grammar.large} {
		args := known
		if text == o.grammar.delete || text == o.grammar.keep {
			args = known[:1]
		}
		if strings.HasPrefix(text, "UPDATE") {
			args = append(slices.Clone(args), time.Now())
		}
		require.NotContains(t, explainWith(t, o.db, "", o.sql(text), args...), "Seq Scan")
	}
	for _, text := range []string{o.grammar.deleteClaimed, o.grammar.renew} {
		args := append(o.grammar.claims(make([]Row, 1)), "me")
		if text == o.grammar.renew {
			args = append(args, 1)
		}
		require.NotContains(t, explain(t, o.db, o.sql(text), args...), "Seq Scan")
	}
	require.Contains(t, explainWith(t, o.db, "", o.sql(o.grammar.suspects), 103), "courier_outbox_suspects")
	require.Contains(t, explainWith(t, o.db, "", o.sql(o.grammar.countSuspects), "me", 1, always.Microseconds()), "courier_outbox_suspects")
	require.Contains(t, explainWith(t, o.db, "", o.sql(o.grammar.crashed), 103, 0), "courier_outbox_suspects")
	require.Contains(t, explain(t, o.db, o.sql(o.grammar.claimSuspects), 10, "me", 1, 1, DefaultFetchBytes, 1), "courier_outbox_suspects")
	require.Contains(t, explain(t, o.db, o.sql(o.grammar.prune), time.Unix(0, 0), 1000), "courier_outbox_processed")
}

// A row that is committed late has a lower number than rows that were handed
// out and marked long since. Nothing may be passed over.
func TestPostgresRowsThatAreCommittedLate(t *testing.T) {
	for name, opts := range map[string][]Option{"locked": nil, "leased": {WithLease(time.Minute)}, "elected": {WithStrictOrder()}} {
		for keep, more := range keeping {
			t.Run(name+" "+keep, func(t *testing.T) {
				o := newPostgres(t, append(more, opts...)...)
				s := o.Source()
				var delivered []string
				relay := func() {
					rows := take(t, s, 3)
					delivered = append(delivered, idsOf(rows)...)
					require.NoError(t, s.Mark(t.Context(), rows))
				}
				var long []*sql.Tx
				var want []string
				for i := range 20 {
					tx, err := o.db.BeginTx(t.Context(), nil)
					require.NoError(t, err)
					id := fmt.Sprint("long ", i)
					require.NoError(t, o.Write(t.Context(), tx, named(id)...))
					if i%4 == 3 {
						require.NoError(t, tx.Rollback())
						continue
					}
					long, want = append(long, tx), append(want, id)
					write(t, o, named(fmt.Sprint("short ", i))...)
					want = append(want, fmt.Sprint("short ", i))
					relay()
					if len(long) > 3 { // some end in the middle, in no order
						require.NoError(t, long[1].Commit())
						long = append(long[:1], long[2:]...)
						relay()
					}
				}
				for i := len(long) - 1; i >= 0; i-- {
					require.NoError(t, long[i].Commit())
					relay()
				}
				relay()
				require.ElementsMatch(t, want, delivered)
			})
		}
	}
}

func TestWritePgx(t *testing.T) {
	dsn := pgtest.Schema(t)
	pool, err := pgxpool.New(t.Context(), dsn)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	db := stdlib.OpenDBFromPool(pool)
	t.Cleanup(func() { _ = db.Close() })
	o := outboxIn(t, db)

	require.NoError(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		return o.WritePgx(t.Context(), tx, named("a", "b")...)
	}))
	err = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		return o.WritePgx(t.Context(), tx, named("c", "a")...)
	})
	require.ErrorIs(t, err, ErrDuplicateID)
	require.ErrorContains(t, err, `written before: "a"; roll`)
	require.Equal(t, []string{"a", "b"}, idsOf(fetch(t, o, 10)))

	require.ErrorIs(t, o.WritePgx(t.Context(), nil), courier.ErrConfig)
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	require.ErrorIs(t, newOutbox(t).WritePgx(t.Context(), tx), courier.ErrConfig)
	require.ErrorIs(t, New(nil, Postgres).WritePgx(t.Context(), tx), courier.ErrConfig)
	require.NoError(t, tx.Rollback(t.Context()))
}

// What a pooler in transaction mode asks of its clients: rows are the same in all
// modes, though in the first they come in the binary format.
func TestPostgresWithoutPreparedStatements(t *testing.T) {
	created := time.Date(1999, 12, 31, 23, 59, 59, 999_999_000, time.UTC)
	inEachMode(t, func(t *testing.T, dsn string) {
		for claim, opts := range [][]Option{nil, {WithLease(time.Minute)}} {
			o := outboxIn(t, openPostgres(t, dsn), append(opts, WithTable(fmt.Sprint("outbox", claim)))...)
			write(t, o, Message{ID: "a", Topic: "t", Payload: []byte{0, 0xff}, CreatedAt: created},
				Message{ID: "b", Topic: "u", Key: "k", Payload: []byte{}, Headers: map[string]string{"a": `"\`}, Trace: map[string]string{"b": "é"}, CreatedAt: created.Add(time.Hour)})
			s := o.Source()
			s.RenewEvery()
			rows := take(t, s, 10)
			require.Equal(t, []Row{
				{Seq: 1, ID: "a", Topic: "t", Payload: []byte{0, 0xff}, CreatedAt: created.UnixMicro(), claim: int64(claim), origin: &s.origin},
				{Seq: 2, ID: "b", Topic: "u", Key: "k", Payload: []byte{}, Headers: `{"a":"\"\\"}`, Trace: `{"b":"é"}`, CreatedAt: created.Add(time.Hour).UnixMicro(), claim: int64(claim), origin: &s.origin},
			}, rows)
			require.NoError(t, s.Renew(t.Context(), rows))
			require.NoError(t, s.Mark(t.Context(), rows[:1]))
			require.Empty(t, take(t, o.Source(), 10), "what is left is held")
			require.NoError(t, s.Fail(t.Context(), failedWith(context.Canceled, rows[1])))
			require.NoError(t, o.DLQ().Send(t.Context(), letter("b", nil)))
			_, err := o.DLQ().Receive(t.Context(), 1)
			require.NoError(t, err)
			require.NoError(t, o.DLQ().Delete(t.Context(), idAt("1.1")))
		}
	})
}

// inEachMode runs a test in each of the ways in which pgx executes statements.
func inEachMode(t *testing.T, test func(t *testing.T, dsn string)) {
	for _, mode := range []string{"cache_statement", "cache_describe", "exec", "simple_protocol", "describe_exec"} {
		t.Run(mode, func(t *testing.T) { test(t, pgtest.Schema(t)+" default_query_exec_mode="+mode) })
	}
}

// Of statements that go to the server together, none takes effect when one fails,
// though the commit is among them.
func TestPostgresMarksThatFail(t *testing.T) {
	inEachMode(t, func(t *testing.T, dsn string) {
		o := outboxIn(t, openPostgres(t, dsn))
		execute(t, o.db, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$`)
		for _, trigger := range []string{
			`CREATE TRIGGER refusal BEFORE DELETE ON courier_outbox FOR EACH ROW`,
			`CREATE CONSTRAINT TRIGGER refusal AFTER DELETE ON courier_outbox DEFERRABLE INITIALLY DEFERRED FOR EACH ROW`, // by the commit
		} {
			execute(t, o.db, trigger+` WHEN (OLD.id = 'b') EXECUTE FUNCTION refuse()`)
			write(t, o, named("a", "b", "c")...)
			s := o.Source()
			s.RenewEvery()
			rows := take(t, s, 10)
			require.NoError(t, s.DLQ().Send(t.Context(), letterFor(rows[0])))
			require.ErrorContains(t, s.Mark(t.Context(), rows), "refused")
			require.Equal(t, []string{"a", "b", "c"}, pendingOf(t, o))
			require.Empty(t, lettersOf(t, o))

			execute(t, o.db, `DROP TRIGGER refusal ON courier_outbox`)
			require.NoError(t, s.Mark(t.Context(), rows))
			require.Equal(t, []string{"a"}, pendingOf(t, o), "b and c were delivered")
			execute(t, o.db, `DELETE FROM courier_outbox`)
		}
	})
}

func TestPostgresFetchesThatFail(t *testing.T) {
	inEachMode(t, func(t *testing.T, dsn string) {
		for _, opts := range [][]Option{nil, {WithLease(time.Minute)}, {WithStrictOrder()}} {
			o := outboxIn(t, openPostgres(t, dsn), opts...)
			s := o.Source()
			require.Empty(t, take(t, s, 10)) // the statement is prepared
			execute(t, o.db, `ALTER TABLE courier_outbox RENAME COLUMN topic TO topics`)
			_, err := s.Fetch(t.Context(), 10)
			require.ErrorContains(t, err, "call Migrate, which names the columns")
			execute(t, o.db, `ALTER TABLE courier_outbox RENAME COLUMN topics TO topic`)
			require.Empty(t, take(t, s, 10))
			require.NoError(t, o.Close())
		}
	})
}

// writes counts what a connection sends: each flush is a round trip.
type writes struct {
	net.Conn
	n *atomic.Int64
}

func (w writes) Write(p []byte) (int, error) {
	w.n.Add(1)
	return w.Conn.Write(p)
}

func TestPostgresRoundTripsOfABatch(t *testing.T) {
	config, err := pgx.ParseConfig(pgtest.Schema(t))
	require.NoError(t, err)
	var n atomic.Int64
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return writes{conn, &n}, err
	}
	db := stdlib.OpenDB(*config, stdlib.OptionShouldPing(func(context.Context, stdlib.ShouldPingParams) bool { return false }))
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	o := outboxIn(t, db)
	s := o.Source()
	s.RenewEvery()
	for range 2 { // at first, statements are prepared
		write(t, o, named("a", "b")...)
		n.Store(0)
		rows := take(t, s, 10)
		require.NoError(t, s.Mark(t.Context(), rows))
	}
	require.EqualValues(t, 2, n.Load())
	n.Store(0)
	require.Empty(t, take(t, s, 10))
	require.EqualValues(t, 2, n.Load())
}

// A table that is partitioned by time, as the README makes one: old partitions
// are dropped, not pruned.
func TestPostgresPartitionedTable(t *testing.T) {
	db := openPostgres(t, pgtest.Schema(t))
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, recipe, _ := strings.Cut(string(readme), "\n## Partitions\n")
	_, recipe, _ = strings.Cut(recipe, "```sql\n")
	recipe, _, found := strings.Cut(recipe, "```")
	require.True(t, found)
	execute(t, db, recipe)
	execute(t, db, `CREATE TABLE new PARTITION OF courier_outbox DEFAULT`)
	execute(t, db, `ALTER TABLE courier_outbox_2026_01 RENAME TO old`)
	log := new(logged)
	o := outboxIn(t, db, WithKeep(), log.option())
	write(t, o, Message{ID: "a", Topic: "t", CreatedAt: time.Date(2026, 1, 15, 0, 0, 0, 0, time.UTC)}, Message{ID: "b", Topic: "t"})
	for range 5_000 / 1000 {
		fill(t, o, 1000, true)
	}
	execute(t, db, `ANALYZE courier_outbox`)
	plan := explain(t, db, o.sql(o.grammar.lock), 100, 0, DefaultFetchBytes)
	require.NotContains(t, plan, "Seq Scan", plan)
	require.NotContains(t, plan, "Sort  (", plan)
	require.Contains(t, plan, "Merge Append")
	s := o.Source()
	rows := take(t, s, 10)
	require.Equal(t, []string{"a", "b"}, idsOf(rows))
	require.NoError(t, s.Mark(t.Context(), rows[:1]))
	require.NoError(t, s.Release(t.Context(), rows[1:], 0))
	execute(t, db, `ALTER TABLE courier_outbox DETACH PARTITION old`)
	require.Equal(t, []string{"b"}, idsOf(fetch(t, o, 10)))
	require.Empty(t, log.String())
}

func TestPostgresMigrateAtOnce(t *testing.T) {
	dsn := pgtest.Schema(t)
	errs := make(chan error)
	for range 8 {
		db := openPostgres(t, dsn)
		go func() { errs <- New(db, Postgres).Migrate(context.Background()) }()
	}
	for range 8 {
		require.NoError(t, <-errs)
	}
}

func TestPostgresMigrateRefuses(t *testing.T) {
	db := openPostgres(t, pgtest.Schema(t))
	execute(t, db, `CREATE TABLE courier_outbox (id integer PRIMARY KEY, body text NOT NULL)`)
	err := New(db, Postgres).Migrate(t.Context())
	require.ErrorContains(t, err, "the table courier_outbox is not one of this package: column seq BIGINT is missing, column id is INTEGER and not TEXT, ")
	require.NoError(t, New(db, Postgres, WithTable("another")).Migrate(t.Context()), "the advice helps")
	require.NoError(t, New(db, Postgres, WithTable("another")).Migrate(t.Context()))
	execute(t, db, `INSERT INTO courier_migrations VALUES ('another', 7, now())`)
	require.ErrorContains(t, New(db, Postgres, WithTable("another")).Migrate(t.Context()), "run a program with a newer couriersql")
	execute(t, db, `DELETE FROM courier_migrations WHERE version = 7`)
	execute(t, db, `DROP TABLE another`)
	require.ErrorContains(t, New(db, Postgres, WithTable("another")).Migrate(t.Context()), "the table another is missing though its version is recorded")
}

func TestPostgresAdvice(t *testing.T) {
	db := openPostgres(t, pgtest.Schema(t))
	o := New(db, Postgres)
	_, err := o.Source().Fetch(t.Context(), 1)
	require.ErrorContains(t, err, "call Migrate first")
	_, err = New(db, Postgres, WithStrictOrder()).Source().Fetch(t.Context(), 1)
	require.ErrorContains(t, err, "call Migrate first")
	require.NoError(t, o.Migrate(t.Context()))
	execute(t, db, `ALTER TABLE courier_outbox RENAME COLUMN topic TO topics`)
	_, err = o.Source().Fetch(t.Context(), 1)
	require.ErrorContains(t, err, "call Migrate, which names the columns")

	nowhere := openPostgres(t, "host="+t.TempDir()+" user=nobody")
	_, err = New(nowhere, Postgres).Source().Fetch(t.Context(), 1)
	require.ErrorContains(t, err, "is the server up")
}

func TestPostgresIdleTransactionTimeout(t *testing.T) {
	dsn := pgtest.Schema(t)
	o := outboxIn(t, openPostgres(t, dsn))
	write(t, o, named("a")...)
	s := New(openPostgres(t, dsn+" idle_in_transaction_session_timeout=50ms"), Postgres).Source()
	t.Cleanup(func() { require.NoError(t, s.outbox.Close()) })
	rows := take(t, s, 10)
	require.Eventually(t, func() bool { return s.Renew(t.Context(), rows) != nil }, 10*time.Second, 100*time.Millisecond)
	require.NoError(t, s.Mark(t.Context(), rows))
	require.Empty(t, pendingOf(t, o))
}

// A mark takes its rows from the index and looks each of them up, though a planner that
// takes the table for empty would as soon compare each row with each.
func TestPostgresMarkComparesNoRowWithEach(t *testing.T) {
	o := newPostgres(t)
	execute(t, o.db, `ANALYZE courier_outbox`)
	fill(t, o, 1000, false)
	s := o.Source()
	rows := take(t, s, 1000)
	require.NoError(t, o.Close())
	g := o.grammar
	for text, args := range map[string][]any{
		g.deleteKnown:   g.known(rows),
		g.deleteClaimed: append(g.claims(rows), ""),
	} {
		for _, mode := range []string{"custom", "generic"} {
			plan := explainWith(t, o.db, `SET LOCAL enable_seqscan = off; SET LOCAL plan_cache_mode = force_`+mode+`_plan`, o.sql(text), args...)
			require.Contains(t, plan, "hashed SubPlan")
			require.NotContains(t, plan, "Join")
			require.NotContains(t, plan, "Nested Loop")
			require.Contains(t, plan, "courier_outbox_pkey")
		}
	}
}
