package couriersql

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/stdlib"
)

// errNotPgx is a connection of another driver.
var errNotPgx = errors.New("the driver of the *sql.DB is not that of pgx/v5/stdlib")

// native is rows by pgx itself: database/sql boxes each value of each row, which
// costs a relay a quarter of its time.
func (o *Outbox) native(ctx context.Context, conn *sql.Conn, limit int, text string, args ...any) (batch []Row, err error) {
	err = conn.Raw(func(raw any) error {
		driven, ok := raw.(*stdlib.Conn)
		if !ok {
			return errNotPgx
		}
		rows, err := driven.Conn().Query(ctx, text, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		plain := true // but in the simple protocol
		for _, field := range rows.FieldDescriptions() {
			// To pgx a text is a text in either format, and is asked for as one.
			plain = plain && (field.Format == pgx.BinaryFormatCode || field.DataTypeOID == pgtype.TextOID)
		}
		var row Row
		var created time.Time
		into := []any{&row.Seq, &row.ID, &row.Topic, &row.Key, &row.Payload, &row.Headers, &row.Trace, &created, &row.Attempts, &row.claim}
		for rows.Next() {
			if plain {
				row.decodeBinary(rows.RawValues())
			} else if err := rows.Scan(into...); err != nil {
				return err
			} else {
				row.CreatedAt = created.UnixMicro()
			}
			if batch == nil { // an idle poll allocates no batch, a huge limit no huge one
				batch = make([]Row, 0, min(limit, 1000))
			}
			batch = append(batch, row)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, err
	}
	return batch, nil
}

// postgresEpoch is what PostgreSQL counts microseconds from, 2000-01-01, in those
// of Unix.
const postgresEpoch = 946_684_800_000_000

// decodeBinary sets a row, which holds the one before it, from the columns of a
// fetch. Their types are what Migrate has checked.
func (r *Row) decodeBinary(values [][]byte) {
	r.Seq = int64(binary.BigEndian.Uint64(values[0]))
	r.ID = string(values[1])
	if r.Topic != string(values[2]) { // of a table there are few
		r.Topic = string(values[2])
	}
	r.Key = string(values[3])
	r.Payload = append(make([]byte, 0, len(values[4])), values[4]...)
	r.Headers, r.Trace = string(values[5]), string(values[6])
	r.CreatedAt = int64(binary.BigEndian.Uint64(values[7])) + postgresEpoch
	r.Attempts = int(int32(binary.BigEndian.Uint32(values[8])))
	r.claim = int64(binary.BigEndian.Uint64(values[9]))
}
