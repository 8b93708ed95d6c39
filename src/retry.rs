//! `ondine retry`: takes back what is remembered of a failure whose reason is gone, and has it built anew.
//! Nothing is built that is not remembered to have failed: what a set denies or nobody knows never was tried.

use std::collections::BTreeSet;

use narinfo::{StorePath, StorePathHash};

use crate::build::Failures;
use crate::caller::{Action, Caller, Refusal, may, may_for};
use crate::catalogue::AttributePath;
use crate::index::{self, Index};
use crate::nix::{LocalStore, LocalStoreError};
use crate::requests::Requests;

/// Failure to be retried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failed {
    /// A derivation.
    Derivation(StorePath),
    /// The derivations that give the path with this hash, or the derivation with this hash.
    Hash(StorePathHash),
    /// Derivations with this name, with or without a version, or this attribute of a package set
    /// (`attribute`, `set/attribute`).
    Name(String),
}

/// Outcome for one derivation.
#[derive(Clone, Debug)]
pub struct Retried {
    /// The derivation.
    pub drv: StorePath,
    /// The failures that were forgotten: its own, its cause's, and those of what needs either.
    pub forgotten: Vec<StorePath>,
    /// The number of the request that builds it, or why there is none; nothing where it was only to be
    /// forgotten.
    pub request: Option<Result<u64, String>>,
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum RetryError {
    /// There is no such failure.
    #[error(
        "no failure of {0} is remembered, so the next request tries it anyway; `ondine failures` lists those that are"
    )]
    NotRemembered(String),
    /// The caller may not have it forgotten, or not have it built.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The index failed.
    #[error("the index cannot be read or written")]
    Index(#[from] index::Error),
    /// The store failed.
    #[error("the Nix store cannot be asked")]
    Store(#[from] LocalStoreError),
}

/// Retries; clones share what it needs.
#[derive(Clone)]
pub struct Retry {
    /// Package sets.
    pub index: Index,
    /// The derivations of the Nix store.
    pub local: LocalStore,
    /// Failures that are remembered.
    pub failures: Failures,
    /// Requests that no connection stands for.
    pub requests: Requests,
}

impl Failed {
    /// A store path, its base name, its hash, or else a name; `None` for nothing at all.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let base = text.rsplit('/').next().filter(|base| !base.is_empty())?;
        Some(match StorePath::parse(base) {
            Ok(path) if path.is_derivation() => Self::Derivation(path),
            Ok(path) => Self::Hash(path.hash()),
            Err(_) => match base.parse() {
                Ok(hash) => Self::Hash(hash),
                Err(_) => Self::Name(text.to_owned()),
            },
        })
    }
}

impl Retry {
    /// Forgets the failures of what is named, with their causes and dependants, and unless `forget_only` has
    /// it built at once, in requests of the caller.
    ///
    /// # Errors
    /// Nothing of that name is remembered to have failed, the caller lacks the right to any of it (then
    /// nothing is done), or the index or the store fails.
    pub async fn retry(
        &self,
        what: Failed,
        forget_only: bool,
        caller: &Caller,
    ) -> Result<Vec<Retried>, RetryError> {
        let mut failed = Vec::new();
        for drv in self.named(&what).await? {
            if self.failures.of(&drv).await?.is_some() {
                failed.push(drv);
            }
        }
        if failed.is_empty() {
            may(caller, Action::Cancel)?;
            return Err(RetryError::NotRemembered(what.to_string()));
        }
        for drv in &failed {
            may_for(caller, Action::Cancel, drv.name())?;
            if !forget_only {
                may_for(caller, Action::Build, drv.name())?;
            }
        }
        let mut done = Vec::new();
        for drv in failed {
            let forgotten = self.failures.forget(&drv).await?;
            tracing::info!(%drv, failures = forgotten.len(), "forgot failures on request");
            let request = if forget_only { None } else { Some(self.build(&drv, caller).await) };
            done.push(Retried { drv, forgotten, request });
        }
        Ok(done)
    }

    async fn named(&self, what: &Failed) -> Result<BTreeSet<StorePath>, RetryError> {
        let listed = self.failures.list().await?.into_iter().map(|failure| failure.drv);
        Ok(match what {
            Failed::Derivation(drv) => [drv.clone()].into(),
            Failed::Hash(hash) => {
                let makers = self.index.makers(*hash).await?.into_iter().map(|maker| maker.drv);
                let stored = self.local.derivers_of(*hash).await?;
                listed.filter(|drv| drv.hash() == *hash).chain(makers).chain(stored).collect()
            }
            Failed::Name(name) => {
                let mut named: BTreeSet<StorePath> = listed.filter(|drv| has_name(drv, name)).collect();
                // A slash stands behind the set, or is a part of the attribute.
                let with_set = name.split_once('/').map(|(set, attribute)| (Some(set), attribute));
                for (set, attribute) in with_set.into_iter().chain([(None, &**name)]) {
                    let Some(path) = AttributePath::parse(attribute) else { continue };
                    let rows = self.index.attributes(path.to_string()).await?.into_iter();
                    let rows = rows.filter(|(of, _)| set.is_none_or(|set| set == of));
                    named.extend(rows.filter_map(|(_, row)| row.outcome.ok()));
                }
                named
            }
        })
    }

    /// Number of the request that builds it, which the caller owns to its end.
    async fn build(&self, drv: &StorePath, caller: &Caller) -> Result<u64, String> {
        self.requests.keep(drv, caller).await.map_err(|reason| reason.to_string())
    }
}

/// True when a derivation has this name, with or without its version.
#[must_use]
pub fn has_name(drv: &StorePath, name: &str) -> bool {
    let rest = drv.name().trim_end_matches(".drv").strip_prefix(name);
    let version = |rest: &str| {
        rest.strip_prefix('-').is_some_and(|version| version.starts_with(|c: char| !c.is_ascii_alphabetic()))
    };
    rest.is_some_and(|rest| rest.is_empty() || version(rest))
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Derivation(drv) => drv.fmt(f),
            Self::Hash(hash) => hash.fmt(f),
            Self::Name(name) => name.escape_debug().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "0123456789abcdfghijklmnpqrsvwxyz";

    #[test]
    fn a_failure_is_named_by_its_derivation_its_output_a_hash_or_a_name() {
        let drv = StorePath::parse(&format!("{HASH}-hello-2.12.drv")).expect("a path");
        let hash = Failed::Hash(HASH.parse().expect("a hash"));
        for (text, failed) in [
            (format!("/nix/store/{drv}"), Failed::Derivation(drv.clone())),
            (drv.to_string(), Failed::Derivation(drv.clone())),
            (format!("/nix/store/{HASH}-hello-2.12"), hash.clone()),
            (HASH.to_owned(), hash),
            ("hello".to_owned(), Failed::Name("hello".to_owned())),
            ("set/python3Packages.numpy".to_owned(), Failed::Name("set/python3Packages.numpy".to_owned())),
        ] {
            assert_eq!(Failed::parse(&text), Some(failed), "{text}");
        }
        assert_eq!(Failed::parse(""), None);
        for (name, has) in
            [("hello", true), ("hello-2.12", true), ("hell", false), ("hello-2.1", false), ("2.12", false)]
        {
            assert_eq!(has_name(&drv, name), has, "{name}");
        }
    }
}
