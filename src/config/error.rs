//! Reasons why settings cannot be used. Each names the file and line, the flag or the variable, and what
//! would be accepted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

use crate::nix;

/// Settings that cannot be used. The text is for who wrote them.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(#[from] pub(super) Problem);

#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("cannot read {}", file.display())]
    Read { file: PathBuf, source: io::Error },
    /// The file is no TOML.
    #[error("{}", file.display())]
    Toml { file: PathBuf, source: Box<toml::de::Error> },
    #[error("{location}there is no setting \"{key}\"{within}; did you mean \"{nearest}\"?")]
    Unknown { location: Location, key: String, within: &'static str, nearest: String },
    /// Once with dashes and once with underscores.
    #[error("{location}{key} is set a second time; remove one of the two")]
    Twice { location: Location, key: String },
    #[error("{location}{name} is missing{within}")]
    Missing { location: Location, name: &'static str, within: &'static str },
    #[error("{location}there may be several, so write [[{name}]] with two brackets each")]
    SingleTable { location: Location, name: &'static str },
    /// A value has the wrong type, is out of bounds, or does not go with another one.
    #[error("{location}{name} = {value}{within}: {reason}")]
    Value { location: Location, name: &'static str, value: String, within: &'static str, reason: String },
    #[error("no state directory is set; use --state-dir, $STATE_DIRECTORY or $HOME")]
    NoStateDir,
    #[error("the Nix variables of the environment cannot be used")]
    Nix(#[from] nix::EnvironmentError),
}

/// Origin of a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Location {
    #[default]
    Default,
    /// A flag of this name.
    Flag(&'static str),
    /// A variable of this name.
    Variable(String),
    File {
        file: Arc<Path>,
        /// Counted from 1.
        line: usize,
    },
}

/// Opens an error message: the file with its line, the flag or the variable.
impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => Ok(()),
            Self::Flag(name) => write!(formatter, "--{name}: "),
            Self::Variable(name) => write!(formatter, "{name}: "),
            Self::File { file, line } => write!(formatter, "{}:{line}: ", file.display()),
        }
    }
}

/// The known name that is most like `name`, for "did you mean".
pub(super) fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> String {
    crate::nearest::nearest(name, known).unwrap_or_default().to_owned()
}
