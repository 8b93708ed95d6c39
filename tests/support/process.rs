//! Running a command to its end, or in the background, with a limit on its time and everything it said kept.
//! A process that outlives its limit or its owner is killed together with all that it started; nothing waits
//! for ever.

use std::fmt;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The program under test, which the tests within the library do not have.
const PROGRAM: Option<&str> = option_env!("CARGO_BIN_EXE_ondine");

/// Time limit of a command whose caller says nothing else.
pub const TIME_LIMIT: Duration = Duration::from_secs(300);

/// Interval at which a wait looks again.
const POLL: Duration = Duration::from_millis(10);

/// Variable with the path of a program to run instead of the one that was just built: an installed one, or an
/// earlier build.
const OTHER_PROGRAM: &str = "ONDINE_TEST_PROGRAM";

/// Path of the program under test. Fails in a test within the library.
#[track_caller]
pub fn program() -> &'static str {
    static OTHER: LazyLock<Option<String>> = LazyLock::new(|| std::env::var(OTHER_PROGRAM).ok());
    OTHER.as_deref().or(PROGRAM).expect("only integration tests run the program")
}

/// A command that ended, and all that it said.
pub struct Finished {
    /// The command line, for messages.
    pub command: String,
    /// The exit status.
    pub status: ExitStatus,
    /// The bytes of its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error, undecodable bytes replaced.
    pub stderr: String,
    /// From its start to its end.
    pub elapsed: Duration,
}

impl Finished {
    /// Its standard output as text without the last line break.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end_matches('\n').to_owned()
    }

    /// True if it exited with 0.
    pub fn succeeded(&self) -> bool {
        self.status.success()
    }

    /// The same, or a failed test that shows what the command said.
    #[track_caller]
    pub fn must_succeed(self) -> Finished {
        assert!(self.succeeded(), "a command failed that must not: {self}");
        self
    }

    /// The same, or a failed test when the command went well.
    #[track_caller]
    pub fn must_fail(self) -> Finished {
        assert!(!self.succeeded(), "a command went well that must fail: {self}");
        self
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}", self.command)?;
        writeln!(out, "ended after {:.1?}: {}", self.elapsed, self.status)?;
        writeln!(out, "--- standard output\n{}", self.text())?;
        write!(out, "--- standard error\n{}", self.stderr)
    }
}

/// A command under way; killed with all that it started when dropped.
pub struct Background {
    command: String,
    child: Child,
    started: Instant,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    ended: bool,
}

impl Background {
    /// Starts `command` with its outputs collected and nothing on its standard input.
    #[track_caller]
    pub fn start(mut command: Command) -> Background {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let text = describe(&command);
        let started = Instant::now();
        let mut child = spawn(&mut command);
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        Background { command: text, child, started, stdout, stderr, ended: false }
    }

    /// True while it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for the end; a command that is not done within `limit` of its start fails the test.
    #[track_caller]
    pub fn finish_within(mut self, limit: Duration) -> Finished {
        let status = wait(&mut self.child, limit.saturating_sub(self.started.elapsed()));
        let elapsed = self.started.elapsed();
        if status.is_none() {
            kill_tree(self.child.id());
            let _ = self.child.wait();
        }
        self.ended = true;
        let stdout = join(self.stdout.take());
        let stderr = String::from_utf8_lossy(&join(self.stderr.take())).into_owned();
        match status {
            Some(status) => Finished { command: self.command.clone(), status, stdout, stderr, elapsed },
            None => panic!("{} was not done after {limit:?}; its standard error:\n{stderr}", self.command),
        }
    }

    /// Waits for the end within [`TIME_LIMIT`].
    #[track_caller]
    pub fn finish(self) -> Finished {
        self.finish_within(TIME_LIMIT)
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        signal(&[self.child.id()], Signal::Term);
    }

    /// Kills it at once, as a user's `kill -9` on the whole of it would.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if !self.ended {
            self.ended = true;
            kill_tree(self.child.id());
            let _ = self.child.wait();
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs `command` to its end within [`TIME_LIMIT`].
#[track_caller]
pub fn run(command: Command) -> Finished {
    Background::start(command).finish()
}

/// Starts a child, or fails the test with a sentence that names the package that holds the program.
#[track_caller]
pub fn spawn(command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|error| {
        let program = command.get_program().to_string_lossy().into_owned();
        panic!("cannot start {program}: {error}; it comes with: apt-get install {}", package_of(&program))
    })
}

/// Waits until `child` ends, for at most `limit`.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("the kernel tells how a child of ours ended") {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(POLL);
    }
}

/// Waits until `condition` holds; fails the test with `what` when it does not within `limit`.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "did not happen within {limit:?}: {what}");
        std::thread::sleep(POLL);
    }
}

/// The signals that tests send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Asks to end.
    Term,
    /// Ends at once.
    Kill,
    /// Freezes.
    Stop,
    /// Unfreezes.
    Cont,
}

/// Sends `signal` to processes; one that is gone already is no error.
pub fn signal(ids: &[u32], signal: Signal) {
    let name = format!("{signal:?}").to_uppercase();
    // The shell's own `kill`: the standard library sends nothing but SIGKILL, and only to a child.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "kill -s \"$@\"", "kill", &name]).args(ids.iter().map(u32::to_string));
    let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

/// Kills the process `id` and every descendant. A Nix daemon gives each connection a session of its own, so a
/// signal to its process group would miss them; the tree is read before anything is killed, because orphans
/// lose their parent.
pub fn kill_tree(id: u32) {
    signal(&tree_of(id), Signal::Kill);
}

/// The process `id` and every descendant.
pub fn tree_of(id: u32) -> Vec<u32> {
    let mut tree = vec![id];
    let mut next = 0;
    while next < tree.len() {
        tree.extend(children_of(tree[next]));
        next += 1;
    }
    tree
}

/// A kind of memory that the process `id` holds, such as `VmRSS`, in bytes; `None` when it has ended.
#[track_caller]
pub fn memory_bytes(id: u32, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kibibytes = line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
    Some(kibibytes.expect("the kernel writes a number of kB") * 1024)
}

/// The children of every thread of the process `id`.
fn children_of(id: u32) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{id}/task")) else { return Vec::new() };
    threads
        .flatten()
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

/// The Debian package that holds a program the tests use.
fn package_of(program: &str) -> &'static str {
    match program.rsplit('/').next().unwrap_or(program) {
        "nix" | "nix-daemon" | "nix-store" | "nix-instantiate" => "nix-bin",
        "sshd" | "ssh-keygen" => "openssh-server",
        "nginx" => "nginx-light",
        "systemd-analyze" => "systemd",
        "unshare" => "util-linux",
        "xz" => "xz-utils",
        "bzip2" => "bzip2",
        "setpriv" => "util-linux",
        "mount" => "mount",
        "chroot" => "coreutils",
        _ => "(no package known for it)",
    }
}

fn describe(command: &Command) -> String {
    let words =
        std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_string_lossy());
    // A script among the arguments would drown the rest.
    words.map(|word| if word.contains('\n') { "(script)".into() } else { word }).collect::<Vec<_>>().join(" ")
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

fn join(reader: Option<JoinHandle<Vec<u8>>>) -> Vec<u8> {
    reader
        .map(|reader| reader.join().expect("the thread that collects an output does not panic"))
        .unwrap_or_default()
}

/// True if a process has this word in its command line.
pub fn runs(word: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("the kernel lists processes").filter_map(Result::ok);
    let mut lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.any(|line| String::from_utf8_lossy(&line).contains(word))
}
