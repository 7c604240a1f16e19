package couriersql

import (
	"context"
	"database/sql"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/stretchr/testify/require"
)

// schemaNamed is the schema of a database's connections.
func schemaNamed(t *testing.T, db *sql.DB) (schema string) {
	t.Helper()
	require.NoError(t, db.QueryRowContext(t.Context(), `SELECT current_schema()`).Scan(&schema))
	return schema
}

// roles creates roles that can use the schema of a database, and opens it as them.
func roles(t *testing.T, dsn string, names ...string) (as map[string]*sql.DB) {
	t.Helper()
	db := openPostgres(t, dsn)
	schema := schemaNamed(t, db)
	as = make(map[string]*sql.DB)
	for _, name := range names {
		role := schema + "_" + name
		execute(t, db, `CREATE ROLE `+role+`; GRANT USAGE ON SCHEMA `+schema+` TO `+role)
		t.Cleanup(func() {
			_, err := db.ExecContext(context.Background(), `DROP OWNED BY `+role+`; DROP ROLE `+role)
			require.NoError(t, err)
		})
		as[name] = openPostgres(t, dsn+" role="+role)
	}
	return as
}

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
			says: `the sequence of courier_outbox.seq is behind the table, as after a restore or a switch-over by logical replication: SELECT setval(pg_get_serial_sequence('"{schema}"."courier_outbox"', 'seq'), (SELECT max(seq) FROM "{schema}"."courier_outbox"))`},
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
			require.ErrorContains(t, err, strings.ReplaceAll(test.says, "{schema}", schemaNamed(t, o.db)))
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

// grantsInREADME returns the block of the README that begins with a statement.
func grantsInREADME(t *testing.T, first string) string {
	t.Helper()
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, grants, found := strings.Cut(string(readme), "```sql\n"+first)
	require.True(t, found)
	grants, _, _ = strings.Cut(first+grants, "```")
	return grants
}

// grantedTo gives a role of the statements another name.
func grantedTo(grants, role, name string) string {
	return strings.NewReplacer(" "+role+";", " "+name+";", " "+role+",", " "+name+",").Replace(grants)
}

// workAsRelay does all that a relay does with four rows: it parks one, marks two, and leaves two.
func workAsRelay(t *testing.T, s *Source) {
	t.Helper()
	rows := take(t, s, 4)
	require.NoError(t, s.Renew(t.Context(), rows))
	_, err := s.DLQ().ParkedKeys(t.Context(), "", []string{"k"})
	require.NoError(t, err)
	require.NoError(t, s.DLQ().Send(t.Context(), courier.DeadLetter[Row]{Record: rows[0], FailedAt: start}))
	require.NoError(t, s.Mark(t.Context(), rows[:2]))
	require.NoError(t, s.Fail(t.Context(), failedWith(context.Canceled, rows[2])))
	require.NoError(t, s.Release(t.Context(), rows[3:], 0))
	_, err = s.Lag(t.Context())
	require.NoError(t, err)
}

// workAsOperator does all that an operator does after workAsRelay.
func workAsOperator(t *testing.T, o *Outbox) (status Status, pruned int) {
	t.Helper()
	status, err := o.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, status.Dead)
	requeued, err := o.Requeue(t.Context(), idAt("1.1"))
	require.NoError(t, err)
	require.Equal(t, []string{idAt("1.1")}, requeued)
	require.NoError(t, o.DLQ().Delete(t.Context(), idAt("9.9")))
	require.NoError(t, o.DLQ().Update(t.Context(), courier.DeadLetter[Row]{ID: idAt("9.9")}))
	pruned, err = o.Prune(t.Context(), time.Now().Add(time.Hour))
	require.NoError(t, err)
	return status, pruned
}

// The rights that the README names are enough, and of those of a relay none is too
// many.
func TestTheRightsOfTheREADME(t *testing.T) {
	grants := grantsInREADME(t, "GRANT INSERT")
	for name, opts := range map[string][]Option{"locked": nil, "leased": {WithLease(time.Minute)}, "elected": {WithStrictOrder()}} {
		t.Run(name, func(t *testing.T) {
			dsn := pgtest.Schema(t)
			opts := append(opts, WithWakeUp(), WithKeep())
			owner := outboxIn(t, openPostgres(t, dsn), opts...)
			as := roles(t, dsn, "writer", "relay", "operator")
			schema := schemaNamed(t, owner.db)
			text := grants
			for role := range as {
				text = grantedTo(text, role, schema+"_"+role)
			}
			execute(t, owner.db, text)
			in := func(role string) *Outbox { return outboxIn(t, as[role], opts...) } // which calls Migrate
			write(t, in("writer"), named("a", "b", "c", "d")...)
			require.ErrorIs(t, tryWrite(t, in("writer"), named("a")...), ErrDuplicateID)
			require.ErrorContains(t, tryWrite(t, in("writer"), named("e", "a")...), "one of 2, which the database does not name")

			relay := in("relay")
			s := relay.Source()
			s.RenewEvery()
			awaken(t, s.Wake())
			workAsRelay(t, s)

			status, pruned := workAsOperator(t, in("operator"))
			require.Equal(t, 2, status.Pending)
			require.Equal(t, 1, pruned)
		})
	}
	as := roles(t, pgtest.Schema(t), "nobody")
	require.ErrorContains(t, New(as["nobody"], Postgres).Migrate(t.Context()), "this role lacks a right: a writer needs to insert")
}

// An outbox in another schema than the first of the path stays the only one.
func TestMigrateWhereTheOutboxIs(t *testing.T) {
	dsn := pgtest.Schema(t)
	db := openPostgres(t, dsn)
	first, own := schemaNamed(t, db), schemaNamed(t, db)+"_own"
	execute(t, db, `CREATE SCHEMA `+own)
	t.Cleanup(func() {
		_, err := db.ExecContext(context.Background(), `DROP SCHEMA `+own+` CASCADE`)
		require.NoError(t, err)
	})
	in := func(path string, opts ...Option) *Outbox {
		o := New(openPostgres(t, strings.Replace(dsn, "search_path="+first, "search_path="+path, 1)), Postgres, opts...)
		t.Cleanup(func() { require.NoError(t, o.Close()) })
		return o
	}
	o := outboxIn(t, db)
	write(t, o, named("a")...)
	tables := `SELECT count(*) FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE relname IN ('courier_outbox', 'courier_outbox_dlq', 'courier_migrations') AND nspname IN ('` + first + `', '` + own + `')`
	log := new(logged)
	for _, lost := range []string{``, `DELETE FROM courier_migrations`, `DROP TABLE courier_migrations, courier_outbox_dlq`} {
		if lost != "" {
			execute(t, db, lost)
		}
		low := in(own+","+first, log.option())
		require.NoError(t, low.Migrate(t.Context()))
		require.Equal(t, 3, count(t, db, tables))
		require.Equal(t, upTo(SchemaVersion(Postgres)), versions(t, o))
		require.Equal(t, []string{"a"}, idsOf(fetch(t, low, 10)))
		require.NoError(t, low.Close())
	}
	require.Empty(t, log.String())

	require.NoError(t, in(own).Migrate(t.Context()))
	require.Equal(t, 6, count(t, db, tables))
	both := in(own+","+first, log.option())
	require.Empty(t, fetch(t, both, 10))
	require.Empty(t, fetch(t, both, 10))
	require.Equal(t, 1, strings.Count(log.String(), "level=WARN"))
	require.Contains(t, log.String(), `more than one schema of the search_path has an outbox of this name`)
	qualified := in(own+","+first, log.option(), WithTable(first+".courier_outbox"))
	version, err := qualified.Version(t.Context())
	require.NoError(t, err)
	require.Equal(t, SchemaVersion(Postgres), version, "it is the one that was migrated by its name alone")
	require.Equal(t, []string{"a"}, idsOf(fetch(t, qualified, 10)))
	require.Equal(t, 1, strings.Count(log.String(), "level=WARN"), "the name has the schema")
	require.Contains(t, log.String(), `schemas="`+own+", "+first+`"`)
}

// Types that Migrate has not seen are read as they are, in whatever format.
func TestColumnsThatChanged(t *testing.T) {
	for name, change := range map[string]string{
		"none":                    ``,
		"attempts bigint":         `ALTER TABLE courier_outbox ALTER COLUMN attempts TYPE bigint`,
		"attempts smallint":       `ALTER TABLE courier_outbox ALTER COLUMN attempts TYPE smallint`,
		"claim integer":           `ALTER TABLE courier_outbox ALTER COLUMN claim TYPE integer`,
		"seq integer":             `ALTER TABLE courier_outbox ALTER COLUMN seq TYPE integer`,
		"created_at without zone": `ALTER TABLE courier_outbox ALTER COLUMN created_at TYPE timestamp`,
		"topic varchar":           `ALTER TABLE courier_outbox ALTER COLUMN topic TYPE varchar(100)`,
		"id uuid":                 `ALTER TABLE courier_outbox ALTER COLUMN id TYPE uuid USING id::uuid`,
	} {
		for _, mode := range []string{"cache_statement", "exec", "simple_protocol"} {
			t.Run(name+" "+mode, func(t *testing.T) {
				const id = "00000000-0000-0000-0000-00000000000a"
				o := outboxIn(t, openPostgres(t, pgtest.Schema(t)+" timezone=UTC default_query_exec_mode="+mode))
				write(t, o, Message{ID: id, Topic: "orders", Key: "k", Payload: []byte{0, 1}})
				execute(t, o.db, `UPDATE courier_outbox SET attempts = 3, claim = 7`)
				if change != "" {
					execute(t, o.db, change)
				}
				s := o.Source()
				rows := take(t, s, 10)
				require.Equal(t, []Row{{Seq: 1, ID: id, Topic: "orders", Key: "k", Payload: []byte{0, 1}, CreatedAt: start.UnixMicro(), Attempts: 3, claim: 7, origin: &s.origin}}, rows)
				require.NoError(t, s.Release(t.Context(), rows, 0))
			})
		}
	}
}

// A time that is infinite holds no row up.
func TestInfiniteTimes(t *testing.T) {
	for _, mode := range []string{"cache_statement", "exec", "simple_protocol"} {
		for _, opts := range [][]Option{nil, {WithLease(time.Minute)}, {WithStrictOrder()}} {
			o := outboxIn(t, openPostgres(t, pgtest.Schema(t)+" default_query_exec_mode="+mode), opts...)
			write(t, o, named("a", "b", "c", "d")...)
			for id, at := range map[string]string{"a": "infinity", "b": "-infinity", "c": "100000-01-01", "d": "4000-01-01 BC"} {
				execute(t, o.db, `UPDATE courier_outbox SET created_at = $1::text::timestamptz WHERE id = $2`, at, id)
			}
			lag, err := o.Lag(t.Context())
			require.NoError(t, err)
			require.Positive(t, lag.Oldest)
			s := o.Source()
			rows := take(t, s, 10)
			require.Equal(t, []string{"a", "b", "c", "d"}, idsOf(rows))
			for i, year := range []int{9999, 1, 9999, 1} {
				m, err := rows[i].Message()
				require.NoError(t, err)
				require.Equal(t, year, m.CreatedAt.Year())
				require.NoError(t, s.DLQ().Send(t.Context(), courier.DeadLetter[Row]{Record: rows[i]}))
			}
			require.NoError(t, s.Mark(t.Context(), rows))
			letters, err := o.DLQ().List(t.Context(), "", 10)
			require.NoError(t, err)
			for i, l := range letters {
				require.Equal(t, rows[i].CreatedAt, l.Record.CreatedAt)
			}
		}
	}
}

// The level that is set for a database is not that of a relay's transactions.
func TestTheIsolationOfTheDatabase(t *testing.T) {
	o := outboxIn(t, openPostgres(t, pgtest.Schema(t)+" default_transaction_isolation=serializable"))
	execute(t, o.db, `CREATE TABLE levels (level text);
		CREATE FUNCTION level() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO levels VALUES (current_setting('transaction_isolation')); RETURN NULL; END $$;
		CREATE TRIGGER level AFTER UPDATE OR DELETE ON courier_outbox FOR EACH STATEMENT EXECUTE FUNCTION level();
		CREATE TRIGGER level AFTER INSERT OR DELETE ON courier_outbox_dlq FOR EACH STATEMENT EXECUTE FUNCTION level()`)
	write(t, o, named("a", "b", "c", "d")...)
	s := o.Source()
	rows := take(t, s, 3)
	l := letter("a", nil)
	l.Record = rows[0]
	require.NoError(t, s.DLQ().Send(t.Context(), l))
	require.NoError(t, s.Fail(t.Context(), failedWith(context.Canceled, rows[1])))
	require.NoError(t, s.Mark(t.Context(), rows[:1]))
	require.NoError(t, s.Mark(t.Context(), rows[2:]))
	requeued, err := o.Requeue(t.Context(), idAt("1.1"))
	require.NoError(t, err)
	require.Len(t, requeued, 1)
	leased := New(o.db, Postgres, WithLease(time.Minute)).Source()
	rows = take(t, leased, 1)
	l.Record = rows[0]
	require.NoError(t, leased.DLQ().Send(t.Context(), l))
	require.Positive(t, count(t, o.db, `SELECT count(*) FROM levels`))
	require.LessOrEqual(t, count(t, o.db, `SELECT count(*) FROM levels WHERE level <> 'read committed'`), 1, "but the mark of one row that was late")
}

// A relay that would wait for itself in its pool says so at its start.
func TestAPoolThatIsTooSmall(t *testing.T) {
	for name, test := range map[string]struct {
		opts  []Option
		needs int
	}{
		"locked": {nil, 1}, "leased": {[]Option{WithLease(time.Minute)}, 1}, "wake-up": {[]Option{WithWakeUp()}, 2},
		"elected": {[]Option{WithStrictOrder()}, 2}, "elected, wake-up": {[]Option{WithStrictOrder(), WithWakeUp()}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			o := newPostgres(t, test.opts...)
			for n := range 4 {
				o.db.SetMaxOpenConns(n) // 0 is any number
				err := o.Source().Validate()
				if n == 0 || n >= test.needs {
					require.NoError(t, err)
				} else {
					require.ErrorIs(t, err, courier.ErrConfig)
					require.ErrorContains(t, err, "SetMaxOpenConns of ")
				}
				if stream := o.Stream(time.Second); stream.fault == nil {
					require.Equal(t, err, stream.Validate())
				}
			}
		})
	}
	o := newPostgres(t)
	write(t, o, named("a")...)
	o.db.SetMaxOpenConns(1)
	s := o.Source()
	rows := take(t, s, 1)
	_, err := s.DLQ().ParkedKeys(t.Context(), "", []string{"k"})
	require.ErrorContains(t, err, "SetMaxOpenConns of 1 is too few for a relay of courier_outbox: it holds 2 at a time")
	require.NoError(t, s.Mark(t.Context(), rows))
}

// A server that ends idle sessions does not end the one that listens.
func TestAListenerOutlivesIdleSessionTimeout(t *testing.T) {
	log := new(logged)
	o := outboxIn(t, openPostgres(t, pgtest.Schema(t)+" idle_session_timeout=2s"), WithWakeUp(), WithTable("wake_idle"), log.option())
	o.db.SetMaxIdleConns(0) // so that no other session of the pool is idle
	wake := o.Source().Wake()
	awaken(t, wake)
	other := openPostgres(t, pgtest.Schema(t))
	require.Eventually(t, func() bool { // probed twice, the session is older than it may be idle
		return count(t, other, `SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%notification_queue_usage%' AND pid <> pg_backend_pid()
			AND backend_start < now() - interval '2500 ms' AND state = 'idle'`) > 0
	}, 30*time.Second, 20*time.Millisecond)
	execute(t, o.db, `INSERT INTO wake_idle (id, topic, payload) VALUES ('b', 't', '')`)
	awaken(t, wake)
	require.Empty(t, log.String())
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

// anotherSchema is one that is not in the search_path.
func anotherSchema(t *testing.T, db *sql.DB) (schema string) {
	t.Helper()
	schema = schemaNamed(t, db) + "_other"
	execute(t, db, `CREATE SCHEMA `+schema)
	t.Cleanup(func() {
		_, err := db.ExecContext(context.Background(), `DROP SCHEMA `+schema+` CASCADE`)
		require.NoError(t, err)
	})
	return schema
}

// An outbox that is named with its schema is used there alone, whatever the search_path.
func TestOutboxInASchemaOfItsOwn(t *testing.T) {
	for name, opts := range map[string][]Option{
		"locked": nil, "kept": {WithKeep()}, "leased": {WithLease(time.Minute)}, "leased, kept": {WithLease(time.Minute), WithKeep()},
		"elected": {WithStrictOrder()}, "elected, kept": {WithStrictOrder(), WithKeep()},
	} {
		t.Run(name, func(t *testing.T) {
			db := openPostgres(t, pgtest.Schema(t))
			log := new(logged)
			opts := append(opts, WithWakeUp(), log.warnings(), WithTable(anotherSchema(t, db)+".courier_outbox"))
			o := New(db, Postgres, append(opts, WithClock(&fixed{start}))...)
			version, err := o.Version(t.Context())
			require.NoError(t, err)
			require.Zero(t, version)
			require.NoError(t, o.CheckMigrate(t.Context()))
			for range 2 {
				o = outboxIn(t, db, opts...)
			}
			version, err = o.Version(t.Context())
			require.NoError(t, err)
			require.Equal(t, SchemaVersion(Postgres), version)
			var path *Outbox // of the same name, in the path; without it a table that is named without its schema is missing
			if !o.keep {
				path = outboxIn(t, db)
				write(t, path, named("a", "path")...)
			}

			s := o.Source()
			s.RenewEvery()
			awaken(t, s.Wake())
			write(t, o, named("a", "b", "c", "d", "e")...)
			awaken(t, s.Wake())
			require.ErrorIs(t, tryWrite(t, o, named("a")...), ErrDuplicateID)
			rows := take(t, s, 5)
			require.NoError(t, s.Renew(t.Context(), rows))
			l := letterFor(rows[0])
			l.Key = "k"
			require.NoError(t, s.DLQ().Send(t.Context(), l))
			keys, err := s.DLQ().ParkedKeys(t.Context(), "", []string{"k"})
			require.NoError(t, err)
			require.Equal(t, []string{"k"}, keys)
			require.NoError(t, s.Mark(t.Context(), rows[:3]))
			require.NoError(t, s.Fail(t.Context(), failedWith(context.Canceled, rows[3])))
			require.NoError(t, s.Release(t.Context(), rows[4:], 0))
			require.NoError(t, o.Close())

			status, err := o.Status(t.Context())
			require.NoError(t, err)
			require.Equal(t, 2, status.Pending)
			require.Equal(t, 1, status.Due)
			require.Equal(t, 1, status.Dead)
			require.Len(t, status.Failing, 1)
			letters, err := o.DLQ().Receive(t.Context(), 10)
			require.NoError(t, err)
			require.Len(t, letters, 1)
			require.NoError(t, o.DLQ().Update(t.Context(), letters[0]))
			letters, err = o.DLQ().Receive(t.Context(), 10)
			require.NoError(t, err)
			requeued, err := o.Requeue(t.Context(), letters[0].ID)
			require.NoError(t, err)
			require.Len(t, requeued, 1)
			require.NoError(t, o.DLQ().Delete(t.Context(), letters[0].ID))
			require.Equal(t, []string{"e", "a"}, idsOf(fetch(t, o, 10)))
			pruned, err := o.Prune(t.Context(), time.Now().Add(time.Hour))
			require.NoError(t, err)
			if o.keep {
				require.Equal(t, 2, pruned)
			}
			require.Empty(t, log.String())
			if path != nil {
				require.Equal(t, []string{"a", "path"}, idsOf(fetch(t, path, 10)))
			}
			require.NoError(t, o.Close())
		})
	}
	db := openPostgres(t, pgtest.Schema(t))
	err := New(db, Postgres, WithTable("courier_nowhere.orders")).Migrate(t.Context())
	require.ErrorContains(t, err, "migrating courier_nowhere.orders: ")
	require.ErrorContains(t, err, "create the schema first")
}
