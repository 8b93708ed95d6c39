//! Standard output and standard error of commands. The macros take the place of those of the standard library
//! in `src/cli/`, which panic where nothing can be written: `print` and `println` return the error from the
//! function around them, and `eprint` and `eprintln` ignore it, since nothing is left to report it to.

use std::fmt::Arguments;
use std::io::{self, Write};

/// Output that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to the standard output")]
pub(super) struct OutputError(#[from] io::Error);

impl OutputError {
    /// True where the reader has closed its end, as `head` does once it has enough.
    pub(super) fn is_closed_pipe(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

/// Writes to the standard output, all of it before this returns.
pub(super) fn write(text: Arguments<'_>) -> Result<(), OutputError> {
    let mut out = io::stdout().lock();
    Ok(out.write_fmt(text).and_then(|()| out.flush())?)
}

/// Writes to the standard error, where that can be written.
pub(super) fn write_error(text: Arguments<'_>) {
    let _ = io::stderr().lock().write_fmt(text);
}

macro_rules! print {
    ($($part:tt)*) => { $crate::cli::output::write(format_args!($($part)*))? };
}

macro_rules! println {
    ($($part:tt)*) => { $crate::cli::output::write(format_args!("{}\n", format_args!($($part)*)))? };
}

macro_rules! eprint {
    ($($part:tt)*) => { $crate::cli::output::write_error(format_args!($($part)*)) };
}

macro_rules! eprintln {
    ($($part:tt)*) => { $crate::cli::output::write_error(format_args!("{}\n", format_args!($($part)*))) };
}
