package postgres

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriernats"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
)

// BenchmarkLatency is the time from a commit to the arrival at a subscriber, at
// 500 rows a second, and prints its median and its 99th percentile.
func BenchmarkLatency(b *testing.B) {
	wakeUp := []couriersql.Option{couriersql.WithWakeUp()}
	b.Run("courier", func(b *testing.B) { latency(b, wakeUp, courierUntil(time.Second)) })
	b.Run("listener-by-hand", func(b *testing.B) { latency(b, wakeUp, (*bed).listen) })
	b.Run("courier-polling-10ms", func(b *testing.B) { latency(b, nil, courierUntil(10*time.Millisecond)) })
}

const latencyRows = 1500

func latency(b *testing.B, opts []couriersql.Option, relay func(*bed, context.Context)) {
	var all []time.Duration
	for range b.N {
		bed := newBed(b, opts...)
		var mu sync.Mutex
		committed, arrived := map[string]time.Time{}, map[string]time.Time{}
		sub, err := bed.js.Conn().Subscribe("orders", func(m *nats.Msg) {
			now := time.Now()
			mu.Lock()
			defer mu.Unlock()
			arrived[couriernats.RecordID(m.Header)] = now
		})
		require.NoError(b, err)
		ctx, stop := context.WithCancel(context.Background())
		var group sync.WaitGroup
		group.Go(func() { relay(bed, ctx) })
		ticker := time.NewTicker(2 * time.Millisecond)
		for i := range latencyRows {
			<-ticker.C
			id := fmt.Sprint(i)
			err := pgx.BeginFunc(ctx, bed.pool, func(tx pgx.Tx) error {
				return bed.outbox.WritePgx(ctx, tx, couriersql.Message{ID: id, Topic: "orders", Payload: payload()})
			})
			require.NoError(b, err)
			now := time.Now()
			mu.Lock()
			committed[id] = now
			mu.Unlock()
		}
		ticker.Stop()
		require.Eventually(b, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(arrived) == latencyRows
		}, 10*time.Second, time.Millisecond)
		stop()
		group.Wait()
		require.NoError(b, sub.Unsubscribe())
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

func courierUntil(interval time.Duration) func(*bed, context.Context) {
	return func(bed *bed, ctx context.Context) {
		applier, _ := courier.ResilientApplier(courier.NewDecodingApplier(bed.sink, couriersql.Row.Message),
			&courier.ResilientConfig[couriersql.Row]{DLQ: bed.outbox.DLQ()})
		err := courier.NewPollingCoordinator(bed.outbox.Source(), applier, courier.WithBatchSize(batchSize),
			courier.WithInterval(interval), courier.WithLogger(quiet)).Start(ctx)
		if err != nil {
			panic(err)
		}
	}
}

// listen is the hand-written listener: it fetches at each notification until
// there is nothing left.
func (bed *bed) listen(ctx context.Context) {
	conn, err := bed.pool.Acquire(ctx)
	if err != nil {
		panic(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(ctx, `LISTEN "courier_outbox"`); err != nil {
		panic(err)
	}
	for ctx.Err() == nil {
		bed.selectDelete()
		waiting, cancel := context.WithTimeout(ctx, time.Second)
		_, _ = conn.Conn().WaitForNotification(waiting)
		cancel()
	}
}

// BenchmarkFetch is one fetch of a thousand rows, given back, beside no kept row
// and beside many. It reports the median of all: one that meets a checkpoint says
// nothing of the index.
func BenchmarkFetch(b *testing.B) {
	for _, n := range []int{0, *kept} {
		b.Run(fmt.Sprint("kept=", n), func(b *testing.B) {
			bed := newBed(b, couriersql.WithKeep())
			if n > 0 {
				_, err := bed.pool.Exec(b.Context(), `INSERT INTO courier_outbox (id, topic, payload, processed_at)
					SELECT 'kept' || i, 'orders', '', now() FROM generate_series(1, $1) AS i`, n)
				require.NoError(b, err)
			}
			bed.fill(10_000)
			source := bed.outbox.Source()
			took := make([]time.Duration, b.N)
			for i := range took {
				began := time.Now()
				rows, err := source.Fetch(b.Context(), batchSize)
				took[i] = time.Since(began)
				require.NoError(b, err)
				require.Len(b, rows, batchSize)
				require.NoError(b, source.Release(b.Context(), rows, 0))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/batchSize, "ns/record")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkIdle is what a relay asks of the database while there is nothing to
// do: its transactions, per interval, and the connections that are at work.
func BenchmarkIdle(b *testing.B) {
	for name, opts := range map[string][]couriersql.Option{
		"shared": nil, "lease": {couriersql.WithLease(time.Minute)}, "strict": {couriersql.WithStrictOrder()}, "wake-up": {couriersql.WithWakeUp()},
	} {
		b.Run(name, func(b *testing.B) {
			const interval = 50 * time.Millisecond
			bed := newBed(b, opts...)
			ctx, stop := context.WithCancel(b.Context())
			var group sync.WaitGroup
			defer group.Wait()
			defer stop()
			group.Go(func() { courierUntil(interval)(bed, ctx) })
			time.Sleep(10 * interval)
			transactions := func() (n int) {
				require.NoError(b, bed.pool.QueryRow(b.Context(), `SELECT pg_stat_force_next_flush()`).Scan(nil))
				require.NoError(b, bed.pool.QueryRow(b.Context(), `SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()`).Scan(&n))
				return n
			}
			time.Sleep(2 * time.Second) // the server tells of its work once a second
			before, start := transactions(), time.Now()
			time.Sleep(4 * time.Second)
			n, passed := transactions()-before-2, time.Since(start)
			var active int
			require.NoError(b, bed.pool.QueryRow(b.Context(), `SELECT count(*) FROM pg_stat_activity
				WHERE datname = current_database() AND state <> 'idle' AND pid <> pg_backend_pid()`).Scan(&active))
			ends := passed.Seconds()/interval.Seconds() + 1 // of intervals, there may have been
			b.ReportMetric(float64(n)/ends, "transactions/interval")
			b.ReportMetric(float64(active), "busy")
			b.ReportMetric(0, "ns/op")
		})
	}
}
