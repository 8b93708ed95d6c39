//! Cost of a package set as large as a distribution: a hundred thousand derivations come into the index as
//! the real code reads and records them, and hashes are looked up among a million outputs. Ends with status 1
//! when a target is missed. `cargo bench --bench catalogue`.

// The simulation of the queue uses more of it.
#[allow(dead_code)]
#[path = "../tests/simulation/random.rs"]
mod random;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use narinfo::{StoreDir, StorePath, StorePathHash};
use ondine::catalogue::bring_in;
use ondine::index::Index;
use ondine::model::{AttributeRow, GenerationSize, NewGeneration, OutputRow};
use random::Random;

const DERIVATIONS: usize = 100_000;
/// Those that have an attribute; the rest is what they need.
const ATTRIBUTES: usize = 40_000;
/// Inputs of a derivation at most; about half as much on average, as in a large distribution.
const INPUTS_MAX: u64 = 24;
/// Bytes of a derivation's environment at most.
const ENVIRONMENT_BYTES_MAX: u64 = 6_000;
const OUTPUTS: usize = 1_000_000;
const LOOK_UPS: usize = 20_000;
/// Rows that are brought in at a time.
const CHUNK: usize = 4_000;

const INDEXED_WITHIN: Duration = Duration::from_secs(20);
const MEMORY_MAX: u64 = 300 << 20;
const LOOK_UP_WITHIN: Duration = Duration::from_micros(100);

/// Says to a process of its own that it is the one to be measured, in this folder.
const MEASURED: &str = "ONDINE_BENCH_CATALOGUE";
const SYSTEM: &str = "x86_64-linux";

fn main() -> ExitCode {
    if let Some(folder) = std::env::var_os(MEASURED) {
        measure(Path::new(&folder));
        return ExitCode::SUCCESS;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = write_store(folder.path());
    println!("{DERIVATIONS} derivations of {} KB on average, seeded.\n", bytes / DERIVATIONS as u64 / 1000);
    // The memory of a process of its own: this one has written the files.
    let me = std::env::current_exe().expect("this program");
    let output = Command::new(me).env(MEASURED, folder.path()).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let number = |name: &str| -> f64 {
        let line = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let missing = || panic!("no {name} in:\n{said}\n{}", String::from_utf8_lossy(&output.stderr));
        line.unwrap_or_else(missing).parse().expect("a number")
    };
    println!("| check | target | measured | |\n|---|---|---|---|");
    let mut all_held = true;
    let mut row = |check: &str, unit: &str, target: f64, measured: f64| {
        let held = measured < target;
        all_held &= held;
        println!(
            "| {check} | < {target} {unit} | {measured:.1} {unit} | {} |",
            if held { "ok" } else { "MISSED" }
        );
    };
    row("a first generation", "s", INDEXED_WITHIN.as_secs_f64(), number("first"));
    row("the next one, nine tenths as before", "s", INDEXED_WITHIN.as_secs_f64(), number("second"));
    let mebibyte = f64::from(1 << 20);
    row("most memory in both", "MiB", MEMORY_MAX as f64 / mebibyte, number("peak") / mebibyte);
    let micros = LOOK_UP_WITHIN.as_micros() as f64;
    row(&format!("a hash among {OUTPUTS} outputs, mean"), "µs", micros, number("hit"));
    row("a hash that no set has, mean", "µs", micros, number("miss"));
    println!(
        "\nOf the first generation: {:.1} s reading and recording, {:.1} s swapping; {:.1} s of processors.",
        number("reading"),
        number("swapping"),
        number("processors")
    );
    if all_held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Measurements, one number a line.
fn measure(folder: &Path) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let index = Index::open(&folder.join("index.sqlite")).expect("an index");
        index.sync_sets(vec!["pkgs".into(), "large".into()]).await.expect("kept");
        let dir = store_dir(folder);
        let (begun, before) = (Instant::now(), processor_seconds());
        let (reading, swapping) = generation(&index, &dir, 0..ATTRIBUTES).await;
        println!("first {}", begun.elapsed().as_secs_f64());
        println!("processors {}", processor_seconds() - before);
        println!("reading {}\nswapping {}", reading.as_secs_f64(), swapping.as_secs_f64());
        let begun = Instant::now();
        generation(&index, &dir, ATTRIBUTES / 10..ATTRIBUTES + ATTRIBUTES / 10).await;
        println!("second {}", begun.elapsed().as_secs_f64());
        println!("peak {}", peak_bytes());
        fill(&index).await;
        println!("hit {}", mean_micros(&index, |random| random.below(OUTPUTS as u64), true).await);
        println!(
            "miss {}",
            mean_micros(&index, |random| OUTPUTS as u64 + random.below(1 << 40), false).await
        );
    });
}

/// Makes a generation of those derivations, as a refresh does. Gives how long its parts took.
async fn generation(index: &Index, dir: &StoreDir, numbers: std::ops::Range<usize>) -> (Duration, Duration) {
    index.start_generation().await.expect("started");
    let drvs: Vec<StorePath> =
        numbers.map(|number| drv(number * DERIVATIONS / ATTRIBUTES % DERIVATIONS)).collect();
    let begun = Instant::now();
    for (chunk, drvs) in drvs.chunks(CHUNK).enumerate() {
        let row = |(number, drv): (usize, &StorePath)| AttributeRow {
            attribute: format!("packages.p{}", chunk * CHUNK + number),
            system: SYSTEM.into(),
            outcome: Ok(drv.clone()),
            output: None,
            program: None,
            denied: false,
        };
        index.add_attributes(drvs.iter().enumerate().map(row).collect()).await.expect("added");
    }
    let holder = drvs[0].clone();
    let count = bring_in(index, dir, drvs.into_iter().collect(), BTreeSet::new(), |_| {})
        .await
        .expect("read")
        .derivations;
    let reading = begun.elapsed();
    let size =
        GenerationSize { attributes: ATTRIBUTES as u64, derivations: count, ..GenerationSize::default() };
    assert!(count as usize > DERIVATIONS * 9 / 10, "only {count} derivations are in the closure");
    let new = NewGeneration { set: "pkgs".into(), made_by: String::new(), holder, size };
    index.swap_generation(new).await.expect("swapped");
    (reading, begun.elapsed() - reading)
}

/// A set with so many outputs that there are [`OUTPUTS`] of numbers from 0 on.
async fn fill(index: &Index) {
    index.start_generation().await.expect("started");
    for from in (0..OUTPUTS).step_by(CHUNK) {
        let row = |number: usize| OutputRow { hash: hash(2, number as u64), drv: drv(number), denied: false };
        index.add_outputs((from..from + CHUNK).map(row).collect()).await.expect("added");
    }
    let size = GenerationSize::default();
    let new = NewGeneration { set: "large".into(), made_by: String::new(), holder: drv(0), size };
    index.swap_generation(new).await.expect("swapped");
}

async fn mean_micros(index: &Index, number: impl Fn(&mut Random) -> u64, is_there: bool) -> f64 {
    let mut random = Random(7);
    let wanted: Vec<StorePathHash> = (0..LOOK_UPS).map(|_| hash(2, number(&mut random))).collect();
    let begun = Instant::now();
    for hash in wanted {
        let makers = index.makers(hash).await.expect("read");
        assert_eq!(!makers.is_empty(), is_there);
    }
    begun.elapsed().as_secs_f64() * 1e6 / LOOK_UPS as f64
}

/// Processor time of this process.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("the kernel tells");
    let (_, after_name) = stat.rsplit_once(") ").expect("a name in brackets");
    // utime and stime, in hundredths: proc_pid_stat(5).
    let ticks = after_name.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<f64>().expect("a number"));
    ticks.sum::<f64>() / 100.0
}

/// The most memory that this process has held.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the kernel tells");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it is told");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

fn store_dir(folder: &Path) -> StoreDir {
    StoreDir::new(folder.join("store").to_str().expect("text")).expect("a store")
}

/// The files of [`DERIVATIONS`], each needing some that come before it. Gives their bytes.
fn write_store(folder: &Path) -> u64 {
    std::fs::create_dir(folder.join("store")).expect("a folder");
    let (dir, mut random) = (store_dir(folder), Random(1));
    (0..DERIVATIONS).map(|number| write_derivation(&dir, number, &mut random)).sum()
}

fn write_derivation(dir: &StoreDir, number: usize, random: &mut Random) -> u64 {
    let names = ["out", "dev", "lib", "man"];
    let outputs = &names[..1 + (random.below(8) as usize + 1) / 3];
    let path = |kind: u64, name: &str| format!("{dir}/{}-{name}", hash(kind, number as u64));
    let base = name(number);
    let mut aterm = String::from("Derive([");
    for (place, output) in outputs.iter().enumerate() {
        let comma = if place > 0 { "," } else { "" };
        let ending = if *output == "out" { String::new() } else { format!("-{output}") };
        write!(
            aterm,
            "{comma}(\"{output}\",\"{}\",\"\",\"\")",
            path(10 + place as u64, &format!("{base}{ending}"))
        )
        .expect("a string grows");
    }
    aterm.push_str("],[");
    // Most of what something needs is of the common base, and the one before it chains all of them together.
    let mut inputs: BTreeSet<usize> = number.checked_sub(1).into_iter().collect();
    for _ in 0..random.below(INPUTS_MAX) {
        let below = if random.below(3) > 0 { number.min(2_000) } else { number };
        inputs.extend((below > 0).then(|| random.below(below as u64) as usize));
    }
    for (place, input) in inputs.iter().enumerate() {
        let comma = if place > 0 { "," } else { "" };
        write!(aterm, "{comma}(\"{}\",[\"out\"])", drv(*input).in_dir(dir)).expect("a string grows");
    }
    write!(
        aterm,
        "],[\"{}\"],\"{SYSTEM}\",\"{dir}/{}-bash/bin/bash\",[\"-e\",\"builder.sh\"],[",
        path(3, "builder.sh"),
        hash(4, 0)
    )
    .expect("a string grows");
    let text: String =
        (0..random.below(ENVIRONMENT_BYTES_MAX)).map(|at| if at % 60 == 59 { "\\n" } else { "x" }).collect();
    write!(aterm, "(\"buildCommand\",\"{text}\"),(\"name\",\"{base}\"),(\"system\",\"{SYSTEM}\")])")
        .expect("a string grows");
    std::fs::write(drv(number).in_dir(dir), &aterm).expect("written");
    aterm.len() as u64
}

fn name(number: usize) -> String {
    format!("package-{number}-1.{}", number % 40)
}

fn drv(number: usize) -> StorePath {
    StorePath::parse(&format!("{}-{}.drv", hash(1, number as u64), name(number))).expect("a name")
}

/// A hash that looks as random as real ones do.
fn hash(kind: u64, number: u64) -> StorePathHash {
    Random(kind << 48 | number).hash().parse().expect("a hash")
}
