//! Uploads of `binary-cache.sh`, `nar-access.sh` and `signing.sh`: what a client writes beside narinfos is
//! served back as it would be from a cache in a folder.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::scene::dependencies;
use super::support::{Cache, Client, Derivation, Door, Http, Release, text};

/// A server that has built nothing, and a client that has built something and uploads it.
struct Stage {
    cache: Cache,
    door: Door,
    client: Client,
    out: PathBuf,
}

impl Stage {
    #[track_caller]
    fn new(release: &Release, derivation: &Derivation, arguments: &[&str]) -> Stage {
        let cache = Cache::new(arguments);
        let settings = [("max-jobs", "1")];
        let client = Client::with_settings(release.clone(), &cache.store.store_dir(), &settings);
        let out = client.build(derivation).swap_remove(0);
        Stage { door: Door::to(&cache.ondine), cache, client, out }
    }

    /// Uploads with these parameters, to the server and to a folder, which is given.
    #[track_caller]
    fn upload(&self, parameters: &str) -> PathBuf {
        let folder = self.client.home().join("folder");
        for to in [format!("{}/cached", self.door.url()), format!("file://{}", folder.display())] {
            let url = format!("{to}?{parameters}");
            self.client.run("nix", &["copy", "--to", &url, text(&self.out)]).must_succeed();
        }
        folder
    }

    fn http(&self) -> Http {
        Http::new(&self.cache.ondine.url())
    }

    fn hash(&self) -> String {
        self.out.file_name().expect("a name").to_string_lossy()[..32].to_owned()
    }

    /// A client with an empty store.
    fn reader(&self) -> Client {
        Client::new(Release::Host, &self.cache.store.store_dir())
    }

    #[track_caller]
    fn assert_substituted(&self) {
        let reader = self.reader();
        reader.fetch(&self.cache.ondine.cached(), &[&self.out]).must_succeed();
        assert_eq!(reader.nar_digest(&self.out), self.client.nar_digest(&self.out));
    }
}

#[track_caller]
fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(bytes)))
}

#[test]
fn a_listing_is_that_of_a_cache_in_a_folder_whatever_compression_it_was_uploaded_in() {
    for release in Release::all() {
        for compression in ["xz", "zstd", "none", "bzip2", "br"] {
            let stage = Stage::new(&release, &dependencies(), &[]);
            let folder = stage.upload(&format!("write-nar-listing=1&compression={compression}"));
            let name = format!("{}.ls", stage.hash());
            let written = std::fs::read(folder.join(&name)).expect("the client writes it into the folder");
            let served = stage.http().get(&format!("/{name}"));
            assert_eq!(json(&served.body), json(&written), "{release:?} {compression}");
            stage.assert_substituted();
        }
    }
}

/// An output with debugging symbols of a build id, as a separate output of a real package has them.
fn symbols() -> Derivation {
    let folder = "$out/lib/debug/.build-id/02";
    Derivation::new(
        "symbols",
        &format!("mkdir -p {folder}; echo symbols > {folder}/623eda209c26a59b1a8638ff7752f6b945c26b.debug"),
    )
}

#[test]
fn the_index_of_debug_information_is_that_of_a_cache_in_a_folder() {
    let name = "debuginfo/02623eda209c26a59b1a8638ff7752f6b945c26b.debug";
    for release in Release::all() {
        for compression in ["xz", "zstd", "none"] {
            let stage = Stage::new(&release, &symbols(), &[]);
            let folder = stage.upload(&format!("index-debug-info=1&compression={compression}"));
            let written = std::fs::read(folder.join(name)).expect("the client writes it into the folder");
            let served = json(&stage.http().get(&format!("/{name}")).body);
            assert_eq!(served["member"], json(&written)["member"], "{release:?} {compression}");
            let archive = served["archive"].as_str().and_then(|address| address.strip_prefix("../"));
            let archive = archive.expect("an address beside its folder").to_owned();
            let narinfo = stage.http().get(&format!("/{}.narinfo", stage.hash())).text();
            assert!(narinfo.contains(&format!("URL: {archive}\n")), "{archive} in: {narinfo}");
            assert_eq!(stage.http().get(&format!("/{archive}")).status, 200, "{archive}");
        }
    }
}

#[test]
fn a_log_that_was_copied_is_shown_to_others() {
    for release in Release::all() {
        let stage = Stage::new(&release, &dependencies(), &[]);
        stage.upload("compression=zstd");
        let url = stage.door.url();
        stage.client.run("nix", &["store", "copy-log", "--to", url, text(&stage.out)]).must_succeed();
        let reader = stage.reader();
        let cached = stage.cache.ondine.cached();
        let log = ["log", "--store", &cached.url, text(&stage.out)];
        let log = reader.run("nix", &log).must_succeed().text();
        assert!(log.contains("FOO"), "{release:?}: {log}");
    }
}

#[test]
fn what_is_signed_while_it_is_uploaded_is_believed_without_a_right_to_vouch() {
    for release in Release::all() {
        let key = narinfo::SecretKey::generate("uploads-1".parse().expect("a name"));
        let trusted = key.public_key().to_string();
        let stage = Stage::new(&release, &dependencies(), &["--trusted-keys", &trusted]);
        let home = stage.client.home();
        let (file, netrc) = (home.join("key"), home.join("netrc"));
        std::fs::write(&file, key.to_secret_string().as_bytes()).expect("written");
        let token = stage.cache.ondine.new_token("signer", "read,push", &[]);
        std::fs::write(&netrc, format!("machine 127.0.0.1 login x password {token}\n")).expect("written");
        let cached = format!("{}/cached", stage.cache.ondine.url());
        let copy = |url: &str| {
            stage.client.run("nix", &["copy", "--netrc-file", text(&netrc), "--to", url, text(&stage.out)])
        };
        let unsigned = copy(&format!("{cached}?compression=zstd")).must_fail();
        assert!(unsigned.stderr.contains("vouch"), "{release:?}: {unsigned}");
        copy(&format!("{cached}?compression=zstd&secret-key={}", text(&file))).must_succeed();
        stage.assert_substituted();
        let narinfo = stage.http().get(&format!("/{}.narinfo", stage.hash())).text();
        assert!(narinfo.contains("Sig: uploads-1:"), "{release:?}: {narinfo}");
    }
}

#[test]
fn a_client_that_finds_a_part_there_uploads_the_rest() {
    for release in Release::all() {
        let stage = Stage::new(&release, &dependencies(), &[]);
        let closure = stage.client.run("nix-store", &["--query", "--requisites", text(&stage.out)]);
        let closure: Vec<PathBuf> = closure.must_succeed().text().lines().map(PathBuf::from).collect();
        assert_eq!(closure.len(), 3);
        let url = format!("{}/cached?compression=zstd", stage.door.url());
        stage.client.run("nix", &["copy", "--to", &url, text(&closure[0])]).must_succeed();
        stage.client.forget_answers();
        stage.upload("compression=xz");
        stage.assert_substituted();
        let valid: Vec<&Path> = closure.iter().map(PathBuf::as_path).collect();
        stage.reader().copy(&stage.cache.ondine.cached(), &valid).must_succeed();
        assert_eq!(stage.cache.ondine.log().matches("published a pushed path").count(), 3, "{release:?}");
    }
}
