//! Identity tokens of CI systems (OpenID Connect). The issuer's keys prove whose they are, and the rights
//! follow from their claims. Keys are asked for when they are first needed, and again when an unknown one is
//! named, at most once a minute, or when they are old: the issuer may have withdrawn one.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::jwt::{self, Claims, IssuerKeys, UnverifiedJwt};
use crate::caller::{Action, Grant, Rejection, Rights};
use crate::name_pattern::NamePattern;
use crate::upstream::IssuerDocuments;

/// Time between two looks at the keys of an issuer.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// The same after a look that failed.
const ASK_AGAIN_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// Age up to which keys are used while their issuer cannot be reached.
const KEYS_KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
/// Verified tokens that are remembered, so that a signature is verified once.
const VERIFIED_MAX: u64 = 10_000;
/// Numbers of tokens on record have not this bit.
const ID_BIT: u64 = 1 << 63;

/// Trust in the identity tokens of an issuer.
#[derive(Clone, Debug)]
pub struct OidcSettings {
    /// Address of the issuer, exactly as its tokens name it.
    pub issuer: String,
    /// The audience that a token must be for.
    pub audience: String,
    /// Claims that a token must have, each with a pattern of its value; at least one.
    pub claims: Vec<(String, NamePattern)>,
    /// Rights that it has then.
    pub rights: Vec<Action>,
    /// Patterns of the names that may be pushed, built and pinned; empty for all names.
    pub only: Vec<NamePattern>,
    /// Age up to which the keys of the issuer are used without asking for them again.
    pub keys_fresh_for: Duration,
}

/// All issuers.
pub(super) struct Issuers {
    issuers: Vec<Issuer>,
    verified: moka::sync::Cache<[u8; 32], VerifiedToken>,
    public: Rights,
}

/// A token whose signature was verified.
#[derive(Clone)]
struct VerifiedToken {
    grant: Arc<Grant>,
    /// Time from which its issuer's keys were old, and are to be read again.
    until: Instant,
}

/// The keys that an issuer has shown.
#[derive(Default)]
struct KnownKeys {
    keys: IssuerKeys,
    read_at: Option<Instant>,
}

impl KnownKeys {
    /// True where they were read within this time.
    fn is_within(&self, age: Duration) -> bool {
        self.read_at.is_some_and(|read_at| read_at.elapsed() < age)
    }
}

struct Issuer {
    settings: OidcSettings,
    documents: IssuerDocuments,
    known: RwLock<KnownKeys>,
    /// Time from which the keys may be asked for again. Held while they are.
    ask_from: tokio::sync::Mutex<Instant>,
}

impl Issuers {
    pub(super) fn new(settings: &[OidcSettings], public: Rights) -> Self {
        jwt::install();
        let issuer = |settings: &OidcSettings| Issuer {
            settings: settings.clone(),
            documents: IssuerDocuments::new(&settings.issuer),
            known: RwLock::default(),
            ask_from: tokio::sync::Mutex::new(Instant::now()),
        };
        let verified = moka::sync::Cache::new(VERIFIED_MAX);
        Self { issuers: settings.iter().map(issuer).collect(), verified, public }
    }

    /// True where identity tokens may be valid at all.
    pub(super) fn is_used(&self) -> bool {
        !self.issuers.is_empty()
    }

    /// The grant of an identity token, by the keys that are known.
    pub(super) fn authenticate(&self, text: &str) -> Result<Arc<Grant>, Rejection> {
        let digest = digest_of(text);
        if let Some(grant) = self.verified_lately(&digest) {
            return if grant.has_ended(SystemTime::now()) {
                Err(rejection("it has expired"))
            } else {
                Ok(grant)
            };
        }
        let jwt = UnverifiedJwt::parse(text).map_err(|reason| rejection(&reason))?;
        let mut last = rejection(&format!("this server trusts no issuer {}", jwt.issuer.escape_default()));
        for issuer in self.issuers_of(&jwt) {
            match issuer.verify(&jwt, self.public) {
                Ok(grant) => {
                    let until = issuer.keys_old_from();
                    self.verified.insert(digest, VerifiedToken { grant: Arc::clone(&grant), until });
                    return Ok(grant);
                }
                Err(reason) => last = rejection(&reason),
            }
        }
        Err(last)
    }

    /// True where keys have to be asked for before an identity token is looked at, and may be.
    pub(super) fn needs_keys(&self, text: &str) -> bool {
        self.verified_lately(&digest_of(text)).is_none()
            && UnverifiedJwt::parse(text)
                .is_ok_and(|jwt| self.issuers_of(&jwt).any(|issuer| issuer.needs_key(&jwt.key_id)))
    }

    fn verified_lately(&self, digest: &[u8; 32]) -> Option<Arc<Grant>> {
        let verified = self.verified.get(digest).filter(|verified| verified.until > Instant::now());
        verified.map(|verified| verified.grant)
    }

    /// Asks for the keys that an identity token needs, where that may be done now.
    pub(super) async fn ask_for_keys(&self, text: &str) {
        let Ok(jwt) = UnverifiedJwt::parse(text) else { return };
        for issuer in self.issuers_of(&jwt) {
            issuer.ask_for_key(&jwt.key_id).await;
        }
    }

    fn issuers_of(&self, jwt: &UnverifiedJwt) -> impl Iterator<Item = &Issuer> {
        self.issuers.iter().filter(|issuer| issuer.settings.issuer == jwt.issuer)
    }
}

impl Issuer {
    fn verify(&self, jwt: &UnverifiedJwt, public: Rights) -> Result<Arc<Grant>, String> {
        let settings = &self.settings;
        let known = self.known();
        let key = known.keys.get(&jwt.key_id).filter(|_| known.is_within(KEYS_KEPT_FOR));
        let key = key.ok_or("its issuer has not shown its key, or cannot be reached")?;
        let claims = jwt.verify(key, &settings.issuer, &settings.audience)?;
        match settings.claims.iter().find(|(name, pattern)| !has(&claims, name, pattern)) {
            Some((name, pattern)) => Err(format!("its claim {name} does not match {}", pattern.as_str())),
            None => Ok(Arc::new(settings.grant(jwt, &claims, public))),
        }
    }

    fn known(&self) -> RwLockReadGuard<'_, KnownKeys> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time from which the keys are to be read again.
    fn keys_old_from(&self) -> Instant {
        self.known().read_at.map_or_else(Instant::now, |read_at| read_at + self.settings.keys_fresh_for)
    }

    /// True where a key is not known, or an old one.
    fn lacks(&self, key_id: &str) -> bool {
        let known = self.known();
        !known.keys.contains_key(key_id) || !known.is_within(self.settings.keys_fresh_for)
    }

    /// The same, where the keys may be asked for now. Whoever asks just now may bring it.
    fn needs_key(&self, key_id: &str) -> bool {
        self.lacks(key_id) && self.ask_from.try_lock().map_or(true, |from| *from <= Instant::now())
    }

    async fn ask_for_key(&self, key_id: &str) {
        let mut ask_from = self.ask_from.lock().await;
        if *ask_from > Instant::now() || !self.lacks(key_id) {
            return;
        }
        let read = self.documents.keys().await.and_then(|text| jwt::parse_keys(&text));
        match read {
            Ok(keys) => {
                let now = Instant::now();
                *self.known.write().unwrap_or_else(PoisonError::into_inner) =
                    KnownKeys { keys, read_at: Some(now) };
                *ask_from = now + ASK_AGAIN_AFTER.min(self.settings.keys_fresh_for);
            }
            Err(reason) => {
                let issuer = &self.settings.issuer;
                tracing::warn!(
                    issuer,
                    reason,
                    "cannot read the keys of an issuer; tokens whose key is not known are refused"
                );
                *ask_from = Instant::now() + ASK_AGAIN_AFTER_FAILURE;
            }
        }
    }
}

impl OidcSettings {
    fn grant(&self, jwt: &UnverifiedJwt, claims: &Claims, public: Rights) -> Grant {
        let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default();
        // Limits count by who it is, not by token: each job of a CI system has another one.
        let mut hasher = DefaultHasher::new();
        (&jwt.issuer, subject).hash(&mut hasher);
        let expires = claims.get("exp").and_then(Value::as_f64).unwrap_or_default().max(0.0);
        let expires = Duration::try_from_secs_f64(expires).unwrap_or_default() + Duration::from_secs(60);
        Grant {
            id: hasher.finish() | ID_BIT,
            name: format!("of {}", subject.escape_default()),
            rights: self.rights.iter().copied().collect::<Rights>().and(public),
            only: self.only.clone(),
            queued_max: None,
            expires_at: SystemTime::UNIX_EPOCH.checked_add(expires).or(Some(SystemTime::UNIX_EPOCH)),
            revoked: AtomicBool::new(false),
            places: AtomicU64::new(0),
        }
    }
}

/// True where a claim, or an item of it, matches.
fn has(claims: &Claims, name: &str, pattern: &NamePattern) -> bool {
    fn matches(value: &Value, pattern: &NamePattern) -> bool {
        match value {
            Value::String(text) => pattern.matches(text),
            Value::Bool(_) | Value::Number(_) => pattern.matches(&value.to_string()),
            Value::Array(items) => items.iter().any(|item| !item.is_array() && matches(item, pattern)),
            Value::Null | Value::Object(_) => false,
        }
    }
    claims.get(name).is_some_and(|value| matches(value, pattern))
}

fn digest_of(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

fn rejection(reason: &str) -> Rejection {
    Rejection::Identity(reason.to_owned())
}
