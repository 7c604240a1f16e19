package couriernats_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriernats"
)

// retryAt returns when an error asks to be tried again, zero if it does not.
func retryAt(err error) time.Time {
	var pausing interface{ RetryAt() time.Time }
	if errors.As(err, &pausing) && errors.Is(err, courier.ErrOpen) {
		return pausing.RetryAt()
	}
	return time.Time{}
}

// A full stream says nothing of the records that it refuses, neither of a part of
// a batch nor of a whole one, and pauses the relay.
func TestFullStreamIsNoRecordsFault(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string]jetstream.StreamConfig{
		"messages": {MaxMsgs: 3, Discard: jetstream.DiscardNew},
		"bytes":    {MaxBytes: 300, Discard: jetstream.DiscardNew},
		"queue":    {MaxMsgs: 3, Discard: jetstream.DiscardNew, Retention: jetstream.WorkQueuePolicy},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, limit)
			sink := couriernats.NewSink(b.js, message, couriernats.WithMaxPending(8))
			all := orders(24)
			before := time.Now()
			byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
			got := len(all) - len(byIndex)
			require.Positive(t, got)
			require.Equal(t, idsOf(all[:got]), b.ids(t))
			again := failures(t, sink.ApplyBatch(t.Context(), all[got:]))
			require.Len(t, again, len(all)-got)
			for index := range all[got:] {
				for _, err := range []error{byIndex[got+index], again[index]} {
					requireClass(t, courier.ClassNotAttempted, err)
					require.ErrorContains(t, err, "exceeded", "it says why")
					require.Greater(t, retryAt(err), before)
					require.Less(t, retryAt(err), time.Now().Add(2*time.Second))
				}
			}
			err := sink.Apply(t.Context(), all[got])
			requireClass(t, courier.ClassNotAttempted, err)
			require.NotZero(t, retryAt(err))
			require.ErrorContains(t, again[len(again)-1], "not published", "a part that was refused is enough")

			stream, err := b.js.Stream(t.Context(), "ORDERS")
			require.NoError(t, err)
			require.NoError(t, stream.Purge(t.Context()))
			require.NoError(t, sink.Apply(t.Context(), all[got]))
		})
	}
}

// A server without room says nothing of the records either.
func TestServerWithoutRoomIsNoRecordsFault(t *testing.T) {
	t.Parallel()
	b := startBrokerWith(t, jetstream.StreamConfig{}, func(o *server.Options) { o.JetStreamMaxStore = 200_000 })
	sink := couriernats.NewSink(b.js, message)
	all := orders(20)
	for i := range all {
		all[i].payload = make([]byte, 20_000)
	}
	byIndex := failures(t, sink.ApplyBatch(t.Context(), all))
	got := len(all) - len(byIndex)
	require.Positive(t, got)
	for _, err := range append([]error{sink.Apply(t.Context(), all[got])}, byIndex[got], byIndex[len(all)-1]) {
		requireClass(t, courier.ClassNotAttempted, err)
		require.ErrorContains(t, err, "resource")
		require.NotZero(t, retryAt(err))
	}
	stream, err := b.js.Stream(t.Context(), "ORDERS")
	require.NoError(t, err)
	require.NoError(t, stream.Purge(t.Context()))
	require.NoError(t, sink.ApplyBatch(t.Context(), all[got:got+5]))
}

// One subject may be full for ever: where others get through it is its record's
// matter.
func TestFullSubject(t *testing.T) {
	t.Parallel()
	b := startBroker(t, jetstream.StreamConfig{
		MaxMsgs: 100, MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew, DiscardNewPerSubject: true,
	})
	sink := couriernats.NewSink(b.js, message)
	require.NoError(t, sink.Apply(t.Context(), order{id: "1", subject: "orders.once"}))
	once := order{id: "2", subject: "orders.once"}
	byIndex := failures(t, sink.ApplyBatch(t.Context(), []order{once, {id: "3", subject: "orders.other"}}))
	require.Len(t, byIndex, 1)
	requireClass(t, courier.ClassRetryable, byIndex[0])
	require.ErrorContains(t, byIndex[0], "per subject")
	byIndex = failures(t, sink.ApplyBatch(t.Context(), []order{{id: "4", subject: "orders.another"}, once}))
	requireClass(t, courier.ClassNotAttempted, byIndex[1]) // nothing tells it from a full stream
	err := sink.Apply(t.Context(), once)
	requireClass(t, courier.ClassNotAttempted, err)
	require.NotZero(t, retryAt(err))
}

// However a relay is put together, and however long a stream is full, nothing is
// parked and everything arrives.
func TestRelayOutlastsAFullStream(t *testing.T) {
	t.Parallel()
	const records = 100
	resilient := func(sink *couriernats.Sink[order]) (courier.Applier[order], courier.DLQ[order]) {
		return courier.ResilientApplier(sink, nil)
	}
	for name, row := range map[string]struct {
		stack   func(*couriernats.Sink[order]) (courier.Applier[order], courier.DLQ[order])
		stream  bool
		options []courier.Option
	}{
		"polling": {stack: resilient},
		"polling, small parts and workers": {stack: resilient, options: []courier.Option{
			courier.WithWorkers(3), courier.WithApplyBatchSize(7),
		}},
		"single records": {stack: func(sink *couriernats.Sink[order]) (courier.Applier[order], courier.DLQ[order]) {
			return courier.ResilientApplier[order](courier.ProcessFunc(sink.Apply), nil)
		}},
		"without a breaker": {stack: func(sink *couriernats.Sink[order]) (courier.Applier[order], courier.DLQ[order]) {
			return courier.WithDLQ(courier.WithRetry[order](sink))
		}},
		"a queue alone": {stack: func(sink *couriernats.Sink[order]) (courier.Applier[order], courier.DLQ[order]) {
			return courier.WithDLQ[order](sink)
		}},
		"streaming": {stack: resilient, stream: true, options: []courier.Option{courier.WithStreamWorkers(4)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, jetstream.StreamConfig{MaxMsgs: 30, Discard: jetstream.DiscardNew, Retention: jetstream.WorkQueuePolicy})
			applier, dlq := row.stack(couriernats.NewSink(b.js, message))
			var mu sync.Mutex
			marked := make(map[string]bool)
			mark := func(_ context.Context, list []order) error {
				mu.Lock()
				defer mu.Unlock()
				for _, o := range list {
					marked[o.id] = true
				}
				return nil
			}
			pending := func() (list []order) {
				mu.Lock()
				defer mu.Unlock()
				for _, o := range orders(records) {
					if !marked[o.id] {
						list = append(list, o)
					}
				}
				return list
			}
			var coordinator interface{ Start(context.Context) error }
			if row.stream {
				feed := make(chan order, records)
				for _, o := range orders(records) {
					feed <- o
				}
				coordinator = courier.NewStreamingCoordinator(courier.NewChannelSource(feed, mark), applier, row.options...)
			} else {
				fetch := func(context.Context) ([]order, error) {
					list := pending()
					return list[:min(len(list), 50)], nil
				}
				source := courier.BatchSourceFunc[order]{FetchFunc: fetch, MarkFunc: mark}
				coordinator = courier.NewPollingCoordinator(source, applier, append(row.options, courier.WithFastPolling())...)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- coordinator.Start(ctx) }()

			// A consumer that takes all there is whenever the stream has been full.
			stream, err := b.js.Stream(t.Context(), "ORDERS")
			require.NoError(t, err)
			consumer, err := stream.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "c", AckPolicy: jetstream.AckExplicitPolicy})
			require.NoError(t, err)
			arrived := make(map[string]int)
			require.Eventually(t, func() bool {
				info, err := stream.Info(t.Context())
				if err != nil || info.State.Msgs < 30 && len(pending()) > 0 {
					return false
				}
				batch, err := consumer.FetchNoWait(100)
				if err != nil {
					return false
				}
				for m := range batch.Messages() {
					arrived[couriernats.RecordID(m.Headers())]++
					if m.Ack() != nil {
						return false
					}
				}
				return len(arrived) == records && len(pending()) == 0
			}, 60*time.Second, 20*time.Millisecond)
			cancel()
			require.NoError(t, <-ended)
			n, err := dlq.Count(t.Context())
			require.NoError(t, err)
			require.Zero(t, n, "no healthy record is parked")
			for id, copies := range arrived {
				require.Equal(t, 1, copies, id)
			}
		})
	}
}
