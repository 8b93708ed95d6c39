//! What package sets have: their generations, the attributes of each current one, and which derivation gives an output.
//! Only read here; how a generation gets there is in generation.rs.

use std::collections::BTreeSet;
use std::time::SystemTime;

use narinfo::{StorePath, StorePathHash};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::rows::{corrupt, from_unix, unsigned};
use super::{Error, Index};

/// An attribute of a set, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributeRow {
    /// Its path within the set, as Nix writes it.
    pub attribute: String,
    /// The system that it was evaluated for.
    pub system: String,
    /// Its derivation, or why it has none.
    pub outcome: Result<StorePath, String>,
    /// The output that it is: its name, or its path; `None` where evaluation gave neither.
    pub output: Option<String>,
    /// Whether it may not be built.
    pub denied: bool,
}

/// An attribute as the current generation of its set has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributed {
    /// The number of that generation.
    pub generation: u64,
    /// The attribute; `None` where there is none of this name.
    pub row: Option<AttributeRow>,
}

/// Which attributes of a set are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// What the attribute, with its quotes or without, or the name of its derivation is like: in all of it where there is a `*`, which
    /// stands for anything, and else in a part of it. Upper and lower case are alike.
    pub like: Option<String>,
    /// The attribute after which the list begins; the empty one is before all others.
    pub after: String,
    /// The system that they are evaluated for.
    pub system: String,
    /// How many at most.
    pub max: u32,
}

/// A derivation that gives an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputRow {
    /// The hash of the output's path.
    pub hash: StorePathHash,
    /// The derivation.
    pub drv: StorePath,
    /// Whether it may not be built, except as an input.
    pub denied: bool,
}

/// A derivation that some set has for a hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maker {
    /// The derivation.
    pub drv: StorePath,
    /// The set that denies it, where no other one allows it.
    pub denied_by: Option<String>,
}

/// A generation of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Its number.
    pub id: u64,
    /// The settings that it was made with.
    pub made_by: String,
    /// The path that holds its derivations in the Nix store.
    pub holder: StorePath,
    /// When it was made.
    pub made_at: SystemTime,
    /// When the next one took its place.
    pub replaced_at: Option<SystemTime>,
    /// How much there is in it.
    pub size: GenerationSize,
}

/// How much there is in a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GenerationSize {
    /// Attributes that gave a derivation.
    pub attributes: u64,
    /// Those of them that may not be built.
    pub denied: u64,
    /// Attributes that failed to evaluate.
    pub errors: u64,
    /// Derivations in the closure of what may be built.
    pub derivations: u64,
}

/// What is on record of a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetRow {
    /// When a refresh ended last.
    pub tried_at: Option<SystemTime>,
    /// Why it failed.
    pub failure: Option<String>,
    /// Its generations, the current one first.
    pub generations: Vec<Generation>,
}

impl Index {
    /// The derivations that sets have for a hash: those of current generations first.
    ///
    /// # Errors
    /// When SQLite fails or a row is damaged.
    pub async fn makers(&self, hash: StorePathHash) -> Result<Vec<Maker>, Error> {
        self.readers.run(move |connection| makers(connection, hash)).await
    }

    /// An attribute as the current generation of a set has it for a system; `None` where there is no generation.
    ///
    /// # Errors
    /// When SQLite fails or the row is damaged.
    pub async fn attribute(
        &self,
        set: String,
        attribute: String,
        system: String,
    ) -> Result<Option<Attributed>, Error> {
        self.readers
            .run(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT a.attribute, a.system, a.drv, a.error, a.denied, a.output, g.id FROM catalogue_set s \
                     JOIN catalogue_generation g ON g.set_id = s.id AND g.replaced_at IS NULL \
                     LEFT JOIN catalogue_attribute a ON a.set_id = s.id AND a.attribute = ?2 AND a.system = ?3 \
                     WHERE s.name = ?1",
                )?;
                let mut rows = statement.query([set, attribute, system])?;
                let Some(row) = rows.next()? else { return Ok(None) };
                let known = row.get::<_, Option<String>>(0)?.is_some();
                let row_of_it = known.then(|| attribute_row(row)).transpose()?;
                Ok(Some(Attributed { generation: unsigned(row.get(6)?), row: row_of_it }))
            })
            .await
    }

    /// Attributes of the current generation of a set, in the order of their names, with the generation's number; `None` where there
    /// is none.
    ///
    /// # Errors
    /// When SQLite fails or a row is damaged.
    pub async fn listed(
        &self,
        set: String,
        search: Search,
    ) -> Result<Option<(u64, Vec<AttributeRow>)>, Error> {
        self.readers
            .run(move |connection| {
                let sql = "SELECT s.id, g.id FROM catalogue_set s JOIN catalogue_generation g \
                           ON g.set_id = s.id AND g.replaced_at IS NULL WHERE s.name = ?1";
                let current = connection.query_row(sql, [set], |row| Ok((row.get(0)?, row.get(1)?)));
                let Some((set, generation)): Option<(i64, i64)> = current.optional()? else { return Ok(None) };
                let mut statement = connection.prepare_cached(
                    "SELECT attribute, system, drv, error, denied, output FROM catalogue_attribute \
                     WHERE set_id = ?1 AND attribute > ?2 AND system = ?3 \
                     AND (?4 IS NULL OR attribute LIKE ?4 ESCAPE '\\' OR replace(attribute, '\"', '') LIKE ?4 ESCAPE '\\' \
                          OR substr(drv, 34, length(drv) - 37) LIKE ?4 ESCAPE '\\') \
                     ORDER BY attribute LIMIT ?5",
                )?;
                let Search { like, after, system, max } = search;
                let mut rows = statement.query(params![set, after, system, like.map(|like| pattern(&like)), max])?;
                let mut found = Vec::new();
                while let Some(row) = rows.next()? {
                    found.push(attribute_row(row)?);
                }
                Ok(Some((unsigned(generation), found)))
            })
            .await
    }

    /// What every set has under the name of this attribute, with the set's name, for each system.
    ///
    /// # Errors
    /// When SQLite fails or a row is damaged.
    pub async fn attributes(&self, attribute: String) -> Result<Vec<(String, AttributeRow)>, Error> {
        self.readers
            .run(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT a.attribute, a.system, a.drv, a.error, a.denied, a.output, s.name FROM catalogue_set s \
                     JOIN catalogue_attribute a ON a.set_id = s.id AND a.attribute = ?1 ORDER BY s.id, a.system",
                )?;
                let mut rows = statement.query([attribute])?;
                let mut found = Vec::new();
                while let Some(row) = rows.next()? {
                    found.push((row.get(6)?, attribute_row(row)?));
                }
                Ok(found)
            })
            .await
    }

    /// The derivations of all attributes of the current generation of a set that may be built.
    ///
    /// # Errors
    /// When SQLite fails or a row is damaged.
    pub async fn allowed_derivations(&self, set: String) -> Result<BTreeSet<StorePath>, Error> {
        self.readers
            .run(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT drv FROM catalogue_attribute \
                     WHERE set_id = (SELECT id FROM catalogue_set WHERE name = ?1) AND drv IS NOT NULL AND NOT denied",
                )?;
                let rows = statement.query_map([set], |row| row.get::<_, String>(0))?;
                rows.map(|name| store_path(&name?)).collect()
            })
            .await
    }

    /// Whether the current generation of a set has this derivation under some name.
    ///
    /// # Errors
    /// When SQLite fails.
    pub async fn has_derivation(&self, set: String, drv: StorePath) -> Result<bool, Error> {
        self.readers
            .run(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM catalogue_attribute WHERE drv = ?2 \
                     AND set_id = (SELECT id FROM catalogue_set WHERE name = ?1))",
                )?;
                Ok(statement.query_row(params![set, drv.to_string()], |row| row.get(0))?)
            })
            .await
    }

    /// The attributes of a set that failed to evaluate, up to so many, in the order of their names.
    ///
    /// # Errors
    /// When SQLite fails or a row is damaged.
    pub async fn failed_attributes(&self, set: String, max: u32) -> Result<Vec<AttributeRow>, Error> {
        self.readers
            .run(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT attribute, system, drv, error, denied, output FROM catalogue_attribute \
                     WHERE set_id = (SELECT id FROM catalogue_set WHERE name = ?1) AND error IS NOT NULL \
                     LIMIT ?2",
                )?;
                let mut rows = statement.query(params![set, max])?;
                let mut found = Vec::new();
                while let Some(row) = rows.next()? {
                    found.push(attribute_row(row)?);
                }
                Ok(found)
            })
            .await
    }

    /// What is on record of a set; nothing of one that was never tried.
    ///
    /// # Errors
    /// When SQLite fails or a row is damaged.
    pub async fn set(&self, name: String) -> Result<SetRow, Error> {
        self.readers
            .run(move |connection| {
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
            .await
    }

    /// The paths that hold the derivations of all generations.
    ///
    /// # Errors
    /// When SQLite fails or a row is damaged.
    pub async fn holders(&self) -> Result<Vec<StorePath>, Error> {
        self.readers
            .run(|connection| {
                let mut statement = connection.prepare("SELECT DISTINCT holder FROM catalogue_generation")?;
                let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
                rows.map(|name| store_path(&name?)).collect()
            })
            .await
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
    // The first row of each derivation counts: what is current before what was, what allows before what denies.
    while let Some(row) = rows.next()? {
        let drv = store_path(&row.get::<_, String>(0)?)?;
        if found.iter().all(|maker| maker.drv != drv) {
            let (denied, set): (bool, String) = (row.get(1)?, row.get(2)?);
            found.push(Maker { drv, denied_by: denied.then_some(set) });
        }
    }
    Ok(found)
}

/// As SQL has it.
fn pattern(like: &str) -> String {
    let character = |c| match c {
        '*' => "%".to_owned(),
        '%' | '_' | '\\' => format!("\\{c}"),
        c => c.to_string(),
    };
    let pattern: String = like.chars().map(character).collect();
    if like.contains('*') { pattern } else { format!("%{pattern}%") }
}

fn store_path(name: &str) -> Result<StorePath, Error> {
    StorePath::parse(name).map_err(|error| corrupt(name, error))
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
