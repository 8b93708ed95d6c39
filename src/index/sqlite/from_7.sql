-- From schema 7 to schema 8: the table of the eviction order has its name, and there are tokens of clients.

DROP INDEX turn_by_need;
ALTER TABLE turn RENAME TO eviction_order;
CREATE INDEX eviction_order_by_need ON eviction_order (needed_at);

CREATE TABLE token (
    id         INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, -- never used twice
    name       TEXT NOT NULL UNIQUE,
    digest     BLOB NOT NULL,
    rights     TEXT NOT NULL,
    patterns   TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    queued_max INTEGER,
    used_at    INTEGER
) STRICT;
