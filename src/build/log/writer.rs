//! The log of one build while it is written. Readers are told of every line once it is in the file, and get
//! it from there.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::Logs;
use super::tail::phase_line;
use crate::build::verdict::LOG_END_LINES;
use crate::tail_file::WriteProgress;

/// Bytes of each of the last lines that are kept in memory; what counts of a line is said by then.
const LAST_LINE_BYTES_MAX: usize = 1024;

/// Line between two attempts.
const BEGUN_ANEW: &str = "[the Nix daemon went away; the build begins anew]";

/// A log that is being written. Dropped before it is finished, it cuts those who follow it.
#[derive(Debug)]
pub(in crate::build) struct LogWriter {
    logs: Logs,
    path: PathBuf,
    writing: Mutex<Writing>,
    /// Number of starts of the builder.
    starts: watch::Sender<u32>,
    /// True once the build has written more than it may.
    over: watch::Sender<bool>,
}

/// The file, and who is told that it grows.
type Open = (Arc<File>, watch::Sender<WriteProgress>);

#[derive(Debug)]
struct Writing {
    /// `None` once the file cannot be written.
    open: Option<Open>,
    /// Bytes that the builder has written since its last start.
    bytes: u64,
    /// The last lines since then, also where the file cannot be written.
    last: VecDeque<String>,
}

impl LogWriter {
    /// Without a file it only counts.
    pub(super) fn new(logs: Logs, path: PathBuf, open: Option<Open>) -> Self {
        let writing = Mutex::new(Writing { open, bytes: 0, last: VecDeque::new() });
        Self { logs, path, writing, starts: watch::Sender::new(0), over: watch::Sender::new(false) }
    }

    /// Marks a start of the builder: its output is counted from zero.
    pub(in crate::build) fn start(&self) {
        let mut writing = self.lock();
        if self.starts() > 0 {
            writing.add(BEGUN_ANEW);
        }
        writing.bytes = 0;
        writing.last.clear();
        drop(writing);
        self.starts.send_modify(|starts| *starts += 1);
    }

    /// Number of starts of the builder.
    pub(in crate::build) fn starts(&self) -> u32 {
        *self.starts.borrow()
    }

    /// Changes with each further start of the builder.
    pub(in crate::build) fn watch_starts(&self) -> watch::Receiver<u32> {
        self.starts.subscribe()
    }

    /// Adds a line of the builder, of which so many bytes were dropped, or as much of it as there is room
    /// for.
    pub(in crate::build) fn line(&self, line: &str, dropped: u64) {
        if *self.over.borrow() {
            return;
        }
        let mut writing = self.lock();
        let bytes = (line.len() as u64).saturating_add(dropped).saturating_add(1);
        let room = self.bytes_max() - writing.bytes;
        writing.keep_last(line);
        if bytes <= room {
            writing.bytes += bytes;
            match dropped {
                0 => writing.add(line),
                _ => writing.add(&format!("{line} [and {dropped} bytes more on this line]")),
            }
            return;
        }
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let fitting = &line[..line.floor_char_boundary(room.saturating_sub(1))];
        if !fitting.is_empty() {
            writing.add(fitting);
        }
        self.over.send_replace(true);
    }

    /// Notes that the builder enters a phase, as Nix notes it in its own logs. It is no line of the builder.
    pub(in crate::build) fn phase(&self, name: &str) {
        let line = phase_line(name);
        let (bytes, mut writing) = (line.len() as u64 + 1, self.lock());
        if self.over.borrow().eq(&false) && bytes <= self.bytes_max() - writing.bytes {
            writing.bytes += bytes;
            writing.add(&line);
        }
    }

    /// The reason why the build must stop, once it has written more than it may.
    pub(in crate::build) fn is_over(&self) -> Option<String> {
        self.over.borrow().then(|| self.over_text())
    }

    /// The last lines of the builder since its last start.
    pub(in crate::build) fn last(&self) -> Vec<String> {
        self.lock().last.iter().cloned().collect()
    }

    /// Resolves, with the reason why the build must stop, once it has written more than it may.
    pub(in crate::build) async fn over_its_bound(&self) -> String {
        // The sender is ours: there is no error.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
        self.over_text()
    }

    /// Ends the log with what there is to say, and then makes room for the next one. Within a tokio runtime.
    pub(in crate::build) fn finish(self, ending: Option<&str>) {
        let mut writing = self.lock();
        let over = self.is_over();
        let ending = ending.filter(|ending| over.as_deref() != Some(ending));
        for line in over.as_deref().into_iter().chain(ending) {
            writing.add(line);
        }
        if let Some((_, progress)) = &writing.open {
            progress.send_modify(|progress| progress.end = Some(Ok(())));
        }
        drop(writing);
        let logs = self.logs.clone();
        // From here on it is no longer spared.
        drop(self);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = logs.make_room() {
                tracing::warn!(%error, "cannot delete old logs; check the state directory");
            }
        });
    }

    fn bytes_max(&self) -> u64 {
        self.logs.0.settings.log_bytes_max
    }

    /// The same where the daemon has counted: within a line, too. `None` when it has a lower limit of its
    /// own.
    pub(in crate::build) fn over_by_daemon(&self, message: &str) -> Option<String> {
        let limit = self.logs.0.settings.daemon_bytes_max();
        self.is_over().or_else(|| message.contains(&limit.to_string()).then(|| self.over_text()))
    }

    fn over_text(&self) -> String {
        format!("its log has more than {} bytes (setting max-build-log-bytes)", self.bytes_max())
    }

    fn lock(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writing {
    fn keep_last(&mut self, line: &str) {
        if self.last.len() >= LOG_END_LINES {
            self.last.pop_front();
        }
        self.last.push_back(
            line[line.ceil_char_boundary(line.len().saturating_sub(LAST_LINE_BYTES_MAX))..].to_owned(),
        );
    }

    fn add(&mut self, line: &str) {
        let Some((file, progress)) = &self.open else { return };
        let text = format!("{line}\n");
        match (&**file).write_all(text.as_bytes()) {
            Ok(()) => progress.send_modify(|progress| progress.bytes += text.len() as u64),
            // A log is a help, not a result: a full disk ends the log, not the build. Who follows it is cut.
            Err(error) => {
                tracing::warn!(%error, "cannot write the log, the build goes on without; check the free space");
                self.open = None;
            }
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.logs.ended(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::super::tests::{drv, logs};
    use super::*;
    use crate::tail_file::{TailCursor, TailReader};

    /// The rest of a log, and true if it ended well.
    async fn rest(reader: &mut TailReader) -> (String, bool) {
        let mut text = Vec::new();
        loop {
            match reader.next_chunk().await {
                Ok(Some(chunk)) => text.extend_from_slice(&chunk),
                end => return (String::from_utf8(text).expect("text"), end.is_ok()),
            }
        }
    }

    async fn is_over(log: &LogWriter) -> Option<String> {
        tokio::time::timeout(Duration::ZERO, log.over_its_bound()).await.ok()
    }

    #[tokio::test]
    async fn a_follower_gets_what_is_there_then_every_line_then_the_end() {
        let (_folder, logs) = logs(1000, 1000);
        let log = logs.begin(&drv("a"));
        log.start();
        log.line("before", 0);
        let mut followed = logs.read(&drv("a")).expect("readable").expect("there");
        assert_eq!(followed.bytes, None);
        let mut next = async || followed.reader.next_chunk().await.expect("readable").expect("not the end");
        assert_eq!(next().await, "before\n");
        log.line("\u{1b}[1mafter", 0);
        assert_eq!(next().await, "\u{1b}[1mafter\n");
        let nothing = tokio::time::timeout(Duration::from_millis(20), next()).await;
        assert!(nothing.is_err(), "{nothing:?}");
        log.finish(Some("because"));
        assert_eq!(rest(&mut followed.reader).await, ("because\n".into(), true));
        let mut whole = logs.read(&drv("a")).expect("readable").expect("there");
        assert_eq!(whole.bytes, Some(25));
        assert_eq!(rest(&mut whole.reader).await, ("before\n\u{1b}[1mafter\nbecause\n".into(), true));
    }

    #[tokio::test]
    async fn a_log_that_is_abandoned_or_cannot_be_written_cuts_its_followers() {
        let (folder, logs) = logs(1000, 1000);
        let log = logs.begin(&drv("a"));
        log.line("said", 0);
        let mut followed = logs.read(&drv("a")).expect("readable").expect("there");
        drop(log);
        assert_eq!(rest(&mut followed.reader).await, ("said\n".into(), false));
        assert_eq!(logs.read(&drv("a")).expect("readable").expect("there").bytes, Some(5));

        let full = Arc::new(File::options().write(true).open("/dev/full").expect("a disk that is full"));
        let progress = watch::channel(WriteProgress::default());
        let mut followed = TailReader::new(full.clone(), TailCursor::following(progress.1));
        let log = LogWriter::new(logs, folder.path().join("full.log"), Some((full, progress.0)));
        log.line("lost", 0);
        assert_eq!(rest(&mut followed).await, (String::new(), false));
        log.line("lost, too", 0);
        log.finish(None);
    }

    #[tokio::test]
    async fn a_log_ends_at_its_bound_and_says_so_and_the_build_is_told_to_stop() {
        let (folder, logs) = logs(20, 1000);
        let log = logs.begin(&drv("a"));
        log.line("123456789", 0);
        log.line("123456789", 0);
        assert_eq!(is_over(&log).await, None, "as much as it may");
        log.line("", 0);
        let reason = is_over(&log).await.expect("more than it may");
        assert_eq!(reason, "its log has more than 20 bytes (setting max-build-log-bytes)");
        log.line("more", 0);
        log.finish(Some(&reason));
        let read =
            |name: &str| fs::read_to_string(folder.path().join(format!("{}.log", drv(name)))).expect("a log");
        assert_eq!(read("a"), format!("123456789\n123456789\n{reason}\n"));

        let log = logs.begin(&drv("b"));
        log.line("123456789012345678ünf", 0);
        assert!(is_over(&log).await.is_some());
        log.finish(Some("killed"));
        assert_eq!(read("b"), format!("123456789012345678\n{reason}\nkilled\n"), "as much of it as fits");
    }

    #[tokio::test]
    async fn a_build_that_is_begun_anew_goes_on_in_the_same_log_and_is_counted_anew() {
        let (_folder, logs) = logs(20, 1000);
        let log = logs.begin(&drv("a"));
        let mut followed = logs.read(&drv("a")).expect("readable").expect("there");
        for _ in 0..2 {
            log.start();
            log.line("the whole of a log", 0);
        }
        assert_eq!(is_over(&log).await, None);
        log.finish(None);
        let whole = format!("the whole of a log\n{BEGUN_ANEW}\nthe whole of a log\n");
        assert_eq!(rest(&mut followed.reader).await, (whole, true));
    }

    #[tokio::test]
    async fn a_new_log_takes_the_place_of_an_older_one_and_leaves_its_readers_alone() {
        let (_folder, logs) = logs(1000, 1000);
        let log = logs.begin(&drv("a"));
        log.line("old", 0);
        log.finish(None);
        let mut old = logs.read(&drv("a")).expect("readable").expect("there");
        let log = logs.begin(&drv("a"));
        log.line("new", 0);
        assert_eq!(rest(&mut old.reader).await, ("old\n".into(), true));
        assert_eq!(logs.last_lines(&drv("a"), 5).expect("readable"), ["new"]);
    }
}
