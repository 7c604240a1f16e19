package couriernats_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriernats"
)

// connect makes a further connection to a broker, without its options.
func (b *broker) connect(tb testing.TB, opts ...nats.Option) (*nats.Conn, jetstream.JetStream) {
	tb.Helper()
	conn, err := nats.Connect(b.server.ClientURL(), append([]nats.Option{
		nats.ReconnectWait(5 * time.Millisecond), nats.ReconnectJitter(0, 0), nats.MaxReconnects(-1),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}, opts...)...)
	require.NoError(tb, err)
	tb.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	require.NoError(tb, err)
	return conn, js
}

// closing returns a channel that is closed once the client has closed its
// connection for good.
func closing() (closed chan struct{}, opt nats.Option) {
	closed = make(chan struct{})
	var once sync.Once
	return closed, nats.ClosedHandler(func(*nats.Conn) { once.Do(func() { close(closed) }) })
}

// delivered applies until all is delivered, as a relay does, and returns what was
// found permanent meanwhile.
func delivered(tb testing.TB, sink *couriernats.Sink[order], all []order) (permanent []string) {
	tb.Helper()
	require.Eventually(tb, func() bool {
		err := sink.ApplyBatch(tb.Context(), all)
		if err == nil {
			return true
		}
		var listed *courier.BatchError
		if !errors.As(err, &listed) {
			return false
		}
		var left []order
		for _, f := range listed.Failures {
			if courier.Classify(tb.Context(), f.Err) == courier.ClassPermanent {
				permanent = append(permanent, all[f.Index].id)
			} else {
				left = append(left, all[f.Index])
			}
		}
		all = left
		return len(all) == 0
	}, 30*time.Second, 5*time.Millisecond)
	return permanent
}

// The client closes its connection for good in more ways than one. The sink goes
// on over another, and only the record that was the reason is taken out.
func TestClientClosesItsConnection(t *testing.T) {
	t.Parallel()
	users := func(names ...string) (list []*server.User) {
		for _, name := range names {
			list = append(list, &server.User{Username: name, Password: "secret"})
		}
		return list
	}
	reload := func(t *testing.T, b *broker, change func(*server.Options)) {
		change(b.opts)
		require.NoError(t, b.server.ReloadOptions(b.opts.Clone()))
	}
	for name, row := range map[string]struct {
		server func(*server.Options)
		client []nats.Option
		lose   func(t *testing.T, b *broker, closed <-chan struct{})
		regain func(t *testing.T, b *broker)
		bad    func(*order)
	}{
		"it gives up reconnecting": {
			client: []nats.Option{nats.MaxReconnects(2)},
			lose: func(_ *testing.T, b *broker, closed <-chan struct{}) {
				b.shutdown()
				<-closed
			},
			regain: func(t *testing.T, b *broker) { b.start(t) },
		},
		"its user is gone": {
			server: func(o *server.Options) { o.Users = users("relay", "admin") },
			client: []nats.Option{nats.UserInfo("relay", "secret")},
			lose: func(t *testing.T, b *broker, closed <-chan struct{}) {
				reload(t, b, func(o *server.Options) { o.Users = users("admin") })
				<-closed
			},
			regain: func(t *testing.T, b *broker) {
				reload(t, b, func(o *server.Options) { o.Users = users("relay", "admin") })
			},
		},
		"the payload limit is lowered": {
			lose: func(t *testing.T, b *broker, _ <-chan struct{}) {
				reload(t, b, func(o *server.Options) { o.MaxPayload = 2000 })
			},
			bad: func(o *order) { o.payload = make([]byte, 5000) },
		},
		"the limit of a line is low": { // a reload of it is a data race in the server
			server: func(o *server.Options) { o.MaxControlLine = 512 },
			lose:   func(*testing.T, *broker, <-chan struct{}) {},
			bad:    func(o *order) { o.subject = "orders." + strings.Repeat("x", 600) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBrokerWith(t, jetstream.StreamConfig{}, row.server)
			closed, handler := closing()
			conn, js := b.connect(t, append(row.client, handler)...)
			sink := couriernats.NewSink(js, message)
			t.Cleanup(sink.Close)
			all := orders(30)
			require.NoError(t, sink.ApplyBatch(t.Context(), all[:10]))

			row.lose(t, b, closed)
			want := slices.Clone(all)
			var bad []string
			if row.bad != nil {
				row.bad(&all[15])
				bad = []string{all[15].id}
				want = slices.Delete(want, 15, 16)
			} else {
				err := sink.ApplyBatch(t.Context(), all)
				requireClass(t, courier.ClassRetryable, err)
				require.NotContains(t, err.Error(), "secret")
				require.NotErrorIs(t, err, couriernats.ErrClosed)
				row.regain(t, b)
			}
			require.Equal(t, bad, delivered(t, sink, all))
			require.True(t, conn.IsClosed(), "the connection was lost for good")
			require.ElementsMatch(t, idsOf(want), b.ids(t))

			sink.Close()
			require.ErrorIs(t, sink.Apply(t.Context(), all[0]), couriernats.ErrClosed)
		})
	}
}

// What the program closes stays closed, and Ready of the coordinator that needs it
// tells so.
func TestProgramClosesTheConnection(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*broker, *couriernats.Sink[order]){
		"close":          func(b *broker, _ *couriernats.Sink[order]) { b.conn.Close() },
		"drain":          func(b *broker, _ *couriernats.Sink[order]) { _ = b.conn.Drain() },
		"close the sink": func(_ *broker, sink *couriernats.Sink[order]) { sink.Close(); sink.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, jetstream.StreamConfig{})
			sink := couriernats.NewSink(b.js, message, couriernats.WithConnect(func(context.Context) (*nats.Conn, error) {
				t.Error("it connects again")
				return nil, nil
			}))
			require.NoError(t, sink.Validate())
			applier, dlq := courier.ResilientApplier(sink, nil)
			fetched := make(chan struct{})
			source := courier.BatchSourceFunc[order]{
				FetchFunc: func(context.Context) ([]order, error) {
					<-fetched
					return orders(3), nil
				},
				MarkFunc: func(context.Context, []order) error { return nil },
			}
			coordinator := courier.NewPollingCoordinator(source, applier, courier.WithFastPolling())
			ended := make(chan error, 1)
			go func() { ended <- coordinator.Start(t.Context()) }()
			end(b, sink)
			close(fetched)
			require.Eventually(t, func() bool { return errors.Is(coordinator.Ready(), couriernats.ErrClosed) }, 20*time.Second, time.Millisecond)
			require.NoError(t, coordinator.Stop(t.Context()))
			require.NoError(t, <-ended)
			n, err := dlq.Count(t.Context())
			require.NoError(t, err)
			require.Zero(t, n)

			for _, err := range []error{
				sink.Validate(), sink.Apply(t.Context(), orders(1)[0]), sink.ApplyBatch(t.Context(), orders(3)),
			} {
				requireClass(t, courier.ClassNotAttempted, err)
				require.ErrorIs(t, err, couriernats.ErrClosed)
				require.ErrorIs(t, err, courier.ErrConfig)
			}
			if name == "close the sink" {
				require.True(t, b.conn.IsConnected(), "the connection is the caller's")
			}
		})
	}
}

// A permission that was denied once does not make a program's own close look like
// the client's.
func TestProgramClosesAfterAnError(t *testing.T) {
	t.Parallel()
	b := startBrokerWith(t, jetstream.StreamConfig{}, func(o *server.Options) {
		o.Users = []*server.User{{Username: "relay", Password: "secret", Permissions: &server.Permissions{
			Subscribe: &server.SubjectPermission{Deny: []string{"secrets"}},
		}}}
	})
	conn, js := b.connect(t, nats.UserInfo("relay", "secret"))
	_, err := conn.SubscribeSync("secrets")
	require.NoError(t, err)
	require.NoError(t, conn.Flush())
	require.ErrorIs(t, conn.LastError(), nats.ErrPermissionViolation)
	sink := couriernats.NewSink(js, message)
	conn.Close()
	require.ErrorIs(t, sink.Apply(t.Context(), orders(1)[0]), couriernats.ErrClosed)
}

func TestWithConnect(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	closed, handler := closing()
	_, js := b.connect(t, nats.MaxReconnects(1), handler)
	var calls, open atomic.Int32
	refused := errors.New("no credentials")
	results := make(chan func() (*nats.Conn, error), 10)
	sink := couriernats.NewSink(js, message, couriernats.WithConnect(func(ctx context.Context) (*nats.Conn, error) {
		calls.Add(1)
		require.Equal(t, int32(1), open.Add(1), "one call at a time")
		defer open.Add(-1)
		_, ok := ctx.Deadline()
		require.True(t, ok)
		return (<-results)()
	}))
	t.Cleanup(sink.Close)
	require.NoError(t, sink.Apply(t.Context(), orders(1)[0]))
	b.shutdown()
	<-closed
	b.start(t)
	require.Zero(t, calls.Load())

	results <- func() (*nats.Conn, error) { return nil, refused }
	err := sink.Apply(t.Context(), orders(1)[0])
	requireClass(t, courier.ClassRetryable, err)
	require.ErrorIs(t, err, refused)
	require.ErrorIs(t, err, nats.ErrConnectionClosed)
	require.ErrorContains(t, err, "for good")

	results <- func() (*nats.Conn, error) { return nil, nil }
	requireClass(t, courier.ClassRetryable, sink.Apply(t.Context(), orders(1)[0]))

	results <- func() (*nats.Conn, error) {
		return nil, &courier.ConfigError{Field: "credentials", Problem: "are gone"}
	}
	requireClass(t, courier.ClassNotAttempted, sink.Apply(t.Context(), orders(1)[0]))

	var own *nats.Conn
	var wg sync.WaitGroup
	for range 8 { // all that come meanwhile are told to wait
		wg.Go(func() {
			if err := sink.Apply(t.Context(), orders(2)[1]); err != nil {
				requireClass(t, courier.ClassRetryable, err)
			}
		})
	}
	results <- func() (*nats.Conn, error) {
		var err error
		own, err = nats.Connect(b.server.ClientURL())
		return own, err
	}
	wg.Wait()
	require.NoError(t, sink.ApplyBatch(t.Context(), orders(5)))
	require.Equal(t, int32(4), calls.Load())
	require.ElementsMatch(t, idsOf(orders(5)), b.ids(t))
	sink.Close()
	require.True(t, own.IsClosed(), "the connection is the sink's")
}

// A sink that is closed while it connects keeps no connection.
func TestCloseWhileConnecting(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	closed, handler := closing()
	_, js := b.connect(t, nats.MaxReconnects(1), handler)
	b.shutdown()
	<-closed
	b.start(t)
	var sink *couriernats.Sink[order]
	var own *nats.Conn
	sink = couriernats.NewSink(js, message, couriernats.WithConnect(func(context.Context) (conn *nats.Conn, err error) {
		own, err = nats.Connect(b.server.ClientURL())
		sink.Close()
		return own, err
	}))
	require.ErrorIs(t, sink.Apply(t.Context(), orders(1)[0]), couriernats.ErrClosed)
	require.True(t, own.IsClosed(), "the connection is the sink's")
}

// While it has no server, the client's patience is worth knowing.
func TestPatienceIsTold(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	conn, js := b.connect(t, nats.MaxReconnects(1000))
	sink := couriernats.NewSink(js, message)
	b.shutdown()
	require.Eventually(t, func() bool { return !conn.IsConnected() }, 20*time.Second, time.Millisecond)
	require.ErrorContains(t, sink.Apply(t.Context(), orders(1)[0]), "the client gives up at its number of attempts at a server (MaxReconnects is 1000), and the sink then connects again")
	b.await(t, false)
	require.NotContains(t, couriernats.NewSink(b.js, message).Apply(t.Context(), orders(1)[0]).Error(), "MaxReconnects")
}

func TestConnOptions(t *testing.T) {
	t.Parallel()
	b := startBrokerWith(t, jetstream.StreamConfig{}, func(o *server.Options) {
		o.Users = []*server.User{{Username: "relay", Password: "secret"}}
	})
	conn, js := b.connect(t, append(couriernats.ConnOptions(), nats.UserInfo("relay", "secret"))...)
	sink := couriernats.NewSink(js, message)
	all := orders(10)
	require.NoError(t, sink.ApplyBatch(t.Context(), all[:5]))

	b.shutdown()
	require.Eventually(t, func() bool { return !conn.IsConnected() }, 20*time.Second, time.Millisecond)
	require.ErrorIs(t, conn.Publish("orders.placed", nil), nats.ErrReconnectBufExceeded, "nothing is sent later")
	users := b.opts.Users
	b.opts.Users = []*server.User{{Username: "admin", Password: "secret"}}
	b.start(t)
	before := conn.Stats().Reconnects
	require.Eventually(t, func() bool { return conn.Stats().Reconnects > before+3 }, 20*time.Second, time.Millisecond, "refused several times")
	require.False(t, conn.IsClosed())
	b.opts.Users = users
	require.NoError(t, b.server.ReloadOptions(b.opts.Clone()))
	require.Empty(t, delivered(t, sink, all))
}
