//! The NixOS modules give the units that they should: evaluated by the real Nix against a small stub of
//! nixpkgs' `lib` (or the real one, where ONDINE_TEST_NIXPKGS_LIB names its folder), the build-time check run
//! with the built program, and the unit weighed by systemd-analyze.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::process::{self, Finished};
use crate::support::{NixStore, Release, text};
use serde_json::{Value, json};

/// The exposure that the unit may have at most: what the best peers with outbound connections reach.
const EXPOSURE_MAX: f64 = 1.1;
/// The same for the sender of uploads, which runs as root, since Nix's hook does.
pub const SENDER_EXPOSURE_MAX: f64 = 2.0;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A throw-away store to evaluate in, and a package that holds the built program.
pub struct Machine {
    pub store: NixStore,
    pub package: PathBuf,
}

impl Machine {
    pub fn new() -> Machine {
        let store = NixStore::new(Release::Host);
        let package = store.folder().join("package");
        std::fs::create_dir_all(package.join("bin")).expect("the test's folder can be written to");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ondine"), package.join("bin/ondine"))
            .expect("the test's folder can be written to");
        let package = store.nix_store(&["--add", text(&package)]).trim().into();
        Machine { store, package }
    }

    /// Evaluates the module for a machine that sets `services.ondine` to this, the package added.
    pub fn try_evaluate(&self, mut service: Value) -> Finished {
        service["package"] = text(&self.package).into();
        self.try_module("default.nix", &service)
    }

    /// Evaluates a module for a machine that sets `services.ondine` to this.
    pub fn try_module(&self, module: &str, service: &Value) -> Finished {
        let machine = json!({ "services": { "ondine": service } }).to_string();
        let module = format!("{ROOT}/nixos-module/{module}");
        let lib = std::env::var("ONDINE_TEST_NIXPKGS_LIB").ok();
        let file =
            format!("{ROOT}/tests/nixos-module/{}", if lib.is_some() { "real.nix" } else { "stub.nix" });
        // Read-write, because files are written.
        let how = ["--eval", "--strict", "--json", "--read-write-mode"];
        let mut what = vec![&*file, "--arg", "module", &module, "--argstr", "machine", &machine];
        if let Some(lib) = &lib {
            what.extend(["--arg", "libPath", lib]);
        }
        process::run(self.store.command("nix-instantiate", &[&how[..], &what].concat()))
    }

    pub fn evaluate(&self, service: Value) -> Value {
        let printed = self.try_evaluate(service).must_succeed().text();
        serde_json::from_str(&printed).expect("nix-instantiate --json prints JSON")
    }

    /// Runs the script that makes the checked settings file, as the build of a system would, and gives what
    /// came out.
    fn build_settings(&self, script: &Path) -> (Finished, PathBuf) {
        let out = self.store.folder().join("checked.toml");
        let mut command = Command::new("bash");
        command
            .args(["-e", text(script)])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", "/homeless-shelter");
        command.env("out", &out);
        (process::run(command), out)
    }
}

fn service(configuration: &Value) -> &Value {
    &configuration["systemd"]["services"]["ondine"]
}

pub fn words(value: &Value) -> Vec<&str> {
    value.as_str().expect("a string").split(' ').collect()
}

/// The path after `--config` in the unit's command line.
fn settings_of(configuration: &Value) -> PathBuf {
    let command = words(&service(configuration)["serviceConfig"]["ExecStart"]);
    let at = command.iter().position(|word| *word == "--config").expect("the unit names its settings");
    PathBuf::from(command[at + 1])
}

/// The unit file that NixOS would write, near enough for systemd-analyze.
fn unit_file(configuration: &Value) -> String {
    unit_text(service(configuration))
}

pub fn unit_text(service: &Value) -> String {
    let lines = |section: &Value| -> String {
        let fields = section.as_object().expect("a section of a unit has fields");
        fields.iter().map(|(name, value)| field_lines(name, value)).collect()
    };
    let unit = json!({ "Description": service["description"], "Wants": service["wants"], "After": service["after"] });
    format!("[Unit]\n{}[Service]\n{}", lines(&unit), lines(&service["serviceConfig"]))
}

fn field_lines(name: &str, value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Array(values) => values.iter().map(|value| field_lines(name, value)).collect(),
        Value::String(text) => format!("{name}={text}\n"),
        other => format!("{name}={other}\n"),
    }
}

#[test]
fn the_unit_runs_ondine_with_its_settings_and_its_state_directory() {
    let machine = Machine::new();
    let configuration = machine.evaluate(json!({ "enable": true }));
    let unit = &service(&configuration)["serviceConfig"];
    let command = words(&unit["ExecStart"]);
    assert_eq!(command[0], format!("{}/bin/ondine", machine.package.display()));
    assert_eq!(command[1], "serve");
    assert_eq!(command[4..], ["--state-dir", "/var/lib/ondine"]);
    let nix = json!(["/nix/store/the-nix-of-this-machine"]);
    assert_eq!(service(&configuration)["path"], nix, "what it asks what can be built");
    assert_eq!(unit["StateDirectory"], "ondine");
    assert_eq!(unit["StateDirectoryMode"], "0700");
    assert_eq!(unit["Restart"], "on-failure");
    assert_eq!(service(&configuration)["wantedBy"], json!(["multi-user.target"]));
    assert_eq!(configuration["users"]["users"]["ondine"]["isSystemUser"], true);
}

#[test]
fn a_machine_that_does_not_enable_it_gets_nothing() {
    assert_eq!(Machine::new().evaluate(json!({ "enable": false })), Value::Null);
}

#[test]
fn the_settings_are_checked_by_the_program_when_the_system_is_built() {
    let machine = Machine::new();
    let settings = json!({ "listen": "[::1]:8099", "build-from": [], "priority": 45 });
    let configuration = machine.evaluate(json!({ "enable": true, "settings": settings }));
    let (finished, checked) = machine.build_settings(&settings_of(&configuration));
    finished.must_succeed();
    let written = std::fs::read_to_string(checked).expect("the check leaves the settings file");
    assert!(written.contains("listen = \"[::1]:8099\"") && written.contains("priority = 45"), "{written}");

    let configuration = machine.evaluate(json!({ "enable": true, "settings": { "prioritty": 45 } }));
    let (finished, _) = machine.build_settings(&settings_of(&configuration));
    let said = finished.must_fail().stderr;
    assert!(said.contains("prioritty") && said.contains("\"priority\""), "{said}");
}

#[test]
fn the_check_can_be_turned_off_and_the_settings_are_the_same() {
    let machine = Machine::new();
    let service = json!({ "enable": true, "checkConfig": false, "settings": { "hold": "5s" } });
    let written =
        std::fs::read_to_string(settings_of(&machine.evaluate(service))).expect("the settings are a file");
    assert_eq!(
        written,
        "drain-timeout = \"30s\"\nhold = \"5s\"\nlisten = \"127.0.0.1:8080\"\nupstream = []\n"
    );
}

#[test]
fn a_remote_builder_has_a_user_that_can_do_nothing_but_start_builds() {
    let machine = Machine::new();
    let keys = json!(["ssh-ed25519 AAAA alice"]);
    let builder = json!({ "enable": true, "tokenFile": "/var/lib/token", "authorizedKeys": keys });
    let configuration = machine.evaluate(json!({ "enable": true, "remoteBuilder": builder }));
    let user = &configuration["users"]["users"]["nix-builder"];
    assert_eq!(user["openssh"]["authorizedKeys"]["keys"], json!(["restrict ssh-ed25519 AAAA alice"]));
    let lines = configuration["services"]["openssh"]["extraConfig"].as_str().expect("lines");
    // The real sshd takes them.
    let (file, key) = (machine.store.folder().join("sshd_config"), machine.store.folder().join("host"));
    std::fs::write(&file, format!("HostKey {}\n{lines}", key.display())).expect("written");
    let script = format!(
        "mkdir -p /run/sshd; ssh-keygen -q -t ed25519 -N '' -f {} && exec /usr/sbin/sshd -T -f {} -C user=nix-builder,host=x,addr=::1",
        key.display(),
        file.display()
    );
    let mut sshd = Command::new("/bin/sh");
    sshd.args(["-c", &script]);
    let effective = process::run(sshd).must_succeed().text().to_lowercase();
    for set in ["permittty no", "allowtcpforwarding no", "bin/ondine stdio --server http://127.0.0.1:8080"] {
        assert!(effective.contains(set), "{set}: {effective}");
    }
    let builder = json!({ "enable": true, "tokenFile": "/nix/store/x" });
    let refused = machine.try_evaluate(json!({ "enable": true, "remoteBuilder": builder })).must_fail();
    assert!(refused.stderr.contains("everyone can read"), "{refused}");
}

#[test]
fn the_firewall_opens_the_port_that_is_listened_on_and_only_when_told() {
    let machine = Machine::new();
    for (listen, port) in [("0.0.0.0:8080", 8080), ("[::]:443", 443)] {
        let service = json!({ "enable": true, "openFirewall": true, "settings": { "listen": listen } });
        let configuration = machine.evaluate(service);
        assert_eq!(configuration["networking"]["firewall"]["allowedTCPPorts"], json!([port]));
    }
    let closed = machine.evaluate(json!({ "enable": true }));
    assert_eq!(closed["networking"]["firewall"]["allowedTCPPorts"], Value::Null);
}

#[test]
fn upstreams_and_their_keys_are_made_known_to_the_nix_daemon() {
    let key = "cache.example.org-1:6NCHdD59X431o0gWypbMrAurkbJ16ZPMQFGspcDShjY=";
    let upstream = json!([
        { "url": "https://cache.example.org", "public-keys": [key] },
        { "url": "https://builds.example.org/", "mode": "build-only" },
    ]);
    let machine = Machine::new();
    let configuration = machine.evaluate(json!({ "enable": true, "settings": { "upstream": upstream } }));
    let nix = &configuration["nix"]["settings"];
    // Below /cached, too: an upstream may be an Ondine.
    let urls = json!([
        "https://cache.example.org",
        "https://cache.example.org/cached",
        "https://builds.example.org/",
        "https://builds.example.org/cached",
    ]);
    assert_eq!(nix["trusted-substituters"], urls);
    assert_eq!(nix["trusted-public-keys"], json!([key]));
    machine.build_settings(&settings_of(&configuration)).0.must_succeed();
}

#[test]
fn files_with_credentials_are_handed_over_by_systemd_and_no_secret_is_in_the_store() {
    let key = "cache.example.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
    let upstream = json!([
        { "url": "https://a.example.org", "public-keys": [key] },
        { "url": "https://b.example.org", "public-keys": [key], "credentials-file": "/run/secrets/b" },
    ]);
    let machine = Machine::new();
    let settings = json!({ "upstream": upstream, "netrc-file": "/run/secrets/netrc" });
    let configuration = machine.evaluate(json!({ "enable": true, "settings": settings }));
    assert_eq!(
        service(&configuration)["serviceConfig"]["LoadCredential"],
        json!(["upstream-1:/run/secrets/b", "netrc:/run/secrets/netrc"])
    );
    let (finished, checked) = machine.build_settings(&settings_of(&configuration));
    finished.must_succeed();
    let written = std::fs::read_to_string(checked).expect("the check leaves the settings file");
    assert!(written.contains("credentials-file = \"upstream-1\""), "{written}");
    assert!(written.contains("netrc-file = \"netrc\"") && !written.contains("/run/secrets"), "{written}");
    for url in ["https://bob:secret@a.example.org", "https://a.example.org/?token=secret"] {
        let service = json!({ "enable": true, "settings": { "upstream": [{ "url": url }] } });
        let said = machine.try_evaluate(service).must_fail().stderr;
        assert!(said.contains("use credentials-file"), "{said}");
    }
}

#[test]
fn another_state_directory_or_a_value_of_the_wrong_type_is_refused() {
    let machine = Machine::new();
    for (service, why) in [
        (json!({ "enable": true, "settings": { "state-dir": "/srv" } }), "state-dir cannot be set here"),
        (
            json!({ "enable": true, "settings": { "listen": 8080 } }),
            "option `services.ondine.settings.listen' is not of type `string'",
        ),
        (json!({ "enable": "yes" }), "option `services.ondine.enable' is not of type `boolean'"),
        (json!({ "enable": true, "openFirewal": true }), "`services.ondine.openFirewal' does not exist"),
    ] {
        let said = machine.try_evaluate(service).must_fail().stderr;
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn stopping_is_given_more_time_than_the_server_takes_to_drain() {
    let machine = Machine::new();
    for (drain, seconds) in [("30s", 60), ("2m", 150), ("1h", 3630)] {
        let service_config = json!({ "enable": true, "settings": { "drain-timeout": drain } });
        let configuration = machine.evaluate(service_config);
        let limit = service(&configuration)["serviceConfig"]["TimeoutStopSec"]
            .as_str()
            .expect("a time span")
            .to_owned();
        let mut command = Command::new("systemd-analyze");
        command.args(["timespan", &limit]);
        let said = process::run(command).must_succeed().text();
        assert!(
            said.contains(&format!("{}", seconds * 1_000_000_u64)),
            "{limit} is not {seconds} s:\n{said}"
        );
    }
}

#[test]
fn each_setting_is_an_option_whose_values_are_checked_before_anything_is_built() {
    let machine = Machine::new();
    for settings in [
        json!({ "priority": 45, "lanes": 2, "max-nar-store-bytes": "100GiB", "build-from": ["store"] }),
        json!({ "max-nar-store-bytes": 1_000_000_000, "want-mass-query": true }),
        json!({ "catalogue": [{ "name": "pkgs", "source": { "flake": "nixpkgs" }, "index": "lazy" }] }),
    ] {
        let configuration = machine.evaluate(json!({ "enable": true, "settings": settings }));
        machine.build_settings(&settings_of(&configuration)).0.must_succeed();
    }
    for (settings, name) in [
        (json!({ "priority": "high" }), "priority"),
        (json!({ "max-nar-store-bytes": true }), "max-nar-store-bytes"),
        (json!({ "build-from": ["shop"] }), "build-from"),
        (json!({ "want-mass-query": "yes" }), "want-mass-query"),
        (json!({ "zstd-level": 90 }), "zstd-level"),
    ] {
        let service = json!({ "enable": true, "settings": settings });
        let said = machine.try_evaluate(service).must_fail().stderr;
        assert!(said.contains(&format!("services.ondine.settings.{name}")), "{name}: {said}");
        assert!(said.contains("is not of type"), "{name}: {said}");
    }
}

#[test]
fn combinations_that_cannot_work_are_refused_by_the_name_of_the_option() {
    let machine = Machine::new();
    let host = "cache.example.org";
    for (service, option) in [
        (json!({ "enable": true, "settings": { "listen": "localhost" } }), "services.ondine.settings.listen"),
        (json!({ "enable": true, "nginx": { "enable": true } }), "services.ondine.nginx.host"),
        (json!({ "enable": true, "caddy": { "enable": true } }), "services.ondine.caddy.host"),
        (
            json!({ "enable": true, "openFirewall": true, "nginx": { "enable": true, "host": host } }),
            "services.ondine.openFirewall",
        ),
        (
            json!({
                "enable": true,
                "nginx": { "enable": true, "host": host },
                "caddy": { "enable": true, "host": host },
            }),
            "services.ondine.caddy.enable",
        ),
    ] {
        let said = machine.try_evaluate(service).must_fail().stderr;
        assert!(said.contains(option), "{option}: {said}");
    }
}

#[test]
fn a_virtual_host_waits_as_long_as_a_build_and_is_the_public_address() {
    let machine = Machine::new();
    for (server, limit) in [("nginx", "proxy_read_timeout 12h;"), ("caddy", "read_timeout 12h")] {
        let proxy = json!({ "enable": true, "host": "cache.example.org" });
        let configuration = machine.evaluate(json!({ "enable": true, server: proxy, "checkConfig": false }));
        let host = configuration["services"][server]["virtualHosts"]["cache.example.org"].to_string();
        assert!(host.contains(limit) && host.contains("127.0.0.1:8080"), "{server}: {host}");
        let written = std::fs::read_to_string(settings_of(&configuration)).expect("the settings are a file");
        assert!(written.contains("public-url = \"https://cache.example.org\""), "{written}");
        assert!(written.contains("trusted-proxies = [\"127.0.0.1\", \"::1\"]"), "{written}");
    }
}

#[test]
fn sockets_metrics_and_limits_of_builds_are_set_up_when_asked() {
    let machine = Machine::new();
    let configuration = machine.evaluate(json!({
        "enable": true,
        "socketActivation": true,
        "prometheus": { "enable": true },
        "settings": { "listen": "[::]:80", "signing-key": ["/run/secrets/key"] },
    }));
    let socket = &configuration["systemd"]["sockets"]["ondine"];
    assert_eq!(socket["listenStreams"], json!(["[::]:80"]));
    assert_eq!(service(&configuration)["requires"], json!(["ondine.socket"]));
    let scraped =
        &configuration["services"]["prometheus"]["scrapeConfigs"][0]["static_configs"][0]["targets"];
    assert_eq!(*scraped, json!(["127.0.0.1:80"]));
    assert_eq!(configuration["services"]["prometheus"]["scrapeConfigs"][0]["authorization"], Value::Null);
    assert_eq!(configuration["systemd"]["services"]["nix-daemon"]["serviceConfig"]["CPUWeight"], 20);
    let credentials = &service(&configuration)["serviceConfig"]["LoadCredential"];
    assert_eq!(*credentials, json!(["signing-key-0:/run/secrets/key"]));
    let (finished, checked) = machine.build_settings(&settings_of(&configuration));
    finished.must_succeed();
    let written = std::fs::read_to_string(checked).expect("the check leaves the settings file");
    assert!(
        written.contains("signing-key = [\"/run/credentials/ondine.service/signing-key-0\"]"),
        "{written}"
    );
    let unlimited = machine.evaluate(json!({ "enable": true, "limitBuilds": false }));
    assert_eq!(unlimited["systemd"]["services"]["nix-daemon"]["serviceConfig"]["CPUWeight"], Value::Null);
}

#[test]
fn metrics_that_need_a_token_are_scraped_with_one() {
    let machine = Machine::new();
    let server = |token: Value, read: &str| {
        let prometheus = json!({ "enable": true, "tokenFile": token });
        let settings = json!({ "read": read });
        machine.try_evaluate(json!({ "enable": true, "prometheus": prometheus, "settings": settings }))
    };
    let made = server(json!("/run/secrets/metrics"), "token").must_succeed().text();
    let made: Value = serde_json::from_str(&made).expect("nix-instantiate --json prints JSON");
    let scrape = &made["services"]["prometheus"]["scrapeConfigs"][0];
    assert_eq!(scrape["authorization"], json!({ "credentials_file": "/run/secrets/metrics" }));
    server(Value::Null, "public").must_succeed();
    for refused in [server(Value::Null, "token"), server(json!("/nix/store/x-token"), "token")] {
        let said = refused.must_fail().stderr;
        assert!(said.contains("services.ondine.prometheus.tokenFile"), "{said}");
    }
}

#[test]
fn a_client_uses_the_server_and_wrong_values_are_refused_by_name() {
    let machine = Machine::new();
    let key = "cache-1:BixRUZqVb+oC+4P1C3wHRqppp0IrCrlguZK+TEvLtsc=";
    let client = |url: &str, keys: Value, netrc: Value| {
        let client = json!({ "enable": true, "url": url, "publicKeys": keys, "netrcFile": netrc });
        machine.try_module("client.nix", &json!({ "client": client }))
    };
    let url = "https://cache.example.org";
    let good = client(url, json!([key]), json!("/run/secrets/netrc")).must_succeed().text();
    let good: Value = serde_json::from_str(&good).expect("nix-instantiate --json prints JSON");
    let nix = &good["nix"]["settings"];
    assert_eq!(nix["substituters"], json!([url]));
    assert_eq!(nix["trusted-public-keys"], json!([key]));
    assert_eq!(nix["netrc-file"], "/run/secrets/netrc");
    assert_eq!(nix["always-allow-substitutes"], true);
    let own = &good["environment"]["etc"]["ondine/config.toml"]["text"];
    assert_eq!(*own, json!(format!("server = \"{url}\"\n")));
    for (refused, option) in [
        (client("cache.example.org", json!([key]), Value::Null), "url"),
        (client("https://bob:secret@cache.example.org", json!([key]), Value::Null), "url"),
        (client(url, json!([]), Value::Null), "publicKeys"),
        (client(url, json!(["cache-1"]), Value::Null), "publicKeys"),
        (client(url, json!([key]), json!("/nix/store/x-netrc")), "netrcFile"),
        (client(url, json!("cache-1"), Value::Null), "publicKeys"),
    ] {
        let said = refused.must_fail().stderr;
        assert!(said.contains(&format!("services.ondine.client.{option}")), "{option}: {said}");
    }
}

/// Checks that systemd understands a unit, and that it is hardly exposed.
#[track_caller]
pub fn must_be_hardened(unit: &Path, exposure_max: f64) {
    let name = unit.file_name().expect("a file").to_string_lossy();
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no", text(unit)]);
    let said = process::run(verify).stderr;
    // The program may not be installed here.
    let about = format!("{name}:");
    let about_it = said.lines().filter(|line| line.contains(&about) && !line.contains("/bin/ondine"));
    let about_it: Vec<&str> = about_it.collect();
    assert!(about_it.is_empty(), "systemd does not understand the unit:\n{}", about_it.join("\n"));

    let mut security = Command::new("systemd-analyze");
    security.args(["--no-pager", "--offline=true", "security", text(unit)]);
    let report = process::run(security).must_succeed().text();
    let said_before = format!("exposure level for {name}: ");
    let level = report.lines().find_map(|line| line.split(&said_before).nth(1));
    let level =
        level.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse::<f64>().ok());
    let level = level.unwrap_or_else(|| panic!("systemd-analyze names no exposure level:\n{report}"));
    assert!(level <= exposure_max, "the exposure level is {level}, more than {exposure_max}:\n{report}");
}

#[test]
fn the_unit_is_one_that_systemd_understands_and_is_hardly_exposed() {
    let machine = Machine::new();
    let configuration = machine.evaluate(json!({ "enable": true }));
    let unit = machine.store.folder().join("ondine.service");
    std::fs::write(&unit, unit_file(&configuration)).expect("the test's folder can be written to");
    must_be_hardened(&unit, EXPOSURE_MAX);
}

#[test]
fn the_unit_of_the_packages_is_hardened_as_that_of_nixos_is() {
    let machine = Machine::new();
    let packaged = format!("{ROOT}/packaging/systemd/ondine.service");
    must_be_hardened(Path::new(&packaged), EXPOSURE_MAX);
    let packaged = std::fs::read_to_string(&packaged).expect("the unit");
    let made = unit_file(&machine.evaluate(json!({ "enable": true })));
    // A list may stand in several lines; what differs is where the program and its files are.
    let own = ["ExecStart=", "TimeoutStopSec=", "Description=", "Wants=", "After="];
    for line in made.lines().filter(|line| line.contains('=') && !own.iter().any(|own| line.starts_with(own)))
    {
        assert!(packaged.lines().any(|other| other == line), "the packages' unit has no {line}");
    }
}
