//! The logs of our builds: one file for each derivation, as the builder wrote it, escape codes and all.
//! Must never grow past its bound, and never stop a build because a log cannot be written.

use std::fs::{self, File};
use std::io::{self, LineWriter, Write};
use std::path::{Path, PathBuf};

use narinfo::StorePath;

/// Bytes of one log at most; what comes after is dropped and counted.
const LOG_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The directory of build logs.
#[derive(Clone, Debug)]
pub struct Logs {
    dir: PathBuf,
}

impl Logs {
    /// Uses `dir`, making it when it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// The log of a derivation, if it was built (or tried) here.
    ///
    /// # Errors
    /// When it is there and cannot be opened.
    pub fn read(&self, drv: &StorePath) -> io::Result<Option<File>> {
        match File::open(self.file_of(drv)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Begins a new log in place of an older one.
    pub(super) fn create(&self, drv: &StorePath) -> LogWriter {
        let file = match File::create(self.file_of(drv)) {
            Ok(file) => Some(LineWriter::new(file)),
            Err(error) => {
                tracing::warn!(%drv, %error, "the build goes on without a log");
                None
            }
        };
        LogWriter { file, bytes: 0, dropped: 0 }
    }

    fn file_of(&self, drv: &StorePath) -> PathBuf {
        self.dir.join(format!("{drv}.log"))
    }
}

/// A log that is being written.
#[derive(Debug)]
pub(super) struct LogWriter {
    file: Option<LineWriter<File>>,
    bytes: u64,
    dropped: u64,
}

impl LogWriter {
    /// Adds a line.
    pub(super) fn line(&mut self, line: &str) {
        let length = line.len() as u64 + 1;
        if self.bytes + length > LOG_BYTES_MAX {
            self.dropped += length;
            return;
        }
        self.bytes += length;
        self.write(line);
    }

    fn write(&mut self, line: &str) {
        if let Some(file) = &mut self.file {
            // A log is a help, not a result: a full disk ends the log, not the build.
            if writeln!(file, "{line}").is_err() {
                self.file = None;
            }
        }
    }

    /// Brings what was added to the file.
    pub(super) fn finish(mut self, ending: Option<&str>) {
        if self.dropped > 0 {
            self.write(&format!(
                "[{} bytes dropped: a log is kept up to {LOG_BYTES_MAX} bytes]",
                self.dropped
            ));
        }
        if let Some(ending) = ending {
            self.write(ending);
        }
        if let Some(mut file) = self.file.take() {
            let _ = file.flush();
        }
    }
}
