package courierkafka_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
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

// outbox is a source of rows that are pending from when they are created until they are
// marked, and counts how often each was handed to the sink.
type outbox struct {
	mu      sync.Mutex
	pending []order
	made    map[string]int
	rows    chan order // has them too where they are handed out once
}

func newOutbox(all []order) *outbox {
	return &outbox{pending: slices.Clone(all), made: make(map[string]int)}
}

func (o *outbox) fetch(context.Context) ([]order, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var due []order
	for _, p := range o.pending {
		if len(due) < 100 && !p.CreatedAt.After(time.Now()) {
			due = append(due, p)
		}
	}
	return due, nil
}

func (o *outbox) mark(_ context.Context, done []order) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pending = slices.DeleteFunc(o.pending, func(p order) bool {
		return slices.ContainsFunc(done, func(d order) bool { return d.ID == p.ID })
	})
	return nil
}

func (o *outbox) message(r order) (*kgo.Record, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.made[r.ID]++
	return r.Record()
}

func (o *outbox) times(id string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.made[id]
}

// relay runs a coordinator until nothing is pending, and returns the dead letters.
func (o *outbox) relay(t *testing.T, sink courier.Applier[order], opts ...courier.Option) []courier.DeadLetter[order] {
	t.Helper()
	applier, dlq := courier.ResilientApplier(sink, nil)
	source := courier.BatchSourceFunc[order]{FetchFunc: o.fetch, MarkFunc: o.mark}
	coordinator := courier.NewPollingCoordinator(source, applier, append(opts, courier.WithIdentity(func(r order) string { return r.ID }))...)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := coordinator.Start(ctx); err != nil {
			t.Error(err)
		}
	})
	for range 3600 {
		time.Sleep(time.Second)
		if o.left() == 0 {
			break
		}
	}
	cancel()
	running.Wait()
	require.Zero(t, len(o.pending), "records are left")
	letters, err := dlq.Receive(context.Background(), 1000)
	require.NoError(t, err)
	return letters
}

// keysOf returns a key for each of the two partitions of the topic "wide".
func keysOf(t *testing.T, k *kafka) (first, second string) {
	t.Helper()
	found := map[int32]string{}
	for i := 0; len(found) < 2; i++ {
		key := fmt.Sprint("key-", i)
		r := &kgo.Record{Topic: "wide", Key: []byte(key)}
		partitioner := kgo.StickyKeyPartitioner(nil).ForTopic("wide")
		found[int32(partitioner.Partition(r, 2))] = key
	}
	return found[0], found[1]
}

// Of a batch over two partitions, on two brokers, one fails. Whichever is answered
// first, the failed records are tried again and no others, and each is stored once.
func TestPartlyFailedBatch(t *testing.T) {
	for failing := range int32(2) {
		for _, failsFirst := range []bool{false, true} {
			t.Run(fmt.Sprintf("partition %d fails, first: %v", failing, failsFirst), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					k := startKafka(t, kfake.NumBrokers(2), kfake.Ports(9092, 9093))
					require.NoError(t, k.MoveTopicPartition("wide", 0, 0))
					require.NoError(t, k.MoveTopicPartition("wide", 1, 1))
					keys := [2]string{}
					keys[0], keys[1] = keysOf(t, k)
					all := make([]order, 100)
					for i := range all {
						all[i] = order{ID: fmt.Sprintf("id-%03d", i), Topic: "wide", Key: keys[i%2]}
					}
					warm := courierkafka.NewSink(k.client, message)
					require.NoError(t, warm.ApplyBatch(t.Context(), []order{{ID: "a", Topic: "wide", Key: keys[0]}, {ID: "b", Topic: "wide", Key: keys[1]}}))

					k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "wide", Partitions: []int32{failing}, Err: kerr.TopicAuthorizationFailed})
					k.wire.answer(func(node int) {
						if int32(node) == failing != failsFirst {
							time.Sleep(100 * time.Millisecond)
						}
					})
					box := newOutbox(all)
					require.Empty(t, box.relay(t, courierkafka.NewSink(k.client, box.message)))
					var byKey [2][]string
					for _, r := range k.stored(t, "wide") {
						if id := courierkafka.RecordID(r); strings.HasPrefix(id, "id-") {
							byKey[slices.Index(keys[:], string(r.Key))] = append(byKey[slices.Index(keys[:], string(r.Key))], id)
						}
					}
					for p := range byKey {
						require.Len(t, byKey[p], 50)
						require.True(t, slices.IsSorted(byKey[p]), "partition %d: %v", p, byKey[p])
					}
					for i, o := range all {
						switch times := box.times(o.ID); {
						case int32(i%2) != failing:
							require.Equal(t, 1, times, o.ID)
						default:
							require.Equal(t, 2, times, o.ID)
						}
					}
				})
			})
		}
	}
}

// lastTimes returns each value where it stands for the last time.
func lastTimes(all []string) (last []string) {
	for i, one := range all {
		if !slices.Contains(all[i+1:], one) {
			last = append(last, one)
		}
	}
	return last
}

// A broker refuses the batch that an oversize record is in. That one is parked, the
// others are stored in order, alone or beside other workers, and alone once.
func TestOversizeRecordInABatch(t *testing.T) {
	for _, workers := range []int{1, 4} {
		t.Run(fmt.Sprint(workers, " workers"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := startKafka(t, kfake.BrokerConfigs(map[string]string{"message.max.bytes": "200000"}))
				all := orders(50 * workers)
				for i := range all {
					all[i].Payload = random(1000)
					all[i].Key = fmt.Sprint("key-", i%workers)
				}
				bad := []int{0, 30, 49}
				for _, i := range bad {
					all[i].Payload = random(300_000)
				}
				box := newOutbox(all)
				letters := box.relay(t, courierkafka.NewSink(k.client, box.message), courier.WithWorkers(workers),
					courier.WithOrderKey(func(r order) string { return r.Key }))
				var parked []string
				for _, letter := range letters {
					parked = append(parked, letter.Record.ID)
					require.Equal(t, courier.ReasonPermanent, letter.Reason)
					require.ErrorIs(t, letter.Error, kerr.MessageTooLarge)
				}
				slices.Sort(parked)
				require.Equal(t, []string{all[0].ID, all[30].ID, all[49].ID}, parked)

				byKey := make(map[string][]string)
				for _, r := range k.stored(t, "orders") {
					byKey[string(r.Key)] = append(byKey[string(r.Key)], courierkafka.RecordID(r))
				}
				left := len(all) - len(bad)
				for key, ids := range byKey {
					// Of a call of another worker, a part may be in the batch that is refused, and
					// another be stored, which comes again behind the first.
					if last := lastTimes(ids); workers == 1 {
						require.Equal(t, last, ids, "each once")
					} else {
						ids = last
					}
					require.True(t, slices.IsSorted(ids), "%s: %v", key, ids)
					left -= len(ids)
				}
				require.Zero(t, left, "all are stored")
			})
		})
	}
}

// One call finds the oversize record, stores what is before it, and nothing after it.
func TestOneCallFindsTheOversizeRecord(t *testing.T) {
	for _, bad := range []int{0, 10, 30, 49} {
		t.Run(fmt.Sprint("index ", bad), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := startKafka(t, kfake.BrokerConfigs(map[string]string{"message.max.bytes": "200000"}))
				all := orders(50)
				all[bad].Payload = random(300_000)
				byIndex := failures(t, courierkafka.NewSink(k.client, message).ApplyBatch(t.Context(), all))
				require.Len(t, byIndex, 50-bad)
				requireClass(t, courier.ClassPermanent, byIndex[bad])
				for i := bad + 1; i < 50; i++ {
					require.ErrorIs(t, byIndex[i], courier.ErrBehindFailed)
				}
				require.Equal(t, idsOf(all[:bad]), append([]string{}, k.ids(t, "orders")...))
			})
		})
	}
}

// A part of a refused batch that the client sends as two, of which one is stored, is not
// sent again as a whole.
func TestPartOfARefusedPartIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t, kfake.BrokerConfigs(map[string]string{"message.max.bytes": "15000"}))
		sink := courierkafka.NewSink(k.connect(t, kgo.ProducerBatchMaxBytes(20_000)), message)
		all := orders(40)
		for i := range all {
			all[i].Payload = random(1000)
		}
		all[30].Payload = random(16_000)
		k.wire.answer(func(int) { time.Sleep(time.Millisecond) }) // when all is handed over
		byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
		requireClass(t, courier.ClassPermanent, byIndex[30])
		require.Len(t, byIndex, 10)
		require.Equal(t, idsOf(all[:30]), k.ids(t, "orders"))
	})
}

// While the sink looks for the record to blame, no other call sends anything.
func TestOthersWaitWhileARecordIsSentAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		sink := courierkafka.NewSink(k.client, message)
		require.NoError(t, sink.ApplyBatch(t.Context(), []order{{ID: "1", Topic: "orders"}, {ID: "2", Topic: "wide"}}))
		k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "orders", Err: kerr.MessageTooLarge, Count: 2})
		var other sync.WaitGroup
		requests := 0
		k.onProduce(func(*kmsg.ProduceRequest) (kmsg.Response, error, bool) {
			if requests++; requests == 2 {
				other.Go(func() {
					if err := sink.Apply(t.Context(), order{ID: "3", Topic: "wide"}); err != nil {
						t.Error(err)
					}
				})
			}
			return nil, nil, false
		})
		k.wire.answer(func(int) { time.Sleep(time.Second) })
		requireClass(t, courier.ClassPermanent, sink.Apply(t.Context(), orders(1)[0]))
		other.Wait()
		require.Len(t, k.ids(t, "wide"), 2)
	})
}

// A healthy record is not to blame when another program's may have been in its batch:
// one that was under way before it was sent alone, or that came after that.
func TestRefusedTogetherWithAnothersRecord(t *testing.T) {
	for request, delay := range map[int]time.Duration{1: time.Second, 2: time.Millisecond} {
		t.Run(fmt.Sprint("beside request ", request), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := startKafka(t)
				sink := courierkafka.NewSink(k.client, message)
				require.NoError(t, sink.Apply(t.Context(), orders(1)[0]))
				k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "orders", Err: kerr.MessageTooLarge, Count: 2})
				var other sync.WaitGroup
				requests := 0
				k.onProduce(func(*kmsg.ProduceRequest) (kmsg.Response, error, bool) {
					if requests++; requests == request {
						other.Go(func() { _ = k.client.ProduceSync(context.Background(), &kgo.Record{Topic: "wide"}) })
					}
					return nil, nil, false
				})
				answers := 0
				k.wire.answer(func(int) {
					switch answers++; answers {
					case request:
						time.Sleep(20 * time.Millisecond) // the other record lingers
					case request + 1:
						time.Sleep(delay)
					}
				})
				err := sink.Apply(t.Context(), orders(2)[1])
				requireClass(t, courier.ClassRetryable, err)
				require.ErrorIs(t, err, kerr.MessageTooLarge)
				other.Wait()
			})
		})
	}
}

// A record that the client is done with is in no batch, though its promise has not returned.
func TestRefusedBesideAPromiseThatLasts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		sink := courierkafka.NewSink(k.client, message)
		require.NoError(t, sink.Apply(t.Context(), orders(1)[0]))
		k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "orders", Err: kerr.MessageTooLarge, Count: 2})
		leave := courierkafka.Share(k.client)
		refused := make(chan error, 1)
		go func() { refused <- sink.Apply(t.Context(), orders(2)[1]) }()
		time.Sleep(time.Second) // it is refused, and waits to be sent alone
		lasts := make(chan struct{})
		k.client.Produce(t.Context(), &kgo.Record{Topic: "wide"}, func(*kgo.Record, error) { <-lasts })
		time.Sleep(time.Second)
		require.EqualValues(t, 1, k.client.BufferedProduceRecords())
		leave()
		synctest.Wait()
		close(lasts)
		requireClass(t, courier.ClassPermanent, <-refused)
	})
}

// The client may take a later record of a key just when an earlier one has failed. The
// sink sends the later one again.
func TestOvertakenRecordGoesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		all := orders(4)
		failed := &failing{begun: make(chan struct{}), until: make(chan struct{})}
		client := k.connect(t, kgo.WithHooks(failed, buffering(func(r *kgo.Record) {
			switch courierkafka.RecordID(r) {
			case all[2].ID:
				time.Sleep(20 * time.Millisecond) // the records before no longer linger
				<-failed.begun                    // and the client has given them up
			case all[3].ID:
				time.Sleep(20 * time.Millisecond)
				close(failed.until)
			}
		})))
		sink := courierkafka.NewSink(client, message)
		require.NoError(t, sink.Apply(t.Context(), order{ID: "warm", Topic: "orders", Key: "another"}))
		k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "orders", Err: kerr.TopicAuthorizationFailed})
		all = append(all, order{ID: "last", Topic: "orders", Key: "another"})
		byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
		stored := k.ids(t, "orders")
		require.Equal(t, []string{"warm", all[2].ID}, stored[:2], "the test is about a record that overtakes")
		requireClass(t, courier.ClassRetryable, byIndex[0])
		requireClass(t, courier.ClassRetryable, byIndex[1])
		require.ErrorIs(t, byIndex[2], courier.ErrBehindFailed)
		require.ErrorIs(t, byIndex[3], courier.ErrBehindFailed)
	})
}

// Nothing more is sent after a failure that is known.
func TestNothingIsSentAfterAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		all := orders(4)
		client := k.connect(t, kgo.WithHooks(buffering(func(r *kgo.Record) {
			if courierkafka.RecordID(r) == all[1].ID {
				time.Sleep(time.Second)
			}
		})))
		sink := courierkafka.NewSink(client, message)
		require.NoError(t, sink.Apply(t.Context(), order{ID: "warm", Topic: "orders"}))
		k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "orders", Err: kerr.TopicAuthorizationFailed})
		byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
		requireClass(t, courier.ClassRetryable, byIndex[0])
		for i := 1; i < 4; i++ {
			require.ErrorIs(t, byIndex[i], courier.ErrBehindFailed)
		}
		require.Equal(t, []string{"warm", all[1].ID}, k.ids(t, "orders"))
	})
}

// failing is a hook that holds the first failure back.
type failing struct {
	once         sync.Once
	begun, until chan struct{}
}

func (f *failing) OnProduceRecordUnbuffered(_ *kgo.Record, err error) {
	if err != nil {
		f.once.Do(func() {
			close(f.begun)
			<-f.until
		})
	}
}

// buffering is a hook that is called before the client takes a record.
type buffering func(*kgo.Record)

func (f buffering) OnProduceRecordBuffered(r *kgo.Record) { f(r) }

// Records of calls at the same time share a partition, and the client gives up all of
// them when the context of the first one has ended. So it gets another one.
func TestContextOfAnotherCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		sink := courierkafka.NewSink(k.client, message)
		require.NoError(t, sink.Apply(t.Context(), order{ID: "warm", Topic: "orders"}))
		k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "orders", Err: kerr.NotLeaderForPartition, Count: 3})
		all := orders(2)
		ctx, cancel := context.WithCancel(t.Context())
		var calls sync.WaitGroup
		calls.Go(func() {
			if sink.Apply(ctx, all[0]) == nil {
				t.Error("the call did not end with its context")
			}
		})
		synctest.Wait()
		calls.Go(func() {
			if err := sink.Apply(t.Context(), all[1]); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		cancel()
		calls.Wait()
		require.NoError(t, sink.Apply(t.Context(), all[0]))
		require.Equal(t, append([]string{"warm"}, idsOf(all)...), k.ids(t, "orders"))
	})
}
