package couriernats_test

import (
	"errors"
	"net"
	"net/url"
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

// Where streams of two domains take a subject, as at a leaf node and its hub, the one
// that WithExpectStream names decides, whichever answers first.
func TestStreamsOfTwoDomains(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := listener.Addr().(*net.TCPAddr)
	require.NoError(t, listener.Close())
	hub := startBrokerWith(t, jetstream.StreamConfig{Name: "HUB"}, func(o *server.Options) {
		o.ServerName, o.JetStreamDomain = "hub", "hub"
		o.LeafNode = server.LeafNodeOpts{Host: "127.0.0.1", Port: address.Port}
	})
	leaf := startBrokerWith(t, jetstream.StreamConfig{Name: "LEAF"}, func(o *server.Options) {
		o.ServerName, o.JetStreamDomain = "leaf", "leaf"
		o.LeafNode = server.LeafNodeOpts{Remotes: []*server.RemoteLeafOpts{{URLs: []*url.URL{{Scheme: "nats-leaf", Host: address.String()}}}}}
	})
	messages := func(b *broker, stream string) uint64 {
		s, err := b.js.Stream(t.Context(), stream)
		require.NoError(t, err)
		return s.CachedInfo().State.Msgs
	}
	require.Eventually(t, func() bool { // the hub has told the leaf node its subjects
		require.NoError(t, leaf.conn.Publish("orders.first", nil))
		require.NoError(t, leaf.conn.Flush())
		return messages(hub, "HUB") > 0
	}, 10*time.Second, 10*time.Millisecond)
	for stream, b := range map[string]*broker{"HUB": hub, "LEAF": leaf} {
		sink := couriernats.NewSink(leaf.js, message, couriernats.WithExpectStream(stream))
		before := messages(b, stream)
		require.NoError(t, sink.ApplyBatch(t.Context(), orders(100)))
		require.Equal(t, before+100, messages(b, stream))
	}
}

// Streams of every kind acknowledge the messages that they store.
func TestKindsOfStreams(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]jetstream.StreamConfig{
		"nobody consumes": {Retention: jetstream.InterestPolicy},
		"transforms":      {SubjectTransform: &jetstream.SubjectTransformConfig{Source: "orders.>", Destination: "moved.>"}},
		"republishes":     {RePublish: &jetstream.RePublish{Source: "orders.>", Destination: "again.>"}},
		"keeps the last":  {MaxMsgsPerSubject: 1, AllowRollup: true},
		"high numbers":    {FirstSeq: 1 << 53},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, config)
			sink := couriernats.NewSink(b.js, message)
			for again := range 2 {
				require.NoError(t, sink.ApplyBatch(t.Context(), orders(5)))
				require.EqualValues(t, again*5, sink.Duplicates())
			}
		})
	}
}

// A stream that does not ack is told from one that is overloaded.
func TestAStreamThatDoesNotAck(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{NoAck: true})
	err := couriernats.NewSink(b.js, message, couriernats.WithAckTimeout(ackTimeout)).Apply(t.Context(), orders(1)[0])
	requireClass(t, courier.ClassRetryable, err)
	require.ErrorContains(t, err, "or the stream one that does not ack (NoAck)")
}

// A server that takes no subscription more is named at every call: the messages are
// stored, and no ack can come.
func TestTooManySubscriptions(t *testing.T) {
	t.Parallel()
	b := startBrokerWith(t, jetstream.StreamConfig{}, func(o *server.Options) { o.MaxSubs = 1 })
	b.conn.SetErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})
	_, err := b.conn.SubscribeSync("another")
	require.NoError(t, err)
	sink := couriernats.NewSink(b.js, message, couriernats.WithAckTimeout(ackTimeout))
	_, err = b.conn.SubscribeSync("too.many")
	require.NoError(t, err)
	require.Eventually(t, func() bool { // what is said of the sink's own may come after the ack timeout
		return errors.Is(b.conn.LastError(), nats.ErrMaxSubscriptionsExceeded)
	}, 20*time.Second, time.Millisecond)
	for range 2 {
		err := sink.Apply(t.Context(), orders(1)[0])
		requireClass(t, courier.ClassRetryable, err)
		require.ErrorIs(t, err, nats.ErrMaxSubscriptionsExceeded)
		require.ErrorContains(t, err, "does not let this user subscribe to, for the number of its subscriptions: raise the limit")
	}
}

// A server in lame duck mode, which a restart in order begins with, takes nothing while
// its connections last; what waits is stored once it is back.
func TestLameDuck(t *testing.T) {
	t.Parallel()
	b := startBrokerWith(t, jetstream.StreamConfig{}, func(o *server.Options) {
		o.LameDuckDuration, o.LameDuckGracePeriod = 20*time.Minute, 10*time.Minute // until the test ends it
	})
	sink, hasty := couriernats.NewSink(b.js, message), couriernats.NewSink(b.js, message, couriernats.WithAckTimeout(ackTimeout))
	require.NoError(t, sink.ApplyBatch(t.Context(), orders(5)))
	go b.server.LameDuckShutdown()
	for {
		err := hasty.Apply(t.Context(), orders(6)[5])
		if err == nil {
			continue // it has not begun yet
		}
		requireClass(t, courier.ClassRetryable, err)
		if strings.Contains(err.Error(), "or JetStream is off there, as while a server shuts down") {
			break
		}
	}
	require.True(t, b.conn.IsConnected())
	b.shutdown()
	b.await(t, false)
	b.start(t)
	b.await(t, true)
	require.NoError(t, sink.ApplyBatch(t.Context(), orders(10)))
	require.Equal(t, idsOf(orders(10)), b.ids(t))
}
