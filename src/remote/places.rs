//! Places of a user's files.

use std::env;
use std::path::{Path, PathBuf};

use crate::nix::netrc_file;

/// The file with the server, in the directory of settings.
const FILE: &str = "ondine/config.toml";

/// Directory of a user's settings.
fn config_home() -> Option<PathBuf> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")))
}

/// The directory of a user's nix.conf.
#[must_use]
pub fn nix_conf_dir_of_user() -> Option<PathBuf> {
    config_home().map(|home| home.join("nix"))
}

/// The user's file with the server and a token.
#[must_use]
pub fn user_file() -> Option<PathBuf> {
    config_home().map(|home| home.join(FILE))
}

/// The same for all users of this machine, `/etc/ondine/config.toml`: beside the folder of Nix's settings.
#[must_use]
pub fn system_file() -> PathBuf {
    let nix = netrc_file();
    let etc = nix.parent().and_then(Path::parent).unwrap_or(Path::new("/etc"));
    etc.join(FILE)
}

/// The user's file, for messages.
pub(super) fn shown_file() -> String {
    user_file().map_or_else(|| format!("~/.config/{FILE}"), |file| file.display().to_string())
}
