//! Preparation of evaluations: locates the source, pins a flake, and makes the environment of evaluators and
//! their sandbox. Asks `nix` for what only Nix knows: the pin of a flake, its experimental features.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use narinfo::StorePath;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::Instant;

use super::Tools;
use super::error::RefreshError;
use super::evaluate::{
    Enclosure, Evaluator, EvaluatorEnd, EvaluatorEvent, EvaluatorLimits, Invocation, Program,
};
use super::gateway::AllowedHosts;
use super::sandbox::{Isolation, Sandbox};
use super::settings::SetSettings;
use super::source::{self, Prepared};
use super::walk::{Task, WalkError, shortened, trouble};

const NIX: Program = Program { name: "nix", prints: true };
/// Variables of this process that evaluators see, beside those that say where the store is.
const VARIABLES: [&str; 9] = [
    "PATH",
    "NIX_STORE_DIR",
    "NIX_STATE_DIR",
    "NIX_LOG_DIR",
    "NIX_LOCALSTATE_DIR",
    "NIX_CONF_DIR",
    "NIX_DATA_DIR",
    "NIX_SSL_CERT_FILE",
    "SSL_CERT_FILE",
];
/// Files of Nix's configuration that it reads.
const CONFIGURATION: [&str; 3] = ["nix.conf", "nix.custom.conf", "registry.json"];
/// A file there that Nix reads when it fetches.
const CREDENTIALS: &str = "netrc";
/// Experimental features of which only flakes have need: with them an expression can read paths that
/// restrict-eval bars.
const FEATURES_OF_FLAKES: [&str; 2] = ["flakes", "fetch-tree"];

/// The folder of temporary files in the home of evaluators.
pub(super) const TEMPORARY: &str = "tmp";

/// A set that is ready to be evaluated.
pub(super) struct Setup {
    /// Where it comes from.
    pub(super) source: Prepared,
    /// The environment of evaluators.
    variables: Vec<(String, OsString)>,
    /// `None` where the settings want no isolation.
    enclosure: Option<Enclosure>,
    /// The pinned path in the store, to be protected during the evaluation.
    pub(super) pinned: Option<StorePath>,
}

/// The output of `nix flake metadata`.
#[derive(serde::Deserialize)]
struct Metadata {
    /// The reference with what pins it.
    url: String,
    locked: Locked,
    /// Where its source is in the store.
    path: PathBuf,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Locked {
    rev: Option<String>,
    nar_hash: Option<String>,
    last_modified: Option<u64>,
    dir: Option<String>,
}

impl Setup {
    /// Finds the source of a set and pins it.
    ///
    /// # Errors
    /// Something is not there, the evaluator cannot be isolated, or Nix cannot make out the flake.
    pub(super) async fn new(tools: &Tools, set: &SetSettings) -> Result<Self, RefreshError> {
        let home = &tools.home;
        let temporary = home.join(TEMPORARY);
        std::fs::create_dir_all(&temporary).map_err(RefreshError::Source)?;
        let source = source::prepare(&set.origin, &set.evaluation).map_err(RefreshError::Source)?;
        let ours = VARIABLES.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let fixed = [
            ("NIX_REMOTE", OsString::from("daemon")),
            ("NIX_DAEMON_SOCKET_PATH", tools.nix.socket.clone().into()),
            ("HOME", home.into()),
            ("XDG_CACHE_HOME", home.join("cache").into()),
            ("TMPDIR", temporary.into()),
            ("LC_ALL", "C.UTF-8".into()),
        ];
        let variables = ours.chain(fixed).map(|(name, value)| (name.to_owned(), value)).collect();
        let enclosure = (tools.isolation == Isolation::Required).then(|| enclosure(tools, &source));
        let mut setup = Self { source, variables, enclosure, pinned: None };
        match setup.source.flake.clone() {
            Some(reference) => setup.pin(&reference, tools, set).await?,
            None => setup.without_flakes(set).await?,
        }
        Ok(setup)
    }

    /// A task for a system and until a moment.
    pub(super) fn task<'a>(
        &'a self,
        tools: &'a Tools,
        set: &'a SetSettings,
        system: &'a str,
        deadline: Instant,
    ) -> Task<'a> {
        Task {
            set,
            system,
            source: &self.source,
            store_dir: &tools.nix.store_dir,
            variables: &self.variables,
            enclosure: self.enclosure.as_ref(),
            deadline,
        }
    }

    /// Has the flake evaluated as it is now, and purely: what it takes in is pinned by its own lock file.
    async fn pin(&mut self, reference: &str, tools: &Tools, set: &SetSettings) -> Result<(), WalkError> {
        let arguments = ["flake", "metadata", "--json", "--no-write-lock-file", reference];
        let printed = self.ask_nix(&arguments, "nix-command flakes", set).await?;
        let told = narinfo::json::from_str(&printed.concat());
        let metadata: Metadata = told.map_err(|error| WalkError::Nonsense(error.to_string()))?;
        let Some(pinned) = metadata.pinned() else {
            tracing::warn!(set = %set.name, "flake is not evaluated purely, because its work tree has changes; commit them");
            return Ok(());
        };
        self.source.flake = Some(pinned);
        self.source.set("pure-eval", "true");
        let path = metadata.path.to_str();
        self.pinned = path.and_then(|path| StorePath::parse_in(&tools.nix.store_dir, path).ok());
        Ok(())
    }

    /// Leaves an expression all experimental features but those of flakes.
    async fn without_flakes(&mut self, set: &SetSettings) -> Result<(), WalkError> {
        // The newer name is unknown to Nix before 2.20, and the older one is deprecated.
        let mut printed = self.ask_nix(&["show-config"], "nix-command", set).await;
        if let Err(WalkError::Failed(_)) = printed {
            printed = self.ask_nix(&["config", "show"], "nix-command", set).await;
        }
        let printed = match printed {
            // Without what is enabled, it gets none.
            Err(WalkError::Failed(error)) => {
                tracing::warn!(set = %set.name, error, "cannot read nix's experimental features; evaluating without them");
                Vec::new()
            }
            printed => printed?,
        };
        let features = printed.iter().find_map(|line| line.strip_prefix("experimental-features = "));
        let left = features.unwrap_or_default().split_whitespace();
        let left: Vec<&str> = left.filter(|feature| !FEATURES_OF_FLAKES.contains(feature)).collect();
        self.source.set("experimental-features", &left.join(" "));
        Ok(())
    }

    /// The lines that `nix` prints, run as an evaluator is.
    async fn ask_nix(
        &self,
        arguments: &[&str],
        features: &str,
        set: &SetSettings,
    ) -> Result<Vec<String>, WalkError> {
        let limit = set.evaluation.attribute_time_max;
        let bounds = EvaluatorLimits {
            deadline: Instant::now() + limit,
            silence_max: limit,
            memory_bytes_max: set.evaluation.memory_bytes_max,
        };
        let mut all = vec!["--extra-experimental-features".to_owned(), features.to_owned()];
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        // Of a search path these commands understand nothing.
        all.extend(self.source.settings());
        let mut evaluator = Evaluator::start(Invocation {
            program: NIX,
            arguments: &all,
            variables: &self.variables,
            mark: "\0".to_owned(),
            bounds,
            enclosure: self.enclosure.as_ref(),
        })?;
        let mut lines = Vec::new();
        loop {
            let ending = match evaluator.step().await? {
                EvaluatorEvent::Line(line) => {
                    lines.push(line);
                    continue;
                }
                EvaluatorEvent::Ended(ending) => ending,
            };
            trouble(&ending)?;
            return match ending {
                EvaluatorEnd::Well => Ok(lines),
                EvaluatorEnd::Failed(text) | EvaluatorEnd::Died(text) => {
                    Err(WalkError::Failed(shortened(text)))
                }
                EvaluatorEnd::OutputLimit => Err(WalkError::OutputLimit),
                EvaluatorEnd::Silent | EvaluatorEnd::Late => Err(WalkError::Silent(limit)),
            };
        }
    }
}

impl Metadata {
    /// A reference that Nix evaluates purely. A revision names itself; what has none is taken from the store,
    /// where it is the same whatever becomes of the folder. `None` where Nix has no such reference, which is
    /// for a folder below a work tree with changes.
    fn pinned(&self) -> Option<String> {
        let Locked { rev, nar_hash, last_modified, dir } = &self.locked;
        if rev.is_some() {
            return Some(self.url.clone());
        }
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let mut pinned = format!("path:{}?narHash={}", self.path.to_str()?, encoded(nar_hash.as_ref()?));
        if let Some(seconds) = last_modified {
            pinned += &format!("&lastModified={seconds}");
        }
        dir.as_ref().is_none_or(String::is_empty).then_some(pinned)
    }
}

/// The kernel's limits of evaluators of this source.
fn enclosure(tools: &Tools, source: &Prepared) -> Enclosure {
    let mut sandbox = Sandbox::new(&tools.hidden);
    sandbox.sources.clone_from(&source.reads);
    sandbox.whole.clone_from(&source.reads_whole);
    sandbox.writable.insert(tools.home.clone());
    sandbox.readable.insert(tools.nix.store_dir.to_string().into());
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    sandbox
        .readable
        .extend(["NIX_DATA_DIR", "NIX_SSL_CERT_FILE", "SSL_CERT_FILE"].into_iter().filter_map(set));
    let configuration = set("NIX_CONF_DIR").unwrap_or_else(|| "/etc/nix".into());
    sandbox.readable.extend(CONFIGURATION.map(|file| configuration.join(file)));
    if source.reach != AllowedHosts::default() {
        sandbox.readable.insert(configuration.join(CREDENTIALS));
    }
    sandbox.readable.extend(programs());
    Enclosure { sandbox, reach: source.reach.clone() }
}

/// The folders of programs on the PATH, with the libraries beside them.
fn programs() -> BTreeSet<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).filter(|folder| folder.is_absolute());
    let libraries = |folder: &PathBuf| {
        let beside = folder.parent().filter(|_| folder.ends_with("bin") || folder.ends_with("sbin"));
        let beside = beside.filter(|beside| *beside != Path::new("/")).map(Path::to_owned);
        ["lib", "lib64", "libexec"].into_iter().filter_map(move |name| Some(beside.as_ref()?.join(name)))
    };
    folders.flat_map(|folder| libraries(&folder).chain([folder]).collect::<Vec<_>>()).collect()
}
