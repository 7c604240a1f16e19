// Package outbox measures Courier as an outbox relay, from SQLite to an
// embedded JetStream on file storage, beside the loops that one would write by
// hand for the same guarantee: fetch 1000, publish asynchronously, wait for all
// acks, mark with one statement; one batch after the other, or each of these with
// another batch at once.
package outbox

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriernats"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/erfanmomeniii/courier/bench/internal/meter"
	"github.com/erfanmomeniii/courier/bench/rivals/internal/full"
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

	db, outbox := full.Outbox(b, rows, func(int) string { return "" })
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
		source := &full.Source{Source: bed.outbox.Source(), Left: rows, Done: stop}
		require.NoError(b, courier.NewPollingCoordinator(source, bed.applier(), courier.WithBatchSize(batchSize)).Start(ctx))
	})
}

func BenchmarkRelay_CourierStream(b *testing.B) {
	measure(b, func(bed *bed) {
		ctx, stop := context.WithCancel(context.Background())
		source := &full.Stream{Stream: bed.outbox.Stream(10 * time.Millisecond), Left: rows, Done: stop}
		require.NoError(b, courier.NewStreamingCoordinator(source, bed.applier(), courier.WithBatchSize(batchSize), courier.WithPrefetch(2)).Start(ctx))
	})
}

func (bed *bed) applier() courier.Applier[couriersql.Row] {
	sink := couriernats.NewSink(bed.js, message)
	applier, _ := courier.ResilientApplier(courier.NewDecodingApplier(sink, couriersql.Row.Message),
		&courier.ResilientConfig[couriersql.Row]{DLQ: bed.outbox.DLQ()})
	return applier
}
