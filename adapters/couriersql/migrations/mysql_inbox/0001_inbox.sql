-- The records whose effects are done, by the name of the consumer. Times are Unix times in
-- microseconds. Prune reads all notes of the consumer: an index by time would cost each effect.
CREATE TABLE IF NOT EXISTS {inbox} (
	consumer VARBINARY(1000) NOT NULL,
	id       VARBINARY(2000) NOT NULL,
	done_at  BIGINT          NOT NULL,
	PRIMARY KEY (consumer, id)
) ENGINE = InnoDB;
