package courierkafka_test

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
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

var (
	faultSeed  = flag.Uint64("faults.seed", 1, "TestFaults: the first seed")
	faultCount = flag.Int("faults.count", 6, "TestFaults: how many seeds")
)

// TestFaults relays while brokers answer with errors, after they have stored records or
// before, are slow or silent, close connections and lose partitions to each other, and
// while all of them are away. No record is lost, parked or stored twice, and those of a
// key stay in order.
func TestFaults(t *testing.T) {
	bySeed(t, *faultSeed, *faultCount, relayThroughFaults)
}

// bySeed runs a test in a bubble for each of count seeds.
func bySeed(t *testing.T, first uint64, count int, test func(t *testing.T, seed uint64)) {
	for i := range count {
		seed := first + uint64(i)
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, seed) })
		})
	}
}

func relayThroughFaults(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 0))
	k := startKafka(t, kfake.NumBrokers(3), kfake.Ports(9092, 9093, 9094))
	c := new(cable)
	sink := courierkafka.NewSink(k.connectBy(t, c), func(o order) (*kgo.Record, error) { return o.Record() },
		courierkafka.WithDeliveryTimeout(time.Duration(1+random.IntN(10))*time.Second))

	const records, keys = 600, 7
	all := make([]order, records)
	for i := range all {
		all[i] = order{ID: fmt.Sprintf("id-%05d", i), Topic: "wide", Key: fmt.Sprint("key-", random.IntN(keys)), Payload: make([]byte, random.IntN(2000)),
			CreatedAt: time.Now().Add(time.Duration(i) * 3 * time.Minute / records)} // is fetched from then on
	}
	faults, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		k.disturb(faults, rand.New(rand.NewPCG(seed, 2)), c)
	}()
	k.onProduce(k.trouble(faults, rand.New(rand.NewPCG(seed, 1))))
	time.AfterFunc(3*time.Minute, stop)

	box := newOutbox(all)
	letters := box.relay(t, sink, courier.WithWorkers(1+random.IntN(4)), courier.WithOrderKey(func(o order) string { return o.Key }),
		courier.WithFastPolling())
	<-ended
	for _, letter := range letters {
		t.Errorf("%s is parked after %d attempts: %v", letter.Record.ID, letter.Attempts, letter.Error)
	}

	times := make(map[string]int)
	last := make(map[string]string)
	for _, r := range k.stored(t, "wide") {
		id := courierkafka.RecordID(r)
		times[id]++
		require.Greater(t, id, last[string(r.Key)], "the order of %s", r.Key)
		last[string(r.Key)] = id
	}
	require.Len(t, times, records)
	for id, n := range times {
		require.Equal(t, 1, n, id)
	}
}

// disturb moves partitions and cuts the cable until ctx ends.
func (k *kafka) disturb(ctx context.Context, random *rand.Rand, c *cable) {
	defer c.set(false)
	defer c.answer(nil)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(random.IntN(8000)) * time.Millisecond):
		}
		switch random.IntN(5) {
		case 0:
			c.set(true)
			<-time.After(time.Duration(random.IntN(15000)) * time.Millisecond)
			c.set(false)
		case 1:
			c.deaf.Store(int64(random.IntN(4)))
		case 2:
			slow := time.Duration(random.IntN(6000)) * time.Millisecond
			c.answer(func(int) { time.Sleep(slow) })
			<-time.After(3 * time.Second)
			c.answer(nil)
		default:
			if k.MoveTopicPartition("wide", int32(random.IntN(2)), int32(random.IntN(3))) != nil {
				panic("no such partition")
			}
		}
	}
}

// trouble answers some produce requests until ctx ends.
func (k *kafka) trouble(ctx context.Context, random *rand.Rand) func(*kmsg.ProduceRequest) (kmsg.Response, error, bool) {
	before := []*kerr.Error{kerr.NotLeaderForPartition, kerr.NotEnoughReplicas, kerr.KafkaStorageError, kerr.LeaderNotAvailable}
	after := []*kerr.Error{kerr.RequestTimedOut, kerr.NotEnoughReplicasAfterAppend}
	return func(r *kmsg.ProduceRequest) (kmsg.Response, error, bool) {
		if ctx.Err() != nil {
			return nil, nil, false
		}
		switch random.IntN(12) {
		case 0:
			return refusal(r, before[random.IntN(len(before))]), nil, true
		case 1: // stored all the same
			k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "wide", Err: after[random.IntN(len(after))]})
		case 2:
			return nil, io.EOF, true // closes the connection
		case 3:
			return nil, nil, true // no answer
		}
		return nil, nil, false
	}
}
