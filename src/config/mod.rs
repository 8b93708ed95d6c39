//! Settings: a TOML file, ONDINE_ variables and flags become the settings of each component.
//! One struct names every setting once; a flag wins over a variable, a variable over the file, the file over the default.

mod bounds;
mod catalogue;
mod file;
mod resolve;
#[cfg(test)]
mod tests;
mod upstream;
mod values;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Command};
use serde::Deserialize;

use crate::catalogue::Isolation;
use crate::nix;
use crate::substitute::Source;
use catalogue::WrittenSet;
use upstream::WrittenUpstream;
pub(crate) use values::bytes;
use values::{
    address, duration, seconds, written_address, written_bytes, written_duration, written_number,
    written_seconds,
};

/// Every setting as it is written: all optional, none checked beyond its type.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Written {
    /// Address and port to listen on; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, env = "ONDINE_LISTEN", value_name = "ADDR:PORT", value_parser = address)]
    #[serde(default, deserialize_with = "written_address")]
    listen: Option<SocketAddr>,
    /// Where the index, the NARs, the logs and the signing key are [default: $STATE_DIRECTORY, else ~/.local/state/ondine]
    #[arg(long, env = "ONDINE_STATE_DIR", value_name = "DIR")]
    #[serde(alias = "state_dir")]
    state_dir: Option<PathBuf>,
    /// Name of the signing key that the first start makes [default: HOSTNAME-1]
    #[arg(long, env = "ONDINE_KEY_NAME", value_name = "NAME")]
    #[serde(alias = "key_name")]
    key_name: Option<String>,
    /// Files of the signing keys, the first of which clients are told to trust, instead of those in the state directory [default: none]
    #[arg(long, env = "ONDINE_SIGNING_KEY", value_name = "FILE", value_delimiter = ',')]
    #[serde(alias = "signing_key")]
    signing_key: Option<Vec<PathBuf>>,
    /// Sources of derivations that may be built: "store", "catalogue"; empty to serve only [default: both]
    #[arg(long, env = "ONDINE_BUILD_FROM", value_name = "SOURCE", value_delimiter = ',', num_args = 0..)]
    #[serde(alias = "build_from")]
    build_from: Option<Vec<Source>>,
    /// Another cache, asked for what is not here: "URL PUBLIC-KEY…"; as a table [[upstream]] it takes more settings [default: none]
    #[arg(
        long,
        env = "ONDINE_UPSTREAM",
        hide_env_values = true,
        value_name = "URL KEY",
        value_delimiter = ','
    )]
    upstream: Option<Vec<WrittenUpstream>>,
    /// A package set, known before anyone asks: "NAME KIND:WHERE" (flake, expression or directory); as a table [[catalogue]] it takes more settings [default: none]
    #[arg(long, env = "ONDINE_CATALOGUE", value_name = "NAME SOURCE", value_delimiter = ',')]
    catalogue: Option<Vec<WrittenSet>>,
    /// Whether evaluators of package sets must be isolated by the kernel: "required", or "none" where all sets are trusted [default: required]
    #[arg(long, env = "ONDINE_EVALUATOR_ISOLATION", value_name = "ISOLATION")]
    #[serde(alias = "evaluator_isolation")]
    evaluator_isolation: Option<Isolation>,
    /// How long upstreams may take to say whether they have a path, up to 60s [default: 2s]
    #[arg(long, env = "ONDINE_UPSTREAM_LOOKUP_TIMEOUT", value_name = "DURATION", value_parser = duration)]
    #[serde(alias = "upstream_lookup_timeout", default, deserialize_with = "written_duration")]
    upstream_lookup_timeout: Option<Duration>,
    /// How long an upstream is remembered not to have a path [default: 5m]
    #[arg(long, env = "ONDINE_NEGATIVE_TTL", value_name = "DURATION", value_parser = duration)]
    #[serde(alias = "negative_ttl", default, deserialize_with = "written_duration")]
    negative_ttl: Option<Duration>,
    /// Netrc file with logins for upstreams: an absolute path, or a name in $CREDENTIALS_DIRECTORY [default: Nix's, where it can be read]
    #[arg(long, env = "ONDINE_NETRC_FILE", value_name = "FILE")]
    #[serde(alias = "netrc_file")]
    netrc_file: Option<PathBuf>,
    /// Cores that one build may use; 0 is all [default: 0]
    #[arg(long, env = "ONDINE_BUILD_CORES", value_name = "N")]
    #[serde(alias = "build_cores", default, deserialize_with = "written_number")]
    build_cores: Option<u64>,
    /// Systems that the daemon can build for, instead of those it is found to have [default: detected]
    #[arg(long, env = "ONDINE_BUILD_SYSTEMS", value_name = "SYSTEM", value_delimiter = ',', num_args = 0..)]
    #[serde(alias = "build_systems")]
    build_systems: Option<Vec<String>>,
    /// Features that the daemon offers builds, such as kvm, instead of those it is found to have [default: detected]
    #[arg(long, env = "ONDINE_BUILD_FEATURES", value_name = "FEATURE", value_delimiter = ',', num_args = 0..)]
    #[serde(alias = "build_features")]
    build_features: Option<Vec<String>>,
    /// Builds at a time, 1 to 32; more than 1 is for a daemon with remote builders [default: 1]
    #[arg(long, env = "ONDINE_LANES", value_name = "N")]
    #[serde(default, deserialize_with = "written_number")]
    lanes: Option<usize>,
    /// Remote machines that builds may run on, as Nix's setting of this name; the daemon must trust this user
    #[arg(long, env = "ONDINE_BUILDERS", value_name = "MACHINES")]
    builders: Option<String>,
    /// Builds that the daemon may run on this machine for each lane; 0 leaves them all to remote builders [default: 1]
    #[arg(long, env = "ONDINE_MAX_JOBS", value_name = "N")]
    #[serde(alias = "max_jobs", default, deserialize_with = "written_number")]
    max_jobs: Option<u64>,
    /// How much later a request may be delivered because shorter ones go first; only with one lane [default: 0s]
    #[arg(long, env = "ONDINE_OVERTAKE_BUDGET", value_name = "DURATION", value_parser = duration)]
    #[serde(alias = "overtake_budget", default, deserialize_with = "written_duration")]
    overtake_budget: Option<Duration>,
    /// How much is added to that budget, in percent of the work a request must wait for anyway, 0 to 100 [default: 0]
    #[arg(long, env = "ONDINE_OVERTAKE_SHARE", value_name = "PERCENT")]
    #[serde(alias = "overtake_share", default, deserialize_with = "written_number")]
    overtake_share: Option<u32>,
    /// Derivations that may have to be built for one request, which is refused else [default: 500]
    #[arg(long, env = "ONDINE_MAX_DERIVATIONS_PER_REQUEST", value_name = "N")]
    #[serde(alias = "max_derivations_per_request", default, deserialize_with = "written_number")]
    max_derivations_per_request: Option<usize>,
    /// Socket of a second Nix daemon of the same store, in a service with less CPUWeight: it builds short requests meanwhile [default: none]
    #[arg(long, env = "ONDINE_BACKGROUND_DAEMON", value_name = "PATH")]
    #[serde(alias = "background_daemon")]
    background_daemon: Option<PathBuf>,
    /// When what people ask for is built anew before they do: "always", or hours of local time such as "22:00-06:00" [default: never]
    #[arg(long, env = "ONDINE_PREBUILD", value_name = "HOURS")]
    prebuild: Option<String>,
    /// Seconds a day that may be pre-built [default: 7200]
    #[arg(long, env = "ONDINE_PREBUILD_TIME_PER_DAY", value_name = "SECONDS", value_parser = seconds)]
    #[serde(alias = "prebuild_time_per_day", default, deserialize_with = "written_seconds")]
    prebuild_time_per_day: Option<u64>,
    /// Requests that may wait for builds; one more is refused [default: 10000]
    #[arg(long, env = "ONDINE_MAX_QUEUED", value_name = "N")]
    #[serde(alias = "max_queued", default, deserialize_with = "written_number")]
    max_queued: Option<usize>,
    /// Requests of one address, or of one IPv6 network (/64), that may wait for builds [default: 1000]
    #[arg(long, env = "ONDINE_MAX_QUEUED_PER_CLIENT", value_name = "N")]
    #[serde(alias = "max_queued_per_client", default, deserialize_with = "written_number")]
    max_queued_per_client: Option<usize>,
    /// Seconds that one build may take; 0 is no limit [default: 36000]
    #[arg(long, env = "ONDINE_MAX_BUILD_TIME", value_name = "SECONDS", value_parser = seconds)]
    #[serde(alias = "max_build_time", default, deserialize_with = "written_seconds")]
    max_build_time: Option<u64>,
    /// Seconds that a build may say nothing; 0 is no limit [default: 7200]
    #[arg(long, env = "ONDINE_MAX_SILENT_TIME", value_name = "SECONDS", value_parser = seconds)]
    #[serde(alias = "max_silent_time", default, deserialize_with = "written_seconds")]
    max_silent_time: Option<u64>,
    /// Bytes that one build may write to its log, 1024 or more; one that writes more is stopped [default: 67108864]
    #[arg(long, env = "ONDINE_MAX_BUILD_LOG_BYTES", value_name = "BYTES", value_parser = bytes)]
    #[serde(alias = "max_build_log_bytes", default, deserialize_with = "written_bytes")]
    max_build_log_bytes: Option<u64>,
    /// Bytes of all logs together; the oldest are deleted when a build ends [default: 1073741824]
    #[arg(long, env = "ONDINE_MAX_TOTAL_LOG_BYTES", value_name = "BYTES", value_parser = bytes)]
    #[serde(alias = "max_total_log_bytes", default, deserialize_with = "written_bytes")]
    max_total_log_bytes: Option<u64>,
    /// How long a request of which nothing is built keeps its place after its last client has left [default: 60s]
    #[arg(long, env = "ONDINE_ABANDON_AFTER", value_name = "DURATION", value_parser = duration)]
    #[serde(alias = "abandon_after", default, deserialize_with = "written_duration")]
    abandon_after: Option<Duration>,
    /// How long an answer is held before lines about the wait are sent, 0s to 250s [default: 20s]
    #[arg(long, env = "ONDINE_HOLD", value_name = "DURATION", value_parser = duration)]
    #[serde(default, deserialize_with = "written_duration")]
    hold: Option<Duration>,
    /// Time between two lines about the wait, 1s to 120s [default: 10s]
    #[arg(long, env = "ONDINE_KEEP_ALIVE_INTERVAL", value_name = "DURATION", value_parser = duration)]
    #[serde(alias = "keep_alive_interval", default, deserialize_with = "written_duration")]
    keep_alive_interval: Option<Duration>,
    /// How long the failure of a build that is itself wrong is remembered [default: 24h]
    #[arg(long, env = "ONDINE_PERMANENT_FAILURE_TTL", value_name = "DURATION", value_parser = duration)]
    #[serde(alias = "permanent_failure_ttl", default, deserialize_with = "written_duration")]
    permanent_failure_ttl: Option<Duration>,
    /// How long a failure of the machine, or a refusal, is remembered [default: 5m]
    #[arg(long, env = "ONDINE_TRANSIENT_FAILURE_TTL", value_name = "DURATION", value_parser = duration)]
    #[serde(alias = "transient_failure_ttl", default, deserialize_with = "written_duration")]
    transient_failure_ttl: Option<Duration>,
    /// How long trouble that may pass, such as a Nix daemon that restarts, is waited out while clients are held, up to 24h [default: 10m]
    #[arg(long, env = "ONDINE_TRANSIENT_RETRY", value_name = "DURATION", value_parser = duration)]
    #[serde(alias = "transient_retry", default, deserialize_with = "written_duration")]
    transient_retry: Option<Duration>,
    /// Priority among a client's caches, lower is asked first; cache.nixos.org has 40 [default: 50]
    #[arg(long, env = "ONDINE_PRIORITY", value_name = "N")]
    #[serde(default, deserialize_with = "written_number")]
    priority: Option<u32>,
    /// Let clients ask in bulk whether paths exist: each unknown one may start a build [default: false]
    #[arg(long, env = "ONDINE_WANT_MASS_QUERY", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    #[serde(alias = "want_mass_query")]
    want_mass_query: Option<bool>,
    /// Bytes of all stored NARs together; those used longest ago are evicted, and had anew when asked for; 0 is no limit [default: 0]
    #[arg(long, env = "ONDINE_MAX_NAR_STORE_BYTES", value_name = "BYTES", value_parser = bytes)]
    #[serde(alias = "max_nar_store_bytes", default, deserialize_with = "written_bytes")]
    max_nar_store_bytes: Option<u64>,
    /// Bytes that stay free on the disk of the NARs, for which those used longest ago are evicted; 0 is none [default: without max-nar-store-bytes a twentieth of the disk, at most 4294967296, else 0]
    #[arg(long, env = "ONDINE_MIN_FREE_BYTES", value_name = "BYTES", value_parser = bytes)]
    #[serde(alias = "min_free_bytes", default, deserialize_with = "written_bytes")]
    min_free_bytes: Option<u64>,
    /// Time in which each stored NAR is read and verified once in the background, 1s or more; 0s is never [default: 30d]
    #[arg(long, env = "ONDINE_SCRUB_INTERVAL", value_name = "DURATION", value_parser = duration)]
    #[serde(alias = "scrub_interval", default, deserialize_with = "written_duration")]
    scrub_interval: Option<Duration>,
    /// Bytes that a NAR may have to be fetched from an upstream [default: half of what is free on the disk]
    #[arg(long, env = "ONDINE_MAX_UPSTREAM_NAR_BYTES", value_name = "BYTES", value_parser = bytes)]
    #[serde(alias = "max_upstream_nar_bytes", default, deserialize_with = "written_bytes")]
    max_upstream_nar_bytes: Option<u64>,
    /// How long after its last use nothing is evicted, whatever the limit [default: 10m]
    #[arg(long, env = "ONDINE_EVICTION_GRACE", value_name = "DURATION", value_parser = duration)]
    #[serde(alias = "eviction_grace", default, deserialize_with = "written_duration")]
    eviction_grace: Option<Duration>,
    /// Bytes of narinfos that are kept in memory, ready to be sent; 0 is none [default: 8388608]
    #[arg(long, env = "ONDINE_NARINFO_MEMORY_BYTES", value_name = "BYTES", value_parser = bytes)]
    #[serde(alias = "narinfo_memory_bytes", default, deserialize_with = "written_bytes")]
    narinfo_memory_bytes: Option<u64>,
    /// zstd level of stored NARs, 1 (fast) to 19 (small) [default: 1]
    #[arg(long, env = "ONDINE_ZSTD_LEVEL", value_name = "LEVEL")]
    #[serde(alias = "zstd_level", default, deserialize_with = "written_number")]
    zstd_level: Option<i32>,
    /// Threads that compress one NAR, 1 to 64; 1 for levels above 9 [default: one for each core, at most 4]
    #[arg(long, env = "ONDINE_ZSTD_THREADS", value_name = "NUMBER")]
    #[serde(alias = "zstd_threads", default, deserialize_with = "written_number")]
    zstd_threads: Option<u32>,
    /// Bytes of memory for small NARs that are asked for often; 0 is none [default: 16777216]
    #[arg(long, env = "ONDINE_NAR_MEMORY_BYTES", value_name = "BYTES", value_parser = bytes)]
    #[serde(alias = "nar_memory_bytes", default, deserialize_with = "written_bytes")]
    nar_memory_bytes: Option<u64>,
    /// Bytes on disk for plain copies of NARs that are asked for without compression; 0 is none [default: 4294967296]
    #[arg(long, env = "ONDINE_PLAIN_NAR_CACHE_BYTES", value_name = "BYTES", value_parser = bytes)]
    #[serde(alias = "plain_nar_cache_bytes", default, deserialize_with = "written_bytes")]
    plain_nar_cache_bytes: Option<u64>,
    /// Address of this cache as clients write it, with its scheme, http or https [default: that of listen]
    #[arg(long, env = "ONDINE_PUBLIC_URL", value_name = "URL")]
    #[serde(alias = "public_url")]
    public_url: Option<String>,
    /// Reverse proxies, as addresses or networks (10.0.0.0/8), whose X-Forwarded-For, -Proto and -Host are believed [default: none]
    #[arg(long, env = "ONDINE_TRUSTED_PROXIES", value_name = "NETWORK", value_delimiter = ',', num_args = 0..)]
    #[serde(alias = "trusted_proxies")]
    trusted_proxies: Option<Vec<String>>,
    /// How long a client may take no byte of what waits for it until its connection is closed, 1s to 1h [default: 1m]
    #[arg(long, env = "ONDINE_WRITE_TIMEOUT", value_name = "DURATION", value_parser = duration)]
    #[serde(alias = "write_timeout", default, deserialize_with = "written_duration")]
    write_timeout: Option<Duration>,
    /// How long open answers are given to end when the server stops, up to 1h [default: 30s]
    #[arg(long, env = "ONDINE_DRAIN_TIMEOUT", value_name = "DURATION", value_parser = duration)]
    #[serde(default, deserialize_with = "written_duration")]
    drain_timeout: Option<Duration>,
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
    #[error("{}:{line}: there is no setting \"{key}\"{place}; did you mean \"{nearest}\"?", file.display())]
    Unknown {
        /// The settings file.
        file: PathBuf,
        /// Where in it.
        line: usize,
        /// The key.
        key: String,
        /// The table that it is in.
        place: &'static str,
        /// The setting with the nearest name.
        nearest: String,
    },
    /// A list of tables is written as one table.
    #[error("{}:{line}: there may be several, so write [[{name}]] with two brackets each", file.display())]
    SingleTable {
        /// The settings file.
        file: PathBuf,
        /// Where in it.
        line: usize,
        /// The list.
        name: &'static str,
    },
    /// A value out of bounds that stands in the file.
    #[error("{}:{line}: {error}", file.display())]
    At {
        /// The settings file.
        file: PathBuf,
        /// Where in it.
        line: usize,
        /// Which value, and what it may be.
        error: Box<Error>,
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
    /// These settings, and those of `other` where these say nothing.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            listen: self.listen.or(other.listen),
            state_dir: self.state_dir.or(other.state_dir),
            key_name: self.key_name.or(other.key_name),
            signing_key: self.signing_key.or(other.signing_key),
            build_from: self.build_from.or(other.build_from),
            upstream: self.upstream.or(other.upstream),
            catalogue: self.catalogue.or(other.catalogue),
            evaluator_isolation: self.evaluator_isolation.or(other.evaluator_isolation),
            upstream_lookup_timeout: self.upstream_lookup_timeout.or(other.upstream_lookup_timeout),
            negative_ttl: self.negative_ttl.or(other.negative_ttl),
            netrc_file: self.netrc_file.or(other.netrc_file),
            build_cores: self.build_cores.or(other.build_cores),
            build_systems: self.build_systems.or(other.build_systems),
            build_features: self.build_features.or(other.build_features),
            lanes: self.lanes.or(other.lanes),
            builders: self.builders.or(other.builders),
            max_jobs: self.max_jobs.or(other.max_jobs),
            overtake_budget: self.overtake_budget.or(other.overtake_budget),
            overtake_share: self.overtake_share.or(other.overtake_share),
            max_derivations_per_request: self
                .max_derivations_per_request
                .or(other.max_derivations_per_request),
            background_daemon: self.background_daemon.or(other.background_daemon),
            prebuild: self.prebuild.or(other.prebuild),
            prebuild_time_per_day: self.prebuild_time_per_day.or(other.prebuild_time_per_day),
            max_queued: self.max_queued.or(other.max_queued),
            max_queued_per_client: self.max_queued_per_client.or(other.max_queued_per_client),
            max_build_time: self.max_build_time.or(other.max_build_time),
            max_silent_time: self.max_silent_time.or(other.max_silent_time),
            max_build_log_bytes: self.max_build_log_bytes.or(other.max_build_log_bytes),
            max_total_log_bytes: self.max_total_log_bytes.or(other.max_total_log_bytes),
            abandon_after: self.abandon_after.or(other.abandon_after),
            hold: self.hold.or(other.hold),
            keep_alive_interval: self.keep_alive_interval.or(other.keep_alive_interval),
            permanent_failure_ttl: self.permanent_failure_ttl.or(other.permanent_failure_ttl),
            transient_failure_ttl: self.transient_failure_ttl.or(other.transient_failure_ttl),
            transient_retry: self.transient_retry.or(other.transient_retry),
            priority: self.priority.or(other.priority),
            want_mass_query: self.want_mass_query.or(other.want_mass_query),
            max_nar_store_bytes: self.max_nar_store_bytes.or(other.max_nar_store_bytes),
            min_free_bytes: self.min_free_bytes.or(other.min_free_bytes),
            scrub_interval: self.scrub_interval.or(other.scrub_interval),
            max_upstream_nar_bytes: self.max_upstream_nar_bytes.or(other.max_upstream_nar_bytes),
            eviction_grace: self.eviction_grace.or(other.eviction_grace),
            narinfo_memory_bytes: self.narinfo_memory_bytes.or(other.narinfo_memory_bytes),
            zstd_level: self.zstd_level.or(other.zstd_level),
            zstd_threads: self.zstd_threads.or(other.zstd_threads),
            nar_memory_bytes: self.nar_memory_bytes.or(other.nar_memory_bytes),
            plain_nar_cache_bytes: self.plain_nar_cache_bytes.or(other.plain_nar_cache_bytes),
            public_url: self.public_url.or(other.public_url),
            trusted_proxies: self.trusted_proxies.or(other.trusted_proxies),
            write_timeout: self.write_timeout.or(other.write_timeout),
            drain_timeout: self.drain_timeout.or(other.drain_timeout),
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

/// Variables that look like settings and are none, each with the nearest that is one. They are told, not refused: systems
/// such as Kubernetes set variables that begin with the name of a service.
#[must_use]
pub fn unknown_variables() -> Vec<(String, String)> {
    let variable = |name: &String| format!("ONDINE_{}", name.replace('-', "_").to_uppercase());
    let mut known: Vec<String> = known_settings().iter().map(variable).collect();
    known.extend(["ONDINE_CONFIG", "ONDINE_LOG"].map(str::to_owned));
    let written = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let unknown = written.filter(|name| name.starts_with("ONDINE_") && !known.contains(name));
    unknown.map(|name| (name.clone(), nearest(&name, &known))).collect()
}
