-- What follows from a row that comes or goes. Made anew with each change of the schema, after all migrations, which meet none; a
-- change here raises SCHEMA_VERSION in writer.rs.

CREATE TRIGGER path_served AFTER INSERT ON path BEGIN
    INSERT INTO eviction_order VALUES (NEW.hash, -CAST(unixepoch('subsec') * 1000000 AS INTEGER));
END;

CREATE TRIGGER path_not_served AFTER DELETE ON path BEGIN
    DELETE FROM eviction_order WHERE hash = OLD.hash;
END;

CREATE TRIGGER path_counted AFTER INSERT ON path BEGIN
    UPDATE stored SET paths = paths + 1;
END;

CREATE TRIGGER path_not_counted AFTER DELETE ON path BEGIN
    UPDATE stored SET paths = paths - 1;
END;

CREATE TRIGGER nar_stored AFTER INSERT ON nar BEGIN
    UPDATE stored SET nars = nars + 1, bytes = bytes + NEW.file_size;
END;

CREATE TRIGGER nar_resized AFTER UPDATE OF file_size ON nar BEGIN
    UPDATE stored SET bytes = bytes - OLD.file_size + NEW.file_size;
END;

CREATE TRIGGER nar_gone AFTER DELETE ON nar BEGIN
    UPDATE stored SET nars = nars - 1, bytes = bytes - OLD.file_size;
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

CREATE TRIGGER nar_packed AFTER INSERT ON nar BEGIN
    DELETE FROM to_pack WHERE nar_hash = NEW.nar_hash;
END;

CREATE TRIGGER nar_to_pack AFTER DELETE ON nar
WHEN EXISTS (SELECT 1 FROM path WHERE nar_hash = OLD.nar_hash)
    AND NOT EXISTS (SELECT 1 FROM upstream_nar WHERE nar_hash = OLD.nar_hash)
BEGIN
    INSERT OR IGNORE INTO to_pack VALUES (OLD.nar_hash);
END;

CREATE TRIGGER upstream_nar_found AFTER INSERT ON upstream_nar BEGIN
    DELETE FROM to_pack WHERE nar_hash = NEW.nar_hash;
END;

CREATE TRIGGER upstream_nar_to_pack AFTER DELETE ON upstream_nar
WHEN EXISTS (SELECT 1 FROM path WHERE nar_hash = OLD.nar_hash)
    AND NOT EXISTS (SELECT 1 FROM nar WHERE nar_hash = OLD.nar_hash)
    AND NOT EXISTS (SELECT 1 FROM upstream_nar WHERE nar_hash = OLD.nar_hash)
BEGIN
    INSERT OR IGNORE INTO to_pack VALUES (OLD.nar_hash);
END;

CREATE TRIGGER path_gone AFTER DELETE ON path BEGIN
    DELETE FROM realisation WHERE path = OLD.hash || '-' || OLD.name;
END;

CREATE TRIGGER path_remembered AFTER DELETE ON path BEGIN
    INSERT OR REPLACE INTO former_nar VALUES (OLD.nar_hash, OLD.hash, unixepoch());
END;

CREATE TRIGGER pushed_path_gone AFTER DELETE ON path BEGIN
    DELETE FROM pushed_derivation WHERE hash = OLD.hash;
END;

CREATE TRIGGER pushed_derivation_gone AFTER DELETE ON pushed_derivation BEGIN
    DELETE FROM pushed_output WHERE drv = OLD.hash;
END;

CREATE TRIGGER path_refers AFTER INSERT ON path WHEN NEW.refs <> '' BEGIN
    INSERT OR IGNORE INTO reference
        SELECT substr(each.value, 1, 12), substr(NEW.hash, 1, 12)
        FROM json_each('["' || replace(NEW.refs, ' ', '","') || '"]') each
        WHERE substr(each.value, 1, 32) <> NEW.hash;
END;

CREATE TRIGGER path_refers_no_more AFTER DELETE ON path WHEN OLD.refs <> '' BEGIN
    DELETE FROM reference WHERE source = substr(OLD.hash, 1, 12) AND target IN (
        SELECT substr(each.value, 1, 12) FROM json_each('["' || replace(OLD.refs, ' ', '","') || '"]') each);
END;

CREATE TRIGGER former_nar_forgotten AFTER DELETE ON former_nar
WHEN NOT EXISTS (SELECT 1 FROM path WHERE nar_hash = OLD.nar_hash)
BEGIN
    DELETE FROM program WHERE nar_hash = OLD.nar_hash;
END;
