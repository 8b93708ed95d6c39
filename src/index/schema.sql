-- The index: which store paths are served, which NARs are on disk, which builds failed, who waits.
-- A change here raises SCHEMA_VERSION in connection.rs and needs a migration (from_N.sql); this file is what a fresh index gets.

CREATE TABLE path (
    hash     TEXT PRIMARY KEY NOT NULL, -- the 32 characters before the name
    name     TEXT NOT NULL,
    nar_hash BLOB NOT NULL,             -- SHA-256 of the plain NAR
    nar_size INTEGER NOT NULL,          -- bytes of the plain NAR
    refs     TEXT NOT NULL,             -- base names, separated by spaces, sorted
    deriver  TEXT,                      -- base name
    ca       TEXT,
    sigs     TEXT NOT NULL,             -- one signature a line
    added_at INTEGER NOT NULL,          -- Unix seconds
    built    INTEGER NOT NULL DEFAULT 0 -- whether it was built on this machine
) STRICT, WITHOUT ROWID;

CREATE INDEX path_by_nar ON path (nar_hash);

-- A row here means: the packed file is complete, verified and durable in the NAR store.
CREATE TABLE nar (
    nar_hash  BLOB PRIMARY KEY NOT NULL,
    file_hash BLOB NOT NULL,            -- SHA-256 of the zstd file
    file_size INTEGER NOT NULL,         -- bytes of the zstd file
    packed_at INTEGER NOT NULL          -- Unix seconds
) STRICT, WITHOUT ROWID;

-- Where an upstream has the NAR of a served path; it may be packed beside that.
CREATE TABLE upstream_nar (
    nar_hash    BLOB NOT NULL,
    upstream    TEXT NOT NULL,          -- its URL
    url         TEXT NOT NULL,          -- of the file, as the upstream's narinfo has it
    compression TEXT NOT NULL,
    file_hash   BLOB,                   -- SHA-256 of the file, as the upstream says
    file_size   INTEGER,                -- bytes of the file, as the upstream says
    redirect    INTEGER NOT NULL,       -- whether clients are sent there
    PRIMARY KEY (nar_hash, upstream)
) STRICT, WITHOUT ROWID;

-- Own builds beside what upstreams have: the answer once there is one, else when it was last looked for.
CREATE TABLE comparison (
    hash      TEXT PRIMARY KEY NOT NULL, -- of the path
    looked_at INTEGER NOT NULL,          -- Unix seconds
    upstream  TEXT,                      -- its URL; null while none has it
    nar_hash  BLOB,                      -- what the upstream has
    same      INTEGER                    -- whether that is what was built here
) STRICT, WITHOUT ROWID;

-- Realisations that are served: which path an output of a content-addressed derivation is.
CREATE TABLE realisation (
    file     TEXT PRIMARY KEY NOT NULL, -- as clients ask for it, such as realisations/sha256:….doi
    path     TEXT NOT NULL,             -- base name of a served path
    body     TEXT NOT NULL,             -- the file
    added_at INTEGER NOT NULL           -- Unix seconds
) STRICT, WITHOUT ROWID;

CREATE INDEX realisation_by_path ON realisation (path);

CREATE TRIGGER path_gone AFTER DELETE ON path BEGIN
    DELETE FROM realisation WHERE path = OLD.hash || '-' || OLD.name;
END;

CREATE TABLE failure (
    drv        TEXT PRIMARY KEY NOT NULL, -- base name
    class      INTEGER NOT NULL,          -- 0 passing, 1 permanent, 2 refused
    cause      TEXT NOT NULL,             -- base name of the derivation whose build failed
    reason     TEXT NOT NULL,
    failed_at  INTEGER NOT NULL,          -- Unix seconds
    expires_at INTEGER NOT NULL           -- Unix seconds
) STRICT, WITHOUT ROWID;

-- Who waits for a build, oldest first; gone once served or failed.
CREATE TABLE request (
    id        INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, -- the order of arrival; never used twice
    drv       TEXT NOT NULL,            -- base name
    started   INTEGER NOT NULL,         -- whether something was built for it
    asked_at  INTEGER NOT NULL,         -- Unix seconds
    asked_by  TEXT,                     -- address of the first client
    due_owner INTEGER,                  -- the account of overtaking: see build/queue/account.rs
    charged   INTEGER NOT NULL,         -- milliseconds
    earned    INTEGER NOT NULL          -- milliseconds
) STRICT;

-- How long builds took, the latest few of each kind.
CREATE TABLE duration (
    id     INTEGER PRIMARY KEY NOT NULL, -- the order
    work   TEXT NOT NULL,               -- what was built: see build/estimate.rs
    millis INTEGER NOT NULL,
    built  INTEGER NOT NULL             -- 0: it was stopped or failed, and would have taken longer
) STRICT;

CREATE INDEX duration_by_work ON duration (work);
