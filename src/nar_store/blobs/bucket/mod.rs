//! Blobs in a bucket of an object store: `PREFIX/nar/<hash>.nar.zst`, the place of a NAR in a standard binary
//! cache. An upload is a local file until it is complete and verified; its object appears whole, by a
//! conditional put, and never changes. Must never block an async thread.

mod cache_files;
mod client;
mod credentials;
mod moving;
mod service;
mod transport;
mod upload;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use narinfo::NarHash;
use object_store::list::PaginatedListOptions;
use object_store::path::Path as Key;
use object_store::{Attributes, ObjectMeta};
use tokio::runtime::Handle;

use super::local::UPLOADS;
use super::object::{BlobObject, ObjectRead, ReadObject};
use super::{Blob, Blobs, BucketUrl, CacheFiles, LIST_PAGE_MAX, LocalBlobs, Upload, away};
use crate::causes::with_causes;
use crate::room::Room;
use service::{ListedObject, Page, ServiceClient, Signing};
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
/// Time that a service may take to sign an address, and the pause after a failure.
const SIGN_TIMEOUT: Duration = Duration::from_secs(5);
const SIGN_PAUSE: Duration = Duration::from_secs(60);

/// The bucket; clones share it.
#[derive(Clone, Debug)]
pub struct Bucket(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: ServiceClient,
    url: BucketUrl,
    /// The directory that NARs were in before, and its folder of the files that uploads are written to.
    directory: LocalBlobs,
    spool: PathBuf,
    journal: Journal,
    /// Time until which the service is not asked to sign addresses, since it has refused.
    unsigned_until: Mutex<Option<Instant>>,
    /// Runtime of all connections.
    runtime: Handle,
}

impl Bucket {
    /// Opens the bucket, with local files of uploads in the directory `dir`, and aborts the uploads that an
    /// interrupted run left, in the background. Sends nothing else. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The directory cannot be used, the credentials cannot be read, or they cannot sign addresses and
    /// `signs`.
    pub fn open(url: BucketUrl, credentials: Option<&Path>, signs: bool, dir: &Path) -> io::Result<Self> {
        let store = client(&url, credentials, signs)?;
        let (directory, spool) = (LocalBlobs::open(dir)?, dir.join(UPLOADS));
        let (journal, runtime) = (Journal::open(&dir.join("uploads"))?, Handle::current());
        let unsigned_until = Mutex::default();
        let bucket = Self(Arc::new(Inner { store, url, directory, spool, journal, unsigned_until, runtime }));
        bucket.move_directory()?;
        let (sweeping, left) = (bucket.clone(), bucket.0.journal.entries()?);
        bucket.0.runtime.spawn(async move { Journal::abort_all(left, &sweeping.0.store).await });
        Ok(bucket)
    }

    /// Looks whether the bucket answers with these settings, and whether addresses in it can be signed if it
    /// `signs`; changes nothing.
    ///
    /// # Errors
    /// With the reason why it cannot be used.
    pub async fn check(url: &BucketUrl, credentials: Option<&Path>, signs: bool) -> io::Result<()> {
        let store = client(url, credentials, signs)?;
        let prefix = folder(url, NARS);
        let options = PaginatedListOptions { max_keys: Some(1), ..Default::default() };
        let probe = Key::from(format!("{}{PROBE}", folder(url, "")));
        let asked = tokio::time::timeout(CHECK_TIMEOUT, async {
            // A list does not tell wrong credentials from what may pass.
            store.head(&probe).await.map_err(|error| refused(url, error))?;
            store.list(&prefix, options).await.map(drop).map_err(|error| match has_no_bucket(&error) {
                true => io::Error::new(io::ErrorKind::NotFound, format!("{url}: there is no such bucket")),
                false => refused(url, error),
            })?;
            match signs {
                true => store
                    .signed(&probe, CHECK_TIMEOUT)
                    .await
                    .map(drop)
                    .map_err(|error| unsigned(url, &with_causes(&error))),
                false => Ok(()),
            }
        });
        let from_machine = match credentials {
            Some(_) => "",
            None => " (without nar-store-credentials, they may be asked of the machine)",
        };
        asked.await.unwrap_or_else(|_| {
            Err(away(format!("{url} does not answer within {CHECK_TIMEOUT:?}{from_machine}")))
        })
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
        self.wait(self.0.store.head(place))
    }

    /// One page of the objects of a folder whose keys follow `after`, in order. Blocking.
    fn page(&self, folder: &str, after: Option<String>, page_token: Option<String>) -> io::Result<Page> {
        let options = PaginatedListOptions {
            offset: after,
            max_keys: Some(LIST_PAGE_MAX),
            page_token,
            ..Default::default()
        };
        self.wait(self.0.store.list(folder, options))
    }
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
        let after = after.map(|key| self.place_of(key).to_string());
        let (mut offset, mut keys, mut token) = (after.clone(), Vec::new(), None);
        loop {
            let Page { objects, next } = self.page(&folder, offset.take(), token)?;
            // Where an offset is not heeded, the list begins with what was had before.
            let is_new = |object: &&ListedObject| {
                after.as_deref().is_none_or(|after| object.meta.location.as_ref() > after)
            };
            keys.extend(objects.iter().filter(is_new).filter_map(|object| key_of(&folder, &object.meta)));
            token = next;
            if keys.len() >= LIST_PAGE_MAX || token.is_none() {
                keys.truncate(LIST_PAGE_MAX);
                return Ok(keys);
            }
        }
    }

    fn address(&self, key: NarHash, lifetime: Duration) -> io::Result<Option<String>> {
        let place = self.place_of(key);
        let signed = self.0.store.signed(&place, lifetime);
        if self.0.store.signing() != Signing::Service {
            return self.wait(signed).map(Some);
        }
        // Its bytes are sent from here where the service does not sign.
        let refused_until = || self.0.unsigned_until.lock().unwrap_or_else(PoisonError::into_inner);
        if refused_until().is_some_and(|until| Instant::now() < until) {
            return Ok(None);
        }
        let signed = self.0.runtime.block_on(async { tokio::time::timeout(SIGN_TIMEOUT, signed).await });
        let error = match signed {
            Ok(Ok(address)) => return Ok(Some(address)),
            Ok(Err(error)) => with_causes(&error),
            Err(_) => format!("no answer within {SIGN_TIMEOUT:?}"),
        };
        *refused_until() = Some(Instant::now() + SIGN_PAUSE);
        tracing::warn!(
            error,
            "cannot have addresses in {} signed: clients are not redirected for {SIGN_PAUSE:?}; give the server a key (nar-store-credentials)",
            self.0.url
        );
        Ok(None)
    }

    fn cache_files(&self) -> Option<Arc<dyn CacheFiles>> {
        Some(Arc::new(self.clone()))
    }

    fn sizes(&self) -> io::Result<Option<HashMap<NarHash, u64>>> {
        let folder = folder(&self.0.url, NARS);
        let (mut sizes, mut token) = (HashMap::new(), None);
        loop {
            let Page { objects, next } = self.page(&folder, None, token)?;
            let size = |meta: &ObjectMeta| Some((key_of(&folder, meta)?, meta.size));
            sizes.extend(objects.iter().filter_map(|object| size(&object.meta)));
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
        let text = "written to see if something can be\n";
        self.wait(self.0.store.put(&probe, text, Attributes::new()))?;
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
            page.objects.sort_unstable_by_key(|object| std::cmp::Reverse(object.meta.last_modified));
            let mut old = page.objects.into_iter().skip(left);
            old.try_for_each(|object| self.wait(self.0.store.delete(&object.meta.location)))
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
            let bytes = store.read(&place, e_tag, part.clone()).await;
            let bytes = bytes.map_err(|error| failed(url, error))?;
            if bytes.len() as u64 != part.end - part.start {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(bytes)
        })
    }
}

/// A client of the bucket. Refuses credentials that cannot sign if it `signs` addresses.
fn client(url: &BucketUrl, credentials: Option<&Path>, signs: bool) -> io::Result<ServiceClient> {
    let client = client::client(url, credentials)?;
    match client.signing() {
        Signing::Impossible(reason) if signs => Err(unsigned(url, reason)),
        _ => Ok(client),
    }
}

/// Refusal of settings by which clients are redirected.
fn unsigned(url: &BucketUrl, reason: &str) -> io::Error {
    let text = format!("{url}: addresses cannot be signed for serve-nars = \"redirect\": {reason}");
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

/// True for the failure of a list in a bucket that is not there.
fn has_no_bucket(error: &object_store::Error) -> bool {
    ["NoSuchBucket", "ContainerNotFound"].iter().any(|code| service::says(error, code))
}

/// A failure of a request of a check, where no operator is to wait for credentials that are wrong.
fn refused(url: &BucketUrl, error: object_store::Error) -> io::Error {
    match ["401 Unauthorized", "403 Forbidden"].iter().any(|status| service::says(&error, status)) {
        true => {
            let reason = with_causes(&error);
            let text = format!(
                "{url} refuses the credentials (nar-store-credentials, else those of the environment): {reason}"
            );
            io::Error::new(io::ErrorKind::PermissionDenied, text)
        }
        false => failed(url, error),
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
