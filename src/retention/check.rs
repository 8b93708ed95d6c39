//! The check of the NAR store: each packed NAR against its file, and with `contents` all of the file against
//! its hashes; then the orphaned files. Runs beside everything else, and reports line by line.

use std::fmt::Display;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{Counted, Error, LINES_MAX, Retention, Size};
use crate::causes::with_causes;
use crate::model::NarRow;
use crate::packer::Look;

/// The time between two lines that tell how far it has come.
const PROGRESS: Duration = Duration::from_secs(10);

/// Options of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// Reads all files, and does not only look for them.
    pub verify: bool,
    /// Repairs what is wrong.
    pub repair: bool,
}

/// Why it ends before its last line.
enum End {
    /// Nobody reads the lines any more.
    Left,
    Failed(Error),
}

impl<E: Into<Error>> From<E> for End {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// A check under way.
struct Run {
    retention: Retention,
    check: Check,
    lines: mpsc::Sender<String>,
    told_at: Instant,
    found: u64,
}

impl Retention {
    /// Begins to check, and gives the lines about it. The last one begins with `sound`, `repaired` or
    /// `failed`. It ends early when the reader of its lines leaves.
    #[must_use]
    pub fn check(&self, check: Check) -> mpsc::Receiver<String> {
        let (lines, reading) = mpsc::channel(LINES_MAX);
        let run = Run { retention: self.clone(), check, lines, told_at: Instant::now(), found: 0 };
        self.0.tasks.optional("check", run.run());
        reading
    }
}

impl Run {
    async fn run(mut self) {
        let last = match self.all().await {
            Ok(last) => last,
            Err(End::Left) => return,
            Err(End::Failed(error)) => format!("failed: {}", with_causes(&error)),
        };
        // Whoever leaves now has read all the rest.
        let _ = self.say(last).await;
    }

    async fn all(&mut self) -> Result<String, End> {
        let index = self.retention.0.index.clone();
        // What a damaged index says of the rest is worth nothing.
        index.verify().await?;
        let (mut nars, mut bytes, mut after) = (0, 0, None);
        loop {
            let rows = index.nars(after).await?;
            for row in &rows {
                if self.told_at.elapsed() >= PROGRESS {
                    self.told_at = Instant::now();
                    let of = Size(index.nar_bytes().await?);
                    self.say(format!("checked: {}, {} of {of}", Counted(nars, "NAR"), Size(bytes))).await?;
                }
                self.one(row).await?;
                (nars, bytes) = (nars + 1, bytes + row.file_size);
            }
            match rows.last() {
                Some(last) => after = Some(last.nar_hash),
                None => break,
            }
        }
        for nar in self.retention.orphans().await? {
            // A file that stays has got a row since.
            if !self.check.repair || self.retention.0.packer.discard(nar).await? {
                self.tell(&nar, "its file is on nobody's record").await?;
            }
        }
        if !index.verify_totals().await? {
            if self.check.repair {
                index.recompute_totals().await?;
            }
            self.tell(&"the index", "what it counts as stored is not what is there").await?;
        }
        self.retention.0.publication.compare_soon();
        let how = if self.check.verify { "read and verified" } else { "looked for, and not read (--verify)" };
        let all = format!("{}, {}, {how}", Counted(nars, "NAR"), Size(bytes));
        Ok(match (self.found, self.check.repair) {
            (0, _) => format!("sound: {all}"),
            (found, true) => format!(
                "repaired: {found} wrong of {all}; what is lost is packed or fetched again, or built when it is asked for"
            ),
            (found, false) => format!(
                "failed: {found} wrong of {all}; damaged files are not served any more, --repair puts the rest right"
            ),
        })
    }

    async fn one(&mut self, row: &NarRow) -> Result<(), End> {
        let (index, packer) = (self.retention.0.index.clone(), self.retention.0.packer.clone());
        let look = if self.check.verify { Look::Contents } else { Look::Size };
        let Some(flaw) = packer.inspect(row, look).await? else { return Ok(()) };
        if index.packed(row.nar_hash).await? != Some(*row) {
            // It was evicted or repaired since.
            return Ok(());
        }
        let path = index.path_with_nar(row.nar_hash).await?;
        let mut fault = with_causes(&flaw.fault);
        if self.check.repair {
            packer.repair(flaw).await?;
        } else if flaw.is_damage() {
            // A request during the repair would get unverified bytes.
            self.retention.set_aside(flaw).await?;
            fault.push_str("; it is not served any more");
        }
        match path {
            Some(row) => self.tell(&row.info.path, &fault).await,
            None => self.tell(&row.nar_hash, &fault).await,
        }
    }

    /// Something was wrong with `what`, and is put right by now where that is wished.
    async fn tell(&mut self, what: &(dyn Display + Sync), fault: &str) -> Result<(), End> {
        self.found += 1;
        let line = format!("{}: {what}: {fault}", if self.check.repair { "put right" } else { "wrong" });
        self.say(line).await
    }

    async fn say(&self, line: String) -> Result<(), End> {
        self.lines.send(line).await.map_err(|_| End::Left)
    }
}
