//! Use of the server hour by hour.

/// An hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HourRow {
    /// Unix seconds, divided by 3600.
    pub hour: u64,
    /// Served paths at its end.
    pub paths: u64,
    /// Stored NARs at its end.
    pub nars: u64,
    /// Bytes of their files.
    pub nar_bytes: u64,
    /// Requests in it that were answered with what was there.
    pub hits: u64,
    /// Requests for what was not to be had.
    pub misses: u64,
    /// Requests that were answered after a build.
    pub built: u64,
    /// Requests whose build failed.
    pub failed: u64,
}
