//! Resolution of names: an attribute of a package set, as its current generation has it. Builds nothing, and
//! does not know what is served.

use std::collections::BTreeMap;

use narinfo::{StoreDir, StorePath};

use super::attribute::{AttributePath, Selection};
use super::lazy::{Lazy, LazyResult};
use super::settings::{Indexing, Permission, SetName, SetSettings};
use super::walk::THROWN;
use super::{Catalogue, Tools};
use crate::escape::Line;
use crate::index::{self, Index};
use crate::model::{AttributeName, AttributeRow, Attributed, Search};
use crate::nearest::similar;
use crate::nix::read_derivation;

/// The output that is meant where neither the name nor the evaluation says which.
const DEFAULT_OUTPUT: &str = "out";

/// Characters at its beginning that a suggested name has in common with the one that nothing has, and
/// attributes that are compared at most.
const SAME_CHARS: usize = 2;
const COMPARED_MAX: u32 = 2000;

/// Looks names up; clones share what it needs.
#[derive(Clone)]
pub struct NameResolver {
    catalogue: Catalogue,
    index: Index,
    store_dir: StoreDir,
    lazy: Lazy,
}

/// The result of a resolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedName {
    /// The set.
    pub set: SetName,
    /// The generation that has it, which is the current one.
    pub generation: u64,
    /// Its path within the set.
    pub attribute: AttributePath,
    /// The system that it was evaluated for.
    pub system: String,
    /// Its derivation.
    pub drv: StorePath,
    /// The set denies it.
    pub denied: bool,
    /// The output that the attribute itself is; `None` where there is none at all.
    pub own_output: Option<String>,
    /// Name of the program that it is run by, where its description says so.
    pub program: Option<String>,
    /// The outputs by name; the path is `None` where it is known only after the build. None at all when it is
    /// denied and the Nix store has the derivation no more, since nothing holds it there.
    pub outputs: BTreeMap<String, Option<StorePath>>,
}

/// Why a name stands for nothing. The text is for the person who asked.
#[derive(Debug, thiserror::Error)]
pub enum NoSuchName {
    /// There is no such set.
    #[error("there is no package set {set}; the server has {}", if .sets.is_empty() { "none".to_owned() } else { .sets.join(", ") })]
    Set {
        /// The name.
        set: SetName,
        /// Names of the sets that there are.
        sets: Vec<String>,
    },
    /// The set is not evaluated for this system.
    #[error("the package set {set} is evaluated for {}, not for {}", .systems.join(", "), Line(.system))]
    System {
        /// The set.
        set: SetName,
        /// The requested system.
        system: String,
        /// The existing ones.
        systems: Vec<String>,
    },
    /// There is no generation yet.
    #[error("the package set {0} was never evaluated successfully; `ondine refresh {0}` shows the reason")]
    NoGeneration(SetName),
    /// There is no such attribute.
    #[error("unknown: the package set {set} has no {attribute} for {system}")]
    Attribute {
        /// The set.
        set: SetName,
        /// The requested attribute.
        attribute: String,
        /// For this system.
        system: String,
    },
    /// The attribute cannot be evaluated.
    #[error("failed: {attribute} of the package set {set} cannot be evaluated for {system}\nreason: {error}")]
    Broken {
        /// The set.
        set: SetName,
        /// The requested attribute.
        attribute: String,
        /// For this system.
        system: String,
        /// The evaluator's error.
        error: String,
    },
    /// There is no such output.
    #[error("unknown: {drv} has no output {}, but {}", Line(.output), .outputs.join(", "))]
    Output {
        /// The derivation.
        drv: StorePath,
        /// The requested output.
        output: String,
        /// The existing ones.
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
    /// The index does not do its part.
    #[error("unavailable: the index cannot be read; the server's log has the details")]
    Index,
}

impl NoSuchName {
    /// True if the name may exist all the same, and the failure is transient.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Busy | Self::Unavailable(_) | Self::Index)
    }
}

impl Catalogue {
    /// Error for a set that does not exist.
    #[must_use]
    pub fn no_such_set(&self, set: &SetName) -> NoSuchName {
        let sets = self.sets().map(|(settings, _)| settings.name.to_string()).collect();
        NoSuchName::Set { set: set.clone(), sets }
    }
}

impl NameResolver {
    /// Those of all sets.
    #[must_use]
    pub fn new(catalogue: Catalogue, tools: Tools) -> Self {
        let (index, store_dir) = (tools.index.clone(), tools.nix.store_dir.clone());
        Self { lazy: Lazy::new(catalogue.clone(), tools), catalogue, index, store_dir }
    }

    /// Resolves an attribute of a set for a system; without one, for the first of the set's systems. Waits
    /// for its evaluation where the set is lazy and it was not asked for before.
    ///
    /// # Errors
    /// If there is no such attribute, or the resolution fails.
    pub async fn find(
        &self,
        set: &SetName,
        attribute: &AttributePath,
        system: Option<&str>,
    ) -> Result<ResolvedName, NoSuchName> {
        let settings = self.catalogue.settings_of(set.as_str());
        let settings = settings.ok_or_else(|| self.catalogue.no_such_set(set))?;
        let system = settings.system(system)?;
        let mut found = self.look_up(set, attribute, system).await?;
        if found.row.is_none() {
            found = match settings.indexing {
                Indexing::Full => self.output_of(set, attribute, system, found).await?,
                Indexing::Lazy => match self.lazy.evaluated(set, attribute, system, found.generation).await {
                    LazyResult::Known(found) => found,
                    LazyResult::Failed => return Err(NoSuchName::Unavailable("it could not be evaluated")),
                    LazyResult::Busy => return Err(NoSuchName::Busy),
                },
            };
        }
        let Attributed { generation, row } = found;
        let (set, system) = (set.clone(), system.to_owned());
        let Some(row) = row else {
            return Err(NoSuchName::Attribute { set, attribute: attribute.to_string(), system });
        };
        let drv = match row.outcome {
            Ok(drv) => drv,
            Err(error) if error == THROWN => {
                let error = self.words(&set, &row.attribute, &system).await.unwrap_or(error);
                return Err(NoSuchName::Broken { set, attribute: row.attribute, system, error });
            }
            Err(error) => return Err(NoSuchName::Broken { set, attribute: row.attribute, system, error }),
        };
        let denied = row.denied || settings.verdict(attribute, &[]) == Permission::Denied;
        let outputs = self.outputs(&drv, denied).await?;
        let own_output = own_output(row.output.as_deref(), &outputs);
        Ok(ResolvedName {
            set,
            generation,
            attribute: attribute.clone(),
            system,
            drv,
            denied,
            own_output,
            program: row.program,
            outputs,
        })
    }

    /// The words of an attribute that throws.
    async fn words(&self, set: &SetName, attribute: &str, system: &str) -> Option<String> {
        let path = AttributePath::parse(attribute)?;
        let name = AttributeName {
            set: set.to_string(),
            attribute: attribute.to_owned(),
            system: system.to_owned(),
        };
        self.lazy.words(set, name, &path).await
    }

    /// The same of what someone has written, with the output that is named there.
    ///
    /// # Errors
    /// There is no such attribute, or it cannot be told.
    pub async fn select<'a>(
        &self,
        set: &SetName,
        selection: &'a Selection,
        system: Option<&str>,
    ) -> Result<(ResolvedName, Option<&'a str>), NoSuchName> {
        let Selection { path, output, otherwise } = selection;
        match (self.find(set, path, system).await, otherwise) {
            (Ok(named), _) => Ok((named, output.as_deref())),
            (Err(reason @ NoSuchName::Attribute { .. }), Some(path)) => {
                let found = self.find(set, path, system).await;
                found.map(|named| (named, None)).map_err(|_| reason)
            }
            (Err(reason), _) => Err(reason),
        }
    }

    /// The attribute of a set whose name is most like this one, among those with the same beginning.
    pub async fn similar(&self, set: &SetName, name: &str, system: Option<&str>) -> Option<String> {
        let settings = self.catalogue.settings_of(set.as_str())?;
        let system = settings.system(system).ok()?.to_owned();
        let beginning: String = name.chars().filter(|c| *c != '*').take(SAME_CHARS).collect();
        let like = Some(format!("{beginning}*"));
        let search = Search { like, after: String::new(), system, max: COMPARED_MAX };
        let (_, rows) = self.index.listed(set.to_string(), search).await.ok()??;
        similar(name, rows.iter().map(|row| &*row.attribute)).map(str::to_owned)
    }

    async fn look_up(
        &self,
        set: &SetName,
        attribute: &AttributePath,
        system: &str,
    ) -> Result<Attributed, NoSuchName> {
        let found = self.index.attribute(set.to_string(), attribute.to_string(), system.to_owned()).await;
        found.map_err(|error| unreadable(&error))?.ok_or_else(|| NoSuchName::NoGeneration(set.clone()))
    }

    /// Resolves an attribute that no walk reaches as an output of another one, as `multi.dev` is of `multi`:
    /// a derivation has its outputs for attributes, and these have all of them again. Otherwise the result is
    /// unchanged.
    async fn output_of(
        &self,
        set: &SetName,
        attribute: &AttributePath,
        system: &str,
        found: Attributed,
    ) -> Result<Attributed, NoSuchName> {
        let mut before = attribute.clone();
        while let Some((shorter, _)) = before.split_last() {
            let whole = self.look_up(set, &shorter, system).await?;
            let Some(AttributeRow { outcome: Ok(drv), denied, .. }) = &whole.row else {
                before = shorter;
                continue;
            };
            let outputs = self.outputs(drv, *denied).await?;
            let names = &attribute.names()[shorter.names().len()..];
            if names.iter().any(|name| !outputs.contains_key(name)) {
                break;
            }
            let own = names.last().cloned();
            return Ok(Attributed { row: whole.row.map(|row| AttributeRow { output: own, ..row }), ..whole });
        }
        Ok(found)
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
                tracing::error!(%drv, reason, "cannot read a derivation of a package set");
                Err(NoSuchName::Unavailable("its derivation cannot be read"))
            }
        }
    }
}

impl ResolvedName {
    /// The path of the output of this name; without one, of the attribute's own.
    ///
    /// # Errors
    /// There is no such output, or its path is not known.
    pub fn output(&self, name: Option<&str>) -> Result<&StorePath, NoSuchName> {
        let Self { drv, outputs, own_output, .. } = self;
        let name = name.or(own_output.as_deref()).unwrap_or(DEFAULT_OUTPUT);
        let found = outputs.get(name).ok_or_else(|| NoSuchName::Output {
            drv: drv.clone(),
            output: name.to_owned(),
            outputs: outputs.keys().cloned().collect(),
        })?;
        found.as_ref().ok_or_else(|| NoSuchName::Floating(drv.clone()))
    }
}

impl SetSettings {
    /// A system that the set is evaluated for: this one, or else the first.
    ///
    /// # Errors
    /// The set is not evaluated for the wanted one.
    pub fn system(&self, wanted: Option<&str>) -> Result<&str, NoSuchName> {
        let found = self.systems.iter().find(|system| wanted.is_none_or(|wanted| *system == wanted));
        found.map(String::as_str).ok_or_else(|| NoSuchName::System {
            set: self.name.clone(),
            system: wanted.unwrap_or_default().to_owned(),
            systems: self.systems.clone(),
        })
    }
}

/// The name of the output that an attribute is, by what its evaluation said of it.
fn own_output(told: Option<&str>, outputs: &BTreeMap<String, Option<StorePath>>) -> Option<String> {
    let path = told.and_then(|told| told.rsplit_once('/')).map(|(_, base)| base);
    let is_at = |path: &StorePath, base: &str| path.to_string() == base;
    let by_name = told.filter(|told| outputs.contains_key(*told)).map(str::to_owned);
    let by_path = || {
        let mut of_path =
            outputs.iter().filter(|(_, at)| at.as_ref().zip(path).is_some_and(|(at, base)| is_at(at, base)));
        of_path.next().map(|(name, _)| name.clone())
    };
    let default = || outputs.get_key_value(DEFAULT_OUTPUT).or_else(|| outputs.first_key_value());
    by_name.or_else(by_path).or_else(|| default().map(|(name, _)| name.clone()))
}

fn unreadable(error: &index::Error) -> NoSuchName {
    tracing::error!(error = error as &dyn std::error::Error, "cannot look up an attribute name");
    NoSuchName::Index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_the_output_that_its_evaluation_names() {
        let path = |letter: &str, name: &str| StorePath::parse(&format!("{}-{name}", letter.repeat(32))).ok();
        let outputs = |names: &[&str]| -> BTreeMap<String, Option<StorePath>> {
            let each = names.iter().zip(["a", "b", "c"]);
            each.map(|(name, letter)| ((*name).to_owned(), path(letter, "x"))).collect()
        };
        let own = |told: Option<&str>, names: &[&str]| own_output(told, &outputs(names));
        let at_b = format!("/nix/store/{}-x", "b".repeat(32));
        assert_eq!(own(Some("bin"), &["bin", "out"]).as_deref(), Some("bin"));
        assert_eq!(own(Some(&at_b), &["bin", "dev", "out"]).as_deref(), Some("dev"));
        // What evaluation says makes no sense, or it says nothing.
        assert_eq!(own(Some("nope"), &["bin", "out"]).as_deref(), Some("out"));
        assert_eq!(own(None, &["bin", "out"]).as_deref(), Some("out"));
        assert_eq!(own(None, &["bin", "lib"]).as_deref(), Some("bin"));
        assert_eq!(own(Some("out"), &[]), None);
    }
}
