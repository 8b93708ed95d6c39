-- The index in PostgreSQL: which store paths are served, which NARs are stored, which builds failed, who waits.
-- A change needs another file beside this one: this one stays as it is. Texts are compared byte by byte (COLLATE "C"), so that
-- lists have one order whatever the database was made with. What follows from a row that comes or goes is in the triggers.

CREATE TABLE path (
    hash     TEXT COLLATE "C" PRIMARY KEY, -- the 32 characters before the name
    name     TEXT COLLATE "C" NOT NULL,
    nar_hash BYTEA NOT NULL,            -- SHA-256 of the plain NAR
    nar_size BIGINT NOT NULL,           -- bytes of the plain NAR
    refs     TEXT COLLATE "C" NOT NULL, -- base names, separated by spaces, sorted
    deriver  TEXT COLLATE "C",          -- base name
    ca       TEXT COLLATE "C",
    sigs     TEXT COLLATE "C" NOT NULL, -- one signature a line
    added_at BIGINT NOT NULL,           -- Unix seconds
    built    BOOLEAN NOT NULL           -- whether it was built by this cache
);

CREATE INDEX path_by_nar ON path (nar_hash);

-- Eviction order of served paths: a path stands before all that it refers to.
CREATE TABLE eviction_order (
    hash      TEXT COLLATE "C" PRIMARY KEY, -- of the path
    needed_at BIGINT NOT NULL           -- Unix microseconds: when it, or what refers to it, was used last. Negative from when it
                                        -- came until that is known of what it refers to, too
);

CREATE INDEX eviction_order_by_need ON eviction_order (needed_at, hash);

-- A row here means: the stored file is complete, verified and durable in the NAR store.
CREATE TABLE nar (
    nar_hash  BYTEA PRIMARY KEY,
    file_hash BYTEA NOT NULL,           -- SHA-256 of the zstd file
    file_size BIGINT NOT NULL,          -- bytes of the zstd file
    packed_at BIGINT NOT NULL           -- Unix seconds
);

-- How many NARs are stored, the bytes of their files, and how many paths are served: one row, kept by triggers.
CREATE TABLE stored (
    nars  BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    paths BIGINT NOT NULL
) WITH (fillfactor = 10);

INSERT INTO stored VALUES (0, 0, 0);

-- Where an upstream has the NAR of a served path; it may be stored beside that.
CREATE TABLE upstream_nar (
    nar_hash    BYTEA NOT NULL,
    upstream    TEXT COLLATE "C" NOT NULL, -- its URL
    url         TEXT NOT NULL,          -- of the file, as the upstream's narinfo has it
    compression TEXT NOT NULL,
    file_hash   BYTEA,                  -- SHA-256 of the file, as the upstream says
    file_size   BIGINT,                 -- bytes of the file, as the upstream says
    redirect    BOOLEAN NOT NULL,       -- whether clients are sent there
    PRIMARY KEY (nar_hash, upstream)
);

-- The upstreams of the last start.
CREATE TABLE upstream (
    url      TEXT COLLATE "C" PRIMARY KEY, -- its name
    redirect BOOLEAN NOT NULL           -- whether clients are sent there
);

-- The NARs of served paths that only the Nix store has, kept by triggers.
CREATE TABLE to_pack (
    nar_hash BYTEA PRIMARY KEY
);

-- Own builds beside what upstreams have: the answer once there is one, else when it was last looked for.
CREATE TABLE comparison (
    hash      TEXT COLLATE "C" PRIMARY KEY, -- of the path
    looked_at BIGINT NOT NULL,          -- Unix seconds
    upstream  TEXT,                     -- its URL; null while none has it
    nar_hash  BYTEA,                    -- what the upstream has
    same      BOOLEAN                   -- whether that is what was built here
);

-- Realisations that are served: which path an output of a content-addressed derivation is.
CREATE TABLE realisation (
    file     TEXT COLLATE "C" PRIMARY KEY, -- as clients ask for it, such as realisations/sha256:….doi
    path     TEXT COLLATE "C" NOT NULL, -- base name of a served path
    body     TEXT NOT NULL,             -- the file
    added_at BIGINT NOT NULL            -- Unix seconds
);

CREATE INDEX realisation_by_path ON realisation (path);

-- What is retained with its closure however long nobody uses it, served or not.
CREATE TABLE pin (
    hash      TEXT COLLATE "C" NOT NULL, -- of the path
    name      TEXT COLLATE "C" NOT NULL, -- what was named: an attribute, or the path
    pinned_at BIGINT NOT NULL,          -- Unix seconds
    PRIMARY KEY (hash, name)
);

-- Of which path a NAR was that is not served any more: clients that remember its narinfo ask for the NAR alone.
CREATE TABLE former_nar (
    nar_hash BYTEA PRIMARY KEY,
    hash     TEXT COLLATE "C" NOT NULL, -- of the path
    gone_at  BIGINT NOT NULL            -- Unix seconds
);

CREATE INDEX former_nar_by_age ON former_nar (gone_at);

CREATE TABLE failure (
    drv        TEXT COLLATE "C" PRIMARY KEY, -- base name
    class      BIGINT NOT NULL,         -- 0 transient, 1 permanent, 2 refused
    cause      TEXT COLLATE "C" NOT NULL, -- base name of the derivation whose build failed
    reason     TEXT NOT NULL,
    failed_at  BIGINT NOT NULL,         -- Unix seconds
    expires_at BIGINT NOT NULL          -- Unix seconds
);

CREATE INDEX failure_by_cause ON failure (cause);

-- Who waits for a build, oldest first; gone once served or failed.
CREATE TABLE request (
    id        BIGINT PRIMARY KEY,       -- the order of arrival; never used twice
    drv       TEXT NOT NULL,            -- base name
    started   BOOLEAN NOT NULL,         -- whether something was built for it
    asked_at  BIGINT NOT NULL,          -- Unix seconds
    asked_by  TEXT,                     -- address of the first client
    due_owner BIGINT,                   -- the account of overtaking: see build/queue/account.rs
    charged   BIGINT NOT NULL,          -- milliseconds
    earned    BIGINT NOT NULL           -- milliseconds
);

-- The highest number that any request ever had: one row.
CREATE TABLE request_number (
    latest BIGINT NOT NULL
);

INSERT INTO request_number VALUES (0);

-- How long builds took, the latest few of each kind.
CREATE TABLE duration (
    id     BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, -- the order
    work   TEXT COLLATE "C" NOT NULL,   -- what was built: see build/estimate.rs
    millis BIGINT NOT NULL,
    built  BOOLEAN NOT NULL             -- false: it was stopped or failed, and would have taken longer
);

CREATE INDEX duration_by_work ON duration (work, id);

-- Package sets: see catalogue/. Gone from here once it is not configured any more.
CREATE TABLE catalogue_set (
    id       BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    name     TEXT COLLATE "C" UNIQUE NOT NULL,
    tried_at BIGINT,                    -- Unix seconds of the latest refresh that ended
    failure  TEXT                       -- why that failed; null where it went well
);

-- What a set was at a time; one of each set is current, the one without replaced_at.
CREATE TABLE catalogue_generation (
    id          BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, -- the order; never used twice
    set_id      BIGINT NOT NULL,
    made_by     TEXT NOT NULL,          -- the settings that it was made with
    holder      TEXT COLLATE "C" NOT NULL, -- base name of the path that holds its derivations in the Nix store
    made_at     BIGINT NOT NULL,        -- Unix seconds
    replaced_at BIGINT,                 -- Unix seconds
    attributes  BIGINT NOT NULL,        -- how many gave a derivation
    denied      BIGINT NOT NULL,        -- how many of those may not be built
    errors      BIGINT NOT NULL,        -- how many failed to evaluate
    derivations BIGINT NOT NULL         -- how many there are in the closure of what may be built
);

CREATE INDEX catalogue_generation_by_set ON catalogue_generation (set_id);

-- The attributes of the current generation of each set.
CREATE TABLE catalogue_attribute (
    set_id    BIGINT NOT NULL,
    attribute TEXT COLLATE "C" NOT NULL,
    system    TEXT COLLATE "C" NOT NULL, -- the system that it was evaluated for
    drv       TEXT COLLATE "C",         -- base name; null where it failed
    error     TEXT,                     -- why it failed
    denied    BOOLEAN NOT NULL,         -- whether it may not be built
    output    TEXT,                     -- name or path of the output that it is; null where evaluation gave neither
    PRIMARY KEY (set_id, attribute, system)
);

CREATE INDEX catalogue_attribute_by_drv ON catalogue_attribute (drv);

-- What the derivations of all generations give, from the first generation that has it to the last.
CREATE TABLE catalogue_output (
    hash   TEXT COLLATE "C" NOT NULL,   -- the 32 characters before the name of the output's path
    drv    TEXT COLLATE "C" NOT NULL,   -- base name
    set_id BIGINT NOT NULL,
    first  BIGINT NOT NULL,             -- a generation
    last   BIGINT,                      -- a generation; null while the current one has it
    denied BOOLEAN NOT NULL,            -- whether it may not be built, except as an input
    PRIMARY KEY (hash, drv, set_id, first)
);

-- The generation that is being made, in the form of the two tables above. One at a time.
CREATE TABLE catalogue_new_attribute (
    attribute TEXT COLLATE "C" NOT NULL,
    system    TEXT COLLATE "C" NOT NULL,
    drv       TEXT COLLATE "C",
    error     TEXT,
    denied    BOOLEAN NOT NULL,
    output    TEXT,
    PRIMARY KEY (attribute, system)
);

CREATE TABLE catalogue_new_output (
    hash   TEXT COLLATE "C" NOT NULL,
    drv    TEXT COLLATE "C" NOT NULL,
    denied BOOLEAN NOT NULL,
    PRIMARY KEY (hash, drv)
);

-- How often attributes of package sets were asked for: see build/prebuild. Days are numbered in local time.
CREATE TABLE demand (
    day       BIGINT NOT NULL,
    set_name  TEXT COLLATE "C" NOT NULL,
    attribute TEXT COLLATE "C" NOT NULL,
    system    TEXT COLLATE "C" NOT NULL,
    asked     BIGINT NOT NULL,          -- how often on that day
    PRIMARY KEY (day, set_name, attribute, system)
);

-- How long was pre-built on the latest day on which anything was; one row at most.
CREATE TABLE prebuilt (
    day    BIGINT PRIMARY KEY,
    millis BIGINT NOT NULL
);

-- Tokens of clients: see auth/. The secret itself is nowhere.
CREATE TABLE token (
    id         BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, -- never used twice
    name       TEXT COLLATE "C" NOT NULL UNIQUE,
    digest     BYTEA NOT NULL,          -- SHA-256 of the secret
    rights     TEXT NOT NULL,           -- names, separated by spaces
    patterns   TEXT NOT NULL,           -- of names that it is bound to, one a line; none for all names
    created_at BIGINT NOT NULL,         -- Unix seconds
    expires_at BIGINT,                  -- Unix seconds; null for never
    queued_max BIGINT,                  -- requests that it may have waiting; null for no limit of its own
    used_at    BIGINT                   -- Unix seconds, roughly; null before the first use
);

-- Derivations that clients pushed. Their own paths are served, and retained for as long as they are here.
CREATE TABLE pushed_derivation (
    hash       TEXT COLLATE "C" PRIMARY KEY, -- the 32 characters before the name
    name       TEXT COLLATE "C" NOT NULL, -- ends in .drv
    input_hash BYTEA,                   -- identity as an input of others; null where only a build tells
    is_fixed   BOOLEAN NOT NULL,        -- whether that is the hash of a fixed output
    used_at    BIGINT NOT NULL          -- Unix seconds
);

CREATE INDEX pushed_derivation_by_name ON pushed_derivation (name);

-- Outputs of pushed derivations whose paths are known before they are built.
CREATE TABLE pushed_output (
    hash   TEXT COLLATE "C" NOT NULL,   -- of the output's path
    drv    TEXT COLLATE "C" NOT NULL REFERENCES pushed_derivation ON DELETE CASCADE, -- hash of the derivation
    output TEXT COLLATE "C" NOT NULL,   -- name of the output
    name   TEXT COLLATE "C" NOT NULL,   -- name of the output's path
    PRIMARY KEY (hash, drv, output)
);

CREATE INDEX pushed_output_by_derivation ON pushed_output (drv);

-- Which served paths refer to which, kept by triggers. Short: the row of the path that refers tells the rest.
CREATE TABLE reference (
    target TEXT COLLATE "C" NOT NULL,   -- the first 12 characters of the hash of a path that is referred to
    source TEXT COLLATE "C" NOT NULL,   -- the same of the path that refers to it
    PRIMARY KEY (target, source)
);

-- How the server was used: what there was at the end of each hour, and what happened in it.
CREATE TABLE history (
    hour      BIGINT PRIMARY KEY,       -- Unix seconds, divided by 3600
    paths     BIGINT NOT NULL,          -- served
    nars      BIGINT NOT NULL,          -- stored
    nar_bytes BIGINT NOT NULL,          -- of their files
    hits      BIGINT NOT NULL,          -- requests that were answered with what was there
    misses    BIGINT NOT NULL,          -- requests for what was not to be had
    built     BIGINT NOT NULL,          -- requests that were answered after a build
    failed    BIGINT NOT NULL           -- requests whose build failed
);

-- Number of the latest change: one row. Whoever raises it holds its lock until the commit: numbers have no gaps, and follow the
-- order of the commits.
CREATE TABLE change_position (
    latest BIGINT NOT NULL
) WITH (fillfactor = 10);

INSERT INTO change_position VALUES (0);

-- The latest changes of answers, for every server that has answers in memory. Dropped after some minutes.
CREATE TABLE change (
    sequence   BIGINT PRIMARY KEY,
    made_at    TIMESTAMPTZ NOT NULL DEFAULT now(),
    added      TEXT[] NOT NULL,         -- hashes of paths
    changed    TEXT[] NOT NULL,
    removed    TEXT[] NOT NULL,
    everything BOOLEAN NOT NULL         -- too many to list: any answer may have changed
);

CREATE FUNCTION path_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO eviction_order
        SELECT hash, -(extract(epoch FROM clock_timestamp()) * 1000000)::bigint FROM new_rows;
    UPDATE stored SET paths = paths + (SELECT count(*) FROM new_rows)
        WHERE EXISTS (SELECT 1 FROM new_rows);
    INSERT INTO to_pack SELECT DISTINCT nar_hash FROM new_rows p
        WHERE NOT EXISTS (SELECT 1 FROM nar WHERE nar.nar_hash = p.nar_hash)
        AND NOT EXISTS (SELECT 1 FROM upstream_nar u WHERE u.nar_hash = p.nar_hash)
        ON CONFLICT DO NOTHING;
    INSERT INTO reference SELECT DISTINCT substr(each.base, 1, 12), substr(p.hash, 1, 12)
        FROM new_rows p, unnest(string_to_array(p.refs, ' ')) AS each (base)
        WHERE substr(each.base, 1, 32) <> p.hash
        ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE FUNCTION path_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM eviction_order WHERE hash IN (SELECT hash FROM old_rows);
    UPDATE stored SET paths = paths - (SELECT count(*) FROM old_rows)
        WHERE EXISTS (SELECT 1 FROM old_rows);
    DELETE FROM to_pack WHERE nar_hash IN (SELECT nar_hash FROM old_rows)
        AND NOT EXISTS (SELECT 1 FROM path WHERE path.nar_hash = to_pack.nar_hash);
    DELETE FROM upstream_nar WHERE nar_hash IN (SELECT nar_hash FROM old_rows)
        AND NOT EXISTS (SELECT 1 FROM path WHERE path.nar_hash = upstream_nar.nar_hash);
    DELETE FROM realisation WHERE path IN (SELECT hash || '-' || name FROM old_rows);
    INSERT INTO former_nar
        SELECT DISTINCT ON (nar_hash) nar_hash, hash, extract(epoch FROM clock_timestamp())::bigint FROM old_rows
        ON CONFLICT (nar_hash) DO UPDATE SET hash = excluded.hash, gone_at = excluded.gone_at;
    DELETE FROM pushed_derivation WHERE hash IN (SELECT hash FROM old_rows);
    DELETE FROM reference WHERE (target, source) IN (
        SELECT substr(each.base, 1, 12), substr(p.hash, 1, 12)
        FROM old_rows p, unnest(string_to_array(p.refs, ' ')) AS each (base));
    RETURN NULL;
END $$;

CREATE FUNCTION nar_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE stored SET nars = nars + n.count, bytes = bytes + n.sum
        FROM (SELECT count(*), coalesce(sum(file_size), 0)::bigint AS sum FROM new_rows) n WHERE n.count > 0;
    DELETE FROM to_pack WHERE nar_hash IN (SELECT nar_hash FROM new_rows);
    RETURN NULL;
END $$;

CREATE FUNCTION nar_updated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE stored SET bytes = bytes + n.sum
        FROM (SELECT (coalesce((SELECT sum(file_size) FROM new_rows), 0)
            - coalesce((SELECT sum(file_size) FROM old_rows), 0))::bigint AS sum) n WHERE n.sum <> 0;
    RETURN NULL;
END $$;

CREATE FUNCTION nar_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE stored SET nars = nars - n.count, bytes = bytes - n.sum
        FROM (SELECT count(*), coalesce(sum(file_size), 0)::bigint AS sum FROM old_rows) n WHERE n.count > 0;
    INSERT INTO to_pack SELECT nar_hash FROM old_rows n
        WHERE EXISTS (SELECT 1 FROM path WHERE path.nar_hash = n.nar_hash)
        AND NOT EXISTS (SELECT 1 FROM upstream_nar u WHERE u.nar_hash = n.nar_hash)
        ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE FUNCTION upstream_nar_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM to_pack WHERE nar_hash IN (SELECT nar_hash FROM new_rows);
    RETURN NULL;
END $$;

CREATE FUNCTION upstream_nar_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO to_pack SELECT DISTINCT nar_hash FROM old_rows n
        WHERE EXISTS (SELECT 1 FROM path WHERE path.nar_hash = n.nar_hash)
        AND NOT EXISTS (SELECT 1 FROM nar WHERE nar.nar_hash = n.nar_hash)
        AND NOT EXISTS (SELECT 1 FROM upstream_nar u WHERE u.nar_hash = n.nar_hash)
        ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE TRIGGER path_inserted AFTER INSERT ON path
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION path_inserted();
CREATE TRIGGER path_deleted AFTER DELETE ON path
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION path_deleted();
CREATE TRIGGER nar_inserted AFTER INSERT ON nar
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION nar_inserted();
CREATE TRIGGER nar_updated AFTER UPDATE ON nar
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION nar_updated();
CREATE TRIGGER nar_deleted AFTER DELETE ON nar
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION nar_deleted();
CREATE TRIGGER upstream_nar_inserted AFTER INSERT ON upstream_nar
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION upstream_nar_inserted();
CREATE TRIGGER upstream_nar_deleted AFTER DELETE ON upstream_nar
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION upstream_nar_deleted();
