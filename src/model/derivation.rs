//! A resolved derivation as it is sent and kept: texts alone, which are checked where it is used.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A derivation with the paths that it is built from, instead of the derivations which make these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DerivationText {
    /// Its base name, `<hash>-<name>.drv`.
    pub derivation: String,
    /// Base names of its output paths by the names of outputs.
    pub outputs: BTreeMap<String, String>,
    /// Base names of the paths that it is built from.
    pub inputs: BTreeSet<String>,
    /// The system that builds it, such as `x86_64-linux`.
    pub system: String,
    /// The program that is run.
    pub builder: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its variables.
    pub environment: BTreeMap<String, String>,
}
