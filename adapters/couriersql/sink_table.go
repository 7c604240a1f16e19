package couriersql

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/erfanmomeniii/courier"
	"github.com/jackc/pgx/v5/pgtype"
)

// This room is the table that a sink writes to, and the statements that do it.

// sinkTable is a table as the catalogue has it.
type sinkTable struct {
	columns []sinkColumn // those that a record fills
	insert  string       // in SQLite of sqliteRows rows
}

type sinkColumn struct {
	name   string
	kind   string // of its values, in a statement
	oid    uint32 // of the kind, to pgx
	listed bool   // a list of the kind is taken apart into its elements, and no further
	key    bool
}

// rowErrorKind is what an error of a statement that writes rows says about them.
type rowErrorKind int

const (
	notOfRow       rowErrorKind = iota // nothing
	refused                            // one of them cannot be written, as the others in the table are
	refusedForGood                     // one of them cannot be written whatever the others are
	ofTable                            // nothing: the table is not as it was
)

// identifiers takes a name, perhaps with a schema, apart, as SQL does it: at a dot that is not
// in double quotes (in MySQL, backticks), in which two of them are one. It is nil for what is
// no name.
func (d Dialect) identifiers(text string) (path []string) {
	quote := d.identifier("")[:1]
	for {
		var name string
		if rest, quoted := strings.CutPrefix(text, quote); quoted {
			for text = rest; ; {
				before, after, found := strings.Cut(text, quote)
				if !found {
					return nil
				}
				name, text = name+before, after
				if !strings.HasPrefix(text, quote) {
					break
				}
				name, text = name+quote, text[1:]
			}
		} else {
			end := strings.IndexAny(text, "."+quote)
			if end < 0 {
				end = len(text)
			}
			name, text = text[:end], text[end:]
		}
		if path = append(path, name); name == "" || strings.IndexByte(name, 0) >= 0 || len(path) > 2 {
			return nil
		}
		if text == "" {
			return path
		}
		if text[0] != '.' {
			return nil
		}
		text = text[1:]
	}
}

// notATable is what is wrong with a text for which identifiers returns nil.
func (d Dialect) notATable(text string) string {
	quotes := "double quotes"
	if d == MySQL {
		quotes = "backticks"
	}
	return fmt.Sprintf("%q is not the name of a table: pass a name, perhaps after that of a schema and a dot; one with a dot of its own in %s", text, quotes)
}

// quotedAll is a list of names in a statement.
func quotedAll(names []string, separator string) string {
	list := make([]string, len(names))
	for i, name := range names {
		list[i] = identifier(name)
	}
	return strings.Join(list, separator)
}

// look asks the catalogue for the table, and the database whether it takes the statement.
func (s *Sink[T]) look(ctx context.Context) (*sinkTable, error) {
	table := new(sinkTable)
	if err := s.ask(ctx, func(ctx context.Context, conn *sql.Conn) error {
		if err := s.lookForColumns(ctx, conn, table); err != nil {
			return err
		}
		text, args := table.insert, make([]any, len(table.columns))
		if s.dialect == SQLite {
			text = s.sqliteInsert(1)
		} else {
			for i := range args {
				args[i] = "{}"
			}
		}
		rows, err := conn.QueryContext(ctx, "EXPLAIN "+text, args...)
		if err != nil {
			return err
		}
		for rows.Next() { // an error may be the last that comes
		}
		return errors.Join(rows.Err(), rows.Close())
	}); err != nil {
		s.table.Store(nil)
		if s.grammar.noArbiter(err) {
			return nil, &courier.ConfigError{Field: "SinkConfig.Key", Problem: fmt.Sprintf("of %s has no unique index of %s with these columns and no others, and without a condition: create one (CREATE UNIQUE INDEX ON … (%s))",
				strings.Join(s.config.Key, ", "), s.config.Table, quotedAll(s.config.Key, ", "))}
		}
		if errors.Is(err, courier.ErrConfig) {
			return nil, err
		}
		return nil, s.failed(err, "looking for the table %s", s.config.Table)
	}
	s.table.Store(table)
	return table, nil
}

// lookForColumns reads the columns of the table and makes the statement.
func (s *Sink[T]) lookForColumns(ctx context.Context, conn *sql.Conn, table *sinkTable) error {
	var args []any
	if s.dialect == SQLite {
		var schema any
		if len(s.path) > 1 {
			schema = s.path[0]
		}
		args = []any{s.path[len(s.path)-1], schema}
	} else {
		args = []any{quotedAll(s.path, ".")}
	}
	rows, err := conn.QueryContext(ctx, s.grammar.sinkColumns, args...)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }() // what it has to say, Err said
	var names, generated, required []string
	found := make(map[string]sinkColumn)
	for rows.Next() {
		var c sinkColumn
		var made, needed bool
		if err := rows.Scan(&c.name, &c.kind, &c.oid, &c.listed, &made, &needed); err != nil {
			return err
		}
		names = append(names, c.name)
		found[s.folded(c.name)] = c
		if made {
			generated = append(generated, s.folded(c.name))
		}
		if needed {
			required = append(required, c.name)
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if len(names) == 0 {
		return &courier.ConfigError{Field: "SinkConfig.Table", Problem: fmt.Sprintf("names the table %s, and there is none, or this role may not see it: create it, or correct the name, which is taken as it is, upper and lower case included", quotedAll(s.path, "."))}
	}
	filled := make(map[string]bool)
	for _, name := range s.config.Columns {
		c, there := found[s.folded(name)]
		switch {
		case !there:
			return &courier.ConfigError{Field: "SinkConfig.Columns", Problem: fmt.Sprintf("has %q, which is no column of %s: it has %s", name, s.config.Table, strings.Join(names, ", "))}
		case slices.Contains(generated, s.folded(name)):
			return &courier.ConfigError{Field: "SinkConfig.Columns", Problem: fmt.Sprintf("has %q, which %s generates by itself: leave it out", name, s.config.Table)}
		}
		c.key = slices.Contains(s.config.Key, name)
		filled[c.name] = true
		table.columns = append(table.columns, c)
	}
	for _, name := range required {
		if !filled[name] {
			return &courier.ConfigError{Field: "SinkConfig.Columns", Problem: fmt.Sprintf("lacks %q, which is NOT NULL and has no default in %s: add it, or give the column a default", name, s.config.Table)}
		}
	}
	if table.insert = s.sqliteInsert(sqliteRows(len(table.columns))); s.dialect != SQLite {
		table.insert = s.postgresInsert(table)
	}
	return nil
}

// folded is a column's name as the database compares it.
func (s *Sink[T]) folded(name string) string {
	if s.dialect == SQLite {
		return strings.ToLower(name)
	}
	return name
}

// into is the beginning of a statement that inserts.
func (s *Sink[T]) into() string {
	return "INSERT INTO " + quotedAll(s.path, ".") + " (" + quotedAll(s.config.Columns, ", ") + ") "
}

// otherwise is the end of one: what becomes of a row that is there.
func (s *Sink[T]) otherwise() string {
	text := " ON CONFLICT (" + quotedAll(s.config.Key, ", ") + ") DO "
	if !s.updates() {
		return text + "NOTHING"
	}
	separator := "UPDATE SET "
	for _, name := range s.config.Columns {
		if !slices.Contains(s.config.Key, name) {
			column := quotedAll([]string{name}, "")
			text += separator + column + " = excluded." + column
			separator = ", "
		}
	}
	return text
}

// updates reports whether there is anything to update.
func (s *Sink[T]) updates() bool {
	return s.config.OnConflict == UpdateOnConflict && len(s.config.Columns) > len(s.config.Key)
}

// postgresInsert takes a list of each column: one text for any number of rows, which the
// driver keeps prepared, and no limit of parameters. A row of VALUES with a parameter for each
// value was no faster. A list of lists, or of composite values, would be taken apart
// further: those are texts.
func (s *Sink[T]) postgresInsert(table *sinkTable) string {
	var values, lists, names []string
	for i, c := range table.columns {
		name := "c" + strconv.Itoa(i+1)
		value, kind := "v."+name, c.kind
		if !c.listed {
			value, kind = value+"::"+c.kind, "text"
		}
		names = append(names, name)
		values = append(values, value)
		lists = append(lists, fmt.Sprintf("$%d::%s[]", i+1, kind))
	}
	return s.into() + "SELECT " + strings.Join(values, ", ") + " FROM unnest(" + strings.Join(lists, ", ") + ") AS v(" + strings.Join(names, ", ") + ")" + s.otherwise()
}

// sqliteRows is how many rows a statement of SQLite inserts: larger ones were not measurably
// faster, and it has a limit of 32,766 arguments.
func sqliteRows(columns int) int { return max(1, min(100, 32766/columns)) }

func (s *Sink[T]) sqliteInsert(rows int) string {
	row := "(?" + strings.Repeat(", ?", len(s.config.Columns)-1) + ")"
	return s.into() + "VALUES " + row + strings.Repeat(", "+row, rows-1) + s.otherwise()
}

// errNoKey is of a record that nobody could know again.
func errNoKey(column string) error {
	return fmt.Errorf("the column %s of its key is NULL, so that nobody could tell whether it was written before", column)
}

// convert makes values of those that every driver takes.
func (t *sinkTable) convert(values []any) (row []any, err error) {
	row = make([]any, len(values))
	for i, value := range values {
		if row[i], err = driver.DefaultParameterConverter.ConvertValue(value); err != nil {
			return nil, fmt.Errorf("the value of the column %s: %w", t.columns[i].name, err)
		}
		if row[i] == nil && t.columns[i].key {
			return nil, errNoKey(t.columns[i].name)
		}
	}
	return row, nil
}

// encode adds the values of a row as elements of lists in the words of PostgreSQL, which it
// takes in any mode of pgx; with an error, none of them.
func (t *sinkTable) encode(types *pgtype.Map, before []byte, endsBefore []int, values []any) (cells []byte, ends []int, err error) {
	cells, ends = before, endsBefore
	for i, value := range values {
		c := t.columns[i]
		begin := len(cells)
		switch v := value.(type) {
		case string:
			cells = appendElement(cells, v)
		case int:
			cells = strconv.AppendInt(cells, int64(v), 10)
		case int64:
			cells = strconv.AppendInt(cells, v, 10)
		default:
			text, err := types.Encode(c.oid, pgtype.TextFormatCode, value, []byte{}) // nil would be NULL
			if err != nil {
				return before, endsBefore, fmt.Errorf("the value of the column %s: %w", c.name, err)
			}
			if text != nil {
				cells = appendElement(cells, string(text))
			}
		}
		if len(cells) == begin {
			if c.key {
				return before, endsBefore, errNoKey(c.name)
			}
			cells = append(cells, "NULL"...)
		}
		ends = append(ends, len(cells))
	}
	return cells, ends, nil
}

// appendElement adds a text to a list in the words of PostgreSQL.
func appendElement(list []byte, text string) []byte {
	list = append(list, '"')
	if strings.IndexByte(text, '"') < 0 && strings.IndexByte(text, '\\') < 0 {
		list = append(list, text...)
	} else {
		list = append(list, quoteElement.Replace(text)...)
	}
	return append(list, '"')
}

// insertLists writes rows by one statement: those of one key once, which the statement
// refuses to update twice, and in the order of their keys, so that two of them do not wait
// for each other.
func (b *sinkBatch[T]) insertLists(ctx context.Context, conn *sql.Conn, rows []int) error {
	order := slices.Clone(rows)
	slices.SortStableFunc(order, b.compareKeys)
	once := order[:0]
	for _, row := range order {
		switch last := len(once) - 1; {
		case last < 0 || b.compareKeys(once[last], row) != 0:
			once = append(once, row)
		case b.config.OnConflict == UpdateOnConflict:
			once[last] = row
		}
	}
	args := make([]any, len(b.table.columns))
	for i := range args {
		size := len("{}")
		for _, row := range once {
			size += len(b.element(row, i)) + len(",")
		}
		list := append(make([]byte, 0, size), '{')
		for j, row := range once {
			if j > 0 {
				list = append(list, ',')
			}
			list = append(list, b.element(row, i)...)
		}
		args[i] = string(append(list, '}'))
	}
	result, err := conn.ExecContext(ctx, b.table.insert, args...)
	return b.written(result, err, len(once))
}

func (b *sinkBatch[T]) compareKeys(row, other int) int {
	for i, c := range b.table.columns {
		if c.key {
			if order := bytes.Compare(b.element(row, i), b.element(other, i)); order != 0 {
				return order
			}
		}
	}
	return 0
}

// insertValues writes rows by one transaction.
func (b *sinkBatch[T]) insertValues(ctx context.Context, conn *sql.Conn, rows []int) error {
	tx, err := conn.BeginTx(ctx, b.grammar.isolated)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	most := sqliteRows(len(b.table.columns))
	var whole *sql.Stmt
	if len(rows) >= 2*most { // worth it
		if whole, err = tx.PrepareContext(ctx, b.table.insert); err != nil {
			return err
		}
		defer func() { _ = whole.Close() }() // it is read no more
	}
	args := make([]any, 0, most*len(b.table.columns))
	for len(rows) > 0 {
		n := min(most, len(rows))
		args = args[:0]
		for _, row := range rows[:n] {
			args = append(args, b.rows[row]...)
		}
		var result sql.Result
		if whole != nil && n == most {
			result, err = whole.ExecContext(ctx, args...)
		} else {
			result, err = tx.ExecContext(ctx, b.sqliteInsert(n), args...)
		}
		if err := b.written(result, err, n); err != nil {
			return err
		}
		rows = rows[n:]
	}
	return tx.Commit()
}

// written is the error of a statement that was to write so many rows.
func (b *sinkBatch[T]) written(result sql.Result, err error, rows int) error {
	if err == nil && b.updates() {
		if n := missing(result, rows); n > 0 {
			err = b.suppressed(b.config.Table, n, rows)
		}
	}
	return err
}
