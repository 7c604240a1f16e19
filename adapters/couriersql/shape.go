package couriersql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
)

// shape is what the package relies on in a table that the migrations lead to.
type shape struct {
	dlq     bool // of the dead letters or leases, or of the outbox
	columns []column
}

type column struct {
	name, kind string // "" is of any kind
	nullable   bool
	key        bool // the primary key, or a part of it
	since      int  // the version that added it, 0 for the first
}

// checkShapes reports the first table that the package cannot work with. Before
// the migrations, a table that does not exist passes, and one of any version.
func (d *database) checkShapes(ctx context.Context, conn *sql.Conn, before bool) error {
	for _, want := range d.shapes {
		table := d.table
		if want.dlq {
			table = d.dlq
		}
		have, required, err := d.columnsOf(ctx, conn, table)
		if err != nil {
			return err
		}
		if len(have) == 0 {
			if before || d.isHidden(ctx, conn, table) {
				continue
			}
			return fmt.Errorf("the table %s is missing though its version is recorded: DELETE FROM courier_migrations WHERE outbox = '%s', and call Migrate again", table, strings.ReplaceAll(d.versioned, "'", "''"))
		}
		if differences := want.differences(have, required, before); len(differences) > 0 {
			return fmt.Errorf("the table %s is not one of this package: %s; rename it, or choose another name (WithTable, DLQConfig.Table, InboxConfig.Table)", table, strings.Join(differences, ", "))
		}
	}
	return nil
}

// isHidden reports whether the user has no right to a table, and so is not told of it.
func (d *database) isHidden(ctx context.Context, conn *sql.Conn, table string) bool {
	if d.grammar.hides == nil {
		return false
	}
	rows, err := conn.QueryContext(ctx, `SELECT 1 FROM `+d.quoted(table)+` LIMIT 0`)
	if err == nil {
		_ = rows.Close() // nothing was to be read
	}
	return d.grammar.hides(err)
}

// inspect returns a function that warns once of what an outbox has that loses messages or
// their order, and of one without the indexes that the fetch needs: all works without
// them, until there are many rows and each fetch reads them all. Call the function after a
// fetch that worked: one that failed may tell that there is no table, or one of an earlier
// version.
func (o *Outbox) inspect(ctx context.Context) (warn func()) {
	nothing := func() {}
	if o.looked.Load() {
		return nothing
	}
	var there, unlogged, unordered bool
	var schemas string
	if err := o.on(ctx, func(conn *sql.Conn) error {
		if err := conn.QueryRowContext(ctx, o.sql(o.grammar.indexed)).Scan(&there); err != nil || o.grammar.schemas == "" {
			return err
		}
		if err := conn.QueryRowContext(ctx, o.sql(o.grammar.fit)).Scan(&unlogged, &unordered); err != nil {
			return err
		}
		if o.schema != "" {
			return nil
		}
		return conn.QueryRowContext(ctx, o.sql(o.grammar.schemas)).Scan(&schemas)
	}); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nothing // the fetch has the same to tell
	}
	return func() {
		if o.looked.Swap(true) {
			return
		}
		if schemas != "" {
			o.log.Warn("couriersql: more than one schema of the search_path has an outbox of this name; this program uses the first, and others may write to another",
				"table", o.table, "schemas", schemas)
		}
		if unlogged {
			o.log.Warn("couriersql: a table of the outbox is UNLOGGED: a crash of the server or a failover empties it, and messages that were committed are lost: ALTER TABLE … SET LOGGED",
				"table", o.table)
		}
		if unordered && o.strict {
			o.log.Warn("couriersql: the order is not that in which the messages are written, as the sequence of the numbers has CACHE, CYCLE or a negative INCREMENT: ALTER SEQUENCE … CACHE 1 NO CYCLE INCREMENT 1",
				"table", o.table)
		}
		if !there {
			o.log.Warn("couriersql: an index of the pending rows is missing, and fetches get slow as the table grows: create it",
				"table", o.table, "statement", o.sql(o.grammar.addIndex))
		}
	}
}

// columnsOf returns the columns of a table, none when there is no such table,
// and the names of those that an insert must fill.
func (d *database) columnsOf(ctx context.Context, conn *sql.Conn, table string) (have map[string]column, required []string, err error) {
	args := []any{table}
	if d.grammar.columnsOf != nil {
		args = d.grammar.columnsOf(table)
	}
	rows, err := conn.QueryContext(ctx, d.grammar.columns, args...)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = rows.Close() }() // what it has to say, Err said
	have = make(map[string]column)
	for rows.Next() {
		var c column
		var notNull, hasDefault bool
		if err := rows.Scan(&c.name, &c.kind, &notNull, &hasDefault, &c.key); err != nil {
			return nil, nil, err
		}
		c.nullable = !notNull
		have[c.name] = c
		if notNull && !hasDefault {
			required = append(required, c.name)
		}
	}
	return have, required, rows.Err()
}

// differences lists what keeps the package from working with a table. Columns
// of the user's own do not, as long as an insert may leave them out.
func (s shape) differences(have map[string]column, required []string, before bool) (list []string) {
	known := make(map[string]bool, len(s.columns))
	for _, want := range s.columns {
		known[want.name] = true
		c, found := have[want.name]
		switch {
		case !found && before && want.since > 0:
		case !found:
			list = append(list, fmt.Sprintf("column %s %s is missing", want.name, want.kind))
		case c.kind != want.kind && want.kind != "":
			list = append(list, fmt.Sprintf("column %s is %s and not %s", c.name, c.kind, want.kind))
		case c.key != want.key && want.key:
			list = append(list, fmt.Sprintf("column %s is not the primary key", c.name))
		case c.key: // whose nullability databases report differently
		case want.nullable && !c.nullable:
			list = append(list, fmt.Sprintf("column %s is NOT NULL", c.name))
		case !want.nullable && c.nullable:
			list = append(list, fmt.Sprintf("column %s is not NOT NULL", c.name))
		}
	}
	for _, name := range required {
		if !known[name] {
			list = append(list, fmt.Sprintf("column %s is NOT NULL without a default", name))
		}
	}
	return list
}
