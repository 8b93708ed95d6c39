//! Each command of the documentation runs on a real server with real clients, or says in a comment why it
//! does not; each TOML block passes `check-config`, each Nix block parses, and the README's session is one
//! that happened.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support;
use crate::support::addresses::{base_name, narinfo_address};
use crate::support::process::{Finished, run};
use crate::support::{
    Background, Client, Derivation, Http, NixStore, Ondine, Release, derivations, text, wait_until,
};

/// Languages of blocks that are no commands: sessions and formats that a reader compares or adapts.
const OTHER_LANGUAGES: [&str; 4] = ["", "console", "ini", "nginx"];
/// The address of the cache in the documentation.
const ADDRESS: &str = "http://cache.example.org:8080";
/// The path of the sample in the documentation.
const SAMPLE: &str = "/nix/store/…-hello-2.12.1";
/// Time limit of a server's start, and of a set's evaluation.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Characters of the hash in a store path.
const HASH_CHARS: usize = 32;

/// A fenced block of a page.
#[derive(Debug)]
struct Block {
    /// The page and the line of the fence, such as `docs/retention.md:12`.
    place: String,
    language: String,
    /// The comment directly above the fence, without its brackets.
    marker: Option<String>,
    text: String,
}

/// Kinds of blocks of commands, by how they are run.
#[derive(Debug, PartialEq)]
enum How {
    /// By a client of the server.
    Client,
    /// The same; the server answers 404.
    ClientGets404,
    /// As the server itself, until it prints its key.
    Server,
    /// In the state directory of a stopped server.
    Stopped,
    /// By `.ci/run`.
    Ci,
    /// Not at all, for a reason.
    Not,
}

impl Block {
    fn how(&self) -> How {
        let Some(marker) = &self.marker else { return How::Client };
        match marker.split_once(": ") {
            Some(("not run", reason)) if reason.len() > 10 => How::Not,
            Some(("answers", "404")) => How::ClientGets404,
            Some(("runs", "until it prints its key")) => How::Server,
            Some(("runs", "in the state directory of a stopped server")) => How::Stopped,
            Some(("ci", "try" | "test")) if self.place.starts_with("README.md:") => How::Ci,
            _ => panic!("{}: no such marker: {marker}", self.place),
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every page, the README first.
fn pages() -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(root().join("docs")).expect("the folder of pages");
    let names = entries.map(|entry| format!("docs/{}", entry.expect("an entry").file_name().display()));
    let names = names.filter(|name| name.ends_with(".md")).chain(["README.md".to_owned()]);
    names.map(|name| (name.clone(), std::fs::read_to_string(root().join(name)).expect("a page"))).collect()
}

/// The blocks of a page, in their order.
fn blocks(page: &str, text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut inside, mut above) = (None, "");
    for (number, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        match inside {
            None if trimmed.starts_with("```") => {
                let marker = above.trim().strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->"));
                blocks.push(Block {
                    place: format!("{page}:{}", number + 1),
                    language: trimmed[3..].to_owned(),
                    marker: marker.map(str::to_owned),
                    text: String::new(),
                });
                inside = Some(line.len() - trimmed.len());
            }
            Some(_) if trimmed == "```" => inside = None,
            Some(indent) => {
                let block = blocks.last_mut().expect("one is open");
                block.text += line.get(indent..).unwrap_or_default();
                block.text.push('\n');
            }
            None => {}
        }
        above = line;
    }
    assert!(inside.is_none(), "{page}: a block is not closed");
    blocks
}

fn all_blocks(language: &str) -> Vec<Block> {
    let blocks: Vec<Block> = pages().iter().flat_map(|(page, text)| blocks(page, text)).collect();
    for block in &blocks {
        let known = ["sh", "toml", "nix", "yaml", "json"].contains(&&*block.language);
        let known = known || OTHER_LANGUAGES.contains(&&*block.language);
        assert!(known, "{}: no test knows the language {:?}", block.place, block.language);
    }
    blocks.into_iter().filter(|block| block.language == language).collect()
}

/// The package of the documentation, with a program.
fn sample() -> Derivation {
    let script =
        "mkdir -p $out/bin; printf '#!/bin/sh\necho Hello\n' > $out/bin/hello; chmod +x $out/bin/hello";
    Derivation::new("hello-2.12.1", script)
}

/// The package set of the documentation: a derivation that builds, and one that fails.
fn package_set(store: &NixStore) -> PathBuf {
    let folder = store.folder().join("nixpkgs");
    std::fs::create_dir(&folder).expect("the test's folder can be written to");
    let hello = sample().to_nix();
    let openssl = derivations::failing("openssl").to_nix();
    std::fs::write(folder.join("default.nix"), format!("{{ hello = {hello}; openssl = {openssl}; }}"))
        .expect("the test's folder can be written to");
    folder
}

/// A server with that set, and what stands for the placeholders.
struct Scene {
    store: NixStore,
    _daemon: support::Daemon,
    ondine: Ondine,
    sample: support::Instantiated,
    missing: String,
}

impl Scene {
    fn new() -> Scene {
        let store = NixStore::new(Release::Host);
        let daemon = store.daemon();
        let set = format!("nixpkgs expression:{}", package_set(&store).display());
        let ondine = Ondine::start(&store, &["--catalogue", &set, "--key-name", "cache-1"]);
        let sample = store.instantiate(&sample());
        let failing = store.instantiate(&derivations::failing("openssl"));
        let http = Http::new(&ondine.url());
        http.wait_until_ready();
        wait_until("the package set is there", START_LIMIT, || {
            http.get("/api/v1/catalogue/nixpkgs/hello").status == 200
        });
        // A failure that there is to retry.
        assert_eq!(http.get(&narinfo_address(failing.out())).status, 404);
        let missing = "0".repeat(HASH_CHARS);
        Scene { store, _daemon: daemon, ondine, sample, missing }
    }

    /// The commands of a block with the placeholders filled in.
    #[track_caller]
    fn fill_in(&self, block: &Block) -> String {
        let commands = block.text.replace(ADDRESS, &self.ondine.url());
        let commands = commands.replace(SAMPLE, text(self.sample.out()));
        assert!(!commands.contains('…'), "{}: not all is filled in: {commands}", block.place);
        commands
    }

    fn client(&self) -> Client {
        let settings = [
            ("extra-substituters", &*self.ondine.url()),
            ("extra-trusted-public-keys", self.ondine.public_key()),
        ];
        Client::with_settings(Release::Host, &self.store.store_dir(), &settings)
    }

    /// Runs the commands as a reader would, in a folder of their own. Answers from 400 on fail.
    #[track_caller]
    fn run(&self, client: &Client, state_dir: &Path, commands: &str) -> Finished {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join(".curlrc"), "fail\nsilent\nshow-error\n").expect("written");
        let hash = base_name(self.sample.out())[..HASH_CHARS].to_owned();
        let variables = [
            format!("PATH={}", path_with_ondine()),
            format!("CURL_HOME={}", folder.path().display()),
            format!("ONDINE_STATE_DIR={}", state_dir.display()),
            format!("HASH={hash}"),
            format!("DRV={}", base_name(&self.sample.drv)),
            // That of the failure.
            "NUMBER=1".to_owned(),
            format!("KEY={}", self.ondine.public_key()),
            format!("MISSING={}", self.missing),
        ];
        let mut arguments: Vec<&str> = vec!["--chdir", text(folder.path())];
        arguments.extend(variables.iter().map(String::as_str));
        arguments.extend(["bash", "-euo", "pipefail", "-c", commands]);
        client.run("env", &arguments)
    }
}

fn path_with_ondine() -> String {
    let ondine = Path::new(env!("CARGO_BIN_EXE_ondine")).parent().expect("a folder");
    format!("{}:{}", ondine.display(), std::env::var("PATH").unwrap_or_default())
}

#[test]
fn every_command_of_a_client_runs() {
    let scene = Scene::new();
    let state_dir = scene.ondine.state_dir();
    let mut count = 0;
    for (page, content) in pages() {
        let client = scene.client();
        for block in blocks(&page, &content).iter().filter(|block| block.language == "sh") {
            let how = block.how();
            if matches!(how, How::Client | How::ClientGets404) {
                let finished = scene.run(&client, &state_dir, &scene.fill_in(block));
                let succeeded = finished.succeeded();
                let expected = match how {
                    How::Client => succeeded,
                    _ => !succeeded && finished.stderr.contains("404"),
                };
                assert!(expected, "{}: {}\n{}", block.place, finished.stderr, scene.ondine.log());
                count += 1;
            }
        }
    }
    assert!(count > 10, "only {count} blocks were run");
}

#[test]
fn every_command_of_a_server_starts_it() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let blocks: Vec<Block> =
        all_blocks("sh").into_iter().filter(|block| block.how() == How::Server).collect();
    assert!(!blocks.is_empty());
    for (number, block) in blocks.iter().enumerate() {
        let printed = store.folder().join(format!("printed-{number}"));
        let commands = block.text.replace("0.0.0.0:8080", "127.0.0.1:0");
        assert_ne!(commands, block.text, "{}: another address", block.place);
        let mut server = Command::new("bash");
        server.args(["-c", &format!("exec > \"$PRINTED\"; {commands}")]);
        server.envs(store.variables()).env("PATH", path_with_ondine()).env("PRINTED", &printed);
        server.env("ONDINE_STATE_DIR", store.folder().join(format!("state-{number}")));
        let _server = Background::start(server);
        wait_until("it prints its key", START_LIMIT, || {
            std::fs::read_to_string(&printed)
                .is_ok_and(|lines| lines.contains("extra-trusted-public-keys = "))
        });
    }
}

#[test]
fn every_command_for_a_stopped_server_runs() {
    let mut scene = Scene::new();
    assert!(scene.ondine.sigterm().success());
    let state_dir = scene.ondine.state_dir();
    let blocks: Vec<Block> =
        all_blocks("sh").into_iter().filter(|block| block.how() == How::Stopped).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        scene.run(&scene.client(), &state_dir, &scene.fill_in(&block)).must_succeed();
    }
}

#[test]
fn every_settings_block_passes_check_config() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ondine.toml");
    let blocks = all_blocks("toml");
    assert!(blocks.len() > 4, "only {} were found", blocks.len());
    for block in blocks {
        std::fs::write(&file, &block.text).expect("written");
        let mut check = Command::new(env!("CARGO_BIN_EXE_ondine"));
        check.env_clear().env("HOME", folder.path()).args(["check-config", "--settings-only", text(&file)]);
        let finished = run(check);
        assert!(finished.succeeded(), "{}: {}", block.place, finished.stderr);
    }
}

/// Variables of Ondine in a block of YAML; a value after `|` is made of the lines below it.
fn variables(yaml: &str) -> Vec<(String, String)> {
    let mut variables: Vec<(String, String)> = Vec::new();
    let mut lines = yaml.lines().peekable();
    let depth = |line: &str| line.len() - line.trim_start().len();
    while let Some(line) = lines.next() {
        let Some((name, value)) =
            line.trim().split_once(": ").filter(|(name, _)| name.starts_with("ONDINE_"))
        else {
            continue;
        };
        let mut value = value.trim_matches('"').to_owned();
        if value == "|" {
            value.clear();
            while let Some(below) = lines.next_if(|below| depth(below) > depth(line)) {
                value += &format!("{}\n", below.trim());
            }
        }
        variables.push((name.to_owned(), value));
    }
    variables
}

#[test]
fn the_variables_of_every_yaml_block_are_settings() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut found = 0;
    for block in all_blocks("yaml") {
        let variables = variables(&block.text);
        found += variables.len();
        // Nothing can be there: the settings are read before that is found.
        let mut serve = Command::new(env!("CARGO_BIN_EXE_ondine"));
        serve.env_clear().env("HOME", folder.path()).envs(variables.clone());
        serve.args(["serve", "--listen", "127.0.0.1:0", "--state-dir", "/dev/null/state"]);
        if cfg!(not(feature = "postgres")) {
            serve.env_remove("ONDINE_INDEX");
        }
        let refused = run(serve).must_fail();
        assert!(refused.stderr.contains("/dev/null/state"), "{}: {refused}", block.place);
        for (name, _) in variables {
            let setting = name.trim_start_matches("ONDINE_").to_lowercase().replace('_', "-");
            assert!(is_setting(&setting), "{}: {name} sets nothing", block.place);
        }
    }
    assert!(found > 4, "only {found} were found");
}

fn is_setting(name: &str) -> bool {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/settings.md"));
    page.expect("the page of settings").lines().any(|line| line == format!("### `{name}`"))
}

#[test]
fn every_json_block_parses() {
    let blocks = all_blocks("json");
    assert!(!blocks.is_empty());
    for block in blocks {
        let parsed = serde_json::from_str::<serde_json::Value>(&block.text);
        assert!(parsed.is_ok(), "{}: {parsed:?}", block.place);
    }
}

#[test]
fn every_nix_block_parses() {
    let store = NixStore::new(Release::Host);
    let file = store.folder().join("block.nix");
    let blocks = all_blocks("nix");
    assert!(blocks.len() > 2, "only {} were found", blocks.len());
    for block in blocks {
        std::fs::write(&file, &block.text).expect("written");
        let finished = run(store.command("nix-instantiate", &["--parse", text(&file)]));
        assert!(finished.succeeded(), "{}: {}", block.place, finished.stderr);
    }
}

#[test]
fn the_package_set_of_the_tutorial_is_the_one_that_its_commands_are_about() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let file = store.folder().join("default.nix");
    let sets = all_blocks("nix");
    let set = sets.iter().find(|block| block.place.starts_with("docs/tutorial.md:")).expect("a package set");
    std::fs::write(&file, &set.text).expect("written");
    let names = |file: &Path| {
        let expression = format!("builtins.attrNames (import {})", file.display());
        let names = ["--eval", "--strict", "--json", "--expr", &expression];
        run(store.command("nix-instantiate", &names)).must_succeed().text()
    };
    assert_eq!(names(&file), names(&package_set(&store).join("default.nix")));
    let build =
        |attribute: &str| run(store.command("nix-build", &["--no-out-link", text(&file), "-A", attribute]));
    assert!(build("hello").must_succeed().text().ends_with("-hello-2.12.1"));
    assert!(build("openssl").must_fail().stderr.contains("No compiler is here."));
}

#[test]
fn the_session_of_the_readme_is_one_of_ondine_try() {
    let sessions = all_blocks("console");
    let documented = &sessions.iter().find(|block| block.place.starts_with("README.md:")).expect("one").text;
    let (command, documented) = documented.split_once('\n').expect("a command and what it prints");
    assert_eq!(command, "$ cargo run -- try --seconds 12");
    let folder = tempfile::tempdir().expect("a folder");
    // Both streams in their order, as on a terminal.
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" try --seconds 12 2>&1", env!("CARGO_BIN_EXE_ondine")]);
    command.env("TMPDIR", folder.path());
    let happened = run(command).must_succeed().text();
    assert_eq!(shape(documented), shape(&happened));
}

/// The lines of a session without what differs each time: hashes, keys, folders, numbers, and how often a
/// line is repeated.
fn shape(session: &str) -> Vec<String> {
    let word = |word: &str| {
        let folder = word
            .split_once("/ondine-try-")
            .map(|(_, rest)| rest.split_once('/').map_or("", |(_, rest)| rest));
        let word = folder.unwrap_or(word);
        let word = if word.contains("-1:") { "KEY" } else { word };
        let parts = word.split_inclusive(['/', '-', ':']).map(|part| {
            let bare = part.trim_end_matches(['/', '-', ':']);
            let varies = bare.len() == HASH_CHARS || bare.chars().any(|c| c.is_ascii_digit());
            if varies { part.replace(bare, "N") } else { part.to_owned() }
        });
        parts.collect::<String>()
    };
    let lines =
        session.trim().lines().map(|line| line.split_whitespace().map(word).collect::<Vec<_>>().join(" "));
    let mut lines: Vec<String> = lines.filter(|line| !line.is_empty()).collect();
    lines.dedup();
    lines
}

#[test]
fn blocks_are_found_with_their_markers() {
    let page = "text\n\n<!-- not run: a reason that is long -->\n```sh\na\n  b\n```\n\n- item\n\n  ```sh\n  c\n  ```\n";
    let found = blocks("docs/x.md", page);
    let texts: Vec<&str> = found.iter().map(|block| &*block.text).collect();
    assert_eq!(texts, ["a\n  b\n", "c\n"]);
    assert_eq!((found[0].how(), found[1].how()), (How::Not, How::Client));
    assert_eq!(found[1].place, "docs/x.md:11");
}
