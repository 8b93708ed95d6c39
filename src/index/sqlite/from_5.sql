-- From schema 5 to schema 6: served paths are in a table with row numbers.

CREATE TABLE numbered_path (
    hash     TEXT PRIMARY KEY NOT NULL,
    name     TEXT NOT NULL,
    nar_hash BLOB NOT NULL,
    nar_size INTEGER NOT NULL,
    refs     TEXT NOT NULL,
    deriver  TEXT,
    ca       TEXT,
    sigs     TEXT NOT NULL,
    added_at INTEGER NOT NULL,
    built    INTEGER NOT NULL DEFAULT 0
) STRICT;

INSERT INTO numbered_path (hash, name, nar_hash, nar_size, refs, deriver, ca, sigs, added_at, built)
    SELECT hash, name, nar_hash, nar_size, refs, deriver, ca, sigs, added_at, built FROM path;

-- With its index.
DROP TABLE path;

ALTER TABLE numbered_path RENAME TO path;

CREATE INDEX path_by_nar ON path (nar_hash);
