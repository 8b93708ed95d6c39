//! `ondine stdio`: a team's `builders = ssh-ng://…` leads to the server, through a real sshd, with stock
//! clients that may not build.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::support;
use crate::support::process::{Finished, program, runs};
use crate::support::{Client, Derivation, Release, RemoteBuilder, derivations, text, wait_until};

/// Time limit of a change of state.
const SOON: Duration = Duration::from_secs(60);

/// The end of the program after these bytes on its standard input.
fn speak(scene: &RemoteBuilder, bytes: &[u8]) -> Ended {
    let (url, token_file) = (scene.cache.ondine.url(), scene.token_file());
    let mut command = Command::new(program());
    command.args(["stdio", "--server", &url, "--token-file", text(&token_file)]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    // It may have ended before it has read all of it.
    let _ = child.stdin.take().expect("piped").write_all(bytes);
    let output = child.wait_with_output().expect("it ends");
    Ended { status: output.status, stderr: String::from_utf8_lossy(&output.stderr).into_owned() }
}

/// The end of the program.
struct Ended {
    status: ExitStatus,
    stderr: String,
}

/// The last path that a command printed.
fn output(finished: &Finished) -> PathBuf {
    PathBuf::from(finished.text().lines().last().unwrap_or_default())
}

/// A library, two programs that are linked with it, and a profile of both.
fn c_profile(name: &str) -> Derivation {
    let library = Derivation::new(
        &format!("libgreet-{name}"),
        &format!(
            "mkdir -p $out/lib $out/include; echo 'const char *greet(void);' > $out/include/greet.h; \
             echo 'const char *greet(void) {{ return \"hello from {name}\"; }}' > greet.c; \
             gcc -c greet.c -o greet.o; ar rcs $out/lib/libgreet.a greet.o"
        ),
    );
    let program = |number: u32| {
        let code = format!(
            "#include <stdio.h>\n#include <greet.h>\nint main(void) {{ printf(\"%s, {number}\\n\", greet()); return 0; }}"
        );
        let script = format!(
            "mkdir -p $out/bin; printf '%s' \"$code\" > main.c; \
             gcc main.c -I$library/include -L$library/lib -lgreet -o $out/bin/program-{number}"
        );
        let code = format!("''{code}''");
        Derivation::new(&format!("program-{number}-{name}"), &script)
            .input("library", &library)
            .attribute("code", &code)
    };
    let script = "mkdir -p $out/bin; ln -s $one/bin/* $two/bin/* $out/bin/";
    Derivation::new(&format!("profile-{name}"), script).input("one", &program(1)).input("two", &program(2))
}

#[test]
fn clients_of_every_release_that_may_not_build_have_a_profile_of_c_programs_built() {
    let scene = RemoteBuilder::new("read,build,push");
    for release in Release::all() {
        let name = release.name().to_owned();
        let client = scene.client(release.clone());
        let built = scene.build(&client, &release, &c_profile(&name)).must_succeed();
        let profile = output(&built);
        assert!(client.has(&profile), "{name}: {built}");
        let link = std::fs::read_link(client.physical(&profile).join("bin/program-2")).expect("a symlink");
        let at = client.physical(link.ancestors().nth(2).expect("a store path")).join("bin/program-2");
        let said = support::process::run(Command::new(at)).must_succeed().text();
        assert_eq!(said, format!("hello from {name}, 2"));
        // All of it is in the cache for everybody else.
        scene.cache.assert_served(&profile);
    }
}

#[test]
fn two_clients_at_once_share_one_build() {
    let scene = RemoteBuilder::new("read,build,push");
    let gate = scene.cache.store.gate();
    let script = format!("{}echo shared > $out", gate.script("shared"));
    let shared = Derivation::new("shared", &script);
    let releases = Release::all();
    let (first, last) = (releases[0].clone(), releases[releases.len() - 1].clone());
    let (one, two) = (scene.client(first.clone()), scene.client(last.clone()));
    let builds = [scene.start_build(&one, &first, &shared), scene.start_build(&two, &last, &shared)];
    gate.wait_for_starts(1);
    wait_until("both wait for it", SOON, || scene.waiting_clients() == 2);
    gate.open();
    for build in builds {
        build.finish().must_succeed();
    }
    assert_eq!(gate.starts(), ["shared"]);
}

#[test]
fn a_client_that_is_killed_leaves_as_any_other_and_its_build_is_finished() {
    let scene = RemoteBuilder::new("read,build,push");
    let release = Release::all().pop().expect("a release");
    let client = scene.client(release.clone());
    let gate = scene.cache.store.gate();
    let script = format!("{}echo abandoned > $out", gate.script("abandoned"));
    let derivation = Derivation::new("abandoned", &script);
    let path = scene.cache.store.instantiate(&derivation).output("out").to_owned();
    let build = scene.start_build(&client, &release, &derivation);
    gate.wait_for_starts(1);
    wait_until("it waits", SOON, || scene.waiting_clients() == 1);
    build.kill();
    wait_until("it has left", SOON, || scene.waiting_clients() == 0);
    let token_file = scene.token_file();
    wait_until("its process has ended", SOON, || !runs(text(&token_file)));
    gate.open();
    wait_until("the build is finished and served", SOON, || {
        let address = format!("/cached{}", support::addresses::narinfo_address(&path));
        scene.cache.http.get(&address).status == 200
    });
    assert_eq!(gate.starts(), ["abandoned"]);
}

#[test]
fn a_failed_build_shows_the_end_of_its_log_on_every_client() {
    let scene = RemoteBuilder::new("read,build,push");
    for release in Release::all() {
        let client = scene.client(release.clone());
        let failing = derivations::failing(&format!("failing-{}", release.name()));
        let failed = scene.build(&client, &release, &failing).must_fail();
        assert!(failed.stderr.contains("the last words of a failing build"), "{failed}");
    }
}

#[test]
fn a_refusal_says_what_is_lacking_and_so_does_a_server_that_is_away() {
    let scene = RemoteBuilder::new("read,build");
    for release in Release::all() {
        let client = scene.client(release.clone());
        let drv = client.instantiate(&derivations::text_file(&format!("refused-{}", release.name()), "x"));
        let refused =
            client.run("nix", &["copy", "--derivation", "--to", &scene.sshd.url(), &drv]).must_fail();
        assert!(refused.stderr.contains("\"push\""), "{refused}");
    }
    // The oldest release sends derivations without what they are made from.
    let client = scene.client(Release::Host);
    let drv = client.instantiate(&derivations::text_file("unknown", "x"));
    let refused = client.run("nix-store", &["--realise", &drv]).must_fail();
    let words = if refused.stderr.contains("\"push\"") { "\"push\"" } else { "nix copy --derivation" };
    assert!(refused.stderr.contains(words), "{refused}");
}

#[test]
fn a_server_that_is_away_is_told_to_the_client() {
    let mut scene = RemoteBuilder::new("read,build,push");
    scene.cache.ondine.kill9();
    for release in Release::all() {
        let client = scene.client(release);
        let drv = client.instantiate(&derivations::text_file("away", "x"));
        let failed =
            client.run("nix", &["copy", "--derivation", "--to", &scene.sshd.url(), &drv]).must_fail();
        assert!(failed.stderr.contains("nothing listens at this address"), "{failed}");
    }
}

#[test]
fn the_store_of_the_builder_builds_closures_gives_paths_and_takes_only_what_is_believed() {
    let scene = RemoteBuilder::new("read,build,push");
    for release in Release::all() {
        let name = release.name().to_owned();
        let client = scene.client(release);
        let wanted = derivations::chain(&format!("closure-{name}"), 3, |_| String::new());
        let drv = client.instantiate(&wanted);
        let url = scene.sshd.url();
        client.run("nix", &["copy", "--derivation", "--to", &url, &drv]).must_succeed();
        client.run("nix-store", &["--store", &url, "--realise", &drv]).must_succeed();
        let path =
            PathBuf::from(client.run("nix-store", &["--query", "--outputs", &drv]).must_succeed().text());
        client.run("nix", &["copy", "--no-check-sigs", "--from", &url, text(&path)]).must_succeed();
        assert!(client.has(&path), "{name}");
        assert_eq!(client.nar_digest(&path), support::nar_digest(&path), "{name}");

        // A path that this client has made itself is nobody's word but its own.
        let settings = [("max-jobs", "1")];
        let maker = Client::with_settings(Release::Host, &scene.cache.store.store_dir(), &settings)
            .with_ssh(&scene.sshd.ssh_options());
        let own = maker.build(&derivations::text_file(&format!("own-{name}"), "mine")).remove(0);
        let refused = maker.run("nix", &["copy", "--to", &url, text(&own)]).must_fail();
        assert!(refused.stderr.contains("signature"), "{refused}");
    }
}

#[test]
fn what_is_no_nix_client_gets_a_reason_and_an_end() {
    let scene = RemoteBuilder::new("read,build,push");
    let hello = 0x6e69_7863_u64.to_le_bytes();
    let version = |minor: u64| (1_u64 << 8 | minor).to_le_bytes();
    let none = 0_u64.to_le_bytes();
    let greeting = [&hello[..], &version(35), &none, &none].concat();
    let absurd = [&greeting[..], &26_u64.to_le_bytes(), &u64::MAX.to_le_bytes()].concat();
    let unknown = [&greeting[..], &999_u64.to_le_bytes()].concat();
    for (sent, reason) in [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "no Nix client"),
        ([&hello[..], &version(12)].concat(), "1.34 to 1.38"),
        (absurd, "at most"),
        (unknown, "operation 999"),
    ] {
        let ended = speak(&scene, &sent);
        assert!(!ended.status.success(), "{}", ended.stderr);
        assert!(ended.stderr.contains(reason), "{reason:?}: {}", ended.stderr);
    }
    // One that says nothing more is gone, which is no error.
    assert!(speak(&scene, &greeting).status.success());
    assert!(speak(&scene, b"").status.success());
}
