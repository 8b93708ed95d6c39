//! Served paths: how one is found, published, signed and forgotten, and the totals of the index.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::SystemTime;

use narinfo::{NarHash, Signature, StorePath, StorePathHash};

use super::rows::{
    PATH_COLUMN_COUNT, PATH_COLUMNS, UPSTREAM_COLUMNS, hash_texts, joined_nar_row, nar_bytes, path_hash,
    path_row, upstream_nar,
};
use super::session::{DatabaseSession, column};
use super::transaction::{Domain, quiet};
use super::{Error, Postgres, upstream};
use crate::index::backend::{BackendFuture, Changes, Paths};
use crate::index::columns::{join, signed, store_path, to_unix, unsigned};
use crate::model::{Counts, Hit, PathRow, UpstreamNar};

/// Signatures that a path may gain beside those it has, up to so many in all.
const SIGNATURES_MAX: usize = 100;
/// Paths in one batch.
const BATCH: i64 = 500;
/// Column of a hit in which the upstream that clients are redirected to begins.
const REDIRECT: usize = PATH_COLUMN_COUNT + 3;

impl Paths for Postgres {
    fn find(&self, hash: StorePathHash) -> BackendFuture<'_, Option<Hit>> {
        self.read(hash, |session, hash| {
            Box::pin(async move {
                let sql = format!(
                    "SELECT {PATH_COLUMNS}, n.nar_hash, n.file_hash, n.file_size, {UPSTREAM_COLUMNS} FROM path p \
                     LEFT JOIN nar n ON n.nar_hash = p.nar_hash \
                     LEFT JOIN upstream_nar u ON u.nar_hash = p.nar_hash AND u.redirect AND n.nar_hash IS NULL \
                     WHERE p.hash = $1 LIMIT 1"
                );
                let Some(row) = session.row(&sql, &[&hash.as_str()]).await? else { return Ok(None) };
                let is_redirected = column::<Option<&[u8]>>(&row, REDIRECT)?.is_some();
                Ok(Some(Hit {
                    row: path_row(&row)?,
                    packed: joined_nar_row(&row)?,
                    redirect: is_redirected.then(|| upstream_nar(&row, REDIRECT)).transpose()?,
                }))
            })
        })
    }

    fn served(&self, hashes: Vec<StorePathHash>) -> BackendFuture<'_, BTreeMap<StorePathHash, StorePath>> {
        self.read(hashes, |session, hashes| {
            Box::pin(async move {
                let sql = "SELECT hash || '-' || name FROM path WHERE hash = ANY($1)";
                let mut found = BTreeMap::new();
                for row in session.rows(sql, &[&hash_texts(hashes)]).await? {
                    let path = store_path(column(&row, 0)?)?;
                    found.insert(path.hash(), path);
                }
                Ok(found)
            })
        })
    }

    fn publish(&self, rows: Vec<PathRow>) -> BackendFuture<'_, bool> {
        self.write(Domain::Paths, rows, |session, rows| {
            Box::pin(async move {
                if first_lacking(session, rows).await?.is_some() {
                    return Ok(quiet(false));
                }
                insert_paths(session, rows).await?;
                Ok((Changes::added(rows.iter().map(|row| row.info.path.hash()).collect()), true))
            })
        })
    }

    fn publish_from_upstream(&self, rows: Vec<(PathRow, UpstreamNar)>) -> BackendFuture<'_, bool> {
        let (paths, nars): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        self.write(Domain::Paths, (paths, nars), |session, (paths, nars)| {
            Box::pin(async move {
                if first_lacking(session, paths).await?.is_some() {
                    return Ok(quiet(false));
                }
                insert_paths(session, paths).await?;
                upstream::insert(session, nars).await?;
                let mut changes = Changes::added(paths.iter().map(|path| path.info.path.hash()).collect());
                let hashes: Vec<NarHash> = nars.iter().map(|nar| nar.nar_hash).collect();
                changes.changed = paths_of(session, &hashes).await?;
                Ok((changes, true))
            })
        })
    }

    fn forget_paths(&self, nar: NarHash) -> BackendFuture<'_, ()> {
        self.write(Domain::Paths, nar, |session, nar| {
            Box::pin(async move {
                let sql = "DELETE FROM path WHERE nar_hash = $1 RETURNING hash";
                let rows = session.rows(sql, &[&nar.as_bytes().as_slice()]).await?;
                let removed = rows.iter().map(|row| path_hash(row, 0)).collect::<Result<_, _>>()?;
                Ok((Changes::removed(removed), ()))
            })
        })
    }

    fn paths_after(&self, after: Option<StorePathHash>) -> BackendFuture<'_, Vec<PathRow>> {
        self.read(after, |session, after| {
            Box::pin(async move {
                let sql =
                    format!("SELECT {PATH_COLUMNS} FROM path p WHERE p.hash > $1 ORDER BY p.hash LIMIT $2");
                let after = after.as_ref().map_or("", StorePathHash::as_str);
                session.rows(&sql, &[&after, &BATCH]).await?.iter().map(path_row).collect()
            })
        })
    }

    fn set_signatures(&self, paths: Vec<(StorePathHash, Vec<Signature>)>) -> BackendFuture<'_, ()> {
        self.write(Domain::Paths, paths, |session, paths| {
            Box::pin(async move {
                let signatures = paths.iter().map(|(hash, all)| (*hash, join(all, "\n")));
                write_signatures(session, &signatures.collect()).await?;
                Ok((Changes::changed(paths.iter().map(|(hash, _)| *hash).collect()), ()))
            })
        })
    }

    fn add_signatures(&self, new: Vec<(StorePathHash, NarHash, Vec<Signature>)>) -> BackendFuture<'_, usize> {
        self.write(Domain::Paths, new, |session, new| {
            Box::pin(async move {
                let sql = format!("SELECT {PATH_COLUMNS} FROM path p WHERE p.hash = ANY($1)");
                let rows = session.rows(&sql, &[&hash_texts(new.iter().map(|(hash, ..)| hash))]).await?;
                let mut known = HashMap::new();
                for row in &rows {
                    let PathRow { info, .. } = path_row(row)?;
                    known.insert(info.path.hash(), (info.nar_hash, info.signatures));
                }
                let mut changed = BTreeMap::new();
                for (hash, nar, signatures) in new {
                    let Some((_, all)) = known.get_mut(hash).filter(|(known, _)| known == nar) else {
                        continue;
                    };
                    let before = all.len();
                    for signature in signatures {
                        if all.len() < SIGNATURES_MAX && !all.contains(signature) {
                            all.push(signature.clone());
                        }
                    }
                    if all.len() > before {
                        changed.insert(*hash, join(&*all, "\n"));
                    }
                }
                write_signatures(session, &changed).await?;
                let count = changed.len();
                Ok((Changes::changed(changed.into_keys().collect()), count))
            })
        })
    }

    fn counts(&self) -> BackendFuture<'_, Counts> {
        self.read((), |session, ()| {
            Box::pin(async move {
                let sql = "SELECT paths, nars, bytes, (SELECT count(*) FROM failure), \
                    (SELECT count(*) FROM comparison WHERE same), (SELECT count(*) FROM comparison WHERE NOT same) \
                    FROM stored";
                let row = session.one(sql, &[]).await?;
                let number = |index| column(&row, index).map(unsigned);
                Ok(Counts {
                    paths: number(0)?,
                    nars: number(1)?,
                    nar_bytes: number(2)?,
                    failures: number(3)?,
                    reproduced: number(4)?,
                    not_reproduced: number(5)?,
                })
            })
        })
    }
}

async fn write_signatures(
    session: &DatabaseSession,
    signatures: &BTreeMap<StorePathHash, String>,
) -> Result<(), Error> {
    let sql = "UPDATE path SET sigs = new.sigs FROM unnest($1::text[], $2::text[]) AS new (hash, sigs) \
        WHERE path.hash = new.hash";
    let (hashes, texts) = (hash_texts(signatures.keys()), signatures.values().collect::<Vec<_>>());
    session.execute(sql, &[&hashes, &texts]).await.map(drop)
}

/// A path that the rows refer to and that is neither served nor among them, by its own name: a client asks
/// for a hash, and refuses what comes under another name.
pub(super) async fn first_lacking(
    session: &DatabaseSession,
    rows: &[PathRow],
) -> Result<Option<StorePath>, Error> {
    let own: HashSet<&StorePath> = rows.iter().map(|row| &row.info.path).collect();
    let others: HashSet<&StorePath> =
        rows.iter().flat_map(|row| &row.info.references).filter(|path| !own.contains(path)).collect();
    if others.is_empty() {
        return Ok(None);
    }
    let others: Vec<String> = others.into_iter().map(ToString::to_string).collect();
    let sql = "SELECT base FROM unnest($1::text[]) AS wanted (base) WHERE NOT EXISTS \
        (SELECT 1 FROM path WHERE hash = substr(base, 1, 32) AND name = substr(base, 34)) LIMIT 1";
    let lacking = session.row(sql, &[&others]).await?;
    lacking.map(|row| Ok(store_path(column(&row, 0)?)?)).transpose()
}

/// Inserts paths. No narinfo is changed by this: a path that is served keeps its row.
pub(super) async fn insert_paths(session: &DatabaseSession, rows: &[PathRow]) -> Result<(), Error> {
    let sql = "INSERT INTO path (hash, name, nar_hash, nar_size, refs, deriver, ca, sigs, added_at, built) \
        SELECT hash, name, nar_hash, nar_size, refs, deriver, ca, sigs, $10::bigint, built \
        FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bigint[], $5::text[], $6::text[], $7::text[], \
        $8::text[], $9::boolean[]) AS new (hash, name, nar_hash, nar_size, refs, deriver, ca, sigs, built) \
        ON CONFLICT (hash) DO NOTHING";
    let texts = |of: fn(&PathRow) -> String| rows.iter().map(of).collect::<Vec<_>>();
    let optional = |of: fn(&PathRow) -> Option<String>| rows.iter().map(of).collect::<Vec<_>>();
    let hashes = texts(|row| row.info.path.hash().as_str().to_owned());
    let names: Vec<&str> = rows.iter().map(|row| row.info.path.name()).collect();
    let nars = nar_bytes(rows.iter().map(|row| &row.info.nar_hash));
    let sizes: Vec<i64> = rows.iter().map(|row| signed(row.info.nar_size)).collect();
    let references = texts(|row| join(&row.info.references, " "));
    let derivers = optional(|row| row.info.deriver.as_ref().map(ToString::to_string));
    let addresses = optional(|row| row.info.ca.as_ref().map(ToString::to_string));
    let signatures = texts(|row| join(&row.info.signatures, "\n"));
    let built: Vec<bool> = rows.iter().map(|row| row.built).collect();
    let now = to_unix(SystemTime::now());
    session
        .execute(
            sql,
            &[&hashes, &names, &nars, &sizes, &references, &derivers, &addresses, &signatures, &built, &now],
        )
        .await
        .map(drop)
}

/// The served paths with these NARs: a write that concerns one changes their narinfos.
pub(super) async fn paths_of(
    session: &DatabaseSession,
    nars: &[NarHash],
) -> Result<Vec<StorePathHash>, Error> {
    let sql = "SELECT hash FROM path WHERE nar_hash = ANY($1)";
    let rows = session.rows(sql, &[&nar_bytes(nars)]).await?;
    rows.iter().map(|row| path_hash(row, 0)).collect()
}
