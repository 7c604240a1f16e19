//go:build synctests

package courierkafka_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
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
	groupSeed  = flag.Uint64("group.seed", 1, "TestGroup: the first seed")
	groupCount = flag.Int("group.count", 8, "TestGroup: how many seeds")
)

// TestGroup consumes while members of the group come, leave, and are cut off for good,
// while commits fail and records fail, take long, or are poison for a while. No record is
// lost. One is applied twice only if a member was at it, or could not commit it any
// more, when that member or the one that the group waited for was cut off. In one generation
// each member applies the records of a key in their order.
func TestGroup(t *testing.T) {
	bySeed(t, *groupSeed, *groupCount, consumeThroughRebalances)
}

func consumeThroughRebalances(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 0))
	k := startKafka(t, kfake.SeedTopics(6, "many"))
	k.session = 20 * time.Second // so that none is expelled that is not cut off
	const records, keys = 1500, 60
	k.write(t, "many", 0, records, func(n int) string { return strconv.Itoa(n % keys) })
	if random.IntN(2) == 0 {
		faults := rand.New(rand.NewPCG(seed, 1))
		k.ControlKey(int16(kmsg.OffsetCommit), func(request kmsg.Request) (kmsg.Response, error, bool) {
			k.KeepControl()
			switch faults.IntN(8) {
			case 0:
				return refuseCommit(request, kerr.CoordinatorLoadInProgress), nil, true
			case 1:
				return refuseCommit(request, kerr.RebalanceInProgress), nil, true
			}
			return nil, nil, false
		})
	}
	keyed := random.IntN(4) > 0
	opts := []courier.Option{courier.WithStreamWorkers(1 + random.IntN(6)), courier.WithBatchSize(1 + random.IntN(60))}
	if keyed {
		opts = append(opts, courier.WithOrderKey(courierkafka.OrderKey))
	}
	l := new(ledger)
	cutOff := make(map[int]time.Time) // when each member was
	var members []*member
	var alive []int
	join := func() {
		id := len(members)
		own := rand.New(rand.NewPCG(seed, uint64(100+id)))
		var self *member
		joined := make(chan struct{})
		pauses := make(chan time.Duration, 1)
		go func() { // one random source for all workers
			for {
				d := time.Duration(own.IntN(100)) * time.Millisecond
				if own.IntN(300) == 0 {
					d = time.Duration(own.IntN(4000)) * time.Millisecond // less than the revoke timeout
				}
				select {
				case pauses <- d:
				case <-t.Context().Done():
					return
				}
			}
		}()
		apply := func(_ context.Context, r *kgo.Record) error {
			pause := <-pauses
			time.Sleep(pause)
			if pause%(7*time.Millisecond) == 0 {
				return fmt.Errorf("not this time")
			}
			<-joined
			_, generation := self.client.GroupMetadata()
			l.noteIn(generation, id, r)
			return nil
		}
		self = k.run(t, "many", apply, nil, opts...)
		members = append(members, self)
		close(joined)
		alive = append(alive, id)
	}
	take := func() int {
		i := random.IntN(len(alive))
		id := alive[i]
		alive = append(alive[:i], alive[i+1:]...)
		return id
	}
	join()
	for range 8 + random.IntN(8) {
		time.Sleep(time.Duration(500+random.IntN(8000)) * time.Millisecond)
		switch n := random.IntN(6); {
		case n < 3 && len(alive) < 4 || len(alive) < 2:
			join()
		case n < 5:
			id := take()
			_ = members[id].stop()
			members[id].client.Close()
		default:
			id := take()
			cutOff[id] = time.Now()
			members[id].wire.set(true)
		}
	}
	var missing int
	for range 100 {
		time.Sleep(10 * time.Second)
		times := l.times()
		if missing = records - len(times); missing == 0 {
			break
		}
	}
	inside := func(id int) bool {
		err := members[id].c.Ready()
		return err == nil || !strings.Contains(err.Error(), "not in its consumer group")
	}
	if missing > 0 && !slices.ContainsFunc(alive, inside) {
		// kfake can wait without an end for a member that was cut off while it joined, and
		// answers nobody's request to join. All members tell.
		t.Log("the fake broker lets nobody join any more")
		return
	}
	if missing > 0 {
		for _, id := range alive {
			m := members[id]
			_, generation := m.client.GroupMetadata()
			t.Logf("member %d: generation %d, committed %v, in hand %d, ready: %v", id, generation, m.client.CommittedOffsets(), m.c.Stats().InHand, m.c.Ready())
		}
		for partition := range int32(6) {
			t.Logf("partition %d: %d committed of %d", partition, k.committed(t, "many", partition), k.PartitionInfo("many", partition).HighWatermark)
		}
	}
	require.Zero(t, missing, "records are lost")
	for _, m := range members {
		go func() { _ = m.stop() }()
	}
	time.Sleep(5 * time.Minute)
	first := make(map[int]application)
	last := make(map[string]application)
	twice := 0
	var again []string // without a member that was out of reach
	// While a group waits for a member that is out of reach, no member can commit: it may
	// be expelled or leave before it can.
	stuck := func(at time.Time) bool {
		const flushed = 3 * time.Second
		for _, cut := range cutOff {
			if at.After(cut.Add(-flushed)) && at.Before(cut.Add(k.session+15*time.Second)) {
				return true
			}
		}
		return false
	}
	for _, a := range l.all() {
		if before, ok := first[a.n]; ok {
			twice++
			if lost := members[before.member].source.Lost() > 0; !lost && !stuck(before.at) {
				again = append(again, fmt.Sprintf("record %d: %v; cut off: %v", a.n, l.of(a.n), cutOff))
			}
		} else {
			first[a.n] = a
		}
		key := fmt.Sprint(a.member, a.generation, courierkafka.OrderKey(a.record))
		if before, ok := last[key]; keyed && ok && before.record.Offset > a.record.Offset {
			require.Failf(t, "out of order", "key %q: %d was applied after %d", key, a.n, before.n)
		}
		last[key] = a
	}
	require.Empty(t, again, "applied twice")
	t.Logf("%d members, %d cut off, %d applied twice", len(members), len(cutOff), twice)
}
