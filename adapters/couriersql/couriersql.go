// Package couriersql keeps an outbox in the database that holds the business
// rows, so that a message exists exactly when the change it tells of does.
//
//	outbox := couriersql.New(db, couriersql.SQLite)
//	err := outbox.Migrate(ctx)
//
//	tx, err := db.BeginTx(ctx, nil)
//	// … the business rows, then
//	err = outbox.Write(ctx, tx, couriersql.Message{Topic: "orders", Payload: order})
//	err = tx.Commit()
//
//	deliver := courier.NewDecodingApplier(sink, couriersql.Row.Message)
//	applier := courier.NewDLQApplier(deliver, outbox.DLQ())
//	coordinator := courier.NewPollingCoordinator(outbox.Source(), applier)
//
// # The guarantee
//
// A message that was committed is delivered at least once, or parked in the
// dead letter queue; one that was rolled back never is. A message is delivered
// again when the process dies, or a mark is lost, between its delivery and its
// mark: receivers tell a repetition by [Message].ID.
//
// Messages are handed out in the order in which they were written. What is
// fetched is whatever is pending, not what follows a cursor, so that a message
// whose transaction commits late is not passed over. Run one relay an outbox:
// a second one on the same table loses nothing, but delivers everything twice.
//
// The package imports no driver: the user's own is behind the *sql.DB.
package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/erfanmomeniii/courier"
)

// DefaultTable is the outbox table unless [WithTable] names another.
const DefaultTable = "courier_outbox"

// Outbox is an outbox table and, beside it, the table of its dead letters. It
// is made by [New], is safe for concurrent use, and must not be copied.
//
// Everything but Write takes a connection of the pool: called while the same
// goroutine holds the pool's last one in a transaction, it waits for ever.
type Outbox struct {
	db      *sql.DB
	grammar grammar
	table   string
	keep    bool
	now     func() time.Time
	trace   func(context.Context) map[string]string
	fault   error

	fetch, mark statement
}

// Option is a choice that [New] is given.
type Option func(*Outbox)

// New returns the outbox of a database, which stays the caller's to close. It
// neither opens a connection nor creates the tables, see [Outbox.Migrate]. A
// value that it cannot work with is reported as a [*courier.ConfigError] by
// every method that returns an error.
func New(db *sql.DB, dialect Dialect, opts ...Option) *Outbox {
	o := &Outbox{db: db, table: DefaultTable, now: time.Now}
	if db == nil {
		o.misconfigured("db", "is nil: pass the *sql.DB that sql.Open returned")
	}
	if dialect == SQLite {
		o.grammar = sqliteGrammar()
	} else {
		o.misconfigured("dialect", fmt.Sprintf("%d is unknown: pass couriersql.SQLite", dialect))
	}
	for _, opt := range opts {
		opt(o)
	}
	o.fetch.text = o.sql(o.grammar.fetch)
	o.mark.text = o.sql(o.grammar.delete)
	if o.keep {
		o.mark.text = o.sql(o.grammar.keep)
	}
	return o
}

// Lower case only, because databases disagree on whether Orders and orders are
// one table; short enough for the names derived from it in any of them.
var plainIdentifier = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,47}$`)

// WithTable names the outbox table, of which [DefaultTable] is the default. The
// dead letters go to the same name with _dlq. A name is up to 48 lower-case
// letters, digits and underscores, and does not begin with a digit.
func WithTable(name string) Option {
	return func(o *Outbox) {
		if !plainIdentifier.MatchString(name) {
			o.misconfigured("table", fmt.Sprintf("%q is not a plain name: use up to 48 of a-z, 0-9 and _, not beginning with a digit", name))
			return
		}
		o.table = name
	}
}

// WithKeep keeps rows that are marked, with the time in processed_at (Unix, in
// microseconds), instead of deleting them, which is the default. The fetch stays
// as fast however many there are; deleting old ones is left to the user.
func WithKeep() Option { return func(o *Outbox) { o.keep = true } }

// WithClock sets the clock that created and processed times are read from. Nil
// is the system's.
func WithClock(clock courier.Clock) Option {
	return func(o *Outbox) {
		o.now = time.Now
		if clock != nil {
			o.now = clock.Now
		}
	}
}

// WithTraceHeaders sets the function that Write calls, at most once a call, for
// the trace headers of messages whose Trace is nil, such as one that injects the
// span in ctx into an OpenTelemetry carrier. Nil, the default, stores none.
func WithTraceHeaders(headers func(ctx context.Context) map[string]string) Option {
	return func(o *Outbox) { o.trace = headers }
}

// misconfigured keeps the first fault, which the others often follow from.
func (o *Outbox) misconfigured(field, problem string) {
	if o.fault == nil {
		o.fault = &courier.ConfigError{Field: field, Problem: problem}
	}
}

// Pending returns how many messages wait to be delivered. It counts them one by
// one: ask once a minute, not once a batch.
func (o *Outbox) Pending(ctx context.Context) (int, error) {
	return o.count(ctx, o.grammar.pending, "pending rows of "+o.table)
}

// Close releases the statements that the source prepared. The database stays
// open, and the outbox usable: a later call prepares them anew. Call it once
// the coordinators have returned; a fetch or mark in progress may fail.
func (o *Outbox) Close() error {
	return errors.Join(o.fetch.close(), o.mark.close())
}

func (o *Outbox) count(ctx context.Context, query, what string) (int, error) {
	if o.fault != nil {
		return 0, o.fault
	}
	var n int
	if err := o.db.QueryRowContext(ctx, o.sql(query)).Scan(&n); err != nil {
		return 0, o.failed(err, "counting the %s", what)
	}
	return n, nil
}

// sql puts the table's name into a statement. It is safe to do so because
// WithTable took nothing but a plain identifier.
func (o *Outbox) sql(text string) string {
	return strings.ReplaceAll(text, "{table}", o.table)
}

// failed says what was being done when the database returned err and, where
// that is known, what to do about it.
func (o *Outbox) failed(err error, doing string, args ...any) error {
	doing = fmt.Sprintf(doing, args...)
	if advice := o.grammar.advice(err); advice != "" {
		return fmt.Errorf("couriersql: %s: %w: %s", doing, err, advice)
	}
	return fmt.Errorf("couriersql: %s: %w", doing, err)
}
