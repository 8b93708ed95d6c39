//! Programs that the NixOS modules connect: those for backups, which get a copy before they start, and the
//! Nix of a client, which gets the server as a remote builder, and a hook that queues what it has built.

use std::process::Command;

use crate::nixos_module::{Machine, SENDER_EXPOSURE_MAX, must_be_hardened, unit_text, words};
use crate::support::{process, text};
use serde_json::{Value, json};

#[test]
fn the_module_makes_copies_on_time_and_before_backup_programs() {
    let machine = Machine::new();
    let restic = "restic-backups-home.service";
    let configuration =
        machine.evaluate(json!({ "enable": true, "backup": { "enable": true, "before": [restic] } }));
    let unit = &configuration["systemd"]["services"]["ondine-backup"];
    assert_eq!((&unit["startAt"], &unit["before"]), (&json!("daily"), &json!([restic])));
    assert_eq!(unit["requiredBy"], json!([restic]));
    let command = unit["serviceConfig"]["ExecStart"].as_str().expect("a command");
    for words in ["/bin/ondine backup /var/backup/ondine --config ", " --state-dir /var/lib/ondine"] {
        assert!(command.contains(words), "{command}");
    }
    let rules = configuration["systemd"]["tmpfiles"]["rules"].to_string();
    assert!(rules.contains("d /var/backup/ondine 0700 ondine ondine -"), "{rules}");
    let file = machine.store.folder().join("ondine-backup.service");
    std::fs::write(&file, unit_text(unit)).expect("the test's folder can be written to");
    must_be_hardened(&file, 1.0);
    for location in ["backup", "/var/lib/ondine/backup"] {
        let service = json!({ "enable": true, "backup": { "enable": true, "location": location } });
        let said = machine.try_evaluate(service).must_fail().stderr;
        assert!(said.contains("services.ondine.backup.location"), "{location}: {said}");
    }
}

#[test]
fn a_client_sends_its_builds_to_the_server_where_that_is_wanted() {
    let machine = Machine::new();
    let key = "cache-1:BixRUZqVb+oC+4P1C3wHRqppp0IrCrlguZK+TEvLtsc=";
    let client = |builder: Value| {
        let client = json!({ "enable": true, "url": "https://cache.example.org", "publicKeys": [key], "builder": builder });
        machine.try_module("client.nix", &json!({ "client": client }))
    };
    let address = "nix-builder@cache.example.org";
    let made = client(json!({ "enable": true, "address": address, "sshKey": "/root/.ssh/builder" }));
    let made: Value = serde_json::from_slice(&made.must_succeed().stdout).expect("JSON");
    let nix = &made["nix"];
    let builder = &nix["buildMachines"][0];
    assert_eq!((&builder["protocol"], &builder["sshKey"]), (&json!("ssh-ng"), &json!("/root/.ssh/builder")));
    assert_eq!(
        (&builder["sshUser"], &builder["hostName"]),
        (&json!("nix-builder"), &json!("cache.example.org"))
    );
    assert_eq!((&nix["distributedBuilds"], &nix["settings"]["max-jobs"]), (&json!(true), &json!(0)));
    assert_eq!(nix["settings"]["builders-use-substitutes"], true);
    let without: Value = serde_json::from_slice(&client(json!({})).must_succeed().stdout).expect("JSON");
    assert!(without["nix"]["settings"].get("max-jobs").is_none(), "{without}");
    for (builder, option) in [
        (json!({ "enable": true }), "builder.address"),
        (json!({ "enable": true, "address": "cache.example.org" }), "builder.address"),
        (json!({ "enable": true, "address": address, "sshKey": "/nix/store/x-key" }), "builder.sshKey"),
    ] {
        let said = client(builder).must_fail().stderr;
        assert!(said.contains(&format!("services.ondine.client.{option}")), "{option}: {said}");
    }
}

#[test]
fn a_client_that_pushes_queues_by_a_hook_and_sends_by_a_hardened_unit() {
    let machine = Machine::new();
    let key = "cache-1:BixRUZqVb+oC+4P1C3wHRqppp0IrCrlguZK+TEvLtsc=";
    let client = |token: Value, package: Value| {
        let push = json!({ "enable": true, "tokenFile": token });
        let client = json!({ "enable": true, "url": "https://cache.example.org", "publicKeys": [key],
            "package": package, "push": push });
        machine.try_module("client.nix", &json!({ "client": client }))
    };
    let package = json!(text(&machine.package));
    let made = client(json!("/run/secrets/token"), package.clone()).must_succeed().text();
    let made: Value = serde_json::from_str(&made).expect("nix-instantiate --json prints JSON");
    let hook = made["nix"]["settings"]["post-build-hook"].as_str().expect("a hook");
    let hook = std::fs::read_to_string(hook).expect("the hook is a file");
    let program = format!("{}/bin/ondine", machine.package.display());
    assert!(hook.contains(&format!("exec {program} push --queue /var/lib/ondine-push ")), "{hook}");
    // With and without the variable that Nix 2.8 leaves empty, the same paths are queued.
    let hook = hook.replace("/nix/store/the-nix-of-this-machine/bin/nix-store", "nix_store");
    let hook = hook.replace(&format!("exec {program}"), "echo");
    let answer = "[ \"$*\" = '--query --outputs /nix/store/x.drv' ] && echo /nix/store/a /nix/store/b";
    let hook = format!("nix_store() {{ {answer}; }}\n{hook}");
    for given in ["/nix/store/a /nix/store/b", ""] {
        let mut run = Command::new("bash");
        run.args(["-c", &hook]).env("OUT_PATHS", given).env("DRV_PATH", "/nix/store/x.drv");
        let queued = process::run(run).must_succeed().text();
        assert_eq!(queued, "push --queue /var/lib/ondine-push /nix/store/a /nix/store/b", "{given:?}");
    }
    let unit = &made["systemd"]["services"]["ondine-push"];
    let command = words(&unit["serviceConfig"]["ExecStart"]);
    let expected = ["--token-file", "%d/token", "--send-queue", "/var/lib/ondine-push", "--follow"];
    assert_eq!(command[..2], [&*program, "push"]);
    assert_eq!(command[4..], expected);
    assert_eq!(unit["serviceConfig"]["LoadCredential"], json!(["token:/run/secrets/token"]));
    assert_eq!(unit["path"], json!(["/nix/store/the-nix-of-this-machine"]));
    let file = machine.store.folder().join("ondine-push.service");
    std::fs::write(&file, unit_text(unit)).expect("the test's folder can be written to");
    must_be_hardened(&file, SENDER_EXPOSURE_MAX);
    for (refused, option) in [
        (client(Value::Null, package.clone()), "push.tokenFile"),
        (client(json!("/nix/store/x-token"), package), "push.tokenFile"),
        (client(json!("/run/secrets/token"), Value::Null), "package"),
    ] {
        let said = refused.must_fail().stderr;
        assert!(said.contains(&format!("services.ondine.client.{option}")), "{option}: {said}");
    }
}
