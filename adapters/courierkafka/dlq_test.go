package courierkafka_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"
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
	_ courier.DeadLetterSink[order] = (*courierkafka.DLQ[order])(nil)
	_ courier.Validator             = (*courierkafka.DLQ[order])(nil)
)

func header(r *kgo.Record, key string) string {
	var found []string
	for _, h := range r.Headers {
		if h.Key == key {
			found = append(found, string(h.Value))
		}
	}
	return strings.Join(found, " and ")
}

func TestLetterHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		dlq := courierkafka.NewDLQ(k.client, "wide", message)
		// As a retry returns it, with why it has given up.
		cause := error(&courier.RetryError{Reason: courier.ReasonPermanent, Attempts: 3, Cause: context.Canceled,
			Last: fmt.Errorf("calling: %w", &fs.PathError{Op: "open", Path: "/x", Err: errors.ErrUnsupported})})
		letter := courier.DeadLetter[order]{
			Record: order{ID: "1", Topic: "orders", Key: "key", Payload: []byte("value"), CreatedAt: time.Unix(0, 0),
				Headers: map[string]string{"tenant": "acme", "courier-error": "an older one", "courier-branch": "an older one", "courier-tracking-id": "4711", "kafka_dlt-trace": "kept", "kafka_dlt-original-topic": "older", "x-original-topic": "older"}},
			Key: "order-key", Error: cause, Reason: courier.ReasonPermanent, Attempts: 3,
			FirstFailedAt: time.Date(2024, 1, 2, 3, 4, 5, 6, time.UTC), FailedAt: time.Date(2024, 1, 2, 3, 4, 6, 0, time.UTC),
			Branch: "audit", FailedRedrives: 2,
		}
		before := letter.Record.Headers["courier-error"]
		require.NoError(t, dlq.Send(t.Context(), letter))
		require.Equal(t, before, letter.Record.Headers["courier-error"])
		stored := k.stored(t, "wide")
		require.Len(t, stored, 1)
		r := stored[0]
		require.Equal(t, "key", string(r.Key))
		require.Equal(t, "value", string(r.Value))
		require.WithinDuration(t, time.Now(), r.Timestamp, time.Second, "the retention counts from now")
		for key, want := range map[string]string{
			"id": "1", "tenant": "acme", "courier-tracking-id": "4711", "kafka_dlt-trace": "kept",
			"courier-error": cause.Error(), "courier-error-type": "*errors.errorString", "courier-reason": "permanent", "courier-attempts": "3",
			"courier-first-failed-at": "2024-01-02T03:04:05.000000006Z", "courier-failed-at": "2024-01-02T03:04:06Z",
			"courier-branch": "audit", "courier-key": "order-key", "courier-redriven": "2",
			"courier-original-topic": "orders", "kafka_dlt-original-topic": "orders", "x-original-topic": "orders",
			"kafka_dlt-exception-message": cause.Error(), "kafka_dlt-exception-fqcn": "*errors.errorString",
			"courier-original-partition": "", "courier-original-offset": "",
		} {
			require.Equal(t, want, header(r, key), key)
		}

		require.NoError(t, dlq.Send(t.Context(), courier.DeadLetter[order]{Record: order{ID: "2", Topic: "orders"}, Error: errors.New(strings.Repeat("é", 1<<20) + "a")}))
		long := header(k.stored(t, "wide")[1], "courier-error")
		require.Equal(t, strings.Repeat("é", 2048), long)
		const old = "of an older letter"
		stale := make(map[string]string)
		for _, h := range r.Headers {
			if h.Key != "id" && h.Key != "tenant" && h.Key != "courier-tracking-id" && h.Key != "kafka_dlt-trace" {
				stale[h.Key] = old
			}
		}
		for _, of := range []string{"courier", "kafka_dlt"} {
			for _, what := range []string{"partition", "offset", "timestamp"} {
				stale[of+"-original-"+what] = old
			}
		}
		require.Len(t, stale, 20)
		require.NoError(t, dlq.Send(t.Context(), courier.DeadLetter[order]{Record: order{ID: "3", Topic: "orders", Headers: stale}}))
		for _, h := range k.stored(t, "wide")[2].Headers { // it is of no branch, say
			require.NotEqual(t, old, string(h.Value), h.Key)
		}
		count, err := dlq.Count(t.Context())
		require.NoError(t, err)
		require.Equal(t, 3, count)
	})
}

// The letter of a record that was consumed says where it was.
func TestLetterOfAConsumedRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		dlq := courierkafka.NewDLQ(k.client, "orders", func(r *kgo.Record) (*kgo.Record, error) {
			return &kgo.Record{Topic: "elsewhere", Key: r.Key, Value: r.Value, Headers: r.Headers}, nil
		})
		consumed := &kgo.Record{Topic: "wide", Partition: 1, Offset: 258, Timestamp: time.UnixMilli(1_700_000_000_123), Key: []byte("key"), Value: nil}
		require.NoError(t, dlq.Send(t.Context(), courier.DeadLetter[*kgo.Record]{Record: consumed, Error: errors.New("bad")}))
		require.Equal(t, "wide", consumed.Topic, "is the caller's")
		require.Empty(t, consumed.Headers)
		stored := k.stored(t, "orders")
		require.Len(t, stored, 1)
		require.Nil(t, stored[0].Value, "a tombstone stays one")
		require.Equal(t, "wide", header(stored[0], "courier-original-topic"))
		require.Equal(t, "1", header(stored[0], "courier-original-partition"))
		require.Equal(t, "258", header(stored[0], "courier-original-offset"))
		require.Equal(t, "2023-11-14T22:13:20.123Z", header(stored[0], "courier-original-timestamp"))
		require.Equal(t, uint32(1), binary.BigEndian.Uint32([]byte(header(stored[0], "kafka_dlt-original-partition"))))
		require.Equal(t, uint64(258), binary.BigEndian.Uint64([]byte(header(stored[0], "kafka_dlt-original-offset"))))
		require.Equal(t, uint64(1_700_000_000_123), binary.BigEndian.Uint64([]byte(header(stored[0], "kafka_dlt-original-timestamp"))))
	})
}

// A record whose letter no broker takes stays pending, and is parked later.
func TestDeadLetterTopicInAPipeline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		dlq := courierkafka.NewDLQ(k.client, "wide", message)
		all := orders(10)
		all[4].Topic = "a/b"
		refusing := k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "wide", Err: kerr.TopicAuthorizationFailed, Count: -1})
		time.AfterFunc(time.Minute, refusing.Remove)
		applier, _ := courier.ResilientApplier(courierkafka.NewSink(k.client, message), &courier.ResilientConfig[order]{DLQ: dlq})
		box := newOutbox(all)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		require.NoError(t, courier.Sync(box.fetch, applier.Apply, box.mark).Start(ctx))
		require.Empty(t, box.pending)
		require.Len(t, k.ids(t, "orders"), 9)
		require.Equal(t, []string{all[4].ID}, k.ids(t, "wide"))
	})
}

func TestDLQConfigErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		for field, dlq := range map[string]*courierkafka.DLQ[order]{
			"DLQ":     new(courierkafka.DLQ[order]),
			"client":  courierkafka.NewDLQ(nil, "wide", message),
			"message": courierkafka.NewDLQ[order](k.client, "wide", nil),
			"topic":   courierkafka.NewDLQ(k.client, "a/b", message),
		} {
			_, counted := dlq.Count(t.Context())
			for _, err := range []error{dlq.Validate(), dlq.Send(t.Context(), courier.DeadLetter[order]{}), counted} {
				var fault *courier.ConfigError
				require.ErrorAs(t, err, &fault)
				require.Equal(t, field, fault.Field)
			}
		}
	})
}

func TestLetterWithoutARecordIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		dlq := courierkafka.NewDLQ(k.client, "wide", message)
		require.ErrorContains(t, dlq.Send(t.Context(), courier.DeadLetter[order]{}), "no id")
		empty := courierkafka.NewDLQ(k.client, "wide", func(order) (*kgo.Record, error) { return nil, nil })
		require.ErrorContains(t, empty.Send(t.Context(), courier.DeadLetter[order]{}), "neither a record nor an error")
	})
}

func TestCountErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := startKafka(t)
		_, err := courierkafka.NewDLQ(k.client, "missing", message).Count(t.Context())
		require.ErrorIs(t, err, kerr.UnknownTopicOrPartition)
		require.ErrorContains(t, err, "create it")
		dlq := courierkafka.NewDLQ(k.client, "wide", message)
		k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: "wide", Err: kerr.TopicAuthorizationFailed, Count: 1})
		_, err = dlq.Count(t.Context())
		require.ErrorIs(t, err, kerr.TopicAuthorizationFailed)
	})
}
