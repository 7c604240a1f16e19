package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/stretchr/testify/require"
)

// A row whose failure the database refuses to note keeps that of no other row from
// being noted, and is to be had again.
func TestAFailureThatCannotBeNotedUndoesNoOther(t *testing.T) {
	for name, newOutbox := range ways() {
		if strings.Contains(name, "sqlite") || name == "shared" {
			continue // SQLite adds no constraint to a table
		}
		t.Run(name, func(t *testing.T) {
			o := newOutbox(t)
			execute(t, o.db, `ALTER TABLE courier_outbox ADD CHECK (attempts = 0 OR id NOT LIKE 'bad%')`)
			write(t, o, named("a", "bad", "b", "c", "bad too", "d", "e")...)
			s := o.Source()
			s.RenewEvery()
			rows := take(t, s, 10)
			l := letter("e", errors.New("poison"))
			l.Record = rows[6]
			require.NoError(t, s.DLQ().Send(t.Context(), l))
			err := s.Fail(t.Context(), failedWith(errors.New("boom"), rows[:5]...))
			require.ErrorContains(t, err, "noting the failure of 5 rows of courier_outbox (they come back)")
			require.ErrorContains(t, err, "violates check constraint")
			require.NoError(t, s.Mark(t.Context(), rows[5:]))
			require.Equal(t, 3, count(t, o.db, `SELECT count(*) FROM courier_outbox WHERE attempts = 1 AND last_error = 'boom'`))
			require.Equal(t, 2, count(t, o.db, `SELECT count(*) FROM courier_outbox WHERE attempts = 0`))
			require.Equal(t, []string{"e.1"}, lettersOf(t, o))
			if o.lease == 0 {
				require.Equal(t, []string{"bad", "bad too"}, idsOf(take(t, s, 10)))
			}
		})
	}
}

// An error's text that the database's encoding lacks a character for is noted with
// that character escaped.
func TestAFailureWhoseTextTheDatabaseCannotHold(t *testing.T) {
	admin := openPostgres(t, pgtest.Schema(t))
	execute(t, admin, `CREATE DATABASE euc TEMPLATE template0 ENCODING 'EUC_JP' LC_COLLATE 'C' LC_CTYPE 'C'`)
	db, err := sql.Open("pgx", pgtest.Schema(t)+" dbname=euc search_path=public")
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, db.Close())
		_, err := admin.ExecContext(context.Background(), `DROP DATABASE euc`)
		require.NoError(t, err)
	})
	o := New(db, Postgres)
	require.NoError(t, o.Migrate(t.Context()))
	write(t, o, named("a", "b")...)
	s := o.Source()
	rows := take(t, s, 10)
	require.NoError(t, s.Fail(t.Context(), append(failedWith(errors.New("boom 🙂"), rows[0]), failedWith(errors.New("boom"), rows[1])...)))
	for id, want := range map[string]string{"a": `"boom \U0001f642"`, "b": "boom"} {
		var text string
		require.NoError(t, db.QueryRowContext(t.Context(), `SELECT last_error FROM courier_outbox WHERE id = $1`, id).Scan(&text))
		require.Equal(t, want, text)
	}
	l := courier.DeadLetter[Row]{Record: rows[0], Error: errors.New("🙂")}
	require.ErrorContains(t, o.DLQ().Send(t.Context(), l), "ENCODING 'UTF8'")
	require.NoError(t, o.Close())
}
