//! The attributes of a package set as JSON, page by page: all, or those that are like what is looked for. Evaluates nothing.

use super::Service;
use super::answer::{self, Answer, json};
use super::api::index_failed;
use super::route::Wanted;
use crate::catalogue::{Indexing, NoSuchName, SetName};
use crate::index::{AttributeRow, Search};

/// A page of attributes, at `GET /api/v1/catalogue/<set>/`.
#[derive(Debug, serde::Deserialize, serde::Serialize)]
pub struct Listing {
    /// The set.
    pub set: String,
    /// The generation that has them, which is the current one.
    pub generation: u64,
    /// The system that they are evaluated for.
    pub system: String,
    /// Whether the set is evaluated as a whole; else it has only what was asked for by name.
    pub complete: bool,
    /// In the order of their names.
    pub attributes: Vec<AttributeLine>,
    /// What the next page begins `after`; null on the last one.
    pub next: Option<String>,
}

/// An attribute in a list.
#[derive(Debug, serde::Deserialize, serde::Serialize)]
pub struct AttributeLine {
    /// Its path, as Nix writes it.
    pub attribute: String,
    /// The name of its derivation; null where it cannot be evaluated.
    pub name: Option<String>,
    /// Base name of its derivation.
    pub derivation: Option<String>,
    /// The output that it is, where evaluation says so.
    pub output: Option<String>,
    /// Whether the set denies it.
    pub denied: bool,
    /// Why it cannot be evaluated.
    pub error: Option<String>,
}

pub(super) async fn get(service: &Service, set: &SetName, wanted: Result<Wanted, String>) -> Answer {
    let Wanted { like, system, after, max } = match wanted {
        Ok(wanted) => wanted,
        Err(reason) => return answer::bad_request(reason),
    };
    let Some((settings, _)) = service.parts.catalogue.sets().find(|(settings, _)| settings.name == *set)
    else {
        return answer::no_such(NoSuchName::Set(set.clone()));
    };
    let system = match settings.system(system.as_deref()) {
        Ok(system) => system.to_owned(),
        Err(reason) => return answer::no_such(reason),
    };
    // One more shows whether there is another page.
    let search = Search { like, after, system: system.clone(), max: max + 1 };
    let (generation, mut rows) = match service.parts.index.listed(set.to_string(), search).await {
        Ok(Some(found)) => found,
        Ok(None) => return answer::no_such(NoSuchName::NoGeneration(set.clone())),
        Err(error) => return index_failed(&error, "attributes cannot be listed"),
    };
    let has_more = rows.len() > max as usize;
    rows.truncate(max as usize);
    json(&Listing {
        set: set.to_string(),
        generation,
        system,
        complete: settings.indexing == Indexing::Full,
        next: rows.last().filter(|_| has_more).map(|row| row.attribute.clone()),
        attributes: rows.into_iter().map(AttributeLine::from).collect(),
    })
}

impl From<AttributeRow> for AttributeLine {
    fn from(row: AttributeRow) -> Self {
        let drv = row.outcome.as_ref().ok();
        // Where evaluation has a path instead, its description has the name.
        let output = row.output.filter(|output| !output.contains('/'));
        Self {
            attribute: row.attribute,
            name: drv.map(|drv| drv.name().trim_end_matches(".drv").to_owned()),
            derivation: drv.map(ToString::to_string),
            output,
            denied: row.denied,
            error: row.outcome.err(),
        }
    }
}
