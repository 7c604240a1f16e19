-- The records whose effects are done, by the name of the consumer. Times are Unix times in
-- microseconds. Prune reads the whole table; an index by time would cost each effect a third
-- more.
CREATE TABLE IF NOT EXISTS {inbox} (
	consumer TEXT    NOT NULL,
	id       TEXT    NOT NULL,
	done_at  INTEGER NOT NULL,
	PRIMARY KEY (consumer, id)
) STRICT, WITHOUT ROWID;
