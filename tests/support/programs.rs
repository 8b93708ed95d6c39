//! A folder of a store that is on a server's PATH before all others, for the programs with which it evaluates
//! package sets: those of the store's release, and what a test puts there.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::release::Release;
use super::store::{NixStore, write};

/// Does what nix-eval-jobs does, by means of nix-instantiate.
pub const EVAL_JOBS: &str = include_str!("nix-eval-jobs.sh");

/// A PATH that begins with that folder. Its `nix` and its `nix-instantiate` are those of the store's release.
#[track_caller]
pub fn path(store: &NixStore) -> String {
    let host = std::env::var("PATH").expect("a PATH");
    let path = format!("{}:{host}", folder(store).display());
    let Release::Chroot { root, .. } = store.release() else { return path };
    for name in ["nix", "nix-instantiate"] {
        install(store, name, &of_release(root, &format!("usr/bin/{name}")));
    }
    // Evaluators may read the libraries beside programs on the PATH, and nothing else of a chroot.
    format!("{path}:{}", root.join("usr/bin").display())
}

/// Puts `nix-eval-jobs` into the folder: that of the store's release, where it has one.
#[track_caller]
pub fn install_eval_jobs(store: &NixStore) {
    let real = "usr/local/bin/nix-eval-jobs";
    let real = match store.release() {
        Release::Chroot { root, .. } if root.join(real).exists() => Some(of_release(root, real)),
        _ => None,
    };
    install(store, "nix-eval-jobs", real.as_deref().unwrap_or(EVAL_JOBS));
}

/// Takes a program out of the folder.
#[track_caller]
pub fn remove(store: &NixStore, name: &str) {
    std::fs::remove_file(folder(store).join(name)).expect("it was there");
}

/// Puts a script for the shell into the folder.
#[track_caller]
pub fn install(store: &NixStore, name: &str, script: &str) {
    let folder = folder(store);
    std::fs::create_dir_all(&folder).expect("a folder");
    // Under its name it is there as a whole.
    let (file, draft) = (folder.join(name), folder.join("draft"));
    write(&draft, &format!("#!/bin/sh\n{script}"));
    std::fs::set_permissions(&draft, PermissionsExt::from_mode(0o755)).expect("set");
    std::fs::rename(&draft, &file).expect("renamed");
}

fn folder(store: &NixStore) -> PathBuf {
    store.folder().join("programs")
}

/// Runs a program of a chroot where it is, with the libraries of that: the sandbox of evaluators lets nobody
/// mount anything.
fn of_release(root: &Path, program: &str) -> String {
    let root = root.display();
    format!(
        "exec \"$(ls -d {root}/usr/lib64/ld-linux-*.so.* {root}/usr/lib/ld-linux-*.so.* 2>/dev/null | head -n 1)\" --library-path \"$(echo {root}/usr/lib/*-linux-gnu)\" \\\n    \
         --argv0 \"${{0##*/}}\" {root}/{program} \"$@\"\n"
    )
}
