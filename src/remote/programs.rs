//! The Nix of this machine, by its programs: they know the user's settings, and a store that has no daemon.
//! Their options and their output differ between releases; this is the place that knows how.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

/// Options that let the `nix` of every release do what is asked of it here.
const FEATURES: [&str; 2] = ["--extra-experimental-features", "nix-command flakes"];
/// Package that has the programs.
const INSTALL: &str =
    "install Nix (on Debian or Ubuntu: apt-get install nix-bin; elsewhere: https://nixos.org/download)";

/// The reason that a program of Nix gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The program is not there.
    #[error("{program} cannot be started: {source}; {INSTALL}")]
    NotStarted {
        /// Its name.
        program: String,
        /// The system's error.
        source: io::Error,
    },
    /// The program failed.
    #[error("{command} failed: {said}")]
    Failed {
        /// The command line.
        command: String,
        /// Its words.
        said: String,
    },
    /// The output has a form that no known release gives.
    #[error("the output of {command} cannot be parsed: {reason}")]
    Form {
        /// The command line.
        command: String,
        /// The defect.
        reason: String,
    },
}

/// Relation of a user to the Nix daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserTrust {
    /// The settings of this user count.
    Trusted,
    /// The daemon ignores substituters and keys that this user names.
    NotTrusted,
    /// Nix does not say.
    Unknown,
}

impl UserTrust {
    /// True where Nix trusts the user, `None` where it does not say.
    #[must_use]
    pub fn known(self) -> Option<bool> {
        match self {
            Self::Trusted => Some(true),
            Self::NotTrusted => Some(false),
            Self::Unknown => None,
        }
    }
}

/// Where a program's standard error goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Messages {
    /// Into the error, where there is one.
    Kept,
    /// To the user, as they come: evaluations warn and trace.
    Shown,
}

/// Standard output of a program of Nix.
///
/// # Errors
/// The program cannot be started, or fails.
pub async fn output<S: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = S>,
    messages: Messages,
) -> Result<String, ProgramError> {
    let mut command = Command::new(program);
    if program == "nix" {
        command.args(FEATURES);
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    command.stderr(if messages == Messages::Shown { Stdio::inherit() } else { Stdio::piped() });
    let output = command.spawn();
    let output = output.map_err(|source| ProgramError::NotStarted { program: program.to_owned(), source })?;
    let output = output.wait_with_output().await;
    let output = output.map_err(|source| ProgramError::NotStarted { program: program.to_owned(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = anstream::adapter::strip_str(&String::from_utf8_lossy(&output.stderr)).to_string();
    let said = if said.trim().is_empty() { output.status.to_string() } else { said.trim().to_owned() };
    Err(ProgramError::Failed { command: shown(&command), said })
}

/// The command line without its options for features.
fn shown(command: &Command) -> String {
    const WORDS_MAX: usize = 12;
    let command = command.as_std();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> =
        words.map(OsStr::to_string_lossy).filter(|word| !FEATURES.contains(&&**word)).collect();
    let rest = if words.len() > WORDS_MAX { " …" } else { "" };
    format!("{}{rest}", words[..words.len().min(WORDS_MAX)].join(" "))
}

/// Nix's settings as they are in effect for this user.
///
/// # Errors
/// Nix cannot be asked.
pub async fn settings() -> Result<BTreeMap<String, String>, ProgramError> {
    let text = match output("nix", ["config", "show"], Messages::Kept).await {
        Err(ProgramError::Failed { .. }) => output("nix", ["show-config"], Messages::Kept).await?,
        other => other?,
    };
    let lines = text.lines().filter_map(|line| line.split_once('='));
    Ok(lines.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect())
}

/// The relation of this user to the Nix daemon; `settings` are Nix's.
pub async fn trust(settings: &BTreeMap<String, String>) -> UserTrust {
    for words in [&["store", "info", "--json"][..], &["store", "ping", "--json"]] {
        let Ok(text) = output("nix", words, Messages::Kept).await else { continue };
        let info = narinfo::json::from_str::<Value>(&text).unwrap_or_default();
        match info.get("trusted") {
            Some(Value::Bool(true)) => return UserTrust::Trusted,
            Some(Value::Bool(false)) => return UserTrust::NotTrusted,
            Some(Value::Number(number)) => {
                return if number.as_u64() == Some(0) { UserTrust::NotTrusted } else { UserTrust::Trusted };
            }
            _ => {}
        }
    }
    // Nix 2.8 says nothing; its daemon goes by this setting.
    let Some(trusted) = settings.get("trusted-users") else { return UserTrust::Unknown };
    let own = |option| async move {
        let words = output("id", [option, "-n"], Messages::Kept).await.unwrap_or_default();
        words.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let (user, groups) = (own("-u").await, own("-G").await);
    if user.is_empty() {
        return UserTrust::Unknown;
    }
    let is_trusted = trusted.split_whitespace().any(|name| match name.strip_prefix('@') {
        Some(group) => groups.iter().any(|own| own == group),
        None => name == "*" || user.iter().any(|own| own == name),
    });
    if is_trusted { UserTrust::Trusted } else { UserTrust::NotTrusted }
}
