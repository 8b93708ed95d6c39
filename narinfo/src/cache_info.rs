//! `nix-cache-info`: what a binary cache says of itself.
//! Unknown fields are ignored, as clients ignore them.

use crate::store_path::{StoreDir, StorePathError};

/// Bytes of such a file at most.
const CACHE_INFO_BYTES_MAX: usize = 64 * 1024;
/// Nix's default priority of an HTTP cache.
const PRIORITY_DEFAULT: u32 = 50;

/// A cache's description of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheInfo {
    /// The store that its paths are of; clients with another one drop the cache.
    pub store_dir: StoreDir,
    /// Clients may ask for many paths at once just to learn of their existence.
    pub want_mass_query: bool,
    /// Lower ones are asked first; cache.nixos.org has 40.
    pub priority: u32,
}

/// Why a `nix-cache-info` is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CacheInfoError {
    /// Too large, or not text.
    #[error("a nix-cache-info is text of at most {CACHE_INFO_BYTES_MAX} bytes")]
    NoText,
    /// A line is not `Name: value`.
    #[error("the line {0:?} of the nix-cache-info has no colon")]
    NoColon(String),
    /// The store directory is none.
    #[error("the StoreDir of the nix-cache-info is unusable")]
    StoreDir(#[source] StorePathError),
    /// The priority is no number.
    #[error("the Priority {0:?} of the nix-cache-info is not a number")]
    Priority(String),
}

impl CacheInfo {
    /// Parses the file.
    ///
    /// # Errors
    /// The file is malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self, CacheInfoError> {
        let text = std::str::from_utf8(bytes).map_err(|_| CacheInfoError::NoText)?;
        if text.len() > CACHE_INFO_BYTES_MAX {
            return Err(CacheInfoError::NoText);
        }
        let mut info =
            Self { store_dir: StoreDir::default(), want_mass_query: false, priority: PRIORITY_DEFAULT };
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| CacheInfoError::NoColon(line.chars().take(80).collect()))?;
            let value = value.trim();
            match name {
                "StoreDir" => info.store_dir = StoreDir::new(value).map_err(CacheInfoError::StoreDir)?,
                "WantMassQuery" => info.want_mass_query = value == "1",
                "Priority" => {
                    info.priority = value
                        .parse()
                        .map_err(|_| CacheInfoError::Priority(value.chars().take(80).collect()))?;
                }
                _ => {}
            }
        }
        Ok(info)
    }

    /// The file.
    #[must_use]
    pub fn render(&self) -> String {
        format!(
            "StoreDir: {}\nWantMassQuery: {}\nPriority: {}\n",
            self.store_dir,
            u8::from(self.want_mass_query),
            self.priority
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_rendered_parses_to_the_same() {
        let info = CacheInfo {
            store_dir: StoreDir::new("/tmp/store").expect("a store directory"),
            want_mass_query: true,
            priority: 41,
        };
        assert_eq!(CacheInfo::parse(info.render().as_bytes()), Ok(info));
    }

    #[test]
    fn missing_fields_have_the_defaults_of_nix_and_unknown_ones_are_ignored() {
        let info = CacheInfo::parse(b"Future: x\n").expect("a cache info");
        assert_eq!((info.store_dir.as_str(), info.want_mass_query, info.priority), ("/nix/store", false, 50));
    }

    #[test]
    fn malformed_ones_are_refused() {
        let long = vec![b'a'; CACHE_INFO_BYTES_MAX + 1];
        for bytes in [&b"no colon\n"[..], b"Priority: high\n", b"StoreDir: ../x\n", b"\xff", &long] {
            assert!(CacheInfo::parse(bytes).is_err());
        }
    }
}
