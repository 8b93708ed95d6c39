-- Schema 1, as it was: what the test of the migration begins with.

CREATE TABLE path (
    hash     TEXT PRIMARY KEY NOT NULL, -- the 32 characters before the name
    name     TEXT NOT NULL,
    nar_hash BLOB NOT NULL,             -- SHA-256 of the plain NAR
    nar_size INTEGER NOT NULL,          -- bytes of the plain NAR
    refs     TEXT NOT NULL,             -- base names, separated by spaces, sorted
    deriver  TEXT,                      -- base name
    ca       TEXT,
    sigs     TEXT NOT NULL,             -- one signature a line
    added_at INTEGER NOT NULL           -- Unix seconds
) STRICT, WITHOUT ROWID;

CREATE INDEX path_by_nar ON path (nar_hash);

-- A row here means: the packed file is complete, verified and durable in the NAR store.
CREATE TABLE nar (
    nar_hash  BLOB PRIMARY KEY NOT NULL,
    file_hash BLOB NOT NULL,            -- SHA-256 of the zstd file
    file_size INTEGER NOT NULL,         -- bytes of the zstd file
    packed_at INTEGER NOT NULL          -- Unix seconds
) STRICT, WITHOUT ROWID;

CREATE TABLE failure (
    drv        TEXT PRIMARY KEY NOT NULL, -- base name
    permanent  INTEGER NOT NULL,
    cause      TEXT NOT NULL,             -- base name of the derivation whose build failed
    reason     TEXT NOT NULL,
    failed_at  INTEGER NOT NULL,          -- Unix seconds
    expires_at INTEGER NOT NULL           -- Unix seconds
) STRICT, WITHOUT ROWID;
