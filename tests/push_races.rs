//! Uploads that meet something at a bad moment: another equal one, the end of their token, the end of the
//! server. What was acknowledged is served; of everything else nothing is left.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support;
use crate::support::http::raw;
use crate::support::process::{Background, run};
use crate::support::uploads::{OpenUpload, Uploads, nar, parsed};
use crate::support::{Client, Door, Http, Release, derivations, text, wait_until};
use sha2::{Digest, Sha256};

const SOON: Duration = Duration::from_secs(120);

/// A hash of a path, one for each number.
fn hash(number: usize) -> String {
    format!("{number:032}")
}

#[test]
fn equal_uploads_at_once_all_succeed_and_each_path_is_published_once() {
    let uploads = Uploads::new(&[]);
    let token = uploads.cache.ondine.new_token("all", "read,push,vouch", &[]);
    let pushers: Vec<Client> = Release::all()
        .into_iter()
        .chain([Release::Host])
        .map(|release| Client::with_settings(release, &uploads.cache.store.store_dir(), &[("max-jobs", "1")]))
        .collect();
    let row = derivations::row_of_outputs("row", 40);
    let built: Vec<Vec<PathBuf>> = pushers.iter().map(|pusher| pusher.build(&row)).collect();
    assert!(built.iter().all(|paths| *paths == built[0]));
    let url = format!("{}/cached?compression=zstd", uploads.door.url());
    let server = uploads.cache.ondine.url();
    let running: Vec<Background> = pushers
        .iter()
        .enumerate()
        .map(|(number, pusher)| {
            let paths: Vec<&str> = built[0].iter().map(|path| text(path)).collect();
            // The last one pushes with our own program.
            let command = if number + 1 < pushers.len() {
                pusher.command("nix", &[&["copy", "--to", &*url], &*paths].concat())
            } else {
                let variables = [("ONDINE_SERVER", &*server), ("ONDINE_TOKEN", &*token)];
                pusher.ondine_command(&[&["push"], &*paths].concat(), &variables)
            };
            Background::start(command)
        })
        .collect();
    for one in running {
        one.finish_within(SOON).must_succeed();
    }
    assert_eq!(uploads.served(), 40);
    let log = uploads.cache.ondine.log();
    assert_eq!(log.matches("published a pushed path").count(), 40, "{log}");
    let reader = Client::new(Release::Host, &uploads.cache.store.store_dir());
    let wanted: Vec<&Path> = built[0].iter().map(PathBuf::as_path).collect();
    reader.copy(&uploads.cache.ondine.cached(), &wanted).must_succeed();
}

#[test]
fn a_token_that_is_revoked_in_mid_upload_uploads_nothing_more() {
    let uploads = Uploads::new(&[]);
    let address = uploads.cache.ondine.address().to_owned();
    let contents = nar(&b"of a token that ends".repeat(10_000));
    let name = uploads.upload(&contents);
    let narinfo = uploads.narinfo(&format!("{}-p", hash(1)), &name, &name, &contents, "");
    let files = uploads.nar_files();
    let log = format!("/log/{}-p.drv", hash(1));
    for (path, body) in [
        (format!("/nar/{name}.nar"), &contents[..]),
        (format!("/{}.narinfo", hash(1)), narinfo.as_bytes()),
        (log.clone(), b"a forged log"),
        (format!("/{}.ls", hash(1)), b"{}"),
    ] {
        let token = uploads.cache.ondine.new_token("ends", "push,vouch", &[]);
        let headers = format!("Content-Length: {}\r\nAuthorization: Bearer {token}\r\n", body.len());
        let mut upload = OpenUpload::begin(&address, &path, &headers);
        assert!(upload.send(&body[..body.len() / 2]));
        // Another request on the same connection, later on, says that the first half was read.
        wait_until("the token was used", SOON, || token_list(&uploads).contains("ends"));
        let mut revoke = uploads.cache.ondine.command("token");
        revoke.args(["revoke", "ends", "--state-dir", text(&uploads.cache.ondine.state_dir())]);
        run(revoke).must_succeed();
        upload.send(&body[body.len() / 2..]);
        let (status, text) = upload.answer();
        assert!(status == 401 && text.contains("revoked"), "{path}: {text}");
        assert!(!text.contains(&token) && !uploads.cache.ondine.log().contains(&token));
    }
    assert_eq!(uploads.served(), 0);
    assert_eq!(uploads.nar_files(), files, "only what an administrator has uploaded");
    assert_eq!(uploads.cache.http.get(&log).status, 404);
}

fn token_list(uploads: &Uploads) -> String {
    let mut list = uploads.cache.ondine.command("token");
    list.args(["list", "--state-dir", text(&uploads.cache.ondine.state_dir())]);
    run(list).must_succeed().text()
}

#[test]
fn a_token_in_the_address_of_an_upload_is_refused_and_told_to_nobody() {
    let uploads = Uploads::new(&[]);
    let token = uploads.cache.ondine.new_token("ci", "push,vouch", &[]);
    let contents = nar(b"one");
    for path in [
        format!("/nar/{}.nar?token={token}", "0".repeat(52)),
        format!("/{}.narinfo?token={token}", hash(1)),
        format!("/{token}/nar/{}.nar", "0".repeat(52)),
    ] {
        let head = support::uploads::head(
            &path,
            &format!("Connection: close\r\nContent-Length: {}\r\n", contents.len()),
        );
        let request = [head.as_bytes(), &contents].concat();
        let (answer, _) = raw(uploads.cache.ondine.address(), &request, SOON);
        let (status, text) = parsed(&answer);
        assert!(status == 400 && text.contains("has a token in it"), "{text}");
        assert!(!text.contains(&token));
    }
    assert!(!uploads.cache.ondine.log().contains(&token));
    assert_eq!((uploads.served(), uploads.nar_files()), (0, 0));
}

#[test]
fn nobody_vouches_for_an_output_without_the_right() {
    let uploads = Uploads::new(&[]);
    let token = uploads.cache.ondine.new_token("weak", "read,push", &[]);
    for release in Release::all() {
        let name = release.name().to_owned();
        let pusher = Client::with_settings(release, &uploads.cache.store.store_dir(), &[("max-jobs", "1")]);
        let built = pusher.build(&derivations::text_file(&format!("unsigned-{name}"), "text"));
        let netrc = pusher.home().join("netrc");
        std::fs::write(&netrc, format!("machine 127.0.0.1 login x password {token}\n")).expect("written");
        let url = format!("{}/cached?compression=zstd", uploads.cache.ondine.url());
        let copy = ["copy", "--netrc-file", text(&netrc), "--to", &url, text(&built[0])];
        let refused = pusher.run("nix", &copy).must_fail();
        assert!(refused.stderr.contains("vouch"), "{name}: {refused}");
        assert!(!refused.stderr.contains(&token), "{name}");
    }
    assert_eq!(uploads.served(), 0);
}

#[test]
fn a_derivation_that_names_the_output_of_another_is_refused_by_name() {
    let uploads = Uploads::new(&[]);
    let pusher = Client::new(Release::Host, &uploads.cache.store.store_dir());
    let honest = pusher.instantiate(&derivations::text_file("target", "honest"));
    let evil = pusher.instantiate(&derivations::text_file("target", "evil"));
    let output = |drv: &str| {
        let out = pusher.run("nix-store", &["--query", "--outputs", drv]).must_succeed().text();
        Path::new(out.trim()).file_name().expect("a name").to_string_lossy()[..32].to_owned()
    };
    let forged = std::fs::read_to_string(pusher.physical(Path::new(&evil))).expect("a derivation");
    let forged = forged.replace(&output(&evil), &output(&honest));
    // Its own name is right: no client of Nix would make it.
    let digest = Sha256::digest(&forged);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let named = format!("text:sha256:{hex}:{}:target.drv", uploads.cache.store.store_dir().display());
    let file = pusher.home().join("named");
    std::fs::write(&file, named).expect("written");
    let hash = pusher.run("nix-hash", &["--flat", "--type", "sha256", "--base32", "--truncate", text(&file)]);
    let hash = hash.must_succeed().text().trim().to_owned();
    let contents = nar(forged.as_bytes());
    let name = uploads.upload(&contents);
    let ca = narinfo::NarHash::from_bytes(digest.into()).to_nixbase32();
    let narinfo = uploads.narinfo(&format!("{hash}-target.drv"), &name, &name, &contents, "");
    let narinfo = format!("{narinfo}CA: text:sha256:{ca}\n");
    let (status, text) = uploads.put(&format!("/{hash}.narinfo"), narinfo.as_bytes());
    assert!(status == 400 && text.contains("not what it claims to be"), "{text}");
    assert_eq!(uploads.served(), 0);
    let url = uploads.door.url().to_owned();
    pusher.run("nix", &["copy", "--derivation", "--to", &url, &honest]).must_succeed();
    assert_eq!(uploads.served(), 1);
}

/// The moments of an upload at which the server is killed.
const STEPS: usize = 6;

#[test]
fn a_kill_at_each_step_of_an_upload_loses_nothing_that_was_acknowledged() {
    let mut uploads = Uploads::new(&[]);
    let mut acknowledged: Vec<(usize, Vec<u8>)> = Vec::new();
    for number in 0..2 * STEPS {
        let contents = nar(format!("contents {number}").repeat(20_000).as_bytes());
        let name = nixbase32_name(&contents);
        let path = format!("{}-p", hash(number));
        let narinfo = uploads.narinfo(&path, &name, &name, &contents, "");
        let address = uploads.address().to_owned();
        let begin = |path: &str, body: &[u8]| {
            OpenUpload::begin(&address, path, &format!("Content-Length: {}\r\n", body.len()))
        };
        let step = number % STEPS;
        let mut upload = begin(&format!("/nar/{name}.nar"), &contents);
        upload.send(&contents[..contents.len() / 2]);
        if step >= 1 {
            upload.send(&contents[contents.len() / 2..]);
        }
        if step >= 2 {
            assert_eq!(upload.answer().0, 200);
        }
        let mut last = None;
        if step >= 3 {
            let mut upload = begin(&format!("/{}.narinfo", hash(number)), narinfo.as_bytes());
            upload.send(&narinfo.as_bytes()[..narinfo.len() / 2]);
            if step >= 4 {
                upload.send(&narinfo.as_bytes()[narinfo.len() / 2..]);
            }
            if step >= 5 {
                assert_eq!(upload.answer().0, 200);
                acknowledged.push((number, contents.clone()));
            }
            last = Some(upload);
        }
        uploads.cache.ondine.crash_and_restart();
        drop((upload, last));
        uploads.door = Door::to(&uploads.cache.ondine);
        let http = Http::new(&uploads.cache.ondine.url());
        for (number, contents) in &acknowledged {
            assert_eq!(http.get(&format!("/{}.narinfo", hash(*number))).status, 200, "step {step}");
            let name = nixbase32_name(contents);
            assert_eq!(&http.get(&format!("/nar/{name}.nar")).body, contents, "step {step}");
        }
        // Not acknowledged, it is there whole or not at all, and is uploaded again.
        let served = http.get(&format!("/cached/{}.narinfo", hash(number))).status;
        assert!(served == 404 || step >= 4, "step {step}: {served}");
        let nar = uploads.put(&format!("/nar/{name}.nar"), &contents);
        assert_eq!(nar.0, 200, "step {step}: {}", nar.1);
        let again = uploads.put(&format!("/{}.narinfo", hash(number)), narinfo.as_bytes());
        assert_eq!(again.0, 200, "step {step}: {}", again.1);
        if step < 5 {
            acknowledged.push((number, contents));
        }
    }
    assert_eq!(acknowledged.len(), 2 * STEPS);
    let mut check = uploads.cache.ondine.command("fsck");
    check.args(["--verify", "--state-dir", text(&uploads.cache.ondine.state_dir())]);
    run(check).must_succeed();
    wait_until("nothing else is left", SOON, || uploads.nar_files() == 2 * STEPS);
}

/// The name of a file with these bytes.
fn nixbase32_name(bytes: &[u8]) -> String {
    narinfo::NarHash::from_bytes(Sha256::digest(bytes).into()).to_nixbase32()
}
