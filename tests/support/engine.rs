//! Real programs that buckets are tested with: a variable names each, the first test that needs it starts it,
//! and it ends with the tests.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use super::process::{spawn, wait_until};
use super::store::Folder;

/// Time limit until a program answers.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Runs a program until standard input ends, which it does with the tests, and removes its folder.
const KEEPER: &str =
    r#"folder=$1; shift; "$@" >"$folder/log" 2>&1 & cat >/dev/null; kill -9 $!; rm -rf "$folder""#;

/// A program, which the first test starts.
pub struct Engine {
    variable: &'static str,
    /// Advice where the variable is not set.
    advice: &'static str,
    running: OnceLock<Option<RunningEngine>>,
}

/// A program that answers.
pub struct RunningEngine {
    /// Its end is that of the pipe to it.
    _keeper: Child,
    port: u16,
}

impl Engine {
    /// The program that this variable names.
    pub const fn new(variable: &'static str, advice: &'static str) -> Engine {
        Engine { variable, advice, running: OnceLock::new() }
    }

    /// The port at which it answers; `None` where the variable is not set.
    pub fn port(&self, start: fn(&str) -> RunningEngine) -> Option<u16> {
        let running = self.running.get_or_init(|| Some(start(&std::env::var(self.variable).ok()?)));
        if running.is_none() {
            eprintln!("not tested: {} is not set ({})", self.variable, self.advice);
        }
        running.as_ref().map(|running| running.port)
    }
}

impl RunningEngine {
    /// Starts what [`kept`] has made, and waits until it answers at this port.
    pub fn start(name: &str, mut kept: Command, port: u16, answers: impl FnMut() -> bool) -> RunningEngine {
        let keeper = spawn(&mut kept);
        wait_until(&format!("{name} answers"), START_LIMIT, answers);
        RunningEngine { _keeper: keeper, port }
    }
}

/// A program to which arguments can be added, and which removes this folder at its end.
pub fn kept(program: &str, folder: Folder) -> Command {
    let mut keeper = Command::new("sh");
    keeper.args(["-c", KEEPER, "sh"]).arg(folder.path()).arg(program).stdin(Stdio::piped());
    // The keeper removes it.
    std::mem::forget(folder);
    keeper
}

/// Ports that nobody has at the moment.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let free = || TcpListener::bind("127.0.0.1:0").expect("the loopback interface has free ports");
    let listeners: [TcpListener; N] = std::array::from_fn(|_| free());
    listeners.map(|listener| listener.local_addr().expect("an address").port())
}
