package couriersql

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
)

// What a queue does in MySQL and MariaDB. Texts are arguments in bytes, and are read in bytes:
// whatever the character set of the connection, they arrive as they are.
const (
	mysqlTextArg = `CONVERT(CAST(? AS BINARY) USING utf8mb4)`
	mysqlHash    = `IF(length(v.order_key) = 0, '', UNHEX(SHA2(v.order_key, 256)))`

	mysqlLetterID = `concat(d.seq, '.', d.version, '.', d.first_failed_at)`
	// The letters d with the IDs of a list.
	mysqlLetters = `JSON_TABLE(?, '$[*]' COLUMNS (id VARCHAR(200) PATH '$')) AS k STRAIGHT_JOIN {dlq} AS d FORCE INDEX (PRIMARY)
		ON d.seq = CAST(substring_index(UNHEX(k.id), '.', 1) AS SIGNED) AND CAST(` + mysqlLetterID + ` AS BINARY) = UNHEX(k.id)`

	mysqlSend = `INSERT INTO {dlq} (branch, id, outbox_seq, topic, ` + "`key`" + `, payload, headers, trace, created_at,
			error, error_type, reason, attempts, first_failed_at, last_failed_at, redriven, order_key, order_hash)
		VALUES (CAST(? AS BINARY), CAST(? AS BINARY), ?, ` + mysqlTextArg + `, ` + mysqlTextArg + `, CAST(? AS BINARY), ` + mysqlTextArg + `, ` + mysqlTextArg + `, ?, ` +
		mysqlTextArg + `, ` + mysqlTextArg + `, CAST(? AS BINARY), ?, ?, ?, ?, ` + mysqlTextArg + `, IF(length(order_key) = 0, '', UNHEX(SHA2(order_key, 256))))
		ON DUPLICATE KEY UPDATE version = version + (VALUES(reason) <> 'key parked'), redriven = IF(VALUES(reason) = 'key parked', {dlq}.redriven, greatest({dlq}.redriven, VALUES(redriven)))`

	mysqlUpdate = `UPDATE {dlq} AS d JOIN (SELECT CAST(? AS SIGNED) AS seq, CAST(? AS BINARY) AS letter, ` +
		mysqlTextArg + ` AS error, ` + mysqlTextArg + ` AS error_type, CAST(? AS BINARY) AS reason, ? AS attempts, ? AS first, ? AS last, ? AS redriven, ` + mysqlTextArg + ` AS order_key) AS v
			ON d.seq = v.seq AND CAST(` + mysqlLetterID + ` AS BINARY) = v.letter
		SET d.version = d.version + 1, d.error = v.error, d.error_type = v.error_type, d.reason = v.reason, d.attempts = v.attempts,
			d.first_failed_at = v.first, d.last_failed_at = v.last, d.redriven = v.redriven, d.order_key = v.order_key, d.order_hash = ` + mysqlHash

	mysqlListLetters = `SELECT seq, version, outbox_seq, id, CAST(topic AS BINARY), CAST(` + "`key`" + ` AS BINARY), payload, CAST(headers AS BINARY), CAST(trace AS BINARY), created_at,
			CAST(error AS BINARY), CAST(error_type AS BINARY), reason, attempts, first_failed_at, last_failed_at, redriven, branch, CAST(order_key AS BINARY)
		FROM {dlq} WHERE seq > ? ORDER BY seq LIMIT ?`

	mysqlParkedKeys = `SELECT DISTINCT CAST(d.order_key AS BINARY) FROM (SELECT CAST(? AS BINARY) AS branch) AS b
		STRAIGHT_JOIN JSON_TABLE(?, '$[*]' COLUMNS (id LONGTEXT PATH '$')) AS k
		STRAIGHT_JOIN {dlq} AS d ON d.order_hash = UNHEX(SHA2(UNHEX(k.id), 256)) AND d.branch = b.branch`
)

// mysqlSendText is mysqlSend with the columns that a later letter of a record replaces.
func mysqlSendText() string {
	text := mysqlSend
	for _, column := range []string{
		"outbox_seq", "topic", "`key`", "payload", "headers", "trace", "created_at",
		"error", "error_type", "reason", "attempts", "last_failed_at", "order_key", "order_hash",
	} {
		text += fmt.Sprintf(", %[1]s = IF(VALUES(reason) = 'key parked', {dlq}.%[1]s, VALUES(%[1]s))", column)
	}
	return text
}

// mysqlLettersArg returns the argument for a list of letter IDs. It leaves out what is no ID.
func mysqlLettersArg(ids []string) []any {
	return []any{mysqlList(slices.DeleteFunc(slices.Clone(ids), func(id string) bool {
		_, ok := parseID(id)
		return !ok
	}))}
}

// removeInMySQL removes letters.
func (d *database) removeInMySQL(ctx context.Context, conn *sql.Conn, ids []string) (removed []string, err error) {
	_, err = mysqlIsolated(ctx, conn, func(tx *sql.Tx) (bool, error) {
		removed, err = d.removeLocked(ctx, tx, ids)
		return true, err
	})
	return removed, err
}

// removeLocked removes letters in a transaction. MySQL has no DELETE that returns rows, so it
// locks and reads their IDs first.
func (d *database) removeLocked(ctx context.Context, tx *sql.Tx, ids []string) (removed []string, err error) {
	if removed, err = returnedIDs(ctx, tx, ids, d.sql(d.grammar.remove), d.grammar.letters(ids)...); err != nil || len(removed) == 0 {
		return removed, err
	}
	seqs := make([]int64, len(removed))
	for i, id := range removed {
		seqs[i], _ = parseID(id)
	}
	_, err = tx.ExecContext(ctx, d.sql(`DELETE FROM {dlq} WHERE seq IN (`+numbersText(seqs)+`)`))
	return removed, err
}
