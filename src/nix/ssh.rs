//! Daemons of other machines: the system's ssh runs `nix-daemon --stdio` there, and the worker protocol goes
//! over its standard input and output. Must never ask anybody for a password, nor share a connection.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use narinfo::StoreDir;
use tokio::net::UnixStream;
use tokio::process::Command;

use super::connection::Daemon;
use super::error::DaemonError;
use super::handshake::Handshake;
use super::ssh_process::SshProcess;

/// Time limit of a connection with its handshake.
pub const SSH_TIMEOUT: Duration = Duration::from_secs(30);
/// Time that ssh may take to connect.
const CONNECT_SECONDS: u32 = 10;
/// A machine that has answered nothing for so many intervals is lost.
const ALIVE_INTERVAL_SECONDS: u32 = 5;
const ALIVE_COUNT_MAX: u32 = 3;

/// Login on another machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshTarget {
    user: Option<String>,
    host: String,
    port: Option<u16>,
}

/// Why a text names no machine.
#[derive(Debug, thiserror::Error)]
#[error("expected [USER@]HOST[:PORT]")]
pub struct SshTargetError;

impl FromStr for SshTarget {
    type Err = SshTargetError;

    fn from_str(text: &str) -> Result<Self, SshTargetError> {
        let (user, rest) = match text.rsplit_once('@') {
            Some((user, rest)) => (Some(user.to_owned()), rest),
            None => (None, text),
        };
        // An IPv6 address stands in brackets where a port follows it.
        let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or(SshTargetError)?)),
            None => match rest.split_once(':') {
                Some((host, port)) if !port.contains(':') => (host, Some(port)),
                _ => (rest, None),
            },
        };
        let port = port.map(str::parse).transpose().map_err(|_| SshTargetError)?;
        // Neither may be taken for an option, nor reach into a shell.
        let is_word = |text: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-:%".contains(c);
            !text.is_empty() && !text.starts_with('-') && text.chars().all(plain)
        };
        if !is_word(host) || user.as_deref().is_some_and(|user| !is_word(user)) || port == Some(0) {
            return Err(SshTargetError);
        }
        Ok(Self { user, host: host.to_owned(), port })
    }
}

impl SshTarget {
    /// The host's name or address.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl fmt::Display for SshTarget {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(out, "{user}@")?;
        }
        match (self.port, self.host.contains(':')) {
            (Some(port), true) => write!(out, "[{}]:{port}", self.host),
            (Some(port), false) => write!(out, "{}:{port}", self.host),
            (None, _) => out.write_str(&self.host),
        }
    }
}

/// Nix daemon of another machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshMachine {
    /// Login.
    pub target: SshTarget,
    /// Private key; `None` leaves it to ssh's configuration and agent.
    pub key_file: Option<PathBuf>,
    /// Keys that hosts may have; `None` leaves it to ssh's configuration.
    pub known_hosts: Option<PathBuf>,
    /// Program that speaks the worker protocol there.
    pub remote_program: String,
    /// The store directory, which is the same on all machines.
    pub store_dir: StoreDir,
    /// Time limit of an operation other than a build.
    pub operation_timeout: Duration,
}

impl SshMachine {
    /// Connects, and greets the daemon there.
    ///
    /// # Errors
    /// Ssh cannot be started or does not get through, in its own words, or what answers is no Nix daemon
    /// of a known protocol.
    pub(super) async fn connect(&self) -> Result<Daemon, DaemonError> {
        let (stream, mut process) = self.start()?;
        let handshake = Handshake::over(stream, self.store_dir.clone(), SSH_TIMEOUT);
        match handshake.perform().await {
            Ok(daemon) => Ok(daemon.over_ssh(process, self.operation_timeout)),
            Err(error) => Err(process.explained(error).await),
        }
    }

    /// The command by which a person tries the same login in a shell.
    #[must_use]
    pub fn login_command(&self) -> String {
        let quoted = |text: String| format!("'{}'", text.replace('\'', "'\\''"));
        let mut words = vec!["ssh".to_owned()];
        if let Some(file) = &self.key_file {
            words.extend(["-i".to_owned(), quoted(file.display().to_string())]);
        }
        if let Some(file) = &self.known_hosts {
            words.extend(["-o".to_owned(), quoted(format!("UserKnownHostsFile=\"{}\"", file.display()))]);
        }
        let SshTarget { user, host, port } = &self.target;
        words.extend(port.iter().flat_map(|port| ["-p".to_owned(), port.to_string()]));
        words.extend(user.iter().flat_map(|user| ["-l".to_owned(), user.clone()]));
        words.extend([host.clone(), quoted(format!("{} --version", self.remote_program))]);
        words.join(" ")
    }

    fn start(&self) -> Result<(UnixStream, SshProcess), DaemonError> {
        let spawned = || {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            let (input, output) = (OwnedFd::from(theirs.try_clone()?), OwnedFd::from(theirs));
            let mut command = Command::new("ssh");
            command.args(self.arguments()).stdin(input).stdout(output).stderr(Stdio::piped());
            // Signals of a terminal are for the server, which ends it.
            command.kill_on_drop(true).process_group(0);
            Ok((UnixStream::from_std(ours)?, SshProcess::new(command.spawn()?)))
        };
        spawned().map_err(|error: std::io::Error| DaemonError::Ssh {
            words: format!("ssh cannot be started ({error}); install OpenSSH's client, and have it on PATH"),
        })
    }

    fn arguments(&self) -> Vec<String> {
        let mut options = vec![
            "BatchMode=yes".to_owned(),
            "ControlMaster=no".to_owned(),
            "ControlPath=none".to_owned(),
            format!("ConnectTimeout={CONNECT_SECONDS}"),
            format!("ServerAliveInterval={ALIVE_INTERVAL_SECONDS}"),
            format!("ServerAliveCountMax={ALIVE_COUNT_MAX}"),
        ];
        if self.key_file.is_some() {
            options.push("IdentitiesOnly=yes".to_owned());
        }
        if let Some(file) = &self.known_hosts {
            options.push(format!("UserKnownHostsFile=\"{}\"", file.display()));
            options.push("StrictHostKeyChecking=yes".to_owned());
        }
        let mut arguments = vec!["-T".to_owned()];
        arguments.extend(options.into_iter().flat_map(|option| ["-o".to_owned(), option]));
        if let Some(file) = &self.key_file {
            arguments.extend(["-i".to_owned(), file.display().to_string()]);
        }
        let SshTarget { user, host, port } = &self.target;
        arguments.extend(port.iter().flat_map(|port| ["-p".to_owned(), port.to_string()]));
        arguments.extend(user.iter().flat_map(|user| ["-l".to_owned(), user.clone()]));
        arguments.extend(["--".to_owned(), host.clone(), format!("{} --stdio", self.remote_program)]);
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_named_by_user_host_and_port() {
        for text in ["host", "user@host", "user@host:2222", "10.0.0.1:22", "::1", "nix@[fe80::1%eth0]:22"] {
            assert_eq!(text.parse::<SshTarget>().expect("a machine").to_string(), text);
        }
        assert_eq!("[::1]".parse::<SshTarget>().expect("a machine").to_string(), "::1");
        for text in ["", "@host", "user@", "-oProxyCommand=x", "a b", "host:0", "host:x", "$(x)", "-u@host"] {
            assert!(text.parse::<SshTarget>().is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_of_a_machine_is_taken_for_an_option() {
        let machine = SshMachine {
            target: "nix@host:2222".parse().expect("a machine"),
            key_file: Some("/etc/key".into()),
            known_hosts: Some("/etc/known hosts".into()),
            remote_program: "nix-daemon".to_owned(),
            store_dir: StoreDir::default(),
            operation_timeout: SSH_TIMEOUT,
        };
        let arguments = machine.arguments();
        let at = arguments.iter().position(|word| word == "--").expect("the end of the options");
        assert_eq!(arguments[at + 1..], ["host", "nix-daemon --stdio"]);
        let said = |word: &str| arguments[..at].iter().any(|argument| argument == word);
        assert!(said("BatchMode=yes") && said("IdentitiesOnly=yes") && said("-p") && said("2222"));
        assert!(said("UserKnownHostsFile=\"/etc/known hosts\""));
        let words = "ssh -i '/etc/key' -o 'UserKnownHostsFile=\"/etc/known hosts\"' -p 2222 -l nix host 'nix-daemon --version'";
        assert_eq!(machine.login_command(), words);
    }
}
