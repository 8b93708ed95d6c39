//! Checks of the Nix daemon: whether it answers, its release and the advisories about it, its trust, and the
//! settings that decide what can be built, and how safely.

use std::collections::BTreeMap;

use super::finding::{DoctorReport, FindingLevel};
use crate::nix::{Daemon, Environment, Trust};

/// A release: major, minor, patch.
type NixRelease = (u32, u32, u32);

/// First release that counts as one of Lix, which has advisories of its own.
const LIX_SINCE: NixRelease = (2, 90, 0);

/// A security advisory about Nix.
struct NixAdvisory {
    name: &'static str,
    effect: &'static str,
    /// The first release that has the flaw.
    since: NixRelease,
    /// The first release of each branch that has not.
    fixed: &'static [NixRelease],
}

/// Advisories that matter where the daemon builds for others.
const ADVISORIES: &[NixAdvisory] = &[
    NixAdvisory {
        name: "CVE-2024-27297",
        effect: "fixed-output builds can change outputs after they were registered",
        since: (0, 0, 0),
        fixed: &[(2, 3, 18), (2, 18, 2), (2, 19, 4), (2, 20, 5)],
    },
    NixAdvisory {
        name: "CVE-2024-45593",
        effect: "a NAR can write anywhere on the machine while it is unpacked",
        since: (2, 24, 0),
        fixed: &[(2, 24, 6)],
    },
    NixAdvisory {
        name: "CVE-2026-39860",
        effect: "fixed-output builds can overwrite files as root",
        since: (2, 21, 0),
        fixed: &[(2, 28, 6), (2, 29, 3), (2, 30, 4), (2, 31, 4), (2, 32, 7), (2, 33, 4), (2, 34, 5)],
    },
    NixAdvisory {
        name: "CVE-2026-44028",
        effect: "a deeply nested NAR can run code as root",
        since: (2, 24, 4),
        fixed: &[(2, 28, 7), (2, 29, 4), (2, 30, 5), (2, 31, 5), (2, 32, 8), (2, 33, 6), (2, 34, 7)],
    },
];

impl NixAdvisory {
    fn affects(&self, release: NixRelease) -> bool {
        let is_fixed = |fixed: &NixRelease| (fixed.0, fixed.1) == (release.0, release.1) && release >= *fixed;
        let newest = self.fixed.iter().max().copied().unwrap_or_default();
        release >= self.since && release < newest && !self.fixed.iter().any(is_fixed)
    }
}

/// The numbers at the beginning of a version.
fn parse_release(version: &str) -> Option<NixRelease> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next().and_then(Result::ok).unwrap_or(0)))
}

/// Looks at the daemon, and at Nix's settings as far as `nix` shows them.
pub(super) async fn check(
    environment: &Environment,
    settings: &BTreeMap<String, String>,
    report: &mut DoctorReport,
) {
    match Daemon::connect(environment).await {
        Ok(daemon) => {
            let version = daemon.nix_version().to_owned();
            report.ok("daemon", format!("Nix {version} answers at {}", environment.socket.display()));
            advisories(&version, report);
            trust(daemon.trust(), report);
        }
        Err(error) => report.add(
            FindingLevel::Error,
            "daemon",
            format!("the Nix daemon does not answer: {error}"),
            "without it nothing is built, and only what is cached is served",
            "start it (systemctl start nix-daemon.socket), and see that NIX_DAEMON_SOCKET_PATH, if set, is right",
        ),
    }
    build_settings(settings, report);
}

fn advisories(version: &str, report: &mut DoctorReport) {
    let Some(release) = parse_release(version) else { return };
    if release >= LIX_SINCE {
        return report.ok("advisories", "no advisory about Lix is looked for here: see its release notes");
    }
    let known = ADVISORIES.iter().filter(|advisory| advisory.affects(release)).collect::<Vec<_>>();
    if known.is_empty() {
        return report.ok("advisories", format!("none is known here about Nix {version}"));
    }
    for NixAdvisory { name, effect, .. } in known {
        report.add(
            FindingLevel::Warning,
            "advisories",
            format!("Nix {version} is in the range of {name}"),
            format!("{effect}; who may have builds run here may use that"),
            "upgrade Nix, unless your distribution has repaired this release (its changelog names the advisory)",
        );
    }
}

fn trust(trust: Trust, report: &mut DoctorReport) {
    match trust {
        Trust::NotTrusted => report.add(
            FindingLevel::Note,
            "trust",
            "the daemon does not trust this user",
            "it ignores limits such as max-build-log-size and substituters that the server would give it",
            "set them in nix.conf, or add the server's user to trusted-users where nobody else has that user",
        ),
        Trust::Trusted => report.ok("trust", "the daemon trusts this user"),
        Trust::Unknown => report.ok("trust", "this release does not say if it trusts this user"),
    }
}

fn build_settings(settings: &BTreeMap<String, String>, report: &mut DoctorReport) {
    let value = |name: &str| settings.get(name).map(String::as_str).unwrap_or_default();
    if settings.is_empty() {
        return report.add(
            FindingLevel::Warning,
            "nix.conf",
            "nix cannot be asked for its settings",
            "its sandbox, max-jobs and builders cannot be looked at, and its defaults are assumed for builds",
            "put the program nix on PATH of the server",
        );
    }
    match value("sandbox") {
        "true" => report.ok("sandbox", "builds run in the sandbox"),
        other => report.add(
            FindingLevel::Warning,
            "sandbox",
            format!("sandbox = {other}"),
            "a build can read the machine and reach the network, and its result may depend on them",
            "set sandbox = true in nix.conf, and restart the daemon",
        ),
    }
    let builders = value("builders");
    let has_machines = match builders.strip_prefix('@') {
        Some(file) => std::fs::read_to_string(file).is_ok_and(|text| !text.trim().is_empty()),
        None => !builders.is_empty(),
    };
    match (value("max-jobs"), has_machines) {
        ("0", false) => report.add(
            FindingLevel::Error,
            "max-jobs",
            "max-jobs = 0, and there are no remote builders",
            "the daemon may build nowhere",
            "set max-jobs = auto in nix.conf, or name builders",
        ),
        (jobs, machines) => {
            let others = if machines { "remote builders of the daemon" } else { "no remote builders" };
            report.ok("max-jobs", format!("max-jobs = {jobs}, and {others}"));
        }
    }
    if value("trusted-users").split_whitespace().any(|user| user == "*") {
        report.add(
            FindingLevel::Error,
            "trusted-users",
            "trusted-users has *: every user is as good as root for Nix",
            "any user of this machine can put any contents under any path that this server signs",
            "name the few users who need it, in trusted-users of nix.conf",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advisory_holds_for_the_releases_between_the_flaw_and_its_repair() {
        let names = |version: &str| -> Vec<&str> {
            let release = parse_release(version).expect("a version");
            ADVISORIES
                .iter()
                .filter(|advisory| advisory.affects(release))
                .map(|advisory| advisory.name)
                .collect()
        };
        assert_eq!(names("2.8.0"), ["CVE-2024-27297"]);
        assert_eq!(names("2.24.5"), ["CVE-2024-45593", "CVE-2026-39860", "CVE-2026-44028"]);
        assert_eq!(names("2.26.3+2"), ["CVE-2026-39860", "CVE-2026-44028"]);
        assert_eq!(names("2.34.6"), ["CVE-2026-44028"]);
        for clean in ["2.34.8", "2.28.7", "2.35.0", "2.20.9"] {
            assert!(names(clean).is_empty(), "{clean}");
        }
        assert_eq!(parse_release("2.4pre20210802"), Some((2, 4, 0)));
        assert_eq!(parse_release("unknown"), None);
    }

    #[test]
    fn settings_that_stop_builds_or_expose_the_machine_are_found() {
        let levels = |text: &str| {
            let settings = text.split(';').filter_map(|pair| pair.split_once('='));
            let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            let mut report = DoctorReport::new(false);
            build_settings(&settings, &mut report);
            report.json().expect("JSON")
        };
        let bad = levels("sandbox=false;max-jobs=0;builders=;trusted-users=root *");
        assert_eq!((bad.matches("\"error\"").count(), bad.matches("\"warning\"").count()), (2, 1), "{bad}");
        let good = levels("sandbox=true;max-jobs=4;builders=;trusted-users=root");
        assert_eq!(good.matches("\"ok\"").count(), 2, "{good}");
        assert!(levels("").contains("nix cannot be asked"));
    }
}
