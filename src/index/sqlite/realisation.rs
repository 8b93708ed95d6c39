//! Realisations that are served: each names a served path, and those that it needs are served too.

use narinfo::{DrvOutput, Realisation};
use rusqlite::{Connection, OptionalExtension, params};

use super::rows::{corrupt, to_unix};
use super::{Error, Sqlite};
use crate::index::backend::{BackendFuture, RealisationStore};
use crate::model::RealisationOutcome;

/// A realisation, and through its file those that it needs, each with the path that it must name.
const NEEDED: &str = "WITH RECURSIVE needed (file, path) AS (
    SELECT file, path FROM realisation WHERE file = ?1
    UNION
    SELECT 'realisations/' || d.key || '.doi', d.value
    FROM needed JOIN realisation r ON r.file = needed.file, json_each(r.body, '$.dependentRealisations') d
)";

impl RealisationStore for Sqlite {
    fn realisation(&self, id: DrvOutput) -> BackendFuture<'_, Option<Realisation>> {
        self.read(move |connection| whole(connection, &id))
    }

    fn publish_realisations(&self, realisations: Vec<Realisation>) -> BackendFuture<'_, RealisationOutcome> {
        self.write(move |transaction| {
            let mut served =
                transaction.prepare_cached("SELECT 1 FROM path WHERE hash = ?1 AND name = ?2")?;
            let mut new = Vec::new();
            for realisation in &realisations {
                let path = realisation.path();
                if !served.exists([path.hash().as_str(), path.name()])? {
                    return Ok(RealisationOutcome::Lacks(path.clone()));
                }
                match whole(transaction, realisation.id())? {
                    Some(first) if first.path() == path => {}
                    Some(first) => {
                        let (id, known) = (first.id().clone(), first.path().clone());
                        return Ok(RealisationOutcome::Conflict { id, known });
                    }
                    None => new.push(realisation),
                }
            }
            // What is not whole is served to nobody.
            let mut insert = transaction.prepare_cached(
                "INSERT OR REPLACE INTO realisation (file, path, body, added_at) VALUES (?1, ?2, ?3, ?4)",
            )?;
            let now = to_unix(std::time::SystemTime::now());
            for realisation in new {
                let (file, path) = (realisation.id().file(), realisation.path().to_string());
                insert.execute(params![file, path, realisation.render(), now])?;
            }
            Ok(RealisationOutcome::Published)
        })
    }
}

/// The realisation of an output, if everything that it needs is there.
fn whole(connection: &Connection, id: &DrvOutput) -> Result<Option<Realisation>, Error> {
    let file = id.file();
    let sql = format!(
        "{NEEDED} SELECT body FROM realisation WHERE file = ?1 AND NOT EXISTS (SELECT 1 FROM needed n \
         WHERE NOT EXISTS (SELECT 1 FROM realisation r WHERE r.file = n.file AND r.path = n.path))"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let body: Option<String> = statement.query_row([&file], |row| row.get(0)).optional()?;
    body.map(|body| Realisation::parse(id, body.as_bytes()).map_err(|error| corrupt(&file, error)))
        .transpose()
}
