-- The pending rows that have not failed. Rows that wait for a retry are in an index
-- by time: however many they are, a fetch does not walk past them.
DROP INDEX IF EXISTS "{table}_pending";
CREATE INDEX "{table}_pending" ON "{table}" (seq) WHERE processed_at IS NULL AND attempts < 1;
CREATE INDEX IF NOT EXISTS "{table}_waiting" ON "{table}" (available_at, seq) WHERE processed_at IS NULL AND attempts > 0;

-- By a digest, as a row of an index holds some 2,700 bytes, and a key may be longer:
-- its row would be written, and could neither be noted as failed nor parked.
DROP INDEX IF EXISTS "{table}_failed";
CREATE INDEX "{table}_failed" ON "{table}" (hashtextextended(key, 0), seq) WHERE processed_at IS NULL AND attempts > 0;

DROP INDEX IF EXISTS "{table}_dlq_order_key";
CREATE INDEX "{table}_dlq_order_key" ON "{table}_dlq" (hashtextextended(order_key, 0), branch) WHERE order_key <> '';
