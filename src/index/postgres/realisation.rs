//! Realisations that are served: each names a served path, and those that it needs are served too.

use std::time::SystemTime;

use narinfo::{DrvOutput, Realisation};

use super::session::{DatabaseSession, column};
use super::transaction::{Domain, quiet};
use super::{Error, Postgres};
use crate::index::backend::{BackendFuture, Changes, RealisationStore};
use crate::index::columns::{DamagedRow, to_unix};
use crate::model::RealisationOutcome;

/// The text of a realisation, if it is whole: it needs others through its file, each with the path that it
/// must name.
const WHOLE: &str = "WITH RECURSIVE needed (file, path) AS ( \
        SELECT file, path FROM realisation WHERE file = $1 \
        UNION \
        SELECT ('realisations/' || d.key || '.doi') COLLATE \"C\", d.value COLLATE \"C\" \
        FROM needed JOIN realisation r ON r.file = needed.file, \
        jsonb_each_text(r.body::jsonb -> 'dependentRealisations') d) \
    SELECT body FROM realisation WHERE file = $1 AND NOT EXISTS (SELECT 1 FROM needed n \
        WHERE NOT EXISTS (SELECT 1 FROM realisation r WHERE r.file = n.file AND r.path = n.path))";

impl RealisationStore for Postgres {
    fn realisation(&self, id: DrvOutput) -> BackendFuture<'_, Option<Realisation>> {
        self.read(id, |session, id| Box::pin(whole(session, id)))
    }

    fn publish_realisations(&self, realisations: Vec<Realisation>) -> BackendFuture<'_, RealisationOutcome> {
        self.write(Domain::Paths, realisations, |session, all| Box::pin(publish(session, all)))
    }
}

async fn publish(
    session: &DatabaseSession,
    all: &[Realisation],
) -> Result<(Changes, RealisationOutcome), Error> {
    let mut new = Vec::new();
    for realisation in all {
        let path = realisation.path();
        let sql = "SELECT 1 FROM path WHERE hash = $1 AND name = $2";
        if session.row(sql, &[&path.hash().as_str(), &path.name()]).await?.is_none() {
            return Ok(quiet(RealisationOutcome::Lacks(path.clone())));
        }
        match whole(session, realisation.id()).await? {
            Some(first) if first.path() == path => {}
            Some(first) => {
                let (id, known) = (first.id().clone(), first.path().clone());
                return Ok(quiet(RealisationOutcome::Conflict { id, known }));
            }
            None => new.push(realisation),
        }
    }
    // What is not whole is served to nobody.
    let sql = "INSERT INTO realisation (file, path, body, added_at) VALUES ($1, $2, $3, $4) \
        ON CONFLICT (file) DO UPDATE SET path = excluded.path, body = excluded.body, added_at = excluded.added_at";
    let now = to_unix(SystemTime::now());
    for realisation in new {
        let (file, path) = (realisation.id().file(), realisation.path().to_string());
        session.execute(sql, &[&file, &path, &realisation.render(), &now]).await?;
    }
    Ok(quiet(RealisationOutcome::Published))
}

/// The realisation of an output, if everything that it needs is there.
async fn whole(session: &DatabaseSession, id: &DrvOutput) -> Result<Option<Realisation>, Error> {
    let file = id.file();
    let Some(row) = session.row(WHOLE, &[&file]).await? else { return Ok(None) };
    let body: &str = column(&row, 0)?;
    let parsed = Realisation::parse(id, body.as_bytes());
    Ok(Some(parsed.map_err(|error| DamagedRow::new(&file, error))?))
}
