//! The machines that build, as the API shows them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::types::RunningBuild;
use crate::build::{BuilderState, BuilderView};

/// A machine that builds.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct BuilderStatus {
    pub name: String,
    /// Login on it; null for the local Nix daemon.
    pub address: Option<String>,
    pub state: BuilderPhase,
    /// Unix seconds of the begin of that state.
    pub since: u64,
    /// Systems that it builds for; of the local Nix daemon they are detected.
    pub systems: Vec<String>,
    pub features: Vec<String>,
    /// Features that whatever is built there must require.
    pub mandatory_features: Vec<String>,
    /// Builds at a time.
    pub slots: usize,
    /// Speed in comparison with others.
    pub speed: f64,
    /// Preference before others.
    pub weight: u32,
    /// Builds that run there.
    pub running: Vec<RunningBuild>,
    /// Builds that ended well there since the server was started.
    pub built: u64,
    /// Builds that failed there.
    pub failed: u64,
    /// Builds that were lost with it, and went elsewhere.
    pub lost: u64,
    /// Reason why it was last lost.
    pub last_error: Option<String>,
    /// Unix seconds of that.
    pub last_error_at: Option<u64>,
    /// Derivations that failed there and were built on another builder, or the reverse.
    pub disagreements: u64,
    /// The latest of them.
    pub last_disagreement: Option<String>,
    /// Release of Nix there.
    pub nix_version: Option<String>,
}

/// State of a machine that builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BuilderPhase {
    /// In use, or ready for it.
    Up,
    /// Not reached yet since the server was started.
    Connecting,
    /// Lost, and tried again with growing pauses.
    Resting,
    /// Nothing more is built there, and something still is.
    Draining,
    /// Nothing is built there.
    Drained,
}

impl From<BuilderView> for BuilderStatus {
    fn from(view: BuilderView) -> Self {
        Self {
            name: view.name,
            address: view.address,
            state: match view.state {
                BuilderState::Up => BuilderPhase::Up,
                BuilderState::Connecting => BuilderPhase::Connecting,
                BuilderState::Resting => BuilderPhase::Resting,
                BuilderState::Draining => BuilderPhase::Draining,
                BuilderState::Drained => BuilderPhase::Drained,
            },
            since: view.since,
            systems: view.systems,
            features: view.features,
            mandatory_features: view.mandatory_features,
            slots: view.slots,
            speed: view.speed,
            weight: view.weight,
            running: view.running.into_iter().map(RunningBuild::from).collect(),
            built: view.built,
            failed: view.failed,
            lost: view.lost,
            last_error: view.last_error,
            last_error_at: view.last_error_at,
            disagreements: view.disagreements,
            last_disagreement: view.last_disagreement,
            nix_version: view.nix_version,
        }
    }
}
