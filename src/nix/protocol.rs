//! The versions of the worker protocol that are spoken here, and what a daemon says of its trust in us.
//! Plain values: nothing is sent or read.

use std::fmt;

/// The oldest protocol that has all the operations used here: Nix 2.8.
pub const OLDEST_PROTOCOL: ProtocolVersion = ProtocolVersion { major: 1, minor: 34 };
/// The newest protocol that is understood here. A newer daemon speaks it too.
pub const NEWEST_PROTOCOL: ProtocolVersion = ProtocolVersion { major: 1, minor: 38 };

/// A version of the worker protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProtocolVersion {
    /// 1 in every Nix so far.
    pub major: u64,
    /// Grows with the operations.
    pub minor: u64,
}

impl ProtocolVersion {
    pub(super) fn from_wire(number: u64) -> Self {
        Self { major: number >> 8, minor: number & 0xff }
    }

    pub(super) fn to_wire(self) -> u64 {
        self.major << 8 | self.minor
    }
}

impl fmt::Display for ProtocolVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Trust {
    pub(super) fn to_wire(self) -> u64 {
        match self {
            Self::Unknown => 0,
            Self::Trusted => 1,
            Self::NotTrusted => 2,
        }
    }
}

/// The daemon's trust in this user: more than building and adding content-addressed paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Not said: protocols before 1.35 cannot.
    Unknown,
    /// We may change restricted settings and add unsigned paths.
    Trusted,
    /// We may not.
    NotTrusted,
}
