package couriersql

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/stretchr/testify/require"
)

func TestATablesConfigIsChecked(t *testing.T) {
	good := ownTables(Postgres)["updates"].config
	for name, c := range map[string]struct {
		change  func(*TableConfig[happening])
		dialect Dialect
		field   string
		says    string
	}{
		"no table":        {func(c *TableConfig[happening]) { c.Table = "" }, Postgres, "TableConfig.Table", "is missing"},
		"no schema":       {func(c *TableConfig[happening]) { c.Table = ".events" }, Postgres, "TableConfig.Table", "is not the name of a table"},
		"schema, SQLite":  {func(c *TableConfig[happening]) { c.Table = "main.events" }, SQLite, "TableConfig.Table", "attached database"},
		"no key":          {func(c *TableConfig[happening]) { c.Key = nil }, Postgres, "TableConfig.Key", "is missing"},
		"no KeyOf":        {func(c *TableConfig[happening]) { c.KeyOf = nil }, Postgres, "TableConfig.KeyOf", "is missing"},
		"no columns":      {func(c *TableConfig[happening]) { c.Columns = nil }, Postgres, "TableConfig.Columns", "is missing"},
		"no Scan":         {func(c *TableConfig[happening]) { c.Scan = nil }, Postgres, "TableConfig.Scan", "is missing"},
		"no Pending":      {func(c *TableConfig[happening]) { c.Pending = "" }, Postgres, "TableConfig.Pending", `"true" if all are`},
		"a state's name":  {func(c *TableConfig[happening]) { c.State = "billing.state" }, Postgres, "TableConfig.State", "not a plain name"},
		"a short lease":   {func(c *TableConfig[happening]) { c.Lease = time.Second - 1 }, Postgres, "TableConfig.Lease", "too short"},
		"a lease below 0": {func(c *TableConfig[happening]) { c.Lease = -1 }, Postgres, "TableConfig.Lease", "too short"},
		"no backoff":      {func(c *TableConfig[happening]) { c.InitialBackoff = -1 }, Postgres, "TableConfig.InitialBackoff", "makes no sense|make no sense"},
		"its ends":        {func(c *TableConfig[happening]) { c.InitialBackoff, c.LongestBackoff = 2, 1 }, Postgres, "TableConfig.InitialBackoff", "2ns to 1ns"},
		"crashes, MySQL":  {func(c *TableConfig[happening]) { c.MaxCrashes = 1 }, MySQL, "TableConfig.MaxCrashes", "not counted"},
		"a timeout":       {func(c *TableConfig[happening]) { c.QueryTimeout = -1 }, Postgres, "TableConfig.QueryTimeout", "lets no call succeed"},
	} {
		t.Run(name, func(t *testing.T) {
			config := good
			c.change(&config)
			table := NewTable(openPostgres(t, "host=nowhere.invalid"), c.dialect, config)
			source := table.Source()
			_, fetched := source.Fetch(t.Context(), 1)
			_, counted := table.Pending(t.Context())
			_, explained := table.Explain(t.Context())
			_, behind := source.Lag(t.Context())
			record := []happening{{}}
			for _, err := range []error{
				table.Migrate(t.Context()), source.Validate(), table.Stream(time.Second).Validate(), fetched, counted, explained, behind,
				source.Mark(t.Context(), record), source.Release(t.Context(), record, 0), source.Renew(t.Context(), record),
				source.Fail(t.Context(), failing(nil, record...)),
			} {
				var wrong *courier.ConfigError
				require.ErrorAs(t, err, &wrong)
				require.Equal(t, c.field, wrong.Field)
				require.Regexp(t, c.says, wrong.Problem)
			}
		})
	}
	require.ErrorContains(t, NewTable(openPostgres(t, "host=nowhere.invalid"), Postgres, good).Stream(0).Validate(), "interval")
}

func TestATablesDefaults(t *testing.T) {
	table := NewTable(openPostgres(t, "host=nowhere.invalid"), Postgres, ownTables(Postgres)["updates"].config)
	require.NoError(t, table.Source().Validate())
	require.Equal(t, 10*time.Second, table.Source().RenewEvery())
	require.Equal(t, defaultBackoff, table.wait)
	require.Equal(t, "events_courier", table.name)
	beside := make(map[string]bool)
	for _, c := range []struct{ table, want string }{
		{"Events", "events_courier"}, {"_events", "_events_courier"}, {"2024", "_2024_[0-9a-f]{8}_courier"}, {"_2024", "_2024_courier"},
		{"sent_things", "sent_things_courier"}, {"Sent Things", "sent_things_[0-9a-f]{8}_courier"}, {"sent-things", "sent_things_[0-9a-f]{8}_courier"},
		{strings.Repeat("x", 40), strings.Repeat("x", 40) + "_courier"},
		{strings.Repeat("x", 59) + "y", strings.Repeat("x", 31) + "_[0-9a-f]{8}_courier"}, {strings.Repeat("x", 60), strings.Repeat("x", 31) + "_[0-9a-f]{8}_courier"},
		{"é", "__[0-9a-f]{8}_courier"}, {"ü", "__[0-9a-f]{8}_courier"},
	} {
		got := besideOf(c.table)
		require.Regexp(t, "^"+c.want+"$", got)
		require.Regexp(t, plainIdentifier, got)
		require.False(t, beside[got], "%q has the tables of another one", c.table)
		beside[got] = true
	}
}

func TestATableIsHeldAgainstTheCatalogue(t *testing.T) {
	for dialect, of := range databases {
		for name, c := range map[string]struct {
			create []string
			change func(*TableConfig[happening])
			field  string
			says   string

			notInMySQL bool
		}{
			"no such table":  {nil, func(*TableConfig[happening]) {}, "TableConfig.Table", "is not a table of the database", false},
			"no such column": {[]string{`CREATE TABLE events (number integer PRIMARY KEY)`}, func(*TableConfig[happening]) {}, "TableConfig.Key", `has "id", which is no column of events`, false},
			"in other case":  {[]string{`CREATE TABLE events ("ID" integer PRIMARY KEY)`}, func(*TableConfig[happening]) {}, "TableConfig.Key", `has "id", which is no column of events`, false},
			"may be NULL":    {[]string{`CREATE TABLE events (id integer UNIQUE)`}, func(*TableConfig[happening]) {}, "TableConfig.Key", "may be NULL", false},
			"is not unique":  {[]string{`CREATE TABLE events (id integer NOT NULL)`}, func(*TableConfig[happening]) {}, "TableConfig.Key", "is not unique", false},
			"part of a key": {[]string{`CREATE TABLE events (id integer NOT NULL, tenant integer NOT NULL, PRIMARY KEY (id, tenant))`},
				func(*TableConfig[happening]) {}, "TableConfig.Key", "is not unique", false},
			"unique of some rows": {[]string{`CREATE TABLE events (id integer NOT NULL, sent_at integer)`, `CREATE UNIQUE INDEX one ON events (id) WHERE sent_at IS NULL`},
				func(*TableConfig[happening]) {}, "TableConfig.Key", "is not unique", true},
			"unique by what it is in an index": {[]string{`CREATE TABLE events (id integer NOT NULL, sent_at integer)`, `CREATE UNIQUE INDEX one ON events (abs(id))`},
				func(*TableConfig[happening]) {}, "TableConfig.Key", "is not unique", true},
			"a view": {[]string{`CREATE TABLE happenings (id integer PRIMARY KEY)`, `CREATE VIEW events AS SELECT * FROM happenings`},
				func(*TableConfig[happening]) {}, "TableConfig.(Table|Key)", "is a view|which may be NULL", false},
		} {
			if dialect == MySQL && c.notInMySQL {
				continue
			}
			t.Run(of+" "+name, func(t *testing.T) {
				db := databaseOf(t, dialect)
				for _, text := range c.create {
					execute(t, db, text)
				}
				config := ownTables(dialect)["updates"].config
				c.change(&config)
				table := NewTable(db, dialect, config)
				_, fetched := table.Source().Fetch(t.Context(), 1)
				for _, err := range []error{table.Migrate(t.Context()), fetched} {
					var wrong *courier.ConfigError
					require.ErrorAs(t, err, &wrong)
					require.Regexp(t, c.field, wrong.Field)
					require.Regexp(t, c.says, wrong.Problem)
				}
			})
		}
	}
}

// More columns than the unique ones are a key, and so is a unique index.
func TestATablesKeyThatIsWiderThanUnique(t *testing.T) {
	for dialect, of := range databases {
		t.Run(of, func(t *testing.T) {
			r := newRelayed(t, dialect, ownTable{
				dialect: dialect,
				create:  []string{`CREATE TABLE events (tenant varchar(100) NOT NULL, number bigint NOT NULL, name text, sent_at integer)`, `CREATE UNIQUE INDEX one ON events (number)`},
				config:  ownTables(dialect)["several columns"].config,
			}, 0)
			r.config.Mark = "sent_at = 1"
			r.rows(1, 2)
			_, names := fetchNames(t, r.table().Source(), 10)
			require.Equal(t, []string{"1", "2"}, names)
		})
	}
}

func TestASQLiteTablesKeyOfBytes(t *testing.T) {
	db := databaseOf(t, SQLite)
	execute(t, db, `CREATE TABLE events (id BLOB NOT NULL PRIMARY KEY, name text, sent_at integer)`)
	require.ErrorContains(t, NewTable(db, SQLite, ownTables(SQLite)["updates"].config).Migrate(t.Context()), "a key is of numbers or texts")
}

// SQLite finds no row by the text of such a key: it would be delivered again and again.
func TestASQLiteTablesKeyThatIsNoText(t *testing.T) {
	for name, c := range map[string]struct{ kind, key, strict string }{
		"bytes":             {"TEXT", "x'6162'", ""},
		"no UTF-8":          {"TEXT", "CAST(x'ff41' AS TEXT)", ""},
		"a number of a ANY": {"ANY", "5", "STRICT"},
	} {
		t.Run(name, func(t *testing.T) {
			db := databaseOf(t, SQLite)
			execute(t, db, fmt.Sprintf(`CREATE TABLE events (id %s NOT NULL PRIMARY KEY, name text, sent_at integer) %s`, c.kind, c.strict))
			execute(t, db, `INSERT INTO events (id, name) VALUES (`+c.key+`, 'a')`)
			table := NewTable(db, SQLite, TableConfig[string]{
				Table: "events", Key: []string{"id"}, KeyOf: func(id string) []any { return []any{id} }, Columns: []string{"CAST(id AS TEXT)"},
				Scan:    func(scan func(...any) error) (id string, err error) { return id, scan(&id) },
				Pending: "sent_at IS NULL", Mark: "sent_at = 1",
			})
			require.NoError(t, table.Migrate(t.Context()))
			_, err := table.Source().Fetch(t.Context(), 10)
			require.ErrorContains(t, err, "could not be marked")
		})
	}
}

// What Scan and KeyOf do wrong is told at the first fetch, and leaves nothing behind.
func TestATablesFunctionsAreChecked(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*TableConfig[happening])
		says   string
	}{
		"another key": {func(c *TableConfig[happening]) { c.KeyOf = func(e happening) []any { return []any{e.ID + 1} } }, "returned 2 for the row with the key 1: return the values of id"},
		"too many":    {func(c *TableConfig[happening]) { c.KeyOf = func(e happening) []any { return []any{e.ID, e.ID} } }, `returned "1","1" for the row`},
		"no key":      {func(c *TableConfig[happening]) { c.KeyOf = func(happening) []any { return nil } }, "returned  for the row"},
		"no scan": {func(c *TableConfig[happening]) {
			c.Scan = func(func(...any) error) (happening, error) { return happening{}, nil }
		}, "did not call scan"},
		"too few":   {func(c *TableConfig[happening]) { c.Columns = append(c.Columns, "sent_at") }, "Scan asks for 2 columns, and TableConfig.Columns has 3"},
		"no column": {func(c *TableConfig[happening]) { c.Columns = []string{"id", "title"} }, "title"},
		"bad SQL":   {func(c *TableConfig[happening]) { c.Pending = "sent_at IS" }, "syntax"},
	} {
		for dialect, of := range databases {
			t.Run(of+" "+name, func(t *testing.T) {
				r := newRelayed(t, dialect, ownTables(dialect)["updates"], 2)
				r.table()
				c.change(&r.config)
				_, err := NewTable(r.db, dialect, r.config).Source().Fetch(t.Context(), 10)
				require.ErrorContains(t, err, c.says)
				require.ErrorContains(t, err, "couriersql: fetching up to 10 pending rows of events")
				require.Zero(t, r.count("events_courier_batches"))
				require.Zero(t, r.count("events_courier"))
			})
		}
	}
}

// What the database does not take is told before a row is delivered, with where to look.
func TestATablesSQLIsChecked(t *testing.T) {
	for name, change := range map[string]func(*TableConfig[happening]){
		"Pending":      func(c *TableConfig[happening]) { c.Pending = "sent IS NULL" },
		"a comment":    func(c *TableConfig[happening]) { c.Pending = "sent_at IS NULL -- not yet" },
		"Columns":      func(c *TableConfig[happening]) { c.Columns = []string{"id", "title"} },
		"Order":        func(c *TableConfig[happening]) { c.Order = "created_at" },
		"OrderKey":     func(c *TableConfig[happening]) { c.OrderKey = "customer" },
		"Mark, syntax": func(c *TableConfig[happening]) { c.Mark = "SET sent_at = 1" },
		"Mark, a name": func(c *TableConfig[happening]) { c.Mark = "sent = 1" },
		"Mark, a call": func(c *TableConfig[happening]) { c.Mark = "sent_at = no_such_function()" },
	} {
		for dialect, of := range databases {
			t.Run(of+" "+name, func(t *testing.T) {
				r := newRelayed(t, dialect, ownTables(dialect)["updates"], 2)
				r.table()
				change(&r.config)
				table := NewTable(r.db, dialect, r.config)
				_, err := table.Source().Fetch(t.Context(), 10)
				for _, err := range []error{table.Migrate(t.Context()), err} {
					require.ErrorContains(t, err, "look at the SQL in TableConfig")
					require.NotErrorIs(t, err, ErrNotMigrated)
				}
				require.Zero(t, r.count("events_courier_batches"))
			})
		}
	}
}

func TestATablesErrorsSayWhatToDo(t *testing.T) {
	r := newRelayed(t, Postgres, ownTables(Postgres)["updates"], 2)
	s := r.table().Source()
	says := func(err error, text string) {
		t.Helper()
		require.ErrorContains(t, err, text)
		require.NotErrorIs(t, err, ErrNotMigrated)
	}
	r.config.Columns = []string{"id", "(name || '-')::integer::text"}
	_, err := r.table().Source().Fetch(t.Context(), 10)
	says(err, "cannot be computed of a row")
	r.config.Columns = []string{"name", "name"}
	_, err = r.table().Source().Fetch(t.Context(), 10)
	says(err, "into a variable that cannot hold it")
	r.advance(time.Second) // for which both rows wait
	r.config.Columns = []string{"id", "name"}

	r.config.Mark, r.config.Pending = "", "true"
	execute(t, r.db, `CREATE TABLE lines (event bigint REFERENCES events); INSERT INTO lines VALUES (1)`)
	deleting := r.table().Source()
	rows, _ := fetchNames(t, deleting, 1)
	says(deleting.Mark(t.Context(), rows), "a foreign key of another table leads to rows that the mark deletes")
	require.NoError(t, deleting.Release(t.Context(), rows, 0))

	execute(t, r.db, `ALTER TABLE events_courier_batches DROP COLUMN key1`)
	_, err = s.Fetch(t.Context(), 10)
	require.ErrorIs(t, err, ErrNotMigrated)
	require.ErrorContains(t, err, "drop the tables events_courier and events_courier_batches")
}

func TestATableWithoutMigrate(t *testing.T) {
	eachTable(t, 1, func(t *testing.T, r *relayed) {
		_, err := NewTable(r.db, r.dialect, r.config).Source().Fetch(t.Context(), 1)
		require.ErrorIs(t, err, ErrNotMigrated)
	})
}

func TestATableThatIsMigratedAgain(t *testing.T) {
	eachTable(t, 2, func(t *testing.T, r *relayed) {
		s := r.table().Source()
		rows, _ := fetchNames(t, s, 1)
		r.table()
		require.NoError(t, s.Mark(t.Context(), rows))
		require.Equal(t, 1, count(t, r.db, "SELECT count(*) FROM courier_migrations"))
	})
}

func TestATableBesideWhichAnotherHasTheName(t *testing.T) {
	eachTable(t, 0, func(t *testing.T, r *relayed) {
		execute(t, r.db, fmt.Sprintf(`CREATE TABLE %s (id integer)`, r.state()))
		err := NewTable(r.db, r.dialect, r.config).Migrate(t.Context())
		require.ErrorContains(t, err, "is not one of this package")
	})
}

// A table in a schema, whatever the search_path; the tables beside it are there too.
func TestATableInASchema(t *testing.T) {
	for _, schema := range []string{"billing", "Billing Department"} {
		t.Run(schema, func(t *testing.T) {
			r := newRelayed(t, Postgres, ownTables(Postgres)["updates"], 1)
			schema := namesIn(t, r.db, "SELECT current_schema()")[0] + " " + schema // no other test's
			execute(t, r.db, "CREATE SCHEMA "+identifier(schema))
			t.Cleanup(func() {
				_, err := r.db.ExecContext(context.Background(), "DROP SCHEMA "+identifier(schema)+" CASCADE")
				require.NoError(t, err)
			})
			execute(t, r.db, "CREATE TABLE "+identifier(schema)+".events (LIKE events INCLUDING ALL)")
			execute(t, r.db, "INSERT INTO "+identifier(schema)+".events (id, name) VALUES (7, 'there')")
			r.config.Table = identifier(schema) + ".events"
			s := r.table().Source()
			rows, names := fetchNames(t, s, 10)
			require.Equal(t, []string{"there"}, names)
			require.NoError(t, s.Fail(t.Context(), failing(nil, rows...)))
			require.Equal(t, 1, r.count(identifier(schema)+".events_courier"))
			require.Equal(t, 1, r.count(identifier(schema)+".courier_migrations"))
		})
	}
}

// Migrate warns of a fetch that reads more than it returns, and only then.
func TestATablesIndexIsLookedFor(t *testing.T) {
	for name, c := range map[string]struct {
		index   string
		dialect []Dialect
		change  func(*TableConfig[happening])
		why     string
	}{
		"partial":                 {`CREATE INDEX i ON events (id) WHERE sent_at IS NULL`, []Dialect{Postgres, SQLite}, func(*TableConfig[happening]) {}, ""},
		"by state":                {`CREATE INDEX i ON events (sent_at, id)`, []Dialect{Postgres, SQLite, MySQL}, func(*TableConfig[happening]) {}, ""},
		"none":                    {``, []Dialect{Postgres}, func(*TableConfig[happening]) {}, "reads the rows that are marked too, in the order of the index events_pkey"},
		"none, MySQL":             {``, []Dialect{MySQL}, func(*TableConfig[happening]) {}, "reads the"},
		"none, SQLite":            {``, []Dialect{SQLite}, func(*TableConfig[happening]) {}, "reads the whole table"},
		"none, but deletes":       {``, []Dialect{Postgres, SQLite, MySQL}, func(c *TableConfig[happening]) { c.Pending, c.Mark = "true", "" }, ""},
		"of another order":        {`CREATE INDEX i ON events (id) WHERE sent_at IS NULL`, []Dialect{Postgres, SQLite}, func(c *TableConfig[happening]) { c.Order = "name" }, "sorts all rows"},
		"of another order, MySQL": {`CREATE INDEX i ON events (sent_at, id)`, []Dialect{MySQL}, func(c *TableConfig[happening]) { c.Order = "name" }, "sorts all rows"},
	} {
		for _, dialect := range c.dialect {
			t.Run(fmt.Sprint(name, " ", dialect), func(t *testing.T) {
				own := ownTables(dialect)["updates"]
				own.create = own.create[:1]
				if c.index != "" {
					own.create = append(own.create, c.index)
				}
				r := newRelayed(t, dialect, own, 20)
				c.change(&r.config)
				text, err := r.table().Explain(t.Context())
				require.NoError(t, err)
				require.Contains(t, text, r.config.Pending)
				require.Contains(t, text, "-- plan of the fetch\n")
				if c.why == "" {
					require.Empty(t, r.log.String(), text)
					return
				}
				require.Contains(t, r.log.String(), "create an index on the rows that are pending", text)
				require.Contains(t, r.log.String(), c.why)
			})
		}
	}
}
