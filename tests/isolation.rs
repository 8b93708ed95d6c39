//! Evaluators that want what they must not have: the state directory with the signing key, files of others,
//! the network. Each attempt fails in every kind of set and is told with the set, and what it wanted is
//! neither told nor in the store.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support;
use crate::support::addresses::narinfo_address;
use crate::support::package_set::{api, refresh, small, wait_for_generation};
use crate::support::{Http, NixStore, Ondine, PackageSet, Release, derivations, programs, text};
use seccompiler::{SeccompAction, SeccompFilter};

/// Targets of hostile sets: a store, files of somebody else, a server that counts who comes.
struct Attacked {
    store: NixStore,
    /// In it are the sources of sets, and a file that no set names.
    folder: tempfile::TempDir,
    connections: Arc<AtomicUsize>,
    address: String,
}

impl Attacked {
    fn new(release: Release) -> Attacked {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("others"), "words of others").expect("written");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let connections = Arc::<AtomicUsize>::default();
        let counted = connections.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::SeqCst);
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n\"net\"");
            }
        });
        Attacked { store: NixStore::new(release), folder, connections, address }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Attributes that want what they must not have, once the state directory is there.
    fn attacks(&self, state: &Path) -> BTreeMap<String, String> {
        let key = state.join("signing-key");
        let (key, state, address) = (text(&key), text(state), &self.address);
        let others = self.path("others");
        let others = text(&others);
        let file = |path: &str| format!("(builtins.fetchTree {{ type = \"path\"; path = \"{path}\"; }})");
        let named = |path: &str| {
            format!("derivation {{ name = \"leak\"; system = \"x\"; builder = \"/bin/sh\"; leak = {path}; }}")
        };
        [
            ("flake-of-key", format!("builtins.getFlake \"path:{key}\"")),
            ("flake-of-state", format!("builtins.getFlake \"path:{state}\"")),
            ("tree-of-key", format!("throw (builtins.readFile {})", file(key))),
            (
                "tree-of-state",
                format!("throw (builtins.readFile ({}.outPath + \"/signing-key\"))", file(state)),
            ),
            ("read-key", format!("throw (builtins.readFile {key})")),
            ("read-key-text", format!("throw (builtins.readFile \"{key}\")")),
            ("import-key", format!("import {key}")),
            ("literal-key", named(key)),
            ("path-of-key", named(&format!("builtins.path {{ path = {key}; name = \"k\"; }}"))),
            ("filter-state", named(&format!("builtins.filterSource (p: t: true) {state}"))),
            ("list-state", format!("throw (toString (builtins.attrNames (builtins.readDir {state})))")),
            ("link-to-key", "throw (builtins.readFile ./link-to-key)".to_owned()),
            ("link-copied", named("./link-to-state")),
            ("below-link", "throw (builtins.readFile (./link-to-state + \"/signing-key\"))".to_owned()),
            ("fetch-key", format!("throw (builtins.readFile (builtins.fetchurl \"file://{key}\"))")),
            ("git-of-state", format!("builtins.fetchGit {{ url = \"file://{state}\"; }}")),
            ("environ", "throw (builtins.readFile \"/proc/1/environ\")".to_owned()),
            ("read-others", format!("throw (builtins.readFile {others})")),
            ("flake-of-others", format!("builtins.getFlake \"path:{others}\"")),
            ("shadow", "throw (builtins.readFile \"/etc/shadow\")".to_owned()),
            ("net-flake", format!("builtins.getFlake \"http://{address}/x.tar.gz\"")),
            (
                "net-tree",
                format!("builtins.fetchTree {{ type = \"tarball\"; url = \"http://{address}/x.tar.gz\"; }}"),
            ),
            ("net-url", format!("throw (builtins.readFile (builtins.fetchurl \"http://{address}/x\"))")),
            ("net-git", format!("builtins.fetchGit {{ url = \"http://{address}/x\"; }}")),
        ]
        .into_iter()
        .map(|(name, nix)| (name.to_owned(), nix))
        .collect()
    }

    /// A folder of a set, with links to what it must not have.
    fn source(&self, name: &str, state: &Path) -> PathBuf {
        let folder = self.path(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        for (link, target) in
            [("link-to-state", state.to_owned()), ("link-to-key", state.join("signing-key"))]
        {
            let link = folder.join(link);
            if !link.is_symlink() {
                std::os::unix::fs::symlink(target, link).expect("a link");
            }
        }
        folder
    }

    /// Whatever the store has under this name is a link.
    #[track_caller]
    fn assert_copied_as_link(&self, name: &str) {
        for entry in std::fs::read_dir(self.store.store_dir()).expect("a store") {
            let path = entry.expect("a readable store").path();
            assert!(!text(&path).ends_with(name) || path.is_symlink(), "{} is no link", path.display());
        }
    }

    #[track_caller]
    fn assert_unharmed(&self, what: &str, told: &str, state: &Path) {
        let key = std::fs::read_to_string(state.join("signing-key")).expect("a key");
        let secret = key.trim().split_once(':').expect("name:secret").1;
        assert!(!told.contains(secret) && !told.contains("words of others"), "{what}: {told}");
        let holds = |path: &Path, words: &str| {
            let found = std::process::Command::new("grep").args(["-rlF", "--", words]).arg(path).output();
            String::from_utf8(found.expect("grep").stdout).expect("paths")
        };
        for words in [secret, "words of others"] {
            assert_eq!(holds(&self.store.store_dir(), words), "", "{what}: in the Nix store");
        }
        assert_eq!(self.connections.load(Ordering::SeqCst), 0, "{what} reached the network");
    }
}

fn expression(attributes: &BTreeMap<String, String>) -> String {
    let lines = attributes.iter().map(|(name, nix)| format!("  {name} = {nix};\n"));
    format!("{{\n{}}}\n", lines.collect::<String>())
}

fn look_up(ondine: &Ondine, set: &str, attribute: &str) -> String {
    Http::new(&ondine.url()).get(&format!("/api/v1/catalogue/{set}/{attribute}")).text()
}

fn set_of(ondine: &Ondine, name: &str) -> serde_json::Value {
    let told = Http::new(&ondine.url()).get(&format!("/api/v1/catalogue/{name}")).text();
    serde_json::from_str(&told).expect("JSON")
}

#[test]
fn evaluators_have_nothing_of_the_state_directory_and_no_network_in_any_kind_of_set() {
    for release in Release::all() {
        let attacked = Attacked::new(release);
        let store = &attacked.store;
        // Even where the configuration offers all of it.
        store.configure("experimental-features = nix-command flakes fetch-tree\nrestrict-eval = false\n");
        let _daemon = store.daemon();
        let name = store.release().name().to_owned();
        let system = store.nix(&["eval", "--impure", "--raw", "--expr", "builtins.currentSystem"]);
        let settings = attacked.path("settings.toml");
        let (plain, flake, files) = (attacked.path("plain"), attacked.path("flake"), attacked.path("files"));
        let table = |name: &str, source: String, more: &str| {
            format!("[[catalogue]]\nname = '{name}'\nrefresh = 'manual'\nsource = {{ {source} }}\n{more}\n")
        };
        let sources = [
            ("plain", format!("expression = '{}'", plain.display())),
            ("flake", format!("flake = 'path:{}'", flake.display())),
            ("files", format!("directory = '{}'", files.display())),
        ];
        let tables = sources.iter().map(|(name, source)| {
            table(name, source.clone(), "")
                + &table(&format!("lazy-{name}"), source.clone(), "index = 'lazy'")
        });
        std::fs::write(&settings, tables.collect::<String>()).expect("written");
        let path = programs::path(store);
        let ondine = Ondine::start_with(store, &["--config", text(&settings)], &[("PATH", &path)]);
        let state = ondine.state_dir();
        let mut attributes = attacked.attacks(&state);
        attributes.insert("good".to_owned(), derivations::text_file("good", "good").to_nix());
        let in_flake: BTreeMap<String, String> = attributes
            .iter()
            .map(|(name, nix)| (name.clone(), nix.replace("builtins.currentSystem", &format!("{system:?}"))))
            .collect();
        let of = |name: &str| attacked.source(name, &state);
        std::fs::write(of("plain").join("default.nix"), expression(&attributes)).expect("written");
        let outputs =
            format!("{{ outputs = {{ self }}: {{ packages.{system} = {}; }}; }}", expression(&in_flake));
        std::fs::write(of("flake").join("flake.nix"), &outputs).expect("written");
        let files = of("files");
        for (attribute, nix) in &attributes {
            std::fs::write(files.join(format!("{attribute}.nix")), nix).expect("written");
        }

        refresh(&ondine);
        for set in ["plain", "flake", "files"] {
            let told = set_of(&ondine, set);
            let errors = told["errors"].as_array().expect("a list");
            let mut evaluated = 1;
            for attribute in attributes.keys().filter(|attribute| *attribute != "good") {
                let error = errors.iter().find(|error| error["attribute"] == **attribute);
                let lazy = look_up(&ondine, &format!("lazy-{set}"), attribute);
                if attribute == "link-copied" {
                    // Nix 2.26 copies the link itself at times, which tells the words of its target and
                    // nothing that is there.
                    evaluated += usize::from(error.is_none());
                    attacked.assert_copied_as_link("link-to-state");
                    attacked.assert_unharmed(&format!("{name} {set} {attribute}"), &lazy, &state);
                    continue;
                }
                let error =
                    error.unwrap_or_else(|| panic!("{name} {set}: {attribute} is not told: {told:#}"));
                assert!(lazy.contains("cannot be evaluated"), "{name} lazy {set} {attribute}: {lazy}");
                for error in [error["error"].as_str().expect("a text"), &lazy] {
                    assert!(!error.contains("it throws an error"), "{name} {set} {attribute}: {error}");
                    attacked.assert_unharmed(&format!("{name} {set} {attribute}"), error, &state);
                }
            }
            assert_eq!(told["generations"][0]["attributes"], evaluated, "{name} {set}: {told:#}");
            attacked.assert_unharmed(&format!("{name} {set}"), &told.to_string(), &state);
            let lazy = look_up(&ondine, &format!("lazy-{set}"), "good");
            assert!(lazy.contains("-good.drv"), "{name} lazy {set}: {lazy}");
        }
        attacked.assert_unharmed(&name, &ondine.log(), &state);
    }
}

#[test]
fn what_a_flake_takes_in_is_not_of_the_state_directory_or_the_network_either() {
    for release in Release::all() {
        let attacked = Attacked::new(release);
        let store = &attacked.store;
        let _daemon = store.daemon();
        let path = programs::path(store);
        let flake = attacked.path("flake");
        let set = format!("flake flake:path:{}", flake.display());
        let ondine = Ondine::start_with(store, &["--catalogue", &set], &[("PATH", &path)]);
        let state = ondine.state_dir();
        let name = store.release().name();
        // To pin what it takes in Nix reads that, and neither restrict-eval nor pure-eval has a say in it.
        for (url, words) in [
            (format!("path:{}", state.display()), "Permission denied"),
            (format!("path:{}/signing-key", state.display()), "Permission denied"),
            (format!("path:{}", attacked.folder.path().display()), "Permission denied"),
            (format!("http://{}/x.tar.gz", attacked.address), "allowed-uris"),
            (format!("git+http://{}/x", attacked.address), "allowed-uris"),
        ] {
            let nix = format!(
                "{{ inputs.x = {{ url = \"{url}\"; flake = false; }}; outputs = {{ self, x }}: {{ }}; }}"
            );
            std::fs::write(attacked.source("flake", &state).join("flake.nix"), nix).expect("written");
            let failed = refresh(&ondine).must_fail();
            assert!(failed.text().contains(words), "{name} {url}: {failed}");
            let told = set_of(&ondine, "flake").to_string();
            attacked.assert_unharmed(&format!("{name} {url}"), &told, &state);
        }
    }
}

#[test]
fn workers_of_nix_eval_jobs_are_isolated_too() {
    let attacked = Attacked::new(Release::Host);
    let store = &attacked.store;
    store.configure("experimental-features = nix-command flakes\n");
    let _daemon = store.daemon();
    programs::install_eval_jobs(store);
    let plain = attacked.path("plain");
    let set = format!("plain expression:{}", plain.display());
    let path = programs::path(store);
    let ondine = Ondine::start_with(store, &["--catalogue", &set], &[("PATH", &path)]);
    let state = ondine.state_dir();
    let mut attributes = attacked.attacks(&state);
    attributes
        .retain(|name, _| ["flake-of-key", "tree-of-key", "read-key", "net-url"].contains(&name.as_str()));
    attributes.extend([small("good")]);
    std::fs::write(attacked.source("plain", &state).join("default.nix"), expression(&attributes))
        .expect("written");
    refresh(&ondine).must_succeed();
    assert!(ondine.log().contains("evaluating with nix-eval-jobs"), "{}", ondine.log());
    let told = set_of(&ondine, "plain");
    assert_eq!(told["generations"][0]["attributes"], 1, "{told:#}");
    assert_eq!(told["errors"].as_array().expect("a list").len(), 4, "{told:#}");
    attacked.assert_unharmed("nix-eval-jobs", &told.to_string(), &state);
}

#[test]
fn what_allowed_uris_names_is_fetched_and_nothing_else() {
    for release in Release::all() {
        let (allowed, other) = (Attacked::new(release.clone()), Attacked::new(release));
        let store = &allowed.store;
        let _daemon = store.daemon();
        let mut set = PackageSet::new([small("good")]);
        let fetch = |from: &Attacked| {
            format!("throw (builtins.readFile (builtins.fetchurl \"http://{}/x\"))", from.address)
        };
        set.attributes.insert("fetches".into(), fetch(&allowed));
        set.attributes.insert("reaches".into(), fetch(&other));
        set.write();
        let settings = set.settings("", &format!("allowed-uris = ['http://{}/']", allowed.address));
        let path = programs::path(store);
        let ondine = Ondine::start_with(store, &["--config", text(&settings)], &[("PATH", &path)]);
        wait_for_generation(&ondine);
        let told = api(&ondine);
        let error = |number: usize| told["errors"][number]["error"].as_str().expect("a text").to_owned();
        let name = store.release().name();
        assert!(error(0).contains("\"net\""), "{name}: {told:#}");
        assert!(error(1).contains("access to URI") && error(1).contains("forbidden"), "{name}: {told:#}");
        assert_eq!(allowed.connections.load(Ordering::SeqCst), 1, "{name}");
        assert_eq!(other.connections.load(Ordering::SeqCst), 0, "{name}");
    }
}

#[test]
fn without_isolation_nothing_is_evaluated_unless_the_settings_say_so() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let set = PackageSet::new([small("good")]);
    let settings = set.settings("", "");
    // A kernel without Landlock, for the thread that starts the server and so for that.
    let start = |arguments: &[&str]| {
        std::thread::scope(|scope| {
            let started = scope.spawn(|| {
                let rules = [(libc::SYS_landlock_create_ruleset, Vec::new())].into_iter().collect();
                let lacks = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
                let arch = std::env::consts::ARCH.try_into().expect("a known machine");
                let filter = SeccompFilter::new(rules, SeccompAction::Allow, lacks, arch).expect("a filter");
                let program: seccompiler::BpfProgram = filter.try_into().expect("a program");
                seccompiler::apply_filter(&program).expect("applied");
                Ondine::start(&store, &[&["--config", text(&settings)], arguments].concat())
            });
            started.join().expect("it starts")
        })
    };
    let ondine = start(&[]);
    let failed = refresh(&ondine).must_fail();
    for words in ["no Landlock", "evaluator-isolation = \"none\"", "lsm="] {
        assert!(failed.text().contains(words), "{words}: {failed}");
    }
    assert!(api(&ondine)["failure"].as_str().expect("a text").contains("no Landlock"));
    drop(ondine);
    let ondine = start(&["--evaluator-isolation", "none"]);
    wait_for_generation(&ondine);
}

#[test]
fn a_source_with_the_state_directory_in_it_is_read_around_it_or_refused() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("within/state");
    std::fs::create_dir_all(folder.path().join("within/beside")).expect("a folder");
    std::fs::write(
        folder.path().join("within/beside/good.nix"),
        derivations::text_file("good", "g").to_nix(),
    )
    .expect("written");
    let set = "{ good = import ./within/beside/good.nix; bad = throw (builtins.readFile ./within/state/signing-key); }";
    std::fs::write(folder.path().join("set.nix"), set).expect("written");
    let sets = [
        ("plain", format!("expression:{}/set.nix", folder.path().display())),
        ("files", format!("directory:{}", folder.path().display())),
        ("flake", format!("flake:path:{}", folder.path().display())),
    ];
    let sets: Vec<String> = sets.iter().map(|(name, source)| format!("{name} {source}")).collect();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ondine"));
    command.arg("serve").envs(store.variables());
    command.args(["--listen", "127.0.0.1:0", "--state-dir", text(&state), "--catalogue", &sets.join(",")]);
    let _serving = support::Background::start(command);
    let refreshed = |name: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ondine"));
        command.args(["refresh", name, "--state-dir", text(&state)]);
        support::process::run(command)
    };
    support::wait_until("it listens", std::time::Duration::from_secs(30), || {
        state.join("control.sock").exists()
    });
    let plain = refreshed("plain").must_succeed();
    assert!(plain.text().contains("1 attributes") && plain.text().contains("1 errors"), "{plain}");
    for name in ["files", "flake"] {
        let failed = refreshed(name).must_fail();
        assert!(failed.text().contains("would be read with the signing key"), "{failed}");
    }
}

#[test]
fn a_copy_of_the_signing_key_in_the_store_is_never_served() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let ondine = Ondine::start(&store, &[]);
    let folder = tempfile::tempdir().expect("a folder");
    let key = folder.path().join("key");
    std::fs::copy(ondine.state_dir().join("signing-key"), &key).expect("copied");
    let copies = [store.nix_store(&["--add", text(&key)]), store.nix_store(&["--add", text(folder.path())])];
    for copy in copies.iter().map(|path| path.trim()) {
        for prefix in ["", "/cached"] {
            let address = prefix.to_owned() + &narinfo_address(Path::new(copy));
            let answer = Http::new(&ondine.url()).get(&address);
            assert_eq!(answer.status, 404, "{}", answer.text());
            assert!(answer.text().contains("signing key"), "{}", answer.text());
        }
    }
}
