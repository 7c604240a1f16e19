-- The columns of the letters of other databases. The record is in payload, encoded, and goes by
-- id; topic, key, headers and trace are empty, outbox_seq is 0. Times are Unix times in
-- microseconds. A letter is known by its record and its branch.
CREATE TABLE IF NOT EXISTS {dlq} (
	seq             BIGINT          NOT NULL AUTO_INCREMENT PRIMARY KEY,
	version         BIGINT          NOT NULL DEFAULT 1, -- goes up with every change
	id              VARBINARY(2000) NOT NULL,
	outbox_seq      BIGINT          NOT NULL,
	topic           LONGTEXT        NOT NULL,
	`key`           LONGTEXT        NOT NULL,
	payload         LONGBLOB        NOT NULL,
	headers         LONGTEXT        NOT NULL,
	trace           LONGTEXT        NOT NULL,
	created_at      BIGINT          NOT NULL,
	error           LONGTEXT        NOT NULL,
	error_type      LONGTEXT        NOT NULL,
	reason          VARBINARY(100)  NOT NULL,
	attempts        INT             NOT NULL,
	first_failed_at BIGINT          NOT NULL,
	last_failed_at  BIGINT          NOT NULL,
	redriven        INT             NOT NULL,
	branch          VARBINARY(1000) NOT NULL,
	order_key       LONGTEXT        NOT NULL, -- DeadLetter.Key
	order_hash      VARBINARY(32)   NOT NULL, -- its SHA-256; '' is none
	UNIQUE KEY record (id, branch),
	KEY order_key (order_hash, branch)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
