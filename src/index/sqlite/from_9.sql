-- From schema 9 to schema 10: packages are found by their programs, the versions of attributes are known through the
-- generations, and the history has builds and waits.

CREATE TABLE program (
    name     TEXT NOT NULL,             -- of a file in bin/
    nar_hash BLOB NOT NULL,
    PRIMARY KEY (name, nar_hash)
) STRICT, WITHOUT ROWID;

CREATE INDEX program_by_nar ON program (nar_hash);

ALTER TABLE catalogue_attribute ADD COLUMN program TEXT;
ALTER TABLE catalogue_new_attribute ADD COLUMN program TEXT;
CREATE INDEX catalogue_attribute_by_program ON catalogue_attribute (program) WHERE program IS NOT NULL;

CREATE TABLE catalogue_version (
    set_id    INTEGER NOT NULL,
    attribute TEXT NOT NULL,
    system    TEXT NOT NULL,
    first     INTEGER NOT NULL,         -- a generation
    drv       TEXT NOT NULL,            -- base name
    since     INTEGER NOT NULL,         -- Unix seconds at which that generation was made
    last      INTEGER,                  -- a generation; null while the current one has it
    PRIMARY KEY (set_id, attribute, system, first)
) STRICT, WITHOUT ROWID;

INSERT INTO catalogue_version (set_id, attribute, system, first, drv, since)
    SELECT a.set_id, a.attribute, a.system, g.id, a.drv, g.made_at FROM catalogue_attribute a
    JOIN catalogue_generation g ON g.set_id = a.set_id AND g.replaced_at IS NULL WHERE a.drv IS NOT NULL;

ALTER TABLE history ADD COLUMN builds INTEGER NOT NULL DEFAULT 0;
ALTER TABLE history ADD COLUMN build_millis INTEGER NOT NULL DEFAULT 0;
ALTER TABLE history ADD COLUMN waits INTEGER NOT NULL DEFAULT 0;
ALTER TABLE history ADD COLUMN wait_millis INTEGER NOT NULL DEFAULT 0;
ALTER TABLE history ADD COLUMN joined INTEGER NOT NULL DEFAULT 0;
ALTER TABLE history ADD COLUMN prebuilds INTEGER NOT NULL DEFAULT 0;
ALTER TABLE history ADD COLUMN prebuild_millis INTEGER NOT NULL DEFAULT 0;
ALTER TABLE history ADD COLUMN taken_over INTEGER NOT NULL DEFAULT 0;
