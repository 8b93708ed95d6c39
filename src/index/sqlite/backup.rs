//! A copy of the index as it is at one moment, made while a server writes to it.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::error::Error;

/// Time limit for a lock, which a checkpoint of the log may hold.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

/// Writes a copy to a file that is not there yet.
pub(super) fn copy(file: &Path, to: &Path) -> Result<(), Error> {
    let opened = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY);
    let connection = opened.map_err(|source| Error::open(file, source))?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // A reader of a write-ahead log disturbs no writer. The copy has no log and no empty pages.
    connection.execute("VACUUM INTO ?1", [to.to_string_lossy()])?;
    Ok(())
}
