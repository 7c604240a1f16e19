package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/courierkafka"
	"github.com/twmb/franz-go/pkg/kgo"
)

// consume is all that there is of Courier in a member of the group: from the topic into a
// table, until ctx ends. A record that cannot be decoded goes to the topic of dead letters,
// and holds up no other.
func consume(ctx context.Context, t *received, brokers []string, topic, deadLetters, group string, session time.Duration, log *slog.Logger) error {
	// Who is killed holds the group up for the session timeout, or for the rebalance timeout if
	// that happens while it joins. The defaults are 45 and 60 seconds.
	client, err := kgo.NewClient(append(courierkafka.SourceOptions(), kgo.SeedBrokers(brokers...),
		kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.SessionTimeout(session), kgo.HeartbeatInterval(session/8),
		kgo.RebalanceTimeout(2*session),
		kgo.FetchMaxWait(200*time.Millisecond))...)
	if err != nil {
		return err
	}
	defer client.Close() // leaves the group: others take over at once
	producer, err := kgo.NewClient(append(courierkafka.ClientOptions(), kgo.SeedBrokers(brokers...))...)
	if err != nil {
		return err
	}
	defer producer.Close()
	dlq := courierkafka.NewDLQ(producer, deadLetters, func(r *kgo.Record) (*kgo.Record, error) {
		copied := *r
		return &copied, nil
	})
	applier, _ := courier.ResilientApplier(courier.NewDecodingApplier(t, decode),
		&courier.ResilientConfig[*kgo.Record]{
			AttemptTimeout: 10 * time.Second, // of one call of t
			Retry:          courier.RetryPolicy{MaxAttempts: 10},
			DLQ:            dlq,
		})
	source := courierkafka.NewSource(client, courierkafka.WithRevokeTimeout(session))
	t.lost = source.Lost
	return courier.NewStreamingCoordinator(source, applier, courier.WithStreamWorkers(4),
		courier.WithOrderKey(courierkafka.OrderKey), courier.WithLogger(log)).Start(ctx)
}

// order is what the value of a record says, and where it was read.
type order struct {
	ID        string `json:"id"`
	Customer  string `json:"customer"`
	Number    int    `json:"number"`
	partition int32
	offset    int64
}

func decode(r *kgo.Record) (o order, err error) {
	err = json.Unmarshal(r.Value, &o)
	o.partition, o.offset = r.Partition, r.Offset
	return o, err
}
