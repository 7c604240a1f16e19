package couriersql

import (
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

//go:embed migrations/postgres/*.sql migrations/postgres_dlq/*.sql migrations/postgres_inbox/*.sql migrations/postgres_table/*.sql
var postgresMigrations embed.FS

// The bytes of a row that may be many. The size of a large value is known without
// reading it.
const postgresBytes = `(octet_length(payload) + octet_length(headers))`

// What a fetch reads of a row: payload and headers where they have up to so many bytes,
// else no payload and, in the place of the headers, how many bytes they have.
func postgresUpTo(bytes string) string {
	return `seq, id, topic, key, CASE WHEN ` + postgresBytes + ` <= ` + bytes + `::bigint THEN payload END,
		CASE WHEN ` + postgresBytes + ` <= ` + bytes + `::bigint THEN headers ELSE ` + postgresBytes + `::text END, trace, created_at, attempts, claim`
}

// The rows to be handed out, each kind by an index of its own: those that have not
// failed, and those that have. The transaction of an elected relay began long ago, and
// so did its now().
const (
	due   = `processed_at IS NULL AND available_at <= statement_timestamp()`
	fresh = due + ` AND attempts < 1`
	retry = due + ` AND attempts > 0`
)

func postgresGrammar() grammar {
	// The list of seqs is for the index, at any size of the table. What follows it is no
	// join to a planner: for one, it may compare each row with each.
	const knownSeq = `t.seq = ANY($1::bigint[]) AND ((t.seq, t.id) IN (SELECT * FROM unnest($1::bigint[], $2::text[])))`
	const known = knownSeq + ` IS TRUE`
	const claims = `t.seq = ANY($1::bigint[]) AND t.owner = $4 AND
		((t.seq, t.claim, t.id) IN (SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[]))) IS TRUE`
	const claimed = `WHERE ` + claims + ` AND t.processed_at IS NULL`
	failed := func(owned, lock string) string {
		return `FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[]) AS f(seq, claim, attempts, delay, error)
		WHERE t.seq = f.seq AND t.seq IN (
			SELECT l.seq FROM {outbox} l JOIN unnest($1::bigint[], $2::bigint[], $3::bigint[], $6::text[]) AS g(seq, claim, attempts, id)
				ON l.seq = g.seq AND l.id = g.id AND l.claim = g.claim AND l.attempts = g.attempts
			WHERE l.processed_at IS NULL` + owned + ` FOR UPDATE OF l` + lock + `)`
	}
	// Between the first and the last in hand there may be others.
	notInHand := func(seq string) string {
		return `(` + seq + ` NOT BETWEEN $2 AND $3 OR NOT $6::int8multirange @> ` + seq + `)`
	}
	const noteFailure = `UPDATE {outbox} t SET attempts = t.attempts + 1, available_at = clock_timestamp() + f.delay * interval '1 microsecond',
			last_error = f.error, owner = '', crashes = 0 `
	// The rows of a key that failed. The order that the subqueries ask for is to be had
	// from the index of the digests alone: by another, they would read all that failed.
	const sameKey = `hashtextextended(f.key, 0) >= hashtextextended(t.key, 0)
		AND hashtextextended(f.key, 0) <= hashtextextended(t.key, 0) AND f.key = t.key AND f.processed_at IS NULL AND f.attempts > 0`
	unhindered := func(by string) string {
		return `(key = '' OR (SELECT f.seq FROM {outbox} f WHERE ` + sameKey + ` AND f.seq < t.seq AND ` + by + `
			ORDER BY hashtextextended(f.key, 0), f.seq LIMIT 1) IS NULL)`
	}
	// It locks no row more than limit: the second part is asked for the rest.
	locking := func(columns, from, more string) string {
		return `SELECT * FROM (SELECT ` + columns + ` FROM {outbox} WHERE ` + retry + more + ` ORDER BY available_at, seq FOR UPDATE SKIP LOCKED) AS failed
			UNION ALL
			SELECT * FROM (SELECT ` + columns + ` FROM {outbox} WHERE ` + fresh + more + ` AND seq >= ` + from + `::bigint ORDER BY seq FOR UPDATE SKIP LOCKED) AS others
			LIMIT $1`
	}
	const giveBack = `UPDATE {outbox} t SET available_at = 'epoch', owner = '', crashes = 0 `
	const suspect = `processed_at IS NULL AND crashes > 0 AND available_at <= statement_timestamp()`
	const claimedRow = `t.seq, t.id, t.topic, t.key, t.payload, t.headers, t.trace, t.created_at, t.attempts`
	// A claim of another relay that has run out, and was made or renewed since this one has
	// contact, for which it has been so many microseconds.
	crashed := func(owner, lease, contact string) string {
		return `(owner NOT IN ('', ` + owner + `) AND available_at >= now() - (` + contact + `::bigint - ` + lease + `::bigint) * interval '1 microsecond')`
	}
	const free = `seq IN (SELECT t.seq FROM {outbox} t WHERE ` + known + ` AND t.processed_at IS NULL FOR UPDATE SKIP LOCKED)`
	const letterID = `seq || '.' || version || '.' || (extract(epoch FROM first_failed_at) * 1000000)::bigint`
	const prunable = `seq IN (SELECT seq FROM {outbox} WHERE processed_at < $1 ORDER BY processed_at LIMIT $2 FOR UPDATE SKIP LOCKED)`
	const prunableNotes = `ctid = ANY(ARRAY(SELECT ctid FROM {inbox} WHERE consumer = $1 AND done_at < $2 LIMIT $3 FOR UPDATE SKIP LOCKED))`
	const alone = `WITH alone AS MATERIALIZED (SELECT pg_try_advisory_xact_lock(hashtextextended('courier prune ' || '{outbox}'::regclass::oid, 0))) `
	const letters = `seq = ANY($1::bigint[]) AND ` + letterID + ` = ANY($2::text[])`
	return grammar{
		migrations:    folder(postgresMigrations, "migrations/postgres"),
		dlqMigrations: folder(postgresMigrations, "migrations/postgres_dlq"),
		shapes:        postgresShapes(),

		inboxMigrations: folder(postgresMigrations, "migrations/postgres_inbox"),
		inboxShape: shape{columns: []column{
			{name: "consumer", kind: "TEXT", key: true},
			{name: "id", kind: "TEXT", key: true},
			{name: "done_at", kind: postgresTime},
		}},

		begin: `BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock(hashtextextended('courier_migrations', 0))`,

		createVersions: `CREATE TABLE IF NOT EXISTS {versions} (
			outbox     text        NOT NULL,
			version    integer     NOT NULL,
			applied_at timestamptz NOT NULL,
			PRIMARY KEY (outbox, version)
		)`,
		migrated:   `SELECT to_regclass('{versions}') IS NOT NULL`,
		version:    `SELECT coalesce(max(version), 0) FROM {versions} WHERE outbox = $1`,
		addVersion: `INSERT INTO {versions} (outbox, version, applied_at) VALUES ($1, $2, $3)`,
		columns: `SELECT a.attname, upper(format_type(a.atttypid, a.atttypmod)), a.attnotnull,
				a.atthasdef OR a.attidentity <> '', coalesce(a.attnum = ANY(i.indkey), false)
			FROM pg_attribute a LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
			WHERE a.attrelid = to_regclass('"' || replace($1, '.', '"."') || '"') AND a.attnum > 0 AND NOT a.attisdropped`,
		// By whatever names; one that is still built, or was in vain, is not valid.
		indexed: `SELECT count(DISTINCT i) = 2 FROM pg_index, LATERAL (SELECT (pg_get_expr(indpred, indrelid), pg_get_indexdef(indexrelid, 1, true))::text) AS x(i)
			WHERE indrelid = '{outbox}'::regclass AND indisvalid
			AND i IN (('((processed_at IS NULL) AND (attempts < 1))', 'seq')::text, ('((processed_at IS NULL) AND (attempts > 0))', 'available_at')::text)`,
		addIndex: addIndexes,
		// In the order of the path; the first is the one that is used.
		schemas: `SELECT coalesce(string_agg(n.nspname, ', ' ORDER BY array_position(current_schemas(false), n.nspname)), '')
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relname = '{table}' AND c.relkind IN ('r', 'p') AND n.nspname = ANY (current_schemas(false)) HAVING count(*) > 1`,
		// The sequence is the column's own, or one that its default names.
		fit: `SELECT EXISTS (SELECT FROM pg_class WHERE oid IN ('{outbox}'::regclass, to_regclass('{dlq}')) AND relpersistence <> 'p'),
			EXISTS (SELECT FROM pg_sequence WHERE (seqcache > 1 OR seqcycle OR seqincrement < 0) AND seqrelid IN (
				SELECT objid FROM pg_depend WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass AND refobjid = '{outbox}'::regclass
				UNION ALL
				SELECT refobjid FROM pg_depend JOIN pg_attrdef a ON objid = a.oid WHERE classid = 'pg_attrdef'::regclass AND adrelid = '{outbox}'::regclass))`,
		// What is created comes to be where the outbox is, or in the schema ?1, and not in
		// the first schema of the path.
		settle: `SELECT set_config('search_path', concat_ws(', ', quote_ident(schema), nullif(current_setting('search_path'), '')), true)
			FROM (SELECT coalesce(nullif($1::text, ''), (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
				WHERE c.oid = to_regclass('{outbox}')))) AS home(schema)
			WHERE schema IS DISTINCT FROM current_schema()`,

		rowsPerInsert: 1000, // one statement for any number, which the driver keeps prepared
		insert: func(_ int, delayed bool) string {
			if delayed {
				return fmt.Sprintf(`INSERT INTO {outbox} (id, topic, key, payload, headers, trace, created_at, available_at, requeued_at, attempts)
					SELECT v.*, not_before, %d FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::timestamptz[], $8::timestamptz[])
					AS v(id, topic, key, payload, headers, trace, created_at, not_before)`, delayedAttempts)
			}
			return `INSERT INTO {outbox} (id, topic, key, payload, headers, trace, created_at)
				SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::timestamptz[])`
		},
		inserted: postgresInserted,

		// Statistics of a time when nothing was pending promise a planner that it
		// may as well read all that is, and sort it: with a backlog of a million
		// rows, for each batch anew. The partial index has the order already, whatever the
		// arguments: to plan for them anew takes longer than to fetch a few rows.
		plan: `SELECT set_config('enable_sort', 'off', true), set_config('enable_bitmapscan', 'off', true),
			set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true),
			set_config('plan_cache_mode', 'force_generic_plan', true)`,
		orphan: `SELECT set_config('idle_in_transaction_session_timeout', $1::bigint::text, true)
			WHERE current_setting('idle_in_transaction_session_timeout')::interval NOT BETWEEN interval '1 ms' AND $1::bigint * interval '1 ms'`,

		// Of the rows that failed, those that have been due for longest, and all of their
		// keys before them. The second part takes a row of a key with an earlier one that
		// failed only if the first part has that. It jumps over long runs of what is in hand.
		ordered: `WITH due AS MATERIALIZED (SELECT seq, key FROM {outbox} t WHERE ` + retry + ` AND ` + notInHand("seq") + `
				AND ` + unhindered("f.available_at > statement_timestamp()") + ` ORDER BY available_at, seq LIMIT $1),
			failed AS MATERIALIZED (SELECT seq FROM due WHERE key = '' UNION ALL
				SELECT e.seq FROM (SELECT key, max(seq) AS last FROM due WHERE key <> '' GROUP BY key) t, LATERAL (
					SELECT f.seq FROM {outbox} f WHERE ` + sameKey + ` AND f.seq <= t.last AND ` + notInHand("f.seq") + `
					ORDER BY hashtextextended(f.key, 0), f.seq LIMIT $1) e)
			SELECT ` + postgresUpTo("$5") + ` FROM {outbox} WHERE seq = ANY(ARRAY(SELECT seq FROM failed ORDER BY seq LIMIT $1))
			UNION ALL
			(SELECT others.* FROM unnest('{(,)}'::int8multirange - $7::int8multirange) AS gap, LATERAL (
				SELECT ` + postgresUpTo("$5") + ` FROM {outbox} t WHERE ` + fresh + ` AND ` + notInHand("seq") + `
				AND seq >= greatest(lower(gap), $4::bigint) AND seq <= coalesce(upper(gap) - 1, 9223372036854775807)
				AND ` + unhindered("(f.available_at > statement_timestamp() OR "+notInHand("f.seq")+" AND f.seq NOT IN (SELECT seq FROM failed))") + `
				ORDER BY seq LIMIT $1) AS others LIMIT $1)`,
		lock:  locking(postgresUpTo("$3"), "$2", ""),
		due:   `SELECT seq FROM (` + locking("seq", "$2", "") + `) AS d LIMIT 1`,
		large: `SELECT t.seq, t.payload, t.headers FROM {outbox} t WHERE ` + known,
		claim: `WITH next AS MATERIALIZED (SELECT seq, crashed FROM (SELECT seq, crashed, sum(bytes) OVER (ROWS UNBOUNDED PRECEDING) - bytes AS ahead
				FROM (` + locking("seq, "+crashed("$2", "$3", "$6")+" AS crashed, "+postgresBytes+" AS bytes", "$4", " AND crashes = 0") + `) AS b) AS c WHERE ahead < $5::bigint)
			UPDATE {outbox} t SET claim = t.claim + 1, owner = CASE WHEN crashed THEN '' ELSE $2 END, crashes = crashed::integer,
				available_at = CASE WHEN crashed THEN t.available_at ELSE now() + $3::bigint * interval '1 microsecond' END
			FROM next WHERE t.seq = next.seq
			RETURNING ` + claimedRow + `, CASE WHEN crashed THEN -1 ELSE t.claim END`,

		suspects: `SELECT coalesce(min(crashes) FILTER (WHERE crashes < $1), 0), count(*) FROM {outbox} WHERE ` + suspect,
		countSuspects: `UPDATE {outbox} SET claim = claim + 1, owner = '', crashes = crashes + 1 WHERE seq IN (
			SELECT seq FROM {outbox} WHERE ` + suspect + ` AND ` + crashed("$1", "$2", "$3") + ` FOR UPDATE SKIP LOCKED)`,
		claimSuspects: `WITH next AS MATERIALIZED (SELECT seq FROM (SELECT seq, sum(bytes) OVER (ROWS UNBOUNDED PRECEDING) - bytes AS ahead
				FROM (SELECT seq, ` + postgresBytes + ` AS bytes FROM {outbox} WHERE ` + suspect + ` AND crashes = $4 ORDER BY seq LIMIT $1 FOR UPDATE SKIP LOCKED) AS b) AS c
				WHERE ahead < $5::bigint)
			UPDATE {outbox} t SET claim = t.claim + 1, owner = $2, crashes = $6, available_at = now() + $3::bigint * interval '1 microsecond'
			FROM next WHERE t.seq = next.seq
			RETURNING ` + claimedRow + `, t.claim`,
		crashed: `SELECT seq, id, topic, key, payload, headers, trace, created_at, attempts, crashes FROM {outbox}
			WHERE ` + suspect + ` AND crashes >= $1 AND seq > $2 ORDER BY seq LIMIT 1 FOR UPDATE SKIP LOCKED`,

		delete:      `DELETE FROM {outbox} WHERE seq = ANY($1::bigint[])`,
		keep:        `UPDATE {outbox} SET processed_at = $2 WHERE seq = ANY($1::bigint[]) AND processed_at IS NULL`,
		deleteKnown: `DELETE FROM {outbox} t WHERE ` + known,
		keepKnown:   `UPDATE {outbox} t SET processed_at = $3, crashes = 0 WHERE ` + known + ` AND t.processed_at IS NULL`,
		deleteFree:  `DELETE FROM {outbox} WHERE ` + free,
		keepFree:    `UPDATE {outbox} SET processed_at = $3 WHERE ` + free,
		left:        `SELECT count(*) FROM {outbox} t WHERE ` + known + ` AND t.processed_at IS NULL`,
		leftFree: `SELECT count(*) FROM (SELECT FROM {outbox} t WHERE t.seq = ANY($1::bigint[]) AND t.processed_at IS NULL
			AND ((t.seq, t.claim, t.attempts, t.id) IN (SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[]))) IS TRUE FOR UPDATE SKIP LOCKED) AS l`,
		leftClaimed:   `SELECT count(*) FROM {outbox} t ` + claimed,
		reused:        `SELECT count(*) FROM {outbox} t WHERE ` + knownSeq + ` IS FALSE`,
		deleteClaimed: `DELETE FROM {outbox} t WHERE ` + claims,
		keepClaimed:   `UPDATE {outbox} t SET processed_at = $5, crashes = 0 ` + claimed,

		renew: `UPDATE {outbox} t SET available_at = now() + $5::bigint * interval '1 microsecond' ` + claimed + ` RETURNING t.id`,
		// In a transaction that has been open for a while, now() is long ago.
		hold: `UPDATE {outbox} SET available_at = clock_timestamp() + $2::bigint * interval '1 microsecond' WHERE seq = ANY($1::bigint[])`,
		held: `UPDATE {outbox} SET available_at = clock_timestamp() + $3::bigint * interval '1 microsecond' WHERE ` + free + `
			AND processed_at IS NULL AND available_at > statement_timestamp() RETURNING id`,
		// A row that somebody else has locked is in other hands by now, which also
		// decide about it: to wait for them would be to undo what they do.
		fail: noteFailure + failed("", " SKIP LOCKED"),
		free: giveBack + failed("", " SKIP LOCKED"),
		// A claim is worth waiting for: another relay's fetch locks a row for a moment
		// that it saw before it was claimed, and then leaves it alone.
		failClaimed: noteFailure + failed(" AND l.owner = $7", ""),
		freeClaimed: giveBack + failed(" AND l.owner = $7", ""),

		pending: countPending,
		lag: `SELECT count(*), greatest(least(coalesce(min(since), 'epoch'), now()), '0001-01-01Z') FROM (
			SELECT coalesce(requeued_at, created_at) AS since FROM {outbox} WHERE ` + fresh + ` AND seq NOT BETWEEN $1 AND $2
			UNION ALL SELECT coalesce(requeued_at, created_at) FROM {outbox} WHERE ` + retry + ` AND seq NOT BETWEEN $1 AND $2) AS u`,
		prunable:   `SELECT count(*) FROM {outbox} WHERE processed_at < $1`,
		prune:      `DELETE FROM {outbox} WHERE ` + prunable,
		pruneAlone: alone + `DELETE FROM {outbox} WHERE (SELECT * FROM alone) AND ` + prunable,
		leader:     leaderText,
		failing:    failingText,

		// Of a right that it lacks, a role is told by the statement itself.
		policies: `SELECT coalesce(string_agg(name, ', ' ORDER BY place), '')
			FROM (VALUES (1, 'SELECT', 'r'::"char"), (2, 'UPDATE', 'w'), (3, 'DELETE', 'd')) AS needed(place, name, command)
			WHERE row_security_active('{outbox}'::regclass) AND NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = '{outbox}'::regclass
				AND polpermissive AND polcmd IN (command, '*') AND EXISTS (SELECT FROM unnest(polroles) AS role WHERE role = 0 OR pg_has_role(role, 'USAGE')))`,
		suppressors: "a trigger that returns NULL, a rule or row-level security",

		sent: `SELECT id FROM {dlq} WHERE branch = $1 AND id = $2`,
		send: `INSERT INTO {dlq} AS d (branch, id, outbox_seq, topic, key, payload, headers, trace, created_at,
				error, error_type, reason, attempts, first_failed_at, last_failed_at, redriven, order_key)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
			ON CONFLICT (id, branch) DO UPDATE SET version = d.version + 1,
				outbox_seq = excluded.outbox_seq, topic = excluded.topic, key = excluded.key,
				payload = excluded.payload, headers = excluded.headers, trace = excluded.trace, created_at = excluded.created_at,
				error = excluded.error, error_type = excluded.error_type, reason = excluded.reason,
				attempts = excluded.attempts, last_failed_at = excluded.last_failed_at,
				redriven = greatest(d.redriven, excluded.redriven), order_key = excluded.order_key
			WHERE excluded.reason <> 'key parked'`,
		moved: `SELECT EXISTS (SELECT FROM {dlq} WHERE id = $1 AND branch = $2 AND outbox_seq = $3)
			AND NOT EXISTS (SELECT FROM {outbox} WHERE seq = $3 AND id = $1 AND processed_at IS NULL)`,
		list: `SELECT seq, version, outbox_seq, id, topic, key, payload, headers, trace, created_at,
				error, error_type, reason, attempts, first_failed_at, last_failed_at, redriven, branch, order_key
			FROM {dlq} WHERE seq > $1 ORDER BY seq LIMIT $2`,
		update: `UPDATE {dlq} SET version = version + 1, error = $3, error_type = $4, reason = $5, attempts = $6,
				first_failed_at = $7, last_failed_at = $8, redriven = $9, order_key = $10
			WHERE seq = $1 AND ` + letterID + ` = $2`,
		remove: `DELETE FROM {dlq} WHERE ` + letters + ` RETURNING ` + letterID,
		kept:   `SELECT count(*) FROM {dlq} WHERE ` + letters,
		replace: []string{
			`SELECT 1 FROM {dlq} WHERE ` + letters + ` ORDER BY seq FOR UPDATE`,
			// A row that a relay has locked is about to be marked, or to be parked
			// again, which would wait for this transaction.
			`DELETE FROM {outbox} WHERE seq IN (SELECT t.seq FROM {outbox} t
				WHERE t.id IN (SELECT id FROM {dlq} WHERE ` + letters + `) FOR UPDATE SKIP LOCKED)`,
		},
		ofBranch: `SELECT ` + letterID + `, branch FROM {dlq} WHERE branch <> '' AND ` + letters + ` ORDER BY seq LIMIT 1`,
		ofKey: `SELECT order_key, count(*) FILTER (WHERE ` + letters + `), count(*) FROM {dlq}
			WHERE order_key IN (SELECT order_key FROM {dlq} WHERE order_key <> '' AND ` + letters + `)
			GROUP BY order_key, branch HAVING count(*) FILTER (WHERE ` + letters + `) BETWEEN 1 AND count(*) - 1 LIMIT 1`,
		rowless: `SELECT count(*) FROM {dlq} d WHERE ` + letters + ` AND NOT EXISTS (SELECT FROM {outbox} o WHERE o.id = d.id)`,
		requeue: `INSERT INTO {outbox} AS t (id, topic, key, payload, headers, trace, created_at, requeued_at)
			SELECT id, topic, key, payload, headers, trace, created_at, $3 FROM {dlq} d
			WHERE ` + letters + ` AND NOT EXISTS (SELECT FROM {outbox} o WHERE o.id = d.id) ORDER BY seq
			RETURNING (SELECT ` + letterID + ` FROM {dlq} d WHERE d.id = t.id AND d.branch = '')`,
		parkedKeys: `SELECT DISTINCT k FROM unnest($2::text[]) AS k WHERE k <> '' AND EXISTS (SELECT FROM {dlq} d
			WHERE hashtextextended(d.order_key, 0) = hashtextextended(k, 0) AND d.order_key = k AND d.order_key <> '' AND d.branch = $1)`,
		parked: `SELECT count(*) FROM {dlq}`,

		admitAll: `WITH noted AS (INSERT INTO {inbox} (consumer, id) SELECT $1, id FROM unnest($2::text[]) AS names(id) RETURNING 1)
			SELECT count(*)::text FROM noted`,
		isNoted: func(err error, table string) bool {
			e, _, _ := uniqueViolation(err)
			return e != nil && e.TableName == table
		},
		admit: `INSERT INTO {inbox} (consumer, id) SELECT $1, id FROM unnest($2::text[]) AS names(id)
			ON CONFLICT (consumer, id) DO NOTHING RETURNING id`,
		admitted:        `SELECT id FROM {inbox} WHERE consumer = $1 AND id = ANY($2::text[])`,
		pruneInbox:      `DELETE FROM {inbox} WHERE ` + prunableNotes,
		pruneInboxAlone: alone + `DELETE FROM {inbox} WHERE (SELECT * FROM alone) AND ` + prunableNotes,
		lastNote:        `SELECT coalesce(max(done_at), $2) FROM {inbox} WHERE consumer = $1 AND done_at < $2`,

		// With -1, a type without a length is not taken for one of a single character.
		sinkColumns: `SELECT a.attname, format_type(a.atttypid, -1), coalesce(nullif(t.typbasetype, 0), t.oid)::bigint,
				t.typcategory NOT IN ('A', 'C') AND t.typarray <> 0, a.attgenerated <> '' OR a.attidentity = 'a',
				a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND NOT EXISTS (SELECT FROM pg_trigger
					WHERE tgrelid = a.attrelid AND NOT tgisinternal AND tgtype & 7 = 7) -- before each row that is inserted
			FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
			WHERE a.attrelid = to_regclass($1::text) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum`,
		sinkAdvice: postgresSinkAdvice,
		rowError:   postgresRowError,
		noArbiter:  func(err error) bool { return postgresCode(err) == "42P10" },

		strings:   func(list []string) any { return list },
		letters:   postgresLetters,
		known:     postgresKnown,
		attempted: postgresAttempted,
		claims:    postgresClaims,
		failures:  postgresFailures,
		time:      func(micros int64) any { return time.UnixMicro(micros) },
		isolated:  &sql.TxOptions{Isolation: sql.LevelReadCommitted},
		snapshot:  &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true},

		remote: true,
		broken: postgresBroken,

		duplicate:   postgresDuplicate,
		duplicateID: postgresDuplicateID,
		addedTwice:  func(error) bool { return false },
		refused: func(err error) bool {
			code := postgresCode(err)
			return len(code) == 5 && slices.Contains([]string{"22", "23", "54"}, code[:2])
		},
		busy:     func(err error) bool { return slices.Contains([]string{"57P03", "53300"}, postgresCode(err)) },
		conflict: func(err error) bool { return slices.Contains([]string{"40001", "40P01"}, postgresCode(err)) },
		outdated: func(err error) bool { return slices.Contains([]string{"42P01", "42703", "42P10"}, postgresCode(err)) },
		advice:   postgresAdvice,
	}
}

func postgresShapes() []shape {
	message := []column{
		{name: "seq", kind: "BIGINT", key: true},
		{name: "id", kind: "TEXT"},
		{name: "topic", kind: "TEXT"},
		{name: "key", kind: "TEXT"},
		{name: "payload", kind: "BYTEA"},
		{name: "headers", kind: "TEXT"},
		{name: "trace", kind: "TEXT"},
		{name: "created_at", kind: postgresTime},
	}
	return []shape{
		{false, append(slices.Clone(message),
			column{name: "available_at", kind: postgresTime},
			column{name: "attempts", kind: "INTEGER"},
			column{name: "last_error", kind: "TEXT"},
			column{name: "claim", kind: "BIGINT"},
			column{name: "owner", kind: "TEXT"},
			column{name: "processed_at", kind: postgresTime, nullable: true},
			column{name: "requeued_at", kind: postgresTime, nullable: true, since: 3},
			column{name: "crashes", kind: "INTEGER", since: 5},
		)},
		{true, append(slices.Clone(message),
			column{name: "version", kind: "BIGINT"},
			column{name: "outbox_seq", kind: "BIGINT"},
			column{name: "error", kind: "TEXT"},
			column{name: "error_type", kind: "TEXT"},
			column{name: "reason", kind: "TEXT"},
			column{name: "attempts", kind: "INTEGER"},
			column{name: "first_failed_at", kind: postgresTime},
			column{name: "last_failed_at", kind: postgresTime},
			column{name: "redriven", kind: "INTEGER"},
			column{name: "branch", kind: "TEXT"},
			column{name: "order_key", kind: "TEXT"},
		)},
	}
}

const postgresTime = "TIMESTAMP WITH TIME ZONE"

// postgresInserted turns rows of columns into columns of rows.
func postgresInserted(args []any, delayed bool) []any {
	n := len(args) / columns
	var texts [columns][]string
	payloads, times, after := make([][]byte, n), make([]time.Time, n), make([]time.Time, n)
	for c := range texts {
		texts[c] = make([]string, n)
	}
	for i, arg := range args {
		row, c := i/columns, i%columns
		switch v := arg.(type) {
		case string:
			texts[c][row] = v
		case []byte:
			payloads[row] = v
		case int64:
			if c == notBefore {
				after[row] = time.UnixMicro(v)
			} else {
				times[row] = time.UnixMicro(v)
			}
		}
	}
	lists := []any{texts[0], texts[1], texts[2], payloads, texts[4], texts[5], times}
	if delayed {
		lists = append(lists, after)
	}
	return lists
}

func postgresKnown(rows []Row) []any {
	return []any{
		numberList(len(rows), func(i int) int64 { return rows[i].Seq }),
		textList(len(rows), func(i int) string { return rows[i].ID }),
	}
}

func postgresAttempted(rows []Row) []any {
	claims := postgresClaims(rows)
	return []any{claims[0], claims[1], numberList(len(rows), func(i int) int64 { return rows[i].attempts() }), claims[2]}
}

func postgresClaims(rows []Row) []any {
	known := postgresKnown(rows)
	return []any{known[0], numberList(len(rows), func(i int) int64 { return rows[i].claim }), known[1]}
}

// numberList is a list of numbers in the words of PostgreSQL. A slice would be encoded by
// pgx, which calls several functions for each element, into memory that it grows from
// nothing for each statement.
func numberList(n int, number func(int) int64) string {
	const digits = 8 // most often enough
	list := append(make([]byte, 0, n*(digits+1)+2), '{')
	for i := range n {
		if i > 0 {
			list = append(list, ',')
		}
		list = strconv.AppendInt(list, number(i), 10)
	}
	return string(append(list, '}'))
}

// textList is the same of texts.
func textList(n int, text func(int) string) string {
	size := len("{}")
	for i := range n {
		size += len(text(i)) + len(`"",`)
	}
	var list strings.Builder
	list.Grow(size)
	list.WriteByte('{')
	for i := range n {
		if i > 0 {
			list.WriteByte(',')
		}
		list.WriteByte('"')
		if t := text(i); strings.IndexByte(t, '"') < 0 && strings.IndexByte(t, '\\') < 0 {
			list.WriteString(t)
		} else {
			_, _ = quoteElement.WriteString(&list, t) // which never fails
		}
		list.WriteByte('"')
	}
	list.WriteByte('}')
	return list.String()
}

var quoteElement = strings.NewReplacer(`"`, `\"`, `\`, `\\`)

func postgresFailures(list []failure) []any {
	n := len(list)
	seqs, claims, attempts, delays := make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n)
	texts, ids := make([]string, n), make([]string, n)
	for i, f := range list {
		seqs[i], claims[i], attempts[i], delays[i], texts[i], ids[i] = f.seq, f.claim, f.attempts, f.delay.Microseconds(), f.text, f.id
	}
	return []any{seqs, claims, attempts, delays, texts, ids}
}

// postgresLetters are IDs of letters, and the places by which they are found.
func postgresLetters(ids []string) []any {
	seqs := make([]int64, 0, len(ids))
	for _, id := range ids {
		if seq, ok := parseID(id); ok {
			seqs = append(seqs, seq)
		}
	}
	return []any{seqs, ids}
}

// postgresCode is the SQLSTATE of an error, "" where it has none.
func postgresCode(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// postgresWaited reports that the server ended a statement for the time that it took, by
// statement_timeout or lock_timeout.
func postgresWaited(err error) bool {
	code := postgresCode(err)
	return code == "57014" || code == "55P03"
}

// postgresBroken tells errors that the next statement on the connection would have
// as well: it leads to a standby, a server that shuts down or a pooler that does not
// know its prepared statements, or the protocol is out of step.
func postgresBroken(err error) bool {
	code := postgresCode(err)
	return strings.HasPrefix(code, "08") || strings.HasPrefix(code, "57P0") ||
		slices.Contains([]string{"25006", "25P03", "26000", "42P05"}, code)
}

// postgresDuplicate reports whether a unique violation is of the ID of a row of the
// table: an index of the outbox itself, or of a partition, which has other columns
// after the ID. Without the right to select, a role is not told the columns.
func postgresDuplicate(err error, table string) bool {
	e, columns, _ := uniqueViolation(err)
	if e == nil {
		return false
	}
	if e.TableName == table {
		return columns == "id" || strings.HasPrefix(columns, "id, ") || columns == "" && e.ConstraintName == table+"_id"
	}
	return strings.HasPrefix(columns, "id, ")
}

// postgresDuplicateID finds the ID among those that were written. The transaction is
// aborted and cannot be asked.
func postgresDuplicateID(err error, ids []string) (found string) {
	_, _, values := uniqueViolation(err)
	for _, id := range ids {
		if rest, ok := strings.CutPrefix(values, id); ok && len(id) >= len(found) && (strings.HasPrefix(rest, ")") || strings.HasPrefix(rest, ", ")) {
			found = id
		}
	}
	return found
}

// uniqueViolation takes the columns and the values from the detail of a unique
// violation, such as Key (id)=(a) already exists, in whatever language.
func uniqueViolation(err error) (e *pgconn.PgError, columns, values string) {
	if !errors.As(err, &e) || e.Code != "23505" {
		return nil, "", ""
	}
	if before, after, found := strings.Cut(e.Detail, ")=("); found {
		columns, values = before[strings.LastIndexByte(before, '(')+1:], after
	}
	return e, columns, values
}

const foreignText = "texts are converted on their way, as the role or database has another client_encoding: set client_encoding=UTF8 in the connection string"

const pooled = "a pooler gives each statement another session: set default_query_exec_mode=exec in the connection string, or let it pool whole sessions"

func postgresAdvice(err error) string {
	code := postgresCode(err)
	if e, columns, _ := uniqueViolation(err); e != nil {
		if columns == "seq" || strings.HasPrefix(columns, "seq, ") || columns == "" && strings.HasSuffix(e.ConstraintName, "_pkey") {
			return fmt.Sprintf("the sequence of %[2]s.seq is behind the table, as after a restore or a switch-over by logical replication: "+
				`SELECT setval(pg_get_serial_sequence('"%[1]s"."%[2]s"', 'seq'), (SELECT max(seq) FROM "%[1]s"."%[2]s"))`, e.SchemaName, e.TableName)
		}
		return fmt.Sprintf("the unique constraint %s of the table %s refuses the row; it is not that of the outbox's IDs", e.ConstraintName, e.TableName)
	}
	if code == "54000" && strings.Contains(err.Error(), "NOTIFY") {
		return "the server's queue of notifications is full, as a session that listens sits in a transaction or its client hangs: end it (pg_stat_activity)"
	}
	for _, known := range [...]struct{ code, advice string }{
		{"3F000", "create the schema first: CREATE SCHEMA"},
		{"42P01", "call Migrate first, with the search_path that the relay has"},
		{"42703", "the table has another shape; call Migrate, which names the columns"},
		{"42P10", "the table is of an earlier version; call Migrate"},
		{"42501", "this role lacks a right: a writer needs to insert into the outbox; a relay to select, update and delete there, and to select, insert and update in the dead letters; Migrate, where it has something to do, to create tables and to own the existing ones"},
		{"54000", "a value is too long for an index of the table: an ID has 2,000 bytes at most, and the name of a branch some hundred"},
		{"22021", "the database's encoding cannot hold this text: keep the outbox in a database created with ENCODING 'UTF8'"},
		{"23503", "a foreign key of another table leads to rows of the outbox, which are deleted once they are delivered: drop it, or keep them (WithKeep)"},
		{"25P03", "idle_in_transaction_session_timeout ended the relay's transaction: raise it, make batches smaller, or use WithLease"},
		{"53300", "the server has no connection left: a relay needs up to three (fetch, dead letters, wake-up)"},
	} {
		if code == known.code {
			return known.advice
		}
	}
	return postgresCommonAdvice(err)
}

// postgresCommonAdvice is for errors that have nothing to do with the tables of this package.
func postgresCommonAdvice(err error) string {
	code := postgresCode(err)
	for _, known := range [...]struct{ code, advice string }{
		{"42P05", pooled},
		{"26000", pooled},
		{"40001", "the database's isolation level makes concurrent statements fail: it is tried again"},
		{"25006", "this is a read-only server, a standby perhaps: connect to the primary (target_session_attrs=read-write); or the role or database has default_transaction_read_only"},
		{"22P05", foreignText},
		{"57014", "statement_timeout or a cancel ended the statement; if it was slow, look for a missing index (Migrate), or a snapshot held open for long (pg_stat_activity.backend_xmin)"},
		{"55P03", "lock_timeout ended the statement: look for a transaction left open"},
	} {
		if code == known.code {
			return known.advice
		}
	}
	var unread pgx.ScanArgError
	if errors.As(err, &unread) {
		return "values come as texts (default_query_exec_mode) in a form that pgx does not read: the role or database has another DateStyle than ISO or another bytea_output than hex; set datestyle=ISO and bytea_output=hex for it, or in the connection string"
	}
	if code == "" && strings.Contains(err.Error(), "failed to connect") {
		return "is the server up, and does it take connections from here?"
	}
	return ""
}

func postgresSinkAdvice(err error) string {
	if postgresCode(err) == "42501" {
		return "this role lacks a right: it needs to SELECT, INSERT and UPDATE in the table, and USAGE on its schema; or a policy of row-level security refuses the row"
	}
	return postgresCommonAdvice(err)
}

func postgresRowError(err error) rowErrorKind {
	code := postgresCode(err)
	if len(code) != 5 {
		return notOfRow
	}
	switch code {
	case "23503", "23505", "23P01", "21000", "44000": // for what other rows have
		return refused
	case "42501", "42P05":
		return notOfRow
	}
	switch code[:2] {
	case "P0": // of a trigger
		return refused
	case "22", "23", "54":
		return refusedForGood
	case "42":
		return ofTable
	}
	return notOfRow
}
