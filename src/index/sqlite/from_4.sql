-- From schema 4 to schema 5: served paths are counted as they come and go.

ALTER TABLE stored ADD COLUMN paths INTEGER NOT NULL DEFAULT 0;

UPDATE stored SET paths = (SELECT count(*) FROM path);
