//! Programs of packages: what was read of NARs, joined with the outputs of package sets; and what
//! descriptions of packages say.

use narinfo::NarHash;
use tokio_postgres::Row;

use super::rows::{path_hash, text};
use super::session::{DatabaseSession, column};
use super::transaction::{Domain, quiet};
use super::{Error, Postgres};
use crate::index::backend::{BackendFuture, Programs};
use crate::model::{AttributeName, ProgramOwner};

/// Packages by what was read of their outputs. A path that was evicted lately can be built again.
const BY_CONTENTS: &str = "SELECT DISTINCT s.name, a.attribute, a.system, h.hash, length(a.attribute), s.id \
    FROM program p JOIN (SELECT nar_hash, hash FROM path UNION ALL SELECT nar_hash, hash FROM former_nar) h \
        ON h.nar_hash = p.nar_hash \
    JOIN catalogue_output o ON o.hash = h.hash AND o.last IS NULL \
    JOIN catalogue_attribute a ON a.drv = o.drv AND a.set_id = o.set_id AND NOT a.denied \
    JOIN catalogue_set s ON s.id = a.set_id \
    WHERE p.name = $1 ORDER BY length(a.attribute), a.attribute, s.id, a.system, h.hash LIMIT $2";
/// Packages by what their descriptions say.
const BY_DESCRIPTION: &str = "SELECT s.name, a.attribute, a.system, NULL::text FROM catalogue_attribute a \
    JOIN catalogue_set s ON s.id = a.set_id \
    WHERE a.program = $1 AND a.drv IS NOT NULL AND NOT a.denied \
    ORDER BY length(a.attribute), a.attribute, s.id, a.system LIMIT $2";
/// Names that begin so.
const LIKE: &str = "SELECT name FROM program WHERE name >= $1 AND name < $2 COLLATE \"C\" \
    UNION SELECT program FROM catalogue_attribute WHERE program >= $1 AND program < $2 COLLATE \"C\" \
    ORDER BY 1 LIMIT $3";

impl Programs for Postgres {
    fn record_programs(&self, nar: NarHash, programs: Vec<String>) -> BackendFuture<'_, ()> {
        self.write(Domain::Paths, (nar, programs), |session, (nar, programs)| {
            Box::pin(async move { insert_programs(session, *nar, programs).await.map(quiet) })
        })
    }

    fn programs_of(&self, nar: NarHash, max: u32) -> BackendFuture<'_, Vec<String>> {
        self.read((nar, i64::from(max)), |session, (nar, max)| {
            Box::pin(async move {
                let sql = "SELECT name FROM program WHERE nar_hash = $1 ORDER BY name LIMIT $2";
                let rows = session.rows(sql, &[&nar.as_bytes().as_slice(), max]).await?;
                rows.iter().map(|row| column(row, 0)).collect()
            })
        })
    }

    fn program_owners(&self, program: String, max: u32) -> BackendFuture<'_, Vec<ProgramOwner>> {
        self.read((text(&program), i64::from(max)), |session, (program, max)| {
            Box::pin(owners(session, program, *max))
        })
    }

    fn programs_like(&self, beginning: String, max: u32) -> BackendFuture<'_, Vec<String>> {
        let beginning = text(&beginning);
        // Behind every name that begins so.
        let end = format!("{beginning}{}", char::MAX);
        self.read((beginning, end, i64::from(max)), |session, (beginning, end, max)| {
            Box::pin(async move {
                let rows = session.rows(LIKE, &[beginning, end, max]).await?;
                rows.iter().map(|row| column(row, 0)).collect()
            })
        })
    }
}

/// Records the names of a NAR's programs.
pub(super) async fn insert_programs(
    session: &DatabaseSession,
    nar: NarHash,
    programs: &[String],
) -> Result<(), Error> {
    if programs.is_empty() {
        return Ok(());
    }
    let sql = "INSERT INTO program SELECT DISTINCT name, $2::bytea FROM unnest($1::text[]) AS new (name) \
        ON CONFLICT DO NOTHING";
    let programs: Vec<String> = programs.iter().map(|program| text(program)).collect();
    session.execute(sql, &[&programs, &nar.as_bytes().as_slice()]).await.map(drop)
}

async fn owners(session: &DatabaseSession, program: &String, max: i64) -> Result<Vec<ProgramOwner>, Error> {
    let mut found = Vec::new();
    for sql in [BY_DESCRIPTION, BY_CONTENTS] {
        let rows = session.rows(sql, &[program, &max]).await?;
        for row in &rows {
            found.push(owner(row)?);
        }
    }
    found.truncate(usize::try_from(max).unwrap_or_default());
    Ok(found)
}

fn owner(row: &Row) -> Result<ProgramOwner, Error> {
    let name = AttributeName { set: column(row, 0)?, attribute: column(row, 1)?, system: column(row, 2)? };
    let path = column::<Option<&str>>(row, 3)?.map(|_| path_hash(row, 3)).transpose()?;
    Ok(ProgramOwner { name, path })
}
