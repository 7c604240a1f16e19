package couriersql

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/erfanmomeniii/courier/courierttest"
	"github.com/stretchr/testify/require"
)

type order struct {
	ID    string `json:"id"`
	Total int    `json:"total"`
}

func orderID(o order) string { return o.ID }

// orders is a queue of orders in a new database.
func orders(t *testing.T, dialect Dialect, change func(*DLQConfig[order])) *DLQ[order] {
	t.Helper()
	config := DLQConfig[order]{Table: "dead_orders", Identity: orderID}
	if change != nil {
		change(&config)
	}
	q := NewDLQ(databaseOf(t, dialect), dialect, config)
	require.NoError(t, q.Migrate(t.Context()))
	return q
}

func inBoth(t *testing.T, test func(t *testing.T, dialect Dialect)) {
	for name, dialect := range map[string]Dialect{"sqlite": SQLite, "postgres": Postgres, "mysql": MySQL} {
		t.Run(name, func(t *testing.T) { test(t, dialect) })
	}
}

func letterOf[T any](record T, err error) courier.DeadLetter[T] {
	return courier.DeadLetter[T]{Record: record, Error: err, Reason: courier.ReasonExhausted, Attempts: 3, FirstFailedAt: start, FailedAt: start}
}

// The queue of records of any type conforms as that of an outbox's rows does, with an
// identity and without, in a schema of the search path and in a named one.
func TestConformance_DLQOfRecords(t *testing.T) {
	for name, c := range map[string]struct {
		dialect  Dialect
		schema   bool
		identity func(order) string
	}{
		"sqlite":             {SQLite, false, orderID},
		"sqlite unnamed":     {SQLite, false, nil},
		"mysql":              {MySQL, false, orderID},
		"postgres":           {Postgres, false, orderID},
		"postgres unnamed":   {Postgres, false, nil},
		"postgres qualified": {Postgres, true, orderID},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			courierttest.TestDLQ(t, func(t *testing.T) courierttest.DLQFixture[order] {
				db := databaseOf(t, c.dialect)
				in := ""
				if c.schema {
					in = schemaNamed(t, db) + "."
				}
				queue := func(table string) courier.DLQ[order] {
					q := NewDLQ(db, c.dialect, DLQConfig[order]{Table: in + table, Identity: c.identity})
					require.NoError(t, q.Migrate(t.Context()))
					return q
				}
				return courierttest.DLQFixture[order]{
					DLQ:    queue("dead_orders"),
					Record: func(n int) order { return order{fmt.Sprint("order ", n), n} },
					Reopen: func() courier.DLQ[order] { return queue("dead_orders") },
					Other:  func() courier.DLQ[order] { return queue("dead_others") },
					FailSends: func() func() {
						execute(t, db, `ALTER TABLE dead_orders RENAME TO away`)
						return func() { execute(t, db, `ALTER TABLE away RENAME TO dead_orders`) }
					},
				}
			}, courierttest.DLQFeatures{Identity: c.identity != nil, Keyed: true, Shared: true})
		})
	}
}

// A pipeline of records of one's own parks in the queue, which outlives it.
func TestDLQOfRecordsInAPipeline(t *testing.T) { inBoth(t, testDLQOfRecordsInAPipeline) }

func testDLQOfRecordsInAPipeline(t *testing.T, dialect Dialect) {
	q := orders(t, dialect, nil)
	full := errors.New("the warehouse is full")
	var delivered []order
	deliver := courier.ProcessFunc(func(_ context.Context, o order) error {
		if o.Total > 10 && full != nil {
			return courier.Permanent(full)
		}
		delivered = append(delivered, o)
		return nil
	})
	applier, _ := courier.ResilientApplier(deliver, &courier.ResilientConfig[order]{DLQ: q})
	small, large := order{"A-1", 1}, order{"A-2", 11}
	for _, o := range []order{small, large, large} { // the mark of the last was lost
		require.NoError(t, applier.Apply(t.Context(), o))
	}
	again := NewDLQ(q.db, dialect, DLQConfig[order]{Table: "dead_orders", Identity: orderID})
	letters, err := again.Receive(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, letters, 1)
	require.Equal(t, large, letters[0].Record)
	require.ErrorContains(t, letters[0].Error, "the warehouse is full")
	require.Equal(t, courier.ReasonPermanent, letters[0].Reason)

	_, err = courier.Redrive(t.Context(), again, applier, nil)
	require.ErrorIs(t, err, courier.ErrConfig, "it parks in the same table")
	full = nil
	result, err := courier.Redrive(t.Context(), again, deliver, nil)
	require.NoError(t, err)
	require.Equal(t, courier.RedriveResult{Attempted: 1, Succeeded: 1}, result)
	require.Equal(t, []order{small, large}, delivered)
}

// Different names are different records, whatever a database makes of them.
func TestDLQTellsRecordsApart(t *testing.T) { inBoth(t, testDLQTellsRecordsApart) }

func testDLQTellsRecordsApart(t *testing.T, dialect Dialect) {
	q := NewDLQ(databaseOf(t, dialect), dialect, DLQConfig[[]byte]{Table: "dead", Identity: func(b []byte) string { return string(b) }})
	require.NoError(t, q.Migrate(t.Context()))
	long := strings.Repeat("long", 1000)
	names := []string{"\xff", "\xfe", "\uFFFD", "a\x00", "a\x00b", long + "1", long + "2", random(10_000), strings.Repeat("ä", 1000), "", ""}
	for range 2 {
		for _, name := range names[:len(names)-1] {
			require.NoError(t, q.Send(t.Context(), letterOf([]byte(name), nil)))
		}
	}
	letters, err := q.Receive(t.Context(), 100)
	require.NoError(t, err)
	var found []string
	for _, l := range letters {
		found = append(found, string(l.Record))
	}
	require.Equal(t, names, found, "one letter of each, but for those without a name")
}

// A key may be longer than a row of an index.
func TestDLQOfRecordsTakesALongKey(t *testing.T) { inBoth(t, testDLQOfRecordsTakesALongKey) }

func testDLQOfRecordsTakesALongKey(t *testing.T, dialect Dialect) {
	q := orders(t, dialect, nil)
	l := letterOf(order{ID: "A-1"}, nil)
	l.Key = random(10_000)
	require.NoError(t, q.Send(t.Context(), l))
	parked, err := q.ParkedKeys(t.Context(), "", []string{"A-1", l.Key})
	require.NoError(t, err)
	require.Equal(t, []string{l.Key}, parked)
}

func TestDLQWithACodecOfItsOwn(t *testing.T) { inBoth(t, testDLQWithACodecOfItsOwn) }

func testDLQWithACodecOfItsOwn(t *testing.T, dialect Dialect) {
	type secret struct{ hidden int }
	q := NewDLQ(databaseOf(t, dialect), dialect, DLQConfig[secret]{
		Table:  "dead_secrets",
		Encode: func(s secret) ([]byte, error) { return []byte{0xff, byte(s.hidden)}, nil },
		Decode: func(b []byte) (secret, error) {
			if len(b) != 2 || b[1] > 9 {
				return secret{}, errors.New("no digit")
			}
			return secret{int(b[1])}, nil
		},
	})
	require.NoError(t, q.Migrate(t.Context()))
	require.NoError(t, q.Send(t.Context(), letterOf(secret{7}, nil)))
	err := q.Send(t.Context(), letterOf(secret{10}, nil))
	require.EqualError(t, err, `couriersql: parking the record "" in dead_secrets: what it is encoded as cannot be decoded: no digit; the record stays pending: set DLQConfig.Encode and Decode to functions that take it`)
	letters, err := q.Receive(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, letters, 1)
	require.Equal(t, secret{7}, letters[0].Record)

	jsonless := NewDLQ(q.db, dialect, DLQConfig[func()]{Table: "dead_functions"})
	require.ErrorContains(t, jsonless.Send(t.Context(), letterOf(func() {}, nil)), "it cannot be encoded: json: unsupported type")
}

// A record has no time of its own: as a row it has that of its first failure.
func TestDLQOfRecordsAsRows(t *testing.T) { inBoth(t, testDLQOfRecordsAsRows) }

func testDLQOfRecordsAsRows(t *testing.T, dialect Dialect) {
	q := orders(t, dialect, nil)
	later := start.Add(time.Hour)
	for id, first := range map[string]time.Time{"A-1": start, "A-2": {}} {
		l := letterOf(order{ID: id}, nil)
		l.FirstFailedAt, l.FailedAt = first, later
		require.NoError(t, q.Send(t.Context(), l))
	}
	letters, err := NewDLQ(q.db, dialect, DLQConfig[Row]{Table: "dead_orders"}).Receive(t.Context(), 10)
	require.NoError(t, err)
	created := make(map[string]time.Time)
	for _, l := range letters {
		created[l.Record.ID] = time.UnixMicro(l.Record.CreatedAt).UTC()
	}
	require.Equal(t, map[string]time.Time{"A-1": start, "A-2": later}, created)
}

// A letter of another time, which the program cannot decode, holds up no other. It is
// named, counted, and left.
func TestDLQPassesOverWhatItCannotDecode(t *testing.T) {
	inBoth(t, testDLQPassesOverWhatItCannotDecode)
}

func testDLQPassesOverWhatItCannotDecode(t *testing.T, dialect Dialect) {
	var log bytes.Buffer
	q := orders(t, dialect, func(c *DLQConfig[order]) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	for i := range 9 {
		require.NoError(t, q.Send(t.Context(), letterOf(order{fmt.Sprint(i), i}, nil)))
	}
	rows := NewDLQ(q.db, dialect, DLQConfig[Row]{Table: "dead_orders"})
	for _, id := range []string{"0", "3", "4", "5", "8"} {
		execute(t, q.db, `UPDATE dead_orders SET payload = $1 WHERE id = $2`, []byte(`{"id":7}`), id)
	}
	var walked []string
	for after := ""; ; {
		page, err := q.List(t.Context(), after, 2)
		require.NoError(t, err)
		if len(page) == 0 {
			break
		}
		for _, l := range page {
			walked = append(walked, l.Record.ID)
		}
		after = page[len(page)-1].ID
	}
	require.Equal(t, []string{"1", "2", "6", "7"}, walked)
	require.Contains(t, log.String(), `table=dead_orders letter=`+idAt("4.1")+` record=3 error="json: `)
	require.Equal(t, 1, strings.Count(log.String(), "record=4"), "each is read once")

	result, err := courier.Redrive(t.Context(), q, courier.ProcessFunc(func(context.Context, order) error { return nil }), nil)
	require.NoError(t, err)
	require.Equal(t, courier.RedriveResult{Attempted: 4, Succeeded: 4, Left: 5}, result)
	stored, err := rows.Receive(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, stored, 5, "as rows, they are all to be had")
	require.Equal(t, Row{ID: "0", Payload: []byte(`{"id":7}`), CreatedAt: start.UnixMicro()}, stored[0].Record)
	require.Equal(t, `record "0"`, stored[0].Record.String())
	require.NoError(t, rows.Delete(t.Context(), stored[0].ID))
	n, err := q.Count(t.Context())
	require.NoError(t, err)
	require.Equal(t, 4, n)
}

// A queue of rows reads the letters of an outbox as well.
func TestDLQOfRowsOverAnOutboxsLetters(t *testing.T) { inEach(t, testDLQOfRowsOverAnOutboxsLetters) }

func testDLQOfRowsOverAnOutboxsLetters(t *testing.T, newOutbox maker) {
	o := newOutbox(t)
	require.NoError(t, o.DLQ().Send(t.Context(), letter("a", errors.New("boom"))))
	want, err := o.DLQ().Receive(t.Context(), 10)
	require.NoError(t, err)
	rows := NewDLQ(o.db, o.dialect, DLQConfig[Row]{Table: "courier_outbox_dlq"})
	got, err := rows.Receive(t.Context(), 10)
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.True(t, rows.SameQueue(o.DLQ()))
	require.False(t, rows.SameQueue(newOutbox(t).DLQ()), "of another database")
	require.NoError(t, o.DLQ().Migrate(t.Context()), "is the outbox's")

	const inUse = "is that of an outbox, or of a queue that NewDLQ made: choose another name"
	require.ErrorContains(t, rows.Migrate(t.Context()), "migrating courier_outbox_dlq: the table courier_outbox_dlq "+inUse)
	own := NewDLQ(o.db, o.dialect, DLQConfig[order]{Table: "events_dlq"})
	require.NoError(t, own.Migrate(t.Context()))
	require.ErrorContains(t, New(o.db, o.dialect, WithTable("events")).Migrate(t.Context()), "migrating events: the table events_dlq "+inUse)
}

func TestMigrateOfADLQ(t *testing.T) { inBoth(t, testMigrateOfADLQ) }

func testMigrateOfADLQ(t *testing.T, dialect Dialect) {
	db := databaseOf(t, dialect)
	q := NewDLQ(db, dialect, DLQConfig[order]{Table: "dead_orders", Identity: orderID})
	_, err := q.Count(t.Context())
	require.ErrorIs(t, err, ErrNotMigrated)
	require.ErrorContains(t, err, "couriersql: counting the dead letters of dead_orders: ")
	err = q.Send(t.Context(), letterOf(order{ID: "A-1"}, nil))
	require.ErrorIs(t, err, ErrNotMigrated)
	require.ErrorContains(t, err, `couriersql: parking record "A-1" in dead_orders: `)

	for range 2 {
		require.NoError(t, q.Migrate(t.Context()))
	}
	require.NoError(t, q.Send(t.Context(), letterOf(order{ID: "A-1"}, nil)))
	execute(t, db, `DELETE FROM courier_migrations`)
	require.NoError(t, q.Migrate(t.Context()), "its table is known again")
	require.Equal(t, 1, count(t, db, `SELECT count(*) FROM dead_orders`))
	require.Equal(t, 1, count(t, db, `SELECT max(version) FROM courier_migrations WHERE outbox = 'dlq:dead_orders'`))

	execute(t, db, `UPDATE courier_migrations SET version = 9`)
	require.ErrorContains(t, q.Migrate(t.Context()), "the database has schema version 9")
	execute(t, db, `CREATE TABLE mine (id INTEGER)`)
	other := NewDLQ(db, dialect, DLQConfig[order]{Table: "mine"})
	require.ErrorContains(t, other.Migrate(t.Context()), "migrating mine: the table mine is not one of this package: column seq ")
	if dialect == MySQL {
		return // in which there is no outbox
	}
	outbox := outboxIn(t, db)
	asOutbox := NewDLQ(db, dialect, DLQConfig[order]{Table: outbox.table})
	require.ErrorContains(t, asOutbox.Migrate(t.Context()), "the table courier_outbox is that of an outbox")
}

func TestBadConfigurationOfADLQ(t *testing.T) {
	db := open(t, t.TempDir()+"/test.db")
	encode, decode := func(order) ([]byte, error) { return nil, nil }, func([]byte) (order, error) { return order{}, nil }
	for want, q := range map[string]*DLQ[order]{
		"db is nil":                        NewDLQ(nil, SQLite, DLQConfig[order]{Table: "dead"}),
		"dialect 0 is ":                    NewDLQ(db, 0, DLQConfig[order]{Table: "dead"}),
		`DLQConfig.Table "" is`:            NewDLQ(db, SQLite, DLQConfig[order]{}),
		`DLQConfig.Table "a.b" is`:         NewDLQ(db, SQLite, DLQConfig[order]{Table: "a.b"}),
		`DLQConfig.Table "a.b.c" is`:       NewDLQ(db, Postgres, DLQConfig[order]{Table: "a.b.c"}),
		`DLQConfig.Table "a\"a.b" is`:      NewDLQ(db, Postgres, DLQConfig[order]{Table: `a"a.b`}),
		`DLQConfig.Table "A" is`:           NewDLQ(db, Postgres, DLQConfig[order]{Table: "A"}),
		`DLQConfig.Table "a\"; --" is`:     NewDLQ(db, SQLite, DLQConfig[order]{Table: `a"; --`}),
		"has Encode or Decode alone":       NewDLQ(db, SQLite, DLQConfig[order]{Table: "dead", Encode: encode}),
		"DLQConfig has Encode or Decode a": NewDLQ(db, SQLite, DLQConfig[order]{Table: "dead", Decode: decode}),
		"DLQConfig.QueryTimeout of -1s":    NewDLQ(db, SQLite, DLQConfig[order]{Table: "dead", QueryTimeout: -time.Second}),
	} {
		t.Run(want, func(t *testing.T) {
			_, received := q.Receive(t.Context(), 1)
			_, keys := q.ParkedKeys(t.Context(), "", []string{"k"})
			_, counted := q.Count(t.Context())
			_, removed := q.Remove(t.Context(), "1.1.1")
			for _, err := range []error{
				q.Validate(), q.Migrate(t.Context()), received, keys, counted, removed, q.Send(t.Context(), courier.DeadLetter[order]{}),
				q.Update(t.Context(), courier.DeadLetter[order]{ID: "1.1.1"}), q.Delete(t.Context(), "1.1.1"),
			} {
				require.ErrorIs(t, err, courier.ErrConfig)
				require.ErrorContains(t, err, want)
			}
		})
	}
	rows := NewDLQ(db, SQLite, DLQConfig[Row]{Table: "dead", Identity: func(r Row) string { return r.ID }})
	require.ErrorContains(t, rows.Validate(), "a Row is stored as it is")
	require.NoError(t, NewDLQ(db, SQLite, DLQConfig[json.RawMessage]{Table: "dead"}).Validate())
}

// A table in a schema that is not in the search_path is found by its full name, with the
// rights that the README names.
func TestDLQInASchemaOfItsOwn(t *testing.T) {
	dsn := pgtest.Schema(t)
	db := openPostgres(t, dsn)
	other := anotherSchema(t, db)
	config := DLQConfig[order]{Table: other + ".dead_orders", Identity: orderID}
	owner := NewDLQ(db, Postgres, config)
	for range 2 {
		require.NoError(t, owner.Migrate(t.Context()))
	}
	require.Equal(t, 1, count(t, db, `SELECT count(*) FROM `+other+`.courier_migrations WHERE outbox = 'dlq:dead_orders'`), "as by its name alone")
	as := roles(t, dsn, "pipeline", "operator")
	schema := schemaNamed(t, db)
	for _, role := range []string{schema + "_pipeline", schema + "_operator"} {
		execute(t, db, `GRANT USAGE ON SCHEMA `+other+` TO `+role+`; GRANT SELECT ON `+other+`.courier_migrations TO `+role)
	}
	execute(t, db, `GRANT SELECT, INSERT, UPDATE ON `+other+`.dead_orders TO `+schema+`_pipeline`)
	execute(t, db, `GRANT SELECT, UPDATE, DELETE ON `+other+`.dead_orders TO `+schema+`_operator`)

	pipeline := NewDLQ(as["pipeline"], Postgres, config)
	require.NoError(t, pipeline.Migrate(t.Context()))
	for range 2 {
		require.NoError(t, pipeline.Send(t.Context(), letterOf(order{"A-1", 7}, errors.New("boom"))))
	}
	_, err := pipeline.ParkedKeys(t.Context(), "", []string{"k"})
	require.NoError(t, err)
	operator := NewDLQ(as["operator"], Postgres, config)
	letters, err := operator.Receive(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, letters, 1)
	require.Equal(t, order{"A-1", 7}, letters[0].Record)
	require.NoError(t, operator.Update(t.Context(), letters[0]))
	letters, err = operator.Receive(t.Context(), 10)
	require.NoError(t, err)
	removed, err := operator.Remove(t.Context(), letters[0].ID)
	require.NoError(t, err)
	require.Len(t, removed, 1)
	require.Equal(t, 0, count(t, db, `SELECT count(*) FROM pg_class WHERE relnamespace = '`+schema+`'::regnamespace`))
}

// No call waits for longer than it is allowed to, and none believes a statement that the
// database undid.
func TestDLQOfRecordsWhenTheDatabaseMisbehaves(t *testing.T) {
	t.Run("no answer", func(t *testing.T) {
		q := orders(t, Postgres, func(c *DLQConfig[order]) { c.QueryTimeout = time.Minute })
		require.Equal(t, time.Minute, q.timeout)
		tx, err := q.db.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		_, err = tx.ExecContext(t.Context(), `LOCK TABLE dead_orders`)
		require.NoError(t, err)
		q.timeout = 100 * time.Millisecond
		err = q.Send(t.Context(), letterOf(order{ID: "A-1"}, nil))
		require.ErrorIs(t, err, ErrQueryTimeout)
		require.ErrorContains(t, err, "not within 100ms")
		require.NoError(t, tx.Rollback())
		q.timeout = time.Minute
		require.NoError(t, q.Send(t.Context(), letterOf(order{ID: "A-1"}, nil)))
	})
	t.Run("undone", func(t *testing.T) {
		inBoth(t, func(t *testing.T, dialect Dialect) {
			if dialect == MySQL {
				return // which undoes no insert without an error
			}
			q := orders(t, dialect, nil)
			if dialect == SQLite {
				execute(t, q.db, `CREATE TRIGGER mine BEFORE INSERT ON dead_orders BEGIN SELECT raise(IGNORE); END`)
			} else {
				execute(t, q.db, `CREATE FUNCTION mine() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
					CREATE TRIGGER mine BEFORE INSERT ON dead_orders FOR EACH ROW EXECUTE FUNCTION mine()`)
			}
			err := q.Send(t.Context(), letterOf(order{ID: "A-1"}, nil))
			require.ErrorIs(t, err, ErrSuppressed)
			require.ErrorContains(t, err, "on dead_orders")
		})
	})
}
