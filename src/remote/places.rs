//! Places of a user's files.

use std::env;
use std::path::PathBuf;

/// The user's file, in the directory of their settings.
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

/// The same, for messages.
pub(super) fn shown_file() -> String {
    user_file().map_or_else(|| format!("~/.config/{FILE}"), |file| file.display().to_string())
}
