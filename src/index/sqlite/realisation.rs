//! Realisations that are served: each names a served path, and those that it needs are served too.

use narinfo::{DrvOutput, Realisation};
use rusqlite::{OptionalExtension, params};

use super::Sqlite;
use super::rows::{corrupt, to_unix};
use crate::index::backend::{BackendFuture, Realisations};

/// A realisation, and through its file those that it needs, each with the path that it must name.
const NEEDED: &str = "WITH RECURSIVE needed (file, path) AS (
    SELECT file, path FROM realisation WHERE file = ?1
    UNION
    SELECT 'realisations/' || d.key || '.doi', d.value
    FROM needed JOIN realisation r ON r.file = needed.file, json_each(r.body, '$.dependentRealisations') d
)";

impl Realisations for Sqlite {
    fn realisation(&self, id: DrvOutput) -> BackendFuture<'_, Option<Realisation>> {
        self.read(move |connection| {
                let file = id.file();
                let sql = format!(
                    "{NEEDED} SELECT body FROM realisation WHERE file = ?1 AND NOT EXISTS (SELECT 1 FROM needed n \
                     WHERE NOT EXISTS (SELECT 1 FROM realisation r WHERE r.file = n.file AND r.path = n.path))"
                );
                let mut statement = connection.prepare_cached(&sql)?;
                let body: Option<String> = statement.query_row([&file], |row| row.get(0)).optional()?;
                body.map(|body| Realisation::parse(&id, body.as_bytes()).map_err(|error| corrupt(&file, error)))
                    .transpose()
            })
    }

    fn publish_realisations(&self, realisations: Vec<Realisation>) -> BackendFuture<'_, bool> {
        self.write(move |transaction| {
            let mut served =
                transaction.prepare_cached("SELECT 1 FROM path WHERE hash = ?1 AND name = ?2")?;
            for realisation in &realisations {
                let path = realisation.path();
                if !served.exists([path.hash().as_str(), path.name()])? {
                    return Ok(false);
                }
            }
            let mut insert = transaction.prepare_cached(
                "INSERT OR REPLACE INTO realisation (file, path, body, added_at) VALUES (?1, ?2, ?3, ?4)",
            )?;
            let now = to_unix(std::time::SystemTime::now());
            for realisation in &realisations {
                let (file, path) = (realisation.id().file(), realisation.path().to_string());
                insert.execute(params![file, path, realisation.render(), now])?;
            }
            Ok(true)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Index;
    use crate::model::PathRow;
    use narinfo::{NarHash, PathInfo, StorePath};

    fn path(digit: u8) -> StorePath {
        StorePath::parse(&format!("{digit}123456789abcdfghijklmnpqrsvwxyz-p")).expect("a path")
    }

    fn id(digit: u8) -> DrvOutput {
        format!("sha256:{}!out", digit.to_string().repeat(64)).parse().expect("a name")
    }

    /// The realisation number `digit`, which needs the others.
    fn realisation(digit: u8, needs: &[u8]) -> Realisation {
        let needs: Vec<_> =
            needs.iter().map(|other| format!("\"{}\":\"{}\"", id(*other), path(*other))).collect();
        let text = format!(
            "{{\"dependentRealisations\":{{{}}},\"id\":\"{}\",\"outPath\":\"{}\",\"signatures\":[]}}",
            needs.join(","),
            id(digit),
            path(digit)
        );
        Realisation::parse(&id(digit), text.as_bytes()).expect("a realisation")
    }

    /// An index that serves the paths number 1 to 3, each with a NAR of its own.
    async fn index(folder: &tempfile::TempDir) -> Index {
        let index = Index::open(&folder.path().join("index")).expect("opened");
        let info = |digit| PathInfo {
            path: path(digit),
            nar_hash: NarHash::from_bytes([digit; 32]),
            nar_size: 1,
            references: [].into(),
            deriver: None,
            ca: None,
            signatures: Vec::new(),
        };
        let rows = (1..=3).map(|digit| PathRow { info: info(digit), built: true });
        assert!(index.publish(rows.collect()).await.expect("published"));
        index
    }

    #[tokio::test]
    async fn a_realisation_goes_with_the_path_that_it_names_and_with_those_it_needs() {
        let folder = tempfile::tempdir().expect("a folder");
        let index = index(&folder).await;
        let all = [realisation(1, &[2]), realisation(2, &[3]), realisation(3, &[3])];
        assert!(index.publish_realisations(all.to_vec()).await.expect("published"));
        for one in &all {
            assert_eq!(index.realisation(one.id().clone()).await.expect("read").as_ref(), Some(one));
        }
        index.forget_paths(NarHash::from_bytes([3; 32])).await.expect("forgotten");
        for one in &all {
            assert_eq!(index.realisation(one.id().clone()).await.expect("read"), None);
        }
    }

    #[tokio::test]
    async fn none_is_published_when_one_names_a_path_that_is_not_served() {
        let folder = tempfile::tempdir().expect("a folder");
        let index = index(&folder).await;
        let all = vec![realisation(1, &[]), realisation(4, &[])];
        assert!(!index.publish_realisations(all).await.expect("asked"));
        assert_eq!(index.realisation(id(1)).await.expect("read"), None);
    }

    #[tokio::test]
    async fn one_that_needs_another_path_than_its_dependency_names_is_not_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let index = index(&folder).await;
        let other = Realisation::new(id(2), path(3));
        assert!(
            index.publish_realisations(vec![realisation(1, &[2]), other.clone()]).await.expect("published")
        );
        assert_eq!(index.realisation(id(1)).await.expect("read"), None);
        assert_eq!(index.realisation(id(2)).await.expect("read"), Some(other));
    }
}
