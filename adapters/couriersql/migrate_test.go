package couriersql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/stretchr/testify/require"
)

func versions(t *testing.T, o *Outbox) (list []int) {
	t.Helper()
	rows, err := o.db.QueryContext(t.Context(), `SELECT version FROM courier_migrations WHERE outbox = $1 ORDER BY version`, o.table)
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var v int
		require.NoError(t, rows.Scan(&v))
		list = append(list, v)
	}
	require.NoError(t, rows.Err())
	return list
}

func TestMigrateTwice(t *testing.T) {
	o := newOutbox(t)
	write(t, o, named("a")...)
	require.NoError(t, o.Migrate(t.Context()))
	require.Equal(t, []int{1, 2, 3}, versions(t, o))
	require.Len(t, fetch(t, o, 10), 1)
}

func TestMigrateTwoOutboxesOfOneDatabase(t *testing.T) {
	first := newOutbox(t)
	second := outboxIn(t, first.db, WithTable("events"))
	write(t, second, named("a")...)
	require.Empty(t, fetch(t, first, 10))
	require.Len(t, fetch(t, second, 10), 1)
}

// As by processes that start together: each has a pool of its own. The first
// outbox creates the file, the second one finds the table of versions there.
func TestMigrateAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	pools := make([]*sql.DB, 8)
	for i := range pools {
		pools[i] = open(t, path)
	}
	for _, table := range []string{"first", "second"} {
		errs := make(chan error)
		for _, db := range pools {
			go func() { errs <- New(db, SQLite, WithTable(table)).Migrate(context.Background()) }()
		}
		for range pools {
			require.NoError(t, <-errs)
		}
		require.Equal(t, []int{1, 2, 3}, versions(t, New(pools[0], SQLite, WithTable(table))))
	}
}

// flaky is a driver whose first connections find the file locked.
type flaky struct {
	counting
	failures atomic.Int64
	failed   func()
}

func (f *flaky) Connect(ctx context.Context) (driver.Conn, error) {
	if f.failures.Add(-1) >= 0 {
		f.failed()
		return nil, errors.New("database is locked (5) (SQLITE_BUSY)")
	}
	return f.counting.Connect(ctx)
}

func TestMigrateWaitsForAFileThatIsBeingCreated(t *testing.T) {
	f := &flaky{counting: counting{SQLiteDSN(filepath.Join(t.TempDir(), "test.db")), new(atomic.Int64)}, failed: func() {}}
	f.failures.Store(2)
	db := sql.OpenDB(f)
	defer db.Close()
	require.NoError(t, New(db, SQLite).Migrate(t.Context()))
}

func TestMigrateStopsWaitingWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := &flaky{failed: cancel}
	f.failures.Store(connectTries)
	db := sql.OpenDB(f)
	defer db.Close()
	require.ErrorIs(t, New(db, SQLite).Migrate(ctx), context.Canceled)
	require.EqualValues(t, connectTries-1, f.failures.Load())
}

func script(t *testing.T, name string) []byte {
	t.Helper()
	text, err := sqliteMigrations.ReadFile("migrations/sqlite/" + name)
	require.NoError(t, err)
	return text
}

// version1 makes a database as the first version of the package left it, with
// a dead letter.
func version1(t *testing.T) *sql.DB {
	t.Helper()
	db := open(t, filepath.Join(t.TempDir(), "test.db"))
	o := New(db, SQLite)
	execute(t, db, o.grammar.createVersions)
	execute(t, db, o.sql(string(script(t, "0001_outbox.sql"))))
	execute(t, db, o.grammar.addVersion, o.table, 1, 0)
	execute(t, db, `INSERT INTO courier_outbox_dlq (id, outbox_seq, topic, key, payload, headers, trace, created_at,
		error, error_type, reason, attempts, first_failed_at, last_failed_at)
		VALUES ('a', 7, 'orders', 'k', x'ff', '', '', 5, 'boom', '*fs.PathError', 'exhausted', 3, 1000, 2000)`)
	return db
}

func TestMigrateFromVersion1(t *testing.T) {
	o := outboxIn(t, version1(t))
	require.Equal(t, []int{1, 2, 3}, versions(t, o))
	letters, err := o.DLQ().Receive(t.Context(), 10)
	require.NoError(t, err)
	require.Equal(t, []courier.DeadLetter[Row]{{
		ID: "1.1", Record: Row{Seq: 7, ID: "a", Topic: "orders", Key: "k", Payload: []byte{0xff}, CreatedAt: 5},
		Error:  &StoredError{Text: "boom", Type: "*fs.PathError"},
		Reason: courier.Exhausted, Attempts: 3, FirstFailedAt: time.UnixMicro(1000).UTC(), FailedAt: time.UnixMicro(2000).UTC(),
	}}, letters)
	fail := courier.ProcessFunc(func(context.Context, Row) error { return errors.New("still") })
	result, err := courier.Redrive(t.Context(), o.DLQ(), fail, nil)
	require.NoError(t, err)
	require.Equal(t, 1, result.Failed)
	letters, err = o.DLQ().Receive(t.Context(), 10)
	require.NoError(t, err)
	require.Equal(t, 1, letters[0].Redriven)
	require.Equal(t, "1.2", letters[0].ID)
}

func TestMigrateATableWhoseVersionWasLost(t *testing.T) {
	db := version1(t)
	for range 2 { // of the first version, and of the second
		execute(t, db, `DELETE FROM courier_migrations`)
		o := outboxIn(t, db)
		require.Equal(t, []int{1, 2, 3}, versions(t, o))
		n, err := o.DLQ().Count(t.Context())
		require.NoError(t, err)
		require.Equal(t, 1, n)
	}
}

// withMigration adds a later version to an outbox.
func withMigration(t *testing.T, o *Outbox, text string) *Outbox {
	t.Helper()
	o.grammar.migrations = fstest.MapFS{
		"0001_outbox.sql":   {Data: script(t, "0001_outbox.sql")},
		"0002_redrive.sql":  {Data: script(t, "0002_redrive.sql")},
		"0003_schedule.sql": {Data: script(t, "0003_schedule.sql")},
		"0004_later.sql":    {Data: []byte(text)},
	}
	return o
}

func TestMigrateFromAnOlderVersion(t *testing.T) {
	old := newOutbox(t)
	write(t, old, named("a")...)
	later := withMigration(t, New(old.db, SQLite), `ALTER TABLE "{table}" ADD COLUMN later TEXT; CREATE TABLE "{table}_later" (a TEXT)`)
	require.NoError(t, later.Migrate(t.Context()))
	require.NoError(t, later.Migrate(t.Context()))
	require.Equal(t, []int{1, 2, 3, 4}, versions(t, later))
	require.Equal(t, 1, count(t, old.db, `SELECT count(*) FROM courier_outbox WHERE later IS NULL`))
	require.Len(t, fetch(t, old, 10), 1)
}

func TestMigrateIsOneTransaction(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "test.db"))
	o := withMigration(t, New(db, SQLite), `CREATE TABLE half (a TEXT); CREATE NONSENSE`)
	err := o.Migrate(t.Context())
	require.ErrorContains(t, err, "couriersql: migrating courier_outbox: 0004_later.sql: ")
	require.Zero(t, count(t, db, `SELECT count(*) FROM sqlite_schema`))
	require.NoError(t, New(db, SQLite).Migrate(t.Context()), "the connection is usable")
}

func TestMigrateRefusesANewerVersion(t *testing.T) {
	o := newOutbox(t)
	execute(t, o.db, `INSERT INTO courier_migrations VALUES ('courier_outbox', 7, 0)`)
	require.EqualError(t, o.Migrate(t.Context()), "couriersql: migrating courier_outbox: the database has schema version 7 and this program knows versions up to 3: run a program with a newer couriersql")
}

func TestMigrateRefusesATableOfAnotherShape(t *testing.T) {
	for name, test := range map[string]struct {
		schema string
		want   []string
	}{
		"another's": {
			`CREATE TABLE courier_outbox (id INTEGER PRIMARY KEY, body TEXT NOT NULL, note TEXT)`,
			[]string{"the table courier_outbox is not one of this package: column seq INTEGER is missing, column id is INTEGER and not TEXT, ",
				", column body is NOT NULL without a default; rename it, or pass WithTable another name"},
		},
		"dead letters": {
			`CREATE TABLE courier_outbox_dlq (a)`,
			[]string{"the table courier_outbox_dlq is not one of this package: column seq INTEGER is missing, "},
		},
		"details": {
			`CREATE TABLE courier_outbox (seq INTEGER, id TEXT NOT NULL, topic TEXT NOT NULL, key TEXT NOT NULL, payload BLOB NOT NULL,
				headers TEXT, trace TEXT NOT NULL, created_at INTEGER NOT NULL, processed_at INTEGER NOT NULL)`,
			[]string{"this package: column seq is not the primary key, column headers is not NOT NULL, column processed_at is NOT NULL; rename it"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			db := open(t, filepath.Join(t.TempDir(), "test.db"))
			execute(t, db, test.schema)
			before := count(t, db, `SELECT count(*) FROM sqlite_schema`)
			err := New(db, SQLite).Migrate(t.Context())
			for _, want := range test.want {
				require.ErrorContains(t, err, want)
			}
			require.NotContains(t, err.Error(), "\n")
			require.Equal(t, before, count(t, db, `SELECT count(*) FROM sqlite_schema`), "it was not left as it was")
			require.NoError(t, New(db, SQLite, WithTable("another")).Migrate(t.Context()), "the advice helps")
		})
	}
}

func TestMigrateTakesAColumnOfTheUsers(t *testing.T) {
	o := newOutbox(t)
	execute(t, o.db, `ALTER TABLE courier_outbox ADD COLUMN tenant TEXT NOT NULL DEFAULT ''`)
	require.NoError(t, o.Migrate(t.Context()))
	write(t, o, named("a")...)
}

func TestMigrateNoticesAMissingTable(t *testing.T) {
	o := newOutbox(t)
	execute(t, o.db, `DROP TABLE courier_outbox`)
	require.ErrorContains(t, o.Migrate(t.Context()), "the table courier_outbox is missing though its version is recorded: delete the rows of courier_outbox from courier_migrations")
	execute(t, o.db, `DELETE FROM courier_migrations WHERE outbox = 'courier_outbox'`)
	require.NoError(t, o.Migrate(t.Context()), "the advice helps")
}

func TestMissingFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing", "test.db")
	o := New(open(t, path), SQLite)
	want := "unable to open database file (14): does the folder exist, and may this process write to it?"
	require.EqualError(t, o.Migrate(t.Context()), "couriersql: migrating courier_outbox: "+want)
	_, err := o.Source().Fetch(t.Context(), 100)
	require.EqualError(t, err, "couriersql: fetching up to 100 pending rows of courier_outbox: "+want)
}

func TestEmptyPath(t *testing.T) {
	require.ErrorContains(t, New(open(t, ""), SQLite).Migrate(t.Context()), "unable to open database file")
}

func TestAdvice(t *testing.T) {
	for text, want := range map[string]string{
		"database is locked (5)":           "a transaction left open",
		"file is not a database (26)":      "another kind of file",
		"table x has no column named y":    "call Migrate",
		"no such column: y":                "call Migrate",
		"disk I/O error: nobody knows why": "",
	} {
		got := sqliteAdvice(errors.New(text))
		require.True(t, strings.HasSuffix(got, want) || strings.Contains(got, want), got)
		require.Equal(t, want == "", got == "")
	}
}

// A relay says that the index is missing by which a fetch stays fast, and how to
// have it.
func TestAMissingIndexIsToldOnce(t *testing.T) { inEach(t, testAMissingIndexIsToldOnce) }

func testAMissingIndexIsToldOnce(t *testing.T, newOutbox maker) {
	log := new(logged)
	o := newOutbox(t, log.option())
	take(t, o.Source(), 1)
	require.Empty(t, log.String())

	execute(t, o.db, `DROP INDEX courier_outbox_pending`)
	o = outboxIn(t, o.db, log.option()) // whose migration is done
	for range 2 {
		take(t, o.Source(), 1)
	}
	require.Equal(t, 1, strings.Count(log.String(), "level=WARN"))
	require.Contains(t, log.String(), "the index of the pending rows is missing")
	require.Contains(t, log.String(), `CREATE INDEX \"courier_outbox_pending\" ON \"courier_outbox\" (seq) WHERE processed_at IS NULL`)

	execute(t, o.db, o.sql(o.grammar.addIndex))
	if o.dialect == Postgres { // an index of the user's own will do
		execute(t, o.db, `ALTER INDEX courier_outbox_pending RENAME TO mine`)
	}
	log = new(logged)
	take(t, outboxIn(t, o.db, log.option()).Source(), 1)
	require.Empty(t, log.String())
}
