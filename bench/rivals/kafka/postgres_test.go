package kafka

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/courierkafka"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/erfanmomeniii/courier/bench/internal/meter"
	"github.com/erfanmomeniii/courier/bench/rivals/internal/full"
)

var quiet = courier.WithLogger(slog.New(slog.NewTextHandler(io.Discard, nil)))

// shop is an outbox in PostgreSQL and an empty topic.
type shop struct {
	pool    *pgxpool.Pool
	outbox  *couriersql.Outbox
	address string
	client  *kgo.Client
}

func newShop(b *testing.B, opts ...couriersql.Option) *shop {
	pool, err := pgxpool.New(b.Context(), pgtest.Schema(b)+" pool_max_conns=10")
	require.NoError(b, err)
	b.Cleanup(pool.Close)
	db := stdlib.OpenDBFromPool(pool)
	db.SetMaxIdleConns(10)
	b.Cleanup(func() { _ = db.Close() })
	outbox := couriersql.New(db, couriersql.Postgres, opts...)
	b.Cleanup(func() { _ = outbox.Close() })
	require.NoError(b, outbox.Migrate(b.Context()))
	s := &shop{pool: pool, outbox: outbox, address: startBroker(b)}
	s.client = newClient(b, s.address, courierkafka.ClientOptions()...)
	b.Cleanup(s.client.Close)
	return s
}

// fill writes n messages of 256 bytes.
func (s *shop) fill(b *testing.B, n int) {
	for _, statement := range []string{
		fmt.Sprintf(`INSERT INTO courier_outbox (id, topic, key, payload)
			SELECT lpad(to_hex(i), 32, '0'), 'orders', 'customer-' || i %% 100, convert_to(repeat('abcdefgh', 32), 'UTF8') FROM generate_series(1, %d) AS i`, n),
		`ANALYZE courier_outbox`, `CHECKPOINT`,
	} {
		_, err := s.pool.Exec(b.Context(), statement)
		require.NoError(b, err)
	}
}

// measureShop relays a full outbox once an operation, and checks that the topic has all of
// it.
func measureShop(b *testing.B, opts []couriersql.Option, relay func(*shop)) {
	var computed time.Duration
	for range b.N {
		b.StopTimer()
		s := newShop(b, opts...)
		s.fill(b, *rows)
		before := cpu()
		b.StartTimer()
		relay(s)
		b.StopTimer()
		computed += cpu() - before
		require.Equal(b, *rows, count(b, s.address, "orders"))
		pending, err := s.outbox.Pending(context.Background())
		require.NoError(b, err)
		require.Zero(b, pending)
	}
	b.ReportMetric(float64(computed.Nanoseconds())/float64(b.N)/float64(*rows), "cpu-ns/record")
	meter.Time(b, *rows)
}

func scanRows(rows pgx.Rows, err error) ([]row, error) {
	if err != nil {
		return nil, err
	}
	batch := make([]row, 0, batchSize)
	for rows.Next() {
		var r row
		var key sql.NullString
		if err := rows.Scan(&r.seq, &r.id, &r.topic, &key, &r.payload); err != nil {
			return nil, err
		}
		r.key = key.String
		batch = append(batch, r)
	}
	return batch, rows.Err()
}

// relayOnce relays the rows of one transaction, which holds them until they are stored.
func (s *shop) relayOnce(fetch, mark string) (n int, err error) {
	ctx := context.Background()
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		batch, err := scanRows(tx.Query(ctx, fetch, batchSize))
		if n = len(batch); err != nil || n == 0 {
			return err
		}
		slices.SortFunc(batch, func(a, b row) int { return cmp.Compare(a.seq, b.seq) })
		if err := produce(s.client, batch); err != nil || mark == "" {
			return err
		}
		seqs := make([]int64, len(batch))
		for i, r := range batch {
			seqs[i] = r.seq
		}
		_, err = tx.Exec(ctx, mark, seqs)
		return err
	})
	return n, err
}

const (
	lockRows = `SELECT seq, id, topic, key, payload FROM courier_outbox WHERE processed_at IS NULL ORDER BY seq LIMIT $1 FOR UPDATE SKIP LOCKED`
	markRows = `DELETE FROM courier_outbox WHERE seq = ANY($1)`
	takeRows = `DELETE FROM courier_outbox WHERE seq IN (SELECT seq FROM courier_outbox WHERE processed_at IS NULL
		ORDER BY seq LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING seq, id, topic, key, payload`
)

func relayByHand(b *testing.B, fetch, mark string) {
	measureShop(b, nil, func(s *shop) {
		for {
			n, err := s.relayOnce(fetch, mark)
			require.NoError(b, err)
			if n == 0 {
				return
			}
		}
	})
}

// The best loop by hand that several instances may run: fetch 1000 under a lock, one promise
// for each record, wait for all, mark with one statement.
func BenchmarkKafkaPostgres_HandWritten(b *testing.B) { relayByHand(b, lockRows, markRows) }

// The same with one statement for fetch and mark, whose rows come in no order.
func BenchmarkKafkaPostgres_HandWrittenReturning(b *testing.B) { relayByHand(b, takeRows, "") }

func BenchmarkKafkaPostgres_Courier(b *testing.B) {
	measureShop(b, nil, func(s *shop) {
		ctx, stop := context.WithCancel(context.Background())
		defer stop()
		source := &full.Source{Source: s.outbox.Source(), Left: *rows, Done: stop}
		require.NoError(b, courier.NewPollingCoordinator(source, s.applier(), courier.WithBatchSize(batchSize), quiet).Start(ctx))
	})
}

func (s *shop) applier() courier.Applier[couriersql.Row] {
	return applierOf(s.client, s.outbox)
}

// BenchmarkKafkaLatency is the time from a commit to the arrival at a consumer, at 500 rows a
// second, and prints its median and its 99th percentile.
func BenchmarkKafkaLatency(b *testing.B) {
	b.Run("courier", func(b *testing.B) {
		measureLatency(b, func(ctx context.Context, s *shop) {
			require.NoError(b, courier.NewPollingCoordinator(s.outbox.Source(), s.applier(), courier.WithBatchSize(batchSize),
				courier.WithInterval(time.Second), quiet).Start(ctx))
		})
	})
	b.Run("listener-by-hand", func(b *testing.B) {
		measureLatency(b, func(ctx context.Context, s *shop) { s.listen(ctx, b) })
	})
}

// listen is the listener by hand: it fetches at each notification until there is nothing left.
func (s *shop) listen(ctx context.Context, b *testing.B) {
	conn, err := s.pool.Acquire(ctx)
	require.NoError(b, err)
	defer conn.Release()
	_, err = conn.Exec(ctx, `LISTEN "courier_outbox"`)
	require.NoError(b, err)
	for ctx.Err() == nil {
		for more := true; more; {
			n, err := s.relayOnce(lockRows, markRows)
			require.NoError(b, err)
			more = n > 0
		}
		waiting, cancel := context.WithTimeout(ctx, time.Second)
		_, _ = conn.Conn().WaitForNotification(waiting)
		cancel()
	}
}

const latencyRows = 1500

func measureLatency(b *testing.B, relay func(context.Context, *shop)) {
	var all []time.Duration
	for range b.N {
		s := newShop(b, couriersql.WithWakeUp())
		consumer := newClient(b, s.address, kgo.ConsumeTopics("orders"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		committed, arrived := make(map[string]time.Time), make(map[string]time.Time)
		ctx, stop := context.WithCancel(context.Background())
		var relaying, consuming sync.WaitGroup
		relaying.Go(func() { relay(ctx, s) })
		consuming.Go(func() {
			for len(arrived) < latencyRows && ctx.Err() == nil {
				consumer.PollFetches(ctx).EachRecord(func(r *kgo.Record) { arrived[courierkafka.RecordID(r)] = time.Now() })
			}
		})
		ticker := time.NewTicker(2 * time.Millisecond)
		payload := make([]byte, 256)
		for i := range latencyRows {
			<-ticker.C
			id := fmt.Sprint(i)
			require.NoError(b, pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
				return s.outbox.WritePgx(ctx, tx, couriersql.Message{ID: id, Topic: "orders", Key: id, Payload: payload})
			}))
			committed[id] = time.Now()
		}
		ticker.Stop()
		over := time.AfterFunc(10*time.Second, stop)
		consuming.Wait()
		over.Stop()
		stop()
		relaying.Wait()
		consumer.Close()
		require.Len(b, arrived, latencyRows)
		for id, at := range committed {
			if len(id) > 2 { // the first hundred are for warming up
				all = append(all, max(0, arrived[id].Sub(at)))
			}
		}
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(0, "ns/op")
}
