//! Upstreams as people and programs see them: plain data, without anything secret.

use super::settings::Mode;

/// An upstream.
#[derive(Clone, Debug)]
pub struct UpstreamView {
    /// Its URL.
    pub name: String,
    /// Lower ones are preferred.
    pub priority: u32,
    /// Its use.
    pub mode: Mode,
    /// True while it is not asked, after several failures.
    pub rests: bool,
    /// Reason that the last request failed; nothing after one that was answered.
    pub failure: Option<String>,
    /// Keys that are trusted.
    pub public_keys: Vec<String>,
    /// Counts since the start.
    pub counts: UpstreamCounts,
}

/// Requests to an upstream since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UpstreamCounts {
    /// Narinfos that it had.
    pub found: u64,
    /// Narinfos that it had not.
    pub missing: u64,
    /// Narinfos that were refused.
    pub refused: u64,
    /// Requests for narinfos that failed.
    pub failed: u64,
    /// Bytes of NARs.
    pub fetched_bytes: u64,
}
