//! Runners: each has a machine build one derivation at a time. A runner knows no queue, and its own loss is
//! never the failure of what it built.

mod local;

use narinfo::StorePath;

use super::log::LogWriter;
use super::verdict::Verdict;
pub use local::LocalRunner;
pub(super) use local::known_outputs;

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

/// Outputs of a derivation that are there.
#[derive(Clone, Debug)]
pub(super) struct Built {
    /// All outputs; they are held until someone releases them.
    pub(super) outputs: Vec<StorePath>,
    /// True where they had to be built for that.
    pub(super) worked: bool,
}

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
            Self::Stopped => "stopped: others go first; it is built later".to_owned(),
        }
    }
}

impl From<Verdict> for NotBuilt {
    fn from(verdict: Verdict) -> Self {
        Self::Failed(verdict)
    }
}
