package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
)

func TestInbox_Migrate(t *testing.T) {
	for name, dialect := range map[string]Dialect{"sqlite": SQLite, "postgres": Postgres, "mysql": MySQL} {
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
		look := func(context.Context, writer, []payment) error { return nil }
		require.NoError(t, b.applier(look).ApplyBatch(t.Context(), payments(0, inboxPruneBatch+5)))
		other := b.open(InboxConfig{Consumer: "audit"})
		require.NoError(t, kind.applier(other, look).ApplyBatch(t.Context(), payments(0, 3)))

		n, err := b.inbox.Prune(t.Context(), time.Now().Add(-time.Minute))
		require.NoError(t, err)
		require.Zero(t, n)
		n, err = b.inbox.Prune(t.Context(), time.Now().Add(time.Minute))
		require.NoError(t, err)
		require.Equal(t, inboxPruneBatch+5, n)
		require.Equal(t, 3, count(t, b.db, `SELECT count(*) FROM courier_inbox WHERE consumer = 'audit'`))
		require.NoError(t, b.applier(look).Apply(t.Context(), "p00000"))
		require.Zero(t, b.inbox.Skipped(), "what is pruned is not known any more")
	})
}

func TestInbox_InAnotherDatabaseOfMySQL(t *testing.T) {
	b := openBank(t, effectKinds["mysql"], InboxConfig{})
	home := namesIn(t, b.db, `SELECT DATABASE()`)[0]
	b.db = openMySQLAs(t, b.db, spelledAsElsewhere, func(c *mysql.Config) { c.DBName = "" })
	b.inbox = b.open(InboxConfig{Table: home + ".notes"})
	require.NoError(t, b.inbox.Migrate(t.Context()))
	audit := Effects(b.inbox, payment.name, func(context.Context, *sql.Tx, payment) error { return nil })
	require.NoError(t, audit.Apply(t.Context(), "a"))
	require.Equal(t, 1, count(t, b.db, `SELECT count(*) FROM `+home+`.notes`))
}

// Names are told apart by their bytes, whatever the character set of the connection.
func TestInbox_NamesInMySQL(t *testing.T) {
	b := openBank(t, effectKinds["mysql"], InboxConfig{})
	b.db = openMySQLAs(t, b.db, nil, func(c *mysql.Config) { c.Collation = "latin1_swedish_ci" })
	for _, config := range []InboxConfig{{Consumer: "é"}, {Consumer: "É"}, {Consumer: "e"}} {
		b.inbox = b.open(config)
		for range 2 {
			require.NoError(t, b.applier(func(context.Context, writer, []payment) error { return nil }).ApplyBatch(t.Context(), []payment{"a", "A", "a ", "é"}))
		}
		require.EqualValues(t, 4, b.inbox.Skipped())
	}
	require.Equal(t, 12, count(t, b.db, `SELECT count(*) FROM courier_inbox`))
}

// A connection that is lost in the middle takes all back.
func TestEffects_OfAConnectionToMySQLThatIsLost(t *testing.T) {
	b := openBank(t, effectKinds["mysql"], InboxConfig{})
	calls := 0
	applier := BatchEffects(b.inbox, payment.name, func(ctx context.Context, tx *sql.Tx, fresh []payment) error {
		if err := pay(ctx, sqlWriter(tx, MySQL), fresh); err != nil {
			return err
		}
		if calls++; calls == 1 {
			var id int64
			require.NoError(t, tx.QueryRowContext(ctx, `SELECT CONNECTION_ID()`).Scan(&id))
			execute(t, b.db, fmt.Sprintf(`KILL %d`, id))
		}
		return nil
	})
	if err := applier.ApplyBatch(t.Context(), payments(0, 4)); err != nil {
		require.Empty(t, b.paid())
		require.NoError(t, applier.ApplyBatch(t.Context(), payments(0, 4)))
	}
	require.Equal(t, 2, calls)
	require.Equal(t, payments(0, 4), b.paid())
}

// Old notes are deleted by the server's time, and what is kept counts from the last of them.
func TestInbox_RetentionInMySQL(t *testing.T) {
	b := openBank(t, effectKinds["mysql"], InboxConfig{Retention: 24 * time.Hour})
	require.NoError(t, b.open(InboxConfig{}).Migrate(t.Context()))
	for age, id := range map[time.Duration]string{50 * time.Hour: "old", 20 * time.Hour: "new"} {
		execute(t, b.db, `INSERT INTO courier_inbox (consumer, id, done_at) VALUES ('bank', ?, ?)`, id, time.Now().Add(-age).UnixMicro())
	}
	began := time.Now()
	b.inbox.began.Store(&began)
	deleted, err := b.inbox.pruneOld(t.Context(), time.Now().Add(-24*time.Hour))
	require.NoError(t, err)
	require.Equal(t, 1, deleted)
	require.Equal(t, []string{"new"}, namesIn(t, b.db, `SELECT id FROM courier_inbox`))
	execute(t, b.db, `UPDATE courier_inbox SET done_at = ?`, time.Now().Add(-25*time.Hour).UnixMicro())
	deleted, err = b.inbox.pruneOld(t.Context(), time.Now().Add(-24*time.Hour))
	require.NoError(t, err)
	require.Zero(t, deleted, "as the consumer has noted nothing since")
}
