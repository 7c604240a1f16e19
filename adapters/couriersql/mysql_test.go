package couriersql_test

import (
	"context"
	"database/sql"
	"testing"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql"
	"github.com/erfanmomeniii/courier/adapters/couriersql/mytest"
	"github.com/stretchr/testify/require"
)

// The table of the README, with a DSN as it comes.
func TestTheMySQLTableOfTheREADME(t *testing.T) {
	ctx := t.Context()
	db, err := sql.Open("mysql", mytest.Database(t))
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	for _, text := range []string{
		`CREATE TABLE events (id BIGINT AUTO_INCREMENT PRIMARY KEY, kind VARCHAR(20) NOT NULL, body TEXT NOT NULL, sent_at DATETIME(6))`,
		`CREATE INDEX events_pending ON events (sent_at, id)`,
		`INSERT INTO events (kind, body) VALUES ('paid', 'order 1'), ('shipped', 'order 1'), ('paid', 'order 2')`,
	} {
		_, err := db.ExecContext(ctx, text)
		require.NoError(t, err)
	}
	type Event struct {
		ID         int64
		Kind, Body string
	}
	table := couriersql.NewTable(db, couriersql.MySQL, couriersql.TableConfig[Event]{
		Table:   "events",
		Key:     []string{"id"},
		KeyOf:   func(e Event) []any { return []any{e.ID} },
		Columns: []string{"id", "kind", "body"},
		Scan: func(scan func(dest ...any) error) (e Event, err error) {
			return e, scan(&e.ID, &e.Kind, &e.Body)
		},
		Pending: "sent_at IS NULL",
		Mark:    "sent_at = UTC_TIMESTAMP(6)",
	})
	require.NoError(t, table.Migrate(ctx))
	var delivered []string
	deliver := courier.ProcessFunc(func(_ context.Context, e Event) error {
		delivered = append(delivered, e.Kind+" "+e.Body)
		return nil
	})
	require.NoError(t, courier.NewPollingCoordinator(table.Source(), deliver).RunOnce(ctx))
	require.Equal(t, []string{"paid order 1", "shipped order 1", "paid order 2"}, delivered)
	pending, err := table.Pending(ctx)
	require.NoError(t, err)
	require.Zero(t, pending)
}
