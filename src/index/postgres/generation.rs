//! Generations of package sets: brought in piece by piece where nobody sees them, made current in one
//! transaction, dropped once they have expired.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use narinfo::{StorePath, StorePathHash};
use tokio_postgres::types::ToSql;

use super::rows::{hash_texts, text};
use super::session::{DatabaseSession, column};
use super::transaction::{Domain, quiet};
use super::{Error, Postgres, version};
use crate::index::backend::{BackendFuture, Changes, Generations};
use crate::index::columns::{signed, to_unix, unsigned};
use crate::model::{AttributeName, AttributeRow, GenerationSize, NewGeneration, OutputRow, Swapped};

/// Removes sets that are not configured any more, with all that they had.
const SYNC: [&str; 6] = [
    "INSERT INTO catalogue_set (name) SELECT DISTINCT name FROM unnest($1::text[]) AS configured (name) \
     WHERE name NOT IN (SELECT s.name FROM catalogue_set s)",
    "DELETE FROM catalogue_generation WHERE set_id IN (SELECT id FROM catalogue_set WHERE name <> ALL ($1::text[]))",
    "DELETE FROM catalogue_attribute WHERE set_id IN (SELECT id FROM catalogue_set WHERE name <> ALL ($1::text[]))",
    "DELETE FROM catalogue_version WHERE set_id IN (SELECT id FROM catalogue_set WHERE name <> ALL ($1::text[]))",
    "DELETE FROM catalogue_output WHERE set_id IN (SELECT id FROM catalogue_set WHERE name <> ALL ($1::text[]))",
    "DELETE FROM catalogue_set WHERE name <> ALL ($1::text[])",
];
/// Outputs of the generation that is replaced, which the new one has not.
const END_OUTPUTS: &str = "UPDATE catalogue_output o SET last = $2 WHERE o.set_id = $1 AND o.last IS NULL AND NOT EXISTS \
    (SELECT 1 FROM catalogue_new_output n WHERE n.hash = o.hash AND n.drv = o.drv AND n.denied = o.denied)";
/// Outputs of the new generation, which the one before had not.
const BEGIN_OUTPUTS: &str = "INSERT INTO catalogue_output (hash, drv, set_id, first, denied) \
    SELECT n.hash, n.drv, $1, $2, n.denied FROM catalogue_new_output n WHERE NOT EXISTS \
    (SELECT 1 FROM catalogue_output o WHERE o.hash = n.hash AND o.drv = n.drv AND o.set_id = $1 AND o.last IS NULL)";

impl Generations for Postgres {
    fn sync_sets(&self, names: Vec<String>) -> BackendFuture<'_, ()> {
        self.write(Domain::Sets, names, |session, names| {
            Box::pin(async move {
                clear(session).await?;
                for step in SYNC {
                    session.execute(step, &[names]).await?;
                }
                Ok(quiet(()))
            })
        })
    }

    fn start_generation(&self) -> BackendFuture<'_, ()> {
        self.write(Domain::Sets, (), |session, ()| Box::pin(async move { clear(session).await.map(quiet) }))
    }

    fn add_attributes(&self, rows: Vec<AttributeRow>) -> BackendFuture<'_, ()> {
        self.write(Domain::Sets, rows, |session, rows| {
            Box::pin(async move { add_attributes(session, rows).await.map(quiet) })
        })
    }

    fn settle_attributes(
        &self,
        denied: Vec<StorePath>,
        allowed: Vec<StorePath>,
    ) -> BackendFuture<'_, GenerationSize> {
        // What is denied is denied, allowed or not.
        let mut settled: BTreeMap<String, bool> =
            allowed.iter().map(|drv| (drv.to_string(), false)).collect();
        settled.extend(denied.iter().map(|drv| (drv.to_string(), true)));
        self.write(Domain::Sets, settled, |session, settled| {
            Box::pin(async move {
                if !settled.is_empty() {
                    let sql = "UPDATE catalogue_new_attribute a SET denied = s.denied \
                        FROM unnest($1::text[], $2::boolean[]) AS s (drv, denied) WHERE s.drv = a.drv";
                    let (drvs, denied): (Vec<&String>, Vec<bool>) = settled.iter().unzip();
                    session.execute(sql, &[&drvs, &denied]).await?;
                }
                let sql = "SELECT count(drv), count(*) FILTER (WHERE drv IS NOT NULL AND denied), count(error) \
                    FROM catalogue_new_attribute";
                let row = session.one(sql, &[]).await?;
                let number = |index| Ok::<_, Error>(unsigned(column(&row, index)?));
                let (attributes, denied, errors) = (number(0)?, number(1)?, number(2)?);
                Ok(quiet(GenerationSize { attributes, denied, errors, derivations: 0 }))
            })
        })
    }

    fn fail_attributes(&self, failures: Vec<(StorePath, String)>) -> BackendFuture<'_, u64> {
        let failures: BTreeMap<String, String> =
            failures.iter().map(|(drv, reason)| (drv.to_string(), text(reason))).collect();
        self.write(Domain::Sets, failures, |session, failures| {
            Box::pin(async move {
                let sql = "UPDATE catalogue_new_attribute a SET drv = NULL, output = NULL, program = NULL, denied = FALSE, \
                    error = f.reason FROM unnest($1::text[], $2::text[]) AS f (drv, reason) WHERE a.drv = f.drv";
                let (drvs, reasons): (Vec<&String>, Vec<&String>) = failures.iter().unzip();
                Ok(quiet(session.execute(sql, &[&drvs, &reasons]).await?))
            })
        })
    }

    fn explain_attribute(
        &self,
        generation: u64,
        name: AttributeName,
        error: String,
    ) -> BackendFuture<'_, ()> {
        let data = (signed(generation), name, text(&error));
        self.write(Domain::Sets, data, |session, (generation, name, error)| {
            Box::pin(async move {
                let sql = "UPDATE catalogue_attribute SET error = $4 WHERE drv IS NULL AND attribute = $2 \
                    AND system = $3 AND set_id = \
                    (SELECT set_id FROM catalogue_generation WHERE id = $1 AND replaced_at IS NULL)";
                session.execute(sql, &[generation, &name.attribute, &name.system, error]).await?;
                Ok(quiet(()))
            })
        })
    }

    fn add_outputs(&self, rows: Vec<OutputRow>) -> BackendFuture<'_, ()> {
        self.write(Domain::Sets, rows, |session, rows| {
            Box::pin(async move {
                let sql = "INSERT INTO catalogue_new_output AS o (hash, drv, denied) \
                    SELECT * FROM unnest($1::text[], $2::text[], $3::boolean[]) \
                    ON CONFLICT (hash, drv) DO UPDATE SET denied = o.denied AND excluded.denied \
                    WHERE o.denied AND NOT excluded.denied";
                let outputs = OutputColumns::of(rows);
                session.execute(sql, &[&outputs.hashes, &outputs.drvs, &outputs.denied]).await?;
                Ok((Changes::added(rows.iter().map(|row| row.hash).collect()), ()))
            })
        })
    }

    fn swap_generation(&self, new: NewGeneration) -> BackendFuture<'_, Swapped> {
        self.write(Domain::Sets, new, |session, new| {
            Box::pin(async move { Ok(quiet(swap(session, new).await?)) })
        })
    }

    fn add_evaluated(
        &self,
        generation: u64,
        row: AttributeRow,
        outputs: Vec<OutputRow>,
        holder: StorePath,
    ) -> BackendFuture<'_, bool> {
        let data = (signed(generation), row, outputs, holder.to_string());
        self.write(Domain::Sets, data, |session, (generation, row, outputs, holder)| {
            Box::pin(async move {
                let is_added = add_evaluated(session, *generation, row, outputs, holder).await?;
                let outputs = outputs.iter().filter(|_| is_added);
                Ok((Changes::added(outputs.map(|output| output.hash).collect()), is_added))
            })
        })
    }

    fn record_refresh(&self, set: String, failure: Option<String>) -> BackendFuture<'_, ()> {
        let failure = failure.as_deref().map(text);
        self.write(Domain::Sets, (set, failure), |session, (set, failure)| {
            Box::pin(async move {
                clear(session).await?;
                let sql = "UPDATE catalogue_set SET tried_at = $2, failure = $3 WHERE name = $1";
                session.execute(sql, &[set, &to_unix(SystemTime::now()), failure]).await?;
                Ok(quiet(()))
            })
        })
    }

    fn expire_generations(&self, set: String, keep: Duration) -> BackendFuture<'_, ()> {
        let now = SystemTime::now();
        let data = (set, now.checked_sub(keep).map_or(0, to_unix), to_unix(now));
        self.write(Domain::Sets, data, |session, (set, before, now)| {
            Box::pin(async move {
                let Some(set) = set_id(session, set).await? else { return Ok(quiet(())) };
                let sql =
                    "UPDATE catalogue_generation SET replaced_at = $2 WHERE set_id = $1 AND replaced_at > $2";
                session.execute(sql, &[&set, now]).await?;
                let sql =
                    "DELETE FROM catalogue_generation WHERE set_id = $1 AND replaced_at <= $2 RETURNING id";
                let rows = session.rows(sql, &[&set, before]).await?;
                if !rows.is_empty() {
                    let expired = rows.iter().map(|row| column(row, 0)).collect::<Result<Vec<i64>, _>>()?;
                    let sql = "DELETE FROM catalogue_output WHERE set_id = $1 AND last = ANY($2)";
                    session.execute(sql, &[&set, &expired]).await?;
                    let sql = "DELETE FROM catalogue_version WHERE set_id = $1 AND last = ANY($2)";
                    session.execute(sql, &[&set, &expired]).await?;
                }
                Ok(quiet(()))
            })
        })
    }
}

/// Outputs in columns, each once; one that is allowed once is allowed.
struct OutputColumns {
    hashes: Vec<String>,
    drvs: Vec<String>,
    denied: Vec<bool>,
}

impl OutputColumns {
    fn of(rows: &[OutputRow]) -> Self {
        let mut all: BTreeMap<(StorePathHash, &StorePath), bool> = BTreeMap::new();
        for row in rows {
            all.entry((row.hash, &row.drv)).and_modify(|denied| *denied &= row.denied).or_insert(row.denied);
        }
        Self {
            hashes: hash_texts(all.keys().map(|(hash, _)| hash)).into_iter().map(str::to_owned).collect(),
            drvs: all.keys().map(|(_, drv)| drv.to_string()).collect(),
            denied: all.values().copied().collect(),
        }
    }
}

async fn clear(session: &DatabaseSession) -> Result<(), Error> {
    session.execute("DELETE FROM catalogue_new_attribute", &[]).await?;
    session.execute("DELETE FROM catalogue_new_output", &[]).await.map(drop)
}

async fn set_id(session: &DatabaseSession, name: &String) -> Result<Option<i64>, Error> {
    let row = session.row("SELECT id FROM catalogue_set WHERE name = $1", &[name]).await?;
    row.map(|row| column(&row, 0)).transpose()
}

async fn add_attributes(session: &DatabaseSession, rows: &[AttributeRow]) -> Result<(), Error> {
    // The last row of each counts.
    let latest: BTreeMap<(String, &String), &AttributeRow> =
        rows.iter().map(|row| ((text(&row.attribute), &row.system), row)).collect();
    let sql = "INSERT INTO catalogue_new_attribute (attribute, system, drv, error, denied, output, program) \
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::boolean[], $6::text[], $7::text[]) \
        ON CONFLICT (attribute, system) DO UPDATE SET drv = excluded.drv, error = excluded.error, \
        denied = excluded.denied, output = excluded.output, program = excluded.program";
    let (attributes, systems): (Vec<&String>, Vec<&String>) =
        latest.keys().map(|(attribute, system)| (attribute, *system)).unzip();
    let drvs: Vec<Option<String>> =
        latest.values().map(|row| row.outcome.as_ref().ok().map(ToString::to_string)).collect();
    let errors: Vec<Option<String>> =
        latest.values().map(|row| row.outcome.as_ref().err().map(|error| text(error))).collect();
    let denied: Vec<bool> = latest.values().map(|row| row.denied).collect();
    let outputs: Vec<Option<&str>> = latest.values().map(|row| row.output.as_deref()).collect();
    let programs: Vec<Option<String>> = latest.values().map(|row| row.program.as_deref().map(text)).collect();
    session
        .execute(sql, &[&attributes, &systems, &drvs, &errors, &denied, &outputs, &programs])
        .await
        .map(drop)
}

/// A package set that is not configured, or not any more.
#[derive(Debug, thiserror::Error)]
#[error("there is no such package set")]
struct NoSuchSet;

async fn swap(session: &DatabaseSession, new: &NewGeneration) -> Result<Swapped, Error> {
    let Some(set) = set_id(session, &new.set).await? else {
        return Err(crate::index::columns::DamagedRow::new(&new.set, NoSuchSet).into());
    };
    let now = to_unix(SystemTime::now());
    let sql = "UPDATE catalogue_generation SET replaced_at = $2 WHERE set_id = $1 AND replaced_at IS NULL RETURNING id";
    let before: Option<i64> =
        session.row(sql, &[&set, &now]).await?.map(|row| column(&row, 0)).transpose()?;
    let GenerationSize { attributes, denied, errors, derivations } = new.size;
    let [attributes, denied, errors, derivations] = [attributes, denied, errors, derivations].map(signed);
    let sql = "INSERT INTO catalogue_generation \
        (set_id, made_by, holder, made_at, attributes, denied, errors, derivations) \
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id";
    let holder = new.holder.to_string();
    let made = session
        .one(sql, &[&set, &new.made_by, &holder, &now, &attributes, &denied, &errors, &derivations])
        .await?;
    let generation: i64 = column(&made, 0)?;
    session.execute("DELETE FROM catalogue_attribute WHERE set_id = $1", &[&set]).await?;
    let sql = "INSERT INTO catalogue_attribute (set_id, attribute, system, drv, error, denied, output, program) \
        SELECT $1, attribute, system, drv, error, denied, output, program FROM catalogue_new_attribute";
    session.execute(sql, &[&set]).await?;
    version::swap(session, set, generation, before).await?;
    // What stayed the same stays: only differences are written.
    let removed = session.execute(END_OUTPUTS, &[&set, &before]).await?;
    let added = session.execute(BEGIN_OUTPUTS, &[&set, &generation]).await?;
    let sql =
        "DELETE FROM failure WHERE drv IN (SELECT drv FROM catalogue_output WHERE set_id = $1 AND last = $2)";
    session.execute(sql, &[&set, &before]).await?;
    let sql = "UPDATE catalogue_set SET tried_at = $2, failure = NULL WHERE id = $1";
    session.execute(sql, &[&set, &now]).await?;
    clear(session).await?;
    Ok(Swapped { generation: unsigned(generation), added, removed })
}

async fn add_evaluated(
    session: &DatabaseSession,
    generation: i64,
    row: &AttributeRow,
    outputs: &[OutputRow],
    holder: &String,
) -> Result<bool, Error> {
    let sql = "SELECT set_id FROM catalogue_generation WHERE id = $1 AND replaced_at IS NULL";
    let Some(current) = session.row(sql, &[&generation]).await? else { return Ok(false) };
    let set: i64 = column(&current, 0)?;
    let sql = "INSERT INTO catalogue_output AS o (hash, drv, set_id, first, denied) \
        SELECT hash, drv, $4, $5, denied FROM unnest($1::text[], $2::text[], $3::boolean[]) AS new (hash, drv, denied) \
        ON CONFLICT (hash, drv, set_id, first) DO UPDATE SET denied = FALSE WHERE o.denied AND NOT excluded.denied \
        RETURNING drv, denied, xmax = 0";
    let columns = OutputColumns::of(outputs);
    let rows =
        session.rows(sql, &[&columns.hashes, &columns.drvs, &columns.denied, &set, &generation]).await?;
    let mut new = BTreeSet::new();
    for row in &rows {
        let (drv, denied, is_new): (String, bool, bool) = (column(row, 0)?, column(row, 1)?, column(row, 2)?);
        new.extend((is_new && !denied).then_some(drv));
    }
    let sql = "INSERT INTO catalogue_attribute (set_id, attribute, system, drv, error, denied, output, program) \
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (set_id, attribute, system) DO UPDATE SET \
        drv = excluded.drv, error = excluded.error, denied = excluded.denied, output = excluded.output, \
        program = excluded.program";
    let drv = row.outcome.as_ref().ok().map(ToString::to_string);
    let error = row.outcome.as_ref().err().map(|error| text(error));
    let attribute = text(&row.attribute);
    let program = row.program.as_deref().map(text);
    let values: [&(dyn ToSql + Sync); 8] =
        [&set, &attribute, &row.system, &drv, &error, &row.denied, &row.output, &program];
    session.execute(sql, &values).await?;
    version::add(session, set, generation, row).await?;
    let sql = "UPDATE catalogue_generation SET holder = $2, attributes = attributes + $3, denied = denied + $4, \
        errors = errors + $5, derivations = derivations + $6 WHERE id = $1";
    let [attributes, denied, errors] = [row.outcome.is_ok(), row.denied, row.outcome.is_err()].map(i64::from);
    let derivations = signed(new.len() as u64);
    session.execute(sql, &[&generation, holder, &attributes, &denied, &errors, &derivations]).await?;
    Ok(true)
}
