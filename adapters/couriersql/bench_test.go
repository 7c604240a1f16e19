package couriersql

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkRelay is fetch and mark without a destination, per row, and the floor
// below it: the same statements, prepared by hand, with nothing decoded, copied
// or checked.
func BenchmarkRelay(b *testing.B) {
	for _, batch := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint("outbox/", batch), func(b *testing.B) {
			source := filled(b, b.N).Source()
			b.ReportAllocs()
			b.ResetTimer()
			for range (b.N + batch - 1) / batch {
				rows, err := source.Fetch(b.Context(), batch)
				require.NoError(b, err)
				require.NoError(b, source.Mark(b.Context(), rows))
			}
		})
		b.Run(fmt.Sprint("floor/", batch), func(b *testing.B) {
			o := filled(b, b.N)
			fetch, err := o.db.PrepareContext(b.Context(), o.fetch.text)
			require.NoError(b, err)
			defer fetch.Close()
			mark, err := o.db.PrepareContext(b.Context(), `DELETE FROM courier_outbox WHERE seq IN (SELECT value FROM json_each(?1))`)
			require.NoError(b, err)
			defer mark.Close()
			b.ReportAllocs()
			b.ResetTimer()
			for range (b.N + batch - 1) / batch {
				rows, err := fetch.QueryContext(b.Context(), batch, 1, 0, 0, DefaultFetchBytes, time.Now().UnixMicro(), "[]")
				require.NoError(b, err)
				var seqs []int64
				var seq int64
				var skip sql.RawBytes
				into := []any{&seq, &skip, &skip, &skip, &skip, &skip, &skip, &skip, &skip, &skip}
				for rows.Next() {
					require.NoError(b, rows.Scan(into...))
					seqs = append(seqs, seq)
				}
				require.NoError(b, rows.Close())
				list, err := json.Marshal(seqs)
				require.NoError(b, err)
				_, err = mark.ExecContext(b.Context(), string(list))
				require.NoError(b, err)
			}
		})
	}
}

// BenchmarkWrite is one transaction of the given number of messages, per
// message.
func BenchmarkWrite(b *testing.B) {
	for _, size := range []int{1, 100} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			o := filled(b, 0)
			messages := make([]Message, size)
			for i := range messages {
				messages[i] = Message{Topic: "orders", Key: "key", Payload: make([]byte, 256)}
			}
			b.ReportAllocs()
			b.ResetTimer()
			for range (b.N + size - 1) / size {
				tx, err := o.db.BeginTx(b.Context(), nil)
				require.NoError(b, err)
				require.NoError(b, o.Write(b.Context(), tx, messages...))
				require.NoError(b, tx.Commit())
			}
		})
	}
}

func filled(b *testing.B, n int) *Outbox {
	b.Helper()
	db, err := sql.Open("sqlite", SQLiteDSN(filepath.Join(b.TempDir(), "bench.db")))
	require.NoError(b, err)
	o := New(db, SQLite)
	b.Cleanup(func() {
		require.NoError(b, o.Close())
		require.NoError(b, db.Close())
	})
	require.NoError(b, o.Migrate(b.Context()))
	tx, err := db.BeginTx(b.Context(), nil)
	require.NoError(b, err)
	for range n {
		require.NoError(b, o.Write(b.Context(), tx, Message{Topic: "orders", Key: "key", Payload: make([]byte, 256)}))
	}
	require.NoError(b, tx.Commit())
	return o
}
