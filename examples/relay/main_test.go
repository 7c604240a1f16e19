package main

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier/adapters/couriernats"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, goleak.Cleanup(pgtest.Exit)) }

// What is committed to the outbox is in the stream, and what cannot be sent is a dead
// letter.
func TestRelay(t *testing.T) {
	dsn := pgtest.Schema(t)
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true})
	require.NoError(t, err)
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	require.True(t, s.ReadyForConnections(10*time.Second))
	conn, err := nats.Connect(s.ClientURL())
	require.NoError(t, err)
	defer conn.Close()
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	require.NoError(t, err)
	db, err := sql.Open("pgx", dsn)
	require.NoError(t, err)
	defer func() { _ = db.Close() }()
	outbox := couriersql.New(db, couriersql.Postgres, couriersql.WithWakeUp())
	require.NoError(t, outbox.Migrate(t.Context()))
	tx, err := db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	require.NoError(t, outbox.Write(t.Context(), tx, couriersql.Message{ID: "42", Topic: "orders.placed", Payload: []byte("{}"), Headers: map[string]string{"Tenant": "acme"}},
		couriersql.Message{ID: "43", Topic: "orders.*"}))
	require.NoError(t, tx.Commit())

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- relay(ctx, dsn, s.ClientURL()) }()
	require.Eventually(t, func() bool {
		n, err := outbox.Pending(t.Context())
		return err == nil && n == 0
	}, 30*time.Second, 5*time.Millisecond)
	cancel()
	require.NoError(t, <-done)
	m, err := stream.GetMsg(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, []string{"orders.placed", "42", "{}", "acme"}, []string{m.Subject, couriernats.RecordID(m.Header), string(m.Data), m.Header.Get("Tenant")})
	letters, err := outbox.DLQ().Receive(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, letters, 1)
	require.Equal(t, "43", letters[0].Record.ID)
}
