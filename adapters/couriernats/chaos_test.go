package couriernats_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriernats"
	"github.com/erfanmomeniii/courier/courierttest/network"
)

var (
	chaosTime = flag.Duration("chaos.time", 10*time.Second, "TestChaos: how long, and each cause once at least")
	chaosSeed = flag.Uint64("chaos.seed", 1, "TestChaos: of the order and the length of the causes")
)

// recovery is how soon records must be delivered again after the end of a cause.
var recovery = 10 * time.Second

// TestChaos relays without a rest while the server restarts, fills up, changes its
// limits and users, and the network loses, holds back and cuts. No committed record
// may be lost, none may be sent again once it was marked, none but the bad ones may
// be parked, and after each cause delivery goes on within ten seconds.
func TestChaos(t *testing.T) {
	if *chaosTime < time.Minute { // a slice of it, beside the other tests of a busy machine
		recovery = 30 * time.Second
	}
	t.Parallel()
	for name, options := range map[string][]nats.Option{
		"the client's defaults": {nats.MaxReconnects(5), nats.ReconnectWait(50 * time.Millisecond)},
		"ConnOptions":           append(couriernats.ConnOptions(), nats.ReconnectWait(50*time.Millisecond)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startChaos(t, options)
			c.run(t)
		})
	}
}

// ledger is a durable outbox: what was committed to it is pending until it is marked.
type ledger struct {
	mu        sync.Mutex
	next      int
	pending   []order
	marked    map[string]bool
	markedOne chan struct{} // is closed by a mark, and made anew
	again     []string      // published after they were marked
	failed    map[string][]string
}

// noting keeps the failures of each record, to tell how one came to be parked.
type noting struct {
	*couriernats.Sink[order]
	ledger *ledger
}

func (n *noting) Apply(ctx context.Context, o order) error {
	err := n.Sink.Apply(ctx, o)
	n.note("alone", []order{o}, err)
	return err
}

func (n *noting) ApplyBatch(ctx context.Context, all []order) error {
	err := n.Sink.ApplyBatch(ctx, all)
	n.note(fmt.Sprintf("of %d", len(all)), all, err)
	return err
}

func (n *noting) note(how string, all []order, err error) {
	if err == nil {
		return
	}
	n.ledger.mu.Lock()
	defer n.ledger.mu.Unlock()
	note := func(o order, err error) {
		list := n.ledger.failed[o.id]
		n.ledger.failed[o.id] = append(list, fmt.Sprintf("%s %s, %v: %v", time.Now().Format("05.000"), how, courier.Classify(context.Background(), err), err))
	}
	var listed *courier.BatchError
	if !errors.As(err, &listed) {
		for _, o := range all {
			note(o, err)
		}
		return
	}
	for _, f := range listed.Failures {
		note(all[f.Index], f.Err)
	}
}

func (l *ledger) commit(o order) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	o.id = fmt.Sprintf("%s-%07d", o.id, l.next)
	l.pending = append(l.pending, o)
}

func (l *ledger) fetch(context.Context) ([]order, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.pending[:min(len(l.pending), 100)]), nil
}

func (l *ledger) mark(_ context.Context, list []order) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range list {
		l.marked[o.id] = true
		delete(l.failed, o.id)
	}
	l.pending = slices.DeleteFunc(l.pending, func(o order) bool { return l.marked[o.id] })
	close(l.markedOne)
	l.markedOne = make(chan struct{})
	return nil
}

func (l *ledger) msg(o order) (*nats.Msg, error) {
	l.mu.Lock()
	if l.marked[o.id] {
		l.again = append(l.again, o.id)
	}
	l.mu.Unlock()
	return o.msg()
}

// await waits until all that is pending now is marked.
func (l *ledger) await(limit time.Duration) (took time.Duration, ok bool) {
	start := time.Now()
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	l.mu.Lock()
	last := l.next
	l.mu.Unlock()
	for {
		l.mu.Lock()
		done := len(l.pending) == 0 || !slices.ContainsFunc(l.pending, func(o order) bool { return number(o.id) <= last })
		changed := l.markedOne
		l.mu.Unlock()
		if done {
			return time.Since(start), true
		}
		select {
		case <-changed:
		case <-timeout.C:
			return time.Since(start), false
		}
	}
}

func (l *ledger) counts() (committed, pending int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next, len(l.pending)
}

func number(id string) (n int) {
	_, _ = fmt.Sscanf(id[strings.LastIndexByte(id, '-')+1:], "%d", &n)
	return n
}

type chaos struct {
	*broker
	net    *network.Network
	ledger *ledger
	relay  *courier.PollingCoordinator[order]
	dlq    courier.DLQ[order]
	sink   *couriernats.Sink[order]
	random *rand.Rand
	read   uint64 // messages of the stream
	stored map[string]bool
	worst  map[string]time.Duration
	times  map[string]int
}

func chaosUsers(denied ...string) []*server.User {
	relay := &server.User{Username: "relay", Password: "secret"}
	if denied != nil {
		relay.Permissions = &server.Permissions{Publish: &server.SubjectPermission{Deny: denied}}
	}
	return []*server.User{relay, {Username: "admin", Password: "secret"}}
}

func startChaos(t *testing.T, options []nats.Option) *chaos {
	b := startBrokerWith(t, jetstream.StreamConfig{}, func(o *server.Options) { o.Users = chaosUsers() })
	c := &chaos{
		broker: b, net: b.network(t),
		ledger: &ledger{marked: make(map[string]bool), markedOne: make(chan struct{}), failed: make(map[string][]string)},
		random: rand.New(rand.NewPCG(*chaosSeed, 0)),
		stored: make(map[string]bool), worst: make(map[string]time.Duration), times: make(map[string]int),
	}
	c.update(t, func(*jetstream.StreamConfig) {})
	conn, err := nats.Connect(c.net.Addr().String(), append(options, nats.UserInfo("relay", "secret"), nats.Timeout(time.Second),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))...)
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	c.sink = couriernats.NewSink(js, c.ledger.msg, couriernats.WithAckTimeout(2*time.Second), couriernats.WithMaxPending(40))
	t.Cleanup(c.sink.Close)
	var applier courier.Applier[order]
	applier, c.dlq = courier.ResilientApplier[order](&noting{c.sink, c.ledger}, &courier.ResilientConfig[order]{
		DLQ:     &courier.MemoryDLQ[order]{Capacity: 100_000, Identity: func(o order) string { return o.id }},
		Retry:   courier.RetryPolicy{InitialDelay: 20 * time.Millisecond},
		Breaker: courier.BreakerPolicy{OpenFor: 200 * time.Millisecond, MaxOpenFor: 2 * time.Second},
		Parking: courier.DLQPolicy[order]{MaxParkRate: courier.AnyParkRate, OnPark: func(_ context.Context, letter courier.DeadLetter[order]) {
			if id := letter.Record.id; !strings.HasPrefix(id, "bad-") {
				c.ledger.mu.Lock()
				defer c.ledger.mu.Unlock()
				t.Errorf("seed %d: a healthy record is parked: %s: %v\n%s", *chaosSeed, id, letter.Error, strings.Join(c.ledger.failed[id], "\n"))
			}
		}},
	})
	source := courier.BatchSourceFunc[order]{FetchFunc: c.ledger.fetch, MarkFunc: c.ledger.mark}
	c.relay = courier.NewPollingCoordinator(source, applier, courier.WithInterval(20*time.Millisecond))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.relay.Start(ctx); err != nil {
			t.Errorf("the relay ended: %v", err)
		}
	})
	wg.Go(func() { c.write(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return c
}

// write commits records without a rest, some of them bad.
func (c *chaos) write(ctx context.Context) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for range 3 {
			c.ledger.commit(order{id: "good", subject: "orders.placed", payload: []byte("a payload")})
		}
		c.ledger.commit(order{id: "good", subject: "orders.shipped", payload: make([]byte, 800)})
		switch n % 500 { // each every five seconds
		case 50:
			c.ledger.commit(order{id: "bad-long", subject: "orders." + strings.Repeat("x", 3000)})
		case 150:
			c.ledger.commit(order{id: "bad-order", subject: "$JS.API.STREAM.PURGE.ORDERS"})
		case 250:
			c.ledger.commit(order{id: "bad-size", subject: "orders.placed", payload: make([]byte, 2<<20)})
		case 350:
			c.ledger.commit(order{id: "bad-header", subject: "orders.placed", headers: map[string]string{"A": "b\r\nNats-Rollup: all"}})
		}
	}
}

// update changes the stream's configuration.
func (c *chaos) update(t *testing.T, change func(*jetstream.StreamConfig)) {
	config := jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, Duplicates: 30 * time.Minute, Storage: jetstream.FileStorage}
	change(&config)
	require.Eventually(t, func() bool {
		_, err := c.js.UpdateStream(t.Context(), config)
		return err == nil
	}, recovery, 20*time.Millisecond)
}

func (c *chaos) reload(t *testing.T, change func(*server.Options)) {
	change(c.opts)
	require.NoError(t, c.server.ReloadOptions(c.opts.Clone()))
}

// causes are what goes wrong for a while, each with its end.
func (c *chaos) causes(t *testing.T) map[string]struct{ begin, end func() } {
	nothing := func() {}
	stream := func(change func(*jetstream.StreamConfig)) func() {
		return func() { c.update(t, change) }
	}
	whole := stream(func(*jetstream.StreamConfig) {})
	reload := func(change func(*server.Options)) func() {
		return func() { c.reload(t, change) }
	}
	return map[string]struct{ begin, end func() }{
		"server restarts":        {c.shutdown, func() { c.start(t) }},
		"stream is full":         {c.fill(t), whole},
		"stream takes no orders": {stream(func(s *jetstream.StreamConfig) { s.Subjects = []string{"other"} }), whole},
		"stream does not ack":    {stream(func(s *jetstream.StreamConfig) { s.NoAck = true }), whole},
		"payload limit lowered": {func() {
			c.reload(t, func(o *server.Options) { o.MaxPayload = 2000 })
			c.ledger.commit(order{id: "bad-now", subject: "orders.placed", payload: make([]byte, 5000)})
		}, reload(func(o *server.Options) { o.MaxPayload = 1 << 20 })},
		"user is gone":          {reload(func(o *server.Options) { o.Users = chaosUsers()[1:] }), reload(func(o *server.Options) { o.Users = chaosUsers() })},
		"publish is denied":     {reload(func(o *server.Options) { o.Users = chaosUsers("orders.>") }), reload(func(o *server.Options) { o.Users = chaosUsers() })},
		"network cuts":          {c.net.Cut, nothing},
		"network holds back":    {func() { c.net.Hold(true) }, func() { c.net.Hold(false) }},
		"network swallows":      {func() { c.net.Swallow(network.BothWays) }, func() { c.net.Swallow(0) }},
		"server is unreachable": {func() { c.net.Swallow(network.BothWays); c.net.Cut() }, func() { c.net.Swallow(0); c.net.Cut() }},
	}
}

// stream asks the server for the stream, which it may have to connect to again.
func (c *chaos) stream(t *testing.T) (stream jetstream.Stream) {
	t.Helper()
	require.Eventually(t, func() bool {
		var err error
		stream, err = c.js.Stream(t.Context(), "ORDERS")
		return err == nil
	}, recovery, 20*time.Millisecond)
	return stream
}

// fill leaves room for less than a batch.
func (c *chaos) fill(t *testing.T) func() {
	return func() {
		room := int64(c.stream(t).CachedInfo().State.Msgs) + 30
		c.update(t, func(s *jetstream.StreamConfig) { s.MaxMsgs, s.Discard = room, jetstream.DiscardNew })
	}
}

func (c *chaos) run(t *testing.T) {
	causes := c.causes(t)
	names := make([]string, 0, len(causes))
	for name := range causes {
		names = append(names, name)
	}
	slices.Sort(names)
	for start, round := time.Now(), 0; round == 0 || time.Since(start) < *chaosTime; round++ {
		c.random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		for _, name := range names {
			if round > 0 && time.Since(start) >= *chaosTime {
				break
			}
			causes[name].begin()
			lasts := 200*time.Millisecond + time.Duration(c.random.IntN(500))*time.Millisecond
			if round > 0 && c.random.IntN(4) == 0 {
				lasts *= 10
			}
			<-time.NewTimer(lasts).C
			causes[name].end()
			took, ok := c.ledger.await(recovery)
			if t.Failed() {
				t.Fatalf("after %q (%v)", name, lasts)
			}
			if !ok {
				_, pending := c.ledger.counts()
				t.Fatalf("seed %d, round %d: %v after the end of %q (%v): %d are pending; Ready: %v", *chaosSeed, round, took, name, lasts, pending, c.relay.Ready())
			}
			c.times[name]++
			c.worst[name] = max(c.worst[name], took)
		}
		c.verify(t, round)
	}
	for _, name := range slices.Sorted(slices.Values(names)) {
		t.Logf("%-24s %4d times, all delivered after %v at most", name, c.times[name], c.worst[name].Round(10*time.Millisecond))
	}
	committed, _ := c.ledger.counts()
	t.Logf("%d records, %d acked as stored before", committed, c.sink.Duplicates())
}

// verify compares what was committed with what is stored and parked.
func (c *chaos) verify(t *testing.T, round int) {
	t.Helper()
	stream := c.stream(t)
	c.ledger.mu.Lock()
	marked, again := maps.Clone(c.ledger.marked), slices.Clone(c.ledger.again)
	c.ledger.mu.Unlock()
	require.Empty(t, again, "published after they were marked")
	info, err := stream.Info(t.Context())
	require.NoError(t, err)
	last := info.State.LastSeq
	consumer, err := stream.OrderedConsumer(t.Context(), jetstream.OrderedConsumerConfig{HeadersOnly: true, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: c.read + 1})
	require.NoError(t, err)
	messages, err := consumer.Messages()
	require.NoError(t, err)
	defer messages.Stop()
	for c.read < last {
		m, err := messages.Next(jetstream.NextMaxWait(recovery))
		require.NoError(t, err)
		about, err := m.Metadata()
		require.NoError(t, err)
		c.read = about.Sequence.Stream
		id := couriernats.RecordID(m.Headers())
		require.False(t, c.stored[id], "seed %d, round %d: %s is stored twice", *chaosSeed, round, id)
		c.stored[id] = true
	}
	require.NoError(t, stream.Purge(t.Context(), jetstream.WithPurgeSequence(last)))

	parked := make(map[string]bool)
	letters, err := c.dlq.Receive(t.Context(), 100_000)
	require.NoError(t, err)
	for _, letter := range letters {
		parked[letter.Record.id] = true
	}
	for id := range marked {
		if !parked[id] && !c.stored[id] {
			t.Fatalf("seed %d, round %d: LOST: %s was marked, and is neither stored nor parked", *chaosSeed, round, id)
		}
	}
}
