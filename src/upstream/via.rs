//! Names of the Ondines that a request has come through (Via, RFC 9110, 7.6.3), so that it never goes in a
//! circle and never starts a build on its way.

use std::fmt;

use sha2::{Digest, Sha256};

/// Prefix of our names in a Via header.
const PREFIX: &str = "ondine-";
/// Characters of the hash in a name.
const HASH_CHARS: usize = 16;
/// Caches of our kind that a request may have come through.
const HOPS_MAX: usize = 8;

/// The name of one cache of our kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViaName(String);

impl ViaName {
    /// The name of the one with this public key.
    #[must_use]
    pub fn of(public_key: &str) -> Self {
        let hash = narinfo::NarHash::from_bytes(Sha256::digest(public_key).into()).to_nixbase32();
        Self(format!("{PREFIX}{}", &hash[..HASH_CHARS]))
    }
}

/// The caches of our kind that a request has come through, the first one first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Via(Vec<ViaName>);

impl Via {
    /// Reads the values of Via headers; other proxies are left out.
    pub fn parse<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let received_by =
            values.flat_map(|value| value.split(',')).filter_map(|hop| hop.split_whitespace().nth(1));
        let ours = |name: &&str| {
            let hash = name.strip_prefix(PREFIX).unwrap_or_default();
            hash.len() == HASH_CHARS && hash.bytes().all(|b| b.is_ascii_alphanumeric())
        };
        Self(received_by.filter(ours).take(HOPS_MAX).map(|name| ViaName(name.to_owned())).collect())
    }

    /// True for a request of a client.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if `name` must not pass it on: it did already, or too many have.
    pub(super) fn ends_at(&self, name: &ViaName) -> bool {
        self.0.contains(name) || self.0.len() >= HOPS_MAX
    }

    /// With one more.
    pub(super) fn and(&self, name: &ViaName) -> Self {
        Self(self.0.iter().chain([name]).cloned().collect())
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hops: Vec<String> = self.0.iter().map(|name| format!("1.1 {}", name.0)).collect();
        f.write_str(&hops.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_others_are_passed_over() {
        let (a, b) = (ViaName::of("a:key"), ViaName::of("b:key"));
        let via = Via::default().and(&a).and(&b);
        let text = via.to_string();
        assert_eq!(Via::parse([text.as_str()].into_iter()), via);
        let others = format!("1.0 fred, HTTP/1.1 proxy.example.org (ondine-), {text}");
        assert_eq!(Via::parse([others.as_str(), "1.1", "", "1.1 ondine-short"].into_iter()), via);
        assert!(Via::parse(["1.1 varnish"].into_iter()).is_empty());
    }

    #[test]
    fn a_request_ends_where_it_has_been_and_after_many_hops() {
        let (own, other) = (ViaName::of("own:key"), ViaName::of("other:key"));
        assert!(!Via::default().ends_at(&own) && !Via::default().and(&other).ends_at(&own));
        assert!(Via::default().and(&own).and(&other).ends_at(&own));
        let long = (0..HOPS_MAX).fold(Via::default(), |via, n| via.and(&ViaName::of(&n.to_string())));
        assert!(long.ends_at(&own));
    }
}
