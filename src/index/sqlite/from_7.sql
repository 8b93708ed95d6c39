-- From schema 7 to schema 8: the table of the eviction order has its name, there are tokens of clients, and they push
-- derivations.

DROP INDEX turn_by_need;
ALTER TABLE turn RENAME TO eviction_order;
CREATE INDEX eviction_order_by_need ON eviction_order (needed_at);

CREATE TABLE token (
    id         INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, -- never used twice
    name       TEXT NOT NULL UNIQUE,
    digest     BLOB NOT NULL,
    rights     TEXT NOT NULL,
    patterns   TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    queued_max INTEGER,
    used_at    INTEGER
) STRICT;

-- Derivations that clients pushed. Their own paths are served, and retained for as long as they are here.
CREATE TABLE pushed_derivation (
    hash       TEXT PRIMARY KEY NOT NULL, -- the 32 characters before the name
    name       TEXT NOT NULL,             -- ends in .drv
    input_hash BLOB,                      -- identity as an input of others; null where only a build tells
    is_fixed   INTEGER NOT NULL,          -- whether that is the hash of a fixed output
    used_at    INTEGER NOT NULL           -- Unix seconds
) STRICT, WITHOUT ROWID;

CREATE INDEX pushed_derivation_by_name ON pushed_derivation (name);
CREATE INDEX pushed_derivation_by_use ON pushed_derivation (used_at);

-- Outputs of pushed derivations whose paths are known before they are built.
CREATE TABLE pushed_output (
    hash   TEXT NOT NULL,               -- of the output's path
    drv    TEXT NOT NULL,               -- hash of the derivation
    output TEXT NOT NULL,               -- name of the output
    name   TEXT NOT NULL,               -- name of the output's path
    PRIMARY KEY (hash, drv, output)
) STRICT, WITHOUT ROWID;

CREATE INDEX pushed_output_by_derivation ON pushed_output (drv);
