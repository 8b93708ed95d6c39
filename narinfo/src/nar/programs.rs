//! Programs of a store path: names of what may be run in its folder `bin`. What a symlink there leads to is
//! not looked at.

use std::fs::{Metadata, read_dir};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix_archive::nar::Event;

use super::NarEvent;

/// The folder.
pub(super) const FOLDER: &str = "bin";
/// Programs of a path at most; further ones are left out.
pub const PROGRAMS_MAX: usize = 4096;

/// Collects the names while the parts of a NAR come in their order.
#[derive(Default)]
pub(super) struct ProgramCollector {
    /// Directories that are open.
    depth: usize,
    /// True within the folder, directories in it included.
    is_within: bool,
    pub(super) names: Vec<String>,
}

impl ProgramCollector {
    pub(super) fn take<R>(&mut self, event: &NarEvent<'_, R>) {
        match event {
            Event::DirectoryStart { name } => {
                self.depth += 1;
                if self.depth == 2 {
                    self.is_within = *name == Some(FOLDER.as_bytes());
                }
            }
            Event::DirectoryEnd { .. } => {
                self.is_within &= self.depth != 2;
                self.depth = self.depth.saturating_sub(1);
            }
            Event::Regular { name, executable: true, .. } | Event::Symlink { name, .. } => {
                let is_program = self.is_within && self.depth == 2 && self.names.len() < PROGRAMS_MAX;
                let name = name.filter(|_| is_program).and_then(|name| std::str::from_utf8(name).ok());
                self.names.extend(name.map(str::to_owned));
            }
            Event::Regular { .. } => {}
        }
    }
}

/// Programs of the file tree at `path`, in the order of their names; none where it has no such folder.
///
/// # Errors
/// The folder cannot be read.
pub fn programs_of(path: &Path) -> io::Result<Vec<String>> {
    let folder = path.join(FOLDER);
    if !folder.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Ok(Vec::new());
    }
    let is_program = |metadata: &Metadata| {
        metadata.is_symlink() || metadata.is_file() && metadata.permissions().mode() & 0o100 != 0
    };
    let mut names = Vec::new();
    for entry in read_dir(&folder)? {
        let entry = entry?;
        if is_program(&entry.metadata()?) {
            names.extend(entry.file_name().into_string());
        }
    }
    names.sort_unstable();
    names.truncate(PROGRAMS_MAX);
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, create_dir_all, set_permissions, write};

    use super::super::{Listing, check, dump};
    use super::*;

    #[test]
    fn programs_are_the_executables_and_links_of_one_folder_in_a_tree_and_in_its_nar() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, mode) in
            [("bin/jq", 0o555), ("bin/text", 0o444), ("bin/sub/x", 0o555), ("lib/bin/y", 0o555), ("z", 0o555)]
        {
            let file = folder.path().join(name);
            create_dir_all(file.parent().expect("a folder")).expect("made");
            write(&file, name).expect("written");
            set_permissions(&file, Permissions::from_mode(mode)).expect("set");
        }
        std::os::unix::fs::symlink("jq", folder.path().join("bin/alias")).expect("linked");
        let mut nar = Vec::new();
        dump(folder.path(), &mut nar).expect("a NAR");
        assert_eq!(programs_of(folder.path()).expect("read"), ["alias", "jq"]);
        assert_eq!(check(&mut &nar[..]).expect("a NAR").programs, ["alias", "jq"]);
        assert_eq!(Listing::read(&mut &nar[..]).expect("a NAR").programs(), ["alias", "jq"]);
        assert!(programs_of(&folder.path().join("lib")).expect("read").contains(&"y".to_owned()));
        assert_eq!(programs_of(&folder.path().join("z")).expect("a file has none"), [""; 0]);
    }
}
