package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier"
)

// database is the tables of an outbox or of a dead letter queue, and how to reach
// them.
type database struct {
	db      *sql.DB
	dialect Dialect
	grammar grammar
	schema  string // of the tables, "" for that of the search_path
	name    string // of the outbox or queue, without the schema
	table   string // the outbox or queue
	dlq     string // the dead letters, or the leases of a [Table]
	names   *strings.Replacer
	timeout time.Duration // of a call
	now     func() time.Time
	log     *slog.Logger
	fault   error
	used    *uses // of its connections

	faithful *atomic.Bool // its connections leave what is sent as it is

	migrations fs.FS   // the i-th file, by name, makes version i+1
	shapes     []shape // what the last version looks like
	versioned  string  // by what the versions are recorded
	elsewhere  string  // by what they are if the dead letters are somebody else's
}

// newDatabase is without names of tables.
func newDatabase(db *sql.DB, dialect Dialect) *database {
	d := &database{db: db, dialect: dialect, timeout: DefaultQueryTimeout, now: time.Now, log: slog.Default(), faithful: new(atomic.Bool), used: &uses{last: make(map[any]time.Time)}}
	if db == nil {
		d.misconfigured("db", "is nil: pass the *sql.DB that sql.Open returned")
	}
	switch dialect {
	case SQLite:
		d.grammar = sqliteGrammar()
	case Postgres:
		d.grammar = postgresGrammar()
	case MySQL:
		d.grammar = mysqlGrammar()
	default:
		d.misconfigured("dialect", fmt.Sprintf("%d is unknown: pass couriersql.SQLite, couriersql.Postgres or couriersql.MySQL", dialect))
	}
	return d
}

// scanner is a row that was asked for.
type scanner interface{ Scan(dest ...any) error }

// errConverts is the error of connections that would write other bytes than the message has.
var errConverts = &courier.ConfigError{Field: "db", Problem: "has connections that convert what is sent to them, bytes too, from character_set_client to another character_set_connection: leave the two, and collation_connection, out of the DSN and of init_connect, or give both the same character set"}

// checkFaithful returns [errConverts] for such a connection. Once one has turned out to convert
// nothing, the others are taken to be like it.
func (d *database) checkFaithful(ask func(text string) scanner) error {
	if d.grammar.faithful == "" || d.faithful.Load() {
		return nil
	}
	var faithful bool
	if err := ask(d.grammar.faithful).Scan(&faithful); err != nil {
		return err
	}
	if !faithful {
		return errConverts
	}
	d.faithful.Store(true)
	return nil
}

// notInMySQL refuses what there is for the other databases alone.
func (d *database) notInMySQL(instead string) {
	if d.dialect == MySQL {
		d.misconfigured("dialect", "is couriersql.MySQL, for which "+instead)
	}
}

// Lower case only, because databases disagree on whether Orders and orders are
// one table; short enough for the names derived from it in any of them.
var plainIdentifier = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,47}$`)

// call names the outbox or queue, perhaps with a schema.
func (d *database) call(field, table string) {
	schema, name, qualified := strings.Cut(table, ".")
	if !qualified {
		schema, name = "", table
	}
	if !plainIdentifier.MatchString(name) || qualified && (d.dialect == SQLite || !plainIdentifier.MatchString(schema)) {
		d.misconfigured(field, fmt.Sprintf("%q is not a plain name: use up to 48 of a-z, 0-9 and _, not beginning with a digit, in PostgreSQL perhaps after the same of a schema and a dot", table))
		return
	}
	d.schema, d.name, d.table = schema, name, table
}

// nameTables names what goes by the name of the outbox or queue.
func (d *database) nameTables(dlq, versioned, elsewhere string) {
	d.dlq, d.versioned, d.elsewhere = dlq, versioned, elsewhere
	d.names = strings.NewReplacer("{table}", d.name, "{outbox}", d.quoted(d.table), "{inbox}", d.quoted(d.table), "{dlq}", d.quoted(d.dlq), "{versions}", d.quoted(d.inSchema("courier_migrations")), "{schema}", d.schemaText(), "{state}", d.quoted(d.table+"_courier"))
}

// misconfigured keeps the first fault, which the others often follow from.
func (d *database) misconfigured(field, problem string) {
	if d.fault == nil {
		d.fault = &courier.ConfigError{Field: field, Problem: problem}
	}
}

func (d *database) count(ctx context.Context, query, what string, args ...any) (int, error) {
	if d.fault != nil {
		return 0, d.fault
	}
	var n int
	if err := d.ask(ctx, func(ctx context.Context, conn *sql.Conn) error {
		return conn.QueryRowContext(ctx, d.sql(query), args...).Scan(&n)
	}); err != nil {
		return 0, d.failed(err, "counting the %s", what)
	}
	return n, nil
}

// timed adds the time to the arguments of a statement that says "now".
func (d *database) timed(args ...any) []any {
	if d.grammar.timed {
		args = append(args, d.now().UnixMicro())
	}
	return args
}

// sql puts the tables' names into a statement. It is safe to do so because they are
// plain identifiers.
func (d *database) sql(text string) string { return d.names.Replace(text) }

// quoted is a name, perhaps with a schema, in a statement.
func quoted(name string) string { return `"` + strings.ReplaceAll(name, ".", `"."`) + `"` }

// quoted is quoted in the dialect.
func (d *database) quoted(name string) string {
	if d.dialect == MySQL {
		return strings.ReplaceAll(quoted(name), `"`, "`")
	}
	return quoted(name)
}

// schemaText is the schema of the tables, in MySQL, as a value.
func (d *database) schemaText() string {
	if d.schema == "" {
		return "DATABASE()"
	}
	return "'" + d.schema + "'"
}

// inSchema is the name of a table beside the outbox or queue.
func (d *database) inSchema(table string) string {
	if d.schema == "" {
		return table
	}
	return d.schema + "." + table
}

// failed says what was being done when the database returned err and, where
// that is known, what to do about it.
func (d *database) failed(err error, doing string, args ...any) error {
	doing = fmt.Sprintf(doing, args...)
	result := fmt.Errorf("couriersql: %s: %w", doing, err)
	if advice := d.grammar.advice(err); advice != "" {
		result = fmt.Errorf("couriersql: %s: %w: %s", doing, err, advice)
	}
	if d.grammar.outdated(err) {
		return &notMigrated{result}
	}
	return result
}

// ErrNotMigrated is the error, to errors.Is, of a call that finds no table of the
// outbox, queue, inbox or beside a [Table], or one of an earlier version: call Migrate of it.
var ErrNotMigrated = errors.New("couriersql: the tables are missing, or of an earlier version")

type notMigrated struct{ error }

func (e *notMigrated) Is(err error) bool { return err == ErrNotMigrated }
func (e *notMigrated) Unwrap() error     { return e.error }

// plural counts things.
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return strconv.Itoa(n) + " " + thing + "s"
}
