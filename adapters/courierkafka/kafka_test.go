package courierkafka_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"github.com/erfanmomeniii/courier/adapters/courierkafka"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kafka is a cluster in this process with the topics "orders" of one partition and
// "wide" of two, and a client of it.
type kafka struct {
	*kfake.Cluster
	dial                          func(ctx context.Context, network, address string) (net.Conn, error)
	seeds                         []string // addresses of brokers
	wire                          *cable   // of client, and of what connect makes
	client                        *kgo.Client
	session, heartbeat, rebalance time.Duration // of members of groups
}

// startKafka starts one broker with a network in memory, so that it works inside a
// bubble and outside.
func startKafka(tb testing.TB, opts ...kfake.Opt) *kafka {
	tb.Helper()
	network := new(kfake.VirtualNetwork)
	return startKafkaOn(tb, network.DialContext, append([]kfake.Opt{kfake.ListenFn(network.Listen), kfake.Ports(9092), kfake.NumBrokers(1)}, opts...)...)
}

// startKafkaOn starts brokers that clients reach by dial.
func startKafkaOn(tb testing.TB, dial func(ctx context.Context, network, address string) (net.Conn, error), opts ...kfake.Opt) *kafka {
	tb.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.SeedTopics(1, "orders"), kfake.SeedTopics(2, "wide")}, opts...)...)
	require.NoError(tb, err)
	tb.Cleanup(c.Close)
	k := &kafka{Cluster: c, dial: dial, seeds: c.ListenAddrs(), wire: new(cable), session: 6 * time.Second, heartbeat: time.Second, rebalance: 30 * time.Second}
	k.client = k.connect(tb)
	return k
}

// connect makes another client.
func (k *kafka) connect(tb testing.TB, opts ...kgo.Opt) *kgo.Client {
	tb.Helper()
	return k.connectBy(tb, k.wire, opts...)
}

func (k *kafka) connectBy(tb testing.TB, c *cable, opts ...kgo.Opt) *kgo.Client {
	tb.Helper()
	c.network = k.dial
	client, err := kgo.NewClient(append(append(courierkafka.ClientOptions(),
		kgo.SeedBrokers(k.seeds...), kgo.Dialer(c.dial)), opts...)...)
	require.NoError(tb, err)
	tb.Cleanup(client.Close)
	return client
}

// stored returns the records of a topic, those of each partition in their order.
func (k *kafka) stored(tb testing.TB, topic string) (all []*kgo.Record) {
	tb.Helper()
	reader, err := kgo.NewClient(kgo.SeedBrokers(k.seeds...), kgo.Dialer(k.dial),
		kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(10*time.Millisecond))
	require.NoError(tb, err)
	defer reader.Close()
	want := int64(0)
	for _, partition := range k.PartitionInfos(topic) {
		want += partition.HighWatermark
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for int64(len(all)) < want {
		fetches := reader.PollFetches(ctx)
		require.NoError(tb, fetches.Err0())
		all = append(all, fetches.Records()...)
	}
	return all
}

func (k *kafka) ids(tb testing.TB, topic string) []string {
	tb.Helper()
	var ids []string
	for _, r := range k.stored(tb, topic) {
		ids = append(ids, courierkafka.RecordID(r))
	}
	return ids
}

// onProduce has a function answer produce requests, until it says that it does not.
func (k *kafka) onProduce(answer func(*kmsg.ProduceRequest) (kmsg.Response, error, bool)) {
	k.ControlKey(int16(kmsg.Produce), func(request kmsg.Request) (kmsg.Response, error, bool) {
		k.KeepControl()
		return answer(request.(*kmsg.ProduceRequest))
	})
}

// order is an outbox row as the tests know it.
type order = courierkafka.Message

func message(o order) (*kgo.Record, error) { return o.Record() }

// orders returns rows of one key.
func orders(n int) []order {
	all := make([]order, n)
	for i := range all {
		all[i] = order{ID: fmt.Sprintf("id-%05d", i), Topic: "orders", Key: "key", Payload: []byte(strconv.Itoa(i))}
	}
	return all
}

func idsOf(all []order) []string {
	ids := make([]string, len(all))
	for i, o := range all {
		ids[i] = o.ID
	}
	return ids
}

// random returns bytes that no compression makes shorter.
func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// hold lets the answers to produce requests wait until release is called.
func (k *kafka) hold(tb testing.TB) (release func()) {
	until := make(chan struct{})
	release = sync.OnceFunc(func() { close(until) })
	tb.Cleanup(release)
	k.wire.answer(func(int) { <-until })
	return release
}

// admin is a client that knows nothing of topics before.
func (k *kafka) admin(t *testing.T) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(k.seeds...), kgo.Dialer(k.dial))
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

func (k *kafka) deleteTopic(t *testing.T, topic string) {
	t.Helper()
	request := kmsg.NewPtrDeleteTopicsRequest()
	request.TopicNames = []string{topic}
	asked := kmsg.NewDeleteTopicsRequestTopic()
	asked.Topic = &topic
	request.Topics = append(request.Topics, asked)
	answer, err := request.RequestWith(t.Context(), k.admin(t))
	require.NoError(t, err)
	require.Zero(t, answer.Topics[0].ErrorCode)
}

func (k *kafka) createTopic(t *testing.T, topic string) {
	t.Helper()
	request := kmsg.NewPtrCreateTopicsRequest()
	asked := kmsg.NewCreateTopicsRequestTopic()
	asked.Topic, asked.NumPartitions, asked.ReplicationFactor = topic, 1, 1
	request.Topics = append(request.Topics, asked)
	answer, err := request.RequestWith(t.Context(), k.admin(t))
	require.NoError(t, err)
	require.Zero(t, answer.Topics[0].ErrorCode)
}
