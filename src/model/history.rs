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
    /// Builds in it.
    pub building: BuildingUse,
}

/// Builds, and the waits for them, within an hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BuildingUse {
    /// Builds that ended well.
    pub builds: u64,
    /// Milliseconds that they took.
    pub build_millis: u64,
    /// Requests whose first build began.
    pub waits: u64,
    /// Milliseconds that they had waited for it.
    pub wait_millis: u64,
    /// Requests that joined one that waited.
    pub joined: u64,
    /// Builds ahead of requests that ended well.
    pub prebuilds: u64,
    /// Milliseconds that they took.
    pub prebuild_millis: u64,
    /// Builds ahead of requests that a request joined.
    pub taken_over: u64,
}

impl BuildingUse {
    /// The numbers in one order.
    #[must_use]
    pub fn numbers(self) -> [u64; 8] {
        let Self { builds, build_millis, waits, wait_millis, joined, prebuilds, prebuild_millis, taken_over } =
            self;
        [builds, build_millis, waits, wait_millis, joined, prebuilds, prebuild_millis, taken_over]
    }

    /// The same numbers by their names.
    #[must_use]
    pub fn of(numbers: [u64; 8]) -> Self {
        let [builds, build_millis, waits, wait_millis, joined, prebuilds, prebuild_millis, taken_over] =
            numbers;
        Self { builds, build_millis, waits, wait_millis, joined, prebuilds, prebuild_millis, taken_over }
    }

    /// Each number as `combine` makes it of both.
    #[must_use]
    pub fn with(self, other: Self, combine: impl Fn(u64, u64) -> u64) -> Self {
        let (mine, others) = (self.numbers(), other.numbers());
        Self::of(std::array::from_fn(|at| combine(mine[at], others[at])))
    }
}
