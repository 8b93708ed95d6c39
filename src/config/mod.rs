//! Settings: a TOML file, ONDINE_ variables and flags become the settings of each component. The table
//! defines every setting once; a flag wins over a variable, a variable over the file, the file over the
//! default.

mod builder;
mod catalogue;
mod draft;
mod error;
mod file;
mod flags;
mod machines;
mod oidc;
#[cfg(test)]
pub(crate) mod page;
mod raw;
mod setting;
mod table;
#[cfg(test)]
mod tests;
mod upstream;

use std::path::{Path, PathBuf};

use crate::nix;
use crate::serve::Settings;
use draft::SettingsDraft;
pub use error::Error;
use error::{Problem, nearest};
use raw::{RawContent, RawTable};
pub(crate) use setting::{bytes, lifetime};

/// Settings as they are written: their names are known, nothing of their values.
#[derive(Clone, Debug, Default)]
pub struct RawSettings(RawTable);

/// The same for commands beside a server, whose help names no setting by itself.
#[derive(Clone, Debug, Default)]
pub struct UnlistedSettings(pub RawSettings);

/// The state directory, as a command that talks to a server finds it.
#[derive(Clone, Debug, Default)]
pub struct StateDir(RawSettings);

impl RawSettings {
    /// These settings, and those of `other` where these say nothing.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0.or(other.0))
    }

    /// Fills in the defaults and checks the bounds.
    ///
    /// # Errors
    /// A value is out of bounds, or the environment does not describe a Nix store.
    pub fn resolve(self) -> Result<Settings, Error> {
        let mut draft =
            SettingsDraft::new(self.state_dir()?, nix::Environment::from_env().map_err(Problem::from)?)?;
        setting::apply(table::settings(), &mut draft, &self.0, "")?;
        Ok(draft.finish(&self.0)?)
    }

    fn named_state_dir(&self) -> Option<PathBuf> {
        match self.0.get("state-dir").map(|value| &value.content) {
            Some(RawContent::Text(path)) => Some(path.into()),
            _ => None,
        }
    }

    /// The state directory that these settings name, or the default one.
    fn state_dir(&self) -> Result<PathBuf, Problem> {
        if let Some(path) = self.named_state_dir() {
            return Ok(path);
        }
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        variable("STATE_DIRECTORY")
            .map(PathBuf::from)
            .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".local/state/ondine")))
            .ok_or(Problem::NoStateDir)
    }
}

impl StateDir {
    /// The directory that a flag or a variable names.
    #[must_use]
    pub fn named(&self) -> Option<PathBuf> {
        self.0.named_state_dir()
    }

    /// The directory that is named, or the default one.
    ///
    /// # Errors
    /// Nothing names one.
    pub fn path(self) -> Result<PathBuf, Error> {
        Ok(self.0.state_dir()?)
    }
}

/// Variables that look like settings and are none, each with the nearest that is one. They are reported, not
/// refused: systems such as Kubernetes set variables that begin with the name of a service.
#[must_use]
pub fn unknown_variables() -> Vec<(String, String)> {
    let mut known: Vec<String> = table::settings().map(|setting| flags::variable(setting.name)).collect();
    known.extend(
        ["ONDINE_CONFIG", "ONDINE_LOG", "ONDINE_SERVER", "ONDINE_TOKEN", "ONDINE_TOKEN_FILE"]
            .map(str::to_owned),
    );
    let written = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let unknown = written.filter(|name| name.starts_with("ONDINE_") && !known.contains(name));
    unknown.map(|name| (name.clone(), nearest(&name, known.iter().map(String::as_str)))).collect()
}
