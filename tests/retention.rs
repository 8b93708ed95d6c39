//! Promised paths stay servable: through garbage collection, crashes, restarts and lost files. Real daemon,
//! real clients; the server is killed as hard as it can be.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support;
use crate::support::addresses::{field, narinfo_address};
use crate::support::cache::without_wait_and_file;
use crate::support::derivations::{noise, noise_behind_a_file};
use crate::support::{
    Client, Derivation, Ending, HeldFile, Http, Instantiated, NixStore, Ondine, Release, wait_until,
};

const SOON: Duration = Duration::from_secs(30);

fn narinfo_path(built: &Instantiated) -> String {
    narinfo_address(built.out())
}

/// No GC root of ours is left: everything is packed.
fn all_packed(ondine: &Ondine) -> bool {
    std::fs::read_dir(ondine.state_dir().join("gcroots")).expect("the folder of roots").next().is_none()
}

fn wait_until_packed(ondine: &Ondine) {
    wait_until("everything is packed", SOON, || all_packed(ondine));
}

/// A server with a path that cannot be packed yet; its narinfo was asked for.
struct Unpacked {
    held: HeldFile,
    ondine: Ondine,
    _daemon: support::Daemon,
    store: NixStore,
    built: Instantiated,
    narinfo: String,
}

impl Unpacked {
    fn new() -> Unpacked {
        let store = NixStore::new(Release::Host);
        let daemon = store.daemon();
        let built = store.instantiate(&noise_behind_a_file("noise", 1 << 20));
        store.realise(&built.drv);
        let mut held = HeldFile::hold(&built.out().join("first"));
        let ondine = Ondine::start(&store, &[]);
        let narinfo = Http::new(&ondine.url()).get(&narinfo_path(&built)).text();
        held.wait_until_wanted();
        Unpacked { held, ondine, _daemon: daemon, store, built, narinfo }
    }
}

/// A store with its daemon, a server, and a small path with one dependency.
fn with_a_small_path() -> (NixStore, support::Daemon, Ondine, Instantiated, Instantiated) {
    with_a_small_path_and(&[])
}

fn with_a_small_path_and(
    arguments: &[&str],
) -> (NixStore, support::Daemon, Ondine, Instantiated, Instantiated) {
    let store = NixStore::new(Release::Host);
    let daemon = store.daemon();
    let dependency = Derivation::new("dependency", "mkdir $out; echo below > $out/file; :");
    let top = Derivation::new("top", "mkdir $out; echo $dependency > $out/file; :")
        .input("dependency", &dependency);
    let (dependency, top) = (store.instantiate(&dependency), store.instantiate(&top));
    let ondine = Ondine::start(&store, arguments);
    (store, daemon, ondine, dependency, top)
}

/// Has Nix collect these, once nothing holds them any more: what built them does for a moment.
fn collect(store: &NixStore, paths: &[&Path]) {
    wait_until("Nix collects them", SOON, || {
        store.gc();
        !paths.iter().any(|path| store.is_valid(path))
    });
}

#[test]
fn a_path_that_nix_has_collected_is_served_as_before() {
    let (store, _daemon, ondine, dependency, top) = with_a_small_path();
    let http = Http::new(&ondine.url());
    let before = http.get(&narinfo_path(&top));
    assert_eq!(before.status, 200);
    let digest = support::nar_digest(top.out());
    wait_until_packed(&ondine);
    let packed = http.get(&narinfo_path(&top)).text();
    collect(&store, &[top.out(), dependency.out()]);
    assert_eq!(http.get(&narinfo_path(&top)).text(), packed);
    let client = Client::new(Release::Host, &store.store_dir());
    client.fetch(&ondine.substituter(), &[top.out()]).must_succeed();
    assert_eq!(client.nar_digest(top.out()), digest);
    assert!(client.has(dependency.out()));
}

#[test]
fn what_a_narinfo_promised_survives_a_collection_before_its_nar_is_asked_for() {
    let Unpacked { held, ondine, _daemon, store, built, narinfo } = Unpacked::new();
    let http = Http::new(&ondine.url());
    store.gc();
    assert!(!all_packed(&ondine), "packed without the file that is held");
    held.let_go();
    let nar = http.get(&format!("/{}", field(&narinfo, "URL")));
    assert_eq!(nar.status, 200);
    let plain = zstd::decode_all(&nar.body[..]).expect("a complete zstd file");
    assert_eq!(plain.len().to_string(), field(&narinfo, "NarSize"));
    wait_until_packed(&ondine);
    store.gc();
    assert!(!store.is_valid(built.out()), "a root outlived its reason");
}

#[test]
fn a_server_killed_during_a_build_delivers_after_its_restart() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let gate = store.gate();
    let slow = Derivation::new("slow", &format!("{} echo done > $out; :", gate.script("slow")));
    let slow = store.instantiate(&slow);
    let mut ondine = Ondine::start(&store, &[]);
    let client = Client::new(Release::Host, &store.store_dir());
    let waiting = client.start_fetch(&ondine.substituter(), &[slow.out()]);
    gate.wait_for_starts(1);
    ondine.crash_and_restart();
    gate.wait_for_starts(2);
    gate.open();
    waiting.finish_within(SOON).must_succeed();
    assert_eq!(client.nar_digest(slow.out()), support::nar_digest(slow.out()));
    assert_eq!(gate.starts().len(), 2, "the interrupted build and one more");
}

#[test]
fn a_crash_between_narinfo_and_packing_loses_nothing() {
    let Unpacked { held, mut ondine, _daemon, store, built, narinfo } = Unpacked::new();
    let http = Http::new(&ondine.url());
    let tmp = ondine.state_dir().join("nar/tmp");
    let drafts = || std::fs::read_dir(&tmp).expect("the folder of drafts").count();
    assert_eq!(drafts(), 1, "it is being packed");
    ondine.kill9();
    assert!(!all_packed(&ondine), "packed without the file that is held");
    store.gc();
    held.let_go();
    ondine.start_again();
    let again = http.get(&narinfo_path(&built)).text();
    assert_eq!(without_wait_and_file(&again), without_wait_and_file(&narinfo));
    wait_until_packed(&ondine);
    assert_eq!(drafts(), 0, "a half-written file was left");
    let client = Client::new(Release::Host, &store.store_dir());
    let digest = support::nar_digest(built.out());
    client.fetch(&ondine.substituter(), &[built.out()]).must_succeed();
    assert_eq!(client.nar_digest(built.out()), digest);
}

#[test]
fn a_restart_keeps_key_paths_and_failures() {
    let (store, _daemon, mut ondine, _dependency, top) = with_a_small_path();
    let failing = store.instantiate(&support::derivations::failing("failing"));
    let http = Http::new(&ondine.url());
    http.get(&narinfo_path(&top));
    wait_until_packed(&ondine);
    let (served, failed) = (http.get(&narinfo_path(&top)), http.get(&narinfo_path(&failing)));
    assert_eq!((served.status, failed.status), (200, 404));
    let key = ondine.public_key().to_owned();
    assert!(ondine.sigterm().success());
    ondine.start_again();
    assert_eq!(ondine.public_key(), key);
    assert_eq!(http.get(&narinfo_path(&top)).text(), served.text());
    let again = http.get(&narinfo_path(&failing));
    assert_eq!(again.status, 404);
    assert!(again.text().contains("failed (permanent)"), "{}", again.text());
    assert_eq!(ondine.log().matches("build failed").count(), 1, "built again");
}

#[test]
fn sigterm_lets_a_download_finish_and_takes_no_new_connection() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    // More than the system keeps for a reader who does not read.
    let large = store.instantiate(&noise("large", 32 << 20));
    let mut ondine = Ondine::start(&store, &[]);
    let http = Http::new(&ondine.url());
    let narinfo = http.get(&narinfo_path(&large)).text();
    wait_until_packed(&ondine);
    let mut download = http.open(&format!("/{}", field(&narinfo, "URL")), &[]);
    let mut body = download.next_piece().expect("the first bytes");
    ondine.start_stopping();
    wait_until("new connections are refused", SOON, || {
        std::net::TcpStream::connect(ondine.address()).is_err()
    });
    let (rest, ending) = download.read_to_end();
    assert!(matches!(ending, Ending::Complete), "the download was cut");
    body.extend(rest);
    let plain = zstd::decode_all(&body[..]).expect("a complete zstd file");
    assert_eq!(plain.len().to_string(), field(&narinfo, "NarSize"));
    assert!(ondine.wait_stopped().success());
}

#[test]
fn sigterm_cuts_those_who_wait_for_a_build_and_exits_at_once() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let gate = store.gate();
    let slow = Derivation::new("slow", &format!("{} echo done > $out; :", gate.script("slow")));
    let slow = store.instantiate(&slow);
    let mut ondine = Ondine::start(&store, &["--hold", "0s"]);
    let mut waiting = Http::new(&ondine.url()).open(&narinfo_path(&slow), &[]);
    waiting.next_piece().expect("a line about the wait");
    let asked = Instant::now();
    assert!(ondine.sigterm().success());
    assert!(asked.elapsed() < Duration::from_secs(10), "it took {:?}", asked.elapsed());
    let (_, ending) = waiting.read_to_end();
    assert!(!matches!(ending, Ending::Complete), "half an answer looked whole");
}

#[test]
fn a_second_server_on_the_same_state_is_refused() {
    let (_store, _daemon, ondine, ..) = with_a_small_path();
    let state_dir = ondine.state_dir();
    let mut second = ondine.command("serve");
    second.args(["--listen", "127.0.0.1:0", "--state-dir", support::text(&state_dir)]);
    let refused = support::process::run(second).must_fail();
    assert!(refused.stderr.contains("another server runs with the state directory"), "{}", refused.stderr);
}

#[test]
fn a_lost_nar_file_is_packed_again_and_a_lost_path_is_built_again() {
    // What is in memory is given from there, whatever became of its file.
    let (store, _daemon, ondine, _dependency, top) = with_a_small_path_and(&["--nar-memory-bytes", "0"]);
    let http = Http::new(&ondine.url());
    http.get(&narinfo_path(&top));
    wait_until_packed(&ondine);
    let narinfo = http.get(&narinfo_path(&top)).text();
    let url = format!("/{}", field(&narinfo, "URL"));
    let remove_nars = || {
        for folder in std::fs::read_dir(ondine.state_dir().join("nar")).expect("the NAR store") {
            let folder = folder.expect("a folder").path();
            if !folder.ends_with("tmp") && !folder.ends_with("plain") {
                std::fs::remove_dir_all(folder).expect("removed");
            }
        }
    };

    remove_nars();
    let again = http.get(&url);
    assert_eq!(again.status, 200);
    assert_eq!(
        zstd::decode_all(&again.body[..]).expect("zstd").len().to_string(),
        field(&narinfo, "NarSize")
    );
    wait_until("it is packed again", SOON, || http.head(&url).header("content-length").is_some());

    remove_nars();
    collect(&store, &[top.out()]);
    // Neither the file nor the store path is left: this request finds out before its answer begins, and the
    // next one builds.
    assert_eq!(http.get(&url).status, 404);
    wait_until("the loss is noticed", SOON, || http.head(&url).status == 404);
    let client = Client::new(Release::Host, &store.store_dir());
    for path in [&url, &narinfo_path(&top)] {
        http.get(path);
    }
    assert_eq!(http.get(&narinfo_path(&top)).status, 404, "its derivation was collected, too");
    let dependency = Derivation::new("dependency", "mkdir $out; echo below > $out/file; :");
    let derivation = Derivation::new("top", "mkdir $out; echo $dependency > $out/file; :")
        .input("dependency", &dependency);
    assert_eq!(store.instantiate(&derivation).out(), top.out());
    client.fetch(&ondine.substituter(), &[top.out()]).must_succeed();
}

#[test]
fn a_store_path_with_the_wrong_contents_is_never_served_completely_nor_promised_again() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    // A small one, and one of which much is sent before it is known.
    let right = [Derivation::new("small", "echo right > $out; :"), noise("large", 3 << 20)];
    let built = right.map(|derivation| store.instantiate(&derivation));
    for built in &built {
        store.realise(&built.drv);
        let mut contents = std::fs::read(built.out()).expect("it was built");
        *contents.last_mut().expect("it is not empty") ^= 1;
        std::fs::set_permissions(built.out(), std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .expect("writable");
        std::fs::write(built.out(), contents).expect("damaged");
    }
    let ondine = Ondine::start(&store, &[]);
    let http = Http::new(&ondine.url());
    for built in &built {
        let promised = http.get(&narinfo_path(built));
        if promised.status == 200 {
            let packed = field(&promised.text(), "URL").to_owned();
            for url in [packed.replace(".zst", ""), packed] {
                let (status, ending) = match http.try_open(&format!("/{url}"), &[]) {
                    Ok(mut answer) => (answer.status, answer.read_to_end().1),
                    Err(_) => continue,
                };
                assert!(
                    status == 404 || !matches!(ending, Ending::Complete),
                    "damaged bytes went out as a whole"
                );
            }
        }
        wait_until("the damage is noticed", SOON, || http.get(&narinfo_path(built)).status == 404);
        let refused = http.get(&narinfo_path(built)).text();
        assert!(refused.contains("damaged") && refused.contains("--repair"), "{refused}");
    }
}

#[test]
fn roots_that_a_crash_left_behind_are_removed() {
    let (store, _daemon, mut ondine, dependency, top) = with_a_small_path();
    let http = Http::new(&ondine.url());
    http.get(&narinfo_path(&top));
    wait_until_packed(&ondine);
    ondine.kill9();
    let stray = ondine.state_dir().join("gcroots").join(dependency.out().file_name().expect("a name"));
    symlink(dependency.out(), &stray).expect("a symlink");
    ondine.start_again();
    wait_until("the stray root is gone", SOON, || all_packed(&ondine));
    store.gc();
    assert!(!store.is_valid(dependency.out()));
}

#[test]
fn a_deleted_index_is_made_anew_from_what_is_asked_for() {
    let (store, _daemon, mut ondine, _dependency, top) = with_a_small_path();
    let http = Http::new(&ondine.url());
    let signature = field(&http.get(&narinfo_path(&top)).text(), "Sig").to_owned();
    wait_until_packed(&ondine);
    assert!(ondine.sigterm().success());
    for name in ["index.sqlite", "index.sqlite-wal", "index.sqlite-shm"] {
        let _ = std::fs::remove_file(ondine.state_dir().join(name));
    }
    ondine.start_again();
    assert_eq!(field(&http.get(&narinfo_path(&top)).text(), "Sig"), signature, "the key has changed");
    let client = Client::new(Release::Host, &store.store_dir());
    client.fetch(&ondine.substituter(), &[top.out()]).must_succeed();
}

#[test]
fn a_damaged_index_is_refused_with_what_to_do() {
    let (_store, _daemon, mut ondine, ..) = with_a_small_path();
    assert!(ondine.sigterm().success());
    std::fs::write(ondine.state_dir().join("index.sqlite"), vec![b'x'; 4096]).expect("written");
    // Else SQLite puts every damaged page right from its log.
    std::fs::remove_file(ondine.state_dir().join("index.sqlite-wal")).expect("removed");
    let state_dir = ondine.state_dir();
    let mut server = ondine.command("serve");
    server.args(["--listen", "127.0.0.1:0", "--state-dir", support::text(&state_dir)]);
    let refused = support::process::run(server).must_fail();
    assert!(refused.stderr.contains("move it away"), "{}", refused.stderr);
}
