package couriernats_test

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/erfanmomeniii/courier/adapters/couriernats"
	"github.com/erfanmomeniii/courier/courierttest/network"
)

// patient is for calls of which every ack comes: to many messages on a busy machine they
// may take longer than a relay waits.
var patient = couriernats.WithAckTimeout(time.Minute)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// broker is a JetStream server in this process, on file storage, with a stream
// that takes "orders.>".
type broker struct {
	server *server.Server
	opts   *server.Options
	conn   *nats.Conn
	js     jetstream.JetStream
}

func startBroker(tb testing.TB, stream jetstream.StreamConfig) *broker {
	tb.Helper()
	return startBrokerWith(tb, stream, nil)
}

// startBrokerWith changes the server's options before it starts. The broker's own
// connection is of the last user, where there are some.
func startBrokerWith(tb testing.TB, stream jetstream.StreamConfig, change func(*server.Options)) *broker {
	tb.Helper()
	b := &broker{opts: &server.Options{
		Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: tb.TempDir(), NoLog: true, NoSigs: true,
	}}
	if change != nil {
		change(b.opts)
	}
	b.start(tb)
	b.opts.Port = b.port()
	tb.Cleanup(b.shutdown)
	var err error
	options := []nats.Option{nats.ReconnectWait(5 * time.Millisecond), nats.MaxReconnects(-1)}
	if n := len(b.opts.Users); n > 0 {
		options = append(options, nats.UserInfo(b.opts.Users[n-1].Username, b.opts.Users[n-1].Password))
	}
	b.conn, err = nats.Connect(b.server.ClientURL(), options...)
	require.NoError(tb, err)
	tb.Cleanup(b.conn.Close)
	b.js, err = jetstream.New(b.conn)
	require.NoError(tb, err)
	if stream.Name == "" {
		stream.Name = "ORDERS"
	}
	stream.Subjects = []string{"orders.>"}
	_, err = b.js.CreateStream(tb.Context(), stream)
	require.NoError(tb, err)
	return b
}

func (b *broker) start(tb testing.TB) {
	tb.Helper()
	var err error
	b.server, err = server.NewServer(b.opts.Clone())
	require.NoError(tb, err)
	b.server.Start()
	require.True(tb, b.server.ReadyForConnections(10*time.Second))
}

func (b *broker) shutdown() {
	b.server.Shutdown()
	b.server.WaitForShutdown()
}

// network starts one between clients and the server.
func (b *broker) network(tb testing.TB) *network.Network {
	address := strings.TrimPrefix(b.server.ClientURL(), "nats://")
	return network.Local(tb, func() (net.Conn, error) { return net.Dial("tcp", address) })
}

func (b *broker) port() int {
	port, err := strconv.Atoi(b.server.PortsInfo(time.Second).Nats[0][len("nats://127.0.0.1:"):])
	if err != nil {
		panic(err)
	}
	return port
}

// await returns once the client has noticed that its connection is up or down.
func (b *broker) await(tb testing.TB, connected bool) {
	tb.Helper()
	require.Eventually(tb, func() bool { return b.conn.IsConnected() == connected }, 20*time.Second, time.Millisecond)
}

// stored returns the messages of the stream in their order.
func (b *broker) stored(tb testing.TB) []*jetstream.RawStreamMsg {
	tb.Helper()
	stream, err := b.js.Stream(tb.Context(), "ORDERS")
	require.NoError(tb, err)
	last := stream.CachedInfo().State.LastSeq
	msgs := make([]*jetstream.RawStreamMsg, 0, last)
	for seq := uint64(1); seq <= last; seq++ {
		m, err := stream.GetMsg(tb.Context(), seq)
		require.NoError(tb, err)
		msgs = append(msgs, m)
	}
	return msgs
}

func (b *broker) ids(tb testing.TB) []string {
	tb.Helper()
	var ids []string
	for _, m := range b.stored(tb) {
		ids = append(ids, couriernats.RecordID(m.Header))
	}
	return ids
}

// order is an outbox row as the tests know it.
type order struct {
	id      string
	subject string
	payload []byte
	headers map[string]string
}

func (o order) msg() (*nats.Msg, error) {
	return couriernats.NewMsg(o.subject, o.id, o.payload, o.headers)
}

func message(o order) (*nats.Msg, error) { return o.msg() }

func orders(n int) []order {
	all := make([]order, n)
	for i := range all {
		all[i] = order{id: fmt.Sprintf("id-%05d", i), subject: "orders.placed", payload: []byte(strconv.Itoa(i))}
	}
	return all
}

func idsOf(all []order) []string {
	ids := make([]string, len(all))
	for i, o := range all {
		ids[i] = o.id
	}
	return ids
}
