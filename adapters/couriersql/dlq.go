package couriersql

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/erfanmomeniii/courier"
)

// DLQ is a durable dead letter queue in the database of the outbox, in a table
// of its name with _dlq. It has no bound but the disk. It is made by
// [Outbox.DLQ] and safe for concurrent use.
type DLQ struct{ outbox *Outbox }

var (
	_ courier.DLQ[Row]  = (*DLQ)(nil)
	_ courier.Validator = (*DLQ)(nil)
)

// DLQ returns the queue of the outbox's dead letters.
func (o *Outbox) DLQ() *DLQ { return &DLQ{o} }

// Validate reports what the outbox was misconfigured with.
func (q *DLQ) Validate() error { return q.outbox.fault }

// StoredError is the error of a dead letter as it was read back: the text of
// the one that was sent, and the Go type of its cause. Errors that say nothing
// by their type, as those of errors.New do, give way to the wrapper that does.
type StoredError struct {
	Text string
	Type string // such as *net.OpError
}

func (e *StoredError) Error() string { return e.Text }

// Send stores a row as it is, with its last error. The letter's ID is that of
// the message, whatever the ID field says. A message that is in the queue
// already keeps its place and the time of its first failure; all else is set
// anew.
func (q *DLQ) Send(ctx context.Context, letter courier.DeadLetter[Row]) error {
	o, r := q.outbox, letter.Record
	if o.fault != nil {
		return o.fault
	}
	var text, kind string
	if letter.Error != nil {
		text, kind = letter.Error.Error(), typeOf(letter.Error)
	}
	_, err := o.db.ExecContext(ctx, o.sql(o.grammar.send),
		r.ID, r.Seq, r.Topic, r.Key, notNil(r.Payload), r.Headers, r.Trace, r.CreatedAt,
		text, kind, string(letter.Reason), letter.Attempts, letter.FailedAt.UnixMicro())
	if err != nil {
		return o.failed(err, "parking %v in %s_dlq", r, o.table)
	}
	return nil
}

// Receive returns up to max letters, those that were sent first first, and
// leaves them in the queue. Their errors are [*StoredError]s. The rows are the
// caller's. It does not wait for a letter.
func (q *DLQ) Receive(ctx context.Context, max int) ([]courier.DeadLetter[Row], error) {
	o := q.outbox
	if o.fault != nil {
		return nil, o.fault
	}
	if max <= 0 {
		return nil, nil
	}
	letters, err := o.letters(ctx, max)
	if err != nil {
		return nil, o.failed(err, "reading up to %d dead letters of %s_dlq", max, o.table)
	}
	return letters, nil
}

func (o *Outbox) letters(ctx context.Context, max int) ([]courier.DeadLetter[Row], error) {
	rows, err := o.db.QueryContext(ctx, o.sql(o.grammar.receive), max)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // what it has to say, Err said
	var letters []courier.DeadLetter[Row]
	for rows.Next() {
		var letter courier.DeadLetter[Row]
		var failure StoredError
		var failedAt int64
		r := &letter.Record
		if err := rows.Scan(&r.Seq, &r.ID, &r.Topic, &r.Key, &r.Payload, &r.Headers, &r.Trace, &r.CreatedAt,
			&failure.Text, &failure.Type, (*string)(&letter.Reason), &letter.Attempts, &failedAt); err != nil {
			return nil, err
		}
		letter.ID, letter.Error, letter.FailedAt = r.ID, &failure, time.UnixMicro(failedAt).UTC()
		letters = append(letters, letter)
	}
	return letters, rows.Err()
}

// Delete removes letters by ID, all or none, in one statement. IDs that are not
// in the queue are passed over.
func (q *DLQ) Delete(ctx context.Context, ids ...string) error {
	o := q.outbox
	if o.fault != nil {
		return o.fault
	}
	if len(ids) == 0 {
		return nil
	}
	if _, err := o.db.ExecContext(ctx, o.sql(o.grammar.remove), o.grammar.strings(ids)); err != nil {
		return o.failed(err, "deleting %d dead letters of %s_dlq", len(ids), o.table)
	}
	return nil
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
