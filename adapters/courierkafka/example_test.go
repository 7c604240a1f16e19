package courierkafka_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/courierkafka"
)

func ExampleNewSink() {
	seeds, stop := localCluster("orders")
	defer stop()
	client, err := kgo.NewClient(append(courierkafka.ClientOptions(), kgo.SeedBrokers(seeds...))...)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	type row struct {
		ID, Customer string
		Payload      []byte
		Created      time.Time
	}
	sink := courierkafka.NewSink(client, func(r row) (*kgo.Record, error) {
		return courierkafka.Message{ID: r.ID, Topic: "orders", Key: r.Customer, Payload: r.Payload, CreatedAt: r.Created}.Record()
	})
	pending := []row{
		{ID: "41", Customer: "acme", Payload: []byte(`{"total":7}`)},
		{ID: "42", Customer: "acme", Payload: []byte(`{"total":8}`)},
	}
	fetch := func(context.Context) ([]row, error) { return pending, nil }
	mark := func(_ context.Context, done []row) error {
		pending = pending[len(done):]
		return nil
	}
	applier, _ := courier.ResilientApplier[row](sink, nil)
	coordinator := courier.NewPollingCoordinator(courier.BatchSourceFunc[row]{FetchFunc: fetch, MarkFunc: mark}, applier,
		courier.WithOrderKey(func(r row) string { return r.Customer })) // the Kafka key
	if err := coordinator.RunOnce(context.Background()); err != nil {
		log.Fatal(err)
	}
	for _, r := range consume(seeds, "orders", 2) {
		fmt.Println(string(r.Key), courierkafka.RecordID(r), string(r.Value))
	}
	// Output:
	// acme 41 {"total":7}
	// acme 42 {"total":8}
}

func ExampleNewDLQ() {
	seeds, stop := localCluster("orders", "orders.dead")
	defer stop()
	client, err := kgo.NewClient(append(courierkafka.ClientOptions(), kgo.SeedBrokers(seeds...))...)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	message := func(m courierkafka.Message) (*kgo.Record, error) { return m.Record() }
	sink := courierkafka.NewSink(client, message)
	dlq := courierkafka.NewDLQ(client, "orders.dead", message)
	applier, _ := courier.ResilientApplier[courierkafka.Message](sink, &courier.ResilientConfig[courierkafka.Message]{DLQ: dlq})

	bad := courierkafka.Message{ID: "43", Topic: "no topic", Payload: []byte("{}")}
	if err := applier.Apply(context.Background(), bad); err != nil {
		log.Fatal(err)
	}
	letter := consume(seeds, "orders.dead", 1)[0]
	for _, h := range letter.Headers {
		switch h.Key {
		case courierkafka.IDHeader, "courier-reason", "courier-original-topic":
			fmt.Printf("%s: %s\n", h.Key, h.Value)
		}
	}
	count, err := dlq.Count(context.Background())
	fmt.Println(count, err)
	// Output:
	// id: 43
	// courier-reason: permanent
	// courier-original-topic: no topic
	// 1 <nil>
}

// localCluster starts a cluster in this process.
func localCluster(topics ...string) (seeds []string, stop func()) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, topics...))
	if err != nil {
		log.Fatal(err)
	}
	return cluster.ListenAddrs(), cluster.Close
}

// consume returns the first n records of a topic.
func consume(seeds []string, topic string, n int) (records []*kgo.Record) {
	reader, err := kgo.NewClient(kgo.SeedBrokers(seeds...), kgo.ConsumeTopics(topic))
	if err != nil {
		log.Fatal(err)
	}
	defer reader.Close()
	for len(records) < n {
		records = append(records, reader.PollFetches(context.Background()).Records()...)
	}
	return records
}
