//! The process of an ssh that leads to another machine, and what it says of its end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr};

use super::error::DaemonError;
use crate::escape::in_one_line;

/// Time that ssh is given to say why it has ended.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of one line of ssh's that are read.
const LINE_BYTES_MAX: u64 = 4096;
/// Lines of ssh's that are kept.
const LINES_MAX: usize = 3;
/// Characters of ssh's words that are shown.
const WORDS_CHARS_MAX: usize = 400;

/// The ssh of one connection; dropping it ends ssh, and with it what runs on the other side.
#[derive(Debug)]
pub(super) struct SshProcess {
    child: Child,
    /// The last lines that it printed.
    said: Arc<Mutex<Vec<String>>>,
}

impl SshProcess {
    /// A process whose standard error is a pipe.
    pub(super) fn new(mut child: Child) -> Self {
        let said = Arc::default();
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(listen(stderr, Arc::clone(&said)));
        }
        Self { child, said }
    }

    /// The last words of ssh and of what it runs on the other side, in one line.
    fn words(&self) -> Option<String> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        (!said.is_empty()).then(|| in_one_line(&said.join("; "), WORDS_CHARS_MAX))
    }

    /// The error of a connection, in ssh's words where it has some.
    pub(super) async fn explained(&mut self, error: DaemonError) -> DaemonError {
        if matches!(error, DaemonError::TimedOut { .. } | DaemonError::Version { .. }) {
            return error;
        }
        let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, self.child.wait()).await;
        // What it printed last is read in a moment.
        tokio::task::yield_now().await;
        self.words().map_or(error, |words| DaemonError::Ssh { words })
    }
}

/// Keeps the last lines.
async fn listen(stderr: ChildStderr, said: Arc<Mutex<Vec<String>>>) {
    let mut reader = BufReader::new(stderr);
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await {
            Ok(1..) => {}
            _ => return,
        }
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        if !text.is_empty() {
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            if said.len() == LINES_MAX {
                said.remove(0);
            }
            said.push(text);
        }
    }
}
