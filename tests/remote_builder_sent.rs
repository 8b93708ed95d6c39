//! `ondine stdio` for clients that send derivations without their files: those with fixed outputs are built
//! for anybody, others for whom the key may vouch. Log, phases and lines reach the client's terminal.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::support::builder::{note_start, settings};
use crate::support::derivations::{multiple_outputs, text_file};
use crate::support::{
    Builder, Cache, Client, Derivation, Finished, NixStore, Release, RemoteBuilder, addresses, text,
    wait_until,
};

/// Time limit of a change of state.
const SOON: Duration = Duration::from_secs(60);

/// A file that says `line`, whose contents are known before the build.
fn fixed(name: &str, line: &str) -> Derivation {
    let digest = Sha256::digest(format!("{line}\n"));
    fixed_as(name, line, &digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// The same that claims to have this hash.
fn fixed_as(name: &str, line: &str, hash: &str) -> Derivation {
    Derivation::new(name, &format!("echo '{line}' > $out"))
        .attribute("outputHash", &format!("\"{hash}\""))
        .attribute("outputHashAlgo", "\"sha256\"")
        .attribute("outputHashMode", "\"flat\"")
}

/// Builds a derivation that the server does not know.
fn realise(client: &Client, derivation: &Derivation) -> (String, Finished) {
    let drv = client.instantiate(derivation);
    let finished = client.run("nix-store", &["--realise", &drv]);
    (drv, finished)
}

fn output(finished: &Finished) -> PathBuf {
    PathBuf::from(finished.text().lines().last().unwrap_or_default())
}

#[test]
fn fixed_outputs_are_built_for_every_client_though_the_server_does_not_know_their_derivations() {
    let scene = RemoteBuilder::new("read,build,push");
    for release in Release::all() {
        let name = release.name().to_owned();
        let client = scene.client(release.clone());
        let (_, built) = realise(&client, &fixed(&format!("source-{name}"), &format!("of {name}")));
        let path = output(&built.must_succeed());
        assert!(client.has(&path), "{name}");
        scene.cache.assert_served(&path);
        if release == Release::Host {
            continue;
        }
        // One that is made of another path, and a wrong one.
        let input = text_file(&format!("input-{name}"), "input");
        let derived = fixed(&format!("derived-{name}"), &format!("derived {name}")).input("input", &input);
        let (_, built) = realise(&client, &derived);
        assert!(client.has(&output(&built.must_succeed())), "{name}");
        let (_, failed) = realise(&client, &fixed_as(&format!("wrong-{name}"), "wrong", &"0".repeat(64)));
        assert!(failed.must_fail().stderr.contains("hash mismatch"), "{name}");
    }
}

#[test]
fn a_derivation_that_the_server_does_not_know_is_built_where_the_key_may_vouch() {
    let scene = RemoteBuilder::new("read,build,push,vouch");
    let client = scene.client(Release::Host);
    let top = Derivation::new("vouched", "mkdir $out; ln -s $dev $out/dev").input_output(
        "dev",
        &multiple_outputs("several"),
        "dev",
    );
    let (drv, built) = realise(&client, &top);
    let path = output(&built.must_succeed());
    assert!(client.has(&path));
    scene.cache.assert_served(&path);
    assert!(!scene.cache.store.is_valid(Path::new(&drv)), "its file is nowhere but at the client");
    // Another client has it without a build.
    let other = scene.client(Release::Host);
    let (_, had) = realise(&other, &top);
    assert_eq!(output(&had.must_succeed()), path);
    let (_, failed) = realise(&client, &Derivation::new("failing-vouched", "echo 'its last words'\nexit 3"));
    assert!(failed.must_fail().stderr.contains("its last words"));
}

#[test]
fn without_the_right_to_vouch_it_is_refused_and_said_what_to_do() {
    let scene = RemoteBuilder::new("read,build,push");
    let client = scene.client(Release::Host);
    let (drv, refused) = realise(&client, &text_file("unvouched", "x"));
    let refused = refused.must_fail();
    for words in ["\"vouch\"", "nix copy --derivation"] {
        assert!(refused.stderr.contains(words), "{refused}");
    }
    client.run("nix", &["copy", "--derivation", "--to", &scene.sshd.url(), &drv]).must_succeed();
    client.run("nix-store", &["--realise", &drv]).must_succeed();
}

#[test]
fn what_was_sent_is_built_after_the_server_was_killed() {
    let mut scene = RemoteBuilder::new("read,build,push,vouch");
    let client = scene.client(Release::Host);
    let gate = scene.cache.store.gate();
    let drv =
        client.instantiate(&Derivation::new("slow", &format!("{}echo made > $out", gate.script("slow"))));
    let building = client.start("nix-store", &["--realise", &drv]);
    gate.wait_for_starts(1);
    scene.cache.ondine.kill9();
    scene.cache.ondine.start_again();
    gate.wait_for_starts(2);
    gate.open();
    let path = output(&building.finish().must_succeed());
    assert!(client.has(&path));
    wait_until("nobody waits any more", SOON, || scene.waiting_clients() == 0);
}

#[test]
fn what_was_sent_is_built_on_a_builder_of_the_farm() {
    let store = NixStore::new(Release::Host);
    let starts = store.folder().join("starts");
    let far = Builder::start(&store, Release::all().last().expect("the host's at least"), "far");
    let note = |name: &str| note_start(&store, &starts, name);
    let input = Derivation::new("input", &format!("{}echo made > $out", note("input")));
    let top = Derivation::new("top", &format!("{}cat $input > $out", note("top"))).input("input", &input);
    let file = settings(&store, &format!("lanes = 0\n{}", far.table("")));
    let scene = RemoteBuilder::of(Cache::of(store, &["--config", &file], &[]), "read,build,push,vouch");
    let client = scene.client(Release::Host);
    let (_, built) = realise(&client, &top);
    let path = output(&built.must_succeed());
    assert!(client.has(&path) && !scene.cache.store.is_valid(&path), "it was built on the server");
    let noted = std::fs::read_to_string(&starts).expect("the builds have noted their starts");
    assert_eq!(noted, "input far\ntop far\n");
}

#[test]
fn lines_and_phases_of_a_build_reach_the_terminal_of_every_client() {
    let scene = RemoteBuilder::new("read,build,push");
    for release in Release::all() {
        let name = release.name().to_owned();
        let client = scene.client(release.clone());
        let gate = scene.cache.store.gate();
        let phase = "@nix { \"action\": \"setPhase\", \"phase\": \"dustPhase\" }";
        let script =
            format!("echo '{phase}' >&2\necho 'a line of dust'\n{}echo made > $out", gate.script("dust"));
        let drv = client.instantiate(&Derivation::new(&format!("dusty-{name}"), &script));
        if release == Release::Host {
            scene.make_known(&client, &drv);
        }
        let terminal = scene.cache.store.folder().join(format!("terminal-{name}"));
        let line = format!(
            "nix-store --realise {drv} --log-format internal-json -v 2> {}; cat {} >&2",
            terminal.display(),
            terminal.display()
        );
        let building = client.start("sh", &["-c", &line]);
        let told = |kind: u32, word: &str| {
            let (kind, shown) = (format!("\"type\":{kind}"), std::fs::read_to_string(&terminal));
            shown.unwrap_or_default().lines().any(|line| line.contains(&kind) && line.contains(word))
        };
        wait_until("the terminal shows phase and line", SOON, || {
            told(104, "dustPhase") && told(101, "a line of dust")
        });
        gate.open();
        let built = building.finish().must_succeed();
        let log = scene.cache.http.get(&format!("/log/{}", addresses::base_name(Path::new(&drv)))).text();
        assert!(log.contains("@nix {\"action\":\"setPhase\",\"phase\":\"dustPhase\"}"), "{name}: {log}");
        assert!(text(&output(&built)).ends_with(&format!("-dusty-{name}")), "{built}");
    }
}
