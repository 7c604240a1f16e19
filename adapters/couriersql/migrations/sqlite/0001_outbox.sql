-- AUTOINCREMENT, so that the order of seq is the order of writing, also after rows
-- were deleted. A row is known by seq and id: who empties sqlite_sequence gives
-- numbers twice.
CREATE TABLE IF NOT EXISTS "{table}" (
	seq          INTEGER PRIMARY KEY AUTOINCREMENT,
	id           TEXT    NOT NULL,
	topic        TEXT    NOT NULL,
	key          TEXT    NOT NULL,
	payload      BLOB    NOT NULL,
	headers      TEXT    NOT NULL, -- a JSON object of strings, or empty
	trace        TEXT    NOT NULL, -- a JSON object of strings, or empty
	created_at   INTEGER NOT NULL, -- Unix time in microseconds
	processed_at INTEGER           -- Unix time in microseconds; NULL is pending
) STRICT;

CREATE UNIQUE INDEX IF NOT EXISTS "{table}_id" ON "{table}" (id);

-- Beside millions of kept rows the fetch reads the pending ones only. Where
-- marked rows are deleted it is not needed, but costs little: measured, 0 to
-- 10 % of an insert in a batch, nothing of a fetch. So there is one schema, and
-- an outbox can change over to keeping its rows without a migration.
CREATE INDEX IF NOT EXISTS "{table}_pending" ON "{table}" (seq) WHERE processed_at IS NULL;

CREATE TABLE IF NOT EXISTS "{table}_dlq" (
	seq             INTEGER PRIMARY KEY AUTOINCREMENT,
	id              TEXT    NOT NULL,
	outbox_seq      INTEGER NOT NULL,
	topic           TEXT    NOT NULL,
	key             TEXT    NOT NULL,
	payload         BLOB    NOT NULL,
	headers         TEXT    NOT NULL,
	trace           TEXT    NOT NULL,
	created_at      INTEGER NOT NULL,
	error           TEXT    NOT NULL,
	error_type      TEXT    NOT NULL,
	reason          TEXT    NOT NULL,
	attempts        INTEGER NOT NULL,
	first_failed_at INTEGER NOT NULL,
	last_failed_at  INTEGER NOT NULL
) STRICT;
