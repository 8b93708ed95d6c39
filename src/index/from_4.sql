-- From schema 4 to schema 5: served paths are counted as they come and go.

ALTER TABLE stored ADD COLUMN paths INTEGER NOT NULL DEFAULT 0;

UPDATE stored SET paths = (SELECT count(*) FROM path);

CREATE TRIGGER path_counted AFTER INSERT ON path BEGIN
    UPDATE stored SET paths = paths + 1;
END;

CREATE TRIGGER path_not_counted AFTER DELETE ON path BEGIN
    UPDATE stored SET paths = paths - 1;
END;
