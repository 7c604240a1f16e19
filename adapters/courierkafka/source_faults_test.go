//go:build synctests

package courierkafka_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"testing"
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
	sourceSeed  = flag.Uint64("source.seed", 1, "TestSourceFaults: the first seed")
	sourceCount = flag.Int("source.count", 6, "TestSourceFaults: how many seeds")
)

// TestSourceFaults consumes while brokers answer every kind of request with errors, are slow,
// close connections and lose partitions and the group to each other. No record is lost, the
// members apply those of a key in order, and they apply a record twice only if a member had
// it in hand when it lost its partitions.
func TestSourceFaults(t *testing.T) {
	bySeed(t, *sourceSeed, *sourceCount, consumeThroughFaults)
}

func consumeThroughFaults(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 0))
	k := startKafka(t, kfake.NumBrokers(3), kfake.Ports(9092, 9093, 9094), kfake.SeedTopics(6, "many"))
	k.session = 20 * time.Second
	const records, keys = 900, 40
	key := func(n int) string { return strconv.Itoa(n % keys) }
	k.write(t, "many", 0, records/3, key)
	l := new(ledger)
	var members []*member
	for id := range 1 + random.IntN(3) {
		own := rand.New(rand.NewPCG(seed, uint64(100+id)))
		pauses := make(chan time.Duration)
		go func() { // one random source for all workers
			for {
				select {
				case pauses <- time.Duration(own.IntN(200)) * time.Millisecond:
				case <-t.Context().Done():
					return
				}
			}
		}()
		members = append(members, k.run(t, "many", func(_ context.Context, r *kgo.Record) error {
			pause := <-pauses
			time.Sleep(pause)
			if pause%(11*time.Millisecond) == 0 {
				return errors.New("not this time")
			}
			l.note(id, r)
			return nil
		}, nil, courier.WithStreamWorkers(1+random.IntN(5)), courier.WithOrderKey(courierkafka.OrderKey)))
	}
	broken := newBroken(k)
	for i := range 60 {
		time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
		k.fault(random, broken, members, true)
		if i == 20 || i == 40 {
			k.write(t, "many", i/20*records/3, (i/20+1)*records/3, key)
		}
	}
	broken.heal()
	for _, m := range members {
		m.wire.slow.Store(0)
	}
	for range 60 {
		if time.Sleep(10 * time.Second); k.settled(t, "many") {
			break
		}
	}
	for _, m := range members {
		_ = m.stop()
	}
	require.Len(t, l.times(), records, "records are lost")
	require.True(t, k.settled(t, "many"), "not all is committed")
	l.requireOrderAtFirst(t)
	first := make(map[int]application)
	twice, lost := 0, uint64(0)
	for _, a := range l.all() {
		if before, again := first[a.n]; again {
			twice++
			require.NotZero(t, members[before.member].source.Lost(), "record %d is applied twice: %v", a.n, l.of(a.n))
		} else {
			first[a.n] = a
		}
	}
	for _, m := range members {
		lost += m.source.Lost()
	}
	t.Logf("%d members, %d partitions lost, %d records applied twice", len(members), lost, twice)
}

// settled reports whether all of a topic is committed.
func (k *kafka) settled(tb testing.TB, topic string) bool {
	for _, p := range k.PartitionInfos(topic) {
		if k.committed(tb, topic, p.Partition) != p.HighWatermark {
			return false
		}
	}
	return true
}

// requireOrderAtFirst checks that the records of each key were applied in their order, by the
// first time that each was applied.
func (l *ledger) requireOrderAtFirst(t *testing.T) {
	t.Helper()
	seen, last := make(map[int]bool), make(map[string]application)
	for _, a := range l.all() {
		if seen[a.n] {
			continue
		}
		seen[a.n] = true
		key := courierkafka.OrderKey(a.record)
		if before, ok := last[key]; ok && before.record.Offset > a.record.Offset {
			require.Failf(t, "out of order", "key %q: %d was applied after %d", key, a.n, before.n)
		}
		last[key] = a
	}
}

// asked lists the requests that a consumer sends, and the errors that a broker may answer each with.
var asked = map[kmsg.Key][]*kerr.Error{
	kmsg.Fetch:           {kerr.NotLeaderForPartition, kerr.KafkaStorageError, kerr.UnknownLeaderEpoch, kerr.UnknownServerError},
	kmsg.ListOffsets:     {kerr.NotLeaderForPartition, kerr.LeaderNotAvailable},
	kmsg.OffsetFetch:     {kerr.CoordinatorLoadInProgress, kerr.NotCoordinator, kerr.UnstableOffsetCommit},
	kmsg.OffsetCommit:    {kerr.CoordinatorLoadInProgress, kerr.NotCoordinator, kerr.CoordinatorNotAvailable, kerr.RequestTimedOut, kerr.RebalanceInProgress, kerr.UnknownServerError},
	kmsg.Heartbeat:       {kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.RebalanceInProgress, kerr.UnknownMemberID, kerr.IllegalGeneration},
	kmsg.JoinGroup:       {kerr.CoordinatorLoadInProgress, kerr.NotCoordinator, kerr.UnknownMemberID, kerr.RebalanceInProgress},
	kmsg.SyncGroup:       {kerr.CoordinatorLoadInProgress, kerr.NotCoordinator, kerr.RebalanceInProgress, kerr.UnknownMemberID},
	kmsg.FindCoordinator: {kerr.CoordinatorNotAvailable},
	kmsg.Metadata:        {kerr.LeaderNotAvailable},
}

// requests are the keys of asked, in an order.
var requests = []kmsg.Key{kmsg.Fetch, kmsg.ListOffsets, kmsg.OffsetFetch, kmsg.OffsetCommit, kmsg.Heartbeat, kmsg.JoinGroup, kmsg.SyncGroup, kmsg.FindCoordinator, kmsg.Metadata}

// broken ends connections at some requests.
type broken struct {
	close  map[kmsg.Key]*atomic.Int64
	faults []*kfake.FaultHandle
}

func newBroken(k *kafka) *broken {
	b := &broken{close: make(map[kmsg.Key]*atomic.Int64)}
	for _, key := range requests {
		left := new(atomic.Int64)
		b.close[key] = left
		k.ControlKey(int16(key), func(kmsg.Request) (kmsg.Response, error, bool) {
			k.KeepControl()
			return nil, io.EOF, left.Add(-1) >= 0
		})
	}
	return b
}

func (b *broken) heal() {
	for _, left := range b.close {
		left.Store(0)
	}
	for _, f := range b.faults {
		f.Remove()
	}
}

// fault has one of the things happen that TestSourceFaults names, and says which.
func (k *kafka) fault(random *rand.Rand, b *broken, members []*member, moves bool) string {
	key := requests[random.IntN(len(requests))]
	switch n := random.IntN(8); {
	case n == 0 && moves:
		p, node := int32(random.IntN(6)), int32(random.IntN(3))
		_ = k.MoveTopicPartition("many", p, node)
		return fmt.Sprintf("partition %d moves to broker %d", p, node)
	case n < 2:
		k.RehashCoordinators()
		return "coordinators move"
	case n == 2:
		b.close[key].Store(int64(1 + random.IntN(3)))
		return fmt.Sprintf("connections end at a %s", key.Name())
	case n == 3:
		slow := time.Duration(random.IntN(3)) * time.Second
		members[random.IntN(len(members))].wire.slow.Store(int64(slow))
		return fmt.Sprintf("answers take %v longer", slow)
	}
	err, times := asked[key][random.IntN(len(asked[key]))], 1+random.IntN(4)
	b.faults = append(b.faults, k.Fault(kfake.Fault{Keys: []kmsg.Key{key}, Err: err, Count: times}))
	return fmt.Sprintf("%d times %s for a %s", times, err.Message, key.Name())
}
