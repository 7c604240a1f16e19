package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriernats"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// relayConfig is what a relay process is told.
type relayConfig struct {
	Name, DSN, NATS string
	Batch           int
	Strict          bool
}

func outboxOf(db *sql.DB, strict bool) *couriersql.Outbox {
	opts := []couriersql.Option{couriersql.WithWakeUp()}
	if strict {
		opts = append(opts, couriersql.WithStrictOrder())
	}
	return couriersql.New(db, couriersql.Postgres, opts...)
}

// relay is all that there is of Courier in this program. However many processes
// run it, the rows that one of them has in hand are locked, and the others leave
// them alone; when it dies they are free at once.
func relay(ctx context.Context, outbox *couriersql.Outbox, sink courier.Applier[couriersql.Message], batch int) error {
	source := outbox.Source()
	applier, _ := courier.ResilientApplier(courier.NewDecodingApplier(sink, couriersql.Row.Message),
		&courier.ResilientConfig[couriersql.Row]{DLQ: source.DLQ()})
	return courier.NewPollingCoordinator(source, applier,
		courier.WithBatchSize(batch), courier.WithInterval(time.Second),
		courier.WithOrderKey(func(r couriersql.Row) string { return r.Key })).Start(ctx)
}

// relayHeader says in a message which process delivered it.
const relayHeader = "Relay"

// runRelay is a relay process. It ends with the one that started it.
func runRelay(ctx context.Context, text string) int {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() { // which the parent holds open while it lives
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	var config relayConfig
	err := json.Unmarshal([]byte(text), &config)
	if err == nil {
		err = connectAndRelay(ctx, config)
	}
	if err != nil {
		_, _ = fmt.Fprintf(os.Stderr, "cluster: %s: %v\n", config.Name, err)
		return exitCannotRun
	}
	return 0
}

func connectAndRelay(ctx context.Context, config relayConfig) error {
	db, err := sql.Open("pgx", config.DSN)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	conn, err := nats.Connect(config.NATS, couriernats.ConnOptions()...)
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	sink := couriernats.NewSink(js, func(m couriersql.Message) (*nats.Msg, error) {
		return couriernats.NewMsg(subject, m.ID, m.Payload, map[string]string{relayHeader: config.Name})
	})
	defer sink.Close()
	outbox := outboxOf(db, config.Strict)
	defer func() { _ = outbox.Close() }()
	return relay(ctx, outbox, sink, config.Batch)
}
