//! The signing key of a cache: made on the first start, read ever after.
//! Must never make a second key beside paths that the first one signed, and never print the secret.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use narinfo::{KeyName, SecretKey};

/// The key's file name in the state directory.
const FILE_NAME: &str = "signing-key";
/// Bits of the file mode that let others read the key.
const OTHERS_MASK: u32 = 0o077;

/// Why there is no usable key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key file cannot be read.
    #[error("cannot read the signing key {}", file.display())]
    Read {
        /// The key file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The key file cannot be written.
    #[error("cannot write the signing key {}", file.display())]
    Write {
        /// The key file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The key file holds something else.
    #[error("{} holds no signing key (name:base64 is expected): restore it from a copy, or make one with nix-store --generate-binary-cache-key", file.display())]
    Malformed {
        /// The key file.
        file: PathBuf,
        /// What is wrong with it.
        source: narinfo::SignatureError,
    },
    /// The index is there, its key is not.
    #[error("the signing key {} is missing, though this cache has signed paths with it: restore it from a copy; to start over with a new key, remove the index too", file.display())]
    Lost {
        /// The key file.
        file: PathBuf,
    },
}

/// Reads the key of a state directory.
///
/// # Errors
/// When the file is missing, unreadable or malformed.
pub fn read(state_dir: &Path) -> Result<SecretKey, Error> {
    let file = state_dir.join(FILE_NAME);
    let text = fs::read_to_string(&file).map_err(|source| Error::Read { file: file.clone(), source })?;
    let mode = fs::metadata(&file).map_or(0, |m| m.mode());
    if mode & OTHERS_MASK != 0 {
        tracing::warn!(
            file = %file.display(),
            "the signing key can be read by others ({:o}): run chmod 600 on it",
            mode & 0o777
        );
    }
    text.parse().map_err(|source| Error::Malformed { file, source })
}

/// Reads the key, making one called `name` where the state directory is new (`has_index` is false).
///
/// # Errors
/// As [`read`]; and when the key is missing beside an existing index.
pub fn read_or_create(state_dir: &Path, name: KeyName, has_index: bool) -> Result<SecretKey, Error> {
    let file = state_dir.join(FILE_NAME);
    match read(state_dir) {
        Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            if has_index {
                return Err(Error::Lost { file });
            }
            let key = SecretKey::generate(name);
            write(state_dir, &file, &key).map_err(|source| Error::Write { file, source })?;
            Ok(key)
        }
        other => other,
    }
}

/// Durable under its name before anything is signed with it.
fn write(state_dir: &Path, file: &Path, key: &SecretKey) -> io::Result<()> {
    let draft = file.with_extension("new");
    let mut out = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    out.write_all(key.to_secret_string().as_bytes())?;
    out.sync_all()?;
    fs::rename(&draft, file)?;
    File::open(state_dir)?.sync_all()
}
