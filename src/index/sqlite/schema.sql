-- The index: which store paths are served, which NARs are on disk, which builds failed, who waits.
-- A change here raises SCHEMA_VERSION in writer.rs and needs a migration (from_N.sql); this file is what a fresh index gets.
-- What follows from a row that comes or goes is in triggers.sql.

-- Not WITHOUT ROWID: where rows are long, an inner page of such a tree holds but a few of them, and the tree is deep
-- (https://sqlite.org/withoutrowid.html).
CREATE TABLE path (
    hash     TEXT PRIMARY KEY NOT NULL, -- the 32 characters before the name
    name     TEXT NOT NULL,
    nar_hash BLOB NOT NULL,             -- SHA-256 of the plain NAR
    nar_size INTEGER NOT NULL,          -- bytes of the plain NAR
    refs     TEXT NOT NULL,             -- base names, separated by spaces, sorted
    deriver  TEXT,                      -- base name
    ca       TEXT,
    sigs     TEXT NOT NULL,             -- one signature a line
    added_at INTEGER NOT NULL,          -- Unix seconds
    built    INTEGER NOT NULL DEFAULT 0 -- whether it was built on this machine
) STRICT;

CREATE INDEX path_by_nar ON path (nar_hash);

-- Eviction order of served paths: see access.rs. A path stands before all that it refers to.
CREATE TABLE eviction_order (
    hash      TEXT PRIMARY KEY NOT NULL, -- of the path
    needed_at INTEGER NOT NULL           -- Unix microseconds: when it, or what refers to it, was used last. Negative
                                         -- from when it came until that is known of what it refers to, too
) STRICT, WITHOUT ROWID;

CREATE INDEX eviction_order_by_need ON eviction_order (needed_at);

-- A row here means: the packed file is complete, verified and durable in the NAR store.
CREATE TABLE nar (
    nar_hash  BLOB PRIMARY KEY NOT NULL,
    file_hash BLOB NOT NULL,            -- SHA-256 of the zstd file
    file_size INTEGER NOT NULL,         -- bytes of the zstd file
    packed_at INTEGER NOT NULL          -- Unix seconds
) STRICT, WITHOUT ROWID;

-- How many NARs are packed, the bytes of their files, and how many paths are served: one row, kept by triggers.
CREATE TABLE stored (
    nars  INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    paths INTEGER NOT NULL DEFAULT 0
) STRICT;

INSERT INTO stored VALUES (0, 0, 0);

-- Where an upstream has the NAR of a served path; it may be packed beside that.
CREATE TABLE upstream_nar (
    nar_hash    BLOB NOT NULL,
    upstream    TEXT NOT NULL,          -- its URL
    url         TEXT NOT NULL,          -- of the file, as the upstream's narinfo has it
    compression TEXT NOT NULL,
    file_hash   BLOB,                   -- SHA-256 of the file, as the upstream says
    file_size   INTEGER,                -- bytes of the file, as the upstream says
    redirect    INTEGER NOT NULL,       -- whether clients are sent there
    PRIMARY KEY (nar_hash, upstream)
) STRICT, WITHOUT ROWID;

-- The upstreams of the last start.
CREATE TABLE upstream (
    url      TEXT PRIMARY KEY NOT NULL, -- its name
    redirect INTEGER NOT NULL           -- whether clients are sent there
) STRICT, WITHOUT ROWID;

-- The NARs of served paths that only the Nix store has, kept by triggers.
CREATE TABLE to_pack (
    nar_hash BLOB PRIMARY KEY NOT NULL
) STRICT, WITHOUT ROWID;

-- Own builds beside what upstreams have: the answer once there is one, else when it was last looked for.
CREATE TABLE comparison (
    hash      TEXT PRIMARY KEY NOT NULL, -- of the path
    looked_at INTEGER NOT NULL,          -- Unix seconds
    upstream  TEXT,                      -- its URL; null while none has it
    nar_hash  BLOB,                      -- what the upstream has
    same      INTEGER                    -- whether that is what was built here
) STRICT, WITHOUT ROWID;

-- Realisations that are served: which path an output of a content-addressed derivation is.
CREATE TABLE realisation (
    file     TEXT PRIMARY KEY NOT NULL, -- as clients ask for it, such as realisations/sha256:….doi
    path     TEXT NOT NULL,             -- base name of a served path
    body     TEXT NOT NULL,             -- the file
    added_at INTEGER NOT NULL           -- Unix seconds
) STRICT, WITHOUT ROWID;

CREATE INDEX realisation_by_path ON realisation (path);

-- What is held with its closure however long nobody uses it, served or not.
CREATE TABLE pin (
    hash      TEXT NOT NULL,            -- of the path
    name      TEXT NOT NULL,            -- what was named: an attribute, or the path
    pinned_at INTEGER NOT NULL,         -- Unix seconds
    PRIMARY KEY (hash, name)
) STRICT, WITHOUT ROWID;

-- Of which path a NAR was that is not served any more: clients that remember its narinfo ask for the NAR alone.
CREATE TABLE former_nar (
    nar_hash BLOB PRIMARY KEY NOT NULL,
    hash     TEXT NOT NULL,             -- of the path
    gone_at  INTEGER NOT NULL           -- Unix seconds
) STRICT, WITHOUT ROWID;

CREATE INDEX former_nar_by_age ON former_nar (gone_at);

CREATE TABLE failure (
    drv        TEXT PRIMARY KEY NOT NULL, -- base name
    class      INTEGER NOT NULL,          -- 0 transient, 1 permanent, 2 refused
    cause      TEXT NOT NULL,             -- base name of the derivation whose build failed
    reason     TEXT NOT NULL,
    failed_at  INTEGER NOT NULL,          -- Unix seconds
    expires_at INTEGER NOT NULL           -- Unix seconds
) STRICT, WITHOUT ROWID;

-- Who waits for a build, oldest first; gone once served or failed.
CREATE TABLE request (
    id        INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, -- the order of arrival; never used twice
    drv       TEXT NOT NULL,            -- base name
    started   INTEGER NOT NULL,         -- whether something was built for it
    asked_at  INTEGER NOT NULL,         -- Unix seconds
    asked_by  TEXT,                     -- address of the first client
    due_owner INTEGER,                  -- the account of overtaking: see build/queue/account.rs
    charged   INTEGER NOT NULL,         -- milliseconds
    earned    INTEGER NOT NULL,         -- milliseconds
    builder   TEXT                      -- the one that alone may build it; null for any
) STRICT;

-- How long builds took, the latest few of each kind.
CREATE TABLE duration (
    id     INTEGER PRIMARY KEY NOT NULL, -- the order
    work   TEXT NOT NULL,               -- what was built: see build/estimate.rs
    millis INTEGER NOT NULL,
    built  INTEGER NOT NULL             -- 0: it was stopped or failed, and would have taken longer
) STRICT;

CREATE INDEX duration_by_work ON duration (work);

-- Package sets: see catalogue/. Gone from here once it is not configured any more.
CREATE TABLE catalogue_set (
    id         INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    name       TEXT UNIQUE NOT NULL,
    tried_at   INTEGER,                 -- Unix seconds of the latest refresh that ended
    failure    TEXT                     -- why that failed; null where it went well
) STRICT;

-- What a set was at a time; one of each set is current, the one without replaced_at.
CREATE TABLE catalogue_generation (
    id          INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, -- the order; never used twice
    set_id      INTEGER NOT NULL,
    made_by     TEXT NOT NULL,          -- the settings that it was made with
    holder      TEXT NOT NULL,          -- base name of the path that holds its derivations in the Nix store
    made_at     INTEGER NOT NULL,       -- Unix seconds
    replaced_at INTEGER,                -- Unix seconds
    attributes  INTEGER NOT NULL,       -- how many gave a derivation
    denied      INTEGER NOT NULL,       -- how many of those may not be built
    errors      INTEGER NOT NULL,       -- how many failed to evaluate
    derivations INTEGER NOT NULL        -- how many there are in the closure of what may be built
) STRICT;

CREATE INDEX catalogue_generation_by_set ON catalogue_generation (set_id);

-- The attributes of the current generation of each set.
CREATE TABLE catalogue_attribute (
    set_id    INTEGER NOT NULL,
    attribute TEXT NOT NULL,
    system    TEXT NOT NULL,            -- the system that it was evaluated for
    drv       TEXT,                     -- base name; null where it failed
    error     TEXT,                     -- why it failed
    denied    INTEGER NOT NULL,         -- whether it may not be built
    output    TEXT,                     -- name or path of the output that it is; null where evaluation gave neither
    program   TEXT,                     -- name of the program that it is run by; null where its description has none
    PRIMARY KEY (set_id, attribute, system)
) STRICT, WITHOUT ROWID;

CREATE INDEX catalogue_attribute_by_drv ON catalogue_attribute (drv);
CREATE INDEX catalogue_attribute_by_program ON catalogue_attribute (program) WHERE program IS NOT NULL;

-- The derivations of attributes, from the first generation that has one under a name to the last.
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

-- What the derivations of all generations give, from the first generation that has it to the last.
CREATE TABLE catalogue_output (
    hash    TEXT NOT NULL,              -- the 32 characters before the name of the output's path
    drv     TEXT NOT NULL,              -- base name
    set_id  INTEGER NOT NULL,
    first   INTEGER NOT NULL,           -- a generation
    last    INTEGER,                    -- a generation; null while the current one has it
    denied  INTEGER NOT NULL,           -- whether it may not be built, except as an input
    PRIMARY KEY (hash, drv, set_id, first)
) STRICT, WITHOUT ROWID;

-- The generation that is being made, in the form of the two tables above. One at a time.
CREATE TABLE catalogue_new_attribute (
    attribute TEXT NOT NULL,
    system    TEXT NOT NULL,
    drv       TEXT,
    error     TEXT,
    denied    INTEGER NOT NULL,
    output    TEXT,
    program   TEXT,
    PRIMARY KEY (attribute, system)
) STRICT, WITHOUT ROWID;

CREATE TABLE catalogue_new_output (
    hash   TEXT NOT NULL,
    drv    TEXT NOT NULL,
    denied INTEGER NOT NULL,
    PRIMARY KEY (hash, drv)
) STRICT, WITHOUT ROWID;

-- How often attributes of package sets were asked for: see build/prebuild. Days are numbered in local time.
CREATE TABLE demand (
    day       INTEGER NOT NULL,
    set_name  TEXT NOT NULL,
    attribute TEXT NOT NULL,
    system    TEXT NOT NULL,
    asked     INTEGER NOT NULL,         -- how often on that day
    PRIMARY KEY (day, set_name, attribute, system)
) STRICT, WITHOUT ROWID;

-- How long was pre-built on the latest day on which anything was; one row at most.
CREATE TABLE prebuilt (
    day    INTEGER PRIMARY KEY NOT NULL,
    millis INTEGER NOT NULL
) STRICT;

-- Tokens of clients: see src/auth. The secret itself is nowhere.
CREATE TABLE token (
    id         INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, -- never used twice
    name       TEXT NOT NULL UNIQUE,
    digest     BLOB NOT NULL,           -- SHA-256 of the secret
    rights     TEXT NOT NULL,           -- names, separated by spaces
    patterns   TEXT NOT NULL,           -- of names that it is bound to, one a line; none for all names
    created_at INTEGER NOT NULL,        -- Unix seconds
    expires_at INTEGER,                 -- Unix seconds; null for never
    queued_max INTEGER,                 -- requests that it may have waiting; null for no limit of its own
    used_at    INTEGER                  -- Unix seconds, roughly; null before the first use
) STRICT;

-- Derivations that clients pushed. Their own paths are served, and retained for as long as they are here.
CREATE TABLE pushed_derivation (
    hash       TEXT PRIMARY KEY NOT NULL, -- the 32 characters before the name
    name       TEXT NOT NULL,             -- ends in .drv
    input_hash BLOB,                      -- identity as an input of others; null where only a build tells
    is_fixed   INTEGER NOT NULL,          -- whether that is the hash of a fixed output
    used_at    INTEGER NOT NULL           -- Unix seconds
) STRICT, WITHOUT ROWID;

CREATE INDEX pushed_derivation_by_name ON pushed_derivation (name);

-- Outputs of pushed derivations whose paths are known before they are built.
CREATE TABLE pushed_output (
    hash   TEXT NOT NULL,               -- of the output's path
    drv    TEXT NOT NULL,               -- hash of the derivation
    output TEXT NOT NULL,               -- name of the output
    name   TEXT NOT NULL,               -- name of the output's path
    PRIMARY KEY (hash, drv, output)
) STRICT, WITHOUT ROWID;

CREATE INDEX pushed_output_by_derivation ON pushed_output (drv);

-- Which served paths refer to which, kept by triggers. Short: the row of the path that refers tells the rest.
CREATE TABLE reference (
    target TEXT NOT NULL,               -- the first 12 characters of the hash of a path that is referred to
    source TEXT NOT NULL,               -- the same of the path that refers to it
    PRIMARY KEY (target, source)
) STRICT, WITHOUT ROWID;

-- Programs of NARs that were read: names of executables and links in bin/. Kept for as long as a path has the NAR, or
-- former_nar remembers one.
CREATE TABLE program (
    name     TEXT NOT NULL,             -- of a file in bin/
    nar_hash BLOB NOT NULL,
    PRIMARY KEY (name, nar_hash)
) STRICT, WITHOUT ROWID;

CREATE INDEX program_by_nar ON program (nar_hash);

-- How the server was used: what there was at the end of each hour, and what happened in it.
CREATE TABLE history (
    hour      INTEGER PRIMARY KEY NOT NULL, -- Unix seconds, divided by 3600
    paths     INTEGER NOT NULL,         -- served
    nars      INTEGER NOT NULL,         -- stored
    nar_bytes INTEGER NOT NULL,         -- of their files
    hits      INTEGER NOT NULL,         -- requests that were answered with what was there
    misses    INTEGER NOT NULL,         -- requests for what was not to be had
    built     INTEGER NOT NULL,         -- requests that were answered after a build
    failed    INTEGER NOT NULL,         -- requests whose build failed
    builds    INTEGER NOT NULL DEFAULT 0, -- builds that ended well, and how long they took
    build_millis INTEGER NOT NULL DEFAULT 0,
    waits     INTEGER NOT NULL DEFAULT 0, -- requests whose first build began, and how long they had waited for it
    wait_millis INTEGER NOT NULL DEFAULT 0,
    joined    INTEGER NOT NULL DEFAULT 0, -- requests that joined one that waited
    prebuilds INTEGER NOT NULL DEFAULT 0, -- builds ahead of requests that ended well, and how long they took
    prebuild_millis INTEGER NOT NULL DEFAULT 0,
    taken_over INTEGER NOT NULL DEFAULT 0 -- builds ahead of requests that a request joined
) STRICT;
