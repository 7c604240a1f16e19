package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/erfanmomeniii/courier"
)

// DLQ is a durable dead letter queue: a table of the database. It has no
// bound but the disk. It is made by [NewDLQ], for records of any type, or by
// [Source.DLQ] and [Outbox.DLQ], for the rows of an outbox. It is safe for concurrent
// use; any number of values, of any number of processes, may share a table.
//
// The ID of a letter is the number of its row, its version, and the time of its first
// failure in microseconds, as a number may be given twice: seq.version.time.
type DLQ[T any] struct {
	*database
	source *Source // whose rows it marks, or nil
	encode func(courier.DeadLetter[T]) (Row, error)
	decode func(Row) (T, error)
	create func(context.Context) error
}

var (
	_ courier.DLQ[Row]       = (*DLQ[Row])(nil)
	_ courier.KeyedDLQ       = (*DLQ[Row])(nil)
	_ courier.SharedDLQ[Row] = (*DLQ[Row])(nil)
	_ courier.MarkingDLQ     = (*DLQ[Row])(nil)
	_ courier.Validator      = (*DLQ[Row])(nil)
)

// DLQ returns the queue of the outbox's dead letters, to look after them, and for
// the branches of a fan-out, which may share it, each with a name of its own
// ([courier.DLQPolicy].Branch). Its Send writes the letter alone: a relay that
// dies before the mark parks the record once more.
func (o *Outbox) DLQ() *DLQ[Row] { return queueOfRows(o.database, o.Migrate) }

// queueOfRows is a queue whose records are stored as they are.
func queueOfRows(d *database, create func(context.Context) error) *DLQ[Row] {
	return &DLQ[Row]{
		database: d,
		encode:   func(letter courier.DeadLetter[Row]) (Row, error) { return letter.Record, nil },
		decode:   func(row Row) (Row, error) { return row, nil },
		create:   create,
	}
}

// Migrate creates the table of a queue made by [NewDLQ], or brings it up to the version
// that this package works with, as [Outbox.Migrate] does. That of an outbox's queue is
// Outbox.Migrate.
func (q *DLQ[T]) Migrate(ctx context.Context) error { return q.create(ctx) }

// MarksRecords reports whether Send marks the row as well, which is so by
// [Source.DLQ].
func (q *DLQ[T]) MarksRecords() bool { return q.source != nil }

// Validate reports what the queue or its outbox was misconfigured with.
func (q *DLQ[T]) Validate() error { return q.fault }

// SameQueue reports whether another queue is on the same table of the same
// *sql.DB. Of two pools on one file it cannot tell, nor of a table that one of the
// queues names without its schema.
func (q *DLQ[T]) SameQueue(other courier.DeadLetterSink[T]) bool {
	o, ok := other.(*DLQ[T])
	return ok && o != nil && o.db == q.db && o.dlq == q.dlq
}

// StoredError is the error of a dead letter as it was read back: the text of
// the one that was sent, and the Go type of its cause. Errors that say nothing
// by their type, as those of errors.New do, give way to the wrapper that does.
type StoredError struct {
	Text string
	Type string // such as *net.OpError
}

func (e *StoredError) Error() string { return e.Text }

// Send stores a record with its last error. If the branch has a letter of
// the record already, by its identity or the message's ID, Send replaces that letter: it
// keeps its place, the time of its first failure and the larger FailedRedrives. A letter
// that only says that the record's key is parked replaces none. Each branch of a fan-out
// has a letter of its own.
//
// By [Source.DLQ] it marks the row in the same transaction, and refuses one that
// the source does not hold, or that another source handed out ([*courier.ConfigError]).
func (q *DLQ[T]) Send(ctx context.Context, letter courier.DeadLetter[T]) error {
	if q.fault != nil {
		return q.fault
	}
	row, err := q.encode(letter)
	if err != nil {
		return err
	}
	stored := withRecord(letter, row)
	if from := row.origin; q.source != nil && from != nil && from != &q.source.origin {
		return q.failed(errForeign, "parking %v in %s", row, q.dlq)
	}
	if err := q.bounded(ctx, func(ctx context.Context) error {
		if q.source != nil {
			return q.source.holder.park(ctx, stored)
		}
		return q.on(ctx, func(conn *sql.Conn) error {
			if err := q.checkFaithful(func(text string) scanner { return conn.QueryRowContext(ctx, text) }); err != nil {
				return err
			}
			return q.send(ctx, conn, stored)
		})
	}); err != nil {
		return q.failed(err, "parking %v in %s", row, q.dlq)
	}
	return nil
}

// withRecord is a letter with its record in another form.
func withRecord[T, U any](l courier.DeadLetter[T], record U) courier.DeadLetter[U] {
	return courier.DeadLetter[U]{
		ID: l.ID, Record: record, Key: l.Key, Error: l.Error, Reason: l.Reason, Attempts: l.Attempts,
		FirstFailedAt: l.FirstFailedAt, FailedAt: l.FailedAt, Branch: l.Branch, FailedRedrives: l.FailedRedrives,
	}
}

// send writes a letter.
func (d *database) send(ctx context.Context, on executor, letter courier.DeadLetter[Row]) error {
	result, err := on.ExecContext(ctx, d.sql(d.grammar.send), d.letterOf(letter)...)
	if err != nil || missing(result, 1) == 0 {
		return err
	}
	if letter.Reason == courier.ReasonKeyParked { // there may be a better one
		if found, err := texts(ctx, on, d.sql(d.grammar.sent), plain(letter.Branch), letter.Record.ID); err != nil || len(found) > 0 {
			return err
		}
	}
	return d.suppressed(d.dlq, 1, 1)
}

// errForeign is the error of a row that the source of a queue did not hand out.
var errForeign = &courier.ConfigError{Field: "DLQ", Problem: "is of another source than the one that handed the row out: pass the DLQ of the coordinator's own source (source := outbox.Source(), then source and source.DLQ()), or Outbox.DLQ"}

// letterOf is a letter as arguments.
func (d *database) letterOf(letter courier.DeadLetter[Row]) []any {
	r := letter.Record
	args := []any{plain(letter.Branch), r.ID, r.Seq, r.Topic, r.Key, notNil(r.Payload), r.Headers, r.Trace, d.grammar.time(r.CreatedAt)}
	return append(args, stateOf(d, letter)...)
}

// stateOf is what is known of a letter's record in its branch, as arguments.
func stateOf[T any](d *database, letter courier.DeadLetter[T]) []any {
	var text, kind string
	var stored *StoredError
	if errors.As(letter.Error, &stored) && stored == letter.Error { // it was read back, and says it already
		text, kind = stored.Text, stored.Type
	} else if letter.Error != nil {
		text, kind = letter.Error.Error(), typeOf(letter.Error)
	}
	first := letter.FirstFailedAt
	if first.IsZero() {
		first = letter.FailedAt
	}
	text = plain(text) // an error may quote the bytes of a payload
	return []any{text, kind, string(letter.Reason), letter.Attempts, d.grammar.time(first.UnixMicro()), d.grammar.time(letter.FailedAt.UnixMicro()),
		letter.FailedRedrives, plain(letter.Key)}
}

// plain makes of a text what every database and JSON can hold.
func plain(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}

// Receive returns up to max letters, those that were sent first first, and
// leaves them in the queue. Their errors are [*StoredError]s. The records are the
// caller's. It does not wait for a letter.
func (q *DLQ[T]) Receive(ctx context.Context, max int) ([]courier.DeadLetter[T], error) {
	return q.List(ctx, "", max)
}

// List returns up to max of the letters behind the one with the given ID, which
// may have been changed or deleted since. "" is before the first. It passes over letters
// whose records cannot be decoded, and logs their IDs: these stay in the queue and are
// counted.
func (q *DLQ[T]) List(ctx context.Context, after string, max int) ([]courier.DeadLetter[T], error) {
	if q.fault != nil {
		return nil, q.fault
	}
	var seq int64
	if after != "" {
		var ok bool
		if seq, ok = parseID(after); !ok {
			return nil, fmt.Errorf("couriersql: listing the dead letters of %s behind %q: this is no ID of a letter, which is of the form 17.1.1767225600000000", q.dlq, after)
		}
	}
	for max > 0 {
		var stored []courier.DeadLetter[Row]
		if err := q.ask(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
			stored, err = q.letters(ctx, conn, seq, max)
			return err
		}); err != nil {
			return nil, q.failed(err, "reading up to %s of %s", plural(max, "dead letter"), q.dlq)
		}
		if letters := q.decoded(ctx, stored); len(letters) > 0 || len(stored) < max {
			return letters, nil
		}
		seq, _ = parseID(stored[len(stored)-1].ID)
	}
	return nil, nil
}

// decoded are the letters whose records can be.
func (q *DLQ[T]) decoded(ctx context.Context, stored []courier.DeadLetter[Row]) (letters []courier.DeadLetter[T]) {
	for _, letter := range stored {
		record, err := q.decode(letter.Record)
		if err != nil {
			q.log.WarnContext(ctx, "couriersql: a dead letter is passed over, as its record cannot be decoded; it stays in the queue: courierctl dlq show has its bytes",
				"table", q.dlq, "letter", letter.ID, "record", letter.Record.ID, "error", err)
			continue
		}
		letters = append(letters, withRecord(letter, record))
	}
	return letters
}

func (d *database) letters(ctx context.Context, on executor, after int64, max int) ([]courier.DeadLetter[Row], error) {
	rows, err := on.QueryContext(ctx, d.sql(d.grammar.list), after, max)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // what it has to say, Err said
	var letters []courier.DeadLetter[Row]
	for rows.Next() {
		var letter courier.DeadLetter[Row]
		var failure StoredError
		var seq, version int64
		var first, last micros
		r := &letter.Record
		if err := rows.Scan(&seq, &version, &r.Seq, &r.ID, &r.Topic, &r.Key, &r.Payload, &r.Headers, &r.Trace, (*micros)(&r.CreatedAt),
			&failure.Text, &failure.Type, (*string)(&letter.Reason), &letter.Attempts, &first, &last,
			&letter.FailedRedrives, &letter.Branch, &letter.Key); err != nil {
			return nil, err
		}
		letter.ID = fmt.Sprintf("%d.%d.%d", seq, version, int64(first))
		letter.Error = &failure
		letter.FirstFailedAt, letter.FailedAt = time.UnixMicro(int64(first)).UTC(), time.UnixMicro(int64(last)).UTC()
		letters = append(letters, letter)
	}
	return letters, rows.Err()
}

// Update sets what is known of the letter with this ID, its record and its branch
// excepted, in one statement. It does nothing when the letter has changed since, or is gone.
func (q *DLQ[T]) Update(ctx context.Context, letter courier.DeadLetter[T]) error {
	if q.fault != nil {
		return q.fault
	}
	seq, ok := parseID(letter.ID)
	if !ok {
		return nil
	}
	if err := q.ask(ctx, func(ctx context.Context, conn *sql.Conn) error {
		result, err := conn.ExecContext(ctx, q.sql(q.grammar.update), append([]any{seq, letter.ID}, stateOf(q.database, letter)...)...)
		if err == nil && missing(result, 1) > 0 {
			err = q.recountLetters(ctx, conn, letter.ID)
		}
		return err
	}); err != nil {
		return q.failed(err, "updating the dead letter %s of %s", letter.ID, q.dlq)
	}
	return nil
}

// Delete removes letters by ID, all or none, in one statement. IDs that no
// letter has, or none has any more, are passed over.
func (q *DLQ[T]) Delete(ctx context.Context, ids ...string) error {
	_, err := q.Remove(ctx, ids...)
	return err
}

// Remove is [DLQ.Delete] that returns the IDs of the letters it removed, in the
// order given.
func (q *DLQ[T]) Remove(ctx context.Context, ids ...string) ([]string, error) {
	if q.fault != nil {
		return nil, q.fault
	}
	if len(ids) == 0 {
		return nil, nil
	}
	var removed []string
	if err := q.ask(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
		if q.dialect == MySQL {
			removed, err = q.removeInMySQL(ctx, conn, ids)
		} else {
			removed, err = q.remove(ctx, conn, ids)
		}
		return err
	}); err != nil {
		return nil, q.failed(err, "deleting %s of %s", plural(len(ids), "dead letter"), q.dlq)
	}
	return removed, nil
}

// remove removes letters, and returns the IDs of those that it found.
func (d *database) remove(ctx context.Context, on executor, ids []string) ([]string, error) {
	removed, err := returnedIDs(ctx, on, ids, d.sql(d.grammar.remove), d.grammar.letters(ids)...)
	if err == nil && len(removed) < len(ids) {
		err = d.recountLetters(ctx, on, ids...)
	}
	return removed, err
}

// recountLetters is an error where letters are left that a statement was for.
func (d *database) recountLetters(ctx context.Context, on executor, ids ...string) error {
	return d.recount(ctx, on, d.dlq, len(ids), d.grammar.kept, d.grammar.letters(ids)...)
}

// ErrOfBranch is the error, to errors.Is, of [Outbox.Requeue] for the letter of a
// branch of a fan-out.
var ErrOfBranch = errors.New("a row of the outbox goes to all branches, and this letter is owed to one: redrive it with courier.Redrive, the applier of its branch and a Match by Branch")

// ErrOfKey is the error, to errors.Is, of [Outbox.Requeue] for some of the letters of an
// order key.
var ErrOfKey = errors.New("a key stays parked as long as it has letters, so that the relay would park these again behind the others: put all letters of the key back at once, while no relay has their rows in hand (courierctl dlq requeue -all -key), or redrive them with courier.Redrive, which keeps their order")

// Requeue puts dead letters back into the outbox, in their order and in one
// transaction, and the relay delivers them as new rows. It returns the IDs of the
// letters that it put back, in the order given. Unlike [courier.Redrive] it needs
// no applier.
//
// A new row comes after all rows of the outbox and has no attempts. Its age
// ([Outbox.Lag], [Outbox.Status]) counts from the requeue; CreatedAt stays. Requeue
// deletes the message's former row, which was kept ([WithKeep]) or is pending. It
// passes over IDs that no letter has, and letters whose row a relay has locked:
// that relay is about to mark the row or to park it again.
//
// Requeue refuses the letter of a branch with [ErrOfBranch], and some but not all of the
// letters of an order key (DLQPolicy.Key) with [ErrOfKey]; then it puts nothing back. So it
// does where it would pass over some of the letters of a key. The rows of the key that are
// pending are delivered before those that it puts back: to keep the order use
// [courier.Redrive], during which the key stays parked.
func (o *Outbox) Requeue(ctx context.Context, ids ...string) ([]string, error) {
	if o.fault != nil {
		return nil, o.fault
	}
	if len(ids) == 0 {
		return nil, nil
	}
	var requeued []string
	if err := o.ask(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
		if o.dialect == MySQL {
			requeued, err = o.requeueInMySQL(ctx, conn, ids)
		} else {
			requeued, err = o.requeue(ctx, conn, ids)
		}
		return err
	}); err != nil {
		return nil, o.failed(err, "putting %s of %s back into %s (none was)", plural(len(ids), "dead letter"), o.dlq, o.table)
	}
	return requeued, nil
}

// requeue makes letters new rows. It does not use the former row again: a mark of
// that row that comes late, or is repeated because its answer was lost, would take
// a row that nobody has applied.
func (o *Outbox) requeue(ctx context.Context, conn *sql.Conn, ids []string) ([]string, error) {
	tx, err := conn.BeginTx(ctx, o.grammar.isolated)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	requeued, err := o.requeueIn(ctx, tx, ids)
	if err != nil {
		return nil, err
	}
	return requeued, tx.Commit()
}

func (o *Outbox) requeueIn(ctx context.Context, tx *sql.Tx, ids []string) (requeued []string, err error) {
	letters := o.grammar.letters(ids)
	for _, text := range o.grammar.replace {
		if _, err := tx.ExecContext(ctx, o.sql(text), letters...); err != nil {
			return nil, err
		}
	}
	var id, branch string
	switch err := tx.QueryRowContext(ctx, o.sql(o.grammar.ofBranch), letters...).Scan(&id, &branch); {
	case err == nil:
		return nil, fmt.Errorf("the letter %s is of the branch %q: %w", id, branch, ErrOfBranch)
	case !errors.Is(err, sql.ErrNoRows):
		return nil, err
	}
	rowless, err := number(ctx, tx, o.sql(o.grammar.rowless), letters...) // a mark may make it more meanwhile
	if err != nil {
		return nil, err
	}
	if o.dialect == MySQL {
		requeued, err = o.insertLetters(ctx, tx, ids)
	} else {
		requeued, err = returnedIDs(ctx, tx, ids, o.sql(o.grammar.requeue), append(letters, o.grammar.time(o.now().UnixMicro()))...)
	}
	if err == nil && len(requeued) < rowless {
		err = o.suppressed(o.table, rowless-len(requeued), rowless)
	}
	if err != nil {
		return nil, err
	}
	var key string
	var some, all int // of those that are put back, as others may be passed over
	switch err := tx.QueryRowContext(ctx, o.sql(o.grammar.ofKey), o.grammar.letters(requeued)...).Scan(&key, &some, &all); {
	case err == nil:
		return nil, fmt.Errorf("%d of the %d letters of the key %q: %w", some, all, key, ErrOfKey)
	case !errors.Is(err, sql.ErrNoRows):
		return nil, err
	}
	if o.dialect == MySQL {
		_, err = o.removeLocked(ctx, tx, requeued)
	} else {
		_, err = o.remove(ctx, tx, requeued)
	}
	return requeued, err
}

// returnedIDs are those of the IDs that a statement returns.
func returnedIDs(ctx context.Context, on executor, ids []string, text string, args ...any) ([]string, error) {
	found, err := texts(ctx, on, text, args...)
	if err != nil {
		return nil, err
	}
	has := make(map[string]bool, len(found))
	for _, id := range found {
		has[id] = true
	}
	list := make([]string, 0, len(found))
	for _, id := range ids {
		if has[id] {
			list = append(list, id)
			delete(has, id)
		}
	}
	return list, nil
}

// texts reads what a statement returns, one text a row.
func texts(ctx context.Context, on executor, text string, args ...any) (list []string, err error) {
	rows, err := on.QueryContext(ctx, text, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // what it has to say, Err said
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, err
		}
		list = append(list, text)
	}
	return list, rows.Err()
}

// ParkedKeys returns those of the keys that letters of the branch have, for
// [courier.DLQPolicy].Key. They are compared as valid UTF-8 without NUL.
func (q *DLQ[T]) ParkedKeys(ctx context.Context, branch string, keys []string) ([]string, error) {
	if q.fault != nil {
		return nil, q.fault
	}
	branch = plain(branch)
	given := make(map[string][]string, len(keys))
	list := make([]string, len(keys))
	for i, key := range keys {
		list[i] = plain(key)
		given[list[i]] = append(given[list[i]], key)
	}
	var found []string
	on := q.on
	if h := q.locked(); h != nil { // before the table, where they are when they are not here
		needs := 2
		if h.outbox.wakeUp {
			needs++
		}
		if err := h.outbox.pool(needs, "the batch in hand, the keys that are parked, wake-up where it is on"); err != nil {
			return nil, err
		}
		on = h.on
		for key := range h.uncommittedKeys(branch) {
			found = append(found, given[key]...)
			delete(given, key)
		}
	}
	var parked []string
	if err := q.bounded(ctx, func(ctx context.Context) error {
		return on(ctx, func(conn *sql.Conn) (err error) {
			parked, err = texts(ctx, conn, q.sql(q.grammar.parkedKeys), branch, q.grammar.strings(list))
			return err
		})
	}); err != nil {
		return nil, q.failed(err, "looking for %s in %s", plural(len(keys), "key"), q.dlq)
	}
	for _, key := range parked {
		found = append(found, given[key]...)
	}
	return found, nil
}

// locked is what holds the rows of its source by locks, if something does.
func (q *DLQ[T]) locked() *locked {
	if q.source == nil {
		return nil
	}
	h, _ := q.source.holder.(*locked)
	return h
}

// parseID takes the number of its row from an ID of a letter.
func parseID(id string) (seq int64, ok bool) {
	parts := strings.Split(id, ".")
	for i, part := range parts {
		n, err := strconv.ParseInt(part, 10, 64)
		if err != nil {
			return 0, false
		}
		if i == 0 {
			seq = n
		}
	}
	return seq, len(parts) == 3
}

// Count returns how many letters are in the queue.
func (q *DLQ[T]) Count(ctx context.Context) (int, error) {
	return q.count(ctx, q.grammar.parked, "dead letters of "+q.dlq)
}

// typeOf names the innermost error whose type tells something: an exported one.
// A RetryError does not, its reason and attempts have columns of their own.
func typeOf(err error) string {
	kind := fmt.Sprintf("%T", err)
	named := ""
	for err != nil {
		kind = fmt.Sprintf("%T", err)
		if _, retried := err.(*courier.RetryError); !retried && exported(kind) {
			named = kind
		}
		err = cause(err)
	}
	if named != "" {
		return named
	}
	return kind
}

func cause(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range joined.Unwrap() {
			if err != nil {
				return err
			}
		}
		return nil
	}
	return errors.Unwrap(err)
}

// exported reports whether a type, as %T prints it, has an exported name.
func exported(kind string) bool {
	for i := len(kind) - 1; i >= 0; i-- {
		if kind[i] == '.' {
			first, _ := utf8.DecodeRuneInString(kind[i+1:])
			return unicode.IsUpper(first)
		}
	}
	return false
}
