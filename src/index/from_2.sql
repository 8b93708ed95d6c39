-- From schema 2 to schema 3: other caches, and what was built here.

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
