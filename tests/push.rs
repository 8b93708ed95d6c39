//! Pushes of stock clients: `nix copy --to` uploads what was built elsewhere, and derivations that the server
//! then builds for whoever asks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::derivations::{curious_tree, multiple_outputs, row_of_outputs, text_file};
use crate::support::process::run;
use crate::support::{Cache, Client, Derivation, Door, Http, Release, text, wait_until};

/// Paths that each release pushes.
const PATHS: usize = 300;

/// A cache, and a way for stock clients to push to it.
struct Scene {
    cache: Cache,
    door: Door,
}

impl Scene {
    fn new(arguments: &[&str]) -> Scene {
        let cache = Cache::new(arguments);
        Scene { door: Door::to(&cache.ondine), cache }
    }

    /// A client with a store of its own that may build.
    fn pusher(&self, release: &Release) -> Client {
        Client::with_settings(release.clone(), &self.cache.store.store_dir(), &[("max-jobs", "2")])
    }

    fn reader(&self) -> Client {
        Client::new(Release::Host, &self.cache.store.store_dir())
    }

    fn push(&self, pusher: &Client, parameters: &str, arguments: &[&str]) {
        let url = format!("{}{parameters}", self.door.url());
        let all = [&["copy", "--to", &url], arguments].concat();
        pusher.run("nix", &all).must_succeed();
    }
}

fn requisites(client: &Client, path: &Path) -> Vec<PathBuf> {
    let closure = client.run("nix-store", &["--query", "--requisites", text(path)]).must_succeed();
    closure.text().lines().map(PathBuf::from).collect()
}

#[test]
fn clients_of_every_release_push_hundreds_of_paths_and_others_get_them() {
    for release in Release::all() {
        let scene = Scene::new(&[]);
        let pusher = scene.pusher(&release);
        let outputs = pusher.build(&row_of_outputs("row", PATHS));
        let end = format!("-o{PATHS}");
        let last = outputs.iter().find(|path| text(path).ends_with(&end)).expect("it is built");
        let all = requisites(&pusher, last);
        assert_eq!(all.len(), PATHS);
        scene.push(&pusher, "?compression=zstd", &[text(last)]);
        let reader = scene.reader();
        reader.copy(&scene.cache.ondine.cached(), &[last]).must_succeed();
        for path in &all {
            assert_eq!(reader.nar_digest(path), pusher.nar_digest(path), "{}", path.display());
        }
        assert!(!scene.cache.store.is_valid(last), "the server's Nix store has no part in it");
    }
}

#[test]
fn every_compression_that_a_release_offers_is_taken() {
    for release in Release::all() {
        let scene = Scene::new(&[]);
        let pusher = scene.pusher(&release);
        for compression in ["xz", "bzip2", "zstd", "gzip", "br", "none", "lzma", "lz4"] {
            let outputs = pusher.build(&curious_tree(&format!("tree-{compression}")));
            let parameters = format!("?compression={compression}");
            scene.push(&pusher, &parameters, &[text(&outputs[0])]);
            let reader = scene.reader();
            reader.copy(&scene.cache.ondine.cached(), &[&outputs[0]]).must_succeed();
            assert_eq!(reader.nar_digest(&outputs[0]), pusher.nar_digest(&outputs[0]), "{compression}");
        }
    }
}

#[test]
fn the_files_beside_narinfos_are_taken_from_every_release() {
    for release in Release::all() {
        let scene = Scene::new(&[]);
        let pusher = scene.pusher(&release);
        let outputs = pusher.build(&multiple_outputs("several"));
        let parameters = "?write-nar-listing=1&index-debug-info=1&ls-compression=br&narinfo-compression=br&log-compression=br";
        scene.push(&pusher, parameters, &[text(&outputs[0])]);
        scene.reader().copy(&scene.cache.ondine.cached(), &[&outputs[0]]).must_succeed();
        let http = Http::new(&scene.cache.ondine.url());
        let hash = &outputs[0].file_name().expect("a name").to_string_lossy()[..32];
        let listing = http.get(&format!("/{hash}.ls"));
        assert!(listing.status == 200 && listing.text().contains("\"root\""), "{}", listing.text());
    }
}

#[test]
fn an_input_that_was_pushed_is_not_built_again() {
    let scene = Scene::new(&[]);
    let pusher = scene.pusher(&Release::Host);
    let gate = scene.cache.store.gate();
    let below = Derivation::new("below", &format!("{}mkdir \"$out\"", gate.note("below")));
    let middle = Derivation::new("middle", &format!("{}echo \"$below\" > \"$out\"", gate.note("middle")));
    let middle = middle.input("below", &below);
    let top = Derivation::new("top", &format!("{}cat \"$middle\" > \"$out\"", gate.note("top")));
    let top = top.input("middle", &middle);
    let built = pusher.build(&middle);
    let drv = pusher.instantiate(&top);
    scene.push(&pusher, "?compression=zstd", &[text(&built[0])]);
    scene.push(&pusher, "", &["--derivation", &drv]);
    assert!(!scene.cache.store.is_valid(&built[0]));
    let out = pusher.run("nix-store", &["--query", "--outputs", &drv]).must_succeed().text();
    scene.reader().fetch(&scene.cache.ondine.substituter(), &[Path::new(out.trim())]).must_succeed();
    assert_eq!(gate.starts(), ["below", "middle", "top"], "the first two where they were pushed from");
    assert!(scene.cache.store.is_valid(&built[0]), "it was brought into the Nix store");
}

#[test]
fn a_path_with_the_contents_of_another_one_is_pushed_without_its_nar_by_every_release() {
    let mut scene = Scene::new(&[]);
    let releases = Release::all();
    let pushers: Vec<Client> = releases.iter().map(|release| scene.pusher(release)).collect();
    let pair = |name: &str, release: &Release| text_file(name, &format!("contents {}", release.version()));
    let built: Vec<[PathBuf; 2]> = releases
        .iter()
        .zip(&pushers)
        .map(|(release, pusher)| ["one", "two"].map(|name| pusher.build(&pair(name, release)).swap_remove(0)))
        .collect();
    for number in 0..2 {
        for (pusher, paths) in pushers.iter().zip(&built) {
            scene.push(pusher, "/cached?compression=none", &[text(&paths[number])]);
        }
        // The server knows uploads no longer by the names of their files.
        scene.cache.ondine.crash_and_restart();
        scene.door = Door::to(&scene.cache.ondine);
    }
    let reader = scene.reader();
    let all: Vec<&Path> = built.iter().flatten().map(PathBuf::as_path).collect();
    reader.copy(&scene.cache.ondine.cached(), &all).must_succeed();
}

#[test]
fn a_lost_index_forgets_neither_pushed_outputs_nor_pushed_derivations() {
    let mut scene = Scene::new(&[]);
    let pusher = scene.pusher(&Release::Host);
    let output = pusher.build(&curious_tree("output"));
    let drv = pusher.instantiate(&graph("graph", 3));
    scene.push(&pusher, "?compression=zstd", &[text(&output[0])]);
    scene.push(&pusher, "", &["--derivation", &drv]);
    scene.cache.ondine.kill9();
    for ending in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(scene.cache.ondine.state_dir().join(format!("index.sqlite{ending}")));
    }
    scene.cache.ondine.start_again();
    let log = scene.cache.ondine.log();
    assert!(log.contains("3 pushed derivations") && log.contains("tokens are lost"), "{log}");
    let reader = scene.reader();
    reader.copy(&scene.cache.ondine.cached(), &[&output[0]]).must_succeed();
    assert_eq!(reader.nar_digest(&output[0]), pusher.nar_digest(&output[0]));
    let out = pusher.run("nix-store", &["--query", "--outputs", &drv]).must_succeed().text();
    reader.fetch(&scene.cache.ondine.substituter(), &[Path::new(out.trim())]).must_succeed();
    // A derivation that needs them is verified by what is known of them.
    let next = graph("graph", 4);
    scene.push(&pusher, "", &["--derivation", &pusher.instantiate(&next)]);
}

/// Derivations in a row, each with a source of its own.
fn graph(name: &str, length: usize) -> Derivation {
    let source = |number| format!("(builtins.toFile \"source-{number}\" \"text {name} {number}\")");
    let first = Derivation::new(&format!("{name}-0"), "cat \"$src\" > \"$out\"").attribute("src", &source(0));
    (1..length).fold(first, |before, number| {
        Derivation::new(&format!("{name}-{number}"), "cat \"$before\" \"$src\" > \"$out\"")
            .input("before", &before)
            .attribute("src", &source(number))
    })
}

#[test]
fn a_pushed_graph_of_derivations_is_built_for_whoever_asks_for_its_top() {
    let length = 100;
    for release in Release::all() {
        let scene = Scene::new(&[]);
        let pusher = scene.pusher(&release);
        let top = graph("graph", length);
        let drv = pusher.instantiate(&top);
        let out = pusher.run("nix-store", &["--query", "--outputs", &drv]).must_succeed().text();
        let out = PathBuf::from(out.trim());
        let drv_name = drv.rsplit('/').next().expect("a name");
        scene.push(&pusher, "", &["--derivation", &drv]);
        assert!(!scene.cache.store.is_valid(Path::new(&drv)), "nothing needs it yet");
        let by_name = format!("/api/v1/explain/graph-{}", length - 1);
        let explained = scene.cache.http.get(&by_name).text();
        assert!(explained.contains("\"known\"") && explained.contains(drv_name), "{explained}");
        let reader = scene.reader();
        reader.fetch(&scene.cache.ondine.substituter(), &[&out]).must_succeed();
        let text = std::fs::read_to_string(reader.physical(&out)).expect("it is a file");
        assert!(text.ends_with(&format!("text graph {}", length - 1)), "{text}");
        assert_eq!(text.matches("text graph").count(), length);
    }
}

#[test]
fn a_pushed_derivation_is_kept_for_its_time_and_can_be_pushed_again_afterwards() {
    let scenes = ["1h", "1s"].map(|keep| Scene::new(&["--eviction-grace", "0s", "--keep-pushed", keep]));
    let [kept, forgotten] = &scenes;
    let top = graph("short-lived", 2);
    let is_known = |scene: &Scene| {
        let mut gc = scene.cache.ondine.command("gc");
        gc.args(["--max-bytes", "0", "--state-dir", text(&scene.cache.ondine.state_dir())]);
        run(gc).must_succeed();
        let explained = scene.cache.http.get("/api/v1/explain/short-lived-1").text();
        explained.contains("\"known\"")
    };
    let pushers = scenes.each_ref().map(|scene| {
        let pusher = scene.pusher(&Release::Host);
        let drv = pusher.instantiate(&top);
        scene.push(&pusher, "", &["--derivation", &drv]);
        (pusher, drv)
    });
    wait_until("it is forgotten", Duration::from_secs(60), || !is_known(forgotten));
    assert!(is_known(kept), "its time is not over");

    let (pusher, drv) = &pushers[1];
    let out = pusher.run("nix-store", &["--query", "--outputs", drv]).must_succeed().text();
    let out = PathBuf::from(out.trim());
    let reader = forgotten.reader();
    reader.fetch(&forgotten.cache.ondine.substituter(), &[&out]).must_fail();
    pusher.forget_answers();
    forgotten.push(pusher, "", &["--derivation", drv]);
    reader.forget_answers();
    reader.fetch(&forgotten.cache.ondine.substituter(), &[&out]).must_succeed();
}
