-- The rows of a table that failed, by their keys: when each is handed out again. Times are
-- Unix times in microseconds.
CREATE TABLE IF NOT EXISTS {state} (
	{keys},
	attempts     INTEGER NOT NULL,
	available_at INTEGER NOT NULL,
	last_error   TEXT    NOT NULL,
	order_key    TEXT    NOT NULL, -- '' is none
	crashes      INTEGER NOT NULL DEFAULT 0, -- leases that ran out without a sign; from 100 on it was alone in hand, and each crash since is one more
	PRIMARY KEY ({key_names})
);
CREATE INDEX IF NOT EXISTS "{suspects}" ON {state} (crashes) WHERE crashes > 0;

-- Leases: the rows that a relay has in hand, one lease for each fetch. keys is a JSON array
-- of texts, or of arrays of texts where the key has several columns. An id is given once.
CREATE TABLE IF NOT EXISTS {batches} (
	id    INTEGER PRIMARY KEY AUTOINCREMENT,
	owner TEXT    NOT NULL,
	until INTEGER NOT NULL,
	alone INTEGER NOT NULL, -- a row that is alone in hand, for the crashes it had
	keys  TEXT    NOT NULL,
	order_keys TEXT NOT NULL -- of which no other relay may have rows in hand, a JSON array of texts
) STRICT;
