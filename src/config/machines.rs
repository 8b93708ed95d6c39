//! Builders in the syntax of Nix's own setting.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use narinfo::StoreDir;

use crate::build::{BuilderSettings, LOCAL, WEIGHT};
use crate::nix::{self, BuilderLine, SshMachine, SshTarget};

/// Time limit of an operation of a builder's daemon that is no build.
pub(super) const OPERATION_TIMEOUT: Duration = Duration::from_secs(60);
/// Program that speaks Nix's protocol on a builder.
pub(super) const REMOTE_PROGRAM: &str = "nix-daemon";

/// Adds the machines of a text to the builders there are. Each is called after its host, with a number where
/// there are several.
///
/// # Errors
/// With the reason, when a file cannot be read or a machine cannot be reached by ssh.
pub(super) fn add_machines(
    builders: &mut Vec<BuilderSettings>,
    machines: &str,
    store_dir: &StoreDir,
) -> Result<(), String> {
    let lines = nix::read_machines(machines, &nix::own_system()).map_err(|error| error.to_string())?;
    for line in lines {
        let mut builder = of_line(&line, store_dir).map_err(|reason| format!("{}: {reason}", line.uri))?;
        let host = builder.name.clone();
        let mut number = 2;
        let is_taken = |name: &str| name == LOCAL || builders.iter().any(|other| other.name == name);
        while is_taken(&builder.name) {
            builder.name = format!("{host}-{number}");
            number += 1;
        }
        builders.push(builder);
    }
    Ok(())
}

fn of_line(line: &BuilderLine, store_dir: &StoreDir) -> Result<BuilderSettings, String> {
    let (scheme, rest) = line.uri.split_once("://").unwrap_or(("ssh", &line.uri));
    if !matches!(scheme, "ssh" | "ssh-ng") {
        return Err("a builder is reached by ssh: expected [ssh-ng://][USER@]HOST".to_owned());
    }
    let (target, query) = rest.split_once('?').unwrap_or((rest, ""));
    let parameter = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
    };
    let target: SshTarget =
        target.trim_end_matches('/').parse().map_err(|error: nix::SshTargetError| error.to_string())?;
    let host_key = line.host_key.as_ref().map(|key| {
        let decoded = STANDARD.decode(key).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let decoded = decoded.filter(|key| key.trim().lines().count() == 1);
        decoded.map(|key| key.trim().to_owned()).ok_or("its last field is no public key of a host in base64")
    });
    Ok(BuilderSettings {
        name: host_of(&target),
        ssh: SshMachine {
            target,
            key_file: line.key_file.clone().or_else(|| parameter("ssh-key")).map(PathBuf::from),
            known_hosts: None,
            remote_program: parameter("remote-program").unwrap_or_else(|| REMOTE_PROGRAM.to_owned()),
            store_dir: store_dir.clone(),
            operation_timeout: OPERATION_TIMEOUT,
        },
        host_key: host_key.transpose()?,
        machine: line.machine.clone(),
        slots: NonZeroUsize::new(line.slots).unwrap_or(NonZeroUsize::MIN),
        speed: line.speed,
        weight: WEIGHT,
        silent_max: None,
        cache_url: None,
    })
}

/// The host as a name.
pub(super) fn host_of(target: &SshTarget) -> String {
    target.host().replace([':', '%'], "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_in_the_syntax_of_nix_are_builders() {
        let key = STANDARD.encode("ssh-ed25519 AAAA host");
        let text = format!(
            "ssh-ng://nix@a a-linux,b-linux /key 4 2 kvm big {key}; b?remote-program=/opt/nix-daemon\nssh://a:22"
        );
        let mut builders = Vec::new();
        add_machines(&mut builders, &text, &StoreDir::default()).expect("machines");
        let names: Vec<_> = builders.iter().map(|builder| builder.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "a-2"]);
        let first = &builders[0];
        assert_eq!((first.slots.get(), first.speed, first.machine.systems.len()), (4, 2.0, 2));
        assert_eq!(first.host_key.as_deref(), Some("ssh-ed25519 AAAA host"));
        assert_eq!(first.ssh.key_file, Some(PathBuf::from("/key")));
        assert_eq!(builders[1].ssh.remote_program, "/opt/nix-daemon");
        assert_eq!(builders[2].ssh.target.to_string(), "a:22");
        add_machines(&mut builders, "ssh://local", &StoreDir::default()).expect("a machine");
        assert_eq!(builders[3].name, "local-2", "the local daemon has that name");
        for bad in ["unix:///socket", "ssh://-o", "ssh://a - - x", "ssh://a - - 1 0", "ssh://a - - 1 1 - - %"]
        {
            assert!(add_machines(&mut builders, bad, &StoreDir::default()).is_err(), "{bad}");
        }
    }
}
