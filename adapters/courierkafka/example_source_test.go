package courierkafka_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/courierkafka"
)

func ExampleNewSource() {
	brokers, stop := localCluster("orders", "orders.dead")
	defer stop()
	produce(brokers, "orders", "acme: 7", "acme: 8")

	client, err := kgo.NewClient(append(courierkafka.SourceOptions(),
		kgo.SeedBrokers(brokers...), kgo.ConsumerGroup("billing"), kgo.ConsumeTopics("orders"))...)
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	bill := courier.ProcessFunc(func(_ context.Context, r *kgo.Record) error {
		fmt.Println(string(r.Value))
		if r.Offset == 1 {
			cancel()
		}
		return nil
	})
	producer, err := kgo.NewClient(append(courierkafka.ClientOptions(), kgo.SeedBrokers(brokers...))...)
	if err != nil {
		log.Fatal(err)
	}
	defer producer.Close()
	dlq := courierkafka.NewDLQ(producer, "orders.dead", func(r *kgo.Record) (*kgo.Record, error) {
		copied := *r
		return &copied, nil
	})
	applier, _ := courier.ResilientApplier(bill, &courier.ResilientConfig[*kgo.Record]{
		AttemptTimeout: 10 * time.Second, // of one call of bill
		Retry:          courier.RetryPolicy{MaxAttempts: 10},
		DLQ:            dlq,
	})
	coordinator := courier.NewStreamingCoordinator(courierkafka.NewSource(client), applier,
		courier.WithStreamWorkers(8), courier.WithOrderKey(courierkafka.OrderKey))
	err = coordinator.Start(ctx) // until ctx ends
	client.Close()               // leaves the group: other members take over at once
	fmt.Println(err)
	// Output:
	// acme: 7
	// acme: 8
	// <nil>
}

// produce stores values of one key.
func produce(brokers []string, topic string, values ...string) {
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	for _, value := range values {
		r := &kgo.Record{Topic: topic, Key: []byte("acme"), Value: []byte(value)}
		if err := client.ProduceSync(context.Background(), r).FirstErr(); err != nil {
			log.Fatal(err)
		}
	}
}
