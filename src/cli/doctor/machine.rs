//! Checks of the machine that a server runs on: files and their modes, the clock, the disk, descriptors.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use rustix::fs::statvfs;
use rustix::process::{Resource, getrlimit};

use super::finding::{DoctorReport, FindingLevel};
use crate::cli::screen::size;
use crate::serve::Settings;
use crate::state_dir::INDEX;

/// Free bytes below which a disk is nearly full.
const FREE_BYTES_MIN: u64 = 1024 * 1024 * 1024;
/// Part of the inodes, in percent, below which they are nearly used up.
const FREE_INODES_PERCENT_MIN: u64 = 5;
/// Descriptors that a server with many clients needs.
const DESCRIPTORS_MIN: u64 = 4096;
/// Time by which a file may be ahead of the clock.
const AHEAD_MAX: Duration = Duration::from_secs(60);

/// Looks at the machine and the files of a server with these settings.
pub(super) async fn check(settings: &Settings, report: &mut DoctorReport) {
    modes(settings, report);
    clock(&settings.state_dir, report).await;
    disk(&settings.state_dir, report);
    descriptors(report);
}

fn modes(settings: &Settings, report: &mut DoctorReport) {
    let dir = &settings.state_dir;
    report.private("state", dir, "its files have secrets, and who may write here may change what is served");
    let own = std::fs::read_dir(dir.join("signing-keys")).into_iter().flatten().flatten();
    let mut keys = vec![dir.join("signing-key")];
    keys.extend(own.map(|entry| entry.path()));
    keys.extend(settings.signing_keys.clone());
    for key in keys {
        report.private("keys", &key, "who can read a signing key can sign anything in this cache's name");
    }
    if let Some(file) = &settings.index.password_file {
        report.private("index", file, "who can read it can change what is served");
    }
    for key in settings.farm.builders.iter().filter_map(|builder| builder.ssh.key_file.as_ref()) {
        report.private("builder", key, "who can read it may log in on the builder");
    }
    for cache in &settings.upstream.caches {
        if let Some(file) = cache.credentials_file.as_ref().filter(|file| file.is_absolute()) {
            report.private("credentials", file, "who can read it has this server's access to the upstream");
        }
    }
}

async fn clock(state_dir: &Path, report: &mut DoctorReport) {
    let written = std::fs::metadata(state_dir.join(INDEX)).and_then(|index| index.modified());
    let ahead = written.ok().and_then(|written| written.duration_since(SystemTime::now()).ok());
    if let Some(ahead) = ahead.filter(|ahead| *ahead > AHEAD_MAX) {
        return report.add(
            FindingLevel::Error,
            "clock",
            format!("the clock is {} s behind the server's own files", ahead.as_secs()),
            "failures, tokens and uses have times in the future: they expire late, and certificates may be refused",
            "set the clock, and have it synchronised (timedatectl set-ntp true)",
        );
    }
    let mut timedatectl = tokio::process::Command::new("timedatectl");
    timedatectl.args(["show", "--property=NTPSynchronized", "--value"]).stdin(Stdio::null());
    let said = timedatectl.kill_on_drop(true).output().await.ok().filter(|output| output.status.success());
    match said.map(|output| output.stdout == b"no\n") {
        Some(true) => report.add(
            FindingLevel::Warning,
            "clock",
            "the clock is not synchronised",
            "tokens expire, and certificates and identity tokens are judged, by a clock that drifts",
            "timedatectl set-ntp true",
        ),
        Some(false) => report.ok("clock", "the clock is synchronised"),
        None => report.ok("clock", "the clock is not behind the server's files"),
    }
}

fn disk(state_dir: &Path, report: &mut DoctorReport) {
    let Some(there) = state_dir.ancestors().find(|dir| dir.exists()) else { return };
    let Ok(disk) = statvfs(there) else { return };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let shown = there.display();
    if free < FREE_BYTES_MIN {
        report.add(
            FindingLevel::Warning,
            "disk",
            format!("{} are free at {shown}", size(free)),
            "on a full disk nothing new is stored or built",
            "make room, or lower max-nar-store-bytes and run ondine gc",
        );
    } else {
        report.ok("disk", format!("{} are free at {shown}", size(free)));
    }
    let percent = (disk.f_favail * 100).checked_div(disk.f_files).unwrap_or(100);
    if percent < FREE_INODES_PERCENT_MIN {
        report.add(
            FindingLevel::Warning,
            "inodes",
            format!("{percent} % of the inodes are free at {shown}"),
            "without one no file can be made, however many bytes are free",
            "remove small files, or use a file system that makes inodes as they are needed",
        );
    }
}

fn descriptors(report: &mut DoctorReport) {
    match getrlimit(Resource::Nofile).maximum {
        Some(max) if max < DESCRIPTORS_MIN => report.add(
            FindingLevel::Warning,
            "descriptors",
            format!("{max} files may be open at once"),
            "each client and each NAR on its way needs one or two",
            "raise the limit: LimitNOFILE=65536 in the unit, ulimit -Hn in a shell",
        ),
        max => {
            let max = max.map_or_else(|| "any number of".to_owned(), |max| max.to_string());
            report.ok("descriptors", format!("{max} files may be open at once"));
        }
    }
}
