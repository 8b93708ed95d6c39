//! Package sets: their generations, the attributes of each current one, and the derivations of an output.
//! Only read here; generation.rs writes.

use std::collections::{BTreeMap, BTreeSet};

use narinfo::{StorePath, StorePathHash};
use tokio_postgres::Row;

use super::rows::{base_name, hash_texts, path_hash};
use super::session::{DatabaseSession, column};
use super::{Error, Postgres, pushed, version};
use crate::index::backend::{BackendFuture, PackageSets};
use crate::index::columns::{from_unix, like_pattern, unsigned};
use crate::model::{
    AttributeName, AttributeRow, Attributed, Generation, GenerationSize, Maker, Search, SetRow, VersionRow,
};

/// Columns of [`attribute_row`].
const ATTRIBUTE_COLUMNS: &str = "a.attribute, a.system, a.drv, a.error, a.denied, a.output, a.program";
/// Pattern for an attribute, or for the name of its derivation.
const MATCHES: &str = "($4::text IS NULL OR a.attribute ILIKE $4 ESCAPE '\\' \
    OR replace(a.attribute, '\"', '') ILIKE $4 ESCAPE '\\' \
    OR substr(a.drv, 34, length(a.drv) - 37) ILIKE $4 ESCAPE '\\')";

impl PackageSets for Postgres {
    fn makers(&self, hash: StorePathHash) -> BackendFuture<'_, Vec<Maker>> {
        self.read(hash, |session, hash| {
            Box::pin(async move {
                let mut found = makers(session, std::slice::from_ref(hash)).await?;
                Ok(found.remove(hash).unwrap_or_default())
            })
        })
    }

    fn makers_of_all(
        &self,
        hashes: Vec<StorePathHash>,
    ) -> BackendFuture<'_, BTreeMap<StorePathHash, Vec<Maker>>> {
        self.read(hashes, |session, hashes| Box::pin(makers(session, hashes)))
    }

    fn attribute(
        &self,
        set: String,
        attribute: String,
        system: String,
    ) -> BackendFuture<'_, Option<Attributed>> {
        self.read((set, attribute, system), |session, (set, attribute, system)| {
            Box::pin(async move {
                let sql = format!(
                    "SELECT {ATTRIBUTE_COLUMNS}, g.id FROM catalogue_set s \
                     JOIN catalogue_generation g ON g.set_id = s.id AND g.replaced_at IS NULL \
                     LEFT JOIN catalogue_attribute a ON a.set_id = s.id AND a.attribute = $2 AND a.system = $3 \
                     WHERE s.name = $1"
                );
                let Some(row) = session.row(&sql, &[set, attribute, system]).await? else { return Ok(None) };
                let is_known = column::<Option<&str>>(&row, 0)?.is_some();
                let generation = unsigned(column(&row, 7)?);
                let row = is_known.then(|| attribute_row(&row)).transpose()?;
                Ok(Some(Attributed { generation, row }))
            })
        })
    }

    fn listed(&self, set: String, search: Search) -> BackendFuture<'_, Option<(u64, Vec<AttributeRow>)>> {
        self.read((set, search), |session, (set, search)| Box::pin(listed(session, set, search)))
    }

    fn attributes(&self, attribute: String) -> BackendFuture<'_, Vec<(String, AttributeRow)>> {
        self.read(attribute, |session, attribute| {
            Box::pin(async move {
                let sql = format!(
                    "SELECT {ATTRIBUTE_COLUMNS}, s.name FROM catalogue_set s \
                     JOIN catalogue_attribute a ON a.set_id = s.id AND a.attribute = $1 ORDER BY s.id, a.system"
                );
                let rows = session.rows(&sql, &[attribute]).await?;
                rows.iter().map(|row| Ok((column(row, 7)?, attribute_row(row)?))).collect()
            })
        })
    }

    fn allowed_derivations(&self, set: String) -> BackendFuture<'_, BTreeSet<StorePath>> {
        self.read(set, |session, set| {
            Box::pin(async move {
                let sql = "SELECT drv FROM catalogue_attribute \
                    WHERE set_id = (SELECT id FROM catalogue_set WHERE name = $1) AND drv IS NOT NULL AND NOT denied";
                session.rows(sql, &[set]).await?.iter().map(|row| base_name(row, 0)).collect()
            })
        })
    }

    fn has_derivation(&self, set: String, drv: StorePath) -> BackendFuture<'_, bool> {
        self.read((set, drv.to_string()), |session, (set, drv)| {
            Box::pin(async move {
                let sql = "SELECT EXISTS (SELECT 1 FROM catalogue_attribute WHERE drv = $2 \
                    AND set_id = (SELECT id FROM catalogue_set WHERE name = $1))";
                column(&session.one(sql, &[set, drv]).await?, 0)
            })
        })
    }

    fn failed_attributes(&self, set: String, max: u32) -> BackendFuture<'_, Vec<AttributeRow>> {
        self.read((set, i64::from(max)), |session, (set, max)| {
            Box::pin(async move {
                let sql = format!(
                    "SELECT {ATTRIBUTE_COLUMNS} FROM catalogue_attribute a \
                     WHERE a.set_id = (SELECT id FROM catalogue_set WHERE name = $1) AND a.error IS NOT NULL \
                     ORDER BY a.attribute, a.system LIMIT $2"
                );
                session.rows(&sql, &[set, max]).await?.iter().map(attribute_row).collect()
            })
        })
    }

    fn set(&self, name: String) -> BackendFuture<'_, SetRow> {
        self.read(name, |session, name| {
            Box::pin(async move {
                let sql = "SELECT tried_at, failure FROM catalogue_set WHERE name = $1";
                let Some(set) = session.row(sql, &[name]).await? else { return Ok(SetRow::default()) };
                let sql = "SELECT id, made_by, holder, made_at, replaced_at, attributes, denied, errors, derivations \
                    FROM catalogue_generation \
                    WHERE set_id = (SELECT id FROM catalogue_set WHERE name = $1) ORDER BY id DESC";
                let rows = session.rows(sql, &[name]).await?;
                Ok(SetRow {
                    tried_at: column::<Option<i64>>(&set, 0)?.map(from_unix),
                    failure: column(&set, 1)?,
                    generations: rows.iter().map(generation).collect::<Result<_, _>>()?,
                })
            })
        })
    }

    fn holders(&self) -> BackendFuture<'_, Vec<StorePath>> {
        self.read((), |session, ()| {
            Box::pin(async move {
                let rows = session.rows("SELECT DISTINCT holder FROM catalogue_generation", &[]).await?;
                rows.iter().map(|row| base_name(row, 0)).collect()
            })
        })
    }

    fn names_of(&self, drvs: Vec<StorePath>) -> BackendFuture<'_, BTreeMap<StorePath, AttributeName>> {
        let drvs: Vec<String> = drvs.iter().map(ToString::to_string).collect();
        self.read(drvs, |session, drvs| {
            Box::pin(async move {
                let sql = "SELECT DISTINCT ON (a.drv) a.drv, s.name, a.attribute, a.system FROM catalogue_attribute a \
                    JOIN catalogue_set s ON s.id = a.set_id WHERE a.drv = ANY($1) \
                    ORDER BY a.drv, s.id, a.attribute, a.system";
                let mut found = BTreeMap::new();
                for row in session.rows(sql, &[drvs]).await? {
                    let (set, attribute, system) = (column(&row, 1)?, column(&row, 2)?, column(&row, 3)?);
                    found.insert(base_name(&row, 0)?, AttributeName { set, attribute, system });
                }
                Ok(found)
            })
        })
    }

    fn versions(&self, name: AttributeName, max: u32) -> BackendFuture<'_, Vec<VersionRow>> {
        self.read((name, i64::from(max)), |session, (name, max)| {
            Box::pin(version::versions(session, name, *max))
        })
    }

    fn derivations_named(&self, names: Vec<AttributeName>) -> BackendFuture<'_, Vec<Option<StorePath>>> {
        self.read(names, |session, names| {
            Box::pin(async move {
                let sql = "SELECT a.drv FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY \
                    AS named (set_name, attribute, system, place) \
                    LEFT JOIN catalogue_set s ON s.name = named.set_name \
                    LEFT JOIN catalogue_attribute a ON a.set_id = s.id AND a.attribute = named.attribute \
                    AND a.system = named.system AND NOT a.denied ORDER BY place";
                let column_of =
                    |of: fn(&AttributeName) -> &String| names.iter().map(of).collect::<Vec<&String>>();
                let (sets, systems) = (column_of(|name| &name.set), column_of(|name| &name.system));
                let rows = session.rows(sql, &[&sets, &column_of(|name| &name.attribute), &systems]).await?;
                let drv = |row: &Row| column::<Option<&str>>(row, 0)?.map(|_| base_name(row, 0)).transpose();
                rows.iter().map(drv).collect()
            })
        })
    }
}

async fn listed(
    session: &DatabaseSession,
    set: &String,
    search: &Search,
) -> Result<Option<(u64, Vec<AttributeRow>)>, Error> {
    let sql = "SELECT s.id, g.id FROM catalogue_set s JOIN catalogue_generation g \
        ON g.set_id = s.id AND g.replaced_at IS NULL WHERE s.name = $1";
    let Some(current) = session.row(sql, &[set]).await? else { return Ok(None) };
    let (set, generation): (i64, i64) = (column(&current, 0)?, column(&current, 1)?);
    let sql = format!(
        "SELECT {ATTRIBUTE_COLUMNS} FROM catalogue_attribute a WHERE a.set_id = $1 AND a.attribute > $2 \
         AND a.system = $3 AND {MATCHES} ORDER BY a.attribute LIMIT $5"
    );
    let Search { like, after, system, max } = search;
    let (pattern, max) = (like.as_deref().map(like_pattern), i64::from(*max));
    let rows = session.rows(&sql, &[&set, after, system, &pattern, &max]).await?;
    Ok(Some((unsigned(generation), rows.iter().map(attribute_row).collect::<Result<_, _>>()?)))
}

/// The derivations of each hash, of those that have any.
async fn makers(
    session: &DatabaseSession,
    hashes: &[StorePathHash],
) -> Result<BTreeMap<StorePathHash, Vec<Maker>>, Error> {
    let sql = "SELECT o.hash, o.drv, o.denied, s.name FROM catalogue_output o \
        JOIN catalogue_set s ON s.id = o.set_id WHERE o.hash = ANY($1) \
        ORDER BY o.last IS NOT NULL, o.denied, o.first DESC";
    let mut found: BTreeMap<StorePathHash, Vec<Maker>> = BTreeMap::new();
    // The first row of each derivation counts: what is current before what was, what allows before what
    // denies.
    let mut add = |hash, maker: Maker| {
        let makers = found.entry(hash).or_default();
        if makers.iter().all(|known| known.drv != maker.drv) {
            makers.push(maker);
        }
    };
    for row in session.rows(sql, &[&hash_texts(hashes)]).await? {
        let (denied, set): (bool, String) = (column(&row, 2)?, column(&row, 3)?);
        add(path_hash(&row, 0)?, Maker { drv: base_name(&row, 1)?, denied_by: denied.then_some(set) });
    }
    // Who may push may have it built, unless a package set denies it.
    for (hash, drv) in pushed::makers(session, hashes).await? {
        add(hash, Maker { drv, denied_by: None });
    }
    Ok(found)
}

fn attribute_row(row: &Row) -> Result<AttributeRow, Error> {
    let (drv, error): (Option<&str>, Option<String>) = (column(row, 2)?, column(row, 3)?);
    Ok(AttributeRow {
        attribute: column(row, 0)?,
        system: column(row, 1)?,
        outcome: match drv {
            Some(_) => Ok(base_name(row, 2)?),
            None => Err(error.unwrap_or_default()),
        },
        denied: column(row, 4)?,
        output: column(row, 5)?,
        program: column(row, 6)?,
    })
}

fn generation(row: &Row) -> Result<Generation, Error> {
    let number = |index| Ok::<_, Error>(unsigned(column(row, index)?));
    Ok(Generation {
        id: number(0)?,
        made_by: column(row, 1)?,
        holder: base_name(row, 2)?,
        made_at: from_unix(column(row, 3)?),
        replaced_at: column::<Option<i64>>(row, 4)?.map(from_unix),
        size: GenerationSize {
            attributes: number(5)?,
            denied: number(6)?,
            errors: number(7)?,
            derivations: number(8)?,
        },
    })
}
