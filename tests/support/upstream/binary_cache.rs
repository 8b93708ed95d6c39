//! A binary cache in a folder: `nix copy` made it of real store paths and signed it, in any compression it
//! knows. A test may then edit what a narinfo says, sign it again or not, and put other bytes in place of a
//! NAR.

use std::path::{Path, PathBuf};
use std::process::Command;

use narinfo::SecretKey;

use crate::support::addresses::{base_name, field, fields};
use crate::support::process::run;
use crate::support::store::{Folder, NixStore, text, write};

/// Compressions of NARs by `nix copy`, by the names that Nix has for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Nix's default.
    Xz,
    /// Zstandard.
    Zstd,
    /// Not at all.
    None,
    /// bzip2.
    Bzip2,
    /// gzip.
    Gzip,
    /// Brotli.
    Br,
    /// lz4.
    Lz4,
    /// lzma.
    Lzma,
    /// lzip.
    Lzip,
}

impl Compression {
    /// Each of them.
    pub const ALL: [Compression; 9] = [
        Compression::Xz,
        Compression::Zstd,
        Compression::None,
        Compression::Bzip2,
        Compression::Gzip,
        Compression::Br,
        Compression::Lz4,
        Compression::Lzma,
        Compression::Lzip,
    ];

    /// As in a narinfo and in a store's URL.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// The folder and its key.
pub struct BinaryCache {
    home: Folder,
    key: SecretKey,
}

impl BinaryCache {
    /// An empty cache with a fresh key; `name` is the key's.
    #[track_caller]
    pub fn empty(name: &str) -> BinaryCache {
        let home = Folder::new();
        home.subfolder("cache");
        let key = SecretKey::generate(name.parse().expect("the name of a key"));
        write(&home.path().join("key"), &key.to_secret_string());
        BinaryCache { home, key }
    }

    /// A cache of these paths of `store` and of all that they refer to.
    #[track_caller]
    pub fn new(store: &NixStore, compression: Compression, paths: &[&Path]) -> BinaryCache {
        let cache = BinaryCache::empty("upstream-1");
        cache.add(store, compression, paths);
        cache
    }

    /// A cache of these paths, each in its turn in another compression. What a path refers to must come
    /// before it.
    #[track_caller]
    pub fn in_every_compression(store: &NixStore, paths: &[&Path]) -> BinaryCache {
        let cache = BinaryCache::empty("upstream-1");
        for (path, compression) in paths.iter().zip(Compression::ALL.into_iter().cycle()) {
            cache.add(store, compression, &[path]);
        }
        cache
    }

    /// Another cache with the same files and the same key.
    #[track_caller]
    pub fn twin(&self) -> BinaryCache {
        let home = Folder::new();
        let mut command = Command::new("cp");
        command.arg("-R").arg(self.folder()).arg(self.home.path().join("key")).arg(home.path());
        run(command).must_succeed();
        let key = self.key.to_secret_string().parse().expect("a key as it was written");
        BinaryCache { home, key }
    }

    /// Copies these paths of `store`, and all that they refer to, into the cache.
    #[track_caller]
    pub fn add(&self, store: &NixStore, compression: Compression, paths: &[&Path]) {
        self.copy(store, compression, &paths.iter().map(|path| text(path)).collect::<Vec<_>>());
    }

    /// The same with whatever else `nix copy` takes, such as `--expr`.
    #[track_caller]
    pub fn copy(&self, store: &NixStore, compression: Compression, what: &[&str]) {
        let url = format!(
            "{}?compression={}&secret-key={}",
            self.file_url(),
            compression.name(),
            text(&self.key_file())
        );
        store.nix(&[&["copy", "--to", &url], what].concat());
    }

    /// The file with its secret key.
    pub fn key_file(&self) -> PathBuf {
        self.home.path().join("key")
    }

    /// Where it is.
    pub fn folder(&self) -> PathBuf {
        self.home.path().join("cache")
    }

    /// Its address without a server.
    pub fn file_url(&self) -> String {
        format!("file://{}", text(&self.folder()))
    }

    /// Its public key, `name:base64`.
    pub fn public_key(&self) -> String {
        self.key.public_key().to_string()
    }

    /// Its narinfo of a path, which it must have.
    #[track_caller]
    pub fn narinfo(&self, path: &Path) -> String {
        let file = self.narinfo_file(path);
        std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    }

    /// The file that says something of a path.
    pub fn narinfo_file(&self, path: &Path) -> PathBuf {
        self.folder().join(format!("{}.narinfo", &base_name(path)[..32]))
    }

    /// The file with the NAR of a path, which it must have.
    #[track_caller]
    pub fn nar_file(&self, path: &Path) -> PathBuf {
        self.folder().join(field(&self.narinfo(path), "URL"))
    }

    /// The bytes of that file.
    #[track_caller]
    pub fn nar_bytes(&self, path: &Path) -> Vec<u8> {
        let file = self.nar_file(path);
        std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    }

    /// Puts other bytes in place of the NAR of a path, and leaves its narinfo as it is.
    #[track_caller]
    pub fn replace_nar(&self, path: &Path, bytes: &[u8]) {
        replace(&self.nar_file(path), bytes);
    }

    /// Changes what it says of a path and leaves the signatures as they are.
    #[track_caller]
    pub fn edit(&self, path: &Path, change: impl FnOnce(String) -> String) {
        replace(&self.narinfo_file(path), change(self.narinfo(path)).as_bytes());
    }

    /// Gives a field of a narinfo another value, and leaves the signatures as they are.
    #[track_caller]
    pub fn set(&self, path: &Path, name: &str, value: &str) {
        self.edit(path, |narinfo| {
            let before = format!("{name}: {}\n", field(&narinfo, name));
            narinfo.replacen(&before, &format!("{name}: {value}\n"), 1)
        });
    }

    /// Takes every line of this name out of a narinfo.
    #[track_caller]
    pub fn remove(&self, path: &Path, name: &str) {
        let start = format!("{name}: ");
        self.edit(path, |narinfo| {
            narinfo.split_inclusive('\n').filter(|line| !line.starts_with(&start)).collect()
        });
    }

    /// Signs what a narinfo says now with the key of this cache, in place of the signatures it has.
    #[track_caller]
    pub fn sign(&self, path: &Path) {
        self.sign_as(path, &self.key);
    }

    /// The same with another key.
    #[track_caller]
    pub fn sign_as(&self, path: &Path, key: &SecretKey) {
        self.remove(path, "Sig");
        self.edit(path, |narinfo| format!("{narinfo}Sig: {}\n", key.sign(&fingerprint(&narinfo))));
    }

    /// Forgets a path.
    #[track_caller]
    pub fn forget(&self, path: &Path) {
        let file = self.narinfo_file(path);
        std::fs::remove_file(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}

/// The text that a signature signs, put together from whatever the lines say: a lie must be signed as it
/// stands.
fn fingerprint(narinfo: &str) -> String {
    let path = field(narinfo, "StorePath");
    let store_dir = path.rsplit_once('/').map_or("", |(store_dir, _)| store_dir);
    let references = fields(narinfo, "References").first().copied().unwrap_or_default();
    let references = references.split_whitespace().map(|reference| format!("{store_dir}/{reference}"));
    let (hash, size) = (field(narinfo, "NarHash"), field(narinfo, "NarSize"));
    format!("1;{path};{hash};{size};{}", references.collect::<Vec<_>>().join(","))
}

/// In one step, as `nix copy` does: a server may be reading it.
#[track_caller]
fn replace(file: &Path, bytes: &[u8]) {
    let draft = file.with_extension("draft");
    std::fs::write(&draft, bytes).and_then(|()| std::fs::rename(&draft, file)).unwrap_or_else(|error| {
        panic!("cannot write {}: {error}", file.display());
    });
}
