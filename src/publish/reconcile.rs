//! Comparison of the bucket with the index: finds what an earlier run, or the time before it, left to be
//! published or withdrawn, and narinfos whose NARs were deleted by hand. Narinfos that others have put into
//! the bucket, as by `nix copy`, stay.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use narinfo::{NarHash, NarInfo, StorePath, StorePathHash};

use super::order::Order;
use super::{Due, Error, Inner, file_name};
use crate::reference_order::after_references;

/// File that makes a bucket a binary cache.
const CACHE_INFO: &str = "nix-cache-info";

impl Inner {
    /// Makes the order anew from the bucket and the index.
    pub(super) async fn reconcile(self: &Arc<Self>) -> Result<(), Error> {
        // What changes from now on is looked at afterwards, whatever is found here. So is what is withdrawn,
        // of which the list may tell or not.
        let _ = self.index.take_changed();
        *self.order.lock().await = Order::default();
        let info = self.info.render();
        if self.read(CACHE_INFO.to_owned()).await?.as_deref() != Some(info.as_bytes()) {
            let files = Arc::clone(&self.files);
            self.nars.run(move |_| files.put_file(CACHE_INFO, info)).await.map_err(Error::Bucket)?;
        }
        let mut listed = self.list().await?;
        let nars = self.list_nars().await?;
        let mut order = Order::of(listed.keys().copied().collect());
        let (mut due, mut doubted, mut without_nar) = (Vec::new(), Vec::new(), 0_usize);
        let mut after = None;
        loop {
            let rows = self.index.paths_after(after).await?;
            let Some(last) = rows.last() else { break };
            after = Some(last.info.path.hash());
            for hash in rows.iter().map(|row| row.info.path.hash()) {
                let tag = listed.remove(&hash);
                match self.due(&order, hash).await? {
                    Due::Put(nar, text) => {
                        let is_listed = tag.is_some();
                        let is_there = self.is_published(hash, tag, &text).await?;
                        let has_nar = nars.contains(&nar);
                        without_nar += usize::from(is_listed && !has_nar);
                        match is_listed {
                            true if is_there && has_nar => {}
                            true => doubted.push(hash),
                            false => due.push(hash),
                        }
                    }
                    Due::Withdraw if self.published_by_server(hash).await?.is_none() => order.forget(hash),
                    Due::None => {}
                    Due::Withdraw | Due::Wait(_) => due.push(hash),
                }
            }
        }
        for hash in self.leftovers(listed, &mut order).await? {
            order.push_leftover(hash);
        }
        due.into_iter().for_each(|hash| order.push(hash));
        doubted.into_iter().for_each(|hash| order.doubt(hash));
        if without_nar > 0 {
            tracing::warn!(
                paths = without_nar,
                "narinfos in the bucket have no NAR there: withdrawing them; run `ondine fsck --repair` to have the NARs \
                 stored again, and look who deletes objects of the bucket"
            );
        }
        let mut current = self.order.lock().await;
        order.take_over(std::mem::take(&mut *current));
        let waiting = order.waiting();
        if waiting > 0 {
            tracing::info!(paths = waiting, "publishing or withdrawing narinfos in the bucket");
        }
        self.metrics.waiting(waiting);
        *current = order;
        Ok(())
    }

    /// Of these narinfos, whose paths the index does not have, those that were published by a server: what
    /// refers to others stands before these, of which the index knows nothing.
    async fn leftovers(
        &self,
        listed: HashMap<StorePathHash, String>,
        order: &mut Order,
    ) -> Result<Vec<StorePathHash>, Error> {
        let mut published = BTreeMap::new();
        for hash in listed.into_keys() {
            match self.published_by_server(hash).await? {
                Some(info) => {
                    let references = info.path_info.references.iter().map(StorePath::hash);
                    published.insert(hash, (hash, references.collect::<Vec<_>>()));
                }
                None => order.forget(hash),
            }
        }
        let published = after_references(published, |(_, references)| references);
        Ok(published.into_iter().rev().map(|(hash, _)| hash).collect())
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

    /// The NARs in the bucket.
    async fn list_nars(&self) -> Result<HashSet<NarHash>, Error> {
        let (mut nars, mut after) = (HashSet::new(), None);
        loop {
            let files = Arc::clone(&self.files);
            let page = self.nars.run(move |_| files.list_nars(after)).await.map_err(Error::Bucket)?;
            let Some(last) = page.last() else { return Ok(nars) };
            after = Some(*last);
            nars.extend(page);
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

    /// A narinfo that was published by a server: its file is named by the hash of the plain NAR.
    async fn published_by_server(&self, hash: StorePathHash) -> Result<Option<NarInfo>, Error> {
        let found = self.read(file_name(hash)).await?;
        let parsed = found.and_then(|bytes| NarInfo::parse(&self.info.store_dir, &bytes).ok());
        Ok(parsed
            .filter(|info| info.url == format!("nar/{}.nar.zst", info.path_info.nar_hash.to_nixbase32())))
    }

    async fn read(&self, name: String) -> Result<Option<Vec<u8>>, Error> {
        let files = Arc::clone(&self.files);
        self.nars.run(move |_| files.read_file(&name)).await.map_err(Error::Bucket)
    }
}
