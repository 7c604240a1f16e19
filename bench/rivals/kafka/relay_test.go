package kafka

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
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

// produce stores a batch. Flush ends the linger of the client, and waits for all promises.
func produce(client *kgo.Client, batch []row) error {
	errs := make([]error, len(batch))
	for i, r := range batch {
		record := &kgo.Record{Topic: r.topic, Key: []byte(r.key), Value: r.payload, Headers: []kgo.RecordHeader{{Key: "id", Value: []byte(r.id)}}}
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
