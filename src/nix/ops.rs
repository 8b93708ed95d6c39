//! The daemon's operations that answer at once: one request and one reply each, numbered as in Nix's worker
//! protocol. Builds are in `build.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use narinfo::{DrvOutput, REALISATION_BYTES_MAX, Realisation, StorePath, StorePathHash};

use super::build::BuildTarget;
use super::connection::Daemon;
use super::error::DaemonError;
use super::operation::{
    ADD_INDIRECT_ROOT, ADD_TEMP_ROOT, ADD_TO_STORE, ENSURE_PATH, IS_VALID_PATH, QUERY_ALL_VALID_PATHS,
    QUERY_DERIVATION_OUTPUT_MAP, QUERY_MISSING, QUERY_PATH_FROM_HASH_PART, QUERY_PATH_INFO,
    QUERY_REALISATION, QUERY_VALID_DERIVERS, QUERY_VALID_PATHS, SET_OPTIONS,
};
use super::path_info::{ValidPath, optional_path_info, path_info};
use super::wire::{LIST_ITEMS_MAX, RequestBytes};

/// Requests that are sent before the first reply is read, at most: they fit into the socket.
const PIPELINED_MAX: usize = 256;
/// GC roots of one round trip, each with two requests.
const ROOTS_PIPELINED_MAX: usize = PIPELINED_MAX / 2;
/// Nix's level of messages that `nix build` shows by default.
const VERBOSITY_INFO: u64 = 3;
/// Nix's most talkative level: what is shown from there only is not shown.
const VERBOSITY_VOMIT: u64 = 7;
/// Nix reads its numbers of seconds and of cores into this many bits.
const SETTING_MAX: u64 = u32::MAX as u64;

/// Options of builds on one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Seconds without a line of log after which a builder is stopped; 0 means never.
    pub max_silent_seconds: u64,
    /// Builds at a time on this machine for each connection; 0 leaves them to remote builders.
    pub jobs: u64,
    /// NIX_BUILD_CORES of builders; 0 means all.
    pub build_cores: u64,
    /// The caches that the daemon may fetch from, separated by spaces. They must not lead back to ourselves.
    pub substituters: String,
    /// Continues with derivations that do not depend on a failed one.
    pub keep_going: bool,
    /// More settings of Nix by name, such as `timeout`. A daemon that does not trust us ignores most of them.
    pub extra: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_silent_seconds: 0,
            jobs: 1,
            build_cores: 0,
            substituters: String::new(),
            keep_going: false,
            extra: Vec::new(),
        }
    }
}

/// The work that makes targets valid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MissingPaths {
    /// Derivations that are built.
    pub will_build: BTreeSet<StorePath>,
    /// Paths that are fetched from substituters.
    pub will_substitute: BTreeSet<StorePath>,
    /// Paths that nothing gives.
    pub unknown: BTreeSet<StorePath>,
    /// Bytes to download, compressed.
    pub download_size: u64,
    /// Bytes of the NARs, plain.
    pub nar_size: u64,
}

/// An operation that the daemon refuses fails with [`DaemonError::Nix`] and leaves the connection usable; any
/// other error does not.
impl Daemon {
    /// Sets how this connection builds.
    ///
    /// # Errors
    /// The daemon refuses ([`DaemonError::Nix`]) or is lost.
    pub async fn set_options(&mut self, options: &Options) -> Result<(), DaemonError> {
        let mut request = RequestBytes::default()
            .number(SET_OPTIONS)
            .number(0) // keep the folders of failed builds
            .number(options.keep_going.into())
            .number(1) // build what cannot be fetched
            .number(VERBOSITY_INFO)
            .number(options.jobs.min(SETTING_MAX)) // builds at a time
            .number(options.max_silent_seconds.min(SETTING_MAX))
            .number(1) // use remote builders: obsolete
            .number(VERBOSITY_VOMIT)
            .number(0) // kind of log: obsolete
            .number(0) // trace builds: obsolete
            .number(options.build_cores.min(SETTING_MAX))
            .number((!options.substituters.is_empty()).into())
            .number(options.extra.len() as u64 + 1)
            .text("substituters")
            .text(&options.substituters);
        for (name, value) in &options.extra {
            request = request.text(name).text(value);
        }
        self.ask("setting options", request).await?.done(())
    }

    /// True if the path is in the store.
    ///
    /// # Errors
    /// If the daemon refuses ([`DaemonError::Nix`]) or is lost.
    pub async fn is_valid_path(&mut self, path: &StorePath) -> Result<bool, DaemonError> {
        let request = self.about(IS_VALID_PATH, path);
        let mut reply = self.ask("asking whether a path is valid", request).await?;
        let valid = reply.flag().await?;
        reply.done(valid)
    }

    /// Holds a path, valid or not, for as long as this connection lives.
    ///
    /// # Errors
    /// The daemon refuses ([`DaemonError::Nix`]) or is lost.
    pub async fn add_temp_root(&mut self, path: &StorePath) -> Result<(), DaemonError> {
        let request = self.about(ADD_TEMP_ROOT, path);
        self.has_temp_roots = true;
        let mut reply = self.ask("adding a temporary root", request).await?;
        reply.number().await?;
        reply.done(())
    }

    /// Holds those of `paths` that are valid for as long as this connection lives, and gives the others,
    /// which are held once they are. Nothing is asked about what is held already; all else takes one round
    /// trip for each `PIPELINED_MAX` paths.
    ///
    /// # Errors
    /// The daemon refuses ([`DaemonError::Nix`]) or is lost; the connection is not usable afterwards.
    pub async fn hold_valid(
        &mut self,
        paths: impl IntoIterator<Item = &StorePath>,
    ) -> Result<BTreeSet<StorePath>, DaemonError> {
        let mut unsure: BTreeSet<StorePath> = paths.into_iter().cloned().collect();
        unsure.retain(|path| !self.held.contains(path));
        let dir = self.store_dir.clone();
        let asked: Vec<String> = unsure.iter().map(|path| path.in_dir(&dir)).collect();
        for chunk in asked.chunks(PIPELINED_MAX) {
            self.has_temp_roots = true;
            // First the roots, so that none of them is collected once it was found to be valid.
            let roots = RequestBytes::default().about(ADD_TEMP_ROOT, chunk);
            let requests = roots.number(QUERY_VALID_PATHS).texts(chunk).number(0);
            self.begin_many("asking which paths are valid", requests).await?;
            for _ in chunk {
                self.next_reply().await?.number().await?;
            }
            let valid = self.next_reply().await?.paths(&dir).await?;
            self.end_many();
            unsure.retain(|path| !valid.contains(path));
            self.held.extend(valid);
        }
        Ok(unsure)
    }

    /// Has the daemon fetch a path from its substituters, unless it is valid.
    ///
    /// # Errors
    /// None of them has it ([`DaemonError::Nix`]), or the daemon is lost.
    pub async fn ensure_path(&mut self, path: &StorePath) -> Result<(), DaemonError> {
        let request = self.about(ENSURE_PATH, path);
        let mut reply = self.ask("fetching a path", request).await?;
        reply.number().await?;
        reply.done(())
    }

    /// Protects the store path that the symlink at `link` (an absolute path) points to, for as long as it
    /// does.
    ///
    /// # Errors
    /// If the daemon refuses ([`DaemonError::Nix`]) or is lost.
    pub async fn add_indirect_root(&mut self, link: &Path) -> Result<(), DaemonError> {
        let request = RequestBytes::default().number(ADD_INDIRECT_ROOT).bytes(link.as_os_str().as_bytes());
        let mut reply = self.ask("adding a GC root", request).await?;
        reply.number().await?;
        reply.done(())
    }

    /// Protects paths by the symlinks to them, and for as long as this connection lives, in one round trip
    /// for each `ROOTS_PIPELINED_MAX` of them.
    ///
    /// # Errors
    /// The daemon refuses ([`DaemonError::Nix`]) or is lost; the connection is not usable afterwards.
    pub async fn add_roots(&mut self, roots: &[(PathBuf, &StorePath)]) -> Result<(), DaemonError> {
        for chunk in roots.chunks(ROOTS_PIPELINED_MAX) {
            self.has_temp_roots = true;
            let mut requests = RequestBytes::default();
            for (link, path) in chunk {
                requests = requests.number(ADD_INDIRECT_ROOT).bytes(link.as_os_str().as_bytes());
                requests = requests.about(ADD_TEMP_ROOT, [path.in_dir(&self.store_dir)]);
            }
            self.begin_many("adding GC roots", requests).await?;
            for _ in 0..2 * chunk.len() {
                self.next_reply().await?.number().await?;
            }
            self.end_many();
        }
        Ok(())
    }

    /// Writes a text file that refers to `references`, which must be valid: a root of the file protects them.
    /// This connection is a temporary root.
    ///
    /// # Errors
    /// If the daemon refuses ([`DaemonError::Nix`], also if one of them is not valid) or is lost.
    pub async fn add_text(
        &mut self,
        name: &str,
        text: &str,
        references: impl IntoIterator<Item = &StorePath>,
    ) -> Result<StorePath, DaemonError> {
        let references: Vec<String> =
            references.into_iter().map(|path| path.in_dir(&self.store_dir)).collect();
        let request = RequestBytes::default()
            .number(ADD_TO_STORE)
            .text(name)
            .text("text:sha256")
            .texts(&references)
            .number(0) // do not repair
            .framed(text.as_bytes());
        self.has_temp_roots = true;
        let mut reply = self.ask("writing a file to the store", request).await?;
        let dir = reply.store_dir();
        let path = reply.path(&dir).await?;
        path_info(&mut reply, &dir, &path).await?;
        reply.done(path)
    }

    /// Nix's record of `path`, or `None` if it is not valid.
    ///
    /// # Errors
    /// If the daemon refuses ([`DaemonError::Nix`]) or is lost.
    pub async fn query_path_info(&mut self, path: &StorePath) -> Result<Option<ValidPath>, DaemonError> {
        let request = self.about(QUERY_PATH_INFO, path);
        let mut reply = self.ask("asking about a path", request).await?;
        let dir = reply.store_dir();
        let info = optional_path_info(&mut reply, &dir, path).await?;
        reply.done(info)
    }

    /// Nix's records of some paths, each as of [`query_path_info`](Self::query_path_info), in one round trip.
    ///
    /// # Errors
    /// The daemon refuses ([`DaemonError::Nix`]) or is lost; the connection is not usable afterwards.
    pub async fn query_path_infos(
        &mut self,
        paths: &[StorePath],
    ) -> Result<Vec<Option<ValidPath>>, DaemonError> {
        let dir = self.store_dir.clone();
        let mut infos = Vec::with_capacity(paths.len());
        for chunk in paths.chunks(PIPELINED_MAX) {
            let asked = chunk.iter().map(|path| path.in_dir(&dir));
            let requests = RequestBytes::default().about(QUERY_PATH_INFO, asked);
            self.begin_many("asking about paths", requests).await?;
            for path in chunk {
                let mut reply = self.next_reply().await?;
                infos.push(optional_path_info(&mut reply, &dir, path).await?);
            }
            self.end_many();
        }
        Ok(infos)
    }

    /// The valid path with this hash.
    ///
    /// # Errors
    /// The daemon refuses ([`DaemonError::Nix`]) or is lost.
    pub async fn query_path_from_hash_part(
        &mut self,
        hash: StorePathHash,
    ) -> Result<Option<StorePath>, DaemonError> {
        let request = RequestBytes::default().number(QUERY_PATH_FROM_HASH_PART).text(hash.as_str());
        let mut reply = self.ask("looking for a path by its hash", request).await?;
        let dir = reply.store_dir();
        let path = reply.optional_path(&dir).await?;
        reply.done(path)
    }

    /// Every path in the store: seconds, and some hundred MB, where the store has a million.
    ///
    /// # Errors
    /// The daemon refuses ([`DaemonError::Nix`]) or is lost.
    pub async fn query_all_valid_paths(&mut self) -> Result<BTreeSet<StorePath>, DaemonError> {
        let request = RequestBytes::default().number(QUERY_ALL_VALID_PATHS);
        let mut reply = self.ask("listing all paths", request).await?;
        let dir = reply.store_dir();
        let paths = reply.paths(&dir).await?;
        reply.done(paths)
    }

    /// Those of the paths that are in the store; nothing is substituted.
    ///
    /// # Errors
    /// The daemon refuses ([`DaemonError::Nix`]) or is lost.
    pub async fn query_valid_paths(
        &mut self,
        paths: impl IntoIterator<Item = &StorePath>,
    ) -> Result<BTreeSet<StorePath>, DaemonError> {
        let paths: Vec<String> = paths.into_iter().map(|path| path.in_dir(&self.store_dir)).collect();
        let request = RequestBytes::default().number(QUERY_VALID_PATHS).texts(&paths).number(0);
        let mut reply = self.ask("asking which paths are valid", request).await?;
        let dir = reply.store_dir();
        let valid = reply.paths(&dir).await?;
        reply.done(valid)
    }

    /// Has the daemon fetch what it can of the paths from its substituters, and gives those that are valid
    /// then.
    ///
    /// # Errors
    /// The daemon refuses ([`DaemonError::Nix`]), takes longer than `limit`, or is lost.
    pub async fn fetch_paths(
        &mut self,
        paths: impl IntoIterator<Item = &StorePath>,
        limit: Duration,
    ) -> Result<BTreeSet<StorePath>, DaemonError> {
        let paths: Vec<String> = paths.into_iter().map(|path| path.in_dir(&self.store_dir)).collect();
        let request = RequestBytes::default().number(QUERY_VALID_PATHS).texts(&paths).number(1);
        let mut reply = self.ask_within("fetching paths", limit, request).await?;
        let dir = reply.store_dir();
        let valid = reply.paths(&dir).await?;
        reply.done(valid)
    }

    /// The valid derivations of which `path` is an output, whether or not it was built.
    ///
    /// # Errors
    /// The daemon refuses ([`DaemonError::Nix`]) or is lost.
    pub async fn query_valid_derivers(
        &mut self,
        path: &StorePath,
    ) -> Result<BTreeSet<StorePath>, DaemonError> {
        let request = self.about(QUERY_VALID_DERIVERS, path);
        let mut reply = self.ask("looking for the derivations of a path", request).await?;
        let dir = reply.store_dir();
        let derivers = reply.paths(&dir).await?;
        reply.done(derivers)
    }

    /// The outputs of a valid derivation by name; `None` where the path is not known before the build.
    ///
    /// # Errors
    /// The daemon refuses ([`DaemonError::Nix`], also for a derivation that is not valid) or is lost.
    pub async fn query_derivation_output_map(
        &mut self,
        drv: &StorePath,
    ) -> Result<BTreeMap<String, Option<StorePath>>, DaemonError> {
        let request = self.about(QUERY_DERIVATION_OUTPUT_MAP, drv);
        let mut reply = self.ask("asking for the outputs of a derivation", request).await?;
        let dir = reply.store_dir();
        let mut outputs = BTreeMap::new();
        for _ in 0..reply.count("a list of outputs", LIST_ITEMS_MAX).await? {
            let name = reply.text("the name of an output").await?;
            outputs.insert(name, reply.optional_path(&dir).await?);
        }
        reply.done(outputs)
    }

    /// The realisation of an output of a derivation that its hash names; `None` if there is none, and from a
    /// daemon without this kind.
    ///
    /// # Errors
    /// If the daemon refuses ([`DaemonError::Nix`]) or is lost: older ones without the experimental feature
    /// ca-derivations hang up.
    pub async fn query_realisation(&mut self, id: &DrvOutput) -> Result<Option<Realisation>, DaemonError> {
        if id.drv().is_some() || !self.realisations_by_hash {
            return Ok(None);
        }
        let request = RequestBytes::default().number(QUERY_REALISATION).text(&id.to_string());
        let mut reply = self.ask("asking for a realisation", request).await?;
        // A list, which has one item or none.
        let found = match reply.count("a list of realisations", 1).await? {
            0 => None,
            _ => Some(reply.bytes("a realisation", REALISATION_BYTES_MAX as u64).await?),
        };
        let parsed = found.map(|bytes| Realisation::parse(id, &bytes)).transpose();
        reply.done(())?;
        parsed.map_err(|error| DaemonError::Protocol(format!("what it has for {id}: {error}")))
    }

    /// The builds and downloads that `targets` need.
    ///
    /// # Errors
    /// If the daemon refuses ([`DaemonError::Nix`]) or is lost.
    pub async fn query_missing(&mut self, targets: &[BuildTarget]) -> Result<MissingPaths, DaemonError> {
        let targets: Vec<String> = targets.iter().map(|target| target.to_wire(&self.store_dir)).collect();
        let request = RequestBytes::default().number(QUERY_MISSING).texts(&targets);
        let mut reply = self.ask("asking what a build needs", request).await?;
        let dir = reply.store_dir();
        let missing = MissingPaths {
            will_build: reply.paths(&dir).await?,
            will_substitute: reply.paths(&dir).await?,
            unknown: reply.paths(&dir).await?,
            download_size: reply.number().await?,
            nar_size: reply.number().await?,
        };
        reply.done(missing)
    }

    fn about(&self, operation: u64, path: &StorePath) -> RequestBytes {
        RequestBytes::default().about(operation, [path.in_dir(&self.store_dir)])
    }
}
