//! Identity tokens of CI systems (OpenID Connect). The issuer's keys prove whose they are, and the rights
//! follow from their claims. Keys are asked for when they are first needed, and again when an unknown one is
//! named, at most once a minute.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, PoisonError, RwLock};
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
}

/// All issuers.
pub(super) struct Issuers {
    issuers: Vec<Issuer>,
    verified: moka::sync::Cache<[u8; 32], Arc<Grant>>,
    public: Rights,
}

struct Issuer {
    settings: OidcSettings,
    documents: IssuerDocuments,
    keys: RwLock<IssuerKeys>,
    /// Time from which the keys may be asked for again. Held while they are.
    ask_from: tokio::sync::Mutex<Instant>,
}

/// Outcome of a look at an identity token.
pub(super) enum JwtOutcome {
    Valid(Arc<Grant>),
    Rejected(Rejection),
    /// The keys of its issuer have to be asked for first.
    KeysNeeded,
}

impl Issuers {
    pub(super) fn new(settings: &[OidcSettings], public: Rights) -> Self {
        jwt::install();
        let issuer = |settings: &OidcSettings| Issuer {
            settings: settings.clone(),
            documents: IssuerDocuments::new(&settings.issuer),
            keys: RwLock::default(),
            ask_from: tokio::sync::Mutex::new(Instant::now()),
        };
        let verified = moka::sync::Cache::new(VERIFIED_MAX);
        Self { issuers: settings.iter().map(issuer).collect(), verified, public }
    }

    /// True where identity tokens may be valid at all.
    pub(super) fn is_used(&self) -> bool {
        !self.issuers.is_empty()
    }

    /// Looks at an identity token, without waiting.
    pub(super) fn look(&self, text: &str) -> JwtOutcome {
        let digest: [u8; 32] = Sha256::digest(text).into();
        if let Some(grant) = self.verified.get(&digest) {
            if grant.has_ended(SystemTime::now()) {
                return rejected("it has expired");
            }
            return JwtOutcome::Valid(grant);
        }
        let jwt = match UnverifiedJwt::parse(text) {
            Ok(jwt) => jwt,
            Err(reason) => return rejected(&reason),
        };
        let mut last = JwtOutcome::Rejected(Rejection::Identity(format!(
            "this server trusts no issuer {}",
            jwt.issuer.escape_default()
        )));
        for issuer in self.issuers_of(&jwt) {
            match issuer.look(&jwt, self.public) {
                JwtOutcome::Valid(grant) => {
                    self.verified.insert(digest, Arc::clone(&grant));
                    return JwtOutcome::Valid(grant);
                }
                JwtOutcome::KeysNeeded => return JwtOutcome::KeysNeeded,
                other => last = other,
            }
        }
        last
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
    fn look(&self, jwt: &UnverifiedJwt, public: Rights) -> JwtOutcome {
        let settings = &self.settings;
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let Some(key) = keys.get(&jwt.key_id) else {
            drop(keys);
            // Whoever asks just now may bring it.
            let may_ask = self.ask_from.try_lock().map_or(true, |from| *from <= Instant::now());
            return if may_ask {
                JwtOutcome::KeysNeeded
            } else {
                rejected("its issuer has not shown its key, or cannot be reached")
            };
        };
        let claims = match jwt.verify(key, &settings.issuer, &settings.audience) {
            Ok(claims) => claims,
            Err(reason) => return rejected(&reason),
        };
        match settings.claims.iter().find(|(name, pattern)| !has(&claims, name, pattern)) {
            Some((name, pattern)) => {
                rejected(&format!("its claim {name} does not match {}", pattern.as_str()))
            }
            None => JwtOutcome::Valid(Arc::new(settings.grant(jwt, &claims, public))),
        }
    }

    async fn ask_for_key(&self, key_id: &str) {
        let mut ask_from = self.ask_from.lock().await;
        let known = || self.keys.read().unwrap_or_else(PoisonError::into_inner).contains_key(key_id);
        if *ask_from > Instant::now() || known() {
            return;
        }
        let read = self.documents.keys().await.and_then(|text| jwt::parse_keys(&text));
        match read {
            Ok(keys) => {
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
                *ask_from = Instant::now() + ASK_AGAIN_AFTER;
            }
            Err(reason) => {
                let issuer = &self.settings.issuer;
                tracing::warn!(issuer, reason, "cannot read the keys of an issuer; its tokens are refused");
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

fn rejected(reason: &str) -> JwtOutcome {
    JwtOutcome::Rejected(Rejection::Identity(reason.to_owned()))
}
