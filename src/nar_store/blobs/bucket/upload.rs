//! Uploads: a file of this machine until it is complete, then one conditional put, or parts of which the last
//! step is conditional. What was begun in parts is written down first, so that the next start aborts it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use narinfo::NarHash;
use object_store::Error;
use object_store::multipart::PartId;
use object_store::path::Path as Key;
use tempfile::{NamedTempFile, TempPath};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::super::local::spool_in;
use super::super::{Commit, PlacedBlob, Upload};
use super::service::{PartsUpload, ServiceClient};
use super::{Bucket, Inner, failed, version_of};
use crate::causes::with_causes;
use crate::tail_file::read_at;

/// Bytes of an object that is put at once, at most, and of a part of a larger one, at least.
const PART_BYTES: u64 = 8 * 1024 * 1024;
/// Parts of an upload, at most.
const PARTS_MAX: u64 = 10_000;
/// Puts at a time; each holds its bytes in memory.
static PUTS: Semaphore = Semaphore::const_new(8);
/// Pause before a put that another one was in the way of.
const CONFLICT_PAUSE: Duration = Duration::from_millis(200);
/// Conflicts after which a put is given up.
const CONFLICTS_MAX: usize = 25;

/// An upload; dropping its path removes the file.
#[derive(Debug)]
pub(super) struct ObjectUpload {
    file: Arc<File>,
    path: TempPath,
    bucket: Bucket,
}

impl ObjectUpload {
    pub(super) fn begin(bucket: Bucket) -> io::Result<Self> {
        let (file, path) = spool_in(&bucket.0.spool)?;
        Ok(Self { file, path, bucket })
    }
}

impl Upload for ObjectUpload {
    fn file(&self) -> &Arc<File> {
        &self.file
    }

    fn spool(&self) -> Option<&Path> {
        Some(&self.path)
    }

    /// Durable when this returns.
    fn place(self: Box<Self>, key: NarHash) -> io::Result<PlacedBlob> {
        let Self { file, path: _path, bucket } = *self;
        let (place, bytes) = (bucket.place_of(key), file.metadata()?.len());
        // Told before anything is sent, where another server has stored the NAR meanwhile.
        if bytes > PART_BYTES && bucket.head(&place)?.is_some() {
            return Ok(PlacedBlob::durable(Commit::Lost));
        }
        bucket.0.runtime.block_on(put(&bucket, file, place, bytes))
    }
}

/// Puts an object unless there is one; repeats what another put was in the way of, until one has won.
async fn put(bucket: &Bucket, file: Arc<File>, place: Key, bytes: u64) -> io::Result<PlacedBlob> {
    let store = &bucket.0.store;
    for _ in 0..CONFLICTS_MAX {
        let done = match bytes <= PART_BYTES {
            true => put_whole(store, &file, &place, bytes).await.map(|()| PlacedBlob::durable(Commit::Won)),
            false => put_parts(bucket, &file, &place, bytes).await,
        };
        match done {
            Ok(placed) => return Ok(placed),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
            Err(error) => return Err(failed(&bucket.0.url, error)),
        }
        match store.head(&place).await {
            Ok(Some(_)) => return Ok(PlacedBlob::durable(Commit::Lost)),
            Ok(None) => tokio::time::sleep(CONFLICT_PAUSE).await,
            Err(error) => return Err(failed(&bucket.0.url, error)),
        }
    }
    Err(super::away(format!("{}: other uploads of {place} are in the way", bucket.0.url)))
}

async fn put_whole(
    store: &ServiceClient,
    file: &Arc<File>,
    place: &Key,
    bytes: u64,
) -> object_store::Result<()> {
    let _permit = PUTS.acquire().await;
    store.put_new(place, part_of(file, 0..bytes).await?).await
}

async fn put_parts(
    bucket: &Bucket,
    file: &Arc<File>,
    place: &Key,
    bytes: u64,
) -> object_store::Result<PlacedBlob> {
    let (upload, entry) = begin_parts(bucket, place).await?;
    let store = &bucket.0.store;
    let completed = match send_parts(bucket, file, &upload, bytes).await {
        Ok(parts) => store.complete(&upload, parts, place).await,
        Err(error) => Err(error),
    };
    // Nothing is left where the parts themselves became the object.
    let is_left = completed.is_err() || upload.at != *place;
    if is_left && let Err(error) = store.abandon(&upload).await {
        tracing::warn!(
            error = with_causes(&error),
            "cannot abort an upload to {}; the next start tries again",
            bucket.0.url
        );
        // The entry stays for it.
        let _ = entry.keep();
    }
    let won = PlacedBlob::durable(Commit::Won);
    completed.map(|e_tag| e_tag.map_or(won, |e_tag| PlacedBlob::contested(version_of(&e_tag))))
}

/// Begins an upload in parts, and notes it.
async fn begin_parts(bucket: &Bucket, place: &Key) -> object_store::Result<(PartsUpload, NamedTempFile)> {
    let Inner { store, url, journal, .. } = &*bucket.0;
    let upload = store.begin_parts(store.parts_place(url, place)?).await?;
    let entry = journal.note(&upload).map_err(generic)?;
    Ok((upload, entry))
}

/// Begins an upload in parts, and leaves its entry and nothing else.
#[cfg(test)]
pub(super) async fn begin_parts_and_forget(bucket: &Bucket, place: &Key) -> object_store::Result<()> {
    let (_, entry) = begin_parts(bucket, place).await?;
    entry.keep().map(drop).map_err(generic)
}

/// Sends all parts, several at a time.
async fn send_parts(
    bucket: &Bucket,
    file: &Arc<File>,
    upload: &PartsUpload,
    bytes: u64,
) -> object_store::Result<Vec<PartId>> {
    let part_bytes = PART_BYTES.max(bytes.div_ceil(PARTS_MAX));
    let (mut sending, mut parts) = (JoinSet::new(), Vec::new());
    for number in 0..bytes.div_ceil(part_bytes) {
        // Taken before there is a task: no more of them wait than may send.
        let permit = PUTS.acquire().await;
        let (bucket, file, upload) = (bucket.clone(), Arc::clone(file), upload.clone());
        sending.spawn(async move {
            let _permit = permit;
            let start = number * part_bytes;
            let part = part_of(&file, start..bytes.min(start + part_bytes)).await?;
            // There are few parts.
            let sent = bucket.0.store.put_part(&upload, number as usize, part).await?;
            Ok::<_, Error>((number, sent))
        });
        while let Some(sent) = sending.try_join_next() {
            parts.push(sent.map_err(generic)??);
        }
    }
    while let Some(sent) = sending.join_next().await {
        parts.push(sent.map_err(generic)??);
    }
    parts.sort_unstable_by_key(|(number, _)| *number);
    Ok(parts.into_iter().map(|(_, part)| part).collect())
}

/// The bytes of a part of the file.
async fn part_of(file: &Arc<File>, part: Range<u64>) -> object_store::Result<Bytes> {
    let file = Arc::clone(file);
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        read_at(&file, part, &mut bytes).map(|()| Bytes::from(bytes))
    });
    read.await.map_err(generic)?.map_err(generic)
}

fn generic(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic { store: "upload", source: source.into() }
}

/// The uploads that were begun in parts, a file for each: its key and its number.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
}

impl Journal {
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Notes an upload, for as long as the file is there.
    fn note(&self, upload: &PartsUpload) -> io::Result<NamedTempFile> {
        let mut entry = NamedTempFile::new_in(&self.dir)?;
        writeln!(entry, "{}\n{}", upload.at, upload.id)?;
        Ok(entry)
    }

    /// Aborts all uploads that an interrupted run left.
    pub(super) async fn abort_all(entries: Vec<PathBuf>, store: &ServiceClient) {
        for entry in entries {
            let text = fs::read_to_string(&entry).unwrap_or_default();
            let aborted = match text.split_once('\n') {
                Some((at, id)) => {
                    store.abandon(&PartsUpload { at: Key::from(at), id: id.trim().to_owned() }).await
                }
                None => Ok(()),
            };
            match aborted {
                Ok(()) => drop(fs::remove_file(&entry)),
                Err(error) => tracing::warn!(
                    error = with_causes(&error),
                    "cannot abort an upload of an earlier run; the next start tries again"
                ),
            }
        }
    }

    /// The entries that there are.
    pub(super) fn entries(&self) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.path())).collect()
    }
}
