package couriersql

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

const upsertInvoices = ` ON CONFLICT (id) DO UPDATE SET customer = excluded.customer, text = excluded.text, total = excluded.total`

// upsertInvoicesOf writes invoices by hand, as a Sink does: in PostgreSQL a list of each
// column, by database/sql or by pgx itself; in SQLite a transaction of statements of 100 rows.
func upsertInvoicesOf(ctx context.Context, db *sql.DB, dialect Dialect, byPgx bool, list []invoice) error {
	if dialect == SQLite {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		stmt, err := tx.PrepareContext(ctx, `INSERT INTO invoices (id, customer, text, total) VALUES (?, ?, ?, ?)`+strings.Repeat(", (?, ?, ?, ?)", 99)+upsertInvoices)
		if err != nil {
			return err
		}
		defer stmt.Close()
		args := make([]any, 0, 400)
		for ; len(list) > 0; list = list[100:] {
			args = args[:0]
			for _, v := range list[:100] {
				args = append(args, v.ID, v.Customer, v.Text, v.Total)
			}
			if _, err := stmt.ExecContext(ctx, args...); err != nil {
				return err
			}
		}
		return tx.Commit()
	}
	ids, customers, texts, totals := make([]string, len(list)), make([]string, len(list)), make([]string, len(list)), make([]int64, len(list))
	for i, v := range list {
		ids[i], customers[i], texts[i], totals[i] = v.ID, v.Customer, v.Text, v.Total
	}
	const text = `INSERT INTO invoices (id, customer, text, total) SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[])` + upsertInvoices
	if !byPgx {
		_, err := db.ExecContext(ctx, text, ids, customers, texts, totals)
		return err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return native(conn, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, text, ids, customers, texts, totals)
		return err
	})
}

// BenchmarkSink is a batch of new rows, and beside it, in turn, the same upsert by hand, which
// looks at nothing and has no results of single records: the median nanoseconds of a record.
func BenchmarkSink(b *testing.B) {
	for name, dialect := range dialects {
		for _, batch := range []int{100, 1000} {
			b.Run(fmt.Sprintf("%s/%d", name, batch), func(b *testing.B) {
				ways := map[string]func(*sql.DB, []invoice) error{
					"hand": func(db *sql.DB, list []invoice) error {
						return upsertInvoicesOf(b.Context(), db, dialect, false, list)
					},
				}
				if dialect == Postgres {
					ways["pgx"] = func(db *sql.DB, list []invoice) error { return upsertInvoicesOf(b.Context(), db, dialect, true, list) }
				}
				databases := map[string]*sql.DB{"sink": databaseOf(b, dialect)}
				for way := range ways {
					databases[way] = databaseOf(b, dialect)
				}
				for _, db := range databases {
					_, err := db.ExecContext(b.Context(), `CREATE TABLE invoices (id text PRIMARY KEY, customer text NOT NULL, text text NOT NULL, total bigint NOT NULL)`)
					require.NoError(b, err)
				}
				sink := NewSink(databases["sink"], dialect, SinkConfig[invoice]{
					Table: "invoices", Columns: []string{"id", "customer", "text", "total"}, Key: []string{"id"},
					Values: func(v invoice) ([]any, error) { return []any{v.ID, v.Customer, v.Text, v.Total}, nil },
				})
				ways["sink"] = func(_ *sql.DB, list []invoice) error { return sink.ApplyBatch(b.Context(), list) }
				took := map[string][]time.Duration{}
				text := strings.Repeat("x", 200)
				n := 0
				for b.Loop() {
					list := make([]invoice, batch)
					for i := range list {
						list[i] = invoice{fmt.Sprintf("invoice-%012d", n), "customer", text, int64(n)}
						n++
					}
					for way, write := range ways {
						began := time.Now()
						require.NoError(b, write(databases[way], list))
						took[way] = append(took[way], time.Since(began))
					}
				}
				for way, times := range took {
					slices.Sort(times)
					b.ReportMetric(float64(times[len(times)/2].Nanoseconds())/float64(batch), way+"-ns/record")
				}
			})
		}
	}
}
