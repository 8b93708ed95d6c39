-- From schema 1 to schema 2: the queue and what was learned about builds are kept, and a failure has a class.

-- 0 and 1 mean what they meant.
ALTER TABLE failure RENAME COLUMN permanent TO class;

CREATE TABLE request (
    id        INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    drv       TEXT NOT NULL,
    started   INTEGER NOT NULL,
    asked_at  INTEGER NOT NULL,
    asked_by  TEXT,
    due_owner INTEGER,
    charged   INTEGER NOT NULL,
    earned    INTEGER NOT NULL
) STRICT;

CREATE TABLE duration (
    id     INTEGER PRIMARY KEY NOT NULL,
    work   TEXT NOT NULL,
    millis INTEGER NOT NULL,
    built  INTEGER NOT NULL
) STRICT;

CREATE INDEX duration_by_work ON duration (work);
