//! Fixtures of the tests: a throw-away store for the real Nix, and random file trees. Nix is not optional:
//! where it is missing, a test fails and says what to install.
#![allow(dead_code, reason = "each file of tests is a crate of its own and uses a part of this")]

pub mod tree;
pub mod wire;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use narinfo::{NarHash, StoreDir, StorePath};
use sha2::{Digest, Sha256};

/// A Nix store of one test, gone when the test ends.
pub struct Nix {
    folder: tempfile::TempDir,
}

impl Nix {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in ["store", "state", "log", "conf", "home", "cache", "tmp"] {
            fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        let conf = "sandbox = false\nbuild-users-group =\nsubstituters =\npreallocate-contents = false\n\
                    experimental-features = nix-command ca-derivations impure-derivations\n";
        fs::write(folder.path().join("conf/nix.conf"), conf).expect("nix.conf");
        Self { folder }
    }

    /// A path in the test's folder, outside the store.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn store_dir(&self) -> StoreDir {
        StoreDir::new(self.path("store").to_str().expect("UTF-8")).expect("a store directory")
    }

    /// The store path of a full path.
    pub fn parse(&self, full: &str) -> StorePath {
        StorePath::parse_in(&self.store_dir(), full).expect("a path in the store")
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (variable, name) in [
            ("NIX_STORE_DIR", "store"),
            ("NIX_STATE_DIR", "state"),
            ("NIX_LOG_DIR", "log"),
            ("NIX_CONF_DIR", "conf"),
            ("HOME", "home"),
            ("XDG_CACHE_HOME", "cache"),
            ("TMPDIR", "tmp"),
        ] {
            command.env(variable, self.path(name));
        }
        for variable in ["NIX_REMOTE", "NIX_PATH", "NIX_CONFIG", "NIX_USER_CONF_FILES"] {
            command.env_remove(variable);
        }
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    /// Runs it to its end, whatever the end.
    #[track_caller]
    pub fn attempt<A: AsRef<OsStr>>(&self, program: &str, arguments: &[A]) -> Output {
        finish(program, self.command(program).args(arguments))
    }

    /// Runs it to a good end and returns what it wrote.
    #[track_caller]
    pub fn bytes<A: AsRef<OsStr>>(&self, program: &str, arguments: &[A]) -> Vec<u8> {
        let output = self.attempt(program, arguments);
        let shown: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {shown:?} failed: {errors}");
        output.stdout
    }

    /// The same, as text without the last newline.
    #[track_caller]
    pub fn text<A: AsRef<OsStr>>(&self, program: &str, arguments: &[A]) -> String {
        let text = String::from_utf8(self.bytes(program, arguments)).expect("text");
        text.trim_end_matches('\n').to_owned()
    }

    /// The store paths that it wrote, one in a line.
    #[track_caller]
    pub fn paths<A: AsRef<OsStr>>(&self, program: &str, arguments: &[A]) -> Vec<StorePath> {
        self.text(program, arguments).lines().map(|line| self.parse(line)).collect()
    }

    /// Builds a Nix expression and returns its only output's path.
    #[track_caller]
    pub fn build(&self, expression: &str) -> StorePath {
        self.parse(&self.text("nix-build", &["--no-out-link", "-E", expression]))
    }

    /// The full path of a store path, as text.
    pub fn full(&self, path: &StorePath) -> String {
        path.in_dir(&self.store_dir())
    }

    /// `nix-store --restore`: whether Nix takes the bytes for a NAR. With limits, since a broken length can
    /// ask for terabytes.
    pub fn restores(&self, nar: &Path, target: &Path) -> bool {
        let limits = "ulimit -v 1500000; ulimit -f 100000; exec nix-store --restore \"$1\" < \"$2\"";
        // The shell says 127 where there is no such program.
        let output =
            finish("sh", self.command("sh").args(["-c", limits, "sh"].map(OsStr::new)).args([target, nar]));
        let missing = output.status.code() == Some(127);
        assert!(!missing, "{}", install("nix-store"));
        output.status.success()
    }
}

/// Runs a command to its end, and says what to install where there is no such program.
#[track_caller]
pub fn finish(program: &str, command: &mut Command) -> Output {
    match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => panic!("{}", install(program)),
        Err(error) => panic!("cannot run {program}: {error}"),
    }
}

fn install(program: &str) -> String {
    format!("{program} was not found: these tests need a real Nix; on Debian, apt-get install nix-bin")
}

/// A derivation that a shell script builds. The script ends with a builtin, since Nix kills a builder whose
/// last external command has closed its output.
pub fn expression(attributes: &str, script: &str) -> String {
    format!(
        "derivation {{ system = builtins.currentSystem; builder = \"/bin/bash\"; PATH = \"/usr/bin:/bin\"; \
         {attributes} args = [ \"-c\" ''{script}; :'' ]; }}"
    )
}

/// The SHA-256 of bytes.
pub fn sha256(bytes: &[u8]) -> NarHash {
    NarHash::from_bytes(Sha256::digest(bytes).into())
}
