-- Packages are found by their programs, the versions of attributes are known through the generations, and the history has
-- builds and waits.

ALTER TABLE catalogue_attribute ADD COLUMN program TEXT COLLATE "C"; -- by which it is run; null where its description has none
ALTER TABLE catalogue_new_attribute ADD COLUMN program TEXT COLLATE "C";
CREATE INDEX catalogue_attribute_by_program ON catalogue_attribute (program) WHERE program IS NOT NULL;

-- The derivations of attributes, from the first generation that has one under a name to the last.
CREATE TABLE catalogue_version (
    set_id    BIGINT NOT NULL,
    attribute TEXT COLLATE "C" NOT NULL,
    system    TEXT COLLATE "C" NOT NULL,
    first     BIGINT NOT NULL,          -- a generation
    drv       TEXT COLLATE "C" NOT NULL, -- base name
    since     BIGINT NOT NULL,          -- Unix seconds at which that generation was made
    last      BIGINT,                   -- a generation; null while the current one has it
    PRIMARY KEY (set_id, attribute, system, first)
);

INSERT INTO catalogue_version (set_id, attribute, system, first, drv, since)
    SELECT a.set_id, a.attribute, a.system, g.id, a.drv, g.made_at FROM catalogue_attribute a
    JOIN catalogue_generation g ON g.set_id = a.set_id AND g.replaced_at IS NULL WHERE a.drv IS NOT NULL;

-- Programs of NARs that were read: names of executables and links in bin/. Kept for as long as a path has the NAR, or
-- former_nar remembers one.
CREATE TABLE program (
    name     TEXT COLLATE "C" NOT NULL, -- of a file in bin/
    nar_hash BYTEA NOT NULL,
    PRIMARY KEY (name, nar_hash)
);

CREATE INDEX program_by_nar ON program (nar_hash);

CREATE FUNCTION former_nar_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM program WHERE nar_hash IN (SELECT nar_hash FROM old_rows)
        AND NOT EXISTS (SELECT 1 FROM path WHERE path.nar_hash = program.nar_hash);
    RETURN NULL;
END $$;

CREATE TRIGGER former_nar_deleted AFTER DELETE ON former_nar
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION former_nar_deleted();

ALTER TABLE history
    ADD COLUMN builds          BIGINT NOT NULL DEFAULT 0, -- builds that ended well, and how long they took
    ADD COLUMN build_millis    BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN waits           BIGINT NOT NULL DEFAULT 0, -- requests whose first build began, and how long they had waited
    ADD COLUMN wait_millis     BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN joined          BIGINT NOT NULL DEFAULT 0, -- requests that joined one that waited
    ADD COLUMN prebuilds       BIGINT NOT NULL DEFAULT 0, -- builds ahead of requests that ended well, and how long they took
    ADD COLUMN prebuild_millis BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN taken_over      BIGINT NOT NULL DEFAULT 0; -- builds ahead of requests that a request joined
