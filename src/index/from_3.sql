-- From schema 3 to schema 4: what is asked for, what was pre-built, when paths were used last, pins, what is not served any
-- more, and the upstreams of the last start.

ALTER TABLE path ADD COLUMN used_at INTEGER NOT NULL DEFAULT 0;
UPDATE path SET used_at = added_at;

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

CREATE TRIGGER path_remembered AFTER DELETE ON path BEGIN
    INSERT OR REPLACE INTO former_nar VALUES (OLD.nar_hash, OLD.hash, unixepoch());
END;
