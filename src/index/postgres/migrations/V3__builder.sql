-- A request may be for one builder alone.

ALTER TABLE request ADD COLUMN builder TEXT; -- its name; null for any
