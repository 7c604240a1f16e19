package courierkafka_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/courierkafka"
)

// A partition, a topic or a broker that is down holds up its own records, though these are
// the oldest, and no others: in no shape of a relay. It costs no attempt, and each record
// is stored once when it is well again.
func TestAPartIsDown(t *testing.T) {
	shapes := map[string]func(box *outbox, sink *courierkafka.Sink[order]) running{
		"polling": func(box *outbox, sink *courierkafka.Sink[order]) running { return box.polling(sink) },
		"polling, one by one": func(box *outbox, sink *courierkafka.Sink[order]) running {
			return box.polling(courier.ProcessFunc(sink.Apply))
		},
		"polling, keyed": func(box *outbox, sink *courierkafka.Sink[order]) running { return box.polling(sink, keyed) },
		"polling, workers": func(box *outbox, sink *courierkafka.Sink[order]) running {
			return box.polling(sink, courier.WithWorkers(4))
		},
		"streaming": func(box *outbox, sink *courierkafka.Sink[order]) running { return box.streaming(sink) },
		"streaming, one by one": func(box *outbox, sink *courierkafka.Sink[order]) running {
			return box.streaming(courier.ProcessFunc(sink.Apply))
		},
		"streaming, keyed": func(box *outbox, sink *courierkafka.Sink[order]) running { return box.streaming(sink, keyed) },
		"streaming, workers": func(box *outbox, sink *courierkafka.Sink[order]) running {
			return box.streaming(sink, courier.WithStreamWorkers(4))
		},
	}
	parts := map[string]func(k *kafka, b *brokenBroker) (mend func()){
		"a partition without replicas": func(k *kafka, _ *brokenBroker) func() {
			return k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "wide", Partitions: []int32{1}, Err: kerr.NotEnoughReplicas, Count: -1}).Remove
		},
		"a topic without leaders": func(k *kafka, _ *brokenBroker) func() {
			return k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: "orders", Err: kerr.LeaderNotAvailable, Count: -1}).Remove
		},
		"a broker that is silent": func(_ *kafka, b *brokenBroker) func() { return b.silence() },
		"a broker that refuses":   func(_ *kafka, b *brokenBroker) func() { return b.refuse() },
	}
	for part, breaks := range parts {
		for shape, relay := range shapes {
			if raceEnabled && !strings.HasSuffix(shape, "workers") { // all takes ten times as long there
				continue
			}
			t.Run(part+", "+shape, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					k := startKafka(t, kfake.NumBrokers(2), kfake.Ports(9092, 9093))
					for topic, node := range map[string]int32{"wide": 0, "orders": 1} {
						require.NoError(t, k.MoveTopicPartition(topic, 0, node))
					}
					require.NoError(t, k.MoveTopicPartition("wide", 1, 1))
					well, ill := keysOf(t, k)
					mend := breaks(k, &brokenBroker{k: k})
					var all []order
					for i := range 400 {
						o := order{ID: fmt.Sprintf("id-%03d", i), Topic: "wide", Key: well}
						if i < 50 {
							if o.Key = ill; strings.Contains(part, "topic") {
								o.Topic = "orders"
							}
						}
						all = append(all, o)
					}
					box := newOutbox(all)
					r := relay(box, courierkafka.NewSink(k.connect(t), box.message))
					defer r.stop(t)
					time.Sleep(time.Minute)
					require.EqualValues(t, 350, k.PartitionInfo("wide", 0).HighWatermark, "the others go on")
					for i := range 20 {
						box.add(order{ID: fmt.Sprintf("id-%03d", 400+i), Topic: "wide", Key: well})
						time.Sleep(time.Second)
					}
					require.GreaterOrEqual(t, k.PartitionInfo("wide", 0).HighWatermark, int64(368), "within two seconds")
					time.Sleep(30 * time.Second)
					mend()
					time.Sleep(20 * time.Second)
					require.Zero(t, box.left())
					letters, err := r.dlq.Count(t.Context())
					require.NoError(t, err)
					require.Zero(t, letters)
					ids := slices.Concat(k.ids(t, "wide"), k.ids(t, "orders"))
					require.Len(t, ids, 420)
					slices.Sort(ids)
					require.Len(t, slices.Compact(ids), 420, "each once")
				})
			})
		}
	}
}

// running is a coordinator that runs.
type running struct {
	dlq  courier.DLQ[order]
	stop func(t *testing.T)
}

var keyed = courier.WithOrderKey(func(o order) string { return o.ID })

func (o *outbox) run(applier courier.Applier[order], start func(courier.Applier[order]) interface{ Start(context.Context) error }) running {
	resilient, dlq := courier.ResilientApplier(applier, nil)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	coordinator := start(resilient)
	go func() { ended <- coordinator.Start(ctx) }()
	return running{dlq, func(t *testing.T) {
		cancel()
		require.NoError(t, <-ended)
	}}
}

func (o *outbox) polling(applier courier.Applier[order], opts ...courier.Option) running {
	return o.run(applier, func(applier courier.Applier[order]) interface{ Start(context.Context) error } {
		return courier.NewPollingCoordinator(courier.BatchSourceFunc[order]{FetchFunc: o.fetch, MarkFunc: o.mark}, applier,
			append(opts, courier.WithFastPolling(), courier.WithIdentity(func(r order) string { return r.ID }), courier.WithLogger(slog.New(slog.DiscardHandler)))...)
	})
}

// streaming hands all rows out once.
func (o *outbox) streaming(applier courier.Applier[order], opts ...courier.Option) running {
	o.rows = make(chan order, 1000)
	for _, row := range o.pending {
		o.rows <- row
	}
	return o.run(applier, func(applier courier.Applier[order]) interface{ Start(context.Context) error } {
		return courier.NewStreamingCoordinator(courier.NewChannelSource(o.rows, o.mark), applier,
			append(opts, courier.WithBatchSize(100), courier.WithLogger(slog.New(slog.DiscardHandler)))...)
	})
}

// left is how many rows are pending.
func (o *outbox) left() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.pending)
}

// add writes another row.
func (o *outbox) add(row order) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pending = append(o.pending, row)
	if o.rows != nil {
		o.rows <- row
	}
}

// brokenBroker is the second one of two.
type brokenBroker struct {
	k    *kafka
	down atomic.Bool
}

func (b *brokenBroker) silence() (mend func()) {
	until := make(chan struct{})
	b.k.wire.answer(func(node int) {
		if node == 1 {
			<-until
		}
	})
	return sync.OnceFunc(func() { close(until) })
}

func (b *brokenBroker) refuse() (mend func()) {
	b.down.Store(true)
	dial := b.k.dial
	b.k.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if b.down.Load() && strings.HasSuffix(address, ":9093") {
			return nil, &net.OpError{Op: "dial", Err: errors.New("connection refused")}
		}
		return dial(ctx, network, address)
	}
	return func() { b.down.Store(false) }
}
