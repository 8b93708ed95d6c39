-- From schema 8 to schema 9: the index tells which paths refer to one, and how the server was used hour by hour.

CREATE TABLE reference (
    target TEXT NOT NULL,               -- the first 12 characters of the hash of a path that is referred to
    source TEXT NOT NULL,               -- the same of the path that refers to it
    PRIMARY KEY (target, source)
) STRICT, WITHOUT ROWID;

INSERT OR IGNORE INTO reference
    SELECT substr(each.value, 1, 12), substr(path.hash, 1, 12)
    FROM path, json_each('["' || replace(path.refs, ' ', '","') || '"]') each
    WHERE path.refs <> '' AND substr(each.value, 1, 32) <> path.hash ORDER BY 1, 2;

CREATE TABLE history (
    hour      INTEGER PRIMARY KEY NOT NULL,
    paths     INTEGER NOT NULL,
    nars      INTEGER NOT NULL,
    nar_bytes INTEGER NOT NULL,
    hits      INTEGER NOT NULL,
    misses    INTEGER NOT NULL,
    built     INTEGER NOT NULL,
    failed    INTEGER NOT NULL
) STRICT;

-- Pushed derivations go with their paths.
DROP INDEX pushed_derivation_by_use;
