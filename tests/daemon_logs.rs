//! The promise about logs that are not ours: what the Nix daemon built without us has its log here, too,
//! whatever form Nix gave it, and an output leads to the log of what makes it. Real daemons of every release.

use std::path::Path;

use crate::support;
use crate::support::addresses::{base_name, log_address};
use crate::support::cache::assert_missing;
use crate::support::uploads::Uploads;
use crate::support::{Cache, Derivation, Door, Instantiated, NixStore, Release, text};

/// A derivation that says a word.
fn talking(store: &NixStore, word: &str) -> Instantiated {
    let script = format!("echo {word}\necho {word} > \"$out\"");
    store.instantiate(&Derivation::new(word, &script))
}

/// The whole text of a log.
#[track_caller]
fn log(cache: &Cache, of: &Path) -> String {
    let answer = cache.http.get(&log_address(of));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    answer.text()
}

#[test]
fn what_a_daemon_of_every_release_built_without_us_has_its_log_in_the_form_that_nix_gave_it() {
    for release in Release::all() {
        for compressed in ["true", "false"] {
            let store = NixStore::with_settings(release.clone(), &[("compress-build-log", compressed)]);
            let built = talking(&store, "before");
            store.realise(&built.drv);
            let cache = Cache::of(store, &[], &[]);
            assert_eq!(log(&cache, &built.drv), "before\n", "{} {compressed}", release.name());
            assert_eq!(log(&cache, built.out()), "before\n", "{} {compressed}", release.name());
            assert_eq!(cache.http.head(&log_address(&built.drv)).status, 200);
            let client = cache.client(&[]);
            let shown = client.run("nix", &["log", "--store", &cache.ondine.url(), text(&built.drv)]);
            assert_eq!(shown.must_succeed().text(), "before");
        }
    }
}

#[test]
fn an_output_has_the_log_of_what_makes_it_whoever_built_it_and_ours_comes_first() {
    let cache = Cache::new(&[]);
    let ours = talking(&cache.store, "ours");
    cache.narinfo(ours.out());
    assert_eq!(log(&cache, ours.out()), "ours\n");
    let log_dir = cache.store.folder().join("log/drvs").join(&base_name(&ours.drv)[..2]);
    std::fs::remove_dir_all(&log_dir).expect("the daemon has a log, too");
    assert_eq!(log(&cache, ours.out()), "ours\n");
    let client = cache.client(&[]);
    let shown = client.run("nix", &["log", "--store", &cache.ondine.url(), text(ours.out())]);
    assert_eq!(shown.must_succeed().text(), "ours");
    // Its derivation is gone, and it is still served.
    cache.store.gc();
    assert_eq!(log(&cache, ours.out()), "ours\n");
}

#[test]
fn a_log_that_a_client_uploads_takes_the_place_of_no_other() {
    let cache = Cache::new(&["--max-build-log-bytes", "4096", "--max-total-log-bytes", "9000"]);
    let uploads = Uploads { door: Door::to(&cache.ondine), cache };
    let cache = &uploads.cache;
    let [ours, daemons, later] = ["ours", "daemons", "later"].map(|word| talking(&cache.store, word));
    cache.narinfo(ours.out());
    cache.store.realise(&daemons.drv);
    for of in [&ours, &daemons] {
        let (status, text) = uploads.put(&log_address(&of.drv), b"uploaded\n");
        assert!(status == 200 && text.contains("not kept"), "{text}");
    }
    for number in 0..5 {
        let address = format!("/log/{number:032}-p.drv");
        assert_eq!(uploads.put(&address, &[b'x'; 4000]).0, 200, "{number}");
    }
    assert_eq!(uploads.put(&log_address(&later.drv), b"uploaded\n").0, 200);
    for (of, shown) in [(&ours, "ours\n"), (&daemons, "daemons\n"), (&later, "uploaded\n")] {
        assert_eq!(log(cache, &of.drv), shown);
        assert_eq!(log(cache, of.out()), shown);
    }
    let kept = (0..5).filter(|number| cache.http.get(&format!("/log/{number:032}-p.drv")).status == 200);
    assert_eq!(kept.count(), 2, "the others have made room");
    cache.narinfo(later.out());
    assert_eq!(log(cache, &later.drv), "later\n");
}

#[test]
fn what_has_no_log_says_why() {
    let cache = Cache::new(&[]);
    let never = talking(&cache.store, "never");
    for of in [&*never.drv, never.out()] {
        assert_missing(&cache.http.get(&log_address(of)), &["no log", base_name(of)]);
    }
    let file = cache.store.folder().join("source");
    support::store::write(&file, "a source\n");
    let source = cache.store.nix_store(&["--add", text(&file)]);
    let answer = cache.http.get(&log_address(Path::new(&source)));
    assert_missing(&answer, &["no log", "it is not known what makes"]);
    for path in ["/log/..", "/log/%2e%2e%2fetc%2fpasswd", "/log/drvs/00/x.drv", "/log/"] {
        assert_eq!(cache.http.get(path).status, 404, "{path}");
    }
}
