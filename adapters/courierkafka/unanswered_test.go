package courierkafka_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/courierkafka"
)

// held is a sink over a broker that answers no produce request before release.
func held(t *testing.T) (k *kafka, sink *courierkafka.Sink[order], release func()) {
	t.Helper()
	k = startKafka(t)
	sink = courierkafka.NewSink(k.client, message)
	require.NoError(t, sink.Apply(t.Context(), order{ID: "warm", Topic: "orders"}))
	return k, sink, k.hold(t)
}

// giveUp applies records with a context that ends after a second.
func giveUp(t *testing.T, sink *courierkafka.Sink[order], all []order) {
	t.Helper()
	cause := errors.New("no time")
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, cause)
	defer cancel()
	byIndex := failures(t, sink.ApplyBatch(ctx, all))
	require.Len(t, byIndex, len(all))
	for _, err := range byIndex {
		require.ErrorIs(t, err, cause)
		require.Equal(t, courier.ClassNotAttempted, courier.Classify(ctx, err))
	}
}

// The next attempt of a record whose outcome is unknown waits for it, and sends no copy.
func TestNextApplyJoins(t *testing.T) {
	for name, when := range map[string]func(release func()){
		"while it is under way": func(release func()) { time.AfterFunc(time.Second, release) },
		"when it is stored":     func(release func()) { release(); synctest.Wait() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k, sink, release := held(t)
				all := orders(3)
				giveUp(t, sink, all)
				giveUp(t, sink, all[:2])
				require.Equal(t, 3, courierkafka.Unanswered(k.client))
				when(release)
				more := append(all, order{ID: "more", Topic: "orders", Key: "key"})
				require.NoError(t, sink.ApplyBatch(t.Context(), more))
				require.Equal(t, append([]string{"warm"}, idsOf(more)...), k.ids(t, "orders"))
				require.Zero(t, courierkafka.Unanswered(k.client), "nothing is left to remember")
				require.NoError(t, sink.Apply(t.Context(), all[0]))
				require.Len(t, k.ids(t, "orders"), 6, "who applies a record again that was reported as stored wants it twice")
			})
		})
	}
}

// A sink of the same client knows the records too.
func TestAnotherSinkJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, sink, release := held(t)
		all := orders(3)
		giveUp(t, sink, all)
		time.AfterFunc(time.Second, release)
		require.NoError(t, courierkafka.NewSink(k.client, message).ApplyBatch(t.Context(), all))
		require.Len(t, k.ids(t, "orders"), 4)
	})
}

// Only an equal record with an id is the same one.
func TestAnotherRecordDoesNotJoin(t *testing.T) {
	base := order{ID: "1", Topic: "orders", Key: "key", Payload: []byte("a"), Headers: map[string]string{"h": "v"}}
	for name, change := range map[string]func(*order){
		"id":      func(o *order) { o.ID = "2" },
		"topic":   func(o *order) { o.Topic = "wide" },
		"key":     func(o *order) { o.Key = "other" },
		"payload": func(o *order) { o.Payload = []byte("b") },
		"header":  func(o *order) { o.Headers = map[string]string{"h": "w"} },
		"headers": func(o *order) { o.Headers = nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k, sink, release := held(t)
				giveUp(t, sink, []order{base})
				other := base
				change(&other)
				time.AfterFunc(time.Second, release)
				require.NoError(t, sink.Apply(t.Context(), other))
				require.Equal(t, 3, len(k.ids(t, "orders"))+len(k.ids(t, "wide")))
			})
		})
	}
	t.Run("no id", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			k, _, release := held(t)
			sink := courierkafka.NewSink(k.client, func(o order) (*kgo.Record, error) {
				return &kgo.Record{Topic: "orders", Value: o.Payload}, nil
			})
			giveUp(t, sink, []order{base})
			time.AfterFunc(time.Second, release)
			require.NoError(t, sink.Apply(t.Context(), base))
			require.Len(t, k.ids(t, "orders"), 3)
		})
	})
}

// A record that fails after it was given up is sent by the next attempt.
func TestNextApplySendsAfterAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		sink := courierkafka.NewSink(k.client, message)
		require.NoError(t, sink.Apply(t.Context(), order{ID: "warm", Topic: "orders"}))
		refuse := true
		k.onProduce(func(r *kmsg.ProduceRequest) (kmsg.Response, error, bool) {
			if !refuse {
				return nil, nil, false
			}
			refuse = false
			return refusal(r, kerr.TopicAuthorizationFailed), nil, true
		})
		k.wire.answer(func(int) { time.Sleep(3 * time.Second) })
		all := orders(2)
		giveUp(t, sink, all)
		byIndex := failures(t, sink.ApplyBatch(t.Context(), all)) // joins
		require.Len(t, byIndex, 2)
		require.ErrorIs(t, byIndex[0], kerr.TopicAuthorizationFailed)
		require.Zero(t, courierkafka.Unanswered(k.client))
		require.NoError(t, sink.ApplyBatch(t.Context(), all))
		require.Equal(t, []string{"warm", all[0].ID, all[1].ID}, k.ids(t, "orders"))
	})
}

// refusal answers every partition of a request with an error.
func refusal(r *kmsg.ProduceRequest, err *kerr.Error) kmsg.Response {
	response := r.ResponseKind().(*kmsg.ProduceResponse)
	for _, t := range r.Topics {
		topic := kmsg.NewProduceResponseTopic()
		topic.Topic, topic.TopicID = t.Topic, t.TopicID
		for _, p := range t.Partitions {
			partition := kmsg.NewProduceResponseTopicPartition()
			partition.Partition, partition.ErrorCode = p.Partition, err.Code
			topic.Partitions = append(topic.Partitions, partition)
		}
		response.Topics = append(response.Topics, topic)
	}
	return response
}

// A message function that panics leaves nothing behind.
func TestPanicOfTheMessageFunction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		all := orders(3)
		broken := true
		sink := courierkafka.NewSink(k.client, func(o order) (*kgo.Record, error) {
			if broken && o.ID == all[2].ID {
				panic("broken")
			}
			return o.Record()
		})
		require.Panics(t, func() { _ = sink.ApplyBatch(t.Context(), all) })
		broken = false
		require.NoError(t, sink.ApplyBatch(t.Context(), all))
		require.Equal(t, idsOf(all), k.ids(t, "orders"))
	})
}

// What is remembered of records that nobody applies again is bounded.
func TestMemoryOfStoredRecordsIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, sink, release := held(t)
		giveUp(t, sink, orders(12_000))
		require.Equal(t, 12_000, courierkafka.Unanswered(k.client))
		release()
		time.Sleep(time.Second)
		require.Equal(t, 10_000, courierkafka.Unanswered(k.client))
		require.NoError(t, sink.ApplyBatch(t.Context(), orders(12_000)[2000:]))
		require.Zero(t, courierkafka.Unanswered(k.client))
		require.Len(t, k.ids(t, "orders"), 12_001)
	})
}

// Of records that are applied in another order than they were sent, one is stored while
// an earlier one of the call is still under way: it does not go again.
func TestJoinedInAnotherOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		sink := courierkafka.NewSink(k.client, message)
		require.NoError(t, sink.Apply(t.Context(), order{ID: "warm", Topic: "orders"}))
		next := make(chan struct{})
		k.wire.answer(func(int) { <-next })
		all := orders(2)
		giveUp(t, sink, all[:1])
		giveUp(t, sink, all[1:])
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		time.AfterFunc(time.Second/2, func() { next <- struct{}{} })
		byIndex := failures(t, sink.ApplyBatch(ctx, []order{all[1], all[0]}))
		require.Len(t, byIndex, 1)
		require.ErrorIs(t, byIndex[0], context.DeadlineExceeded)
		close(next)
		require.NoError(t, sink.Apply(t.Context(), all[1]))
		require.Equal(t, []string{"warm", all[0].ID, all[1].ID}, k.ids(t, "orders"))
	})
}

// However many attempts give a record up, it is remembered once, and so for as long as the
// others.
func TestManyAttemptsAreRememberedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, sink, release := held(t)
		all := orders(1000)
		for range 12 {
			giveUp(t, sink, all)
		}
		require.Equal(t, 1000, courierkafka.Unanswered(k.client))
		require.Zero(t, courierkafka.Waiting(k.client), "a call that has returned waits for nothing")
		release()
		time.Sleep(time.Second)
		require.Equal(t, 1000, courierkafka.Unanswered(k.client))
		require.NoError(t, sink.ApplyBatch(t.Context(), all))
		require.Len(t, k.ids(t, "orders"), 1001, "none twice")
	})
}

// Records that were applied again leave room for those that were not.
func TestStoredRecordsThatWereAppliedAgainTakeNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, sink, release := held(t)
		kept := orders(1)
		others := orders(2001)[1:]
		giveUp(t, sink, kept)
		for range 6 {
			giveUp(t, sink, others)
			release()
			time.Sleep(time.Second)
			require.NoError(t, sink.ApplyBatch(t.Context(), others))
			require.Equal(t, 1, courierkafka.Unanswered(k.client))
			release = k.hold(t)
		}
		release()
		require.NoError(t, sink.ApplyBatch(t.Context(), kept))
		require.Len(t, k.ids(t, "orders"), 1+6*2000+1, "it is known still")
	})
}
