//! Edits of nix.conf and netrc files: lines are added, and nothing of the user's is changed. Doing it again
//! changes nothing. Files are replaced as a whole, so that none is ever half written.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Lines of a nix.conf that are wanted: settings, each with a value. A list gets the value as another item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfLines(pub Vec<ConfLine>);

/// A line of nix.conf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfLine {
    /// Another item of a list.
    Item {
        /// The setting, without `extra-`.
        setting: &'static str,
        /// The item.
        value: String,
    },
    /// The value of a setting.
    Value {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: String,
    },
}

impl ConfLine {
    /// The line.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Item { setting, value } => format!("extra-{setting} = {value}"),
            Self::Value { setting, value } => format!("{setting} = {value}"),
        }
    }

    /// The same in the language of NixOS modules, for `nix.settings`.
    #[must_use]
    pub fn nixos(&self) -> String {
        match self {
            Self::Item { setting, value } => format!("{setting} = [ \"{value}\" ];"),
            Self::Value { setting, value } if value == "true" => format!("{setting} = true;"),
            Self::Value { setting, value } => format!("{setting} = \"{value}\";"),
        }
    }

    /// True if the text of a nix.conf has it in effect.
    fn is_in(&self, text: &str) -> bool {
        let mut assignments = text.lines().filter_map(|line| {
            let line = line.split('#').next().unwrap_or_default();
            let (name, value) = line.split_once('=')?;
            Some((name.trim(), value.trim()))
        });
        match self {
            Self::Item { setting, value } => {
                // A later assignment without `extra-` forgets all earlier ones.
                assignments.fold(false, |is_in, (name, items)| {
                    let has = items.split_whitespace().any(|item| same_item(item, value));
                    match name.strip_prefix("extra-") {
                        _ if name == *setting => has,
                        Some(name) if name == *setting => is_in || has,
                        _ => is_in,
                    }
                })
            }
            Self::Value { setting, value } => {
                assignments.rfind(|(name, _)| name == setting).is_some_and(|(_, is)| is == value)
            }
        }
    }
}

/// True for equal items; a URL is the same with a slash at its end.
fn same_item(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

impl ConfLines {
    /// The lines that the text of a nix.conf lacks.
    #[must_use]
    pub fn missing_in(&self, text: &str) -> Vec<&ConfLine> {
        self.0.iter().filter(|line| !line.is_in(text)).collect()
    }

    /// The text with the lines that it lacks at its end; `None` where it has all of them.
    #[must_use]
    pub fn added_to(&self, text: &str) -> Option<String> {
        let missing = self.missing_in(text);
        if missing.is_empty() {
            return None;
        }
        let mut text = text.to_owned();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        for line in missing {
            text += &line.text();
            text.push('\n');
        }
        Some(text)
    }
}

/// The text of a netrc file with this login for the host; `None` where it has it already. The first entry of
/// a host counts, so the new one stands first; a line that was written here before is replaced.
#[must_use]
pub fn netrc_with(text: &str, host: &str, password: &str) -> Option<String> {
    let begin = format!("machine {host} login ondine password ");
    let line = format!("{begin}{password}");
    let mut others = text.lines().filter(|other| !other.starts_with(&begin));
    if text.lines().next() == Some(&line) {
        return None;
    }
    let rest = others.by_ref().map(|other| format!("{other}\n")).collect::<String>();
    Some(format!("{line}\n{rest}"))
}

/// Replaces the text of a file, and creates it and its directory where need be. A new file gets this mode. A
/// symlink stays one.
///
/// # Errors
/// The file cannot be written.
pub fn replace(file: &Path, text: &str, mode: u32) -> io::Result<()> {
    let file = target(file);
    let directory = file.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let permissions = match fs::metadata(&file) {
        Ok(metadata) => metadata.permissions(),
        Err(_) => fs::Permissions::from_mode(mode),
    };
    // The file has no content that others might read before it has its permissions.
    let mut draft = tempfile::NamedTempFile::new_in(directory)?;
    draft.as_file().set_permissions(permissions)?;
    draft.write_all(text.as_bytes())?;
    draft.as_file().sync_all()?;
    draft.persist(&file)?;
    fs::File::open(directory)?.sync_all()
}

/// The file that a symlink leads to.
#[must_use]
pub fn target(file: &Path) -> PathBuf {
    fs::canonicalize(file).unwrap_or_else(|_| file.to_owned())
}

/// The text of a file, empty where there is none.
///
/// # Errors
/// The file cannot be read.
pub fn read(file: &Path) -> io::Result<String> {
    match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> ConfLines {
        ConfLines(vec![
            ConfLine::Item { setting: "substituters", value: "http://a".to_owned() },
            ConfLine::Item { setting: "trusted-public-keys", value: "a-1:k".to_owned() },
            ConfLine::Value { setting: "always-allow-substitutes", value: "true".to_owned() },
        ])
    }

    #[test]
    fn lines_are_added_once_and_nothing_is_changed() {
        let before = "# mine\nsubstituters = http://b";
        let after = lines().added_to(before).expect("lines are missing");
        assert_eq!(
            after,
            "# mine\nsubstituters = http://b\nextra-substituters = http://a\nextra-trusted-public-keys = a-1:k\n\
             always-allow-substitutes = true\n"
        );
        assert_eq!(lines().added_to(&after), None);
    }

    #[test]
    fn a_line_counts_where_nix_would_heed_it() {
        let item = &lines().0[0];
        for (text, expected) in [
            ("substituters = http://b http://a/", true),
            ("extra-substituters=http://a", true),
            ("extra-substituters = http://a\nsubstituters = http://b", false),
            ("# extra-substituters = http://a", false),
            ("extra-substituters = http://b # http://a", false),
            ("trusted-substituters = http://a", false),
        ] {
            assert_eq!(item.is_in(text), expected, "{text}");
        }
        let value = &lines().0[2];
        assert!(value.is_in("always-allow-substitutes = false\nalways-allow-substitutes = true"));
        assert!(!value.is_in("always-allow-substitutes = true\nalways-allow-substitutes = false"));
    }

    #[test]
    fn a_token_is_the_first_entry_and_replaces_the_one_before() {
        let first = netrc_with("machine b login c password d\n", "a", "one").expect("a change");
        assert_eq!(first, "machine a login ondine password one\nmachine b login c password d\n");
        assert_eq!(netrc_with(&first, "a", "one"), None);
        let second = netrc_with(&first, "a", "two").expect("a change");
        assert_eq!(second, "machine a login ondine password two\nmachine b login c password d\n");
    }

    #[test]
    fn a_file_is_replaced_with_its_mode_and_behind_its_symlink() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("deep/netrc");
        replace(&file, "one", 0o600).expect("written");
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("set");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&file, &link).expect("made");
        replace(&link, "two", 0o600).expect("written");
        assert!(link.is_symlink());
        assert_eq!(read(&file).expect("there"), "two");
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o640);
    }
}
