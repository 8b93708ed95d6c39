//! Cost of what several servers share, beside one machine that shares nothing: an index in PostgreSQL beside
//! SQLite, in turns; two and three front ends beside one; NARs in a bucket beside a directory; and the time
//! until another server leads. Needs a PostgreSQL, and `ONDINE_TEST_OBJECT_STORE`.
//! `cargo bench --features postgres --bench scaling`.

// Of what compares servers, this needs the load and the accounts.
#[allow(dead_code)]
#[path = "serving/mod.rs"]
mod serving;
#[path = "../tests/support/mod.rs"]
mod support;

#[path = "scaling/buckets.rs"]
mod buckets;
#[path = "scaling/comparison.rs"]
mod comparison;
#[path = "scaling/failover.rs"]
mod failover;
// Of an index that grows, this needs the paths.
#[allow(dead_code)]
#[path = "scale/grown.rs"]
mod grown;
#[path = "scaling/indexes.rs"]
mod indexes;
// Of one core for all, this needs nothing.
#[allow(dead_code)]
#[path = "scale/pinned.rs"]
mod pinned;
#[allow(dead_code)]
#[path = "../tests/simulation/random.rs"]
mod random;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use serde_json::json;

use buckets::NarServers;
use comparison::Comparison;
use indexes::Indexes;
use serving::load::Times;
use serving::machine;
use support::Bucket;
use support::store::write;

/// Lengths of each measurement.
const TIMES: Times = Times { warm_up: Duration::from_millis(500), counted: Duration::from_secs(1) };

/// Measures what sharing costs.
#[derive(Parser)]
struct Flags {
    /// Measure these alone
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Subject>,
    /// Paths in the index
    #[arg(long, default_value_t = 1_000_000)]
    paths: u64,
    /// Mebibytes of the NAR that is downloaded
    #[arg(long, default_value_t = 256)]
    nar_mebibytes: u64,
    /// Rounds, in each of which all servers take their turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Leaders that are killed, and as many that are frozen
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    failovers: u32,
    /// Fail when a target is missed
    #[arg(long)]
    strict: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// Hits, misses and starts with each index.
    Index,
    /// Hits of one, two and three servers.
    FrontEnds,
    /// A NAR from a directory and from a bucket.
    Nars,
    /// Time until another server leads.
    Failover,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let wanted = |subject| flags.only.is_empty() || flags.only.contains(&subject);
    let mut table = Comparison::default();
    let mut rounds = |what: &str, measure: &mut dyn FnMut(&mut Comparison)| {
        for round in 1..=flags.rounds {
            let begun = Instant::now();
            measure(&mut table);
            eprintln!("{what}, round {round} of {}: {:.1?}", flags.rounds, begun.elapsed());
        }
    };
    if wanted(Subject::Index) || wanted(Subject::FrontEnds) {
        let indexes = Indexes::new(flags.paths);
        if wanted(Subject::Index) {
            rounds("index", &mut |table| indexes.measure(table, TIMES));
        }
        if wanted(Subject::FrontEnds)
            && let Some(bucket) = Bucket::new()
        {
            rounds("front ends", &mut |table| indexes.measure_front_ends(&bucket, table, TIMES));
        }
    }
    if wanted(Subject::Nars)
        && let Some(servers) = NarServers::new(flags.nar_mebibytes)
    {
        rounds("NARs", &mut |table| servers.measure(table, TIMES));
    }
    if wanted(Subject::Failover) {
        failover::measure(flags.failovers, &mut table);
    }
    println!("{} {} paths in the index.\n", machine::conditions(), flags.paths);
    let met = table.print();
    let report = json!({
        "bench": "scaling", "conditions": machine::conditions(), "paths": flags.paths, "rows": table.json(),
    });
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("scaling.json");
    write(&file, &format!("{report:#}\n"));
    println!("\nEvery sample: {}", file.display());
    if met || !flags.strict { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
