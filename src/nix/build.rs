//! Building one derivation through the daemon, and telling what happens meanwhile, line by line.
//! Keeps no log and gives no verdict: that is for those who ask for builds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use narinfo::{NarHash, StoreDir, StorePath};
use sha2::{Digest, Sha256};

use super::connection::{Daemon, Reply};
use super::error::DaemonError;
use super::operation::BUILD_PATHS_WITH_RESULTS;
use super::protocol::ProtocolVersion;
use super::resolved::SentDerivation;
use super::stderr::{DaemonMessage, Field};
use super::wire::{LIST_ITEMS_MAX, RequestBytes};

/// Neither repair nor check.
const MODE_NORMAL: u64 = 0;

/// The activity of building a derivation; its fields are the derivation, the machine, and two counters.
pub(super) const ACTIVITY_BUILD: u64 = 105;
/// A line that a builder printed.
pub(super) const RESULT_BUILD_LOG_LINE: u64 = 101;
/// A builder entered a phase.
pub(super) const RESULT_SET_PHASE: u64 = 104;
/// A line that a post-build hook printed.
const RESULT_HOOK_LOG_LINE: u64 = 107;

/// From here on a result has processor times.
const CPU_SINCE: ProtocolVersion = ProtocolVersion { major: 1, minor: 37 };

/// Running builds whose lines are told apart; lines of more come without their derivation.
const ACTIVITIES_MAX: usize = 10_000;
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

/// Something that happened during a build. Texts are as the daemon sent them, with their escape codes; bytes
/// that are not UTF-8 are U+FFFD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildEvent {
    /// A builder was started.
    Started {
        /// The derivation.
        drv: StorePath,
        /// The remote machine, or empty when it is this one.
        machine: String,
    },
    /// A builder entered a phase.
    Phase {
        /// The derivation.
        drv: Option<StorePath>,
        /// The name of the phase.
        phase: String,
    },
    /// A builder printed a line.
    LogLine {
        /// The derivation.
        drv: Option<StorePath>,
        /// The line, without its end, or its beginning.
        line: String,
        /// Bytes of a very long line that were dropped behind that.
        dropped: u64,
    },
    /// The daemon itself has to say something.
    Message {
        /// One or more lines of the log.
        text: String,
    },
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
        let key = target.to_wire(&self.store_dir);
        let request =
            RequestBytes::default().number(BUILD_PATHS_WITH_RESULTS).texts(&[&key]).number(MODE_NORMAL);
        let reports_cpu = self.version() >= CPU_SINCE;
        let mut reply = self.follow_build(request, on_event).await?;
        let mut found = None;
        for _ in 0..reply.count("a list of build results", RESULTS_MAX).await? {
            let of = reply.message("the target of a result").await?;
            let result = result(&mut reply, reports_cpu).await?;
            if of == key {
                found = Some(result);
            }
        }
        reply.done(())?;
        found.ok_or_else(|| DaemonError::Protocol(format!("it has no result for {key}")))
    }

    /// Builds a derivation whose file the daemon does not have, and the paths that it needs. For its outputs
    /// nothing speaks but this connection, so the daemon has to trust it. Else as [`build`](Self::build).
    ///
    /// # Errors
    /// As of [`build`](Self::build).
    pub async fn build_sent(
        &mut self,
        sent: &SentDerivation,
        on_event: impl FnMut(BuildEvent),
    ) -> Result<BuildResult, DaemonError> {
        let request = sent.to_wire(&self.store_dir).number(MODE_NORMAL);
        let reports_cpu = self.version() >= CPU_SINCE;
        let mut reply = self.follow_build(request, on_event).await?;
        let result = result(&mut reply, reports_cpu).await?;
        reply.done(result)
    }

    /// Sends a request for a build, and tells of that until the result comes.
    async fn follow_build(
        &mut self,
        request: RequestBytes,
        mut on_event: impl FnMut(BuildEvent),
    ) -> Result<Reply<'_>, DaemonError> {
        let mut activities = Activities { store_dir: self.store_dir.clone(), builds: HashMap::new() };
        self.has_temp_roots = true;
        let followed = self.follow(None, request, |news| {
            if let Some(event) = activities.event(news) {
                on_event(event);
            }
        });
        match followed.await {
            Err(DaemonError::Nix(text)) => {
                on_event(BuildEvent::Message { text: text.clone() });
                Err(DaemonError::Nix(text))
            }
            other => other,
        }
    }
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
    let realisation: serde_json::Value = serde_json::from_str(realisation).ok()?;
    let path = StorePath::parse(realisation.get("outPath")?.as_str()?).ok()?;
    Some((name.to_owned(), path))
}

/// The builds that run, by the number of their activity, so that a line finds its derivation.
struct Activities {
    store_dir: StoreDir,
    builds: HashMap<u64, StorePath>,
}

impl Activities {
    fn event(&mut self, news: DaemonMessage) -> Option<BuildEvent> {
        match news {
            DaemonMessage::Message(text) => Some(BuildEvent::Message { text }),
            DaemonMessage::Started { id, kind: ACTIVITY_BUILD, fields } => self.started(id, fields),
            DaemonMessage::Started { .. } => None,
            DaemonMessage::Stopped { id } => {
                self.builds.remove(&id);
                None
            }
            DaemonMessage::Result { id, kind, fields } => {
                let drv = self.builds.get(&id).cloned();
                let field = fields.into_iter().next()?;
                let dropped = field.dropped();
                let text = field.into_text()?;
                match kind {
                    RESULT_BUILD_LOG_LINE => Some(BuildEvent::LogLine { drv, line: text, dropped }),
                    RESULT_SET_PHASE => Some(BuildEvent::Phase { drv, phase: text }),
                    RESULT_HOOK_LOG_LINE => Some(BuildEvent::Message { text }),
                    _ => None,
                }
            }
        }
    }

    fn started(&mut self, id: u64, fields: Vec<Field>) -> Option<BuildEvent> {
        let mut texts = fields.into_iter().map_while(Field::into_text);
        let drv = StorePath::parse_in(&self.store_dir, &texts.next()?).ok()?;
        let machine = texts.next().unwrap_or_default();
        if self.builds.len() < ACTIVITIES_MAX {
            self.builds.insert(id, drv.clone());
        }
        Some(BuildEvent::Started { drv, machine })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> StorePath {
        StorePath::parse(&format!("{}-{name}", "a".repeat(32))).expect("a store path")
    }

    fn activities() -> Activities {
        Activities { store_dir: StoreDir::default(), builds: HashMap::new() }
    }

    fn start(id: u64, drv: &StorePath) -> DaemonMessage {
        let texts = [drv.in_dir(&StoreDir::default()), "ssh://big".into()];
        let fields = texts.map(Field::Text).into_iter().chain([Field::Number(1), Field::Number(1)]).collect();
        DaemonMessage::Started { id, kind: ACTIVITY_BUILD, fields }
    }

    fn line(id: u64) -> DaemonMessage {
        DaemonMessage::Result {
            id,
            kind: RESULT_BUILD_LOG_LINE,
            fields: vec![Field::Text("\u{1b}[1mx".into())],
        }
    }

    #[test]
    fn lines_find_their_derivation_while_it_is_built() {
        let (mut activities, drv) = (activities(), path("x.drv"));
        let started = BuildEvent::Started { drv: drv.clone(), machine: "ssh://big".into() };
        assert_eq!(activities.event(start(7, &drv)), Some(started));
        let expect = |drv| Some(BuildEvent::LogLine { drv, line: "\u{1b}[1mx".into(), dropped: 0 });
        assert_eq!(activities.event(line(7)), expect(Some(drv)));
        assert_eq!(activities.event(line(8)), expect(None));
        assert_eq!(activities.event(DaemonMessage::Stopped { id: 7 }), None);
        assert_eq!(activities.event(line(7)), expect(None));
    }

    #[test]
    fn a_daemon_that_never_ends_its_activities_does_not_fill_the_memory() {
        let (mut activities, drv) = (activities(), path("x.drv"));
        for id in 0..2 * ACTIVITIES_MAX as u64 {
            activities.event(start(id, &drv));
        }
        assert_eq!(activities.builds.len(), ACTIVITIES_MAX);
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
