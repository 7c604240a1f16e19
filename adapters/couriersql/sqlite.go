package couriersql

import (
	"database/sql"
	"embed"
	"encoding/json"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

//go:embed migrations/sqlite/*.sql migrations/sqlite_dlq/*.sql migrations/sqlite_inbox/*.sql migrations/sqlite_table/*.sql
var sqliteMigrations embed.FS

// What a fetch reads of a row.
const sqliteRow = `seq, id, topic, key, payload, headers, trace, created_at, attempts, claim`

const (
	// The rows to be handed out, each kind by an index of its own. Deleted rows leave
	// no trace in an index, so that a fetch may begin at the first.
	sqliteFresh = `processed_at IS NULL AND attempts < 1 AND available_at <= ?6`
	sqliteRetry = `processed_at IS NULL AND attempts > 0 AND available_at <= ?6`
	sqliteBytes = `(length(payload) + length(headers))`
	// A row waits for an earlier one of its key, by what follows. That no row has failed is
	// looked up once, and then no key is.
	sqliteUnhindered = `(NOT EXISTS (SELECT 1 FROM {outbox} INDEXED BY "{table}_failed" WHERE processed_at IS NULL AND attempts > 0)
		OR key = '' OR NOT EXISTS (SELECT 1 FROM {outbox} f INDEXED BY "{table}_failed" WHERE f.key = t.key AND f.seq < t.seq
		AND f.processed_at IS NULL AND f.attempts > 0 AND `
	sqliteNotInHand = `(seq NOT BETWEEN ?2 AND ?3 AND seq NOT IN (SELECT value FROM json_each(?7)))`

	sqliteKnown   = sqliteListed + `t.seq || '.' || t.id)`
	sqliteClaimed = sqliteListed + `t.seq || '.' || t.claim || '.' || t.id) AND owner = ?2`
	// The cast takes the digits before the point: by it the rows are found. To look for
	// each row in the list, SQLite would sort its texts.
	sqliteListed   = `seq IN (SELECT t.seq FROM json_each(?1) k CROSS JOIN {outbox} t ON t.seq = CAST(k.value AS INTEGER) AND k.value = `
	sqliteLetterID = `seq || '.' || version || '.' || first_failed_at`
	sqliteLetters  = `seq IN (SELECT CAST(value AS INTEGER) FROM json_each(?1))
		AND ` + sqliteLetterID + ` IN (SELECT value FROM json_each(?1))`
	// A claim of another relay that has run out, and was made or renewed since this one has
	// contact.
	sqliteCrashed = `(owner <> '' AND owner <> ?2 AND available_at >= ?6 + ?3 - ?7)`
	sqliteFail    = `UPDATE {outbox} SET attempts = attempts + 1, last_error = f.value ->> 4, owner = '', crashes = 0, available_at = (f.value ->> 3)`
	sqliteFree    = `UPDATE {outbox} SET available_at = 0, owner = '', crashes = 0`
	sqlitePrune   = `DELETE FROM {outbox} WHERE seq IN
		(SELECT seq FROM {outbox} WHERE processed_at < ?1 ORDER BY processed_at LIMIT ?2)`
	sqlitePruneInbox = `DELETE FROM {inbox} WHERE (consumer, id) IN (SELECT consumer, id FROM {inbox}
		WHERE consumer = ?1 AND done_at < ?2 LIMIT ?3)`
	sqliteFailed = ` FROM json_each(?1) AS f WHERE seq = (f.value ->> 0) AND claim = (f.value ->> 1) AND attempts = (f.value ->> 2)
		AND {outbox}.id = (f.value ->> 5) AND processed_at IS NULL`
)

// sqliteTimeLast is for the statement with one more argument before the time.
var sqliteTimeLast = strings.NewReplacer("?6", "?7", "?7", "?6")

// sqliteDue is where the statement with the two arguments before the time has it.
var sqliteDue = strings.NewReplacer("?6", "?3")

func sqliteGrammar() grammar {
	return grammar{
		migrations:    folder(sqliteMigrations, "migrations/sqlite"),
		dlqMigrations: folder(sqliteMigrations, "migrations/sqlite_dlq"),
		shapes:        sqliteShapes(),

		inboxMigrations: folder(sqliteMigrations, "migrations/sqlite_inbox"),
		inboxShape: shape{columns: []column{
			{name: "consumer", kind: "TEXT", key: true},
			{name: "id", kind: "TEXT", key: true},
			{name: "done_at", kind: "INTEGER"},
		}},

		// A deferred transaction takes the write lock at its first write and
		// fails, without waiting, when another process wrote since it began.
		begin: `BEGIN IMMEDIATE`,

		createVersions: `CREATE TABLE IF NOT EXISTS {versions} (
			outbox     TEXT    NOT NULL,
			version    INTEGER NOT NULL,
			applied_at INTEGER NOT NULL,
			PRIMARY KEY (outbox, version)
		) STRICT`,
		migrated:   `SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'courier_migrations')`,
		version:    `SELECT coalesce(max(version), 0) FROM {versions} WHERE outbox = ?1`,
		addVersion: `INSERT INTO {versions} (outbox, version, applied_at) VALUES (?1, ?2, ?3)`,
		columns:    `SELECT name, upper(type), "notnull", dflt_value IS NOT NULL, pk > 0 FROM pragma_table_xinfo(?1)`,
		indexed:    `SELECT count(*) = 2 FROM sqlite_schema WHERE type = 'index' AND name IN ('{table}_pending', '{table}_waiting')`,
		addIndex:   addIndexes,

		rowsPerInsert: 100, // larger statements were not measurably faster
		insert:        sqliteInsertOf,
		inserted:      sqliteInserted,
		present:       `SELECT id FROM {outbox} WHERE id IN (SELECT value FROM json_each(?1)) LIMIT 1`,

		// Of the rows that failed, those that have been due for longest, and all of their
		// keys before them. The second part takes a row of a key with an earlier one that
		// failed only if the first part has that. The parts are of numbers, as SQLite copies
		// what goes through a UNION; a CROSS JOIN keeps their order.
		ordered: `WITH due AS MATERIALIZED (SELECT seq, key FROM {outbox} t WHERE ` + sqliteRetry + ` AND ` + sqliteNotInHand + `
				AND ` + sqliteUnhindered + `f.available_at > ?6)) ORDER BY available_at, seq LIMIT ?1),
			failed AS MATERIALIZED (SELECT seq FROM due WHERE key = '' UNION ALL
				SELECT f.seq FROM (SELECT key, max(seq) AS last FROM due WHERE key <> '' GROUP BY key) t
				CROSS JOIN {outbox} f INDEXED BY "{table}_failed" ON f.key = t.key AND f.seq <= t.last AND ` + strings.ReplaceAll(sqliteNotInHand, "seq", "f.seq") + `
					AND f.processed_at IS NULL AND f.attempts > 0),
			next AS (SELECT * FROM (SELECT seq FROM failed ORDER BY seq LIMIT ?1)
				UNION ALL
				SELECT * FROM (SELECT seq FROM {outbox} t WHERE ` + sqliteFresh + ` AND ` + sqliteNotInHand + `
					AND ` + sqliteUnhindered + `(f.available_at > ?6 OR ` + strings.ReplaceAll(sqliteNotInHand, "seq", "f.seq") + ` AND f.seq NOT IN (SELECT seq FROM failed))))
					ORDER BY seq LIMIT ?1))
			SELECT ` + sqliteRow + ` FROM next CROSS JOIN {outbox} USING (seq)`,
		claim: sqliteTimeLast.Replace(`UPDATE {outbox} SET claim = claim + 1, owner = iif(` + sqliteCrashed + `, '', ?2), crashes = ` + sqliteCrashed + `,
			available_at = iif(` + sqliteCrashed + `, available_at, ?6 + ?3) WHERE seq IN (
			SELECT seq FROM (SELECT seq, sum(` + sqliteBytes + `) OVER (ORDER BY seq ROWS UNBOUNDED PRECEDING) - ` + sqliteBytes + ` AS ahead FROM {outbox} WHERE seq IN (
				SELECT seq FROM (SELECT seq FROM {outbox} WHERE ` + sqliteRetry + ` AND crashes = 0 ORDER BY available_at, seq LIMIT ?1)
				UNION ALL
				SELECT seq FROM (SELECT seq FROM {outbox} WHERE ` + sqliteFresh + ` AND crashes = 0 ORDER BY seq LIMIT ?1)
				ORDER BY seq LIMIT ?1)) WHERE ahead < ?5)
			RETURNING ` + strings.Replace(sqliteRow, ", claim", ", iif(crashes > 0, -1, claim)", 1)),

		suspects: `SELECT coalesce(min(crashes) FILTER (WHERE crashes < ?1), 0), count(*) FROM {outbox} WHERE processed_at IS NULL AND crashes > 0 AND available_at <= ?2`,
		countSuspects: `UPDATE {outbox} SET claim = claim + 1, owner = '', crashes = crashes + 1
			WHERE processed_at IS NULL AND crashes > 0 AND available_at <= ?4 AND owner NOT IN ('', ?1) AND available_at >= ?4 + ?2 - ?3`,
		claimSuspects: `UPDATE {outbox} SET claim = claim + 1, owner = ?2, crashes = ?6, available_at = ?7 + ?3 WHERE seq IN (
			SELECT seq FROM (SELECT seq, sum(` + sqliteBytes + `) OVER (ORDER BY seq ROWS UNBOUNDED PRECEDING) - ` + sqliteBytes + ` AS ahead FROM (
				SELECT seq, payload, headers FROM {outbox} WHERE processed_at IS NULL AND crashes > 0 AND crashes = ?4 AND available_at <= ?7 ORDER BY seq LIMIT ?1)) WHERE ahead < ?5)
			RETURNING ` + sqliteRow,
		crashed: `SELECT ` + strings.Replace(sqliteRow, ", claim", ", crashes", 1) + ` FROM {outbox}
			WHERE processed_at IS NULL AND crashes > 0 AND available_at <= ?3 AND crashes >= ?1 AND seq > ?2 ORDER BY seq LIMIT 1`,

		due: sqliteDue.Replace(`SELECT seq FROM (SELECT seq FROM (SELECT seq FROM {outbox} WHERE ` + sqliteRetry + ` LIMIT ?1)
			UNION ALL SELECT seq FROM (SELECT seq FROM {outbox} WHERE ` + sqliteFresh + ` AND seq >= ?2 LIMIT ?1)) LIMIT 1`),

		deleteKnown: `DELETE FROM {outbox} WHERE ` + sqliteKnown,
		keepKnown:   `UPDATE {outbox} SET processed_at = ?2, crashes = 0 WHERE processed_at IS NULL AND ` + sqliteKnown,
		left:        `SELECT count(*) FROM {outbox} WHERE processed_at IS NULL AND ` + sqliteKnown,
		leftFree:    `SELECT count(*) FROM {outbox} WHERE processed_at IS NULL AND ` + sqliteListed + `t.seq || '.' || t.claim || '.' || t.attempts || '.' || t.id)`,
		leftClaimed: `SELECT count(*) FROM {outbox} WHERE processed_at IS NULL AND ` + sqliteClaimed,
		reused: `SELECT count(*) FROM {outbox} WHERE seq IN (SELECT CAST(value AS INTEGER) FROM json_each(?1))
			AND seq || '.' || id NOT IN (SELECT value FROM json_each(?1))`,
		deleteClaimed: `DELETE FROM {outbox} WHERE ` + sqliteClaimed,
		keepClaimed:   `UPDATE {outbox} SET processed_at = ?3, crashes = 0 WHERE processed_at IS NULL AND ` + sqliteClaimed,

		renew:       `UPDATE {outbox} SET available_at = ?4 + ?3 WHERE processed_at IS NULL AND ` + sqliteClaimed + ` RETURNING id`,
		fail:        sqliteFail + ` + ?2` + sqliteFailed,
		free:        sqliteFree + sqliteFailed,
		failClaimed: sqliteFail + ` + ?3` + sqliteFailed + ` AND owner = ?2`,
		freeClaimed: sqliteFree + sqliteFailed + ` AND owner = ?2`,

		pending: countPending,
		lag: `SELECT count(*), coalesce(min(since), 0) FROM (
			SELECT coalesce(requeued_at, created_at) AS since FROM {outbox}
				WHERE processed_at IS NULL AND attempts < 1 AND available_at <= ?3 AND seq NOT BETWEEN ?1 AND ?2
			UNION ALL SELECT coalesce(requeued_at, created_at) FROM {outbox}
				WHERE processed_at IS NULL AND attempts > 0 AND available_at <= ?3 AND seq NOT BETWEEN ?1 AND ?2)`,
		prunable:   `SELECT count(*) FROM {outbox} WHERE processed_at < ?1`,
		prune:      sqlitePrune,
		pruneAlone: sqlitePrune,
		failing:    failingText,

		suppressors: "a trigger that raises IGNORE",

		sent: `SELECT id FROM {dlq} WHERE branch = ?1 AND id = ?2`,
		send: `INSERT INTO {dlq} (branch, id, outbox_seq, topic, key, payload, headers, trace, created_at,
				error, error_type, reason, attempts, first_failed_at, last_failed_at, redriven, order_key)
			VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)
			ON CONFLICT (id, branch) DO UPDATE SET version = version + 1,
				outbox_seq = excluded.outbox_seq, topic = excluded.topic, key = excluded.key,
				payload = excluded.payload, headers = excluded.headers, trace = excluded.trace, created_at = excluded.created_at,
				error = excluded.error, error_type = excluded.error_type, reason = excluded.reason,
				attempts = excluded.attempts, last_failed_at = excluded.last_failed_at,
				redriven = max(redriven, excluded.redriven), order_key = excluded.order_key
			WHERE excluded.reason <> 'key parked'`,
		moved: `SELECT EXISTS (SELECT 1 FROM {dlq} WHERE id = ?1 AND branch = ?2 AND outbox_seq = ?3)
			AND NOT EXISTS (SELECT 1 FROM {outbox} WHERE seq = ?3 AND id = ?1 AND processed_at IS NULL)`,
		list: `SELECT seq, version, outbox_seq, id, topic, key, payload, headers, trace, created_at,
				error, error_type, reason, attempts, first_failed_at, last_failed_at, redriven, branch, order_key
			FROM {dlq} WHERE seq > ?1 ORDER BY seq LIMIT ?2`,
		update: `UPDATE {dlq} SET version = version + 1, error = ?3, error_type = ?4, reason = ?5, attempts = ?6,
				first_failed_at = ?7, last_failed_at = ?8, redriven = ?9, order_key = ?10
			WHERE seq = ?1 AND ` + sqliteLetterID + ` = ?2`,
		remove: `DELETE FROM {dlq} WHERE ` + sqliteLetters + ` RETURNING ` + sqliteLetterID,
		kept:   `SELECT count(*) FROM {dlq} WHERE ` + sqliteLetters,
		replace: []string{
			`DELETE FROM {outbox} WHERE id IN (SELECT id FROM {dlq} WHERE ` + sqliteLetters + `)`,
		},
		ofBranch: `SELECT ` + sqliteLetterID + `, branch FROM {dlq} WHERE branch <> '' AND ` + sqliteLetters + ` ORDER BY seq LIMIT 1`,
		ofKey: `SELECT order_key, count(*) FILTER (WHERE ` + sqliteLetters + `), count(*) FROM {dlq}
			WHERE order_key IN (SELECT order_key FROM {dlq} WHERE order_key <> '' AND ` + sqliteLetters + `)
			GROUP BY order_key, branch HAVING count(*) FILTER (WHERE ` + sqliteLetters + `) BETWEEN 1 AND count(*) - 1 LIMIT 1`,
		rowless: `SELECT count(*) FROM {dlq} d WHERE ` + sqliteLetters + ` AND NOT EXISTS (SELECT 1 FROM {outbox} o WHERE o.id = d.id)`,
		requeue: `INSERT INTO {outbox} (id, topic, key, payload, headers, trace, created_at, requeued_at)
			SELECT id, topic, key, payload, headers, trace, created_at, ?2 FROM {dlq} WHERE ` + sqliteLetters + ` ORDER BY seq
			RETURNING (SELECT ` + sqliteLetterID + ` FROM {dlq} d WHERE d.id = {outbox}.id AND d.branch = '')`,
		parkedKeys: `SELECT DISTINCT order_key FROM {dlq}
			WHERE branch = ?1 AND order_key <> '' AND order_key IN (SELECT value FROM json_each(?2))`,
		parked:   `SELECT count(*) FROM {dlq}`,
		snapshot: &sql.TxOptions{ReadOnly: true}, // else it would lock the file for writing

		admit: `INSERT INTO {inbox} (consumer, id, done_at) SELECT ?1, value, ?3 FROM json_each(?2) WHERE true
			ON CONFLICT (consumer, id) DO NOTHING RETURNING id`,
		admitted:        `SELECT id FROM {inbox} WHERE consumer = ?1 AND id IN (SELECT value FROM json_each(?2))`,
		pruneInbox:      sqlitePruneInbox,
		pruneInboxAlone: sqlitePruneInbox,
		lastNote:        `SELECT coalesce(max(done_at), ?2) FROM {inbox} WHERE consumer = ?1 AND done_at < ?2`,

		sinkColumns: `SELECT name, type, 0, false, hidden IN (2, 3), "notnull" AND dflt_value IS NULL AND NOT (pk AND upper(type) = 'INTEGER')
			FROM pragma_table_xinfo(?1, ?2)`,
		sinkAdvice: sqliteCommonAdvice,
		rowError:   sqliteRowError,
		noArbiter: func(err error) bool {
			return strings.Contains(err.Error(), "ON CONFLICT clause does not match")
		},

		strings:    jsonStrings,
		letters:    func(ids []string) []any { return []any{jsonStrings(ids)} },
		known:      sqliteKnownRows,
		attempted:  sqliteAttempted,
		claims:     sqliteClaims,
		failures:   sqliteFailures,
		time:       func(micros int64) any { return micros },
		timed:      true,
		prepares:   true,
		duplicate:  sqliteDuplicate,
		addedTwice: sqliteAddedTwice,
		refused:    func(err error) bool { return strings.Contains(err.Error(), "constraint failed") },
		busy:       sqliteBusy,
		conflict:   func(error) bool { return false }, // it has one writer at a time
		outdated:   sqliteOutdated,
		advice:     sqliteAdvice,
	}
}

func sqliteShapes() []shape {
	message := []column{
		{name: "seq", kind: "INTEGER", key: true},
		{name: "id", kind: "TEXT"},
		{name: "topic", kind: "TEXT"},
		{name: "key", kind: "TEXT"},
		{name: "payload", kind: "BLOB"},
		{name: "headers", kind: "TEXT"},
		{name: "trace", kind: "TEXT"},
		{name: "created_at", kind: "INTEGER"},
	}
	return []shape{
		{false, append(slices.Clone(message),
			column{name: "processed_at", kind: "INTEGER", nullable: true},
			column{name: "available_at", kind: "INTEGER", since: 3},
			column{name: "attempts", kind: "INTEGER", since: 3},
			column{name: "last_error", kind: "TEXT", since: 3},
			column{name: "claim", kind: "INTEGER", since: 3},
			column{name: "owner", kind: "TEXT", since: 3},
			column{name: "requeued_at", kind: "INTEGER", nullable: true, since: 5},
			column{name: "crashes", kind: "INTEGER", since: 7},
		)},
		{true, append(slices.Clone(message),
			column{name: "outbox_seq", kind: "INTEGER"},
			column{name: "error", kind: "TEXT"},
			column{name: "error_type", kind: "TEXT"},
			column{name: "reason", kind: "TEXT"},
			column{name: "attempts", kind: "INTEGER"},
			column{name: "first_failed_at", kind: "INTEGER"},
			column{name: "last_failed_at", kind: "INTEGER"},
			column{name: "version", kind: "INTEGER", since: 2},
			column{name: "redriven", kind: "INTEGER", since: 2},
			column{name: "branch", kind: "TEXT", since: 2},
			column{name: "order_key", kind: "TEXT", since: 2},
		)},
	}
}

// A list is one JSON argument, so that a statement is the same for a list of
// any length and is not held to SQLite's limit of 32,766 arguments.
func jsonStrings(list []string) any {
	text, _ := json.Marshal(list) // never fails for strings
	return string(text)
}

func sqliteKnownRows(rows []Row) []any {
	return jsonRows(rows, func(text []byte, _ Row) []byte { return text })
}

func sqliteAttempted(rows []Row) []any {
	return jsonRows(rows, func(text []byte, row Row) []byte {
		text = append(strconv.AppendInt(text, row.claim, 10), '.')
		return append(strconv.AppendInt(text, row.attempts(), 10), '.')
	})
}

func sqliteClaims(rows []Row) []any {
	return jsonRows(rows, func(text []byte, row Row) []byte {
		return append(strconv.AppendInt(text, row.claim, 10), '.')
	})
}

// jsonRows is jsonStrings of what rows are known by: the number, what between appends, and
// the ID.
func jsonRows(rows []Row, between func([]byte, Row) []byte) []any {
	text := append(make([]byte, 0, 64*len(rows)), '[')
	for i, row := range rows {
		if i > 0 {
			text = append(text, ',')
		}
		text = between(append(strconv.AppendInt(append(text, '"'), row.Seq, 10), '.'), row)
		text = append(appendInJSON(text, row.ID), '"')
	}
	return []any{string(append(text, ']'))}
}

// appendInJSON appends what stands for a text between its quotes. IDs rarely have anything
// to escape, and the encoder looks for a lot more.
func appendInJSON(text []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' {
			quoted, _ := json.Marshal(s) // never fails for strings
			return append(text, quoted[1:len(quoted)-1]...)
		}
	}
	return append(text, s...)
}

func sqliteFailures(list []failure) []any {
	values := make([][6]any, len(list))
	for i, f := range list {
		values[i] = [6]any{f.seq, f.claim, f.attempts, f.delay.Microseconds(), f.text, f.id}
	}
	text, _ := json.Marshal(values) // never fails for numbers and strings
	return []any{string(text)}
}

func sqliteInsertOf(rows int, delayed bool) string {
	names, row := "", "(?, ?, ?, ?, ?, ?, ?)"
	if delayed {
		names, row = ", available_at, requeued_at, attempts", "(?, ?, ?, ?, ?, ?, ?, ?, ?, "+strconv.Itoa(delayedAttempts)+")"
	}
	return `INSERT INTO {outbox} (id, topic, key, payload, headers, trace, created_at` + names + `) VALUES ` + row + strings.Repeat(", "+row, rows-1)
}

// sqliteInserted are the arguments without the time before which messages wait, or with it twice.
func sqliteInserted(args []any, delayed bool) []any {
	list := make([]any, 0, len(args)+len(args)/columns)
	for row := range slices.Chunk(args, columns) {
		list = append(list, row[:notBefore]...)
		if delayed {
			list = append(list, row[notBefore], row[notBefore])
		}
	}
	return list
}

// Errors are told apart by SQLite's own texts, which every driver passes on;
// their Go types are the drivers'.

func sqliteDuplicate(err error, table string) bool {
	_, rest, found := strings.Cut(err.Error(), "UNIQUE constraint failed: "+table+".id")
	return found && (rest == "" || rest[0] == ' ')
}

func sqliteAddedTwice(err error) bool {
	return strings.Contains(err.Error(), "duplicate column name")
}

func sqliteBusy(err error) bool {
	return strings.Contains(err.Error(), "database is locked")
}

func sqliteOutdated(err error) bool {
	return slices.ContainsFunc([]string{"no such table", "no such column", "has no column named", "ON CONFLICT clause does not match"},
		func(text string) bool { return strings.Contains(err.Error(), text) })
}

func sqliteAdvice(err error) string {
	text := err.Error()
	for _, known := range [...]struct{ text, advice string }{
		{"no such table", "call Migrate first"},
		{"no such column", "the table has another shape; call Migrate, which names the columns"},
		{"ON CONFLICT clause does not match", "the table is of an earlier version; call Migrate"},
		{"has no column named", "the table has another shape; call Migrate, which names the columns"},
	} {
		if strings.Contains(text, known.text) {
			return known.advice
		}
	}
	return sqliteCommonAdvice(err)
}

// sqliteCommonAdvice is for errors that have nothing to do with the tables of this package.
func sqliteCommonAdvice(err error) string {
	text := err.Error()
	for _, known := range [...]struct{ text, advice string }{
		{"unable to open database file", "does the folder exist, and may this process write to it?"},
		{"database is locked", "another connection held the write lock for longer than busy_timeout; look for a transaction left open"},
		{"file is not a database", "the path is that of another kind of file"},
	} {
		if strings.Contains(text, known.text) {
			return known.advice
		}
	}
	return ""
}

func sqliteRowError(err error) rowErrorKind {
	has := func(texts ...string) bool {
		return slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(err.Error(), text) })
	}
	switch {
	case has("CHECK constraint failed", "NOT NULL constraint failed", "cannot store ", "datatype mismatch", "string or blob too big"):
		return refusedForGood
	case has("constraint failed"): // for what other rows have, or by a trigger
		return refused
	case sqliteOutdated(err):
		return ofTable
	}
	return notOfRow
}

// SQLiteDSN returns the data source name of a database file for the driver
// modernc.org/sqlite:
//
//	db, err := sql.Open("sqlite", couriersql.SQLiteDSN("data/orders.db"))
//
// The path may hold any character. The file is created by the first connection,
// its folder is not. Processes that open a new file at the same moment may see
// it locked, but in Migrate, which waits: let that be the first call. The name
// sets, for every connection of the pool:
//
//   - WAL, so that readers and the writer do not wait for each other;
//   - a busy timeout of 5 s, for which a writer waits for another;
//   - synchronous=FULL: what was committed survives a power failure;
//   - transactions that are IMMEDIATE unless they are read-only: a deferred one
//     fails at its first write, without waiting, if another wrote since it began;
//   - foreign keys.
//
// A database in memory (":memory:") is one for each connection, and gone with it:
// Migrate refuses it but with SetMaxOpenConns(1).
//
// FULL is one fsync a commit: a tenth of the throughput at 100 rows a batch, but
// the better part of a transaction that writes one row. With
// "&_synchronous=NORMAL" appended, a killed process still loses nothing, but a
// power failure may take the last commits back. Lost marks are harmless, they
// deliver again. A lost write is not: its message may have been delivered, and
// the business row that it tells of is gone.
//
// SQLite has one writer at a time however many connections there are; more of
// them give reads in parallel only, and a handful is plenty. SetMaxOpenConns(1)
// makes writers queue in the pool instead of in SQLite's busy loop, but a
// goroutine that calls the database while it holds a transaction then waits for
// itself.
func SQLiteDSN(path string) string {
	// An empty path would be a temporary database, gone with its connection;
	// cleaned, it is a folder, which cannot be opened.
	path = filepath.ToSlash(filepath.Clean(path))
	escaped := (&url.URL{Path: path}).EscapedPath()
	return "file:" + escaped + "?_busy_timeout=5000&_foreign_keys=on&_txlock=immediate&_error_rc=1" +
		"&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)"
}
