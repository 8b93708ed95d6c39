//! Checks of the machines that build, as the running server sees them, which alone holds the connections.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::finding::{DoctorReport, FindingLevel};
use crate::build::BuilderSettings;
use crate::http::{BuilderPhase, BuilderStatus};
use crate::nix::SshMachine;
use crate::plural::counted;

/// Parts of ssh's errors, and what removes each.
const ADVICE: [(&[&str], &str); 5] = [
    (
        &["Host key verification failed", "REMOTE HOST IDENTIFICATION"],
        "compare the host's key (ssh-keyscan) with its line in known-hosts, which is missing or another",
    ),
    (
        &["Permission denied"],
        "add the public key of key-file to authorized_keys of the user there, and let the server's user read key-file",
    ),
    (&["resolve hostname", "Name or service not known"], "correct the host's name, or have it resolved here"),
    (
        &["refused", "timed out", "No route to host", "unreachable"],
        "see that the machine is on, that sshd runs there, and that no firewall is between",
    ),
    (&["not found", "No such file"], "install Nix there, or name its daemon with remote-program"),
];

/// Looks at each builder of the server, and at those of the settings that it does not have.
pub(super) fn check(settings: &[BuilderSettings], builders: &[BuilderStatus], report: &mut DoctorReport) {
    for builder in builders {
        let configured = settings.iter().find(|configured| configured.name == builder.name);
        state(builder, configured.map(|configured| &configured.ssh), builders, report);
        history(builder, report);
    }
    let is_known = |name: &str| builders.iter().any(|builder| builder.name == name);
    for BuilderSettings { name, .. } in settings.iter().filter(|configured| !is_known(&configured.name)) {
        report.add(
            FindingLevel::Warning,
            "builder",
            format!("{name} stands in the settings, and the running server has no such builder"),
            "nothing is built on it",
            "restart the server, which reads its settings at its start",
        );
    }
}

fn state(
    builder: &BuilderStatus,
    ssh: Option<&SshMachine>,
    all: &[BuilderStatus],
    report: &mut DoctorReport,
) {
    let BuilderStatus { name, slots, running, built, .. } = builder;
    match builder.state {
        BuilderPhase::Up => {
            let nix = builder.nix_version.as_ref().map_or_else(String::new, |nix| format!(", Nix {nix}"));
            let load = format!("{} of {slots} slots in use, {built} built{nix}", running.len());
            report.ok("builder", format!("{name} is up: {load}"));
        }
        BuilderPhase::Connecting => report.add(
            FindingLevel::Note,
            "builder",
            format!("{name} was not reached yet"),
            "the server connects to its builders when it starts",
            "look again in a minute",
        ),
        BuilderPhase::Draining | BuilderPhase::Drained => report.add(
            FindingLevel::Note,
            "builder",
            format!("{name} is drained: nothing more is built there"),
            "an administrator wanted that, and a restart of the server does not change it",
            format!("ondine builders resume {name}, when it is to build again"),
        ),
        BuilderPhase::Resting => {
            let alone = systems_of_it_alone(builder, all);
            let (level, why) = match alone.is_empty() {
                true => (FindingLevel::Warning, "others have its load".to_owned()),
                false => {
                    let systems = alone.into_iter().collect::<Vec<_>>().join(", ");
                    (FindingLevel::Error, format!("nothing else is up that builds for {systems}"))
                }
            };
            let reason = builder.last_error.as_deref().unwrap_or("no reason is known");
            let what = format!("{name} cannot be used, for {} now: {reason}", time_since(builder.since));
            report.add(level, "builder", what, why, advice(builder, reason, ssh));
        }
    }
}

/// Systems that no other builder offers which is up.
fn systems_of_it_alone<'a>(builder: &'a BuilderStatus, all: &[BuilderStatus]) -> BTreeSet<&'a str> {
    let others = all.iter().filter(|other| other.state == BuilderPhase::Up && other.name != builder.name);
    let others: BTreeSet<&str> = others.flat_map(|other| &other.systems).map(String::as_str).collect();
    builder.systems.iter().map(String::as_str).filter(|system| !others.contains(system)).collect()
}

/// Advice that fits the last words of ssh, and the login to try.
fn advice(builder: &BuilderStatus, reason: &str, ssh: Option<&SshMachine>) -> String {
    if builder.address.is_none() {
        return "start the Nix daemon of this machine (systemctl restart nix-daemon)".to_owned();
    }
    let fits = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    let found = ADVICE.iter().find(|(words, _)| fits(words));
    let found = found.map_or("see that its Nix daemon answers", |(_, advice)| advice);
    match ssh {
        Some(ssh) => format!("{found}; try it as the server's user: {}", ssh.login_command()),
        None => found.to_owned(),
    }
}

/// Looks at what happened while it was in use.
fn history(builder: &BuilderStatus, report: &mut DoctorReport) {
    let BuilderStatus { name, lost, disagreements, .. } = builder;
    if let (BuilderPhase::Up, 1.., Some(error)) = (builder.state, *lost, &builder.last_error) {
        let ago = builder.last_error_at.map(|at| format!(", the last time {} ago", time_since(at)));
        report.add(
            FindingLevel::Note,
            "builder",
            format!(
                "{} lost with {name}{}: {error}",
                counted(*lost, "build was", "builds were"),
                ago.unwrap_or_default()
            ),
            "each was begun again, on another builder where there was one",
            "if it goes on, look at the logs of sshd and nix-daemon there, its memory and its disk",
        );
    }
    if let (1.., Some(latest)) = (*disagreements, &builder.last_disagreement) {
        report.add(
            FindingLevel::Warning,
            "builder",
            format!(
                "{name} and others disagree about {}; the latest: {latest}",
                counted(*disagreements, "derivation", "derivations")
            ),
            "one of two machines is not as it should be, and builds there may fail or differ",
            format!(
                "compare their Nix, disk and memory; ondine builders drain {name} takes it out meanwhile"
            ),
        );
    }
}

/// Time from a moment in Unix seconds until now.
fn time_since(moment: u64) -> humantime::FormattedDuration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    humantime::format_duration(Duration::from_secs(now.saturating_sub(moment)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder(name: &str, state: &str, systems: &[&str], more: &serde_json::Value) -> BuilderStatus {
        let mut json = serde_json::json!({
            "name": name, "address": format!("nix@{name}"), "state": state, "since": 1, "systems": systems,
            "features": [], "mandatory_features": [], "slots": 4, "speed": 1.0, "weight": 1, "running": [],
            "built": 7, "failed": 0, "lost": 0, "last_error": null, "last_error_at": null, "disagreements": 0,
            "last_disagreement": null, "nix_version": "2.34.8",
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            json[key] = value.clone();
        }
        serde_json::from_value(json).expect("a builder")
    }

    #[test]
    fn a_lost_builder_is_an_error_where_no_other_has_its_system_and_has_advice_by_the_words_of_ssh() {
        for (words, advice) in [
            ("ssh: connect to host far port 22: Connection refused", "sshd runs there"),
            ("nix@far: Permission denied (publickey).", "authorized_keys"),
            ("Host key verification failed.", "ssh-keyscan"),
            ("ssh: Could not resolve hostname far: Name or service not known", "the host's name"),
            ("sh: 1: nix-daemon: not found", "remote-program"),
            ("the daemon closed the connection", "its Nix daemon answers"),
        ] {
            let lost = serde_json::json!({ "last_error": words });
            let far = builder("far", "resting", &["aarch64-linux", "x86_64-linux"], &lost);
            let near = builder("near", "up", &["x86_64-linux"], &serde_json::Value::Null);
            let mut report = DoctorReport::new(false);
            check(&[], &[near, far], &mut report);
            let json = report.json().expect("JSON");
            assert!(report.has_errors() && json.contains("builds for aarch64-linux\""), "{json}");
            assert!(json.contains(words) && json.contains(advice), "{words}: {json}");
        }
        let away = builder("away", "resting", &["x86_64-linux"], &serde_json::Value::Null);
        let near = builder("near", "up", &["x86_64-linux"], &serde_json::Value::Null);
        let mut report = DoctorReport::new(false);
        check(&[], &[near, away], &mut report);
        assert!(!report.has_errors() && report.json().expect("JSON").contains("others have its load"));
    }

    #[test]
    fn losses_and_disagreements_of_a_builder_that_is_up_are_told() {
        let past = serde_json::json!({ "lost": 2, "last_error": "Broken pipe", "last_error_at": 1, "disagreements": 1,
            "last_disagreement": "b.drv failed on near, and was built on far" });
        let near = builder("near", "up", &["x86_64-linux"], &past);
        let drained = builder("far", "drained", &["x86_64-linux"], &serde_json::Value::Null);
        let mut report = DoctorReport::new(false);
        check(&[], &[near, drained], &mut report);
        let json = report.json().expect("JSON");
        for words in ["2 builds were lost", "Broken pipe", "b.drv failed", "ondine builders resume far"] {
            assert!(json.contains(words), "{words}: {json}");
        }
        assert!(!report.has_errors(), "{json}");
    }
}
