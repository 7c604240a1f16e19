// Package outbox measures Courier as an outbox relay, from SQLite to an
// embedded JetStream on file storage, beside the loops that one would write by
// hand for the same guarantee: fetch 1000, publish asynchronously, wait for all
// acks, mark with one statement; one batch after the other, or each of these with
// another batch at once.
package outbox

import (
	"context"
	"database/sql"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriernats"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/erfanmomeniii/courier/bench/internal/meter"
)

const (
	rows      = 50_000
	batchSize = 1000
)

// bed is a full outbox and an empty stream.
type bed struct {
	db     *sql.DB
	outbox *couriersql.Outbox
	js     jetstream.JetStream
	stream jetstream.Stream
}

func newBed(b *testing.B) *bed {
	ctx := context.Background()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: b.TempDir(), NoLog: true, NoSigs: true})
	require.NoError(b, err)
	s.Start()
	b.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	require.True(b, s.ReadyForConnections(10*time.Second))
	conn, err := nats.Connect(s.ClientURL())
	require.NoError(b, err)
	b.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	require.NoError(b, err)
	stream, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders"}, Storage: jetstream.FileStorage})
	require.NoError(b, err)

	db, err := sql.Open("sqlite", couriersql.SQLiteDSN(filepath.Join(b.TempDir(), "outbox.db")))
	require.NoError(b, err)
	b.Cleanup(func() { _ = db.Close() })
	outbox := couriersql.New(db, couriersql.SQLite, couriersql.WithKeep())
	b.Cleanup(func() { _ = outbox.Close() })
	require.NoError(b, outbox.Migrate(ctx))
	payload := make([]byte, 256)
	for i := range payload {
		payload[i] = 'a' + byte(i%26)
	}
	messages := make([]couriersql.Message, 5000)
	for i := range messages {
		messages[i] = couriersql.Message{Topic: "orders", Payload: payload}
	}
	for range rows / len(messages) {
		tx, err := db.BeginTx(ctx, nil)
		require.NoError(b, err)
		require.NoError(b, outbox.Write(ctx, tx, messages...))
		require.NoError(b, tx.Commit())
	}
	return &bed{db, outbox, js, stream}
}

// measure relays a full outbox once an operation, and checks that the stream
// has all of it.
func measure(b *testing.B, relay func(*bed)) {
	for range b.N {
		b.StopTimer()
		bed := newBed(b)
		b.StartTimer()
		relay(bed)
		b.StopTimer()
		info, err := bed.stream.Info(context.Background())
		require.NoError(b, err)
		require.EqualValues(b, rows, info.State.Msgs)
		pending, err := bed.outbox.Pending(context.Background())
		require.NoError(b, err)
		require.Zero(b, pending)
	}
	meter.Time(b, rows)
}

func message(m couriersql.Message) (*nats.Msg, error) {
	return couriernats.NewMsg(m.Topic, m.ID, m.Payload, m.Headers, m.Trace)
}

func BenchmarkRelay_Courier(b *testing.B) {
	measure(b, func(bed *bed) {
		ctx, stop := context.WithCancel(context.Background())
		source := &counting{Source: bed.outbox.Source(), left: rows, done: stop}
		require.NoError(b, courier.NewPollingCoordinator(source, bed.applier(), courier.WithBatchSize(batchSize)).Start(ctx))
	})
}

func BenchmarkRelay_CourierStream(b *testing.B) {
	measure(b, func(bed *bed) {
		ctx, stop := context.WithCancel(context.Background())
		source := &countingStream{Stream: bed.outbox.Stream(10 * time.Millisecond), left: rows, done: stop}
		require.NoError(b, courier.NewStreamingCoordinator(source, bed.applier(), courier.WithBatchSize(batchSize), courier.WithPrefetch(2)).Start(ctx))
	})
}

func (bed *bed) applier() courier.Applier[couriersql.Row] {
	sink := couriernats.NewSink(bed.js, message)
	applier, _ := courier.ResilientApplier(courier.NewDecodingApplier(sink, couriersql.Row.Message),
		&courier.ResilientConfig[couriersql.Row]{DLQ: bed.outbox.DLQ()})
	return applier
}

// counting stops the run when everything is marked.
type counting struct {
	*couriersql.Source
	left int
	done func()
}

func (c *counting) Mark(ctx context.Context, rows []couriersql.Row) error {
	err := c.Source.Mark(ctx, rows)
	if err == nil {
		if c.left -= len(rows); c.left == 0 {
			c.done()
		}
	}
	return err
}

type countingStream struct {
	*couriersql.Stream
	left int
	done func()
}

func (c *countingStream) Mark(ctx context.Context, rows []couriersql.Row) error {
	err := c.Stream.Mark(ctx, rows)
	if err == nil {
		if c.left -= len(rows); c.left == 0 {
			c.done()
		}
	}
	return err
}
