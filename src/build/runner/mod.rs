//! Runners: each has a machine build one derivation at a time. A runner knows no queue, and its own loss is
//! never the failure of what it built.

mod local;
mod remote;
mod watch;

use std::collections::BTreeSet;
use std::time::Duration;

use narinfo::{NarHash, StoreDir, StorePath};

use super::log::LogWriter;
use super::verdict::Verdict;
use crate::causes::with_causes;
use crate::nix::{
    BuildEvent, BuildOrder, BuildResult, BuildTarget, Connections, Daemon, DaemonError, SentDerivation,
    ValidPath, read_derivation,
};
pub use local::LocalRunner;
pub(super) use local::known_outputs;
pub use remote::RemoteRunner;

/// Runner of any machine.
#[derive(Clone)]
pub enum MachineRunner {
    /// The local Nix daemon.
    Local(LocalRunner),
    /// Another machine.
    Remote(RemoteRunner),
}

/// Builds derivations on one machine. To add a kind of machine is to implement this.
pub(super) trait Runner: Clone + Send + Sync + 'static {
    /// Builds a derivation whose inputs are all there, once. Marks in `log` when the builder is started, and
    /// brings its lines there. Stops the build, and returns, soon after `stop` resolves.
    fn build(
        &self,
        drv: &StorePath,
        log: &LogWriter,
        stop: impl Future<Output = ()> + Send,
    ) -> impl Future<Output = Result<Built, NotBuilt>> + Send;
}

impl Runner for MachineRunner {
    async fn build(
        &self,
        drv: &StorePath,
        log: &LogWriter,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<Built, NotBuilt> {
        match self {
            Self::Local(runner) => runner.build(drv, log, stop).await,
            Self::Remote(runner) => runner.build(drv, log, stop).await,
        }
    }
}

impl MachineRunner {
    /// Connects anew. Gives the release of Nix there.
    pub(super) async fn probe(&self) -> Result<String, String> {
        let pool = &self.connections().pool;
        let daemon = pool.get_fresh().await.map_err(|error| with_causes(&error))?;
        Ok(daemon.nix_version().to_owned())
    }

    /// Connections to its daemon.
    pub(super) fn connections(&self) -> &Connections {
        match self {
            Self::Local(runner) => &runner.connections,
            Self::Remote(runner) => &runner.connections,
        }
    }
}

/// Outputs of a derivation that are there.
#[derive(Clone, Debug)]
pub(super) struct Built {
    /// All outputs; they are held until someone releases them.
    pub(super) outputs: Vec<StorePath>,
    /// True where they had to be built for that.
    pub(super) worked: bool,
    /// Time that building took, without any wait or copying.
    pub(super) took: Duration,
}

/// Outputs of a second build, each with the hash of its NAR.
pub(super) type RebuiltOutputs = Vec<(StorePath, NarHash)>;

/// Reason why there are no outputs.
#[derive(Clone, Debug)]
pub(super) enum NotBuilt {
    /// The build failed.
    Failed(Verdict),
    /// The build was stopped: an older request must not be delivered later than promised, or it was nobody's
    /// and may not go on.
    Stopped,
    /// The runner is lost: the same build may succeed once it is back.
    Lost(Loss),
}

/// Loss of a runner.
#[derive(Clone, Debug)]
pub(super) struct Loss {
    /// Reason in one line, for those who wait.
    pub(super) reason: String,
    /// Starts of the builder after which the build itself is to blame.
    pub(super) starts_max: u32,
    /// Answer to those who wait, should the runner not come back.
    pub(super) verdict: Verdict,
}

impl NotBuilt {
    /// Last line of the log of this build.
    pub(super) fn last_line(&self) -> String {
        match self {
            Self::Failed(verdict) | Self::Lost(Loss { verdict, .. }) => verdict.reason.clone(),
            Self::Stopped => "stopped: nobody waits for it any more, or others go first".to_owned(),
        }
    }
}

impl From<Verdict> for NotBuilt {
    fn from(verdict: Verdict) -> Self {
        Self::Failed(verdict)
    }
}

/// Paths that are known of a derivation before it is built.
pub(super) struct KnownPaths {
    /// Its outputs.
    pub(super) outputs: Vec<StorePath>,
    /// Paths that a machine needs to build it: the outputs of others, and its file with all that this refers
    /// to, unless it was sent.
    pub(super) needed: BTreeSet<StorePath>,
}

impl KnownPaths {
    /// Those of a derivation that a client has sent.
    fn of_sent(sent: &SentDerivation) -> Self {
        Self { outputs: sent.outputs.clone(), needed: sent.resolved.inputs.clone() }
    }
}

/// A derivation that a daemon is to build.
#[derive(Clone, Copy)]
struct BuildJob<'a> {
    drv: &'a StorePath,
    /// Its parts, where a client has sent them and no store has it.
    sent: Option<&'a SentDerivation>,
    /// Outputs whose records are wanted, too.
    outputs: &'a [StorePath],
}

impl BuildJob<'_> {
    /// Has a daemon do it. Gives the records of the outputs that are valid then.
    async fn run(
        self,
        daemon: &mut Daemon,
        on_event: impl FnMut(BuildEvent),
    ) -> Result<(BuildResult, Vec<Option<ValidPath>>), DaemonError> {
        let target = BuildTarget::All { drv: self.drv.clone() };
        let order = self.sent.map_or(BuildOrder::Target(&target), BuildOrder::Sent);
        daemon.build_and_describe(order, self.outputs, on_event).await
    }
}

/// Reads a derivation of the Nix store, and those whose outputs it needs.
///
/// # Errors
/// With the reason, when one cannot be read, or its outputs are known only once it is built.
pub(super) async fn known_paths(store_dir: &StoreDir, drv: &StorePath) -> Result<KnownPaths, String> {
    let (store_dir, drv) = (store_dir.clone(), drv.clone());
    let reading = tokio::task::spawn_blocking(move || {
        let derivation = read_derivation(&store_dir, &drv)?;
        let outputs = derivation.outputs.values().cloned().collect::<Option<Vec<_>>>();
        let outputs = outputs.ok_or("the paths of its outputs are known only once it is built")?;
        let mut needed = inputs_of(&store_dir, &derivation)?;
        needed.extend(derivation.input_derivations);
        needed.extend(derivation.input_sources);
        needed.insert(drv);
        Ok(KnownPaths { outputs, needed })
    });
    reading.await.unwrap_or_else(|panicked| Err(panicked.to_string()))
}

/// The outputs of others that a derivation of the Nix store needs.
///
/// # Errors
/// As [`known_paths`].
pub(super) async fn input_paths(
    store_dir: &StoreDir,
    drv: &StorePath,
) -> Result<BTreeSet<StorePath>, String> {
    let (store_dir, drv) = (store_dir.clone(), drv.clone());
    let reading =
        tokio::task::spawn_blocking(move || inputs_of(&store_dir, &read_derivation(&store_dir, &drv)?));
    reading.await.unwrap_or_else(|panicked| Err(panicked.to_string()))
}

fn inputs_of(store_dir: &StoreDir, derivation: &narinfo::Derivation) -> Result<BTreeSet<StorePath>, String> {
    let mut inputs = BTreeSet::new();
    for (drv, wanted) in &derivation.input_outputs {
        let input = read_derivation(store_dir, drv)?;
        for name in wanted {
            let path = input.outputs.get(name).cloned().flatten();
            inputs.insert(path.ok_or_else(|| format!("the path of {drv}!{name} is not known yet"))?);
        }
    }
    Ok(inputs)
}
