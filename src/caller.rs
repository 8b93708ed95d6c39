//! Callers and their rights. A request's caller is made once, where its connection comes in; every action
//! asks [`may`] before anything is done for it, and [`may_for`] where it is about a name.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use crate::client::network;
use crate::name_pattern::NamePattern;
use crate::upstream::{Asker, Via};

/// The party that a request comes from.
#[derive(Clone, Debug)]
pub enum Caller {
    /// A client on the network that has shown no valid token.
    Public {
        /// Its address, as far as trusted proxies tell it.
        address: IpAddr,
        /// Caches of our kind that its request has come through.
        via: Via,
        /// The rights of everyone.
        rights: Rights,
        /// The reason why the credentials that it has shown are not valid, where there were some.
        rejected: Option<Rejection>,
    },
    /// A client on the network that has shown a token.
    Token {
        /// Rights and limits of the token.
        grant: Arc<Grant>,
        /// Its address, as far as trusted proxies tell it.
        address: IpAddr,
        /// Caches of our kind that its request has come through.
        via: Via,
    },
    /// A process that could open the control socket, which its file permissions allow to administrators
    /// alone.
    Admin,
}

/// The party that limits count by and that owns requests: whoever has a token or comes from one network, or
/// the administrator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CallerKey {
    /// Clients with the token of this number.
    Token(u64),
    /// Clients of one network without a token.
    Network(IpAddr),
    /// The administrator, who may speak for all.
    Admin,
}

/// Rights and limits of a token.
#[derive(Debug)]
pub struct Grant {
    /// Number that limits for each token count by.
    pub id: u64,
    /// Name for people.
    pub name: String,
    /// Rights, with those of everyone.
    pub rights: Rights,
    /// Patterns of the names that may be pushed, built and pinned; empty for all names.
    pub only: Vec<NamePattern>,
    /// Requests for builds that may wait at a time; `None` for no limit of its own.
    pub queued_max: Option<u64>,
    /// Time from which it is refused; `None` for never.
    pub expires_at: Option<SystemTime>,
    /// True once it is revoked, also for requests under way.
    pub revoked: AtomicBool,
    /// Places in the queue that it has now.
    pub places: AtomicU64,
}

/// A place in the queue that counts to a token until it is dropped.
#[derive(Debug)]
pub struct QueuePlace(Arc<Grant>);

impl Drop for QueuePlace {
    fn drop(&mut self) {
        self.0.places.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An action, and at the same time the right that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Reads the cache and the state of the server.
    Read,
    /// Has missing paths built.
    Build,
    /// Uploads derivations and content-addressed paths.
    Push,
    /// Has uploaded input-addressed outputs believed without a trusted signature.
    Vouch,
    /// Refreshes package sets.
    Refresh,
    /// Takes back a remembered failure, and has it built again.
    Cancel,
    /// Pins and unpins.
    Pin,
    /// Collects and checks stored NARs, makes and revokes tokens; whoever has it may do everything.
    Admin,
}

/// A set of rights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights(u8);

/// The reason why credentials are not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// They have not the form of a token: those of a proxy, perhaps.
    #[error("the credentials of the request are no token of this server")]
    Foreign,
    /// No such token is on record.
    #[error("the token is unknown: it was revoked, is misspelt, or is another server's")]
    Unknown,
    /// The token of this name has expired.
    #[error("the token {0} has expired; an administrator makes a new one with `ondine token new`")]
    Expired(String),
    /// The identity token of a CI system is refused, for this reason.
    #[error("the identity token is refused: {0}")]
    Identity(String),
}

/// The caller lacks the right that an action needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Clients without a token, who have these rights, lack it.
    #[error(
        "refused: this needs a token with the right {right:?}{reason}; an administrator makes one with \
         `ondine token new --name NAME --may {wanted}`",
        right = .0.name(), wanted = .2.or_to_read().with(*.0), reason = because(.1.as_ref())
    )]
    NoToken(Action, Option<Rejection>, Rights),
    /// The token of this name lacks it, and has these rights.
    #[error(
        "refused: the token {token} lacks the right {right:?}; an administrator makes another one with \
         `ondine token new --name NAME --may {wanted}`", token = .1, right = .0.name(), wanted = .2.with(*.0)
    )]
    Lacking(Action, String, Rights),
    /// The token of this name has it for other names only.
    #[error(
        "refused: the token {token} has the right {right:?} for names such as {patterns} alone, and {name} is none of them",
        right = .action.name()
    )]
    OtherName {
        /// The action.
        action: Action,
        /// Name of the token.
        token: String,
        /// Its patterns.
        patterns: String,
        /// The name that no pattern of it matches.
        name: String,
    },
    /// The token of this name was revoked, or has expired, after the request began.
    #[error("refused: the token {} was revoked or has expired", .1)]
    Ended(Action, String),
    /// The token of this name has as many builds waiting as it may.
    #[error("refused: {1} builds wait for the token {0}, as many as may (its --max-queued); ask again later")]
    Full(String, u64),
}

fn because(rejected: Option<&Rejection>) -> String {
    rejected.map(|reason| format!(" ({reason})")).unwrap_or_default()
}

/// Allows an action, or refuses it. An action that takes long asks again before it takes effect: a token may
/// have been revoked meanwhile.
///
/// # Errors
/// The caller lacks the right.
pub fn may(caller: &Caller, action: Action) -> Result<(), Refusal> {
    match caller {
        Caller::Admin => Ok(()),
        Caller::Public { rights, .. } if rights.allow(action) => Ok(()),
        Caller::Public { rights, rejected, .. } => Err(Refusal::NoToken(action, rejected.clone(), *rights)),
        Caller::Token { grant, .. } if grant.has_ended(SystemTime::now()) => {
            Err(Refusal::Ended(action, grant.name.clone()))
        }
        Caller::Token { grant, .. } if grant.rights.allow(action) => Ok(()),
        Caller::Token { grant, .. } => Err(Refusal::Lacking(action, grant.name.clone(), grant.rights)),
    }
}

/// Allows an action on what has this name (of a derivation or of a store path, without its hash), or refuses
/// it. An output has the name of its derivation, with that of the output behind it.
///
/// # Errors
/// The caller lacks the right, or has it for other names.
pub fn may_for(caller: &Caller, action: Action, name: &str) -> Result<(), Refusal> {
    may(caller, action)?;
    caller.grant().map_or(Ok(()), |grant| grant.check_name(action, name))
}

impl Caller {
    /// Address that limits for each client count; none for an administrator.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Public { address, .. } | Self::Token { address, .. } => Some(*address),
            Self::Admin => None,
        }
    }

    /// The party that limits count it to.
    #[must_use]
    pub fn key(&self) -> CallerKey {
        match self {
            Self::Token { grant, .. } => CallerKey::Token(grant.id),
            Self::Public { address, .. } => CallerKey::Network(network(*address)),
            Self::Admin => CallerKey::Admin,
        }
    }

    /// True for another cache of our kind, which must not be kept waiting for a build.
    #[must_use]
    pub fn is_relay(&self) -> bool {
        matches!(self, Self::Public { via, .. } | Self::Token { via, .. } if !via.is_empty())
    }

    /// The caller as requests to upstreams tell of it.
    #[must_use]
    pub fn asker(&self) -> Asker {
        match self {
            Self::Public { address, via, .. } | Self::Token { address, via, .. } => {
                Asker { via: via.clone(), client: Some(*address) }
            }
            Self::Admin => Asker::default(),
        }
    }

    /// The token that it has shown.
    #[must_use]
    pub fn grant(&self) -> Option<&Arc<Grant>> {
        match self {
            Self::Token { grant, .. } => Some(grant),
            Self::Public { .. } | Self::Admin => None,
        }
    }

    /// A place in the queue for the build of a derivation of this name; none for callers without a token,
    /// which have no number of places of their own.
    ///
    /// # Errors
    /// Its token is bound to other names, or has all the places that it may have.
    pub fn place(&self, name: &str) -> Result<Option<QueuePlace>, Refusal> {
        self.grant().map(|grant| grant.place(name)).transpose()
    }

    /// The reason why a token that it has shown is not valid.
    #[must_use]
    pub fn rejected(&self) -> Option<&Rejection> {
        match self {
            Self::Public { rejected, .. } => {
                rejected.as_ref().filter(|reason| **reason != Rejection::Foreign)
            }
            Self::Token { .. } | Self::Admin => None,
        }
    }
}

impl Grant {
    /// True where it is bound to names, or to a number of requests.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        !self.only.is_empty() || self.queued_max.is_some()
    }

    /// A place in the queue for the build of a derivation of this name.
    ///
    /// # Errors
    /// The token is bound to other names, or has all the places that it may have.
    pub fn place(self: &Arc<Self>, name: &str) -> Result<QueuePlace, Refusal> {
        self.check_name(Action::Build, name)?;
        let max = self.queued_max.unwrap_or(u64::MAX);
        let more = |places| (places < max).then_some(places + 1);
        match self.places.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
            Ok(_) => Ok(QueuePlace(Arc::clone(self))),
            Err(_) => Err(Refusal::Full(self.name.clone(), max)),
        }
    }

    fn check_name(&self, action: Action, name: &str) -> Result<(), Refusal> {
        let name = name.strip_suffix(".drv").unwrap_or(name);
        if self.only.is_empty() || self.only.iter().any(|pattern| pattern.matches(name)) {
            return Ok(());
        }
        let patterns: Vec<&str> = self.only.iter().map(NamePattern::as_str).collect();
        let (token, patterns) = (self.name.clone(), patterns.join(", "));
        Err(Refusal::OtherName { action, token, patterns, name: name.to_owned() })
    }

    /// True from its expiry or revocation on.
    #[must_use]
    pub fn has_ended(&self, now: SystemTime) -> bool {
        self.revoked.load(Ordering::Acquire) || self.expires_at.is_some_and(|end| end <= now)
    }
}

impl Action {
    /// All actions, in the order in which people read of them.
    pub const ALL: [Self; 8] = [
        Self::Read,
        Self::Build,
        Self::Push,
        Self::Vouch,
        Self::Refresh,
        Self::Cancel,
        Self::Pin,
        Self::Admin,
    ];

    /// The right of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }

    /// Name of the right.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Build => "build",
            Self::Push => "push",
            Self::Vouch => "vouch",
            Self::Refresh => "refresh",
            Self::Cancel => "cancel",
            Self::Pin => "pin",
            Self::Admin => "admin",
        }
    }
}

impl Rights {
    /// These rights with another one.
    #[must_use]
    pub fn with(self, action: Action) -> Self {
        Self(self.0 | 1 << action as u8)
    }

    /// These rights with others.
    #[must_use]
    pub fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// True where the action is allowed; the right to administer allows every one.
    #[must_use]
    pub fn allow(self, action: Action) -> bool {
        self.0 & (1 << action as u8 | 1 << Action::Admin as u8) != 0
    }

    /// Nothing where everyone may read; else the right to read, which whoever does anything here needs, too.
    fn or_to_read(self) -> Self {
        if self.allow(Action::Read) { Self::default() } else { Self::default().with(Action::Read) }
    }
}

/// Names of the rights, as `ondine token new --may` takes them.
impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has = |action: &Action| self.0 & (1 << *action as u8) != 0;
        let names: Vec<&str> = Action::ALL.into_iter().filter(has).map(Action::name).collect();
        f.write_str(&names.join(","))
    }
}

impl FromIterator<Action> for Rights {
    fn from_iter<I: IntoIterator<Item = Action>>(actions: I) -> Self {
        actions.into_iter().fold(Self::default(), Self::with)
    }
}

impl Refusal {
    /// The action that was refused.
    #[must_use]
    pub fn action(&self) -> Action {
        match self {
            Self::NoToken(action, ..) | Self::Lacking(action, ..) | Self::Ended(action, _) => *action,
            Self::OtherName { action, .. } => *action,
            Self::Full(..) => Action::Build,
        }
    }

    /// True where another token, or one at all, is what would help.
    #[must_use]
    pub fn wants_token(&self) -> bool {
        matches!(self, Self::NoToken(..) | Self::Ended(..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(rights: &[Action]) -> Caller {
        Caller::Public {
            address: "192.0.2.1".parse().expect("an address"),
            via: Via::default(),
            rights: rights.iter().copied().collect(),
            rejected: None,
        }
    }

    fn token(rights: &[Action], only: &[&str]) -> Caller {
        Caller::Token {
            grant: Arc::new(Grant {
                id: 1,
                name: "ci".to_owned(),
                rights: rights.iter().copied().collect(),
                only: only.iter().map(|pattern| NamePattern::new(*pattern)).collect(),
                queued_max: None,
                expires_at: None,
                revoked: AtomicBool::new(false),
                places: AtomicU64::new(0),
            }),
            address: "192.0.2.1".parse().expect("an address"),
            via: Via::default(),
        }
    }

    #[test]
    fn a_caller_may_do_what_its_rights_say_and_an_administrator_everything() {
        let rights = [Action::Read, Action::Pin];
        for action in Action::ALL {
            let allowed = rights.contains(&action);
            assert_eq!(may(&public(&rights), action).is_ok(), allowed, "{action:?}");
            assert_eq!(may(&token(&rights, &[]), action).is_ok(), allowed, "{action:?}");
            assert_eq!(may(&Caller::Admin, action), Ok(()));
            assert_eq!(may(&token(&[Action::Admin], &[]), action), Ok(()));
            assert_eq!(Action::parse(action.name()), Some(action));
        }
        let refusal = may(&public(&rights), Action::Push).expect_err("refused").to_string();
        assert!(refusal.contains("the right \"push\"") && refusal.contains("ondine token new"), "{refusal}");
        let refusal = may(&token(&rights, &[]), Action::Push).expect_err("refused").to_string();
        assert!(refusal.contains("token ci lacks the right \"push\""), "{refusal}");
        assert!(refusal.ends_with("--may read,push,pin`"), "another token has its rights, too: {refusal}");
        // Where not everyone may read, whoever pushes needs that right, too.
        let told = |rights: &[Action], action| may(&public(rights), action).expect_err("refused").to_string();
        assert!(told(&[], Action::Push).ends_with("--may read,push`"));
        assert!(told(&[], Action::Read).ends_with("--may read`"));
        assert!(told(&[Action::Read], Action::Push).ends_with("--may push`"));
    }

    #[test]
    fn a_token_may_be_bound_to_names() {
        let bound = token(&[Action::Push], &["hello*", "exact"]);
        for (name, allowed) in [("hello-2.12", true), ("exact", true), ("exact.drv", true), ("other", false)]
        {
            assert_eq!(may_for(&bound, Action::Push, name).is_ok(), allowed, "{name}");
        }
        assert!(may_for(&bound, Action::Build, "exact").is_err());
        assert!(may_for(&token(&[Action::Push], &[]), Action::Push, "anything").is_ok());
    }

    #[test]
    fn a_token_has_no_more_places_in_the_queue_than_it_may() {
        let mut bound = token(&[Action::Build], &["a*"]);
        let Caller::Token { grant, .. } = &mut bound else { unreachable!("it is a token") };
        Arc::get_mut(grant).expect("not shared").queued_max = Some(2);
        let first = grant.place("a.drv").expect("room");
        let second = grant.place("ab").expect("room");
        assert!(matches!(grant.place("a"), Err(Refusal::Full(..))));
        drop(first);
        assert!(matches!(grant.place("b"), Err(Refusal::OtherName { .. })));
        assert!(grant.place("a").is_ok());
        drop(second);
    }

    #[test]
    fn a_token_that_is_revoked_allows_nothing_from_then_on() {
        let caller = token(&[Action::Push], &[]);
        assert_eq!(may(&caller, Action::Push), Ok(()));
        caller.grant().expect("a token").revoked.store(true, Ordering::Release);
        assert!(may(&caller, Action::Push).is_err_and(|refusal| refusal.wants_token()));
    }

    #[test]
    fn another_cache_is_told_from_a_client_by_the_way_its_request_came() {
        let caller = |via: &'static str| Caller::Public {
            address: "192.0.2.1".parse().expect("an address"),
            via: Via::parse([via].into_iter()),
            rights: Rights::default(),
            rejected: None,
        };
        assert!(!caller("1.1 varnish").is_relay() && !Caller::Admin.is_relay());
        let relay = caller("1.1 ondine-0123456789abcdfg");
        assert!(relay.is_relay());
        assert_eq!(relay.asker().client, relay.address());
        assert!(!relay.asker().via.is_empty());
    }
}
