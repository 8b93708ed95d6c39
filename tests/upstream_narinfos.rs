//! Faults of narinfos of another cache, one after the other: the path is not served, not signed and counted,
//! nothing of what the narinfo names is fetched, and where a second cache has the path, that one is used.

use std::path::{Path, PathBuf};

use crate::support;
use crate::support::addresses::{field, fields, narinfo_address};
use crate::support::derivations::text_file;
use crate::support::upstream::{counted, settings_file, stored_nars};
use crate::support::{
    BinaryCache, Client, Daemon, Derivation, Fault, FileServer, Http, NixStore, Ondine, Release, Upstream,
};
use narinfo::{NarHash, SecretKey};
use sha2::{Digest, Sha256};

/// Bytes of one narinfo that the server may have taken; the buffers of two sockets are among them.
const TAKEN_MAX: u64 = 12 << 20;

/// Paths that refer to another, all of which only other caches have; one of those is as it should be, one is
/// spoilt.
struct World {
    store: NixStore,
    _daemon: Daemon,
    /// One for each row.
    paths: Vec<PathBuf>,
    /// The path that each of them refers to.
    below: PathBuf,
    good: Upstream,
    spoilt: Upstream,
    /// Changes made to each path, in order.
    said: Vec<String>,
}

impl World {
    /// So many paths to spoil.
    fn new(paths: usize) -> World {
        let store = NixStore::new(Release::Host);
        let outputs: Vec<String> = (0..paths).map(|number| format!("o{number}")).collect();
        let below = text_file("below", "below");
        let script = "for output in $outputs; do echo \"$output $below\" > ${!output}; done";
        let above = Derivation::new("above", script).input("below", &below);
        let above =
            store.instantiate(&above.outputs(&outputs.iter().map(String::as_str).collect::<Vec<_>>()));
        store.realise(&above.drv);
        let paths: Vec<PathBuf> = above.outputs.into_iter().map(|(_, path)| path).collect();
        let all: Vec<&Path> = paths.iter().map(|path| &**path).collect();
        let good = Upstream::new(&store, &all);
        let spoilt = Upstream::of(good.cache.twin());
        let below = store.instantiate(&below).out().to_owned();
        store.gc();
        assert!(!store.is_valid(&below));
        World { _daemon: store.daemon(), store, paths, below, good, spoilt, said: Vec::new() }
    }

    /// A server with these upstreams, the first preferred.
    fn behind(&self, upstreams: &[&Upstream]) -> Ondine {
        let numbered = upstreams.iter().enumerate();
        let tables: Vec<_> =
            numbered.map(|(number, upstream)| upstream.table(&format!("priority = {number}"))).collect();
        Ondine::start(&self.store, &["--config", &settings_file(&self.store, &tables)])
    }

    /// Spoils what is said of the next path.
    fn spoil(&mut self, said: &str, change: impl FnOnce(&BinaryCache, &Path)) {
        change(&self.spoilt.cache, &self.paths[self.said.len()]);
        self.said.push(format!("{said:.200}"));
    }

    /// Gives a field of the next narinfo another value, which the upstream's own key signs.
    fn spoil_value(&mut self, name: &str, value: &str) {
        self.spoil(&format!("{name}: {value:?}"), |cache, path| {
            cache.set(path, name, value);
            cache.sign(path);
        });
    }

    /// The promise about every narinfo that was spoilt.
    fn refuses(&self) {
        let alone = self.behind(&[&self.spoilt]);
        let http = Http::new(&alone.url());
        for (number, (path, said)) in self.paths.iter().zip(&self.said).enumerate() {
            let address = narinfo_address(path);
            let answer = http.get(&address);
            assert_eq!(answer.status, 404, "{said}: {}", answer.text());
            assert!(!answer.text().contains("Sig: "), "{said}: {}", answer.text());
            assert_eq!(counted(&alone, "narinfos", &["refused"]), number as u64 + 1, "{said}");
            assert_eq!(self.beside(), [""; 0], "{said}");
        }
        for (path, said) in self.paths.iter().zip(&self.said) {
            let address = narinfo_address(path);
            assert_eq!(http.head(&address).status, 404, "{said}");
            assert_eq!(http.get(&format!("/cached{address}")).status, 404, "{said}");
        }
        assert_eq!(stored_nars(&alone), [""; 0]);

        let both = self.behind(&[&self.spoilt, &self.good]);
        for (path, said) in self.paths.iter().zip(&self.said) {
            self.assert_served(&both, path, said);
        }
    }

    /// Requests to the spoilt upstream that are not for narinfos or for its nix-cache-info.
    fn beside(&self) -> Vec<String> {
        let targets = self.spoilt.server.seen().into_iter().map(|seen| seen.target().to_owned());
        targets.filter(|target| !target.ends_with(".narinfo") && target != "/nix-cache-info").collect()
    }

    /// The server serves what the good upstream says of a path, signed, and the very bytes.
    fn assert_served(&self, ondine: &Ondine, path: &Path, said: &str) {
        let http = Http::new(&ondine.url());
        let narinfo = http.get(&narinfo_address(path));
        assert_eq!(narinfo.status, 200, "{said}: {}", narinfo.text());
        let (narinfo, right) = (narinfo.text(), self.good.cache.narinfo(path));
        for same in ["StorePath", "NarHash", "NarSize", "References"] {
            assert_eq!(fields(&narinfo, same), fields(&right, same), "{said}");
        }
        assert!(fields(&narinfo, "Sig").contains(&field(&right, "Sig")), "{said}: {narinfo}");
        let nar = http.get(&format!("/{}", field(&narinfo, "URL")));
        assert_eq!(nar.status, 200, "{said}");
        let nar = zstd::decode_all(&nar.body[..]).expect("a zstd file");
        assert_eq!(
            NarHash::from_bytes(Sha256::digest(&nar).into()).to_string(),
            field(&right, "NarHash"),
            "{said}"
        );
    }
}

fn stranger(name: &str) -> SecretKey {
    SecretKey::generate(name.parse().expect("the name of a key"))
}

#[test]
fn a_signature_that_is_wrong_or_of_an_unknown_key_or_absent_is_no_signature() {
    let mut world = World::new(8);
    let below = world.below.clone();
    world.spoil("unsigned", |cache, path| cache.remove(path, "Sig"));
    world.spoil("an unknown key", |cache, path| cache.sign_as(path, &stranger("stranger-1")));
    world.spoil("another key of the same name", |cache, path| cache.sign_as(path, &stranger("upstream-1")));
    world.spoil("the signature of another path", |cache, path| {
        let theirs = field(&cache.narinfo(&below), "Sig").to_owned();
        cache.set(path, "Sig", &theirs);
    });
    // Each of these is signed over.
    for (name, value) in [
        ("NarSize", "1000"),
        ("NarHash", "sha256:0000000000000000000000000000000000000000000000000000"),
        ("References", ""),
    ] {
        world.spoil(name, |cache, path| cache.set(path, name, value));
    }
    // It says that it is content-addressed, and is not.
    world.spoil("a false content address", |cache, path| {
        let hash = field(&cache.narinfo(path), "NarHash").to_owned();
        cache.remove(path, "Sig");
        cache.edit(path, |narinfo| format!("{narinfo}CA: fixed:r:{hash}\n"));
    });
    world.refuses();
}

#[test]
fn a_path_is_not_served_when_something_it_refers_to_is_refused() {
    let world = World::new(1);
    let (spoilt, path) = (&world.spoilt, &world.paths[0]);
    spoilt.cache.remove(&world.below, "Sig");
    let ondine = world.behind(&[spoilt]);
    assert_eq!(Http::new(&ondine.url()).get(&narinfo_address(path)).status, 404);
    assert!(counted(&ondine, "narinfos", &["refused"]) > 0);
    world.assert_served(&world.behind(&[spoilt, &world.good]), path, "together they have all of it");
}

#[test]
fn a_path_is_not_served_when_something_it_refers_to_is_nowhere() {
    let world = World::new(1);
    let (lacking, path) = (&world.spoilt, &world.paths[0]);
    lacking.cache.forget(&world.below);
    let ondine = world.behind(&[lacking]);
    assert_eq!(Http::new(&ondine.url()).get(&narinfo_address(path)).status, 404);
    assert_eq!(counted(&ondine, "narinfos", &["missing"]), 1);
    world.good.cache.forget(path);
    let ondine = world.behind(&[lacking, &world.good]);
    let client = Client::new(Release::Host, &world.store.store_dir());
    client.fetch(&ondine.substituter(), &[path]).must_succeed();
    assert!(client.has(&world.below), "together they have all of it");
}

#[test]
fn a_narinfo_of_another_path_is_refused() {
    let mut world = World::new(6);
    let below = world.below.clone();
    world.spoil("of another path", |cache, path| {
        let theirs = cache.narinfo(&below);
        cache.edit(path, |_| theirs);
    });
    let path = |world: &World| support::text(&world.paths[world.said.len()]).to_owned();
    let changes: [fn(&str, &str) -> String; 5] = [
        |_, name| name.to_owned(),
        |_, name| format!("/nix/store/{name}"),
        |dir, name| format!("{dir}/../{name}"),
        |dir, name| format!("{dir}/{name}/bin"),
        |_, _| String::new(),
    ];
    for change in changes {
        let path = path(&world);
        let (dir, name) = path.rsplit_once('/').expect("a store path");
        world.spoil_value("StorePath", &change(dir, name));
    }
    world.refuses();
}

#[test]
fn a_url_that_leads_out_of_the_upstream_is_refused() {
    let mut world = World::new(12);
    let trap = FileServer::new(world.good.cache.folder());
    let host = trap.url().trim_start_matches("http://").to_owned();
    for url in [
        "../nar/file".to_owned(),
        "nar/../../nar/file".to_owned(),
        "nar/../../../../../../etc/passwd".to_owned(),
        "/../etc/passwd".to_owned(),
        format!("//{host}/nar/file"),
        format!("http:\\\\{host}\\nar/file"),
        "file:///etc/passwd".to_owned(),
        format!("ftp://{host}/nar/file"),
        "nar/file\rX-Injected: 1".to_owned(),
        "nar/file\0".to_owned(),
        "nar/file HTTP/1.1".to_owned(),
        String::new(),
    ] {
        // Its signatures do not cover the URL.
        world.spoil(&format!("URL: {url:?}"), |cache, path| cache.set(path, "URL", &url));
    }
    world.refuses();
    assert_eq!(trap.seen().len(), 0);
}

#[test]
fn a_url_on_another_port_or_address_of_this_machine_is_not_asked() {
    for own in ["127.0.0.1", "localhost"] {
        let world = World::new(2);
        let trap = FileServer::new(world.good.cache.folder());
        let port = trap.url().rsplit(':').next().expect("a port").to_owned();
        for (path, other) in world.paths.iter().zip(["127.0.0.1", "localhost"]) {
            let nar = field(&world.spoilt.cache.narinfo(path), "URL").to_owned();
            world.spoilt.cache.set(path, "URL", &format!("http://{other}:{port}/{nar}"));
        }
        let url = world.spoilt.server.url().replace("127.0.0.1", own);
        let spoilt = support::upstream::table(&url, &[&world.spoilt.cache.public_key()], "priority = 1");
        let tables = [spoilt, world.good.table("priority = 2")];
        let ondine = Ondine::start(&world.store, &["--config", &settings_file(&world.store, &tables)]);
        for path in &world.paths {
            world.assert_served(&ondine, path, "the next upstream has it");
        }
        assert!(!world.spoilt.server.seen().is_empty(), "{own}");
        assert_eq!(trap.seen().len(), 0, "{own}: {:?}", trap.seen());
    }
}

#[test]
fn a_refusal_tells_a_wrong_key_from_an_unknown_one_and_from_none() {
    let world = World::new(3);
    let (cache, paths) = (&world.spoilt.cache, &world.paths);
    cache.remove(&paths[0], "Sig");
    cache.sign_as(&paths[1], &stranger("stranger-1"));
    cache.sign_as(&paths[2], &stranger("upstream-1"));
    let ondine = world.behind(&[&world.spoilt]);
    for (path, said) in paths.iter().zip([
        "it has no signature",
        "no configured key has signed it: it is signed by stranger-1, public-keys has upstream-1",
        "a signature under the name upstream-1, which does not verify with the configured key of that name",
    ]) {
        let answer = Http::new(&ondine.url()).get(&narinfo_address(path));
        assert!(answer.status == 404 && answer.text().contains(said), "{said}: {}", answer.text());
    }
}

#[test]
fn sizes_that_are_none_and_fields_that_are_there_twice_are_refused() {
    let mut world = World::new(24);
    for value in
        ["0", "-1", "+180", "18446744073709551616", "0x80", "1e3", "99999999999999999999999", "", "180 "]
    {
        world.spoil_value("NarSize", value);
    }
    for value in ["-1", "18446744073709551616"] {
        world.spoil_value("FileSize", value);
    }
    for twice in ["StorePath", "URL", "Compression", "NarHash", "NarSize", "References"] {
        world.spoil(&format!("{twice} twice"), |cache, path| {
            cache.edit(path, |narinfo| format!("{narinfo}{twice}: {}\n", field(&narinfo, twice)));
        });
    }
    for missing in ["StorePath", "URL", "NarHash", "NarSize"] {
        world.spoil(&format!("no {missing}"), |cache, path| cache.remove(path, missing));
    }
    world.spoil_value("Compression", "lzma-9000");
    world.spoil_value("NarHash", "md5:d41d8cd98f00b204e9800998ecf8427e");
    world.spoil_value("References", "../../etc/passwd");
    world.refuses();
}

/// A fault of a narinfo, and the change that makes it.
type Change = (&'static str, fn(&str) -> String);

#[test]
fn what_is_no_narinfo_is_refused() {
    let mut world = World::new(6);
    let changes: [Change; 6] = [
        ("a page", |_| "<html><body>Please log in</body></html>\n".to_owned()),
        ("nothing", |_| String::new()),
        ("half a narinfo", |narinfo| narinfo[..narinfo.len() / 2].to_owned()),
        ("a NUL", |narinfo| narinfo.replace("Sig: ", "X-Nothing: \0\nSig: ")),
        ("three megabytes", |narinfo| format!("{narinfo}X-Long: {}\n", "a".repeat(3 << 20))),
        ("three megabytes of lines", |narinfo| format!("{narinfo}{}", "X-Many: a\n".repeat(300 * 1024))),
    ];
    for (said, change) in changes {
        world.spoil(said, |cache, path| cache.edit(path, |narinfo| change(&narinfo)));
    }
    world.refuses();
}

#[test]
fn a_narinfo_without_end_is_left_after_a_mebibyte() {
    let mut world = World::new(1);
    world.spoilt.server.fault(&narinfo_address(&world.paths[0]), Fault::Endless);
    world.spoil("no end", |_, _| ());
    world.refuses();
    for seen in world.spoilt.server.seen_of(".narinfo") {
        assert!(seen.sent < TAKEN_MAX, "{} bytes were taken", seen.sent);
    }
}

#[test]
fn an_unknown_field_and_a_second_signature_do_no_harm() {
    let world = World::new(1);
    let path = &world.paths[0];
    let theirs = world.good.cache.twin();
    theirs.sign_as(path, &stranger("stranger-1"));
    let second = field(&theirs.narinfo(path), "Sig").to_owned();
    world.spoilt.cache.edit(path, |narinfo| {
        let (start, end) = narinfo.split_at(narinfo.find("Sig: ").expect("signed"));
        format!("X-Unknown: a: b: c\n{start}Sig: {second}\n{end}")
    });
    world.assert_served(&world.behind(&[&world.spoilt]), path, "more than we know");
}

#[test]
fn a_reference_to_a_served_hash_under_another_name_is_refused() {
    let mut world = World::new(2);
    let other = format!("{}-another-name", &support::addresses::base_name(&world.below)[..32]);
    world.spoil_value("References", &other);
    let ondine = world.behind(&[&world.spoilt]);
    let http = Http::new(&ondine.url());
    // What it refers to is served, by its own name.
    assert_eq!(http.get(&narinfo_address(&world.below)).status, 200);
    let refused = http.get(&narinfo_address(&world.paths[0]));
    assert_eq!(refused.status, 404);
    let served = support::addresses::base_name(&world.below);
    assert!(refused.text().contains(&other) && refused.text().contains(served), "{}", refused.text());
    assert_eq!(http.get(&narinfo_address(&world.paths[1])).status, 200);
}
