-- Since when a row waits that was a dead letter: its message is older.
ALTER TABLE "{table}" ADD COLUMN requeued_at INTEGER; -- Unix time in microseconds
