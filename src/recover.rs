//! The recovery of a lost or damaged index from the ledger beside the NARs: what was signed here, has its
//! file (or an upstream), and refers to nothing that has not. An index that is there is moved aside, never
//! removed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use narinfo::{PublicKey, Realisation, StoreDir, StorePathHash};
use tokio::sync::mpsc;

use crate::index::{self, Index, LedgerReader, Record, Recorded, Recovered, has_ledger, salvage_pins};
use crate::model::{PushedDerivation, RealisationOutcome};
use crate::nar_store::{FileSizes, NarStore, is_away};
use crate::plural::counted;

/// Records that one transaction takes over.
const BATCH: usize = 1_000;
/// Batches that wait to be taken over.
const BATCHES_WAITING_MAX: usize = 4;
/// There as long as the index is not complete. Written before anything is moved, with a line that is the name
/// which the index that was there gets; [`MOVED`] follows once all of that is moved.
const MARKER: &str = "index.recovering";
/// Second line of the marker. Without it the files of the index are still those that were there, as far as
/// they have not got their new names; with it they are of a new index that is not complete.
const MOVED: &str = "moved\n";
/// Name of an index that was there, once it is moved aside; later ones have a number.
const ASIDE: &str = "index.damaged.sqlite";
/// Indexes that are kept so, at most.
const ASIDES_MAX: u32 = 1_000;
/// The files of an index have one name with these endings.
const ENDINGS: [&str; 3] = ["", "-wal", "-shm"];

/// Why nothing was recovered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no ledger.
    #[error(
        "nothing is recorded in {}: move the index away and start the server, and what is asked for comes again, with the files that are there",
        .0.display()
    )]
    NoLedger(PathBuf),
    /// A file cannot be read, moved or written.
    #[error("cannot read the ledger beside the NARs, or move the index aside")]
    Files(#[from] io::Error),
    /// The new index cannot be written.
    #[error("cannot write the new index")]
    Index(#[from] index::Error),
}

/// Where everything is, and what vouches for it.
#[derive(Clone, Debug)]
pub struct Recovery {
    /// The state directory.
    pub state_dir: PathBuf,
    /// The file of the index in it.
    pub index: PathBuf,
    /// The folder of the ledger.
    pub ledger: PathBuf,
    /// The NARs.
    pub nars: NarStore,
    /// The store that is served.
    pub store_dir: StoreDir,
    /// The keys of this cache, one of which has signed what is recorded.
    pub keys: Vec<PublicKey>,
}

/// Outcome of a recovery.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct RecoveryReport {
    /// Paths that are served again.
    pub paths: u64,
    /// Stored NARs that they have.
    pub nars: u64,
    /// Realisations that are served again.
    pub realisations: u64,
    /// Pushed derivations that are built on request again.
    pub pushed: u64,
    /// Pins that could still be read.
    pub pins: usize,
    /// Paths that refer to something that is not served.
    pub incomplete: u64,
    /// Records that are not signed by the key of this cache.
    pub unsigned: u64,
    /// Corrupt lines.
    pub corrupt: u64,
}

impl std::fmt::Display for RecoveryReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { paths, nars, realisations, pushed, pins, incomplete, unsigned, corrupt } = self;
        write!(
            f,
            "recovered: {} with {}, {}, {}, {}; tokens are lost: make new ones with `ondine token new`",
            counted(*paths, "path", "paths"),
            counted(*nars, "NAR", "NARs"),
            counted(*realisations, "realisation", "realisations"),
            counted(*pushed, "pushed derivation", "pushed derivations"),
            counted(*pins, "pin", "pins"),
        )?;
        write!(
            f,
            "\nleft out: {}, {}, {}; what is left out comes again when it is asked for",
            counted(*incomplete, "path that refers to what is lost", "paths that refer to what is lost"),
            counted(
                *unsigned,
                "record that no key of this cache has signed",
                "records that no key of this cache has signed"
            ),
            counted(*corrupt, "corrupt line", "corrupt lines"),
        )
    }
}

/// Called before each step of a recovery, which ends where that fails.
type RecoveryStep<'a> = &'a mut (dyn FnMut() -> io::Result<()> + Send);

/// Records that were read of the ledger.
#[derive(Debug, Default)]
struct Batch {
    recovered: Vec<Recovered>,
    realisations: Vec<Realisation>,
    pushed: Vec<PushedDerivation>,
}

impl Recovery {
    /// True where the index is lost, or was being recovered when that was interrupted, and can be made anew.
    fn is_needed(&self) -> bool {
        let incomplete = self.state_dir.join(MARKER).exists();
        (incomplete || !self.index.exists()) && has_ledger(&self.ledger)
    }

    /// Makes the index anew where it is needed, and says so; or says that it cannot be.
    ///
    /// # Errors
    /// As [`Recovery::run`].
    pub async fn run_if_needed(&self) -> Result<(), Error> {
        if self.is_needed() {
            tracing::warn!("index lost; recovering it from the ledger beside the NARs");
            tracing::warn!("{}", self.run().await?);
        } else if !self.index.exists() && self.has_nars().await? {
            tracing::warn!(
                "the index is lost, and nothing beside the NARs says of which paths they are: each is used again once its \
                 path is asked for, and `ondine gc` removes the others"
            );
        }
        Ok(())
    }

    async fn has_nars(&self) -> io::Result<bool> {
        let first = self.nars.run(|nars| nars.list(None)).await;
        match first {
            Ok(first) => Ok(!first.is_empty()),
            // What is there does not matter to a start without an index.
            Err(error) if is_away(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes the index anew. Nobody else may use the state directory meanwhile.
    ///
    /// # Errors
    /// There is no ledger, or it cannot be read, or the index not be written: the next try begins anew.
    pub async fn run(&self) -> Result<RecoveryReport, Error> {
        self.run_in_steps(&mut || Ok(())).await
    }

    /// The same, with something that may end it before each step.
    async fn run_in_steps(&self, step: RecoveryStep<'_>) -> Result<RecoveryReport, Error> {
        if !has_ledger(&self.ledger) {
            return Err(Error::NoLedger(self.ledger.clone()));
        }
        let damaged = self.move_aside(step)?;
        step()?;
        let index = Index::open(&self.index)?;
        let (sender, mut batches) = mpsc::channel(BATCHES_WAITING_MAX);
        let reader = self.clone();
        let reading = tokio::task::spawn_blocking(move || reader.read(&sender));
        // The latest record of an output is the one that was served last.
        let (mut realisations, mut pushed) = (BTreeMap::new(), Vec::new());
        while let Some(batch) = batches.recv().await {
            index.recover(batch.recovered).await?;
            realisations.extend(batch.realisations.into_iter().map(|one| (one.id().clone(), one)));
            pushed.extend(batch.pushed);
        }
        let mut outcome = reading.await.map_err(io::Error::other)??;
        outcome.incomplete = index.forget_incomplete().await?;
        for realisation in realisations.into_values() {
            let published = index.publish_realisations(vec![realisation]).await?;
            outcome.realisations += u64::from(published == RealisationOutcome::Published);
        }
        for batch in pushed.chunks(BATCH) {
            outcome.pushed += index.restore_pushed(batch.to_vec()).await?;
        }
        step()?;
        let pins =
            tokio::task::spawn_blocking(move || salvage_pins(&damaged)).await.map_err(io::Error::other)?;
        outcome.pins = pins.len();
        index.restore_pins(pins).await?;
        let counts = index.counts().await?;
        (outcome.paths, outcome.nars) = (counts.paths, counts.nars);
        step()?;
        index.close().await?;
        step()?;
        fs::remove_file(self.state_dir.join(MARKER))?;
        self.sync()?;
        Ok(outcome)
    }

    /// Makes way for a new index, and gives the place of the one that was there. One that was left incomplete
    /// goes.
    fn move_aside(&self, step: RecoveryStep<'_>) -> io::Result<PathBuf> {
        let marker = self.state_dir.join(MARKER);
        let begun = match fs::read_to_string(&marker) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            begun => begun?,
        };
        let (name, is_moved) = match begun.split_once('\n') {
            Some((name, rest)) => (name.to_owned(), rest == MOVED),
            // There is no marker, or it was not written to its end: nothing is moved.
            None => {
                let name = self.name_aside()?;
                step()?;
                self.mark(&marker, &format!("{name}\n"))?;
                (name, false)
            }
        };
        let aside = self.state_dir.join(&name);
        if !is_moved {
            for ending in ENDINGS {
                step()?;
                ignore_missing(fs::rename(with_ending(&self.index, ending), with_ending(&aside, ending)))?;
            }
            self.sync()?;
            step()?;
            self.mark(&marker, &format!("{name}\n{MOVED}"))?;
        }
        for ending in ENDINGS {
            step()?;
            ignore_missing(fs::remove_file(with_ending(&self.index, ending)))?;
        }
        self.sync()?;
        Ok(aside)
    }

    /// Writes the marker over what it has, which is the same as far as it was written.
    fn mark(&self, marker: &Path, text: &str) -> io::Result<()> {
        let mut file = File::options().write(true).create(true).truncate(false).open(marker)?;
        file.write_all(text.as_bytes())?;
        file.set_len(text.len() as u64)?;
        file.sync_all()?;
        self.sync()
    }

    /// Has the names in the state directory last.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.state_dir)?.sync_all()
    }

    /// A name that no index was moved to before.
    fn name_aside(&self) -> io::Result<String> {
        for number in 1..=ASIDES_MAX {
            let name = if number == 1 { ASIDE.to_owned() } else { format!("index.damaged-{number}.sqlite") };
            let place = self.state_dir.join(&name);
            let mut is_free = true;
            for ending in ENDINGS {
                is_free &= !with_ending(&place, ending).try_exists()?;
            }
            if is_free {
                return Ok(name);
            }
        }
        Err(io::Error::other("too many damaged indexes were moved aside: remove some"))
    }

    /// Reads the ledger, and holds each record against the key and the files.
    fn read(&self, batches: &mpsc::Sender<Batch>) -> io::Result<RecoveryReport> {
        let (mut outcome, mut batch, mut read) = (RecoveryReport::default(), Batch::default(), 0_u64);
        let send = |batch: &mut Batch| {
            let full = std::mem::take(batch);
            batches.blocking_send(full).map_err(|_| io::Error::other("the index is not written any more"))
        };
        let sizes = self.nars.file_sizes()?;
        let mut ledger = LedgerReader::new(&self.ledger);
        for record in ledger.by_ref() {
            match record? {
                Record::Path(recorded) if self.vouches_for(&recorded) => {
                    batch.recovered.push(found(&sizes, recorded)?);
                }
                Record::Realisation(realisation) if realisation.is_trusted(&self.keys) => {
                    batch.realisations.push(realisation);
                }
                // Nothing is served because of it: what it makes is built.
                Record::Pushed(derivation) => batch.pushed.push(derivation),
                _ => outcome.unsigned += 1,
            }
            read += 1;
            if read.is_multiple_of(100 * BATCH as u64) {
                tracing::info!(records = read, "recovering the index");
            }
            if batch.recovered.len() >= BATCH {
                send(&mut batch)?;
            }
        }
        send(&mut batch)?;
        Ok(RecoveryReport { corrupt: ledger.corrupt(), ..outcome })
    }

    fn vouches_for(&self, recorded: &Recorded) -> bool {
        let row = &recorded.path;
        let signed = row.info.fingerprint(&self.store_dir);
        let is_ours = |signature| self.keys.iter().any(|key| key.verify(signature, &signed));
        row.info.signatures.iter().any(is_ours)
    }
}

/// The rest of a path: its file, if that has its size, or an upstream.
fn found(sizes: &FileSizes, mut recorded: Box<Recorded>) -> io::Result<Recovered> {
    let hash: StorePathHash = recorded.path.info.path.hash();
    if let Some(nar) = recorded.packed
        && sizes.get(nar.nar_hash)? != Some(nar.file_size)
    {
        recorded.packed = None;
    }
    let is_lost = recorded.packed.is_none() && recorded.upstreams.is_empty();
    Ok(if is_lost { Recovered::Gone(hash) } else { Recovered::Served(recorded) })
}

fn with_ending(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn ignore_missing(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::index::Sqlite;
    use crate::model::PinRow;
    use crate::nar_store::Settings;

    const PINNED: &str = "0123456789abcdfghijklmnpqrsvwxyz";

    /// A state directory whose index has one pin.
    async fn pinned(state_dir: &Path) -> Recovery {
        let [index, ledger, nars] = ["index.sqlite", "ledger", "nar"].map(|name| state_dir.join(name));
        let opened = Index::new(Sqlite::open(&index).expect("an index"), 0);
        let pin = PinRow {
            name: "kept".to_owned(),
            hash: PINNED.parse().expect("a hash"),
            path: None,
            pinned_at: SystemTime::UNIX_EPOCH,
        };
        opened.restore_pins(vec![pin]).await.expect("pinned");
        // Closed only by a later checkpoint: the pin is in the log beside the file.
        opened.close().await.expect("closed");
        fs::create_dir(&ledger).expect("a folder");
        fs::write(ledger.join("base"), "a line that is none\n").expect("a ledger");
        Recovery {
            state_dir: state_dir.to_owned(),
            index,
            ledger,
            nars: NarStore::open(&nars, Settings::default()).expect("NARs"),
            store_dir: StoreDir::default(),
            keys: Vec::new(),
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_recovery_that_was_interrupted_at_any_step_goes_on_without_loss() {
        let mut interrupted = 0;
        for last_step in 0.. {
            let state_dir = tempfile::tempdir().expect("a folder");
            let recovery = pinned(state_dir.path()).await;
            let mut steps = 0;
            let mut step = || {
                steps += 1;
                if steps > last_step { Err(io::Error::other("interrupted")) } else { Ok(()) }
            };
            if recovery.run_in_steps(&mut step).await.is_ok() {
                break;
            }
            interrupted += 1;
            assert!(recovery.is_needed() || last_step == 0, "step {last_step}");
            // The second try is interrupted, too, and the third is not.
            let mut steps = 0;
            let mut step = || {
                steps += 1;
                if steps > 2 { Err(io::Error::other("interrupted")) } else { Ok(()) }
            };
            let again = recovery.run_in_steps(&mut step).await;
            let report = if recovery.is_needed() { recovery.run().await } else { again };
            assert_eq!(report.expect("recovered").pins, 1, "after step {last_step}");
            let index = Index::open(&recovery.index).expect("an index");
            let pins = index.pins().await.expect("read");
            assert_eq!(pins.iter().map(|pin| pin.name.as_str()).collect::<Vec<_>>(), ["kept"]);
            assert!(!recovery.is_needed() && !state_dir.path().join(MARKER).exists());
            let asides = fs::read_dir(state_dir.path()).expect("read").filter(|entry| {
                let name = entry.as_ref().expect("an entry").file_name();
                name.to_string_lossy().starts_with("index.damaged")
                    && name.to_string_lossy().ends_with("sqlite")
            });
            assert_eq!(asides.count(), 1, "after step {last_step}");
        }
        assert!(interrupted > 10, "{interrupted} steps");
    }
}
