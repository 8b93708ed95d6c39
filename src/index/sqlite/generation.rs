//! Generations of package sets: brought in piece by piece where nobody sees them, made current in one
//! transaction, dropped once they have expired.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use narinfo::StorePath;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::rows::{signed, to_unix, unsigned};
use super::{Error, Sqlite, version};
use crate::index::backend::{BackendFuture, Changes, Generations};
use crate::model::{AttributeName, AttributeRow, GenerationSize, NewGeneration, OutputRow, Swapped};

impl Generations for Sqlite {
    fn sync_sets(&self, names: Vec<String>) -> BackendFuture<'_, ()> {
        self.write(move |transaction| {
            // What changes nothing writes nothing: a start does not wait for the disk.
            let half_made = "SELECT EXISTS (SELECT 1 FROM catalogue_new_attribute) \
                     OR EXISTS (SELECT 1 FROM catalogue_new_output)";
            if transaction.query_row(half_made, [], |row| row.get(0))? {
                clear(transaction)?;
            }
            transaction.execute_batch(
                "CREATE TEMP TABLE IF NOT EXISTS configured_set (name TEXT PRIMARY KEY); \
                     DELETE FROM configured_set",
            )?;
            for name in &names {
                transaction.execute("INSERT OR IGNORE INTO configured_set VALUES (?1)", [name])?;
                transaction.execute("INSERT OR IGNORE INTO catalogue_set (name) VALUES (?1)", [name])?;
            }
            let gone = "DELETE FROM catalogue_set WHERE name NOT IN (SELECT name FROM configured_set)";
            if transaction.execute(gone, [])? > 0 {
                transaction.execute_batch(
                    "DELETE FROM catalogue_generation WHERE set_id NOT IN (SELECT id FROM catalogue_set); \
                         DELETE FROM catalogue_attribute WHERE set_id NOT IN (SELECT id FROM catalogue_set); \
                         DELETE FROM catalogue_version WHERE set_id NOT IN (SELECT id FROM catalogue_set); \
                         DELETE FROM catalogue_output WHERE set_id NOT IN (SELECT id FROM catalogue_set)",
                )?;
            }
            Ok(())
        })
    }

    fn start_generation(&self) -> BackendFuture<'_, ()> {
        self.write(clear)
    }

    fn add_attributes(&self, rows: Vec<AttributeRow>) -> BackendFuture<'_, ()> {
        self.write(move |transaction| {
                let mut insert = transaction.prepare_cached(
                    "INSERT OR REPLACE INTO catalogue_new_attribute (attribute, system, drv, error, denied, output, program) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )?;
                for row in &rows {
                    let drv = row.outcome.as_ref().ok().map(ToString::to_string);
                    let error = row.outcome.as_ref().err();
                    insert.execute(params![
                        row.attribute,
                        row.system,
                        drv,
                        error,
                        row.denied,
                        row.output,
                        row.program
                    ])?;
                }
                Ok(())
            })
    }

    fn settle_attributes(
        &self,
        denied: Vec<StorePath>,
        allowed: Vec<StorePath>,
    ) -> BackendFuture<'_, GenerationSize> {
        self.write(move |transaction| {
            transaction.execute_batch(
                "CREATE TEMP TABLE IF NOT EXISTS settled (drv TEXT PRIMARY KEY, denied INTEGER); \
                     DELETE FROM settled",
            )?;
            let mut insert = transaction.prepare("INSERT OR IGNORE INTO settled VALUES (?1, ?2)")?;
            for (drvs, denied) in [(&denied, true), (&allowed, false)] {
                for drv in drvs {
                    insert.execute(params![drv.to_string(), denied])?;
                }
            }
            if !(denied.is_empty() && allowed.is_empty()) {
                transaction.execute_batch(
                    "UPDATE catalogue_new_attribute SET denied = s.denied FROM settled s \
                         WHERE s.drv = catalogue_new_attribute.drv",
                )?;
            }
            let sql = "SELECT count(drv), count(*) FILTER (WHERE drv IS NOT NULL AND denied), count(error) \
                           FROM catalogue_new_attribute";
            let number = |row: &rusqlite::Row<'_>, column| row.get(column).map(unsigned);
            Ok(transaction.query_row(sql, [], |row| {
                let (attributes, denied, errors) = (number(row, 0)?, number(row, 1)?, number(row, 2)?);
                Ok(GenerationSize { attributes, denied, errors, derivations: 0 })
            })?)
        })
    }

    fn fail_attributes(&self, failures: Vec<(StorePath, String)>) -> BackendFuture<'_, u64> {
        self.write(move |transaction| {
            let mut fail = transaction.prepare_cached(
                "UPDATE catalogue_new_attribute SET drv = NULL, output = NULL, program = NULL, denied = 0, error = ?2 \
                     WHERE drv = ?1",
            )?;
            let mut count = 0;
            for (drv, reason) in &failures {
                count += fail.execute(params![drv.to_string(), reason])? as u64;
            }
            Ok(count)
        })
    }

    fn explain_attribute(
        &self,
        generation: u64,
        name: AttributeName,
        error: String,
    ) -> BackendFuture<'_, ()> {
        self.write(move |transaction| {
            transaction.execute(
                "UPDATE catalogue_attribute SET error = ?4 WHERE drv IS NULL AND attribute = ?2 \
                     AND system = ?3 AND set_id = \
                     (SELECT set_id FROM catalogue_generation WHERE id = ?1 AND replaced_at IS NULL)",
                params![signed(generation), name.attribute, name.system, error],
            )?;
            Ok(())
        })
    }

    fn add_outputs(&self, rows: Vec<OutputRow>) -> BackendFuture<'_, ()> {
        self.change(move |transaction| {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO catalogue_new_output (hash, drv, denied) VALUES (?1, ?2, ?3) \
                 ON CONFLICT (hash, drv) DO UPDATE SET denied = min(denied, excluded.denied)",
            )?;
            for row in &rows {
                insert.execute(params![row.hash.as_str(), row.drv.to_string(), row.denied])?;
            }
            Ok((Changes::added(rows.iter().map(|row| row.hash).collect()), ()))
        })
    }

    fn swap_generation(&self, new: NewGeneration) -> BackendFuture<'_, Swapped> {
        self.write(move |transaction| swap(transaction, &new))
    }

    fn add_evaluated(
        &self,
        generation: u64,
        row: AttributeRow,
        outputs: Vec<OutputRow>,
        holder: StorePath,
    ) -> BackendFuture<'_, bool> {
        self.change(move |transaction| {
            let added = add_evaluated(transaction, signed(generation), &row, &outputs, &holder)?;
            let hashes = if added { outputs.iter().map(|output| output.hash).collect() } else { Vec::new() };
            Ok((Changes::added(hashes), added))
        })
    }

    fn record_refresh(&self, set: String, failure: Option<String>) -> BackendFuture<'_, ()> {
        self.write(move |transaction| {
            clear(transaction)?;
            transaction.execute(
                "UPDATE catalogue_set SET tried_at = ?2, failure = ?3 WHERE name = ?1",
                params![set, to_unix(SystemTime::now()), failure],
            )?;
            Ok(())
        })
    }

    fn expire_generations(&self, set: String, keep: Duration) -> BackendFuture<'_, ()> {
        let now = SystemTime::now();
        let (before, now) = (now.checked_sub(keep).map_or(0, to_unix), to_unix(now));
        self.write(move |transaction| {
            let set = set_id(transaction, &set)?;
            transaction.execute(
                "UPDATE catalogue_generation SET replaced_at = ?2 WHERE set_id = ?1 AND replaced_at > ?2",
                [set, now],
            )?;
            let sql = "SELECT id FROM catalogue_generation WHERE set_id = ?1 AND replaced_at <= ?2";
            let mut statement = transaction.prepare_cached(sql)?;
            let expired = statement.query_map([set, before], |row| row.get::<_, i64>(0))?;
            for id in expired.collect::<Result<Vec<_>, _>>()? {
                transaction
                    .execute("DELETE FROM catalogue_output WHERE set_id = ?1 AND last = ?2", [set, id])?;
                version::expire(transaction, set, id)?;
                transaction.execute("DELETE FROM catalogue_generation WHERE id = ?1", [id])?;
            }
            Ok(())
        })
    }
}

fn clear(transaction: &Transaction<'_>) -> Result<(), Error> {
    // Without a condition, which is a matter of moments however much there is.
    transaction.execute_batch("DELETE FROM catalogue_new_attribute; DELETE FROM catalogue_new_output")?;
    Ok(())
}

fn set_id(connection: &Connection, name: &str) -> Result<i64, Error> {
    Ok(connection.query_row("SELECT id FROM catalogue_set WHERE name = ?1", [name], |row| row.get(0))?)
}

fn swap(transaction: &Transaction<'_>, new: &NewGeneration) -> Result<Swapped, Error> {
    let set = set_id(transaction, &new.set)?;
    let now = to_unix(SystemTime::now());
    let sql = "SELECT id FROM catalogue_generation WHERE set_id = ?1 AND replaced_at IS NULL";
    let before: Option<i64> = transaction.query_row(sql, [set], |row| row.get(0)).optional()?;
    let GenerationSize { attributes, denied, errors, derivations } = new.size;
    transaction.execute(
        "INSERT INTO catalogue_generation \
         (set_id, made_by, holder, made_at, attributes, denied, errors, derivations) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            set,
            new.made_by,
            new.holder.to_string(),
            now,
            signed(attributes),
            signed(denied),
            signed(errors),
            signed(derivations)
        ],
    )?;
    let generation = transaction.last_insert_rowid();
    transaction
        .execute("UPDATE catalogue_generation SET replaced_at = ?2 WHERE id = ?1", params![before, now])?;
    transaction.execute("DELETE FROM catalogue_attribute WHERE set_id = ?1", [set])?;
    transaction.execute(
        "INSERT INTO catalogue_attribute (set_id, attribute, system, drv, error, denied, output, program) \
         SELECT ?1, attribute, system, drv, error, denied, output, program FROM catalogue_new_attribute",
        [set],
    )?;
    version::swap(transaction, set, generation, before)?;
    // What stayed the same stays: only differences are written.
    let removed = transaction.execute(
        "UPDATE catalogue_output SET last = ?2 WHERE set_id = ?1 AND last IS NULL AND NOT EXISTS \
         (SELECT 1 FROM catalogue_new_output n WHERE n.hash = catalogue_output.hash \
          AND n.drv = catalogue_output.drv AND n.denied = catalogue_output.denied)",
        params![set, before],
    )?;
    let added = transaction.execute(
        "INSERT INTO catalogue_output (hash, drv, set_id, first, denied) \
         SELECT n.hash, n.drv, ?1, ?2, n.denied FROM catalogue_new_output n WHERE NOT EXISTS \
         (SELECT 1 FROM catalogue_output o WHERE o.hash = n.hash AND o.drv = n.drv \
          AND o.set_id = ?1 AND o.last IS NULL)",
        [set, generation],
    )?;
    transaction.execute(
        "DELETE FROM failure WHERE drv IN (SELECT drv FROM catalogue_output WHERE set_id = ?1 AND last = ?2)",
        params![set, before],
    )?;
    transaction
        .execute("UPDATE catalogue_set SET tried_at = ?2, failure = NULL WHERE id = ?1", [set, now])?;
    clear(transaction)?;
    Ok(Swapped { generation: unsigned(generation), added: added as u64, removed: removed as u64 })
}

fn add_evaluated(
    transaction: &Transaction<'_>,
    generation: i64,
    row: &AttributeRow,
    outputs: &[OutputRow],
    holder: &StorePath,
) -> Result<bool, Error> {
    let sql = "SELECT set_id FROM catalogue_generation WHERE id = ?1 AND replaced_at IS NULL";
    let set: Option<i64> = transaction.query_row(sql, [generation], |row| row.get(0)).optional()?;
    let Some(set) = set else { return Ok(false) };
    let mut insert = transaction.prepare_cached(
        "INSERT INTO catalogue_output (hash, drv, set_id, first, denied) VALUES (?1, ?2, ?3, ?4, ?5) \
         ON CONFLICT DO NOTHING",
    )?;
    let mut allow = transaction.prepare_cached(
        "UPDATE catalogue_output SET denied = 0 WHERE hash = ?1 AND drv = ?2 AND set_id = ?3 AND first = ?4",
    )?;
    let mut new = BTreeSet::new();
    for OutputRow { hash, drv, denied } in outputs {
        let text = drv.to_string();
        if insert.execute(params![hash.as_str(), text, set, generation, denied])? > 0 {
            new.extend((!denied).then_some(drv));
        } else if !denied {
            allow.execute(params![hash.as_str(), text, set, generation])?;
        }
    }
    version::add(transaction, set, generation, row)?;
    let drv = row.outcome.as_ref().ok().map(ToString::to_string);
    transaction.execute(
        "INSERT OR REPLACE INTO catalogue_attribute (set_id, attribute, system, drv, error, denied, output, program) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![set, row.attribute, row.system, drv, row.outcome.as_ref().err(), row.denied, row.output, row.program],
    )?;
    transaction.execute(
        "UPDATE catalogue_generation SET holder = ?2, attributes = attributes + ?3, denied = denied + ?4, \
         errors = errors + ?5, derivations = derivations + ?6 WHERE id = ?1",
        params![
            generation,
            holder.to_string(),
            row.outcome.is_ok(),
            row.denied,
            row.outcome.is_err(),
            signed(new.len() as u64)
        ],
    )?;
    Ok(true)
}
