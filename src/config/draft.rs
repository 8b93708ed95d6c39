//! The settings of a server while they are read: each entry of the table fills a field, and what several
//! entries make together is made at the end, where it is also checked that they go together.

use std::net::Ipv4Addr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::error::Problem;
use super::machines::add_machines;
use super::raw::RawTable;
use crate::build::prebuild::allowance::{Allowance, Hours};
use crate::build::{Farm, LogSettings, Overtaking, Policy};
use crate::index::IndexLocation;
use crate::serve::{Roles, Settings, host_name};
use crate::upstream::{self, NetrcFile};
use crate::{
    auth, build, catalogue, http, import, index, key, nar_store, nix, requests, retention, substitute,
    telemetry,
};

pub(super) struct SettingsDraft {
    pub(super) settings: Settings,
    /// Bytes that stay free on the disk, where set.
    pub(super) min_free_bytes: Option<u64>,
    /// Socket of the daemon of the background lane.
    pub(super) background_daemon: Option<PathBuf>,
    /// Builds at a time on the local Nix daemon.
    pub(super) lanes: usize,
    /// Other machines in Nix's own syntax.
    pub(super) machines: Option<String>,
    pub(super) overtaking: Overtaking,
    pub(super) prebuild_hours: Option<Hours>,
    pub(super) prebuild_time_per_day: Duration,
}

impl SettingsDraft {
    pub(super) fn new(state_dir: PathBuf, nix: nix::Environment) -> Result<Self, Problem> {
        // A name has no colon and no white space.
        let host = host_name().replace(|c: char| c == ':' || c.is_whitespace(), "-");
        let name = format!("{host}-1");
        let reason = "the host's name makes no key name; choose one with key-name";
        let no_name = |_| RawTable::default().refuse("key-name", "", reason);
        let settings = Settings {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            state_dir,
            key_name: key::WantedName { name: name.parse().map_err(no_name)?, given: false },
            signing_keys: Vec::new(),
            nix,
            background: None,
            daemon: nix::Options::default(),
            capabilities: nix::CapabilitySettings::default(),
            upstream: upstream::Settings { netrc: NetrcFile::OfNix(nix::netrc_file()), ..Default::default() },
            nar_bytes_max: None,
            index: index::Settings::default(),
            roles: Roles::default(),
            narinfo_memory_bytes: 0,
            catalogue: catalogue::Settings::default(),
            substitute: substitute::Settings::default(),
            build: build::Settings::default(),
            farm: build::FarmSettings::default(),
            logs: LogSettings::default(),
            nar_store: nar_store::Settings {
                zstd_threads: nar_store::Settings::usual_threads(),
                ..Default::default()
            },
            retention: retention::Settings::default(),
            auth: auth::Settings::default(),
            import: import::Settings::default(),
            http: http::Settings::default(),
            requests: requests::Settings::default(),
            telemetry: telemetry::Settings::default(),
        };
        Ok(Self {
            settings,
            min_free_bytes: None,
            background_daemon: None,
            lanes: 1,
            machines: None,
            overtaking: Overtaking::default(),
            prebuild_hours: None,
            prebuild_time_per_day: Duration::ZERO,
        })
    }

    /// Trouble that may pass is waited out for as long everywhere.
    pub(super) fn set_transient_retry(&mut self, time: Duration) {
        let Settings { upstream, substitute, build, .. } = &mut self.settings;
        upstream.transient_retry = time;
        substitute.transient_retry = time;
        build.transient_retry = time;
    }

    /// Makes what depends on several settings. The table is what was written, for errors.
    ///
    /// # Errors
    /// Settings do not go together.
    pub(super) fn finish(mut self, written: &RawTable) -> Result<Settings, Problem> {
        self.retention();
        self.farm(written)?;
        self.order(written)?;
        self.prebuild(written)?;
        self.roles(written)?;
        self.publication(written)?;
        let Settings { logs, daemon, capabilities, upstream, substitute, http, .. } = &mut self.settings;
        substitute.report_retry = substitute.transient_retry.min(http.hold);
        if logs.logs_bytes_max < logs.log_bytes_max {
            let reason = "expected at least as many as max-build-log-bytes: a log that is as long as may be would be \
                          deleted as soon as it ends";
            return Err(written.refuse("max-total-log-bytes", "", reason));
        }
        capabilities.local = daemon.jobs > 0;
        // A daemon that does not trust this user heeds its own keys and builders alone.
        let keys = upstream.caches.iter().flat_map(|cache| &cache.public_keys);
        let keys: Vec<String> = keys.map(ToString::to_string).collect();
        let keys = (!keys.is_empty()).then(|| ("extra-trusted-public-keys".to_owned(), keys.join(" ")));
        let builders = capabilities.builders.iter().map(|machines| ("builders".to_owned(), machines.clone()));
        let log_size = ("max-build-log-size".to_owned(), logs.daemon_bytes_max().to_string());
        daemon.extra = keys.into_iter().chain(builders).chain([log_size]).collect();
        Ok(self.settings)
    }

    /// The machines that build. With others than its own, the daemon is told of none: they are used directly.
    fn farm(&mut self, written: &RawTable) -> Result<(), Problem> {
        let machines = self.machines.take();
        if let Some(machines) = &machines {
            let Settings { farm, nix, .. } = &mut self.settings;
            let added = add_machines(&mut farm.builders, machines, &nix.store_dir);
            added.map_err(|reason| written.refuse("builders", "", reason))?;
        }
        let Settings { farm, build, capabilities, .. } = &mut self.settings;
        farm.local_slots = NonZeroUsize::new(self.lanes);
        if farm.local_slots.is_none() && farm.builders.is_empty() {
            let reason = "expected 1 or more where there are no builders ([[builder]] or builders)";
            return Err(written.refuse("lanes", "", reason));
        }
        build.lanes = Farm::new(farm).lanes();
        if !farm.builders.is_empty() || machines.is_some() {
            capabilities.builders = Some(String::new());
        }
        Ok(())
    }

    fn retention(&mut self) {
        let bounds = &mut self.settings.retention;
        bounds.min_free = match self.min_free_bytes {
            Some(bytes) => retention::MinFree::Bytes(bytes),
            // Who has said how much may be stored does not mean the disk.
            None if bounds.max_bytes.is_some() => retention::MinFree::Bytes(0),
            None => retention::MinFree::Usual,
        };
    }

    /// The order of builds. Overtaking has a bound only where one build runs at a time.
    fn order(&mut self, written: &RawTable) -> Result<(), Problem> {
        let Settings { build, farm, nix, background, .. } = &mut self.settings;
        let overtakes = !self.overtaking.budget.is_zero();
        let has_others = build.lanes.get() > 1 || !farm.builders.is_empty();
        if overtakes && has_others {
            let reason = "expected 0s where lanes is more than 1 or there are builders: there is no bound to hold then";
            return Err(written.refuse("overtake-budget", "", reason));
        }
        build.policy = match self.background_daemon.take() {
            None if overtakes => Policy::Overtaking(self.overtaking),
            None => Policy::Strict,
            Some(_) if overtakes || has_others => {
                let reason = "it goes with lanes = 1, without builders and overtake-budget: only then is there a bound to hold";
                return Err(written.refuse("background-daemon", "", reason));
            }
            Some(socket) => {
                *background = Some(nix::Environment { socket, ..nix.clone() });
                Policy::Background
            }
        };
        Ok(())
    }

    /// A server that shares nothing has all parts.
    fn roles(&self, written: &RawTable) -> Result<(), Problem> {
        let Settings { roles, index, nar_store, .. } = &self.settings;
        let refuse = |reason| Err(written.refuse("roles", "", reason));
        if !roles.serve && !roles.schedule {
            return refuse("expected \"serve\", \"schedule\" or both");
        }
        let is_shared = index.location != IndexLocation::Sqlite && nar_store.bucket.is_some();
        if *roles != Roles::default() && !is_shared {
            return refuse(
                "only several servers over one PostgreSQL (index) and one bucket (nar-store) share roles",
            );
        }
        Ok(())
    }

    /// Narinfos are published beside NARs that others can read.
    fn publication(&self, written: &RawTable) -> Result<(), Problem> {
        let nar_store::Settings { publishes, bucket, .. } = &self.settings.nar_store;
        if *publishes && bucket.is_none() {
            let reason =
                "narinfos are published in the bucket that the NARs are in, and there is none: set nar-store";
            return Err(written.refuse("nar-store-publish", "", reason));
        }
        Ok(())
    }

    fn prebuild(&mut self, written: &RawTable) -> Result<(), Problem> {
        let Settings { build, substitute, .. } = &mut self.settings;
        if self.prebuild_hours.is_some() && substitute.build_from.is_empty() {
            return Err(written.refuse("prebuild", "", "nothing is built here, since build-from is empty"));
        }
        build.prebuild = self.prebuild_hours.map(|hours| Allowance::new(hours, self.prebuild_time_per_day));
        Ok(())
    }
}
