//! Damage of stored NARs is noticed: at the latest when it is asked for, and by `ondine fsck` before. What
//! can be had again is, from the Nix store or another cache; nothing that is wrong goes out as a whole twice.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support;
use crate::support::addresses::{base_name, field};
use crate::support::derivations::noise;
use crate::support::upstream::stored_nars;
use crate::support::{
    Cache, Compression, Ending, Finished, Instantiated, NixStore, Release, Sample, Upstream, process,
    wait_until,
};

const SOON: Duration = Duration::from_secs(60);

/// A server of its own store, and paths that it serves and that the store keeps.
struct Stored {
    cache: Cache,
    paths: Vec<Instantiated>,
}

impl Stored {
    #[track_caller]
    fn new(sizes: &[u32]) -> Stored {
        Stored::with(&[], sizes)
    }

    #[track_caller]
    fn with(arguments: &[&str], sizes: &[u32]) -> Stored {
        let cache = Cache::new(arguments);
        let paths: Vec<Instantiated> =
            sizes.iter().map(|bytes| cache.store.instantiate(&noise("noise", *bytes))).collect();
        for path in &paths {
            cache.narinfo(path.out());
            cache.store.root(path.out());
        }
        let stored = Stored { cache, paths };
        stored.wait_until_all_are_packed();
        stored
    }

    #[track_caller]
    fn wait_until_all_are_packed(&self) {
        self.paths.iter().for_each(|path| self.wait_until_packed(path.out()));
    }

    /// Only then a narinfo tells of the file.
    #[track_caller]
    fn wait_until_packed(&self, path: &Path) {
        wait_until("it is packed", SOON, || self.cache.narinfo(path).contains("FileHash: "));
    }

    /// The file of a path's NAR.
    fn file(&self, path: &Path) -> PathBuf {
        let url = field(&self.cache.narinfo(path), "URL").to_owned();
        let name = url.strip_prefix("nar/").expect("the address of a NAR");
        self.cache.ondine.state_dir().join("nar").join(&name[..2]).join(name)
    }

    /// Changes a file in its middle.
    fn spoil(&self, path: &Path) {
        let file = std::fs::File::options().write(true).open(self.file(path)).expect("the file of a NAR");
        let middle = file.metadata().expect("its size").len() / 2;
        file.write_all_at(&[0x5a; 64], middle).expect("spoilt");
    }

    fn cut_short(&self, path: &Path) {
        let file = std::fs::File::options().write(true).open(self.file(path)).expect("the file of a NAR");
        file.set_len(1000).expect("cut short");
    }

    /// The whole body that is served for a path, in each of the two forms, is the NAR.
    #[track_caller]
    fn assert_right(&self, path: &Path) {
        let (url, nar) = (field(&self.cache.narinfo(path), "URL").to_owned(), self.cache.dump(path));
        let packed = self.cache.http.get(&format!("/{url}"));
        assert_eq!(packed.status, 200, "{}", packed.text());
        assert!(zstd::decode_all(&packed.body[..]).expect("a zstd file") == nar, "{url} is not the NAR");
        let plain = self.cache.http.get(&format!("/{}", url.trim_end_matches(".zst")));
        assert!(plain.body == nar, "{url} is not the NAR");
    }

    #[track_caller]
    fn fsck(&self, arguments: &[&str]) -> Finished {
        self.cache.ondine.run("fsck", arguments)
    }
}

#[test]
fn a_file_that_was_cut_short_is_noticed_before_an_answer_begins_and_the_answer_is_right() {
    let stored = Stored::new(&[300_000]);
    let path = stored.paths[0].out();
    stored.cut_short(path);
    stored.assert_right(path);
    stored.wait_until_all_are_packed();
    assert!(stored.fsck(&["--verify"]).must_succeed().text().starts_with("sound: 1 NAR,"));
}

#[test]
fn contents_that_cannot_be_unpacked_cut_one_answer_and_are_packed_again() {
    let stored = Stored::new(&[300_000]);
    let path = stored.paths[0].out();
    stored.spoil(path);
    let plain = field(&stored.cache.narinfo(path), "URL").trim_end_matches(".zst").to_owned();
    // Where not even the head of the answer was sent when the damage was seen, there is none, or one that
    // says so.
    if let Ok(mut answer) = stored.cache.http.try_open(&format!("/{plain}"), &[]) {
        let cut = matches!(answer.read_to_end().1, Ending::Cut(_));
        assert!(cut || answer.status == 404, "wrong bytes went out as a whole");
    }
    wait_until("it is found out", SOON, || stored.cache.ondine.log().contains("quarantined a stored NAR"));
    wait_until("it is put right", SOON, || stored.fsck(&["--verify"]).succeeded());
    stored.assert_right(path);
}

#[test]
fn a_spoilt_file_of_what_only_an_upstream_has_is_fetched_again() {
    let store = NixStore::new(Release::Host);
    let sample = Sample::new(&store, &noise("noise", 300_000));
    let upstream = Upstream::of(sample.copied(&store, Compression::Xz));
    sample.collect_with_derivation(&store);
    let cache = Cache::behind(store, &[upstream.table("")], &[]);
    sample.assert_served_by(&cache.ondine);
    let stored = Stored { cache, paths: Vec::new() };
    stored.wait_until_packed(&sample.path);
    stored.cut_short(&sample.path);
    sample.assert_served_by(&stored.cache.ondine);
    stored.wait_until_packed(&sample.path);
    stored.spoil(&sample.path);
    stored.fsck(&["--verify", "--repair"]).must_succeed();
    sample.assert_served_by(&stored.cache.ondine);
}

#[test]
fn fsck_tells_all_that_is_wrong_and_puts_it_right() {
    let stored = Stored::new(&[100_000, 200_000, 300_000, 400_000]);
    let [missing, short, spoilt, whole] = [0, 1, 2, 3].map(|place: usize| stored.paths[place].out());
    let sound = stored.fsck(&[]).must_succeed().text();
    assert!(sound.starts_with("sound: 4 NARs") && sound.contains("not read"), "{sound}");

    std::fs::remove_file(stored.file(missing)).expect("removed");
    stored.cut_short(short);
    stored.spoil(spoilt);
    let orphan = format!("{}.nar.zst", "0".repeat(52));
    let folder = stored.cache.ondine.state_dir().join("nar/00");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::copy(stored.file(whole), folder.join(&orphan)).expect("copied");
    let beside = stored.cache.ondine.state_dir().join("nar/another-folder");
    std::fs::create_dir(&beside).expect("a folder");
    std::fs::write(beside.join(&orphan), "not ours").expect("written");

    // Each: what is told without reading files, then what only that finds.
    let glance = stored.fsck(&[]).must_fail().text();
    for (path, fault) in [(missing, "missing"), (short, "1000 bytes")] {
        let told = |line: &str| {
            line.starts_with("wrong: ") && line.contains(base_name(path)) && line.contains(fault)
        };
        assert!(glance.lines().any(told), "nothing of {fault} in {glance}");
    }
    assert!(glance.contains("nobody's record") && glance.contains("failed: 3 wrong of 4 NARs"), "{glance}");
    let look = stored.fsck(&["--verify"]).must_fail().text();
    assert!(look.contains(&format!("wrong: {}: its file is damaged", base_name(spoilt))), "{look}");
    assert!(look.contains("not served any more") && look.contains("failed: 4 wrong of 4 NARs"), "{look}");
    // What is damaged is put right by that alone.
    stored.wait_until_packed(spoilt);

    let repaired = stored.fsck(&["--verify", "--repair"]).must_succeed().text();
    assert_eq!(repaired.lines().filter(|line| line.starts_with("put right: ")).count(), 3, "{repaired}");
    stored.wait_until_all_are_packed();
    let sound = stored.fsck(&["--verify"]).must_succeed().text();
    assert!(sound.starts_with("sound: 4 NARs"), "{sound}");
    for path in [missing, short, spoilt, whole] {
        stored.assert_right(path);
    }
    let mut files = stored_nars(&stored.cache.ondine);
    files.retain(|file| !file.starts_with("plain/") && !file.starts_with("quarantine/"));
    assert!(files.len() == 5 && files.contains(&format!("another-folder/{orphan}")), "{files:?}");
}

/// Flips one bit in the middle of the zstd file of a path's NAR.
fn flip_a_bit(stored: &Stored, path: &Path) {
    let file = std::fs::File::options().read(true).write(true).open(stored.file(path)).expect("the file");
    let (middle, mut byte) = (file.metadata().expect("its size").len() / 2, [0]);
    file.read_exact_at(&mut byte, middle).expect("read");
    file.write_all_at(&[byte[0] ^ 4], middle).expect("spoilt");
}

/// The value of a metric.
#[track_caller]
fn metric(stored: &Stored, name: &str) -> u64 {
    let metrics = stored.cache.http.get("/metrics").text();
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {metrics}"))
}

#[test]
fn a_flipped_bit_that_fsck_finds_is_not_served_any_more_whether_or_not_it_repairs() {
    let stored = Stored::new(&[300_000]);
    let path = stored.paths[0].out();
    flip_a_bit(&stored, path);
    let found = stored.fsck(&["--verify"]).must_fail().text();
    assert!(found.contains("not served any more"), "{found}");
    assert_eq!(metric(&stored, "ondine_damaged_nars_total"), 1);
    let aside = stored_nars(&stored.cache.ondine);
    assert!(aside.iter().any(|file| file.starts_with("quarantine/")), "{aside:?}");
    stored.assert_right(path);
    stored.wait_until_all_are_packed();
    assert!(stored.fsck(&["--verify"]).must_succeed().text().starts_with("sound: 1 NAR,"));
}

#[test]
fn a_flipped_bit_of_what_nobody_else_has_is_not_promised_any_more() {
    let stored = Stored::new(&[]);
    let built = stored.cache.store.instantiate(&noise("noise", 100_000));
    stored.cache.narinfo(built.out());
    stored.wait_until_packed(built.out());
    wait_until("Nix collects it", SOON, || {
        stored.cache.store.gc();
        !stored.cache.store.is_valid(built.out()) && !stored.cache.store.is_valid(&built.drv)
    });
    flip_a_bit(&stored, built.out());
    stored.fsck(&["--verify"]).must_fail();
    wait_until("it is not promised any more", SOON, || stored.cache.ask(built.out()).status == 404);
}

#[test]
fn damage_is_found_before_anybody_asks_and_put_right() {
    let stored = Stored::with(&["--scrub-interval", "1s"], &[100_000, 200_000, 300_000]);
    let path = stored.paths[1].out();
    wait_until("some were looked at", SOON, || metric(&stored, "ondine_scrubbed_bytes_total") > 600_000);
    assert!(metric(&stored, "ondine_scrubbed_nars_total") >= 3);
    assert_eq!(metric(&stored, "ondine_damaged_nars_total"), 0);
    flip_a_bit(&stored, path);
    wait_until("it is found", SOON, || metric(&stored, "ondine_damaged_nars_total") == 1);
    stored.wait_until_all_are_packed();
    stored.assert_right(path);
    assert!(stored.fsck(&["--verify"]).must_succeed().text().starts_with("sound: 3 NARs,"));
}

#[test]
fn what_is_spoilt_and_gone_from_the_nix_store_is_built_again() {
    let stored = Stored::new(&[]);
    let built = stored.cache.store.instantiate(&noise("noise", 100_000));
    stored.cache.store.root(&built.drv);
    stored.cache.narinfo(built.out());
    stored.wait_until_packed(built.out());
    wait_until("Nix collects it", SOON, || {
        stored.cache.store.gc();
        !stored.cache.store.is_valid(built.out())
    });
    stored.spoil(built.out());
    stored.fsck(&["--verify", "--repair"]).must_succeed();
    let cached = format!("/cached{}", support::addresses::narinfo_address(built.out()));
    wait_until("it is not promised any more", SOON, || stored.cache.http.get(&cached).status == 404);
    let client = stored.cache.client(&[]);
    client.fetch(&stored.cache.ondine.substituter(), &[built.out()]).must_succeed();
    assert_eq!(client.nar_digest(built.out()), support::nar_digest(built.out()));
}

#[test]
fn a_command_without_a_server_says_so() {
    let mut fsck = std::process::Command::new(env!("CARGO_BIN_EXE_ondine"));
    fsck.args(["fsck", "--state-dir", "/nonexistent"]);
    let refused = process::run(fsck).must_fail();
    for words in ["/nonexistent/control.sock", "no server answers"] {
        assert!(refused.stderr.contains(words), "{refused}");
    }
}
