//! Nix's setting `builders`: remote machines, one a line or between semicolons, each as
//! `uri systems key jobs speed features mandatory-features host-key`, or `@file` with more of them.
//! What this cannot read is an error, never a machine that is silently missing.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::capabilities::Machine;

/// Bytes of a file of remote builders at most.
const MACHINES_BYTES_MAX: u64 = 1024 * 1024;
/// Depth of files that name files.
const DEPTH_MAX: u32 = 8;
/// Machines at most: a file that names itself twice would double them at each depth.
const MACHINES_MAX: usize = 10_000;

/// A machine of Nix's setting `builders`.
#[derive(Clone, Debug, PartialEq)]
pub struct BuilderLine {
    /// Address, such as `ssh-ng://user@host`.
    pub uri: String,
    /// Systems and features.
    pub machine: Machine,
    /// Private key.
    pub key_file: Option<String>,
    /// Builds at a time.
    pub slots: usize,
    /// Speed in comparison with others.
    pub speed: f64,
    /// Public key of the host, as Nix has it: a line of a known-hosts file without the host, in base64.
    pub host_key: Option<String>,
}

/// The machines of `builders`, without those that do no builds. Files are read as Nix reads them.
///
/// # Errors
/// If a file cannot be read, a number is none, files name files without end, or there are very many machines.
pub fn read_machines(builders: &str, default_system: &str) -> io::Result<Vec<BuilderLine>> {
    lines(builders, default_system, &read_bounded)
}

/// Systems and features of those machines. `read` reads a file that is named there. One without a system has
/// `default_system`; a file that does not exist names nobody, as Nix has it.
pub(super) fn machines(
    builders: &str,
    default_system: &str,
    read: &impl Fn(&Path) -> io::Result<String>,
) -> io::Result<Vec<Machine>> {
    Ok(lines(builders, default_system, read)?.into_iter().map(|line| line.machine).collect())
}

/// Reads a file of remote builders.
pub(super) fn read_bounded(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(file)?.take(MACHINES_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MACHINES_BYTES_MAX {
        return Err(io::Error::other(format!("it has more than {MACHINES_BYTES_MAX} bytes")));
    }
    Ok(text)
}

fn lines(
    builders: &str,
    default_system: &str,
    read: &impl Fn(&Path) -> io::Result<String>,
) -> io::Result<Vec<BuilderLine>> {
    let mut found = Vec::new();
    add(&mut found, builders, default_system, read, DEPTH_MAX)?;
    Ok(found)
}

fn add(
    found: &mut Vec<BuilderLine>,
    builders: &str,
    default_system: &str,
    read: &impl Fn(&Path) -> io::Result<String>,
    depth: u32,
) -> io::Result<()> {
    let without_comment = |line: &str| line.split('#').next().unwrap_or_default().to_owned();
    for line in builders.lines().map(without_comment) {
        for entry in line.split(';').map(str::trim).filter(|entry| !entry.is_empty()) {
            if let Some(file) = entry.strip_prefix('@') {
                if depth == 0 {
                    return Err(io::Error::other(format!("{file}: files of builders name each other")));
                }
                match read(Path::new(file.trim())) {
                    Ok(text) => add(found, &text, default_system, read, depth - 1)?,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(io::Error::new(error.kind(), format!("{file}: {error}"))),
                }
            } else {
                found.extend(builder(entry, default_system)?);
            }
            if found.len() > MACHINES_MAX {
                return Err(io::Error::other(format!("more than {MACHINES_MAX} builders")));
            }
        }
    }
    Ok(())
}

/// `None` for a machine that is told to do no builds.
fn builder(entry: &str, default_system: &str) -> io::Result<Option<BuilderLine>> {
    let fields: Vec<&str> = entry.split_whitespace().collect();
    let field = |number: usize| fields.get(number).copied().filter(|field| *field != "-");
    let names = |number| -> BTreeSet<String> {
        let listed = field(number).into_iter().flat_map(|list| list.split(','));
        listed.filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    let no_number = |what: &str, text: &str| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{entry:?}: {text:?} is no {what}"))
    };
    let slots = field(3).unwrap_or("1");
    let slots: usize = slots.parse().map_err(|_| no_number("number of builds at a time", slots))?;
    if slots == 0 {
        return Ok(None);
    }
    let speed = field(4).unwrap_or("1");
    let speed = speed.parse::<f64>().ok().filter(|speed| speed.is_finite() && *speed > 0.0);
    let speed = speed.ok_or_else(|| no_number("speed", field(4).unwrap_or_default()))?;
    let systems = if field(1).is_some() { names(1) } else { BTreeSet::from([default_system.to_owned()]) };
    Ok(Some(BuilderLine {
        uri: fields.first().copied().unwrap_or_default().to_owned(),
        machine: Machine { systems, features: names(5), mandatory: names(6) },
        key_file: field(2).map(str::to_owned),
        slots,
        speed,
        host_key: field(7).map(str::to_owned),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The machines as text; `/more`, `/loop` and `/secret` are files.
    fn parse(builders: &str) -> io::Result<Vec<String>> {
        let read = |file: &Path| match file.to_str() {
            Some("/more") => Ok("# ours\nssh://d d-linux # the last\n\n@/none\n".to_owned()),
            Some("/loop") => Ok("@/loop\n".to_owned()),
            Some("/secret") => Err(io::ErrorKind::PermissionDenied.into()),
            _ => Err(io::ErrorKind::NotFound.into()),
        };
        let words = |set: &BTreeSet<String>| set.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        let machines = machines(builders, "own-linux", &read)?;
        let line = |m: &Machine| {
            format!("{} {} {}", words(&m.systems), words(&m.features), words(&m.mandatory))
                .trim_end()
                .to_owned()
        };
        Ok(machines.iter().map(line).collect())
    }

    #[test]
    fn machines_are_lines_or_stand_between_semicolons() {
        for (builders, expected) in [
            ("", &[][..]),
            ("ssh://a", &["own-linux"]),
            (
                "ssh://a a-linux,b-linux ; nix@b c-linux\nssh://c",
                &["a-linux,b-linux", "c-linux", "own-linux"],
            ),
            ("ssh://a - /key 8 1 kvm,big benchmark c3NoLWVk", &["own-linux big,kvm benchmark"]),
            ("ssh://a a-linux - - - - benchmark", &["a-linux  benchmark"]),
            (" \n;; # ssh://a\n", &[]),
            ("ssh://a a-linux - 0", &[]),
        ] {
            assert_eq!(parse(builders).expect("readable"), expected, "{builders:?}");
        }
    }

    #[test]
    fn a_file_has_more_machines_and_one_that_is_not_there_has_none() {
        assert_eq!(parse("ssh://a ; @/more").expect("readable"), ["own-linux", "d-linux"]);
        assert!(parse("@/etc/nix/machines").expect("readable").is_empty());
    }

    #[test]
    fn a_file_that_cannot_be_read_or_never_ends_is_an_error() {
        let secret = parse("ssh://a\n@/secret").expect_err("not readable");
        assert_eq!(secret.kind(), io::ErrorKind::PermissionDenied);
        assert!(secret.to_string().contains("/secret"), "{secret}");
        assert!(parse("@/loop").is_err());
    }
}
