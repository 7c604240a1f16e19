-- Times are Unix times in microseconds. The number of a row tells the order of writing, and not
-- that of the commits. A row is known by seq and id: a failover to a replica that misses the last
-- commits gives numbers twice. What became of a row that failed, or has to wait, is in the table
-- beside, and so are the leases of relays.
CREATE TABLE IF NOT EXISTS {outbox} (
	seq          BIGINT          NOT NULL AUTO_INCREMENT PRIMARY KEY,
	id           VARBINARY(2000) NOT NULL,
	topic        LONGTEXT        NOT NULL,
	`key`        LONGTEXT        NOT NULL,
	payload      LONGBLOB        NOT NULL,
	headers      LONGTEXT        NOT NULL, -- a JSON object of strings, or empty
	trace        LONGTEXT        NOT NULL, -- a JSON object of strings, or empty
	created_at   BIGINT          NOT NULL,
	requeued_at  BIGINT, -- since when a row waits that was a dead letter, or was to wait for a time
	processed_at BIGINT, -- NULL is pending
	UNIQUE KEY courier_id (id),
	KEY pending (processed_at, seq)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

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
	order_key       LONGTEXT        NOT NULL,
	order_hash      VARBINARY(32)   NOT NULL, -- the SHA-256 of order_key; '' is none
	UNIQUE KEY record (id, branch),
	KEY order_key (order_hash, branch)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
