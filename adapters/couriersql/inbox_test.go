package couriersql

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

func TestInbox_Migrate(t *testing.T) {
	for name, dialect := range map[string]Dialect{"sqlite": SQLite, "postgres": Postgres} {
		t.Run(name, func(t *testing.T) {
			b := &bank{t: t, db: databaseOf(t, dialect), kind: effectKind{dialect, eachBySQL}}
			b.inbox = b.open(InboxConfig{})
			require.ErrorIs(t, b.applier(pay).Apply(t.Context(), "a"), ErrNotMigrated)
			var list *courier.BatchError
			require.ErrorAs(t, b.applier(pay).ApplyBatch(t.Context(), []payment{"a", ""}), &list)
			require.Len(t, list.Failures, 2, "of which one has nothing to do with the database")
			for _, f := range list.Failures {
				require.Equal(t, f.Index == 1, errors.Is(f.Err, errUnnamed))
			}
			for range 2 {
				require.NoError(t, b.inbox.Migrate(t.Context()))
			}
			require.Equal(t, 1, count(t, b.db, `SELECT count(*) FROM courier_migrations WHERE outbox = 'inbox:courier_inbox'`))

			execute(t, b.db, `CREATE TABLE mine (consumer text, id text)`)
			err := b.open(InboxConfig{Table: "mine"}).Migrate(t.Context())
			require.ErrorContains(t, err, "the table mine is not one of this package: ")
			require.ErrorContains(t, err, "InboxConfig.Table")
		})
	}
}

func TestInbox_InASchema(t *testing.T) {
	b := openBank(t, effectKinds["postgres"], InboxConfig{})
	schema := schemaNamed(t, b.db) + "_inbox"
	execute(t, b.db, `CREATE SCHEMA `+schema)
	t.Cleanup(func() { _, _ = b.db.Exec(`DROP SCHEMA ` + schema + ` CASCADE`) })
	b.inbox = b.open(InboxConfig{Table: schema + ".notes"})
	require.NoError(t, b.inbox.Migrate(t.Context()))
	require.NoError(t, b.applier(pay).Apply(t.Context(), "a"))
	require.Equal(t, 1, count(t, b.db, `SELECT count(*) FROM `+schema+`.notes`))
}

func TestInbox_Prune(t *testing.T) {
	inEachKind(t, func(t *testing.T, kind effectKind) {
		b := openBank(t, kind, InboxConfig{})
		require.NoError(t, b.applier(pay).ApplyBatch(t.Context(), payments(0, inboxPruneBatch+5)))
		other := b.open(InboxConfig{Consumer: "audit"})
		require.NoError(t, kind.applier(other, pay).ApplyBatch(t.Context(), payments(0, 3)))

		n, err := b.inbox.Prune(t.Context(), time.Now().Add(-time.Minute))
		require.NoError(t, err)
		require.Zero(t, n)
		n, err = b.inbox.Prune(t.Context(), time.Now().Add(time.Minute))
		require.NoError(t, err)
		require.Equal(t, inboxPruneBatch+5, n)
		require.Equal(t, 3, count(t, b.db, `SELECT count(*) FROM courier_inbox WHERE consumer = 'audit'`))
		require.NoError(t, b.applier(pay).Apply(t.Context(), "p00000"))
		require.Zero(t, b.inbox.Skipped(), "what is pruned is not known any more")
	})
}
