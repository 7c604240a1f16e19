// Package couriersql keeps an outbox in the database that holds the business
// rows, so that a message exists exactly when the change it tells of does.
//
//	outbox := couriersql.New(db, couriersql.Postgres) // or couriersql.SQLite or couriersql.MySQL
//	err := outbox.Migrate(ctx)
//
//	tx, err := db.BeginTx(ctx, nil)
//	// … the business rows, then
//	err = outbox.Write(ctx, tx, couriersql.Message{Topic: "orders", Payload: order})
//	err = tx.Commit()
//
//	source := outbox.Source()
//	deliver := courier.NewDecodingApplier(sink, couriersql.Row.Message)
//	applier, _ := courier.ResilientApplier(deliver, &courier.ResilientConfig[couriersql.Row]{DLQ: source.DLQ()})
//	coordinator := courier.NewPollingCoordinator(source, applier)
//
// # The guarantee
//
// A message that was committed is delivered at least once, or parked in the
// dead letter queue, by [Source.DLQ] in one transaction with its mark; one that
// was rolled back never is. A message is delivered
// again when the process dies, or a mark is lost, between its delivery and its
// mark: receivers tell a repetition by [Message].ID.
//
// What is fetched is whatever is pending, not what follows a cursor, so that a
// message whose transaction commits late is not passed over.
//
// # Several relays
//
// How rows are held between their fetch and their mark decides how many relays
// an outbox may have:
//
//   - PostgreSQL, by default: the rows of a batch are locked by a transaction
//     that stays open until they are settled, and other relays pass them over. A
//     relay that dies frees its rows at once, and leaves no trace: a message that
//     kills its process (out of memory, os.Exit) kills the next one too. Only a
//     single relay keeps the order of the messages.
//   - [WithLease], in PostgreSQL and SQLite: rows are claimed for a time, which a
//     coordinator renews while it works on them. For appliers so slow that a
//     transaction should not wait for them. A message that kills its process is
//     found and parked, see [WithMaxCrashes].
//   - [WithStrictOrder], in PostgreSQL: of all relays one delivers, in order,
//     and another takes over when it dies.
//   - MySQL and MariaDB: each batch has a lease, which is a row beside the outbox. It is of
//     [DefaultTableLease] by default. With [WithStrictOrder] no relay fetches while another
//     one has rows in hand.
//   - SQLite, by default: nothing is held. Run one relay: a second one loses
//     nothing, but delivers everything twice.
//
// # Tables of your own
//
// A table that is there already is relayed as it is by [NewTable].
//
// # Records into a table
//
// Whatever the source, [NewSink] writes records to a table of the user's own, a batch by one
// statement.
//
// # Effects that happen once
//
// Whatever the source, [Effects] has records take effect in the database once, however
// often they are delivered.
package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier"
)

// DefaultTable is the outbox table unless [WithTable] names another.
const DefaultTable = "courier_outbox"

// Outbox is an outbox table and, beside it, the table of its dead letters. It
// is made by [New], is safe for concurrent use, and must not be copied.
//
// Everything but Write takes a connection of the pool: called while the same
// goroutine holds the pool's last one in a transaction, it waits until
// [WithQueryTimeout] ends it with [ErrQueryTimeout], or ctx does.
type Outbox struct {
	*database
	keep          bool
	lease         time.Duration // 0 is none
	maxCrashes    int
	countsCrashes bool // was asked for
	strict        bool
	wakeUp        bool
	backoff       backoff
	fetchBytes    int64
	trace         func(context.Context) map[string]string
	pruner        *pruner // nil unless old rows are deleted by themselves

	relayed *Table[Row] // the outbox as a table that its relay reads, in MySQL; else nil

	fetch, mark statement
	looked      atomic.Bool // for the indexes
	file        file        // of SQLite

	mu   sync.Mutex
	open map[closer]bool // those that have something of the database
}

// Option is a choice that [New] is given.
type Option func(*Outbox)

// New returns the outbox of a database, which stays the caller's to close. It
// neither opens a connection nor creates the tables, see [Outbox.Migrate]. A
// value that it cannot work with is reported as a [*courier.ConfigError] by
// every method that returns an error.
func New(db *sql.DB, dialect Dialect, opts ...Option) *Outbox {
	o := &Outbox{
		database: newDatabase(db, dialect),
		backoff:  defaultBackoff, fetchBytes: DefaultFetchBytes, open: make(map[closer]bool),
	}
	o.call("table", DefaultTable)
	for _, opt := range opts {
		opt(o)
	}
	o.nameTables(o.table+"_dlq", o.name, ownQueue+o.name+"_dlq")
	o.migrations, o.shapes = o.grammar.migrations, o.grammar.shapes
	switch {
	case o.strict && dialect == SQLite:
		o.misconfigured("WithStrictOrder", "is for PostgreSQL: in SQLite the order is strict as long as there is one relay")
	case dialect == MySQL && len(o.name) > longestInMySQL:
		o.misconfigured("table", fmt.Sprintf("%q is too long in MySQL, where tables are beside it: use up to %d characters", o.table, longestInMySQL))
	case o.wakeUp && dialect == MySQL:
		o.misconfigured("WithWakeUp", "is for PostgreSQL: MySQL tells nobody of a commit; use a short interval")
	case o.countsCrashes && o.maxCrashes >= 0 && dialect == MySQL:
		o.misconfigured("WithMaxCrashes", "is not for MySQL and MariaDB, where crashes are not counted: leave it out")
	case o.wakeUp && dialect == SQLite:
		o.misconfigured("WithWakeUp", "is for PostgreSQL: SQLite tells nobody of a commit; use a short interval")
	case o.strict && o.lease != 0 && dialect != MySQL:
		o.misconfigured("WithStrictOrder", "does not go with WithLease, by which several relays work at once")
	}
	if o.countsCrashes && o.lease == 0 && dialect != MySQL {
		o.misconfigured("WithMaxCrashes", "needs WithLease: without a lease a crash leaves no trace")
	}
	o.fetch.text = o.sql(o.grammar.ordered)
	o.mark.text = o.sql(o.either(o.grammar.deleteKnown, o.grammar.keepKnown))
	if dialect == MySQL && o.fault == nil {
		o.relayed = o.asTable()
	}
	return o
}

// asStore is the outbox as a table that its relay reads, nil where it is none.
func (o *Outbox) asStore(ctx context.Context) (tableStore, error) {
	if o.relayed == nil {
		return nil, nil
	}
	store, err := o.relayed.described(ctx)
	return store, o.noTable(err)
}

// either chooses what becomes of a row that is marked.
func (o *Outbox) either(remove, keep string) string {
	if o.keep {
		return keep
	}
	return remove
}

// WithTable names the outbox table, of which [DefaultTable] is the default. The
// dead letters go to the same name with _dlq. A name is up to 48 lower-case
// letters, digits and underscores, and does not begin with a digit.
//
// In PostgreSQL it may have a schema, as in "billing.courier_outbox": all tables of the
// outbox, courier_migrations too, are in that schema then, whatever the search_path. The
// schema must exist. In MySQL the schema is a database, and the name has up to 40 characters.
func WithTable(name string) Option {
	return func(o *Outbox) { o.call("table", name) }
}

// WithKeep keeps rows that are marked, with the time in processed_at, instead of
// deleting them, which is the default. The fetch stays as fast however many
// there are; [WithRetention] or [Outbox.Prune] deletes old ones.
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

// WithLease claims rows for the time d when they are fetched, instead of holding
// them by a lock; other relays leave them alone until then. The coordinator
// renews a claim each third of d for as long as it works on the rows, and a
// relay that dies leaves them to the others after d: a minute suits most. It is
// for appliers that take seconds, and for several relays on SQLite.
//
// A relay whose claim ran out and was taken by another can neither mark nor fail
// the row: it was delivered twice by then, which the log says.
//
// In MySQL it is how long a batch is leased, by one row beside the outbox, instead of
// [DefaultTableLease]; a lease that was lost is lost for all rows of the batch.
//
// A claim that runs out is also how the relays learn that one of them died, and find the
// message that kills them, see [WithMaxCrashes], but not in MySQL. Without a lease a death leaves no trace, and
// such a message is delivered again without end, by each relay that starts.
func WithLease(d time.Duration) Option {
	return func(o *Outbox) {
		if d < time.Second {
			o.misconfigured("WithLease", fmt.Sprintf("of %v is too short to be renewed in time: pass a second or more", d))
		}
		o.lease = d
	}
}

// WithStrictOrder lets only one of all relays deliver at a time, in the order in
// which the messages were written; messages of a [Message].Key wait for an
// earlier one that failed. Keep that order by courier.WithOrderKey with Row.Key too where
// there is a breaker, whose probes may be later messages, or an applier that may apply the
// later records of a batch though an earlier one fails (a [courier.BatchApplier] that is no
// [courier.OrderedBatcher], such as couriernats). The one is elected by an advisory lock of a transaction
// that is open for as long as the relay leads. It holds back no vacuum and locks no
// table; to a pooler in transaction mode it is one server connection, of which such a
// pool must have more. The others stand by, and one of them takes over when the
// server notices that the first has died, which is at once after a kill and 15 s after
// its host or network is gone. On a read-only server none is elected. A coordinator that is paused or has stopped does not
// give way before [Outbox.Close]: it may have rows in hand, and may run again.
//
// In MySQL none is elected: a relay fetches nothing while another one has rows in hand, and
// one that dies with rows in hand stops the others until its lease ends ([WithLease]).
func WithStrictOrder() Option { return func(o *Outbox) { o.strict = true } }

// WithBackoff sets when a row is handed out again that failed and was not
// parked: after initial (1 s), and twice as long with every failure, up to
// longest (5 minutes). What the error asks for ([courier.RetryAfter]) is obeyed
// where that is longer. The time is in the database, so that it outlives the relay.
func WithBackoff(initial, longest time.Duration) Option {
	return func(o *Outbox) {
		if initial <= 0 || longest < initial {
			o.misconfigured("WithBackoff", fmt.Sprintf("of %v to %v makes no sense: pass a delay above 0, and a longest one that is no shorter", initial, longest))
			return
		}
		o.backoff = backoff{initial, longest}
	}
}

// DefaultFetchBytes is 64 MiB, see [WithFetchBytes].
const DefaultFetchBytes = 64 << 20

// WithFetchBytes bounds a fetch by the bytes of its payloads and headers, beside its
// number of rows: it ends with the row by which they reach n, and so has one row at
// least. The coordinator then fetches again at once. The default is [DefaultFetchBytes].
// For each batch in hand a relay needs n bytes of memory and those of the largest message.
func WithFetchBytes(n int64) Option {
	return func(o *Outbox) {
		if n <= 0 {
			o.misconfigured("WithFetchBytes", fmt.Sprintf("of %d makes no sense: pass a number of bytes above 0, such as couriersql.DefaultFetchBytes", n))
			return
		}
		o.fetchBytes = n
	}
}

// WithLogger sets where the outbox says what nobody would know otherwise: a
// claim that was lost, an index that is missing, a wake-up that does not work, and
// with [WithStrictOrder] when this relay begins to lead, and when and why it does no more.
// Nil is slog.Default().
func WithLogger(log *slog.Logger) Option {
	return func(o *Outbox) {
		if o.log = log; log == nil {
			o.log = slog.Default()
		}
	}
}

// WithTraceHeaders sets the function that Write calls, at most once a call, for
// the trace headers of messages whose Trace is nil, such as one that injects the
// span in ctx into an OpenTelemetry carrier. Nil, the default, stores none.
func WithTraceHeaders(headers func(ctx context.Context) map[string]string) Option {
	return func(o *Outbox) { o.trace = headers }
}

// Pending returns how many messages wait to be delivered. It counts them one by
// one: ask once a minute, not once a batch.
func (o *Outbox) Pending(ctx context.Context) (int, error) {
	return o.count(ctx, o.grammar.pending, "pending rows of "+o.table)
}

// Close gives back what the sources hold of the database: prepared statements,
// an open transaction, a claim to be the one relay, the leases in MySQL, a connection that listens, and ends the
// deletion of old rows. The
// database stays open, and the outbox usable: a later call begins anew. Call it
// once the coordinators have returned, and soon: an elected relay stays elected
// until then. A fetch or mark in progress may fail.
func (o *Outbox) Close() error {
	for _, c := range o.opens(true) { // first, as they open others
		c.close()
	}
	for _, c := range o.opens(false) {
		c.close()
	}
	return errors.Join(o.fetch.close(), o.mark.close())
}

func (o *Outbox) opens(wakers bool) (list []closer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for c := range o.open {
		if _, ok := c.(*waker); ok == wakers {
			list = append(list, c)
		}
	}
	return list
}

// closer is what has something to give back.
type closer interface{ close() }

// opened notes whether it has.
func (o *Outbox) opened(h closer, has bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if has {
		o.open[h] = true
	} else {
		delete(o.open, h)
	}
}
