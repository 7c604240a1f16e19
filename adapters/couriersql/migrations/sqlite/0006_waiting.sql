-- The pending rows that have not failed. Rows that wait for a retry are in an index
-- by time: however many they are, a fetch does not walk past them.
DROP INDEX IF EXISTS "{table}_pending";
CREATE INDEX "{table}_pending" ON "{table}" (seq) WHERE processed_at IS NULL AND attempts < 1;
CREATE INDEX IF NOT EXISTS "{table}_waiting" ON "{table}" (available_at, seq) WHERE processed_at IS NULL AND attempts > 0;
