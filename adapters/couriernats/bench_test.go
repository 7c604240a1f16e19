package couriernats_test

import (
	"strconv"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier/adapters/couriernats"
)

const benchBatch = 1000

// payload and ids of one batch, new at each call.
func benchOrders(all []order, next *int) {
	payload := make([]byte, 256)
	for i := range all {
		*next++
		all[i] = order{id: strconv.Itoa(*next), subject: "orders.placed", payload: payload}
	}
}

func reportRecords(b *testing.B, records int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(records), "ns/record")
	b.ReportMetric(float64(records)/b.Elapsed().Seconds(), "records/s")
}

// The floor: the same messages without a sink, and with no result for a record.
func BenchmarkRawPublishAsync(b *testing.B) {
	broker := startBroker(b, jetstream.StreamConfig{})
	all, next := make([]order, benchBatch), 0
	b.ReportAllocs()
	for b.Loop() {
		benchOrders(all, &next)
		for _, o := range all {
			m, err := o.msg()
			require.NoError(b, err)
			_, err = broker.js.PublishMsgAsync(m)
			require.NoError(b, err)
		}
		<-broker.js.PublishAsyncComplete()
	}
	reportRecords(b, next)
}

func BenchmarkApplyBatch(b *testing.B) {
	for _, window := range []int{100, 500, 1000} {
		b.Run("window="+strconv.Itoa(window), func(b *testing.B) {
			broker := startBroker(b, jetstream.StreamConfig{})
			sink := couriernats.NewSink(broker.js, message, couriernats.WithMaxPending(window))
			all, next := make([]order, benchBatch), 0
			b.ReportAllocs()
			for b.Loop() {
				benchOrders(all, &next)
				require.NoError(b, sink.ApplyBatch(b.Context(), all))
			}
			reportRecords(b, next)
		})
	}
}

// One record at a time, as without the batch path.
func BenchmarkApply(b *testing.B) {
	broker := startBroker(b, jetstream.StreamConfig{})
	sink := couriernats.NewSink(broker.js, message)
	all, next := make([]order, 1), 0
	for b.Loop() {
		benchOrders(all, &next)
		require.NoError(b, sink.Apply(b.Context(), all[0]))
	}
	reportRecords(b, next)
}
