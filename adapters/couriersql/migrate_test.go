package couriersql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
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

// upTo are the versions that a migration to the last one records.
func upTo(last int) (list []int) {
	for v := range last {
		list = append(list, v+1)
	}
	return list
}

func TestMigrateTwice(t *testing.T) {
	o := newOutbox(t)
	write(t, o, named("a")...)
	require.NoError(t, o.Migrate(t.Context()))
	require.Equal(t, upTo(SchemaVersion(SQLite)), versions(t, o))
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
		require.Equal(t, upTo(SchemaVersion(SQLite)), versions(t, New(pools[0], SQLite, WithTable(table))))
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

// migrated makes a database as an earlier version of the package left it. What
// its migrations created and this one's do not is in beside.
func migrated(t *testing.T, dialect Dialect, version int, beside ...string) *sql.DB {
	t.Helper()
	db := databaseOf(t, dialect)
	o := New(db, dialect)
	execute(t, db, o.sql(o.grammar.createVersions))
	files, err := fs.Glob(o.grammar.migrations, "*.sql")
	require.NoError(t, err)
	for i, name := range files[:version] {
		text, err := fs.ReadFile(o.grammar.migrations, name)
		require.NoError(t, err)
		execute(t, db, o.sql(string(text)))
		execute(t, db, o.sql(o.grammar.addVersion), o.table, i+1, o.grammar.time(0))
	}
	for _, text := range beside {
		execute(t, db, text)
	}
	return db
}

// The indexes that the letters had before they were known by their branch.
const (
	onlyID  = `CREATE UNIQUE INDEX courier_outbox_dlq_id ON courier_outbox_dlq (id)`
	onlyKey = `CREATE INDEX courier_outbox_dlq_order_key ON courier_outbox_dlq (order_key) WHERE order_key <> ''`
)

// version1 makes a database as the first version of the package left it, with
// a dead letter.
func version1(t *testing.T) *sql.DB {
	t.Helper()
	db := migrated(t, SQLite, 1, onlyID)
	execute(t, db, `INSERT INTO courier_outbox_dlq (id, outbox_seq, topic, key, payload, headers, trace, created_at,
		error, error_type, reason, attempts, first_failed_at, last_failed_at)
		VALUES ('a', 7, 'orders', 'k', x'ff', '', '', 5, 'boom', '*fs.PathError', 'exhausted', 3, 1000, 2000)`)
	return db
}

func TestMigrateFromVersion1(t *testing.T) {
	o := outboxIn(t, version1(t))
	require.Equal(t, upTo(SchemaVersion(SQLite)), versions(t, o))
	letters, err := o.DLQ().Receive(t.Context(), 10)
	require.NoError(t, err)
	require.Equal(t, []courier.DeadLetter[Row]{{
		ID: "1.1.1000", Record: Row{Seq: 7, ID: "a", Topic: "orders", Key: "k", Payload: []byte{0xff}, CreatedAt: 5},
		Error:  &StoredError{Text: "boom", Type: "*fs.PathError"},
		Reason: courier.ReasonExhausted, Attempts: 3, FirstFailedAt: time.UnixMicro(1000).UTC(), FailedAt: time.UnixMicro(2000).UTC(),
	}}, letters)
	fail := courier.ProcessFunc(func(context.Context, Row) error { return errors.New("still") })
	result, err := courier.Redrive(t.Context(), o.DLQ(), fail, nil)
	require.NoError(t, err)
	require.Equal(t, 1, result.Failed)
	letters, err = o.DLQ().Receive(t.Context(), 10)
	require.NoError(t, err)
	require.Equal(t, 1, letters[0].FailedRedrives)
	require.Equal(t, "1.2.1000", letters[0].ID)
}

// beforeBranches is the last version that knew a letter by its message alone.
var beforeBranches = map[Dialect]int{SQLite: 3, Postgres: 1}

// indexesOf are the definitions of the indexes of the outbox and of its letters.
func indexesOf(t *testing.T, o *Outbox) (list []string) {
	t.Helper()
	text := `SELECT sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL ORDER BY name`
	if o.dialect == Postgres {
		text = `SELECT replace(indexdef, schemaname || '.', '') FROM pg_indexes WHERE schemaname = current_schema() ORDER BY indexname`
	}
	rows, err := o.db.QueryContext(t.Context(), text)
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var definition string
		require.NoError(t, rows.Scan(&definition))
		list = append(list, definition)
	}
	require.NoError(t, rows.Err())
	return list
}

// The letters of a database that knew them by their message stay as they are, and
// another branch's letter of the message comes beside them.
func TestMigrateLettersToBranches(t *testing.T) { inEachOfRows(t, testMigrateLettersToBranches) }

func testMigrateLettersToBranches(t *testing.T, newOutbox maker) {
	fresh := newOutbox(t)
	db := migrated(t, fresh.dialect, beforeBranches[fresh.dialect], onlyID, onlyKey)
	old := New(db, fresh.dialect)
	insert := strings.Replace(old.sql(old.grammar.send), "ON CONFLICT (id, branch)", "ON CONFLICT (id)", 1)
	var sent []courier.DeadLetter[Row]
	for i, id := range []string{"a", "b", "c"} {
		l := letter(id, &StoredError{Text: "boom", Type: "*fs.PathError"})
		l.ID, l.FirstFailedAt, l.Branch, l.Key = fmt.Sprintf("%d.1.%d", i+1, start.Add(-time.Minute).UnixMicro()), start.Add(-time.Minute), []string{"", "search", "mail"}[i], "k"
		execute(t, db, insert, old.letterOf(l)...)
		sent = append(sent, l)
	}
	require.ErrorContains(t, old.DLQ().Send(t.Context(), sent[0]), "the table is of an earlier version; call Migrate")

	o := outboxIn(t, db)
	require.Equal(t, upTo(SchemaVersion(o.dialect)), versions(t, o))
	require.Equal(t, indexesOf(t, fresh), indexesOf(t, o))
	letters, err := o.DLQ().Receive(t.Context(), 10)
	require.NoError(t, err)
	require.Equal(t, sent, letters)

	other := sent[1]
	other.Branch = "mail"
	require.NoError(t, o.DLQ().Send(t.Context(), other))
	require.NoError(t, o.DLQ().Send(t.Context(), sent[1]))
	require.Equal(t, []string{"a.1", "b.2", "c.1", "b.1"}, lettersOf(t, o))

	execute(t, db, `DELETE FROM courier_migrations`) // with letters that the first version would refuse
	o = outboxIn(t, db)
	require.Equal(t, indexesOf(t, fresh), indexesOf(t, o))
	require.Equal(t, []string{"a.1", "b.2", "c.1", "b.1"}, lettersOf(t, o))
}

func TestMigrateATableWhoseVersionWasLost(t *testing.T) {
	db := version1(t)
	for range 2 { // of the first version, and of the last
		execute(t, db, `DELETE FROM courier_migrations`)
		o := outboxIn(t, db)
		require.Equal(t, upTo(SchemaVersion(SQLite)), versions(t, o))
		n, err := o.DLQ().Count(t.Context())
		require.NoError(t, err)
		require.Equal(t, 1, n)
	}
}

// withMigration adds a later version to an outbox.
func withMigration(t *testing.T, o *Outbox, text string) *Outbox {
	t.Helper()
	later := fstest.MapFS{"9999_later.sql": {Data: []byte(text)}}
	files, err := fs.Glob(o.migrations, "*.sql")
	require.NoError(t, err)
	for _, name := range files {
		data, err := fs.ReadFile(o.migrations, name)
		require.NoError(t, err)
		later[name] = &fstest.MapFile{Data: data}
	}
	o.migrations = later
	return o
}

func TestMigrateFromAnOlderVersion(t *testing.T) {
	old := newOutbox(t)
	write(t, old, named("a")...)
	later := withMigration(t, New(old.db, SQLite), `ALTER TABLE "{table}" ADD COLUMN later TEXT; CREATE TABLE "{table}_later" (a TEXT)`)
	require.NoError(t, later.Migrate(t.Context()))
	require.NoError(t, later.Migrate(t.Context()))
	require.Equal(t, upTo(SchemaVersion(SQLite)+1), versions(t, later))
	require.Equal(t, 1, count(t, old.db, `SELECT count(*) FROM courier_outbox WHERE later IS NULL`))
	require.Len(t, fetch(t, old, 10), 1)
}

func TestMigrateIsOneTransaction(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "test.db"))
	o := withMigration(t, New(db, SQLite), `CREATE TABLE half (a TEXT); CREATE NONSENSE`)
	err := o.Migrate(t.Context())
	require.ErrorContains(t, err, "couriersql: migrating courier_outbox: 9999_later.sql: ")
	require.Zero(t, count(t, db, `SELECT count(*) FROM sqlite_schema`))
	require.NoError(t, New(db, SQLite).Migrate(t.Context()), "the connection is usable")
}

func TestMigrateRefusesANewerVersion(t *testing.T) {
	o := newOutbox(t)
	execute(t, o.db, `INSERT INTO courier_migrations VALUES ('courier_outbox', 77, 0)`)
	require.EqualError(t, o.Migrate(t.Context()), fmt.Sprintf("couriersql: migrating courier_outbox: the database has schema version 77 and this program knows versions up to %d: run a program with a newer couriersql", SchemaVersion(SQLite)))
}

func TestMigrateRefusesATableOfAnotherShape(t *testing.T) {
	for name, test := range map[string]struct {
		schema string
		want   []string
	}{
		"another's": {
			`CREATE TABLE courier_outbox (id INTEGER PRIMARY KEY, body TEXT NOT NULL, note TEXT)`,
			[]string{"the table courier_outbox is not one of this package: column seq INTEGER is missing, column id is INTEGER and not TEXT, ",
				", column body is NOT NULL without a default; rename it, or choose another name (WithTable, DLQConfig.Table, InboxConfig.Table)"},
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

// schemaOf are the tables, columns, indexes and triggers of a database, and the
// versions that it says it has.
func schemaOf(t *testing.T, db *sql.DB) string {
	t.Helper()
	text := `SELECT coalesce(group_concat(coalesce(sql, name), '; '), '') FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'`
	if dialectOf(db) == Postgres {
		text = `SELECT coalesce(string_agg(line, '; ' ORDER BY line), '') FROM (
			SELECT format('%s.%s %s', table_name, column_name, data_type) FROM information_schema.columns WHERE table_schema = current_schema()
			UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema()
			UNION ALL SELECT trigger_name FROM information_schema.triggers WHERE trigger_schema = current_schema()) AS lines (line)`
	}
	var schema string
	require.NoError(t, db.QueryRowContext(t.Context(), text).Scan(&schema))
	if strings.Contains(schema, "courier_migrations") {
		schema += fmt.Sprint(count(t, db, `SELECT count(*) FROM courier_migrations`))
	}
	return schema
}

// A check of a migration ends as the migration does, and leaves all as it was.
func TestCheckMigrate(t *testing.T) { inEachOfRows(t, testCheckMigrate) }

func testCheckMigrate(t *testing.T, newOutbox maker) {
	dialect := newOutbox(t).dialect
	into := func(texts ...string) func(t *testing.T) *sql.DB {
		return func(t *testing.T) *sql.DB {
			db := databaseOf(t, dialect)
			for _, text := range texts {
				execute(t, db, text)
			}
			return db
		}
	}
	beside := func(texts ...string) func(t *testing.T) *sql.DB {
		return func(t *testing.T) *sql.DB {
			o := newOutbox(t)
			for _, text := range texts {
				execute(t, o.db, text)
			}
			return o.db
		}
	}
	for name, c := range map[string]struct {
		open func(t *testing.T) *sql.DB
		opts []Option
		want string // of the error
	}{
		"nothing is there":    {open: into()},
		"a former version":    {open: func(t *testing.T) *sql.DB { return migrated(t, dialect, beforeBranches[dialect], onlyID, onlyKey) }},
		"all is there":        {open: beside()},
		"a newer version":     {beside(`UPDATE courier_migrations SET version = 77 WHERE version = 1`), nil, "run a program with a newer couriersql"},
		"another's table":     {into(`CREATE TABLE courier_outbox (id INTEGER PRIMARY KEY, body TEXT NOT NULL)`), nil, "is not one of this package"},
		"another's letters":   {into(`CREATE TABLE courier_outbox_dlq (a INTEGER)`), nil, "is not one of this package"},
		"a table is missing":  {beside(`DROP TABLE courier_outbox`), nil, "is missing though its version is recorded"},
		"a column is missing": {beside(`ALTER TABLE courier_outbox DROP COLUMN last_error`), nil, "column last_error TEXT is missing"},
		"no right to write":   {withoutRights(dialect), nil, map[Dialect]string{SQLite: "readonly database", Postgres: "lacks a right"}[dialect]},
		"bad options":         {into(), []Option{WithTable("Orders")}, "is not a plain name"},
		"a trigger":           {into(), []Option{WithWakeUp()}, map[Dialect]string{SQLite: "is for PostgreSQL"}[dialect]},
	} {
		t.Run(name, func(t *testing.T) {
			db := c.open(t)
			o := New(db, dialect, c.opts...)
			before := schemaOf(t, db)
			checked := o.CheckMigrate(t.Context())
			require.Equal(t, before, schemaOf(t, db))
			done := o.Migrate(t.Context())
			if c.want == "" {
				require.NoError(t, checked)
				require.NoError(t, done)
				require.NoError(t, o.CheckMigrate(t.Context()))
				return
			}
			require.ErrorContains(t, checked, c.want)
			require.EqualError(t, done, strings.Replace(checked.Error(), "trying to migrate", "migrating", 1))
		})
	}
}

// withoutRights opens a database that may be read alone.
func withoutRights(dialect Dialect) func(t *testing.T) *sql.DB {
	if dialect == SQLite {
		return func(t *testing.T) *sql.DB {
			path := filepath.Join(t.TempDir(), "test.db")
			execute(t, open(t, path), `CREATE TABLE other (a TEXT)`)
			return openDSN(t, SQLiteDSN(path)+"&mode=ro")
		}
	}
	return func(t *testing.T) *sql.DB {
		dsn := pgtest.Schema(t)
		db := openPostgres(t, dsn)
		var schema string
		require.NoError(t, db.QueryRowContext(t.Context(), `SELECT current_schema()`).Scan(&schema))
		role := schema + "_reader"
		execute(t, db, `CREATE ROLE `+role)
		t.Cleanup(func() {
			_, err := db.ExecContext(context.Background(), `DROP OWNED BY `+role+`; DROP ROLE `+role)
			require.NoError(t, err)
		})
		execute(t, db, `GRANT USAGE ON SCHEMA `+schema+` TO `+role)
		return openPostgres(t, dsn+" role="+role)
	}
}

func TestVersion(t *testing.T) { inEach(t, testVersion) }

func testVersion(t *testing.T, newOutbox maker) {
	o := newOutbox(t)
	for table, want := range map[string]int{DefaultTable: SchemaVersion(o.dialect), "events": 0} {
		version, err := New(o.db, o.dialect, WithTable(table)).Version(t.Context())
		require.NoError(t, err)
		require.Equal(t, want, version)
	}
	if o.dialect != MySQL { // which has one version
		version, err := New(migrated(t, o.dialect, 1), o.dialect).Version(t.Context())
		require.NoError(t, err)
		require.Equal(t, 1, version)
	}
	version, err := New(databaseOf(t, o.dialect), o.dialect).Version(t.Context())
	require.NoError(t, err)
	require.Zero(t, version)
	_, err = New(nil, o.dialect).Version(t.Context())
	require.ErrorIs(t, err, courier.ErrConfig)
}

// What Migrate would mend says so, whatever is missing.
func TestErrNotMigrated(t *testing.T) {
	inEach(t, func(t *testing.T, newOutbox maker) {
		o := newOutbox(t)
		former := databaseOf(t, o.dialect)
		if o.dialect != MySQL { // which has one version
			former = migrated(t, o.dialect, 1, onlyID)
		}
		for name, db := range map[string]*sql.DB{"no table": databaseOf(t, o.dialect), "a former version": former} {
			old := New(db, o.dialect)
			require.ErrorIs(t, old.DLQ().Send(t.Context(), letter("a", nil)), ErrNotMigrated, name)
			_, err := old.Lag(t.Context())
			require.ErrorIs(t, err, ErrNotMigrated, name)
		}
		require.NotErrorIs(t, New(nil, o.dialect).DLQ().Send(t.Context(), letter("a", nil)), ErrNotMigrated)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := o.Lag(ctx)
		require.NotErrorIs(t, err, ErrNotMigrated)
	})
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
	require.ErrorContains(t, o.Migrate(t.Context()), "the table courier_outbox is missing though its version is recorded: DELETE FROM courier_migrations WHERE outbox = 'courier_outbox', and")
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

	drop := `DROP INDEX courier_outbox_pending`
	if o.dialect == MySQL {
		drop = `DROP INDEX pending ON courier_outbox`
	}
	execute(t, o.db, drop)
	o = outboxIn(t, o.db, log.option()) // whose migration is done
	for range 2 {
		take(t, o.Source(), 1)
	}
	require.Equal(t, 1, strings.Count(log.String(), "level=WARN"))
	require.Contains(t, log.String(), "an index of the pending rows is missing")
	statement, _, _ := strings.Cut(o.sql(o.grammar.addIndex), ";")
	require.Contains(t, strings.ReplaceAll(log.String(), `\"`, `"`), statement)

	execute(t, o.db, o.sql(o.grammar.addIndex))
	if o.dialect == Postgres { // an index of the user's own will do
		execute(t, o.db, `ALTER INDEX courier_outbox_pending RENAME TO mine`)
	}
	log = new(logged)
	take(t, outboxIn(t, o.db, log.option()).Source(), 1)
	require.Empty(t, log.String())
}

// A relay that starts before Migrate says first that it was not called, and goes on once
// it was.
func TestARelayBeforeMigrateSaysSoFirst(t *testing.T) {
	for name, dialect := range map[string]Dialect{"sqlite": SQLite, "postgres": Postgres, "mysql": MySQL} {
		ways := map[string][]Option{"plain": nil, "lease": {WithLease(time.Minute)}}
		if dialect == Postgres {
			ways["strict"], ways["wake-up"] = []Option{WithStrictOrder()}, []Option{WithWakeUp()}
		}
		for way, opts := range ways {
			t.Run(name+" "+way, func(t *testing.T) {
				db, log := databaseOf(t, dialect), new(logged)
				o := New(db, dialect, append(opts, log.option())...)
				t.Cleanup(func() { require.NoError(t, o.Close()) })
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				s := o.Source()
				relay := courier.NewPollingCoordinator(s, courier.ProcessFunc(func(context.Context, Row) error { return nil }),
					courier.WithLogger(slog.New(slog.NewTextHandler(log, nil))))
				done := make(chan error)
				go func() { done <- relay.Start(ctx) }()
				require.Eventually(t, func() bool { return errors.Is(relay.Ready(), ErrNotMigrated) }, 20*time.Second, time.Millisecond)
				cancel()
				require.NoError(t, <-done)
				first, _, _ := strings.Cut(log.String(), "\n")
				require.Contains(t, first, "fetching up to 100 pending rows of courier_outbox: ")
				require.Contains(t, first, "call Migrate")
				require.NotContains(t, log.String(), "an index of the pending rows is missing")

				require.NoError(t, o.Migrate(t.Context()))
				if dialect == MySQL {
					execute(t, db, `DROP INDEX pending ON courier_outbox`)
				} else {
					execute(t, db, `DROP INDEX courier_outbox_pending`)
				}
				take(t, s, 1)
				require.Contains(t, log.String(), "an index of the pending rows is missing")
			})
		}
	}
}
