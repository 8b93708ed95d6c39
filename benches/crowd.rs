//! Cost of a crowd: ten thousand clients wait for one build, on the optimised server. Fails when it is
//! over its bounds of memory or time. `cargo bench --bench crowd`.

#[path = "../tests/support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::Duration;

use support::crowd;

const CLIENTS: usize = 10_000;
/// Bytes that the server may hold.
const MEMORY_MAX: u64 = 150 << 20;
/// From the opening of the build's gate, so the end of the build is in it.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let seen = crowd::waits_for_one_build(CLIENTS);
    println!("{CLIENTS} clients: {seen}");
    let holds = seen.peak_bytes < MEMORY_MAX && seen.since_open < ANSWERED_WITHIN;
    println!(
        "{}",
        serde_json::json!({
            "bench": "crowd",
            "clients": CLIENTS,
            "idle_bytes": seen.idle_bytes,
            "peak_bytes": seen.peak_bytes,
            "peak_bytes_max": MEMORY_MAX,
            "seconds_since_gate": seen.since_open.as_secs_f64(),
            "seconds_since_built": seen.since_built.as_secs_f64(),
            "seconds_max": ANSWERED_WITHIN.as_secs_f64(),
            "holds": holds,
        })
    );
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
