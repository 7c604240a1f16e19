package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/erfanmomeniii/courier"
	"github.com/erfanmomeniii/courier/adapters/couriersql/pgtest"
	"github.com/erfanmomeniii/courier/courierttest"
)

// item is a record of a sink.
type item struct {
	ID   any
	Name any
}

func (i item) String() string { return fmt.Sprint(i.ID) }

func items(from, to int) (list []item) {
	for n := from; n < to; n++ {
		list = append(list, item{fmt.Sprintf("i%05d", n), "a"})
	}
	return list
}

func itemConfig() SinkConfig[item] {
	return SinkConfig[item]{
		Table: "items", Columns: []string{"id", "name"}, Key: []string{"id"},
		Values: func(i item) ([]any, error) { return []any{i.ID, i.Name}, nil },
	}
}

const createItems = `CREATE TABLE items (id text PRIMARY KEY, name text NOT NULL CHECK (name <> 'bad'), more integer NOT NULL DEFAULT 7)`

// sinkTo returns a sink to a database with the table items.
func sinkTo(t *testing.T, dialect Dialect, change func(*SinkConfig[item]), statements ...string) *Sink[item] {
	t.Helper()
	db := databaseOf(t, dialect)
	if len(statements) == 0 {
		statements = []string{createItems}
	}
	for _, text := range statements {
		execute(t, db, text)
	}
	config := itemConfig()
	if change != nil {
		change(&config)
	}
	return NewSink(db, dialect, config)
}

// contents are the rows of a statement with a text.
func contents(t *testing.T, db *sql.DB, text string, args ...any) []string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), text, args...)
	require.NoError(t, err)
	defer func() { require.NoError(t, rows.Close()) }()
	list := []string{}
	for rows.Next() {
		var one string
		require.NoError(t, rows.Scan(&one))
		list = append(list, one)
	}
	require.NoError(t, rows.Err())
	return list
}

var dialects = map[string]Dialect{"sqlite": SQLite, "postgres": Postgres}

func inEachDialect(t *testing.T, test func(t *testing.T, dialect Dialect)) {
	for name, dialect := range dialects {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, dialect)
		})
	}
}

func TestConformance_Sink(t *testing.T) {
	inEachDialect(t, func(t *testing.T, dialect Dialect) {
		for name, action := range map[string]ConflictAction{"update": UpdateOnConflict, "ignore": IgnoreOnConflict} {
			t.Run(name, func(t *testing.T) {
				courierttest.TestBatchApplier(t, func(t *testing.T) courierttest.ApplierFixture[item] {
					s := sinkTo(t, dialect, func(c *SinkConfig[item]) { c.OnConflict = action })
					return courierttest.ApplierFixture[item]{
						Applier: s,
						Record:  func(n int) item { return items(n, n+1)[0] },
						Name:    item.String,
						Applied: func() []string { return contents(t, s.db, `SELECT id FROM items`) },
						Poison: func(n int) item {
							id := fmt.Sprintf("poison%05d", n)
							return []item{{id, "bad"}, {id, nil}, {id, make(chan int)}, {nil, "a"}}[n%4]
						},
						Down: func() (up func()) {
							execute(t, s.db, `ALTER TABLE items RENAME TO gone`)
							return func() { execute(t, s.db, `ALTER TABLE gone RENAME TO items`) }
						},
					}
				}, courierttest.ApplierFeatures{Idempotent: true, Concurrent: true, Permanent: true, Isolated: true, Patience: time.Minute})
			})
		}
	})
}

// Of records with one key the last one is written, or the first where rows are left alone,
// also beside each other in a batch. Columns that are not the sink's stay as they are.
func TestSink_OfOneKey(t *testing.T) {
	inEachDialect(t, func(t *testing.T, dialect Dialect) {
		const all = `SELECT id || ' ' || name || ' ' || more FROM items ORDER BY id`
		batch := []item{{"x", "1"}, {"y", "2"}, {"x", "3"}, {"z", "4"}, {"y", "5"}, {"x", "6"}}

		s := sinkTo(t, dialect, nil)
		require.NoError(t, s.ApplyBatch(t.Context(), batch))
		require.Equal(t, []string{"x 6 7", "y 5 7", "z 4 7"}, contents(t, s.db, all))
		execute(t, s.db, `UPDATE items SET more = 8`)
		require.NoError(t, s.ApplyBatch(t.Context(), []item{{"y", "9"}, {"w", "0"}}))
		require.Equal(t, []string{"w 0 7", "x 6 8", "y 9 8", "z 4 8"}, contents(t, s.db, all))

		s = sinkTo(t, dialect, func(c *SinkConfig[item]) { c.OnConflict = IgnoreOnConflict })
		require.NoError(t, s.ApplyBatch(t.Context(), batch))
		require.NoError(t, s.ApplyBatch(t.Context(), []item{{"y", "9"}, {"w", "0"}}))
		require.Equal(t, []string{"w 0 7", "x 1 7", "y 2 7", "z 4 7"}, contents(t, s.db, all))

		// The key is all there is.
		s = sinkTo(t, dialect, func(c *SinkConfig[item]) { c.Key = c.Columns }, `CREATE TABLE items (id text, name text, more integer DEFAULT 7, UNIQUE (name, id))`)
		require.NoError(t, s.ApplyBatch(t.Context(), append(batch, batch...)))
		require.Len(t, contents(t, s.db, all), 6)
	})
}

// Keys that PostgreSQL takes for the same, and that are written in two ways.
func TestSink_OfOneKeyInTwoForms(t *testing.T) {
	t.Parallel()
	s := sinkTo(t, Postgres, nil, `CREATE TABLE items (id numeric PRIMARY KEY, name text)`)
	require.NoError(t, s.ApplyBatch(t.Context(), []item{{"1.0", "first"}, {"2", "b"}, {"1", "second"}, {"3", "c"}, {"1.00", "last"}}))
	require.Equal(t, []string{"last", "b", "c"}, contents(t, s.db, `SELECT name FROM items ORDER BY id`))
}

// A record that the database refuses fails alone, and for good unless another row is the reason.
func TestSink_OfABatchThatFailsInPart(t *testing.T) {
	inEachDialect(t, func(t *testing.T, dialect Dialect) {
		s := sinkTo(t, dialect, func(c *SinkConfig[item]) {
			values := c.Values
			c.Values = func(i item) ([]any, error) {
				switch i.Name {
				case "skip":
					return nil, courier.Skip(errors.New("nobody wants it"))
				case "fail":
					return nil, errors.New("cannot be read")
				}
				return values(i)
			}
		}, `CREATE TABLE owners (name text PRIMARY KEY)`, `INSERT INTO owners VALUES ('a'), ('bad'), ('once')`,
			`CREATE TABLE items (id text PRIMARY KEY, name text NOT NULL CHECK (name <> 'bad') REFERENCES owners)`,
			`CREATE UNIQUE INDEX one ON items (name) WHERE name = 'once'`,
			`INSERT INTO items VALUES ('there', 'once')`)
		batch := items(0, 70)
		want := map[int]string{}
		for i, odd := range map[int]struct {
			name  any
			class courier.ErrorClass
		}{
			3: {"bad", courier.ClassPermanent}, 4: {nil, courier.ClassPermanent}, 17: {make(chan int), courier.ClassPermanent},
			30: {"skip", courier.ClassSkipped}, 31: {"fail", courier.ClassPermanent},
			50: {"nobody", courier.ClassRetryable}, 69: {"once", courier.ClassRetryable},
		} {
			batch[i].Name, want[i] = odd.name, odd.class.String()
		}
		batch[40].ID, want[40] = nil, courier.ClassPermanent.String()
		if dialect == Postgres {
			batch[41].ID, want[41] = "a\x00b", courier.ClassPermanent.String()
		}
		err := s.ApplyBatch(t.Context(), batch)
		var list *courier.BatchError
		require.ErrorAs(t, err, &list)
		got := map[int]string{}
		for _, f := range list.Failures {
			got[f.Index] = courier.Classify(t.Context(), f.Err).String()
			require.Equal(t, f.Index == 17 || f.Index == 31 || f.Index == 40, errors.Is(f.Err, courier.ErrDecode), "%d: %v", f.Index, f.Err)
		}
		require.Equal(t, want, got, "%v", err)
		require.Equal(t, 70-len(want), count(t, s.db, `SELECT count(*) FROM items WHERE id <> 'there'`))
		require.ErrorContains(t, s.Apply(t.Context(), batch[40]), "the column id of its key is NULL")
		require.Equal(t, courier.ClassPermanent, courier.Classify(t.Context(), s.Apply(t.Context(), batch[3])))
	})
}

// A batch may be larger than what a statement takes.
func TestSink_OfALargeBatch(t *testing.T) {
	inEachDialect(t, func(t *testing.T, dialect Dialect) {
		s := sinkTo(t, dialect, nil)
		batch := items(0, 40_001) // 80,002 values
		require.NoError(t, s.ApplyBatch(t.Context(), batch))
		require.Equal(t, len(batch), count(t, s.db, `SELECT count(*) FROM items`))

		large := strings.Repeat("x", 5<<18) // four make a statement
		for i := range 9 {
			batch[i].Name = large
		}
		batch[4].Name = "bad"
		var list *courier.BatchError
		require.ErrorAs(t, s.ApplyBatch(t.Context(), batch[:9]), &list)
		require.Len(t, list.Failures, 1)
		require.Equal(t, 4, list.Failures[0].Index)
		require.Equal(t, 8, count(t, s.db, `SELECT count(*) FROM items WHERE length(name) = 5 << 18`))
	})
}

// A statement has some 4 MiB, however many records that are.
func TestSink_OfLargeRecords(t *testing.T) {
	for _, dialect := range dialects {
		s := NewSink(new(sql.DB), dialect, itemConfig())
		b := sinkBatch[item]{Sink: s, table: &sinkTable{columns: []sinkColumn{{name: "id", key: true}, {name: "name"}}}, errs: make([]error, 9)}
		large := strings.Repeat("x", 5<<18)
		batch := items(0, 9)
		for i := range 7 {
			batch[i].Name = large
		}
		require.NoError(t, b.read(batch))
		var parts []int
		for all := []int{0, 1, 2, 3, 4, 5, 6, 7, 8}; len(all) > 0; {
			part := b.part(all)
			all = all[len(part):]
			parts = append(parts, len(part))
		}
		require.Equal(t, []int{4, 5}, parts)
	}
}

func TestSink_Names(t *testing.T) {
	inEachDialect(t, func(t *testing.T, dialect Dialect) {
		config := itemConfig()
		config.Table = `billing."odd. ""Name;"`
		config.Columns = []string{`I d"`, "select"}
		config.Key = config.Columns[:1]
		db := databaseOf(t, dialect)
		if dialect == SQLite {
			db.SetMaxOpenConns(1) // which has the attached database
			execute(t, db, `ATTACH DATABASE ':memory:' AS billing`)
		} else {
			config.Table = strings.Replace(config.Table, "billing", fmt.Sprintf("%q", contents(t, db, `SELECT current_schema()`)[0]), 1)
		}
		execute(t, db, `CREATE TABLE `+config.Table+` ("I d""" text PRIMARY KEY, "select" text)`)
		s := NewSink(db, dialect, config)
		require.NoError(t, s.Check(t.Context()))
		require.NoError(t, s.ApplyBatch(t.Context(), []item{{"x", "1"}, {"y", "2"}}))
		require.NoError(t, s.ApplyBatch(t.Context(), []item{{"x", "3"}}))
		require.Equal(t, []string{"3", "2"}, contents(t, db, `SELECT "select" FROM `+config.Table+` ORDER BY 1 DESC`))
	})
}

func TestIdentifiers(t *testing.T) {
	for text, want := range map[string][]string{
		"orders": {"orders"}, "Billing.Orders": {"Billing", "Orders"}, "odd name": {"odd name"}, `"a.b"`: {"a.b"}, `"a""b".c`: {`a"b`, "c"}, `a."b."`: {"a", "b."},
		"": nil, ".": nil, "a.": nil, ".a": nil, "a.b.c": nil, `"a`: nil, `"a"b`: nil, `a"b"`: nil, `""`: nil, "a\x00": nil,
	} {
		require.Equal(t, want, Postgres.identifiers(text), "%q", text)
	}
}

// Values of all kinds come to be what a plain insert with parameters makes of them.
func TestSink_TypesOfPostgres(t *testing.T) {
	var empty *string
	full := "pointed at"
	type name string
	values := map[string][]any{
		"text":             {"", "a", `"quoted" \back\ {list,of} , NULL`, "null", "日本", name("named"), &full, empty, []byte("bytes"), sql.NullString{}, sql.NullString{String: "x", Valid: true}},
		"varchar(3)":       {"abc", nil},
		"char(3)":          {"abc", "a"},
		"bit(4)":           {"1010"},
		"bytea":            {[]byte{}, []byte{0, '\\', '"', 0xff}, []byte(nil)},
		"smallint":         {1, int8(-2)},
		"integer":          {1, int32(-5), uint16(7), nil},
		"bigint":           {int64(1) << 62, -1, uint64(5)},
		"numeric(10,2)":    {"12.345", 7, 0.25},
		"double precision": {1.5, float32(2)},
		"boolean":          {true, false, nil},
		"timestamptz":      {start, time.Time{}, "2026-01-02 03:04:05+02"},
		"timestamp":        {start},
		"date":             {start},
		"interval":         {90 * time.Minute},
		"uuid":             {"6ba7b810-9dad-11d1-80b4-00c04fd430c8", [16]byte{1, 2, 3}},
		"jsonb":            {`{"a": [1, "\""]}`, map[string]any{"k": "v\\"}, []byte(`"raw"`), []string{"a", "b"}},
		"json":             {struct{ A int }{1}},
		"text[]":           {[]string{"a", `b"\,{}`, ""}, []string{}, "{x,NULL}", nil},
		"integer[]":        {[]int32{1, 2}, []int{3}},
		"varchar(3)[]":     {[]string{"abc"}},
		"inet":             {"10.0.0.1/8"},
		"int4range":        {"[1,5)"},
		"mood":             {"happy", name("sad")},
		"short":            {"abc"},
		"shorts":           {[]string{"a", "b"}},
		"point":            {"(1,2)"},
		"pair":             {"(1,b)"},
	}
	for _, mode := range []string{"cache_statement", "exec", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			db := openPostgres(t, pgtest.Schema(t)+" default_query_exec_mode="+mode)
			plain := openPostgres(t, pgtest.Schema(t)) // with parameters of their type
			for _, in := range []*sql.DB{db, plain} {
				execute(t, in, `CREATE TYPE mood AS ENUM ('happy', 'sad')`)
				execute(t, in, `CREATE DOMAIN short AS varchar(3) CHECK (VALUE <> 'bad')`)
				execute(t, in, `CREATE DOMAIN shorts AS text[]`)
				execute(t, in, `CREATE TYPE pair AS (a integer, b text)`)
			}
			for kind, list := range values {
				table := fmt.Sprintf("%q", "of "+kind)
				var batch []item
				for _, in := range []*sql.DB{db, plain} {
					execute(t, in, `CREATE TABLE `+table+` (id integer PRIMARY KEY, name `+kind+`)`)
				}
				for i, value := range list {
					batch = append(batch, item{i, value})
					execute(t, plain, `INSERT INTO `+table+` VALUES ($1, $2)`, i, value)
				}
				config := itemConfig()
				config.Table = table
				s := NewSink(db, Postgres, config)
				require.NoError(t, s.ApplyBatch(t.Context(), batch), kind)
				const all = `SELECT id || ' ' || coalesce(name::text, 'nothing') FROM `
				require.Equal(t, contents(t, plain, all+table+` ORDER BY id`), contents(t, db, all+table+` ORDER BY id`), kind)
			}
			for kind, value := range map[string]any{"varchar(3)": "abcd", "char(3)": "abcd", "bit(4)": "10101", "varchar(3)[]": []string{"abcd"}, "short": "bad", "integer": 1 << 40, "uuid": "x", "text[]": 5, "date": 1.5} {
				config := itemConfig()
				config.Table = fmt.Sprintf("%q", "of "+kind)
				err := NewSink(db, Postgres, config).Apply(t.Context(), item{100, value})
				require.Error(t, err, kind)
				require.Equal(t, courier.ClassPermanent, courier.Classify(t.Context(), err), "%s: %v", kind, err)
			}
		})
	}
}

// Rows are locked in one order, whatever that of the records, so that two batches do not wait
// for each other.
func TestSink_OrderOfTheKeys(t *testing.T) {
	t.Parallel()
	s := sinkTo(t, Postgres, nil, createItems, `CREATE TABLE touched (n serial, id text)`,
		`CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO touched (id) VALUES (NEW.id); RETURN NULL; END $$`,
		`CREATE TRIGGER touch AFTER INSERT OR UPDATE ON items FOR EACH ROW EXECUTE FUNCTION touch()`)
	for range 2 {
		batch := items(0, 50)
		slices.Reverse(batch)
		batch = append(batch[20:], batch[:20]...)
		require.NoError(t, s.ApplyBatch(t.Context(), append(batch, batch[10:30]...)))
	}
	touched := contents(t, s.db, `SELECT id FROM touched ORDER BY n`)
	require.Len(t, touched, 100, "of one key, one record is written")
	require.True(t, slices.IsSorted(touched[:50]) && slices.IsSorted(touched[50:]), touched)
}

// A transaction that the database ends because another was in the way is tried again.
func TestSink_AfterAConflict(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"40001", "40P01"} {
		s := sinkTo(t, Postgres, nil, createItems, `CREATE SEQUENCE tries`,
			`CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF nextval('tries') % 5 <> 4 THEN RAISE 'in the way' USING ERRCODE = '`+code+`'; END IF; RETURN NEW; END $$`,
			`CREATE TRIGGER conflict BEFORE INSERT ON items FOR EACH ROW WHEN (NEW.name = 'in the way') EXECUTE FUNCTION conflict()`)
		require.NoError(t, s.ApplyBatch(t.Context(), []item{{"x", "a"}, {"y", "in the way"}})) // 1, 2, 3, 4
		require.Equal(t, 2, count(t, s.db, `SELECT count(*) FROM items`))
		execute(t, s.db, `ALTER SEQUENCE tries RESTART WITH 5`)
		err := s.ApplyBatch(t.Context(), []item{{"v", "a"}, {"w", "in the way"}})
		require.ErrorContains(t, err, code)
		var list *courier.BatchError
		require.NotErrorAs(t, err, &list)
		require.Equal(t, 9, count(t, s.db, `SELECT nextval('tries')`), "four tries")
	}
}

// What is wrong with the table is said at the start, and is no record's failure.
func TestSink_Check(t *testing.T) {
	inEachDialect(t, func(t *testing.T, dialect Dialect) {
		for name, c := range map[string]struct {
			create string
			change func(*SinkConfig[item])
			want   string
		}{
			"no table":      {`CREATE TABLE other (id text)`, nil, `SinkConfig.Table names the table "items", and there is none`},
			"no column":     {`CREATE TABLE items (id text PRIMARY KEY, names text)`, nil, `SinkConfig.Columns has "name", which is no column of items: it has id, names`},
			"no index":      {`CREATE TABLE items (id text, name text)`, nil, `SinkConfig.Key of id has no unique index of items`},
			"part of a key": {`CREATE TABLE items (id text, name text, PRIMARY KEY (id, name))`, nil, `SinkConfig.Key of id has no unique index`},
			"more columns":  {`CREATE TABLE items (id text PRIMARY KEY, name text, more text NOT NULL)`, nil, `SinkConfig.Columns lacks "more"`},
			"generated":     {`CREATE TABLE items (id text PRIMARY KEY, more text, name text GENERATED ALWAYS AS (more) STORED)`, nil, `which items generates by itself`},
		} {
			s := sinkTo(t, dialect, c.change, c.create)
			require.NoError(t, s.Validate(), "which asks no database")
			for _, err := range []error{s.Check(t.Context()), s.Apply(t.Context(), items(0, 1)[0]), s.ApplyBatch(t.Context(), items(0, 3))} {
				require.ErrorIs(t, err, courier.ErrConfig, name)
				require.ErrorContains(t, err, c.want, name)
				require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), err), name)
			}
		}
		s := sinkTo(t, dialect, nil)
		require.NoError(t, s.Check(t.Context()))
		require.Zero(t, count(t, s.db, `SELECT count(*) FROM items`))
	})
}

// A trigger may fill a column, and a unique index have columns beside those of the key.
func TestSink_CheckOfPostgres(t *testing.T) {
	t.Parallel()
	s := sinkTo(t, Postgres, nil, `CREATE TABLE items (name text, id text NOT NULL, more text NOT NULL) PARTITION BY LIST (id)`,
		`CREATE TABLE item PARTITION OF items DEFAULT`, `CREATE UNIQUE INDEX ON items (id) INCLUDE (name)`,
		`CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.more := 'x'; RETURN NEW; END $$`,
		`CREATE TRIGGER fill BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION fill()`)
	require.NoError(t, s.Check(t.Context()))
	require.NoError(t, s.ApplyBatch(t.Context(), items(0, 3)))

	execute(t, s.db, `CREATE TABLE identity (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text)`)
	config := itemConfig()
	config.Table = "identity"
	require.ErrorContains(t, NewSink(s.db, Postgres, config).Check(t.Context()), `has "id", which identity generates by itself`)

	schema := contents(t, s.db, `SELECT current_schema()`)[0]
	role := schema + "_writer"
	s.db.SetMaxOpenConns(1)
	execute(t, s.db, fmt.Sprintf(`CREATE ROLE %q`, role))
	t.Cleanup(func() {
		_, err := s.db.ExecContext(context.Background(), fmt.Sprintf(`RESET ROLE; DROP OWNED BY %[1]q; DROP ROLE %[1]q`, role))
		require.NoError(t, err)
	})
	as := func(role string) { execute(t, s.db, fmt.Sprintf(`RESET ROLE; SET ROLE %s`, role)) }
	as(fmt.Sprintf("%q", role))
	require.ErrorContains(t, s.Check(t.Context()), "this role may not see it")
	as("NONE")
	execute(t, s.db, fmt.Sprintf(`GRANT USAGE ON SCHEMA %q TO %q`, schema, role))
	as(fmt.Sprintf("%q", role))
	err := s.Check(t.Context())
	require.ErrorContains(t, err, "this role lacks a right: it needs to SELECT, INSERT and UPDATE in the table")
	require.NotErrorIs(t, err, courier.ErrConfig)
	as("NONE")
	execute(t, s.db, fmt.Sprintf(`GRANT SELECT, INSERT, UPDATE ON items TO %q`, role))
	as(fmt.Sprintf("%q", role))
	require.NoError(t, s.ApplyBatch(t.Context(), items(2, 5)))
}

// A table that is changed under a running sink fails no record for good.
func TestSink_OfATableThatChanges(t *testing.T) {
	inEachDialect(t, func(t *testing.T, dialect Dialect) {
		s := sinkTo(t, dialect, nil, createItems)
		require.NoError(t, s.Apply(t.Context(), item{"x", "a"}))
		execute(t, s.db, `ALTER TABLE items RENAME COLUMN name TO title`)
		err := s.ApplyBatch(t.Context(), items(0, 3))
		require.ErrorIs(t, err, courier.ErrConfig)
		require.Equal(t, courier.ClassNotAttempted, courier.Classify(t.Context(), err))
		execute(t, s.db, `ALTER TABLE items RENAME COLUMN title TO name`)
		require.NoError(t, s.ApplyBatch(t.Context(), items(0, 3)))

		if dialect == SQLite {
			return // of which columns take any type
		}
		s = sinkTo(t, dialect, nil, `CREATE TABLE items (id integer PRIMARY KEY, name text)`)
		require.NoError(t, s.Apply(t.Context(), item{1, "a"}))
		execute(t, s.db, `ALTER TABLE items ALTER id TYPE bigint`)
		err = s.Apply(t.Context(), item{1 << 40, "a"})
		require.Equal(t, courier.ClassRetryable, courier.Classify(t.Context(), err), "%v", err)
		require.NoError(t, s.Apply(t.Context(), item{1 << 40, "a"}))
	})
}

// A row that the database leaves out, and says nothing, is not taken for written.
func TestSink_OfASuppressedRow(t *testing.T) {
	inEachDialect(t, func(t *testing.T, dialect Dialect) {
		suppress := []string{`CREATE TRIGGER suppress BEFORE INSERT ON items WHEN new.name = 'lost' BEGIN SELECT raise(IGNORE); END`}
		if dialect == Postgres {
			suppress = []string{`CREATE FUNCTION suppress() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$`,
				`CREATE TRIGGER suppress BEFORE INSERT ON items FOR EACH ROW WHEN (NEW.name = 'lost') EXECUTE FUNCTION suppress()`}
		}
		s := sinkTo(t, dialect, nil, append([]string{createItems}, suppress...)...)
		batch := items(0, 20)
		batch[13].Name = "lost"
		var list *courier.BatchError
		require.ErrorAs(t, s.ApplyBatch(t.Context(), batch), &list)
		require.Len(t, list.Failures, 1)
		require.Equal(t, 13, list.Failures[0].Index)
		require.ErrorIs(t, list.Failures[0].Err, ErrSuppressed)
		require.Equal(t, courier.ClassRetryable, courier.Classify(t.Context(), list.Failures[0].Err))
		require.Equal(t, 19, count(t, s.db, `SELECT count(*) FROM items`))
	})
}

// A row that is locked, or a connection that is cut, is no record's failure, and ends the call.
func TestSink_OfADatabaseThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	s := sinkTo(t, Postgres, func(c *SinkConfig[item]) { c.QueryTimeout = 500 * time.Millisecond })
	require.NoError(t, s.ApplyBatch(t.Context(), items(0, 10)))
	tx, err := s.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	_, err = tx.ExecContext(t.Context(), `SELECT FROM items WHERE id = 'i00005' FOR UPDATE`)
	require.NoError(t, err)
	batch := items(0, 20)
	err = s.ApplyBatch(t.Context(), batch)
	require.ErrorIs(t, err, ErrQueryTimeout)
	var list *courier.BatchError
	require.NotErrorAs(t, err, &list)
	require.Equal(t, courier.ClassRetryable, courier.Classify(t.Context(), err))

	// Beside records that fail for themselves, those that were not tried fail too.
	batch[0].Name, batch[1].Name = make(chan int), "bad"
	require.ErrorAs(t, s.ApplyBatch(t.Context(), batch), &list)
	failed := map[int]bool{}
	for _, f := range list.Failures {
		failed[f.Index] = true
		require.Equal(t, f.Index > 1, errors.Is(f.Err, ErrQueryTimeout), f.Err)
	}
	for i := range batch { // 2, 3 and 4 were written by then
		require.Equal(t, i < 2 || i >= 5, failed[i], i)
	}
	ended, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = s.ApplyBatch(ended, items(0, 20))
	require.Equal(t, courier.ClassNotAttempted, courier.Classify(ended, err), "%v", err)

	require.NoError(t, tx.Rollback())
	require.NoError(t, s.ApplyBatch(t.Context(), items(0, 20)))
	require.Equal(t, 20, count(t, s.db, `SELECT count(*) FROM items`))
}

func TestSink_Validate(t *testing.T) {
	db := open(t, t.TempDir()+"/test.db")
	for want, change := range map[string]func(*SinkConfig[item]){
		"SinkConfig.Table":        func(c *SinkConfig[item]) { c.Table = "a.b.c" },
		"SinkConfig.Columns is":   func(c *SinkConfig[item]) { c.Columns = nil },
		"SinkConfig.Columns has":  func(c *SinkConfig[item]) { c.Columns = []string{"id", "id"} },
		"SinkConfig.Values":       func(c *SinkConfig[item]) { c.Values = nil },
		"SinkConfig.Key is":       func(c *SinkConfig[item]) { c.Key = nil },
		"SinkConfig.Key has":      func(c *SinkConfig[item]) { c.Key = []string{"number"} },
		"SinkConfig.OnConflict":   func(c *SinkConfig[item]) { c.OnConflict = 7 },
		"SinkConfig.QueryTimeout": func(c *SinkConfig[item]) { c.QueryTimeout = -1 },
	} {
		config := itemConfig()
		change(&config)
		s := NewSink(db, SQLite, config)
		for _, err := range []error{s.Validate(), s.Check(t.Context()), s.Apply(t.Context(), item{}), s.ApplyBatch(t.Context(), nil)} {
			require.ErrorIs(t, err, courier.ErrConfig, want)
			require.ErrorContains(t, err, want)
		}
	}
	execute(t, db, createItems)
	config := itemConfig()
	config.Values = func(item) ([]any, error) { return []any{1}, nil }
	err := NewSink(db, SQLite, config).Apply(t.Context(), item{})
	require.ErrorIs(t, err, courier.ErrConfig)
	require.ErrorContains(t, err, "SinkConfig.Values returned 1 value for 2 columns")
	require.ErrorIs(t, NewSink(nil, SQLite, itemConfig()).Validate(), courier.ErrConfig)
	require.ErrorIs(t, NewSink(db, 0, itemConfig()).Validate(), courier.ErrConfig)
}
