package courierkafka_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
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
	_ courier.BatchApplier[order] = (*courierkafka.Sink[order])(nil)
	_ courier.OrderedBatcher      = (*courierkafka.Sink[order])(nil)
	_ courier.Validator           = (*courierkafka.Sink[order])(nil)
)

// failures returns the listed errors by index.
func failures(tb testing.TB, err error) map[int]error {
	tb.Helper()
	var listed *courier.BatchError
	require.ErrorAs(tb, err, &listed)
	byIndex := make(map[int]error)
	last := -1
	for _, f := range listed.Failures {
		require.Greater(tb, f.Index, last, "each index once, in order")
		byIndex[f.Index], last = f.Err, f.Index
	}
	return byIndex
}

func requireClass(tb testing.TB, want courier.ErrorClass, err error) {
	tb.Helper()
	require.Error(tb, err)
	require.Equal(tb, want, courier.Classify(context.Background(), err), "%v", err)
}

func TestRecordIsStoredWithItsHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		created := time.Date(2020, 2, 3, 4, 5, 6, 7_000_000, time.UTC)
		all := []order{
			{
				ID: "id-1", Topic: "orders", Key: "key", Payload: []byte("hello"), CreatedAt: created,
				Headers: map[string]string{"Content-Type": "text/plain", "Origin": "first"},
				Trace:   map[string]string{"traceparent": "00-abc", "Origin": "second"},
			},
			{ID: "id-2", Topic: "orders"},
		}
		require.NoError(t, courierkafka.NewSink(k.client, message).ApplyBatch(t.Context(), all))
		require.Equal(t, map[string]string{"Content-Type": "text/plain", "Origin": "first"}, all[0].Headers, "is the caller's")
		stored := k.stored(t, "orders")
		require.Len(t, stored, 2)
		require.Equal(t, "key", string(stored[0].Key))
		require.Equal(t, "hello", string(stored[0].Value))
		require.True(t, created.Equal(stored[0].Timestamp))
		require.Equal(t, []kgo.RecordHeader{
			{Key: "id", Value: []byte("id-1")},
			{Key: "Content-Type", Value: []byte("text/plain")},
			{Key: "Origin", Value: []byte("second")},
			{Key: "traceparent", Value: []byte("00-abc")},
		}, stored[0].Headers)
		require.Nil(t, stored[1].Key)
		require.NotNil(t, stored[1].Value, "an empty payload is no tombstone")
		require.WithinDuration(t, time.Now(), stored[1].Timestamp, time.Second)
	})
}

func TestMessageWithoutIDOrWithASecondOne(t *testing.T) {
	_, err := order{Topic: "orders"}.Record()
	require.ErrorContains(t, err, "no id")
	for _, o := range []order{
		{ID: "1", Headers: map[string]string{"id": "2"}},
		{ID: "1", Trace: map[string]string{"id": "2"}, Headers: map[string]string{"a": "b"}},
	} {
		_, err = o.Record()
		require.ErrorContains(t, err, `the key "id"`)
	}
	require.Empty(t, courierkafka.RecordID(new(kgo.Record)))
}

func TestBatchArrivesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		all := orders(5000)
		require.NoError(t, courierkafka.NewSink(k.client, message).ApplyBatch(t.Context(), all))
		require.Equal(t, idsOf(all), k.ids(t, "orders"))
		require.NoError(t, courierkafka.NewSink(k.client, message).ApplyBatch(t.Context(), nil))
	})
}

// The client's linger holds nothing up, and a context that the message function sets
// ends nothing.
func TestApplyDoesNotLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		sink := courierkafka.NewSink(k.client, func(o order) (*kgo.Record, error) {
			r, err := o.Record()
			r.Context = ended
			return r, err
		})
		all := orders(2)
		require.NoError(t, sink.Apply(t.Context(), all[0])) // learns the partitions
		began := time.Now()
		require.NoError(t, sink.Apply(t.Context(), all[1]))
		require.Zero(t, time.Since(began))
	})
}

// A record that cannot be sent ends the call: the later ones may be of its key.
func TestWhatCannotBeSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		failing := errors.New("cannot encode")
		sink := courierkafka.NewSink(k.client, func(o order) (*kgo.Record, error) {
			switch o.ID {
			case "error":
				return nil, failing
			case "nil":
				return nil, nil
			case "kafka's":
				return nil, kerr.MessageTooLarge
			case "the cluster's":
				return nil, kerr.NotEnoughReplicas
			case "skip":
				return nil, courier.Skip(failing)
			}
			return o.Record()
		})
		for name, row := range map[string]struct {
			bad  order
			want string
		}{
			"error of the message function":     {order{ID: "error"}, "cannot encode"},
			"an error that looks like Kafka's":  {order{ID: "kafka's"}, "larger than the max"},
			"one that looks like the cluster's": {order{ID: "the cluster's"}, "in-sync replicas"},
			"neither a record nor an error":     {order{ID: "nil"}, "neither a record nor an error"},
			"no id":                             {order{}, "no id"},
			"no topic":                          {order{ID: "1"}, "it is empty"},
			"topic with a slash":                {order{ID: "1", Topic: "a/b"}, "letters, digits"},
			"topic with a letter beyond ASCII":  {order{ID: "1", Topic: "é"}, "letters, digits"},
			"topic that is too long":            {order{ID: "1", Topic: strings.Repeat("a", 250)}, "250 bytes"},
			"topic that is a folder":            {order{ID: "1", Topic: ".."}, "folder"},
			"more than the client sends":        {order{ID: "1", Topic: "orders", Payload: make([]byte, 1<<20)}, "ProducerBatchMaxBytes"},
			"more in headers than is sent":      {order{ID: "1", Topic: "orders", Headers: map[string]string{"a": strings.Repeat("a", 1<<20)}}, "ProducerBatchMaxBytes"},
			"an id of more than anybody logs":   {order{ID: strings.Repeat("1", 1000), Topic: "a b"}, "…"},
			"a topic of more than anybody logs": {order{ID: "1", Topic: strings.Repeat("a", 1000)}, "…"},
		} {
			all := orders(4)
			all[1].ID = "skip"
			all[2] = row.bad
			before := len(k.ids(t, "orders"))
			byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
			require.Len(t, byIndex, 3, name)
			requireClass(t, courier.ClassSkipped, byIndex[1])
			requireClass(t, courier.ClassPermanent, byIndex[2])
			require.ErrorContains(t, byIndex[2], row.want)
			require.ErrorIs(t, byIndex[2], courier.ErrDecode, "no broker was asked")
			require.ErrorIs(t, byIndex[3], courier.ErrBehindFailed)
			require.Equal(t, before+1, len(k.ids(t, "orders")), name)
			requireClass(t, courier.ClassPermanent, sink.Apply(t.Context(), row.bad))
		}
	})
}

// The sink finds a record too large just where the client would.
func TestSizeIsTheClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		client := k.connect(t, kgo.ProducerBatchMaxBytes(20_000))
		sink := courierkafka.NewSink(client, message)
		for name, o := range map[string]order{
			"payload": {ID: "1", Topic: "orders"},
			"key":     {ID: "1", Topic: "orders", Key: strings.Repeat("k", 9000)},
			"headers": {ID: "1", Topic: "orders", Headers: map[string]string{"a": strings.Repeat("a", 200), "b": "", "c": strings.Repeat("c", 64)}},
		} {
			taken := 0
			for size := 9_000; size < 20_100; size++ {
				o.Payload = make([]byte, size)
				m, err := o.Record()
				require.NoError(t, err)
				if !courierkafka.Fits(sink, m) {
					break
				}
				taken = size
			}
			for size, fits := range map[int]bool{taken: true, taken + 4: false} { // the client's bound has 3 bytes more once it knows the brokers' version
				o.Payload = make([]byte, size)
				m, err := o.Record()
				require.NoError(t, err)
				err = client.ProduceSync(t.Context(), m).FirstErr()
				require.Equal(t, fits, err == nil, "%s, %d bytes: %v", name, size, err)
			}
		}
		small := k.connect(t, kgo.MaxBufferedBytes(100))
		err := courierkafka.NewSink(small, message).Apply(t.Context(), order{ID: "1", Topic: "orders", Payload: make([]byte, 200)})
		requireClass(t, courier.ClassPermanent, err)
		require.ErrorContains(t, err, "MaxBufferedBytes")
	})
}

func TestDefaultTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		sink := courierkafka.NewSink(k.connect(t, kgo.DefaultProduceTopic("orders")), message)
		require.NoError(t, sink.Apply(t.Context(), order{ID: "1"}))
		always := courierkafka.NewSink(k.connect(t, kgo.DefaultProduceTopicAlways(), kgo.DefaultProduceTopic("orders")), message)
		require.NoError(t, always.Apply(t.Context(), order{ID: "2", Topic: "a/b"}))
		require.Equal(t, []string{"1", "2"}, k.ids(t, "orders"))
	})
}

func TestUnknownTopicIsRetryable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		sink := courierkafka.NewSink(k.client, message)
		lost := order{ID: "lost", Topic: "invoices"}
		byIndex := failures(t, sink.ApplyBatch(t.Context(), []order{lost, orders(1)[0]}))
		require.Len(t, byIndex, 1)
		requireClass(t, courier.ClassRetryable, byIndex[0])
		require.ErrorIs(t, byIndex[0], kerr.UnknownTopicOrPartition)
		require.ErrorContains(t, byIndex[0], `"invoices" (id "lost")`)
		require.ErrorContains(t, byIndex[0], "create it")

		k.createTopic(t, "invoices")
		require.NoError(t, sink.Apply(t.Context(), lost))
		require.Equal(t, []string{"lost"}, k.ids(t, "invoices"))
	})
}

// What a broker says of a whole topic or cluster is no verdict on a record.
func TestErrorsOfBrokers(t *testing.T) {
	for _, row := range []struct {
		err    *kerr.Error
		class  courier.ErrorClass
		advice string
	}{
		{kerr.TopicAuthorizationFailed, courier.ClassRetryable, "grant it"},
		{kerr.ClusterAuthorizationFailed, courier.ClassRetryable, "grant it"},
		{kerr.PolicyViolation, courier.ClassRetryable, ""},
		{kerr.NotEnoughReplicas, courier.ClassNotAttempted, "within the delivery timeout"},
		{kerr.LeaderNotAvailable, courier.ClassNotAttempted, "within the delivery timeout"},
		{kerr.MessageTooLarge, courier.ClassPermanent, "max.message.bytes"},
		{kerr.InvalidRecord, courier.ClassPermanent, ""},
		{kerr.InvalidTimestamp, courier.ClassPermanent, ""},
	} {
		t.Run(row.err.Message, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := startKafka(t)
				k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "wide", Err: row.err, Count: -1})
				sink := courierkafka.NewSink(k.client, message)
				bad := order{ID: "bad", Topic: "wide"}
				err := sink.Apply(t.Context(), bad)
				requireClass(t, row.class, err)
				require.ErrorContains(t, err, `"wide" (id "bad")`)
				require.ErrorContains(t, err, row.advice)

				byIndex := failures(t, sink.ApplyBatch(t.Context(), []order{orders(1)[0], bad}))
				require.Len(t, byIndex, 1)
				requireClass(t, row.class, byIndex[1])
				for _, err := range []error{err, byIndex[1]} { // it waits by itself: a broker has answered
					var rest interface{ RetryAt() time.Time }
					require.False(t, errors.As(err, &rest))
				}
			})
		})
	}
}

// An error of the client's first request fails one attempt, and the next one asks again.
func TestErrorsOfTheFirstRequest(t *testing.T) {
	for _, e := range []*kerr.Error{kerr.ClusterAuthorizationFailed, kerr.UnknownServerError, kerr.InvalidRequest, kerr.CoordinatorLoadInProgress} {
		t.Run(e.Message, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := startKafka(t)
				ill := k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.InitProducerID}, Err: e, Count: -1})
				sink := courierkafka.NewSink(k.client, message)
				for range 2 {
					err := sink.Apply(t.Context(), orders(1)[0])
					if e.Retriable {
						requireClass(t, courier.ClassNotAttempted, err)
						continue
					}
					requireClass(t, courier.ClassRetryable, err)
					require.ErrorIs(t, err, e)
					require.ErrorContains(t, err, "asking for a producer id")
					if e == kerr.ClusterAuthorizationFailed {
						require.ErrorContains(t, err, "grant it")
					}
				}
				ill.Remove()
				time.Sleep(3 * time.Second) // the client repeats a retriable one at its own pace
				require.NoError(t, sink.Apply(t.Context(), orders(1)[0]))
				require.Len(t, k.ids(t, "orders"), 1)
			})
		})
	}
}

// The first request asks a broker that is silent.
func TestNoAnswerToTheFirstRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		var answers atomic.Bool
		k.ControlKey(int16(kmsg.InitProducerID), func(kmsg.Request) (kmsg.Response, error, bool) {
			k.KeepControl()
			return nil, nil, !answers.Load()
		})
		cause := errors.New("shutting down")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, cause)
		defer cancel()
		sink := courierkafka.NewSink(k.client, message)
		err := sink.Apply(ctx, orders(1)[0])
		requireClass(t, courier.ClassNotAttempted, err)
		require.ErrorIs(t, err, cause)
		err = sink.Apply(t.Context(), orders(1)[0])
		requireClass(t, courier.ClassNotAttempted, err)
		require.ErrorContains(t, err, "have not given the client a producer id")
		answers.Store(true)
		require.NoError(t, sink.Apply(t.Context(), orders(1)[0]))
		require.Len(t, k.ids(t, "orders"), 1)
	})
}

func TestEndedContext(t *testing.T) {
	cause := errors.New("shutting down")
	t.Run("before", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			k := startKafka(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(cause)
			sink := courierkafka.NewSink(k.client, message)
			require.ErrorIs(t, sink.Apply(ctx, orders(1)[0]), cause)
			require.ErrorIs(t, sink.ApplyBatch(ctx, orders(3)), cause)
			require.Empty(t, k.ids(t, "orders"))
		})
	})
	t.Run("in the middle of a batch", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			k := startKafka(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			all := orders(10)
			sink := courierkafka.NewSink(k.connect(t, kgo.WithHooks(buffering(func(r *kgo.Record) {
				if courierkafka.RecordID(r) == all[5].ID {
					cancel(cause)
				}
			}))), message)
			byIndex := failures(t, sink.ApplyBatch(ctx, all))
			for index := 6; index < 10; index++ { // never sent
				require.ErrorContains(t, byIndex[index], "not sent")
				requireClass(t, courier.ClassNotAttempted, byIndex[index])
			}
			for _, err := range byIndex {
				require.ErrorIs(t, err, cause)
				require.Equal(t, courier.ClassNotAttempted, courier.Classify(ctx, err))
			}
			synctest.Wait()
			require.NoError(t, sink.ApplyBatch(t.Context(), all[10-len(byIndex):]))
			require.Equal(t, idsOf(all), k.ids(t, "orders"), "no record twice")
		})
	})
	t.Run("while another call hands its records over", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			k := startKafka(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Second, func() { cancel(cause) })
			sink := courierkafka.NewSink(k.connect(t, kgo.WithHooks(buffering(func(*kgo.Record) {
				time.Sleep(5 * time.Second)
			}))), message)
			all := orders(3)
			go func() { _ = sink.Apply(t.Context(), all[2]) }()
			synctest.Wait()
			began := time.Now()
			byIndex := failures(t, sink.ApplyBatch(ctx, all[:2]))
			require.Equal(t, time.Second, time.Since(began))
			for _, err := range byIndex {
				require.ErrorIs(t, err, cause)
				requireClass(t, courier.ClassNotAttempted, err)
			}
			time.Sleep(10 * time.Second)
			require.Equal(t, []string{all[2].ID}, k.ids(t, "orders"))
		})
	})
	t.Run("while the client's buffer is full", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			k := startKafka(t)
			release := k.hold(t)
			sink := courierkafka.NewSink(k.connect(t, kgo.MaxBufferedRecords(2)), message)
			ctx, cancel := context.WithCancelCause(t.Context())
			began := time.Now()
			time.AfterFunc(time.Second, func() { cancel(cause) })
			all := orders(5)
			byIndex := failures(t, sink.ApplyBatch(ctx, all))
			require.Equal(t, time.Second, time.Since(began))
			require.Len(t, byIndex, 5)
			for _, err := range byIndex {
				require.ErrorIs(t, err, cause)
			}
			release()
			synctest.Wait()
			require.NoError(t, sink.ApplyBatch(t.Context(), all))
			require.Equal(t, idsOf(all), k.ids(t, "orders"))
		})
	})
}

func TestConfigErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		plain, err := kgo.NewClient(kgo.SeedBrokers(k.seeds...), kgo.Dialer(k.dial))
		require.NoError(t, err)
		defer plain.Close()
		with := func(opts ...kgo.Opt) *courierkafka.Sink[order] {
			return courierkafka.NewSink(k.connect(t, opts...), message)
		}
		for name, row := range map[string]struct {
			sink           *courierkafka.Sink[order]
			field, problem string
		}{
			"zero sink":                      {new(courierkafka.Sink[order]), "Sink", "NewSink"},
			"nil client":                     {courierkafka.NewSink(nil, message), "client", "is nil"},
			"nil message":                    {courierkafka.NewSink[order](k.client, nil), "message", "is nil"},
			"client without ClientOptions":   {courierkafka.NewSink(plain, message), "client", "ClientOptions"},
			"delivery timeout":               {courierkafka.NewSink(k.client, message, courierkafka.WithDeliveryTimeout(0)), "WithDeliveryTimeout", "positive"},
			"acks":                           {with(kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite()), "client", "RequiredAcks"},
			"idempotence":                    {with(kgo.DisableIdempotentWrite()), "client", "DisableIdempotentWrite"},
			"cancellation":                   {with(kgo.AllowIdempotentProduceCancellation()), "client", "AllowIdempotentProduceCancellation"},
			"transactions":                   {with(kgo.TransactionalID("t")), "client", "TransactionalID"},
			"flushing":                       {with(kgo.ManualFlushing()), "client", "ManualFlushing"},
			"data loss":                      {with(kgo.StopProducerOnDataLossDetected()), "client", "StopProducerOnDataLossDetected"},
			"retries":                        {with(kgo.RecordRetries(10)), "client", "RecordRetries"},
			"timeout from the old timestamp": {with(kgo.RecordDeliveryTimeout(time.Minute)), "client", "RecordDeliveryTimeout"},
		} {
			for _, err := range []error{
				row.sink.Validate(),
				row.sink.Apply(t.Context(), order{}),
				row.sink.ApplyBatch(t.Context(), orders(2)),
			} {
				var fault *courier.ConfigError
				require.ErrorAs(t, err, &fault, name)
				require.Equal(t, row.field, fault.Field, name)
				require.Contains(t, fault.Problem, row.problem, name)
				requireClass(t, courier.ClassNotAttempted, err)
			}
		}
		require.Zero(t, new(courierkafka.Sink[order]).DataLoss())
		sink := courierkafka.NewSink(k.client, message, nil)
		require.NoError(t, sink.Validate())
		require.NoError(t, sink.Apply(t.Context(), orders(1)[0]), "a nil option is none")
	})
}

func TestClosedClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		k.onProduce(func(*kmsg.ProduceRequest) (kmsg.Response, error, bool) { return nil, nil, true }) // never answers
		client := k.connect(t)
		sink := courierkafka.NewSink(client, message)
		time.AfterFunc(time.Second, client.Close)
		byIndex := failures(t, sink.ApplyBatch(t.Context(), orders(3)))
		require.Len(t, byIndex, 3)
		for _, err := range byIndex {
			requireClass(t, courier.ClassNotAttempted, err)
			require.ErrorIs(t, err, kgo.ErrClientClosed)
		}
		err := sink.Apply(t.Context(), orders(1)[0])
		require.ErrorIs(t, err, courierkafka.ErrClosed)
		require.ErrorIs(t, err, courier.ErrConfig)
		require.ErrorIs(t, sink.Validate(), courierkafka.ErrClosed)
	})
}

func TestDataLossIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		sink := courierkafka.NewSink(k.client, message)
		k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "orders", Err: kerr.OutOfOrderSequenceNumber})
		require.NoError(t, sink.ApplyBatch(t.Context(), orders(3)))
		synctest.Wait()
		require.Equal(t, uint64(1), sink.DataLoss())
		require.Equal(t, idsOf(orders(3)), k.ids(t, "orders"))
	})
}

// A partition that moves to another broker costs no attempt, whatever the records'
// timestamps are.
func TestMovedPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t, kfake.NumBrokers(3), kfake.Ports(9092, 9093, 9094))
		sink := courierkafka.NewSink(k.client, message)
		all := orders(300)
		for i := range all {
			all[i].CreatedAt = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
		}
		for i := range 3 {
			require.NoError(t, k.MoveTopicPartition("orders", 0, int32(i)))
			require.NoError(t, sink.ApplyBatch(t.Context(), all[i*100:(i+1)*100]))
		}
		require.Equal(t, idsOf(all), k.ids(t, "orders"))
	})
}
