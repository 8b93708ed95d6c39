//! Nix's setting `builders`: remote machines, one a line or between semicolons, each as
//! `uri systems key jobs speed features mandatory-features host-key`, or `@file` with more of them.
//! What this cannot read is an error, never a machine that is silently missing.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::capabilities::Machine;

/// Depth of files that name files.
const DEPTH_MAX: u32 = 8;
/// Machines at most: a file that names itself twice would double them at each depth.
const MACHINES_MAX: usize = 10_000;

/// The machines of `builders`, without those that do no builds. `read` reads a file that is named there. One
/// without a system has `default_system`; a file that does not exist names nobody, as Nix has it.
///
/// # Errors
/// If a file cannot be read, files name files without end, or there are very many machines.
pub(super) fn machines(
    builders: &str,
    default_system: &str,
    read: &impl Fn(&Path) -> io::Result<String>,
) -> io::Result<Vec<Machine>> {
    let mut found = Vec::new();
    add(&mut found, builders, default_system, read, DEPTH_MAX)?;
    Ok(found)
}

fn add(
    found: &mut Vec<Machine>,
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
                found.extend(machine(entry, default_system));
            }
            if found.len() > MACHINES_MAX {
                return Err(io::Error::other(format!("more than {MACHINES_MAX} builders")));
            }
        }
    }
    Ok(())
}

/// `None` for a machine that is told to do no builds.
fn machine(entry: &str, default_system: &str) -> Option<Machine> {
    let fields: Vec<&str> = entry.split_whitespace().collect();
    let field = |number: usize| fields.get(number).copied().filter(|field| *field != "-");
    let names = |number| -> BTreeSet<String> {
        let listed = field(number).into_iter().flat_map(|list| list.split(','));
        listed.filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    if field(3) == Some("0") {
        return None;
    }
    let systems = if field(1).is_some() { names(1) } else { BTreeSet::from([default_system.to_owned()]) };
    Some(Machine { systems, features: names(5), mandatory: names(6) })
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
