//! Realisations: the path that an output of a content-addressed derivation was found to have, and the
//! fingerprint of their signatures. Two formats: by the hash of the derivation (Nix up to 2.34) and by its
//! path (from 2.35 on). Kept as checked values; a realisation proves nothing until one of its signatures
//! does.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::hash::{HashError, NarHash};
use crate::json;
use crate::signature::{KeyName, PublicKey, SecretKey, Signature, SignatureError};
use crate::store_path::{StorePath, StorePathError};

/// Bytes of a realisation's file at most.
pub const REALISATION_BYTES_MAX: usize = 1024 * 1024;
/// Where a cache has those by hash.
const BY_HASH: &str = "realisations/";
/// Where a cache has those by path.
const BY_PATH: &str = "build-trace-v2/";
/// Ending of the names of these files.
const ENDING: &str = ".doi";
/// A hash part, to have the name after it checked as that of a store path is.
const ANY_HASH: &str = "00000000000000000000000000000000";

/// Why something is no realisation, or no name of one.
#[derive(Debug, thiserror::Error)]
pub enum RealisationError {
    /// More than [`REALISATION_BYTES_MAX`].
    #[error("the realisation has {0} bytes, at most {REALISATION_BYTES_MAX} are read")]
    TooLarge(usize),
    /// Not the JSON that it should be.
    #[error("the realisation is malformed")]
    Json(#[from] serde_json::Error),
    /// Neither `sha256:<hex>!<output>` nor the file of such a thing.
    #[error("{0:?} names no output of a derivation (sha256:<64 hexadecimal digits>!<output>)")]
    Id(String),
    /// The hash in such a name.
    #[error("the hash of the derivation is refused")]
    Hash(#[from] HashError),
    /// A realisation, but of something else.
    #[error("the realisation is of {0}")]
    Another(String),
    /// A malformed store path.
    #[error("a path in the realisation is refused")]
    Path(#[from] StorePathError),
    /// A malformed signature.
    #[error("a signature of the realisation is refused")]
    Signature(#[from] SignatureError),
}

impl RealisationError {
    fn id(text: &str) -> Self {
        Self::Id(text.chars().take(300).collect())
    }
}

/// The name of an output, such as `out`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutputName(String);

impl OutputName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for OutputName {
    type Err = RealisationError;

    /// Nix allows in the name of an output what it allows in that of a path.
    fn from_str(text: &str) -> Result<Self, RealisationError> {
        StorePath::parse(&format!("{ANY_HASH}-{text}")).map_err(|_| RealisationError::id(text))?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for OutputName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An output of a derivation: what a realisation is of.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DrvOutput {
    drv: Drv,
    output: OutputName,
}

/// The name of the derivation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Drv {
    /// Its hash without the paths of its outputs, which is alike for all that build the same.
    Hash(NarHash),
    /// Its path.
    Path(StorePath),
}

impl DrvOutput {
    /// Parses the address that a client asks a cache for, without the slash before it:
    /// `realisations/<id>.doi` or `build-trace-v2/<derivation>/<output>.doi`.
    ///
    /// # Errors
    /// For any other address.
    pub fn from_file(file: &str) -> Result<Self, RealisationError> {
        let error = || RealisationError::id(file);
        let name = file.strip_suffix(ENDING).ok_or_else(error)?;
        if let Some(id) = name.strip_prefix(BY_HASH) {
            return id.parse();
        }
        let (drv, output) =
            name.strip_prefix(BY_PATH).and_then(|name| name.split_once('/')).ok_or_else(error)?;
        let drv = StorePath::parse(drv)?;
        if !drv.is_derivation() {
            return Err(error());
        }
        Ok(Self { drv: Drv::Path(drv), output: output.parse()? })
    }

    /// That address.
    #[must_use]
    pub fn file(&self) -> String {
        match &self.drv {
            Drv::Hash(_) => format!("{BY_HASH}{self}{ENDING}"),
            Drv::Path(drv) => format!("{BY_PATH}{drv}/{}{ENDING}", self.output),
        }
    }

    /// The path of the derivation; `None` where its hash names it.
    #[must_use]
    pub fn drv(&self) -> Option<&StorePath> {
        match &self.drv {
            Drv::Hash(_) => None,
            Drv::Path(drv) => Some(drv),
        }
    }

    /// Which of its outputs.
    #[must_use]
    pub fn output(&self) -> &OutputName {
        &self.output
    }
}

impl FromStr for DrvOutput {
    type Err = RealisationError;

    /// Parses `sha256:<64 hexadecimal digits>!<output>`, in Nix's own spelling alone.
    fn from_str(text: &str) -> Result<Self, RealisationError> {
        let error = || RealisationError::id(text);
        let (hash, output) = text.split_once('!').ok_or_else(error)?;
        let hash = NarHash::from_hex(hash.strip_prefix("sha256:").ok_or_else(error)?)?;
        let id = Self { drv: Drv::Hash(hash), output: output.parse()? };
        if id.to_string() == text { Ok(id) } else { Err(error()) }
    }
}

impl fmt::Display for DrvOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.drv {
            Drv::Hash(hash) => write!(f, "sha256:{}!{}", hash.to_hex(), self.output),
            Drv::Path(drv) => write!(f, "{drv}^{}", self.output),
        }
    }
}

impl fmt::Debug for DrvOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A claim about an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realisation {
    id: DrvOutput,
    path: StorePath,
    /// Empty where a path names the derivation; each is named by its hash.
    dependencies: BTreeMap<DrvOutput, StorePath>,
    signatures: Vec<Signature>,
}

impl Realisation {
    /// That the output is this path, which needs no other realisation; not signed.
    #[must_use]
    pub fn new(id: DrvOutput, path: StorePath) -> Self {
        Self { id, path, dependencies: BTreeMap::new(), signatures: Vec::new() }
    }

    /// Parses the file that a cache has for `id`.
    ///
    /// # Errors
    /// The file is too large, malformed, has a field that is not known, or is of something else.
    pub fn parse(id: &DrvOutput, bytes: &[u8]) -> Result<Self, RealisationError> {
        if bytes.len() > REALISATION_BYTES_MAX {
            return Err(RealisationError::TooLarge(bytes.len()));
        }
        let (path, dependencies, signatures) = match &id.drv {
            Drv::Hash(_) => {
                let written: ByHash = json::from_slice(bytes)?;
                if written.id != id.to_string() {
                    return Err(RealisationError::Another(written.id.chars().take(300).collect()));
                }
                (written.out_path, written.dependent_realisations, written.signatures.unwrap_or_default())
            }
            Drv::Path(_) => {
                let written: ByPath = json::from_slice(bytes)?;
                (written.out_path, BTreeMap::new(), written.signatures.unwrap_or_default())
            }
        };
        let dependencies = dependencies.iter().map(|(id, path)| Ok((id.parse()?, StorePath::parse(path)?)));
        let signatures = signatures.iter().map(|signature| signature.to_string().parse());
        Ok(Self {
            id: id.clone(),
            path: StorePath::parse(&path)?,
            dependencies: dependencies.collect::<Result<_, RealisationError>>()?,
            signatures: signatures.collect::<Result<_, _>>()?,
        })
    }

    /// The file, as Nix writes it.
    #[must_use]
    pub fn render(&self) -> String {
        match &self.id.drv {
            Drv::Hash(_) => {
                let signatures = self.signatures.iter().map(|s| WrittenSignature::Text(s.to_string()));
                compact(&self.by_hash(&self.dependencies, Some(signatures.collect())))
            }
            Drv::Path(_) => {
                let signatures = self.signatures.iter().map(WrittenSignature::in_parts);
                let signatures = Some(signatures.collect());
                compact(&ByPath { out_path: self.path.to_string(), signatures })
            }
        }
    }

    /// The output.
    #[must_use]
    pub fn id(&self) -> &DrvOutput {
        &self.id
    }

    /// The path of the output.
    #[must_use]
    pub fn path(&self) -> &StorePath {
        &self.path
    }

    /// The realisations that clients of the first format also ask for, and the paths that they must name.
    #[must_use]
    pub fn dependencies(&self) -> &BTreeMap<DrvOutput, StorePath> {
        &self.dependencies
    }

    /// Its signatures, not verified.
    #[must_use]
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// The signed text: the file without its signatures (upstream's `Realisation::fingerprint`), in the
    /// second format with the name of the output.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.fingerprint_with(&self.dependencies)
    }

    fn fingerprint_with(&self, dependencies: &BTreeMap<DrvOutput, StorePath>) -> String {
        match &self.id.drv {
            Drv::Hash(_) => compact(&self.by_hash(dependencies, None)),
            Drv::Path(drv) => compact(&Entry {
                key: Key { drv_path: drv.to_string(), output_name: self.id.output.to_string() },
                value: ByPath { out_path: self.path.to_string(), signatures: None },
            }),
        }
    }

    /// Adds the signatures of `key`: two where it has dependencies, since Nix 2.34 leaves those out of what
    /// it verifies.
    pub fn sign(&mut self, key: &SecretKey) {
        for fingerprint in [self.fingerprint(), self.fingerprint_with(&BTreeMap::new())] {
            let signature = key.sign(&fingerprint);
            if !self.signatures.contains(&signature) {
                self.signatures.push(signature);
            }
        }
    }

    /// Removes the signatures under this name of a key.
    pub fn remove_signatures_of(&mut self, name: &KeyName) {
        self.signatures.retain(|signature| signature.name() != name);
    }

    /// True if one of `keys` has signed all of it.
    #[must_use]
    pub fn is_trusted(&self, keys: &[PublicKey]) -> bool {
        let fingerprint = self.fingerprint();
        let signed = |signature| keys.iter().any(|key| key.verify(signature, &fingerprint));
        self.signatures.iter().any(signed)
    }

    fn by_hash(
        &self,
        dependencies: &BTreeMap<DrvOutput, StorePath>,
        signatures: Option<Vec<WrittenSignature>>,
    ) -> ByHash {
        let dependencies = dependencies.iter().map(|(id, path)| (id.to_string(), path.to_string()));
        ByHash {
            dependent_realisations: dependencies.collect(),
            id: self.id.to_string(),
            out_path: self.path.to_string(),
            signatures,
        }
    }
}

/// The file of the first format. Signatures sign the bytes, so here and below the fields stand in the order
/// of their names.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ByHash {
    #[serde(default)]
    dependent_realisations: BTreeMap<String, String>,
    id: String,
    out_path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    signatures: Option<Vec<WrittenSignature>>,
}

/// The file of the second format.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ByPath {
    out_path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    signatures: Option<Vec<WrittenSignature>>,
}

/// The signed value of the second format.
#[derive(Serialize)]
struct Entry {
    key: Key,
    value: ByPath,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Key {
    drv_path: String,
    output_name: String,
}

/// A signature: `name:base64`, or from 2.35 on its two parts. Clients of the second format read both.
#[derive(Serialize)]
#[serde(untagged)]
enum WrittenSignature {
    Text(String),
    Parts(SignatureParts),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SignatureParts {
    key_name: String,
    sig: String,
}

/// By hand: a derived reader of either form takes an array for the parts.
impl<'de> Deserialize<'de> for WrittenSignature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SignatureVisitor)
    }
}

struct SignatureVisitor;

impl<'de> Visitor<'de> for SignatureVisitor {
    type Value = WrittenSignature;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a signature, or an object with keyName and sig")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<WrittenSignature, E> {
        Ok(WrittenSignature::Text(text.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, parts: A) -> Result<WrittenSignature, A::Error> {
        SignatureParts::deserialize(MapAccessDeserializer::new(parts)).map(WrittenSignature::Parts)
    }
}

impl WrittenSignature {
    fn in_parts(signature: &Signature) -> Self {
        let text = signature.to_string();
        let (key_name, sig) = text.split_once(':').unwrap_or_default();
        Self::Parts(SignatureParts { key_name: key_name.to_owned(), sig: sig.to_owned() })
    }
}

impl fmt::Display for WrittenSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Parts(SignatureParts { key_name, sig }) => write!(f, "{key_name}:{sig}"),
        }
    }
}

/// Compact JSON.
fn compact(value: &impl Serialize) -> String {
    // Texts in structs and in maps by text: nothing that JSON cannot have.
    serde_json::to_string(value).unwrap_or_default()
}
