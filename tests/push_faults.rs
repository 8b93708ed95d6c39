//! Uploads that are not as they must be: refused with the reason, and nothing of them is served.

use std::io::Write;
use std::time::Duration;

use crate::support;
use crate::support::addresses::base_name;
use crate::support::derivations::text_file;
use crate::support::http::{connect, raw};
use crate::support::uploads::{HASH, Uploads, nar};
use crate::support::{Door, Http};
use sha2::{Digest, Sha256};

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
    support::wait_until("the other one is swept", SOON, || scene.nar_files() == 1);
    let door = Door::to(&scene.cache.ondine);
    let again = Uploads { cache: scene.cache, door };
    assert_eq!(again.upload(&other).len(), 52, "it can be uploaded again");
}

#[test]
fn a_narinfo_names_a_nar_that_another_path_has_in_every_form_and_no_other() {
    let scene = Uploads::new(&[]);
    let local = scene.cache.store.instantiate(&text_file("local", "in the Nix store alone"));
    scene.cache.narinfo(local.out());
    let contents = scene.cache.dump(local.out());
    let nar_hash = narinfo::NarHash::from_bytes(Sha256::digest(&contents).into()).to_nixbase32();
    let path = |number: usize| format!("{number:032}");
    for (number, file) in [
        format!("{nar_hash}.nar"),
        format!("{nar_hash}.nar.zst"),
        format!("{}-{nar_hash}.nar", &base_name(local.out())[..32]),
    ]
    .iter()
    .enumerate()
    {
        assert_eq!(scene.cache.http.head(&format!("/nar/{file}")).status, 200, "{file}");
        let narinfo = scene.narinfo(&format!("{}-p", path(number)), &nar_hash, &nar_hash, &contents, "");
        let narinfo = narinfo.replace(&format!("{nar_hash}.nar\n"), &format!("{file}\n"));
        let wrong = narinfo.replace("NarSize: ", "NarSize: 1");
        let (status, text) = scene.put(&format!("/{}.narinfo", path(number)), wrong.as_bytes());
        assert!(status == 400 && text.contains("says NarSize"), "{file}: {text}");
        let (status, text) = scene.put(&format!("/{}.narinfo", path(number)), narinfo.as_bytes());
        assert_eq!(status, 200, "{file}: {text}");
        assert_eq!(scene.cache.http.get(&format!("/{}.narinfo", path(number))).status, 200);
    }
    let absent = "1".repeat(52);
    let narinfo = scene.narinfo(&format!("{HASH}-p"), &absent, &absent, &contents, "");
    let (status, text) = scene.put(&format!("/{HASH}.narinfo"), narinfo.as_bytes());
    assert!(status == 400 && text.contains("there is no NAR at"), "{text}");
}

#[test]
fn two_clients_that_compress_a_nar_in_their_own_ways_are_both_served() {
    let scene = Uploads::new(&[]);
    let contents = nar(&b"compressed twice ".repeat(2_000));
    let hash = |bytes: &[u8]| narinfo::NarHash::from_bytes(Sha256::digest(bytes).into()).to_nixbase32();
    let nar_hash = hash(&contents);
    let files = [1, 19].map(|level| zstd::encode_all(&contents[..], level).expect("memory takes everything"));
    assert_ne!(files[0], files[1]);
    for file in &files {
        assert_eq!(scene.put(&format!("/nar/{nar_hash}.nar.zst"), file).0, 200);
    }
    for (number, file) in files.iter().enumerate() {
        let path = format!("{number:032}");
        let narinfo = scene.narinfo(&format!("{path}-p"), &nar_hash, &nar_hash, &contents, "");
        let narinfo =
            narinfo.replace(".nar\n", ".nar.zst\n").replace("Compression: none", "Compression: zstd");
        let narinfo = format!("{narinfo}FileHash: sha256:{}\nFileSize: {}\n", hash(file), file.len());
        let (status, text) = scene.put(&format!("/{path}.narinfo"), narinfo.as_bytes());
        assert_eq!(status, 200, "{text}");
    }
    assert_eq!(scene.cache.http.get(&format!("/nar/{nar_hash}.nar")).body, contents);
    assert_eq!(scene.nar_files(), 1);
}

#[test]
fn whoever_vouches_publishes_no_derivation_that_is_none_and_nothing_else_than_the_nix_store_has() {
    let scene = Uploads::new(&[]);
    let store = &scene.cache.store;
    let honest = store.instantiate(&text_file("honest", "honest"));
    let forged = std::fs::read(&honest.drv).expect("a derivation");
    let large = vec![b' '; 65 << 20];
    let local = store.instantiate(&text_file("local", "built here"));
    store.realise(&local.drv);
    let drv = format!("{HASH}-some.drv");
    for (path, contents, refusal, reason) in [
        (&*drv, &b"anything"[..], 400, "some.drv"),
        (&*drv, &forged, 400, "some.drv"),
        (&*drv, &large, 400, "is no derivation: the file in the NAR has"),
        (
            base_name(local.out()),
            b"something else",
            409,
            "in the Nix store of the server with other contents",
        ),
    ] {
        let contents = nar(contents);
        let name = scene.upload(&contents);
        let narinfo = scene.narinfo(path, &name, &name, &contents, "");
        let (status, text) = scene.put(&format!("/{}.narinfo", &path[..32]), narinfo.as_bytes());
        assert!(status == refusal && text.contains(reason), "{path}: {text}");
    }
    assert_eq!(scene.served(), 0);
    let contents = scene.cache.dump(local.out());
    let (name, path) = (scene.upload(&contents), base_name(local.out()));
    let narinfo = scene.narinfo(path, &name, &name, &contents, "");
    let (status, text) = scene.put(&format!("/{}.narinfo", &path[..32]), narinfo.as_bytes());
    assert_eq!(status, 200, "{text}");
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
