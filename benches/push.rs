//! Cost of pushing and of asking for many builds, with a stock client of this machine's Nix: `nix copy` to
//! Ondine beside `nix copy` to a folder and to nginx, which stores what it is sent and looks at none of it;
//! `ondine push` beside `nix copy`, turn by turn; and the answers to questions for a thousand derivations and
//! for ten thousand hashes. Needs nginx. Ends with status 1 when a target is missed.

// Of what compares servers, this needs the servers.
#[allow(dead_code)]
#[path = "../tests/simulation/random.rs"]
mod random;
#[allow(dead_code)]
#[path = "serving/mod.rs"]
mod serving;
#[path = "../tests/support/mod.rs"]
mod support;

use std::cell::Cell;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serving::servers::{Server, need_nginx};
use support::addresses::base_name;
use support::derivations::{row_of_programs, rows_of_programs};
use support::http::raw;
use support::process::run;
use support::store::Folder;
use support::{Cache, Client, Release, text};

/// Paths that a stock client pushes to a folder and to the server.
const STOCK_PATHS: usize = 300;
/// Rows of paths that do not need each other, as a closure has them; a client pushes one row path by path.
const STOCK_ROWS: usize = 10;
const STOCK_ROUNDS: usize = 5;
const STOCK_RATIO_MAX: f64 = 1.3;
/// Paths that both clients push to the server.
const MANY_PATHS: usize = 2_000;
const MANY_ROUNDS: usize = 3;
const MANY_RATIO_MAX: f64 = 0.5;
/// Derivations of one question, all of whose outputs are served.
const DERIVATIONS: usize = 1_000;
const DERIVATIONS_WITHIN: Duration = Duration::from_millis(150);
/// Hashes of one question.
const HASHES: usize = 10_000;
const HASHES_WITHIN: Duration = Duration::from_millis(100);
const ANSWERS: usize = 7;
/// Sizes of the paths: from 4 KiB to 128 KiB.
const SIZES: usize = 6;
/// Time limit of an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A client with a closure to push, and servers to push it to.
struct Bench {
    pusher: Client,
    cache: Cache,
    /// Folders of all servers until the end: for a while ext4 uses no inode of a removed file, and takes a
    /// millisecond to find another one for each new file.
    folders: Folder,
    made: Cell<usize>,
}

impl Bench {
    fn new() -> Bench {
        let cache = Cache::new(&[]);
        let settings = [("max-jobs", "2")];
        let pusher = Client::with_settings(Release::Host, &cache.store.store_dir(), &settings);
        Bench { pusher, cache, folders: Folder::new(), made: Cell::new(0) }
    }

    /// A folder that stays until the end.
    fn new_folder(&self) -> PathBuf {
        let number = self.made.replace(self.made.get() + 1);
        self.folders.subfolder(&number.to_string())
    }

    /// A server that has nothing, and its token in the pusher's netrc file.
    fn empty_server(&mut self) -> String {
        self.cache.ondine.kill9();
        let state = self.cache.ondine.state_dir();
        std::fs::rename(&state, self.new_folder().join("state")).expect("the state is moved");
        self.cache.ondine.start_again();
        let token = self.cache.ondine.new_token("bench", "read,build,push,vouch", &[]);
        let netrc = format!("machine 127.0.0.1 login x password {token}\n");
        std::fs::write(self.netrc(), netrc).expect("written");
        token
    }

    fn netrc(&self) -> PathBuf {
        self.pusher.home().join("netrc")
    }

    /// Time that `nix copy` takes to push the closure of a path, with its own compression.
    fn nix_copy(&self, to: &str, path: &Path) -> Duration {
        let netrc = self.netrc();
        let words = ["copy", "--netrc-file", text(&netrc), "--to", to, text(path)];
        // What the client remembers of the server before it was emptied is wrong.
        self.pusher.forget_answers();
        let begun = Instant::now();
        self.pusher.run("nix", &words).must_succeed();
        begun.elapsed()
    }

    /// The same to nginx: what any server costs this client at least.
    fn nix_copy_to_nginx(&self, path: &Path) -> Duration {
        let (files, folder) = (self.new_folder(), Folder::new());
        let info = format!("StoreDir: {}\n", text(&self.cache.store.store_dir()));
        std::fs::write(files.join("nix-cache-info"), info).expect("written");
        let nginx = Server::storing_nginx(&files, &folder);
        let _running = nginx.start();
        self.nix_copy(&nginx.url(), path)
    }

    /// The same for `ondine push`.
    fn ondine_push(&self, token: &str, path: &Path) -> Duration {
        let url = self.cache.ondine.url();
        let variables = [("ONDINE_SERVER", &*url), ("ONDINE_TOKEN", token)];
        let command = self.pusher.ondine_command(&["push", text(path)], &variables);
        let begun = Instant::now();
        run(command).must_succeed();
        begun.elapsed()
    }

    /// Time of the answer to a question for builds, which says so many times that something is served.
    fn ask(&self, token: &str, question: &serde_json::Value, served: usize) -> Duration {
        let body = question.to_string();
        let request = format!(
            "POST /api/v1/builds HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let begun = Instant::now();
        let (answer, _) = raw(self.cache.ondine.address(), request.as_bytes(), ANSWER_LIMIT);
        let took = begun.elapsed();
        let answer = String::from_utf8_lossy(&answer);
        assert_eq!(
            answer.matches("\"state\": \"served\"").count(),
            served,
            "{}",
            &answer[..answer.len().min(2000)]
        );
        took
    }
}

fn median(rounds: &[Duration]) -> Duration {
    let mut rounds = rounds.to_vec();
    rounds.sort_unstable();
    rounds[rounds.len() / 2]
}

/// The last output of a built row.
fn last(built: &[PathBuf], length: usize) -> PathBuf {
    let end = format!("-o{length}");
    built.iter().find(|path| text(path).ends_with(&end)).expect("it is built").clone()
}

/// Rows of the table, and what they say.
struct Report {
    table: String,
    held: bool,
}

impl Report {
    fn row(&mut self, what: &str, measured: &str, target: &str, held: bool) {
        self.held &= held;
        let word = if held { "ok" } else { "MISSED" };
        eprintln!("{what}: {measured}");
        writeln!(self.table, "| {what} | {measured} | {target} | {word} |").expect("memory takes everything");
    }

    /// Row of a ratio, which is to be `most`, or is shown only.
    fn ratio(&mut self, what: &str, rounds: &[(Duration, Duration)], most: Option<f64>) {
        let (ours, theirs): (Vec<_>, Vec<_>) = rounds.iter().copied().unzip();
        let (ours, theirs) = (median(&ours).as_secs_f64(), median(&theirs).as_secs_f64());
        let ratio = ours / theirs;
        let measured = format!("{ours:.2} s beside {theirs:.2} s: {ratio:.2}");
        let target = most.map_or(String::new(), |most| format!("<= {most}"));
        self.row(what, &measured, &target, most.is_none_or(|most| ratio <= most));
    }
}

fn main() -> ExitCode {
    need_nginx();
    let mut bench = Bench::new();
    bench.empty_server();
    let mut report = Report { table: String::new(), held: true };
    let url = bench.cache.ondine.url();
    let cached = format!("{url}/cached");

    for (rows, most) in [(STOCK_ROWS, Some(STOCK_RATIO_MAX)), (1, None)] {
        let built = bench.pusher.build(&rows_of_programs("stock", STOCK_PATHS, SIZES, rows));
        let path = last(&built, STOCK_PATHS);
        let (mut rounds, mut stored_unseen) = (Vec::new(), Vec::new());
        for _ in 0..STOCK_ROUNDS {
            let folder = bench.new_folder();
            let straight = bench.nix_copy(&format!("file://{}", folder.display()), &path);
            bench.empty_server();
            let pushed = bench.nix_copy(&cached, &path);
            stored_unseen.push((bench.nix_copy_to_nginx(&path), straight));
            rounds.push((pushed, straight));
        }
        let shape = if rows == 1 { "in one row".to_owned() } else { format!("in {rows} rows") };
        let what = format!("`nix copy` of {STOCK_PATHS} paths {shape}, beside the same to a folder");
        report.ratio(&what, &rounds, most);
        report.ratio(&format!("{what}, to nginx"), &stored_unseen, None);
    }

    let built = bench.pusher.build(&row_of_programs("many", MANY_PATHS, SIZES));
    let path = last(&built, MANY_PATHS);
    let mut rounds = Vec::new();
    for _ in 0..MANY_ROUNDS {
        bench.empty_server();
        let copied = bench.nix_copy(&format!("{cached}?compression=zstd"), &path);
        let token = bench.empty_server();
        rounds.push((bench.ondine_push(&token, &path), copied));
    }
    let what = format!("`ondine push` of {MANY_PATHS} paths, beside `nix copy`");
    report.ratio(&what, &rounds, Some(MANY_RATIO_MAX));

    questions(&mut bench, &mut report, &built);
    println!("| check | measured | target | |\n|---|---|---|---|\n{}", report.table);
    if report.held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Questions for derivations that were pushed with their outputs, and for hashes of which a fifth is served.
fn questions(bench: &mut Bench, report: &mut Report, built: &[PathBuf]) {
    let token = bench.empty_server();
    let expression = format!(
        "let make = name: below: derivation {{ inherit name below; system = builtins.currentSystem; \
         builder = \"/bin/sh\"; args = [ \"-c\" \"echo $name $below > $out; :\" ]; }}; \
         below = builtins.genList (n: make \"below-${{toString n}}\" \"\") 10; \
         in builtins.genList (n: make \"above-${{toString n}}\" (builtins.elemAt below (n - n / 10 * 10))) \
         {DERIVATIONS}"
    );
    let drvs = bench.pusher.run("nix-instantiate", &["--expr", &expression]).must_succeed().text();
    let tops: Vec<&str> = drvs.lines().collect();
    let variables = [("ONDINE_SERVER", &*bench.cache.ondine.url()), ("ONDINE_TOKEN", &*token)];
    let realised = bench.pusher.run("nix-store", &[&["--realise"], &tops[..]].concat()).must_succeed().text();
    let outputs: Vec<&str> = realised.lines().collect();
    for (kind, paths) in [(&["push", "--derivation"][..], &tops), (&["push"], &outputs)] {
        run(bench.pusher.ondine_command(&[kind, &paths[..]].concat(), &variables)).must_succeed();
    }
    let names: Vec<&str> = tops.iter().map(|drv| base_name(Path::new(drv))).collect();
    let question = serde_json::json!({ "derivations": names, "start": true });
    let took: Vec<_> = (0..ANSWERS).map(|_| bench.ask(&token, &question, names.len())).collect();
    let measured = median(&took);
    let what = format!("answer for {} pushed derivations, all served", names.len());
    let target = format!("<= {} ms", DERIVATIONS_WITHIN.as_millis());
    report.row(&what, &format!("{:.1} ms", millis(measured)), &target, measured <= DERIVATIONS_WITHIN);

    bench.ondine_push(&token, &last(built, MANY_PATHS));
    let mut hashes: Vec<String> = built.iter().map(|path| base_name(path)[..32].to_owned()).collect();
    let served = hashes.len();
    hashes.extend((served..HASHES).map(|number| format!("{number:032}")));
    let question = serde_json::json!({ "hashes": hashes, "start": false });
    let took: Vec<_> = (0..ANSWERS).map(|_| bench.ask(&token, &question, served)).collect();
    let measured = median(&took);
    let what = format!("answer for {HASHES} hashes, of which {served} are served");
    let target = format!("< {} ms", HASHES_WITHIN.as_millis());
    report.row(&what, &format!("{:.1} ms", millis(measured)), &target, measured < HASHES_WITHIN);
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
