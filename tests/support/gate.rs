//! Gates in the scripts of derivations: a build notes that it started and waits until the test lets it go on.
//! They work through files in the store's folder, which a builder can reach because the sandbox is off.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::process::wait_until;
use super::store::{Folder, write};

/// Time limit of a build's start once it is asked for.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A gate that any number of builds pass; closed until [`Gate::open`].
pub struct Gate {
    // Keeps the folder as long as a test may ask the gate.
    _folder: Arc<Folder>,
    at: PathBuf,
}

impl Gate {
    /// A closed gate whose files are in `at`, a folder inside `folder`.
    pub fn new(folder: Arc<Folder>, at: PathBuf) -> Gate {
        Gate { _folder: folder, at }
    }

    /// Lines for the start of a derivation's script: note the start under `name`, then wait until the gate is
    /// open.
    pub fn script(&self, name: &str) -> String {
        let at = self.at.display();
        format!("echo '{name}' >> '{at}/starts'\nwhile ! [ -e '{at}/open' ]; do sleep 0.05; done\n")
    }

    /// The same for a build that also notes where another one of the same name runs.
    pub fn exclusive_script(&self, name: &str) -> String {
        let at = self.at.display();
        let alone = format!("exec 9> '{at}/lock-{name}'\nflock -n 9 || echo '{name}' >> '{at}/overlaps'\n");
        alone + &self.script(name)
    }

    /// The names of those that found another one of their name running.
    pub fn overlaps(&self) -> Vec<String> {
        let noted = std::fs::read_to_string(self.at.join("overlaps")).unwrap_or_default();
        noted.lines().map(str::to_owned).collect()
    }

    /// Lines that note a start under `name` and do not wait.
    pub fn note(&self, name: &str) -> String {
        format!("echo '{name}' >> '{}/starts'\n", self.at.display())
    }

    /// Lets every waiting and every later build pass.
    pub fn open(&self) {
        write(&self.at.join("open"), "");
    }

    /// Closes the gate again for builds that have not passed yet.
    pub fn close(&self) {
        let _ = std::fs::remove_file(self.at.join("open"));
    }

    /// The names of the builds that started, in order; a build that started twice is there twice.
    pub fn starts(&self) -> Vec<String> {
        let noted = std::fs::read_to_string(self.at.join("starts")).unwrap_or_default();
        noted.lines().map(str::to_owned).collect()
    }

    /// Waits until `count` builds have started.
    #[track_caller]
    pub fn wait_for_starts(&self, count: usize) {
        wait_until(&format!("{count} builds start"), START_LIMIT, || self.starts().len() >= count);
    }
}
