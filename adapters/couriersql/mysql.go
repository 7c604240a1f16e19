package couriersql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

//go:embed migrations/mysql/*.sql migrations/mysql_table/*.sql migrations/mysql_inbox/*.sql migrations/mysql_dlq/*.sql
var mysqlMigrations embed.FS

// mysqlNow is the server's time in Unix microseconds, whatever the time zone of the session.
const mysqlNow = `TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))`

// mysqlLock has one Migrate at a time: each statement that creates something is a transaction
// of its own. It is the session's, and ends with it.
const mysqlLock = `'courier_migrate'`

// mysqlFaithful reports whether bytes come to the server as they are sent.
const mysqlFaithful = `@@SESSION.character_set_client = @@SESSION.character_set_connection`

func mysqlGrammar() grammar {
	g := grammar{
		begin: `DO GET_LOCK(` + mysqlLock + `, 31536000)`, // for a year: the context ends it
		end:   `DO RELEASE_LOCK(` + mysqlLock + `)`,

		createVersions: `CREATE TABLE IF NOT EXISTS {versions} (
			outbox     VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
			version    INT    NOT NULL,
			applied_at BIGINT NOT NULL,
			PRIMARY KEY (outbox, version)
		) ENGINE = InnoDB`,
		migrated:   `SELECT count(*) > 0 FROM information_schema.TABLES WHERE TABLE_SCHEMA = {schema} AND TABLE_NAME = 'courier_migrations'`,
		version:    `SELECT coalesce(max(version), 0) FROM {versions} WHERE outbox = ?`,
		addVersion: `INSERT INTO {versions} (outbox, version, applied_at) VALUES (?, ?, ?)`,
		columns: `SELECT COLUMN_NAME, upper(` + mysqlKind + `), IS_NULLABLE = 'NO', COLUMN_DEFAULT IS NOT NULL OR EXTRA LIKE '%auto_increment%', COLUMN_KEY = 'PRI'
			FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = coalesce(nullif(?, ''), DATABASE()) AND TABLE_NAME = ?`,
		columnsOf: func(table string) []any {
			schema, name, qualified := strings.Cut(table, ".")
			if !qualified {
				schema, name = "", table
			}
			return []any{schema, name}
		},

		inboxMigrations: folder(mysqlMigrations, "migrations/mysql_inbox"),
		inboxShape: shape{columns: []column{
			{name: "consumer", kind: "VARBINARY(1000)", key: true},
			{name: "id", kind: "VARBINARY(2000)", key: true},
			{name: "done_at", kind: "BIGINT"},
		}},
		admitAll: `INSERT INTO {inbox} (consumer, id, done_at) SELECT ?, UNHEX(k.id), ` + mysqlNow + ` FROM ` + mysqlStrings + ` AS k`,
		isNoted:  func(error, string) bool { return false }, // it may be of the effect, as MariaDB does not tell the table
		admitted: `SELECT i.id FROM (SELECT ? AS consumer) AS c STRAIGHT_JOIN ` + mysqlStrings + ` AS k STRAIGHT_JOIN {inbox} AS i
			ON i.consumer = CAST(c.consumer AS BINARY) AND i.id = UNHEX(k.id)`,
		pruneInbox:      mysqlPruneInbox,
		pruneInboxAlone: mysqlPruneInbox,
		lastNote: `SELECT coalesce(max(i.done_at), c.began) FROM (SELECT ? AS consumer, CAST(? AS SIGNED) AS began) AS c
			LEFT JOIN {inbox} AS i ON i.consumer = CAST(c.consumer AS BINARY) AND i.done_at < c.began GROUP BY c.began`,

		dlqMigrations: folder(mysqlMigrations, "migrations/mysql_dlq"),
		shapes: []shape{{true, []column{
			{name: "seq", kind: "BIGINT", key: true},
			{name: "version", kind: "BIGINT"},
			{name: "id", kind: "VARBINARY(2000)"},
			{name: "outbox_seq", kind: "BIGINT"},
			{name: "topic", kind: "LONGTEXT"},
			{name: "key", kind: "LONGTEXT"},
			{name: "payload", kind: "LONGBLOB"},
			{name: "headers", kind: "LONGTEXT"},
			{name: "trace", kind: "LONGTEXT"},
			{name: "created_at", kind: "BIGINT"},
			{name: "error", kind: "LONGTEXT"},
			{name: "error_type", kind: "LONGTEXT"},
			{name: "reason", kind: "VARBINARY(100)"},
			{name: "attempts", kind: "INT"},
			{name: "first_failed_at", kind: "BIGINT"},
			{name: "last_failed_at", kind: "BIGINT"},
			{name: "redriven", kind: "INT"},
			{name: "branch", kind: "VARBINARY(1000)"},
			{name: "order_key", kind: "LONGTEXT"},
			{name: "order_hash", kind: "VARBINARY(32)"},
		}}},
		send:       mysqlSendText(),
		sent:       `SELECT id FROM {dlq} WHERE branch = CAST(? AS BINARY) AND id = CAST(? AS BINARY)`,
		list:       mysqlListLetters,
		update:     mysqlUpdate,
		remove:     `SELECT ` + mysqlLetterID + ` FROM ` + mysqlLetters + ` FOR UPDATE`,
		kept:       `SELECT count(*) FROM ` + mysqlLetters,
		parked:     `SELECT count(*) FROM {dlq}`,
		parkedKeys: mysqlParkedKeys,
		letters:    mysqlLettersArg,

		faithful:    `SELECT ` + mysqlFaithful,
		suppressors: "a trigger that puts the columns back",

		strings:    mysqlList,
		time:       func(micros int64) any { return micros },
		isolated:   &sql.TxOptions{Isolation: sql.LevelReadCommitted}, // whatever is set for the server: gap locks would keep relays from each other
		remote:     true,
		unpinged:   true,
		addedTwice: func(err error) bool { return mysqlCode(err) == 1060 },
		refused: func(err error) bool {
			return slices.Contains([]int{1048, 1264, 1265, 1292, 1366, 1406, 1644, 3819, 4025}, mysqlCode(err))
		},
		busy:     func(error) bool { return false },
		broken:   mysqlBroken,
		conflict: mysqlConflict,
		outdated: mysqlOutdated,
		hides:    func(err error) bool { return err != nil && mysqlCode(err) == 1142 },
		advice:   mysqlAdvice,
	}
	g.addOutbox()
	return g
}

const (
	// mysqlStrings is a list of strings as a relation with the column id, in hexadecimal.
	mysqlStrings    = `JSON_TABLE(?, '$[*]' COLUMNS (id VARCHAR(4000) PATH '$'))`
	mysqlPruneInbox = `DELETE FROM {inbox} WHERE consumer = ? AND done_at < ? LIMIT ?`
)

// mysqlList is a list of strings as an argument: whatever the character set of the connection,
// they arrive as they are.
func mysqlList(list []string) any {
	hexed := make([]string, len(list))
	for i, text := range list {
		hexed[i] = hex.EncodeToString([]byte(text))
	}
	text, _ := json.Marshal(hexed) // never fails for strings
	return string(text)
}

// noteInMySQL is note for MySQL, which has no INSERT that returns the new rows. Where repeats
// are expected, it reads which records are noted, and inserts the others; if another
// transaction notes one of these meanwhile, the insert fails and it reads again.
func (i *Inbox) noteInMySQL(ctx context.Context, texts queries, ids []string, repeats bool) (noted []string, err error) {
	for try := 1; ; try++ {
		noted, err = ids, nil
		if repeats {
			done, err := texts(ctx, i.sql(i.grammar.admitted), i.consumer, mysqlList(ids))
			if err != nil {
				return nil, err
			}
			isDone := make(map[string]bool, len(done))
			for _, id := range done {
				isDone[id] = true
			}
			noted = slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return isDone[id] })
		}
		if len(noted) > 0 {
			_, err = texts(ctx, i.sql(i.grammar.admitAll), i.consumer, mysqlList(noted))
		}
		switch exists := mysqlCode(err) == 1062; {
		case exists && !repeats:
			return nil, errNotAll
		case !exists || try > len(ids): // each look finds one more
			return noted, err
		}
	}
}

// mysqlKind is the type of a column, without the width that MariaDB tells of numbers.
const mysqlKind = `IF(DATA_TYPE LIKE '%int', CONCAT(DATA_TYPE, IF(COLUMN_TYPE LIKE '%unsigned%', ' unsigned', '')), COLUMN_TYPE)`

// mysqlText is how the driver begins an error of the server. Its Go type is the driver's,
// which this package does without.
var mysqlText = regexp.MustCompile(`^Error ([0-9]+)(?: \([0-9A-Z]{5}\))?: `)

// mysqlCode is the number of an error of the server, 0 of any other.
func mysqlCode(err error) (code int) {
	eachError(err, func(err error) bool {
		if found := mysqlText.FindStringSubmatch(err.Error()); found != nil {
			code, _ = strconv.Atoi(found[1])
		}
		return code != 0
	})
	return code
}

// eachError calls f for an error and all that it wraps, until that returns true.
func eachError(err error, f func(error) bool) bool {
	if err == nil {
		return false
	}
	if f(err) {
		return true
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		return eachError(e.Unwrap(), f)
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(e.Unwrap(), func(err error) bool { return eachError(err, f) })
	}
	return false
}

// mysqlSays reports an error of the driver itself with a text.
func mysqlSays(err error, text string) bool {
	return eachError(err, func(err error) bool { return err.Error() == text })
}

// mysqlBroken reports an error after which the connection is good for nothing: it is cut, or
// leads to a server that takes no writes, or to a node out of its cluster.
func mysqlBroken(err error) bool {
	return errors.Is(err, driver.ErrBadConn) || mysqlSays(err, "invalid connection") || mysqlSays(err, "busy buffer") ||
		slices.Contains([]int{1047, 1053, 1152, 1158, 1159, 1160, 1161, 1184, 1290, 1792, 1836, 1927, 3169, 4031}, mysqlCode(err))
}

func mysqlOutdated(err error) bool { return slices.Contains([]int{1146, 1054}, mysqlCode(err)) }

func mysqlAdvice(err error) string {
	if mysqlOutdated(err) {
		return "call Migrate first; if it was, the table has another shape"
	}
	return mysqlCommonAdvice(err)
}

// mysqlCommonAdvice is for errors that have nothing to do with the tables of this package.
func mysqlCommonAdvice(err error) string {
	switch code := mysqlCode(err); code {
	case 1040, 1203, 1226:
		return "the server, or the limit of this user, has no connection left"
	case 1044, 1045, 1049, 1698:
		return "does the DSN name the database, and a user who may use it?"
	case 1406:
		return "a value is longer than its column: the name of a record has 2,000 bytes at most, a consumer or a branch 1,000"
	case 1153:
		return "a statement is longer than the server's max_allowed_packet: raise it, or make batches smaller (courier.WithBatchSize)"
	case 1175:
		return "sql_safe_updates is on, which is for people at a terminal: leave it out of the DSN and of init_connect"
	case 1205:
		return "a transaction that is left open holds a lock (information_schema.INNODB_TRX); after innodb_lock_wait_timeout it is tried again"
	case 1213:
		return "transactions were in each other's way more often than is tried: it is tried again"
	case 1290, 1792, 1836:
		return "this is a read-only server, a replica perhaps: connect to the primary (rejectReadOnly=true in the DSN closes such connections)"
	case 1317, 1969, 3024:
		return "a limit of the server (max_execution_time, max_statement_time) or a KILL ended the statement; if it was slow, look for a missing index (Migrate)"
	case 1665:
		return "the server has binlog_format = STATEMENT, with which READ COMMITTED does not go: set it to ROW or MIXED"
	}
	switch {
	case eachError(err, func(err error) bool { return strings.HasPrefix(err.Error(), "packet for query is too large") }):
		return "a statement is longer than maxAllowedPacket of the DSN: raise it, or make batches smaller (courier.WithBatchSize)"
	case mysqlSays(err, "invalid connection"):
		return "the server or the network has cut the connection; if it was idle, set SetConnMaxLifetime below the server's wait_timeout"
	case strings.Contains(err.Error(), "storing driver.Value type []uint8 into type *time.Time"):
		return "set parseTime=true in the DSN to read times, which come as texts else"
	}
	return ""
}

// A transaction holds locks that others wait for. Should this process or its host be frozen, or
// gone without a sign, mysqlHasty has the server end it after half a minute in which it hears
// nothing, or sends what nobody takes, and not after hours. mysqlPatient is as it was before.
const (
	mysqlHasty = `SET @courier_wait_timeout = @@SESSION.wait_timeout, @courier_net_write_timeout = @@SESSION.net_write_timeout,
		SESSION wait_timeout = 30, SESSION net_write_timeout = 30`
	mysqlPatient = `SET SESSION wait_timeout = CAST(coalesce(@courier_wait_timeout, @@SESSION.wait_timeout) AS UNSIGNED),
		SESSION net_write_timeout = CAST(coalesce(@courier_net_write_timeout, @@SESSION.net_write_timeout) AS UNSIGNED)`
)

// mysqlIsolated runs work in a hasty transaction of READ COMMITTED, as often as others are in its
// way, unless it may not be repeated.
func mysqlIsolated(ctx context.Context, conn *sql.Conn, work func(tx *sql.Tx) (repeat bool, err error)) (committing bool, err error) {
	if _, err := conn.ExecContext(ctx, mysqlHasty); err != nil {
		return false, err
	}
	restored := false
	defer func() {
		if !restored { // also after a panic in a function of the user's
			discard(conn)
		}
	}()
	for try := 1; ; try++ {
		var repeat bool
		repeat, committing, err = mysqlTransact(ctx, conn, work)
		if err == nil || !repeat || try == mostTries || ctx.Err() != nil || !mysqlConflict(err) {
			break
		}
	}
	if ctx.Err() == nil {
		_, lost := conn.ExecContext(ctx, mysqlPatient)
		restored = lost == nil
	}
	return committing, err
}

// mysqlConflict reports that another transaction was in the way of one, which is taken back.
func mysqlConflict(err error) bool { return slices.Contains([]int{1213, 1205, 1020}, mysqlCode(err)) }

func mysqlTransact(ctx context.Context, conn *sql.Conn, work func(tx *sql.Tx) (repeat bool, err error)) (repeat, committing bool, err error) {
	tx, err := conn.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return true, false, err
	}
	defer func() { _ = tx.Rollback() }() // of one that is not committed; of a connection that is gone, the server takes it back
	if repeat, err = work(tx); err != nil {
		return repeat, false, err
	}
	return repeat, true, tx.Commit()
}
