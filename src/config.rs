//! Settings: a TOML file, ONDINE_ variables and flags become the settings of each component.
//! One struct names every setting once; a flag wins over a variable, a variable over the file, the file over the default.

use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Command};
use narinfo::KeyName;
use serde::Deserialize;

use crate::serve::Settings;
use crate::substitute::Source;
use crate::{build, http, nar_store, nix, substitute};

/// Every setting as it is written: all optional, none checked beyond its type.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Written {
    /// Address and port to listen on; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, env = "ONDINE_LISTEN", value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Where the index, the NARs, the logs and the signing key are [default: $STATE_DIRECTORY, else ~/.local/state/ondine]
    #[arg(long, env = "ONDINE_STATE_DIR", value_name = "DIR")]
    #[serde(alias = "state_dir")]
    state_dir: Option<PathBuf>,
    /// Name of the signing key that the first start makes [default: HOSTNAME-1]
    #[arg(long, env = "ONDINE_KEY_NAME", value_name = "NAME")]
    #[serde(alias = "key_name")]
    key_name: Option<String>,
    /// Sources of derivations that may be built: "store"; empty to serve only [default: store]
    #[arg(long, env = "ONDINE_BUILD_FROM", value_name = "SOURCE", value_delimiter = ',', num_args = 0..)]
    #[serde(alias = "build_from")]
    build_from: Option<Vec<Source>>,
    /// Caches that the Nix daemon may take inputs from while it builds; never this one [default: none]
    #[arg(long, env = "ONDINE_BUILD_SUBSTITUTERS", value_name = "URL", value_delimiter = ',', num_args = 0..)]
    #[serde(alias = "build_substituters")]
    build_substituters: Option<Vec<String>>,
    /// Cores that one build may use; 0 is all [default: 0]
    #[arg(long, env = "ONDINE_BUILD_CORES", value_name = "N")]
    #[serde(alias = "build_cores")]
    build_cores: Option<u64>,
    /// Builds at a time, 1 to 32; more than 1 is for a daemon with remote builders [default: 1]
    #[arg(long, env = "ONDINE_LANES", value_name = "N")]
    lanes: Option<NonZeroUsize>,
    /// Remote machines that builds may run on, as Nix's setting of this name; the daemon must trust this user
    #[arg(long, env = "ONDINE_BUILDERS", value_name = "MACHINES")]
    builders: Option<String>,
    /// Builds that the daemon may run on this machine for each lane; 0 leaves them all to remote builders [default: 1]
    #[arg(long, env = "ONDINE_MAX_JOBS", value_name = "N")]
    #[serde(alias = "max_jobs")]
    max_jobs: Option<u64>,
    /// How much later a request may be delivered because shorter ones go first; only with one lane [default: 0s]
    #[arg(long, env = "ONDINE_OVERTAKE_BUDGET", value_name = "DURATION", value_parser = duration)]
    #[serde(alias = "overtake_budget", default, deserialize_with = "written_duration")]
    overtake_budget: Option<Duration>,
    /// How much is added to that budget, in percent of the work a request must wait for anyway, 0 to 100 [default: 0]
    #[arg(long, env = "ONDINE_OVERTAKE_SHARE", value_name = "PERCENT")]
    #[serde(alias = "overtake_share")]
    overtake_share: Option<u32>,
    /// Requests that may wait for builds; one more is refused [default: 10000]
    #[arg(long, env = "ONDINE_MAX_QUEUED", value_name = "N")]
    #[serde(alias = "max_queued")]
    max_queued: Option<usize>,
    /// Requests of one address that may wait for builds [default: 1000]
    #[arg(long, env = "ONDINE_MAX_QUEUED_PER_CLIENT", value_name = "N")]
    #[serde(alias = "max_queued_per_client")]
    max_queued_per_client: Option<usize>,
    /// Seconds that one build may take; 0 is no limit [default: 36000]
    #[arg(long, env = "ONDINE_MAX_BUILD_SECONDS", value_name = "SECONDS")]
    #[serde(alias = "max_build_seconds")]
    max_build_seconds: Option<u64>,
    /// Seconds that a build may say nothing; 0 is no limit [default: 7200]
    #[arg(long, env = "ONDINE_MAX_SILENT_SECONDS", value_name = "SECONDS")]
    #[serde(alias = "max_silent_seconds")]
    max_silent_seconds: Option<u64>,
    /// How long an answer is held before lines about the wait are sent, 0s to 250s [default: 20s]
    #[arg(long, env = "ONDINE_HOLD", value_name = "DURATION", value_parser = duration)]
    #[serde(default, deserialize_with = "written_duration")]
    hold: Option<Duration>,
    /// Time between two lines about the wait, 1s to 120s [default: 10s]
    #[arg(long, env = "ONDINE_KEEP_ALIVE", value_name = "DURATION", value_parser = duration)]
    #[serde(alias = "keep_alive", default, deserialize_with = "written_duration")]
    keep_alive: Option<Duration>,
    /// How long the failure of a build that is itself wrong is remembered [default: 24h]
    #[arg(long, env = "ONDINE_REMEMBER_PERMANENT", value_name = "DURATION", value_parser = duration)]
    #[serde(alias = "remember_permanent", default, deserialize_with = "written_duration")]
    remember_permanent: Option<Duration>,
    /// How long a failure of the machine is remembered [default: 5m]
    #[arg(long, env = "ONDINE_REMEMBER_PASSING", value_name = "DURATION", value_parser = duration)]
    #[serde(alias = "remember_passing", default, deserialize_with = "written_duration")]
    remember_passing: Option<Duration>,
    /// Priority among a client's caches, lower is asked first; cache.nixos.org has 40 [default: 50]
    #[arg(long, env = "ONDINE_PRIORITY", value_name = "N")]
    priority: Option<u32>,
    /// Let clients ask in bulk whether paths exist: each unknown one may start a build [default: false]
    #[arg(long, env = "ONDINE_WANT_MASS_QUERY", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    #[serde(alias = "want_mass_query")]
    want_mass_query: Option<bool>,
    /// zstd level of stored NARs, 1 (fast) to 19 (small) [default: 3]
    #[arg(long, env = "ONDINE_ZSTD_LEVEL", value_name = "LEVEL")]
    #[serde(alias = "zstd_level")]
    zstd_level: Option<i32>,
    /// How long open answers are given to end when the server stops, up to 1h [default: 30s]
    #[arg(long, env = "ONDINE_DRAIN", value_name = "DURATION", value_parser = duration)]
    #[serde(default, deserialize_with = "written_duration")]
    drain: Option<Duration>,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {}", file.display())]
    Read {
        /// The settings file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no TOML, or a value has the wrong type.
    #[error("{}", file.display())]
    Toml {
        /// The settings file.
        file: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A key that is no setting.
    #[error("{}: there is no setting \"{key}\"; did you mean \"{nearest}\"?", file.display())]
    Unknown {
        /// The settings file.
        file: PathBuf,
        /// The key.
        key: String,
        /// The setting with the nearest name.
        nearest: String,
    },
    /// A value out of bounds.
    #[error("{setting} = {value}: {expected}")]
    Bounds {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// No place for the state.
    #[error("where should the state be kept? Neither --state-dir, $STATE_DIRECTORY nor $HOME is set")]
    NoStateDir,
    /// The environment does not describe a Nix store.
    #[error("the Nix variables of the environment cannot be used")]
    Nix(#[from] nix::EnvironmentError),
}

impl Written {
    /// Reads a settings file. Dashes and underscores in names are the same.
    ///
    /// # Errors
    /// When it cannot be read, is no TOML, names an unknown setting or has a value of the wrong type.
    pub fn read(file: &Path) -> Result<Self, Error> {
        let text =
            fs::read_to_string(file).map_err(|source| Error::Read { file: file.to_owned(), source })?;
        let toml_error = |source| Error::Toml { file: file.to_owned(), source: Box::new(source) };
        let table: toml::Table = text.parse().map_err(toml_error)?;
        let known = known_settings();
        for written in table.keys() {
            let key = written.replace('_', "-");
            if !known.contains(&key) {
                let nearest = nearest(&key, &known);
                return Err(Error::Unknown { file: file.to_owned(), key: written.clone(), nearest });
            }
        }
        toml::from_str(&text).map_err(toml_error)
    }

    /// These settings, and those of `other` where these say nothing.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            listen: self.listen.or(other.listen),
            state_dir: self.state_dir.or(other.state_dir),
            key_name: self.key_name.or(other.key_name),
            build_from: self.build_from.or(other.build_from),
            build_substituters: self.build_substituters.or(other.build_substituters),
            build_cores: self.build_cores.or(other.build_cores),
            lanes: self.lanes.or(other.lanes),
            builders: self.builders.or(other.builders),
            max_jobs: self.max_jobs.or(other.max_jobs),
            overtake_budget: self.overtake_budget.or(other.overtake_budget),
            overtake_share: self.overtake_share.or(other.overtake_share),
            max_queued: self.max_queued.or(other.max_queued),
            max_queued_per_client: self.max_queued_per_client.or(other.max_queued_per_client),
            max_build_seconds: self.max_build_seconds.or(other.max_build_seconds),
            max_silent_seconds: self.max_silent_seconds.or(other.max_silent_seconds),
            hold: self.hold.or(other.hold),
            keep_alive: self.keep_alive.or(other.keep_alive),
            remember_permanent: self.remember_permanent.or(other.remember_permanent),
            remember_passing: self.remember_passing.or(other.remember_passing),
            priority: self.priority.or(other.priority),
            want_mass_query: self.want_mass_query.or(other.want_mass_query),
            zstd_level: self.zstd_level.or(other.zstd_level),
            drain: self.drain.or(other.drain),
        }
    }

    /// Only a state directory, if any.
    #[must_use]
    pub fn with_state_dir(state_dir: Option<PathBuf>) -> Self {
        Self { state_dir, ..Self::default() }
    }

    /// The state directory these settings name, or the default one.
    ///
    /// # Errors
    /// When nothing names one.
    pub fn state_dir(&self) -> Result<PathBuf, Error> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        self.state_dir
            .clone()
            .or_else(|| variable("STATE_DIRECTORY").map(PathBuf::from))
            .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".local/state/ondine")))
            .ok_or(Error::NoStateDir)
    }

    /// Fills in the defaults and checks the bounds.
    ///
    /// # Errors
    /// When a value is out of bounds, or the environment does not describe a Nix store.
    pub fn resolve(self) -> Result<Settings, Error> {
        let state_dir = self.state_dir()?;
        let nix = nix::Environment::from_env()?;
        let build = self.build()?;
        let key_name = self.key_name.unwrap_or_else(|| format!("{}-1", host_name()));
        let key_name = key_name.parse::<KeyName>().map_err(|_| Error::Bounds {
            setting: "key-name",
            value: key_name,
            expected: "a name has no colon and no white space",
        })?;
        let seconds = Duration::from_secs;
        let (hold, keep_alive) = (self.hold.unwrap_or(seconds(20)), self.keep_alive.unwrap_or(seconds(10)));
        // Clients give up after 300 s without a byte.
        within(
            "hold",
            hold,
            seconds(0),
            seconds(250),
            "0s to 250s, since clients give up after 300 s of silence",
        )?;
        within("keep-alive", keep_alive, seconds(1), seconds(120), "1s to 120s")?;
        let drain = self.drain.unwrap_or(seconds(30));
        within("drain", drain, seconds(0), seconds(3600), "0s to 1h")?;
        let zstd_level = self.zstd_level.unwrap_or(3);
        if !(1..=19).contains(&zstd_level) {
            return Err(Error::Bounds {
                setting: "zstd-level",
                value: zstd_level.to_string(),
                expected: "1 to 19",
            });
        }
        let listen = self.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080)));
        let build_from = self.build_from.unwrap_or_else(|| vec![Source::Store]);
        let substituters = self.build_substituters.unwrap_or_default();
        if let Some(own) = substituters.iter().find(|url| is_own(url, listen)) {
            // A build would wait for itself.
            return Err(Error::Bounds {
                setting: "build-substituters",
                value: own.clone(),
                expected: "another cache than this server itself is needed",
            });
        }
        let builders = self.builders.map(|machines| ("builders".to_owned(), machines));
        Ok(Settings {
            listen,
            state_dir,
            key_name,
            nix,
            daemon: nix::Options {
                build_cores: self.build_cores.unwrap_or(0),
                use_substitutes: !substituters.is_empty(),
                jobs: self.max_jobs.unwrap_or(1),
                extra: [("substituters".to_owned(), substituters.join(" "))]
                    .into_iter()
                    .chain(builders)
                    .collect(),
                ..nix::Options::default()
            },
            substitute: substitute::Settings { build_from },
            build,
            nar_store: nar_store::Settings { zstd_level },
            http: http::Settings {
                hold,
                keep_alive,
                priority: self.priority.unwrap_or(50),
                want_mass_query: self.want_mass_query.unwrap_or(false),
                drain,
            },
        })
    }
}

impl Written {
    /// The order of builds and their bounds.
    fn build(&self) -> Result<build::Settings, Error> {
        let lanes = self.lanes.unwrap_or(NonZeroUsize::MIN);
        within_numbers("lanes", lanes.get() as u64, 1, 32, "1 to 32")?;
        let share_percent = self.overtake_share.unwrap_or(0);
        within_numbers("overtake-share", share_percent.into(), 0, 100, "0 to 100")?;
        let budget = self.overtake_budget.unwrap_or_default();
        within("overtake-budget", budget, Duration::ZERO, Duration::from_secs(7 * 24 * 3600), "0s to 7d")?;
        if lanes.get() > 1 && !budget.is_zero() {
            return Err(Error::Bounds {
                setting: "overtake-budget",
                value: humantime::format_duration(budget).to_string(),
                expected: "with more than one lane there is no bound to hold, so it must be 0s",
            });
        }
        let limit = |seconds: u64| (seconds > 0).then(|| Duration::from_secs(seconds));
        Ok(build::Settings {
            remember_permanent: self.remember_permanent.unwrap_or(Duration::from_secs(24 * 3600)),
            remember_passing: self.remember_passing.unwrap_or(Duration::from_secs(300)),
            lanes,
            overtaking: (!budget.is_zero()).then_some(build::Overtaking { budget, share_percent }),
            queued_max: self.max_queued.unwrap_or(10_000),
            queued_per_client_max: self.max_queued_per_client.unwrap_or(1_000),
            build_max: limit(self.max_build_seconds.unwrap_or(36_000)),
            silent_max: limit(self.max_silent_seconds.unwrap_or(7_200)),
        })
    }
}

fn within_numbers(
    setting: &'static str,
    value: u64,
    min: u64,
    max: u64,
    expected: &'static str,
) -> Result<(), Error> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Error::Bounds { setting, value: value.to_string(), expected })
}

/// Whether a substituter's URL leads back to the address that we listen on, as far as its text tells.
fn is_own(url: &str, listen: SocketAddr) -> bool {
    let authority =
        url.split_once("://").map_or(url, |(_, rest)| rest).split(['/', '?']).next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host, port.parse().unwrap_or(80)),
        _ => (authority, 80),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let address = host.parse::<std::net::IpAddr>();
    let ours = host == "localhost"
        || host == host_name().to_ascii_lowercase()
        || address.is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified() || ip == listen.ip());
    port == listen.port() && ours
}

fn within(
    setting: &'static str,
    value: Duration,
    min: Duration,
    max: Duration,
    expected: &'static str,
) -> Result<(), Error> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Error::Bounds { setting, value: humantime::format_duration(value).to_string(), expected })
}

/// The names of all settings, as flags have them.
fn known_settings() -> Vec<String> {
    let command = Written::augment_args(Command::new("settings"));
    command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned)).collect()
}

fn nearest(key: &str, known: &[String]) -> String {
    let nearest =
        known.iter().max_by(|a, b| strsim::jaro_winkler(key, a).total_cmp(&strsim::jaro_winkler(key, b)));
    nearest.cloned().unwrap_or_default()
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn duration(text: &str) -> Result<Duration, humantime::DurationError> {
    humantime::parse_duration(text)
}

fn written_duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let example =
        |error| serde::de::Error::custom(format_args!("{error}; write a duration like \"20s\" or \"24h\""));
    duration(&text).map(Some).map_err(example)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Written, Error> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), text).expect("written");
        Written::read(file.path())
    }

    #[test]
    fn every_setting_can_be_written_in_the_file_and_set_by_a_variable() {
        let command = Written::augment_args(Command::new("settings"));
        let written = read(
            "listen = '[::1]:0'\nstate-dir = '/s'\nkey-name = 'k-1'\nbuild-from = ['store']\n\
             build-substituters = ['https://cache.example.org']\nbuild-cores = 2\nlanes = 2\n\
             builders = '@/etc/nix/machines'\nmax-jobs = 0\novertake-budget = '5m'\novertake-share = 10\n\
             max-queued = 5\nmax-queued-per-client = 2\nmax-build-seconds = 60\nmax-silent-seconds = 30\nhold = '1s'\nkeep-alive = '2s'\n\
             remember-permanent = '1h'\nremember-passing = '1m'\npriority = 30\nwant-mass-query = true\n\
             zstd-level = 1\ndrain = '5s'\n",
        )
        .expect("a good file");
        let debug = format!("{written:?}");
        assert!(!debug.contains("None"), "a setting is not in this file: {debug}");
        for arg in command.get_arguments() {
            let flag = arg.get_long().expect("every setting is a flag");
            let variable = format!("ONDINE_{}", flag.replace('-', "_").to_uppercase());
            assert_eq!(arg.get_env().and_then(|v| v.to_str()), Some(&*variable));
        }
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_the_nearest_setting() {
        let error = read("prioritty = 3").expect_err("no such setting").to_string();
        assert!(error.contains("\"prioritty\"") && error.contains("\"priority\""), "{error}");
    }

    #[test]
    fn dashes_and_underscores_are_the_same_but_not_both_at_once() {
        assert_eq!(read("zstd_level = 4").expect("a good file").zstd_level, Some(4));
        assert!(matches!(read("zstd_level = 4\nzstd-level = 5"), Err(Error::Toml { .. })));
    }

    #[test]
    fn a_wrong_value_is_an_error_that_says_where() {
        let error = read("priority = 1\nhold = 'soon'").expect_err("no duration");
        let text = std::error::Error::source(&error).expect("a cause").to_string();
        assert!(text.contains("line 2") && text.contains("20s"), "{text}");
        assert!(matches!(read("= 3"), Err(Error::Toml { .. })));
    }

    #[test]
    fn a_value_out_of_bounds_is_refused() {
        for text in [
            "hold = '251s'",
            "keep-alive = '0s'",
            "zstd-level = 20",
            "key-name = 'a:b'",
            "drain = '2h'",
            "lanes = 33",
            "overtake-share = 101",
            "overtake-budget = '8d'",
            "overtake-budget = '5m'\nlanes = 2",
        ] {
            let written = read(&format!("state-dir = '/s'\n{text}")).expect("a good file");
            assert!(matches!(written.resolve(), Err(Error::Bounds { .. })), "{text}");
        }
    }

    #[test]
    fn a_server_is_not_its_own_substituter() {
        let listen = SocketAddr::from(([192, 0, 2, 1], 8080));
        let by_name = format!("http://{}:8080", host_name());
        for url in [
            "http://localhost:8080",
            "http://127.0.0.1:8080/x",
            "http://[::1]:8080",
            "http://192.0.2.1:8080?p=1",
            &by_name,
        ] {
            assert!(is_own(url, listen), "{url}");
        }
        for url in
            ["https://cache.nixos.org", "http://localhost:8081", "http://192.0.2.2:8080", "file:///cache"]
        {
            assert!(!is_own(url, listen), "{url}");
        }
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let flag = Written { priority: Some(10), ..Written::default() };
        let merged = flag.or(read("priority = 20\nzstd-level = 7").expect("a good file"));
        assert_eq!((merged.priority, merged.zstd_level), (Some(10), Some(7)));
    }
}
