package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	_ "modernc.org/sqlite"
)

type Order struct {
	ID    string `json:"id"`
	Total int    `json:"total"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	db, err := sql.Open("sqlite", couriersql.SQLiteDSN("orders.db"))
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, total INTEGER NOT NULL)`); err != nil {
		return err
	}
	outbox := couriersql.New(db, couriersql.SQLite)
	defer outbox.Close()
	if err := outbox.Migrate(ctx); err != nil { // creates or upgrades the tables of the outbox
		return err
	}

	publisher := courier.NewDecodingApplier(courier.ProcessFunc(publish), couriersql.Row.Message)
	source := outbox.Source()
	relay, _ := courier.ResilientApplier(publisher, &courier.ResilientConfig[couriersql.Row]{
		AttemptTimeout: 10 * time.Second, // of one call of publish
		Retry:          courier.RetryPolicy{MaxAttempts: 10},
		DLQ:            source.DLQ(),
	})
	coordinator := courier.NewPollingCoordinator(source, relay)

	go func() { // your handlers
		if err := place(ctx, db, outbox, Order{ID: rand.Text(), Total: 42}); err != nil {
			log.Print(err)
			return
		}
		coordinator.Wake() // deliver now, not after the interval
	}()
	return coordinator.Start(ctx) // until SIGINT or SIGTERM, and then until the work in progress is marked
}

// place writes an order and the message about it in one transaction.
func place(ctx context.Context, db *sql.DB, outbox *couriersql.Outbox, order Order) error {
	payload, err := json.Marshal(order)
	if err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after Commit
	if _, err := tx.ExecContext(ctx, `INSERT INTO orders VALUES (?, ?)`, order.ID, order.Total); err != nil {
		return err
	}
	message := couriersql.Message{Topic: "orders", Key: order.ID, Payload: payload}
	if err := outbox.Write(ctx, tx, message); err != nil {
		return err
	}
	return tx.Commit()
}

// publish sends a message to your broker, within ctx.
func publish(ctx context.Context, m couriersql.Message) error {
	_, err := fmt.Printf("published to %s: %s\n", m.Topic, m.Payload)
	return err
}
