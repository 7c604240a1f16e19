package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"
)

// places says where the orders and their outbox are, and where the received orders are:
// two files of SQLite, or one schema of PostgreSQL.
type places struct {
	Driver, Orders, Received string
}

// makePlaces makes empty ones, which remove removes.
func makePlaces(ctx context.Context, pg string) (p places, remove func() error, err error) {
	if pg != "" {
		dsn, drop, err := (&pgtest.Server{DSN: pg}).NewSchema(ctx)
		return places{"pgx", dsn, dsn}, drop, err
	}
	folder, err := os.MkdirTemp("", "courier-kafka-")
	if err != nil {
		return p, nil, err
	}
	return places{"sqlite", couriersql.SQLiteDSN(filepath.Join(folder, "orders.db")), couriersql.SQLiteDSN(filepath.Join(folder, "received.db"))},
		func() error { return os.RemoveAll(folder) }, nil
}

// shop is the orders and their outbox.
type shop struct {
	*sql.DB
	outbox *couriersql.Outbox
}

func (p places) openShop() (*shop, error) {
	db, err := sql.Open(p.Driver, p.Orders)
	if err != nil {
		return nil, err
	}
	if p.Driver == "sqlite" {
		db.SetMaxOpenConns(1) // a file has one writer at a time
		return &shop{db, couriersql.New(db, couriersql.SQLite)}, nil
	}
	return &shop{db, couriersql.New(db, couriersql.Postgres, couriersql.WithStrictOrder())}, nil
}

func (s *shop) close() { _ = errors.Join(s.outbox.Close(), s.Close()) }

func (s *shop) create(ctx context.Context) error {
	if err := s.outbox.Migrate(ctx); err != nil {
		return err
	}
	_, err := s.ExecContext(ctx, `CREATE TABLE orders (id TEXT PRIMARY KEY, customer TEXT NOT NULL, number BIGINT NOT NULL)`)
	return err
}

// perTransaction is how many orders one transaction writes.
const perTransaction = 10

// write is the outbox pattern: some orders, and the messages that tell of them, in one
// transaction.
func (s *shop) write(ctx context.Context, topic string, first, last int, o options) error {
	tx, err := s.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	for n := first; n <= last; n++ {
		made := order{ID: fmt.Sprintf("order-%07d", n), Customer: fmt.Sprintf("customer-%d", n%o.customers), Number: n}
		if _, err := tx.ExecContext(ctx, `INSERT INTO orders VALUES ($1, $2, $3)`, made.ID, made.Customer, made.Number); err != nil {
			return err
		}
		m := couriersql.Message{ID: made.ID, Topic: topic, Key: made.Customer}
		if m.Payload, err = json.Marshal(made); err != nil {
			return err
		}
		switch i := o.poisonAt(n); {
		case i == 0:
		case i%3 == 1:
			m.Payload = []byte("no JSON") // the consumers cannot decode it
		case i%3 == 2:
			m.Topic = "no such topic" // the relay cannot send it: Kafka has no such names
		default:
			m.Payload = make([]byte, largestLetter/2) // larger than the topic takes, as it cannot be compressed
			_, _ = rand.Read(m.Payload)
		}
		if err := s.outbox.Write(ctx, tx, m); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// poisonAt returns which poison order the n-th order is, 0 if it is none. They are spread
// evenly among the others.
func (o *options) poisonAt(n int) int {
	if o.poison == 0 {
		return 0
	}
	if before, now := (n-1)*o.poison/o.orders, n*o.poison/o.orders; now > before {
		return now
	}
	return 0
}

// writeAll writes the orders at their pace, until all are written or ctx ends.
func (s *shop) writeAll(ctx context.Context, topic string, o options, written func(int)) error {
	began := time.Now()
	for first := 1; first <= o.orders; first += perTransaction {
		last := min(first+perTransaction-1, o.orders)
		if err := s.write(ctx, topic, first, last, o); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("writing orders: %w", err)
		}
		written(last)
		select {
		case <-time.After(time.Until(began.Add(time.Duration(last) * time.Second / time.Duration(o.pace)))):
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// pending returns the ids of the rows of the outbox, the oldest first.
func (s *shop) pending(ctx context.Context, limit int) ([]string, error) {
	return column(s.QueryContext(ctx, `SELECT id FROM courier_outbox ORDER BY seq LIMIT $1`, limit))
}

func column(rows *sql.Rows, err error) (all []string, _ error) {
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, err
		}
		all = append(all, text)
	}
	return all, rows.Err()
}

// received is the table that the members of the group write into: a row for each time
// that an order was processed. It is the applier of the consumers.
type received struct {
	*sql.DB
	member string
	lost   func() uint64 // how many partitions the member has lost, see courierkafka.Source
	noted  atomic.Uint64 // of them
}

func (p places) openReceived(member string) (*received, error) {
	db, err := sql.Open(p.Driver, p.Received)
	if err != nil {
		return nil, err
	}
	if p.Driver == "sqlite" {
		db.SetMaxOpenConns(1)
	}
	return &received{DB: db, member: member}, nil
}

func (t *received) create(ctx context.Context, driver string) error {
	number := "INTEGER PRIMARY KEY AUTOINCREMENT"
	if driver == "pgx" {
		number = "BIGSERIAL PRIMARY KEY"
	}
	_, err := t.ExecContext(ctx, `CREATE TABLE received (seq `+number+`, id TEXT NOT NULL, customer TEXT NOT NULL, number BIGINT NOT NULL,
		member TEXT NOT NULL, kafka_partition BIGINT NOT NULL, kafka_offset BIGINT NOT NULL)`)
	if err != nil {
		return err
	}
	_, err = t.ExecContext(ctx, `CREATE TABLE lost (member TEXT NOT NULL, seq BIGINT NOT NULL)`)
	return err
}

// Apply writes one order.
func (t *received) Apply(ctx context.Context, o order) error { return t.ApplyBatch(ctx, []order{o}) }

// ApplyBatch writes orders in one transaction: all of them or none.
func (t *received) ApplyBatch(ctx context.Context, orders []order) error {
	tx, err := t.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	lost := t.lost()
	if lost > t.noted.Load() { // for the verdict: what the member had in hand comes again
		if _, err := tx.ExecContext(ctx, `INSERT INTO lost SELECT $1, coalesce(max(seq), 0) FROM received`, t.member); err != nil {
			return err
		}
	}
	for _, o := range orders {
		if _, err := tx.ExecContext(ctx, `INSERT INTO received (id, customer, number, member, kafka_partition, kafka_offset) VALUES ($1, $2, $3, $4, $5, $6)`,
			o.ID, o.Customer, o.Number, t.member, o.partition, o.offset); err != nil {
			return err
		}
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	t.noted.Store(lost)
	return nil
}

// OrderedBatches says that several orders of a customer may be in one call.
func (t *received) OrderedBatches() bool { return true }
