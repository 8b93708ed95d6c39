//! The signing keys of a cache: all of them sign, and the first is shown to clients.
//! Must never make a key beside paths that another one signed, and never print a secret.

mod files;
mod record;

use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use narinfo::{KeyName, PublicKey, Realisation, SecretKey, Signature, StoreDir};

use crate::model::Hit;
pub use files::{create, retire, rotate};
pub use record::SignerRecord;

/// Files in a state directory without which what is signed there cannot be signed again: keys, and the record
/// of signers.
///
/// # Errors
/// The directory cannot be read.
pub fn files(state_dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let all = files::of(state_dir)?.into_iter().chain([record::file(state_dir)]);
    Ok(all.filter(|file| file.exists()).collect())
}

/// Signing keys of one cache at most: each narinfo carries a signature by each of them.
const KEYS_MAX: usize = 8;

/// Why there is no usable key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key file cannot be read.
    #[error("cannot read the signing key {}", file.display())]
    Read {
        /// The key file.
        file: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file beside the keys, or a key file, cannot be written.
    #[error("cannot write {}", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The key file holds something else.
    #[error("{} holds no signing key (name:base64 is expected): restore it from a copy, or make one with nix-store --generate-binary-cache-key", file.display())]
    Malformed {
        /// The key file.
        file: PathBuf,
        /// The first fault in it.
        source: narinfo::SignatureError,
    },
    /// The index is there, its key is not.
    #[error("the signing key {} is missing, though this cache has signed paths with it: restore it from a copy; to start over with a new key, remove the index and the NARs, too", file.display())]
    Lost {
        /// The key file.
        file: PathBuf,
    },
    /// A key that signed served paths is not among the keys any more.
    #[error(
        "the key {name} has signed what this cache serves, and no signing key has that name now: clients that trust {name} could fetch only a part. Restore its file from a copy, or run `ondine key retire {name}` if nobody trusts it any more"
    )]
    Missing {
        /// The key's name.
        name: KeyName,
    },
    /// A key that signed served paths was exchanged for another one of the same name.
    #[error(
        "another key named {name} has signed what this cache serves: clients know keys by name, and would refuse what is signed from now on. Restore the earlier key from a copy, or give the new one another name (`ondine key rotate` makes one)"
    )]
    Replaced {
        /// The name of both.
        name: KeyName,
    },
    /// Two keys of one name.
    #[error("two signing keys are named {name}: clients know keys by name, so each needs its own")]
    Twice {
        /// The name of both.
        name: KeyName,
    },
    /// Too many keys.
    #[error(
        "there are {0} signing keys, {KEYS_MAX} at most: retire those that nobody trusts any more (`ondine key retire NAME`)"
    )]
    TooMany(usize),
    /// The name of a new key is in use.
    #[error("there is a key named {name} already: give the new one another name")]
    Exists {
        /// The name.
        name: KeyName,
    },
    /// The first key is not retired.
    #[error("{name} is the key that clients are told to trust: make another one the first (`ondine key rotate`), and retire {name} once clients know that. Where the setting signing-key names other files, move {} away first", file.display())]
    First {
        /// The name.
        name: KeyName,
        /// Its file.
        file: PathBuf,
    },
    /// A key is to be retired before the next one has signed anything.
    #[error(
        "no server has run with {first} yet, so {name} alone has signed what is served: restart the server, have all clients trust {first}, and retire {name} then; where {name} was stolen, --force retires it now"
    )]
    Alone {
        /// The name.
        name: KeyName,
        /// The name of the first key.
        first: KeyName,
    },
    /// No key has this name.
    #[error("no key is named {name}; there are: {}", known.join(", "))]
    Unknown {
        /// The name.
        name: KeyName,
        /// The names of all keys, and of those that have signed.
        known: Vec<String>,
    },
    /// The record of keys holds something else.
    #[error("{} does not say which keys have signed what is served: restore it from a copy, or remove it to have everything looked through again", file.display())]
    SignerRecord {
        /// The record.
        file: PathBuf,
        /// The parser's error.
        source: serde_json::Error,
    },
}

/// The name of the key that a first start makes.
#[derive(Clone, Debug)]
pub struct WantedName {
    /// The name.
    pub name: KeyName,
    /// Somebody has given it: a key of another name is not what they expect.
    pub given: bool,
}

/// The keys that sign: at least one, each of another name; the first is shown to clients.
#[derive(Debug)]
pub struct Keys(Vec<SecretKey>);

impl Keys {
    /// Reads the keys that `named` lists or, where that is empty, those of the state directory; a state
    /// directory without an index gets a first key with the wanted name.
    ///
    /// # Errors
    /// A key is missing, unreadable, malformed or has the name of another.
    pub fn open(
        state_dir: &Path,
        named: &[PathBuf],
        wanted: &WantedName,
        has_index: bool,
    ) -> Result<Self, Error> {
        if named.is_empty() && files::lacks_first(state_dir, has_index)? {
            files::create_first(state_dir, wanted.name.clone())?;
        }
        Self::read(state_dir, named)
    }

    /// Reads the keys that [`Keys::open`] and [`SignerRecord::begin`] would accept; `None` where the
    /// first is still to be made. Makes and changes nothing.
    ///
    /// # Errors
    /// As those.
    pub fn check(state_dir: &Path, named: &[PathBuf], has_index: bool) -> Result<Option<Self>, Error> {
        if named.is_empty() && files::lacks_first(state_dir, has_index)? {
            return Ok(None);
        }
        let keys = Self::read(state_dir, named)?;
        if has_index {
            SignerRecord::read(state_dir)?.check(&keys)?;
        }
        Ok(Some(keys))
    }

    /// Tells that a name was asked for that no key has, since keys exist already.
    #[must_use]
    pub fn unheeded(&self, wanted: &WantedName) -> Option<String> {
        let unheeded = wanted.given && self.public().all(|key| *key.name() != wanted.name);
        let first = self.public().next().filter(|_| unheeded)?;
        Some(format!(
            "the setting key-name = {} has no effect: it names the key that a first start makes, and the signing key is {} \
             already; `ondine key rotate {}` makes a key of that name",
            wanted.name,
            first.name(),
            wanted.name
        ))
    }

    /// Reads the same keys, and makes none.
    ///
    /// # Errors
    /// As [`Keys::open`].
    pub fn read(state_dir: &Path, named: &[PathBuf]) -> Result<Self, Error> {
        let files = if named.is_empty() { files::of(state_dir)? } else { named.to_vec() };
        let mut keys: Vec<SecretKey> = Vec::new();
        for file in files {
            let key = files::read(&file)?;
            let public = key.public_key();
            match keys.iter().map(SecretKey::public_key).find(|other| other.name() == public.name()) {
                None => keys.push(key),
                // A rotation that was cut short leaves one key in two files.
                Some(other) if other == public => {}
                Some(_) => return Err(Error::Twice { name: public.name().clone() }),
            }
        }
        if keys.len() > KEYS_MAX {
            return Err(Error::TooMany(keys.len()));
        }
        Ok(Self(keys))
    }

    /// Public keys; the first is shown to clients.
    pub fn public(&self) -> impl Iterator<Item = PublicKey> {
        self.0.iter().map(SecretKey::public_key)
    }

    /// The keys as their files have them.
    pub fn texts(&self) -> Vec<impl Deref<Target = String>> {
        self.0.iter().map(SecretKey::to_secret_string).collect()
    }

    /// Adds a signature of `fingerprint()` by each key whose name none of `signatures` has. Of several under
    /// the name of a key the true one stays. True when something changed.
    pub fn complete(&self, signatures: &mut Vec<Signature>, fingerprint: impl FnOnce() -> String) -> bool {
        let under = |key: &SecretKey| signatures.iter().filter(|one| one.name() == key.name()).count();
        let keys: Vec<&SecretKey> = self.0.iter().filter(|key| under(key) != 1).collect();
        if keys.is_empty() {
            return false;
        }
        let fingerprint = fingerprint();
        keys.into_iter().for_each(|key| sign(key, signatures, &fingerprint));
        true
    }

    /// Text of the narinfo of a served path, signed by every key, also by keys that came after it was
    /// published.
    #[must_use]
    pub fn narinfo(&self, hit: &Hit, store_dir: &StoreDir) -> String {
        let mut narinfo = hit.narinfo();
        self.complete(&mut narinfo.path_info.signatures, || hit.row.info.fingerprint(store_dir));
        narinfo.render(store_dir)
    }

    /// Signatures of `fingerprint` by every key are among `signatures`, and no others under their names:
    /// those would be junk that whoever uploads can make up.
    pub fn sign(&self, signatures: &mut Vec<Signature>, fingerprint: &str) {
        self.0.iter().for_each(|key| sign(key, signatures, fingerprint));
    }

    /// True for a signature under the name of one of the keys, true or false.
    #[must_use]
    pub fn is_named_ours(&self, signature: &Signature) -> bool {
        self.0.iter().any(|key| key.name() == signature.name())
    }

    /// Signs a realisation with each key whose name none of its signatures has.
    pub fn complete_realisation(&self, realisation: &mut Realisation) {
        for key in &self.0 {
            if !realisation.signatures().iter().any(|signature| signature.name() == key.name()) {
                realisation.sign(key);
            }
        }
    }

    /// Signs a realisation with every key; no other signatures under their names stay.
    pub fn sign_realisation(&self, realisation: &mut Realisation) {
        for key in &self.0 {
            realisation.remove_signatures_of(key.name());
            realisation.sign(key);
        }
    }
}

/// Leaves one signature under the name of a key: that of `fingerprint`.
fn sign(key: &SecretKey, signatures: &mut Vec<Signature>, fingerprint: &str) {
    let ours = key.sign(fingerprint);
    signatures.retain(|other| other.name() != key.name() || *other == ours);
    if !signatures.contains(&ours) {
        signatures.push(ours);
    }
}
