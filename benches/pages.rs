//! Pages for people of a large cache: time and size of each kind, over an index of a million paths whose
//! closures reach to its end, a set of twelve thousand attributes and thousands of failures.
//! `cargo bench --bench pages`; `-- --paths 10000` takes another size. Ends with status 1 when a target is
//! missed.

// Of what compares servers, this needs the servers.
#[allow(dead_code)]
#[path = "scale/grown.rs"]
mod grown;
#[allow(dead_code)]
#[path = "../tests/simulation/random.rs"]
mod random;
#[allow(dead_code)]
#[path = "serving/mod.rs"]
mod serving;
#[path = "../tests/support/mod.rs"]
mod support;

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use rusqlite::{Connection, params};
use serde_json::json;

use grown::Grown;
use serving::machine;
use serving::servers::Server;
use support::package_set::{api, told};
use support::process::run;
use support::store::Folder;
use support::{Cache, Http, NixStore, PackageSet, Release, text, wait_until};

/// Attributes of the set, and failures, each of which has this cause.
const ATTRIBUTES: usize = 12_000;
const FAILURES: usize = 10_000;
const CAUSE: &str = "00000000000000000000000000000000-cause.drv";
/// References of the path that has most: a tree of links to everything.
const REFERENCES: i64 = 100_000;
/// Times that each page is asked for.
const TIMES: usize = 20;
/// Bounds of the median time of each page, of the first page's size, and of all others'.
const TIME_MAX: Duration = Duration::from_millis(100);
const FIRST_PAGE_MAX: usize = 60_000;
const PAGE_MAX: usize = 300_000;
const LIMIT: Duration = Duration::from_secs(600);
const HTML: (&str, &str) = ("accept", "text/html");

/// Measures pages.
#[derive(Parser)]
struct Flags {
    /// Paths in the index
    #[arg(long, default_value_t = 1_000_000)]
    paths: u64,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// A page that was measured.
struct Seen {
    name: &'static str,
    median: Duration,
    longest: Duration,
    bytes: usize,
}

impl Seen {
    fn of(http: &Http, name: &'static str, address: &str) -> Seen {
        let mut bytes = 0;
        let mut times: Vec<Duration> = (0..TIMES)
            .map(|_| {
                let begun = Instant::now();
                let answer = http.get_with(address, &[HTML]);
                assert_eq!(answer.status, 200, "{name}");
                bytes = answer.body.len();
                begun.elapsed()
            })
            .collect();
        times.sort_unstable();
        Seen { name, median: times[TIMES / 2], longest: times[TIMES - 1], bytes }
    }

    fn is_met(&self) -> bool {
        let bytes_max = if self.name == "first page" { FIRST_PAGE_MAX } else { PAGE_MAX };
        self.median <= TIME_MAX && self.bytes <= bytes_max
    }
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let set = PackageSet::new([]);
    set.write_text(&format!(
        "builtins.listToAttrs (builtins.genList (n: {{ name = \"module-${{toString n}}\"; value = derivation {{ \
         name = \"module-${{toString n}}-1.0\"; system = builtins.currentSystem; builder = \"/bin/bash\"; \
         args = [ \"-c\" \"echo $name > $out\" ]; }}; }}) {ATTRIBUTES})"
    ));
    let settings = set.settings("", "");
    let mut cache = Cache::of(NixStore::new(Release::Host), &["--config", text(&settings)], &[]);
    wait_until("the set is evaluated", LIMIT, || api(&cache.ondine)["generations"][0]["current"] == true);
    let body = json!({ "attributes": [{ "set": "pkgs", "attribute": "module-0" }] });
    assert_eq!(cache.http.post_json("/api/v1/builds", &body).status, 200);
    wait_until("it is built", LIMIT, || told(&cache.ondine, "module-0")["outputs"][0]["served"] == true);
    let package = told(&cache.ondine, "module-0");
    let [drv, hash] = [&package["derivation"], &package["outputs"][0]["hash"]]
        .map(|value| value.as_str().expect("a text").to_owned());
    let narinfo = format!("/{hash}.narinfo");
    wait_until("it is packed", LIMIT, || cache.http.get(&narinfo).text().contains("FileSize: "));
    assert!(cache.ondine.sigterm().success());
    let grown = Grown::new(&cache, flags.paths);
    // With the NAR of the package: a path without is no longer served.
    let mut copy = Command::new("cp");
    copy.args(["-rn", &format!("{}/.", text(&cache.ondine.state_dir())), text(grown.state_dir())]);
    run(copy).must_succeed();
    let wide = "w".repeat(32);
    widen(&grown, &hash, &wide);
    let logs = Folder::new();
    // Without eviction, which would begin at once: no NAR of the index is there.
    let flags_of_server =
        ["--config", text(&settings), "--max-nar-store-bytes", "1000000000000", "--scrub-interval", "0s"];
    let server = Server::ondine(&cache, grown.state_dir(), &logs, &flags_of_server);
    let running = server.start();
    let http = Http::new(&server.url());
    let pages = [
        ("first page", "/".to_owned()),
        ("package whose closure has no end", "/packages/pkgs/module-0".to_owned()),
        ("package that is not built", "/packages/pkgs/module-7000".to_owned()),
        ("path whose closure has no end", format!("/paths/{hash}")),
        ("path with 100,000 references", format!("/paths/{wide}")),
        ("derivation", format!("/derivations/{drv}")),
        ("set", "/packages/pkgs/".to_owned()),
        ("search", "/search?q=module-11".to_owned()),
        ("10,000 failures", "/failures".to_owned()),
        ("statistics", "/statistics".to_owned()),
    ];
    let seen: Vec<Seen> = pages.iter().map(|(name, address)| Seen::of(&http, name, address)).collect();
    drop(running);
    println!("{}\n", machine::conditions());
    println!("| {} paths | median | longest | bytes | |\n|---|---|---|---|---|", flags.paths);
    for page in &seen {
        println!(
            "| {} | {:.1} ms | {:.1} ms | {} | {} |",
            page.name,
            page.median.as_secs_f64() * 1e3,
            page.longest.as_secs_f64() * 1e3,
            page.bytes,
            if page.is_met() { "met" } else { "missed" }
        );
    }
    if seen.iter().all(Seen::is_met) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Gives the path with this hash references to the end of the index, and adds one with very many, and the
/// failures.
fn widen(grown: &Grown, hash: &str, wide: &str) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let now = i64::try_from(now).expect("it fits");
    let mut connection = Connection::open(grown.state_dir().join("index.sqlite")).expect("the index opens");
    let transaction = connection.transaction().expect("begun");
    {
        let named = "SELECT hash || '-' || name FROM path WHERE name LIKE 'synthetic-%' LIMIT ?1";
        let mut named = transaction.prepare(named).expect("a statement");
        let names = named.query_map([REFERENCES], |row| row.get(0)).expect("paths");
        let mut names: Vec<String> = names.map(|name| name.expect("a name")).collect();
        names.sort_unstable();
        let deep = "UPDATE path SET refs = (SELECT hash || '-' || name FROM path WHERE name LIKE 'synthetic-%' \
                    ORDER BY rowid DESC LIMIT 1) WHERE hash = ?1";
        assert_eq!(transaction.execute(deep, [hash]).expect("written"), 1);
        transaction
            .execute(
                "INSERT INTO path (hash, name, nar_hash, nar_size, refs, sigs, added_at) \
                 SELECT ?1, 'wide', nar_hash, nar_size, ?2, '', 0 FROM path WHERE hash = ?3",
                params![wide, names.join(" "), hash],
            )
            .expect("written");
        let failure = "INSERT INTO failure (drv, class, cause, reason, failed_at, expires_at) VALUES (?1, 1, ?2, ?3, ?4, ?5)";
        let mut failure = transaction.prepare(failure).expect("a statement");
        let reason = "builder failed with exit code 1;\n".repeat(20);
        for (at, name) in names.iter().take(FAILURES).enumerate() {
            let drv = if at == 0 { CAUSE.to_owned() } else { format!("{name}.drv") };
            failure.execute(params![drv, CAUSE, reason, now - 60, now + 3600]).expect("written");
        }
    }
    transaction.commit().expect("committed");
}
