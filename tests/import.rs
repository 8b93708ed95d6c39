//! `ondine import`: a binary cache in a directory, made by real Nix, is served with its signatures; what is
//! wrong in it is refused with the reason, and takes nothing else with it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support;
use crate::support::process::{Finished, run};
use crate::support::{Client, Instantiated, NixStore, Ondine, Release, derivations, text};

/// A cache that real Nix made and signed, of a chain of three paths.
pub struct MadeCache {
    pub store: NixStore,
    _daemon: support::Daemon,
    pub dir: PathBuf,
    /// The public key; the secret one is in the file `secret` of the store's folder.
    pub key: String,
    pub top: Instantiated,
}

pub fn made(compression: &str) -> MadeCache {
    let store = NixStore::new(Release::Host);
    let daemon = store.daemon();
    let chain = derivations::chain("chain", 3, |_| String::new());
    let top = store.instantiate(&chain);
    store.realise(&top.drv).must_succeed();
    let (secret, dir) = (store.folder().join("secret"), store.folder().join("cache"));
    let secret_key = run(store.command(
        "nix",
        &["--extra-experimental-features", "nix-command", "key", "generate-secret", "--key-name", "old-1"],
    ));
    fs::write(&secret, secret_key.must_succeed().text()).expect("written");
    let url = format!("file://{}?compression={compression}&secret-key={}", dir.display(), secret.display());
    let copy = ["--extra-experimental-features", "nix-command", "copy", "--to", &url, text(top.out())];
    run(store.command("nix", &copy)).must_succeed();
    let mut public = std::process::Command::new("sh");
    let words = "exec nix --extra-experimental-features nix-command key convert-secret-to-public < \"$1\"";
    public.args(["-c", words, "sh", text(&secret)]).envs(store.variables());
    let key = run(public).must_succeed().text();
    MadeCache { store, _daemon: daemon, dir, key, top }
}

/// A key that has signed nothing.
const OTHER_KEY: &str = "other-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

impl MadeCache {
    fn import(&self, ondine: &Ondine, arguments: &[&str]) -> Finished {
        import(ondine, &self.dir, arguments)
    }

    fn narinfo(&self) -> PathBuf {
        let name = support::addresses::base_name(self.top.out());
        self.dir.join(format!("{}.narinfo", &name[..32]))
    }
}

pub fn import(ondine: &Ondine, dir: &Path, arguments: &[&str]) -> Finished {
    let mut command = ondine.command("import");
    command.arg(dir).args(["--state-dir", text(&ondine.state_dir())]).args(arguments);
    run(command)
}

/// A server on a store of its own, which has built nothing, below the same store directory.
pub fn empty_server(made: &MadeCache) -> (NixStore, support::Daemon, Ondine) {
    let store = made.store.forgotten();
    let daemon = store.daemon();
    let ondine = Ondine::start(&store, &["--build-from="]);
    (store, daemon, ondine)
}

pub fn served(ondine: &Ondine, path: &Path) -> String {
    let answer = support::Http::new(&ondine.url()).get(&support::addresses::narinfo_address(path));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

#[test]
fn a_signed_cache_of_each_compression_is_served_to_a_client() {
    for compression in ["xz", "zstd", "none"] {
        let made = made(compression);
        let (_store, _daemon, ondine) = empty_server(&made);
        let dry = made.import(&ondine, &["--trusted-key", &made.key, "--dry-run"]).must_succeed().text();
        assert!(dry.starts_with("would import 3 of 3 paths; 0 "), "{dry}");
        let first = made.import(&ondine, &["--trusted-key", &made.key]).must_succeed().text();
        assert!(first.contains("; 0 refused"), "{first}");
        let narinfo = served(&ondine, made.top.out());
        assert!(narinfo.contains("Sig: old-1:"), "its signature stays: {narinfo}");
        let client = Client::new(Release::Host, &made.store.store_dir());
        client.fetch(&ondine.substituter(), &[made.top.out()]).must_succeed();
        // What is there is not sent again.
        let again = made.import(&ondine, &["--trusted-key", &made.key]).must_succeed().text();
        assert!(again.starts_with("imported 0 of "), "{again}");
    }
}

#[test]
fn what_no_trusted_key_has_signed_is_refused() {
    let made = made("zstd");
    let (_store, _daemon, ondine) = empty_server(&made);
    let refused = made.import(&ondine, &[]).must_fail();
    assert!(refused.stderr.contains("has signatures by: old-1; name the public key"), "{refused}");
    assert!(refused.text().starts_with("imported 0 of 3 paths"), "{refused}");
    let other = made.import(&ondine, &["--trusted-key", OTHER_KEY, "--dry-run"]).must_fail();
    assert!(other.stderr.contains("none of them is a key that --trusted-key names (other-1)"), "{other}");
    assert!(other.text().starts_with("would import 0 of 3 paths; 3 would be"), "{other}");
    let same_name =
        made.import(&ondine, &["--trusted-key", &OTHER_KEY.replace("other-1", "old-1")]).must_fail();
    assert!(same_name.stderr.contains("does not fit the key of that name"), "{same_name}");
    let narinfo = fs::read_to_string(made.narinfo()).expect("the narinfo");
    let unsigned: String =
        narinfo.lines().filter(|line| !line.starts_with("Sig:")).map(|line| format!("{line}\n")).collect();
    fs::write(made.narinfo(), unsigned).expect("written");
    let unsigned = made.import(&ondine, &["--trusted-key", &made.key]).must_fail();
    assert!(unsigned.stderr.contains("it has no signature"), "{unsigned}");
    assert!(unsigned.text().ends_with("; 1 refused"), "{unsigned}");
    fs::write(made.narinfo(), narinfo).expect("written");
    let json = made.import(&ondine, &["--json"]).must_fail();
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert!(
        report["sent"] == 0 && report["refused"].as_array().is_some_and(|list| !list.is_empty()),
        "{report}"
    );
}

#[test]
fn a_damaged_nar_and_a_file_outside_are_refused_and_the_rest_is_imported() {
    let made = made("none");
    let (_store, _daemon, ondine) = empty_server(&made);
    let narinfo = fs::read_to_string(made.narinfo()).expect("the narinfo");
    let url = support::addresses::field(&narinfo, "URL").to_owned();
    let nar = made.dir.join(&url);
    let mut bytes = fs::read(&nar).expect("the NAR");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&nar, &bytes).expect("written");
    let refused = made.import(&ondine, &["--trusted-key", &made.key]).must_fail();
    assert!(refused.stderr.contains(support::addresses::base_name(made.top.out())), "{refused}");
    assert!(refused.text().contains("; 1 refused"), "{refused}");
    assert!(!refused.text().starts_with("imported 0 "), "its references are there: {refused}");

    fs::remove_file(&nar).expect("removed");
    std::os::unix::fs::symlink("/etc/passwd", &nar).expect("made");
    let refused = made.import(&ondine, &["--trusted-key", &made.key]).must_fail();
    assert!(refused.stderr.contains("no file of the cache"), "{refused}");
    fs::write(made.narinfo(), narinfo.replace(&url, "../../etc/passwd")).expect("written");
    let refused = made.import(&ondine, &["--trusted-key", &made.key]).must_fail();
    assert!(refused.stderr.contains("not imported: "), "{refused}");
    fs::write(made.narinfo(), "garbage").expect("written");
    made.import(&ondine, &["--trusted-key", &made.key]).must_fail();
    let nowhere = import(&ondine, Path::new("/nonexistent"), &[]).must_fail();
    assert!(nowhere.stderr.contains("/nonexistent cannot be imported"), "{nowhere}");
    let other = import(&ondine, made.store.folder(), &[]).must_fail();
    assert!(
        other.stderr.contains("neither a binary cache") && other.stderr.contains("--database"),
        "{other}"
    );
}

#[test]
fn what_is_no_file_is_refused_and_never_waited_for() {
    let made = made("none");
    let (_store, _daemon, ondine) = empty_server(&made);
    let pipe = |name: &str| {
        let mut mkfifo = std::process::Command::new("mkfifo");
        mkfifo.arg(made.dir.join(name));
        run(mkfifo).must_succeed();
    };
    pipe("00000000000000000000000000000000.narinfo");
    let refused = made.import(&ondine, &["--trusted-key", &made.key]).must_fail();
    assert!(refused.stderr.contains("00000000000000000000000000000000.narinfo: it is no file"), "{refused}");
    assert!(
        refused.text().contains("imported 3 of 4 paths") && refused.text().contains("1 refused"),
        "{refused}"
    );
    fs::remove_file(made.dir.join("nix-cache-info")).expect("removed");
    pipe("nix-cache-info");
    let refused = made.import(&ondine, &["--trusted-key", &made.key]).must_fail();
    assert!(refused.stderr.contains("it is no file"), "{refused}");
}
