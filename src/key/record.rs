//! Record of the keys that have signed what is served, in the state directory: a key that goes missing or is
//! exchanged is noticed at the start, before a client fetches only a part of a closure. Public keys alone
//! stand in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use narinfo::{KeyName, PublicKey};
use serde::{Deserialize, Serialize};

use super::files::write_durably;
use super::{Error, Keys};

/// File of the record in the state directory.
const FILE: &str = "signers.json";

/// Keys that have signed what is served.
#[derive(Debug, Default)]
pub struct SignerRecord(Vec<Signer>);

#[derive(Debug)]
struct Signer {
    key: PublicKey,
    /// True once everything that is served has its signature.
    complete: bool,
}

/// One line of the file.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
struct RawSigner {
    public_key: String,
    complete: bool,
}

/// The file in a state directory.
pub(super) fn file(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

impl SignerRecord {
    /// Reads the record; an empty one where there is none yet.
    ///
    /// # Errors
    /// The record cannot be read or is malformed.
    pub fn read(state_dir: &Path) -> Result<Self, Error> {
        let file = state_dir.join(FILE);
        let text = match fs::read_to_string(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            text => text.map_err(|source| Error::Read { file: file.clone(), source })?,
        };
        let parse = |text: &str| -> Result<Vec<Signer>, serde_json::Error> {
            let written: Vec<RawSigner> = narinfo::json::from_str(text)?;
            let signer = |RawSigner { public_key, complete }| {
                let key = public_key.parse().map_err(<serde_json::Error as serde::de::Error>::custom)?;
                Ok(Signer { key, complete })
            };
            written.into_iter().map(signer).collect()
        };
        parse(&text).map(Self).map_err(|source| Error::SignerRecord { file, source })
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, state_dir: &Path) -> Result<(), Error> {
        let written = |Signer { key, complete }: &Signer| RawSigner {
            public_key: key.to_string(),
            complete: *complete,
        };
        let written: Vec<RawSigner> = self.0.iter().map(written).collect();
        let text = serde_json::to_string_pretty(&written).unwrap_or_default();
        let file = state_dir.join(FILE);
        write_durably(&file, text.as_bytes()).map_err(|source| Error::Write { file, source })
    }

    /// Notes `keys` as those that sign from now on. `fresh`: nothing is served yet. True when something that
    /// is served may lack a signature of one of them.
    ///
    /// # Errors
    /// A key that signed before is not among them, or cannot be noted.
    pub fn begin(state_dir: &Path, keys: &Keys, fresh: bool) -> Result<bool, Error> {
        let mut record = if fresh { Self::default() } else { Self::read(state_dir)? };
        record.check(keys)?;
        let known = record.0.len();
        for key in keys.public() {
            if !record.0.iter().any(|signer| signer.key == key) {
                record.0.push(Signer { key, complete: fresh });
            }
        }
        if record.0.len() > known {
            record.write(state_dir)?;
        }
        Ok(record.0.iter().any(|signer| !signer.complete))
    }

    /// Looks whether all keys that have signed are among `keys`.
    ///
    /// # Errors
    /// One is missing, or is another one of its name.
    pub fn check(&self, keys: &Keys) -> Result<(), Error> {
        for Signer { key, .. } in &self.0 {
            let name = key.name().clone();
            match keys.public().find(|other| *other.name() == name) {
                None => return Err(Error::Missing { name }),
                Some(other) if other != *key => return Err(Error::Replaced { name }),
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Notes that everything that is served has a signature by each of `keys`. A key that was retired
    /// meanwhile stays so.
    ///
    /// # Errors
    /// The record cannot be read or written.
    pub fn finish(state_dir: &Path, keys: &Keys) -> Result<(), Error> {
        let mut record = Self::read(state_dir)?;
        for signer in &mut record.0 {
            signer.complete |= keys.public().any(|key| key == signer.key);
        }
        record.write(state_dir)
    }

    /// All keys in it.
    pub fn keys(&self) -> impl Iterator<Item = &PublicKey> {
        self.0.iter().map(|signer| &signer.key)
    }

    /// Names of all keys in it.
    pub fn names(&self) -> impl Iterator<Item = &KeyName> {
        self.0.iter().map(|signer| signer.key.name())
    }

    /// Removes a key. True when it was there.
    pub fn forget(&mut self, name: &KeyName) -> bool {
        let before = self.0.len();
        self.0.retain(|signer| signer.key.name() != name);
        self.0.len() < before
    }
}
