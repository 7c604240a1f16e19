package couriersql

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// invoice is a record of some width.
type invoice struct {
	ID, Customer, Text string
	Total              int64
}

// insertInvoices writes invoices by one statement.
func insertInvoices(ctx context.Context, on executor, dialect Dialect, list []invoice) error {
	if dialect == SQLite {
		encoded, err := json.Marshal(list)
		if err != nil {
			return err
		}
		_, err = on.ExecContext(ctx, `INSERT INTO invoices (id, customer, text, total)
			SELECT value ->> 'ID', value ->> 'Customer', value ->> 'Text', value ->> 'Total' FROM json_each(?1)`, string(encoded))
		return err
	}
	ids, customers, texts, totals := make([]string, len(list)), make([]string, len(list)), make([]string, len(list)), make([]int64, len(list))
	for i, v := range list {
		ids[i], customers[i], texts[i], totals[i] = v.ID, v.Customer, v.Text, v.Total
	}
	_, err := on.ExecContext(ctx, `INSERT INTO invoices (id, customer, text, total) SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[])`,
		ids, customers, texts, totals)
	return err
}

// BenchmarkEffects is a batch of effects, per record, and the floor below it: the same
// insert without an inbox, which happens twice if it is delivered twice.
func BenchmarkEffects(b *testing.B) {
	for name, dialect := range map[string]Dialect{"sqlite": SQLite, "postgres": Postgres} {
		for _, batch := range []int{100, 1000} {
			for _, way := range []string{"insert", "inbox"} {
				b.Run(fmt.Sprintf("%s/%d/%s", name, batch, way), func(b *testing.B) {
					db := databaseOf(b, dialect)
					_, err := db.ExecContext(b.Context(), `CREATE TABLE invoices (id text PRIMARY KEY, customer text NOT NULL, text text NOT NULL, total bigint NOT NULL)`)
					require.NoError(b, err)
					inbox := NewInbox(db, dialect, InboxConfig{Consumer: "bench"})
					require.NoError(b, inbox.Migrate(b.Context()))
					applier := BatchEffects(inbox, func(v invoice) string { return v.ID }, func(ctx context.Context, tx *sql.Tx, fresh []invoice) error {
						return insertInvoices(ctx, tx, dialect, fresh)
					})
					text := strings.Repeat("x", 200)
					n := 0
					b.ResetTimer()
					for range (b.N + batch - 1) / batch {
						list := make([]invoice, batch)
						for i := range list {
							list[i] = invoice{fmt.Sprintf("invoice-%012d", n), "customer", text, int64(n)}
							n++
						}
						if way == "inbox" {
							err = applier.ApplyBatch(b.Context(), list)
						} else {
							err = insertInvoices(b.Context(), db, dialect, list)
						}
						require.NoError(b, err)
					}
				})
			}
		}
	}
}
