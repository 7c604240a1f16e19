package couriersql

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/erfanmomeniii/courier"
)

// What an outbox does in MySQL and MariaDB beside the relay of its rows, which is that of any
// table ([tabled]). Texts are arguments in bytes, as those of a queue are.
const (
	mysqlInsert = "INSERT INTO {outbox} (id, topic, `key`, payload, headers, trace, created_at, requeued_at) VALUES "
	mysqlValues = `(CAST(? AS BINARY), ` + mysqlTextArg + `, ` + mysqlTextArg + `, CAST(? AS BINARY), ` + mysqlTextArg + `, ` + mysqlTextArg + `, ?, ?)`

	// Messages that wait for a time, each with its ID and the time.
	mysqlDelay = `INSERT INTO {state} (key1, key2, attempts, available_at, last_error, order_key)
		SELECT t.seq, t.id, {delayed}, k.at, '', ` + mysqlKeyHash + `
		FROM JSON_TABLE(?, '$[*]' COLUMNS (id VARCHAR(4000) PATH '$[0]', at BIGINT PATH '$[1]')) AS k STRAIGHT_JOIN {outbox} AS t FORCE INDEX (courier_id) ON t.id = UNHEX(k.id)`
	mysqlKeyHash = "IF(length(t.`key`) = 0, '', UNHEX(SHA2(t.`key`, 256)))"

	mysqlBytes = `(length(payload) + length(headers))`

	// The letters d with their rows t, which may have failed.
	mysqlLettersRows = mysqlLetters + ` STRAIGHT_JOIN {outbox} AS t FORCE INDEX (courier_id) ON t.id = d.id`
	mysqlRowless     = mysqlLetters + ` WHERE NOT EXISTS (SELECT 1 FROM {outbox} AS t WHERE t.id = d.id)`
	mysqlRequeue     = "INSERT INTO {outbox} (id, topic, `key`, payload, headers, trace, created_at, requeued_at) " +
		"SELECT d.id, d.topic, d.`key`, d.payload, d.headers, d.trace, d.created_at, {now} FROM " + mysqlLetters + ` ORDER BY d.seq`

	mysqlPrune = `DELETE t FROM (SELECT seq FROM {outbox} WHERE processed_at < ? ORDER BY processed_at LIMIT ?) AS k
		STRAIGHT_JOIN {outbox} AS t FORCE INDEX (PRIMARY) ON t.seq = k.seq`
)

// addOutbox adds what an outbox has to say.
func (g *grammar) addOutbox() {
	g.migrations = folder(mysqlMigrations, "migrations/mysql")
	g.shapes = append([]shape{{false, []column{
		{name: "seq", kind: "BIGINT", key: true},
		{name: "id", kind: "VARBINARY(2000)"},
		{name: "topic", kind: "LONGTEXT"},
		{name: "key", kind: "LONGTEXT"},
		{name: "payload", kind: "LONGBLOB"},
		{name: "headers", kind: "LONGTEXT"},
		{name: "trace", kind: "LONGTEXT"},
		{name: "created_at", kind: "BIGINT"},
		{name: "requeued_at", kind: "BIGINT", nullable: true},
		{name: "processed_at", kind: "BIGINT", nullable: true},
	}}}, g.shapes...)
	g.indexed = `SELECT EXISTS (SELECT 1 FROM information_schema.STATISTICS WHERE TABLE_SCHEMA = {schema} AND TABLE_NAME = '{table}'
		AND COLUMN_NAME = 'processed_at' AND SEQ_IN_INDEX = 1)`
	g.addIndex = `CREATE INDEX pending ON {outbox} (processed_at, seq)`

	g.rowsPerInsert = 100
	g.insert = func(rows int, _ bool) string {
		return mysqlInsert + mysqlValues + strings.Repeat(", "+mysqlValues, rows-1)
	}
	g.inserted = func(args []any, _ bool) []any { return args }
	g.delay = strings.Replace(mysqlDelay, "{delayed}", strconv.Itoa(delayedAttempts), 1)
	g.delays = mysqlDelays
	g.present = `SELECT t.id FROM ` + mysqlStrings + ` AS k STRAIGHT_JOIN {outbox} AS t ON t.id = UNHEX(k.id) LIMIT 1 LOCK IN SHARE MODE` // also past a snapshot
	g.duplicate = func(err error, _ string) bool {
		return eachError(err, func(err error) bool { return mysqlCode(err) == 1062 && mysqlDuplicate.MatchString(err.Error()) })
	}

	g.large = `SELECT t.seq, t.payload, CAST(t.headers AS BINARY) FROM JSON_TABLE(?, '$[*]' COLUMNS (seq BIGINT PATH '$[0]', id VARCHAR(4000) PATH '$[1]')) AS k
		STRAIGHT_JOIN {outbox} AS t ON t.seq = k.seq AND t.id = UNHEX(k.id)`
	g.known = mysqlKnown

	g.pending = `SELECT count(*) FROM {outbox} WHERE processed_at IS NULL`
	g.prunable = `SELECT count(*) FROM {outbox} WHERE processed_at < ?`
	g.prune, g.pruneAlone = mysqlPrune, mysqlPrune
	g.failing = `SELECT t.id, f.attempts MOD 1073741824, CAST(f.last_error AS BINARY) FROM {state} AS f STRAIGHT_JOIN {outbox} AS t ON t.seq = f.key1 AND t.id = f.key2
		WHERE t.processed_at IS NULL AND f.attempts MOD 1073741824 > 0 ORDER BY f.attempts MOD 1073741824 DESC, t.seq LIMIT ?`

	g.moved = `SELECT EXISTS (SELECT 1 FROM {dlq} AS d WHERE d.id = v.id AND d.branch = v.branch AND d.outbox_seq = v.seq)
			AND NOT EXISTS (SELECT 1 FROM {outbox} AS t WHERE t.seq = v.seq AND t.id = v.id AND t.processed_at IS NULL)
		FROM (SELECT CAST(? AS BINARY) AS id, CAST(? AS BINARY) AS branch, CAST(? AS SIGNED) AS seq) AS v`
	g.replace = []string{
		`DELETE f FROM ` + mysqlLettersRows + ` STRAIGHT_JOIN {state} AS f FORCE INDEX (PRIMARY) ON f.key1 = t.seq AND f.key2 = t.id`,
		`DELETE t FROM ` + mysqlLettersRows,
	}
	g.ofBranch = `SELECT ` + mysqlLetterID + `, d.branch FROM ` + mysqlLetters + ` WHERE d.branch <> '' ORDER BY d.seq LIMIT 1`
	g.ofKey = `SELECT order_key, put, every FROM (SELECT x.order_key, x.put, (SELECT count(*) FROM {dlq} AS e WHERE e.order_hash = x.order_hash AND e.branch = x.branch) AS every
		FROM (SELECT d.order_hash, d.branch, max(CAST(d.order_key AS BINARY)) AS order_key, count(DISTINCT d.seq) AS put
			FROM ` + mysqlLetters + ` WHERE d.order_hash <> '' GROUP BY d.order_hash, d.branch) AS x) AS y WHERE put < every LIMIT 1`
	g.rowless = `SELECT count(DISTINCT d.seq) FROM ` + mysqlRowless
	g.requeue = `SELECT DISTINCT ` + mysqlLetterID + ` FROM ` + mysqlRowless

	g.snapshot = &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}
}

// mysqlDuplicate is the end of the error of an ID that is in the table, in whatever language:
// the last name in it is that of the key. MySQL tells the table too, MariaDB the key alone.
var mysqlDuplicate = regexp.MustCompile(`'(?:[^']*\.)?courier_id'[^']*$`)

// mysqlDelays are the arguments of messages that wait for a time.
func mysqlDelays(args []any) []any {
	list := make([][2]any, 0, len(args)/columns)
	for i := 0; i < len(args); i += columns {
		list = append(list, [2]any{hex.EncodeToString([]byte(args[i].(string))), args[i+notBefore]})
	}
	text, _ := json.Marshal(list) // never fails for strings and numbers
	return []any{string(text)}
}

func mysqlKnown(rows []Row) []any {
	list := make([][2]any, len(rows))
	for i, row := range rows {
		list[i] = [2]any{row.Seq, hex.EncodeToString([]byte(row.ID))}
	}
	text, _ := json.Marshal(list) // never fails for strings and numbers
	return []any{string(text)}
}

// longestInMySQL is the longest name of an outbox: with _courier_batches it must fit into the 64
// characters of MySQL.
const longestInMySQL = 40

// asTable describes the outbox as a table that its relay reads.
func (o *Outbox) asTable() *Table[Row] {
	config := TableConfig[Row]{
		Table: o.table, State: o.name + "_courier",
		Key: []string{"seq", "id"}, KeyOf: func(r Row) []any { return []any{r.Seq, r.ID} },
		Columns: []string{
			"CAST(topic AS BINARY)", "CAST(`key` AS BINARY)",
			"IF(" + mysqlBytes + " <= {share}, payload, NULL)", "IF(" + mysqlBytes + " <= {share}, CAST(headers AS BINARY), " + mysqlBytes + ")",
			"CAST(trace AS BINARY)", "created_at",
		},
		Scan: func(scan func(dest ...any) error) (r Row, err error) {
			return r, scan(&r.Topic, &r.Key, &r.Payload, &r.Headers, &r.Trace, &r.CreatedAt)
		},
		Pending: "processed_at IS NULL", Order: "seq",
		Age:            "-coalesce(requeued_at, created_at)", // since when, and not for how long
		Strict:         o.strict,
		Lease:          o.lease,
		InitialBackoff: o.backoff.initial, LongestBackoff: o.backoff.longest,
		QueryTimeout: o.timeout, Logger: o.log,
	}
	if o.keep {
		config.Mark = "processed_at = {now}"
	}
	if o.strict {
		config.OrderKey = "`key`"
	}
	t := NewTable(o.db, o.dialect, config)
	t.now = o.now
	t.grammar.advice, t.grammar.outdated = o.grammar.advice, o.grammar.outdated
	t.own = &outboxTable[Row]{known: (*Row).know, bytes: Row.bytes, most: o.fetchBytes,
		behind: " AND f.key1 < t.seq",
	}
	return t
}

// know takes what a row is known by, and the number of attempts.
func (r *Row) know(key []string, attempts int) {
	r.Seq, _ = strconv.ParseInt(key[0], 10, 64) // it is the text of a number
	r.ID = key[1]
	r.count(attempts)
}

// requeueInMySQL is requeue in a transaction that others may be in the way of.
func (o *Outbox) requeueInMySQL(ctx context.Context, conn *sql.Conn, ids []string) (requeued []string, err error) {
	_, err = mysqlIsolated(ctx, conn, func(tx *sql.Tx) (bool, error) {
		if _, err := texts(ctx, tx, o.sql(o.grammar.remove), o.grammar.letters(ids)...); err != nil { // which locks them
			return true, err
		}
		requeued, err = o.requeueIn(ctx, tx, ids)
		return true, err
	})
	return requeued, err
}

// insertLetters makes letters new rows, and returns their IDs. MySQL has no INSERT that returns
// rows, so it looks first which letters have none.
func (o *Outbox) insertLetters(ctx context.Context, tx *sql.Tx, ids []string) ([]string, error) {
	found, err := returnedIDs(ctx, tx, ids, o.sql(o.grammar.requeue), o.grammar.letters(ids)...)
	if err != nil || len(found) == 0 {
		return nil, err
	}
	text := strings.Replace(mysqlRequeue, "{now}", strconv.FormatInt(o.now().UnixMicro(), 10), 1)
	result, err := tx.ExecContext(ctx, o.sql(text), o.grammar.letters(found)...)
	if err == nil && missing(result, len(found)) > 0 {
		err = o.suppressed(o.table, missing(result, len(found)), len(found))
	}
	return found, err
}

// checkMigrateInMySQL looks at the tables that are there: what creates or alters one cannot be
// taken back in MySQL.
func (o *Outbox) checkMigrateInMySQL(ctx context.Context) error {
	return o.exclusively(ctx, func(ctx context.Context, conn *sql.Conn) error {
		version, err := o.versionOn(ctx, conn)
		if err != nil {
			return err
		}
		known := SchemaVersion(MySQL)
		if err := tooNew(version, known); err != nil {
			return err
		}
		return o.checkShapes(ctx, conn, version < known)
	})
}

// noTable tells that there is no outbox yet in the words of this package.
func (o *Outbox) noTable(err error) error {
	if wrong, ok := err.(*courier.ConfigError); ok && wrong.Field == "TableConfig.Table" && strings.Contains(wrong.Problem, "is not a table") {
		return &notMigrated{fmt.Errorf("there is no table %s: %s", o.table, "call Migrate first; if it was, the DSN names another database")}
	}
	return err
}
