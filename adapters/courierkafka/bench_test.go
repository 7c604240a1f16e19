package courierkafka_test

import (
	"context"
	"log/slog"
	"math"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/courierkafka"
)

const benchBatch = 1000

// startTCP starts a cluster that takes everything and keeps nothing, on this machine's
// network, and a client of it.
func startTCP(b testing.TB) *kgo.Client {
	b.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "orders"), kfake.BlackholeProduce())
	require.NoError(b, err)
	b.Cleanup(cluster.Close)
	client, err := kgo.NewClient(append(courierkafka.ClientOptions(), kgo.SeedBrokers(cluster.ListenAddrs()...))...)
	require.NoError(b, err)
	b.Cleanup(client.Close)
	require.NoError(b, client.ProduceSync(b.Context(), &kgo.Record{Topic: "orders"}).FirstErr())
	return client
}

// benchSource hands out batches of rows that differ in their ids.
type benchSource struct {
	rows   []order
	next   int
	marked int
	until  int
}

func newBenchSource() *benchSource {
	s := &benchSource{rows: make([]order, benchBatch)}
	for i := range s.rows {
		s.rows[i] = order{Topic: "orders", Key: "key", Payload: make([]byte, 256), CreatedAt: time.Now()}
	}
	return s
}

func (s *benchSource) fetch(context.Context) ([]order, error) {
	if s.next >= s.until {
		return nil, nil
	}
	for i := range s.rows {
		s.next++
		s.rows[i].ID = strconv.Itoa(s.next)
	}
	return s.rows, nil
}

func (s *benchSource) mark(_ context.Context, rows []order) error {
	s.marked += len(rows)
	return nil
}

func reportRecords(b *testing.B, records int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(records), "ns/record")
	b.ReportMetric(float64(records)/b.Elapsed().Seconds(), "records/s")
}

// The sink allocates no more for a record than its promise.
func TestSinkAllocatesAsTheClientDoes(t *testing.T) {
	client, source := startTCP(t), newBenchSource()
	sink := courierkafka.NewSink(client, message)
	source.until = math.MaxInt
	byHand := testing.AllocsPerRun(20, func() { produceByHand(t, client, source) })
	bySink := testing.AllocsPerRun(20, func() {
		rows, _ := source.fetch(t.Context())
		require.NoError(t, sink.ApplyBatch(t.Context(), rows))
	})
	require.Less(t, (bySink-byHand)/benchBatch, 0.1, "allocations for a record, %v and %v for %d", bySink, byHand, benchBatch)
}

// produceByHand relays a batch: fetch, a promise for each record, one mark.
func produceByHand(tb testing.TB, client *kgo.Client, source *benchSource) {
	tb.Helper()
	rows, _ := source.fetch(tb.Context())
	errs := make([]error, len(rows))
	for i, row := range rows {
		r, err := row.Record()
		require.NoError(tb, err)
		client.Produce(context.Background(), r, func(_ *kgo.Record, err error) { errs[i] = err })
	}
	require.NoError(tb, client.Flush(tb.Context()))
	for _, err := range errs {
		require.NoError(tb, err)
	}
	_ = source.mark(tb.Context(), rows)
}

// The floor: the same without a sink.
func BenchmarkByHand(b *testing.B) {
	client, source := startTCP(b), newBenchSource()
	b.ReportAllocs()
	for b.Loop() {
		source.until += benchBatch
		produceByHand(b, client, source)
	}
	reportRecords(b, source.marked)
}

func BenchmarkApplyBatch(b *testing.B) {
	client, source := startTCP(b), newBenchSource()
	sink := courierkafka.NewSink(client, message)
	b.ReportAllocs()
	for b.Loop() {
		source.until += benchBatch
		rows, _ := source.fetch(b.Context())
		require.NoError(b, sink.ApplyBatch(b.Context(), rows))
		_ = source.mark(b.Context(), rows)
	}
	reportRecords(b, source.marked)
}

// A whole relay: coordinator, retry, breaker and dead letter queue around the sink.
func BenchmarkRelay(b *testing.B) {
	client, source := startTCP(b), newBenchSource()
	applier, _ := courier.ResilientApplier[order](courierkafka.NewSink(client, message), nil)
	coordinator := courier.NewPollingCoordinator(courier.BatchSourceFunc[order]{FetchFunc: source.fetch, MarkFunc: source.mark},
		applier, courier.WithBatchSize(benchBatch), courier.WithLogger(slog.New(slog.DiscardHandler)))
	b.ReportAllocs()
	for b.Loop() {
		source.until += benchBatch
		require.NoError(b, coordinator.RunOnce(b.Context()))
	}
	reportRecords(b, source.marked)
}

// One record at a time, as without the batch path.
func BenchmarkApply(b *testing.B) {
	client, source := startTCP(b), newBenchSource()
	source.until = 1
	rows, _ := source.fetch(b.Context())
	sink := courierkafka.NewSink(client, message)
	n := 0
	for b.Loop() {
		n++
		require.NoError(b, sink.Apply(b.Context(), rows[0]))
	}
	reportRecords(b, n)
}
