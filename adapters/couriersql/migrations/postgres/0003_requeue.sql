-- Since when a row waits that was a dead letter: its message is older.
ALTER TABLE "{table}" ADD COLUMN IF NOT EXISTS requeued_at timestamptz;
