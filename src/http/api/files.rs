//! The JSON types of files within store paths.

use schemars::JsonSchema;
use serde::Serialize;

/// A directory of a store path.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DirectoryListing {
    /// Base name of the store path, and the path below it.
    pub path: String,
    /// Its entries in the order of their names, ten thousand at most.
    pub entries: Vec<DirectoryEntry>,
    /// Address of the listing of the whole store path.
    pub listing: String,
}

/// An entry of a directory.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DirectoryEntry {
    /// Its name.
    pub name: String,
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: DirectoryEntryType,
    /// Bytes of a regular file.
    pub size: Option<u64>,
    /// True for a regular file that may be executed.
    pub executable: bool,
    /// Target of a symlink.
    pub target: Option<String>,
}

/// Kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DirectoryEntryType {
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
    /// A symlink, which is not followed here.
    Symlink,
}

/// A program, and the packages that have one of its name.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ProgramDetails {
    /// Its name.
    pub program: String,
    /// The packages, in the order in which `/bin/<program>` tries them.
    pub packages: Vec<ProgramPackage>,
    /// The nearest name, where no package has one of this.
    pub similar: Option<String>,
}

/// A package that has a program.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ProgramPackage {
    /// The package set.
    pub set: String,
    /// The attribute.
    pub attribute: String,
    /// The system.
    pub system: String,
    /// Base name of the output's path.
    pub path: String,
    /// True if that is served; otherwise it is built on the first request.
    pub served: bool,
    /// True if the program was seen in the output; otherwise a name or a description says so.
    pub is_certain: bool,
    /// True if it is linked statically, as its set says.
    pub is_static: bool,
}
