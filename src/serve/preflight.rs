//! Reasons for which a start would be refused, found without a start: `ondine check-config`. Each step is the
//! start's own, save those that make files, which are only looked at. Must never make or change anything.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::{self, UnixStream};
use std::path::{self, Path};

use rustix::fs::{Access, access};

use super::Settings;
use super::steps::{CONTROL_SOCKET, Error, listen, pools};
use super::storage::has_served;
use crate::catalogue::{SetSettings, SetSource};
use crate::index::{Index, IndexLocation, Sqlite};
use crate::isolation;
use crate::key::Keys;
use crate::nar_store::{NarStore, is_away};
use crate::state_dir::{self, INDEX, LOCK, NARS, using};
use crate::telemetry;
use crate::upstream::{CredentialsError, Upstreams, ViaName};

/// Folders of a state directory that a server writes to.
const FOLDERS: [&str; 7] = ["nar", "ledger", "log", "gcroots", "catalogue", "building", "evaluator"];

/// Findings about settings with which a server would start.
#[derive(Debug, Default)]
pub struct Preflight {
    /// Warnings that the server would give.
    pub warnings: Vec<String>,
    /// The address that was not tried, since a server runs with the same state directory.
    pub untried: Option<SocketAddr>,
}

/// Looks whether a server with these settings would start on this machine. Must be called within a tokio
/// runtime.
///
/// # Errors
/// With the reason for which it would not.
pub async fn check(settings: Settings) -> Result<Preflight, Error> {
    let mut warnings = Vec::new();
    let dir = &settings.state_dir;
    telemetry::check(&settings.telemetry)?;
    folders(dir)?;
    state_dir::check(dir)?;
    using(&dir.join(CONTROL_SOCKET), |path| net::SocketAddr::from_pathname(path).map(drop))?;
    let index = dir.join(INDEX);
    let keys = Keys::check(dir, &settings.signing_keys, has_served(dir, &settings.index.location)?)?;
    warnings.extend(keys.and_then(|keys| keys.unheeded(&settings.key_name)));
    match &settings.index.location {
        IndexLocation::Sqlite if index.exists() => {
            using(&index, |file| Ok(access(file, Access::READ_OK | Access::WRITE_OK)?))?;
            Sqlite::check_file(&index)?;
        }
        IndexLocation::Sqlite => {}
        IndexLocation::Postgres(url) => {
            Index::check_postgres(url, settings.index.password_file.as_deref()).await?;
        }
    }
    let (main, background) = pools(&settings);
    if let Some(background) = &background {
        isolation::check_background(&main, background).await?;
    }
    if let Err(error) = UnixStream::connect(&settings.nix.socket) {
        warnings.push(format!(
            "no Nix daemon answers at {} ({error}): what needs it waits until one does",
            settings.nix.socket.display()
        ));
    }
    match NarStore::check(&settings.nar_store).await {
        // It may answer by then, and what does not need it goes on without.
        Err(error) if is_away(&error) => {
            warnings.push(format!("the storage of the NARs does not answer now: {error}"));
        }
        checked => using(&dir.join(NARS), |_| checked)?,
    }
    warnings.extend(settings.catalogue.sets.iter().filter_map(unreadable));
    let mut upstreams = settings.upstream;
    match upstreams.read_credentials() {
        // It is there when systemd starts the service.
        Err(error @ CredentialsError::NoDirectory { .. }) => warnings.push(error.to_string()),
        _ => Upstreams::new(upstreams, &settings.nix.store_dir, ViaName::of("check-config")).map(drop)?,
    }
    let untried = runs(&settings.state_dir)?.then_some(settings.listen);
    if untried.is_none() {
        listen(settings.listen)?;
    }
    Ok(Preflight { warnings, untried })
}

/// Looks whether the folders of a state directory can be used, or made.
pub(super) fn folders(state_dir: &Path) -> Result<(), Error> {
    writable(state_dir)?;
    FOLDERS
        .iter()
        .map(|name| state_dir.join(name))
        .filter(|dir| dir.exists())
        .try_for_each(|dir| writable(&dir))
}

/// The folder, or the one that it would be made in, can be written to.
fn writable(dir: &Path) -> Result<(), Error> {
    let looked = using(dir, |dir| {
        // A bare name has the empty path above it.
        let dir = path::absolute(dir)?;
        let there = dir.ancestors().find(|dir| dir.symlink_metadata().is_ok()).unwrap_or(&dir);
        if !fs::metadata(there)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(access(there, Access::WRITE_OK | Access::EXEC_OK)?)
    });
    Ok(looked?)
}

/// A server holds the lock of the state directory.
fn runs(dir: &Path) -> Result<bool, Error> {
    let running = using(&dir.join(LOCK), |path| match File::open(path).map(|file| file.try_lock()) {
        Ok(Ok(())) => Ok(false),
        Ok(Err(fs::TryLockError::WouldBlock)) => Ok(true),
        Ok(Err(fs::TryLockError::Error(error))) => Err(error),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    });
    Ok(running?)
}

/// A package set whose source cannot be read: a server starts, and its refreshes fail.
fn unreadable(set: &SetSettings) -> Option<String> {
    let path = match &set.origin {
        SetSource::Flake(_) => return None,
        SetSource::Expression { file, .. } => file,
        SetSource::Directory(dir) => dir,
    };
    let error = access(path, Access::READ_OK).err()?;
    Some(format!("the source of the package set {} cannot be read: {}: {error}", set.name, path.display()))
}
