package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriernats"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/nats-io/nats.go/jetstream"
)

// shownLetters is how many dead letters the report tells of, one by one.
const shownLetters = 10

// verify compares the three places where an order can be with the orders that
// were written. It asks none of what took part in the relay: what was delivered
// is what can be read from the stream.
func verify(ctx context.Context, db *database, js jetstream.JetStream, stream jetstream.Stream) (*findings, error) {
	found := new(findings)
	var err error
	if found.letters, err = db.outbox.DLQ().Receive(ctx, shownLetters); err != nil {
		return nil, err
	}
	if !reconnected(js.Conn()) {
		return nil, errors.New("the stream cannot be read back, as there is no connection to the server: nothing is lost; start again with the same -db once it is up")
	}
	// In a table and not in memory, so that the count may be of any size.
	// Temporary tables belong to one connection.
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if err := db.readBack(ctx, conn, stream); err != nil {
		return nil, fmt.Errorf("reading the stream %s back: %w", streamName, err)
	}
	if err := found.count(ctx, conn); err != nil {
		return nil, fmt.Errorf("counting: %w", err)
	}
	return found, nil
}

// readBack fills the temporary table seen with the message IDs of the stream,
// and how often it holds each.
func (db *database) readBack(ctx context.Context, conn *sql.Conn, stream jetstream.Stream) error {
	_, err := conn.ExecContext(ctx, db.sql.createSeen)
	if err != nil {
		return err
	}
	info, err := stream.Info(ctx)
	if err != nil || info.State.Msgs == 0 {
		return err
	}
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	add, err := tx.PrepareContext(ctx, db.sql.insertSeen)
	if err != nil {
		return err
	}
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{HeadersOnly: true})
	if err != nil {
		return err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return err
	}
	defer messages.Stop()
	for {
		m, err := messages.Next(jetstream.NextMaxWait(brokerTimeout))
		if err != nil {
			return err
		}
		if _, err := add.ExecContext(ctx, couriernats.RecordID(m.Headers())); err != nil {
			return err
		}
		about, err := m.Metadata()
		if err != nil {
			return err
		}
		if about.NumPending == 0 {
			return tx.Commit()
		}
	}
}

// findings is what there is to report.
type findings struct {
	written    int64 // orders
	delivered  int64 // orders that are in the stream
	dead       int64 // rows in the dead letter queue
	duplicates int64 // orders too many: in the stream once more, or in the stream and the queue
	pending    int64 // rows in the outbox
	missing    int64 // orders that are nowhere
	lost       string

	letters  []courier.DeadLetter[couriersql.Row]
	repeated uint64 // deliveries that the stream knew already

	rate, overall int64 // rows a second
	busy, took    time.Duration
}

// MySQL takes a temporary table once in a query.
const countQuery = `WITH s AS (SELECT id, copies FROM seen) SELECT
	(SELECT count(*) FROM orders),
	(SELECT count(*) FROM orders JOIN s USING (id)),
	(SELECT count(*) FROM courier_outbox_dlq),
	(SELECT coalesce(sum(copies - 1), 0) FROM orders JOIN s USING (id)) +
		(SELECT count(*) FROM courier_outbox_dlq JOIN s USING (id)),
	(SELECT count(*) FROM courier_outbox),
	count(*), coalesce(min(id), '')
FROM orders
WHERE id NOT IN (SELECT id FROM s)
	AND id NOT IN (SELECT id FROM courier_outbox_dlq)
	AND id NOT IN (SELECT id FROM courier_outbox)`

func (f *findings) count(ctx context.Context, conn *sql.Conn) error {
	return conn.QueryRowContext(ctx, countQuery).Scan(
		&f.written, &f.delivered, &f.dead, &f.duplicates, &f.pending, &f.missing, &f.lost)
}

// measure takes the speed of a run: that of the relay while it had something to
// do, and that of the whole, in which it waits for the writer and the broker.
func (f *findings) measure(c *counts) {
	f.busy, f.took = c.busy, c.last.Sub(c.first)
	if f.busy > 0 {
		f.rate = int64(float64(c.settled.Load()) / f.busy.Seconds())
		f.overall = int64(float64(c.settled.Load()) / f.took.Seconds())
	}
}
