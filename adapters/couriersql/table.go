package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/jackc/pgx/v5"
)

// TableConfig describes the table that [NewTable] relays. Table, Key, KeyOf, Columns, Scan
// and Pending are required.
//
// Names are taken as they are, upper and lower case included, and are quoted: a table that was
// created as Events, without quotes, is named events in PostgreSQL. What is said to be SQL goes into the
// statements as it is and has no parameters: never build it from input. It may name the
// columns of the table, also as t.column.
type TableConfig[T any] struct {
	// Table is the name of the table, in PostgreSQL with or without a schema, in MySQL with
	// or without a database: events, billing.events. A name that has a dot or a quote of its
	// own is written as in SQL, in double quotes (in MySQL, backticks):
	// billing."events.2026".
	Table string

	// Key are the columns of the primary key, or of another unique key without NULL, and
	// perhaps more: where rows are written again, one that changes with them, such as a
	// version. By it a mark leaves a row pending that changed since it was fetched.
	Key []string

	// KeyOf returns the values of the key's columns of a record, in the order of Key, as
	// numbers, texts, or values with a String method. Their texts must be those that the
	// database has: a UUID in lower case with hyphens, in PostgreSQL. A []byte is a text
	// too, as of a BINARY(16) in MySQL.
	KeyOf func(record T) []any

	// Columns are what Scan reads: columns, or expressions in SQL. One that fails for a row
	// fails the fetch, with all its rows.
	Columns []string

	// Scan makes a record of a row. It calls scan once, with a pointer for each of
	// Columns, as it would call the Scan of *sql.Rows (in PostgreSQL, of pgx.Rows). A row
	// for which it fails is left out, noted as failed and logged, and tried again; so leave
	// what may fail, such as decoding, to an applier ([courier.NewDecodingApplier]), whose
	// failures can be parked.
	Scan func(scan func(dest ...any) error) (T, error)

	// Pending is the condition, in SQL, of rows that are still to be delivered, such as
	// "sent_at IS NULL". The database finds them quickly by a partial index that has this
	// condition and the columns of Order, in MySQL by one of its columns and those of Order.
	Pending string

	// Mark is what a mark sets, in SQL, such as "sent_at = now()". After it Pending must be
	// false, which the first mark checks. "" deletes the row.
	Mark string

	// Order is the order of delivery, in SQL, such as "created_at, id". "" is that of Key.
	Order string

	// OrderKey is the value, in SQL, of which rows have to stay in order, such as
	// "customer_id"; '' is no such value. Rows wait for as long as one with the same value
	// is pending and waits for its next try, and of one value only one relay at a time has
	// rows in hand. So several relays keep the order of each value, if their coordinators
	// have [courier.WithOrderKey] for the same value. Relays that run at the same time share
	// the values by their hashes; rows without a value are anybody's. Without OrderKey, later
	// rows overtake one that failed. "" is none.
	OrderKey string

	// Strict has one relay deliver at a time: another one takes over when the rows that
	// the first has in hand are settled, or its lease ends. So the order of all rows is kept
	// where there are several relays; for that of each OrderKey alone they can share the rows.
	Strict bool

	// Age is for how many seconds a row has been pending, in SQL, such as
	// "extract(epoch FROM now() - created_at)" or "unixepoch() - created_at". It is for
	// [courier.Lag] alone; "" leaves the age out there.
	Age string

	// State is the name of the table that [Table.Migrate] creates beside the table for the
	// failures of rows, and with _batches after it, of the table for leases. "" is the
	// table's name with _courier. A name that is longer than 40 bytes, begins with a digit, or
	// has characters other than a-z, A-Z, 0-9 and _, is cut to what fits, with a hash of the
	// name before _courier. Relays that deliver the same rows to different places, by
	// different marks, need different ones.
	State string

	// Lease is for how long rows are this relay's alone, unless it renews that, which a
	// coordinator does each third of it. The rows of a relay that dies come to others after
	// that time. 0 is [DefaultTableLease]; it must be a second or more.
	Lease time.Duration

	// InitialBackoff and LongestBackoff are when a row is handed out again that failed and
	// was not parked, as [WithBackoff] sets it for an outbox. 0 is 1 s and 5 minutes.
	InitialBackoff, LongestBackoff time.Duration

	// MaxCrashes is at how many crashes of a relay with a record alone in hand the record is
	// not handed out any more, as [WithMaxCrashes] sets it for an outbox. 0 is
	// [DefaultMaxCrashes]; with a negative number, and in MySQL, crashes are not counted.
	MaxCrashes int

	// DLQ is where a record goes that had MaxCrashes, with [courier.ReasonCrashed], before
	// it is marked: the queue of the coordinator's applier, such as one of [NewDLQ]. nil
	// holds the record back: it stays pending, is never handed out, and later rows of its
	// OrderKey wait. The log says so. To have it handed out again, delete its row from
	// the table State.
	DLQ courier.DeadLetterSink[T]

	// QueryTimeout is how long a call waits for the database, as [WithQueryTimeout] sets it
	// for an outbox. 0 is [DefaultQueryTimeout].
	QueryTimeout time.Duration

	// Logger is where the table tells of lost leases, unreadable rows and a missing index.
	// nil is slog.Default().
	Logger *slog.Logger

	// Clock is what times are read from in SQLite; a server's own clock is one for all
	// relays. nil is the system's.
	Clock courier.Clock
}

// DefaultTableLease is how long a lease of [TableConfig] is by default.
const DefaultTableLease = 30 * time.Second

// Table relays the rows of a table of your own, which stays as it is: an outbox that is
// there already, or jobs, or any rows that something has to be done about. It is made by
// [NewTable], and safe for concurrent use.
//
// It has what the outbox of this package has with [WithLease]: several relays share the
// rows, a relay that dies leaves its rows to the others, a row that kills its process is found
// ([TableConfig].MaxCrashes and DLQ), rows that fail wait longer each time, and a mark is one
// statement. What the table has no columns for is in two tables
// beside it, see [TableConfig.State]. A lease is one row a batch there, so that the rows
// themselves are written once, by the mark.
//
// Letters go to a queue of [NewDLQ]. There is no wake-up: rows wait for up to the interval
// of the coordinator.
type Table[T any] struct {
	*database
	config TableConfig[T]
	path   []string // the table, perhaps after its schema
	lease  time.Duration
	wait   backoff

	own *outboxTable[T] // nil for a table of the user's

	mu      sync.Mutex
	store   tableStore // nil until the catalogue was read
	checked bool       // the database takes the mark
}

// outboxTable is what an outbox of this package has beyond a table of the user's.
type outboxTable[T any] struct {
	known  func(record *T, key []string, attempts int) // tells a record what is known of its row
	bytes  func(record T) int64
	most   int64 // bytes of a fetch
	behind string
}

// NewTable returns the relay of a table of your own. The database stays the caller's to
// close. NewTable neither opens a connection nor creates anything, see [Table.Migrate]. A
// value that it cannot work with is reported as a [*courier.ConfigError] by every method
// that returns an error, and by a coordinator before it fetches; what the database alone
// knows, such as the names of columns, by Migrate and Fetch.
//
//	table := couriersql.NewTable(db, couriersql.Postgres, couriersql.TableConfig[Event]{
//		Table:   "billing.events",
//		Key:     []string{"id"},
//		KeyOf:   func(e Event) []any { return []any{e.ID} },
//		Columns: []string{"id", "kind", "body"},
//		Scan: func(scan func(dest ...any) error) (e Event, err error) {
//			return e, scan(&e.ID, &e.Kind, &e.Body)
//		},
//		Pending: "sent_at IS NULL",
//		Mark:    "sent_at = now()",
//	})
func NewTable[T any](db *sql.DB, dialect Dialect, config TableConfig[T]) *Table[T] {
	d := newDatabase(db, dialect)
	config.Key, config.Columns = slices.Clone(config.Key), slices.Clone(config.Columns)
	t := &Table[T]{database: d, config: config, lease: config.Lease, wait: backoff{config.InitialBackoff, config.LongestBackoff}}
	required := func(field string, missing bool, what string) {
		if missing {
			d.misconfigured("TableConfig."+field, "is missing: pass "+what)
		}
	}
	required("Table", config.Table == "", "the name of the table")
	required("Key", len(config.Key) == 0, "the columns of its primary key")
	required("KeyOf", config.KeyOf == nil, "a function that returns the values of Key of a record")
	required("Columns", len(config.Columns) == 0, "what Scan reads")
	required("Scan", config.Scan == nil, "a function that makes a record of a row")
	required("Pending", config.Pending == "", `the condition of rows that are to be delivered, or "true" if all are`)
	if m, ok := config.DLQ.(courier.MarkingDLQ); ok && m.MarksRecords() {
		d.misconfigured("TableConfig.DLQ", "marks what it is sent at another source: pass a queue of NewDLQ")
	}
	if dialect == MySQL && config.MaxCrashes > 0 {
		d.misconfigured("TableConfig.MaxCrashes", "is not counted in MySQL and MariaDB: leave it out")
	}
	t.path = dialect.identifiers(config.Table)
	switch {
	case t.path == nil:
		d.misconfigured("TableConfig.Table", dialect.notATable(config.Table))
		t.path = []string{config.Table}
	case len(t.path) > 1 && dialect == SQLite:
		d.misconfigured("TableConfig.Table", fmt.Sprintf("%q is one of an attached database, beside which no tables are made: pass the name alone", config.Table))
	}
	if config.State == "" {
		config.State = besideOf(t.path[len(t.path)-1])
	}
	if !plainIdentifier.MatchString(config.State) {
		d.misconfigured("TableConfig.State", fmt.Sprintf("%q is not a plain name: use up to 48 of a-z, 0-9 and _, not beginning with a digit", config.State))
	}
	d.name, d.table = config.State, config.Table
	if config.Logger != nil {
		d.log = config.Logger
	}
	if config.Clock != nil {
		d.now = config.Clock.Now
	}
	d.waitFor("TableConfig", config.QueryTimeout)
	d.grammar.advice, d.grammar.outdated = t.advice, t.outdated
	if t.lease == 0 {
		t.lease = DefaultTableLease
	}
	if t.lease < time.Second {
		d.misconfigured("TableConfig.Lease", fmt.Sprintf("of %v is too short to be renewed in time: pass a second or more, or 0 for %v", config.Lease, DefaultTableLease))
	}
	if t.wait.initial == 0 {
		t.wait.initial = defaultBackoff.initial
	}
	if t.wait.longest == 0 {
		t.wait.longest = max(defaultBackoff.longest, t.wait.initial)
	}
	if t.wait.initial < 0 || t.wait.longest < t.wait.initial {
		d.misconfigured("TableConfig.InitialBackoff", fmt.Sprintf("and LongestBackoff of %v to %v make no sense: pass a delay above 0, and a longest one that is no shorter", config.InitialBackoff, config.LongestBackoff))
	}
	return t
}

// besideOf is the name of the table beside one, which may have any characters. A name that
// had to be changed or cut gets a hash, so that different tables hardly ever share one. Names
// that differ only in case do.
func besideOf(table string) string {
	const longest = 40
	folded := strings.ToLower(table)
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, folded)
	if name != "" && name[0] >= '0' && name[0] <= '9' {
		name = "_" + name
	}
	if name != folded || len(name) > longest {
		number := fnv.New32a()
		_, _ = number.Write([]byte(folded)) // which does not fail
		name = fmt.Sprintf("%s_%08x", name[:min(len(name), longest-9)], number.Sum32())
	}
	return name + "_courier"
}

// Migrate looks whether the table is what TableConfig says, and creates the tables beside
// it, in its schema, or brings them up to the version that this package works with, as
// [Outbox.Migrate] does for an outbox. It leaves the table itself alone.
func (t *Table[T]) Migrate(ctx context.Context) error {
	if t.fault != nil {
		return t.fault
	}
	store, err := t.described(ctx)
	if err != nil {
		return err
	}
	if err := t.migrateBeside(ctx, store); err != nil {
		return err
	}
	var why string
	if err := t.ask(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
		why, err = store.slow(ctx, conn)
		return err
	}); err != nil {
		return t.failed(err, "looking at how the database fetches the rows of %s", t.table)
	}
	if err := t.check(ctx, store); err != nil {
		return err
	}
	if why != "" {
		t.log.Warn("couriersql: a fetch takes longer the more rows the table has: create an index on the rows that are pending, in their order (TableConfig.Pending, Order)",
			"table", t.table, "why", why)
	}
	return nil
}

func (t *Table[T]) migrateBeside(ctx context.Context, store tableStore) error {
	beside := *t.database
	store.tables(&beside)
	return beside.migrate(ctx)
}

// check looks once whether the database would take a mark: after a delivery it is late to
// find out.
func (t *Table[T]) check(ctx context.Context, store tableStore) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.checked {
		return nil
	}
	if err := t.ask(ctx, store.check); err != nil {
		return t.failed(err, "looking at how the database marks the rows of %s", t.table)
	}
	t.checked = true
	return nil
}

// Explain returns the statements that fetch and mark, and how the database would execute
// the fetch. Look there for a scan of the whole table, which takes longer the more rows
// there are: an index on the rows that are pending, in their order, ends it.
func (t *Table[T]) Explain(ctx context.Context) (text string, err error) {
	if t.fault != nil {
		return "", t.fault
	}
	store, err := t.described(ctx)
	if err != nil {
		return "", err
	}
	var plan []string
	if err := t.ask(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
		plan, err = store.plan(ctx, conn)
		return err
	}); err != nil {
		return "", t.failed(err, "explaining the fetch of %s", t.table)
	}
	return fmt.Sprintf("-- fetch\n%s\n\n-- mark\n%s\n\n-- plan of the fetch\n%s\n", store.fetchText(), store.markText(), strings.Join(plan, "\n")), nil
}

// Pending returns how many rows wait to be delivered. It counts them one by one: ask once a
// minute, not once a batch.
func (t *Table[T]) Pending(ctx context.Context) (n int, err error) {
	if t.fault != nil {
		return 0, t.fault
	}
	store, err := t.described(ctx)
	if err != nil {
		return 0, err
	}
	if err := t.ask(ctx, func(ctx context.Context, conn *sql.Conn) error {
		return conn.QueryRowContext(ctx, store.pendingText()).Scan(&n)
	}); err != nil {
		return 0, t.failed(err, "counting the pending rows of %s", t.table)
	}
	return n, nil
}

// described is the store, for which the catalogue is read once.
func (t *Table[T]) described(ctx context.Context) (tableStore, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.store != nil {
		return t.store, nil
	}
	c := t.config
	text := tableText{
		dialect: t.dialect, columns: c.Columns, keys: c.Key, pending: "(" + c.Pending + ")", mark: c.Mark, order: c.Order, orderKey: c.OrderKey, age: c.Age,
		strict: c.Strict, mostCrashes: mostCrashes(c.MaxCrashes), name: t.path[len(t.path)-1], state: t.name,
	}
	if len(t.path) > 1 {
		text.schema = t.path[0]
	}
	if t.own != nil {
		text.now, text.most, text.behind = t.now, t.own.most, t.own.behind
	}
	var store tableStore
	err := t.ask(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
		switch t.dialect {
		case Postgres:
			store, err = newPostgresTable(ctx, conn, text)
		case MySQL:
			store, err = newMySQLTable(ctx, conn, text)
		default:
			store, err = newSQLiteTable(ctx, conn, text, t.now)
		}
		return err
	})
	var wrong *courier.ConfigError
	switch {
	case errors.As(err, &wrong):
		return nil, wrong
	case err != nil:
		return nil, t.failed(err, "looking at the table %s", t.table)
	}
	t.store = store
	return store, nil
}

const (
	tableSQL        = "look at the SQL in TableConfig: Columns, Pending, Mark, Order, OrderKey and Age"
	tableForeignKey = "a foreign key of another table leads to rows that the mark deletes: drop it, or pass a Mark that keeps the rows"
	tableComputes   = "what TableConfig says in SQL cannot be computed of a row, which holds up all others: leave what may fail to the applier"
	tableUnread     = "TableConfig.Scan reads a column into a variable that cannot hold it"
	tableRights     = "this role lacks a right: a relay needs to SELECT in the table and to UPDATE it, or to DELETE if Mark is empty, and to SELECT, INSERT, UPDATE and DELETE in the two tables beside it; Migrate, where it has something to do, to create tables in the schema"
)

// advice is what to do about an error of the database.
func (t *Table[T]) advice(err error) string {
	var unread pgx.ScanArgError
	if t.outdated(err) {
		return "call Migrate first; if it was, TableConfig.Key or the type of its columns is another since: drop the tables " + t.name + " and " + t.name + "_batches while no relay runs, and call it again"
	}
	if errors.As(err, &unread) {
		return tableUnread
	}
	if t.dialect == MySQL {
		return mysqlTableAdvice(err)
	}
	if t.dialect == SQLite {
		if sqliteOutdated(err) || strings.Contains(err.Error(), "SQL logic error") {
			return tableSQL
		}
		return sqliteCommonAdvice(err)
	}
	switch code := postgresCode(err); {
	case code == "42501":
		return tableRights
	case code == "23503":
		return tableForeignKey
	case code == "0A000":
		return "the table was altered since the statement was prepared: it is tried again"
	case code == "42P05":
	case strings.HasPrefix(code, "42"):
		return tableSQL
	case strings.HasPrefix(code, "22"):
		return tableComputes
	}
	return postgresCommonAdvice(err)
}

// outdated reports an error about the tables beside the user's.
func (t *Table[T]) outdated(err error) bool {
	text := err.Error()
	if t.dialect == SQLite {
		return sqliteOutdated(err) && (strings.Contains(text, t.name) || besideColumn.MatchString(text))
	}
	if t.dialect == MySQL {
		code := mysqlCode(err)
		return code == 1146 && strings.Contains(text, t.name) || code == 1054 && besideColumn.MatchString(text)
	}
	switch postgresCode(err) {
	case "42P01":
		return strings.Contains(text, t.name)
	case "42703", "42P10", "42804":
		return besideColumn.MatchString(text)
	}
	return false
}

// besideColumn is a column of a key in the tables beside the user's, in an error.
var besideColumn = regexp.MustCompile(`\b[bf]?\.?key([1-9][0-9]*|_list)\b`)
