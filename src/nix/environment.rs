//! Where Nix keeps things on this machine, as Nix's own environment variables say.
//! Reads variables, touches no file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use narinfo::StoreDir;

/// Why the environment cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// NIX_STORE_DIR is no store directory.
    #[error(
        "NIX_STORE_DIR is {value:?}, which is no store directory; unset it, or set an absolute path ({reason})"
    )]
    StoreDir {
        /// Its value.
        value: OsString,
        /// The defect.
        reason: String,
    },
    /// Another variable has a relative path.
    #[error("{variable} is {value:?}; an absolute path is needed: unset it, or set one")]
    Relative {
        /// Which one.
        variable: &'static str,
        /// Its value.
        value: OsString,
    },
}

/// The places of one Nix installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// The store directory, `/nix/store` nearly everywhere.
    pub store_dir: StoreDir,
    /// Nix's state directory, which has the database.
    pub state_dir: PathBuf,
    /// Nix's log directory, which has the logs of builds.
    pub log_dir: PathBuf,
    /// The daemon's socket.
    pub socket: PathBuf,
}

/// Place of the netrc file that Nix reads unless its settings name another.
#[must_use]
pub fn netrc_file() -> PathBuf {
    let folder = std::env::var_os("NIX_CONF_DIR").filter(|folder| !folder.is_empty());
    folder.map_or_else(|| PathBuf::from("/etc/nix"), PathBuf::from).join("netrc")
}

impl Environment {
    /// Reads NIX_STORE_DIR, NIX_STATE_DIR, NIX_LOG_DIR and NIX_DAEMON_SOCKET_PATH, each with Nix's default.
    /// An empty variable counts as unset.
    ///
    /// # Errors
    /// If one of them is not an absolute path.
    pub fn from_env() -> Result<Self, EnvironmentError> {
        Self::from_variables(std::env::var_os)
    }

    fn from_variables(get: impl Fn(&'static str) -> Option<OsString>) -> Result<Self, EnvironmentError> {
        let set = |name| get(name).filter(|value| !value.is_empty());
        let absolute = |variable, default: PathBuf| match set(variable) {
            Some(value) if Path::new(&value).is_absolute() => Ok(PathBuf::from(value)),
            Some(value) => Err(EnvironmentError::Relative { variable, value }),
            None => Ok(default),
        };
        let store_dir = match set("NIX_STORE_DIR") {
            Some(value) => {
                let parsed = match value.to_str() {
                    Some(text) => StoreDir::new(text).map_err(|error| error.to_string()),
                    None => Err("it is not UTF-8".into()),
                };
                parsed.map_err(|reason| EnvironmentError::StoreDir { value, reason })?
            }
            None => StoreDir::default(),
        };
        let state_dir = absolute("NIX_STATE_DIR", PathBuf::from("/nix/var/nix"))?;
        let socket = absolute("NIX_DAEMON_SOCKET_PATH", state_dir.join("daemon-socket/socket"))?;
        let log_dir = absolute("NIX_LOG_DIR", PathBuf::from("/nix/var/log/nix"))?;
        Ok(Self { store_dir, state_dir, log_dir, socket })
    }

    /// Nix's database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.state_dir.join("db/db.sqlite")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<Environment, EnvironmentError> {
        Environment::from_variables(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn unset_and_empty_variables_give_the_defaults_of_nix() {
        for variables in
            [&[][..], &[("NIX_STORE_DIR", ""), ("NIX_STATE_DIR", ""), ("NIX_DAEMON_SOCKET_PATH", "")]]
        {
            let environment = from(variables).expect("the defaults");
            assert_eq!(environment.store_dir.as_str(), "/nix/store");
            assert_eq!(environment.database(), Path::new("/nix/var/nix/db/db.sqlite"));
            assert_eq!(environment.socket, Path::new("/nix/var/nix/daemon-socket/socket"));
        }
    }

    #[test]
    fn the_socket_follows_the_state_directory_unless_it_is_set() {
        let environment = from(&[("NIX_STATE_DIR", "/s")]).expect("absolute");
        assert_eq!(environment.socket, Path::new("/s/daemon-socket/socket"));
        let environment =
            from(&[("NIX_STATE_DIR", "/s"), ("NIX_DAEMON_SOCKET_PATH", "/d")]).expect("absolute");
        assert_eq!(environment.socket, Path::new("/d"));
    }

    #[test]
    fn relative_paths_are_refused_by_name() {
        for variable in ["NIX_STORE_DIR", "NIX_STATE_DIR", "NIX_LOG_DIR", "NIX_DAEMON_SOCKET_PATH"] {
            let error = from(&[(variable, "nix/x")]).expect_err("relative");
            assert!(error.to_string().contains(variable), "{error}");
        }
    }
}
