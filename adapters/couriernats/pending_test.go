package couriernats

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

// What is never acked is given up, and nothing of it stays with the connection.
func TestNothingStaysPending(t *testing.T) {
	t.Parallel()
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true,
	})
	require.NoError(t, err)
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	require.True(t, s.ReadyForConnections(10*time.Second))
	conn, err := nats.Connect(s.ClientURL())
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "MUTE", Subjects: []string{"mute"}, NoAck: true})
	require.NoError(t, err)

	before := conn.NumSubscriptions()
	const timeout = 50 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	sink := NewSink(js, func(i int) (*nats.Msg, error) {
		if i == 99 {
			cancel()
		}
		return NewMsg("mute", strconv.Itoa(i), nil)
	}, WithAckTimeout(timeout))
	records := make([]int, 100)
	for i := range records {
		records[i] = i
	}
	require.Error(t, sink.ApplyBatch(ctx, records))
	require.Error(t, sink.ApplyBatch(t.Context(), records[:50]))
	require.Equal(t, before, conn.NumSubscriptions())

	in, err := openInbox(conn, 1, "") // of a call
	require.NoError(t, err)
	in.close()
	select {
	case _, listens := <-in.broken:
		require.False(t, listens)
	default:
		require.Fail(t, "the connection still tells the call of its status")
	}
}
