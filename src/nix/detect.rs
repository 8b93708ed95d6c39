//! Detects what the Nix daemon can build: from Nix's settings as `nix` shows them, otherwise from this
//! machine and Nix's defaults. We may see less than the daemon, so an unknown capability is taken for
//! present. Builds nothing, and delays only requests for builds.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::SetOnce;

use super::build_hook::without_remote_builders;
use super::capabilities::{Capabilities, Machine};
use super::machines::{machines, read_bounded};
use super::pool::Pool;

/// Time limit for `nix` to show its settings.
const NIX_TIMEOUT: Duration = Duration::from_secs(10);
/// The feature of machines that can run others.
const KVM: &str = "kvm";
/// A file that a Linux kernel shows if it has KVM, also to users who may not open /dev/kvm, as the daemon
/// may.
const KVM_IN_KERNEL: &str = "/sys/class/misc/kvm";
/// The features that Nix gives every Linux machine.
const DEFAULT_FEATURES: [&str; 4] = ["benchmark", "big-parallel", "nixos-test", "uid-range"];
/// Where Nix looks for remote builders by default.
const DEFAULT_BUILDERS: &str = "@/etc/nix/machines";

/// An admin's overrides.
#[derive(Clone, Debug, Default)]
pub struct CapabilitySettings {
    /// These systems instead of those that are found.
    pub systems: Option<BTreeSet<String>>,
    /// These features instead of those that are found.
    pub features: Option<BTreeSet<String>>,
    /// The remote builders that the daemon is told of by us.
    pub builders: Option<String>,
    /// The daemon may build on its own machine.
    pub local: bool,
}

/// Nix's settings.
#[derive(Debug, PartialEq, Eq)]
struct NixSettings {
    system: String,
    /// The daemon's own machine.
    local: Machine,
    builders: String,
}

/// Capabilities of the daemon, once detected; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Detected(Arc<SetOnce<Arc<Capabilities>>>);

impl Detected {
    /// Waits until it is known.
    pub async fn known(&self) -> Arc<Capabilities> {
        Arc::clone(self.0.wait().await)
    }

    /// True after the detection.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.0.initialized()
    }
}

/// Finds it out while the server answers already.
pub struct Detector {
    /// An admin's overrides.
    pub settings: CapabilitySettings,
    /// The connections to daemons that are told where there are no remote builders.
    pub pools: Vec<Pool>,
    /// Where the file is that tells them: an absolute path.
    pub dir: PathBuf,
    /// Where it is made known.
    pub detected: Detected,
}

impl Detector {
    /// Finds it out once. A `nix` that hangs is given up after ten seconds.
    pub async fn run(self) {
        // Who builds on no machine but the daemon's own needs no hook; without local builds there must be
        // others.
        let local = self.settings.local;
        let capabilities = detect(self.settings).await;
        if capabilities.has_one_machine() && local {
            match without_remote_builders(&self.dir) {
                Ok((name, value)) => self.pools.iter().for_each(|pool| pool.tell(&name, &value)),
                Err(error) => {
                    tracing::warn!(%error, "Nix keeps its build hook, which makes each build a little slower");
                }
            }
        }
        // Nobody else sets it.
        let _ = self.detected.0.set(Arc::new(capabilities));
    }
}

/// Detects the daemon's capabilities, as far as they are visible from here, and logs the result.
async fn detect(settings: CapabilitySettings) -> Capabilities {
    let CapabilitySettings { systems, features, builders, local } = settings;
    let found = if systems.is_some() && features.is_some() {
        Capabilities::Unknown
    } else {
        let kvm = Path::new(KVM_IN_KERNEL).exists();
        let settings = ask_nix().await.and_then(|json| from_settings(&json, kvm));
        let settings = settings.unwrap_or_else(|| {
            tracing::info!(
                "nix cannot be asked for its settings (is it on PATH?), so its defaults are taken"
            );
            defaults(kvm)
        });
        settings.machines(builders.as_deref(), local)
    };
    let capabilities = found.with(systems, features);
    tracing::info!(systems = %capabilities, "can be built here");
    capabilities
}

/// The settings that `nix` prints: the old command, then the one that newer releases want instead.
async fn ask_nix() -> Option<Value> {
    for words in [&["show-config"][..], &["config", "show"]] {
        let mut command = tokio::process::Command::new("nix");
        command.args(words).args(["--json", "--extra-experimental-features", "nix-command"]);
        // The daemon's settings are those of the machine, not this user's.
        command.env_remove("NIX_CONFIG").env("NIX_USER_CONF_FILES", "");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        match tokio::time::timeout(NIX_TIMEOUT, output(command)).await {
            Ok(Ok(output)) if output.status.success() => {
                if let Ok(json) = narinfo::json::from_slice(&output.stdout) {
                    return Some(json);
                }
            }
            // Too old or too new for this command, or broken: the other one may do.
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return None,
            Err(_) => {
                tracing::warn!(seconds = NIX_TIMEOUT.as_secs(), "nix did not print its settings in time");
                return None;
            }
        }
    }
    None
}

/// Output of a program, which is started where nobody waits for an answer: a start takes as long as dozens of
/// those.
async fn output(mut command: tokio::process::Command) -> io::Result<Output> {
    let started = tokio::task::spawn_blocking(move || command.spawn()).await;
    started.map_err(io::Error::other)??.wait_with_output().await
}

/// Reads Nix's settings; `kvm` says whether the kernel has KVM.
fn from_settings(json: &Value, kvm: bool) -> Option<NixSettings> {
    let value = |name: &str| json.get(name)?.get("value");
    let system = value("system")?.as_str()?.to_owned();
    let mut systems = BTreeSet::from([system.clone()]);
    systems.extend(value("extra-platforms").map(names).unwrap_or_default());
    let external = value("external-builders").and_then(Value::as_array).into_iter().flatten();
    systems.extend(external.filter_map(|builder| builder.get("systems")).flat_map(names));
    let mut features = names(value("system-features")?);
    let default = json.get("system-features").and_then(|setting| setting.get("defaultValue"));
    // Where nobody has said otherwise, Nix offers KVM when it may open it; the daemon may, though we may not.
    if kvm && default.is_some_and(|default| names(default).is_subset(&features)) {
        features.insert(KVM.to_owned());
    }
    let builders = value("builders").and_then(Value::as_str).unwrap_or_default().to_owned();
    Some(NixSettings { system, local: Machine { systems, features, ..Machine::default() }, builders })
}

/// A list of names: older releases of Nix write some of them as one text.
fn names(value: &Value) -> BTreeSet<String> {
    match value {
        Value::String(text) => text.split_whitespace().map(str::to_owned).collect(),
        Value::Array(values) => values.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => BTreeSet::new(),
    }
}

/// Nix's defaults.
/// The system of this machine in Nix's words, unless its settings say another one.
#[must_use]
pub fn own_system() -> String {
    let os = if cfg!(target_os = "macos") { "darwin" } else { std::env::consts::OS };
    match std::env::consts::ARCH {
        "x86" => format!("i686-{os}"),
        "arm" => format!("armv7l-{os}"),
        arch => format!("{arch}-{os}"),
    }
}

fn defaults(kvm: bool) -> NixSettings {
    let system = own_system();
    let mut systems = BTreeSet::from([system.clone()]);
    if system == "x86_64-linux" {
        systems.insert("i686-linux".to_owned());
    }
    let features = DEFAULT_FEATURES.into_iter().chain(kvm.then_some(KVM)).map(str::to_owned).collect();
    let local = Machine { systems, features, ..Machine::default() };
    NixSettings { system, local, builders: DEFAULT_BUILDERS.to_owned() }
}

impl NixSettings {
    /// The machines of these settings and of `ours`, the remote builders that we tell the daemon of. Unknown
    /// when they are written where we cannot read.
    fn machines(self, ours: Option<&str>, local: bool) -> Capabilities {
        // An empty setting of ours is heeded always, another one only where the daemon trusts us.
        let builders = match ours {
            Some("") => String::new(),
            Some(ours) => format!("{}\n{ours}", self.builders),
            None => self.builders,
        };
        let mut all = match machines(&builders, &self.system, &read_bounded) {
            Ok(machines) => machines,
            Err(error) => {
                tracing::warn!(
                    %error,
                    "Nix's remote builders cannot be read, so nothing is refused for its system or features; set build-systems and build-features"
                );
                return Capabilities::Unknown;
            }
        };
        // Without any machine nothing could be built: more likely they cannot be seen from here.
        if local || all.is_empty() {
            all.insert(0, self.local);
        }
        Capabilities::Machines(all)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(names: &str) -> BTreeSet<String> {
        names.split_whitespace().map(str::to_owned).collect()
    }

    fn settings(features: &Value) -> Value {
        json!({
            "system": { "value": "x86_64-linux" },
            "extra-platforms": { "value": ["i686-linux"] },
            "system-features": { "defaultValue": ["benchmark"], "value": features },
            "builders": { "value": "ssh://a aarch64-linux" },
        })
    }

    fn found(json: &Value, kvm: bool) -> NixSettings {
        from_settings(json, kvm).expect("the settings are whole")
    }

    #[test]
    fn nix_tells_its_systems_features_and_builders() {
        let mut json = settings(&json!(["benchmark", "moon"]));
        json["external-builders"] = json!({ "value": [{ "systems": ["b-linux"], "program": "/p" }] });
        let found = found(&json, false);
        assert_eq!(found.local.systems, set("x86_64-linux i686-linux b-linux"));
        assert_eq!(found.local.features, set("benchmark moon"));
        let Capabilities::Machines(machines) = found.machines(None, true) else { panic!("unknown") };
        assert_eq!((machines.len(), &machines[1].systems), (2, &set("aarch64-linux")));
    }

    #[test]
    fn settings_of_another_form_are_as_good_as_none() {
        for json in [json!(null), json!([]), json!({ "system": "x" }), json!({ "system": { "value": 3 } })] {
            assert_eq!(from_settings(&json, true), None, "{json}");
        }
    }

    #[test]
    fn kvm_is_offered_where_the_kernel_has_it_and_nobody_says_otherwise() {
        for (features, kvm, expected) in [
            (json!(["benchmark"]), true, "benchmark kvm"),
            (json!(["benchmark"]), false, "benchmark"),
            (json!("benchmark moon"), true, "benchmark kvm moon"),
            (json!(["moon"]), true, "moon"),
            (json!(["kvm"]), false, "kvm"),
        ] {
            assert_eq!(found(&settings(&features), kvm).local.features, set(expected), "{features}");
        }
    }

    #[test]
    fn without_local_builds_the_remote_machines_are_all_there_is_unless_there_are_none() {
        let names = |ours, local| match found(&settings(&json!([])), false).machines(ours, local) {
            Capabilities::Unknown => vec!["unknown".to_owned()],
            Capabilities::Machines(machines) => {
                machines.iter().flat_map(|machine| machine.systems.clone()).collect()
            }
        };
        assert_eq!(names(None, true), ["i686-linux", "x86_64-linux", "aarch64-linux"]);
        assert_eq!(names(None, false), ["aarch64-linux"]);
        assert_eq!(names(Some("ssh://b b-linux"), false), ["aarch64-linux", "b-linux"]);
        assert_eq!(names(Some(""), false), ["i686-linux", "x86_64-linux"]);
        assert_eq!(names(Some("@/"), true), ["unknown"], "a folder is no file of builders");
    }
}
