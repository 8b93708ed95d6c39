//! The sandbox of evaluators: Landlock says which files they may open, a seccomp filter leaves them no
//! sockets but local ones. Both hold for a thread and all that it starts, cannot be taken back, and need no
//! privileges. Nix's own restrictions come on top: they do not cover `getFlake` and `fetchTree` in every
//! release.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Programs, libraries and their data, where systems have them.
const PROGRAMS: [&str; 11] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/run/current-system",
    "/etc/ssl",
    "/etc/pki",
    "/var/lib/ca-certificates",
];
/// Other files of the system that programs read.
const DATA: [&str; 13] = [
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/gitconfig",
    "/dev/random",
    "/dev/urandom",
    // Of other processes it shows what anyone may see: Landlock bars the rest.
    "/proc",
    "/sys/fs/cgroup",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
];
/// Devices that take anything.
const SINKS: [&str; 3] = ["/dev/null", "/dev/zero", "/dev/full"];
/// The newest version of Landlock whose restrictions are used where the kernel has them.
const NEWEST: ABI = ABI::V6;
/// The advice where the kernel cannot isolate.
const REMEDY: &str = "evaluators could read the signing key and reach the network; use a kernel of 5.13 or later with Landlock \
                      (\"landlock\" in its lsm= parameter, CONFIG_SECURITY_LANDLOCK, no container profile that bars it), or set \
                      evaluator-isolation = \"none\" where all package sets are trusted";

/// Requirement of isolated evaluators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Without isolation nothing is evaluated.
    #[default]
    Required,
    /// Evaluators are isolated by Nix's own settings alone.
    None,
}

/// Why an evaluator cannot be isolated. The text is for who runs the server.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The kernel has no Landlock, or it is switched off.
    #[error("nothing is evaluated, since this kernel offers no Landlock ({0}): {REMEDY}")]
    Landlock(RulesetError),
    /// The kernel takes no system call filter.
    #[error("nothing is evaluated, since this kernel takes no seccomp filter ({0}): {REMEDY}")]
    Seccomp(String),
    /// The state directory, or a key, is in the source.
    #[error(
        "{} has {} in it, and would be read with the signing key: move one of the two",
        source_dir.display(),
        hidden.display()
    )]
    Within {
        /// The readable folder.
        source_dir: PathBuf,
        /// The unreadable folder.
        hidden: PathBuf,
    },
    /// The source is in the state directory.
    #[error("{} is in the state directory, which evaluators cannot read: move it", .0.display())]
    Inside(PathBuf),
    /// Files cannot be looked at.
    #[error("{} cannot be looked at", path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Files and hosts that an evaluator may open.
#[derive(Clone, Debug, Default)]
pub(super) struct Sandbox {
    /// Folders and files that the settings name; all must be there.
    pub(super) sources: BTreeSet<PathBuf>,
    /// Those of them that are read as a whole, list and all.
    pub(super) whole: BTreeSet<PathBuf>,
    /// Folders and files that are read, and programs that are run, as far as they are there.
    pub(super) readable: BTreeSet<PathBuf>,
    /// Folders that are written.
    pub(super) writable: BTreeSet<PathBuf>,
    /// The state directory, and secrets elsewhere: not readable, whatever else is, but for what is writable.
    pub(super) hidden: Vec<PathBuf>,
}

impl Sandbox {
    /// A sandbox for programs of this system, with nothing of what is hidden.
    pub(super) fn new(hidden: &[PathBuf]) -> Self {
        let readable = PROGRAMS.iter().chain(&DATA).map(PathBuf::from).collect();
        Self { readable, hidden: hidden.to_vec(), ..Self::default() }
    }

    /// Puts the current thread, and all that it will start, into the sandbox for good. Blocks for moments.
    ///
    /// # Errors
    /// If the kernel cannot do it, or the source and the state directory are in one another. The thread may
    /// then be restricted in part.
    pub(super) fn enter(&self) -> Result<(), SandboxError> {
        let mut ruleset = ruleset().map_err(SandboxError::Landlock)?;
        let read = AccessFs::from_read(NEWEST);
        let hidden = self.hidden.iter().map(|path| canonical(path)).collect::<Result<Vec<_>, _>>()?;
        let is_hidden = |path: &Path| hidden.iter().any(|hidden| path.starts_with(hidden));
        for source in &self.sources {
            let path = canonical(source)?;
            if is_hidden(&path) {
                return Err(SandboxError::Inside(path));
            }
            let within = hidden.iter().find(|hidden| hidden.starts_with(&path));
            if let Some(hidden) = within.filter(|_| self.whole.contains(source)) {
                return Err(SandboxError::Within { source_dir: path, hidden: hidden.clone() });
            }
            ruleset = allow(ruleset, &path, &hidden, read)?;
        }
        for path in &self.readable {
            // What is not there is not needed.
            let Ok(path) = path.canonicalize() else { continue };
            if !is_hidden(&path) {
                ruleset = allow(ruleset, &path, &hidden, read)?;
            }
        }
        for path in &self.writable {
            ruleset = add(ruleset, path, AccessFs::from_all(NEWEST))?;
        }
        for path in SINKS {
            ruleset =
                add(ruleset, Path::new(path), AccessFs::from_all(NEWEST) & AccessFs::from_file(NEWEST))?;
        }
        let status = ruleset.restrict_self().map_err(SandboxError::Landlock)?;
        if status.ruleset == RulesetStatus::NotEnforced {
            return Err(SandboxError::Seccomp("Landlock is not enforced".to_owned()));
        }
        drop_privileges().map_err(|error| SandboxError::Seccomp(error.to_string()))?;
        bar_sockets()
    }
}

/// An empty set of rules: what the first Landlock can restrict must be, all else is where the kernel can do
/// it.
fn ruleset() -> Result<RulesetCreated, RulesetError> {
    let needed = AccessFs::from_all(ABI::V1);
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(needed)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?;
    ruleset.create()
}

/// Allows a path, but for what is hidden: of a folder that has it in it, everything beside the way there.
fn allow(
    mut ruleset: RulesetCreated,
    path: &Path,
    hidden: &[PathBuf],
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, SandboxError> {
    if !hidden.iter().any(|hidden| hidden.starts_with(path)) {
        return add(ruleset, path, access);
    }
    let system = |source| SandboxError::System { path: path.to_owned(), source };
    for entry in path.read_dir().map_err(system)? {
        let below = entry.map_err(system)?.path();
        if !hidden.contains(&below) && !below.is_symlink() {
            ruleset = allow(ruleset, &below, hidden, access)?;
        }
    }
    Ok(ruleset)
}

fn add(
    ruleset: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, SandboxError> {
    // What vanishes meanwhile is not needed any more.
    let Ok(opened) = PathFd::new(path) else { return Ok(ruleset) };
    let is_folder = fs::metadata(path).is_ok_and(|file| file.is_dir());
    let access = if is_folder { access } else { access & AccessFs::from_file(NEWEST) };
    ruleset.add_rule(PathBeneath::new(opened, access)).map_err(SandboxError::Landlock)
}

fn canonical(path: &Path) -> Result<PathBuf, SandboxError> {
    path.canonicalize().map_err(|source| SandboxError::System { path: path.to_owned(), source })
}

/// Leaves root nothing but the right to read whatever files the sandbox allows. With more, `/proc` would show
/// the environment of other processes, which Landlock does not bar then. New privileges cannot be had in the
/// sandbox, by no program.
fn drop_privileges() -> io::Result<()> {
    let kept = CapabilitySet::DAC_READ_SEARCH | CapabilitySet::DAC_OVERRIDE;
    let has = capabilities(None)?;
    if (has.permitted | has.inheritable).difference(kept).is_empty() {
        return Ok(());
    }
    let left = has.permitted & kept;
    let sets = CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

/// From now on this thread, and all that it starts, can make no socket that leads off this machine.
fn bar_sockets() -> Result<(), SandboxError> {
    let failed = |error: &dyn std::fmt::Display| SandboxError::Seccomp(error.to_string());
    let program = filter().map_err(|error| failed(&error))?;
    seccompiler::apply_filter(&program).map_err(|error| failed(&error))
}

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let local = u64::from(libc::AF_UNIX.unsigned_abs());
    let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, local)?;
    let rules = BTreeMap::from([
        (libc::SYS_socket, vec![SeccompRule::new(vec![condition])?]),
        // It makes sockets, too.
        (libc::SYS_io_uring_setup, Vec::new()),
    ]);
    let refuse = SeccompAction::Errno(libc::EACCES.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, std::env::consts::ARCH.try_into()?)?;
    filter.try_into()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_thread_in_the_sandbox_and_its_children_open_what_it_allows_and_reach_nobody() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path().join("within/state");
        let home = state.join("home");
        fs::create_dir_all(&home).expect("made");
        for (path, text) in [("within/state/key", "secret"), ("within/beside", "b"), ("file", "f")] {
            fs::write(folder.path().join(path), text).expect("written");
        }
        let others = tempfile::tempdir().expect("a folder");
        fs::write(others.path().join("file"), "others").expect("written");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut sandbox = Sandbox::new(&[state.clone(), state.join("key")]);
        sandbox.sources.insert(folder.path().to_owned());
        sandbox.writable.insert(home.clone());

        let entered = std::thread::spawn(move || {
            sandbox.enter().expect("this kernel can do it");
            let read = |path: &Path| fs::read_to_string(path);
            for path in ["file", "within/beside"] {
                read(&folder.path().join(path)).expect("it is of the source");
            }
            fs::write(home.join("file"), "x").expect("it is the home");
            let refused = |error: io::Error| assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            refused(read(&state.join("key")).expect_err("it is hidden"));
            refused(fs::read_dir(&state).expect_err("it is hidden"));
            refused(fs::write(state.join("key"), "x").expect_err("it is hidden"));
            refused(read(&others.path().join("file")).expect_err("it belongs to others"));
            refused(fs::write(folder.path().join("file"), "x").expect_err("it is only read"));
            refused(TcpStream::connect(address).expect_err("it is on the network"));
            refused(UdpSocket::bind("127.0.0.1:0").expect_err("it is on the network"));
            UnixStream::pair().expect("it is local");
            let child = |words: &str| Command::new("/bin/sh").args(["-c", words]).output().expect("run");
            assert!(child(&format!("cat {}", home.join("file").display())).status.success());
            let parent = std::process::id();
            for secret in [
                state.join("key").display().to_string(),
                format!("/proc/{parent}/environ"),
                format!("/proc/{parent}/root{}", state.join("key").display()),
                format!("/proc/{parent}/cwd/Cargo.toml"),
            ] {
                let read = child(&format!("cat {secret}"));
                assert!(!read.status.success() && read.stdout.is_empty(), "{secret}");
            }
            let error =
                Sandbox { sources: [home.clone()].into(), ..sandbox }.enter().expect_err("it is hidden");
            assert!(matches!(error, SandboxError::Inside(_)), "{error}");
        });
        entered.join().expect("all is as it must be");
    }
}
