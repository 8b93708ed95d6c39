//! `ondine doctor` on real servers and clients: what is well, what is not, and what it mends.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::process::{Finished, run, wait_until};
use crate::support::{Builder, Http, NixStore, Ondine, Release, builder, text};
use serde_json::Value;

/// Time limit of a change of state: this machine may be very busy.
const SOON: Duration = Duration::from_secs(120);

/// `ondine doctor` in the environment of the server.
fn doctor(ondine: &Ondine, arguments: &[&str]) -> Finished {
    let mut command = ondine.command("doctor");
    command.args(["--state-dir", text(&ondine.state_dir())]).args(arguments).stdin(Stdio::null());
    run(command)
}

/// Levels and words of the findings about one thing.
fn findings(report: &Finished, check: &str) -> Vec<(String, String)> {
    let all: Vec<Value> = serde_json::from_slice(&report.stdout).unwrap_or_else(|e| panic!("{e}: {report}"));
    let all = all.into_iter().filter(|finding| finding["check"] == check);
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    all.map(|finding| (word(&finding["level"]), finding.to_string())).collect()
}

fn level(report: &Finished, check: &str) -> String {
    findings(report, check).first().map(|(level, _)| level.clone()).unwrap_or_default()
}

#[test]
fn a_server_is_looked_at_with_its_daemon_files_and_address() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let ondine = Ondine::start(&store, &[]);
    let report = doctor(&ondine, &["--json"]);
    for check in
        ["server", "settings", "daemon", "keys", "descriptors", "address", "proxy", "loop", "max-jobs"]
    {
        assert_eq!(level(&report, check), "ok", "{check}: {report}");
    }
    assert_eq!(findings(&report, "settings").len(), 1, "nothing was left untried: {report}");
    // The stores of tests have no sandbox.
    let sandbox = findings(&report, "sandbox");
    assert!(sandbox[0].0 == "warning" && sandbox[0].1.contains("sandbox = true"), "{sandbox:?}");
    let advisories = findings(&report, "advisories");
    assert!(advisories[0].1.contains("CVE-2024-27297"), "{advisories:?}");
    let shown = doctor(&ondine, &[]).must_succeed().text();
    assert!(shown.contains("why   ") && shown.contains("do    ") && shown.contains(" 0 errors"), "{shown}");
    assert!(!shown.contains('\u{1b}'), "{shown}");
}

#[test]
fn modes_are_mended_where_that_is_wanted_and_nothing_else_is_changed() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let ondine = Ondine::start(&store, &[]);
    let key = ondine.state_dir().join("signing-key");
    let mode = || std::fs::metadata(&key).expect("the key").permissions().mode() & 0o777;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("set");
    assert_eq!(level(&doctor(&ondine, &["--json"]), "keys"), "warning");
    assert_eq!(mode(), 0o644);
    let mended = doctor(&ondine, &["--fix"]).must_succeed().text();
    assert!(mended.contains("fixed    keys"), "{mended}");
    assert_eq!(mode(), 0o600);
    assert_eq!(level(&doctor(&ondine, &["--json"]), "keys"), "ok");
}

#[test]
fn a_server_or_a_daemon_that_is_down_is_an_error_with_the_way_out() {
    let store = NixStore::new(Release::Host);
    let mut daemon = store.daemon();
    let mut ondine = Ondine::start(&store, &[]);
    daemon.stop();
    let report = doctor(&ondine, &["--json"]).must_fail();
    let found = findings(&report, "daemon");
    assert!(found[0].0 == "error" && found[0].1.contains("nix-daemon.socket"), "{found:?}");
    assert!(ondine.sigterm().success());
    let report = doctor(&ondine, &["--json"]).must_fail();
    let found = findings(&report, "server");
    assert!(found[0].0 == "error" && found[0].1.contains("no server answers"), "{found:?}");
    assert!(found[0].1.contains("its builders"), "{found:?}");
    let wrong = doctor(&ondine, &["--priority", "much"]).must_fail();
    assert!(wrong.stderr.contains("priority"), "{wrong}");
}

#[test]
fn an_address_that_leads_elsewhere_and_a_proxy_that_withholds_lines_are_errors() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let (ondine, other) = (Ondine::start(&store, &[]), Ondine::start(&store, &["--key-name", "other-1"]));
    let report = doctor(&ondine, &["--json", "--public-url", &other.url()]).must_fail();
    let found = findings(&report, "address");
    assert!(found[0].0 == "error" && found[0].1.contains("another server"), "{found:?}");
    let proxy = withholding_proxy(ondine.address());
    let report = doctor(&ondine, &["--json", "--public-url", &proxy]).must_fail();
    assert_eq!(level(&report, "address"), "ok", "{report}");
    let found = findings(&report, "proxy");
    assert!(found[0].0 == "error" && found[0].1.contains("buffering"), "{found:?}");
    let report = doctor(&ondine, &["--json", "--public-url", "http://127.0.0.1:1"]).must_fail();
    assert_eq!(level(&report, "address"), "error", "{report}");
}

/// A proxy before `address` that sends an answer once it has all of it; its URL.
fn withholding_proxy(address: &str) -> String {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let address = address.to_owned();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let address = address.clone();
            std::thread::spawn(move || {
                let (mut client, mut request) = (client, [0; 4096]);
                let read = client.read(&mut request).unwrap_or_default();
                let head = String::from_utf8_lossy(&request[..read]).replacen(
                    "\r\n",
                    "\r\nConnection: close\r\n",
                    1,
                );
                let mut server = std::net::TcpStream::connect(address).expect("the server");
                let _ = server.write_all(head.as_bytes());
                let mut answer = Vec::new();
                let _ = server.read_to_end(&mut answer);
                let _ = client.write_all(&answer);
            });
        }
    });
    url
}

#[test]
fn an_upstream_that_is_away_or_whose_key_is_another_is_found() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let ondine = Ondine::start(&store, &[]);
    let file = store.folder().join("doctor.toml");
    let key = "cache.example.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
    let upstream = format!("[[upstream]]\nurl = \"http://127.0.0.1:1\"\npublic-keys = [\"{key}\"]\n");
    std::fs::write(&file, upstream).expect("written");
    let report = doctor(&ondine, &["--json", "--config", text(&file)]).must_fail();
    let found = findings(&report, "upstream");
    assert!(found[0].0 == "error" && found[0].1.contains("http://127.0.0.1:1"), "{found:?}");
}

#[test]
fn each_builder_has_its_state_its_last_error_and_what_to_do() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let (well, mut away) =
        (Builder::start(&store, &Release::Host, "well"), Builder::start(&store, &Release::Host, "away"));
    let mut alone = Builder::start(&store, &Release::Host, "alone");
    away.kill();
    alone.kill();
    let tables = [well.table(""), away.table(""), alone.table("systems = ['riscv64-linux']")];
    let file = builder::settings(&store, &tables.concat());
    let ondine = Ondine::start(&store, &["--config", &file]);
    let http = Http::new(&ondine.url());
    let wait_for = |name: &str, state: &str| {
        wait_until(&format!("{name} is {state}"), SOON, || {
            let builders: Vec<Value> =
                serde_json::from_slice(&http.get("/api/v1/builders").body).expect("JSON");
            builders.iter().any(|builder| builder["name"] == name && builder["state"] == state)
        });
    };
    for (name, state) in [("well", "up"), ("away", "resting"), ("alone", "resting")] {
        wait_for(name, state);
    }
    let of = |report: &Finished, name: &str| {
        let found = findings(report, "builder");
        let starts = format!("\"what\":\"{name} ");
        found
            .into_iter()
            .find(|(_, words)| words.contains(&starts))
            .unwrap_or_else(|| panic!("{name}: {report}"))
    };
    let report = doctor(&ondine, &["--json", "--config", &file]).must_fail();
    assert_eq!(of(&report, "local").0, "ok");
    let (level, words) = of(&report, "well");
    assert!(level == "ok" && words.contains("0 of 1 slots in use"), "{words}");
    for (name, level, why) in
        [("away", "warning", "others have its load"), ("alone", "error", "riscv64-linux")]
    {
        let (found, words) = of(&report, name);
        assert_eq!(found, level, "{words}");
        for part in ["Connection refused", "sshd runs there", "ssh -i ", "nix-daemon --version", why] {
            assert!(words.contains(part), "{part}: {words}");
        }
    }
    let shown = doctor(&ondine, &["--config", &file]).must_fail().text();
    assert!(shown.contains("error    builder       alone cannot be used"), "{shown}");

    away.start_again();
    alone.start_again();
    wait_for("away", "up");
    wait_for("alone", "up");
    let mut drain = ondine.command("builders");
    drain.args(["drain", "well", "--state-dir", text(&ondine.state_dir())]);
    run(drain).must_succeed();
    let report = doctor(&ondine, &["--json", "--config", &file]).must_succeed();
    assert_eq!((of(&report, "away").0, of(&report, "alone").0), ("ok".to_owned(), "ok".to_owned()));
    let (level, words) = of(&report, "well");
    assert!(level == "note" && words.contains("ondine builders resume well"), "{words}");
}

#[test]
fn a_client_is_told_which_lines_it_lacks_and_what_a_404_costs_it() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let ondine = Ondine::start(&store, &[]);
    let client = |lines: &str| {
        let mut command: Command = store.ondine(&["doctor", "--client", "--json", "--server", &ondine.url()]);
        command.env("NIX_CONFIG", lines).stdin(Stdio::null());
        run(command)
    };
    let report = client("").must_fail();
    for check in ["substituters", "keys"] {
        let found = findings(&report, check);
        assert!(found[0].0 == "error" && found[0].1.contains("ondine use"), "{found:?}");
    }
    let misses = findings(&report, "misses");
    assert!(misses[0].0 == "note" && misses[0].1.contains("narinfo-cache-negative-ttl 0"), "{misses:?}");
    let lines = format!(
        "extra-substituters = {}\nextra-trusted-public-keys = {}\n",
        ondine.url(),
        ondine.public_key()
    );
    let report = client(&format!("{lines}narinfo-cache-negative-ttl = 0\n")).must_succeed();
    for check in ["server", "substituters", "keys", "misses"] {
        assert_eq!(level(&report, check), "ok", "{check}: {report}");
    }
    let nobody = run(store.ondine(&["doctor", "--client", "--server", "http://127.0.0.1:1"])).must_fail();
    assert!(nobody.text().contains("nothing listens at this address"), "{nobody}");
}
