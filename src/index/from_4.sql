-- From schema 4 to schema 5: served paths are counted as they come and go, and kept in a table with row numbers.

-- Else the triggers of other tables, which name the table, could not stay while there is none.
PRAGMA legacy_alter_table = ON;

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

-- With its index and its triggers.
DROP TABLE path;

ALTER TABLE numbered_path RENAME TO path;

PRAGMA legacy_alter_table = OFF;

CREATE INDEX path_by_nar ON path (nar_hash);

CREATE TRIGGER path_served AFTER INSERT ON path BEGIN
    INSERT INTO turn VALUES (NEW.hash, -CAST(unixepoch('subsec') * 1000000 AS INTEGER));
END;

CREATE TRIGGER path_not_served AFTER DELETE ON path BEGIN
    DELETE FROM turn WHERE hash = OLD.hash;
END;

CREATE TRIGGER path_to_pack AFTER INSERT ON path
WHEN NOT EXISTS (SELECT 1 FROM nar WHERE nar_hash = NEW.nar_hash)
    AND NOT EXISTS (SELECT 1 FROM upstream_nar WHERE nar_hash = NEW.nar_hash)
BEGIN
    INSERT OR IGNORE INTO to_pack VALUES (NEW.nar_hash);
END;

CREATE TRIGGER path_not_had AFTER DELETE ON path
WHEN NOT EXISTS (SELECT 1 FROM path WHERE nar_hash = OLD.nar_hash)
BEGIN
    DELETE FROM to_pack WHERE nar_hash = OLD.nar_hash;
    DELETE FROM upstream_nar WHERE nar_hash = OLD.nar_hash;
END;

CREATE TRIGGER path_gone AFTER DELETE ON path BEGIN
    DELETE FROM realisation WHERE path = OLD.hash || '-' || OLD.name;
END;

CREATE TRIGGER path_remembered AFTER DELETE ON path BEGIN
    INSERT OR REPLACE INTO former_nar VALUES (OLD.nar_hash, OLD.hash, unixepoch());
END;

ALTER TABLE stored ADD COLUMN paths INTEGER NOT NULL DEFAULT 0;

UPDATE stored SET paths = (SELECT count(*) FROM path);

CREATE TRIGGER path_counted AFTER INSERT ON path BEGIN
    UPDATE stored SET paths = paths + 1;
END;

CREATE TRIGGER path_not_counted AFTER DELETE ON path BEGIN
    UPDATE stored SET paths = paths - 1;
END;
