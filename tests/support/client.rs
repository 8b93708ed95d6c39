//! A stock Nix as a client of a cache: a store of its own under the same logical store directory as the
//! server's, and no other substituter. It may not build unless a test says so, so what it holds came from the
//! cache.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::derivations::Derivation;
use super::process::{self, Background, Finished};
use super::release::{Launcher, Release};
use super::store::{Folder, nix_conf, nix_variables, text, write};

/// A cache to fetch from, and the one key that is trusted.
#[derive(Clone, Debug)]
pub struct Substituter {
    /// Its address, such as `http://127.0.0.1:8080`.
    pub url: String,
    /// `name:base64`, as nix.conf's trusted-public-keys wants it.
    pub public_key: String,
}

/// A client with an empty store.
pub struct Client {
    folder: Folder,
    launcher: Launcher,
}

impl Client {
    /// A client of `release` whose store directory is called `store_dir`, like the server's, which must exist
    /// on this machine. Its own folder is laid over that name in a mount namespace that only the client's
    /// processes see.
    pub fn new(release: Release, store_dir: &Path) -> Client {
        Client::with_settings(release, store_dir, &[])
    }

    /// The same with these lines in its nix.conf, such as `("stalled-download-timeout", "25")`.
    pub fn with_settings(release: Release, store_dir: &Path, settings: &[(&str, &str)]) -> Client {
        let folder = Folder::new();
        let variables = nix_variables(&folder, store_dir);
        let own = folder.subfolder("store");
        let settings = [&[("max-jobs", "0"), ("require-sigs", "true")], settings].concat();
        write(&folder.path().join("etc/nix.conf"), &nix_conf(&settings));
        let launcher =
            Launcher::new(release, variables).variable("NIX_REMOTE", "local").bind(&own, store_dir);
        Client { folder, launcher }
    }

    /// The same with a program `ssh` that has these options. That of this machine: a chroot has none.
    pub fn with_ssh(mut self, options: &str) -> Client {
        let (bin, usr) = (self.folder.subfolder("bin"), self.folder.subfolder("host-usr"));
        let libraries = usr.join("lib/x86_64-linux-gnu");
        let loader = libraries.join("ld-linux-x86-64.so.2");
        let program = usr.join("bin/ssh");
        let line = [text(&loader), "--library-path", text(&libraries), text(&program)].join(" ");
        write(&bin.join("ssh"), &format!("#!/bin/sh\nexec {line} \"$@\"\n"));
        std::fs::set_permissions(bin.join("ssh"), std::fs::Permissions::from_mode(0o755))
            .expect("it is ours");
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display());
        let launcher = self.launcher.bind(Path::new("/usr"), &usr);
        self.launcher = launcher.variable("PATH", path).variable("NIX_SSHOPTS", options);
        self
    }

    /// Runs `program` of this client's Nix on its store.
    #[track_caller]
    pub fn run(&self, program: &str, arguments: &[&str]) -> Finished {
        process::run(self.command(program, arguments))
    }

    /// The same command, not started.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        self.launcher.command(program, arguments)
    }

    /// The same in the background.
    #[track_caller]
    pub fn start(&self, program: &str, arguments: &[&str]) -> Background {
        Background::start(self.launcher.command(program, arguments))
    }

    /// `ondine` with these arguments as a user of this machine runs it.
    #[track_caller]
    pub fn ondine(&self, arguments: &[&str]) -> Finished {
        process::run(self.ondine_command(arguments, &[]))
    }

    /// The same command with these variables more, not started.
    #[track_caller]
    pub fn ondine_command(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut launcher = self.launcher.clone();
        for (name, value) in variables {
            launcher = launcher.variable(name, value);
        }
        launcher.ondine(self.folder.path(), arguments)
    }

    /// The folder of the user's files.
    pub fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// Asks the cache for store paths as a user does: `nix build`, signatures required, only that key
    /// trusted. To the end.
    #[track_caller]
    pub fn fetch(&self, from: &Substituter, paths: &[&Path]) -> Finished {
        process::run(self.fetch_command(from, paths))
    }

    /// The same in the background.
    #[track_caller]
    pub fn start_fetch(&self, from: &Substituter, paths: &[&Path]) -> Background {
        Background::start(self.fetch_command(from, paths))
    }

    /// `nix copy --from` the cache: asks for the paths by name and for their closure, and builds nothing.
    #[track_caller]
    pub fn copy(&self, from: &Substituter, paths: &[&Path]) -> Finished {
        let mut arguments =
            vec!["copy", "--from", &from.url, "--option", "trusted-public-keys", &from.public_key];
        arguments.extend(paths.iter().map(|path| text(path)));
        self.run("nix", &arguments)
    }

    /// Makes the derivation, as every user does, and wants its outputs from the cache. Gives what it got.
    #[track_caller]
    pub fn realise(&self, from: &Substituter, derivation: &Derivation) -> Vec<PathBuf> {
        let options =
            ["--option", "substituters", &from.url, "--option", "trusted-public-keys", &from.public_key];
        self.realise_with(derivation, &options)
    }

    /// Builds a derivation in this client's own store, and gives its outputs.
    #[track_caller]
    pub fn build(&self, derivation: &Derivation) -> Vec<PathBuf> {
        self.realise_with(derivation, &[])
    }

    #[track_caller]
    fn realise_with(&self, derivation: &Derivation, options: &[&str]) -> Vec<PathBuf> {
        let drv = self.instantiate(derivation);
        let got = self.run("nix-store", &[&["--realise", &*drv], options].concat()).must_succeed();
        got.text().lines().map(PathBuf::from).collect()
    }

    /// Makes a derivation in this client's own store, and gives its path.
    #[track_caller]
    pub fn instantiate(&self, derivation: &Derivation) -> String {
        let drv = self.run("nix-instantiate", &["--expr", &derivation.to_nix()]).must_succeed().text();
        drv.split('!').next().unwrap_or_default().trim().to_owned()
    }

    fn fetch_command(&self, from: &Substituter, paths: &[&Path]) -> Command {
        let mut arguments = vec!["build", "--no-link", "--print-build-logs"];
        arguments.extend(["--option", "substituters", &from.url]);
        arguments.extend(["--option", "trusted-public-keys", &from.public_key]);
        arguments.extend(paths.iter().map(|path| text(path)));
        self.launcher.command("nix", arguments)
    }

    /// Where on this machine the client keeps the store path `path`, whether or not it has it.
    pub fn physical(&self, path: &Path) -> PathBuf {
        self.folder.path().join("store").join(path.file_name().expect("a store path has a name"))
    }

    /// True if the client's database holds `path`.
    pub fn has(&self, path: &Path) -> bool {
        self.run("nix-store", &["--check-validity", text(path)]).succeeded()
    }

    /// The SHA-256 of the NAR of the client's copy of `path`.
    #[track_caller]
    pub fn nar_digest(&self, path: &Path) -> String {
        nar_digest(&self.physical(path))
    }

    /// Forgets what it knows of every cache: answers it has seen, present and missing.
    pub fn forget_answers(&self) {
        let _ = std::fs::remove_dir_all(self.folder.path().join("cache"));
        self.folder.subfolder("cache");
    }

    /// Deletes every path from the client's store.
    #[track_caller]
    pub fn empty(&self) {
        self.run("nix-store", &["--gc"]).must_succeed();
    }
}

/// The SHA-256, in hexadecimal, of the NAR that this machine's `nix-store --dump` makes of a file tree. Two
/// trees with one digest are alike byte for byte.
#[track_caller]
pub fn nar_digest(tree: &Path) -> String {
    let mut command = Command::new("nix-store");
    command.arg("--dump").arg(tree).stdout(std::process::Stdio::piped());
    let mut child = process::spawn(&mut command);
    let mut nar = child.stdout.take().expect("the output was asked for");
    let mut digest = Sha256::new();
    std::io::copy(&mut nar, &mut digest).unwrap_or_else(|error| panic!("reading nix-store --dump: {error}"));
    let status = child.wait().expect("the kernel tells how a child of ours ended");
    assert!(status.success(), "nix-store --dump {} ended with {status}", tree.display());
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
