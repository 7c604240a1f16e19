-- What a redrive needs. A letter's version goes up with every change, so that
-- deleting by an ID that is out of date leaves a newer failure alone.
ALTER TABLE "{table}_dlq" ADD COLUMN version INTEGER NOT NULL DEFAULT 1;
ALTER TABLE "{table}_dlq" ADD COLUMN redriven INTEGER NOT NULL DEFAULT 0;
ALTER TABLE "{table}_dlq" ADD COLUMN branch TEXT NOT NULL DEFAULT '';
ALTER TABLE "{table}_dlq" ADD COLUMN order_key TEXT NOT NULL DEFAULT '';
