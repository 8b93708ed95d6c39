-- Several servers over one index: which of them schedules builds, who waits for a request, and how requests have ended.

-- Term of the leader: one row. Each takeover raises the epoch. A write of the scheduler holds a shared lock on this row, and is
-- refused where the epoch is another one: a leader that was taken over from records nothing.
CREATE TABLE leadership (
    epoch  BIGINT NOT NULL,
    holder TEXT COLLATE "C" NOT NULL    -- the node
);

INSERT INTO leadership VALUES (0, '');

-- Until when the leader is not taken over from, by the clock of this database: one row. Apart from the term, so that renewing it
-- waits for no write.
CREATE TABLE lease (
    expires_at TIMESTAMPTZ NOT NULL
) WITH (fillfactor = 10);

INSERT INTO lease VALUES ('-infinity');

-- The servers, and when each was last heard of.
CREATE TABLE node (
    id      TEXT COLLATE "C" PRIMARY KEY,
    seen_at TIMESTAMPTZ NOT NULL
);

-- Servers with clients that wait for a request. It is not dropped while one of them is alive.
CREATE TABLE request_node (
    request BIGINT NOT NULL REFERENCES request ON DELETE CASCADE,
    node    TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (request, node)
);

CREATE INDEX request_node_by_node ON request_node (node);
CREATE INDEX request_by_drv ON request (drv);

-- Requests that have ended, for the servers whose clients wait. Dropped after an hour.
CREATE TABLE ending (
    sequence   BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- the order of the commits
    request    BIGINT NOT NULL,
    drv        TEXT COLLATE "C" NOT NULL, -- base name
    ended_at   TIMESTAMPTZ NOT NULL DEFAULT now(),
    epoch      BIGINT,                  -- of the leader; null where another server has cancelled it
    outcome    BIGINT NOT NULL,         -- 0 served, 1 failed, 2 dropped, 3 cancelled
    class      BIGINT,                  -- of the failure, as in the table failure; null where there is none
    cause      TEXT COLLATE "C",
    reason     TEXT,
    failed_at  BIGINT,
    expires_at BIGINT
);

CREATE INDEX ending_by_age ON ending (ended_at);
