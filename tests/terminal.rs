//! The commands that show a server, as people and scripts read them: each on a busy server, an empty one, one
//! that is down, without the right to it, and with a wrong argument; locally and by URL alike.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support;
use crate::support::process::{Finished, run};
use crate::support::{
    Background, Daemon, Derivation, Http, NixStore, Ondine, PackageSet, Release, package_set, text,
    wait_until,
};
use serde_json::Value;

/// Commands that show something, with the words of each about an empty server.
const SHOWN: [(&[&str], &str); 12] = [
    (&["status"], "Nothing is built, and nothing waits."),
    (&["queue"], "Nothing is built, and nothing waits."),
    (&["builds"], "Nothing was requested"),
    (&["sets"], "There is no package set"),
    (&["upstreams"], "There is no upstream"),
    (&["failures"], "No failure is remembered."),
    (&["pins"], "Nothing is pinned."),
    (&["builders"], "local"),
    (&["token", "list"], "There is no token."),
    (&["du"], "0 NARs"),
    (&["gc"], "nothing has to go"),
    (&["fsck"], "sound: 0 NARs"),
];
/// Those of them that are for administrators.
const FOR_ADMINISTRATORS: [&str; 4] = ["token", "du", "gc", "fsck"];
/// Commands that change something, each with an argument that names nothing.
const CHANGES: [&[&str]; 9] = [
    &["refresh", "nope"],
    &["retry", "nope"],
    &["cancel", "77"],
    &["pin", "nope"],
    &["unpin", "nope"],
    &["attributes", "nope"],
    &["why", "nope"],
    &["log", "nope"],
    &["builders", "drain", "nope"],
];
/// Commands whose cases stand in other files, or that ask no server.
const ELSEWHERE: [&str; 17] = [
    "backup",
    "serve",
    "key",
    "check-config",
    "recover",
    "migrate",
    "doctor",
    "import",
    "try",
    "completions",
    "man",
    "help",
    "use",
    "build",
    "push",
    "stdio",
    "top",
];
/// Exit codes, as they are documented.
const FAILURE: i32 = 1;
const USAGE: i32 = 2;
const UNREACHABLE: i32 = 3;
const REFUSED: i32 = 4;
const SOON: Duration = Duration::from_secs(60);

/// A command of the program in an environment that names no server.
fn ondine(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ondine"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("HOME", "/nonexistent").stdin(Stdio::null()).args(arguments);
    command
}

fn code(finished: &Finished) -> Option<i32> {
    finished.status.code()
}

fn server(arguments: &[&str]) -> (NixStore, Daemon, Ondine) {
    let store = NixStore::new(Release::Host);
    let daemon = store.daemon();
    let ondine = Ondine::start(&store, arguments);
    (store, daemon, ondine)
}

#[test]
fn an_empty_server_is_said_to_be_empty_over_its_socket_and_by_its_url() {
    let (_store, _daemon, server) = server(&[]);
    let (state_dir, url) = (server.state_dir(), server.url());
    let admin =
        run(ondine(&["token", "new", "--name", "a", "--may", "read,admin", "--state-dir", text(&state_dir)]));
    let token = admin.must_succeed().text();
    run(ondine(&["token", "revoke", "a", "--state-dir", text(&state_dir)])).must_succeed();
    for (command, words) in SHOWN {
        let here = run(ondine(&[command, &["--state-dir", text(&state_dir)]].concat())).must_succeed();
        assert!(here.text().contains(words), "{command:?}: {here}");
        assert!(!here.text().contains('\u{1b}'), "colours for a script: {here}");
        if FOR_ADMINISTRATORS.contains(&command[0]) {
            continue;
        }
        let there = run(ondine(&[command, &["--server", &url]].concat())).must_succeed();
        assert!(there.text().contains(words), "{command:?}: {there}");
        let json = run(ondine(&[command, &["--json", "--server", &url]].concat())).must_succeed().text();
        assert!(serde_json::from_str::<Value>(&json).is_ok(), "{command:?}: {json}");
    }
    // A token that is not valid any more opens nothing, though anyone may read.
    let mut revoked = ondine(&["status", "--server", &url]);
    revoked.env("ONDINE_TOKEN", token.trim());
    let revoked = run(revoked).must_fail();
    assert_eq!(code(&revoked), Some(REFUSED), "{revoked}");
}

#[test]
fn a_builder_that_is_named_has_to_be_one_of_the_server() {
    let (store, _daemon, server) = server(&[]);
    let drv = store.instantiate(&Derivation::new("named", "echo named > $out")).drv;
    let state_dir = server.state_dir();
    let build = |builder: &str| {
        let mut command = server.command("build");
        command.args([text(&drv), "--no-link", "--on", builder, "--state-dir", text(&state_dir)]);
        run(command)
    };
    let unknown = build("nope").must_fail();
    assert_eq!(code(&unknown), Some(FAILURE), "{unknown}");
    assert!(unknown.stderr.contains("no builder is called nope; there are local"), "{unknown}");
}

#[test]
fn a_busy_server_is_shown_with_its_builds_its_queue_and_its_sets() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let gate = store.gate();
    let held = Derivation::new("held", &format!("{}echo held > $out\n:", gate.script("held")));
    let set = PackageSet::new([("held".to_owned(), held.to_nix()), package_set::small("hello")]);
    let server = set.serve(&store, "", "");
    package_set::wait_for_generation(&server);
    let state_dir = server.state_dir();
    let shown = |arguments: &[&str]| {
        run(ondine(&[arguments, &["--state-dir", text(&state_dir)]].concat())).must_succeed().text()
    };
    let drv = set.paths(&store, "held").0;
    let name = support::addresses::base_name(&drv).to_owned();
    let body = serde_json::json!({"derivations": [name]});
    let answer = Http::new(&server.url()).post_json("/api/v1/builds", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    gate.wait_for_starts(1);
    for command in ["status", "queue"] {
        let shown = shown(&[command]);
        for words in ["BUILDING", "held", "request 1", "PLACE", "0/1"] {
            assert!(shown.contains(words), "{command}: no {words:?} in {shown}");
        }
    }
    let status = shown(&["status"]);
    assert!(status.contains("PACKAGE SET") && status.contains(&server.url()), "{status}");
    assert!(status.contains(server.public_key()), "{status}");
    assert!(shown(&["sets"]).contains("pkgs"));
    assert_eq!(shown(&["attributes", "pkgs", "hello*"]), "hello\thello");
    let attribute: Value =
        serde_json::from_str(&shown(&["attributes", "pkgs", "hello", "--json"])).expect("JSON");
    assert_eq!(attribute["attribute"], "hello");
    let misspelt = run(ondine(&["why", "helo", "--state-dir", text(&state_dir)])).must_fail();
    let told = format!("{}{}", misspelt.text(), misspelt.stderr);
    assert!(told.contains("did you mean hello?"), "{misspelt}");
    let why: Value = serde_json::from_str(&shown(&["why", "held", "--json"])).expect("JSON");
    assert_eq!((&why["state"], &why["derivation"]), (&"building".into(), &Value::from(&*name)), "{why}");
    gate.open();
    wait_until("the build has ended", SOON, || shown(&["builds"]).contains("served"));
    let usage = shown(&["du"]);
    assert!(
        usage.contains("PACKAGE SET") && usage.contains("CLOSURE OF") && usage.contains("held"),
        "{usage}"
    );
    let served = shown(&["why", "held"]);
    assert!(served.contains("held: served") && served.contains("this server"), "{served}");
    assert_eq!(served.lines().count(), 5, "the advice is one line: {served}");
    assert!(shown(&["why", "held", "-v"]).contains("narinfo-cache-negative-ttl"));
}

#[test]
fn what_is_watched_is_shown_again_until_the_reader_has_gone() {
    let (_store, _daemon, server) = server(&[]);
    let state_dir = server.state_dir();
    let file = state_dir.join("shown");
    for (command, words) in [("top --json", "\"version\""), ("queue --watch", "nothing waits")] {
        let mut watch = Command::new("sh");
        let line = format!("exec \"$0\" {command} --state-dir \"$1\" > \"$2\"");
        watch.args(["-c", &line, env!("CARGO_BIN_EXE_ondine"), text(&state_dir), text(&file)]);
        let _watch = Background::start(watch);
        wait_until("it is shown twice", SOON, || {
            std::fs::read_to_string(&file).is_ok_and(|shown| shown.matches(words).count() >= 2)
        });
    }
}

#[test]
fn a_terminal_gets_colours_unless_they_are_not_wanted() {
    let (_store, _daemon, server) = server(&[]);
    let state_dir = server.state_dir();
    let shown = |variables: &[(&str, &str)]| {
        let line = format!("{} status --state-dir {}", env!("CARGO_BIN_EXE_ondine"), state_dir.display());
        let mut script = Command::new("script");
        script.args(["-q", "-e", "-c", &line, "/dev/null"]).env("TERM", "xterm").stdin(Stdio::null());
        script.env_remove("NO_COLOR").envs(variables.iter().copied());
        run(script).must_succeed().text()
    };
    assert!(shown(&[]).contains("\u{1b}[1mOndine"), "{}", shown(&[]));
    for plain in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let shown = shown(&[plain]);
        assert!(shown.contains("Ondine") && !shown.contains('\u{1b}'), "{plain:?}: {shown}");
    }
}

#[test]
fn a_server_that_is_down_is_told_with_an_exit_code_of_its_own() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let url = format!("http://{}", free.expect("a free port"));
    for command in SHOWN.map(|(command, _)| command).into_iter().chain(CHANGES) {
        let down = run(ondine(&[command, &["--server", &url]].concat())).must_fail();
        assert_eq!(code(&down), Some(UNREACHABLE), "{command:?}: {down}");
        assert!(down.stderr.contains("nothing listens at this address"), "{command:?}: {down}");
        assert_eq!(down.text(), "", "{command:?}: {down}");
    }
    let nowhere = run(ondine(&["queue", "--state-dir", "/nonexistent"])).must_fail();
    assert_eq!(code(&nowhere), Some(UNREACHABLE), "{nowhere}");
    assert!(nowhere.stderr.contains("there is no such state directory"), "{nowhere}");
    // A script gets the error as JSON, and a stopped server on this machine is named.
    let home = tempfile::tempdir().expect("a folder");
    let state_dir = home.path().join(".local/state/ondine");
    std::fs::create_dir_all(&state_dir).expect("made");
    std::fs::write(state_dir.join("lock"), "").expect("written");
    let at_home = |conf_dir: &str| {
        let mut command = ondine(&["status", "--json"]);
        command.env("HOME", home.path()).env("NIX_CONF_DIR", home.path().join(conf_dir));
        run(command).must_fail()
    };
    let stopped = at_home("etc/nix");
    assert_eq!(code(&stopped), Some(UNREACHABLE), "{stopped}");
    let error: Value = serde_json::from_str(&stopped.text()).expect("JSON");
    let error = error["error"].as_str().unwrap_or_default();
    assert!(error.contains(&format!("{} is not running", state_dir.display())), "{error}");
    // The system's file names another one.
    std::fs::create_dir_all(home.path().join("etc/ondine")).expect("made");
    std::fs::write(home.path().join("etc/ondine/config.toml"), format!("server = \"{url}\"\n"))
        .expect("written");
    let of_system = at_home("etc/nix");
    assert!(of_system.stderr.contains(&url), "{of_system}");
}

#[test]
fn without_the_right_each_command_says_which_one_is_lacking() {
    let (_store, _daemon, server) = server(&["--read", "token", "--build", "token"]);
    for command in SHOWN.map(|(command, _)| command).into_iter().chain(CHANGES) {
        let refused = run(ondine(&[command, &["--server", &server.url()]].concat())).must_fail();
        assert_eq!(code(&refused), Some(REFUSED), "{command:?}: {refused}");
        assert!(refused.stderr.contains("ondine token new"), "{command:?}: {refused}");
    }
    // With a token that may only read, what changes something is refused.
    let state_dir = server.state_dir();
    let new = ["token", "new", "--name", "reader", "--may", "read", "--state-dir", text(&state_dir)];
    let token = run(ondine(&new)).must_succeed().text();
    for command in [
        &["refresh"][..],
        &["retry", "a"],
        &["cancel", "1"],
        &["pin", "a"],
        &["gc"],
        &["fsck"],
        &["du"],
        &["token", "list"],
        &["builders", "drain", "local"],
    ] {
        let mut command = ondine(&[command, &["--server", &server.url()]].concat());
        command.env("ONDINE_TOKEN", token.trim());
        let refused = run(command).must_fail();
        assert_eq!(code(&refused), Some(REFUSED), "{refused}");
        assert!(refused.stderr.contains("refuses"), "{refused}");
    }
}

#[test]
fn a_wrong_argument_is_told_with_what_would_be_right() {
    let (_store, _daemon, server) = server(&[]);
    let state_dir = server.state_dir();
    for command in CHANGES {
        let refused = run(ondine(&[command, &["--state-dir", text(&state_dir)]].concat())).must_fail();
        assert_eq!(code(&refused), Some(FAILURE), "{command:?}: {refused}");
        // What `why` says of a name that stands for nothing is its answer.
        let reason = refused.stderr.clone() + &refused.text();
        let is_clear = reason.contains("nope") || reason.contains("77") || reason.contains("no such pin");
        assert!(is_clear && !reason.contains("/api/") && !reason.contains("404"), "{command:?}: {refused}");
    }
    for (arguments, words) in [
        (&["statsu"][..], "'status'"),
        (&["queue", "--jsn"], "--json"),
        (&["cancel", "x"], "expected the number of a request"),
        (&["serve", "--listen", "8080"], "--listen: "),
        (&["attributes"], "<SET>"),
        (&["status", "--server", "ftp://a"], "https://cache.example.org"),
    ] {
        let refused = run(ondine(arguments)).must_fail();
        assert_eq!(code(&refused), Some(USAGE), "{arguments:?}: {refused}");
        assert!(refused.stderr.contains(words), "{arguments:?}: {refused}");
    }
    let unnamed = run(ondine(&["status"])).must_fail();
    assert_eq!(code(&unnamed), Some(USAGE), "{unnamed}");
    assert!(unnamed.stderr.contains("--server URL"), "{unnamed}");
}

#[test]
fn every_command_of_the_help_has_its_cases() {
    let help = run(ondine(&["help"])).must_succeed().text();
    let rows =
        help.lines().filter_map(|line| line.strip_prefix("  ")).filter(|row| !row.starts_with([' ', '-']));
    let named: BTreeSet<&str> =
        rows.flat_map(|row| row.split("  ").next().unwrap_or_default().split(", ")).collect();
    let tried = SHOWN.map(|(command, _)| command).into_iter().chain(CHANGES).map(|command| command[0]);
    let tried: BTreeSet<&str> = tried.chain(ELSEWHERE).collect();
    assert_eq!(named, tried);
}
