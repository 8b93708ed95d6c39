//! Settings that are wrong: told with file and line, in words that need no source code, by `check-config` as
//! by the start.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::support::process::run;
use crate::support::{Cache, NixStore, Ondine, Release, text};

/// The built program without any capability: to it, permissions count although root runs the tests.
fn ondine(store: &NixStore, arguments: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--inh-caps=-all", "--bounding-set=-all", env!("CARGO_BIN_EXE_ondine")]).args(arguments);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.envs(store.variables());
    command
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}

/// A fault of a state directory or of the machine: lines of the settings, what is done before, the words of
/// the refusal.
type Fault<'a> = (&'a str, &'a dyn Fn(&Path), &'a str);

#[test]
fn what_a_start_is_refused_for_check_config_is_too_with_the_same_words() {
    let store = NixStore::new(Release::Host);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let busy = format!("listen = '{}'", taken.local_addr().expect("an address"));
    let folder = |state: &Path, name: &str| std::fs::create_dir_all(state.join(name)).expect("made");
    let file = |state: &Path, name: &str, content: &str| {
        folder(state, "");
        std::fs::write(state.join(name), content).expect("written");
    };
    let index = |state: &Path, version: i64| {
        folder(state, "");
        let index = rusqlite::Connection::open(state.join("index.sqlite")).expect("a database");
        index.pragma_update(None, "user_version", version).expect("set");
    };
    let key = narinfo::SecretKey::generate("other-1".parse().expect("a name")).to_secret_string();
    let faults: &[Fault] = &[
        ("", &|state| std::fs::write(state, "a file").expect("written"), "cannot use "),
        (
            "",
            &|state| {
                folder(state, "");
                std::fs::set_permissions(state, Permissions::from_mode(0o555)).expect("set");
            },
            "Permission denied",
        ),
        ("", &|state| file(state, "nar", "a file"), "/nar: "),
        ("", &|state| file(state, "signing-key", "no key"), "holds no signing key"),
        ("", &|state| index(state, 0), "is missing, though this cache has signed paths with it"),
        (
            "",
            &|state| {
                file(state, "signing-key", &key);
                index(state, 1_000);
            },
            "has schema 1000",
        ),
        (
            "",
            &|state| {
                file(state, "signing-key", &key);
                file(state, "index.sqlite", &"no database ".repeat(100));
            },
            "cannot open the index",
        ),
        (&busy, &|_| {}, "another program listens there"),
        ("listen = '192.0.2.1:8080'", &|_| {}, "this machine has no such address"),
        ("background-daemon = '/nonexistent/socket'", &|_| {}, "both Nix daemons must answer"),
        #[cfg(not(feature = "otel"))]
        ("otlp-endpoint = 'http://127.0.0.1:4318'", &|_| {}, "build it with the feature `otel`"),
    ];
    for (number, (settings, prepare, words)) in faults.iter().enumerate() {
        let file = store.folder().join(format!("{number}.toml"));
        let listen = if settings.starts_with("listen") { "" } else { "listen = '127.0.0.1:0'" };
        let said = ["check-config", "serve"].map(|command| {
            let state = store.folder().join(format!("{number}-{command}"));
            prepare(&state);
            let written = format!("state-dir = '{}'\n{listen}\n{settings}\n", state.display());
            std::fs::write(&file, written).expect("written");
            let config = if command == "serve" { &["--config", text(&file)][..] } else { &[text(&file)] };
            let refused = run(ondine(&store, &[&[command], config].concat())).must_fail().stderr;
            assert!(refused.contains(words), "{command} with {settings:?}: no {words:?} in {refused}");
            last_line(&refused).replace(text(&state), "STATE")
        });
        assert_eq!(said[0], said[1], "{settings:?}");
        assert!(said[0].starts_with("ondine: "), "{}", said[0]);
    }
}

#[test]
fn check_config_makes_nothing_and_warns_of_what_a_server_would_go_on_without() {
    let store = NixStore::new(Release::Host);
    let (file, state) = (store.folder().join("ondine.toml"), store.folder().join("state"));
    let set = "[[catalogue]]\nname = 'pkgs'\nsource = { directory = '/nonexistent/packages' }\n";
    let listen = "listen = '127.0.0.1:0'";
    std::fs::write(&file, format!("{listen}\nstate-dir = '{}'\n{set}", state.display())).expect("written");
    let mut check = ondine(&store, &["check-config", text(&file)]);
    check.env("ONDINE_PRIORTY", "7");
    let checked = run(check).must_succeed();
    for warning in [
        "warning: no Nix daemon answers at ",
        "warning: the source of the package set pkgs cannot be read: /nonexistent/packages",
        "warning: the variable ONDINE_PRIORTY is ignored, since there is no such setting; did you mean ONDINE_PRIORITY?",
    ] {
        assert!(checked.stderr.contains(warning), "no {warning:?} in {}", checked.stderr);
    }
    assert!(!state.exists(), "check-config has made the state directory");
    // Where the file is used on another machine, nothing of this one counts.
    let elsewhere = "listen = '192.0.2.1:80'\nstate-dir = '/proc/1/state'\n";
    std::fs::write(&file, elsewhere).expect("written");
    let checked = run(ondine(&store, &["check-config", "--settings-only", text(&file)])).must_succeed();
    assert_eq!((checked.stderr.as_str(), last_line(&checked.text()).ends_with(": ok")), ("", true));
}

#[test]
fn check_config_beside_a_running_server_says_ok_and_that_its_address_was_not_tried() {
    let cache = Cache::new(&[]);
    let file = cache.store.folder().join("ondine.toml");
    let settings = format!(
        "listen = '{}'\nstate-dir = '{}'\n",
        cache.ondine.address(),
        cache.ondine.state_dir().display()
    );
    std::fs::write(&file, settings).expect("written");
    let checked = run(ondine(&cache.store, &["check-config", text(&file)])).must_succeed();
    assert!(checked.stderr.contains("a server runs with the state directory"), "{}", checked.stderr);
    let named =
        run(ondine(&cache.store, &["check-config", text(&file), "--key-name", "mine-1"])).must_succeed();
    let key = cache.ondine.public_key().split(':').next().expect("a name");
    for words in ["key-name = mine-1 has no effect", key, "ondine key rotate mine-1"] {
        assert!(named.stderr.contains(words), "no {words:?} in {}", named.stderr);
    }
    assert_eq!(cache.http.get("/healthz").status, 200);
}

#[test]
fn a_misspelt_variable_is_told_by_the_server_too() {
    let store = NixStore::new(Release::Host);
    let ondine = Ondine::start_with(&store, &["--build-from"], &[("ONDINE_PRIORTY", "7")]);
    assert!(ondine.log().contains("did you mean ONDINE_PRIORITY?"), "{}", ondine.log());
}

#[test]
fn a_wrong_setting_is_told_with_its_line_and_without_the_words_of_the_program() {
    let store = NixStore::new(Release::Host);
    let file = store.folder().join("ondine.toml");
    for (settings, expected) in [
        ("max-nar-store-bytes = 'much'", &[":2: max-nar-store-bytes = much: ", "512MiB"][..]),
        ("max-nar-store-bytes = true", &[":2: ", "a number of bytes"]),
        ("max-queued = -1", &[":2: max-queued = -1: ", "0 or more"]),
        ("lanes = 'two'", &[":2: ", "a whole number from 0 to 32"]),
        ("hold = 5", &[":2: ", "a duration", "20s"]),
        ("listen = 8080", &[":2: ", "127.0.0.1:8080"]),
        ("listen = 'nowhere'", &[":2: ", "127.0.0.1:8080"]),
        ("max-build-time = 'soon'", &[":2: ", "a duration", "0s"]),
        ("drain-timeout = '2h'", &[".toml:2: drain-timeout = 2h: expected a duration", "from 0s to 1h"]),
        ("prioritty = 1", &[".toml:2: ", "\"prioritty\"", "did you mean \"priority\"?"]),
        ("[upstream]\nurl = 'https://x'", &[".toml:2: ", "[[upstream]]"]),
        ("upstream = [5]", &[":2: ", "a table with url and public-keys"]),
        (
            "[[upstream]]\nurl = 'https://x'\npublic-key = ['k']",
            &[":4: ", "in [[upstream]]", "\"public-keys\""],
        ),
        ("[[upstream]]\nurl = 'https://x'\npublic-keys = ['k']", &[":4: ", "NAME:BASE64"]),
        ("[[upstream]]\npublic-keys = ['k']", &[":2: ", "url is missing in [[upstream]]"]),
        ("[[upstream]]\nurl = 'ftp://x'\n", &[":3: ", "ftp://x"]),
        ("[[catalogue]]\nname = 'a'\nsorce = {}", &[":4: ", "in [[catalogue]]", "\"source\""]),
        ("[[catalogue]]\nname = 'a'\nsource = { flak = 'x' }", &[":4: ", "\"flake\""]),
        ("[[catalogue]]\nname = 'a'\nsource = 'x'", &[":4: ", "a table with one of"]),
        ("[[catalogue]]\nname = 'a b'\nsource = { flake = 'x' }", &[":3: ", "a b"]),
        (
            "[[catalogue]]\nname = 'a'\nsource = { flake = 'x' }\nmax-memory-bytes = '1MiB'",
            &[":5: ", "256MiB or more"],
        ),
    ] {
        std::fs::write(&file, format!("state-dir = '/s'\n{settings}\n")).expect("written");
        let refused =
            run(ondine(&store, &["check-config", "--settings-only", text(&file)])).must_fail().stderr;
        for words in expected {
            assert!(refused.contains(words), "{settings}: no {words:?} in {refused}");
        }
        for words in ["u64", "u32", "i32", "usize", "struct", "enum ", "Raw", "Some("] {
            assert!(!refused.contains(words), "{settings}: {words:?} in {refused}");
        }
    }
}

#[test]
fn bytes_and_seconds_are_written_as_people_write_them_everywhere() {
    let store = NixStore::new(Release::Host);
    let file = store.folder().join("ondine.toml");
    let settings = "state-dir = '/s'\nmax-nar-store-bytes = '100G'\nmin-free-bytes = '5 GiB'\nmax-build-log-bytes = '1MiB'\n\
                    max-total-log-bytes = '1GiB'\nmax-build-time = '10h'\nprebuild-time-per-day = '2h'\n\
                    [[upstream]]\nurl = 'file:///cache'\nmode = 'build-only'\nstall-timeout = '1m'\n\
                    [[catalogue]]\nname = 'a'\nsource = { flake = 'x' }\nmax-memory-bytes = '2G'\nretain = '30d'\n";
    std::fs::write(&file, settings).expect("written");
    let check = |more: &[&str]| {
        let arguments = [&["check-config", "--settings-only", text(&file)], more].concat();
        run(ondine(&store, &arguments))
    };
    check(&[]).must_succeed();
    check(&["--max-nar-store-bytes", "512MiB", "--max-silent-time", "30m"]).must_succeed();
    let refused = check(&["--max-total-log-bytes", "512KiB"]).must_fail().stderr;
    assert!(
        refused.contains("--max-total-log-bytes: max-total-log-bytes = 512KiB: expected at least"),
        "{refused}"
    );
    let mut from_variable = ondine(&store, &["check-config", "--settings-only", text(&file)]);
    from_variable.env("ONDINE_MAX_TOTAL_LOG_BYTES", "much");
    let refused = run(from_variable).must_fail().stderr;
    assert!(
        refused.contains("ONDINE_MAX_TOTAL_LOG_BYTES: max-total-log-bytes = much: expected"),
        "{refused}"
    );
    let refused = check(&["--max-nar-store-bytes", "much"]).must_fail().stderr;
    assert!(refused.contains("--max-nar-store-bytes") && refused.contains("512MiB"), "{refused}");
}

#[test]
fn who_may_not_use_the_control_socket_is_told_so() {
    let cache = Cache::new(&[]);
    let state = cache.ondine.state_dir();
    let status = || run(ondine(&cache.store, &["status", "--state-dir", text(&state)]));
    status().must_succeed();
    std::fs::set_permissions(state.join("control.sock"), Permissions::from_mode(0o000)).expect("set");
    let refused = status().must_fail().stderr;
    assert!(
        refused.contains("may not use the server's control socket") && refused.contains("as root"),
        "{refused}"
    );
    assert!(!refused.contains("is not running"), "{refused}");
}

#[test]
fn a_builder_is_not_called_as_the_local_daemon_and_the_refusal_says_so() {
    let store = NixStore::new(Release::Host);
    let file = store.folder().join("settings.toml");
    for builder in ["name = 'local'\nssh = 'far'", "ssh = 'root@local'"] {
        std::fs::write(&file, format!("[[builder]]\n{builder}\n")).expect("written");
        let refused = run(ondine(&store, &["check-config", "--settings-only", text(&file)])).must_fail();
        assert!(refused.stderr.contains("local is the Nix daemon of this machine"), "{builder}: {refused}");
    }
}
