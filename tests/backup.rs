//! `ondine backup`: keys and index are copied beside a running server, and a server that is made of the copy
//! alone signs with the same key, knows the same tokens, and serves what it can make again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::addresses::field;
use crate::support::process::{Finished, run};
use crate::support::uploads::{HASH, Uploads, nar};
use crate::support::{Cache, Derivation, Ondine, text};
use serde_json::{Value, json};

fn backup(ondine: &Ondine, to: &Path, more: &[&str]) -> Finished {
    let mut command = ondine.command("backup");
    command.arg(to).args(["--state-dir", text(&ondine.state_dir())]).args(more);
    run(command)
}

/// File of the NAR with this hash.
fn nar_file(uploads: &Uploads, nar_hash: &str) -> PathBuf {
    let folder = uploads.cache.ondine.state_dir().join("nar").join(&nar_hash[..2]);
    folder.join(format!("{nar_hash}.nar.zst"))
}

#[test]
fn a_server_of_the_copy_has_the_same_key_and_tokens_and_serves_what_can_be_made_again() {
    let mut cache = Cache::new(&["--key-name", "kept-1"]);
    let served = cache.store.instantiate(&Derivation::new("served", "echo served > $out"));
    cache.narinfo(served.out());
    let token = cache.ondine.new_token("laptop", "read,pin", &[]);
    let folder = tempfile::tempdir().expect("a folder");
    let to = folder.path().join("deep/copy");
    let made = backup(&cache.ondine, &to, &["--json"]).must_succeed();
    let report: Value = serde_json::from_slice(&made.stdout).expect("JSON");
    assert_eq!(report["files"], json!(["signing-key", "signers.json", "index.sqlite"]), "{report}");
    for file in ["", "signing-key", "index.sqlite"] {
        let mode = to.join(file).metadata().expect("it is there").permissions().mode() & 0o077;
        assert_eq!(mode, 0, "{file} is open to others");
    }
    // Again, into what is there.
    let later = cache.store.instantiate(&Derivation::new("later", "echo later > $out"));
    cache.narinfo(later.out());
    let again = backup(&cache.ondine, &to, &[]).must_succeed().text();
    assert!(again.starts_with("copied 3 files ("), "{again}");

    // The disk is lost, and the copy is all that there is.
    let (key, state_dir) = (cache.ondine.public_key().to_owned(), cache.ondine.state_dir());
    assert!(cache.ondine.sigterm().success());
    fs::remove_dir_all(&state_dir).expect("removed");
    fs::create_dir(&state_dir).expect("made");
    for file in ["signing-key", "signers.json", "index.sqlite"] {
        fs::copy(to.join(file), state_dir.join(file)).expect("copied");
    }
    cache.ondine.start_again();
    assert_eq!(cache.ondine.public_key(), key);
    cache.http.wait_until_ready();
    for path in [served.out(), later.out()] {
        let url = field(&cache.narinfo(path), "URL").to_owned();
        assert_eq!(cache.http.get(&format!("/{url}")).status, 200, "{}", cache.ondine.log());
    }
    let with_token = cache.http.get_with("/api/v1/pins", &[("Authorization", &format!("Bearer {token}"))]);
    assert_eq!(with_token.status, 200, "{}", with_token.text());
    let mut list = cache.ondine.command("token");
    list.args(["list", "--json", "--state-dir", text(&state_dir)]);
    assert!(run(list).must_succeed().text().contains("laptop"));
}

#[test]
fn a_copy_within_the_state_directory_or_of_none_is_refused_with_the_reason() {
    let cache = Cache::new(&[]);
    let within = backup(&cache.ondine, &cache.ondine.state_dir().join("copy"), &[]).must_fail();
    assert!(within.stderr.contains("whose loss a backup is made for"), "{within}");
    let folder = tempfile::tempdir().expect("a folder");
    let mut nowhere = cache.ondine.command("backup");
    nowhere.arg(folder.path()).args(["--state-dir", "/nonexistent"]);
    let nowhere = run(nowhere).must_fail();
    assert!(nowhere.stderr.contains("cannot use /nonexistent"), "{nowhere}");
}

#[test]
fn a_pushed_path_whose_nar_is_lost_is_served_no_longer_and_can_be_pushed_again() {
    let mut uploads = Uploads::new(&[]);
    let (below, top) = (nar(b"below"), nar(b"top"));
    let [below_hash, top_hash] = [HASH.to_owned(), HASH.replace('0', "1")];
    // Gives the name of the file of the upper one.
    let push = |uploads: &Uploads| -> String {
        let name = uploads.upload(&below);
        let info = uploads.narinfo(&format!("{below_hash}-below"), &name, &name, &below, "");
        assert_eq!(uploads.put(&format!("/{below_hash}.narinfo"), info.as_bytes()).0, 200);
        let name = uploads.upload(&top);
        let references = format!("{below_hash}-below");
        let info = uploads.narinfo(&format!("{top_hash}-top"), &name, &name, &top, &references);
        assert_eq!(uploads.put(&format!("/{top_hash}.narinfo"), info.as_bytes()).0, 200);
        name
    };
    let nar_of_top = push(&uploads);
    let built = uploads.cache.store.instantiate(&Derivation::new("built", "echo built > $out"));
    uploads.cache.narinfo(built.out());
    let folder = tempfile::tempdir().expect("a folder");
    backup(&uploads.cache.ondine, folder.path(), &[]).must_succeed();
    let state_dir = uploads.cache.ondine.state_dir();
    assert!(uploads.cache.ondine.sigterm().success());
    // A part of the NARs alone is lost, as of an older copy of them.
    fs::remove_file(nar_file(&uploads, &nar_of_top)).expect("removed");
    for is_whole in [false, true] {
        if is_whole {
            push(&uploads);
            assert!(uploads.cache.ondine.sigterm().success());
            fs::remove_dir_all(&state_dir).expect("removed");
            fs::create_dir(&state_dir).expect("made");
            for file in ["signing-key", "signers.json", "index.sqlite"] {
                fs::copy(folder.path().join(file), state_dir.join(file)).expect("copied");
            }
        }
        uploads.cache.ondine.start_again();
        for (hash, name) in [(&below_hash, "below"), (&top_hash, "top")] {
            let status = uploads.cache.http.get(&format!("/cached/{hash}.narinfo")).status;
            let expected = if is_whole || name == "top" { 404 } else { 200 };
            assert_eq!(status, expected, "{name}, {is_whole}: {}", uploads.cache.ondine.log());
        }
        let url = field(&uploads.cache.narinfo(built.out()), "URL").to_owned();
        assert_eq!(uploads.cache.http.get(&format!("/{url}")).status, 200);
    }
    push(&uploads);
    for hash in [&below_hash, &top_hash] {
        let narinfo = uploads.cache.http.get(&format!("/cached/{hash}.narinfo")).text();
        assert_eq!(uploads.cache.http.get(&format!("/{}", field(&narinfo, "URL"))).status, 200);
    }
}

#[test]
fn a_pushed_path_whose_file_goes_while_the_server_runs_is_not_promised() {
    let uploads = Uploads::new(&[]);
    let contents = nar(b"contents");
    let name = uploads.upload(&contents);
    let info = uploads.narinfo(&format!("{HASH}-one"), &name, &name, &contents, "");
    assert_eq!(uploads.put(&format!("/{HASH}.narinfo"), info.as_bytes()).0, 200);
    fs::remove_file(nar_file(&uploads, &name)).expect("removed");
    assert_eq!(uploads.cache.http.get(&format!("/cached/{HASH}.narinfo")).status, 404);
}

#[test]
fn a_backup_into_a_directory_that_another_one_writes_to_is_refused() {
    let cache = Cache::new(&[]);
    let folder = tempfile::tempdir().expect("a folder");
    let other = fs::File::open(folder.path()).expect("opened");
    other.lock().expect("locked as a backup does");
    let refused = backup(&cache.ondine, folder.path(), &[]).must_fail();
    assert!(refused.stderr.contains("another backup is being written there"), "{refused}");
    assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 0);
    drop(other);
    backup(&cache.ondine, folder.path(), &[]).must_succeed();
}
