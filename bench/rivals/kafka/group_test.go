package kafka

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/courierkafka"
	"github.com/erfanmomeniii/courier/bench/internal/meter"
)

const (
	consumed = 12_000
	workers  = 8
	keys     = 400
)

var errPoison = errors.New("poison")

// handle takes a millisecond. One in a hundred is poison, where that is wanted.
func handle(r *kgo.Record, poison bool) error {
	time.Sleep(time.Millisecond)
	if poison && len(r.Value) > 0 && r.Value[0] == 'p' {
		return errPoison
	}
	return nil
}

// measureGroup consumes a full topic once an operation.
func measureGroup(b *testing.B, consume func(address string, handled func() bool)) {
	for range b.N {
		b.StopTimer()
		address := startBroker(b)
		client := newClient(b, address)
		for n := range consumed {
			value := "order"
			if n%100 == 50 {
				value = "poison"
			}
			client.Produce(context.Background(), &kgo.Record{Topic: "orders", Key: fmt.Append(nil, "customer-", n%keys), Value: []byte(value)}, nil)
		}
		require.NoError(b, client.Flush(context.Background()))
		client.Close()
		var done atomic.Int64
		b.StartTimer()
		consume(address, func() bool { return done.Add(1) == consumed })
		b.StopTimer()
	}
	meter.Time(b, consumed)
}

// The loop by hand: a poll, eight goroutines by key, one commit when all of the poll is
// done. What one waits for, all do.
func BenchmarkKafkaGroup_HandWritten(b *testing.B) {
	measureGroup(b, func(address string, handled func() bool) {
		client := newClient(b, address, kgo.ConsumerGroup("g"), kgo.ConsumeTopics("orders"), kgo.DisableAutoCommit())
		defer client.Close()
		for over := false; !over; {
			records := client.PollRecords(context.Background(), batchSize).Records()
			over = byKey(records, handled)
			if len(records) > 0 {
				require.NoError(b, client.CommitRecords(context.Background(), records...))
			}
		}
	})
}

func byKey(records []*kgo.Record, handled func() bool) (over bool) {
	var lanes [workers][]*kgo.Record
	for _, r := range records {
		h := fnv.New32a()
		_, _ = h.Write(r.Key)
		lane := h.Sum32() % workers
		lanes[lane] = append(lanes[lane], r)
	}
	var all sync.WaitGroup
	var last atomic.Bool
	for _, lane := range lanes {
		all.Go(func() {
			for _, r := range lane {
				_ = handle(r, false)
				if handled() {
					last.Store(true)
				}
			}
		})
	}
	all.Wait()
	return last.Load()
}

// The fastest loop by hand: eight goroutines with a queue each, that mark what they have
// done for the client to commit. A crash may lose records: the mark of a later offset covers
// earlier ones that other goroutines have in work.
func BenchmarkKafkaGroup_HandWrittenUnsafe(b *testing.B) {
	measureGroup(b, func(address string, handled func() bool) {
		client := newClient(b, address, kgo.ConsumerGroup("g"), kgo.ConsumeTopics("orders"), kgo.AutoCommitMarks())
		defer client.Close()
		ctx, stop := context.WithCancel(context.Background())
		defer stop()
		var queues [workers]chan *kgo.Record
		var all sync.WaitGroup
		for i := range queues {
			queues[i] = make(chan *kgo.Record, batchSize)
			all.Go(func() {
				for r := range queues[i] {
					_ = handle(r, false)
					client.MarkCommitRecords(r)
					if handled() {
						stop()
					}
				}
			})
		}
		for ctx.Err() == nil {
			client.PollRecords(ctx, batchSize).EachRecord(func(r *kgo.Record) {
				h := fnv.New32a()
				_, _ = h.Write(r.Key)
				queues[h.Sum32()%workers] <- r
			})
		}
		for _, q := range queues {
			close(q)
		}
		all.Wait()
	})
}

func consumeByCourier(b *testing.B, poison bool) {
	measureGroup(b, func(address string, handled func() bool) {
		client := newClient(b, address, append(courierkafka.SourceOptions(), kgo.ConsumerGroup("g"), kgo.ConsumeTopics("orders"))...)
		defer client.Close()
		producer := newClient(b, address, courierkafka.ClientOptions()...)
		defer producer.Close()
		ctx, stop := context.WithCancel(context.Background())
		defer stop()
		dlq := courierkafka.NewDLQ(producer, "orders.dead", func(r *kgo.Record) (*kgo.Record, error) {
			return &kgo.Record{Key: r.Key, Value: r.Value}, nil
		})
		process := courier.ProcessFunc(func(_ context.Context, r *kgo.Record) error {
			err := handle(r, poison)
			if handled() {
				stop()
			}
			if err != nil {
				return courier.Permanent(err)
			}
			return nil
		})
		applier, _ := courier.ResilientApplier(process, &courier.ResilientConfig[*kgo.Record]{DLQ: dlq})
		require.NoError(b, courier.NewStreamingCoordinator(courierkafka.NewSource(client), applier, courier.WithStreamWorkers(workers),
			courier.WithOrderKey(courierkafka.OrderKey), courier.WithBatchSize(batchSize),
			courier.WithLogger(slog.New(slog.NewTextHandler(io.Discard, nil)))).Start(ctx))
	})
}

func BenchmarkKafkaGroup_Courier(b *testing.B) { consumeByCourier(b, false) }

func BenchmarkKafkaGroup_CourierPoison(b *testing.B) { consumeByCourier(b, true) }
