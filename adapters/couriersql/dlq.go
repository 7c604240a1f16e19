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

// DLQ is a durable dead letter queue in the database of the outbox, in a table
// of its name with _dlq. It has no bound but the disk. It is made by
// [Source.DLQ], for what a coordinator gives up, or by [Outbox.DLQ], and safe for
// concurrent use; any number of values, of any number of processes, may share a
// table.
//
// The ID of a letter is the number of its row, its version, and the time of its first
// failure in microseconds, as a number may be given twice: seq.version.time. The ID of
// the message is letter.Record.ID.
type DLQ struct {
	outbox *Outbox
	source *Source // whose rows it marks, or nil
}

var (
	_ courier.DLQ[Row]       = (*DLQ)(nil)
	_ courier.KeyedDLQ       = (*DLQ)(nil)
	_ courier.SharedDLQ[Row] = (*DLQ)(nil)
	_ courier.MarkingDLQ     = (*DLQ)(nil)
	_ courier.Validator      = (*DLQ)(nil)
)

// DLQ returns the queue of the outbox's dead letters, to look after them, and for
// the branches of a fan-out, which may share it, each with a name of its own
// ([courier.DLQPolicy].Branch). Its Send writes the letter alone: a relay that
// dies before the mark parks the record once more.
func (o *Outbox) DLQ() *DLQ { return &DLQ{outbox: o} }

// MarksRecords reports whether Send marks the row as well, which is so by
// [Source.DLQ].
func (q *DLQ) MarksRecords() bool { return q.source != nil }

// Validate reports what the outbox was misconfigured with.
func (q *DLQ) Validate() error { return q.outbox.fault }

// SameQueue reports whether another queue is on the same table of the same
// *sql.DB. Of two pools on one file it cannot tell.
func (q *DLQ) SameQueue(other courier.DeadLetterSink[Row]) bool {
	o, ok := other.(*DLQ)
	return ok && o != nil && o.outbox.db == q.outbox.db && o.outbox.table == q.outbox.table
}

// StoredError is the error of a dead letter as it was read back: the text of
// the one that was sent, and the Go type of its cause. Errors that say nothing
// by their type, as those of errors.New do, give way to the wrapper that does.
type StoredError struct {
	Text string
	Type string // such as *net.OpError
}

func (e *StoredError) Error() string { return e.Text }

// Send stores a row as it is, with its last error. If the branch has a letter of
// the message already, by its ID, Send replaces that letter: it keeps its place,
// the time of its first failure and the larger FailedRedrives. A letter that only says
// that the message's key is parked replaces none. Each branch of a fan-out has a
// letter of its own.
//
// By [Source.DLQ] it marks the row in the same transaction, and refuses one that
// the source does not hold, or that another source handed out ([*courier.ConfigError]).
func (q *DLQ) Send(ctx context.Context, letter courier.DeadLetter[Row]) error {
	o := q.outbox
	if o.fault != nil {
		return o.fault
	}
	if from := letter.Record.origin; q.source != nil && from != nil && from != &q.source.origin {
		return o.failed(errForeign, "parking %v in %s_dlq", letter.Record, o.table)
	}
	if err := o.bounded(ctx, func(ctx context.Context) error {
		if q.source != nil {
			return q.source.holder.park(ctx, letter)
		}
		return o.on(ctx, func(conn *sql.Conn) error { return o.send(ctx, conn, letter) })
	}); err != nil {
		return o.failed(err, "parking %v in %s_dlq", letter.Record, o.table)
	}
	return nil
}

// send writes a letter.
func (o *Outbox) send(ctx context.Context, on executor, letter courier.DeadLetter[Row]) error {
	result, err := on.ExecContext(ctx, o.sql(o.grammar.send), o.letterOf(letter)...)
	if err != nil || missing(result, 1) == 0 {
		return err
	}
	if letter.Reason == courier.ReasonKeyParked { // there may be a better one
		if found, err := texts(ctx, on, o.sql(o.grammar.sent), plain(letter.Branch), letter.Record.ID); err != nil || len(found) > 0 {
			return err
		}
	}
	return o.suppressed(o.table+"_dlq", 1, 1)
}

// errForeign is the error of a row that the source of a queue did not hand out.
var errForeign = &courier.ConfigError{Field: "DLQ", Problem: "is of another source than the one that handed the row out: pass the DLQ of the coordinator's own source (source := outbox.Source(), then source and source.DLQ()), or Outbox.DLQ"}

// letterOf is a letter as arguments.
func (o *Outbox) letterOf(letter courier.DeadLetter[Row]) []any {
	r := letter.Record
	args := []any{plain(letter.Branch), r.ID, r.Seq, r.Topic, r.Key, notNil(r.Payload), r.Headers, r.Trace, o.grammar.time(r.CreatedAt)}
	return append(args, o.stateOf(letter)...)
}

// stateOf is what is known of a letter's record in its branch, as arguments.
func (o *Outbox) stateOf(letter courier.DeadLetter[Row]) []any {
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
	return []any{text, kind, string(letter.Reason), letter.Attempts, o.grammar.time(first.UnixMicro()), o.grammar.time(letter.FailedAt.UnixMicro()),
		letter.FailedRedrives, plain(letter.Key)}
}

// plain makes of a text what every database and JSON can hold.
func plain(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}

// Receive returns up to max letters, those that were sent first first, and
// leaves them in the queue. Their errors are [*StoredError]s. The rows are the
// caller's. It does not wait for a letter.
func (q *DLQ) Receive(ctx context.Context, max int) ([]courier.DeadLetter[Row], error) {
	return q.List(ctx, "", max)
}

// List returns up to max of the letters behind the one with the given ID, which
// may have been changed or deleted since. "" is before the first.
func (q *DLQ) List(ctx context.Context, after string, max int) ([]courier.DeadLetter[Row], error) {
	o := q.outbox
	if o.fault != nil {
		return nil, o.fault
	}
	var seq int64
	if after != "" {
		var ok bool
		if seq, ok = parseID(after); !ok {
			return nil, fmt.Errorf("couriersql: listing the dead letters of %s_dlq behind %q: this is no ID of a letter, which is of the form 17.1.1767225600000000", o.table, after)
		}
	}
	if max <= 0 {
		return nil, nil
	}
	var letters []courier.DeadLetter[Row]
	if err := o.ask(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
		letters, err = o.letters(ctx, conn, seq, max)
		return err
	}); err != nil {
		return nil, o.failed(err, "reading up to %s of %s_dlq", plural(max, "dead letter"), o.table)
	}
	return letters, nil
}

func (o *Outbox) letters(ctx context.Context, on executor, after int64, max int) ([]courier.DeadLetter[Row], error) {
	rows, err := on.QueryContext(ctx, o.sql(o.grammar.list), after, max)
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

// Update sets what is known of the letter with this ID, its row and its branch
// excepted, in one statement. It does nothing when the letter has changed since, or is gone.
func (q *DLQ) Update(ctx context.Context, letter courier.DeadLetter[Row]) error {
	o := q.outbox
	if o.fault != nil {
		return o.fault
	}
	seq, ok := parseID(letter.ID)
	if !ok {
		return nil
	}
	if err := o.bounded(ctx, func(ctx context.Context) error {
		return o.on(ctx, func(conn *sql.Conn) error {
			result, err := conn.ExecContext(ctx, o.sql(o.grammar.update), append([]any{seq, letter.ID}, o.stateOf(letter)...)...)
			if err == nil && missing(result, 1) > 0 {
				err = o.recountLetters(ctx, conn, letter.ID)
			}
			return err
		})
	}); err != nil {
		return o.failed(err, "updating the dead letter %s of %s_dlq", letter.ID, o.table)
	}
	return nil
}

// Delete removes letters by ID, all or none, in one statement. IDs that no
// letter has, or none has any more, are passed over.
func (q *DLQ) Delete(ctx context.Context, ids ...string) error {
	_, err := q.Remove(ctx, ids...)
	return err
}

// Remove is [DLQ.Delete] that returns the IDs of the letters it removed, in the
// order given.
func (q *DLQ) Remove(ctx context.Context, ids ...string) ([]string, error) {
	o := q.outbox
	if o.fault != nil {
		return nil, o.fault
	}
	if len(ids) == 0 {
		return nil, nil
	}
	var removed []string
	if err := o.ask(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
		removed, err = o.remove(ctx, conn, ids)
		return err
	}); err != nil {
		return nil, o.failed(err, "deleting %s of %s_dlq", plural(len(ids), "dead letter"), o.table)
	}
	return removed, nil
}

// remove removes letters, and returns the IDs of those that it found.
func (o *Outbox) remove(ctx context.Context, on executor, ids []string) ([]string, error) {
	removed, err := returnedIDs(ctx, on, ids, o.sql(o.grammar.remove), o.grammar.letters(ids)...)
	if err == nil && len(removed) < len(ids) {
		err = o.recountLetters(ctx, on, ids...)
	}
	return removed, err
}

// recountLetters is an error where letters are left that a statement was for.
func (o *Outbox) recountLetters(ctx context.Context, on executor, ids ...string) error {
	return o.recount(ctx, on, o.table+"_dlq", len(ids), o.grammar.kept, o.grammar.letters(ids)...)
}

// ErrOfBranch is the error, to errors.Is, of [DLQ.Requeue] for the letter of a
// branch of a fan-out.
var ErrOfBranch = errors.New("a row of the outbox goes to all branches, and this letter is owed to one: redrive it with courier.Redrive, the applier of its branch and a Match by Branch")

// Requeue puts letters back into the outbox, in their order and in one
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
// Requeue refuses the letter of a branch with [ErrOfBranch], and puts nothing back.
func (q *DLQ) Requeue(ctx context.Context, ids ...string) ([]string, error) {
	o := q.outbox
	if o.fault != nil {
		return nil, o.fault
	}
	if len(ids) == 0 {
		return nil, nil
	}
	var requeued []string
	if err := o.ask(ctx, func(ctx context.Context, conn *sql.Conn) (err error) {
		requeued, err = o.requeue(ctx, conn, ids)
		return err
	}); err != nil {
		return nil, o.failed(err, "putting %s of %s_dlq back into %s (none was)", plural(len(ids), "dead letter"), o.table, o.table)
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
	now := o.grammar.time(o.now().UnixMicro())
	rowless, err := number(ctx, tx, o.sql(o.grammar.rowless), letters...) // a mark may make it more meanwhile
	if err != nil {
		return nil, err
	}
	requeued, err := returnedIDs(ctx, tx, ids, o.sql(o.grammar.requeue), append(letters, now)...)
	if err == nil && len(requeued) < rowless {
		err = o.suppressed(o.table, rowless-len(requeued), rowless)
	}
	if err != nil {
		return nil, err
	}
	if _, err := o.remove(ctx, tx, requeued); err != nil {
		return nil, err
	}
	return requeued, tx.Commit()
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
func (q *DLQ) ParkedKeys(ctx context.Context, branch string, keys []string) ([]string, error) {
	o := q.outbox
	if o.fault != nil {
		return nil, o.fault
	}
	branch = plain(branch)
	given := make(map[string][]string, len(keys))
	list := make([]string, len(keys))
	for i, key := range keys {
		list[i] = plain(key)
		given[list[i]] = append(given[list[i]], key)
	}
	var found []string
	on := o.on
	if h := q.locked(); h != nil { // before the table, where they are when they are not here
		needs := 2
		if o.wakeUp {
			needs++
		}
		if err := o.pool(needs, "the batch in hand, the keys that are parked, wake-up where it is on"); err != nil {
			return nil, err
		}
		on = h.on
		for key := range h.uncommittedKeys(branch) {
			found = append(found, given[key]...)
			delete(given, key)
		}
	}
	var parked []string
	if err := o.bounded(ctx, func(ctx context.Context) error {
		return on(ctx, func(conn *sql.Conn) (err error) {
			parked, err = texts(ctx, conn, o.sql(o.grammar.parkedKeys), branch, o.grammar.strings(list))
			return err
		})
	}); err != nil {
		return nil, o.failed(err, "looking for %s in %s_dlq", plural(len(keys), "key"), o.table)
	}
	for _, key := range parked {
		found = append(found, given[key]...)
	}
	return found, nil
}

// locked is what holds the rows of its source by locks, if something does.
func (q *DLQ) locked() *locked {
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
func (q *DLQ) Count(ctx context.Context) (int, error) {
	o := q.outbox
	return o.count(ctx, o.grammar.parked, "dead letters of "+o.table+"_dlq")
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
