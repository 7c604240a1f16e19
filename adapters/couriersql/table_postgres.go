package couriersql

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/erfanmomeniii/courier"
	"github.com/jackc/pgx/v5"
)

// postgresTable is a [tableStore] and [crashCounter] in PostgreSQL.
type postgresTable struct {
	tableText
	grammar grammar
	source  string   // the user's table, quoted, with its schema
	types   []string // of the key
}

const postgresTableText = `SELECT c.oid::bigint, n.nspname, c.relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE c.relname = $2 AND CASE WHEN $1 = '' THEN pg_table_is_visible(c.oid) ELSE n.nspname = $1 END AND c.relkind IN ('r', 'p', 'v', 'm', 'f')`

func newPostgresTable(ctx context.Context, conn *sql.Conn, text tableText) (tableStore, error) {
	p := &postgresTable{tableText: text, grammar: postgresGrammar()}
	var oid int64
	var kind string
	switch err := conn.QueryRowContext(ctx, postgresTableText, text.schema, text.name).Scan(&oid, &p.schema, &kind); {
	case err == sql.ErrNoRows:
		return nil, &courier.ConfigError{Field: "TableConfig.Table", Problem: fmt.Sprintf("%q is not a table of the database that this role sees: pass its name as the catalogue has it, perhaps with its schema and a dot before it", text.name)}
	case err != nil:
		return nil, err
	case kind != "r" && kind != "p":
		return nil, &courier.ConfigError{Field: "TableConfig.Table", Problem: fmt.Sprintf("%q is a view or a foreign table: pass the name of a table", text.name)}
	case strings.ContainsAny(p.schema, `."`):
		return nil, &courier.ConfigError{Field: "TableConfig.Table", Problem: fmt.Sprintf("is in the schema %q, beside which no tables can be made, for the dot or quote in its name", p.schema)}
	}
	p.source = identifier(p.schema) + "." + identifier(text.name)
	kinds, nullable, err := kindsOf(ctx, conn, `SELECT attname, format_type(atttypid, -1), attnotnull FROM pg_attribute
		WHERE attrelid = $1::bigint::oid AND attnum > 0 AND NOT attisdropped`, oid)
	if err != nil {
		return nil, err
	}
	var unique bool
	if err := conn.QueryRowContext(ctx, `SELECT EXISTS (SELECT FROM pg_index i WHERE indrelid = $1::bigint::oid AND indisunique AND indisvalid
		AND indpred IS NULL AND indexprs IS NULL AND NOT EXISTS (SELECT FROM unnest(indkey::int2[]) WITH ORDINALITY AS k(number, place)
			JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number WHERE place <= indnkeyatts AND a.attname <> ALL ($2::text[])))`,
		oid, textList(len(p.keys), func(i int) string { return p.keys[i] })).Scan(&unique); err != nil {
		return nil, err
	}
	if err := text.fitKey(kinds, nullable, unique); err != nil {
		return nil, err
	}
	for _, name := range p.keys {
		p.types = append(p.types, kinds[name])
	}
	return p, nil
}

func (p *postgresTable) tables(d *database) {
	d.schema, d.table, d.dlq = p.schema, p.schema+"."+p.state, p.schema+"."+p.state+"_batches"
	d.versioned = "table:" + p.state
	d.migrations = folder(postgresMigrations, "migrations/postgres_table")
	d.shapes = []shape{{false, nil}, {true, nil}}
	for i, kind := range p.types {
		if strings.Contains(kind, ".") { // in which schema a type is said to be depends on the path
			kind = ""
		}
		d.shapes[0].columns = append(d.shapes[0].columns, column{name: fmt.Sprintf("key%d", i+1), kind: strings.ToUpper(kind), key: true})
		d.shapes[1].columns = append(d.shapes[1].columns, column{name: fmt.Sprintf("key%d", i+1), kind: listKind(kind)})
	}
	d.shapes[0].columns = append(d.shapes[0].columns,
		column{name: "attempts", kind: "INTEGER"}, column{name: "available_at", kind: postgresTime},
		column{name: "last_error", kind: "TEXT"}, column{name: "order_key", kind: "TEXT"}, column{name: "crashes", kind: "INTEGER"})
	d.shapes[1].columns = append(d.shapes[1].columns,
		column{name: "id", kind: "BIGINT", key: true}, column{name: "owner", kind: "TEXT"}, column{name: "until", kind: postgresTime}, column{name: "alone", kind: "BOOLEAN"},
		column{name: "order_keys", kind: "TEXT[]"})
	d.names = strings.NewReplacer("{outbox}", quoted(d.table), "{state}", p.stateTable(), "{batches}", p.batches(),
		"{versions}", quoted(d.inSchema("courier_migrations")),
		"{keys}", p.eachKey("key# %s NOT NULL"), "{key_lists}", p.eachKey("key# %s[] NOT NULL"), "{as_they_are}", each(len(p.keys), "ALTER COLUMN key# SET STORAGE EXTERNAL"), "{key_names}", each(len(p.keys), "key#"), "{suspects}", p.state+"_crashes")
}

// listKind is the type of a list of a type, "" for any of any.
func listKind(kind string) string {
	if kind == "" {
		return ""
	}
	return strings.ToUpper(kind) + "[]"
}

func (p *postgresTable) stateTable() string { return identifier(p.schema) + "." + identifier(p.state) }
func (p *postgresTable) batches() string {
	return identifier(p.schema) + "." + identifier(p.state+"_batches")
}

// eachKey puts number and type of each column of the key into a pattern.
func (p *postgresTable) eachKey(pattern string) string {
	list := make([]string, len(p.types))
	for i, kind := range p.types {
		list[i] = strings.NewReplacer("#", fmt.Sprint(i+1), "%s", kind).Replace(pattern)
	}
	return strings.Join(list, ", ")
}

// lists are the columns of the key as arguments, from a number on.
func (p *postgresTable) lists(from int) string {
	list := make([]string, len(p.types))
	for i, kind := range p.types {
		list[i] = fmt.Sprintf("$%d::%s[]", from+i, kind)
	}
	return strings.Join(list, ", ")
}

// listed are the arguments for it.
func listed(keys [][]string) (args []any) {
	for column := range keys[0] {
		args = append(args, textList(len(keys), func(i int) string { return keys[i][column] }))
	}
	return args
}

// among has a statement read the rows t of the user's table that are in the lists, from
// the argument of a number on; more is a condition. Of one column it is a condition of the
// index, of several a join.
func (p *postgresTable) among(from int, more string) string {
	if len(p.keys) == 1 {
		return fmt.Sprintf("WHERE t.%s = ANY(%s) AND %s", identifier(p.keys[0]), p.lists(from), more)
	}
	return fmt.Sprintf("unnest(%s) AS courier_k(%s) WHERE %s AND %s", p.lists(from), each(len(p.keys), "courier_key#"), p.joined("courier_k"), more)
}

// failures is whether any row has failed, which is asked once and not for each row.
func (p *postgresTable) failures() string {
	return fmt.Sprintf("(SELECT EXISTS (SELECT FROM %s))", p.stateTable())
}

// due is the condition of a row that may be handed out: none of it, or of a pending row of its
// order key, is beside with the condition for which it, or its key, waits.
func (p *postgresTable) due(waits, keyWaits string) string {
	text := fmt.Sprintf(`%s
		AND (%s) NOT IN (SELECT u.* FROM %s b, unnest(%s) AS u WHERE b.until > statement_timestamp())
		AND CASE WHEN %s THEN (SELECT f.attempts FROM %s f WHERE %s AND %s) END IS NULL`,
		p.pending, p.keyRefs(), p.batches(), each(len(p.keys), "b.key#"), p.failures(), p.stateTable(), p.noted(), waits)
	if p.orderKey != "" {
		text += fmt.Sprintf(`
		AND %s NOT IN (SELECT f.order_key FROM %s f WHERE f.order_key <> '' AND %s AND (SELECT true FROM %s AS t WHERE %s AND %s))`,
			p.orderText(), p.stateTable(), keyWaits, p.source, p.noted(), p.pending)
	}
	return text
}

// Conditions of a row f of the table beside.
const (
	postgresWaits   = "f.available_at > statement_timestamp()"                     // for its next try
	postgresSuspect = "(f.available_at > statement_timestamp() OR f.crashes > 0)"  // or was in hand at a crash
	postgresBeyond  = "(f.available_at > statement_timestamp() OR f.crashes > $5)" // or had too many
)

func (p *postgresTable) orderText() string {
	if p.orderKey == "" {
		return "''"
	}
	return "COALESCE((" + p.orderKey + ")::text, '')"
}

func (p *postgresTable) fetchText() string { return p.fetching(claim{}) }

// fetching leases rows that were in hand at no crash; or those that had at least $4 and at
// most $5, alone in hand if $6. It does not where leases of others have run out. In strict
// order $4 is 0, which takes all rows: one that was given back may come before the suspects.
func (p *postgresTable) fetching(c claim) string {
	suspects := c.most > 0
	inner := []string{p.perKey("t.@ AS courier_key#", ", ")}
	for i, text := range p.columns {
		inner = append(inner, fmt.Sprintf("%s AS courier_column%d", text, i+1))
	}
	relays, others, orderKeys, sign := "", "", "'{}'::text[]", ""
	switch {
	case p.strict:
		others = fmt.Sprintf(`
		AND NOT EXISTS (SELECT FROM %s WHERE owner <> $2)`, p.batches())
	case p.apart():
		relays = fmt.Sprintf(`relays AS MATERIALIZED (
	SELECT count(*) AS n, count(*) FILTER (WHERE owner COLLATE "C" < $2) AS place FROM (SELECT owner FROM %s WHERE key1 = '{}' UNION SELECT $2) AS o
), `, p.batches())
		others = fmt.Sprintf(`
		AND %s NOT IN (SELECT unnest(order_keys) FROM %s WHERE owner <> $2)`, p.orderText(), p.batches())
		if !suspects { // which are few, and anybody's
			others += fmt.Sprintf(`
		AND (%[1]s = '' OR (hashtext(%[1]s)::bigint & 2147483647) %% (SELECT n FROM relays) = (SELECT place FROM relays))`, p.orderText())
		}
		orderKeys = "COALESCE(array_agg(DISTINCT courier_order) FILTER (WHERE courier_order <> ''), '{}')"
		sign = fmt.Sprintf(`, sign AS (
	INSERT INTO %s (owner, until, alone, %s, order_keys)
	SELECT $2, clock_timestamp() + $4::bigint * interval '1 microsecond', false, %s, '{}' WHERE EXISTS (SELECT FROM %[1]s WHERE owner <> $2)
)`, p.batches(), each(len(p.keys), "key#"), each(len(p.keys), "'{}'"))
	}
	due, alone := p.due(postgresSuspect, postgresSuspect), "false"
	if p.strict && !suspects {
		others += fmt.Sprintf(`
		AND NOT EXISTS (SELECT %s AND s.courier_crashes < %d)`, p.suspectsNow(), p.mostCrashes)
	}
	if suspects {
		const crashed = "f.crashes BETWEEN $4 AND $5"
		due, alone, sign = p.hasCrashed(crashed), "$6::boolean", ""
		switch {
		case p.strict:
			due = fmt.Sprintf("($4 = 0 OR %s)", due)
		case c.behind && p.orderKey != "":
			due = fmt.Sprintf("(%s OR %s IN (SELECT f.order_key FROM %s f WHERE f.order_key <> '' AND f.crashes > 0 AND %s))", due, p.orderText(), p.stateTable(), crashed)
		}
		due += " AND " + p.due(postgresBeyond, postgresBeyond)
	}
	return fmt.Sprintf(`WITH %sdue AS MATERIALIZED (
	SELECT %s, %s AS courier_order,
		CASE WHEN %s THEN COALESCE((SELECT f.attempts FROM %s f WHERE %s), 0) ELSE 0 END AS courier_attempts
	FROM %s AS t
	WHERE %s%s AND NOT EXISTS (SELECT FROM %s WHERE %s)
	ORDER BY %s LIMIT $1
), batch AS (
	INSERT INTO %s (owner, until, alone, %s, order_keys)
	SELECT $2, clock_timestamp() + $3::bigint * interval '1 microsecond', %s, %s, %s FROM due HAVING count(*) > 0 RETURNING id
)%s
SELECT batch.id, courier_attempts, %s, %s FROM batch, due`,
		relays, strings.Join(inner, ", "), p.orderText(), p.failures(), p.stateTable(), p.noted(), p.source, due, others, p.batches(), ranOut("$2"), p.orderBy(),
		p.batches(), each(len(p.keys), "key#"), alone, each(len(p.keys), "array_agg(courier_key#)"), orderKeys, sign,
		each(len(p.keys), "courier_key#::text"), each(len(p.columns), "courier_column#"))
}

func (p *postgresTable) fetchArgs(c claim) []any {
	args := []any{c.limit, c.owner, c.lease.Microseconds()}
	switch {
	case c.most > 0:
		args = append(args, c.fewest, c.most, c.alone)
	case p.apart():
		args = append(args, c.sign.Microseconds())
	}
	return args
}

// ranOut is the condition of a lease of another than an owner.
func ranOut(owner string) string { return "until <= statement_timestamp() AND owner <> " + owner }

// hasCrashed is that a row t is among those f beside for which a condition holds, which are
// few.
func (p *postgresTable) hasCrashed(condition string) string {
	if len(p.keys) == 1 {
		return fmt.Sprintf("t.%s = ANY(ARRAY(SELECT f.key1 FROM %s f WHERE f.crashes > 0 AND %s))", identifier(p.keys[0]), p.stateTable(), condition)
	}
	return fmt.Sprintf("(%s) IN (SELECT %s FROM %s f WHERE f.crashes > 0 AND %s)", p.keyRefs(), each(len(p.keys), "f.key#"), p.stateTable(), condition)
}

// mine has the lease $1 of the owner $2 locked.
func (p *postgresTable) mine() string {
	return fmt.Sprintf(`SELECT 1 FROM %s WHERE id = $1 AND owner = $2 FOR UPDATE`, p.batches())
}

func (p *postgresTable) markText() string { return p.marking(part{last: true}) }

// marking marks rows of the lease $1 of $2. If it is the last part of the lease, it ends
// that where the mark touches as many rows as the last argument says. It returns whether the
// lease is there, and how many rows it has marked.
func (p *postgresTable) marking(m part) string {
	ended := ""
	if m.last {
		ended = fmt.Sprintf(`, ended AS (
	DELETE FROM %s WHERE id = $1 AND owner = $2 AND (SELECT count(*) FROM marked) >= $%d
)`, p.batches(), 3+len(p.keys))
	}
	return p.marks(p.mine(), m.attempted, "EXISTS (SELECT FROM mine)") + ended + `
SELECT (SELECT count(*) FROM mine), (SELECT count(*) FROM marked)`
}

// marks marks rows of the lease that held selects, on a condition.
func (p *postgresTable) marks(held string, attempted bool, condition string) string {
	var first string
	several := len(p.keys) > 1
	switch {
	case p.mark == "" && several:
		first = fmt.Sprintf("DELETE FROM %s AS t USING ", p.source)
	case p.mark == "":
		first = fmt.Sprintf("DELETE FROM %s AS t ", p.source)
	case several:
		first = fmt.Sprintf("UPDATE %s AS t SET %s FROM ", p.source, p.mark)
	default:
		first = fmt.Sprintf("UPDATE %s AS t SET %s ", p.source, p.mark)
	}
	noted := ""
	if attempted {
		noted = fmt.Sprintf(`, noted AS (
	DELETE FROM %s WHERE (%s) IN (SELECT * FROM unnest(%s)) AND %s
)`, p.stateTable(), each(len(p.keys), "key#"), p.lists(3), "EXISTS (SELECT FROM mine)")
	}
	return fmt.Sprintf(`WITH mine AS (
	%s
), marked AS (
	%s%s RETURNING 1
)%s`, held, first, p.among(3, condition), noted)
}

// failing notes failures: of the lease $1 of $2, or of rows that nobody holds.
func (p *postgresTable) failing(held bool) string {
	mine, condition, from := "", "", 1
	if held {
		mine, condition, from = "WITH mine AS ("+p.mine()+") ", " AND EXISTS (SELECT FROM mine)", 3
	}
	n := len(p.keys)
	return fmt.Sprintf(`%sINSERT INTO %s AS s (%s, attempts, available_at, last_error, order_key)
SELECT %s, 1, clock_timestamp() + courier_f.courier_delay * interval '1 microsecond', courier_f.courier_error, %s
FROM %s AS t JOIN unnest(%s, $%d::bigint[], $%d::text[]) AS courier_f(%s, courier_delay, courier_error) ON %s
WHERE %s%s
ON CONFLICT (%s) DO UPDATE SET attempts = s.attempts + 1, available_at = excluded.available_at, last_error = excluded.last_error, order_key = excluded.order_key, crashes = 0`,
		mine, p.stateTable(), each(n, "key#"), p.keyRefs(), p.orderText(), p.source, p.lists(from), from+n, from+n+1, each(n, "courier_key#"), p.joined("courier_f"),
		p.pending, condition, each(n, "key#"))
}

func failureArgs(failed part) []any {
	return append(listed(failed.keys),
		numberList(len(failed.keys), func(i int) int64 { return failed.failures[i].delay.Microseconds() }),
		textList(len(failed.keys), func(i int) string { return failed.failures[i].text }))
}

// clearing clears the crashes of rows of the lease $1 of $2.
func (p *postgresTable) clearing() string {
	where := fmt.Sprintf("WHERE (%s) IN (SELECT * FROM unnest(%s)) AND EXISTS (SELECT FROM mine)", each(len(p.keys), "key#"), p.lists(3))
	return fmt.Sprintf("WITH mine AS (%s), never AS (DELETE FROM %s %s AND attempts = 0) UPDATE %s SET crashes = 0 %s AND attempts > 0",
		p.mine(), p.stateTable(), where, p.stateTable(), where)
}

// givingBack ends the lease $1 of $2, or takes rows out of it.
func (p *postgresTable) givingBack(last bool) string {
	if last {
		return fmt.Sprintf(`DELETE FROM %s WHERE id = $1 AND owner = $2`, p.batches())
	}
	n := len(p.keys)
	return fmt.Sprintf(`UPDATE %s AS b SET (%s) = (SELECT %s FROM unnest(%s) AS u(%s) WHERE (%s) NOT IN (SELECT * FROM unnest(%s)))
WHERE id = $1 AND owner = $2`, p.batches(), each(n, "key#"), p.eachKey("COALESCE(array_agg(u.key#), '{}'::%s[])"), each(n, "b.key#"), each(n, "key#"),
		each(n, "u.key#"), p.lists(3))
}

func (p *postgresTable) pendingText() string {
	return fmt.Sprintf(`SELECT count(*) FROM %s AS t WHERE %s`, p.source, p.pending)
}

func (p *postgresTable) pendingAmong() string {
	comma := ""
	if len(p.keys) > 1 {
		comma = ", "
	}
	return fmt.Sprintf(`SELECT count(*) FROM %s AS t%s %s`, p.source, comma, p.among(1, p.pending))
}

// begin queues the start of a transaction, with the settings of a fetch. Relays fetch one
// after the other, as each has to see what the others have leased.
func (p *postgresTable) begin(batch *pgx.Batch) {
	batch.Queue("BEGIN ISOLATION LEVEL READ COMMITTED") // whatever is set for the database
	batch.Queue(p.grammar.plan)
}

func (p *postgresTable) fetch(ctx context.Context, conn *sql.Conn, c claim, read func(row *handedOut, scan func(dest ...any) error) error) (id int64, err error) {
	batch := new(pgx.Batch)
	p.begin(batch)
	late := false
	p.forgetting(batch, c.owner, c.known, &late)
	batch.Queue(p.fetching(c), p.fetchArgs(c)...).Query(func(rows pgx.Rows) error {
		defer rows.Close()
		row := handedOut{key: make([]string, len(p.keys))}
		own := []any{&id, &row.attempts}
		for i := range row.key {
			own = append(own, &row.key[i])
		}
		n := len(own)
		scan := func(dest ...any) error {
			own = append(own[:n], dest...)
			return rows.Scan(own...)
		}
		for rows.Next() {
			if err := read(&row, scan); err != nil {
				if values, unread := rows.Values(); id == 0 && unread == nil { // nothing was scanned
					id, _ = values[0].(int64)
				}
				return err
			}
		}
		return rows.Err()
	})
	batch.Queue("COMMIT")
	err = send(ctx, conn, batch)
	if err != nil && postgresCode(err) != "" { // with the transaction
		discard(conn)
	}
	if err == nil && late && id == 0 {
		err = errRunOut
	}
	return id, err
}

// turn is the number of the advisory lock of a fetch.
func (p *postgresTable) turn() string {
	return fmt.Sprintf("hashtextextended('courier ' || '%s'::regclass::oid, 0)", strings.ReplaceAll(p.batches(), "'", "''"))
}

// alone queues a wait until no other fetch is under way.
func (p *postgresTable) alone(batch *pgx.Batch) {
	batch.Queue(fmt.Sprintf(`SELECT pg_advisory_xact_lock(%s)`, p.turn()))
}

func (p *postgresTable) endStuck(ctx context.Context, conn *sql.Conn, since time.Duration) (stuck, error) {
	return endStuck(ctx, conn, p.turn(), since)
}

// forgetting queues the end of leases of an owner that are over or unknown to it, once no
// other fetch is under way, and whether there are those of others that are over.
func (p *postgresTable) forgetting(batch *pgx.Batch, owner string, known []int64, late *bool) {
	p.alone(batch)
	batch.Queue(fmt.Sprintf(`WITH mine AS (DELETE FROM %s WHERE owner = $1 AND (until <= statement_timestamp() OR id <> ALL($2::bigint[])))
		SELECT EXISTS (SELECT FROM %s WHERE %s)`, p.batches(), p.batches(), ranOut("$1")),
		owner, numberList(len(known), func(i int) int64 { return known[i] })).QueryRow(func(row pgx.Row) error { return row.Scan(late) })
}

func (p *postgresTable) bury(ctx context.Context, conn *sql.Conn, owner string, lease, contact time.Duration) (crashed int, err error) {
	n := len(p.keys)
	batch := new(pgx.Batch)
	batch.Queue("BEGIN ISOLATION LEVEL READ COMMITTED")
	p.alone(batch)
	// A mark may have such a lease locked: only a later statement sees what it has marked.
	const over = "until <= now() AND owner <> $1"
	batch.Queue(fmt.Sprintf(`SELECT FROM %s WHERE %s ORDER BY id FOR UPDATE`, p.batches(), over), owner)
	batch.Queue(fmt.Sprintf(`WITH ended AS (DELETE FROM %s WHERE %s RETURNING *), dead AS (
	SELECT %s, bool_or(e.alone) AS courier_alone FROM ended e, unnest(%s) AS u(%s)
	WHERE e.until >= statement_timestamp() - ($3::bigint - $2::bigint) * interval '1 microsecond' GROUP BY %s
), counted AS (
	INSERT INTO %s AS s (%s, attempts, available_at, last_error, order_key, crashes)
	SELECT %s, 0, 'epoch', '', %s, CASE WHEN courier_alone THEN %d ELSE 1 END FROM dead JOIN %s AS t ON %s WHERE %s
	ON CONFLICT (%s) DO UPDATE SET order_key = excluded.order_key,
		crashes = CASE WHEN excluded.crashes > 1 THEN greatest(s.crashes, %d) ELSE s.crashes END + 1 RETURNING 1
)
SELECT count(*) FROM counted`, p.batches(), over,
		each(n, "u.courier_key#"), each(n, "e.key#"), each(n, "courier_key#"), each(n, "u.courier_key#"),
		p.stateTable(), each(n, "key#"), p.keyRefs(), p.orderText(), aloneFrom+1, p.source, p.joined("dead"), p.pending, each(n, "key#"), aloneFrom),
		owner, lease.Microseconds(), contact.Microseconds()).QueryRow(func(row pgx.Row) error { return row.Scan(&crashed) })
	batch.Queue("COMMIT")
	if err = send(ctx, conn, batch); err != nil { // with the transaction
		discard(conn)
	}
	return crashed, err
}

// suspectsNow selects from rows that were in hand at crashes and are due.
func (p *postgresTable) suspectsNow() string {
	return fmt.Sprintf("FROM (SELECT %s, crashes AS courier_crashes FROM %s WHERE crashes > 0) AS s JOIN %s AS t ON %s WHERE %s",
		each(len(p.keys), "key# AS courier_key#"), p.stateTable(), p.source, p.joined("s"),
		p.due(postgresWaits, fmt.Sprintf("(%s OR f.crashes >= %d AND s.courier_crashes < %[2]d)", postgresWaits, p.mostCrashes)))
}

func (p *postgresTable) suspects(ctx context.Context, conn *sql.Conn) (fewest, most, more int, err error) {
	err = conn.QueryRowContext(ctx, fmt.Sprintf(`SELECT COALESCE(min(courier_crashes) FILTER (WHERE courier_crashes < %d), 0), COALESCE(max(courier_crashes) FILTER (WHERE courier_crashes < %[1]d), 0),
		count(*) FILTER (WHERE courier_crashes >= %[1]d) %s`, p.mostCrashes, p.suspectsNow())).Scan(&fewest, &most, &more)
	return fewest, most, more, err
}

func (p *postgresTable) forget(ctx context.Context, conn *sql.Conn, owner string, known []int64) error {
	batch := new(pgx.Batch)
	batch.Queue("BEGIN ISOLATION LEVEL READ COMMITTED")
	p.forgetting(batch, owner, known, new(bool))
	batch.Queue("COMMIT")
	err := send(ctx, conn, batch)
	if err != nil { // with the transaction
		discard(conn)
	}
	return err
}

func (p *postgresTable) settle(ctx context.Context, conn *sql.Conn, owner string, how settlement, parts []part, doubt bool) (touched int, lost []int, err error) {
	batch := new(pgx.Batch) // which is one transaction
	for i, part := range parts {
		args := []any{part.batch, owner}
		if len(part.keys) > 0 {
			args = append(args, listed(part.keys)...)
		}
		switch how {
		case toMark:
			switch {
			case part.last && doubt:
				args = append(args, math.MaxInt64)
			case part.last:
				args = append(args, len(part.keys))
			}
			batch.Queue(p.marking(part), args...).QueryRow(func(row pgx.Row) error {
				var mine, marked int
				if err := row.Scan(&mine, &marked); err != nil {
					return err
				}
				if touched += marked; mine == 0 {
					lost = append(lost, i)
				}
				return nil
			})
			continue
		case toFail:
			batch.Queue(p.failing(true), append([]any{part.batch, owner}, failureArgs(part)...)...)
		case toRelease:
			if part.attempted {
				batch.Queue(p.clearing(), args...)
			}
		}
		if part.last {
			args = args[:2]
		}
		batch.Queue(p.givingBack(part.last), args...)
	}
	if err = send(ctx, conn, batch); err != nil {
		return 0, nil, err
	}
	return touched, lost, nil
}

func (p *postgresTable) note(ctx context.Context, conn *sql.Conn, failed part) error {
	_, err := conn.ExecContext(ctx, p.failing(false), failureArgs(failed)...)
	return err
}

func (p *postgresTable) renew(ctx context.Context, conn *sql.Conn, owner string, batches []int64, lease time.Duration) (held []int64, err error) {
	rows, err := conn.QueryContext(ctx, fmt.Sprintf(`UPDATE %s SET until = clock_timestamp() + $3::bigint * interval '1 microsecond'
		WHERE id = ANY($1::bigint[]) AND owner = $2 RETURNING id`, p.batches()),
		numberList(len(batches), func(i int) int64 { return batches[i] }), owner, lease.Microseconds())
	return numbers(rows, err)
}

// numbers reads the one column of a result.
func numbers(rows *sql.Rows, err error) (list []int64, _ error) {
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // what it has to say, Err said
	for rows.Next() {
		var n int64
		if err := rows.Scan(&n); err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	return list, rows.Err()
}

func (p *postgresTable) pendingOf(ctx context.Context, conn *sql.Conn, keys [][]string) (n int, err error) {
	err = conn.QueryRowContext(ctx, p.pendingAmong(), listed(keys)...).Scan(&n)
	return n, err
}

// markIn locks the lease against its end, but not against others of the owner. The commit
// follows at once: if it does not, the server ends the transaction, for which others wait.
func (p *postgresTable) markIn(ctx context.Context, t queries, owner string, m part) (int, error) {
	held := fmt.Sprintf(`SELECT 1 FROM %s WHERE id = $1 AND owner = $2 FOR SHARE`, p.batches())
	list, err := t(ctx, p.marks(held, m.attempted, "EXISTS (SELECT FROM mine) AND "+p.pending)+`
SELECT count(*)::text FROM marked UNION ALL `+strings.ReplaceAll(p.grammar.orphan, "$1", strconv.FormatInt(orphanAfter.Milliseconds(), 10)), append([]any{m.batch, owner}, listed(m.keys)...)...)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(list[0])
}

func (p *postgresTable) pendingIn(ctx context.Context, t queries, owner string, m part) (names []string, mine bool, err error) {
	held, err := t(ctx, fmt.Sprintf(`SELECT id::text FROM %s WHERE id = $1 AND owner = $2`, p.batches()), m.batch, owner)
	if err != nil {
		return nil, false, err
	}
	texts := p.perKey("t.@::text", ", ")
	comma := ""
	if len(p.keys) > 1 {
		comma = ", "
	}
	lists, err := t(ctx, fmt.Sprintf(`SELECT to_json(ARRAY[%s])::text FROM %s AS t%s %s`, texts, p.source, comma, p.among(1, p.pending)), listed(m.keys)...)
	if err != nil {
		return nil, false, err
	}
	names, err = namesFrom(lists)
	return names, len(held) > 0, err
}

func (p *postgresTable) lag(ctx context.Context, conn *sql.Conn) (due int, seconds float64, err error) {
	age := p.age
	if age == "" {
		age = "0"
	}
	err = conn.QueryRowContext(ctx, fmt.Sprintf(`SELECT count(*), COALESCE(max(%s), 0)::float8 FROM %s AS t WHERE %s`, age, p.source, p.due(postgresWaits, postgresWaits))).Scan(&due, &seconds)
	return due, seconds, err
}

// explained is the answer of EXPLAIN, in the given format, with the settings of a fetch.
func (p *postgresTable) explained(ctx context.Context, conn *sql.Conn, format string) (lines []string, err error) {
	err = native(conn, func(c *pgx.Conn) error {
		batch := new(pgx.Batch)
		p.begin(batch)
		batch.Queue("EXPLAIN (COSTS OFF, FORMAT "+format+") "+p.fetchText(), p.fetchArgs(claim{limit: 1000})...).Query(func(rows pgx.Rows) (err error) {
			lines, err = pgx.CollectRows(rows, pgx.RowTo[string])
			return err
		})
		batch.Queue("ROLLBACK")
		return c.SendBatch(ctx, batch).Close()
	})
	if err != nil {
		discard(conn) // with the transaction
	}
	return lines, err
}

func (p *postgresTable) check(ctx context.Context, conn *sql.Conn) error {
	args := []any{int64(0), ""}
	for range p.keys {
		args = append(args, "{}")
	}
	_, err := conn.ExecContext(ctx, "EXPLAIN "+p.markText(), append(args, int64(0))...)
	return err
}

func (p *postgresTable) plan(ctx context.Context, conn *sql.Conn) ([]string, error) {
	return p.explained(ctx, conn, "TEXT")
}

// planNode is a part of a plan of PostgreSQL.
type planNode struct {
	Type      string     `json:"Node Type"`
	Alias     string     `json:"Alias"`
	Index     string     `json:"Index Name"`
	Condition string     `json:"Index Cond"`
	Plans     []planNode `json:"Plans"`
}

// each calls f for the node and all below it.
func (n planNode) each(f func(planNode)) {
	f(n)
	for _, below := range n.Plans {
		below.each(f)
	}
}

func (p *postgresTable) slow(ctx context.Context, conn *sql.Conn) (why string, err error) {
	lines, err := p.explained(ctx, conn, "JSON")
	if err != nil {
		return "", err
	}
	var plans []struct{ Plan planNode }
	if err := json.Unmarshal([]byte(strings.Join(lines, "\n")), &plans); err != nil || len(plans) == 0 {
		return "", err
	}
	index := ""
	plans[0].Plan.each(func(n planNode) {
		switch {
		case strings.HasSuffix(n.Type, "Sort"):
			why = "it sorts all rows that are pending"
		case n.Alias == "t" && strings.Contains(n.Type, "Seq Scan"):
			why = "it reads the whole table"
		case n.Alias == "t" && n.Condition == "":
			index = n.Index
		}
	})
	if why != "" || index == "" || p.mark == "" {
		return why, nil
	}
	// An index on all rows, of which the fetch passes over those that are marked. Where
	// there is another one, it may be chosen once the table is large.
	var only bool
	err = conn.QueryRowContext(ctx, `SELECT count(*) = 1 FROM pg_index WHERE indrelid = $1::regclass AND indisvalid`, p.source).Scan(&only)
	if err == nil && only {
		why = "it reads the rows that are marked too, in the order of the index " + index
	}
	return why, err
}
