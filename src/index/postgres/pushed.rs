//! Uploads, and the derivations among them.

use std::collections::BTreeMap;
use std::time::SystemTime;

use narinfo::derivation::InputHash;
use narinfo::{StorePath, StorePathHash};

use super::nar::insert_new;
use super::paths::{first_lacking, insert_paths, paths_of};
use super::rows::{PATH_COLUMNS, base_name, hash_texts, optional_hash, path_row};
use super::session::{DatabaseSession, column};
use super::transaction::{Domain, quiet};
use super::{Error, Postgres};
use crate::index::backend::{BackendFuture, Changes, Pushes};
use crate::index::columns::{store_path, to_unix};
use crate::model::{NewNar, PathRow, PushedDerivation, UploadOutcome};

impl Pushes for Postgres {
    fn publish_upload(
        &self,
        path: PathRow,
        nar: NewNar,
        derivation: Option<PushedDerivation>,
    ) -> BackendFuture<'_, UploadOutcome> {
        self.write(Domain::Paths, (path, nar, derivation), |session, (path, nar, derivation)| {
            Box::pin(publish(session, path, nar, derivation.as_ref()))
        })
    }

    fn pushed_outputs(
        &self,
        drvs: Vec<StorePath>,
    ) -> BackendFuture<'_, BTreeMap<StorePath, BTreeMap<String, StorePath>>> {
        self.read(drvs, |session, drvs| {
            Box::pin(async move {
                let sql = "SELECT d.hash || '-' || d.name, o.output, o.hash || '-' || o.name FROM pushed_output o \
                    JOIN pushed_derivation d ON d.hash = o.drv WHERE d.hash || '-' || d.name = ANY($1) \
                    AND d.hash = ANY($2)";
                let mut found: BTreeMap<StorePath, BTreeMap<String, StorePath>> = BTreeMap::new();
                for row in session.rows(sql, &[&base_names(drvs), &hashes(drvs)]).await? {
                    let outputs = found.entry(base_name(&row, 0)?).or_default();
                    outputs.insert(column(&row, 1)?, base_name(&row, 2)?);
                }
                Ok(found)
            })
        })
    }

    fn pushed_named(&self, name: String) -> BackendFuture<'_, Vec<StorePath>> {
        self.read(name, |session, name| {
            Box::pin(async move {
                let sql = "SELECT hash || '-' || name FROM pushed_derivation WHERE name = $1 \
                    ORDER BY used_at DESC, hash";
                let rows = session.rows(sql, &[name]).await?;
                rows.iter().map(|row| base_name(row, 0)).collect()
            })
        })
    }

    fn pushed_input_hashes(&self, drvs: Vec<StorePath>) -> BackendFuture<'_, BTreeMap<StorePath, InputHash>> {
        self.read(drvs, |session, drvs| {
            Box::pin(async move {
                let sql = "SELECT hash || '-' || name, input_hash, is_fixed FROM pushed_derivation \
                    WHERE hash || '-' || name = ANY($1) AND hash = ANY($2)";
                let mut found = BTreeMap::new();
                for row in session.rows(sql, &[&base_names(drvs), &hashes(drvs)]).await? {
                    let hash = match (optional_hash(&row, 1)?, column(&row, 2)?) {
                        (Some(hash), true) => InputHash::Fixed(hash),
                        (Some(hash), false) => InputHash::Regular(hash),
                        (None, _) => InputHash::Deferred,
                    };
                    found.insert(base_name(&row, 0)?, hash);
                }
                Ok(found)
            })
        })
    }

    fn note_pushed_uses(&self, drvs: Vec<StorePath>, now: SystemTime) -> BackendFuture<'_, ()> {
        self.write(Domain::Paths, (drvs, to_unix(now)), |session, (drvs, now)| {
            Box::pin(async move {
                let sql = "UPDATE pushed_derivation SET used_at = $3 WHERE hash || '-' || name = ANY($1) \
                    AND hash = ANY($2)";
                session.execute(sql, &[&base_names(drvs), &hashes(drvs), now]).await?;
                Ok(quiet(()))
            })
        })
    }
}

async fn publish(
    session: &DatabaseSession,
    path: &PathRow,
    nar: &NewNar,
    derivation: Option<&PushedDerivation>,
) -> Result<(Changes, UploadOutcome), Error> {
    let hash = path.info.path.hash();
    let sql = format!("SELECT {PATH_COLUMNS} FROM path p WHERE p.hash = $1");
    let served = session.row(&sql, &[&hash.as_str()]).await?;
    let outcome = match served.as_ref().map(path_row).transpose()? {
        Some(served) if !is_same(&served, path) => {
            return Ok(quiet(UploadOutcome::Served(Box::new(served))));
        }
        Some(served) => UploadOutcome::Served(Box::new(served)),
        None => {
            if let Some(lacking) = first_lacking(session, std::slice::from_ref(path)).await? {
                return Ok(quiet(UploadOutcome::Lacks(lacking)));
            }
            UploadOutcome::Published
        }
    };
    // The NAR first: a path without one is to be packed.
    insert_new(session, nar).await?;
    insert_paths(session, std::slice::from_ref(path)).await?;
    let mut changes = Changes::added(vec![hash]);
    changes.changed = paths_of(session, &[nar.row.nar_hash]).await?;
    if let Some(derivation) = derivation {
        insert(session, std::slice::from_ref(derivation)).await?;
        changes.added.extend(derivation.outputs.values().map(StorePath::hash));
    }
    Ok((changes, outcome))
}

/// True where an upload has the name and the contents of what is served.
fn is_same(served: &PathRow, path: &PathRow) -> bool {
    (&served.info.path, served.info.nar_hash) == (&path.info.path, path.info.nar_hash)
}

/// Inserts derivations, or notes that they were used again.
pub(super) async fn insert(session: &DatabaseSession, derivations: &[PushedDerivation]) -> Result<(), Error> {
    let all: BTreeMap<StorePathHash, &PushedDerivation> =
        derivations.iter().map(|derivation| (derivation.drv.hash(), derivation)).collect();
    let sql = "INSERT INTO pushed_derivation (hash, name, input_hash, is_fixed, used_at) \
        SELECT hash, name, input_hash, is_fixed, $5::bigint \
        FROM unnest($1::text[], $2::text[], $3::bytea[], $4::boolean[]) AS new (hash, name, input_hash, is_fixed) \
        ON CONFLICT (hash) DO UPDATE SET used_at = excluded.used_at";
    let names: Vec<&str> = all.values().map(|derivation| derivation.drv.name()).collect();
    let (identities, fixed): (Vec<Option<&[u8]>>, Vec<bool>) =
        all.values().map(|derivation| identity(&derivation.input_hash)).unzip();
    let now = to_unix(SystemTime::now());
    session.execute(sql, &[&hash_texts(all.keys()), &names, &identities, &fixed, &now]).await?;
    let sql = "INSERT INTO pushed_output (hash, drv, output, name) \
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) ON CONFLICT DO NOTHING";
    let (mut hashes, mut drvs, mut outputs, mut names) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (drv, derivation) in &all {
        for (output, path) in &derivation.outputs {
            hashes.push(path.hash().as_str().to_owned());
            drvs.push(drv.as_str());
            outputs.push(output.as_str());
            names.push(path.name());
        }
    }
    session.execute(sql, &[&hashes, &drvs, &outputs, &names]).await.map(drop)
}

fn identity(input_hash: &InputHash) -> (Option<&[u8]>, bool) {
    match input_hash {
        InputHash::Regular(hash) => (Some(hash), false),
        InputHash::Fixed(hash) => (Some(hash), true),
        InputHash::Deferred => (None, false),
    }
}

/// The pushed derivations that have outputs with these hashes, each with the hash, the latest used first.
pub(super) async fn makers(
    session: &DatabaseSession,
    hashes: &[StorePathHash],
) -> Result<Vec<(StorePathHash, StorePath)>, Error> {
    let sql = "SELECT DISTINCT o.hash, d.hash, d.name, d.used_at FROM pushed_output o \
        JOIN pushed_derivation d ON d.hash = o.drv WHERE o.hash = ANY($1) ORDER BY d.used_at DESC, d.hash";
    let mut found = Vec::new();
    for row in session.rows(sql, &[&hash_texts(hashes)]).await? {
        let base = format!("{}-{}", column::<&str>(&row, 1)?, column::<&str>(&row, 2)?);
        found.push((super::rows::path_hash(&row, 0)?, store_path(&base)?));
    }
    Ok(found)
}

fn base_names(paths: &[StorePath]) -> Vec<String> {
    paths.iter().map(ToString::to_string).collect()
}

fn hashes(paths: &[StorePath]) -> Vec<String> {
    paths.iter().map(|path| path.hash().as_str().to_owned()).collect()
}
