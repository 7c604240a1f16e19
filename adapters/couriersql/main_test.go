package couriersql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"path/filepath"
	"regexp"
	"sync/atomic"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier/adapters/couriersql/mytest"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"modernc.org/sqlite"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) { pgtest.Exit(mytest.Stopped(code)) }))
}

// databases are the names of all dialects.
var databases = map[Dialect]string{SQLite: "sqlite", Postgres: "postgres", MySQL: "mysql"}

// maker makes a migrated outbox in a database, or schema, of its own.
type maker func(t *testing.T, opts ...Option) *Outbox

var makers = map[string]maker{"sqlite": newOutbox, "postgres": newPostgres, "mysql": newMySQL}

// inEach runs a test in each kind of database.
func inEach(t *testing.T, test func(t *testing.T, newOutbox maker)) {
	for name, newOutbox := range makers {
		t.Run(name, func(t *testing.T) { test(t, newOutbox) })
	}
}

func openPostgres(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", dsn)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

func newPostgres(t *testing.T, opts ...Option) *Outbox {
	t.Helper()
	return outboxIn(t, openPostgres(t, pgtest.Schema(t)), opts...)
}

func newMySQL(t *testing.T, opts ...Option) *Outbox {
	t.Helper()
	return outboxIn(t, databaseOf(t, MySQL), opts...)
}

var start = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)

// fixed is a clock that stands still.
type fixed struct{ now time.Time }

func (c *fixed) Now() time.Time                       { return c.now }
func (c *fixed) After(time.Duration) <-chan time.Time { return nil }

func open(t testing.TB, path string) *sql.DB {
	t.Helper()
	return openDSN(t, SQLiteDSN(path))
}

func openDSN(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", dsn)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

// newOutbox returns a migrated outbox in a file of its own.
func newOutbox(t *testing.T, opts ...Option) *Outbox {
	t.Helper()
	return outboxIn(t, open(t, filepath.Join(t.TempDir(), "test.db")), opts...)
}

func outboxIn(t *testing.T, db *sql.DB, opts ...Option) *Outbox {
	t.Helper()
	o := New(db, dialectOf(db), append([]Option{WithClock(&fixed{start})}, opts...)...)
	require.NoError(t, o.Migrate(t.Context()))
	t.Cleanup(func() { require.NoError(t, o.Close()) })
	return o
}

func dialectOf(db *sql.DB) Dialect {
	switch db.Driver().(type) {
	case *stdlib.Driver:
		return Postgres
	case *mysql.MySQLDriver:
		return MySQL
	}
	return SQLite
}

// write commits messages.
func write(t *testing.T, o *Outbox, messages ...Message) {
	t.Helper()
	tx, err := o.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	require.NoError(t, o.Write(t.Context(), tx, messages...))
	require.NoError(t, tx.Commit())
}

func fetch(t *testing.T, o *Outbox, limit int) []Row {
	t.Helper()
	source := o.Source()
	rows, err := source.Fetch(t.Context(), limit)
	require.NoError(t, err)
	require.NoError(t, source.Release(t.Context(), rows, 0)) // to look, and not to take
	return rows
}

// openMySQL opens a database with settings of the session, such as sql_mode.
func openMySQL(t testing.TB, dsn string, settings map[string]string) *sql.DB {
	t.Helper()
	config, err := mysql.ParseDSN(dsn)
	require.NoError(t, err)
	config.Params, config.Logger = settings, &mysql.NopLogger{}
	connector, err := mysql.NewConnector(config)
	require.NoError(t, err)
	db := sql.OpenDB(connector)
	t.Cleanup(func() { _ = db.Close() }) // one of its connections may have been cut
	return db
}

// spelledAsElsewhere has a session of MySQL read SQL as other databases do.
var spelledAsElsewhere = map[string]string{"sql_mode": "'ANSI,STRICT_TRANS_TABLES,ONLY_FULL_GROUP_BY'"}

var placeholder = regexp.MustCompile(`\$[0-9]`)

func execute(t *testing.T, db *sql.DB, text string, args ...any) {
	t.Helper()
	if dialectOf(db) == MySQL && len(args) > 0 {
		text = placeholder.ReplaceAllString(text, "?")
	}
	_, err := db.ExecContext(t.Context(), text, args...)
	require.NoError(t, err)
}

// failures are how often a row has failed, wherever that is noted.
func failures(t *testing.T, o *Outbox, id string) int {
	t.Helper()
	text := `SELECT attempts FROM courier_outbox WHERE id = '` + id + `'`
	if o.dialect == MySQL {
		text = `SELECT coalesce(max(attempts), 0) FROM courier_outbox_courier WHERE key2 = '` + id + `'`
	}
	return count(t, o.db, text)
}

func count(t *testing.T, db *sql.DB, text string) (n int) {
	t.Helper()
	require.NoError(t, db.QueryRowContext(t.Context(), text).Scan(&n))
	return n
}

func named(ids ...string) (messages []Message) {
	for _, id := range ids {
		messages = append(messages, Message{ID: id, Topic: "orders"})
	}
	return messages
}

func idsOf(rows []Row) []string {
	ids := []string{}
	for _, row := range rows {
		ids = append(ids, row.ID)
	}
	return ids
}

// counting is a driver that counts the statements executed, queries not
// included.
type counting struct {
	dsn      string
	executed *atomic.Int64
}

func (c counting) Driver() driver.Driver { return new(sqlite.Driver) }
func (c counting) Connect(context.Context) (driver.Conn, error) {
	conn, err := c.Driver().Open(c.dsn)
	return countingConn{conn, c.executed}, err
}

type countingConn struct {
	driver.Conn
	executed *atomic.Int64
}

func (c countingConn) Prepare(query string) (driver.Stmt, error) {
	stmt, err := c.Conn.Prepare(query)
	return countingStmt{stmt, c.executed}, err
}

type countingStmt struct {
	driver.Stmt
	executed *atomic.Int64
}

func (s countingStmt) Exec(args []driver.Value) (driver.Result, error) {
	s.executed.Add(1)
	return s.Stmt.Exec(args) //nolint:staticcheck // the form without a context is the one to wrap
}
