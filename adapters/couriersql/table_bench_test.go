package couriersql

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql/mytest"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/stretchr/testify/require"
)

// BenchmarkTable is fetch and mark of a table of one's own without a destination, per row
// of 256 bytes and in batches of 1000, beside those of the outbox. Rows are deleted. In MySQL
// there is a loop by hand beside them, which holds the rows by locks.
func BenchmarkTable(b *testing.B) {
	const batch = 1000
	for name, dialect := range map[string]Dialect{"sqlite": SQLite, "postgres": Postgres, "mysql": MySQL} {
		open := func(b *testing.B) *sql.DB {
			switch dialect {
			case Postgres:
				return openPostgres(b, pgtest.Schema(b))
			case MySQL:
				return openMySQL(b, mytest.Database(b), nil)
			}
			return openDSN(b, SQLiteDSN(filepath.Join(b.TempDir(), "bench.db")))
		}
		b.Run(name+"/table", func(b *testing.B) {
			db := open(b)
			fillEvents(b, db, dialect, b.N)
			table := NewTable(db, dialect, TableConfig[happening]{
				Table: "events", Key: []string{"id"}, KeyOf: func(e happening) []any { return []any{e.ID} },
				Columns: []string{"id", "topic", dialect.identifier("key"), "payload", "headers", "trace", "created_at"},
				Scan: func(scan func(...any) error) (e happening, err error) {
					var key, headers, trace string
					var payload []byte
					var created any
					return e, scan(&e.ID, &e.Name, &key, &payload, &headers, &trace, &created)
				},
				Pending: "true",
			})
			require.NoError(b, table.Migrate(b.Context()))
			relayAll(b, table.Source(), batch)
		})
		written := func(b *testing.B, opts ...Option) *Outbox {
			db := open(b)
			o := New(db, dialect, opts...)
			b.Cleanup(func() { require.NoError(b, o.Close()) })
			require.NoError(b, o.Migrate(b.Context()))
			messages := make([]Message, b.N)
			for i := range messages {
				messages[i] = Message{Topic: "orders", Key: "key", Payload: make([]byte, 256)}
			}
			tx, err := db.BeginTx(b.Context(), nil)
			require.NoError(b, err)
			require.NoError(b, o.Write(b.Context(), tx, messages...))
			require.NoError(b, tx.Commit())
			return o
		}
		kinds := map[string][]Option{"outbox leased": {WithLease(time.Minute)}, "outbox": nil}
		if dialect == MySQL { // in which each is leased
			kinds = map[string][]Option{"outbox": nil, "outbox strict": {WithStrictOrder()}}
			b.Run(name+"/by hand", func(b *testing.B) { relayByHand(b, written(b).db, batch) })
		}
		for kind, opts := range kinds {
			b.Run(name+"/"+kind, func(b *testing.B) { relayAll(b, written(b, opts...).Source(), batch) })
		}
	}
}

// relayByHand is the fastest loop that several relays may run: it locks rows, and deletes them in
// the same transaction.
func relayByHand(b *testing.B, db *sql.DB, batch int) {
	b.Helper()
	ctx := context.Background()
	b.ReportAllocs()
	b.ResetTimer()
	for range (b.N + batch - 1) / batch {
		tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
		require.NoError(b, err)
		rows, err := tx.QueryContext(ctx, fmt.Sprintf("SELECT seq, id, topic, `key`, payload, headers, trace, created_at FROM courier_outbox WHERE processed_at IS NULL ORDER BY seq LIMIT %d FOR UPDATE SKIP LOCKED", batch))
		require.NoError(b, err)
		fetched := make([]Row, 0, batch)
		for rows.Next() {
			var r Row
			require.NoError(b, rows.Scan(&r.Seq, &r.ID, &r.Topic, &r.Key, &r.Payload, &r.Headers, &r.Trace, &r.CreatedAt))
			fetched = append(fetched, r)
		}
		require.NoError(b, rows.Err())
		seqs := make([]int64, len(fetched))
		for i, r := range fetched {
			seqs[i] = r.Seq
		}
		_, err = tx.ExecContext(ctx, "DELETE FROM courier_outbox WHERE seq IN ("+numbersText(seqs)+")")
		require.NoError(b, err)
		require.NoError(b, tx.Commit())
	}
}

// BenchmarkTableByKey relays rows of 100 order keys to a destination that takes 1 ms for
// each, by one relay that keeps the order of all and by four that keep that of each key.
func BenchmarkTableByKey(b *testing.B) {
	for name, relays := range map[string]int{"one strict": 1, "four": 4} {
		for _, workers := range []int{1, 8} {
			b.Run(fmt.Sprintf("%s, workers=%d", name, workers), func(b *testing.B) {
				db := openPostgres(b, pgtest.Schema(b))
				fillEvents(b, db, Postgres, b.N)
				config := TableConfig[happening]{
					Table: "events", Key: []string{"id"}, KeyOf: func(e happening) []any { return []any{e.ID} },
					Columns: []string{"id", "topic"}, OrderKey: "id % 100", Strict: relays == 1,
					Scan:    func(scan func(...any) error) (e happening, err error) { return e, scan(&e.ID, &e.Name) },
					Pending: "true", Logger: slog.New(slog.DiscardHandler),
				}
				require.NoError(b, NewTable(db, Postgres, config).Migrate(b.Context()))
				ctx, stop := context.WithCancel(b.Context())
				defer stop()
				var delivered atomic.Int64
				applier := courier.ProcessFunc(func(context.Context, happening) error {
					time.Sleep(time.Millisecond)
					if delivered.Add(1) == int64(b.N) {
						stop()
					}
					return nil
				})
				b.ResetTimer()
				var group sync.WaitGroup
				for range relays {
					group.Go(func() {
						err := courier.NewPollingCoordinator(NewTable(db, Postgres, config).Source(), applier, courier.WithWorkers(workers), courier.WithInterval(time.Millisecond),
							courier.WithOrderKey(func(e happening) string { return strconv.FormatInt(e.ID%100, 10) }), courier.WithLogger(slog.New(slog.DiscardHandler))).Start(ctx)
						if err != nil {
							b.Error(err)
						}
					})
				}
				group.Wait()
			})
		}
	}
}

func fillEvents(b *testing.B, db *sql.DB, dialect Dialect, n int) {
	b.Helper()
	created, text := `CREATE TABLE events (id bigserial PRIMARY KEY, topic text, key text, payload bytea, headers text, trace text, created_at timestamptz)`,
		`INSERT INTO events (topic, key, payload, headers, trace, created_at) SELECT 'orders', 'key', decode(repeat('00', 256), 'hex'), '', '', now() FROM generate_series(1, $1::int)`
	if dialect == SQLite {
		created = `CREATE TABLE events (id INTEGER PRIMARY KEY, topic TEXT, key TEXT, payload BLOB, headers TEXT, trace TEXT, created_at INTEGER)`
		text = `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
			INSERT INTO events (topic, key, payload, headers, trace, created_at) SELECT 'orders', 'key', zeroblob(256), '', '', unixepoch() FROM n`
	}
	if dialect == MySQL {
		created = "CREATE TABLE events (id BIGINT AUTO_INCREMENT PRIMARY KEY, topic TEXT, `key` TEXT, payload BLOB, headers TEXT, trace TEXT, created_at DATETIME)"
		text = "INSERT INTO events (topic, `key`, payload, headers, trace, created_at) SELECT 'orders', 'key', repeat(char(0), 256), '', '', now() FROM (SELECT 1 UNION ALL SELECT id FROM events) AS n LIMIT ?"
	}
	_, err := db.ExecContext(b.Context(), created)
	require.NoError(b, err)
	if dialect == MySQL { // twice as many each time
		for left := n; left > 0; {
			result, err := db.ExecContext(b.Context(), text, left)
			require.NoError(b, err)
			more, err := result.RowsAffected()
			require.NoError(b, err)
			left -= int(more)
		}
		return
	}
	_, err = db.ExecContext(b.Context(), text, n)
	require.NoError(b, err)
}

func relayAll[T any](b *testing.B, source courier.Source[T], batch int) {
	b.Helper()
	ctx := context.Background()
	b.ReportAllocs()
	b.ResetTimer()
	for range (b.N + batch - 1) / batch {
		rows, err := source.Fetch(ctx, batch)
		require.NoError(b, err)
		require.NoError(b, source.Mark(ctx, rows))
	}
}
