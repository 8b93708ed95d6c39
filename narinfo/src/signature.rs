//! Signing keys, public keys and signatures in Nix's form: `name:base64`, ed25519.
//! A secret key must never show in a message: its `Debug` has the name alone.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

/// Characters of a key's name at most.
const NAME_CHARS_MAX: usize = 255;

/// Why something is no key or signature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The name is empty or has a character that the form has no room for.
    #[error("a key's name has 1 to {NAME_CHARS_MAX} characters, no colon and no white space")]
    Name,
    /// There is no colon between name and key.
    #[error("a key or signature is written name:base64")]
    NoColon,
    /// No base64 after the colon, or of another length.
    #[error("after the name there must be {bytes} bytes in base64")]
    Bytes {
        /// The expected number.
        bytes: usize,
    },
    /// The bytes are no key on the curve.
    #[error("these bytes are no public key")]
    NoKey,
    /// The second half of a secret key is not the public key of its first half.
    #[error("the two halves of the secret key do not belong together")]
    Halves,
}

/// The name of a key: what clients find the public key by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName(String);

impl FromStr for KeyName {
    type Err = SignatureError;

    fn from_str(name: &str) -> Result<Self, SignatureError> {
        let bad = |c: char| c == ':' || c.is_whitespace() || c.is_control();
        if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || name.contains(bad) {
            return Err(SignatureError::Name);
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key that signs.
pub struct SecretKey {
    name: KeyName,
    key: SigningKey,
}

impl SecretKey {
    /// A new key, from the system's randomness.
    #[must_use]
    pub fn generate(name: KeyName) -> Self {
        Self { name, key: SigningKey::generate(&mut rand_core::OsRng) }
    }

    /// The key file's text, as `nix-store --generate-binary-cache-key` writes it: no newline at its end.
    #[must_use]
    pub fn to_secret_string(&self) -> Zeroizing<String> {
        let bytes = Zeroizing::new(self.key.to_keypair_bytes());
        let encoded = Zeroizing::new(STANDARD.encode(bytes.as_slice()));
        Zeroizing::new(format!("{}:{}", self.name, encoded.as_str()))
    }

    /// Name of the key, which its signatures carry.
    #[must_use]
    pub fn name(&self) -> &KeyName {
        &self.name
    }

    /// The key that clients verify with.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey { name: self.name.clone(), key: self.key.verifying_key() }
    }

    /// Signs a fingerprint.
    #[must_use]
    pub fn sign(&self, fingerprint: &str) -> Signature {
        Signature { name: self.name.clone(), bytes: self.key.sign(fingerprint.as_bytes()).to_bytes() }
    }
}

impl FromStr for SecretKey {
    type Err = SignatureError;

    /// A newline at the end, which editors add, is tolerated.
    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let (name, bytes) = split::<64>(text.strip_suffix('\n').unwrap_or(text))?;
        let bytes = Zeroizing::new(bytes);
        let key = SigningKey::from_keypair_bytes(&bytes).map_err(|_| SignatureError::Halves)?;
        Ok(Self { name, key })
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A key that verifies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    name: KeyName,
    key: VerifyingKey,
}

impl PublicKey {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &KeyName {
        &self.name
    }

    /// True if `signature` is of this key (by name and by its bytes) and of this fingerprint.
    #[must_use]
    pub fn verify(&self, signature: &Signature, fingerprint: &str) -> bool {
        let bytes = ed25519_dalek::Signature::from_bytes(&signature.bytes);
        signature.name == self.name && self.key.verify_strict(fingerprint.as_bytes(), &bytes).is_ok()
    }
}

impl FromStr for PublicKey {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let (name, bytes) = split::<32>(text)?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| SignatureError::NoKey)?;
        Ok(Self { name, key })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, STANDARD.encode(self.key.as_bytes()))
    }
}

/// A signature, not yet verified.
#[derive(Clone, PartialEq, Eq)]
pub struct Signature {
    name: KeyName,
    bytes: [u8; 64],
}

impl Signature {
    /// The name of the key that is said to have made it.
    #[must_use]
    pub fn name(&self) -> &KeyName {
        &self.name
    }
}

impl FromStr for Signature {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let (name, bytes) = split(text)?;
        Ok(Self { name, bytes })
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, STANDARD.encode(self.bytes))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn split<const N: usize>(text: &str) -> Result<(KeyName, [u8; N]), SignatureError> {
    let (name, encoded) = text.split_once(':').ok_or(SignatureError::NoColon)?;
    let bytes = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| SignatureError::Bytes { bytes: N })?);
    let bytes = bytes.as_slice().try_into().map_err(|_| SignatureError::Bytes { bytes: N })?;
    Ok((name.parse()?, bytes))
}
