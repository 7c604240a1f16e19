package postgres

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

// BenchmarkShared is what many instances may run at once.
func BenchmarkShared(b *testing.B) {
	for _, instances := range []int{1, 2} {
		suffix := map[int]string{1: "/1", 2: "/2"}[instances]
		b.Run("courier"+suffix, func(b *testing.B) {
			measure(b, *rows, nil, func(bed *bed) { bed.courier(instances) })
		})
		b.Run("delete-returning"+suffix, func(b *testing.B) {
			measure(b, *rows, nil, func(bed *bed) { bed.each(instances, bed.deleteReturning) })
		})
		b.Run("select-delete"+suffix, func(b *testing.B) {
			measure(b, *rows, nil, func(bed *bed) { bed.each(instances, bed.selectDelete) })
		})
	}
	b.Run("courier-keep/1", func(b *testing.B) {
		measure(b, *rows, []couriersql.Option{couriersql.WithKeep()}, func(bed *bed) { bed.courier(1) })
	})
	b.Run("select-update/1", func(b *testing.B) {
		measure(b, *rows, nil, func(bed *bed) { bed.each(1, bed.selectUpdate) })
	})
	b.Run("courier-lease/1", func(b *testing.B) {
		measure(b, *rows, []couriersql.Option{couriersql.WithLease(time.Minute)}, func(bed *bed) { bed.courier(1) })
	})
}

// BenchmarkLeader is for one instance at a time.
func BenchmarkLeader(b *testing.B) {
	b.Run("courier", func(b *testing.B) {
		measure(b, *rows, []couriersql.Option{couriersql.WithStrictOrder()}, func(bed *bed) { bed.courier(1, courier.WithPrefetch(2)) })
	})
	b.Run("courier-stream", func(b *testing.B) {
		measure(b, *rows, []couriersql.Option{couriersql.WithStrictOrder()}, func(bed *bed) { bed.courierStream() })
	})
	b.Run("keyset-pipelined", func(b *testing.B) {
		measure(b, *rows, nil, func(bed *bed) { bed.keyset() })
	})
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// courier relays with several coordinators, each with a source of its own.
func (bed *bed) courier(instances int, opts ...courier.Option) {
	ctx, stop := context.WithCancel(context.Background())
	var left atomic.Int64
	left.Store(int64(bed.pending()))
	opts = append(opts, courier.WithBatchSize(batchSize), courier.WithInterval(10*time.Millisecond), courier.WithLogger(quiet))
	bed.each(instances, func() {
		applier, _ := courier.ResilientApplier(courier.NewDecodingApplier(bed.sink, couriersql.Row.Message),
			&courier.ResilientConfig[couriersql.Row]{DLQ: bed.outbox.DLQ()})
		source := &counting{Source: bed.outbox.Source(), left: &left, done: stop}
		require.NoError(bed.b, courier.NewPollingCoordinator(source, applier, opts...).Start(ctx))
	})
}

// courierStream fetches, applies and marks at once.
func (bed *bed) courierStream() {
	ctx, stop := context.WithCancel(context.Background())
	var left atomic.Int64
	left.Store(int64(bed.pending()))
	applier, _ := courier.ResilientApplier(courier.NewDecodingApplier(bed.sink, couriersql.Row.Message),
		&courier.ResilientConfig[couriersql.Row]{DLQ: bed.outbox.DLQ()})
	source := &countingStream{Stream: bed.outbox.Stream(10 * time.Millisecond), left: &left, done: stop}
	require.NoError(bed.b, courier.NewStreamingCoordinator(source, applier,
		courier.WithBatchSize(batchSize), courier.WithPrefetch(2), courier.WithLogger(quiet)).Start(ctx))
}

type countingStream struct {
	*couriersql.Stream
	left *atomic.Int64
	done func()
}

func (c *countingStream) Mark(ctx context.Context, rows []couriersql.Row) error {
	err := c.Stream.Mark(ctx, rows)
	if err == nil && c.left.Add(-int64(len(rows))) == 0 {
		c.done()
	}
	return err
}

func (bed *bed) each(instances int, relay func()) {
	var group sync.WaitGroup
	for range instances {
		group.Go(relay)
	}
	group.Wait()
}

// counting stops the run when everything is marked.
type counting struct {
	*couriersql.Source
	left *atomic.Int64
	done func()
}

func (c *counting) Mark(ctx context.Context, rows []couriersql.Row) error {
	err := c.Source.Mark(ctx, rows)
	if err == nil && c.left.Add(-int64(len(rows))) == 0 {
		c.done()
	}
	return err
}

// row is what the loops by hand need of one.
type row struct {
	seq       int64
	id, topic string
	payload   []byte
}

func scan(rows pgx.Rows, err error) ([]row, error) {
	if err != nil {
		return nil, err
	}
	batch := make([]row, 0, batchSize)
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.seq, &r.id, &r.topic, &r.payload); err != nil {
			return nil, err
		}
		batch = append(batch, r)
	}
	return batch, rows.Err()
}

func seqsOf(batch []row) []int64 {
	seqs := make([]int64, len(batch))
	for i, r := range batch {
		seqs[i] = r.seq
	}
	return seqs
}

// publish sends a batch and waits for all acks.
func (bed *bed) publish(batch []row) {
	acks := make([]jetstream.PubAckFuture, len(batch))
	for i, r := range batch {
		var err error
		acks[i], err = bed.js.PublishMsgAsync(&nats.Msg{Subject: r.topic, Data: r.payload, Header: nats.Header{jetstream.MsgIDHeader: {r.id}}})
		if err != nil {
			panic(err)
		}
	}
	for _, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			panic(err)
		}
	}
}

// inTransactions runs a loop whose rows are held by a transaction until they are
// published.
func (bed *bed) inTransactions(fetch, mark string) {
	ctx := context.Background()
	for empty := false; !empty; {
		err := pgx.BeginFunc(ctx, bed.pool, func(tx pgx.Tx) error {
			batch, err := scan(tx.Query(ctx, fetch, batchSize))
			if err != nil || len(batch) == 0 {
				empty = true
				return err
			}
			bed.publish(batch)
			if mark == "" {
				return nil
			}
			_, err = tx.Exec(ctx, mark, seqsOf(batch))
			return err
		})
		if err != nil {
			panic(err)
		}
	}
}

const lockRows = `SELECT seq, id, topic, payload FROM courier_outbox WHERE processed_at IS NULL ORDER BY seq LIMIT $1 FOR UPDATE SKIP LOCKED`

func (bed *bed) deleteReturning() {
	bed.inTransactions(`DELETE FROM courier_outbox WHERE seq IN (SELECT seq FROM courier_outbox WHERE processed_at IS NULL
		ORDER BY seq LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING seq, id, topic, payload`, "")
}

func (bed *bed) selectDelete() {
	bed.inTransactions(lockRows, `DELETE FROM courier_outbox WHERE seq = ANY($1)`)
}

func (bed *bed) selectUpdate() {
	bed.inTransactions(lockRows, `UPDATE courier_outbox SET processed_at = now() WHERE seq = ANY($1)`)
}

// keyset is the pipelined loop of a single leader: fetch, publish and delete of
// three batches at once. It passes over rows that are committed late.
func (bed *bed) keyset() {
	ctx := context.Background()
	fetched, published := make(chan []row, 1), make(chan []row, 1)
	var group sync.WaitGroup
	group.Go(func() {
		defer close(fetched)
		var last int64
		for {
			batch, err := scan(bed.pool.Query(ctx, `SELECT seq, id, topic, payload FROM courier_outbox
				WHERE processed_at IS NULL AND seq > $1 ORDER BY seq LIMIT $2`, last, batchSize))
			if err != nil {
				panic(err)
			}
			if len(batch) == 0 {
				return
			}
			last = batch[len(batch)-1].seq
			fetched <- batch
		}
	})
	group.Go(func() {
		defer close(published)
		for batch := range fetched {
			bed.publish(batch)
			published <- batch
		}
	})
	for batch := range published {
		if _, err := bed.pool.Exec(ctx, `DELETE FROM courier_outbox WHERE seq = ANY($1)`, seqsOf(batch)); err != nil {
			panic(err)
		}
	}
	group.Wait()
}
