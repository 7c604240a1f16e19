-- A letter is known by its message and its branch: each branch of a fan-out owes
-- the message, and keeps the order of a key by itself.
DROP INDEX IF EXISTS "{table}_dlq_id";
CREATE UNIQUE INDEX IF NOT EXISTS "{table}_dlq_message" ON "{table}_dlq" (id, branch);
