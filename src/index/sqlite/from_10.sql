-- From schema 10 to schema 11: a request may be for one builder alone.

ALTER TABLE request ADD COLUMN builder TEXT;
