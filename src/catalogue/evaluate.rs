//! One evaluator as a child process that cannot do harm: in a process group of its own which ends with us,
//! with limits on its time, memory and output, in a sandbox. Understands nothing of what it says, but which
//! of its lines are for us.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::panic::resume_unwind;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group, setpriority_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};

use super::gateway::{AllowedHosts, Gateway};
use super::message;
use super::sandbox::{Sandbox, SandboxError};
use super::trouble;

/// Bytes of one line at most; the rest of a longer one is left out.
const LINE_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of lines that are not for us at most, from one that is to the next.
const OTHER_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Bytes of the last lines that are kept for a report.
const TAIL_BYTES_MAX: usize = 8 * 1024;
/// Added to the total time limit, for the limit that holds after the server is gone.
const CPU_GRACE: Duration = Duration::from_secs(60);
/// Niceness of an evaluator.
const NICENESS: i32 = 10;

/// Sets the limits (KiB, seconds of processor time) and becomes the program. Beside it runs something that
/// ends the group when its standard input does, which is when we are gone, however suddenly.
const BOUNDED: &str = r#"
ulimit -v "$1"
ulimit -t "$2"
shift 2
exec 3<&0
( read -r _ <&3; kill -s KILL 0 ) >/dev/null 2>&1 &
exec "$@" </dev/null 3<&-
"#;

/// An evaluator, which writes derivations to the store through the daemon.
#[derive(Clone, Copy, Debug)]
pub(super) struct Program {
    /// As it is found on the PATH.
    pub(super) name: &'static str,
    /// Its standard output carries lines for us, too.
    pub(super) prints: bool,
}

/// Limits of an evaluator.
#[derive(Clone, Copy, Debug)]
pub(super) struct EvaluatorLimits {
    /// The moment of its time-out.
    pub(super) deadline: Instant,
    /// Time limit from one line for us to the next.
    pub(super) silence_max: Duration,
    /// Bytes of address space of each of its processes.
    pub(super) memory_bytes_max: u64,
}

/// The kernel's limits of an evaluator.
#[derive(Clone, Debug)]
pub(super) struct Enclosure {
    /// The files it may open.
    pub(super) sandbox: Sandbox,
    /// Where it may connect to.
    pub(super) reach: AllowedHosts,
}

/// One run of a program.
#[derive(Debug)]
pub(super) struct Invocation<'a> {
    pub(super) program: Program,
    pub(super) arguments: &'a [String],
    pub(super) variables: &'a [(String, OsString)],
    /// Prefix of the lines on stderr that are for us.
    pub(super) mark: String,
    pub(super) bounds: EvaluatorLimits,
    /// `None` where the settings want no isolation.
    pub(super) enclosure: Option<&'a Enclosure>,
}

/// Why an evaluator cannot be run. The text is for who runs the server.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The evaluator cannot be isolated.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The system starts nothing.
    #[error("the evaluator cannot be run: {0}")]
    System(#[from] io::Error),
}

/// The next event of an evaluator.
#[derive(Debug)]
pub(super) enum EvaluatorEvent {
    /// A line for us, without what marks it.
    Line(String),
    /// The end.
    Ended(EvaluatorEnd),
}

/// The end of an evaluator.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum EvaluatorEnd {
    /// With success.
    Well,
    /// By itself, with an error: its last words.
    Failed(String),
    /// For want of something, or killed by somebody: its last words.
    Died(String),
    /// Stopped: no line for us within the limit.
    Silent,
    /// Stopped: too much output that is not for us.
    OutputLimit,
    /// Stopped: its time is over.
    Late,
}

/// A running evaluator; killed with all that it started when dropped.
#[derive(Debug)]
pub(super) struct Evaluator {
    /// The first to go.
    _group: Group,
    child: Child,
    said: EvaluatorLines<BufReader<ChildStderr>>,
    printed: Option<EvaluatorLines<BufReader<ChildStdout>>>,
    /// Prefix of the lines that are for us.
    mark: String,
    tail: Tail,
    other_bytes: u64,
    bounds: EvaluatorLimits,
    /// Its way to the network, where it is in a sandbox.
    gateway: Option<Gateway>,
    /// As long as it is open, somebody watches.
    _watching: Option<ChildStdin>,
}

/// A process group that ends with this.
#[derive(Debug)]
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Gone already is as good.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Evaluator {
    /// Starts a program. Blocks for moments.
    ///
    /// # Errors
    /// The program cannot be isolated, or there is no shell.
    pub(super) fn start(invocation: Invocation<'_>) -> Result<Self, StartError> {
        let Invocation { program, arguments, variables, mark, bounds, enclosure } = invocation;
        let gateway = enclosure.map(|enclosure| Gateway::open(&enclosure.reach)).transpose()?;
        let seconds = bounds.deadline.duration_since(Instant::now()) + CPU_GRACE;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", BOUNDED, "evaluate"])
            .arg((bounds.memory_bytes_max / 1024).to_string())
            .arg(seconds.as_secs().to_string())
            .arg(program.name)
            .args(arguments)
            .env_clear()
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .envs(gateway.iter().flat_map(Gateway::variables))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(if program.prints { Stdio::piped() } else { Stdio::null() })
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let mut child = match enclosure {
            Some(enclosure) => spawn_within(&enclosure.sandbox, &mut command)?,
            None => command.spawn()?,
        };
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        // Without it the evaluator is only less polite.
        let _ = id.map(|id| setpriority_process(Some(id), NICENESS));
        let stderr = child.stderr.take().ok_or_else(|| io::Error::other("it has no standard error"))?;
        Ok(Self {
            _group: Group(id),
            said: EvaluatorLines::new(BufReader::new(stderr)),
            printed: child.stdout.take().map(|stdout| EvaluatorLines::new(BufReader::new(stdout))),
            _watching: child.stdin.take(),
            child,
            mark,
            tail: Tail::default(),
            other_bytes: 0,
            bounds,
            gateway,
        })
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// If the system fails.
    pub(super) async fn step(&mut self) -> io::Result<EvaluatorEvent> {
        let silent = Instant::now() + self.bounds.silence_max;
        let until = silent.min(self.bounds.deadline);
        loop {
            let line = match timeout_at(until, self.line()).await {
                Ok(line) => line?,
                Err(_) if until == self.bounds.deadline => {
                    return Ok(EvaluatorEvent::Ended(EvaluatorEnd::Late));
                }
                Err(_) => return Ok(EvaluatorEvent::Ended(EvaluatorEnd::Silent)),
            };
            let (line, bytes) = match line {
                None => break,
                Some(EvaluatorLine::Stdout(line)) => {
                    self.other_bytes = 0;
                    return Ok(EvaluatorEvent::Line(line));
                }
                Some(EvaluatorLine::Stderr(line, bytes)) => (line, bytes),
            };
            if let Some(told) = line.strip_prefix(&self.mark) {
                self.other_bytes = 0;
                return Ok(EvaluatorEvent::Line(told.to_owned()));
            }
            self.tail.add(line);
            self.other_bytes += bytes;
            if self.other_bytes > OTHER_BYTES_MAX {
                return Ok(EvaluatorEvent::Ended(EvaluatorEnd::OutputLimit));
            }
        }
        let ended = match timeout_at(until, self.child.wait()).await {
            Ok(status) => self.ended(status?),
            Err(_) => EvaluatorEnd::Silent,
        };
        Ok(EvaluatorEvent::Ended(ended))
    }

    /// The next line, of whichever comes first. May be cancelled.
    async fn line(&mut self) -> io::Result<Option<EvaluatorLine>> {
        while let Some(printed) = &mut self.printed {
            tokio::select! {
                line = printed.next() => match line? {
                    Some((line, _)) => return Ok(Some(EvaluatorLine::Stdout(line))),
                    None => self.printed = None,
                },
                line = self.said.next(), if !self.said.ended => if let Some((line, bytes)) = line? {
                    return Ok(Some(EvaluatorLine::Stderr(line, bytes)));
                },
            }
        }
        Ok(self.said.next().await?.map(|(line, bytes)| EvaluatorLine::Stderr(line, bytes)))
    }

    /// An error of Nix as it is told, with what the sandbox has to do with it.
    pub(super) fn explained(&self, error: &str) -> String {
        let mut told = message::plain(error);
        let Some(gateway) = &self.gateway else { return told };
        let refused = gateway.refused();
        if !refused.is_empty() {
            let hosts = refused.join(", ");
            told =
                format!("{told}\n(the evaluator may not connect to {hosts}: allowed-uris does not name it)");
        }
        let unreached = gateway.unreached();
        if !unreached.is_empty() {
            told = format!("{told}\n(it could not connect to {})", unreached.join(", "));
        }
        if told.contains("Permission denied") {
            told +=
                "\n(evaluators can read the source, what nix-path names and the Nix store, and nothing else)";
        }
        told
    }

    fn ended(&self, status: ExitStatus) -> EvaluatorEnd {
        let said = self.explained(&self.tail.text());
        match status.code() {
            Some(0) => EvaluatorEnd::Well,
            Some(1..=125) if !trouble::is_of_memory(&said) => EvaluatorEnd::Failed(said),
            _ if said.is_empty() => EvaluatorEnd::Died(status.to_string()),
            _ => EvaluatorEnd::Died(format!("{said}\n({status})")),
        }
    }
}

/// Starts a program from a thread that is in the sandbox, as it is then itself. The thread ends with that.
fn spawn_within(sandbox: &Sandbox, command: &mut Command) -> Result<Child, StartError> {
    let runtime = Handle::current();
    std::thread::scope(|scope| {
        let spawned = scope.spawn(|| {
            let _within = runtime.enter();
            sandbox.enter()?;
            Ok(command.spawn()?)
        });
        spawned.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// A line of an evaluator.
enum EvaluatorLine {
    /// On its standard output.
    Stdout(String),
    /// On its standard error, and its bytes.
    Stderr(String, u64),
}

/// Lines of bounded length.
#[derive(Debug)]
struct EvaluatorLines<R> {
    from: R,
    line: Vec<u8>,
    bytes: u64,
    ended: bool,
}

impl<R: AsyncRead + AsyncBufReadExt + Unpin> EvaluatorLines<R> {
    fn new(from: R) -> Self {
        Self { from, line: Vec::new(), bytes: 0, ended: false }
    }

    /// The next line, and how many bytes it had. May be cancelled.
    async fn next(&mut self) -> io::Result<Option<(String, u64)>> {
        loop {
            let piece = self.from.fill_buf().await?;
            let end = piece.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(piece.len(), |end| end + 1);
            let room = LINE_BYTES_MAX.saturating_sub(self.line.len());
            self.line.extend_from_slice(&piece[..taken.min(room)]);
            self.from.consume(taken);
            self.bytes += taken as u64;
            if end.is_some() || taken == 0 {
                let bytes = std::mem::take(&mut self.bytes);
                if bytes == 0 {
                    self.ended = true;
                    return Ok(None);
                }
                let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
                return Ok(Some((line.trim_end_matches(['\n', '\r']).to_owned(), bytes)));
            }
        }
    }
}

/// The last lines.
#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Tail {
    fn add(&mut self, mut line: String) {
        if line.contains("--show-trace") || line.trim().is_empty() {
            return;
        }
        if line.len() > TAIL_BYTES_MAX {
            line.truncate(line.floor_char_boundary(TAIL_BYTES_MAX));
        }
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.bytes > TAIL_BYTES_MAX {
            self.bytes -= self.lines.pop_front().map_or(0, |line| line.len());
        }
    }

    /// From the first line that tells of an error, where there is one.
    fn text(&self) -> String {
        let is_error = |line: &String| anstream::adapter::strip_str(line).to_string().starts_with("error:");
        let from = self.lines.iter().position(is_error).unwrap_or(0);
        self.lines.iter().skip(from).map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}
