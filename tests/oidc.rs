//! Identity tokens of CI systems: an issuer with real keys, and what is taken and refused of its tokens.

use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::support;
use crate::support::http::raw;
use crate::support::process::run;
use crate::support::store::{Folder, write};
use crate::support::upstream::settings_file;
use crate::support::{Cache, FileServer, NixStore, Release};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
    RsaPublicKeyComponents,
};
use serde_json::{Value, json};

/// Audience of good tokens.
const AUDIENCE: &str = "https://cache.example.org";
/// Time that an answer may take.
const SOON: Duration = Duration::from_secs(60);

/// A key pair of an issuer.
enum SigningPair {
    Rs256(RsaKeyPair),
    Es256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

fn base64url(bytes: impl AsRef<[u8]>) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

impl SigningPair {
    fn es256() -> SigningPair {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random);
        SigningPair::Es256(pair.expect("the key that was just made"))
    }

    fn ed25519() -> SigningPair {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        let pair = Ed25519KeyPair::from_pkcs8(document.as_ref());
        SigningPair::Ed25519(pair.expect("the key that was just made"))
    }

    /// Made by openssl, since ring makes none.
    fn rs256(folder: &Path) -> SigningPair {
        let file = folder.join("rsa.der");
        let mut openssl = std::process::Command::new("openssl");
        openssl.args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-outform", "DER"]);
        run({
            openssl.arg("-out").arg(&file);
            openssl
        })
        .must_succeed();
        let bytes = std::fs::read(&file).expect("a key");
        SigningPair::Rs256(RsaKeyPair::from_der(&bytes).expect("a key of openssl"))
    }

    fn algorithm(&self) -> &'static str {
        match self {
            SigningPair::Rs256(_) => "RS256",
            SigningPair::Es256(_) => "ES256",
            SigningPair::Ed25519(_) => "EdDSA",
        }
    }

    /// Its public key as a key set has it.
    fn public(&self, id: &str) -> Value {
        let mut key = match self {
            SigningPair::Rs256(pair) => {
                let parts = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({ "kty": "RSA", "n": base64url(parts.n), "e": base64url(parts.e) })
            }
            SigningPair::Es256(pair) => {
                let point = pair.public_key().as_ref();
                let (x, y) = (base64url(&point[1..33]), base64url(&point[33..]));
                json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y })
            }
            SigningPair::Ed25519(pair) => {
                json!({ "kty": "OKP", "crv": "Ed25519", "x": base64url(pair.public_key().as_ref()) })
            }
        };
        key["kid"] = json!(id);
        key["use"] = json!("sig");
        key
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            SigningPair::Rs256(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).expect("signed");
                signature
            }
            SigningPair::Es256(pair) => pair.sign(&random, message).expect("signed").as_ref().to_vec(),
            SigningPair::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    fn token(&self, id: &str, claims: &Value) -> String {
        let header = json!({ "alg": self.algorithm(), "kid": id, "typ": "JWT" });
        let message = format!("{}.{}", base64url(header.to_string()), base64url(claims.to_string()));
        let signature = base64url(self.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }
}

/// An issuer whose documents a server of files has.
struct Issuer {
    server: FileServer,
    folder: Folder,
}

impl Issuer {
    fn new() -> Issuer {
        let folder = Folder::new();
        let server = FileServer::new(folder.path().to_owned());
        let url = server.url();
        let url = url.trim_end_matches('/');
        let configuration = json!({ "issuer": url, "jwks_uri": format!("{url}/keys.json") });
        write(&folder.subfolder(".well-known").join("openid-configuration"), &configuration.to_string());
        Issuer { server, folder }
    }

    fn url(&self) -> String {
        self.server.url().trim_end_matches('/').to_owned()
    }

    fn show(&self, keys: &[(&str, &SigningPair)]) {
        let keys: Vec<Value> = keys.iter().map(|(id, pair)| pair.public(id)).collect();
        write(&self.folder.path().join("keys.json"), &json!({ "keys": keys }).to_string());
    }

    /// Claims of a good token.
    fn claims(&self) -> Value {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
        json!({
            "iss": self.url(),
            "aud": AUDIENCE,
            "sub": "repo:acme/app:ref:refs/heads/main",
            "repository": "acme/app",
            "iat": now,
            "nbf": now,
            "exp": now + 600,
        })
    }

    /// A server that trusts it.
    fn cache(&self) -> Cache {
        self.cache_with("")
    }

    /// The same with these lines in its table.
    fn cache_with(&self, lines: &str) -> Cache {
        let store = NixStore::new(Release::Host);
        let table = format!(
            "[[oidc]]\nissuer = \"{}\"\naudience = \"{AUDIENCE}\"\nclaims = [\"repository=acme/*\"]\nmay = [\"read\", \"pin\"]\n{lines}",
            self.url()
        );
        let file = settings_file(&store, &[table]);
        Cache::of(store, &["--config", &file, "--read", "token", "--build", "token"], &[])
    }
}

/// The answer to GET /api/v1/status with this token.
fn status(cache: &Cache, token: &str) -> (u16, String) {
    let answer = cache.http.get_with("/api/v1/status", &[("authorization", &format!("Bearer {token}"))]);
    (answer.status, answer.text())
}

fn assert_refused(cache: &Cache, token: &str, reason: &str) {
    let (status, text) = status(cache, token);
    assert!(status == 401 && text.contains(reason), "{status}, no {reason:?} in: {text}");
}

#[test]
fn a_token_of_a_trusted_issuer_has_the_rights_of_its_claims_whatever_its_algorithm() {
    let issuer = Issuer::new();
    let (rsa, ec, ed) =
        (SigningPair::rs256(issuer.folder.path()), SigningPair::es256(), SigningPair::ed25519());
    issuer.show(&[("rsa", &rsa), ("ec", &ec), ("ed", &ed)]);
    let cache = issuer.cache();
    for (id, pair) in [("rsa", &rsa), ("ec", &ec), ("ed", &ed)] {
        let token = pair.token(id, &issuer.claims());
        assert_eq!(status(&cache, &token).0, 200, "{id}");
        let pin = |right: &str, path: &str| {
            let request = format!(
                "{right} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\n\r\n"
            );
            support::cache::status_of(&raw(cache.ondine.address(), request.as_bytes(), SOON).0)
        };
        assert_eq!(pin("POST", "/api/v1/pins/0123456789abcdfghijklmnpqrsvwxyz"), 200, "{id}");
        assert_eq!(pin("POST", "/api/v1/gc"), 403, "{id}");
    }
    let asked = issuer.server.seen().iter().filter(|seen| seen.target().ends_with("keys.json")).count();
    assert_eq!(asked, 1, "the keys are remembered");
}

#[test]
fn a_token_is_refused_for_what_is_wrong_with_it() {
    let issuer = Issuer::new();
    let (pair, stranger) = (SigningPair::es256(), SigningPair::es256());
    issuer.show(&[("a", &pair)]);
    let cache = issuer.cache();
    let with = |name: &str, value: Value| {
        let mut claims = issuer.claims();
        claims[name] = value;
        pair.token("a", &claims)
    };
    let now = issuer.claims()["iat"].as_u64().expect("a time");
    assert_eq!(status(&cache, &with("aud", json!(["other", AUDIENCE]))).0, 200);
    assert_eq!(status(&cache, &with("exp", json!(now - 30))).0, 200, "clocks may differ by a minute");
    for (token, reason) in [
        (with("aud", json!("https://other.example.org")), "another audience"),
        (with("iss", json!("https://other.example.org")), "trusts no issuer"),
        (with("exp", json!(now - 120)), "it has expired"),
        (with("exp", Value::Null), "no claim exp"),
        (with("nbf", json!(now + 120)), "not valid yet"),
        (with("repository", json!("evil/app")), "repository does not match acme/*"),
        (stranger.token("a", &issuer.claims()), "its signature is wrong"),
        (stranger.token("b", &issuer.claims()), "has not shown its key"),
    ] {
        assert_refused(&cache, &token, reason);
    }
    // No signature at all, and one made with the public key as if it were a secret.
    let (good, header) = (pair.token("a", &issuer.claims()), |alg: &str| {
        base64url(json!({ "alg": alg, "kid": "a", "typ": "JWT" }).to_string())
    });
    let payload = good.split('.').nth(1).expect("three parts");
    assert_refused(&cache, &format!("{}.{payload}.", header("none")), "the identity token is refused");
    let message = format!("{}.{payload}", header("HS256"));
    let point = pair.public("a").to_string();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, point.as_bytes());
    let forged = format!("{message}.{}", base64url(ring::hmac::sign(&key, message.as_bytes())));
    assert_refused(&cache, &forged, "its algorithm is not that of its key");
    let log = cache.ondine.log();
    assert!(!log.contains(payload), "a token is in the log: {log}");
}

#[test]
fn a_new_key_is_asked_for_and_an_issuer_that_does_not_answer_is_reported() {
    let issuer = Issuer::new();
    let (first, second) = (SigningPair::ed25519(), SigningPair::es256());
    let cache = issuer.cache();
    // No key set yet: it cannot be read, and is asked for again soon.
    assert_refused(&cache, &first.token("first", &issuer.claims()), "has not shown its key");
    assert!(cache.ondine.log().contains("cannot read the keys of an issuer"), "{}", cache.ondine.log());
    issuer.show(&[("first", &first), ("second", &second)]);
    support::wait_until("the keys are asked for again", SOON, || {
        status(&cache, &first.token("first", &issuer.claims())).0 == 200
    });
    assert_eq!(status(&cache, &second.token("second", &issuer.claims())).0, 200);
}

#[test]
fn a_key_that_is_withdrawn_is_refused_and_an_issuer_that_is_away_withdraws_none() {
    let issuer = Issuer::new();
    let (kept, withdrawn) = (SigningPair::es256(), SigningPair::ed25519());
    issuer.show(&[("kept", &kept), ("withdrawn", &withdrawn)]);
    let cache = issuer.cache_with("keys-fresh-for = \"1s\"\n");
    let tokens = [kept.token("kept", &issuer.claims()), withdrawn.token("withdrawn", &issuer.claims())];
    for token in &tokens {
        assert_eq!(status(&cache, token).0, 200);
    }
    // What it answers is no key set: the keys that were read stay.
    write(&issuer.folder.path().join("keys.json"), "503");
    support::wait_until("the keys are asked for again", SOON, || {
        assert_eq!(status(&cache, &tokens[1]).0, 200);
        cache.ondine.log().contains("cannot read the keys of an issuer")
    });
    issuer.show(&[("kept", &kept)]);
    support::wait_until("the key is refused", SOON, || status(&cache, &tokens[1]).0 == 401);
    assert_refused(&cache, &tokens[1], "has not shown its key");
    assert_eq!(status(&cache, &tokens[0]).0, 200);
}
