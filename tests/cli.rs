//! The command line as scripts and admins rely on it: what it prints, what it makes, what it refuses and why.
//! Everything runs the built program.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support;
use crate::support::process::run;
use crate::support::{Background, Http, NixStore, Ondine, Release, text, wait_until};

fn ondine(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ondine"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).args(arguments);
    command
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap_or_else(|e| panic!("{}: {e}", path.display())).permissions().mode() & 0o777
}

fn a_server(arguments: &[&str]) -> (NixStore, support::Daemon, Ondine) {
    let store = NixStore::new(Release::Host);
    let daemon = store.daemon();
    let ondine = Ondine::start(&store, arguments);
    (store, daemon, ondine)
}

/// The error of a refused start.
fn refusal(ondine: &Ondine) -> String {
    let state_dir = ondine.state_dir();
    let mut server = ondine.command("serve");
    server.args(["--listen", "127.0.0.1:0", "--state-dir", text(&state_dir)]);
    run(server).must_fail().stderr
}

#[test]
fn the_first_start_makes_what_it_needs_and_prints_what_to_copy() {
    let (_store, _daemon, ondine) = a_server(&["--key-name", "cache.example.org-1"]);
    let state = ondine.state_dir();
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join("signing-key")), 0o600);
    assert_eq!(mode(&state.join("control.sock")), 0o600);
    assert!(state.join("index.sqlite").is_file());
    assert!(ondine.public_key().starts_with("cache.example.org-1:"));
    let lines = ondine.printed_lines();
    assert!(!ondine.address().ends_with(":0"), "the bound port is printed, not the wish");
    assert!(lines.contains(&format!("    extra-substituters = {}", ondine.url())), "{lines:?}");
    assert!(lines.contains(&format!("    extra-trusted-public-keys = {}", ondine.public_key())), "{lines:?}");
}

#[test]
fn key_show_prints_the_public_key_alone() {
    let (_store, _daemon, server) = a_server(&[]);
    let shown = run(ondine(&["key", "show", "--state-dir", text(&server.state_dir())])).must_succeed();
    assert_eq!(String::from_utf8_lossy(&shown.stdout), format!("{}\n", server.public_key()));
    let json =
        run(ondine(&["key", "list", "--json", "--state-dir", text(&server.state_dir())])).must_succeed();
    assert_eq!(json.text(), format!("[\"{}\"]", server.public_key()));
    let missing = run(ondine(&["key", "show", "--state-dir", "/nonexistent"])).must_fail();
    assert!(missing.stderr.contains("/nonexistent/signing-key"), "{}", missing.stderr);
}

#[test]
fn the_state_directory_comes_from_the_flag_then_systemd_then_home() {
    let home = tempfile::tempdir().expect("a folder");
    let shown = |variables: &[(&str, &Path)]| {
        let mut command = ondine(&["key", "show"]);
        command.envs(variables.iter().copied());
        run(command).must_fail().stderr
    };
    let at_home = shown(&[("HOME", home.path())]);
    assert!(
        at_home.contains(&format!("{}/.local/state/ondine/signing-key", home.path().display())),
        "{at_home}"
    );
    let systemd = shown(&[("HOME", home.path()), ("STATE_DIRECTORY", Path::new("/var/lib/of-systemd"))]);
    assert!(systemd.contains("/var/lib/of-systemd/signing-key"), "{systemd}");
    let variable = shown(&[("STATE_DIRECTORY", Path::new("/a")), ("ONDINE_STATE_DIR", Path::new("/b"))]);
    assert!(variable.contains("/b/signing-key"), "{variable}");
    assert!(shown(&[]).contains("--state-dir"), "{}", shown(&[]));
}

#[test]
fn check_config_says_whether_the_server_would_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ondine.toml");
    let state = format!("state-dir = \"{}\"\n", folder.path().join("state").display());
    let check = |settings: &str| {
        std::fs::write(&file, format!("{state}{settings}")).expect("written");
        run(ondine(&["check-config", text(&file)]))
    };
    let good = check("listen = \"127.0.0.1:0\"\nhold = \"5s\"\nbuild-from = []\n").must_succeed();
    assert!(good.text().contains("ok"), "{}", good.text());
    for (settings, expected) in [
        ("prioritty = 1\n", "did you mean \"priority\"?"),
        ("hold = \"1h\"\n", "hold = 1h: expected a duration"),
        ("hold = 5\n", ".toml:2: "),
        ("listen = \"nowhere\"\n", ".toml:2: "),
        ("build-from = [\"moon\"]\n", "moon"),
        ("listen\n", "line 2"),
    ] {
        let refused = check(settings).must_fail();
        assert!(refused.stderr.contains(expected), "{settings}: {}", refused.stderr);
    }
    let missing = run(ondine(&["check-config", "/nonexistent.toml"])).must_fail();
    assert!(missing.stderr.contains("/nonexistent.toml"), "{}", missing.stderr);
    std::fs::create_dir_all(folder.path().join("state")).expect("made");
    std::fs::write(folder.path().join("state/signing-key"), "no key").expect("written");
    assert!(check("").must_fail().stderr.contains("no signing key"));
}

#[test]
fn a_setting_comes_from_the_flag_then_the_variable_then_the_file() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let file = store.folder().join("ondine.toml");
    std::fs::write(&file, "priority = 11\nwant_mass_query = true\n").expect("written");
    let info = |arguments: &[&str], variables: &[(&str, &str)]| {
        let ondine = Ondine::start_with(&store, arguments, variables);
        Http::new(&ondine.url()).get("/nix-cache-info").text()
    };
    let config = ["--config", text(&file)];
    let expected = |priority: u32, mass: u32| {
        format!("StoreDir: {}\nWantMassQuery: {mass}\nPriority: {priority}\n", store.store_dir().display())
    };
    assert_eq!(info(&[], &[]), expected(50, 0));
    assert_eq!(info(&config, &[]), expected(11, 1));
    assert_eq!(info(&config, &[("ONDINE_PRIORITY", "22")]), expected(22, 1));
    assert_eq!(
        info(&[&config[..], &["--priority", "33"]].concat(), &[("ONDINE_PRIORITY", "22")]),
        expected(33, 1)
    );
}

#[test]
fn a_lost_or_malformed_key_is_refused_and_an_open_one_is_told_of() {
    let (_store, _daemon, mut ondine) = a_server(&[]);
    let key = ondine.state_dir().join("signing-key");
    assert!(ondine.sigterm().success());
    let good = std::fs::read(&key).expect("the key");

    std::fs::remove_file(&key).expect("removed");
    assert!(refusal(&ondine).contains("is missing, though this cache has signed paths with it"));
    assert!(!key.exists(), "a second key was made");

    std::fs::write(&key, "k:AAAA").expect("written");
    assert!(refusal(&ondine).contains("holds no signing key"));

    std::fs::write(&key, &good).expect("written");
    std::fs::set_permissions(&key, Permissions::from_mode(0o644)).expect("set");
    ondine.start_again();
    assert!(ondine.log().contains("can be read by others"), "{}", ondine.log());
}

#[test]
fn a_taken_port_is_an_error_that_says_so() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address").to_string();
    let state = tempfile::tempdir().expect("a folder");
    let refused =
        run(ondine(&["serve", "--listen", &address, "--state-dir", text(state.path())])).must_fail();
    assert!(refused.stderr.contains(&format!("cannot listen on {address}")), "{}", refused.stderr);
}

#[test]
fn status_asks_the_running_server_over_its_socket() {
    let (_store, _daemon, server) = a_server(&[]);
    let state_dir = server.state_dir();
    let status = run(ondine(&["status", "--json", "--state-dir", text(&state_dir)])).must_succeed();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(status["public_key"], server.public_key());
    assert_eq!(status["queue"]["requests"], serde_json::json!([]));
    drop(server);
    let gone = run(ondine(&["status", "--state-dir", text(&state_dir)])).must_fail();
    assert!(gone.stderr.contains("no server answers"), "{}", gone.stderr);
}

#[test]
fn health_is_of_the_process_and_readiness_of_its_work() {
    let (_store, mut daemon, ondine) = a_server(&[]);
    let http = Http::new(&ondine.url());
    assert_eq!(http.get("/healthz").status, 200);
    http.wait_until_ready();
    daemon.stop();
    let unready = http.get("/readyz");
    assert_eq!((http.get("/healthz").status, unready.status), (200, 503));
    assert!(unready.text().contains("Nix daemon"), "{}", unready.text());
    daemon.restart();
    assert_eq!(http.get("/readyz").status, 200);
}

#[test]
fn the_front_page_tells_how_to_use_it() {
    let (_store, _daemon, ondine) = a_server(&[]);
    let page = Http::new(&ondine.url()).get("/").text();
    assert!(page.contains(&format!("extra-substituters = {}", ondine.url())), "{page}");
    assert!(page.contains(ondine.public_key()), "{page}");
}

/// A server without a daemon, and the lines that it printed.
fn started(arguments: &[&str]) -> (Background, NixStore, Vec<String>) {
    let store = NixStore::new(Release::Host);
    let (state, printed) = (store.folder().join("state"), store.folder().join("printed"));
    let mut server = Command::new("sh");
    server.args(["-c", "exec \"$0\" \"$@\" > \"$PRINTED\"", env!("CARGO_BIN_EXE_ondine")]);
    server.args(["serve", "--build-from", "--state-dir", text(&state)]).args(arguments);
    server.envs(store.variables()).env("PRINTED", &printed);
    let server = Background::start(server);
    let lines = || std::fs::read_to_string(&printed).expect("the lines").lines().map(str::to_owned).collect();
    wait_until("it prints what to copy", Duration::from_secs(30), || {
        std::fs::read_to_string(&printed).is_ok_and(|printed| printed.contains("extra-trusted-public-keys"))
    });
    (server, store, lines())
}

#[test]
fn the_printed_address_is_one_that_clients_can_write() {
    let mut name = Command::new("uname");
    name.arg("-n");
    let host = run(name).must_succeed().text();
    let of_host = format!("http://{}:", host.trim());
    for (listen, starts) in [
        ("0.0.0.0:0", &*of_host),
        ("[::]:0", &of_host),
        ("[::1]:0", "http://[::1]:"),
        ("127.0.0.1:0", "http://127.0.0.1:"),
    ] {
        let (_server, _store, printed) = started(&["--listen", listen]);
        let url = printed[0].strip_prefix("url: ").expect("the address");
        assert!(url.starts_with(starts) && !url.ends_with(":0"), "{printed:?}");
        assert!(printed.contains(&format!("    extra-substituters = {url}")), "{printed:?}");
    }
}

#[test]
fn a_public_url_is_printed_and_shown_instead_of_what_is_listened_on() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let address = address.expect("a free port").to_string();
    let (_server, _store, printed) =
        started(&["--listen", &address, "--public-url", "https://cache.example.org/nix/"]);
    assert_eq!(printed[0], "url: https://cache.example.org/nix");
    let page = Http::new(&format!("http://{address}")).get("/").text();
    assert!(page.contains("extra-substituters = https://cache.example.org/nix\n"), "{page}");
}

#[test]
fn the_front_page_shows_the_address_that_was_asked_even_behind_a_trusted_proxy() {
    let fields =
        [("Host", "inside"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "cache.example.org")];
    for (arguments, url) in
        [(&["--trusted-proxies", "127.0.0.1"][..], "https://cache.example.org"), (&[], "http://inside")]
    {
        let (_store, _daemon, ondine) = a_server(arguments);
        let page = Http::new(&ondine.url()).get_with("/", &fields).text();
        assert!(page.contains(&format!("extra-substituters = {url}\n")), "{page}");
    }
}

#[test]
fn try_runs_an_end_to_end_demo_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = ondine(&["try", "--seconds", "3"]);
    command.env("TMPDIR", folder.path());
    let shown = run(command).must_succeed();
    assert!(!shown.stderr.contains("WARN"), "{}", shown.stderr);
    let shown = shown.text();
    assert!(shown.contains("Built once, on the server, because a client requested it."), "{shown}");
    assert!(shown.contains("/log/"), "{shown}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0, "something was left");
}

#[test]
fn try_without_nix_says_what_to_install() {
    let mut command = ondine(&["try"]);
    command.env("PATH", "/nonexistent");
    let refused = run(command).must_fail();
    assert!(refused.stderr.contains("apt-get install nix-bin"), "{}", refused.stderr);
}

#[test]
fn the_help_of_serve_has_the_settings_in_groups_with_default_and_variable() {
    let help = run(ondine(&["serve", "--help"])).must_succeed().text();
    let group =
        |title: &str| help.find(&format!("\n{title}:\n")).unwrap_or_else(|| panic!("no {title} in {help}"));
    let titles =
        ["Network", "Serving", "Building", "Scheduling", "Upstreams", "Package sets", "Storage", "Retention"];
    assert!(titles.map(group).is_sorted(), "{help}");
    let hold = &help[help.find("--hold <DURATION>").expect("the setting")..];
    let hold = hold.split("\n      --").next().expect("its text");
    for words in ["Accepts a duration (20s, 5m, 24h) from 0s to 250s", "[default: 20s]", "[env: ONDINE_HOLD]"]
    {
        assert!(hold.contains(words), "no {words:?} in {hold}");
    }
    let brief = run(ondine(&["serve", "-h"])).must_succeed().text();
    assert!(brief.lines().any(|line| line.trim().ends_with("[default: 20s] [env: ONDINE_HOLD]")), "{brief}");
}

#[test]
fn an_unknown_package_set_is_reported_in_words_of_the_command_line() {
    let (_store, _daemon, server) = a_server(&[]);
    let state_dir = server.state_dir();
    for command in [&["attributes", "pkgs"][..], &["refresh", "pkgs"]] {
        let refused = run(ondine(&[command, &["--state-dir", text(&state_dir)]].concat())).must_fail().stderr;
        assert!(refused.contains("there is no package set pkgs; the server has none"), "{refused}");
        assert!(!refused.contains("/api/") && !refused.contains("404"), "{refused}");
    }
}

#[test]
fn a_bare_name_is_a_state_directory_in_the_current_one() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let folder = tempfile::tempdir().expect("a folder");
    let run_there = |arguments: &[&str]| {
        let mut command = ondine(arguments);
        command.envs(store.variables()).current_dir(folder.path());
        command
    };
    std::fs::write(folder.path().join("settings.toml"), "state-dir = 'bare'\nlisten = '127.0.0.1:0'")
        .expect("written");
    run(run_there(&["check-config", "settings.toml"])).must_succeed();
    let mut server = Background::start(run_there(&["serve", "--config", "settings.toml"]));
    wait_until("it answers", Duration::from_secs(30), || {
        assert!(server.is_running());
        run(run_there(&["status", "--state-dir", "bare"])).succeeded()
    });
    server.kill();
    assert_eq!(mode(&folder.path().join("bare/signing-key")), 0o600);
}

#[test]
fn nothing_is_no_name_of_anything() {
    for command in ["retry", "why", "log", "pin", "unpin", "attributes", "token revoke"] {
        let words: Vec<&str> = command.split(' ').chain([""]).collect();
        let refused = run(ondine(&words)).must_fail();
        assert_eq!(refused.status.code(), Some(2), "{command}: {refused}");
        assert!(refused.stderr.contains("a value is required"), "{command}: {refused}");
    }
}
