-- From schema 3 to schema 4: what is asked for, and what was pre-built.

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
