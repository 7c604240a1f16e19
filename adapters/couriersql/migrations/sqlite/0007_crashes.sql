-- How often a lease of the row ran out without a sign of its relay, since the row was last
-- settled. From 100 on it was handed out alone, and each crash since is one more.
ALTER TABLE "{table}" ADD COLUMN crashes INTEGER NOT NULL DEFAULT 0;
CREATE INDEX IF NOT EXISTS "{table}_suspects" ON "{table}" (crashes, seq) WHERE processed_at IS NULL AND crashes > 0;
