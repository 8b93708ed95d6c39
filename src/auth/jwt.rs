//! Signatures and claims of JSON web tokens (RFC 7519), verified with the cryptography that TLS has anyway.
//! The kind of a key decides the algorithm, never the token: RS256, ES256 or EdDSA, and no other.

use std::collections::HashMap;

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error as JwtError, ErrorKind};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::signature::{Error as SignatureError, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, Validation};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Difference between the clocks of the issuer and this server that is allowed, in seconds.
const CLOCK_SKEW_SECONDS: u64 = 60;
/// Characters of a token at most.
const JWT_CHARS_MAX: usize = 16 * 1024;
/// Keys of an issuer at most.
const KEYS_MAX: usize = 100;

/// Claims of a token.
pub(super) type Claims = Map<String, Value>;

/// Keys of an issuer by their ids, each with the one algorithm that it is for.
pub(super) type IssuerKeys = HashMap<String, (Algorithm, DecodingKey)>;

/// The provider, whose keys only verify.
static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

/// Chooses the cryptography, once for the process.
pub(super) fn install() {
    // It is there already when this is called again.
    let _ = PROVIDER.install_default();
}

/// A token whose signature is not verified yet.
#[derive(Clone)]
pub(super) struct UnverifiedJwt {
    text: String,
    /// Id of the key that has signed it, as it says.
    pub(super) key_id: String,
    /// Its issuer, as it says.
    pub(super) issuer: String,
}

impl UnverifiedJwt {
    /// True for a text in the form of a token.
    pub(super) fn is_form(text: &str) -> bool {
        text.starts_with("ey") && text.split('.').count() == 3
    }

    /// Reads who is said to have signed it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > JWT_CHARS_MAX {
            return Err(format!("it has more than {JWT_CHARS_MAX} characters"));
        }
        let header = jsonwebtoken::decode_header(text).map_err(|error| reason(&error))?;
        let claims: Claims =
            jsonwebtoken::dangerous::insecure_decode_claims(text).map_err(|error| reason(&error))?;
        let issuer = claims.get("iss").and_then(Value::as_str).ok_or("it names no issuer")?;
        let key_id = header.kid.ok_or("it names no key")?;
        Ok(Self { text: text.to_owned(), key_id, issuer: issuer.to_owned() })
    }

    /// Verifies its signature, its times, its issuer and its audience, and gives its claims.
    pub(super) fn verify(
        &self,
        (algorithm, key): &(Algorithm, DecodingKey),
        issuer: &str,
        audience: &str,
    ) -> Result<Claims, String> {
        let mut validation = Validation::new(*algorithm);
        validation.leeway = CLOCK_SKEW_SECONDS;
        validation.validate_nbf = true;
        validation.set_audience(&[audience]);
        validation.set_issuer(&[issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let decoded = jsonwebtoken::decode::<Claims>(&self.text, key, &validation);
        decoded.map(|data| data.claims).map_err(|error| reason(&error))
    }
}

/// The reason why a token is refused, for the person who has sent it.
fn reason(error: &JwtError) -> String {
    match error.kind() {
        ErrorKind::ExpiredSignature => "it has expired".to_owned(),
        ErrorKind::ImmatureSignature => "it is not valid yet; are the clocks right?".to_owned(),
        ErrorKind::InvalidAudience => "it is for another audience".to_owned(),
        ErrorKind::InvalidIssuer => "it is of another issuer".to_owned(),
        ErrorKind::InvalidSignature => "its signature is wrong".to_owned(),
        ErrorKind::InvalidAlgorithm => "its algorithm is not that of its key".to_owned(),
        ErrorKind::MissingRequiredClaim(claim) => format!("it has no claim {claim}"),
        _ => "it is malformed".to_owned(),
    }
}

/// Reads a key set (RFC 7517). Keys for other uses, of other kinds and without an id are left out.
pub(super) fn parse_keys(text: &[u8]) -> Result<IssuerKeys, String> {
    #[derive(Deserialize)]
    struct KeySet {
        keys: Vec<Value>,
    }
    let set: KeySet =
        narinfo::json::from_slice(text).map_err(|error| format!("its key set is none: {error}"))?;
    let keys = set.keys.into_iter().take(KEYS_MAX);
    let keys: IssuerKeys = keys.filter_map(|key| usable(&serde_json::from_value(key).ok()?)).collect();
    if keys.is_empty() {
        Err("its key set has no key for RS256, ES256 or EdDSA".to_owned())
    } else {
        Ok(keys)
    }
}

fn usable(key: &Jwk) -> Option<(String, (Algorithm, DecodingKey))> {
    if matches!(key.common.public_key_use, Some(PublicKeyUse::Encryption)) {
        return None;
    }
    let algorithm = match &key.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(parameters) if parameters.curve == EllipticCurve::P256 => {
            Algorithm::ES256
        }
        AlgorithmParameters::OctetKeyPair(parameters) if parameters.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        _ => return None,
    };
    Some((key.common.key_id.clone()?, (algorithm, DecodingKey::from_jwk(key).ok()?)))
}

struct RingVerifier {
    algorithm: Algorithm,
    key: DecodingKey,
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, JwtError> {
    match algorithm {
        Algorithm::RS256 | Algorithm::ES256 | Algorithm::EdDSA => {
            Ok(Box::new(RingVerifier { algorithm: *algorithm, key: key.clone() }))
        }
        _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), SignatureError> {
        let verified = match (self.algorithm, self.key.kind()) {
            (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            (Algorithm::ES256, DecodingKeyKind::SecretOrDer(point)) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            (Algorithm::EdDSA, DecodingKeyKind::SecretOrDer(point)) => {
                UnparsedPublicKey::new(&ED25519, point).verify(message, signature)
            }
            _ => return Err(SignatureError::new()),
        };
        verified.map_err(|_| SignatureError::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_set_is_an_object_with_keys_that_are_objects() {
        let key =
            r#"{"kty":"OKP","crv":"Ed25519","kid":"one","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
        let keys = parse_keys(format!("{{\"keys\":[{key}]}}").as_bytes()).expect("a key");
        assert!(keys.contains_key("one"));
        for wrong in [format!("[[{key}]]"), "{\"keys\":[[\"OKP\",\"Ed25519\",\"one\"]]}".to_owned()] {
            assert!(parse_keys(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
