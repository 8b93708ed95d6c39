//! A folder of a store that is on a server's PATH before all others, for the programs with which it evaluates package sets: those
//! of the store's release, and what a test puts there.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::release::Release;
use super::store::{NixStore, write};

/// Does what nix-eval-jobs does, by means of nix-instantiate.
pub const EVAL_JOBS: &str = include_str!("nix-eval-jobs.sh");

/// A PATH that begins with that folder. Its `nix-instantiate` is that of the store's release.
#[track_caller]
pub fn path(store: &NixStore) -> String {
    if *store.release() != Release::Host {
        install(store, "nix-instantiate", &within_release(store, "nix-instantiate"));
    }
    format!("{}:{}", folder(store).display(), std::env::var("PATH").expect("a PATH"))
}

/// Puts `nix-eval-jobs` into the folder: that of the store's release, where it has one.
#[track_caller]
pub fn install_eval_jobs(store: &NixStore) {
    let is_there = match store.release() {
        Release::Host => false,
        Release::Chroot { root, .. } => root.join("usr/local/bin/nix-eval-jobs").exists(),
    };
    let real = is_there.then(|| within_release(store, "nix-eval-jobs"));
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

fn within_release(store: &NixStore, name: &str) -> String {
    let command = store.command_through_daemon(name, &[]);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted = words.map(|word| format!("'{}'", word.to_string_lossy().replace('\'', "'\\''")));
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    format!("PATH={path} exec {} \"$@\"\n", quoted.collect::<Vec<_>>().join(" "))
}
