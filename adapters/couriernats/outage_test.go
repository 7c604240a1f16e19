package couriernats_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriernats"
	"github.com/erfanmomeniii/courier/courierttest/network"
)

// ackTimeout is for calls that are to have no ack: on a busy machine one that comes may
// take longer. bounded is how long a call may take that has no server to talk to.
const (
	ackTimeout = 200 * time.Millisecond
	bounded    = 20 * time.Second
)

func TestDisconnectedFailsAtOnce(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	sink := couriernats.NewSink(b.js, message)
	url := b.server.ClientURL()
	b.shutdown()
	b.await(t, false)
	for _, err := range []error{
		sink.Apply(t.Context(), orders(1)[0]),
		sink.ApplyBatch(t.Context(), orders(10)),
	} {
		requireClass(t, courier.ClassRetryable, err)
		require.ErrorIs(t, err, nats.ErrDisconnected)
		require.ErrorContains(t, err, url)
	}
	buffered, err := b.conn.Buffered()
	require.NoError(t, err)
	require.Zero(t, buffered, "nothing waits to be sent later")

	b.start(t)
	b.await(t, true)
	require.NoError(t, sink.ApplyBatch(t.Context(), orders(10)))
	require.Equal(t, idsOf(orders(10)), b.ids(t))
}

// A connection that broke and came back before a part was sent is no reason to give
// the part up.
func TestOutageBetweenParts(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	_, err := b.conn.Subscribe("played", func(m *nats.Msg) { _ = m.Respond([]byte(`{"stream":"ORDERS","seq":1}`)) })
	require.NoError(t, err)
	all := orders(10)
	sink := couriernats.NewSink(b.js, func(o order) (*nats.Msg, error) {
		if o.id == all[0].id { // the first part is nothing to wait for
			b.shutdown()
			b.await(t, false)
			b.start(t)
			b.await(t, true)
			return nil, errors.New("no message")
		}
		o.subject = "played"
		return o.msg()
	}, couriernats.WithMaxPending(1))
	byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
	require.Len(t, byIndex, 1)
	require.ErrorContains(t, byIndex[0], "no message")
}

func TestServerLostInMidBatch(t *testing.T) {
	t.Parallel()
	for name, window := range map[string]int{"in the first window": 1000, "in a later window": 30} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, jetstream.StreamConfig{})
			all := orders(300)
			down := false
			sink := couriernats.NewSink(b.js, func(o order) (*nats.Msg, error) {
				if o.id == all[100].id && !down {
					down = true
					b.shutdown()
				}
				return o.msg()
			}, patient, couriernats.WithMaxPending(window))

			start := time.Now()
			byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
			require.Less(t, time.Since(start), bounded)
			for index := 100; index < 300; index++ {
				require.Contains(t, byIndex, index, "no ack, not applied")
			}
			for _, err := range byIndex {
				if len(byIndex) < len(all) { // which the breaker takes for a success
					requireClass(t, courier.ClassNotAttempted, err)
					require.NotZero(t, retryAt(err))
				}
				require.NotEqual(t, courier.ClassPermanent, courier.Classify(t.Context(), err), "%v", err)
			}

			b.await(t, false)
			b.start(t)
			b.await(t, true)
			stored := b.ids(t)
			for index, o := range all {
				if _, failed := byIndex[index]; !failed {
					require.Contains(t, stored, o.id, "applied, so stored")
				}
			}
			require.NoError(t, couriernats.NewSink(b.js, message, patient).ApplyBatch(t.Context(), all))
			require.ElementsMatch(t, idsOf(all), b.ids(t), "each exactly once")
		})
	}
}

// A record that is stored and whose ack is lost is not applied, and stored
// once when it comes again.
func TestLostAck(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{NoAck: true})
	sink := couriernats.NewSink(b.js, message, couriernats.WithAckTimeout(ackTimeout))
	all := orders(3)
	byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
	require.Len(t, byIndex, 3)
	requireClass(t, courier.ClassRetryable, byIndex[0])
	require.Equal(t, idsOf(all), b.ids(t))

	_, err := b.js.UpdateStream(t.Context(), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	require.NoError(t, err)
	sink = couriernats.NewSink(b.js, message)
	require.NoError(t, sink.ApplyBatch(t.Context(), all))
	require.Equal(t, uint64(3), sink.Duplicates())
	require.Equal(t, idsOf(all), b.ids(t))
}

// An ack that comes when its message was given up is none of the messages that
// wait by then.
func TestLateAck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := orders(4)
		all[0].subject = "slow"
		var slow string
		p := &peer{answer: allBut("slow")}
		sink := couriernats.NewSink(p.connect(t), func(o order) (*nats.Msg, error) {
			switch o.id {
			case all[1].id:
				synctest.Wait() // the first one is there
				slow = p.lastReply()
			case all[2].id: // the first part was given up
				p.respond(slow, acked)
				synctest.Wait()
			}
			return o.msg()
		}, couriernats.WithMaxPending(2))
		byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
		require.Len(t, byIndex, 1)
		require.ErrorIs(t, byIndex[0], jetstream.ErrAsyncPublishTimeout)
	})
}

// What goes through the whole stack of decorators arrives, whenever the server
// comes back.
func TestRetryOutlastsAnOutage(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	all := orders(50)
	b.shutdown()
	b.await(t, false)
	attempts := 0
	sink := couriernats.NewSink(b.js, message)
	applier := courier.NewRetryableApplier[order](&counting{sink, func() {
		if attempts++; attempts == 3 {
			b.start(t)
			b.await(t, true)
		}
	}}, courier.RetryPolicy{MaxAttempts: 5, InitialDelay: time.Millisecond})
	batches, ok := applier.(courier.BatchApplier[order])
	require.True(t, ok)
	require.NoError(t, batches.ApplyBatch(t.Context(), all))
	require.ElementsMatch(t, idsOf(all), b.ids(t))
}

type counting struct {
	*couriernats.Sink[order]
	before func()
}

func (c *counting) Apply(ctx context.Context, record order) error {
	c.before()
	return c.Sink.Apply(ctx, record)
}

func (c *counting) ApplyBatch(ctx context.Context, records []order) error {
	c.before()
	return c.Sink.ApplyBatch(ctx, records)
}

// A user who may not subscribe to the inbox gets no ack, and is told of that.
func TestAnInboxThatIsDenied(t *testing.T) {
	t.Parallel()
	b := &broker{opts: &server.Options{
		Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true,
		Users: []*server.User{{Username: "any", Password: "any"}, {Username: "relay", Password: "relay", Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: []string{"orders.>"}},
			Subscribe: &server.SubjectPermission{Allow: []string{"relay.>"}},
		}}},
	}}
	b.start(t)
	t.Cleanup(b.shutdown)
	connect := func(opts ...nats.Option) jetstream.JetStream {
		conn, err := nats.Connect(b.server.ClientURL(), append(opts, nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))...)
		require.NoError(t, err)
		t.Cleanup(conn.Close)
		js, err := jetstream.New(conn)
		require.NoError(t, err)
		return js
	}
	_, err := connect(nats.UserInfo("any", "any")).CreateStream(t.Context(), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	require.NoError(t, err)

	denied := couriernats.NewSink(connect(nats.UserInfo("relay", "relay")), message)
	err = denied.Apply(t.Context(), orders(1)[0])
	requireClass(t, courier.ClassRetryable, err)
	require.ErrorIs(t, err, nats.ErrPermissionViolation)
	require.ErrorContains(t, err, "may not subscribe")
	granted := couriernats.NewSink(connect(nats.UserInfo("relay", "relay"), nats.CustomInboxPrefix("relay.inbox")), message)
	require.NoError(t, granted.Apply(t.Context(), orders(2)[1]))
}

// A user who may not publish to a subject is told so, before the ack timeout, and
// of that subject only.
func TestADeniedPublish(t *testing.T) {
	t.Parallel()
	users := func(denied ...string) []*server.User {
		return []*server.User{
			{Username: "relay", Password: "relay", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: denied}}},
			{Username: "admin", Password: "admin"},
		}
	}
	b := startBrokerWith(t, jetstream.StreamConfig{}, func(o *server.Options) { o.Users = users("secret.>") })
	conn, js := b.connect(t, nats.UserInfo("relay", "relay"))
	sink := couriernats.NewSink(js, message, couriernats.WithAckTimeout(time.Minute/2))
	all := orders(6)
	require.NoError(t, sink.ApplyBatch(t.Context(), all[:2]))
	reload := func(denied ...string) {
		b.opts.Users = users(denied...)
		require.NoError(t, b.server.ReloadOptions(b.opts.Clone()))
		require.Eventually(t, conn.IsConnected, 20*time.Second, time.Millisecond)
	}
	reload("orders.denied")
	for i := range all {
		if i%2 == 0 {
			all[i].subject = "orders.denied"
		}
	}
	start := time.Now()
	var byIndex map[int]error
	require.Eventually(t, func() bool { // the reload may cut the connection once more
		byIndex = failures(t, sink.ApplyBatch(t.Context(), all))
		return errors.Is(byIndex[0], nats.ErrPermissionViolation)
	}, 20*time.Second, 50*time.Millisecond)
	require.Less(t, time.Since(start), 15*time.Second)
	require.Len(t, byIndex, 3)
	for i := 0; i < len(all); i += 2 {
		requireClass(t, courier.ClassRetryable, byIndex[i])
		require.ErrorContains(t, byIndex[i], `Publish to "orders.denied"`)
		require.ErrorContains(t, byIndex[i], "may not publish")
	}
	reload()
	require.Empty(t, delivered(t, sink, all))
	require.Len(t, b.ids(t), 7, "one of them at both subjects")
}

// An outage that begins within a batch leaves the last records behind, and nothing
// is held against them. The next call, which gets nothing through, is for the breaker
// and the attempts to count.
func TestOutageWithinABatch(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]func(*testing.T, *broker){
		"the stream is deleted": func(t *testing.T, b *broker) {
			require.NoError(t, b.js.DeleteStream(t.Context(), "ORDERS"))
		},
		"the stream falls silent": func(t *testing.T, b *broker) {
			_, err := b.js.UpdateStream(t.Context(), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, NoAck: true})
			require.NoError(t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, jetstream.StreamConfig{})
			all := orders(20)
			for i := 10; i < 20; i++ {
				all[i].subject = "orders." + all[i].id // of which none was acked before
			}
			begun := false
			sink := couriernats.NewSink(b.js, func(o order) (*nats.Msg, error) {
				if o.id == all[10].id && !begun {
					begun = true
					begin(t, b)
				}
				return o.msg()
			}, couriernats.WithAckTimeout(time.Second), couriernats.WithMaxPending(10))
			byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
			require.Len(t, byIndex, 10)
			for index := 10; index < 20; index++ {
				requireClass(t, courier.ClassNotAttempted, byIndex[index])
				require.NotZero(t, retryAt(byIndex[index]))
			}
			for _, err := range failures(t, sink.ApplyBatch(t.Context(), all[10:])) {
				requireClass(t, courier.ClassRetryable, err)
			}
		})
	}
}

// An outage that ends within a batch is held against nobody whose subject another
// record got through to, and not against the last.
func TestOutageEndsWithinABatch(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	takes := func(subject string) {
		_, err := b.js.UpdateStream(t.Context(), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{subject}})
		require.NoError(t, err)
	}
	takes("elsewhere.>")
	all := orders(20)
	all[3].subject = "orders.other"
	sink := couriernats.NewSink(b.js, func(o order) (*nats.Msg, error) {
		if o.id == all[10].id {
			takes("orders.>")
		}
		return o.msg()
	}, couriernats.WithMaxPending(10))
	byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
	require.Len(t, byIndex, 10)
	for index := range 10 {
		want := courier.ClassNotAttempted
		if index == 3 {
			want = courier.ClassRetryable
		}
		requireClass(t, want, byIndex[index])
	}
}

// A record that is bad by itself says nothing of the destination, and yet a breaker
// takes its call for a success.
func TestBadRecordInAnOutage(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	sink := couriernats.NewSink(b.js, message)
	all := orders(4)
	all[2].subject = "$JS.API.STREAM.PURGE.ORDERS"
	require.NoError(t, b.js.DeleteStream(t.Context(), "ORDERS"))
	byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
	require.Len(t, byIndex, 4)
	requireClass(t, courier.ClassPermanent, byIndex[2])
	for _, index := range []int{0, 1, 3} {
		requireClass(t, courier.ClassNotAttempted, byIndex[index])
		require.NotZero(t, retryAt(byIndex[index]))
	}
	for _, err := range failures(t, sink.ApplyBatch(t.Context(), all[:2])) {
		requireClass(t, courier.ClassRetryable, err)
	}
}

// A record whose subject has no stream, or whose stream does not answer, is at fault
// itself where later ones get through.
func TestBadSubjectWithinABatch(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	silent(t, b, "silence", func() {})
	sink := couriernats.NewSink(b.js, message, couriernats.WithAckTimeout(time.Second))
	all := orders(6)
	all[1].subject, all[3].subject, all[5].subject = "nowhere", "silence", "nowhere"
	byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
	require.Len(t, byIndex, 3)
	requireClass(t, courier.ClassRetryable, byIndex[1])
	requireClass(t, courier.ClassRetryable, byIndex[3])
	requireClass(t, courier.ClassNotAttempted, byIndex[5]) // nothing tells it from an outage
	requireClass(t, courier.ClassRetryable, sink.Apply(t.Context(), all[5]))
}

// A connection that died in silence is found dead by the sink, minutes before the
// client's own pings would find out, and thrown away.
func TestSilentConnection(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	n := b.network(t)
	conn, err := nats.Connect(n.Addr().String(), nats.MaxReconnects(-1), nats.ReconnectWait(5*time.Millisecond))
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	sink := couriernats.NewSink(js, message, couriernats.WithAckTimeout(ackTimeout), couriernats.WithPatience(3*ackTimeout/2))
	all := orders(20)
	require.NoError(t, couriernats.NewSink(js, message).ApplyBatch(t.Context(), all[:5]))

	n.Swallow(network.BothWays)
	start := time.Now()
	for conn.IsConnected() {
		err = sink.ApplyBatch(t.Context(), all)
		require.Error(t, err)
		require.Less(t, time.Since(start), bounded)
	}
	require.Greater(t, time.Since(start), ackTimeout, "one silence is not enough")
	require.ErrorIs(t, failures(t, err)[0], nats.ErrDisconnected)
	require.ErrorContains(t, err, "not even the answer to a ping")

	n.Swallow(0)
	n.Cut() // also what the client has dialled meanwhile
	require.Empty(t, delivered(t, sink, all))
	require.ElementsMatch(t, idsOf(all), b.ids(t))
}

// A network that takes nothing blocks a write within the client, for as long as the
// connection says, and not for ever.
func TestNetworkTakesNothing(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{})
	n := b.network(t)
	conn, err := nats.Connect(n.Addr().String(), nats.MaxReconnects(-1), nats.ReconnectWait(5*time.Millisecond), nats.FlusherTimeout(300*time.Millisecond),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	sink := couriernats.NewSink(js, message, couriernats.WithAckTimeout(time.Second), couriernats.WithMaxPendingBytes(32<<20))
	all := orders(30)
	require.NoError(t, couriernats.NewSink(js, message).ApplyBatch(t.Context(), all[:5]))
	for i := range all[5:] {
		all[5+i].payload = make([]byte, 1<<20-100) // more than the buffers on the way
	}
	n.Hold(true)
	start := time.Now()
	err = sink.ApplyBatch(t.Context(), all[5:])
	require.Less(t, time.Since(start), bounded)
	for _, err := range failures(t, err) {
		require.NotEqual(t, courier.ClassPermanent, courier.Classify(t.Context(), err), "%v", err)
	}
	n.Hold(false)
	require.Empty(t, delivered(t, sink, all))
	require.ElementsMatch(t, idsOf(all), b.ids(t))
}

// A server that answers pings is not left because of a stream that does not ack.
func TestSilentStreamKeepsTheConnection(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{NoAck: true})
	sink := couriernats.NewSink(b.js, message, couriernats.WithAckTimeout(2*time.Second), couriernats.WithPatience(time.Nanosecond))
	for range 2 {
		require.ErrorIs(t, failures(t, sink.ApplyBatch(t.Context(), orders(3)))[0], jetstream.ErrAsyncPublishTimeout)
	}
	require.Zero(t, b.conn.Stats().Reconnects)
}
