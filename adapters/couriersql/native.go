package couriersql

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/stdlib"
)

// errNotPgx is a connection of another driver.
var errNotPgx = errors.New("the driver of the *sql.DB is not that of pgx/v5/stdlib")

// native uses the connection of pgx itself that is under one of database/sql.
func native(conn *sql.Conn, use func(*pgx.Conn) error) error {
	return conn.Raw(func(raw any) error {
		driven, ok := raw.(*stdlib.Conn)
		if !ok {
			return errNotPgx
		}
		return use(driven.Conn())
	})
}

// send has statements executed in one round trip, up to the first that fails.
func send(ctx context.Context, conn *sql.Conn, batch *pgx.Batch) error {
	return native(conn, func(c *pgx.Conn) error { return c.SendBatch(ctx, batch).Close() })
}

// planned begins a transaction with settings of its own, and fetches in it.
func (o *Outbox) planned(into *[]Row, limit int, text string, args ...any) *pgx.Batch {
	batch := new(pgx.Batch)
	batch.Queue("BEGIN ISOLATION LEVEL READ COMMITTED") // whatever is set for the database
	batch.Queue(o.grammar.plan)
	batch.Queue(o.sql(text), args...).Query(func(rows pgx.Rows) (err error) {
		*into, err = collect(rows, limit)
		return err
	})
	return batch
}

// share is how many bytes each of so many rows may have without a look at the others.
func (o *Outbox) share(rows int) int64 { return o.fetchBytes / int64(rows) }

// leftOut reads what a fetch left out of the rows, for their bytes; it is nil where
// that is nothing. Rows that are gone meanwhile are gone from the list.
func (o *Outbox) leftOut(batch *[]Row) *pgx.Batch {
	without := withoutPayload(*batch)
	if without == nil {
		return nil
	}
	statements := new(pgx.Batch)
	statements.Queue(o.sql(o.grammar.large), o.grammar.known(without)...).Query(func(rows pgx.Rows) error {
		found := make(map[int64]Row, len(without))
		var row Row
		if _, err := pgx.ForEachRow(rows, []any{&row.Seq, &row.Payload, &row.Headers}, func() error {
			found[row.Seq] = row
			return nil
		}); err != nil {
			return err
		}
		*batch = withLarge(*batch, found)
		return nil
	})
	return statements
}

// collect is rows by pgx itself: database/sql boxes each value of each row, which
// costs a relay a quarter of its time.
func collect(rows pgx.Rows, limit int) (batch []Row, err error) {
	defer rows.Close()
	if err := rows.Err(); err != nil { // those of a batch may have nothing but that
		return nil, err
	}
	plain := true // but in the simple protocol, and where the table was changed
	for i, field := range rows.FieldDescriptions() {
		// To pgx a text is a text in either format, and is asked for as one.
		plain = plain && i < len(rowTypes) && field.DataTypeOID == rowTypes[i] && (field.Format == pgx.BinaryFormatCode || field.DataTypeOID == pgtype.TextOID)
	}
	converted := rows.Conn() != nil && !slices.Contains([]string{"UTF8", "SQL_ASCII"}, rows.Conn().PgConn().ParameterStatus("client_encoding"))
	var row Row
	var payloads room
	var created moment
	var attempts int
	into := []any{&row.Seq, &row.ID, &row.Topic, &row.Key, &row.Payload, &row.Headers, &row.Trace, &created, &attempts, &row.claim}
	for rows.Next() {
		if plain {
			row.decodeBinary(rows.RawValues(), &payloads)
		} else if err := rows.Scan(into...); err != nil {
			return nil, err
		} else {
			row.CreatedAt = int64(created)
			row.count(attempts)
		}
		if batch == nil { // an idle poll allocates no batch, a huge limit no huge one
			batch = make([]Row, 0, min(limit, 1000))
		}
		if converted && !row.readable() {
			return nil, fmt.Errorf("row %d holds a text that is no UTF-8: %s", row.Seq, foreignText)
		}
		batch = append(batch, row)
	}
	return batch, rows.Err()
}

// readable reports whether the row's texts are UTF-8. They are where it was written under
// the same client_encoding; else they would be delivered as something else than was
// written.
func (r *Row) readable() bool {
	return utf8.ValidString(r.ID) && utf8.ValidString(r.Topic) && utf8.ValidString(r.Key) && utf8.ValidString(r.Headers) && utf8.ValidString(r.Trace)
}

// rowTypes are what decodeBinary reads.
var rowTypes = [...]uint32{pgtype.Int8OID, pgtype.TextOID, pgtype.TextOID, pgtype.TextOID, pgtype.ByteaOID, pgtype.TextOID, pgtype.TextOID,
	pgtype.TimestamptzOID, pgtype.Int4OID, pgtype.Int8OID}

// The times that a message has. PostgreSQL also knows infinite ones, which are no
// reason to hold the message up.
var (
	earliestTime = time.Time{}.UnixMicro()
	latestTime   = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC).UnixMicro()
)

// moment is a time, of a column with or without a zone, in microseconds.
type moment int64

// ScanTimestamptz implements pgtype.TimestamptzScanner.
func (m *moment) ScanTimestamptz(v pgtype.Timestamptz) error {
	return m.set(v.Time, v.InfinityModifier)
}

// ScanTimestamp implements pgtype.TimestampScanner.
func (m *moment) ScanTimestamp(v pgtype.Timestamp) error { return m.set(v.Time, v.InfinityModifier) }

func (m *moment) set(at time.Time, infinity pgtype.InfinityModifier) error {
	switch infinity {
	case pgtype.Infinity:
		*m = moment(latestTime)
	case pgtype.NegativeInfinity:
		*m = moment(earliestTime)
	default:
		*m = moment(min(max(at.UnixMicro(), earliestTime), latestTime))
	}
	return nil
}

// postgresEpoch is what PostgreSQL counts microseconds from, 2000-01-01, in those
// of Unix.
const postgresEpoch = 946_684_800_000_000

// decodeBinary sets a row, which holds the one before it, from the columns of a
// fetch, whose types are rowTypes.
func (r *Row) decodeBinary(values [][]byte, payloads *room) {
	r.Seq = int64(binary.BigEndian.Uint64(values[0]))
	r.ID = string(values[1])
	if r.Topic != string(values[2]) { // of a table there are few
		r.Topic = string(values[2])
	}
	r.Key = string(values[3])
	if r.Payload = nil; values[4] != nil {
		r.Payload = payloads.copy(values[4])
	}
	r.Headers, r.Trace = string(values[5]), string(values[6])
	r.CreatedAt = min(max(int64(binary.BigEndian.Uint64(values[7])), earliestTime-postgresEpoch), latestTime-postgresEpoch) + postgresEpoch
	r.count(int(int32(binary.BigEndian.Uint32(values[8]))))
	r.claim = int64(binary.BigEndian.Uint64(values[9]))
}

// room is memory that small payloads share: allocating each payload apart is a good part
// of the cost of a fetch. A caller that holds on to one row holds on to its whole piece,
// so pieces are small.
type room []byte

const roomSize = 4096

func (r *room) copy(payload []byte) []byte {
	n := len(payload)
	if n == 0 || n > roomSize/8 {
		return slices.Clone(payload)
	}
	if n > cap(*r)-len(*r) || *r == nil {
		*r = make([]byte, 0, roomSize)
	}
	*r = append(*r, payload...)
	return (*r)[len(*r)-n : len(*r) : len(*r)]
}

// pieces is a room into which database/sql scans payloads, one after the other.
type pieces struct {
	room room
	into *[]byte
}

// Scan implements sql.Scanner. The value is the driver's until the next one.
func (p *pieces) Scan(value any) error {
	payload, ok := value.([]byte)
	if !ok && value != nil {
		return fmt.Errorf("a payload is a %T and no bytes: the column payload must be of bytes", value)
	}
	*p.into = p.room.copy(payload)
	return nil
}
