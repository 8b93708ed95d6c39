//! The releases of Nix that tests run: the host's own, and newer ones in Debian chroots named by
//! ONDINE_TEST_CHROOTS. A release that was asked for and is not there fails the test; none is ever skipped.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process;

/// Which Nix a store or a client runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Release {
    /// The Nix on this machine's PATH.
    Host,
    /// The Nix inside a Debian chroot.
    Chroot {
        /// The last part of the root's path, such as `trixie`.
        name: String,
        /// The root on this machine.
        root: PathBuf,
    },
}

impl Release {
    /// The host's, and one for each root in ONDINE_TEST_CHROOTS (joined by colons). Fails when one of them
    /// has no Nix.
    #[track_caller]
    pub fn all() -> Vec<Release> {
        let listed = std::env::var_os("ONDINE_TEST_CHROOTS").unwrap_or_default();
        let roots = std::env::split_paths(&listed).filter(|root| !root.as_os_str().is_empty());
        let chroots = roots.map(|root| {
            assert!(
                root.join("usr/bin/nix").exists(),
                "ONDINE_TEST_CHROOTS names {}, which has no usr/bin/nix: make it with .ci/chroots (needs debootstrap), \
                 or unset the variable",
                root.display()
            );
            let name = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Release::Chroot { name, root }
        });
        std::iter::once(Release::Host).chain(chroots).collect()
    }

    /// `host`, or the name of the chroot.
    pub fn name(&self) -> &str {
        match self {
            Release::Host => "host",
            Release::Chroot { name, .. } => name,
        }
    }

    /// The version that its `nix --version` ends with, such as `2.26.3`.
    #[track_caller]
    pub fn version(&self) -> String {
        let launcher = Launcher::new(self.clone(), Vec::new());
        let text = process::run(launcher.command("nix", ["--version"])).must_succeed().text();
        text.rsplit(' ').next().unwrap_or_default().to_owned()
    }
}

/// Environment of the programs of one release: with exactly these variables, and with `binds` laid over the
/// file system in a mount namespace of their own, so that nothing of it is seen outside.
#[derive(Clone)]
pub struct Launcher {
    release: Release,
    variables: Vec<(String, OsString)>,
    binds: Vec<(PathBuf, PathBuf)>,
}

/// Lays the binds (pairs of words up to `--`) and, for a chroot, this machine's devices, processes and
/// temporary folder over the root, then becomes the program. The chroot sees the temporary folder under the
/// same path as the host, so that paths and sockets agree.
const ENTER: &str = r#"
set -eu
root=$1 temporary=$2
shift 2
while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done
shift
[ -n "$root" ] || exec "$@"
mkdir -p "$root$temporary"
mount --rbind /dev "$root/dev"
mount --rbind /proc "$root/proc"
mount --rbind "$temporary" "$root$temporary"
exec chroot "$root" "$@"
"#;

impl Launcher {
    /// Programs of `release` with these variables, PATH and a UTF-8 locale.
    pub fn new(release: Release, variables: Vec<(String, OsString)>) -> Launcher {
        Launcher { release, variables, binds: Vec::new() }
    }

    /// The same with `from` seen at `at`, which must exist.
    pub fn bind(mut self, from: &Path, at: &Path) -> Launcher {
        self.binds.push((from.to_owned(), at.to_owned()));
        self
    }

    /// The same with one variable more.
    pub fn variable(mut self, name: &str, value: impl Into<OsString>) -> Launcher {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// A command that runs `program` of this release.
    pub fn command<S: AsRef<str>>(&self, program: &str, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = if self.release == Release::Host && self.binds.is_empty() {
            Command::new(program)
        } else {
            self.entering(program)
        };
        command.args(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        let path = match self.release {
            Release::Host => std::env::var_os("PATH").unwrap_or_default(),
            Release::Chroot { .. } => "/usr/sbin:/usr/bin:/sbin:/bin".into(),
        };
        command.env_clear().env("PATH", path).env("LC_ALL", "C.UTF-8");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The program under test as one of this release's machine; `folder` is a temporary one.
    #[track_caller]
    pub fn ondine<S: AsRef<str>>(&self, folder: &Path, arguments: impl IntoIterator<Item = S>) -> Command {
        let program = process::program();
        if self.release == Release::Host {
            return self.command(program, arguments);
        }
        // The chroot sees the temporary folder of the host, and with it what is laid over a file in it.
        // Not beside its settings, which are those of a system where the folder is one.
        let programs = folder.join("bin");
        let place = programs.join("ondine");
        std::fs::create_dir_all(&programs)
            .and_then(|()| std::fs::write(&place, ""))
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", place.display()));
        let place_text = place.to_str().expect("temporary folders have names in UTF-8").to_owned();
        self.clone().bind(Path::new(program), &place).command(&place_text, arguments)
    }

    fn entering(&self, program: &str) -> Command {
        let mut command = Command::new("unshare");
        command.arg("--mount");
        if !is_root() {
            command.arg("--map-root-user");
        }
        command.args(["--", "/bin/sh", "-c", ENTER, "enter"]);
        match &self.release {
            Release::Host => command.arg(""),
            Release::Chroot { root, .. } => command.arg(root),
        };
        command.arg(std::env::temp_dir());
        for (from, at) in &self.binds {
            command.arg(from).arg(at);
        }
        command.arg("--").arg(program);
        command
    }
}

/// True if the tests run as root. Anyone else gets a user namespace in which they seem to be.
fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}
