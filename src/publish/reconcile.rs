//! Comparison of the bucket with the index: finds what an earlier run, or the time before it, left to be
//! published or withdrawn. Narinfos that others have put into the bucket, as by `nix copy`, stay.

use std::collections::HashMap;
use std::sync::Arc;

use narinfo::{NarInfo, StorePathHash};

use super::order::Order;
use super::{Due, Error, Inner, file_name};

/// File that makes a bucket a binary cache.
const CACHE_INFO: &str = "nix-cache-info";

impl Inner {
    /// Makes the order anew from the bucket and the index.
    pub(super) async fn reconcile(self: &Arc<Self>) -> Result<(), Error> {
        // What changes from now on is looked at afterwards, whatever is found here.
        let _ = self.index.take_changed();
        let info = self.info.render();
        if self.read(CACHE_INFO.to_owned()).await?.as_deref() != Some(info.as_bytes()) {
            let files = Arc::clone(&self.files);
            self.nars.run(move |_| files.put_file(CACHE_INFO, info)).await.map_err(Error::Bucket)?;
        }
        let mut listed = self.list().await?;
        let mut order = Order::of(listed.keys().copied().collect());
        let mut after = None;
        loop {
            let rows = self.index.paths_after(after).await?;
            let Some(last) = rows.last() else { break };
            after = Some(last.info.path.hash());
            for hash in rows.iter().map(|row| row.info.path.hash()) {
                let tag = listed.remove(&hash);
                match self.due(&order, hash).await? {
                    Due::Put(_, text) if self.is_published(hash, tag, &text).await? => {}
                    Due::Withdraw if !self.is_ours(hash).await? => order.forget(hash),
                    Due::None => {}
                    Due::Put(..) | Due::Withdraw | Due::Wait(_) => order.push(hash),
                }
            }
        }
        for hash in listed.into_keys() {
            if self.is_ours(hash).await? { order.push(hash) } else { order.forget(hash) }
        }
        let waiting = order.waiting();
        if waiting > 0 {
            tracing::info!(paths = waiting, "publishing or withdrawing narinfos in the bucket");
        }
        self.metrics.waiting(waiting);
        *self.order.lock().await = order;
        Ok(())
    }

    /// The narinfos in the bucket, with the tag of each.
    async fn list(&self) -> Result<HashMap<StorePathHash, String>, Error> {
        let (mut listed, mut page) = (HashMap::new(), None);
        loop {
            let files = Arc::clone(&self.files);
            let (found, next) =
                self.nars.run(move |_| files.list_files(page)).await.map_err(Error::Bucket)?;
            listed.extend(
                found
                    .into_iter()
                    .filter_map(|file| Some((file.name.strip_suffix(".narinfo")?.parse().ok()?, file.tag))),
            );
            page = next;
            if page.is_none() {
                return Ok(listed);
            }
        }
    }

    /// True where the narinfo with this tag is this one.
    async fn is_published(
        &self,
        hash: StorePathHash,
        tag: Option<String>,
        text: &str,
    ) -> Result<bool, Error> {
        let Some(tag) = tag else { return Ok(false) };
        Ok(tag == self.files.usual_tag(text)
            || self.read(file_name(hash)).await?.is_some_and(|found| found == text.as_bytes()))
    }

    /// True for a narinfo that was published by a server: its file is named by the hash of the plain NAR.
    async fn is_ours(&self, hash: StorePathHash) -> Result<bool, Error> {
        let found = self.read(file_name(hash)).await?;
        let parsed = found.and_then(|bytes| NarInfo::parse(&self.info.store_dir, &bytes).ok());
        Ok(parsed.is_some_and(|info| {
            info.url == format!("nar/{}.nar.zst", info.path_info.nar_hash.to_nixbase32())
        }))
    }

    async fn read(&self, name: String) -> Result<Option<Vec<u8>>, Error> {
        let files = Arc::clone(&self.files);
        self.nars.run(move |_| files.read_file(&name)).await.map_err(Error::Bucket)
    }
}
