package couriersql

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// tryWrite writes messages in a transaction that is rolled back after an error.
func tryWrite(t *testing.T, o *Outbox, messages ...Message) error {
	t.Helper()
	tx, err := o.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	if err = o.Write(t.Context(), tx, messages...); err != nil {
		require.NoError(t, tx.Rollback())
		return err
	}
	return tx.Commit()
}

// A duplicate is one of the outbox's IDs, and named; other unique violations are
// something else, and say what.
func TestUniqueViolations(t *testing.T) {
	const trigger = `CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO audit VALUES (NEW.id, NEW.topic); RETURN NEW; END $$;
		CREATE TRIGGER audit BEFORE INSERT ON courier_outbox FOR EACH ROW EXECUTE FUNCTION audit()`
	for name, test := range map[string]struct {
		before, change string
		first, second  []Message
		duplicate      string // its ID
		says           string
	}{
		"id":        {first: named("a"), second: named("b", "a"), duplicate: `"a"`},
		"odd ids":   {first: named("a)=(b", "a"), second: named("a", "a)=(b")[1:], duplicate: `"a)=(b"`},
		"many":      {first: named("a)", "a) already exists."), second: named("b", "a) already exists."), duplicate: `"a) already exists."`},
		"kept name": {change: `ALTER INDEX courier_outbox_id RENAME TO mine`, first: named("a"), second: named("b", "a"), duplicate: `"a"`},
		"sequence": {change: `ALTER SEQUENCE courier_outbox_seq_seq RESTART`, first: named("a"), second: named("b"),
			says: `the sequence of courier_outbox.seq is behind the table, as after a restore or a switch-over by logical replication: SELECT setval(pg_get_serial_sequence('"courier_outbox"', 'seq'), (SELECT max(seq) FROM "courier_outbox"))`},
		"index of one's own": {before: `CREATE UNIQUE INDEX mine ON courier_outbox (topic)`, first: named("a"), second: named("b"),
			says: "the unique constraint mine of the table courier_outbox refuses the row"},
		"trigger": {before: `CREATE TABLE audit (id text, topic text UNIQUE);` + trigger, first: named("a"), second: named("b"),
			says: "the unique constraint audit_topic_key of the table audit refuses the row"},
		"trigger's id": {before: `CREATE TABLE audit (id text UNIQUE, topic text); INSERT INTO audit VALUES ('b');` + trigger, first: named("a"), second: named("b"),
			says: "the unique constraint audit_id_key of the table audit refuses the row"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newPostgres(t)
			if test.before != "" {
				execute(t, o.db, test.before)
			}
			write(t, o, test.first...)
			if test.change != "" {
				execute(t, o.db, test.change)
			}
			err := tryWrite(t, o, test.second...)
			if test.duplicate != "" {
				require.ErrorIs(t, err, ErrDuplicateID)
				require.ErrorContains(t, err, "was written before: "+test.duplicate+"; roll")
				return
			}
			require.NotErrorIs(t, err, ErrDuplicateID)
			require.ErrorContains(t, err, test.says)
			if name == "sequence" {
				_, advice, _ := strings.Cut(err.Error(), "replication: ")
				execute(t, o.db, advice)
				write(t, o, test.second...)
			}
		})
	}
	t.Run("sqlite", func(t *testing.T) {
		o := newOutbox(t)
		execute(t, o.db, `CREATE UNIQUE INDEX mine ON courier_outbox (topic)`)
		write(t, o, named("a")...)
		err := tryWrite(t, o, named("b")...)
		require.ErrorContains(t, err, "UNIQUE constraint failed: courier_outbox.topic")
		require.NotErrorIs(t, err, ErrDuplicateID)
	})
}

func TestAdviceOfPostgres(t *testing.T) {
	o := newPostgres(t)
	for code, want := range map[string]string{"42P05": "default_query_exec_mode=exec", "26000": "default_query_exec_mode=exec", "40001": "isolation level", "54000": "an ID has 2,000 bytes at most"} {
		_, err := o.db.ExecContext(t.Context(), `DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '`+code+`'; END $$`)
		require.ErrorContains(t, o.failed(err, "doing it"), want)
	}
	_, err := o.db.ExecContext(t.Context(), `DO $$ BEGIN RAISE EXCEPTION 'too many notifications in the NOTIFY queue' USING ERRCODE = '54000'; END $$`)
	require.ErrorContains(t, o.failed(err, "doing it"), "the server's queue of notifications is full")
}
