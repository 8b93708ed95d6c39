//! `ondine try`: an end-to-end demo with a temporary Nix store, daemon, server and client.
//! Must never touch the machine's own Nix store, and leaves nothing behind.

use std::io::{self, BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use narinfo::StorePath;

use super::control::ServerSession;
use super::output::OutputError;
use crate::http::{QueueStatus, RunningBuild};

/// Time in which the temporary daemon must listen.
const DAEMON_START_MAX: Duration = Duration::from_secs(20);
/// Time between two requests for the state of the queue.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Programs of Nix that the demo runs.
const PROGRAMS: [&str; 4] = ["nix", "nix-daemon", "nix-instantiate", "nix-store"];

/// Settings of the temporary daemon and client. Without a sandbox nothing needs root.
const NIX_CONF: &str =
    "sandbox = false\nbuild-users-group =\nsubstituters =\nexperimental-features = nix-command\n";

/// Sample derivation: slow, with a log, and without dependencies.
const SAMPLE: &str = r#"derivation {
  name = "sample";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ "-c" ''
    for step in $(seq 1 @seconds@); do echo "step $step of @seconds@"; sleep 1; done
    echo "Built once, on the server, because a client requested it." > $out; :
  '' ];
  PATH = "@path@";
}
"#;

#[derive(Debug, clap::Args)]
pub(super) struct Try {
    /// Seconds that the sample derivation takes to build
    #[arg(long, default_value_t = 30, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
}

impl Try {
    /// Runs the demo, and removes the folder at its end and on Ctrl-C. The terminal sends that to the
    /// processes, too.
    pub(super) fn run(self) -> anyhow::Result<()> {
        need_nix()?;
        let folder = tempfile::Builder::new().prefix("ondine-try-").tempdir()?;
        let demo = folder.path().to_owned();
        let runtime = super::runtime()?;
        let shown = runtime.block_on(async {
            tokio::select! {
                shown = tokio::task::spawn_blocking(move || self.show(&demo)) => shown?,
                interrupted = tokio::signal::ctrl_c() => interrupted.map_err(anyhow::Error::from),
            }
        });
        // The thread that reads from the terminal may never return.
        runtime.shutdown_background();
        shown
    }

    fn show(self, folder: &Path) -> anyhow::Result<()> {
        let demo = Demo::new(folder)?;

        say("A temporary Nix store with its own daemon, and a derivation that was never built:")?;
        let _daemon = demo.start_daemon()?;
        let drv = demo.sample(self.seconds)?;
        let output = demo.output_of(&drv)?;
        println!("    {drv}\n    makes {output}");

        say("Ondine serves that store:")?;
        let server = demo.start_server()?;
        println!("    {}\n    public key {}", server.url, server.public_key);

        say("A stock client with an empty store and default settings requests the output, and waits:")?;
        let mut client = demo.client(&server, &output);
        println!("    {}", shown(&client));
        let requested = Instant::now();
        let mut client = Running(client.spawn()?);
        let mut polled = requested;
        while client.0.try_wait()?.is_none() {
            if polled.elapsed() >= POLL_INTERVAL {
                polled = Instant::now();
                println!("    {:>3} s: {}", requested.elapsed().as_secs(), demo.queue()?);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let status = client.0.wait()?;
        ensure!(status.success(), "the client ended with {status}; what the server said is above");
        let base_name = base_name_of(&output);
        let copy = demo.client_root().join("nix/store").join(base_name);
        let text =
            std::fs::read_to_string(&copy).with_context(|| format!("cannot read {}", copy.display()))?;
        say(&format!(
            "The client has the output after {} s, and built nothing itself:",
            requested.elapsed().as_secs()
        ))?;
        print!("    {text}");

        say("From now on it is a download:")?;
        let hash = StorePath::parse(base_name)?.hash();
        println!("    {}/{hash}.narinfo\n    {}/log/{}", server.url, server.url, base_name_of(&drv));
        say("The server runs until you press Enter.")?;
        // Without a terminal the input ends at once.
        io::stdin().lock().read_line(&mut String::new())?;
        Ok(())
    }
}

fn say(what: &str) -> Result<(), OutputError> {
    println!("\n{what}");
    Ok(())
}

/// The command line as it would be typed.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn base_name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn need_nix() -> anyhow::Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing =
        PROGRAMS.iter().find(|program| !std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    if let Some(program) = missing {
        bail!(
            "{program} is not installed; on Debian or Ubuntu run: apt-get install nix-bin (elsewhere: https://nixos.org/download)"
        );
    }
    Ok(())
}

/// The folder that everything is in.
struct Demo<'a>(&'a Path);

/// A process that is killed when the demo ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct DemoServer {
    url: String,
    public_key: String,
    _process: Running,
}

impl<'a> Demo<'a> {
    fn new(folder: &'a Path) -> anyhow::Result<Self> {
        for name in ["store", "var", "log", "etc", "home", "cache"] {
            std::fs::create_dir(folder.join(name))?;
        }
        std::fs::write(folder.join("etc/nix.conf"), NIX_CONF)?;
        Ok(Self(folder))
    }

    fn socket(&self) -> PathBuf {
        self.0.join("daemon.sock")
    }

    fn state_dir(&self) -> PathBuf {
        self.0.join("ondine")
    }

    fn client_root(&self) -> PathBuf {
        self.0.join("client")
    }

    /// Command with an environment that names this folder alone. The client has its state in a root of its
    /// own.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        // Settings of another server are not for this one.
        let is_setting = |name: &std::ffi::OsString| name.as_encoded_bytes().starts_with(b"ONDINE_");
        for name in std::env::vars_os().map(|(name, _)| name).filter(is_setting) {
            command.env_remove(name);
        }
        command
            .stdin(Stdio::null())
            .env_remove("NIX_PATH")
            .env_remove("NIX_CONFIG")
            .env_remove("NIX_USER_CONF_FILES")
            .env("NIX_STORE_DIR", self.0.join("store"))
            .env("NIX_STATE_DIR", self.0.join("var"))
            .env("NIX_LOG_DIR", self.0.join("log"))
            .env("NIX_CONF_DIR", self.0.join("etc"))
            .env("NIX_DAEMON_SOCKET_PATH", self.socket())
            .env("NIX_REMOTE", "daemon")
            .env("HOME", self.0.join("home"))
            .env("XDG_CACHE_HOME", self.0.join("cache"));
        command
    }

    fn start_daemon(&self) -> anyhow::Result<Running> {
        let mut command = self.command("nix-daemon");
        command.env_remove("NIX_REMOTE").stdout(Stdio::null()).stderr(Stdio::null());
        let mut daemon = Running(command.spawn().context("cannot start nix-daemon")?);
        let begun = Instant::now();
        while UnixStream::connect(self.socket()).is_err() {
            if let Some(status) = daemon.0.try_wait()? {
                bail!("nix-daemon ended at once, with {status}");
            }
            ensure!(begun.elapsed() < DAEMON_START_MAX, "nix-daemon does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(daemon)
    }

    fn sample(&self, seconds: u32) -> anyhow::Result<String> {
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".into());
        let expression = SAMPLE.replace("@seconds@", &seconds.to_string()).replace("@path@", &path);
        self.output("nix-instantiate", &["--expr", &expression])
    }

    fn output_of(&self, drv: &str) -> anyhow::Result<String> {
        self.output("nix-store", &["--query", "--outputs", drv])
    }

    /// Standard output of a command.
    fn output(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.command(program).args(arguments).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} ended with {}: {errors}", output.status);
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    fn start_server(&self) -> anyhow::Result<DemoServer> {
        let mut command = self.command(std::env::current_exe()?);
        command.args(["serve", "--listen", "127.0.0.1:0", "--state-dir"]).arg(self.state_dir());
        // A temporary store needs no advice on its setup.
        command.env("ONDINE_LOG", "warn,ondine::doctor=error");
        let mut process = Running(command.stdout(Stdio::piped()).spawn()?);
        let stdout = process.0.stdout.take().context("the server has no output")?;
        let (mut url, mut public_key) = (None, None);
        let mut lines = BufReader::new(stdout).lines();
        while url.is_none() || public_key.is_none() {
            let line = lines.next().context("the server ended at once")??;
            match line.split_once(": ") {
                Some(("url", value)) => url = Some(value.to_owned()),
                Some(("public key", value)) => public_key = Some(value.to_owned()),
                _ => {}
            }
        }
        // The rest is for nix.conf.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(DemoServer {
            url: url.unwrap_or_default(),
            public_key: public_key.unwrap_or_default(),
            _process: process,
        })
    }

    fn client(&self, server: &DemoServer, output: &str) -> Command {
        let mut command = self.command("nix");
        command
            .env_remove("NIX_REMOTE")
            .env_remove("NIX_STATE_DIR")
            .env_remove("NIX_LOG_DIR")
            .env_remove("NIX_DAEMON_SOCKET_PATH")
            .args(["build", "--no-link", "--store"])
            .arg(self.client_root())
            .args(["--option", "substituters", &server.url])
            .args(["--option", "trusted-public-keys", &server.public_key])
            .arg(output);
        command
    }

    /// State of the server, in a few words.
    fn queue(&self) -> anyhow::Result<String> {
        let queue: QueueStatus = ServerSession::of_state_dir(self.state_dir())?.read("/api/v1/queue")?;
        Ok(match queue.running.first() {
            Some(RunningBuild { derivation, seconds, .. }) => {
                format!("the server has been building {derivation} for {seconds} s")
            }
            None => "the server has nothing to build".to_owned(),
        })
    }
}
