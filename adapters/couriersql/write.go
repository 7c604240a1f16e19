package couriersql

import (
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/erfanmomeniii/courier"
	"github.com/jackc/pgx/v5"
)

// ErrDuplicateID is the error, to errors.Is, of a Write whose message has an ID
// that another row of the table has.
var ErrDuplicateID = errors.New("a message with this ID was written before")

const (
	columns   = 8 // that Write fills
	notBefore = 7 // of them, the one that most messages have no value for
)

// maxID is how many bytes an ID may have: a row of an index in PostgreSQL holds some
// 2,700, and that of the letters has the name of the branch beside the ID.
const maxID = 2000

const (
	// maxMessage is how many bytes a message may have: as a text, in which a payload is
	// twice as long, PostgreSQL neither takes nor returns a value of a gigabyte.
	maxMessage = 256 << 20
	// insertBytes ends a statement that inserts, after the row that reaches it. MySQL has a
	// limit for one, of 16 MiB often, and a text of the arguments may be twice as long.
	insertBytes = 4 << 20
)

// Write adds messages to the user's transaction: they exist once it commits,
// and never if it is rolled back. It neither commits nor rolls back, does not
// keep or modify the messages, and uses no connection but the transaction's. No
// message is no work.
//
// All messages are checked before the first is written. Topic is required;
// texts must be valid UTF-8 without NUL, which is all that every database and
// JSON can hold: encode anything else, or put it into the payload. An ID has at
// most 2,000 bytes; a Key may be of any length; a message has at most 256 MiB in
// all. An ID that is in the table, kept rows included, is an [ErrDuplicateID].
// Messages of any number and size may be written in one call: Write splits them into
// statements of some 4 MiB.
//
// A trigger that keeps a message out of the table without an error makes Write fail with
// [ErrSuppressed]; so does one that writes it elsewhere and returns NULL.
//
// After an error the transaction may hold a part of the messages: roll it back.
func (o *Outbox) Write(ctx context.Context, tx *sql.Tx, messages ...Message) error {
	if tx == nil && o.fault == nil {
		return noTransaction()
	}
	return o.write(ctx, messages, func(text string, args []any) (sql.Result, error) {
		return tx.ExecContext(ctx, text, args...)
	}, func(text string, args ...any) scanner {
		return tx.QueryRowContext(ctx, text, args...)
	})
}

// WritePgx is [Outbox.Write] for a transaction of pgx, begun on a connection or
// on a pool of it. The outbox must be one in PostgreSQL.
func (o *Outbox) WritePgx(ctx context.Context, tx pgx.Tx, messages ...Message) error {
	switch {
	case o.fault != nil:
	case tx == nil && o.dialect == Postgres:
		return noTransaction()
	case o.dialect != Postgres:
		return &courier.ConfigError{Field: "dialect", Problem: "has no transactions of pgx: use Write, or New with couriersql.Postgres"}
	}
	return o.write(ctx, messages, func(text string, args []any) (sql.Result, error) {
		tag, err := tx.Exec(ctx, text, args...)
		return driver.RowsAffected(tag.RowsAffected()), err
	}, func(text string, args ...any) scanner {
		return tx.QueryRow(ctx, text, args...)
	})
}

func noTransaction() error {
	return &courier.ConfigError{Field: "tx", Problem: "is nil: pass the transaction that writes the business rows"}
}

// write writes with the two functions, which are those of a transaction.
// Prepared statements would not do here: the database prepares them on a
// connection of its own, and the transaction may hold the pool's only one.
func (o *Outbox) write(ctx context.Context, messages []Message, execute func(string, []any) (sql.Result, error),
	ask func(string, ...any) scanner) error {
	if o.fault != nil {
		return o.fault
	}
	args, err := o.arguments(ctx, messages)
	if err != nil {
		return err
	}
	if len(args) > 0 {
		if err := o.checkFaithful(func(text string) scanner { return ask(text) }); err != nil {
			return o.failed(err, "writing %s to %s", plural(len(messages), "message"), o.table)
		}
	}
	for chunk := range o.chunks(args) {
		rows := len(chunk) / columns
		delayed := isDelayed(chunk)
		result, err := execute(o.sql(o.grammar.insert(rows, delayed)), o.grammar.inserted(chunk, delayed))
		if err == nil {
			if n := missing(result, rows); n > 0 {
				err = o.suppressed(o.table, n, rows)
			}
		}
		if err == nil && delayed && o.grammar.delay != "" {
			_, err = execute(o.sql(o.grammar.delay), o.grammar.delays(chunk))
		}
		if err == nil {
			continue
		}
		const doing = "writing %s to %s"
		if !o.grammar.duplicate(err, o.name) {
			return o.failed(err, doing, plural(len(messages), "message"), o.table)
		}
		err = fmt.Errorf("%w: %s; roll the transaction back, and give every message an ID of its own or none (%w)",
			ErrDuplicateID, o.duplicateIn(args, chunk, err, ask), err)
		return o.failed(err, doing, plural(len(messages), "message"), o.table)
	}
	return nil
}

// isDelayed reports whether the first message is one to wait for a time.
func isDelayed(args []any) bool { return args[notBefore] != nil }

// chunks are messages that go into one statement: either such as wait for a time or others.
// PostgreSQL takes none of a gigabyte, and ends the connection over it.
func (o *Outbox) chunks(args []any) iter.Seq[[]any] {
	return func(yield func([]any) bool) {
		for len(args) > 0 {
			n, bytes := 0, 0
			for n < len(args) && n < columns*o.grammar.rowsPerInsert && bytes < insertBytes && isDelayed(args[n:]) == isDelayed(args) {
				bytes += sizeOf(args[n : n+columns])
				n += columns
			}
			if !yield(args[:n:n]) {
				return
			}
			args = args[n:]
		}
	}
}

// sizeOf is that of values in bytes.
func sizeOf(values []any) (n int) {
	for _, value := range values {
		switch v := value.(type) {
		case string:
			n += len(v)
		case []byte:
			n += len(v)
		}
	}
	return n
}

func (o *Outbox) arguments(ctx context.Context, messages []Message) ([]any, error) {
	args := make([]any, 0, columns*len(messages))
	now := o.now()
	var traced bool
	var trace map[string]string
	for i, m := range messages {
		if m.ID == "" {
			m.ID = newID(now)
		}
		if m.CreatedAt.IsZero() {
			m.CreatedAt = now
		}
		if m.Trace == nil && o.trace != nil {
			if !traced {
				trace, traced = o.trace(ctx), true
			}
			m.Trace = trace
		}
		if problem := m.problem(); problem != "" {
			return nil, fmt.Errorf("couriersql: writing %s to %s: nothing was written, as message %d (ID %.100q) %s", plural(len(messages), "message"), o.table, i, m.ID, problem)
		}
		var after any
		if m.NotBefore.After(now) {
			after = m.NotBefore.Add(time.Microsecond - time.Nanosecond).UnixMicro() // no part of one too early
		}
		args = append(args, m.ID, m.Topic, m.Key, notNil(m.Payload), encode(m.Headers), encode(m.Trace), m.CreatedAt.UnixMicro(), after)
		if size := sizeOf(args[len(args)-columns:]); size > maxMessage {
			return nil, fmt.Errorf("couriersql: writing %s to %s: nothing was written, as message %d (ID %.100q) has %d bytes, and at most %d can be read again by every driver: store the payload elsewhere, and send where it is",
				plural(len(messages), "message"), o.table, i, m.ID, size, maxMessage)
		}
	}
	return args, nil
}

// problem says why a message cannot be written, "" when it can.
func (m Message) problem() string {
	// Refused here, in the transaction that is at fault, and not by a
	// destination hours later.
	if m.Topic == "" {
		return "has no Topic: set where it goes"
	}
	if len(m.ID) > maxID {
		return fmt.Sprintf("has an ID of %d bytes, and at most %d can be indexed: make the ID a digest of what it is now", len(m.ID), maxID)
	}
	for _, text := range [...]struct{ field, value string }{{"an ID", m.ID}, {"a Topic", m.Topic}, {"a Key", m.Key}} {
		if !storable(text.value) {
			return fmt.Sprintf("has %s that is not valid UTF-8 or contains NUL: encode it, as hex or base64", text.field)
		}
	}
	for _, set := range [...]struct {
		field   string
		headers map[string]string
	}{{"Headers", m.Headers}, {"Trace", m.Trace}} {
		for name, value := range set.headers {
			if !storable(name) || !storable(value) {
				return fmt.Sprintf("has in %s an entry %q that is not valid UTF-8 or contains NUL: encode it, as hex or base64", set.field, name)
			}
		}
	}
	return ""
}

func storable(text string) bool {
	return utf8.ValidString(text) && strings.IndexByte(text, 0) < 0
}

// notNil is for drivers that store a nil slice as NULL.
func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// newID makes 128 bits of the time in milliseconds (48) and of random ones (80).
// The time comes first so that rows written and deleted together lie together
// in the index of the IDs: measured, more than twice the rows a second of fully
// random IDs, in writing as in marking.
func newID(now time.Time) string {
	var id [16]byte
	binary.BigEndian.PutUint64(id[:], uint64(now.UnixMilli())<<16)
	_, _ = rand.Read(id[6:]) // never fails
	return hex.EncodeToString(id[:])
}

// duplicateIn names the ID that kept a chunk of args from being inserted: one
// that occurs twice among them, or one of the chunk that is in the table.
func (o *Outbox) duplicateIn(args, chunk []any, err error, ask func(string, ...any) scanner) string {
	seen := make(map[string]bool)
	for i := 0; i < len(args); i += columns {
		id := args[i].(string)
		if seen[id] {
			return fmt.Sprintf("%q, twice in this call", id)
		}
		seen[id] = true
	}
	ids := make([]string, 0, len(chunk)/columns)
	for i := 0; i < len(chunk); i += columns {
		ids = append(ids, chunk[i].(string))
	}
	if len(ids) == 1 {
		return fmt.Sprintf("%q", ids[0])
	}
	if o.grammar.duplicateID != nil {
		if id := o.grammar.duplicateID(err, ids); id != "" {
			return fmt.Sprintf("%q", id)
		}
		return fmt.Sprintf("one of %d, which the database does not name to a role that may not read the table", len(ids))
	}
	var id string
	if err := ask(o.sql(o.grammar.present), o.grammar.strings(ids)).Scan(&id); err != nil {
		return "which one could not be found out: " + err.Error()
	}
	return fmt.Sprintf("%q", id)
}
