package couriersql

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/stretchr/testify/require"
)

// A table that is rewritten, indexed anew and given columns while a relay works delivers
// each message once.
func TestATableThatIsRewritten(t *testing.T) {
	for name, opts := range postgresHolds {
		t.Run(name, func(t *testing.T) {
			o := newPostgres(t, append(opts, WithClock(nil))...)
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() {
				for {
					for _, text := range []string{
						`VACUUM FULL courier_outbox`, `CLUSTER courier_outbox USING courier_outbox_pkey`, `REINDEX TABLE CONCURRENTLY courier_outbox`,
						`ALTER TABLE courier_outbox ADD COLUMN extra text GENERATED ALWAYS AS (topic || key) STORED`, `ALTER TABLE courier_outbox DROP COLUMN extra`,
					} {
						if _, err := o.db.ExecContext(ctx, text); err != nil {
							if ctx.Err() != nil {
								err = nil
							}
							done <- err
							return
						}
					}
				}
			}()
			l := newLedger()
			ids := writeAtOnce(t, o, 2, 50)
			relays(t, o, l, 1, func() bool { return l.count() >= len(ids) })
			stop()
			require.NoError(t, <-done)
			require.ElementsMatch(t, ids, l.deliveries)
		})
	}
}

// A view by the table's name, while its rows move, is an outbox too.
func TestAViewByTheNameOfTheTable(t *testing.T) {
	for name, opts := range postgresHolds {
		t.Run(name, func(t *testing.T) {
			o := newPostgres(t, opts...)
			write(t, o, named("a", "b")...)
			execute(t, o.db, `ALTER TABLE courier_outbox RENAME TO moved; CREATE VIEW courier_outbox AS SELECT * FROM moved`)
			s := o.Source()
			rows := take(t, s, 10)
			require.Equal(t, []string{"a", "b"}, idsOf(rows))
			require.NoError(t, s.Mark(t.Context(), rows))
			require.Zero(t, count(t, o.db, `SELECT count(*) FROM moved`))
		})
	}
}

// A table that loses committed messages, or gives its numbers in another order than
// messages are written, is told of, once and where it matters.
func TestATableThatIsNotFit(t *testing.T) {
	for change, want := range map[string]struct {
		opts []Option
		says string
	}{
		`ALTER TABLE courier_outbox SET UNLOGGED`:                                   {says: "UNLOGGED"},
		`ALTER TABLE courier_outbox_dlq SET UNLOGGED`:                               {says: "UNLOGGED"},
		`ALTER SEQUENCE courier_outbox_seq_seq CACHE 10`:                            {opts: []Option{WithStrictOrder()}, says: "the order is not"},
		`ALTER SEQUENCE courier_outbox_seq_seq CYCLE`:                               {opts: []Option{WithStrictOrder()}, says: "the order is not"},
		`ALTER SEQUENCE courier_outbox_seq_seq INCREMENT -1 MINVALUE -10 RESTART 9`: {opts: []Option{WithStrictOrder()}, says: "the order is not"},
		`ALTER TABLE courier_outbox ALTER seq DROP IDENTITY; CREATE SEQUENCE mine CACHE 5; ALTER TABLE courier_outbox ALTER seq SET DEFAULT nextval('mine')`: {opts: []Option{WithStrictOrder()}, says: "the order is not"},
		`ALTER SEQUENCE courier_outbox_seq_seq CACHE 11`: {},
		`SELECT`: {opts: []Option{WithStrictOrder()}},
	} {
		t.Run(change, func(t *testing.T) {
			log := new(logged)
			o := newPostgres(t, append(want.opts, log.warnings())...)
			execute(t, o.db, change)
			s := o.Source()
			for range 2 {
				require.Empty(t, take(t, s, 1))
			}
			if want.says == "" {
				require.Empty(t, log.String())
				return
			}
			require.Equal(t, 1, strings.Count(log.String(), "level=WARN"))
			require.Contains(t, log.String(), want.says)
		})
	}
}

// It is the table that was named that is looked at, and not one of its name in the path.
func TestATableInASchemaThatIsNotFit(t *testing.T) {
	db := openPostgres(t, pgtest.Schema(t))
	outboxIn(t, db)
	log, other := new(logged), anotherSchema(t, db)
	o := outboxIn(t, db, log.option(), WithTable(other+".courier_outbox"))
	execute(t, db, `ALTER TABLE `+other+`.courier_outbox_dlq SET UNLOGGED; DROP INDEX `+other+`.courier_outbox_pending`)
	require.Empty(t, fetch(t, o, 1))
	require.Equal(t, 2, strings.Count(log.String(), "level=WARN"))
	require.Contains(t, log.String(), "UNLOGGED")
	require.Contains(t, log.String(), "an index of the pending rows is missing")
}

// A trigger that was disabled, as for a load of data, and left so, is told of.
func TestATriggerThatIsDisabled(t *testing.T) {
	log := new(logged)
	o := newPostgres(t, WithWakeUp(), log.option())
	execute(t, o.db, `ALTER TABLE courier_outbox DISABLE TRIGGER ALL`)
	require.NoError(t, o.Migrate(t.Context()))
	awaken(t, o.Source().Wake())
	require.Contains(t, log.String(), "no trigger that sends notifications, or a disabled one, and the relay polls")
}

// asRole opens a database as a role of its own, with a setting.
func asRole(t *testing.T, dsn, setting, more string, opts ...Option) *Outbox {
	t.Helper()
	db := openPostgres(t, dsn)
	role := schemaNamed(t, db) + "_set"
	execute(t, db, fmt.Sprintf(`CREATE ROLE %[1]s SUPERUSER LOGIN; ALTER ROLE %[1]s SET %[2]s`, role, setting))
	t.Cleanup(func() {
		_, err := db.ExecContext(context.Background(), `DROP ROLE `+role)
		require.NoError(t, err)
	})
	o := New(openPostgres(t, dsn+" user="+role+more), Postgres, opts...)
	t.Cleanup(func() { require.NoError(t, o.Close()) })
	return o
}

// What is set for a role makes no difference, or the fetch fails and says what to do
// about it: nothing is delivered as something else than was written.
func TestTheSettingsOfARole(t *testing.T) {
	const exec = " default_query_exec_mode=exec"
	for name, test := range map[string]struct{ set, dsn, says string }{
		"time zone":       {set: "timezone = 'Asia/Kathmandu'", dsn: exec},
		"replication":     {set: "session_replication_role = replica"},
		"deferrable":      {set: "default_transaction_deferrable = on"},
		"intervals":       {set: "intervalstyle = sql_standard", dsn: exec},
		"strings":         {set: "standard_conforming_strings = off"},
		"read-only":       {set: "default_transaction_read_only = on", says: "the role or database has default_transaction_read_only"},
		"dates":           {set: "datestyle = German"},
		"dates as text":   {set: "datestyle = German", dsn: exec, says: "set datestyle=ISO and bytea_output=hex"},
		"dates set":       {set: "datestyle = German", dsn: exec + " datestyle=ISO"},
		"bytes":           {set: "bytea_output = escape"},
		"bytes as text":   {set: "bytea_output = escape", dsn: exec, says: "set datestyle=ISO and bytea_output=hex"},
		"bytes set":       {set: "bytea_output = escape", dsn: exec + " bytea_output=hex"},
		"encoding":        {set: "client_encoding = LATIN1", says: "set client_encoding=UTF8 in the connection string"},
		"another":         {set: "client_encoding = EUC_JP", says: "set client_encoding=UTF8 in the connection string"},
		"encoding set":    {set: "client_encoding = LATIN1", dsn: " client_encoding=UTF8"},
		"idle sometimes":  {set: "idle_in_transaction_session_timeout = '1500s'", dsn: exec},
		"comparing NULLs": {set: "transform_null_equals = on"},
	} {
		for hold, opts := range postgresHolds {
			t.Run(name+"/"+hold, func(t *testing.T) {
				t.Parallel()
				dsn := pgtest.Schema(t)
				direct := outboxIn(t, openPostgres(t, dsn), WithClock(nil))
				write(t, direct, Message{ID: "é", Topic: "é", Key: `k\'"`, Payload: []byte("\\\x00\xff"), Headers: map[string]string{"é": "é"}})
				s := asRole(t, dsn, test.set, test.dsn, append(opts, WithClock(nil))...).Source()
				s.RenewEvery()
				rows, err := s.Fetch(t.Context(), 10)
				if hold == "elected" && name == "read-only" {
					require.ErrorContains(t, err, "a role or database with default_transaction_read_only")
					return
				}
				if test.says != "" {
					require.ErrorContains(t, err, test.says)
					require.Equal(t, 1, count(t, direct.db, `SELECT count(*) FROM courier_outbox WHERE attempts = 0`))
					return
				}
				require.NoError(t, err)
				require.Len(t, rows, 1)
				m, err := rows[0].Message()
				require.NoError(t, err)
				require.Equal(t, []string{"é", "é", `k\'"`, "\\\x00\xff"}, []string{m.ID, m.Topic, m.Key, string(m.Payload)})
				require.Equal(t, map[string]string{"é": "é"}, m.Headers)
				require.WithinDuration(t, time.Now(), m.CreatedAt, time.Minute)
				require.NoError(t, s.Mark(t.Context(), rows))
				require.Zero(t, count(t, direct.db, `SELECT count(*) FROM courier_outbox`))
			})
		}
	}
}

// A mark that the schema refuses is repeated, with what to do about it, and delivers
// nothing again.
func TestAMarkThatIsRefused(t *testing.T) {
	for name, test := range map[string]struct{ refuse, allow, says string }{
		"foreign key": {
			`CREATE TABLE audit (seq bigint REFERENCES courier_outbox); INSERT INTO audit SELECT min(seq) FROM courier_outbox`, `DROP TABLE audit`,
			"or keep them (WithKeep)",
		},
		"replica identity": {
			`ALTER TABLE courier_outbox REPLICA IDENTITY NOTHING; CREATE PUBLICATION refused FOR TABLE courier_outbox`, `ALTER TABLE courier_outbox REPLICA IDENTITY DEFAULT; DROP PUBLICATION refused`,
			"because it does not have a replica identity",
		},
	} {
		for hold, opts := range map[string][]Option{"locked": nil, "elected": {WithStrictOrder()}} {
			t.Run(name+"/"+hold, func(t *testing.T) {
				o := newPostgres(t, append(opts, WithClock(nil))...)
				write(t, o, named("a", "b")...)
				execute(t, o.db, test.refuse)
				l := newLedger()
				relay := courier.NewPollingCoordinator(o.Source(), l.applier(0), courier.WithInterval(time.Millisecond), courier.WithLogger(slog.New(slog.DiscardHandler)))
				ctx, stop := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- relay.Start(ctx) }()
				require.Eventually(t, func() bool { err := relay.Ready(); return err != nil && strings.Contains(err.Error(), test.says) }, 20*time.Second, time.Millisecond)
				execute(t, o.db, test.allow)
				require.Eventually(t, func() bool { return relay.Ready() == nil }, 20*time.Second, time.Millisecond)
				stop()
				require.NoError(t, <-done)
				require.Equal(t, 2, l.count())
				require.Zero(t, count(t, o.db, `SELECT count(*) FROM courier_outbox`))
			})
		}
	}
}

// A disk that is full keeps rows pending and letters unwritten, and marks what was
// delivered.
func TestADiskThatIsFull(t *testing.T) {
	o := newOutbox(t)
	o.db.SetMaxOpenConns(1) // the limit stands for the disk, and is the connection's
	s := o.Source()
	s.RenewEvery()
	write(t, o, named("a", "b", "c")...)
	execute(t, o.db, fmt.Sprint(`PRAGMA max_page_count = `, count(t, o.db, `PRAGMA page_count`)))
	large := errors.New(strings.Repeat("x", 100_000))
	rows := take(t, s, 3)
	require.ErrorContains(t, s.Fail(t.Context(), failedWith(large, rows[0])), "database or disk is full")
	l := letter("b", large)
	l.Record = rows[1]
	require.ErrorContains(t, s.DLQ().Send(t.Context(), l), "database or disk is full")
	require.NoError(t, s.Mark(t.Context(), rows[2:]))
	require.NoError(t, s.Release(t.Context(), rows[:2], 0))
	require.Equal(t, []string{"a", "b"}, idsOf(take(t, s, 3)))

	execute(t, o.db, `PRAGMA max_page_count = 1000000`)
	require.NoError(t, s.DLQ().Send(t.Context(), l))
	require.Equal(t, 1, count(t, o.db, `SELECT count(*) FROM courier_outbox`))
}
