//! Tokens of clients: made, shown once, recognised, revoked. All of them are in memory, so that a request
//! with one asks no database, and one without pays nothing. Must never keep, show or log a secret.

mod jwt;
mod oidc;
mod rate;
mod secret;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use crate::caller::{Action, Grant, Rejection, Rights};
use crate::index::{self, Index};
use crate::model::{NewToken, TokenRow};
use crate::name_pattern::NamePattern;
use jwt::UnverifiedJwt;
use oidc::Issuers;
pub use oidc::OidcSettings;
pub use rate::{RateLimits, RateSettings, TooFast};
use secret::Secret;
pub use secret::{TokenText, has_token};

/// Tokens on record at most.
pub const TOKENS_MAX: usize = 10_000;
/// Characters of a token's name at most.
const NAME_CHARS_MAX: usize = 64;
/// Patterns that a token may be bound to.
const PATTERNS_MAX: usize = 100;
/// Bytes of a pattern at most.
const PATTERN_BYTES_MAX: usize = 211;
/// Time between two records of last uses.
const RECORD_USES_EVERY: Duration = Duration::from_secs(60);

/// Rights and rates of clients.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Clients that may read.
    pub read: Access,
    /// Clients that may have missing paths built.
    pub build: Access,
    /// Limit of each client's rate.
    pub rate: RateSettings,
    /// Issuers of identity tokens that are trusted.
    pub oidc: Vec<OidcSettings>,
}

/// Clients that have a right without being given it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// All.
    #[default]
    Public,
    /// None: a token gives it.
    Token,
}

impl Settings {
    fn public(&self) -> Rights {
        let rights = [(self.read, Action::Read), (self.build, Action::Build)];
        rights.into_iter().filter(|(access, _)| *access == Access::Public).map(|(_, action)| action).collect()
    }
}

/// Reason why a token cannot be made or revoked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request for a token is not in order; the text says why.
    #[error("{0}")]
    BadRequest(String),
    /// There is no such token.
    #[error("there is no token {0}; `ondine token list` shows all")]
    NoSuchToken(String),
    /// The index could not be read or written.
    #[error("the index cannot be used")]
    Index(#[from] index::Error),
    /// The system gives no randomness.
    #[error("the system gives no randomness for a secret")]
    Randomness(getrandom::Error),
}

/// Rights and limits of a token that is to be made.
#[derive(Clone, Debug, Default)]
pub struct TokenRequest {
    /// Name for people: letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// Names of rights.
    pub rights: Vec<String>,
    /// Patterns of names that may be pushed, built and pinned.
    pub patterns: Vec<String>,
    /// Time until it expires.
    pub lifetime: Option<Duration>,
    /// Requests for builds that may wait at a time.
    pub queued_max: Option<u64>,
}

/// All tokens; clones share them.
#[derive(Clone)]
pub struct Auth(Arc<Shared>);

struct Shared {
    index: Index,
    /// Rights of everyone.
    public: Rights,
    rates: RateLimits,
    issuers: Issuers,
    tokens: RwLock<HashMap<u64, KnownToken>>,
}

/// A token in memory.
struct KnownToken {
    digest: [u8; 32],
    grant: Arc<Grant>,
    /// Unix seconds of its last use; 0 before the first.
    used_at: AtomicU64,
    /// The same as it is on record.
    recorded_use: AtomicU64,
}

impl Auth {
    /// Reads all tokens.
    ///
    /// # Errors
    /// The index cannot be read.
    pub async fn open(index: Index, settings: Settings) -> Result<Self, index::Error> {
        let rows = index.tokens().await?;
        let public = settings.public();
        let tokens = rows.into_iter().map(|row| (row.id, KnownToken::new(row, public))).collect();
        let rates = RateLimits::new(settings.rate);
        let issuers = Issuers::new(&settings.oidc, public);
        Ok(Self(Arc::new(Shared { index, public, rates, issuers, tokens: RwLock::new(tokens) })))
    }

    /// Rights of everyone.
    #[must_use]
    pub fn public(&self) -> Rights {
        self.0.public
    }

    /// Rates of clients.
    #[must_use]
    pub fn rates(&self) -> &RateLimits {
        &self.0.rates
    }

    /// The grant of the token in an Authorization header of this value.
    ///
    /// # Errors
    /// The header has no valid token.
    pub fn authenticate(&self, header: &[u8]) -> Result<Arc<Grant>, Rejection> {
        let text = secret::credentials(header).ok_or(Rejection::Foreign)?;
        if self.has_issuers() && UnverifiedJwt::is_form(&text) {
            return self.0.issuers.authenticate(&text);
        }
        let token = TokenText::parse(&text).ok_or_else(|| {
            // One that is cut short is a token that is misspelt.
            if text.starts_with("ondine_") { Rejection::Unknown } else { Rejection::Foreign }
        })?;
        let tokens = self.0.tokens.read().unwrap_or_else(PoisonError::into_inner);
        let known = tokens.get(&token.id()).filter(|known| token.has_digest(&known.digest));
        let known = known.ok_or(Rejection::Unknown)?;
        let now = SystemTime::now();
        if known.grant.has_ended(now) {
            return Err(Rejection::Expired(known.grant.name.clone()));
        }
        known.used_at.store(unix_seconds(now), Ordering::Relaxed);
        Ok(Arc::clone(&known.grant))
    }

    /// True where identity tokens of an issuer are trusted.
    #[must_use]
    pub fn has_issuers(&self) -> bool {
        self.0.issuers.is_used()
    }

    /// A wait for the keys of the issuer of the identity token in an Authorization header of this value;
    /// `None` where [`Auth::authenticate`] has all that it needs.
    #[must_use]
    pub fn keys_needed(&self, header: &[u8]) -> Option<impl Future<Output = ()> + Send + use<>> {
        let text = secret::credentials(header).filter(|text| UnverifiedJwt::is_form(text))?;
        if !self.0.issuers.needs_keys(&text) {
            return None;
        }
        let shared = Arc::clone(&self.0);
        Some(async move { shared.issuers.ask_for_keys(&text).await })
    }

    /// Makes a token, whose text is given this one time.
    ///
    /// # Errors
    /// The request is not in order, another token has the name, or it cannot be recorded.
    pub async fn issue(&self, request: TokenRequest) -> Result<TokenText, Error> {
        check(&request)?;
        if self.0.tokens.read().unwrap_or_else(PoisonError::into_inner).len() >= TOKENS_MAX {
            return Err(Error::BadRequest(format!(
                "there are {TOKENS_MAX} tokens already; revoke one that nobody needs"
            )));
        }
        let secret = Secret::generate().map_err(Error::Randomness)?;
        let created_at = SystemTime::now();
        let token = NewToken {
            name: request.name.clone(),
            digest: secret.digest(),
            rights: request.rights,
            patterns: request.patterns,
            created_at,
            expires_at: request.lifetime.and_then(|lifetime| created_at.checked_add(lifetime)),
            queued_max: request.queued_max,
        };
        let Some(id) = self.0.index.add_token(token.clone()).await? else {
            return Err(Error::BadRequest(format!(
                "there is a token {} already; take another name, or revoke it first",
                request.name
            )));
        };
        let known = KnownToken::new(TokenRow { id, token, used_at: None }, self.public());
        self.0.tokens.write().unwrap_or_else(PoisonError::into_inner).insert(id, known);
        tracing::info!(token = request.name, id, "token made");
        Ok(secret.into_token(id))
    }

    /// All tokens, by number, with their last uses as of now.
    ///
    /// # Errors
    /// The index cannot be read.
    pub async fn list(&self) -> Result<Vec<TokenRow>, index::Error> {
        let mut rows = self.0.index.tokens().await?;
        let tokens = self.0.tokens.read().unwrap_or_else(PoisonError::into_inner);
        for row in &mut rows {
            let used_at = tokens.get(&row.id).and_then(KnownToken::last_use);
            row.used_at = row.used_at.max(used_at);
        }
        Ok(rows)
    }

    /// Revokes the token of this name or number: once this returns, it is refused, also by requests under
    /// way that ask for their right again. Gives its name.
    ///
    /// # Errors
    /// There is no such token, or the index cannot be written.
    pub async fn revoke(&self, what: &str) -> Result<String, Error> {
        let rows = self.0.index.tokens().await?;
        let named = rows.iter().find(|row| row.token.name == what);
        let row = named.or_else(|| rows.iter().find(|row| row.id.to_string() == what));
        let row = row.ok_or_else(|| Error::NoSuchToken(what.to_owned()))?;
        let removed = self.0.index.remove_token(row.id).await?;
        let known = self.0.tokens.write().unwrap_or_else(PoisonError::into_inner).remove(&row.id);
        if let Some(known) = known {
            known.grant.revoked.store(true, Ordering::Release);
        }
        if !removed {
            return Err(Error::NoSuchToken(what.to_owned()));
        }
        tracing::info!(token = row.token.name, id = row.id, "token revoked");
        Ok(row.token.name.clone())
    }

    /// Records last uses and forgets idle rates, again and again.
    pub async fn maintain(&self) {
        loop {
            tokio::time::sleep(RECORD_USES_EVERY).await;
            self.0.rates.forget_idle();
            if let Err(error) = self.record_uses().await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot record the last uses of tokens; tried again in a minute");
            }
        }
    }

    /// Records the last uses that are not on record.
    ///
    /// # Errors
    /// The index cannot be written.
    pub async fn record_uses(&self) -> Result<(), index::Error> {
        let uses: Vec<(u64, u64)> = {
            let tokens = self.0.tokens.read().unwrap_or_else(PoisonError::into_inner);
            let used = tokens.iter().map(|(id, known)| (*id, known.used_at.load(Ordering::Relaxed)));
            used.filter(|(id, at)| tokens[id].recorded_use.load(Ordering::Relaxed) < *at).collect()
        };
        if uses.is_empty() {
            return Ok(());
        }
        let rows = uses.iter().map(|(id, at)| (*id, SystemTime::UNIX_EPOCH + Duration::from_secs(*at)));
        self.0.index.record_token_uses(rows.collect()).await?;
        let tokens = self.0.tokens.read().unwrap_or_else(PoisonError::into_inner);
        for (id, at) in uses {
            if let Some(known) = tokens.get(&id) {
                known.recorded_use.fetch_max(at, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

impl KnownToken {
    fn new(row: TokenRow, public: Rights) -> Self {
        let TokenRow { id, token, used_at } = row;
        let used_at = used_at.map_or(0, unix_seconds);
        // A right that a later version has given is none here.
        let rights: Rights = token.rights.iter().filter_map(|name| Action::parse(name)).collect();
        let grant = Grant {
            id,
            name: token.name,
            rights: rights.and(public),
            only: token.patterns.into_iter().map(NamePattern::new).collect(),
            queued_max: token.queued_max,
            expires_at: token.expires_at,
            revoked: AtomicBool::new(false),
            places: AtomicU64::new(0),
        };
        Self {
            digest: token.digest,
            grant: Arc::new(grant),
            used_at: AtomicU64::new(used_at),
            recorded_use: AtomicU64::new(used_at),
        }
    }

    fn last_use(&self) -> Option<SystemTime> {
        let seconds = self.used_at.load(Ordering::Relaxed);
        (seconds > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }
}

/// Checks that a token may be made for this.
fn check(request: &TokenRequest) -> Result<(), Error> {
    let TokenRequest { name, rights, patterns, .. } = request;
    let refuse = |reason: String| Err(Error::BadRequest(reason));
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > NAME_CHARS_MAX || !name.chars().all(fits) {
        return refuse(format!(
            "expected a name for the token of 1 to {NAME_CHARS_MAX} letters, digits, `.`, `_` and `-`"
        ));
    }
    let all = Action::ALL.map(Action::name).join(", ");
    if rights.is_empty() {
        return refuse(format!("expected at least one right of: {all}"));
    }
    if let Some(unknown) = rights.iter().find(|name| Action::parse(name).is_none()) {
        return refuse(format!("there is no right {unknown:?}; there are: {all}"));
    }
    let is_name = |text: &String| {
        !text.is_empty() && text.len() <= PATTERN_BYTES_MAX && text.chars().all(|c| c.is_ascii_graphic())
    };
    if patterns.len() > PATTERNS_MAX || !patterns.iter().all(is_name) {
        return refuse(format!(
            "expected at most {PATTERNS_MAX} patterns of names, such as hello-*, each of at most \
             {PATTERN_BYTES_MAX} characters without white space"
        ));
    }
    Ok(())
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(token: &TokenText) -> Vec<u8> {
        format!("Bearer {}", token.reveal()).into()
    }

    fn request(name: &str, lifetime: Option<Duration>) -> TokenRequest {
        let rights = vec!["push".to_owned()];
        TokenRequest { name: name.to_owned(), rights, lifetime, ..TokenRequest::default() }
    }

    async fn open(folder: &tempfile::TempDir) -> Auth {
        let index = Index::open(&folder.path().join("index")).expect("opened");
        Auth::open(index, Settings { build: Access::Token, ..Settings::default() }).await.expect("read")
    }

    #[tokio::test]
    async fn a_token_is_recognised_until_it_is_revoked_also_after_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let auth = open(&folder).await;
        let token = auth.issue(request("ci", None)).await.expect("made");
        let other = auth.issue(request("other", None)).await.expect("made");
        assert!(
            auth.issue(request("ci", None)).await.is_err_and(|error| error.to_string().contains("already"))
        );
        let grant = auth.authenticate(&header(&token)).expect("valid");
        assert!(grant.name == "ci" && grant.rights.allow(Action::Push) && grant.rights.allow(Action::Read));
        assert!(!grant.rights.allow(Action::Build));
        auth.record_uses().await.expect("written");
        drop(auth);
        let auth = open(&folder).await;
        let uses: Vec<bool> =
            auth.list().await.expect("read").iter().map(|row| row.used_at.is_some()).collect();
        assert_eq!(uses, [true, false]);
        let held = auth.authenticate(&header(&token)).expect("valid");
        assert_eq!(auth.revoke("ci").await.expect("revoked"), "ci");
        assert!(held.has_ended(SystemTime::now()));
        assert_eq!(auth.authenticate(&header(&token)).expect_err("revoked"), Rejection::Unknown);
        assert!(auth.authenticate(&header(&other)).is_ok());
        assert!(matches!(auth.revoke("ci").await, Err(Error::NoSuchToken(_))));
        assert_eq!(auth.revoke(&other.id().to_string()).await.expect("revoked"), "other");
    }

    #[tokio::test]
    async fn a_token_that_has_expired_or_has_another_secret_is_refused_for_what_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let auth = open(&folder).await;
        let expired = auth.issue(request("old", Some(Duration::ZERO))).await.expect("made");
        let rejection = auth.authenticate(&header(&expired)).expect_err("expired");
        assert_eq!(rejection, Rejection::Expired("old".to_owned()));
        let token = auth.issue(request("ci", Some(Duration::from_secs(3600)))).await.expect("made");
        assert!(auth.authenticate(&header(&token)).is_ok());
        let forged = Secret::generate().expect("randomness").into_token(token.id());
        assert_eq!(auth.authenticate(&header(&forged)).expect_err("forged"), Rejection::Unknown);
        let foreign = b"Basic dXNlcjpwYXNzd29yZA==";
        assert_eq!(auth.authenticate(foreign).expect_err("foreign"), Rejection::Foreign);
    }

    #[test]
    fn a_token_needs_a_name_and_rights_that_exist() {
        assert!(check(&request("ci.main_2-x", None)).is_ok());
        for name in ["", "a b", "a/b", "ä", &"a".repeat(65)] {
            assert!(check(&request(name, None)).is_err(), "{name}");
        }
        let of = |rights: &[&str], patterns: &[&str]| TokenRequest {
            name: "ci".to_owned(),
            rights: rights.iter().map(ToString::to_string).collect(),
            patterns: patterns.iter().map(ToString::to_string).collect(),
            ..TokenRequest::default()
        };
        assert!(check(&of(&["read", "vouch"], &["hello-*"])).is_ok());
        for (rights, patterns) in
            [(&[][..], &[][..]), (&["fly"], &[]), (&["read"], &[""]), (&["read"], &["a\nb"])]
        {
            assert!(check(&of(rights, patterns)).is_err(), "{rights:?} {patterns:?}");
        }
    }
}
