//! NARs of served paths that upstreams have, and own builds beside what upstreams have of the same paths.

use std::collections::BTreeMap;
use std::time::SystemTime;

use narinfo::{NarHash, StorePathHash};

use super::rows::{PATH_COLUMNS, UPSTREAM_COLUMNS, nar_bytes, nar_hash, path_row, upstream_nar};
use super::session::{DatabaseSession, column};
use super::transaction::{Domain, quiet};
use super::{Error, Postgres, paths_of};
use crate::index::backend::{BackendFuture, Changes, Comparisons, UpstreamNars};
use crate::index::columns::{signed, to_unix};
use crate::model::{Comparison, PathRow, UpstreamNar};

/// Removes what only upstreams have that are not configured any more, and sets the redirects of the others.
const SYNC: [&str; 2] = [
    "WITH gone AS (DELETE FROM upstream_nar WHERE upstream NOT IN (SELECT url FROM upstream) RETURNING nar_hash, upstream) \
     DELETE FROM path WHERE nar_hash IN (SELECT nar_hash FROM gone) \
     AND nar_hash NOT IN (SELECT nar_hash FROM nar) \
     AND nar_hash NOT IN (SELECT u.nar_hash FROM upstream_nar u WHERE u.upstream IN (SELECT url FROM upstream))",
    "UPDATE upstream_nar SET redirect = u.redirect FROM upstream u \
     WHERE u.url = upstream_nar.upstream AND u.redirect <> upstream_nar.redirect",
];

impl UpstreamNars for Postgres {
    fn upstreams_with(&self, nar: NarHash) -> BackendFuture<'_, Vec<UpstreamNar>> {
        self.read(nar, |session, nar| {
            Box::pin(async move {
                let sql = format!(
                    "SELECT {UPSTREAM_COLUMNS} FROM upstream_nar u WHERE u.nar_hash = $1 ORDER BY u.upstream"
                );
                let rows = session.rows(&sql, &[&nar.as_bytes().as_slice()]).await?;
                rows.iter().map(|row| upstream_nar(row, 0)).collect()
            })
        })
    }

    fn forget_upstream_nar(&self, nar: NarHash, upstream: String) -> BackendFuture<'_, ()> {
        self.write(Domain::Paths, (nar, upstream), |session, (nar, upstream)| {
            Box::pin(async move {
                let sql = "DELETE FROM upstream_nar WHERE nar_hash = $1 AND upstream = $2";
                session.execute(sql, &[&nar.as_bytes().as_slice(), upstream]).await?;
                Ok((Changes::changed(paths_of(session, std::slice::from_ref(nar)).await?), ()))
            })
        })
    }

    fn sync_upstreams(&self, upstreams: BTreeMap<String, bool>) -> BackendFuture<'_, ()> {
        self.write(Domain::Paths, upstreams, |session, upstreams| {
            Box::pin(async move {
                let mut before = BTreeMap::new();
                for row in session.rows("SELECT url, redirect FROM upstream", &[]).await? {
                    before.insert(column::<String>(&row, 0)?, column::<bool>(&row, 1)?);
                }
                if before == *upstreams {
                    return Ok(quiet(()));
                }
                session.execute("DELETE FROM upstream", &[]).await?;
                let (urls, redirects): (Vec<&String>, Vec<bool>) = upstreams.iter().unzip();
                let insert = "INSERT INTO upstream SELECT * FROM unnest($1::text[], $2::boolean[])";
                session.execute(insert, &[&urls, &redirects]).await?;
                for step in SYNC {
                    session.execute(step, &[]).await?;
                }
                Ok((Changes { everything: true, ..Changes::default() }, ()))
            })
        })
    }
}

impl Comparisons for Postgres {
    fn uncompared(&self, rows_max: usize) -> BackendFuture<'_, Vec<PathRow>> {
        self.read(signed(rows_max as u64), |session, max| {
            Box::pin(async move {
                let sql = format!(
                    "SELECT {PATH_COLUMNS} FROM path p LEFT JOIN comparison c ON c.hash = p.hash \
                     WHERE p.built AND c.upstream IS NULL ORDER BY coalesce(c.looked_at, 0), p.hash LIMIT $1"
                );
                session.rows(&sql, &[max]).await?.iter().map(path_row).collect()
            })
        })
    }

    fn record_comparison(
        &self,
        hash: StorePathHash,
        comparison: Option<Comparison>,
    ) -> BackendFuture<'_, ()> {
        self.write(Domain::Rest, (hash, comparison), |session, (hash, comparison)| {
            Box::pin(async move {
                let sql = "INSERT INTO comparison (hash, looked_at, upstream, nar_hash, same) \
                    VALUES ($1, $2, $3, $4, $5) ON CONFLICT (hash) DO UPDATE SET looked_at = excluded.looked_at, \
                    upstream = excluded.upstream, nar_hash = excluded.nar_hash, same = excluded.same";
                let comparison = comparison.as_ref();
                let upstream = comparison.map(|comparison| &comparison.upstream);
                let nar = comparison.map(|comparison| comparison.nar_hash.as_bytes().as_slice());
                let same = comparison.map(|comparison| comparison.same);
                let now = to_unix(SystemTime::now());
                session.execute(sql, &[&hash.as_str(), &now, &upstream, &nar, &same]).await?;
                Ok(quiet(()))
            })
        })
    }

    fn comparison(&self, hash: StorePathHash) -> BackendFuture<'_, Option<Comparison>> {
        self.read(hash, |session, hash| {
            Box::pin(async move {
                let sql =
                    "SELECT upstream, nar_hash, same FROM comparison WHERE hash = $1 AND upstream IS NOT NULL";
                let Some(row) = session.row(sql, &[&hash.as_str()]).await? else { return Ok(None) };
                let (upstream, nar_hash, same) = (column(&row, 0)?, nar_hash(&row, 1)?, column(&row, 2)?);
                Ok(Some(Comparison { upstream, nar_hash, same }))
            })
        })
    }
}

/// Records the addresses that upstreams have for the NARs of served paths; the last one of each counts.
pub(super) async fn insert(session: &DatabaseSession, nars: &[UpstreamNar]) -> Result<(), Error> {
    let latest: BTreeMap<_, _> = nars.iter().map(|nar| ((nar.nar_hash, &nar.upstream), nar)).collect();
    let all: Vec<&UpstreamNar> = latest.into_values().collect();
    let sql = "INSERT INTO upstream_nar (nar_hash, upstream, url, compression, file_hash, file_size, redirect) \
        SELECT * FROM unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::bigint[], $7::boolean[]) \
        ON CONFLICT (nar_hash, upstream) DO UPDATE SET url = excluded.url, compression = excluded.compression, \
        file_hash = excluded.file_hash, file_size = excluded.file_size, redirect = excluded.redirect";
    let hashes = nar_bytes(all.iter().map(|nar| &nar.nar_hash));
    let upstreams: Vec<&str> = all.iter().map(|nar| nar.upstream.as_str()).collect();
    let urls: Vec<&str> = all.iter().map(|nar| nar.url.as_str()).collect();
    let compressions: Vec<String> = all.iter().map(|nar| nar.compression.to_string()).collect();
    let files: Vec<Option<&[u8]>> =
        all.iter().map(|nar| nar.file_hash.as_ref().map(|hash| &hash.as_bytes()[..])).collect();
    let sizes: Vec<Option<i64>> = all.iter().map(|nar| nar.file_size.map(signed)).collect();
    let redirects: Vec<bool> = all.iter().map(|nar| nar.redirect).collect();
    session
        .execute(sql, &[&hashes, &upstreams, &urls, &compressions, &files, &sizes, &redirects])
        .await
        .map(drop)
}
