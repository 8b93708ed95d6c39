-- From schema 2 to schema 3: other caches, what was built here, and realisations.

ALTER TABLE path ADD COLUMN built INTEGER NOT NULL DEFAULT 0;

CREATE TABLE upstream_nar (
    nar_hash    BLOB NOT NULL,
    upstream    TEXT NOT NULL,
    url         TEXT NOT NULL,
    compression TEXT NOT NULL,
    file_hash   BLOB,
    file_size   INTEGER,
    redirect    INTEGER NOT NULL,
    PRIMARY KEY (nar_hash, upstream)
) STRICT, WITHOUT ROWID;

CREATE TABLE comparison (
    hash      TEXT PRIMARY KEY NOT NULL,
    looked_at INTEGER NOT NULL,
    upstream  TEXT,
    nar_hash  BLOB,
    same      INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE realisation (
    file     TEXT PRIMARY KEY NOT NULL,
    path     TEXT NOT NULL,
    body     TEXT NOT NULL,
    added_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX realisation_by_path ON realisation (path);

CREATE TRIGGER path_gone AFTER DELETE ON path BEGIN
    DELETE FROM realisation WHERE path = OLD.hash || '-' || OLD.name;
END;
