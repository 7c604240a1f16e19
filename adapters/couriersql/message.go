package couriersql

import (
	"encoding/json"
	"fmt"
	"time"
)

// Message is what a user writes and an applier is given.
type Message struct {
	// ID names the message for good: a receiver, and the dead letter queue, take
	// two messages with one ID for the same. Write makes one where it is empty.
	ID string
	// Topic says where the message goes. It is required.
	Topic string
	// Key is what the destination orders or partitions by. It may be empty.
	Key string
	// Payload is stored as it is. Nil is the same as empty.
	Payload []byte
	// Headers go with the message. An empty map is read back as nil.
	Headers map[string]string
	// Trace is the trace headers of the operation that wrote the message, see
	// WithTraceHeaders. An empty map that is not nil stores none.
	Trace map[string]string
	// CreatedAt is kept to the microsecond and read back in UTC. The zero time
	// is set to the current one by Write.
	CreatedAt time.Time
	// NotBefore is when the message may be delivered at the earliest; the zero time, or one
	// that has passed, is when it is committed. It is kept to the microsecond, and not read
	// back. In PostgreSQL and MySQL the server's clock decides that it has come, in SQLite that of the
	// relay. A coordinator that is idle looks at its interval, and is not woken for it. With
	// [WithStrictOrder], and in SQLite without a lease, later messages of its Key wait with
	// it; otherwise they are delivered before it.
	NotBefore time.Time
}

// Row is a message as it is stored, which is what the source hands out: a row
// that cannot be decoded can so be parked as it is. Trace and Headers are JSON,
// empty for none.
type Row struct {
	Seq            int64 // by which, together with the ID, the row is marked
	ID, Topic, Key string
	Payload        []byte
	Headers, Trace string
	CreatedAt      int64 // Unix time in microseconds
	Attempts       int   // deliveries that failed before this one

	delayed bool    // was not to be handed out before a time
	claim   int64   // of the lease, or as it was found
	origin  *origin // the source that handed the row out; nil for the row of a letter
}

// origin is a source by its address. Rows of two sources are the same by their values.
type origin struct{ _ byte }

// rowKey is what a row is known by. A failover to a replica that misses the last
// commits gives their numbers again, to other messages.
type rowKey struct {
	seq int64
	id  string
}

func (r Row) key() rowKey { return rowKey{r.Seq, r.ID} }

// delayedAttempts is what the column attempts begins at in a row that is not to be handed out
// before a time. Such a row is found by its time, as one that failed, and no fetch walks past it.
const delayedAttempts = 1 << 30

// count takes the number of attempts from the column.
func (r *Row) count(column int) {
	r.delayed, r.Attempts = column >= delayedAttempts, column%delayedAttempts
}

// attempts is what the column has.
func (r Row) attempts() int64 {
	if r.delayed {
		return delayedAttempts + int64(r.Attempts)
	}
	return int64(r.Attempts)
}

// Message decodes a row. The payload is shared with the row. It is the decode
// function for [courier.NewDecodingApplier]: couriersql.Row.Message.
func (r Row) Message() (Message, error) {
	headers, err := r.decode("headers", r.Headers)
	if err != nil {
		return Message{}, err
	}
	trace, err := r.decode("trace", r.Trace)
	if err != nil {
		return Message{}, err
	}
	return Message{
		ID: r.ID, Topic: r.Topic, Key: r.Key, Payload: r.Payload,
		Headers: headers, Trace: trace,
		CreatedAt: time.UnixMicro(r.CreatedAt).UTC(),
	}, nil
}

// String names the row for logs, without its payload and headers.
func (r Row) String() string {
	if r.Topic == "" { // of a queue of records
		return fmt.Sprintf("record %q", r.ID)
	}
	return fmt.Sprintf("message %q (topic %q, key %q)", r.ID, r.Topic, r.Key)
}

func (r Row) decode(column, text string) (map[string]string, error) {
	if text == "" {
		return nil, nil
	}
	var headers map[string]string // here, not a result: it would be on the heap for a row without any
	if err := json.Unmarshal([]byte(text), &headers); err != nil {
		return nil, fmt.Errorf(`couriersql: message %q: the column %s is not a JSON object of strings, such as {"name":"value"}: %w`, r.ID, column, err)
	}
	return headers, nil
}

func encode(headers map[string]string) string {
	if len(headers) == 0 {
		return ""
	}
	text, _ := json.Marshal(headers) // never fails for strings
	return string(text)
}
