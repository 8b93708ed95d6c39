//! Building one derivation through the daemon, and telling what happens meanwhile, line by line.
//! Keeps no log and gives no verdict: that is for those who ask for builds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use narinfo::{NarHash, StoreDir, StorePath};
use sha2::{Digest, Sha256};

use super::build_events::{Activities, BuildEvent};
use super::connection::{Daemon, Reply};
use super::error::DaemonError;
use super::operation::{BUILD_PATHS_WITH_RESULTS, QUERY_PATH_INFO};
use super::path_info::{ValidPath, optional_path_info};
use super::protocol::ProtocolVersion;
use super::resolved::SentDerivation;
use super::stderr;
use super::wire::{LIST_ITEMS_MAX, Patience, RequestBytes};

/// Neither repair nor check.
const MODE_NORMAL: u64 = 0;

/// From here on a result has processor times.
const CPU_SINCE: ProtocolVersion = ProtocolVersion { major: 1, minor: 37 };

/// Results of one request at most. We ask for one target.
const RESULTS_MAX: u64 = 1_000;

/// A target of a build.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BuildTarget {
    /// Every output of a derivation.
    All {
        /// The derivation.
        drv: StorePath,
    },
    /// Some outputs of a derivation.
    Outputs {
        /// The derivation.
        drv: StorePath,
        /// The names of the outputs; none means all.
        outputs: BTreeSet<String>,
    },
}

impl BuildTarget {
    /// The derivation.
    #[must_use]
    pub fn drv(&self) -> &StorePath {
        match self {
            Self::All { drv } | Self::Outputs { drv, .. } => drv,
        }
    }

    /// A target as clients write it; `None` where it is none.
    pub(super) fn from_wire(dir: &StoreDir, text: &str) -> Option<Self> {
        let (drv, outputs) = text.split_once('!')?;
        let drv = StorePath::parse_in(dir, drv).ok().filter(StorePath::is_derivation)?;
        if outputs == "*" {
            return Some(Self::All { drv });
        }
        let outputs: BTreeSet<String> = outputs.split(',').map(str::to_owned).collect();
        let is_named = outputs.iter().all(|name| !name.is_empty());
        is_named.then_some(Self::Outputs { drv, outputs })
    }

    /// `/nix/store/….drv!*` or `/nix/store/….drv!dev,out`, in every protocol from 1.30 to 1.38.
    pub(super) fn to_wire(&self, dir: &StoreDir) -> String {
        let outputs = match self {
            Self::Outputs { outputs, .. } if !outputs.is_empty() => {
                outputs.iter().map(String::as_str).collect::<Vec<_>>().join(",")
            }
            _ => "*".into(),
        };
        format!("{}!{outputs}", self.drv().in_dir(dir))
    }
}

/// Order to a daemon to build something.
#[derive(Clone, Copy, Debug)]
pub enum BuildOrder<'a> {
    /// A derivation of its store, and its inputs.
    Target(&'a BuildTarget),
    /// A derivation whose file it does not have, and whose inputs it has. For its outputs nothing speaks but
    /// this connection, so the daemon has to trust it.
    Sent(&'a SentDerivation),
}

/// The end of a build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BuildStatus {
    /// Built now.
    Built,
    /// Fetched from a substituter.
    Substituted,
    /// Valid before.
    AlreadyValid,
    /// The builder failed.
    PermanentFailure,
    /// The derivation cannot be built as it is.
    InputRejected,
    /// The output differs from what it must be.
    OutputRejected,
    /// The machine failed, a full disk for one.
    TransientFailure,
    /// An old way to say that it failed before.
    CachedFailure,
    /// The build, or its silence, exceeded a time limit.
    TimedOut,
    /// Anything else.
    #[default]
    MiscFailure,
    /// A derivation that it needs failed.
    DependencyFailed,
    /// The log exceeded its limit.
    LogLimitExceeded,
    /// Two builds gave different outputs.
    NotDeterministic,
    /// Resolved, the derivation is another one whose outputs are valid.
    ResolvesToAlreadyValid,
    /// Neither a machine can build it nor a substituter has it.
    NoSubstituters,
    /// A status that Nix got later.
    Unknown(u64),
}

impl BuildStatus {
    fn from_wire(number: u64) -> Self {
        match number {
            0 => Self::Built,
            1 => Self::Substituted,
            2 => Self::AlreadyValid,
            3 => Self::PermanentFailure,
            4 => Self::InputRejected,
            5 => Self::OutputRejected,
            6 => Self::TransientFailure,
            7 => Self::CachedFailure,
            8 => Self::TimedOut,
            9 => Self::MiscFailure,
            10 => Self::DependencyFailed,
            11 => Self::LogLimitExceeded,
            12 => Self::NotDeterministic,
            13 => Self::ResolvesToAlreadyValid,
            14 => Self::NoSubstituters,
            other => Self::Unknown(other),
        }
    }

    fn to_wire(self) -> u64 {
        match self {
            Self::Built => 0,
            Self::Substituted => 1,
            Self::AlreadyValid => 2,
            Self::PermanentFailure => 3,
            Self::InputRejected => 4,
            Self::OutputRejected => 5,
            Self::TransientFailure => 6,
            Self::CachedFailure => 7,
            Self::TimedOut => 8,
            Self::MiscFailure => 9,
            Self::DependencyFailed => 10,
            Self::LogLimitExceeded => 11,
            Self::NotDeterministic => 12,
            Self::ResolvesToAlreadyValid => 13,
            Self::NoSubstituters => 14,
            Self::Unknown(other) => other,
        }
    }

    /// True if the outputs are valid.
    #[must_use]
    pub fn is_success(self) -> bool {
        matches!(self, Self::Built | Self::Substituted | Self::AlreadyValid | Self::ResolvesToAlreadyValid)
    }
}

/// The result of a build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildResult {
    /// The end.
    pub status: BuildStatus,
    /// Why it failed, with the escape codes of Nix; empty when it did not.
    pub message: String,
    /// Number of builds just now; 0 also when the daemon does not say (Nix 2.34).
    pub times_built: u64,
    /// Start of the builder, in seconds since 1970; 0 when there was none or the daemon does not say.
    pub start_time: u64,
    /// End of the builder, in seconds since 1970; 0 when there was none or the daemon does not say.
    pub stop_time: u64,
    /// Processor time of the builder, where the daemon measures it (from protocol 1.37, and with cgroups).
    pub cpu_user: Option<Duration>,
    /// Processor time that the kernel spent on it.
    pub cpu_system: Option<Duration>,
    /// The outputs that were asked for, by name; empty when it failed.
    pub outputs: BTreeMap<String, StorePath>,
}

impl BuildResult {
    /// The result as a client of this protocol reads it. Outputs are named by `drv`: no client goes by the
    /// rest of an id where the paths of the outputs are known before the build.
    pub(super) fn to_wire(
        &self,
        bytes: RequestBytes,
        drv: &StorePath,
        version: ProtocolVersion,
    ) -> RequestBytes {
        let bytes = bytes.number(self.status.to_wire()).text(&self.message).number(self.times_built);
        let bytes = bytes.number(0).number(self.start_time).number(self.stop_time);
        let cpu = |bytes: RequestBytes, time: Option<Duration>| match time {
            Some(time) => bytes.number(1).number(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
            None => bytes.number(0),
        };
        let bytes = match version >= CPU_SINCE {
            true => cpu(cpu(bytes, self.cpu_user), self.cpu_system),
            false => bytes,
        };
        let named_by = NarHash::from_bytes(Sha256::digest(drv.to_string()).into()).to_hex();
        self.outputs.iter().fold(bytes.number(self.outputs.len() as u64), |bytes, (name, path)| {
            let id = format!("sha256:{named_by}!{name}");
            let realisation = serde_json::json!({
                "id": id, "outPath": path.to_string(), "signatures": [], "dependentRealisations": {},
            });
            bytes.text(&id).text(&realisation.to_string())
        })
    }
}

impl Daemon {
    /// Builds one target with all its inputs and waits for as long as that takes: limit it by the options of
    /// the connection. The outputs are held by a temporary root until the connection ends.
    ///
    /// Dropping this future makes the connection unusable, but the daemon goes on building until the `Daemon`
    /// is dropped too.
    ///
    /// # Errors
    /// [`DaemonError::Nix`] when the daemon did not get to a result; a build that failed is a result.
    pub async fn build(
        &mut self,
        target: &BuildTarget,
        on_event: impl FnMut(BuildEvent),
    ) -> Result<BuildResult, DaemonError> {
        Ok(self.build_and_describe(BuildOrder::Target(target), &[], on_event).await?.0)
    }

    /// The same for any order. Gives the records of those of the `outputs` that are valid then, too: over a
    /// network, a question after the build would take a round trip more.
    ///
    /// # Errors
    /// As of [`build`](Self::build); with outputs, the connection is not usable afterwards.
    pub async fn build_and_describe(
        &mut self,
        order: BuildOrder<'_>,
        outputs: &[StorePath],
        on_event: impl FnMut(BuildEvent),
    ) -> Result<(BuildResult, Vec<Option<ValidPath>>), DaemonError> {
        let dir = self.store_dir.clone();
        let request = match order {
            BuildOrder::Target(target) => {
                RequestBytes::default().number(BUILD_PATHS_WITH_RESULTS).texts(&[target.to_wire(&dir)])
            }
            BuildOrder::Sent(sent) => sent.to_wire(&dir),
        };
        let asked = outputs.iter().map(|path| path.in_dir(&dir));
        let requests = request.number(MODE_NORMAL).about(QUERY_PATH_INFO, asked);
        let (reports_cpu, limit) = (self.version() >= CPU_SINCE, self.operation_timeout);
        let mut reply = self.follow_build(requests, !outputs.is_empty(), on_event).await?;
        let built = match order {
            BuildOrder::Target(target) => result_of(&mut reply, &target.to_wire(&dir), reports_cpu).await?,
            BuildOrder::Sent(_) => result(&mut reply, reports_cpu).await?,
        };
        reply.set_patience(Some(Patience::new("asking about an output", limit)));
        let mut described = Vec::new();
        for output in outputs {
            stderr::until_last(&mut reply, |_| {}).await?;
            described.push(optional_path_info(&mut reply, &dir, output).await?);
        }
        reply.done((built, described))
    }

    /// Sends a request for a build, and tells of that until the result comes. With `more` requests behind it,
    /// whose replies nobody reads after an error.
    async fn follow_build(
        &mut self,
        request: RequestBytes,
        more: bool,
        mut on_event: impl FnMut(BuildEvent),
    ) -> Result<Reply<'_>, DaemonError> {
        let mut activities = Activities::new(self.store_dir.clone());
        self.has_temp_roots = true;
        self.begin(None, request).await?;
        let ended = stderr::until_last(&mut self.wire, |news| {
            if let Some(event) = activities.event(news) {
                on_event(event);
            }
        });
        let ended = ended.await;
        if let Err(DaemonError::Nix(text)) = &ended {
            on_event(BuildEvent::Message { text: text.clone() });
        }
        self.reply(ended, more)
    }
}

/// The result of one target among those of a request.
async fn result_of(reply: &mut Reply<'_>, key: &str, reports_cpu: bool) -> Result<BuildResult, DaemonError> {
    let mut found = None;
    for _ in 0..reply.count("a list of build results", RESULTS_MAX).await? {
        let of = reply.message("the target of a result").await?;
        let result = result(reply, reports_cpu).await?;
        if of == key {
            found = Some(result);
        }
    }
    found.ok_or_else(|| DaemonError::Protocol(format!("it has no result for {key}")))
}

async fn result(reply: &mut Reply<'_>, reports_cpu: bool) -> Result<BuildResult, DaemonError> {
    let status = BuildStatus::from_wire(reply.number().await?);
    let (message, _) = reply.builders_words("the message of a build").await?;
    let times_built = reply.number().await?;
    let _not_deterministic = reply.flag().await?;
    let start_time = reply.number().await?;
    let stop_time = reply.number().await?;
    let (cpu_user, cpu_system) =
        if reports_cpu { (cpu_time(reply).await?, cpu_time(reply).await?) } else { (None, None) };
    let mut outputs = BTreeMap::new();
    for _ in 0..reply.count("a list of outputs", LIST_ITEMS_MAX).await? {
        let id = reply.text("the name of an output").await?;
        let realisation = reply.message("a realisation").await?;
        let (name, path) = output(&id, &realisation)
            .ok_or_else(|| DaemonError::Protocol(format!("{id:?} with {realisation:?} is no output")))?;
        outputs.insert(name, path);
    }
    Ok(BuildResult { status, message, times_built, start_time, stop_time, cpu_user, cpu_system, outputs })
}

/// A number of microseconds that may be left out.
async fn cpu_time(reply: &mut Reply<'_>) -> Result<Option<Duration>, DaemonError> {
    match reply.number().await? {
        0 => Ok(None),
        1 => Ok(Some(Duration::from_micros(reply.number().await?))),
        other => Err(DaemonError::Protocol(format!(
            "{other} tells neither that a time is there nor that it is not"
        ))),
    }
}

/// The name follows the `!` of an id like `sha256:…!out`; the path is in a JSON object, as a base name.
fn output(id: &str, realisation: &str) -> Option<(String, StorePath)> {
    let (_, name) = id.split_once('!')?;
    let realisation: serde_json::Value = narinfo::json::from_str(realisation).ok()?;
    let path = StorePath::parse(realisation.get("outPath")?.as_str()?).ok()?;
    Some((name.to_owned(), path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> StorePath {
        StorePath::parse(&format!("{}-{name}", "a".repeat(32))).expect("a store path")
    }

    #[test]
    fn targets_are_spelled_as_nix_spells_them() {
        let (dir, drv) = (StoreDir::default(), path("x.drv"));
        let full = drv.in_dir(&dir);
        assert_eq!(BuildTarget::All { drv: drv.clone() }.to_wire(&dir), format!("{full}!*"));
        for (outputs, wire) in [(&["out", "dev"][..], "dev,out"), (&[], "*")] {
            let outputs = outputs.iter().map(ToString::to_string).collect();
            assert_eq!(
                BuildTarget::Outputs { drv: drv.clone(), outputs }.to_wire(&dir),
                format!("{full}!{wire}")
            );
        }
    }

    #[test]
    fn an_output_is_read_from_its_realisation() {
        let json = format!(
            r#"{{"dependentRealisations":{{}},"id":"sha256:00!dev","outPath":"{}","signatures":[]}}"#,
            path("x-dev")
        );
        assert_eq!(output("sha256:00!dev", &json), Some(("dev".into(), path("x-dev"))));
        for (id, json) in [
            ("sha256:00", json.as_str()),
            ("x!out", "{}"),
            ("x!out", "{"),
            ("x!out", r#"{"outPath":"../x"}"#),
        ] {
            assert_eq!(output(id, json), None);
        }
    }
}
