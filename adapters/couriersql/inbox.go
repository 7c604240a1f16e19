package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier"
)

// DefaultInboxTable is the name of the inbox's table unless [InboxConfig] has another.
const DefaultInboxTable = "courier_inbox"

// InboxConfig configures [NewInbox]. Consumer is required.
type InboxConfig struct {
	// Consumer names the program that the effects are those of, such as "billing". Each
	// consumer has each record's effect once, and several may share a table. All
	// processes of one consumer have the same name, and keep it: under another, the
	// effects of records that are delivered again happen again.
	Consumer string

	// Table is the name of the table, with or without a schema, as [WithTable] takes it.
	// "" is [DefaultInboxTable].
	Table string

	// QueryTimeout is how long a call waits for the database, as [WithQueryTimeout] sets
	// it for an outbox: for a connection and the start of a transaction, and for its
	// commit. The time of the effect itself does not count; that is bounded by
	// its context. 0 is [DefaultQueryTimeout].
	QueryTimeout time.Duration

	// Retention is how long the notes of records that are done are kept: the appliers that
	// use the inbox delete older ones, some hours later, 10,000 in a transaction with a pause
	// after each, in a goroutine that [Inbox.Close] ends. In PostgreSQL one process of all
	// does it at a time. If it fails, that is logged once and tried again, and the effects go
	// on. Of a record that is delivered again later, the effect happens again: set it well
	// above the time for which a source, a dead letter queue or a restored backup may deliver
	// a record again; a week or more suits most, and less than a day is refused. A time in
	// which no process of the consumer applied anything, before this one began, does not
	// count until this one has run for as long as Retention: after a long outage the source
	// delivers old records again. 0, the default, keeps the notes, see [Inbox.Prune].
	Retention time.Duration

	// Logger is told of notes that cannot be deleted. Nil is slog.Default().
	Logger *slog.Logger
}

// Inbox remembers the records whose effects in a database are done, in a table of that
// database. With [Effects] an effect and the note of it are one transaction, so that the
// effect happens once however often a record is delivered: after a crash, a failed mark,
// an unknown outcome of a commit, a redrive, and to several processes at once. It is safe
// for concurrent use.
//
// It is the pattern that is known as the idempotent consumer, or inbox.
type Inbox struct {
	*database
	consumer string
	skipped  atomic.Uint64
	pruner   *pruner                   // nil if notes are kept
	began    atomic.Pointer[time.Time] // the first batch of this process
}

// NewInbox returns the inbox of a consumer. The database stays the caller's to close.
// NewInbox neither opens a connection nor creates the table, see [Inbox.Migrate]. A value
// that it cannot work with is reported as a [*courier.ConfigError] by every method that
// returns an error, by the appliers that use the inbox, and by a coordinator before it
// fetches.
func NewInbox(db *sql.DB, dialect Dialect, config InboxConfig) *Inbox {
	d := newDatabase(db, dialect)
	if config.Table == "" {
		config.Table = DefaultInboxTable
	}
	d.call("InboxConfig.Table", config.Table)
	d.nameTables(d.table, "inbox:"+d.name, "")
	d.migrations, d.shapes = d.grammar.inboxMigrations, []shape{d.grammar.inboxShape}
	d.waitFor("InboxConfig", config.QueryTimeout)
	if config.Consumer == "" {
		d.misconfigured("InboxConfig.Consumer", "is empty: name the program that the effects are those of, such as \"billing\"")
	}
	if config.Logger != nil {
		d.log = config.Logger
	}
	i := &Inbox{database: d, consumer: config.Consumer}
	switch {
	case config.Retention != 0 && config.Retention < 24*time.Hour:
		d.misconfigured("InboxConfig.Retention", fmt.Sprintf("of %v is shorter than sources and queues repeat records, whose effects would happen again: pass a week, a day at least, or 0 to keep the notes", config.Retention))
	case config.Retention > 0:
		i.pruner = &pruner{database: d, age: config.Retention, prune: i.pruneOld, opened: func(closer, bool) {}}
	}
	return i
}

// Close ends the deletion of old notes that is in progress, and waits for its end. The
// database stays open, and the inbox usable. Call it once the coordinators have returned. It
// returns nil.
func (i *Inbox) Close() error {
	i.pruner.close()
	return nil
}

// look deletes old notes if it is time.
func (i *Inbox) look() {
	if i.began.Load() == nil {
		now := i.now()
		i.began.CompareAndSwap(nil, &now)
	}
	i.pruner.look()
}

// pruneOld deletes notes from before a time. Until this process has run for the whole of the
// retention, that counts from the last note of the time before it: records of a time in which
// nobody was there to apply them are delivered again.
func (i *Inbox) pruneOld(ctx context.Context, before time.Time) (deleted int, err error) {
	if began := *i.began.Load(); before.Before(began) {
		var last micros
		if err := i.ask(ctx, func(ctx context.Context, conn *sql.Conn) error {
			return conn.QueryRowContext(ctx, i.sql(i.grammar.lastNote), i.consumer, i.grammar.time(began.UnixMicro())).Scan(&last)
		}); err != nil {
			return 0, i.failed(err, "looking for the last note of %s", i.table)
		}
		before = before.Add(-began.Sub(time.UnixMicro(int64(last))))
	}
	return i.prune(ctx, inboxPruneBatch, true, i.grammar.pruneInboxAlone, i.consumer, i.grammar.time(before.UnixMicro()))
}

// Migrate creates the table or brings it up to the version that this package works with,
// as [Outbox.Migrate] does for an outbox.
func (i *Inbox) Migrate(ctx context.Context) error { return i.migrate(ctx) }

// inboxPruneBatch is how many notes are deleted in one transaction. They are small, and to
// find the next ones the database may read over what is left.
const inboxPruneBatch = 10_000

// Prune deletes the notes of this consumer's records that were done before a time, in
// transactions of their own, and returns how many it has deleted, also if it fails. Of a
// record that is delivered again after that, the effect happens again: keep the notes for
// longer than any source, dead letter queue or backup may deliver a record again, a week
// at least.
func (i *Inbox) Prune(ctx context.Context, before time.Time) (deleted int, err error) {
	return i.prune(ctx, inboxPruneBatch, false, i.grammar.pruneInbox, i.consumer, i.grammar.time(before.UnixMicro()))
}

// noted has effects happen once by the notes of an inbox.
type noted[T any] struct {
	inbox    *Inbox
	identity func(T) string
}

func (n *noted[T]) Validate() error {
	switch {
	case n.inbox == nil || n.inbox.database == nil:
		return &courier.ConfigError{Field: "inbox", Problem: "is nil, or was not made by NewInbox"}
	case n.inbox.fault != nil:
		return n.inbox.fault
	case n.identity == nil:
		return &courier.ConfigError{Field: "identity", Problem: "is nil: pass a function that names a record"}
	}
	return nil
}

func (n *noted[T]) tables() *database { return n.inbox.database }

func (n *noted[T]) id(record T) string {
	if name := n.identity(record); name != "" {
		return idOf(name)
	}
	return ""
}

// admit notes the records of a batch as done, in a transaction, and returns those that
// were not. It waits for another transaction that has noted one of them and may be rolled
// back. Unless repeats is set it fails where a record is noted, which is half the work of
// looking at each.
func (n *noted[T]) admit(ctx context.Context, t queries, batch []identified[T], repeats bool) (fresh []identified[T], err error) {
	n.inbox.look()
	ids := make([]string, len(batch))
	for i, r := range batch {
		ids[i] = r.id
	}
	slices.Sort(ids) // two that note the same records do not wait for each other
	done, err := n.inbox.note(ctx, t, ids, repeats || n.inbox.grammar.admitAll == "")
	if err != nil {
		return nil, n.inbox.failed(err, "noting %s as done in %s", plural(len(ids), "record"), n.inbox.table)
	}
	isNew := make(map[string]bool, len(done))
	for _, id := range done {
		isNew[id] = true
	}
	for _, r := range batch {
		if isNew[r.id] {
			fresh = append(fresh, r)
		}
	}
	return fresh, nil
}

func (*noted[T]) finish(context.Context, queries, []identified[T]) error { return nil } // admit has noted them

func (n *noted[T]) isRepeat(err error) bool {
	return n.inbox.grammar.admitAll != "" && (errors.Is(err, errNotAll) || n.inbox.grammar.isNoted(err, n.inbox.name))
}

func (n *noted[T]) committed(_ context.Context, batch []identified[T], fresh int) {
	n.skipped(len(batch) - fresh)
}

func (*noted[T]) after() string { return "" }

func (n *noted[T]) skipped(copies int) { n.inbox.skipped.Add(uint64(copies)) }

// errNotAll is for a statement that has not noted all records: which, one that looks at each
// record has to find out, in another transaction.
var errNotAll = errors.New("some records were not noted")

// note returns those that it has noted, and that were not before.
func (i *Inbox) note(ctx context.Context, texts queries, ids []string, repeats bool) (noted []string, err error) {
	if i.dialect == MySQL {
		return i.noteInMySQL(ctx, texts, ids, repeats)
	}
	list := i.grammar.strings(ids)
	if !repeats {
		n, err := texts(ctx, i.sql(i.grammar.admitAll), i.consumer, list)
		if err == nil && !slices.Equal(n, []string{strconv.Itoa(len(ids))}) {
			err = errNotAll
		}
		return ids, err
	}
	if noted, err = texts(ctx, i.sql(i.grammar.admit), i.timed(i.consumer, list)...); err != nil || len(noted) == len(ids) {
		return noted, err
	}
	done, err := texts(ctx, i.sql(i.grammar.admitted), i.consumer, list)
	if err == nil && len(done) < len(ids) {
		err = i.suppressed(i.table, len(ids)-len(done), len(ids))
	}
	return noted, err
}

// Skipped returns how many deliveries this Inbox has found to be done already. It counts
// those of this process.
func (i *Inbox) Skipped() uint64 { return i.skipped.Load() }
