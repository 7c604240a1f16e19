package kafka

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/courierkafka"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/erfanmomeniii/courier/bench/rivals/internal/full"
)

type row struct {
	seq            int64
	id, topic, key string
	payload        []byte
}

// The best loop by hand: fetch 1000, one promise for each record, wait for all, mark with
// one statement.
func BenchmarkKafkaRelay_HandWritten(b *testing.B) {
	measure(b, func(bed *bed) {
		client := newClient(b, bed.address)
		defer client.Close()
		fetch, err := bed.db.Prepare(`SELECT seq, id, topic, key, payload FROM courier_outbox WHERE processed_at IS NULL AND seq > ? ORDER BY seq LIMIT ?`)
		require.NoError(b, err)
		mark, err := bed.db.Prepare(`UPDATE courier_outbox SET processed_at = ? WHERE seq IN (SELECT value FROM json_each(?))`)
		require.NoError(b, err)
		last := int64(0)
		for {
			found, err := fetch.Query(last, batchSize)
			require.NoError(b, err)
			batch := scan(b, found)
			if len(batch) == 0 {
				break
			}
			last = batch[len(batch)-1].seq
			require.NoError(b, produce(client, batch))
			seqs := make([]int64, len(batch))
			for i, r := range batch {
				seqs[i] = r.seq
			}
			list, err := json.Marshal(seqs)
			require.NoError(b, err)
			_, err = mark.Exec(time.Now().UnixMicro(), string(list))
			require.NoError(b, err)
		}
		require.NoError(b, errors.Join(fetch.Close(), mark.Close()))
	})
}

// The same with what Courier promises beside: rows that failed or wait come when they are
// due, consumers get headers, trace and time, a row is marked only if it is the one that was
// stored, and no call to the database waits for ever.
func BenchmarkKafkaRelay_HandWrittenWhole(b *testing.B) {
	measure(b, func(bed *bed) {
		client := newClient(b, bed.address)
		defer client.Close()
		fetch, err := bed.db.Prepare(`SELECT seq, id, topic, key, payload, headers, trace, created_at, attempts FROM (
			SELECT * FROM (SELECT seq FROM courier_outbox WHERE processed_at IS NULL AND attempts > 0 AND available_at <= ?2 ORDER BY available_at, seq LIMIT ?1)
			UNION ALL SELECT * FROM (SELECT seq FROM courier_outbox WHERE processed_at IS NULL AND attempts < 1 AND available_at <= ?2 ORDER BY seq LIMIT ?1)
			ORDER BY seq LIMIT ?1) CROSS JOIN courier_outbox USING (seq)`)
		require.NoError(b, err)
		mark, err := bed.db.Prepare(`UPDATE courier_outbox SET processed_at = ?2 WHERE seq IN (
			SELECT t.seq FROM json_each(?1) k CROSS JOIN courier_outbox t ON t.seq = CAST(k.value AS INTEGER) AND k.value = t.seq || '.' || t.id)`)
		require.NoError(b, err)
		for n := batchSize; n > 0; {
			n = relayWhole(b, client, fetch, mark)
		}
		require.NoError(b, errors.Join(fetch.Close(), mark.Close()))
	})
}

func relayWhole(b *testing.B, client *kgo.Client, fetch, mark *sql.Stmt) int {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	found, err := fetch.QueryContext(ctx, batchSize, time.Now().UnixMicro())
	require.NoError(b, err)
	records, marks := make([]*kgo.Record, 0, batchSize), make([]string, 0, batchSize)
	for found.Next() {
		var r row
		var headers, trace string
		var created int64
		var attempts int
		require.NoError(b, found.Scan(&r.seq, &r.id, &r.topic, &r.key, &r.payload, &headers, &trace, &created, &attempts))
		record := r.record()
		record.Timestamp = time.UnixMicro(created)
		for _, more := range []string{headers, trace} {
			if more == "{}" || more == "" {
				continue
			}
			var pairs map[string]string
			require.NoError(b, json.Unmarshal([]byte(more), &pairs))
			for key, value := range pairs {
				record.Headers = append(record.Headers, kgo.RecordHeader{Key: key, Value: []byte(value)})
			}
		}
		records = append(records, record)
		marks = append(marks, strconv.FormatInt(r.seq, 10)+"."+r.id)
	}
	require.NoError(b, found.Err())
	if len(records) == 0 {
		return 0
	}
	require.NoError(b, store(client, records))
	list, err := json.Marshal(marks)
	require.NoError(b, err)
	_, err = mark.ExecContext(ctx, string(list), time.Now().UnixMicro())
	require.NoError(b, err)
	return len(records)
}

func scan(b *testing.B, found *sql.Rows) []row {
	batch := make([]row, 0, batchSize)
	for found.Next() {
		var r row
		require.NoError(b, found.Scan(&r.seq, &r.id, &r.topic, &r.key, &r.payload))
		batch = append(batch, r)
	}
	require.NoError(b, found.Err())
	return batch
}

func (r row) record() *kgo.Record {
	return &kgo.Record{Topic: r.topic, Key: []byte(r.key), Value: r.payload, Headers: []kgo.RecordHeader{{Key: "id", Value: []byte(r.id)}}}
}

func produce(client *kgo.Client, batch []row) error {
	records := make([]*kgo.Record, len(batch))
	for i, r := range batch {
		records[i] = r.record()
	}
	return store(client, records)
}

// store sends a batch. Flush ends the linger of the client, and waits for all promises.
func store(client *kgo.Client, records []*kgo.Record) error {
	errs := make([]error, len(records))
	for i, record := range records {
		client.Produce(context.Background(), record, func(_ *kgo.Record, err error) { errs[i] = err })
	}
	if err := client.Flush(context.Background()); err != nil {
		return err
	}
	return errors.Join(errs...)
}

func BenchmarkKafkaRelay_Courier(b *testing.B) {
	measure(b, func(bed *bed) {
		client := newClient(b, bed.address, courierkafka.ClientOptions()...)
		defer client.Close()
		ctx, stop := context.WithCancel(context.Background())
		defer stop()
		source := &full.Source{Source: bed.outbox.Source(), Left: *rows, Done: stop}
		require.NoError(b, courier.NewPollingCoordinator(source, bed.applier(client), courier.WithBatchSize(batchSize)).Start(ctx))
	})
}

func BenchmarkKafkaRelay_CourierStream(b *testing.B) {
	measure(b, func(bed *bed) {
		client := newClient(b, bed.address, courierkafka.ClientOptions()...)
		defer client.Close()
		ctx, stop := context.WithCancel(context.Background())
		defer stop()
		source := &full.Stream{Stream: bed.outbox.Stream(10 * time.Millisecond), Left: *rows, Done: stop}
		require.NoError(b, courier.NewStreamingCoordinator(source, bed.applier(client), courier.WithBatchSize(batchSize), courier.WithPrefetch(2)).Start(ctx))
	})
}

func (bed *bed) applier(client *kgo.Client) courier.Applier[couriersql.Row] {
	return applierOf(client, bed.outbox)
}

func applierOf(client *kgo.Client, outbox *couriersql.Outbox) courier.Applier[couriersql.Row] {
	sink := courierkafka.NewSink(client, func(m couriersql.Message) (*kgo.Record, error) { return courierkafka.Message(m).Record() })
	applier, _ := courier.ResilientApplier(courier.NewDecodingApplier(sink, couriersql.Row.Message),
		&courier.ResilientConfig[couriersql.Row]{DLQ: outbox.DLQ()})
	return applier
}
