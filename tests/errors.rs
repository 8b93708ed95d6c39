//! Words for what is wrong: errors are told as errors, to programs as JSON with a status that is true, and to
//! people with what to do; and nothing that others have sent acts on what shows it.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use crate::support;
use crate::support::http::{Response, raw};
use crate::support::package_set::{PackageSet, small, wait_for_generation};
use crate::support::process::run;
use crate::support::{Daemon, Http, NixStore, Ondine, Release, derivations, text};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

fn served(within: &str) -> (NixStore, Daemon, PackageSet, Ondine) {
    let store = NixStore::new(Release::Host);
    let daemon = store.daemon();
    let set = PackageSet::new([
        small("a"),
        (
            "evil".to_owned(),
            "throw \"before\\r\\n\\t${builtins.fromJSON \"\\\"\\\\u001b[31m\\\\u009b0m\\\\u202eX\\\"\"}\""
                .to_owned(),
        ),
    ]);
    // An index that fails is waited for, and not for long.
    let settings = set.settings("", within);
    let ondine = Ondine::start(&store, &["--config", text(&settings), "--transient-retry", "1s"]);
    wait_for_generation(&ondine);
    (store, daemon, set, ondine)
}

fn get(ondine: &Ondine, address: &str) -> Response {
    Http::new(&ondine.url()).get(address)
}

/// The text of an error that a program reads.
#[track_caller]
fn error(answer: &Response, status: u16) -> String {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let told: Value =
        serde_json::from_str(&answer.text()).unwrap_or_else(|e| panic!("{e}: {}", answer.text()));
    told["error"].as_str().expect("a text").to_owned()
}

/// Characters that would act on a terminal, or forge a line.
fn acting(text: &str) -> String {
    text.chars().filter(|c| (c.is_control() && *c != '\n') || ('\u{202a}'..='\u{202e}').contains(c)).collect()
}

#[test]
fn an_index_that_fails_is_an_error_of_the_server_and_not_the_absence_of_what_was_asked_for() {
    let (store, _daemon, _set, ondine) = served("");
    let output = store.instantiate(&derivations::text_file("b", "b"));
    let narinfo = support::addresses::narinfo_address(output.out());
    assert_eq!(get(&ondine, &narinfo).status, 200);
    let index = rusqlite::Connection::open(ondine.state_dir().join("index.sqlite")).expect("opened");
    let lost = "ALTER TABLE path RENAME TO lost_path; ALTER TABLE pin RENAME TO lost_pin; \
                ALTER TABLE catalogue_set RENAME TO lost_set;";
    // What refers to these tables does so again once they are back.
    index.execute_batch(&format!("PRAGMA legacy_alter_table = on; {lost}")).expect("renamed");

    let hash = narinfo.trim_start_matches('/').trim_end_matches(".narinfo");
    for address in ["catalogue", "catalogue/pkgs", "catalogue/pkgs/a", "pins", &format!("paths/{hash}")] {
        let told = error(&get(&ondine, &format!("/api/v1/{address}")), 500);
        assert!(told.contains("the index cannot be read"), "{address}: {told}");
    }
    let status = get(&ondine, "/api/v1/status");
    assert!(error(&status, 500).contains("the index cannot be read"), "{}", status.text());
    let status: Value = serde_json::from_str(&status.text()).expect("JSON");
    assert_eq!(status["public_key"], ondine.public_key());
    let shown = ondine.run("status", &["--json"]).must_fail();
    assert!(shown.stderr.contains("the index cannot be read"), "{shown}");
    assert!(shown.text().contains("\"queue\""), "what can be told is: {shown}");
    for (name, arguments) in [("pin", &["a"][..]), ("pins", &[]), ("unpin", &["a"])] {
        let failed = ondine.run(name, arguments).must_fail();
        assert!(failed.stderr.contains("index") && !failed.stderr.contains("500"), "{failed}");
    }
    // A client that asks for a narinfo gets one or none, and a download by name no false word.
    let other =
        support::addresses::narinfo_address(store.instantiate(&derivations::text_file("c", "c")).out());
    assert_eq!(get(&ondine, &other).status, 404);
    let download = get(&ondine, "/get/pkgs/a");
    assert!(download.status == 503 && download.text().contains("unavailable"), "{}", download.text());
    let told = ondine.log();
    assert!(told.contains("the request waits") && told.contains("the request is given up"), "{told}");
}

#[test]
fn a_request_waits_for_an_index_that_fails_and_is_answered_once_it_is_back() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let ondine = Ondine::start(&store, &["--hold", "1s", "--keep-alive-interval", "1s"]);
    let path = store.instantiate(&derivations::text_file("b", "b"));
    let index = rusqlite::Connection::open(ondine.state_dir().join("index.sqlite")).expect("opened");
    let rename = |from: &str, to: &str| {
        let sql = format!("PRAGMA legacy_alter_table = on; ALTER TABLE {from} RENAME TO {to}");
        index.execute_batch(&sql).expect("renamed");
    };
    rename("path", "lost_path");
    let narinfo = support::addresses::narinfo_address(path.out());
    let mut waiting = Http::new(&ondine.url()).open(&narinfo, &[]);
    let first = waiting.next_piece().expect("a line about the wait");
    let first = String::from_utf8_lossy(&first).into_owned();
    assert!(first.contains("the index cannot be read"), "{first}");
    rename("lost_path", "path");
    let (rest, ending) = waiting.read_to_end();
    assert_eq!(ending, support::Ending::Complete);
    assert!(String::from_utf8_lossy(&rest).contains("StorePath: "), "{}", String::from_utf8_lossy(&rest));
}

#[test]
fn what_there_is_not_is_told_to_programs_as_json_and_to_people_with_a_hint_that_fits() {
    let (_store, _daemon, _set, ondine) = served("");
    for address in [
        "/api",
        "/api/v1/nope",
        "/api/v2/status",
        "/api/v1/paths/short",
        "/api/v1/builds/x",
        "/api/v1/builds/999",
        "/api/v1/catalogue/nope",
        "/api/v1/catalogue/pkgs/nope",
        "/api/v1/catalogue/nope/a",
        "/api/v1/paths/00000000000000000000000000000000",
        "/cached/api/v1/nope",
    ] {
        assert!(!error(&get(&ondine, address), 404).is_empty());
    }
    let request = b"POST /api/v1/pins/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let (refused, _) = raw(ondine.address(), request, SOON);
    let refused = String::from_utf8_lossy(&refused).into_owned();
    assert!(refused.starts_with("HTTP/1.1 401") && refused.contains("\"error\""), "{refused}");
    for (address, word) in [
        ("/favicon.ico", "/ tells what there is"),
        ("/log/x", "a log is at"),
        ("/short.narinfo", "a narinfo is at"),
    ] {
        let answer = get(&ondine, address);
        assert!(answer.status == 404 && answer.text().contains(word), "{address}: {}", answer.text());
    }
    assert!(!get(&ondine, "/favicon.ico").text().contains("narinfo"));
    // Who typed a command sees no status and no address of the API.
    for (name, arguments) in [("refresh", &["nope"][..]), ("unpin", &["nope"])] {
        let failed = ondine.run(name, arguments).must_fail();
        assert!(!failed.stderr.contains("404") && !failed.stderr.contains('{'), "{failed}");
    }
}

#[test]
fn what_others_have_sent_acts_on_nothing_that_shows_it() {
    let (_store, _daemon, set, mut ondine) = served("");
    let lazy = set.settings("", "index = 'lazy'");
    for round in 0..2 {
        let name = "a%1b%5B31mX%0a2026-01-01T00:00:00Z%20forged%0d%c2%9b0m%e2%80%aeZ";
        for address in [
            format!("/get/pkgs/{name}"),
            format!("/get/pkgs/a%5E{name}"),
            format!("/get/pkgs/a?system={name}"),
            format!("/api/v1/catalogue/pkgs/{name}"),
            "/get/pkgs/evil".to_owned(),
            "/api/v1/catalogue/pkgs/evil".to_owned(),
            "/api/v1/catalogue/pkgs".to_owned(),
            format!("/{name}.narinfo"),
            format!("/log/{name}"),
        ] {
            let answer = get(&ondine, &address);
            assert_eq!(acting(&answer.text()), "", "{address}: {:?}", answer.text());
            let lines: Vec<String> = answer.text().lines().map(str::to_owned).collect();
            assert!(!lines.iter().any(|line| line.starts_with("2026-01-01")), "{address}: {lines:?}");
        }
        // Nix has no such string.
        assert_eq!(get(&ondine, "/get/pkgs/a%00").status, 404);
        let request =
            "GET / HTTP/1.1\r\nHost: x\u{1b}[31m\r\nUser-Agent: \u{1b}[31mX\r\nConnection: close\r\n\r\n";
        let (home, _) = raw(ondine.address(), request.as_bytes(), SOON);
        assert!(!home.contains(&0x1b), "{}", String::from_utf8_lossy(&home));
        let shown = ondine.run("refresh", &[]).text();
        assert_eq!(acting(&shown), "", "{shown:?}");
        let log = ondine.log();
        assert_eq!(acting(&log), "", "{log:?}");
        assert!(!log.lines().any(|line| line.starts_with("2026-01-01")), "{log}");
        if round == 0 {
            ondine.sigterm();
            assert!(lazy.exists());
            ondine.start_again();
        }
    }
}

#[test]
fn a_control_socket_that_does_not_answer_is_told_by_why() {
    let (_store, _daemon, _set, mut ondine) = served("");
    let status = |ondine: &Ondine| ondine.command_here("status", &[]);
    let socket = ondine.state_dir().join("control.sock");
    if rustix::process::geteuid().is_root() {
        // Root may look into any folder: another user is needed.
        let mut other = Command::new("setpriv");
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("ondine");
        // By another process: a child of another test may hold what this one has open for writing, and no
        // program can be started then.
        let mut copy = Command::new("cp");
        copy.args([env!("CARGO_BIN_EXE_ondine"), text(&program)]);
        run(copy).must_succeed();
        for path in [folder.path(), &program] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("set");
        }
        other.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        other.args(["status", "--state-dir", text(&ondine.state_dir())]);
        let refused = run(other).must_fail();
        assert!(refused.stderr.contains("as the user that runs the server"), "{refused}");
        assert!(!refused.stderr.contains("is not running"), "{refused}");
    }
    ondine.kill9();
    let gone = run(status(&ondine)).must_fail();
    assert!(gone.stderr.contains("no server answers"), "{gone}");
    std::fs::remove_file(socket).expect("removed");
    let gone = run(status(&ondine)).must_fail();
    assert!(gone.stderr.contains("no server answers") && !gone.stderr.contains("as root"), "{gone}");
}

#[test]
fn the_body_of_a_request_is_read_within_bounds_and_one_that_is_not_understood_is_an_error() {
    let (_store, _daemon, _set, ondine) = served("");
    let post = |head: &str, body: &str| {
        let mut socket = UnixStream::connect(ondine.state_dir().join("control.sock")).expect("connected");
        let head = format!("POST /api/v1/gc HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}\r\n\r\n");
        socket.write_all(format!("{head}{body}").as_bytes()).expect("sent");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("an answer");
        answer
    };
    let whole = |body: &str| post(&format!("Content-Length: {}", body.len()), body);
    let answer = whole("{\"dry_run\": true, \"max_bytes\": 1}");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    for wrong in ["{", "7", "{\"dry-run\": true}", "{\"max_bytes\": \"all\"}"] {
        let answer = whole(wrong);
        assert!(
            answer.starts_with("HTTP/1.1 400") && answer.contains("\"bad-request\""),
            "{wrong}: {answer}"
        );
    }
    // Nobody waits for what is too large to be read.
    let answer = post("Content-Length: 1000000", "{");
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("\"too-large\""), "{answer}");
}
