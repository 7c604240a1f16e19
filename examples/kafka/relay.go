package main

import (
	"context"
	"log/slog"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/courierkafka"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/twmb/franz-go/pkg/kgo"
)

// relay is all that there is of Courier in the relay: from the outbox to the topic that
// each row names, until ctx ends. A row that can never be delivered goes to the topic of
// dead letters.
func relay(ctx context.Context, outbox *couriersql.Outbox, brokers []string, deadLetters string, batch int, log *slog.Logger) error {
	client, err := kgo.NewClient(append(courierkafka.ClientOptions(), kgo.SeedBrokers(brokers...),
		kgo.ProducerBatchMaxBytesFn(func(topic string) int32 {
			if topic == deadLetters {
				return largestLetter // takes a row too large for its own topic
			}
			return 1_000_012 // the default, which other topics take
		}))...)
	if err != nil {
		return err
	}
	defer client.Close()
	sink := courierkafka.NewSink(client, func(m couriersql.Message) (*kgo.Record, error) {
		return courierkafka.Message(m).Record()
	})
	dlq := courierkafka.NewDLQ(client, deadLetters, func(r couriersql.Row) (*kgo.Record, error) {
		if m, err := r.Message(); err == nil {
			if record, err := courierkafka.Message(m).Record(); err == nil {
				return record, nil
			}
		}
		// The letter of a row of which no record can be made has its columns as they are.
		raw := map[string]string{"raw-headers": r.Headers, "raw-trace": r.Trace}
		return courierkafka.Message{ID: r.ID, Topic: r.Topic, Key: r.Key, Payload: r.Payload, Headers: raw}.Record()
	})
	applier, _ := courier.ResilientApplier(courier.NewDecodingApplier(sink, couriersql.Row.Message),
		&courier.ResilientConfig[couriersql.Row]{Retry: courier.RetryPolicy{MaxAttempts: 10}, DLQ: dlq})
	return courier.NewPollingCoordinator(outbox.Source(), applier,
		courier.WithOrderKey(func(r couriersql.Row) string { return r.Key }), // the Kafka key; no key, no order
		courier.WithBatchSize(batch), courier.WithFastPolling(), courier.WithLogger(log)).Start(ctx)
}
