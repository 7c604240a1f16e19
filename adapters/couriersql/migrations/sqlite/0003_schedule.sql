-- A retry schedule and leases, and what Prune goes by. Times are in microseconds.
ALTER TABLE "{table}" ADD COLUMN available_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE "{table}" ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE "{table}" ADD COLUMN last_error TEXT NOT NULL DEFAULT '';
ALTER TABLE "{table}" ADD COLUMN claim INTEGER NOT NULL DEFAULT 0;
ALTER TABLE "{table}" ADD COLUMN owner TEXT NOT NULL DEFAULT '';

CREATE INDEX IF NOT EXISTS "{table}_failed" ON "{table}" (key) WHERE processed_at IS NULL AND attempts > 0;
CREATE INDEX IF NOT EXISTS "{table}_processed" ON "{table}" (processed_at) WHERE processed_at IS NOT NULL;
