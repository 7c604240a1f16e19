-- The records whose effects are done, by the name of the consumer.
CREATE TABLE IF NOT EXISTS {inbox} (
	consumer text        NOT NULL,
	id       text        NOT NULL,
	done_at  timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (consumer, id)
);

-- For Prune. Rows come in the order of their time, so that a few bytes tell where the old
-- ones are; another tree would cost each effect a quarter more.
CREATE INDEX IF NOT EXISTS "{table}_done" ON {inbox} USING brin (done_at) WITH (pages_per_range = 16, autosummarize = on);
