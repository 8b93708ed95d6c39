//! The history that all servers of a fleet have made together, as PostgreSQL and the bucket have it:
//! requests, starts of builds, endings, publications and NARs. It must be one, as if a single server had made
//! it.

use std::collections::{BTreeMap, BTreeSet};

use narinfo::NarHash;
use sha2::{Digest, Sha256};

use super::buckets::TestBucket as _;
use super::fleet::Fleet;
use super::gate::Gate;

/// Has the database note each request that is acknowledged, and each path at the moment of its publication,
/// with whether its NAR is on record by then.
pub const AUDIT: &str = "
    CREATE TABLE audit (
        at BIGINT GENERATED ALWAYS AS IDENTITY, kind TEXT NOT NULL, what TEXT NOT NULL, is_right BOOLEAN NOT NULL);
    CREATE FUNCTION audit_request() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO audit (kind, what, is_right) VALUES ('request', NEW.id || ' ' || NEW.drv, true);
        RETURN NULL;
    END $$;
    CREATE FUNCTION audit_path() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO audit (kind, what, is_right)
            SELECT 'path', NEW.name, EXISTS (SELECT 1 FROM nar WHERE nar_hash = NEW.nar_hash);
        RETURN NULL;
    END $$;
    CREATE TRIGGER audit_request AFTER INSERT ON request FOR EACH ROW EXECUTE FUNCTION audit_request();
    CREATE CONSTRAINT TRIGGER audit_path AFTER INSERT ON path DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION audit_path();";

/// A history that was found to be one.
pub struct History {
    /// Names of the derivations that were asked for, in the order of their requests.
    pub requests: Vec<String>,
    /// Those of the requests that have ended, in the same order.
    pub ended: Vec<String>,
}

impl History {
    /// Checks the history until now, in which all requests must have ended.
    #[track_caller]
    pub fn check(fleet: &Fleet) -> History {
        let asked = lines(fleet, "SELECT what FROM audit WHERE kind = 'request' ORDER BY at");
        let asked: BTreeMap<u64, String> = asked.iter().map(|line| request(line)).collect();
        let ended = check_endings(fleet);
        for (id, drv) in &asked {
            assert_eq!(ended.get(id), Some(drv), "request {id} was acknowledged");
        }
        assert_eq!(fleet.sql("SELECT count(*) FROM request"), "0", "requests are left");
        let early = "SELECT what FROM audit WHERE kind = 'path' AND NOT is_right";
        assert_eq!(lines(fleet, early), [""; 0], "paths were published before their NARs");
        let without =
            "SELECT p.name FROM path p LEFT JOIN nar n ON n.nar_hash = p.nar_hash WHERE n.nar_hash IS NULL";
        assert_eq!(lines(fleet, without), [""; 0], "paths are served without a NAR");
        check_objects(fleet);
        History { requests: names(asked.into_values()), ended: names(ended.into_values()) }
    }

    /// Checks the starts of builds: each of them alone, and for the first time in the order in which requests
    /// need them. `inputs` are those of a derivation that are built for it, in order.
    #[track_caller]
    pub fn check_starts(&self, gate: &Gate, inputs: impl Fn(&str) -> Vec<String>) {
        assert_eq!(gate.overlaps(), [""; 0], "a derivation was built twice at once");
        let starts = first_of_each(gate.starts());
        let needed = self.requests.iter().flat_map(|name| {
            let mut all = inputs(name);
            all.push(name.clone());
            all
        });
        // Others pass no gate.
        let needed = first_of_each(needed.filter(|name| starts.contains(name)));
        assert_eq!(starts, needed, "of {:?}", self.requests);
    }
}

/// Rows of one column.
fn lines(fleet: &Fleet, query: &str) -> Vec<String> {
    fleet.sql(query).lines().map(str::to_owned).collect()
}

fn request(line: &str) -> (u64, String) {
    let (id, drv) = line.split_once(' ').expect("a number and a derivation");
    (id.parse().expect("a number"), drv.to_owned())
}

/// Names of derivations, without their hashes.
fn names(drvs: impl Iterator<Item = String>) -> Vec<String> {
    drvs.map(|drv| drv[33..].trim_end_matches(".drv").to_owned()).collect()
}

fn first_of_each(all: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    all.into_iter().filter(|name| seen.insert(name.clone())).collect()
}

/// Every request has ended once, and terms come one after the other.
#[track_caller]
fn check_endings(fleet: &Fleet) -> BTreeMap<u64, String> {
    let all = lines(
        fleet,
        "SELECT coalesce(epoch, 0) || ' ' || request || ' ' || drv FROM ending ORDER BY sequence",
    );
    let (mut ended, mut latest) = (BTreeMap::new(), 0);
    for line in &all {
        let (epoch, rest) = line.split_once(' ').expect("a number and a request");
        let epoch: u64 = epoch.parse().expect("a number");
        // One that was cancelled is of no term.
        assert!(
            epoch == 0 || epoch >= latest,
            "an older leader has recorded an ending after a later one: {all:?}"
        );
        latest = latest.max(epoch);
        let (id, drv) = request(rest);
        assert_eq!(ended.insert(id, drv), None, "request {id} has ended twice: {all:?}");
    }
    ended
}

/// Each NAR on record is in the bucket: those bytes, whole, and since before it was recorded.
#[track_caller]
fn check_objects(fleet: &Fleet) {
    let rows = lines(fleet, "SELECT encode(nar_hash, 'hex') || ' ' || encode(file_hash, 'hex') FROM nar");
    let mut stored = Vec::new();
    for row in &rows {
        let (nar, file) = row.split_once(' ').expect("two hashes");
        let key = format!("nar/{}.nar.zst", NarHash::from_bytes(bytes(nar)).to_nixbase32());
        let object = fleet.bucket.get(&key);
        assert_eq!(Sha256::digest(&object)[..], bytes(file), "{key} is another file than is on record");
        let plain = zstd::decode_all(&object[..]).expect("a zstd file");
        assert_eq!(Sha256::digest(&plain)[..], bytes(nar), "{key} has another NAR");
        stored.push(format!("('{nar}', '{}'::timestamptz)", fleet.bucket.stored_at(&key)));
    }
    if stored.is_empty() {
        return;
    }
    // The store tells whole seconds.
    let early = format!(
        "SELECT s.nar FROM (VALUES {}) AS s (nar, at) JOIN nar n ON encode(n.nar_hash, 'hex') = s.nar \
         WHERE extract(epoch FROM s.at) > n.packed_at + 1",
        stored.join(", ")
    );
    assert_eq!(lines(fleet, &early), [""; 0], "NARs were recorded before they were in the bucket");
}

fn bytes(hex: &str) -> [u8; 32] {
    let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("two hexadecimal digits");
    std::array::from_fn(byte)
}
