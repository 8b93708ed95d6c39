//! Package sets: their generations, the attributes of each current one, and the derivations of an output.
//! Only read here; generation.rs writes.

use std::collections::{BTreeMap, BTreeSet};

use narinfo::{StorePath, StorePathHash};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::rows::{corrupt, from_unix, like_pattern, store_path, unsigned};
use super::{Error, Sqlite, pushed, version};
use crate::index::backend::{BackendFuture, PackageSets};
use crate::model::{
    AttributeName, AttributeRow, Attributed, Generation, GenerationSize, Maker, Search, SetRow, VersionRow,
};

impl PackageSets for Sqlite {
    fn makers(&self, hash: StorePathHash) -> BackendFuture<'_, Vec<Maker>> {
        self.read(move |connection| makers(connection, hash))
    }

    fn makers_of_all(
        &self,
        hashes: Vec<StorePathHash>,
    ) -> BackendFuture<'_, BTreeMap<StorePathHash, Vec<Maker>>> {
        self.read(move |connection| {
            let mut found = BTreeMap::new();
            for hash in hashes {
                let makers = makers(connection, hash)?;
                if !makers.is_empty() {
                    found.insert(hash, makers);
                }
            }
            Ok(found)
        })
    }

    fn attribute(
        &self,
        set: String,
        attribute: String,
        system: String,
    ) -> BackendFuture<'_, Option<Attributed>> {
        self.read(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT a.attribute, a.system, a.drv, a.error, a.denied, a.output, a.program, g.id FROM catalogue_set s \
                     JOIN catalogue_generation g ON g.set_id = s.id AND g.replaced_at IS NULL \
                     LEFT JOIN catalogue_attribute a ON a.set_id = s.id AND a.attribute = ?2 AND a.system = ?3 \
                     WHERE s.name = ?1",
                )?;
                let mut rows = statement.query([set, attribute, system])?;
                let Some(row) = rows.next()? else { return Ok(None) };
                let known = row.get::<_, Option<String>>(0)?.is_some();
                let row_of_it = known.then(|| attribute_row(row)).transpose()?;
                Ok(Some(Attributed { generation: unsigned(row.get(7)?), row: row_of_it }))
            })
    }

    fn listed(&self, set: String, search: Search) -> BackendFuture<'_, Option<(u64, Vec<AttributeRow>)>> {
        self.read(move |connection| {
                let sql = "SELECT s.id, g.id FROM catalogue_set s JOIN catalogue_generation g \
                           ON g.set_id = s.id AND g.replaced_at IS NULL WHERE s.name = ?1";
                let current = connection.query_row(sql, [set], |row| Ok((row.get(0)?, row.get(1)?)));
                let Some((set, generation)): Option<(i64, i64)> = current.optional()? else { return Ok(None) };
                let mut statement = connection.prepare_cached(
                    "SELECT attribute, system, drv, error, denied, output, program FROM catalogue_attribute \
                     WHERE set_id = ?1 AND attribute > ?2 AND system = ?3 \
                     AND (?4 IS NULL OR attribute LIKE ?4 ESCAPE '\\' OR replace(attribute, '\"', '') LIKE ?4 ESCAPE '\\' \
                          OR substr(drv, 34, length(drv) - 37) LIKE ?4 ESCAPE '\\') \
                     ORDER BY attribute LIMIT ?5",
                )?;
                let Search { like, after, system, max } = search;
                let mut rows = statement.query(params![set, after, system, like.map(|like| like_pattern(&like)), max])?;
                let mut found = Vec::new();
                while let Some(row) = rows.next()? {
                    found.push(attribute_row(row)?);
                }
                Ok(Some((unsigned(generation), found)))
            })
    }

    fn attributes(&self, attribute: String) -> BackendFuture<'_, Vec<(String, AttributeRow)>> {
        self.read(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT a.attribute, a.system, a.drv, a.error, a.denied, a.output, a.program, s.name FROM catalogue_set s \
                     JOIN catalogue_attribute a ON a.set_id = s.id AND a.attribute = ?1 ORDER BY s.id, a.system",
                )?;
                let mut rows = statement.query([attribute])?;
                let mut found = Vec::new();
                while let Some(row) = rows.next()? {
                    found.push((row.get(7)?, attribute_row(row)?));
                }
                Ok(found)
            })
    }

    fn allowed_derivations(&self, set: String) -> BackendFuture<'_, BTreeSet<StorePath>> {
        self.read(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT drv FROM catalogue_attribute \
                     WHERE set_id = (SELECT id FROM catalogue_set WHERE name = ?1) AND drv IS NOT NULL AND NOT denied",
                )?;
                let rows = statement.query_map([set], |row| row.get::<_, String>(0))?;
                rows.map(|name| store_path(&name?)).collect()
            })
    }

    fn has_derivation(&self, set: String, drv: StorePath) -> BackendFuture<'_, bool> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM catalogue_attribute WHERE drv = ?2 \
                     AND set_id = (SELECT id FROM catalogue_set WHERE name = ?1))",
            )?;
            Ok(statement.query_row(params![set, drv.to_string()], |row| row.get(0))?)
        })
    }

    fn failed_attributes(&self, set: String, max: u32) -> BackendFuture<'_, Vec<AttributeRow>> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT attribute, system, drv, error, denied, output, program FROM catalogue_attribute \
                     WHERE set_id = (SELECT id FROM catalogue_set WHERE name = ?1) AND error IS NOT NULL \
                     ORDER BY attribute, system LIMIT ?2",
            )?;
            let mut rows = statement.query(params![set, max])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push(attribute_row(row)?);
            }
            Ok(found)
        })
    }

    fn set(&self, name: String) -> BackendFuture<'_, SetRow> {
        self.read(move |connection| {
            let sql = "SELECT tried_at, failure FROM catalogue_set WHERE name = ?1";
            let known = connection.query_row(sql, [&name], |row| Ok((row.get(0)?, row.get(1)?)));
            let Some((tried_at, failure)) = known.optional()? else { return Ok(SetRow::default()) };
            let tried_at: Option<i64> = tried_at;
            let mut statement = connection.prepare_cached(
                "SELECT id, made_by, holder, made_at, replaced_at, attributes, denied, errors, derivations \
                     FROM catalogue_generation \
                     WHERE set_id = (SELECT id FROM catalogue_set WHERE name = ?1) ORDER BY id DESC",
            )?;
            let mut rows = statement.query([&name])?;
            let mut generations = Vec::new();
            while let Some(row) = rows.next()? {
                generations.push(generation(row)?);
            }
            Ok(SetRow { tried_at: tried_at.map(from_unix), failure, generations })
        })
    }

    fn holders(&self) -> BackendFuture<'_, Vec<StorePath>> {
        self.read(|connection| {
            let mut statement = connection.prepare("SELECT DISTINCT holder FROM catalogue_generation")?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.map(|name| store_path(&name?)).collect()
        })
    }

    fn names_of(&self, drvs: Vec<StorePath>) -> BackendFuture<'_, BTreeMap<StorePath, AttributeName>> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT s.name, a.attribute, a.system FROM catalogue_attribute a \
                     JOIN catalogue_set s ON s.id = a.set_id WHERE a.drv = ?1 LIMIT 1",
            )?;
            let mut found = BTreeMap::new();
            for drv in drvs {
                let name = statement.query_row([drv.to_string()], |row| {
                    Ok(AttributeName { set: row.get(0)?, attribute: row.get(1)?, system: row.get(2)? })
                });
                if let Some(name) = name.optional()? {
                    found.insert(drv, name);
                }
            }
            Ok(found)
        })
    }

    fn versions(&self, name: AttributeName, max: u32) -> BackendFuture<'_, Vec<VersionRow>> {
        self.read(move |connection| version::versions(connection, &name, max))
    }

    fn derivations_named(&self, names: Vec<AttributeName>) -> BackendFuture<'_, Vec<Option<StorePath>>> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT drv FROM catalogue_attribute \
                     WHERE set_id = (SELECT id FROM catalogue_set WHERE name = ?1) \
                     AND attribute = ?2 AND system = ?3 AND drv IS NOT NULL AND NOT denied",
            )?;
            let mut found = Vec::new();
            for AttributeName { set, attribute, system } in &names {
                let drv = statement.query_row([set, attribute, system], |row| row.get::<_, String>(0));
                let drv = drv.optional()?;
                found.push(drv.map(|drv| StorePath::parse(&drv).map_err(|e| corrupt(&drv, e))).transpose()?);
            }
            Ok(found)
        })
    }
}

fn makers(connection: &Connection, hash: StorePathHash) -> Result<Vec<Maker>, Error> {
    let mut statement = connection.prepare_cached(
        "SELECT o.drv, o.denied, s.name FROM catalogue_output o \
         JOIN catalogue_set s ON s.id = o.set_id WHERE o.hash = ?1 \
         ORDER BY o.last IS NOT NULL, o.denied, o.first DESC",
    )?;
    let mut rows = statement.query([hash.as_str()])?;
    let mut found: Vec<Maker> = Vec::new();
    // The first row of each derivation counts: what is current before what was, what allows before what
    // denies.
    while let Some(row) = rows.next()? {
        let drv = store_path(&row.get::<_, String>(0)?)?;
        if found.iter().all(|maker| maker.drv != drv) {
            let (denied, set): (bool, String) = (row.get(1)?, row.get(2)?);
            found.push(Maker { drv, denied_by: denied.then_some(set) });
        }
    }
    // Who may push may have it built, unless a package set denies it.
    for drv in pushed::makers(connection, hash)? {
        if found.iter().all(|maker| maker.drv != drv) {
            found.push(Maker { drv, denied_by: None });
        }
    }
    Ok(found)
}

fn attribute_row(row: &Row<'_>) -> Result<AttributeRow, Error> {
    let (drv, error): (Option<String>, Option<String>) = (row.get(2)?, row.get(3)?);
    Ok(AttributeRow {
        attribute: row.get(0)?,
        system: row.get(1)?,
        outcome: match drv {
            Some(drv) => Ok(store_path(&drv)?),
            None => Err(error.unwrap_or_default()),
        },
        denied: row.get(4)?,
        output: row.get(5)?,
        program: row.get(6)?,
    })
}

fn generation(row: &Row<'_>) -> Result<Generation, Error> {
    let number = |column| Ok::<_, Error>(unsigned(row.get(column)?));
    Ok(Generation {
        id: number(0)?,
        made_by: row.get(1)?,
        holder: store_path(&row.get::<_, String>(2)?)?,
        made_at: from_unix(row.get(3)?),
        replaced_at: row.get::<_, Option<i64>>(4)?.map(from_unix),
        size: GenerationSize {
            attributes: number(5)?,
            denied: number(6)?,
            errors: number(7)?,
            derivations: number(8)?,
        },
    })
}
