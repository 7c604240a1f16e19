package couriersql

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/erfanmomeniii/courier"
)

// mysqlTable is a [tableStore] in MySQL and MariaDB. Its statements have no parameters: with
// them, each would be prepared first, and texts would be taken for what the character set of
// the connection says.
type mysqlTable struct {
	tableText
	source string // the user's table, quoted, with its schema
	index  string // the unique index of the key, quoted
	types  []mysqlType
}

// mysqlType is the type of a column of a key.
type mysqlType struct {
	kind    string // in the tables beside the user's
	as      string // what makes a value of the text %s, which the index of the column finds
	length  int    // of a text
	hex     bool   // a text is in hexadecimal in lists
	letters bool   // characters, of which the collation may take different ones for equal
	bytes   bool
}

// mysqlTurn is the row among the leases that relays lock which fetch, one after the other, as
// each has to see what the others have leased.
const mysqlTurn = 1

func newMySQLTable(ctx context.Context, conn *sql.Conn, text tableText) (tableStore, error) {
	m := &mysqlTable{tableText: text}
	var database sql.NullString
	var commits, faithful bool
	if err := conn.QueryRowContext(ctx, `SELECT DATABASE(), @@SESSION.autocommit, `+mysqlFaithful).Scan(&database, &commits, &faithful); err != nil {
		return nil, err
	}
	if !faithful {
		return nil, errConverts
	}
	if !commits {
		return nil, &courier.ConfigError{Field: "db", Problem: "has connections with autocommit = 0, on which a count would open a transaction that nobody ends: leave autocommit out of the DSN and of init_connect"}
	}
	if m.schema == "" {
		m.schema = database.String
	}
	var kind string
	var transactional sql.NullBool
	switch err := conn.QueryRowContext(ctx, `SELECT TABLE_SCHEMA, TABLE_NAME, TABLE_TYPE, (SELECT TRANSACTIONS = 'YES' FROM information_schema.ENGINES e WHERE e.ENGINE = t.ENGINE)
		FROM information_schema.TABLES t WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ? ORDER BY TABLE_NAME = CAST(? AS BINARY) DESC LIMIT 1`,
		m.schema, m.name, m.name).Scan(&m.schema, &m.name, &kind, &transactional); {
	case err == sql.ErrNoRows:
		return nil, &courier.ConfigError{Field: "TableConfig.Table", Problem: fmt.Sprintf("%q is not a table of the database that this user sees: pass its name as the catalogue has it, perhaps with its database and a dot before it", text.name)}
	case err != nil:
		return nil, err
	case strings.HasSuffix(kind, "VIEW"):
		return nil, &courier.ConfigError{Field: "TableConfig.Table", Problem: fmt.Sprintf("%q is a view: pass the name of a table", text.name)}
	case !transactional.Bool:
		return nil, &courier.ConfigError{Field: "TableConfig.Table", Problem: fmt.Sprintf("%q is of an engine without transactions, in which a mark could be made by half: ALTER TABLE … ENGINE = InnoDB", text.name)}
	case strings.ContainsAny(m.schema, ".`'\\"):
		return nil, &courier.ConfigError{Field: "TableConfig.Table", Problem: fmt.Sprintf("is in the database %q, beside which no tables can be made, for the dot or quote in its name", m.schema)}
	}
	m.source = m.dialect.identifier(m.schema) + "." + m.dialect.identifier(m.name)
	kinds, nullable, err := kindsOf(ctx, conn, `SELECT COLUMN_NAME, DATA_TYPE, IS_NULLABLE = 'NO' FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ?`, m.schema, m.name)
	if err != nil {
		return nil, err
	}
	index, err := m.unique(ctx, conn)
	if err != nil {
		return nil, err
	}
	if err := text.fitKey(kinds, nullable, index != ""); err != nil {
		return nil, err
	}
	m.index = m.dialect.identifier(index)
	for _, name := range m.keys {
		if err := m.addType(ctx, conn, name); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// unique is the name of an index on all rows that has no columns but those of the key, in full;
// "" if there is none.
func (m *mysqlTable) unique(ctx context.Context, conn *sql.Conn) (name string, err error) {
	rows, err := conn.QueryContext(ctx, `SELECT INDEX_NAME, coalesce(COLUMN_NAME, ''), SUB_PART IS NULL FROM information_schema.STATISTICS
		WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ? AND NOT NON_UNIQUE`, m.schema, m.name)
	if err != nil {
		return "", err
	}
	defer func() { _ = rows.Close() }() // what it has to say, Err said
	fits := make(map[string]bool)
	for rows.Next() {
		var index, column string
		var whole bool
		if err := rows.Scan(&index, &column, &whole); err != nil {
			return "", err
		}
		before, met := fits[index]
		fits[index] = (before || !met) && whole && slices.Contains(m.keys, column)
	}
	for index, fit := range fits {
		if fit && (name == "" || index == "PRIMARY") {
			name = index
		}
	}
	return name, rows.Err()
}

func (m *mysqlTable) addType(ctx context.Context, conn *sql.Conn, name string) error {
	var data, kind, characters, collation string
	var length int
	if err := conn.QueryRowContext(ctx, `SELECT DATA_TYPE, `+mysqlKind+`, coalesce(CHARACTER_SET_NAME, ''), coalesce(COLLATION_NAME, ''), coalesce(CHARACTER_MAXIMUM_LENGTH, 0)
		FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ? AND COLUMN_NAME = ?`, m.schema, m.name, name).
		Scan(&data, &kind, &characters, &collation, &length); err != nil {
		return err
	}
	t := mysqlType{kind: kind, length: 80}
	switch data {
	case "tinyint", "smallint", "mediumint", "int", "bigint", "year":
		t.as = "CAST(%s AS SIGNED)"
		if strings.HasSuffix(kind, "unsigned") {
			t.as = "CAST(%s AS UNSIGNED)"
		}
	case "decimal", "date", "datetime", "time", "uuid", "inet4", "inet6":
		cast, _, _ := strings.Cut(kind, " ") // without UNSIGNED
		t.as = "CAST(%s AS " + cast + ")"
	case "char", "varchar", "enum", "set":
		t.kind = fmt.Sprintf("varchar(%d) CHARACTER SET %s COLLATE %s", length, characters, collation)
		t.as = fmt.Sprintf("CONVERT(CONVERT(UNHEX(%%s) USING utf8mb4) USING %s) COLLATE %s", characters, collation)
		t.length, t.hex, t.letters = 8*length, true, true
	case "binary", "varbinary":
		t.kind = fmt.Sprintf("varbinary(%d)", length)
		t.as, t.length, t.hex, t.bytes = "UNHEX(%s)", 2*length, true, true
	default:
		return &courier.ConfigError{Field: "TableConfig.Key", Problem: fmt.Sprintf("has the column %s of %s, which has the type %s: in MySQL a key is of whole or decimal numbers, characters, bytes, DATE, DATETIME or TIME, whose text is the same for everybody and which an index has in full", name, m.name, data)}
	}
	m.types = append(m.types, t)
	return nil
}

func (m *mysqlTable) tables(d *database) {
	d.schema, d.table, d.dlq = m.schema, m.schema+"."+m.state, m.schema+"."+m.state+"_batches"
	d.versioned = "table:" + m.state
	d.migrations = folder(mysqlMigrations, "migrations/mysql_table")
	d.shapes = []shape{{false, nil}, {true, []column{
		{name: "id", kind: "BIGINT", key: true}, {name: "owner", kind: "VARBINARY(255)"}, {name: "until", kind: "BIGINT"}, {name: "key_list", kind: "LONGTEXT"}, {name: "order_keys", kind: "LONGTEXT"},
	}}}
	keys := make([]string, len(m.types))
	for i, t := range m.types {
		keys[i] = fmt.Sprintf("key%d %s NOT NULL", i+1, t.kind)
		kind, _, _ := strings.Cut(t.kind, " CHARACTER SET")
		d.shapes[0].columns = append(d.shapes[0].columns, column{name: fmt.Sprintf("key%d", i+1), kind: strings.ToUpper(kind), key: true})
	}
	d.shapes[0].columns = append(d.shapes[0].columns,
		column{name: "attempts", kind: "INT"}, column{name: "available_at", kind: "BIGINT"},
		column{name: "last_error", kind: "MEDIUMTEXT"}, column{name: "order_key", kind: "VARBINARY(32)"})
	d.names = strings.NewReplacer("{schema}", d.schemaText(), "{state}", m.stateTable(), "{batches}", m.batches(),
		"{versions}", m.dialect.identifier(m.schema)+".courier_migrations", "{keys}", strings.Join(keys, ",\n\t"), "{key_names}", each(len(keys), "key#"))
}

func (m *mysqlTable) stateTable() string {
	return m.dialect.identifier(m.schema) + "." + m.dialect.identifier(m.state)
}

func (m *mysqlTable) batches() string {
	return m.dialect.identifier(m.schema) + "." + m.dialect.identifier(m.state+"_batches")
}

// plainKey reports a text that needs no hexadecimal: of numbers, times and the like.
func plainKey(text string) bool {
	for _, c := range []byte(text) {
		switch {
		case c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte("-+.: ", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// list is keys as a literal with JSON, which holds nothing that a character set, or the modes
// of a session, take for something else. more are further elements of each row.
func (m *mysqlTable) list(keys [][]string, more func(i int) []string) (string, error) {
	size := len("'[]'")
	for _, key := range keys {
		size += len("[],")
		for _, text := range key {
			size += 2*len(text) + len(`"",`)
		}
	}
	list := append(make([]byte, 0, size), "'["...)
	for i, key := range keys {
		if i > 0 {
			list = append(list, ',')
		}
		list = append(list, '[')
		for j, text := range key {
			if j > 0 {
				list = append(list, ',')
			}
			list = append(list, '"')
			switch {
			case m.types[j].hex:
				list = hex.AppendEncode(list, []byte(text))
			case plainKey(text):
				list = append(list, text...)
			default:
				return "", fmt.Errorf("the key %q is no text of the type %s", nameOf(key), m.types[j].kind)
			}
			list = append(list, '"')
		}
		if more != nil {
			for _, text := range more(i) {
				list = append(append(append(list, `,"`...), text...), '"')
			}
		}
		list = append(list, ']')
	}
	return string(append(list, "]'"...)), nil
}

// listed is a list as a relation k with columns courier_v1 and on, and the given ones.
func (m *mysqlTable) listed(list, k string, more ...string) string {
	columns := make([]string, len(m.types), len(m.types)+len(more))
	for i, t := range m.types {
		kind := fmt.Sprintf("VARCHAR(%d)", t.length)
		if t.length > 1000 { // of which a row may not have many
			kind = "TEXT"
		}
		columns[i] = fmt.Sprintf("courier_v%d %s PATH '$[%d]'", i+1, kind, i)
	}
	for i, column := range more {
		columns = append(columns, fmt.Sprintf("%s PATH '$[%d]'", column, len(m.types)+i))
	}
	return fmt.Sprintf("JSON_TABLE(%s, '$[*]' COLUMNS (%s)) AS %s", list, strings.Join(columns, ", "), k)
}

// value is the i-th column of the key in an element of a list.
func (m *mysqlTable) value(i int, k string) string {
	return fmt.Sprintf(m.types[i].as, fmt.Sprintf("%s.courier_v%d", k, i+1))
}

// text is the text of the i-th column of the key of a row t, in bytes of UTF-8.
func (m *mysqlTable) text(i int) string {
	name := "t." + m.dialect.identifier(m.keys[i])
	switch {
	case m.types[i].bytes:
		return name
	case strings.HasSuffix(m.types[i].as, "SIGNED)"): // of a ZEROFILL, without the zeros
		name = fmt.Sprintf(m.types[i].as, name)
	}
	return "CAST(CONVERT(" + name + " USING utf8mb4) AS BINARY)"
}

func (m *mysqlTable) texts(separator, pattern string) string {
	list := make([]string, len(m.keys))
	for i := range list {
		list[i] = fmt.Sprintf(pattern, m.text(i))
	}
	return strings.Join(list, separator)
}

// among has a statement read the rows t of the user's table that are in a list k. They are
// found by the collation of the key, and are those of the list by their bytes. It looks in the
// index of the key also where there are few rows: to read them all would be to wait for those
// that others have not committed.
func (m *mysqlTable) among(list string, more ...string) string {
	var on []string
	for i, name := range m.keys {
		on = append(on, fmt.Sprintf("t.%s = %s", m.dialect.identifier(name), m.value(i, "courier_k")))
		if m.types[i].letters {
			on = append(on, fmt.Sprintf("%s = UNHEX(courier_k.courier_v%d)", m.text(i), i+1))
		}
	}
	return fmt.Sprintf("%s STRAIGHT_JOIN %s AS t FORCE INDEX (%s) ON %s", m.listed(list, "courier_k", more...), m.source, m.index, strings.Join(on, " AND "))
}

// notedIn has a statement read the failures f of the rows in a list.
func (m *mysqlTable) notedIn(list string) string {
	on := make([]string, len(m.keys))
	for i := range on {
		on[i] = fmt.Sprintf("f.key%d = %s", i+1, m.value(i, "courier_k"))
	}
	return fmt.Sprintf("%s STRAIGHT_JOIN %s AS f FORCE INDEX (PRIMARY) ON %s", m.listed(list, "courier_k"), m.stateTable(), strings.Join(on, " AND "))
}

// rows has a statement read the rows t that are due, but those of leases on a condition.
func (m *mysqlTable) rows(leases string) string {
	var values, free, same []string
	for i, name := range m.keys {
		values = append(values, fmt.Sprintf("%s AS courier_key%d", m.value(i, "k"), i+1))
		same = append(same, fmt.Sprintf("courier_l.courier_key%d = t.%s", i+1, m.dialect.identifier(name)))
		free = append(free, fmt.Sprintf("courier_l.courier_key%d IS NULL", i+1))
	}
	text := fmt.Sprintf(`FROM %s AS t
	LEFT JOIN (SELECT DISTINCT %s FROM %s AS b JOIN %s WHERE b.id > %d%s) AS courier_l ON %s
	WHERE %s AND %s
		AND NOT EXISTS (SELECT 1 FROM %s AS f WHERE %s AND f.available_at > %s)`,
		m.source, strings.Join(values, ", "), m.batches(), m.listed("b.key_list", "k"), mysqlTurn, leases, strings.Join(same, " AND "),
		m.pending, free[0],
		m.stateTable(), m.noted(), mysqlNow)
	if m.orderKey != "" {
		text += fmt.Sprintf(`
		AND NOT EXISTS (SELECT 1 FROM %s AS f WHERE f.order_key <> '' AND f.order_key = %s AND f.available_at > %s%s AND EXISTS (SELECT 1 FROM %s AS t WHERE %s AND %s))`,
			m.stateTable(), m.orderText(), mysqlNow, m.behind, m.source, m.noted(), m.pending)
	}
	return text
}

// orderText is the order key, by its hash: so it is compared by its bytes, and fits into an
// index.
func (m *mysqlTable) orderText() string {
	if m.orderKey == "" {
		return "''"
	}
	return fmt.Sprintf("IF(coalesce(length(%[1]s), 0) = 0, '', UNHEX(SHA2(CONVERT(%[1]s USING utf8mb4), 256)))", "("+m.orderKey+")")
}

func (m *mysqlTable) fetchText() string { return m.fetching("?", "?", "?", "?") }

// fetching reads rows that are due. Leases that are over were deleted before: one that is
// there all the same is being settled at this moment. The owner is one of n relays that share
// the order keys, and has a place from 0.
func (m *mysqlTable) fetching(limit, owner, n, place string) string {
	others := ""
	switch {
	case m.strict:
		others = fmt.Sprintf(`
		AND NOT EXISTS (SELECT 1 FROM %s AS b WHERE b.id > %d AND b.owner <> %s)`, m.batches(), mysqlTurn, owner)
	case m.apart():
		others = fmt.Sprintf(`
		AND %[1]s NOT IN (SELECT UNHEX(k.order_key) FROM %[2]s AS b JOIN JSON_TABLE(b.order_keys, '$[*]' COLUMNS (order_key VARCHAR(64) PATH '$')) AS k WHERE b.id > %[3]d AND b.owner <> %[4]s)
		AND (%[1]s = '' OR CRC32(%[1]s) MOD %[5]s = %[6]s)`, m.orderText(), m.batches(), mysqlTurn, owner, n, place)
	}
	columns := strings.Join(m.columns, ", ")
	if n, err := strconv.ParseInt(limit, 10, 64); err == nil && m.most > 0 {
		columns = strings.ReplaceAll(columns, "{share}", strconv.FormatInt(m.most/n, 10))
	}
	return fmt.Sprintf(`SELECT coalesce((SELECT f.attempts FROM %s AS f WHERE %s), 0), HEX(%s), %s, %s
	%s%s
	ORDER BY %s LIMIT %s`,
		m.stateTable(), m.noted(), m.orderText(), m.texts(", ", "%s"), columns, m.rows(""), others, m.orderBy(), limit)
}

// ownerText is an owner as a literal.
func ownerText(owner string) string { return "X'" + hex.EncodeToString([]byte(owner)) + "'" }

func numbersText(numbers []int64) string {
	list := make([]string, len(numbers))
	for i, n := range numbers {
		list[i] = strconv.FormatInt(n, 10)
	}
	return strings.Join(list, ", ")
}

func (m *mysqlTable) markText() string { return m.marking("?") }

func (m *mysqlTable) marking(list string) string {
	if m.mark == "" {
		return "DELETE t FROM " + m.among(list)
	}
	mark := m.mark
	if m.now != nil {
		mark = strings.ReplaceAll(mark, "{now}", strconv.FormatInt(m.now().UnixMicro(), 10))
	}
	return fmt.Sprintf("UPDATE %s SET %s", m.among(list), mark)
}

func (m *mysqlTable) pendingText() string {
	return fmt.Sprintf(`SELECT count(*) FROM %s AS t WHERE %s`, m.source, m.pending)
}

func (m *mysqlTable) pendingAmong(list string) string {
	return fmt.Sprintf(`SELECT count(*) FROM %s WHERE %s`, m.among(list), m.pending)
}

// mine is the lease of an owner.
func (m *mysqlTable) mine(batch int64, owner string) string {
	return fmt.Sprintf(`%s WHERE id = %d AND owner = %s`, m.batches(), batch, ownerText(owner))
}

func (m *mysqlTable) fetch(ctx context.Context, conn *sql.Conn, c claim, read func(row *handedOut, scan func(dest ...any) error) error) (id int64, err error) {
	committing, err := mysqlIsolated(ctx, conn, func(tx *sql.Tx) (repeat bool, err error) {
		id = 0
		if err := m.takeTurn(ctx, tx); err != nil {
			return true, err
		}
		if err := m.forgetting(ctx, tx, c.owner, c.known); err != nil {
			return true, err
		}
		n, place, others := 1, 0, false
		if m.apart() {
			if err := tx.QueryRowContext(ctx, fmt.Sprintf(`SELECT count(*), coalesce(sum(owner < %[1]s), 0), EXISTS (SELECT 1 FROM %[2]s WHERE id > %[3]d AND owner <> %[1]s)
				FROM (SELECT owner FROM %[2]s WHERE id > %[3]d AND key_list = '[]' UNION SELECT %[1]s) AS o`,
				ownerText(c.owner), m.batches(), mysqlTurn)).Scan(&n, &place, &others); err != nil {
				return true, err
			}
		}
		rows, err := tx.QueryContext(ctx, m.fetching(strconv.Itoa(c.limit), ownerText(c.owner), strconv.Itoa(n), strconv.Itoa(place)))
		if err != nil {
			return false, err
		}
		keys, orderKeys, err := m.readAll(rows, read, nil, func([]string) error { return nil })
		if err != nil {
			return false, err
		}
		lease := func(lasts time.Duration, keys [][]string, orderKeys []string) error {
			list, err := m.list(keys, nil)
			if err != nil {
				return err
			}
			result, err := tx.ExecContext(ctx, fmt.Sprintf(`INSERT INTO %s (owner, until, key_list, order_keys) VALUES (%s, %s + %d, %s, '%s')`,
				m.batches(), ownerText(c.owner), mysqlNow, lasts.Microseconds(), list, jsonStrings(orderKeys)))
			if err == nil {
				id, err = result.LastInsertId()
			}
			return err
		}
		if others {
			if err := lease(c.sign, nil, []string{}); err != nil {
				return false, err
			}
			id = 0
		}
		if len(keys) > 0 {
			err = lease(c.lease, keys, orderKeys)
		}
		return false, err
	})
	if err != nil && !committing {
		id = 0 // which is taken back
	}
	return id, err
}

// takeTurn locks the turn for as long as the transaction lasts.
func (m *mysqlTable) takeTurn(ctx context.Context, tx *sql.Tx) error {
	var turn int
	lock := fmt.Sprintf(`SELECT id FROM %s WHERE id = %d FOR UPDATE`, m.batches(), mysqlTurn)
	err := tx.QueryRowContext(ctx, lock).Scan(&turn)
	if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if _, err := tx.ExecContext(ctx, fmt.Sprintf(`INSERT IGNORE INTO %s (id, owner, until, key_list, order_keys) VALUES (%d, '', 0, '[]', '[]')`, m.batches(), mysqlTurn)); err != nil {
		return err
	}
	return tx.QueryRowContext(ctx, lock).Scan(&turn)
}

// forgetting ends leases that are over or unknown to their owner, but those that somebody
// has locked, who is settling them.
func (m *mysqlTable) forgetting(ctx context.Context, tx *sql.Tx, owner string, known []int64) error {
	unknown := "owner = " + ownerText(owner)
	if len(known) > 0 {
		unknown += " AND id NOT IN (" + numbersText(known) + ")"
	}
	text := fmt.Sprintf(`SELECT id FROM %s WHERE id > %d AND (until <= %s OR %s)`, m.batches(), mysqlTurn, mysqlNow, unknown)
	ended, err := numbers(tx.QueryContext(ctx, text))
	if err != nil || len(ended) == 0 {
		return err
	}
	ended, err = numbers(tx.QueryContext(ctx, fmt.Sprintf(`%s AND id IN (%s) FOR UPDATE SKIP LOCKED`, text, numbersText(ended))))
	if err != nil || len(ended) == 0 {
		return err
	}
	_, err = tx.ExecContext(ctx, fmt.Sprintf(`DELETE FROM %s WHERE id IN (%s)`, m.batches(), numbersText(ended)))
	return err
}

func (m *mysqlTable) forget(ctx context.Context, conn *sql.Conn, owner string, known []int64) error {
	_, err := mysqlIsolated(ctx, conn, func(tx *sql.Tx) (bool, error) {
		if err := m.takeTurn(ctx, tx); err != nil {
			return true, err
		}
		return true, m.forgetting(ctx, tx, owner, known)
	})
	return err
}

func (m *mysqlTable) settle(ctx context.Context, conn *sql.Conn, owner string, how settlement, parts []part, doubt bool) (touched int, lost []int, err error) {
	_, err = mysqlIsolated(ctx, conn, func(tx *sql.Tx) (bool, error) {
		touched, lost = 0, nil
		for i, part := range parts {
			n, held, err := m.settlePart(ctx, tx, owner, how, part, doubt)
			if err != nil {
				return true, err
			}
			if touched += n; !held {
				lost = append(lost, i)
			}
		}
		return true, nil
	})
	return touched, lost, err
}

func (m *mysqlTable) settlePart(ctx context.Context, tx *sql.Tx, owner string, how settlement, p part, doubt bool) (touched int, held bool, err error) {
	end := func() error {
		_, err := tx.ExecContext(ctx, "DELETE FROM "+m.mine(p.batch, owner))
		return err
	}
	mine, err := numbers(tx.QueryContext(ctx, "SELECT id FROM "+m.mine(p.batch, owner)+" FOR UPDATE"))
	if err != nil || len(mine) == 0 {
		return 0, false, err
	}
	if len(p.keys) == 0 {
		return 0, true, end()
	}
	list, err := m.list(p.keys, nil)
	if err != nil {
		return 0, true, err
	}
	switch how {
	case toMark:
		if touched, err = m.markAll(ctx, tx, p, list); err == nil && p.last && !doubt && touched == len(p.keys) {
			err = end()
		}
		return touched, true, err
	case toFail:
		if err := m.notes(ctx, tx, p); err != nil {
			return 0, true, err
		}
	}
	if p.last {
		return 0, true, end()
	}
	return 0, true, m.giveBack(ctx, tx, p)
}

// markAll marks rows, and returns how many of them are pending no more. The database tells
// how many it has changed, or, if the DSN has clientFoundRows, found: both may be others.
func (m *mysqlTable) markAll(ctx context.Context, tx *sql.Tx, p part, list string) (touched int, err error) {
	result, err := tx.ExecContext(ctx, m.marking(list))
	if err != nil {
		return 0, err
	}
	if m.mark == "" {
		n, err := result.RowsAffected()
		touched = int(n)
		if err != nil {
			return 0, err
		}
	} else {
		var left int
		if err := tx.QueryRowContext(ctx, m.pendingAmong(list)).Scan(&left); err != nil {
			return 0, err
		}
		touched = len(p.keys) - left
	}
	if p.attempted {
		_, err = tx.ExecContext(ctx, "DELETE f FROM "+m.notedIn(list))
	}
	return touched, err
}

// giveBack takes rows out of a lease that this transaction has locked.
func (m *mysqlTable) giveBack(ctx context.Context, tx *sql.Tx, p part) error {
	var list string
	if err := tx.QueryRowContext(ctx, fmt.Sprintf(`SELECT key_list FROM %s WHERE id = %d`, m.batches(), p.batch)).Scan(&list); err != nil {
		return err
	}
	keys, err := m.keysOf(list)
	if err != nil {
		return err
	}
	gone := make(map[string]bool, len(p.keys))
	for _, key := range p.keys {
		gone[nameOf(key)] = true
	}
	if list, err = m.list(slices.DeleteFunc(keys, func(key []string) bool { return gone[nameOf(key)] }), nil); err == nil {
		_, err = tx.ExecContext(ctx, fmt.Sprintf(`UPDATE %s SET key_list = %s WHERE id = %d`, m.batches(), list, p.batch))
	}
	return err
}

// longestNote is how much is noted of an error. A batch is one statement, for which the server
// has a limit (max_allowed_packet).
const longestNote = 4 << 10

// notes notes failures of rows that are pending.
func (m *mysqlTable) notes(ctx context.Context, tx *sql.Tx, p part) error {
	list, err := m.list(p.keys, func(i int) []string {
		f := p.failures[i]
		return []string{strconv.FormatInt(f.delay.Microseconds(), 10), hex.EncodeToString([]byte(strings.ToValidUTF8(f.text[:min(len(f.text), longestNote)], "")))}
	})
	if err != nil {
		return err
	}
	n := len(m.keys)
	state := m.dialect.identifier(m.state)
	_, err = tx.ExecContext(ctx, fmt.Sprintf(`INSERT INTO %s (%s, attempts, available_at, last_error, order_key)
SELECT %s, 1, %s + courier_k.courier_delay, CONVERT(UNHEX(courier_k.courier_error) USING utf8mb4), %s
FROM %s WHERE %s
ON DUPLICATE KEY UPDATE attempts = %[8]s.attempts + 1, available_at = VALUES(available_at), last_error = VALUES(last_error), order_key = VALUES(order_key)`,
		m.stateTable(), each(n, "key#"), m.keyRefs(), mysqlNow, m.orderText(),
		m.among(list, "courier_delay BIGINT", "courier_error LONGTEXT"), m.pending, state))
	return err
}

func (m *mysqlTable) note(ctx context.Context, conn *sql.Conn, failed part) error {
	_, err := mysqlIsolated(ctx, conn, func(tx *sql.Tx) (bool, error) { return true, m.notes(ctx, tx, failed) })
	return err
}

func (m *mysqlTable) renew(ctx context.Context, conn *sql.Conn, owner string, batches []int64, lease time.Duration) (held []int64, err error) {
	_, err = mysqlIsolated(ctx, conn, func(tx *sql.Tx) (bool, error) {
		mine := fmt.Sprintf(`id IN (%s) AND owner = %s`, numbersText(batches), ownerText(owner))
		if _, err := tx.ExecContext(ctx, fmt.Sprintf(`UPDATE %s SET until = %s + %d WHERE %s`, m.batches(), mysqlNow, lease.Microseconds(), mine)); err != nil {
			return true, err
		}
		held, err = numbers(tx.QueryContext(ctx, fmt.Sprintf(`SELECT id FROM %s WHERE %s`, m.batches(), mine)))
		return true, err
	})
	return held, err
}

func (m *mysqlTable) pendingOf(ctx context.Context, conn *sql.Conn, keys [][]string) (n int, err error) {
	list, err := m.list(keys, nil)
	if err == nil {
		err = conn.QueryRowContext(ctx, m.pendingAmong(list)).Scan(&n)
	}
	return n, err
}

// markIn locks the lease against its end, but not against others of the owner.
func (m *mysqlTable) markIn(ctx context.Context, t queries, owner string, p part) (int, error) {
	held, err := t(ctx, "SELECT id FROM "+m.mine(p.batch, owner)+" LOCK IN SHARE MODE")
	if err != nil || len(held) == 0 {
		return 0, err
	}
	list, err := m.list(p.keys, nil)
	if err != nil {
		return 0, err
	}
	pending, err := t(ctx, fmt.Sprintf(`SELECT 1 FROM %s WHERE %s FOR UPDATE`, m.among(list), m.pending))
	if err != nil || len(pending) < len(p.keys) { // others were quicker: all is taken back
		return len(pending), err
	}
	if _, err := t(ctx, m.marking(list)); err != nil {
		return 0, err
	}
	left, err := t(ctx, m.pendingAmong(list))
	if err != nil {
		return 0, err
	}
	if p.attempted {
		if _, err := t(ctx, "DELETE f FROM "+m.notedIn(list)); err != nil {
			return 0, err
		}
	}
	n, err := strconv.Atoi(left[0])
	return len(pending) - n, err
}

func (m *mysqlTable) pendingIn(ctx context.Context, t queries, owner string, p part) (names []string, mine bool, err error) {
	held, err := t(ctx, "SELECT id FROM "+m.mine(p.batch, owner))
	if err != nil {
		return nil, false, err
	}
	list, err := m.list(p.keys, nil)
	if err != nil {
		return nil, false, err
	}
	found, err := t(ctx, fmt.Sprintf(`SELECT concat_ws(',', %s) FROM %s WHERE %s`, m.texts(", ", "hex(%s)"), m.among(list), m.pending))
	if err != nil {
		return nil, false, err
	}
	for _, texts := range found {
		var key []string
		for text := range strings.SplitSeq(texts, ",") {
			text, err := hex.DecodeString(text)
			if err != nil {
				return nil, false, err
			}
			key = append(key, string(text))
		}
		names = append(names, nameOf(key))
	}
	return names, len(held) > 0, nil
}

func (m *mysqlTable) lag(ctx context.Context, conn *sql.Conn) (due int, seconds float64, err error) {
	age := m.age
	if age == "" {
		age = "0"
	}
	err = conn.QueryRowContext(ctx, fmt.Sprintf(`SELECT count(*), coalesce(max(%s), 0) + 0.0 %s`, age, m.rows(" AND b.until > "+mysqlNow))).Scan(&due, &seconds)
	return due, seconds, err
}

func (m *mysqlTable) check(ctx context.Context, conn *sql.Conn) error {
	rows, err := conn.QueryContext(ctx, "EXPLAIN "+m.marking("'[]'"))
	if err != nil {
		return err
	}
	return rows.Close()
}

// explained is what the database tells of the tables that a fetch of so many rows reads.
func (m *mysqlTable) explained(ctx context.Context, conn *sql.Conn, limit string) (tables []map[string]string, lines []string, err error) {
	rows, err := conn.QueryContext(ctx, "EXPLAIN FORMAT=TRADITIONAL "+m.fetching(limit, "''", "1", "0"))
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = rows.Close() }() // what it has to say, Err said
	columns, err := rows.Columns()
	if err != nil {
		return nil, nil, err
	}
	values, dest := make([]sql.NullString, len(columns)), make([]any, len(columns))
	for i := range values {
		dest[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(dest...); err != nil {
			return nil, nil, err
		}
		table := make(map[string]string)
		var line []string
		for i, name := range columns {
			if table[name] = values[i].String; values[i].Valid && values[i].String != "" {
				line = append(line, name+": "+values[i].String)
			}
		}
		tables, lines = append(tables, table), append(lines, strings.Join(line, ", "))
	}
	return tables, lines, rows.Err()
}

func (m *mysqlTable) plan(ctx context.Context, conn *sql.Conn) ([]string, error) {
	_, lines, err := m.explained(ctx, conn, "1000")
	return lines, err
}

// slow asks for a fetch of one row: of more than a table has, the database does not care for
// the index that is to be had.
func (m *mysqlTable) slow(ctx context.Context, conn *sql.Conn) (why string, err error) {
	tables, _, err := m.explained(ctx, conn, "1")
	for _, table := range tables {
		switch {
		case table["table"] != "t":
		case strings.Contains(table["Extra"], "Using filesort"):
			return "it sorts all rows that are pending", err
		case m.mark == "" || table["possible_keys"] != "": // all rows are pending, or an index tells which
		case table["type"] == "ALL":
			return "it reads the whole table", err
		case table["type"] == "index":
			return "it reads the rows that are marked too, in the order of the index " + table["key"], err
		}
	}
	return "", err
}

// keysOf decodes what list has encoded.
func (m *mysqlTable) keysOf(list string) (keys [][]string, err error) {
	if err := json.Unmarshal([]byte(list), &keys); err != nil {
		return nil, err
	}
	for _, key := range keys {
		for i := range key {
			if m.types[i].hex {
				text, err := hex.DecodeString(key[i])
				if err != nil {
					return nil, err
				}
				key[i] = string(text)
			}
		}
	}
	return keys, nil
}

// mysqlTableAdvice is what to do about an error, but where the tables beside the user's are
// missing.
func mysqlTableAdvice(err error) string {
	switch code := mysqlCode(err); code {
	case 1142, 1143, 1227, 1370:
		return tableRights
	case 1217, 1451:
		return tableForeignKey
	case 1052, 1054, 1056, 1064, 1109, 1111, 1128, 1146, 1305, 1582, 1584, 1630:
		return tableSQL
	case 1048, 1062, 1264, 1265, 1292, 1365, 1366, 1406, 1411, 1441, 1690, 3140, 3141:
		return tableComputes
	case 1071:
		return "the columns of TableConfig.Key are longer together than an index of the database may be (3072 bytes): pass those of a shorter unique key"
	}
	if advice := mysqlCommonAdvice(err); advice != "" {
		return advice
	}
	if strings.Contains(err.Error(), "sql: Scan error on column") {
		return tableUnread
	}
	return ""
}
