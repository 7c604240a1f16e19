// Relay moves messages from an outbox in PostgreSQL to a stream of NATS JetStream.
//
//	DATABASE_URL=postgres://… NATS_URL=nats://… go run ./relay
//
// The stream has to be there, and to take the topics of the messages as its subjects.
package main

import (
	"context"
	"database/sql"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriernats"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := relay(ctx, os.Getenv("DATABASE_URL"), os.Getenv("NATS_URL")); err != nil {
		log.Fatal(err)
	}
}

func relay(ctx context.Context, databaseURL, natsURL string) error {
	db, err := sql.Open("pgx", databaseURL)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	outbox := couriersql.New(db, couriersql.Postgres, couriersql.WithWakeUp())
	defer func() { _ = outbox.Close() }() // once the coordinator has returned
	if err := outbox.Migrate(ctx); err != nil {
		return err
	}

	conn, err := nats.Connect(natsURL, couriernats.ConnOptions()...)
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	sink := couriernats.NewSink(js, func(m couriersql.Message) (*nats.Msg, error) {
		return couriernats.NewMsg(m.Topic, m.ID, m.Payload, m.Headers, m.Trace)
	})
	defer sink.Close()

	source := outbox.Source()
	applier, _ := courier.ResilientApplier( // retries, waits out an outage, and parks what cannot be delivered
		courier.NewDecodingApplier(sink, couriersql.Row.Message),
		&courier.ResilientConfig[couriersql.Row]{DLQ: source.DLQ()},
	)
	return courier.NewPollingCoordinator(source, applier).Start(ctx)
}
