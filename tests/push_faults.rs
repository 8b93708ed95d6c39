//! Uploads that are not as they must be: refused with the reason, and nothing of them is served.

mod support;

use std::io::Write;
use std::time::Duration;

use support::Http;
use support::http::{connect, raw};
use support::uploads::{HASH, Uploads, nar};

/// Time within which every refusal comes.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_narinfo_that_is_not_about_its_nar_or_refers_to_nothing_is_refused() {
    let scene = Uploads::new(&[]);
    let (one, other) = (nar(b"one"), nar(b"other"));
    let (name, other_name) = (scene.upload(&one), scene.upload(&other));
    let (path, at) = (format!("{HASH}-one"), format!("/{HASH}.narinfo"));
    let absent = "1123456789abcdfghijklmnpqrsvwxyz-absent";
    for (narinfo, reason) in [
        (scene.narinfo(&path, &name, &other_name, &one, ""), "says NarHash"),
        (scene.narinfo(&path, &name, &name, &[0; 7], ""), "says NarSize"),
        (scene.narinfo(&path, &"1".repeat(52), &name, &one, ""), "there is no NAR at"),
        (scene.narinfo(&path, &name, &name, &one, absent), "not served here"),
        (scene.narinfo(absent, &name, &name, &one, ""), "this narinfo is that of"),
        (scene.narinfo(&path, "../../secret", &name, &one, ""), "refused"),
    ] {
        let (status, text) = scene.put(&at, narinfo.as_bytes());
        assert!(status == 400 && text.contains(reason), "{reason}: {text}");
        assert_eq!(scene.cache.http.get(&at).status, 404);
    }
    assert_eq!(scene.served(), 0);
}

#[test]
fn of_two_paths_with_one_hash_the_first_stays_and_equal_uploads_succeed() {
    let scene = Uploads::new(&[]);
    let (one, other) = (nar(b"one"), nar(b"other"));
    let (name, other_name) = (scene.upload(&one), scene.upload(&other));
    let at = format!("/{HASH}.narinfo");
    let first = scene.narinfo(&format!("{HASH}-one"), &name, &name, &one, "");
    for _ in 0..2 {
        let (status, text) = scene.put(&at, first.as_bytes());
        assert_eq!(status, 200, "{text}");
    }
    for (path, name, nar) in [("one", &other_name, &other), ("two", &name, &one)] {
        let second = scene.narinfo(&format!("{HASH}-{path}"), name, name, nar, "");
        let (status, text) = scene.put(&at, second.as_bytes());
        assert!(status == 409 && text.contains("came first"), "{text}");
    }
    let served = scene.cache.http.get(&at);
    assert!(served.status == 200 && served.text().contains("-one\n"), "{}", served.text());
    assert_eq!(scene.served(), 1);
}

#[test]
fn an_acknowledged_upload_survives_a_kill_and_one_without_a_narinfo_leaves_nothing() {
    let mut scene = Uploads::new(&[]);
    let (one, other) = (nar(b"one"), nar(b"other"));
    let (name, _) = (scene.upload(&one), scene.upload(&other));
    let at = format!("/{HASH}.narinfo");
    let narinfo = scene.narinfo(&format!("{HASH}-one"), &name, &name, &one, "");
    assert_eq!(scene.put(&at, narinfo.as_bytes()).0, 200);
    scene.cache.ondine.crash_and_restart();
    let http = Http::new(&scene.cache.ondine.url());
    assert_eq!(http.get(&at).status, 200);
    assert_eq!(http.get(&format!("/nar/{name}.nar")).body, one);
    let collected = scene
        .cache
        .ondine
        .command("gc")
        .args(["--state-dir", support::text(&scene.cache.ondine.state_dir())])
        .output();
    let collected = collected.expect("it runs");
    assert!(collected.status.success(), "{collected:?}");
    assert_eq!(scene.nar_files(), 1);
}

#[test]
fn what_is_malformed_stalls_or_has_two_lengths_is_refused_and_leaves_nothing() {
    let scene = Uploads::new(&[]);
    let good = nar(b"good");
    let name = "0".repeat(52);
    for (path, body, reason) in [
        (format!("/nar/{name}.nar"), &b"<html>no NAR</html>"[..], "refused"),
        (format!("/nar/{name}.nar"), &good[..good.len() - 8], "refused"),
        (format!("/nar/{name}.nar.xz"), b"no xz", "cannot read"),
        (format!("/nar/{name}.nar.zst"), &[0x28, 0xb5, 0x2f, 0xfd], "cannot read"),
    ] {
        let (status, text) = scene.put(&path, body);
        assert!(status == 400 && text.contains(reason), "{path}: {text}");
    }
    let both = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
    let (status, text) = scene.send(&format!("/nar/{name}.nar"), both, b"0\r\n\r\n");
    assert_eq!(status, 400, "{text}");
    for path in ["/nar/..%2F..%2Fx.nar", "/..%2Fx.narinfo", "/log/..%2Fx.drv", "/debuginfo/..%2Fx"] {
        let (status, text) = scene.put(path, b"x");
        assert!([404, 405].contains(&status), "{path}: {text}");
    }
    // A client that goes away in the middle.
    let mut cut = connect(scene.address());
    write!(cut, "PUT /nar/{name}.nar HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n").expect("sent");
    cut.write_all(&good).expect("sent");
    drop(cut);
    assert_eq!(scene.served(), 0);
    support::wait_until("nothing is left", SOON, || scene.nar_files() == 0);
}

#[test]
fn clients_without_the_right_upload_nothing() {
    let scene = Uploads::new(&[]);
    let address = scene.cache.ondine.address();
    for path in [format!("/{HASH}.narinfo"), format!("/nar/{}.nar", "0".repeat(52)), format!("/{HASH}.ls")] {
        let request =
            format!("PUT {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx");
        let (answer, _) = raw(address, request.as_bytes(), SOON);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("push"), "{answer}");
    }
    assert_eq!(scene.served(), 0);
}
