//! What may be wrong with a narinfo of another cache, one after the other: the path is not served, not signed and counted,
//! nothing of what the narinfo names is fetched, and where a second cache has the path, that one is used.

mod support;

use std::path::Path;

use support::addresses::{field, fields, narinfo_address};
use support::derivations::text_file;
use support::upstream::{counted, settings_file, stored_nars};
use support::{
    BinaryCache, Compression, Daemon, Derivation, Fault, FileServer, Http, NixStore, Ondine, Release, Sample,
    Upstream,
};

/// Bytes of one narinfo that the server may have taken; the buffers of two sockets are among them.
const TAKEN_MAX: u64 = 12 << 20;

/// A path that refers to another, both of which only other caches have, and one of them that is as it should be.
struct World {
    store: NixStore,
    _daemon: Daemon,
    sample: Sample,
    good: Upstream,
}

impl World {
    fn new() -> World {
        let store = NixStore::new(Release::Host);
        let below = text_file("below", "below");
        let above = Derivation::new("above", "echo $below > \"$out\"").input("below", &below);
        let sample = Sample::new(&store, &above);
        assert_eq!(sample.closure.len(), 2);
        let good = Upstream::of(sample.copied(&store, Compression::Xz));
        sample.collect_with_derivation(&store);
        World { _daemon: store.daemon(), store, sample, good }
    }

    fn path(&self) -> &Path {
        &self.sample.path
    }

    /// What the path refers to.
    fn below(&self) -> &Path {
        &self.sample.closure[0]
    }

    fn behind(&self, upstreams: &[&Upstream]) -> Ondine {
        let numbered = upstreams.iter().enumerate();
        let tables: Vec<_> =
            numbered.map(|(number, upstream)| upstream.table(&format!("priority = {number}"))).collect();
        Ondine::start(&self.store, &["--config", &settings_file(&self.store, &tables)])
    }

    /// The promise about a wrong narinfo.
    fn refuses(&self, spoilt: &Upstream, said: &str) {
        let ondine = self.behind(&[spoilt]);
        let http = Http::new(&ondine.url());
        let address = narinfo_address(self.path());
        let answer = http.get(&address);
        assert_eq!(answer.status, 404, "{said}: {}", answer.text());
        assert!(!answer.text().contains("Sig: "), "{said}: {}", answer.text());
        assert_eq!(counted(&ondine, "narinfos", &["refused"]), 1, "{said}");
        assert_eq!(http.head(&address).status, 404, "{said}");
        assert_eq!(http.get(&format!("/cached{address}")).status, 404, "{said}");
        assert_eq!(stored_nars(&ondine), [""; 0], "{said}");
        let seen = spoilt.server.seen();
        let beside = seen.iter().map(|seen| seen.target());
        let beside: Vec<_> =
            beside.filter(|target| !target.ends_with(".narinfo") && *target != "/nix-cache-info").collect();
        assert_eq!(beside, [""; 0], "{said}");

        let ondine = self.behind(&[spoilt, &self.good]);
        let narinfo = Http::new(&ondine.url()).get(&address);
        assert_eq!(narinfo.status, 200, "{said}: {}", narinfo.text());
        let right = self.good.cache.narinfo(self.path());
        for same in ["StorePath", "NarHash", "NarSize", "References"] {
            assert_eq!(fields(&narinfo.text(), same), fields(&right, same), "{said}");
        }
        self.sample.assert_served_by(&ondine);
    }

    /// The same for a narinfo that a change of the right one gives.
    fn refuses_change(&self, said: &str, change: impl FnOnce(&BinaryCache)) {
        let spoilt = Upstream::of(self.good.cache.twin());
        change(&spoilt.cache);
        self.refuses(&spoilt, said);
    }

    /// The same for a field with another value, which the upstream's own key has signed.
    fn refuses_value(&self, name: &str, value: &str) {
        self.refuses_change(&format!("{name}: {value}"), |cache| {
            cache.set(self.path(), name, value);
            cache.sign(self.path());
        });
    }
}

#[test]
fn a_signature_that_is_wrong_or_of_an_unknown_key_or_absent_is_no_signature() {
    let world = World::new();
    let path = world.path();
    world.refuses_change("unsigned", |cache| cache.remove(path, "Sig"));
    let stranger = |name: &str| narinfo::SecretKey::generate(name.parse().expect("a name"));
    world.refuses_change("an unknown key", |cache| cache.sign_as(path, &stranger("stranger-1")));
    world
        .refuses_change("another key of the same name", |cache| cache.sign_as(path, &stranger("upstream-1")));
    world.refuses_change("the signature of another path", |cache| {
        let theirs = field(&cache.narinfo(world.below()), "Sig").to_owned();
        cache.set(path, "Sig", &theirs);
    });
    // Each of these is signed over.
    for (name, value) in [
        ("NarSize", "1000"),
        ("NarHash", "sha256:0000000000000000000000000000000000000000000000000000"),
        ("References", ""),
    ] {
        world.refuses_change(name, |cache| cache.set(path, name, value));
    }
    // It says that it is content-addressed, and is not.
    world.refuses_change("a false content address", |cache| {
        let hash = field(&cache.narinfo(path), "NarHash").to_owned();
        cache.remove(path, "Sig");
        cache.edit(path, |narinfo| format!("{narinfo}CA: fixed:r:{hash}\n"));
    });
}

#[test]
fn a_path_is_not_served_when_something_it_refers_to_is_refused() {
    let world = World::new();
    world.refuses_change("unsigned below", |cache| cache.remove(world.below(), "Sig"));
}

#[test]
fn a_path_is_not_served_when_something_it_refers_to_is_nowhere() {
    let world = World::new();
    let lacking = Upstream::of(world.good.cache.twin());
    lacking.cache.forget(world.below());
    let ondine = world.behind(&[&lacking]);
    assert_eq!(Http::new(&ondine.url()).get(&narinfo_address(world.path())).status, 404);
    assert_eq!(counted(&ondine, "narinfos", &["missing"]), 1);
    // Together they have all of it.
    let other = Upstream::of(world.good.cache.twin());
    other.cache.forget(world.path());
    let ondine = world.behind(&[&lacking, &other]);
    let client = support::Client::new(Release::Host, &world.store.store_dir());
    client.fetch(&ondine.substituter(), &[world.path()]).must_succeed();
    world.sample.assert_held_by(&client);
}

#[test]
fn a_narinfo_of_another_path_is_refused() {
    let world = World::new();
    world.refuses_change("of another path", |cache| {
        let theirs = cache.narinfo(world.below());
        cache.edit(world.path(), |_| theirs);
    });
    let path = support::text(world.path()).to_owned();
    let renamed = path.replace("-above", "-below");
    let (dir, name) = path.rsplit_once('/').expect("a store path");
    for value in [
        &*renamed,
        name,
        &format!("/nix/store/{name}"),
        &format!("{dir}/../{name}"),
        &format!("{path}/bin"),
        "",
    ] {
        world.refuses_value("StorePath", value);
    }
}

#[test]
fn a_url_that_leads_out_of_the_upstream_is_refused() {
    let world = World::new();
    let trap = FileServer::new(world.good.cache.folder());
    let nar = field(&world.good.cache.narinfo(world.path()), "URL").to_owned();
    let host = trap.url().trim_start_matches("http://").to_owned();
    for url in [
        format!("../{nar}"),
        format!("nar/../../{nar}"),
        "nar/../../../../../../etc/passwd".to_owned(),
        "/etc/passwd".to_owned(),
        format!("//{host}/{nar}"),
        format!("http:\\\\{host}\\{nar}"),
        format!("file://{}", world.good.cache.nar_file(world.path()).display()),
        format!("ftp://{host}/{nar}"),
        format!("{nar}\rX-Injected: 1"),
        format!("{nar}\0"),
        format!("{nar} HTTP/1.1"),
        String::new(),
    ] {
        // Its signatures do not cover the URL.
        world.refuses_change(&format!("{url:?}"), |cache| cache.set(world.path(), "URL", &url));
    }
    assert_eq!(trap.seen().len(), 0);
}

#[test]
fn a_url_on_another_host_is_not_asked() {
    let world = World::new();
    let trap = FileServer::new(world.good.cache.folder());
    let nar = field(&world.good.cache.narinfo(world.path()), "URL").to_owned();
    let spoilt = Upstream::of(world.good.cache.twin());
    spoilt.cache.set(world.path(), "URL", &format!("{}/{nar}", trap.url()));
    let ondine = world.behind(&[&spoilt, &world.good]);
    world.sample.assert_served_by(&ondine);
    assert_eq!(trap.seen().len(), 0);
}

#[test]
fn sizes_that_are_none_and_fields_that_are_there_twice_are_refused() {
    let world = World::new();
    let path = world.path();
    for value in
        ["0", "-1", "+180", "18446744073709551616", "0x80", "1e3", "99999999999999999999999", "", "180 "]
    {
        world.refuses_value("NarSize", value);
    }
    for value in ["0", "-1", "18446744073709551616"] {
        world.refuses_value("FileSize", value);
    }
    for twice in ["StorePath", "URL", "Compression", "NarHash", "NarSize", "References"] {
        world.refuses_change(&format!("{twice} twice"), |cache| {
            cache.edit(path, |narinfo| format!("{narinfo}{twice}: {}\n", field(&narinfo, twice)));
        });
    }
    for missing in ["StorePath", "URL", "NarHash", "NarSize"] {
        world.refuses_change(&format!("no {missing}"), |cache| cache.remove(path, missing));
    }
    world.refuses_value("Compression", "lzma-9000");
    world.refuses_value("NarHash", "md5:d41d8cd98f00b204e9800998ecf8427e");
    world.refuses_value("References", "../../etc/passwd");
}

#[test]
fn what_is_no_narinfo_is_refused() {
    let world = World::new();
    let path = world.path();
    let right = world.good.cache.narinfo(path);
    let half = right[..right.len() / 2].to_owned();
    for (said, text) in [
        ("a page", "<html><body>Please log in</body></html>\n".to_owned()),
        ("nothing", String::new()),
        ("half a narinfo", half),
        ("a NUL", right.replace("Sig: ", "X-Nothing: \0\nSig: ")),
        ("three megabytes", format!("{right}X-Long: {}\n", "a".repeat(3 << 20))),
        ("three megabytes of lines", format!("{right}{}", "X-Many: a\n".repeat(300 * 1024))),
    ] {
        world.refuses_change(said, |cache| cache.edit(path, |_| text));
    }
}

#[test]
fn a_narinfo_without_end_is_left_after_a_mebibyte() {
    let world = World::new();
    let endless = Upstream::of(world.good.cache.twin());
    endless.server.fault(&narinfo_address(world.path()), Fault::Endless);
    world.refuses(&endless, "no end");
    for seen in endless.server.seen_of(".narinfo") {
        assert!(seen.sent < TAKEN_MAX, "{} bytes were taken", seen.sent);
    }
}

#[test]
fn an_unknown_field_and_a_second_signature_do_no_harm() {
    let world = World::new();
    let upstream = Upstream::of(world.good.cache.twin());
    let stranger = narinfo::SecretKey::generate("stranger-1".parse().expect("a name"));
    let theirs = world.good.cache.twin();
    theirs.sign_as(world.path(), &stranger);
    let second = field(&theirs.narinfo(world.path()), "Sig").to_owned();
    upstream.cache.edit(world.path(), |narinfo| {
        let (start, end) = narinfo.split_at(narinfo.find("Sig: ").expect("signed"));
        format!("X-Unknown: a: b: c\n{start}Sig: {second}\n{end}")
    });
    let ondine = world.behind(&[&upstream]);
    world.sample.assert_served_by(&ondine);
    let narinfo = Http::new(&ondine.url()).get(&narinfo_address(world.path())).text();
    let names: Vec<_> =
        fields(&narinfo, "Sig").iter().map(|sig| sig.split(':').next().unwrap_or_default()).collect();
    assert!(names.contains(&"upstream-1"), "{names:?}");
}
