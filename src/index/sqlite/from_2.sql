-- From schema 2 to schema 3: other caches, what was built here, realisations, and package sets.

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

CREATE TABLE catalogue_set (
    id         INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    name       TEXT UNIQUE NOT NULL,
    tried_at   INTEGER,
    failure    TEXT
) STRICT;

CREATE TABLE catalogue_generation (
    id          INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    set_id      INTEGER NOT NULL,
    made_by     TEXT NOT NULL,
    holder      TEXT NOT NULL,
    made_at     INTEGER NOT NULL,
    replaced_at INTEGER,
    attributes  INTEGER NOT NULL,
    denied      INTEGER NOT NULL,
    errors      INTEGER NOT NULL,
    derivations INTEGER NOT NULL
) STRICT;

CREATE INDEX catalogue_generation_by_set ON catalogue_generation (set_id);

CREATE TABLE catalogue_attribute (
    set_id    INTEGER NOT NULL,
    attribute TEXT NOT NULL,
    system    TEXT NOT NULL,
    drv       TEXT,
    error     TEXT,
    denied    INTEGER NOT NULL,
    PRIMARY KEY (set_id, attribute, system)
) STRICT, WITHOUT ROWID;

CREATE TABLE catalogue_output (
    hash    TEXT NOT NULL,
    drv     TEXT NOT NULL,
    set_id  INTEGER NOT NULL,
    first   INTEGER NOT NULL,
    last    INTEGER,
    denied  INTEGER NOT NULL,
    PRIMARY KEY (hash, drv, set_id, first)
) STRICT, WITHOUT ROWID;

CREATE TABLE catalogue_new_attribute (
    attribute TEXT NOT NULL,
    system    TEXT NOT NULL,
    drv       TEXT,
    error     TEXT,
    denied    INTEGER NOT NULL,
    PRIMARY KEY (attribute, system)
) STRICT, WITHOUT ROWID;

CREATE TABLE catalogue_new_output (
    hash   TEXT NOT NULL,
    drv    TEXT NOT NULL,
    denied INTEGER NOT NULL,
    PRIMARY KEY (hash, drv)
) STRICT, WITHOUT ROWID;
