package couriersql

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/courierttest"
	"github.com/stretchr/testify/require"
)

// happening is a row of a table of somebody's own.
type happening struct {
	Tenant string
	ID     int64
	Name   string
}

// ownTable is a table of somebody's own in a database, and how it is relayed.
type ownTable struct {
	create []string
	config TableConfig[happening]
	marked string // the names of those that are
}

// ownTables are tables of several kinds: how they mark, what their key is, what their names
// are.
func ownTables(dialect Dialect) map[string]ownTable {
	identity, now := "bigserial", "now()"
	if dialect == SQLite {
		identity, now = "INTEGER", "unixepoch()"
	}
	single := TableConfig[happening]{
		Table: "events", Key: []string{"id"}, KeyOf: func(e happening) []any { return []any{e.ID} },
		Columns: []string{"id", "name"},
		Scan: func(scan func(dest ...any) error) (e happening, err error) {
			return e, scan(&e.ID, &e.Name)
		},
		Pending: "sent_at IS NULL", Mark: "sent_at = " + now,
	}
	deletes := single
	deletes.Pending, deletes.Mark = "true", ""
	deletes.Order = "t.id"
	odd := single
	odd.Table, odd.Key = `"Sent ""things"""`, []string{"The Id"}
	odd.Columns = []string{`"The Id"`, "name"}
	composite := single
	composite.Key = []string{"tenant", "number"}
	composite.KeyOf = func(e happening) []any { return []any{e.Tenant, e.ID} }
	composite.Columns = []string{"tenant", "number", "upper(substr(name, 1, 1)) || substr(name, 2)"}
	composite.Scan = func(scan func(dest ...any) error) (e happening, err error) {
		return e, scan(&e.Tenant, &e.ID, &e.Name)
	}
	composite.Order = "number"
	pairs := composite
	pairs.Pending, pairs.Mark = "true", ""
	strict := single
	strict.Strict, strict.OrderKey = true, "name"
	created := fmt.Sprintf(`CREATE TABLE events (id %s PRIMARY KEY, name text, sent_at %s)`, identity, map[Dialect]string{Postgres: "timestamptz", SQLite: "INTEGER"}[dialect])
	const pending = `CREATE INDEX events_pending ON events (id) WHERE sent_at IS NULL`
	oddly := strings.NewReplacer("ON events", `ON "Sent ""things"""`, "TABLE events", `TABLE "Sent ""things"""`, "id ", `"The Id" `, "(id)", `("The Id")`)
	return map[string]ownTable{
		"updates":   {[]string{created, pending}, single, `SELECT name FROM events WHERE sent_at IS NOT NULL ORDER BY id`},
		"deletes":   {[]string{created}, deletes, ""},
		"odd names": {[]string{oddly.Replace(created), oddly.Replace(pending)}, odd, `SELECT name FROM "Sent ""things""" WHERE sent_at IS NOT NULL ORDER BY "The Id"`},
		"several columns": {[]string{
			`CREATE TABLE events (tenant text NOT NULL, number bigint NOT NULL, name text, sent_at ` + map[Dialect]string{Postgres: "timestamptz", SQLite: "INTEGER"}[dialect] + `, PRIMARY KEY (tenant, number))`,
			strings.ReplaceAll(pending, "(id)", "(number)"),
		}, composite, `SELECT name FROM events WHERE sent_at IS NOT NULL ORDER BY number`},
		"several columns, deletes": {[]string{`CREATE TABLE events (tenant text NOT NULL, number bigint NOT NULL, name text, PRIMARY KEY (tenant, number))`,
			`CREATE INDEX events_in_order ON events (number)`}, pairs, ""},
		"strict": {[]string{created, pending}, strict, `SELECT name FROM events WHERE sent_at IS NOT NULL ORDER BY id`},
	}
}

// table is its name in a statement.
func (o ownTable) table() string { return quotedAll(identifiers(o.config.Table), ".") }

// add makes rows pending.
func (o ownTable) add(t *testing.T, db *sql.DB, first int, names ...string) {
	t.Helper()
	table, id := o.table(), identifier(o.config.Key[len(o.config.Key)-1])
	for i, name := range names {
		if len(o.config.Key) == 2 {
			execute(t, db, fmt.Sprintf(`INSERT INTO %s (tenant, %s, name) VALUES ($1, $2, $3)`, table, id), fmt.Sprintf(`ten"an\t %d`, i%3), first+i, name)
			continue
		}
		execute(t, db, fmt.Sprintf(`INSERT INTO %s (%s, name) VALUES ($1, $2)`, table, id), first+i, name)
	}
}

func TestConformance_TableSource(t *testing.T)       { conformTable(t, false) }
func TestConformance_TableStreamSource(t *testing.T) { conformTable(t, true) }

func conformTable(t *testing.T, stream bool) {
	test := courierttest.TestSource[happening]
	if stream {
		test = courierttest.TestStreamSource[happening]
	}
	for dialect, of := range map[Dialect]string{SQLite: "sqlite", Postgres: "postgres"} {
		for name, own := range ownTables(dialect) {
			if stream && name != "several columns" {
				continue // these take their time, and differ in nothing else
			}
			t.Run(of+" "+name, func(t *testing.T) {
				t.Parallel()
				test(t, func(t *testing.T) courierttest.SourceFixture[happening] { return tableFixture(t, dialect, stream, own) },
					courierttest.SourceFeatures{
						Lease: DefaultTableLease, Fenced: true, Patience: time.Minute, // the cases run side by side
						Ordered: true, Releaser: true, ReleasesAtOnce: true, Failer: true, Renewer: true, Lagger: true, Identifier: true,
					})
			})
		}
	}
}

func tableFixture(t *testing.T, dialect Dialect, stream bool, own ownTable) courierttest.SourceFixture[happening] {
	t.Helper()
	db := databaseOf(t, dialect)
	for _, text := range own.create {
		execute(t, db, text)
	}
	clock := &ticking{fixed: fixed{start}}
	config := own.config
	config.Clock, config.Logger = clock, slog.New(slog.DiscardHandler)
	open := func() courier.Source[happening] {
		table := NewTable(db, dialect, config)
		require.NoError(t, table.Migrate(t.Context()))
		if stream {
			return table.Stream(5 * time.Millisecond)
		}
		return table.Source()
	}
	refuse(t, db, dialect, own)
	var added []string
	state := besideOf(identifiers(config.Table)[0])
	return courierttest.SourceFixture[happening]{
		Source: open(),
		Add: func(n int) []string {
			names := make([]string, n)
			for i := range names {
				names[i] = fmt.Sprintf("Event %d", len(added)+i)
			}
			own.add(t, db, len(added)+1, names...)
			added = append(added, names...)
			return names
		},
		Name:   func(e happening) string { return e.Name },
		Reopen: open,
		Marked: func() []string {
			if own.marked != "" {
				return namesIn(t, db, own.marked)
			}
			left := namesIn(t, db, "SELECT name FROM events")
			return slices.DeleteFunc(slices.Clone(added), func(name string) bool { return slices.Contains(left, name) })
		},
		FailMarks: func(e happening) func() {
			execute(t, db, `INSERT INTO refused VALUES ($1)`, e.Name)
			return func() { execute(t, db, `DELETE FROM refused`) }
		},
		Advance: func(d time.Duration) {
			clock.advance(d)
			if dialect == Postgres { // whose own clock is the one that counts
				execute(t, db, `UPDATE `+state+` SET available_at = available_at - $1 * interval '1 microsecond'`, d.Microseconds())
				execute(t, db, `UPDATE `+state+`_batches SET until = until - $1 * interval '1 microsecond'`, d.Microseconds())
			}
		},
	}
}

// refuse has marks fail of the rows whose names are in a table.
func refuse(t *testing.T, db *sql.DB, dialect Dialect, own ownTable) {
	t.Helper()
	table := own.table()
	execute(t, db, `CREATE TABLE refused (name text)`)
	if dialect == Postgres {
		execute(t, db, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF EXISTS (SELECT FROM refused WHERE lower(name) = lower(OLD.name)) THEN RAISE 'refused'; END IF;
				RETURN COALESCE(NEW, OLD);
			END $$`)
		execute(t, db, `CREATE TRIGGER refuse BEFORE DELETE OR UPDATE ON `+table+` FOR EACH ROW EXECUTE FUNCTION refuse()`)
		return
	}
	for _, operation := range []string{"DELETE", "UPDATE"} {
		execute(t, db, fmt.Sprintf(`CREATE TRIGGER refuse_%s BEFORE %[1]s ON %s WHEN lower(old.name) IN (SELECT lower(name) FROM refused) BEGIN SELECT raise(ABORT, 'refused'); END`, operation, table))
	}
}

func namesIn(t *testing.T, db *sql.DB, query string) []string {
	t.Helper()
	conn, err := db.Conn(t.Context())
	require.NoError(t, err)
	defer conn.Close()
	names, err := texts(context.WithoutCancel(t.Context()), conn, query)
	require.NoError(t, err)
	return names
}
