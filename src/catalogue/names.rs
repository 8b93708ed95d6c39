//! What a name stands for: an attribute of a package set, as its current generation has it. Builds nothing, and does not know
//! what is served.

use std::collections::BTreeMap;

use narinfo::{StoreDir, StorePath};

use super::lazy::{Landed, Lazy};
use super::settings::{Indexing, SetName, SetSettings};
use super::{Catalogue, Tools};
use crate::index::{self, AttributeName, Attributed, Index};
use crate::nix::read_derivation;

/// The output that is meant where none is named.
const DEFAULT_OUTPUT: &str = "out";

/// Looks names up; clones share what it needs.
#[derive(Clone)]
pub struct Names {
    catalogue: Catalogue,
    index: Index,
    store_dir: StoreDir,
    lazy: Lazy,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The set.
    pub set: SetName,
    /// The generation that has it, which is the current one.
    pub generation: u64,
    /// Its path within the set, with dots.
    pub attribute: String,
    /// The system that it was evaluated for.
    pub system: String,
    /// Its derivation.
    pub drv: StorePath,
    /// Whether the set denies it.
    pub denied: bool,
    /// The outputs by name; the path is `None` where it is known only after the build. None at all when it is denied and the
    /// Nix store has the derivation no more, since nothing holds it there.
    pub outputs: BTreeMap<String, Option<StorePath>>,
}

/// Why a name stands for nothing. The text is for the person who asked.
#[derive(Debug, thiserror::Error)]
pub enum NoSuchName {
    /// There is no such set.
    #[error("there is no package set {0}; /api/v1/catalogue lists them")]
    Set(SetName),
    /// The set is not evaluated for this system.
    #[error("the package set {set} is evaluated for {}, not for {system}", .systems.join(", "))]
    System {
        /// The set.
        set: SetName,
        /// What was asked for.
        system: String,
        /// What there is.
        systems: Vec<String>,
    },
    /// There is no generation yet.
    #[error(
        "the package set {0} was never evaluated with success; /api/v1/catalogue/{0} tells how that stands"
    )]
    NoGeneration(SetName),
    /// There is no such attribute.
    #[error("unknown: the package set {set} has no {attribute} for {system}")]
    Attribute {
        /// The set.
        set: SetName,
        /// What was asked for.
        attribute: String,
        /// For this system.
        system: String,
    },
    /// The attribute cannot be evaluated.
    #[error("failed: {attribute} of the package set {set} cannot be evaluated for {system}\nreason: {error}")]
    Broken {
        /// The set.
        set: SetName,
        /// What was asked for.
        attribute: String,
        /// For this system.
        system: String,
        /// What the evaluator said.
        error: String,
    },
    /// There is no such output.
    #[error("unknown: {drv} has no output {output}, but {}", .outputs.join(", "))]
    Output {
        /// The derivation.
        drv: StorePath,
        /// What was asked for.
        output: String,
        /// What there is.
        outputs: Vec<String>,
    },
    /// The path of the output cannot be known.
    #[error("{0} has outputs without a path before the build, and those are not had by name")]
    Floating(StorePath),
    /// Too much waits for its evaluation.
    #[error("refused: too many attributes wait to be evaluated; ask again later")]
    Busy,
    /// The server cannot tell at the moment.
    #[error("unavailable: {0}; the server's log has the details")]
    Unavailable(&'static str),
}

impl Names {
    /// Those of all sets.
    #[must_use]
    pub fn new(catalogue: Catalogue, tools: Tools) -> Self {
        let (index, store_dir) = (tools.index.clone(), tools.nix.store_dir.clone());
        Self { lazy: Lazy::new(catalogue.clone(), tools), catalogue, index, store_dir }
    }

    /// What an attribute of a set is for a system; without one, for the first of those that the set is evaluated for. Waits
    /// for its evaluation where the set is lazy and it was not asked for before.
    ///
    /// # Errors
    /// When there is no such thing, or it cannot be told.
    pub async fn find(
        &self,
        set: &SetName,
        attribute: &str,
        system: Option<&str>,
    ) -> Result<Named, NoSuchName> {
        let settings =
            self.catalogue.settings_of(set.as_str()).ok_or_else(|| NoSuchName::Set(set.clone()))?;
        let system = system_of(settings, system)?;
        let mut found = self.look_up(set, attribute, system).await?;
        if found.row.is_none() && settings.indexing == Indexing::Lazy {
            let (attribute, system) = (attribute.to_owned(), system.to_owned());
            let name = AttributeName { set: set.to_string(), attribute, system };
            match self.lazy.evaluated(&name, found.generation).await {
                Landed::Recorded => found = self.look_up(set, &name.attribute, &name.system).await?,
                Landed::Missing => {}
                Landed::Failed => return Err(NoSuchName::Unavailable("it could not be evaluated")),
                Landed::Busy => return Err(NoSuchName::Busy),
            }
        }
        let Attributed { generation, row } = found;
        let (set, attribute, system) = (set.clone(), attribute.to_owned(), system.to_owned());
        let Some(row) = row else { return Err(NoSuchName::Attribute { set, attribute, system }) };
        let drv = match row.outcome {
            Ok(drv) => drv,
            Err(error) => return Err(NoSuchName::Broken { set, attribute, system, error }),
        };
        let outputs = self.outputs(&drv, row.denied).await?;
        Ok(Named { set, generation, attribute, system, drv, denied: row.denied, outputs })
    }

    async fn look_up(&self, set: &SetName, attribute: &str, system: &str) -> Result<Attributed, NoSuchName> {
        let found = self.index.attribute(set.to_string(), attribute.to_owned(), system.to_owned()).await;
        found.map_err(|error| unreadable(&error))?.ok_or_else(|| NoSuchName::NoGeneration(set.clone()))
    }

    async fn outputs(
        &self,
        drv: &StorePath,
        denied: bool,
    ) -> Result<BTreeMap<String, Option<StorePath>>, NoSuchName> {
        let (store_dir, file) = (self.store_dir.clone(), drv.clone());
        let read = tokio::task::spawn_blocking(move || read_derivation(&store_dir, &file)).await;
        match read.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(derivation) => Ok(derivation.outputs),
            Err(_) if denied => Ok(BTreeMap::new()),
            Err(reason) => {
                tracing::error!(%drv, reason, "a derivation that a package set has cannot be read");
                Err(NoSuchName::Unavailable("its derivation cannot be read"))
            }
        }
    }
}

impl Named {
    /// The path of the output of this name; without one, of `out`, or else of the first.
    ///
    /// # Errors
    /// When there is no such output, or its path is not known.
    pub fn output(&self, name: Option<&str>) -> Result<&StorePath, NoSuchName> {
        let Self { drv, outputs, .. } = self;
        let found = match name {
            Some(name) => outputs.get(name),
            None => outputs.get(DEFAULT_OUTPUT).or_else(|| outputs.values().next()),
        };
        let found = found.ok_or_else(|| NoSuchName::Output {
            drv: drv.clone(),
            output: name.unwrap_or(DEFAULT_OUTPUT).to_owned(),
            outputs: outputs.keys().cloned().collect(),
        })?;
        found.as_ref().ok_or_else(|| NoSuchName::Floating(drv.clone()))
    }
}

fn system_of<'a>(set: &'a SetSettings, wanted: Option<&str>) -> Result<&'a str, NoSuchName> {
    let mut systems = set.systems.iter();
    let found = systems.find(|system| wanted.is_none_or(|wanted| *system == wanted));
    found.map(String::as_str).ok_or_else(|| NoSuchName::System {
        set: set.name.clone(),
        system: wanted.unwrap_or_default().to_owned(),
        systems: set.systems.clone(),
    })
}

fn unreadable(error: &index::Error) -> NoSuchName {
    tracing::error!(error = error as &dyn std::error::Error, "a name cannot be looked up");
    NoSuchName::Unavailable("the index cannot be read")
}
