-- The columns of an outbox's dead letters, so that the statements and the tools are the
-- same. The record is in payload, encoded, and goes by id; topic, key, headers and trace
-- are empty, outbox_seq is 0. Times are Unix times in microseconds.
CREATE TABLE IF NOT EXISTS {dlq} (
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
	last_failed_at  INTEGER NOT NULL,
	version         INTEGER NOT NULL DEFAULT 1, -- goes up with every change
	redriven        INTEGER NOT NULL DEFAULT 0,
	branch          TEXT    NOT NULL DEFAULT '',
	order_key       TEXT    NOT NULL DEFAULT '' -- DeadLetter.Key
) STRICT;

-- A letter is known by its record and its branch.
CREATE UNIQUE INDEX IF NOT EXISTS "{table}_record" ON {dlq} (id, branch);

CREATE INDEX IF NOT EXISTS "{table}_order_key" ON {dlq} (order_key, branch) WHERE order_key <> '';
