-- The rows of a table that failed, by their keys: when each is handed out again.
CREATE TABLE IF NOT EXISTS {state} (
	{keys},
	attempts     integer     NOT NULL,
	available_at timestamptz NOT NULL,
	last_error   text        NOT NULL,
	order_key    text        NOT NULL, -- '' is none
	crashes      integer     NOT NULL DEFAULT 0, -- leases that ran out without a sign; from 100 on it was alone in hand, and each crash since is one more
	PRIMARY KEY ({key_names})
);
CREATE INDEX IF NOT EXISTS "{suspects}" ON {state} (crashes) WHERE crashes > 0;

-- Leases: the rows that a relay has in hand, one lease for each fetch. They come and go
-- quickly.
CREATE TABLE IF NOT EXISTS {batches} (
	id    bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	owner text        NOT NULL,
	until timestamptz NOT NULL,
	alone boolean     NOT NULL, -- a row that is alone in hand, for the crashes it had
	{key_lists},
	order_keys text[] NOT NULL -- of which no other relay may have rows in hand
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- To compress a list takes as long as to fetch its rows.
ALTER TABLE {batches} {as_they_are}, ALTER COLUMN order_keys SET STORAGE EXTERNAL;
