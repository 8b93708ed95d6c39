-- From schema 3 to schema 4: what is asked for, what was pre-built, in which order paths go, pins, what is not served any
-- more, what is to be packed, how much is packed, and the upstreams of the last start.

CREATE TABLE turn (
    hash      TEXT PRIMARY KEY NOT NULL,
    needed_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX turn_by_need ON turn (needed_at);

INSERT INTO turn SELECT hash, -added_at * 1000000 FROM path;

CREATE TABLE upstream (
    url      TEXT PRIMARY KEY NOT NULL,
    redirect INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO upstream SELECT upstream, max(redirect) FROM upstream_nar GROUP BY upstream;

CREATE TABLE pin (
    hash      TEXT NOT NULL,
    name      TEXT NOT NULL,
    pinned_at INTEGER NOT NULL,
    PRIMARY KEY (hash, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX catalogue_attribute_by_drv ON catalogue_attribute (drv);

CREATE TABLE demand (
    day       INTEGER NOT NULL,
    set_name  TEXT NOT NULL,
    attribute TEXT NOT NULL,
    system    TEXT NOT NULL,
    asked     INTEGER NOT NULL,
    PRIMARY KEY (day, set_name, attribute, system)
) STRICT, WITHOUT ROWID;

CREATE TABLE prebuilt (
    day    INTEGER PRIMARY KEY NOT NULL,
    millis INTEGER NOT NULL
) STRICT;

CREATE TABLE former_nar (
    nar_hash BLOB PRIMARY KEY NOT NULL,
    hash     TEXT NOT NULL,
    gone_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX former_nar_by_age ON former_nar (gone_at);

CREATE TABLE to_pack (
    nar_hash BLOB PRIMARY KEY NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO to_pack
    SELECT DISTINCT nar_hash FROM path
    WHERE nar_hash NOT IN (SELECT nar_hash FROM nar) AND nar_hash NOT IN (SELECT nar_hash FROM upstream_nar);

CREATE TABLE stored (
    nars  INTEGER NOT NULL,
    bytes INTEGER NOT NULL
) STRICT;

INSERT INTO stored SELECT count(*), coalesce(sum(file_size), 0) FROM nar;
