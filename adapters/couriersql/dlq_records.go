package couriersql

import (
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/erfanmomeniii/courier"
)

// This file is the queue of records that are no rows of an outbox. They are stored as
// the rows of one: the identity is the ID, and the encoded record the payload.

// DLQConfig configures [NewDLQ]. Table is required.
type DLQConfig[T any] struct {
	// Table is the name of the queue's table, with or without a schema, as [WithTable]
	// takes it. Queues of different types need different tables.
	Table string

	// Identity names a record, such as by its primary key. With it the queue keeps one
	// letter of a record for each branch, however often the record is parked, as after a
	// crash between Send and the mark. It must always return the same name for a record,
	// and different names for different records; records named "" are never the same. Nil
	// names no record, so that a record that is parked twice has two letters.
	Identity func(record T) string

	// Encode and Decode convert a record to the bytes that are stored and back. Nil is
	// JSON, which leaves unexported fields out; set both or none. Send decodes what it has
	// encoded, and refuses a record for which that fails.
	Encode func(record T) ([]byte, error)
	Decode func(encoded []byte) (T, error)

	// QueryTimeout is how long a call waits for the database, as [WithQueryTimeout] sets
	// it for an outbox. 0 is [DefaultQueryTimeout].
	QueryTimeout time.Duration

	// Logger is where the queue names the letters that it cannot decode. Nil is
	// slog.Default().
	Logger *slog.Logger
}

// NewDLQ returns a durable dead letter queue for records of any type, in a table of its
// own. The database stays the caller's to close. NewDLQ neither opens a connection nor
// creates the table, see [DLQ.Migrate]. A value that the queue cannot work with is
// reported as a [*courier.ConfigError] by every method that returns an error.
//
//	queue := couriersql.NewDLQ(db, couriersql.Postgres, couriersql.DLQConfig[Order]{
//		Table:    "dead_orders",
//		Identity: func(o Order) string { return o.ID },
//	})
//
// Send does not mark the record: a process that dies in between parks it again. It waits
// for a connection of the pool.
//
// A queue of [Row] takes no Identity, Encode and Decode. It reads the letters of any
// table as they are stored: the ID of a row is the name of the record, and its payload
// the encoded record.
func NewDLQ[T any](db *sql.DB, dialect Dialect, config DLQConfig[T]) *DLQ[T] {
	d := newDatabase(db, dialect)
	d.callQueue(config.Table)
	d.waitFor("DLQConfig", config.QueryTimeout)
	if config.Logger != nil {
		d.log = config.Logger
	}
	if (config.Encode == nil) != (config.Decode == nil) {
		d.misconfigured("DLQConfig", "has Encode or Decode alone: set both, or none for JSON")
	}
	q := &DLQ[T]{database: d, encode: config.row, decode: config.record, create: d.migrate}
	if rows, ok := any(q).(*DLQ[Row]); ok {
		if config.Identity != nil || config.Encode != nil || config.Decode != nil {
			d.misconfigured("DLQConfig", "has Identity, Encode or Decode: a Row is stored as it is")
		}
		*rows = *queueOfRows(d, d.migrate)
	}
	return q
}

// ownQueue is before the name of a queue in courier_migrations, where no outbox has it.
const ownQueue = "dlq:"

func (d *database) callQueue(table string) {
	d.call("DLQConfig.Table", table)
	d.nameTables(d.table, ownQueue+d.name, strings.TrimSuffix(d.name, "_dlq"))
	d.migrations = d.grammar.dlqMigrations
	for _, s := range d.grammar.shapes {
		if s.dlq {
			d.shapes = append(d.shapes, s)
		}
	}
}

// row is the row that a letter's record is stored as.
func (c *DLQConfig[T]) row(letter courier.DeadLetter[T]) (Row, error) {
	name := ""
	if c.Identity != nil {
		name = c.Identity(letter.Record)
	}
	encoded, err := c.encoded(letter.Record)
	if err != nil {
		return Row{}, fmt.Errorf("couriersql: parking the record %q in %s: %w; the record stays pending: set DLQConfig.Encode and Decode to functions that take it", name, c.Table, err)
	}
	at := letter.FirstFailedAt
	if at.IsZero() {
		at = letter.FailedAt
	}
	return Row{ID: idOf(name), Payload: encoded, CreatedAt: at.UnixMicro()}, nil
}

func (c *DLQConfig[T]) encoded(record T) ([]byte, error) {
	encode := c.Encode
	if encode == nil {
		encode = func(record T) ([]byte, error) { return json.Marshal(record) }
	}
	encoded, err := encode(record)
	if err != nil {
		return nil, fmt.Errorf("it cannot be encoded: %w", err)
	}
	if _, err := c.record(Row{Payload: encoded}); err != nil {
		return nil, fmt.Errorf("what it is encoded as cannot be decoded: %w", err)
	}
	return encoded, nil
}

// record is the record that is stored as a row.
func (c *DLQConfig[T]) record(row Row) (record T, err error) {
	if c.Decode != nil {
		return c.Decode(row.Payload)
	}
	err = json.Unmarshal(row.Payload, &record)
	return record, err
}

// idOf is a name as an ID: a text that the database can hold and index, and that
// different names do not share. A record without a name has one that no other has.
func idOf(name string) string {
	switch {
	case name == "":
		return rand.Text()
	case len(name) <= maxID && utf8.ValidString(name) && !strings.Contains(name, "\x00"):
		return name
	}
	const shown = 100
	digest := sha256.Sum256([]byte(name))
	return plain(name[:min(len(name), shown)]) + " sha256:" + hex.EncodeToString(digest[:])
}
