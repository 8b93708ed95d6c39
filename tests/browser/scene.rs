//! A server with real data to look at: packages that depend on each other, builds that were served, one that
//! failed with what needs it, one that runs, and those that wait behind it.

use std::fmt::Write;
use std::time::Duration;

use serde_json::json;

use rusqlite::{Connection, params};

use super::support::package_set::{PackageSet, api, refresh, told, wait_for_generation};
use super::support::upstream::table;
use super::support::{
    BinaryCache, Builder, Cache, Gate, Http, NixStore, Release, Upstream, text, wait_until,
};

/// Time limit of all its builds.
const BUILDS_LIMIT: Duration = Duration::from_secs(300);

/// Name, version, KiB of its output, and the packages it needs at run time.
const PACKAGES: [(&str, &str, u32, &[&str]); 24] = [
    ("glibc", "2.40-66", 2900, &[]),
    ("zlib", "1.3.1", 130, &["glibc"]),
    ("openssl", "3.0.15", 1700, &["glibc", "zlib"]),
    ("nghttp2", "1.64.0", 210, &["glibc"]),
    ("brotli", "1.1.0", 340, &["glibc"]),
    ("libssh2", "1.11.1", 320, &["openssl", "zlib"]),
    ("curl", "8.11.0", 900, &["openssl", "nghttp2", "brotli", "libssh2"]),
    ("ncurses", "6.4", 1100, &["glibc"]),
    ("readline", "8.2p13", 450, &["ncurses"]),
    ("bash", "5.2p37", 1500, &["readline"]),
    ("expat", "2.6.4", 180, &["glibc"]),
    ("pcre2", "10.44", 600, &["glibc"]),
    ("gettext", "0.22.5", 800, &["bash"]),
    ("perl", "5.40.0", 2600, &["glibc"]),
    ("git", "2.47.1", 2400, &["curl", "expat", "pcre2", "perl", "bash", "gettext"]),
    ("oniguruma", "6.9.9", 500, &["glibc"]),
    ("jq", "1.7.1", 600, &["oniguruma"]),
    ("sqlite", "3.46.1", 1300, &["readline", "zlib"]),
    ("libffi", "3.4.6", 90, &["glibc"]),
    ("python3", "3.12.7", 2800, &["sqlite", "openssl", "libffi", "expat", "bash"]),
    ("glib", "2.82.1", 1400, &["libffi", "pcre2", "zlib"]),
    ("freetype", "2.13.3", 800, &["zlib", "brotli"]),
    ("harfbuzz", "10.0.1", 900, &["freetype", "glib"]),
    ("ripgrep", "14.1.1", 1800, &["pcre2"]),
];
/// Packages that are asked for and served.
const SERVED: [&str; 6] = ["git", "python3", "jq", "ripgrep", "harfbuzz", "curl"];
/// Packages that wait while the first one runs.
const WAITING: [&str; 6] = ["llvm", "clang", "firefox", "rustc", "inkscape", "blender"];

/// Version of curl in the first generation of the set.
const OLD_CURL: &str = "8.10.1";
/// Hours of use before the scene, and bytes of the cache at their beginning.
const HOURS_BEFORE: i64 = 6 * 24;
const BYTES_BEFORE: i64 = 9 << 20;

/// The server, and the gate before the build that runs.
pub struct Scene {
    pub cache: Cache,
    pub gate: Gate,
    set: PackageSet,
    _builder: Builder,
    _upstream: Upstream,
}

/// Shell lines that print a log like those of a real build.
fn log_lines(name: &str, files: usize) -> String {
    let mut lines = String::from("echo 'Running phase: unpackPhase'\n");
    let _ = writeln!(lines, "echo 'unpacking source archive {name}.tar.xz'");
    lines += "echo 'source root is source'\necho 'Running phase: configurePhase'\n";
    lines += "for f in gcc g++ ar ranlib nm pkg-config; do echo \"checking for $f... /usr/bin/$f\"; done\n";
    lines += "echo 'Running phase: buildPhase'\n";
    let _ = writeln!(
        lines,
        "for i in $(seq 1 {files}); do printf '\\033[32m[%3d%%]\\033[0m Building C object \\033[1msrc/{name}/unit_%d.o\\033[0m\\n' $((i*100/{files})) $i; done"
    );
    lines += "printf 'src/util.c:214:9: \\033[35;1mwarning:\\033[0m unused variable \\033[1mresult\\033[0m [-Wunused-variable]\\n'\n";
    lines
}

fn package(name: &str, version: &str, script: &str, inputs: &[&str]) -> String {
    let inputs: String = inputs.iter().map(|input| format!(" in_{input} = self.{input};")).collect();
    // The shell itself ends last: Nix kills a builder whose output has ended, such as a program that the
    // shell has become, and that closes its output before its end.
    let script = format!("{script}\n:");
    let script = script.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${");
    format!(
        "derivation {{ name = \"{name}-{version}\"; system = builtins.currentSystem; builder = \"/bin/bash\"; \
         args = [ \"-e\" \"-c\" \"{script}\" ]; PATH = \"/usr/bin:/bin\";{inputs} }}"
    )
}

fn library(name: &str, version: &str, kib: u32, inputs: &[&str]) -> String {
    let mut script = log_lines(name, 12);
    script += "mkdir -p $out/bin\necho 'Running phase: installPhase'\n";
    let _ = writeln!(script, "head -c {kib}k /dev/urandom > $out/bin/{name}; chmod +x $out/bin/{name}");
    for input in inputs {
        let _ = writeln!(script, "echo $in_{input} >> $out/needs");
    }
    package(name, version, &script, inputs)
}

/// The set, with so many attributes more.
fn nix(gate: &Gate, attributes: usize, curl: &str) -> String {
    let mut nix = String::from("let self = {\n");
    for (name, version, kib, inputs) in PACKAGES {
        let version = if name == "curl" { curl } else { version };
        let _ = writeln!(nix, "  {name} = {};", library(name, version, kib, inputs));
    }
    let broken = log_lines("webkitgtk", 4)
        + "printf '\\033[31;1merror:\\033[0m no member named \\033[1mspan\\033[0m in namespace std\\n' >&2\n\
           echo 'ninja: build stopped: subcommand failed.'\nexit 1\n";
    let inputs = ["glib", "harfbuzz"];
    let _ = writeln!(nix, "  webkitgtk = {};", package("webkitgtk", "2.46.3", &broken, &inputs));
    for name in ["epiphany", "yelp", "geary"] {
        let script = "echo $in_webkitgtk > $out; :";
        let _ = writeln!(nix, "  {name} = {};", package(name, "47.1", script, &["webkitgtk"]));
    }
    for (at, name) in WAITING.iter().enumerate() {
        let script = format!("{}{}echo x > $out; :", log_lines(name, 60), gate.script(name));
        let inputs: &[&str] = if at % 2 == 1 { &["zlib", "llvm"] } else { &["zlib"] };
        let version = format!("{}.1.{at}", 19 - at);
        let _ = writeln!(nix, "  {name} = {};", package(name, &version, &script, inputs));
    }
    let small = "name: derivation { inherit name; system = builtins.currentSystem; builder = \"/bin/bash\"; \
                 args = [ \"-c\" \"echo $name > $out; :\" ]; }";
    let _ = writeln!(
        nix,
        "}}; small = {small}; many = builtins.listToAttrs (builtins.genList (n: {{ name = \"module-${{toString n}}\"; \
         value = small \"python3.12-module-${{toString n}}-1.${{toString (n / 100)}}\"; }}) {attributes}); in self // many"
    );
    nix
}

/// Tables of a builder that is up and of one that nobody reaches.
fn builders(builder: &Builder) -> String {
    let up = builder.table("systems = ['aarch64-linux']\nslots = 4");
    let (before, rest) = up.split_once("127.0.0.1:").expect("its address");
    let (_, after) = rest.split_once('\'').expect("its end");
    let lost =
        format!("{before}127.0.0.1:9'{after}").replace("ampere", "basalt").replace("aarch64", "riscv64");
    format!("{up}\n{lost}\n")
}

/// Use of the server in the days before, into its index.
fn write_history(cache: &Cache) {
    let index = Connection::open(cache.ondine.state_dir().join("index.sqlite")).expect("opened");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let this = i64::try_from(now.as_secs() / 3600).expect("it fits");
    let grown = 17_i64 << 20;
    for before in 1..=HOURS_BEFORE {
        let (hour, past) = (this - before, HOURS_BEFORE - before);
        // Busy by day.
        let busy = [0, 0, 0, 1, 2, 4, 7, 9, 8, 6, 4, 1][(hour % 24 / 2) as usize] * (5 + hour * 7919 % 6);
        let row = params![
            hour,
            past / 2,
            past / 2,
            BYTES_BEFORE + grown * past / HOURS_BEFORE,
            busy * 31,
            busy * 9,
            busy * 3,
            busy / 9,
            busy * 3,
            busy * 42_000,
            busy * 3,
            busy * 8_000,
            busy,
            busy / 3,
            busy * 11_000,
            busy / 5,
        ];
        index
            .execute(
                "INSERT OR IGNORE INTO history VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
                row,
            )
            .expect("written");
    }
}

impl Scene {
    /// The scene, with so many attributes more in the set, and so many small builds that were served.
    pub fn new(attributes: usize, builds: usize, arguments: &[&str]) -> Scene {
        let store = NixStore::new(Release::Host);
        let gate = store.gate();
        let set = PackageSet::new([]);
        set.write_text(&nix(&gate, attributes, OLD_CURL));
        let upstream = Upstream::of(BinaryCache::empty("cache.example-1"));
        let builder = Builder::start(&store, &Release::Host, "ampere");
        let gone = table("http://127.0.0.1:9", &[&upstream.cache.public_key()], "");
        let tables = format!("{}{gone}{}", upstream.table(""), builders(&builder));
        let settings = set.settings(&tables, "");
        let arguments = [&["--config", text(&settings)], arguments].concat();
        let cache = Cache::of(store, &arguments, &[]);
        if attributes > 1000 {
            wait_until("the set is evaluated", BUILDS_LIMIT, || {
                api(&cache.ondine)["generations"][0]["current"] == true
            });
        }
        wait_for_generation(&cache.ondine);
        let scene = Scene { cache, gate, set, _builder: builder, _upstream: upstream };
        scene.ask(&["curl"]);
        wait_until("the old curl is built", BUILDS_LIMIT, || scene.waiting() == 0);
        scene.set.write_text(&nix(&scene.gate, attributes, PACKAGES[6].1));
        refresh(&scene.cache.ondine).must_succeed();
        scene.ask(&SERVED);
        let names: Vec<String> = (0..builds.min(attributes)).map(|n| format!("module-{n}")).collect();
        scene.ask(&names.iter().map(String::as_str).collect::<Vec<_>>());
        scene.ask(&["epiphany", "yelp", "geary"]);
        wait_until("all is built", BUILDS_LIMIT, || scene.waiting() == 0);
        write_history(&scene.cache);
        scene.ask(&WAITING);
        wait_until("a build has started", BUILDS_LIMIT, || !scene.gate.starts().is_empty());
        scene
    }

    /// Asks for attributes as a program does.
    pub fn ask(&self, names: &[&str]) {
        let named = |name: &&str| json!({ "set": "pkgs", "attribute": name });
        let body = json!({ "attributes": names.iter().map(named).collect::<Vec<_>>() });
        let answer = self.cache.http.post_json("/api/v1/builds", &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// Each kind of page, with its address.
    pub fn pages(&self) -> Vec<(&'static str, String)> {
        let url = self.cache.ondine.url();
        let drv = |name: &str| told(&self.cache.ondine, name)["derivation"].as_str().expect("one").to_owned();
        let path = told(&self.cache.ondine, "git")["outputs"][0]["hash"].as_str().expect("one").to_owned();
        let pages = [
            ("home", "/".to_owned()),
            ("sets", "/packages".to_owned()),
            ("set", "/packages/pkgs/".to_owned()),
            ("package", "/packages/pkgs/curl".to_owned()),
            ("search", "/search?q=module-1".to_owned()),
            ("failures", "/failures".to_owned()),
            ("derivation", format!("/derivations/{}", drv("git"))),
            ("failed", format!("/derivations/{}", drv("webkitgtk"))),
            ("running", format!("/derivations/{}", drv("llvm"))),
            ("path", format!("/paths/{path}")),
            ("statistics", "/statistics".to_owned()),
            ("reference", "/reference".to_owned()),
            ("sign-in", "/sign-in".to_owned()),
        ];
        pages.map(|(name, address)| (name, format!("{url}{address}"))).into()
    }

    /// Requests that wait now.
    pub fn waiting(&self) -> u64 {
        let text = Http::new(&self.cache.ondine.url()).get("/api/v1/queue").text();
        let queue: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        queue["total"].as_u64().expect("a number")
    }
}
