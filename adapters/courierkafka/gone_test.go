//go:build synctests

package courierkafka_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/courierkafka"
)

// A topic that is deleted holds up no other, with records in hand or without. The source says
// once that it is gone. If it is created again, it is consumed again.
func TestSource_ATopicThatIsDeletedHoldsUpNoOther(t *testing.T) {
	for name, balancer := range map[string]kgo.GroupBalancer{"cooperative": kgo.CooperativeStickyBalancer(), "eager": kgo.RangeBalancer()} {
		for _, inHand := range []bool{true, false} {
			for _, created := range []string{"never", "at once", "later"} {
				if raceEnabled && inHand == (created == "later") { // half of them
					continue
				}
				t.Run(fmt.Sprintf("%s, in hand: %v, created again: %s", name, inHand, created), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { testDeleted(t, balancer, inHand, created) })
				})
			}
		}
	}
}

// A broker may not know a topic that was just made: that is no reason to let go of it.
func TestSource_ATopicThatABrokerDoesNotKnowYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "orders", 0, 10, strconv.Itoa)
		source := courierkafka.NewSource(k.join(t, new(cable), "orders"))
		records := fetchAll(t, source, 10)
		k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.UnknownTopicOrPartition, Count: 2})
		for range 2 {
			require.ErrorIs(t, source.Mark(t.Context(), records), kerr.UnknownTopicOrPartition)
			time.Sleep(2 * time.Second)
		}
		require.NoError(t, source.Mark(t.Context(), records))
		require.EqualValues(t, 10, k.committed(t, "orders", 0))

		k.write(t, "orders", 10, 20, strconv.Itoa)
		records = fetchAll(t, source, 10)
		k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.UnknownTopicOrPartition, Count: 1})
		time.Sleep(time.Minute)
		require.Error(t, source.Mark(t.Context(), records), "it counts from the first time since it was known")
		require.NoError(t, source.Mark(t.Context(), records))
		require.EqualValues(t, 20, k.committed(t, "orders", 0))
	})
}

func testDeleted(t *testing.T, balancer kgo.GroupBalancer, inHand bool, created string) {
	k := startKafka(t)
	wire := new(cable)
	wire.slow.Store(int64(10 * time.Millisecond)) // the client asks for a topic that is gone without a pause
	client := k.join(t, wire, "orders", kgo.ConsumeTopics("orders", "wide"), kgo.Balancers(balancer))
	source := courierkafka.NewSource(client)
	var mu sync.Mutex
	applied := make(map[string]int)
	errs := make(chan string, 1000)
	count := func(topic string) int {
		mu.Lock()
		defer mu.Unlock()
		return applied[topic]
	}
	hold := make(chan struct{})
	if !inHand {
		close(hold)
	}
	coordinator := courier.NewStreamingCoordinator(source, courier.ProcessFunc(func(_ context.Context, r *kgo.Record) error {
		if r.Topic == "orders" {
			<-hold
		}
		mu.Lock()
		defer mu.Unlock()
		applied[r.Topic]++
		return nil
	}), courier.WithStreamWorkers(4), quiet, courier.WithObserver(courier.Observer{Fetched: func(_ context.Context, e courier.FetchEvent) {
		if e.Err != nil {
			errs <- e.Err.Error()
		}
	}}))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- coordinator.Start(ctx) }()
	write := func(topic string) {
		writer := k.admin(t)
		for n := range 2 {
			require.NoError(t, writer.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Key: []byte(fmt.Sprint(n))}).FirstErr())
		}
	}
	write("orders")
	write("wide")
	time.Sleep(10 * time.Second)
	require.Equal(t, 2, count("wide"))

	k.deleteTopic(t, "orders")
	if created == "at once" {
		k.createTopic(t, "orders")
	}
	time.Sleep(time.Second)
	if inHand {
		close(hold)
		time.Sleep(time.Second)
	}
	before := count("orders")
	require.Equal(t, 2, before)
	for n := range 3 {
		write("wide")
		time.Sleep(20 * time.Second)
		require.Equal(t, 4+2*n, count("wide"))
	}
	_, err := source.Lag(t.Context())
	require.NoError(t, err)
	if created == "later" {
		k.createTopic(t, "orders")
	}
	if created != "never" {
		write("orders")
		time.Sleep(time.Minute)
		write("orders")
		time.Sleep(time.Minute)
		require.Equal(t, before+4, count("orders"))
		require.EqualValues(t, 4, k.committed(t, "orders", 0))
	}
	require.NoError(t, coordinator.Ready())
	if inHand || created != "never" {
		require.Contains(t, <-errs, `the topic "orders" was deleted`)
	}
	require.Empty(t, errs)
	require.Zero(t, source.Lost())
	cancel()
	require.NoError(t, <-ended)
	began := time.Now()
	client.Close()
	require.Less(t, time.Since(began), 5*time.Second)
}

// Records that retention has deleted before they were read are told, whether they went between
// two polls, or between two members.
func TestSource_RecordsThatAreDeletedBeforeTheyAreRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.write(t, "orders", 0, 20, strconv.Itoa)
		client := k.join(t, new(cable), "orders", kgo.FetchMaxBytes(1), kgo.FetchMaxPartitionBytes(1)) // reads nothing ahead
		first := courierkafka.NewSource(client)
		require.NoError(t, first.Mark(t.Context(), fetchAll(t, first, 20)))
		client.PauseFetchTopics("orders") // as does a window that is full
		time.Sleep(10 * time.Second)
		k.write(t, "orders", 20, 40, strconv.Itoa)
		k.deleteRecords(t, "orders", 35)
		client.ResumeFetchTopics("orders")
		records, err := fetch(t, first, 5)
		require.ErrorContains(t, err, `have deleted the offsets 20 to 34 of partition 0 of "orders" before they were read`)
		require.EqualValues(t, 35, records[0].Offset)
		records = append(records, fetchAll(t, first, 5-len(records))...)
		require.NoError(t, first.Mark(t.Context(), records[:2]))
		client.Close()

		k.write(t, "orders", 40, 50, strconv.Itoa)
		k.deleteRecords(t, "orders", 45)
		second := courierkafka.NewSource(k.join(t, new(cable), "orders"))
		records, err = fetch(t, second, 5)
		require.ErrorContains(t, err, "have deleted the offsets 37 to 44 of")
		require.EqualValues(t, 45, records[0].Offset)
	})
}

// deleteRecords deletes the records of a partition before an offset.
func (k *kafka) deleteRecords(t *testing.T, topic string, before int64) {
	t.Helper()
	request := kmsg.NewPtrDeleteRecordsRequest()
	asked := kmsg.NewDeleteRecordsRequestTopic()
	asked.Topic = topic
	partition := kmsg.NewDeleteRecordsRequestTopicPartition()
	partition.Offset = before
	asked.Partitions = append(asked.Partitions, partition)
	request.Topics = append(request.Topics, asked)
	_, err := request.RequestWith(t.Context(), k.admin(t))
	require.NoError(t, err)
}
