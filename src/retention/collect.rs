//! The collection on demand: evicts what is above the limit and deletes orphaned files, or lists both in a
//! dry run. Reports line by line, and runs to its end without a reader, too.

use std::time::SystemTime;

use tokio::sync::mpsc;

use super::eviction::{Eviction, Gone};
use super::{Counted, Error, LINES_MAX, MinFree, Retention, Size};
use crate::causes::with_causes;

impl Retention {
    /// Evicts what is above `max_bytes`, or above the limit of the settings, and deletes orphaned files;
    /// lists both in a dry run. Returns the lines of its report; one that begins with `failed` is the last.
    #[must_use]
    pub fn collect(&self, max_bytes: Option<u64>, dry_run: bool) -> mpsc::Receiver<String> {
        let (lines, reading) = mpsc::channel(LINES_MAX);
        let retention = self.clone();
        self.0.tasks.optional("collection", async move {
            if let Err(error) = retention.collect_and_tell(max_bytes, dry_run, &lines).await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "gc failed before its end; run `ondine gc` again"
                );
                say(&lines, format!("failed: {}", with_causes(&error))).await;
            }
        });
        reading
    }

    async fn collect_and_tell(
        &self,
        max_bytes: Option<u64>,
        dry_run: bool,
        lines: &mpsc::Sender<String>,
    ) -> Result<(), Error> {
        let (goes, removed) = match dry_run {
            true => ("would go", "would be removed"),
            false => ("evicted", "removed"),
        };
        // Uses are written down in any case, on a full disk too.
        self.make_room().await;
        let max_bytes = max_bytes.or(self.limit().await?.max_bytes);
        // What was used until now counts as used now.
        self.0.index.record_uses(SystemTime::now()).await?;
        // Somebody has asked for it here, whoever leads.
        let index = self.0.index.for_leader().unwrap_or_else(|| self.0.index.clone());
        let mut eviction = Eviction::new(index, self.bounds(max_bytes), dry_run);
        let (mut nars, mut bytes) = (0, 0);
        while let Some(gone) = eviction.next().await? {
            if !dry_run {
                self.remove_files(&eviction.take_evicted(), &gone).await?;
            }
            for Gone { path, nar, bytes: of_file } in gone {
                (nars, bytes) = (nars + 1, bytes + of_file);
                let what = match path {
                    Some(path) => path.to_string(),
                    None => format!("a NAR that no path has, {nar}"),
                };
                say(lines, format!("{goes}: {what}, {}", Size(of_file))).await;
            }
        }
        let kept = eviction.kept_bytes().await?;
        say(lines, format!("{goes}: {}, {}; {} stay", Counted(nars, "NAR"), Size(bytes), Size(kept))).await;
        let orphans = self.orphans().await?;
        if !dry_run {
            for nar in &orphans {
                self.0.packer.discard(*nar).await?;
            }
        }
        if !orphans.is_empty() {
            say(lines, format!("{removed}: {} on nobody's record", Counted(orphans.len(), "file"))).await;
        }
        self.tend_reserve().await;
        match max_bytes {
            None if self.0.settings.min_free == MinFree::Bytes(0) => {
                say(lines, "there is no limit: set max-nar-store-bytes, or give --max-bytes".to_owned())
                    .await;
            }
            None => {
                say(lines, "nothing has to go: there is room, and no max-nar-store-bytes".to_owned()).await
            }
            Some(max_bytes) if kept > max_bytes => {
                let above = format!(
                    "above the limit of {}: what stays is held by pins, was used lately (eviction-grace), is a derivation \
                     that was pushed (keep-pushed), is not packed yet, or belongs to the closure of such",
                    Size(max_bytes)
                );
                say(lines, above).await;
            }
            Some(_) => {}
        }
        Ok(())
    }
}

/// Sends a line, read or not.
async fn say(lines: &mpsc::Sender<String>, line: String) {
    let _ = lines.send(line).await;
}
