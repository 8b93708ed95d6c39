//! The small files of a standard binary cache beside the blobs, `nix-cache-info` and narinfos, for clients
//! that read the storage without this server.

use std::fmt::Debug;
use std::io;

use narinfo::NarHash;

/// Storage of these files, by their names. Every method blocks: call it on a thread that may wait.
pub trait CacheFiles: Debug + Send + Sync {
    /// Puts a file in the place of what is there.
    ///
    /// # Errors
    /// The storage fails.
    fn put_file(&self, name: &str, text: String) -> io::Result<()>;

    /// The bytes of a file; `None` where there is none.
    ///
    /// # Errors
    /// The storage fails.
    fn read_file(&self, name: &str) -> io::Result<Option<Vec<u8>>>;

    /// Deletes a file, if there is one.
    ///
    /// # Errors
    /// The storage fails.
    fn delete_file(&self, name: &str) -> io::Result<()>;

    /// A page of the files, and the token of the next one.
    ///
    /// # Errors
    /// The storage cannot be read.
    fn list_files(&self, page: Option<String>) -> io::Result<(Vec<CacheFile>, Option<String>)>;

    /// True where the storage has the blob of this key, in the place where clients look for it.
    ///
    /// # Errors
    /// The storage fails.
    fn has_nar(&self, key: NarHash) -> io::Result<bool>;

    /// The keys of these blobs behind `after`, a page at a time; none at the end.
    ///
    /// # Errors
    /// The storage cannot be read.
    fn list_nars(&self, after: Option<NarHash>) -> io::Result<Vec<NarHash>>;

    /// Tag that a file with these contents has in a list, as a rule. One with another tag may be the same all
    /// the same.
    fn usual_tag(&self, text: &str) -> String;
}

/// A file of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheFile {
    /// Its name.
    pub name: String,
    /// Tag of its contents, by which a file that was replaced is told from one that was not.
    pub tag: String,
}
