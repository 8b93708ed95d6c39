//! Stored NARs, those that are yet to be packed, and the paths that have them.

use std::time::SystemTime;

use narinfo::{NarHash, StorePath};

use super::paths::paths_of;
use super::program::insert_programs;
use super::rows::{PATH_COLUMNS, joined_nar_row, nar_bytes, nar_hash, nar_row, path_row};
use super::session::DatabaseSession;
use super::transaction::Domain;
use super::{Error, Postgres};
use crate::index::backend::{BackendFuture, Changes, Nars};
use crate::index::columns::{signed, to_unix};
use crate::model::{NarRow, NewNar, PathRow};

/// NARs that are listed at once.
const NARS_AT_ONCE: i64 = 256;

impl Nars for Postgres {
    fn path_with_nar(&self, nar: NarHash) -> BackendFuture<'_, Option<PathRow>> {
        self.read(nar, |session, nar| {
            Box::pin(async move {
                let sql = format!("SELECT {PATH_COLUMNS} FROM path p WHERE p.nar_hash = $1 LIMIT 1");
                session.row(&sql, &[&nar.as_bytes().as_slice()]).await?.as_ref().map(path_row).transpose()
            })
        })
    }

    fn nar(&self, nar: NarHash) -> BackendFuture<'_, Option<(PathRow, Option<NarRow>)>> {
        self.read(nar, |session, nar| {
            Box::pin(async move {
                let sql = format!(
                    "SELECT {PATH_COLUMNS}, n.nar_hash, n.file_hash, n.file_size FROM path p \
                     LEFT JOIN nar n ON n.nar_hash = p.nar_hash WHERE p.nar_hash = $1 LIMIT 1"
                );
                let row = session.row(&sql, &[&nar.as_bytes().as_slice()]).await?;
                row.map(|row| Ok((path_row(&row)?, joined_nar_row(&row)?))).transpose()
            })
        })
    }

    fn paths_with_nar(&self, nar: NarHash) -> BackendFuture<'_, Vec<StorePath>> {
        self.read(nar, |session, nar| {
            Box::pin(async move {
                let sql = format!("SELECT {PATH_COLUMNS} FROM path p WHERE p.nar_hash = $1");
                let rows = session.rows(&sql, &[&nar.as_bytes().as_slice()]).await?;
                rows.iter().map(|row| Ok(path_row(row)?.info.path)).collect()
            })
        })
    }

    fn packed(&self, nar: NarHash) -> BackendFuture<'_, Option<NarRow>> {
        self.read(nar, |session, nar| {
            Box::pin(async move {
                let sql = "SELECT nar_hash, file_hash, file_size FROM nar WHERE nar_hash = $1";
                let row = session.row(sql, &[&nar.as_bytes().as_slice()]).await?;
                row.map(|row| nar_row(&row, 0)).transpose()
            })
        })
    }

    fn not_packed(&self, nars: Vec<NarHash>) -> BackendFuture<'_, Vec<NarHash>> {
        self.read(nars, |session, nars| {
            Box::pin(async move {
                let sql = "SELECT asked.nar_hash FROM unnest($1::bytea[]) WITH ORDINALITY AS asked (nar_hash, place) \
                    WHERE NOT EXISTS (SELECT 1 FROM nar WHERE nar.nar_hash = asked.nar_hash) ORDER BY place";
                let rows = session.rows(sql, &[&nar_bytes(nars)]).await?;
                rows.iter().map(|row| nar_hash(row, 0)).collect()
            })
        })
    }

    fn unpacked(&self) -> BackendFuture<'_, Vec<PathRow>> {
        self.read((), |session, ()| {
            Box::pin(async move {
                let sql = format!(
                    "SELECT {PATH_COLUMNS} FROM to_pack t JOIN path p ON p.nar_hash = t.nar_hash \
                     ORDER BY p.added_at, p.hash"
                );
                session.rows(&sql, &[]).await?.iter().map(path_row).collect()
            })
        })
    }

    fn nars(&self, after: Option<NarHash>) -> BackendFuture<'_, Vec<NarRow>> {
        self.read(after, |session, after| Box::pin(nars_behind(session, *after, "TRUE")))
    }

    fn record_packed(&self, nar: NewNar) -> BackendFuture<'_, ()> {
        self.write(Domain::Paths, nar, |session, nar| {
            Box::pin(async move {
                insert_new(session, nar).await?;
                Ok((Changes::changed(paths_of(session, &[nar.row.nar_hash]).await?), ()))
            })
        })
    }

    fn forget_packed(&self, nar: NarHash) -> BackendFuture<'_, ()> {
        self.write(Domain::Paths, nar, |session, nar| {
            Box::pin(async move {
                session.execute("DELETE FROM nar WHERE nar_hash = $1", &[&nar.as_bytes().as_slice()]).await?;
                Ok((Changes::changed(paths_of(session, std::slice::from_ref(nar)).await?), ()))
            })
        })
    }
}

/// The first NARs behind `after` for which `condition` holds.
pub(super) async fn nars_behind(
    session: &DatabaseSession,
    after: Option<NarHash>,
    condition: &'static str,
) -> Result<Vec<NarRow>, Error> {
    let sql = format!(
        "SELECT nar_hash, file_hash, file_size FROM nar n WHERE nar_hash > $1 AND {condition} \
         ORDER BY nar_hash LIMIT $2"
    );
    let after = after.map_or_else(Vec::new, |nar| nar.as_bytes().to_vec());
    let rows = session.rows(&sql, &[&after, &NARS_AT_ONCE]).await?;
    rows.iter().map(|row| nar_row(row, 0)).collect()
}

/// Records a packed NAR in place of an earlier file, with its programs.
pub(super) async fn insert_new(session: &DatabaseSession, nar: &NewNar) -> Result<(), Error> {
    upsert_nars(session, &[nar.row]).await?;
    insert_programs(session, nar.row.nar_hash, &nar.programs).await
}

/// Records stored NARs, each in place of an earlier file; the last one of each counts.
pub(super) async fn upsert_nars(session: &DatabaseSession, nars: &[NarRow]) -> Result<(), Error> {
    let latest: std::collections::BTreeMap<_, _> = nars.iter().map(|nar| (nar.nar_hash, nar)).collect();
    let sql = "INSERT INTO nar (nar_hash, file_hash, file_size, packed_at) \
        SELECT nar_hash, file_hash, file_size, $4::bigint \
        FROM unnest($1::bytea[], $2::bytea[], $3::bigint[]) AS new (nar_hash, file_hash, file_size) \
        ON CONFLICT (nar_hash) DO UPDATE SET file_hash = excluded.file_hash, file_size = excluded.file_size, \
        packed_at = excluded.packed_at";
    let hashes = nar_bytes(latest.keys());
    let files = nar_bytes(latest.values().map(|nar| &nar.file_hash));
    let sizes: Vec<i64> = latest.values().map(|nar| signed(nar.file_size)).collect();
    let now = to_unix(SystemTime::now());
    session.execute(sql, &[&hashes, &files, &sizes, &now]).await.map(drop)
}
