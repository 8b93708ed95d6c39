//! Traces made to hurt: everyone at once, a giant in front of many small ones, chains that overlap at their
//! ends, and durations that nobody could foresee.

use super::trace::{Packages, Trace};

/// Hundreds of requests at most, and nothing random about them.
pub fn traces() -> Vec<(Packages, Trace)> {
    let mut all = Vec::new();
    let mut add = |packages: Packages, arrivals: &mut dyn Iterator<Item = (u64, u32)>| {
        all.push((packages, arrivals.map(|(at, package)| (at, (0, package))).collect()));
    };
    add(chain(100), &mut (0..100).map(|n| (0, n * 37 % 100)));
    add(chain(100), &mut (0..100).map(|n| (u64::from(n), 99 - n)));
    add(chain(100), &mut (0..100).map(|n| (u64::from(n), n)));
    // While the giant is built.
    add(chain(100), &mut (0..100).map(|n| (300 + u64::from(n) * 60_000, (n * 13 + 50) % 100)));
    let apart = Packages::new(vec![Vec::new(); 50], (0..50).map(|n| 1 << (n % 20)).collect());
    add(apart, &mut (0..50).rev().map(|n| (u64::from(50 - n), n)));
    all.extend((0..2_500).step_by(100).map(surprise));
    all
}

/// Each needs the one before it; one in the middle takes four hours.
fn chain(length: u32) -> Packages {
    let giant = |n| if n == length / 2 { 4 * 3_600_000 } else { 1 + u64::from(n % 7) };
    let inputs = (0..length).map(|n: u32| n.checked_sub(1).into_iter().collect()).collect();
    Packages::new(inputs, (0..length).map(giant).collect())
}

/// The build that goes first takes far longer than it ever did, what the oldest request still lacks takes far
/// less, and someone comes so many seconds after it was started.
fn surprise(seconds: u64) -> (Packages, Trace) {
    let (giant, rest, short, tiny) = (0, 1, 2, 3);
    let as_ever = vec![20_000_000, 300_000, 100_000, 5_000];
    let surprising = vec![20_000_000, 1_000, 2_500_000, 5_000];
    let versions = vec![as_ever.clone(), as_ever.clone(), as_ever, surprising];
    let packages = Packages::versions(vec![vec![], vec![giant], vec![], vec![]], versions);
    let learned = (0..3).flat_map(|version| [rest, short, tiny].map(|package| (version, package)));
    let mut trace: Trace = (0..).step_by(100_000_000).zip(learned).collect();
    let start = 900_000_000;
    trace.push((start, (3, rest)));
    trace.push((start + 1_000, (3, short)));
    trace.push((start + 20_000_000 + seconds * 1_000, (3, tiny)));
    (packages, trace)
}
