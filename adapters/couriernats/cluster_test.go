package couriernats_test

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriernats"
)

// startCluster starts three servers that know each other.
func startCluster(tb testing.TB) (servers []*server.Server, urls string) {
	tb.Helper()
	var routes []*url.URL
	var ports []int
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(tb, err)
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
		routes = append(routes, &url.URL{Scheme: "nats", Host: l.Addr().String()})
		require.NoError(tb, l.Close())
	}
	var addresses []string
	for i, port := range ports {
		s, err := server.NewServer(&server.Options{
			ServerName: fmt.Sprint("n", i), Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: tb.TempDir(), NoLog: true, NoSigs: true,
			Cluster: server.ClusterOpts{Name: "c", Host: "127.0.0.1", Port: port}, Routes: routes,
		})
		require.NoError(tb, err)
		s.Start()
		tb.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		servers = append(servers, s)
	}
	for _, s := range servers {
		require.True(tb, s.ReadyForConnections(10*time.Second))
		addresses = append(addresses, s.ClientURL())
	}
	return servers, strings.Join(addresses, ",")
}

// A cluster whose leader goes away, with or without the relay's own connection,
// stores every record once, and none is taken for bad.
func TestClusterLosesItsLeader(t *testing.T) {
	t.Parallel()
	servers, urls := startCluster(t)
	conn, err := nats.Connect(urls, append(couriernats.ConnOptions(), nats.ReconnectWait(20*time.Millisecond))...)
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	require.Eventually(t, func() bool { // once they have elected one
		_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, Replicas: 3})
		return err == nil
	}, 30*time.Second, 100*time.Millisecond, "%v", err)
	all := orders(300)
	lose := func() {}
	sink := couriernats.NewSink(js, func(o order) (*nats.Msg, error) {
		if o.id == all[150].id {
			lose()
			lose = func() {}
		}
		return o.msg()
	}, couriernats.WithMaxPending(50))
	t.Cleanup(sink.Close)

	_, err = conn.Subscribe("orders.>", func(m *nats.Msg) { _ = m.Respond([]byte("+OK")) }) // before any ack
	require.NoError(t, err)
	// The server of the client drops what comes before it has heard of the stream.
	require.Empty(t, delivered(t, sink, all[:100]))
	require.Eventually(t, func() bool {
		stream, err := js.Stream(t.Context(), "ORDERS")
		if err != nil {
			return false
		}
		i := slices.IndexFunc(servers, func(s *server.Server) bool { return s.Name() == stream.CachedInfo().Cluster.Leader })
		if i >= 0 {
			lose = servers[i].Shutdown
		}
		return i >= 0
	}, 30*time.Second, 100*time.Millisecond)
	start := time.Now()
	err = sink.ApplyBatch(t.Context(), all[100:])
	require.Less(t, time.Since(start), 30*time.Second)
	if err != nil { // the others may have elected one sooner than anything failed
		for _, err := range failures(t, err) {
			require.Contains(t, []courier.ErrorClass{courier.ClassNotAttempted, courier.ClassRetryable}, courier.Classify(t.Context(), err), "%v", err)
		}
	}
	require.Empty(t, delivered(t, sink, all[100:]))
	t.Logf("all are stored %v after the leader was lost", time.Since(start))

	stream, err := js.Stream(t.Context(), "ORDERS")
	require.NoError(t, err)
	require.Equal(t, uint64(len(all)), stream.CachedInfo().State.Msgs)
}
