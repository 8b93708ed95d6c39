//! From what is written to the settings of each component: defaults filled in, bounds checked.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use narinfo::KeyName;

use super::bounds::{check, within, within_numbers, wrong};
use super::{Error, Written, catalogue, upstream};
use crate::build::prebuild::allowance::{Allowance, Hours};
use crate::serve::{Settings, host_name};
use crate::substitute::Source;
use crate::upstream::{CacheSettings, NetrcFile};
use crate::{build, http, keep, key, nar_store, nix, substitute};

/// A month: what is spoilt on a disk is spoilt slowly, and reading wears, too.
const SCRUB_SECONDS_DEFAULT: u64 = 30 * 24 * 3600;
/// Most of what is pre-built is never asked for.
const PREBUILD_SECONDS_DEFAULT: u64 = 7_200;

impl Written {
    /// Fills in the defaults and checks the bounds.
    ///
    /// # Errors
    /// When a value is out of bounds, or the environment does not describe a Nix store.
    pub fn resolve(self) -> Result<Settings, Error> {
        let state_dir = self.state_dir()?;
        let nix = nix::Environment::from_env()?;
        let build = self.build()?;
        let logs = self.logs()?;
        let given = self.key_name.is_some();
        let name = self.key_name.unwrap_or_else(|| format!("{}-1", host_name()));
        let name = name
            .parse::<KeyName>()
            .map_err(|_| wrong("key-name", name, "a name has no colon and no white space"))?;
        let key_name = key::WantedName { name, given };
        let seconds = Duration::from_secs;
        let (hold, keep_alive) =
            (self.hold.unwrap_or(seconds(20)), self.keep_alive_interval.unwrap_or(seconds(10)));
        // Clients give up after 300 s without a byte.
        within(
            "hold",
            hold,
            seconds(0),
            seconds(250),
            "0s to 250s, since clients give up after 300 s of silence",
        )?;
        within("keep-alive-interval", keep_alive, seconds(1), seconds(120), "1s to 120s")?;
        let drain = self.drain_timeout.unwrap_or(seconds(30));
        within("drain-timeout", drain, seconds(0), seconds(3600), "0s to 1h")?;
        let write_timeout = self.write_timeout.unwrap_or(seconds(60));
        within("write-timeout", write_timeout, seconds(1), seconds(3600), "1s to 1h")?;
        let public_url = self.public_url.map(|url| {
            url.parse().map_err(|_| {
                wrong(
                    "public-url",
                    url,
                    "http://HOST… or https://HOST… is needed, without a password or a query",
                )
            })
        });
        let public_url = public_url.transpose()?;
        let proxies = self.trusted_proxies.unwrap_or_default().into_iter().map(|text| {
            let network = http::TrustedProxies::parse_network(&text);
            network.ok_or_else(|| {
                wrong("trusted-proxies", text, "an address or a network is needed, such as 10.0.0.0/8")
            })
        });
        let trusted_proxies = proxies.collect::<Result<Vec<_>, _>>()?;
        let zstd_level = self.zstd_level.unwrap_or(1);
        within_numbers("zstd-level", zstd_level.into(), 1, 19, "1 to 19")?;
        let zstd_threads = self.zstd_threads.unwrap_or_else(nar_store::Settings::usual_threads);
        within_numbers("zstd-threads", zstd_threads.into(), 1, 64, "1 to 64")?;
        let keep_used = self.eviction_grace.unwrap_or(seconds(600));
        within("eviction-grace", keep_used, seconds(0), seconds(7 * 24 * 3600), "0s to 7d")?;
        let max_bytes = self.max_nar_store_bytes.filter(|bytes| *bytes > 0);
        let min_free = match self.min_free_bytes {
            Some(bytes) => keep::MinFree::Bytes(bytes),
            // Who has said how much may be stored does not mean the disk.
            None if max_bytes.is_some() => keep::MinFree::Bytes(0),
            None => keep::MinFree::Usual,
        };
        let scrub_every = self.scrub_interval.unwrap_or(seconds(SCRUB_SECONDS_DEFAULT));
        check(
            "scrub-interval",
            humantime::format_duration(scrub_every),
            scrub_every.is_zero() || scrub_every >= seconds(1),
            "1s or more, or 0s for never",
        )?;
        let scrub_every = Some(scrub_every).filter(|every| !every.is_zero());
        let keep = keep::Settings { max_bytes, min_free, keep_used, scrub_every };
        let listen = self.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080)));
        let build_from = self.build_from.unwrap_or_else(|| vec![Source::Store, Source::Catalogue]);
        let written = self.upstream.unwrap_or_default();
        let caches = written.into_iter().map(|written| upstream::resolve(written, listen));
        let caches = caches.collect::<Result<Vec<_>, _>>()?;
        let mut catalogue = catalogue::resolve(self.catalogue.unwrap_or_default(), nix::own_system())?;
        catalogue.isolation = self.evaluator_isolation.unwrap_or_default();
        let budget = self.upstream_lookup_timeout.unwrap_or(seconds(2));
        within("upstream-lookup-timeout", budget, Duration::from_millis(100), seconds(60), "100ms to 60s")?;
        let remember_missing = self.negative_ttl.unwrap_or(seconds(300));
        let netrc = self.netrc_file.map_or_else(|| NetrcFile::OfNix(nix::netrc_file()), NetrcFile::Named);
        let jobs = self.max_jobs.unwrap_or(1);
        let set = |names: Option<Vec<String>>| names.map(|names| names.into_iter().collect());
        let capabilities = nix::CapabilitySettings {
            systems: set(self.build_systems),
            features: set(self.build_features),
            builders: self.builders.clone(),
            local: jobs > 0,
        };
        let background = self.background_daemon.map(|socket| nix::Environment { socket, ..nix.clone() });
        let builders = self.builders.map(|machines| ("builders".to_owned(), machines));
        let log_size = ("max-build-log-size".to_owned(), logs.daemon_bytes_max().to_string());
        Ok(Settings {
            listen,
            state_dir,
            key_name,
            signing_keys: self.signing_key.unwrap_or_default(),
            nix,
            background,
            daemon: nix::Options {
                build_cores: self.build_cores.unwrap_or(0),
                jobs,
                extra: trusted_keys(&caches).into_iter().chain(builders).chain([log_size]).collect(),
                ..nix::Options::default()
            },
            capabilities,
            upstream: crate::upstream::Settings {
                caches,
                budget,
                remember_missing,
                netrc,
                transient_retry: build.transient_retry,
            },
            nar_bytes_max: self.max_upstream_nar_bytes,
            narinfo_memory_bytes: self.narinfo_memory_bytes.unwrap_or(8 * 1024 * 1024),
            catalogue,
            substitute: substitute::Settings {
                build_from,
                transient_retry: build.transient_retry,
                report_retry: build.transient_retry.min(hold),
            },
            build,
            logs,
            nar_store: nar_store::Settings {
                zstd_level,
                zstd_threads,
                memory_bytes_max: self.nar_memory_bytes.unwrap_or(16 * 1024 * 1024),
                plain_bytes_max: self.plain_nar_cache_bytes.unwrap_or(4 * 1024 * 1024 * 1024),
            },
            keep,
            http: http::Settings {
                hold,
                keep_alive,
                priority: self.priority.unwrap_or(50),
                want_mass_query: self.want_mass_query.unwrap_or(false),
                drain,
                write_timeout,
                public_url,
                trusted_proxies: http::TrustedProxies(trusted_proxies),
            },
        })
    }

    /// The order of builds and their bounds.
    fn build(&self) -> Result<build::Settings, Error> {
        let lanes = self.lanes.unwrap_or(1);
        within_numbers("lanes", i64::try_from(lanes).unwrap_or(i64::MAX), 1, 32, "1 to 32")?;
        let lanes = NonZeroUsize::new(lanes).unwrap_or(NonZeroUsize::MIN);
        let share_percent = self.overtake_share.unwrap_or(0);
        within_numbers("overtake-share", share_percent.into(), 0, 100, "0 to 100")?;
        let budget = self.overtake_budget.unwrap_or_default();
        within("overtake-budget", budget, Duration::ZERO, Duration::from_secs(7 * 24 * 3600), "0s to 7d")?;
        check(
            "overtake-budget",
            humantime::format_duration(budget),
            lanes.get() == 1 || budget.is_zero(),
            "with more than one lane there is no bound to hold, so it must be 0s",
        )?;
        let policy = match &self.background_daemon {
            None if budget.is_zero() => build::Policy::Strict,
            None => build::Policy::Overtaking(build::Overtaking { budget, share_percent }),
            Some(_) if budget.is_zero() && lanes.get() == 1 => build::Policy::Background,
            Some(socket) => {
                return Err(wrong(
                    "background-daemon",
                    socket.display(),
                    "it goes with lanes = 1 and without overtake-budget: only then is there a bound to hold",
                ));
            }
        };
        let derivations_max = self.max_derivations_per_request.unwrap_or(500);
        check(
            "max-derivations-per-request",
            derivations_max,
            derivations_max > 0,
            "1 or more; to build nothing, leave build-from empty",
        )?;
        let hours = match self.prebuild.as_deref() {
            None | Some("never") => None,
            Some(text) => Some(text.parse::<Hours>().map_err(|_| {
                wrong("prebuild", text, "hours such as \"22:00-06:00\", \"always\" or \"never\"")
            })?),
        };
        check(
            "prebuild",
            self.prebuild.as_deref().unwrap_or_default(),
            hours.is_none() || self.build_from.as_ref().is_none_or(|sources| !sources.is_empty()),
            "nothing is built here, since build-from is empty",
        )?;
        let transient_retry = self.transient_retry.unwrap_or(Duration::from_secs(600));
        within(
            "transient-retry",
            transient_retry,
            Duration::ZERO,
            Duration::from_secs(24 * 3600),
            "0s to 24h",
        )?;
        let per_day = Duration::from_secs(self.prebuild_time_per_day.unwrap_or(PREBUILD_SECONDS_DEFAULT));
        let limit = |seconds: u64| (seconds > 0).then(|| Duration::from_secs(seconds));
        Ok(build::Settings {
            remember_permanent: self.permanent_failure_ttl.unwrap_or(Duration::from_secs(24 * 3600)),
            remember_passing: self.transient_failure_ttl.unwrap_or(Duration::from_secs(300)),
            transient_retry,
            lanes,
            cores: self.build_cores.unwrap_or(0),
            policy,
            derivations_max,
            abandon_after: self.abandon_after.unwrap_or(Duration::from_secs(60)),
            queued_max: self.max_queued.unwrap_or(10_000),
            queued_per_client_max: self.max_queued_per_client.unwrap_or(1_000),
            build_max: limit(self.max_build_time.unwrap_or(36_000)),
            silent_max: limit(self.max_silent_time.unwrap_or(7_200)),
            prebuild: hours.map(|hours| Allowance::new(hours, per_day)),
        })
    }

    /// What is kept of logs. All of them must hold one that is as long as may be, or it would go as soon as it ends.
    fn logs(&self) -> Result<build::LogSettings, Error> {
        let log_bytes_max = self.max_build_log_bytes.unwrap_or(64 * 1024 * 1024);
        let logs_bytes_max = self.max_total_log_bytes.unwrap_or(1024 * 1024 * 1024);
        let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let (one, all) = (number(log_bytes_max), number(logs_bytes_max));
        within_numbers(
            "max-build-log-bytes",
            one,
            1024,
            i64::MAX,
            "1024 bytes or more; there is no \"no limit\"",
        )?;
        within_numbers("max-total-log-bytes", all, one, i64::MAX, "at least as many as max-build-log-bytes")?;
        Ok(build::LogSettings { log_bytes_max, logs_bytes_max })
    }
}

/// The keys of caches that builds take inputs from. A daemon that does not trust us heeds its own alone.
fn trusted_keys(caches: &[CacheSettings]) -> Option<(String, String)> {
    let keys: Vec<String> =
        caches.iter().flat_map(|cache| &cache.public_keys).map(ToString::to_string).collect();
    (!keys.is_empty()).then(|| ("extra-trusted-public-keys".to_owned(), keys.join(" ")))
}
