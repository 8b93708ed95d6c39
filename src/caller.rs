//! Callers and their rights. A request's caller is made once, where its connection comes in; every action
//! asks [`may`] before anything is done for it.

use std::net::IpAddr;

use crate::upstream::{Asker, Via};

/// The party that a request comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A client on the network that has shown no credentials.
    Public {
        /// Its address, as far as trusted proxies tell it.
        address: IpAddr,
        /// Caches of our kind that its request has come through.
        via: Via,
    },
    /// A process that could open the control socket, which its file permissions allow to administrators
    /// alone.
    Admin,
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
    /// Collects and checks stored NARs.
    Admin,
}

/// The caller lacks the right that an action needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "refused: this needs the right {:?}, which clients on the network do not have; use the command line on the \
     server's machine", .0.name()
)]
pub struct Refusal(pub Action);

/// Allows an action, or refuses it. Anyone may read and build; an administrator may do everything.
///
/// # Errors
/// The caller lacks the right.
pub fn may(caller: &Caller, action: Action) -> Result<(), Refusal> {
    match (caller, action) {
        (Caller::Admin, _) | (Caller::Public { .. }, Action::Read | Action::Build) => Ok(()),
        (Caller::Public { .. }, _) => Err(Refusal(action)),
    }
}

impl Caller {
    /// Address that limits for each client count; none for an administrator.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Public { address, .. } => Some(*address),
            Self::Admin => None,
        }
    }

    /// True for another cache of our kind, which must not be kept waiting for a build.
    #[must_use]
    pub fn is_relay(&self) -> bool {
        matches!(self, Self::Public { via, .. } if !via.is_empty())
    }

    /// The caller as requests to upstreams tell of it.
    #[must_use]
    pub fn asker(&self) -> Asker {
        match self {
            Self::Public { address, via } => Asker { via: via.clone(), client: Some(*address) },
            Self::Admin => Asker::default(),
        }
    }
}

impl Action {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anyone_may_read_and_build_and_only_an_administrator_may_change_anything() {
        let public =
            Caller::Public { address: "192.0.2.1".parse().expect("an address"), via: Via::default() };
        for (action, allowed) in [
            (Action::Read, true),
            (Action::Build, true),
            (Action::Push, false),
            (Action::Vouch, false),
            (Action::Refresh, false),
            (Action::Cancel, false),
            (Action::Pin, false),
            (Action::Admin, false),
        ] {
            assert_eq!(may(&public, action), if allowed { Ok(()) } else { Err(Refusal(action)) });
            assert_eq!(may(&Caller::Admin, action), Ok(()));
        }
        let refusal = Refusal(Action::Pin).to_string();
        assert!(refusal.contains("the right \"pin\"") && refusal.contains("command line"), "{refusal}");
    }

    #[test]
    fn another_cache_is_told_from_a_client_by_the_way_its_request_came() {
        let caller = |via: &'static str| Caller::Public {
            address: "192.0.2.1".parse().expect("an address"),
            via: Via::parse([via].into_iter()),
        };
        assert!(!caller("1.1 varnish").is_relay() && !Caller::Admin.is_relay());
        let relay = caller("1.1 ondine-0123456789abcdfg");
        assert!(relay.is_relay());
        assert_eq!(relay.asker().client, relay.address());
        assert!(!relay.asker().via.is_empty());
    }
}
