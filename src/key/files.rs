//! Key files in the state directory: `signing-key` is the first key, `signing-keys/` holds further ones, each
//! named by its key. A key is durable under its name before anything is signed with it, and none is removed
//! before its successor is there.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use narinfo::{KeyName, PublicKey, SecretKey};

use super::{Error, Keys, SignerRecord};

/// File of the first key in the state directory.
const FIRST: &str = "signing-key";
/// Folder of further keys in the state directory.
const FURTHER: &str = "signing-keys";
/// Ending of a file that is being written.
const DRAFT: &str = "new";
/// Bits of the file mode that let others read the key.
const OTHERS_MASK: u32 = 0o077;

/// Reads one key.
pub(super) fn read(file: &Path) -> Result<SecretKey, Error> {
    let text = fs::read_to_string(file).map_err(|source| Error::Read { file: file.to_owned(), source })?;
    let mode = fs::metadata(file).map_or(0, |m| m.mode());
    if mode & OTHERS_MASK != 0 {
        tracing::warn!(
            file = %file.display(),
            "the signing key can be read by others ({:o}): run chmod 600 on it",
            mode & 0o777
        );
    }
    text.parse().map_err(|source| Error::Malformed { file: file.to_owned(), source })
}

/// Key files of a state directory: that of the first key, then those of further keys by name.
pub(super) fn of(state_dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let folder = state_dir.join(FURTHER);
    let listed = || -> io::Result<Vec<PathBuf>> {
        match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            entries => entries?.map(|entry| Ok(entry?.path())).collect(),
        }
    };
    let mut further = listed().map_err(|source| Error::Read { file: folder.clone(), source })?;
    further.retain(|file| file.extension().is_none_or(|ending| ending != DRAFT));
    further.sort();
    Ok([vec![state_dir.join(FIRST)], further].concat())
}

/// True where the state directory is new: the first key is to be made.
pub(super) fn lacks_first(state_dir: &Path, has_index: bool) -> Result<bool, Error> {
    let file = state_dir.join(FIRST);
    match fs::symlink_metadata(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && has_index => Err(Error::Lost { file }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        // Reading it says what is wrong with it.
        _ => Ok(false),
    }
}

/// Makes the first key.
pub(super) fn create_first(state_dir: &Path, name: KeyName) -> Result<(), Error> {
    write(&state_dir.join(FIRST), &SecretKey::generate(name))
}

/// Makes a further key, which signs beside the others from the next start on.
///
/// # Errors
/// The name is in use, the present keys cannot be read, or the file cannot be written.
pub fn create(state_dir: &Path, name: KeyName) -> Result<PublicKey, Error> {
    ensure_free(state_dir, &name)?;
    let key = SecretKey::generate(name);
    write(&further(state_dir, key.name())?, &key)?;
    Ok(key.public_key())
}

/// Makes a new first key; the present one signs beside it from now on. Without a `name` the number at the end
/// of the present one is raised.
///
/// # Errors
/// As [`create`].
pub fn rotate(state_dir: &Path, name: Option<KeyName>) -> Result<PublicKey, Error> {
    let first = state_dir.join(FIRST);
    let present = read(&first)?;
    let name = name.unwrap_or_else(|| successor(present.name()));
    ensure_free(state_dir, &name)?;
    let key = SecretKey::generate(name);
    // In this order one of the two is the first at every moment, and neither file disappears.
    write(&further(state_dir, present.name())?, &present)?;
    write(&first, &key)?;
    Ok(key.public_key())
}

/// Removes a key, or the record of a key whose file is missing. Signatures that it made stay. Without `force`
/// a key stays while no server has run with the one that clients are told to trust: it signs alone till then.
///
/// # Errors
/// The key is the first, unknown, needed still, or cannot be removed.
pub fn retire(state_dir: &Path, name: &KeyName, force: bool) -> Result<(), Error> {
    let mut known = Vec::new();
    let mut found = Vec::new();
    let mut first = None;
    for (number, file) in of(state_dir)?.into_iter().enumerate() {
        let key = match read(&file) {
            // A missing first key does not prevent the removal of others.
            Err(Error::Read { source, .. }) if number == 0 && source.kind() == io::ErrorKind::NotFound => {
                continue;
            }
            key => key?,
        };
        if number == 0 {
            first = Some(key.name().clone());
        }
        match (key.name() == name, number) {
            (true, 0) => return Err(Error::First { name: name.clone(), file }),
            (true, _) => found.push(file),
            (false, _) => known.push(key.name().to_string()),
        }
    }
    let mut record = SignerRecord::read(state_dir)?;
    let has_signed = |name: &KeyName| record.names().any(|signer| signer == name);
    if let Some(first) =
        first.filter(|first| !force && !found.is_empty() && has_signed(name) && !has_signed(first))
    {
        return Err(Error::Alone { name: name.clone(), first });
    }
    let recorded = record.forget(name);
    if !recorded && found.is_empty() {
        known.extend(record.names().map(ToString::to_string));
        known.sort();
        known.dedup();
        return Err(Error::Unknown { name: name.clone(), known });
    }
    record.write(state_dir)?;
    for file in found {
        fs::remove_file(&file).map_err(|source| Error::Write { file, source })?;
    }
    Ok(())
}

/// Refuses a name that a key has, or that one had that signed what is served.
fn ensure_free(state_dir: &Path, name: &KeyName) -> Result<(), Error> {
    let keys = Keys::read(state_dir, &[])?;
    let record = SignerRecord::read(state_dir)?;
    if keys.public().any(|key| key.name() == name) || record.names().any(|other| other == name) {
        return Err(Error::Exists { name: name.clone() });
    }
    Ok(())
}

/// `cache-1` becomes `cache-2`; a name without a number gets one.
fn successor(name: &KeyName) -> KeyName {
    let text = name.to_string();
    let (stem, number) = match text.rsplit_once('-').map(|(stem, number)| (stem, number.parse::<u64>())) {
        Some((stem, Ok(number))) => (stem, number.saturating_add(1)),
        _ => (text.as_str(), 2),
    };
    format!("{stem}-{number}").parse().unwrap_or_else(|_| name.clone())
}

/// File of a further key. A name may have any character but a colon and white space.
fn further(state_dir: &Path, name: &KeyName) -> Result<PathBuf, Error> {
    let folder = state_dir.join(FURTHER);
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
    made.map_err(|source| Error::Write { file: folder.clone(), source })?;
    let name = percent_encoding::utf8_percent_encode(&name.to_string(), percent_encoding::NON_ALPHANUMERIC)
        .to_string()
        .replace("%2D", "-");
    Ok(folder.join(name))
}

fn write(file: &Path, key: &SecretKey) -> Result<(), Error> {
    write_durably(file, key.to_secret_string().as_bytes())
        .map_err(|source| Error::Write { file: file.to_owned(), source })
}

/// Replaces a file of ours as a whole, readable by this user alone.
pub(super) fn write_durably(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = file.with_added_extension(DRAFT);
    let mut out = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    fs::rename(&draft, file)?;
    match file.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_number_gets_one_and_a_number_is_raised() {
        for (name, expected) in
            [("cache-1", "cache-2"), ("cache", "cache-2"), ("a-b", "a-b-2"), ("x-99", "x-100")]
        {
            let name: KeyName = name.parse().expect("a name");
            assert_eq!(successor(&name).to_string(), expected);
        }
    }

    #[test]
    fn a_name_with_a_slash_stays_in_its_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = SecretKey::generate("a-1".parse().expect("a name"));
        write(&folder.path().join(FIRST), &first).expect("written");
        create(folder.path(), "../../b".parse().expect("a name")).expect("made");
        let keys = Keys::read(folder.path(), &[]).expect("read");
        let names: Vec<String> = keys.public().map(|key| key.name().to_string()).collect();
        assert_eq!(names, ["a-1", "../../b"]);
        assert_eq!(fs::read_dir(folder.path().join(FURTHER)).expect("there").count(), 1);
    }

    #[test]
    fn a_key_that_has_signed_alone_is_retired_only_where_that_is_forced() {
        let folder = tempfile::tempdir().expect("a folder");
        let [one, two]: [KeyName; 2] = ["a-1", "a-2"].map(|name| name.parse().expect("a name"));
        write(&folder.path().join(FIRST), &SecretKey::generate(one.clone())).expect("written");
        let run = || {
            let keys = Keys::read(folder.path(), &[]).expect("read");
            SignerRecord::begin(folder.path(), &keys, false).expect("noted");
        };
        run();
        rotate(folder.path(), None).expect("made");
        assert!(
            matches!(retire(folder.path(), &one, false), Err(Error::Alone { first, .. }) if first == two)
        );
        run();
        retire(folder.path(), &one, false).expect("both have signed");
        let three = rotate(folder.path(), None).expect("made").name().clone();
        retire(folder.path(), &two, true).expect("forced");
        let keys = Keys::read(folder.path(), &[]).expect("read");
        assert_eq!(keys.public().map(|key| key.name().clone()).collect::<Vec<_>>(), [three]);
    }
}
