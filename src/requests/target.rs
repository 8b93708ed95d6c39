//! Items of a request as they are written: derivations with outputs, hashes, attributes of package sets.

use narinfo::{StoreDir, StorePath, StorePathHash};

use crate::catalogue::{Selection, SetName};
use crate::escape::{Line, in_one_line};

/// Characters of a malformed item that its error repeats.
const REPEATED_CHARS_MAX: usize = 200;

/// One item of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestTarget {
    /// Outputs of a derivation.
    Derivation {
        /// The derivation.
        drv: StorePath,
        /// Its wanted outputs.
        outputs: OutputChoice,
    },
    /// The path with this hash.
    Hash(StorePathHash),
    /// An attribute of a package set.
    Attribute {
        /// The set.
        set: SetName,
        /// The attribute, and the output of it that is named.
        selection: Selection,
        /// The system that is named.
        system: Option<String>,
    },
}

/// Outputs of a derivation that are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputChoice {
    /// Every one.
    All,
    /// Those of these names.
    Named(Vec<String>),
}

/// An item that has no form of one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// No derivation.
    #[error(
        "{} is no derivation: expected <hash>-<name>.drv or its path in {store_dir}, with ^<outputs> where wanted",
        shown(.text)
    )]
    Derivation {
        /// The text.
        text: String,
        /// The store of the server.
        store_dir: StoreDir,
    },
    /// No hash.
    #[error(
        "{} is no hash of a store path: expected its 32 characters, digits and lower-case letters without e, o, t and u",
        shown(.0)
    )]
    Hash(String),
    /// No attribute of a set.
    #[error("{} is no attribute of a package set: expected a set and an attribute as Nix writes it", shown(.0))]
    Attribute(String),
}

fn shown(text: &str) -> String {
    Line(in_one_line(text, REPEATED_CHARS_MAX)).to_string()
}

impl RequestTarget {
    /// A derivation as `<hash>-<name>.drv` or its path in the store, perhaps with `^` and outputs.
    ///
    /// # Errors
    /// The text is no derivation.
    pub fn derivation(store_dir: &StoreDir, text: &str) -> Result<Self, TargetError> {
        let malformed = || TargetError::Derivation { text: text.to_owned(), store_dir: store_dir.clone() };
        let (path, outputs) = match text.split_once(['^', '!']) {
            None | Some((_, "*")) => (text.split(['^', '!']).next().unwrap_or(text), OutputChoice::All),
            Some((path, names)) => {
                let names: Vec<String> = names.split(',').map(str::to_owned).collect();
                if names.iter().any(String::is_empty) {
                    return Err(malformed());
                }
                (path, OutputChoice::Named(names))
            }
        };
        let drv = StorePath::parse_either(store_dir, path).map_err(|_| malformed())?;
        if drv.is_derivation() { Ok(Self::Derivation { drv, outputs }) } else { Err(malformed()) }
    }

    /// The hash of a store path.
    ///
    /// # Errors
    /// The text is no hash.
    pub fn hash(text: &str) -> Result<Self, TargetError> {
        text.parse().map(Self::Hash).map_err(|_| TargetError::Hash(text.to_owned()))
    }

    /// An attribute of a set, perhaps with `^` and an output.
    ///
    /// # Errors
    /// The text is no attribute.
    pub fn attribute(set: &str, attribute: &str, system: Option<String>) -> Result<Self, TargetError> {
        let malformed = || TargetError::Attribute(format!("{set}/{attribute}"));
        let set = SetName::new(set).ok_or_else(malformed)?;
        let selection = Selection::parse(attribute).ok_or_else(malformed)?;
        Ok(Self::Attribute { set, selection, system })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRV: &str = "0123456789abcdfghijklmnpqrsvwxyz-a-1.drv";

    #[test]
    fn a_derivation_is_named_with_or_without_its_store_and_its_outputs() {
        let store_dir = StoreDir::new("/s/store").expect("a store");
        let drv = StorePath::parse(DRV).expect("a path");
        let named =
            |names: &[&str]| OutputChoice::Named(names.iter().map(|name| (*name).to_owned()).collect());
        for (text, outputs) in [
            (DRV.to_owned(), OutputChoice::All),
            (format!("/s/store/{DRV}"), OutputChoice::All),
            (format!("{DRV}^*"), OutputChoice::All),
            (format!("/s/store/{DRV}^out,dev"), named(&["out", "dev"])),
            (format!("{DRV}!dev"), named(&["dev"])),
        ] {
            let expected = Ok(RequestTarget::Derivation { drv: drv.clone(), outputs });
            assert_eq!(RequestTarget::derivation(&store_dir, &text), expected, "{text}");
        }
        for text in [
            "",
            "a.drv",
            &DRV[..36],
            &format!("/other/store/{DRV}"),
            &format!("{DRV}^"),
            &format!("{DRV}^out,,dev"),
            &format!("/s/store/{DRV}/x"),
        ] {
            let error = RequestTarget::derivation(&store_dir, text).expect_err(text).to_string();
            assert!(error.contains("/s/store") && error.contains(text), "{error}");
        }
    }
}
