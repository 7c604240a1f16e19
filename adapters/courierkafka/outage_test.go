package courierkafka_test

import (
	"context"
	"errors"
	"fmt"
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

// All brokers go in the middle of a batch, for longer than any attempt lasts. No
// healthy record is parked, none is lost, and none is stored twice.
func TestOutageInTheMiddleOfABatch(t *testing.T) {
	for _, mute := range []bool{false, true} {
		for _, outage := range []time.Duration{3 * time.Second, 20 * time.Minute} {
			t.Run(fmt.Sprintf("mute %v, %v", mute, outage), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					k := startKafka(t)
					c := &cable{mute: mute}
					all := orders(500)
					for i := range all {
						if i%2 == 1 {
							all[i].Topic = "wide"
						}
					}
					box := newOutbox(all)
					sent := 0
					client := k.connectBy(t, c, kgo.WithHooks(buffering(func(*kgo.Record) {
						switch sent++; sent {
						case 150:
							time.Sleep(time.Second) // those before are stored
						case 170:
							c.set(true)
							time.AfterFunc(outage, func() { c.set(false) })
							time.Sleep(time.Second) // those before are sent in vain
						}
					})))
					sink := courierkafka.NewSink(client, box.message)
					require.Empty(t, box.relay(t, sink))
					byID := make(map[string]int)
					for _, topic := range []string{"orders", "wide"} {
						for _, id := range k.ids(t, topic) {
							byID[id]++
						}
					}
					for _, o := range all {
						require.Equal(t, 1, byID[o.ID], o.ID)
					}
				})
			})
		}
	}
}

// While no broker can be reached a call is refused, and asks the coordinator to pause.
func TestNoBrokerCanBeReached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t, kfake.NumBrokers(2), kfake.Ports(9092, 9093))
		c := new(cable)
		sink := courierkafka.NewSink(k.connectBy(t, c), message)
		all := orders(2)
		require.NoError(t, sink.Apply(t.Context(), order{ID: "warm", Topic: "orders"}))
		time.Sleep(time.Hour) // the client closes what is idle
		require.NoError(t, sink.Apply(t.Context(), all[0]), "an idle client is no outage")

		c.set(true)
		require.Error(t, sink.Apply(t.Context(), all[1]), "the first one finds out")
		err := sink.ApplyBatch(t.Context(), all)
		requireClass(t, courier.ClassNotAttempted, err)
		require.ErrorContains(t, err, "connection refused")
		var rest interface{ RetryAt() time.Time }
		require.ErrorAs(t, err, &rest)
		require.Equal(t, time.Now().Add(time.Second), rest.RetryAt())
		require.ErrorIs(t, err, courier.ErrOpen)

		cause := errors.New("shutting down")
		c.mute = true
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(cause) })
		require.Equal(t, cause, sink.Apply(ctx, all[1]))
		began := time.Now()
		requireClass(t, courier.ClassNotAttempted, sink.Apply(t.Context(), all[1]))
		require.LessOrEqual(t, time.Since(began), 10*time.Second)

		c.set(false)
		for restored := time.Now(); sink.Apply(t.Context(), all[1]) != nil; {
			require.Less(t, time.Since(restored), 20*time.Second, "two dials of the client at most")
		}
		dials := c.dials.Load()
		require.NoError(t, sink.Apply(t.Context(), order{ID: "more", Topic: "orders"}))
		require.Equal(t, dials, c.dials.Load(), "nobody is asked any more")
		require.Equal(t, []string{"warm", all[0].ID, all[1].ID, "more"}, k.ids(t, "orders"))
	})
}

// A partition without a leader holds up its own records, and costs them no attempt.
func TestPartitionIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		first, second := keysOf(t, k)
		var all []order
		for i := range 200 {
			all = append(all, order{ID: fmt.Sprint(i), Topic: "wide", Key: []string{first, second}[i%2]})
		}
		down := k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "wide", Partitions: []int32{1}, Err: kerr.NotEnoughReplicas, Count: -1})
		box := newOutbox(all)
		time.AfterFunc(10*time.Minute, func() {
			if stored := k.PartitionInfo("wide", 0).HighWatermark; stored != 100 {
				t.Errorf("the partition that is well has %d records by now", stored)
			}
			down.Remove()
		})
		require.Empty(t, box.relay(t, courierkafka.NewSink(k.client, box.message)))
		require.Len(t, k.stored(t, "wide"), 200)
	})
}

// An answer that is late by less than the client's patience costs nothing.
func TestSlowBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.wire.answer(func(int) { time.Sleep(3 * time.Second) })
		sink := courierkafka.NewSink(k.client, message)
		require.NoError(t, sink.ApplyBatch(t.Context(), orders(10)))
		err := courierkafka.NewSink(k.client, message, courierkafka.WithDeliveryTimeout(time.Second)).Apply(t.Context(), order{ID: "1", Topic: "orders"})
		requireClass(t, courier.ClassNotAttempted, err)
		require.ErrorContains(t, err, "the next attempt finds its answer")
		time.Sleep(3 * time.Second)
	})
}

// A broker that stores records and hangs up before it answers has them once.
func TestConnectionBreaksBeforeTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		c := new(cable)
		c.deaf.Store(3)
		sink := courierkafka.NewSink(k.connectBy(t, c), message)
		all := orders(20)
		require.NoError(t, sink.ApplyBatch(t.Context(), all))
		require.Equal(t, idsOf(all), k.ids(t, "orders"))
		require.Negative(t, c.deaf.Load(), "each answer was lost")
	})
}

// A call that finds the client's buffer full waits for room, for as long as the delivery
// timeout, and none of its records is sent after one that found none.
func TestFullBuffer(t *testing.T) {
	for name, limit := range map[string]kgo.Opt{"records": kgo.MaxBufferedRecords(3), "bytes": kgo.MaxBufferedBytes(60)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := startKafka(t)
				sink := courierkafka.NewSink(k.connect(t, limit), message, courierkafka.WithDeliveryTimeout(3*time.Second))
				all := orders(10)
				require.NoError(t, sink.ApplyBatch(t.Context(), all), "the brokers make room")
				for i := range all {
					all[i].ID = "again-" + all[i].ID[len("id-"):]
				}
				release := k.hold(t)
				began := time.Now()
				byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
				require.Equal(t, 3*time.Second, time.Since(began))
				require.Len(t, byIndex, 10)
				for i, err := range byIndex {
					requireClass(t, courier.ClassNotAttempted, err)
					if i >= 3 {
						require.ErrorContains(t, err, "buffer is full")
					}
				}
				release()
				require.NoError(t, sink.ApplyBatch(t.Context(), all))
				require.Equal(t, append(idsOf(orders(10)), idsOf(all)...), k.ids(t, "orders"))
			})
		})
	}
}
