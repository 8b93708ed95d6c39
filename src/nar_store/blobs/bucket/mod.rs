//! Blobs in a bucket of an S3-compatible object store: `PREFIX/nar/<hash>.nar.zst`, the place of a NAR in a
//! standard binary cache. An upload is a local file until it is complete and verified; its object appears
//! whole, by a conditional put, and never changes. Must never block an async thread.

mod cache_files;
mod client;
mod credentials;
mod moving;
mod upload;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use narinfo::NarHash;
use object_store::aws::AmazonS3;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path as Key;
use object_store::signer::{Method, Signer};
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStoreExt, PutPayload};
use tokio::runtime::Handle;

use super::local::UPLOADS;
use super::object::{BlobObject, ObjectRead, ReadObject};
use super::{Blob, Blobs, BucketUrl, CacheFiles, LIST_PAGE_MAX, LocalBlobs, Upload, away};
use crate::causes::with_causes;
use crate::room::Room;
use upload::{Journal, ObjectUpload};

/// End of a key, after the hash.
const KEY_ENDING: &str = ".nar.zst";
/// Folder of the NARs, and of damaged ones, which are not served.
const NARS: &str = "nar";
const QUARANTINE: &str = "quarantine";
/// Number of damaged objects that stay; the oldest go first.
const QUARANTINED_MAX: usize = 16;
/// Object that is written to see if something can be.
const PROBE: &str = "ondine-probe";
/// Time within which a bucket is looked at before a start.
const CHECK_TIMEOUT: Duration = Duration::from_secs(15);

/// The bucket; clones share it.
#[derive(Clone, Debug)]
pub struct Bucket(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: AmazonS3,
    url: BucketUrl,
    /// The directory that NARs were in before, and its folder of the files that uploads are written to.
    directory: LocalBlobs,
    spool: PathBuf,
    journal: Journal,
    /// Runtime of all connections.
    runtime: Handle,
}

impl Bucket {
    /// Opens the bucket, with local files of uploads in the directory `dir`, and aborts the uploads that an
    /// interrupted run left, in the background. Sends nothing else. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The directory cannot be used, or the credentials cannot be read.
    pub fn open(url: BucketUrl, credentials: Option<&Path>, dir: &Path) -> io::Result<Self> {
        let store = client::store(&url, credentials)?;
        let (directory, spool) = (LocalBlobs::open(dir)?, dir.join(UPLOADS));
        let (journal, runtime) = (Journal::open(&dir.join("uploads"))?, Handle::current());
        let bucket = Self(Arc::new(Inner { store, url, directory, spool, journal, runtime }));
        bucket.move_directory()?;
        let (sweeping, left) = (bucket.clone(), bucket.0.journal.entries()?);
        bucket.0.runtime.spawn(async move { Journal::abort_all(left, &sweeping.0.store).await });
        Ok(bucket)
    }

    /// Looks whether the bucket answers with these settings; changes nothing.
    ///
    /// # Errors
    /// With the reason why it cannot be used.
    pub async fn check(url: &BucketUrl, credentials: Option<&Path>) -> io::Result<()> {
        let store = client::store(url, credentials)?;
        let prefix = folder(url, NARS);
        let options = PaginatedListOptions { max_keys: Some(1), ..Default::default() };
        let probe = Key::from(format!("{}{PROBE}", folder(url, "")));
        let asked = tokio::time::timeout(CHECK_TIMEOUT, async {
            match store.head(&probe).await {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                // A list does not tell wrong credentials from what may pass.
                Err(error) => return Err(error),
            }
            store.list_paginated(Some(&prefix), options).await.map(drop)
        });
        match asked.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed(url, error)),
            Err(_) => Err(away(format!("{url} does not answer within {CHECK_TIMEOUT:?}"))),
        }
    }

    /// Begins an upload in parts as a run that is interrupted leaves it.
    #[cfg(test)]
    pub(super) fn begin_parts_and_forget(&self, key: NarHash) -> io::Result<()> {
        self.wait(upload::begin_parts_and_forget(self, &self.place_of(key)))
    }

    fn place_of(&self, key: NarHash) -> Key {
        Key::from(format!("{}{}{KEY_ENDING}", folder(&self.0.url, NARS), key.to_nixbase32()))
    }

    fn quarantine_of(&self, key: NarHash) -> Key {
        Key::from(format!("{}{}{KEY_ENDING}", folder(&self.0.url, QUARANTINE), key.to_nixbase32()))
    }

    /// Runs a request to its end. Blocking.
    fn wait<T>(&self, request: impl Future<Output = object_store::Result<T>>) -> io::Result<T> {
        self.0.runtime.block_on(request).map_err(|error| failed(&self.0.url, error))
    }

    /// Size and version of an object, if it is there. Blocking.
    fn head(&self, place: &Key) -> io::Result<Option<ObjectMeta>> {
        match self.0.runtime.block_on(self.0.store.head(place)) {
            Ok(meta) => Ok(Some(meta)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(&self.0.url, error)),
        }
    }

    /// One page of the objects of a folder whose keys follow `after`, in order. Blocking.
    fn page(&self, folder: &str, after: Option<String>, page_token: Option<String>) -> io::Result<Page> {
        let options = PaginatedListOptions {
            offset: after,
            max_keys: Some(LIST_PAGE_MAX),
            page_token,
            ..Default::default()
        };
        let page = self.wait(self.0.store.list_paginated(Some(folder), options))?;
        Ok(Page { objects: page.result.objects, next: page.page_token })
    }
}

/// A page of a list.
struct Page {
    objects: Vec<ObjectMeta>,
    /// Token of the next page, if there is one.
    next: Option<String>,
}

impl Blobs for Bucket {
    fn open(&self, key: NarHash) -> io::Result<Option<Blob>> {
        if let Some(file) = self.0.directory.open(key)? {
            return Ok(Some(file));
        }
        let place = self.place_of(key);
        let Some(meta) = self.head(&place)? else { return Ok(None) };
        let version = meta.e_tag.as_deref().map(version_of);
        let version = version.unwrap_or_else(|| meta.last_modified.to_rfc3339().into());
        let object = Object { bucket: self.clone(), place, e_tag: meta.e_tag };
        Ok(Some(Blob::Object(BlobObject {
            object: Arc::new(object),
            bytes: meta.size,
            version,
            runtime: self.0.runtime.clone(),
        })))
    }

    fn begin(&self) -> io::Result<Box<dyn Upload>> {
        Ok(Box::new(ObjectUpload::begin(self.clone())?))
    }

    fn delete(&self, key: NarHash) -> io::Result<bool> {
        let place = self.place_of(key);
        let is_in_directory = self.0.directory.delete(key)?;
        // A deletion does not say whether there was something.
        if self.head(&place)?.is_none() {
            return Ok(is_in_directory);
        }
        self.wait(self.0.store.delete(&place)).map(|()| true)
    }

    fn list(&self, after: Option<NarHash>) -> io::Result<Vec<NarHash>> {
        let folder = folder(&self.0.url, NARS);
        let mut offset = after.map(|key| self.place_of(key).to_string());
        let (mut keys, mut token) = (Vec::new(), None);
        loop {
            let Page { objects, next } = self.page(&folder, offset.take(), token)?;
            keys.extend(objects.iter().filter_map(|object| key_of(&folder, object)));
            token = next;
            if keys.len() >= LIST_PAGE_MAX || token.is_none() {
                keys.truncate(LIST_PAGE_MAX);
                return Ok(keys);
            }
        }
    }

    fn address(&self, key: NarHash, lifetime: Duration) -> io::Result<Option<String>> {
        let place = self.place_of(key);
        self.wait(self.0.store.signed_url(Method::GET, &place, lifetime)).map(|url| Some(url.into()))
    }

    fn cache_files(&self) -> Option<Arc<dyn CacheFiles>> {
        Some(Arc::new(self.clone()))
    }

    fn sizes(&self) -> io::Result<Option<HashMap<NarHash, u64>>> {
        let folder = folder(&self.0.url, NARS);
        let (mut sizes, mut token) = (HashMap::new(), None);
        loop {
            let Page { objects, next } = self.page(&folder, None, token)?;
            sizes.extend(objects.iter().filter_map(|object| Some((key_of(&folder, object)?, object.size))));
            token = next;
            if token.is_none() {
                break;
            }
        }
        let mut after = None;
        while let Some(page) = Some(self.0.directory.list(after)?).filter(|page| !page.is_empty()) {
            after = page.last().copied();
            for key in page {
                sizes.extend(self.0.directory.open(key)?.map(|file| (key, file.bytes())));
            }
        }
        Ok(Some(sizes))
    }

    fn room(&self) -> io::Result<Room> {
        Room::of(&self.0.spool)
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn check_writable(&self) -> io::Result<()> {
        let probe = Key::from(format!("{}{PROBE}", folder(&self.0.url, "")));
        self.wait(
            self.0.store.put(&probe, PutPayload::from_static(b"written to see if something can be\n")),
        )?;
        Room::of(&self.0.spool)?.check()
    }

    fn quarantine(&self, key: NarHash) -> io::Result<()> {
        if let Err(error) = self.wait(self.0.store.copy(&self.place_of(key), &self.quarantine_of(key))) {
            let error = with_causes(&error);
            tracing::debug!(nar = %key, error, "cannot move a damaged object to the quarantine: deleting it");
        }
        self.delete(key)?;
        self.empty_quarantine(QUARANTINED_MAX);
        Ok(())
    }

    fn empty_quarantine(&self, left: usize) {
        let emptied = self.page(&folder(&self.0.url, QUARANTINE), None, None).and_then(|mut page| {
            page.objects.sort_unstable_by_key(|object| std::cmp::Reverse(object.last_modified));
            let mut old = page.objects.into_iter().skip(left);
            old.try_for_each(|object| self.wait(self.0.store.delete(&object.location)))
        });
        if let Err(error) = emptied {
            tracing::warn!(%error, "cannot empty the quarantine of {}: it is tried again", self.0.url);
        }
    }
}

/// One version of an object.
#[derive(Clone, Debug)]
struct Object {
    bucket: Bucket,
    place: Key,
    e_tag: Option<String>,
}

impl ReadObject for Object {
    fn read(&self, part: Range<u64>) -> ObjectRead {
        let Self { bucket, place, e_tag } = self.clone();
        Box::pin(async move {
            let Inner { store, url, .. } = &*bucket.0;
            let options = GetOptions {
                if_match: e_tag,
                range: Some(GetRange::Bounded(part.clone())),
                ..Default::default()
            };
            let got = object_store::ObjectStore::get_opts(store, &place, options).await;
            let bytes = match got {
                Ok(got) => got.bytes().await,
                Err(error) => Err(error),
            };
            let bytes = bytes.map_err(|error| failed(url, error))?;
            if bytes.len() as u64 != part.end - part.start {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(bytes)
        })
    }
}

/// Version of an object with this ETag, which stands in quotes in some answers.
fn version_of(e_tag: &str) -> Arc<str> {
    e_tag.trim_matches('"').into()
}

/// The NAR of an object in this folder.
fn key_of(folder: &str, object: &ObjectMeta) -> Option<NarHash> {
    let name = object.location.as_ref().strip_prefix(folder)?;
    NarHash::from_nixbase32(name.strip_suffix(KEY_ENDING)?).ok()
}

/// Beginning of all keys of a folder, with its slash.
fn folder(url: &BucketUrl, name: &str) -> String {
    let parts = [&*url.prefix, name];
    parts.into_iter().filter(|part| !part.is_empty()).fold(String::new(), |all, part| all + part + "/")
}

/// A failure of the bucket, as the error of a system: what may pass is [`super::is_away`].
fn failed(url: &BucketUrl, error: object_store::Error) -> io::Error {
    use object_store::Error;
    let reason = format!("{url}: {}", with_causes(&error));
    match error {
        Error::NotFound { .. } | Error::Precondition { .. } => {
            io::Error::new(io::ErrorKind::NotFound, reason)
        }
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            io::Error::new(io::ErrorKind::PermissionDenied, reason)
        }
        _ => away(reason),
    }
}
