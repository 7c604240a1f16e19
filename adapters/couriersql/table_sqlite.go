package couriersql

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/erfanmomeniii/courier"
)

// sqliteTable is a [tableStore] and [crashCounter] in SQLite. Keys are passed as texts, which a comparison
// with a column turns into what the column has.
type sqliteTable struct {
	tableText
	types []string // of the key
	now   func() time.Time
}

func newSQLiteTable(ctx context.Context, conn *sql.Conn, text tableText, now func() time.Time) (tableStore, error) {
	s := &sqliteTable{tableText: text, now: now}
	// The rowid that a key names is never NULL, though the column does not say so.
	kinds, nullable, err := kindsOf(ctx, conn, `SELECT name, upper(type), "notnull" OR pk > 0 FROM pragma_table_xinfo(?1)`, s.name)
	if err != nil {
		return nil, err
	}
	if len(kinds) == 0 {
		return nil, &courier.ConfigError{Field: "TableConfig.Table", Problem: fmt.Sprintf("%q is not a table of the database: pass its name without quotes", s.name)}
	}
	var unique bool
	if err := conn.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM pragma_table_xinfo(?1) WHERE pk > 0)
			AND NOT EXISTS (SELECT 1 FROM pragma_table_xinfo(?1) WHERE pk > 0 AND name NOT IN (SELECT value FROM json_each(?2)))
		OR EXISTS (SELECT 1 FROM pragma_index_list(?1) AS l WHERE l."unique" AND NOT l.partial
			AND NOT EXISTS (SELECT 1 FROM pragma_index_info(l.name) AS i WHERE i.name IS NULL OR i.name NOT IN (SELECT value FROM json_each(?2))))`,
		s.name, jsonStrings(s.keys)).Scan(&unique); err != nil {
		return nil, err
	}
	if err := text.fitKey(kinds, nullable, unique); err != nil {
		return nil, err
	}
	for _, name := range s.keys {
		kind := kinds[name]
		if kind == "" || strings.Contains(kind, "BLOB") {
			return nil, &courier.ConfigError{Field: "TableConfig.Key", Problem: fmt.Sprintf("has the column %s of %s, which has the type %q: in SQLite a key is of numbers or texts", name, s.name, kind)}
		}
		s.types = append(s.types, kind)
	}
	return s, nil
}

func (s *sqliteTable) tables(d *database) {
	d.table, d.dlq, d.versioned = s.state, s.state+"_batches", "table:"+s.state
	d.migrations = folder(sqliteMigrations, "migrations/sqlite_table")
	keys := make([]string, len(s.types))
	var columns []column
	for i, kind := range s.types {
		keys[i] = fmt.Sprintf("key%d %s NOT NULL", i+1, kind)
		columns = append(columns, column{name: fmt.Sprintf("key%d", i+1), kind: kind, key: true})
	}
	d.shapes = []shape{
		{false, append(columns, column{name: "attempts", kind: "INTEGER"}, column{name: "available_at", kind: "INTEGER"},
			column{name: "last_error", kind: "TEXT"}, column{name: "order_key", kind: "TEXT"}, column{name: "crashes", kind: "INTEGER"})},
		{true, []column{{name: "id", kind: "INTEGER", key: true}, {name: "owner", kind: "TEXT"}, {name: "until", kind: "INTEGER"}, {name: "alone", kind: "INTEGER"}, {name: "keys", kind: "TEXT"}, {name: "order_keys", kind: "TEXT"}}},
	}
	d.names = strings.NewReplacer("{outbox}", quoted(d.table), "{state}", identifier(s.state), "{batches}", s.batches(), "{versions}", quoted("courier_migrations"),
		"{keys}", strings.Join(keys, ", "), "{key_names}", each(len(s.keys), "key#"), "{suspects}", s.state+"_crashes")
}

func (s *sqliteTable) batches() string { return identifier(s.state + "_batches") }

// listOf is a list of keys as an argument; none is no null.
func listOf(keys [][]string) string {
	var list any = append([][]string{}, keys...)
	if len(keys) > 0 && len(keys[0]) == 1 {
		list = slices.Concat(keys...)
	}
	text, _ := json.Marshal(list) // never fails for strings
	return string(text)
}

// listOfNumbers is a list of numbers as an argument; none is no null.
func listOfNumbers(numbers []int64) string {
	text, _ := json.Marshal(append([]int64{}, numbers...)) // never fails for numbers
	return string(text)
}

// in is that columns are in a list, a column or an argument with JSON.
func (s *sqliteTable) in(columns, list string) string {
	return fmt.Sprintf("(%s) IN (SELECT %s FROM json_each(%s))", columns, s.parts("value"), list)
}

// parts are the columns of the key in an element of a list.
func (s *sqliteTable) parts(value string) string {
	if len(s.keys) == 1 {
		return value
	}
	list := make([]string, len(s.keys))
	for i := range list {
		list[i] = fmt.Sprintf("%s ->> %d", value, i)
	}
	return strings.Join(list, ", ")
}

func (s *sqliteTable) texts() string { return s.perKey("CAST(t.@ AS TEXT)", ", ") }

// found is whether a row is found by the texts of its key: it is not where a column has bytes,
// or a number that its type does not make of the text.
func (s *sqliteTable) found() string { return s.perKey("t.@ = +CAST(t.@ AS TEXT)", " AND ") }

// Conditions of a row f of the table beside.
const (
	sqliteWaits   = "f.available_at > ?1"                     // for its next try
	sqliteSuspect = "(f.available_at > ?1 OR f.crashes > 0)"  // or was in hand at a crash
	sqliteBeyond  = "(f.available_at > ?1 OR f.crashes > ?4)" // or had too many
)

// due is the condition of a row that may be handed out at the time ?1: none of it, or of a
// pending row of its order key, is beside with the condition for which it, or its key, waits.
func (s *sqliteTable) due(waits, keyWaits string) string {
	text := fmt.Sprintf(`%s
		AND (%s) NOT IN (SELECT %s FROM %s b, json_each(b.keys) k WHERE b.until > ?1)
		AND NOT EXISTS (SELECT 1 FROM %s f WHERE %s AND %s)`,
		s.pending, s.texts(), s.parts("k.value"), s.batches(), identifier(s.state), s.noted(), waits)
	if s.orderKey != "" {
		text += fmt.Sprintf(`
		AND %s NOT IN (SELECT f.order_key FROM %s f WHERE f.order_key <> '' AND %s AND (SELECT 1 FROM %s AS t WHERE %s AND %s))`,
			s.orderText(), identifier(s.state), keyWaits, identifier(s.name), s.noted(), s.pending)
	}
	return text
}

func (s *sqliteTable) orderText() string {
	if s.orderKey == "" {
		return "''"
	}
	return "COALESCE(CAST((" + s.orderKey + ") AS TEXT), '')"
}

func (s *sqliteTable) fetchText() string { return s.fetching(claim{}) }

// fetching reads rows that were in hand at no crash; or those that had at least ?3 and at
// most ?4. In strict order ?3 is 0, which takes all rows: one that was given back may come
// before the suspects.
func (s *sqliteTable) fetching(c claim) string {
	suspects := c.most > 0
	others, owner := "", "?3"
	due := s.due(sqliteSuspect, sqliteSuspect)
	if suspects {
		owner = "?5"
		crashed := fmt.Sprintf("FROM %s f WHERE f.crashes > 0 AND f.crashes BETWEEN ?3 AND ?4", identifier(s.state))
		due = fmt.Sprintf("(%s) IN (SELECT %s %s)", s.keyRefs(), each(len(s.keys), "f.key#"), crashed)
		switch {
		case s.strict:
			due = fmt.Sprintf("(?3 = 0 OR %s)", due)
		case c.behind && s.orderKey != "":
			due = fmt.Sprintf("(%s OR %s IN (SELECT f.order_key %s AND f.order_key <> ''))", due, s.orderText(), crashed)
		}
		due += " AND " + s.due(sqliteBeyond, sqliteBeyond)
	}
	switch {
	case s.strict:
		others = fmt.Sprintf(`
		AND NOT EXISTS (SELECT 1 FROM %s WHERE owner <> %s)`, s.batches(), owner)
	case s.apart():
		others = fmt.Sprintf(`
		AND %s NOT IN (SELECT k.value FROM %s, json_each(order_keys) k WHERE owner <> %s)`, s.orderText(), s.batches(), owner)
		if !suspects { // which are few, and anybody's
			others += fmt.Sprintf(`
		AND (%[1]s = '' OR (COALESCE(unicode(substr(%[1]s, -2, 1)), 0) + 3 * unicode(substr(%[1]s, -1))) %% ?4 = ?5)`, s.orderText())
		}
	}
	if s.strict && !suspects {
		others += fmt.Sprintf(`
		AND NOT EXISTS (SELECT 1 %s AND s.courier_crashes < %d)`, s.suspectsNow(), s.mostCrashes)
	}
	return fmt.Sprintf(`SELECT COALESCE((SELECT f.attempts FROM %s f WHERE %s), 0), %s, %s, %s, %s
	FROM %s AS t
	WHERE %s%s
	ORDER BY %s LIMIT ?2`,
		identifier(s.state), s.noted(), s.orderText(), s.found(), s.texts(), strings.Join(s.columns, ", "), identifier(s.name), due, others, s.orderBy())
}

// fetchArgs are for one of n relays that share the order keys, which has a place from 0.
func (s *sqliteTable) fetchArgs(c claim, n, place int) []any {
	args := []any{s.now().UnixMicro(), c.limit}
	if c.most > 0 {
		args = append(args, c.fewest, c.most)
	}
	if s.strict || s.apart() {
		args = append(args, c.owner)
	}
	if s.apart() && c.most == 0 {
		args = append(args, n, place)
	}
	return args
}

func (s *sqliteTable) markText() string {
	if s.mark == "" {
		return fmt.Sprintf(`DELETE FROM %s AS t WHERE %s`, identifier(s.name), s.in(s.keyRefs(), "?1"))
	}
	return fmt.Sprintf(`UPDATE %s AS t SET %s WHERE %s`, identifier(s.name), s.mark, s.in(s.keyRefs(), "?1"))
}

func (s *sqliteTable) pendingText() string {
	return fmt.Sprintf(`SELECT count(*) FROM %s AS t WHERE %s`, identifier(s.name), s.pending)
}

// writing runs work in a transaction that nobody else writes beside.
func writing(ctx context.Context, conn *sql.Conn, work func() error) (err error) {
	if _, err := conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	panicked := true
	defer func() {
		if panicked { // a function of the user's: the transaction ends with the connection
			discard(conn)
		}
	}()
	err = work()
	panicked = false
	if err == nil {
		_, err = conn.ExecContext(ctx, "COMMIT")
	}
	if err != nil {
		// Also where ctx has ended.
		if _, lost := conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK"); lost != nil {
			discard(conn)
		}
	}
	return err
}

func (s *sqliteTable) fetch(ctx context.Context, conn *sql.Conn, c claim, read func(row *handedOut, scan func(dest ...any) error) error) (id int64, err error) {
	nothing := errors.New("nothing to lease")
	err = writing(ctx, conn, func() error {
		ended, err := s.forgetting(ctx, conn, c.owner, c.known)
		if err != nil {
			return err
		}
		var late bool
		if err := conn.QueryRowContext(ctx, fmt.Sprintf(`SELECT EXISTS (SELECT 1 FROM %s WHERE until <= ?1 AND owner <> ?2)`, s.batches()), s.now().UnixMicro(), c.owner).Scan(&late); err != nil {
			return err
		}
		if late {
			return errRunOut
		}
		n, place, others := 1, 0, false
		if s.apart() && c.most == 0 {
			if err := conn.QueryRowContext(ctx, fmt.Sprintf(`SELECT count(*), count(*) FILTER (WHERE owner < ?1), EXISTS (SELECT 1 FROM %[1]s WHERE owner <> ?1)
				FROM (SELECT owner FROM %[1]s WHERE keys = '[]' UNION SELECT ?1)`, s.batches()), c.owner).Scan(&n, &place, &others); err != nil {
				return err
			}
		}
		rows, err := conn.QueryContext(ctx, s.fetching(c), s.fetchArgs(c, n, place)...)
		if err != nil {
			return err
		}
		var found bool
		keys, orderKeys, err := s.readAll(rows, read, []any{&found}, func(key []string) error {
			if found && !slices.ContainsFunc(key, func(text string) bool { return !utf8.ValidString(text) }) {
				return nil
			}
			return fmt.Errorf("the row with the key %q could not be marked, as its key is no number or UTF-8 text of the column's type (bytes, perhaps): write its key anew, or leave such rows out in TableConfig.Pending (typeof(id) = 'text')", nameOf(key))
		})
		if err != nil {
			return err
		}
		lease := func(lasts time.Duration, keys [][]string, orderKeys []string) error {
			return conn.QueryRowContext(ctx, fmt.Sprintf(`INSERT INTO %s (owner, until, alone, keys, order_keys) VALUES (?1, ?2, ?3, ?4, ?5) RETURNING id`, s.batches()),
				c.owner, s.now().Add(lasts).UnixMicro(), c.alone, listOf(keys), jsonStrings(orderKeys)).Scan(&id)
		}
		if others {
			if err := lease(c.sign, nil, []string{}); err != nil {
				return err
			}
			id = 0
		}
		switch {
		case len(keys) > 0:
			return lease(c.lease, keys, orderKeys)
		case !others && ended == 0:
			return nothing // nor to commit
		}
		return nil
	})
	if errors.Is(err, nothing) {
		err = nil
	}
	if err != nil {
		id = 0 // which is taken back
	}
	return id, err
}

// bury reads the leases before it ends them, as a row of the table beside that is there
// already is counted by its own.
func (s *sqliteTable) bury(ctx context.Context, conn *sql.Conn, owner string, lease, contact time.Duration) (crashed int, err error) {
	n, now := len(s.keys), s.now().UnixMicro()
	err = writing(ctx, conn, func() error {
		result, err := conn.ExecContext(ctx, fmt.Sprintf(`WITH dead AS (
				SELECT b.alone AS courier_alone, %s FROM %s b, json_each(b.keys) k
				WHERE b.until <= ?1 AND b.owner <> ?2 AND b.until >= ?1 + ?3 - ?4
			)
			INSERT INTO %s (%s, attempts, available_at, last_error, order_key, crashes)
			SELECT %s, 0, 0, '', %s, iif(max(courier_alone), %d, 1) FROM dead CROSS JOIN %s AS t ON %s WHERE %s GROUP BY %s
			ON CONFLICT (%s) DO UPDATE SET order_key = excluded.order_key,
				crashes = iif(excluded.crashes > 1, max(crashes, %d), crashes) + 1`,
			s.asKeys("k.value"), s.batches(), identifier(s.state), each(n, "key#"), s.keyRefs(), s.orderText(), aloneFrom+1,
			identifier(s.name), s.joined("dead"), s.pending, s.keyRefs(), each(n, "key#"), aloneFrom),
			now, owner, lease.Microseconds(), contact.Microseconds())
		if err != nil {
			return err
		}
		counted, err := result.RowsAffected()
		crashed = int(counted)
		if err == nil {
			_, err = conn.ExecContext(ctx, fmt.Sprintf(`DELETE FROM %s WHERE until <= ?1 AND owner <> ?2`, s.batches()), now, owner)
		}
		return err
	})
	return crashed, err
}

// asKeys are the columns of the key in an element of a list, with names.
func (s *sqliteTable) asKeys(value string) string {
	if len(s.keys) == 1 {
		return value + " AS courier_key1"
	}
	list := make([]string, len(s.keys))
	for i := range list {
		list[i] = fmt.Sprintf("%s ->> %d AS courier_key%d", value, i, i+1)
	}
	return strings.Join(list, ", ")
}

// suspectsNow selects from rows that were in hand at crashes and are due.
func (s *sqliteTable) suspectsNow() string {
	return fmt.Sprintf("FROM (SELECT %s, crashes AS courier_crashes FROM %s WHERE crashes > 0) AS s CROSS JOIN %s AS t ON %s WHERE %s",
		each(len(s.keys), "key# AS courier_key#"), identifier(s.state), identifier(s.name), s.joined("s"),
		s.due(sqliteWaits, fmt.Sprintf("(%s OR f.crashes >= %d AND s.courier_crashes < %[2]d)", sqliteWaits, s.mostCrashes)))
}

func (s *sqliteTable) suspects(ctx context.Context, conn *sql.Conn) (fewest, most, more int, err error) {
	err = conn.QueryRowContext(ctx, fmt.Sprintf(`SELECT COALESCE(min(courier_crashes) FILTER (WHERE courier_crashes < %d), 0), COALESCE(max(courier_crashes) FILTER (WHERE courier_crashes < %[1]d), 0),
		count(*) FILTER (WHERE courier_crashes >= %[1]d) %s`, s.mostCrashes, s.suspectsNow()), s.now().UnixMicro()).Scan(&fewest, &most, &more)
	return fewest, most, more, err
}

// forgetting ends leases of an owner that are over or unknown to it.
func (s *sqliteTable) forgetting(ctx context.Context, conn *sql.Conn, owner string, known []int64) (ended int64, err error) {
	result, err := conn.ExecContext(ctx, fmt.Sprintf(`DELETE FROM %s WHERE owner = ?2 AND (until <= ?1 OR id NOT IN (SELECT value FROM json_each(?3)))`, s.batches()),
		s.now().UnixMicro(), owner, listOfNumbers(known))
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func (s *sqliteTable) forget(ctx context.Context, conn *sql.Conn, owner string, known []int64) error {
	_, err := s.forgetting(ctx, conn, owner, known)
	return err
}

func (s *sqliteTable) settle(ctx context.Context, conn *sql.Conn, owner string, how settlement, parts []part, doubt bool) (touched int, lost []int, err error) {
	err = writing(ctx, conn, func() error {
		for i, part := range parts {
			n, held, err := s.settlePart(ctx, conn, owner, how, part, doubt)
			if err != nil {
				return err
			}
			if touched += n; !held {
				lost = append(lost, i)
			}
		}
		return nil
	})
	return touched, lost, err
}

func (s *sqliteTable) settlePart(ctx context.Context, conn *sql.Conn, owner string, how settlement, p part, doubt bool) (touched int, held bool, err error) {
	execute := func(text string, args ...any) (n int64) {
		if err != nil {
			return 0
		}
		var result sql.Result
		if result, err = conn.ExecContext(ctx, text, args...); err == nil {
			n, err = result.RowsAffected()
		}
		return n
	}
	mine := `WHERE id = ?1 AND owner = ?2`
	end := func() bool { return execute(fmt.Sprintf(`DELETE FROM %s %s`, s.batches(), mine), p.batch, owner) > 0 }
	switch {
	case how == toMark:
		held = execute(fmt.Sprintf(`UPDATE %s SET owner = owner %s`, s.batches(), mine), p.batch, owner) > 0
	case p.last:
		held = end()
	default:
		element := "k.value" // a text; of several columns, JSON
		if len(s.keys) > 1 {
			element = "json(k.value)"
		}
		held = execute(fmt.Sprintf(`UPDATE %s SET keys = (SELECT json_group_array(%s) FROM json_each(keys) k WHERE NOT %s) %s`,
			s.batches(), element, s.in(s.parts("k.value"), "?3"), mine), p.batch, owner, listOf(p.keys)) > 0
	}
	switch {
	case !held || err != nil:
		return 0, false, err
	case how == toMark:
		touched = int(execute(s.markText(), listOf(p.keys)))
		if p.attempted {
			execute(fmt.Sprintf(`DELETE FROM %s WHERE %s`, identifier(s.state), s.in(each(len(s.keys), "key#"), "?1")), listOf(p.keys))
		}
		if p.last && !doubt && touched == len(p.keys) {
			end()
		}
	case how == toFail:
		err = s.note(ctx, conn, p)
	case p.attempted && len(p.keys) > 0: // their crashes are over
		beside := fmt.Sprintf("%s WHERE %s AND attempts", identifier(s.state), s.in(each(len(s.keys), "key#"), "?1"))
		execute("DELETE FROM "+beside+" = 0", listOf(p.keys))
		execute("UPDATE "+strings.Replace(beside, " WHERE ", " SET crashes = 0 WHERE ", 1)+" > 0", listOf(p.keys))
	}
	return touched, held, err
}

func (s *sqliteTable) note(ctx context.Context, conn *sql.Conn, failed part) error {
	list := make([][]any, len(failed.keys))
	for i, key := range failed.keys {
		for _, text := range key {
			list[i] = append(list[i], text)
		}
		list[i] = append(list[i], failed.failures[i].delay.Microseconds(), failed.failures[i].text)
	}
	encoded, err := json.Marshal(list)
	if err != nil {
		return err
	}
	n := len(s.keys)
	columns := make([]string, n)
	for i := range columns {
		columns[i] = fmt.Sprintf("value ->> %d AS courier_key%d", i, i+1)
	}
	_, err = conn.ExecContext(ctx, fmt.Sprintf(`INSERT INTO %s (%s, attempts, available_at, last_error, order_key)
		SELECT %s, 1, ?2 + courier_f.courier_delay, courier_f.courier_error, %s
		FROM (SELECT %s, value ->> %d AS courier_delay, value ->> %d AS courier_error FROM json_each(?1)) AS courier_f JOIN %s AS t ON %s
		WHERE %s
		ON CONFLICT (%s) DO UPDATE SET attempts = attempts + 1, available_at = excluded.available_at, last_error = excluded.last_error, order_key = excluded.order_key, crashes = 0`,
		identifier(s.state), each(n, "key#"), s.keyRefs(), s.orderText(), strings.Join(columns, ", "), n, n+1, identifier(s.name), s.joined("courier_f"),
		s.pending, each(n, "key#")), string(encoded), s.now().UnixMicro())
	return err
}

func (s *sqliteTable) renew(ctx context.Context, conn *sql.Conn, owner string, batches []int64, lease time.Duration) ([]int64, error) {
	rows, err := conn.QueryContext(ctx, fmt.Sprintf(`UPDATE %s SET until = ?3 WHERE id IN (SELECT value FROM json_each(?1)) AND owner = ?2 RETURNING id`, s.batches()),
		listOfNumbers(batches), owner, s.now().Add(lease).UnixMicro())
	return numbers(rows, err)
}

func (s *sqliteTable) pendingOf(ctx context.Context, conn *sql.Conn, keys [][]string) (n int, err error) {
	err = conn.QueryRowContext(ctx, s.pendingText()+" AND "+s.in(s.keyRefs(), "?1"), listOf(keys)).Scan(&n)
	return n, err
}

func (s *sqliteTable) markIn(ctx context.Context, t queries, owner string, p part) (int, error) {
	held, err := t(ctx, fmt.Sprintf(`SELECT id FROM %s WHERE id = ?1 AND owner = ?2`, s.batches()), p.batch, owner)
	if err != nil || len(held) == 0 {
		return 0, err
	}
	done, err := t(ctx, s.markText()+" AND "+s.pending+" RETURNING 1", listOf(p.keys))
	if err == nil && p.attempted {
		_, err = t(ctx, fmt.Sprintf(`DELETE FROM %s WHERE %s RETURNING 1`, identifier(s.state), s.in(each(len(s.keys), "key#"), "?1")), listOf(p.keys))
	}
	return len(done), err
}

func (s *sqliteTable) pendingIn(ctx context.Context, t queries, owner string, p part) (names []string, mine bool, err error) {
	held, err := t(ctx, fmt.Sprintf(`SELECT id FROM %s WHERE id = ?1 AND owner = ?2`, s.batches()), p.batch, owner)
	if err != nil {
		return nil, false, err
	}
	lists, err := t(ctx, fmt.Sprintf(`SELECT json_array(%s) FROM %s AS t WHERE %s AND %s`, s.texts(), identifier(s.name), s.in(s.keyRefs(), "?1"), s.pending), listOf(p.keys))
	if err != nil {
		return nil, false, err
	}
	names, err = namesFrom(lists)
	return names, len(held) > 0, err
}

func (s *sqliteTable) lag(ctx context.Context, conn *sql.Conn) (due int, seconds float64, err error) {
	age := s.age
	if age == "" {
		age = "0"
	}
	err = conn.QueryRowContext(ctx, fmt.Sprintf(`SELECT count(*), COALESCE(max(%s), 0) + 0.0 FROM %s AS t WHERE %s`, age, identifier(s.name), s.due(sqliteWaits, sqliteWaits)), s.now().UnixMicro()).Scan(&due, &seconds)
	return due, seconds, err
}

func (s *sqliteTable) check(ctx context.Context, conn *sql.Conn) error {
	_, err := conn.ExecContext(ctx, "EXPLAIN "+s.markText(), "[]")
	return err
}

func (s *sqliteTable) plan(ctx context.Context, conn *sql.Conn) (lines []string, err error) {
	rows, err := conn.QueryContext(ctx, "EXPLAIN QUERY PLAN "+s.fetchText(), s.fetchArgs(claim{limit: 1000}, 1, 0)...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // what it has to say, Err said
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			return nil, err
		}
		lines = append(lines, detail)
	}
	return lines, rows.Err()
}

func (s *sqliteTable) slow(ctx context.Context, conn *sql.Conn) (string, error) {
	lines, err := s.plan(ctx, conn)
	for _, line := range lines {
		switch {
		case strings.Contains(line, "TEMP B-TREE FOR ORDER BY"):
			return "it sorts all rows that are pending", err
		case line == "SCAN t" && s.mark != "":
			return "it reads the whole table", err
		}
	}
	return "", err
}
