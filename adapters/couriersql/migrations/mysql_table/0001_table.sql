-- The rows of a table that failed, by their keys: when each is handed out again. Times are
-- Unix times in microseconds.
CREATE TABLE IF NOT EXISTS {state} (
	{keys},
	attempts     INT           NOT NULL,
	available_at BIGINT        NOT NULL,
	last_error   MEDIUMTEXT    NOT NULL,
	order_key    VARBINARY(32) NOT NULL, -- by SHA-256; '' is none
	PRIMARY KEY ({key_names}),
	KEY waiting (order_key, available_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4;

-- Leases: the rows that a relay has in hand, one lease for each fetch. key_list is JSON: a list
-- for each row, with the texts of its key, those of characters and bytes in hexadecimal. The
-- row 1 is no lease: who fetches has it locked.
CREATE TABLE IF NOT EXISTS {batches} (
	id       BIGINT         NOT NULL AUTO_INCREMENT PRIMARY KEY,
	owner    VARBINARY(255) NOT NULL,
	until    BIGINT         NOT NULL,
	key_list LONGTEXT       NOT NULL,
	order_keys LONGTEXT     NOT NULL -- of which no other relay may have rows in hand, hashed, in hexadecimal, a JSON list
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii;
