//! Isolation of builds from the server: checks once at the start whether builds may starve it, and logs the
//! result in one line. Silent where it cannot see, and never stops a start, but for a background lane that
//! would be no slower.

use std::fs;
use std::thread::available_parallelism;

use crate::nix::{DaemonError, Pool, Trust};

/// The section of the documentation that explains the remedies.
const SECTION: &str = "docs/operations.md, \"Keep the server responsive\"";

/// Limits of builds.
#[derive(Clone, Copy, Debug)]
pub struct BuildLimits {
    /// Cores that one build may use; 0 is all.
    pub build_cores: u64,
    /// Builds at a time on this machine.
    pub builds: u64,
}

/// Logs the missing limits of builds in one line, where something is built; and asks the daemon, which warns
/// if it does not answer.
pub async fn report(pool: Pool, bounds: Option<BuildLimits>) {
    let (neighbour, long_lines) = (neighbour(&pool).await, long_lines(&pool).await);
    let Some(bounds) = bounds else { return };
    let cores = available_parallelism().map_or(1, |cores| cores.get() as u64);
    let advice: Vec<String> =
        [all_cores(bounds, cores), neighbour, long_lines].into_iter().flatten().collect();
    if !advice.is_empty() {
        // No warning: it is so on most machines, and nothing is wrong with it where builds are small.
        tracing::info!("builds may slow answers down ({SECTION}): {}", advice.join("; "));
    }
}

/// Why there can be no background lane.
#[derive(Debug, thiserror::Error)]
pub enum BackgroundError {
    /// A daemon cannot be reached.
    #[error("background-daemon: both Nix daemons must answer before the server starts")]
    Daemon(#[from] DaemonError),
    /// Both daemons share a control group: the lane would slow the main one down by as much as it gains.
    #[error(
        "background-daemon: its builds would have as much weight as all others, since both Nix daemons are in the control group {0}; run it as a service of its own with a CPUWeight below 100 ({SECTION})"
    )]
    SameGroup(String),
    /// Its weight is no less than the main lane's.
    #[error(
        "background-daemon: its control group {group} has the weight {weight}, no less than the other daemon's {main}; give its service a lower CPUWeight ({SECTION})"
    )]
    NoLess {
        /// The second daemon's control group.
        group: String,
        /// The weight of that.
        weight: u64,
        /// The weight of the other daemon's.
        main: u64,
    },
}

/// Makes sure that builds of the second daemon have less weight than those of the first, as far as that can
/// be seen.
///
/// # Errors
/// If one of them does not answer, or the second has no less weight.
pub async fn check_background(main: &Pool, background: &Pool) -> Result<(), BackgroundError> {
    let (main, background) = (groups_of(main).await?, groups_of(background).await?);
    let group = |groups: Option<String>| group_of(&groups?, "cpu").map(str::to_owned);
    let (Some(main), Some(group)) = (group(main), group(background)) else { return Ok(()) };
    if main == group {
        return Err(BackgroundError::SameGroup(group));
    }
    match (weight_of(&main), weight_of(&group)) {
        (Some(main), Some(weight)) if weight >= main => Err(BackgroundError::NoLess { group, weight, main }),
        _ => Ok(()),
    }
}

/// The weight of a control group among its siblings: `cpu.weight` in version 2, `cpu.shares` in version 1.
fn weight_of(group: &str) -> Option<u64> {
    let files =
        [format!("/sys/fs/cgroup{group}/cpu.weight"), format!("/sys/fs/cgroup/cpu{group}/cpu.shares")];
    files.iter().find_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok())
}

/// Advice where builds may take every core.
fn all_cores(bounds: BuildLimits, cores: u64) -> Option<String> {
    let BuildLimits { build_cores, builds } = bounds;
    let used =
        if build_cores == 0 { cores.saturating_mul(builds) } else { build_cores.saturating_mul(builds) };
    if cores < 2 || used < cores {
        return None;
    }
    let advice = match (cores - 1) / builds {
        0 => "have fewer builds at a time (lanes, max-jobs)".to_owned(),
        each => format!("set build-cores = {each}"),
    };
    let who = if builds == 1 { "one build".to_owned() } else { format!("{builds} builds at a time") };
    Some(format!(
        "{who} may use all {cores} cores (build-cores = {build_cores}), and answers wait for them: \
         {advice}, or give the Nix daemon less weight"
    ))
}

/// Advice where the daemon, and so its builds, is in our control group.
async fn neighbour(pool: &Pool) -> Option<String> {
    let daemon = groups_of(pool).await.ok()??;
    shared(&fs::read_to_string("/proc/self/cgroup").ok()?, &daemon)
}

/// Advice where nobody limits a builder's line: the daemon holds it in memory, and accepts our limit only if
/// it trusts us.
async fn long_lines(pool: &Pool) -> Option<String> {
    let untrusted = pool.get().await.ok()?.trust() == Trust::NotTrusted;
    untrusted.then(|| {
        "the Nix daemon does not trust this user, so it holds a builder's line in memory however long that is: \
         set max-build-log-size in its nix.conf"
            .to_owned()
    })
}

/// The /proc/<pid>/cgroup of a daemon; `None` where it cannot be seen.
async fn groups_of(pool: &Pool) -> Result<Option<String>, DaemonError> {
    // Under systemd the socket belongs to process 1, and the daemon is in a group of its own.
    let daemon = pool.get().await?.peer().filter(|process| *process > 1);
    Ok(daemon.and_then(|process| fs::read_to_string(format!("/proc/{process}/cgroup")).ok()))
}

/// Compares two /proc/<pid>/cgroup (man 7 cgroups).
fn shared(ours: &str, theirs: &str) -> Option<String> {
    let same = |controller: &&str| {
        let group = group_of(ours, controller);
        group.is_some() && group == group_of(theirs, controller)
    };
    let what: Vec<&str> = ["memory", "cpu"].into_iter().filter(same).collect();
    let group = group_of(ours, what.first()?)?;
    Some(format!(
        "the Nix daemon is in this server's own control group ({group}), so its builds can take all {} from it: \
         run the daemon as a service of its own",
        what.join(" and ")
    ))
}

/// The group of a process that bounds this resource: version 1 has one for each controller, version 2 (whose
/// line names no controller) one for all that version 1 does not have.
fn group_of<'a>(cgroup: &'a str, controller: &str) -> Option<&'a str> {
    let lines = || cgroup.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let of = |wanted: &dyn Fn(&str) -> bool| lines().find(|(names, _)| wanted(names)).map(|(_, group)| group);
    of(&|names| names.split(',').any(|name| name == controller)).or_else(|| of(&str::is_empty))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "4:memory:/a\n2:cpu,cpuacct:/b\n1:name=systemd:/c\n0::/d\n";

    #[test]
    fn builds_that_leave_a_core_are_no_matter() {
        for (build_cores, builds, cores, advice) in [
            (0, 1, 8, Some("set build-cores = 7")),
            (0, 3, 8, Some("3 builds at a time may use all 8 cores")),
            (4, 2, 8, Some("set build-cores = 3")),
            (0, 4, 2, Some("fewer builds at a time")),
            (3, 2, 8, None),
            (7, 1, 8, None),
            (0, 1, 1, None),
            (0, 0, 8, None),
        ] {
            let warning = all_cores(BuildLimits { build_cores, builds }, cores);
            assert_eq!(warning.is_some(), advice.is_some(), "{build_cores} {builds} {cores}: {warning:?}");
            let text = warning.unwrap_or_default();
            assert!(advice.is_none_or(|advice| text.contains(advice)) && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn each_resource_has_its_group_in_both_versions() {
        assert_eq!(group_of(HYBRID, "memory"), Some("/a"));
        assert_eq!(group_of(HYBRID, "cpu"), Some("/b"));
        assert_eq!(group_of(HYBRID, "io"), Some("/d"));
        assert_eq!(group_of("0::/x:y\n", "memory"), Some("/x:y"));
        assert_eq!(group_of("1:name=systemd:/c\n", "memory"), None);
        assert_eq!(group_of("nonsense", "memory"), None);
    }

    #[test]
    fn what_is_shared_is_said_and_what_is_not_is_no_matter() {
        let all = shared(HYBRID, HYBRID).expect("shared");
        assert!(all.contains("(/a)") && all.contains("memory and cpu"), "{all}");
        let cpu = shared(HYBRID, &HYBRID.replace("memory:/a", "memory:/z")).expect("shared");
        assert!(cpu.contains("(/b)") && cpu.contains("all cpu from it"), "{cpu}");
        for theirs in ["0::/system.slice/nix-daemon.service\n", ""] {
            assert_eq!(shared("0::/system.slice/ondine.service\n", theirs), None);
        }
    }
}
