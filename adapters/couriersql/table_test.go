package couriersql

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"maps"
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

	dialect Dialect
}

// ownTables are tables of several kinds: how they mark, what their key is, what their names
// are.
func ownTables(dialect Dialect) map[string]ownTable {
	identity, now := "bigserial", "now()"
	text, moment, table := "text", "timestamptz", `"Sent ""things"""`
	switch dialect {
	case SQLite:
		identity, now, moment = "INTEGER", "unixepoch()", "INTEGER"
	case MySQL:
		identity, text, moment, table = "bigint AUTO_INCREMENT", "varchar(100)", "datetime(6)", "`Sent ``things```"
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
	odd.Table, odd.Key = table, []string{"The Id"}
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
	created := fmt.Sprintf(`CREATE TABLE events (id %s PRIMARY KEY, name text, sent_at %s)`, identity, moment)
	pending := `CREATE INDEX events_pending ON events (id) WHERE sent_at IS NULL`
	if dialect == MySQL { // which has no partial indexes
		pending = `CREATE INDEX events_pending ON events (sent_at, id)`
	}
	oddly := strings.NewReplacer("ON events", `ON `+table, "TABLE events", `TABLE `+table, "id ", `"The Id" `, "(id)", `("The Id")`, ", id)", `, "The Id")`)
	tables := map[string]ownTable{
		"updates":   {create: []string{created, pending}, config: single, marked: `SELECT name FROM events WHERE sent_at IS NOT NULL ORDER BY id`},
		"deletes":   {create: []string{created}, config: deletes},
		"odd names": {create: []string{oddly.Replace(created), oddly.Replace(pending)}, config: odd, marked: `SELECT name FROM ` + table + ` WHERE sent_at IS NOT NULL ORDER BY "The Id"`},
		"several columns": {create: []string{
			`CREATE TABLE events (tenant ` + text + ` NOT NULL, number bigint NOT NULL, name text, sent_at ` + moment + `, PRIMARY KEY (tenant, number))`,
			strings.ReplaceAll(pending, "id)", "number)"),
		}, config: composite, marked: `SELECT name FROM events WHERE sent_at IS NOT NULL ORDER BY number`},
		"several columns, deletes": {create: []string{
			`CREATE TABLE events (tenant ` + text + ` NOT NULL, number bigint NOT NULL, name text, PRIMARY KEY (tenant, number))`,
			`CREATE INDEX events_in_order ON events (number)`,
		}, config: pairs},
		"strict": {create: []string{created, pending}, config: strict, marked: `SELECT name FROM events WHERE sent_at IS NOT NULL ORDER BY id`},
	}
	for name, table := range tables {
		table.dialect = dialect
		tables[name] = table
	}
	return tables
}

// tested are those of the tables that a test of each of them takes: in MySQL one of each kind
// of key, mark and order, as its tables take their time to create.
func tested(dialect Dialect) map[string]ownTable {
	tables := ownTables(dialect)
	if dialect == MySQL {
		maps.DeleteFunc(tables, func(name string, _ ownTable) bool {
			return !slices.Contains([]string{"odd names", "several columns, deletes", "strict"}, name)
		})
	}
	return tables
}

// table is its name in a statement.
func (o ownTable) table() string {
	return o.dialect.identifier(o.dialect.identifiers(o.config.Table)[0])
}

// state is the name of the tables beside it.
func (o ownTable) state() string { return besideOf(o.dialect.identifiers(o.config.Table)[0]) }

// add makes rows pending.
func (o ownTable) add(t *testing.T, db *sql.DB, first int, names ...string) {
	t.Helper()
	table, id := o.table(), o.dialect.identifier(o.config.Key[len(o.config.Key)-1])
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
	for dialect, of := range databases {
		for name, own := range tested(dialect) {
			if stream != (name == "several columns") || name == "odd names" {
				continue // each takes its time, and what differs are names
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
	config.Clock, config.Logger, config.MaxCrashes = clock, slog.New(slog.DiscardHandler), -1
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
			own.advance(t, db, d)
		},
	}
}

// advance lets time pass for leases and failures where the server's clock is the one that
// counts.
func (o ownTable) advance(t *testing.T, db *sql.DB, d time.Duration) {
	t.Helper()
	unit := ""
	switch o.dialect {
	case SQLite:
		return
	case Postgres:
		unit = " * interval '1 microsecond'"
	}
	execute(t, db, `UPDATE `+o.state()+` SET available_at = available_at - $1`+unit, d.Microseconds())
	execute(t, db, `UPDATE `+o.state()+`_batches SET until = until - $1`+unit, d.Microseconds())
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
		if dialect == MySQL {
			execute(t, db, fmt.Sprintf(`CREATE TRIGGER refuse_%s BEFORE %[1]s ON %s FOR EACH ROW
				IF EXISTS (SELECT 1 FROM refused WHERE lower(name) = lower(OLD.name)) THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'refused'; END IF`, operation, table))
			continue
		}
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
