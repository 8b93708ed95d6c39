//! `build-remote.sh` and those that source it: a graph whose inputs need features that one machine each has,
//! built for a client that builds nothing itself; by kind of derivation, and by what the server believes of
//! the client.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::support::builder::{note_start, settings};
use super::support::store::write;
use super::support::{Builder, Cache, Client, Derivation, Finished, NixStore, Release, RemoteBuilder, text};

/// Machines, each with the feature that it builds for and nothing else.
const MACHINES: [(&str, &str); 3] = [("machine1", "foo"), ("machine2", "bar"), ("machine3", "baz")];

/// Ways in which outputs are named.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    InputAddressed,
    Fixed,
    Floating,
}

/// A server with a builder for each feature and one for all else, and the sshd that leads to it.
struct Scene {
    door: RemoteBuilder,
    /// Dropped after the server.
    _machines: Vec<Builder>,
    starts: PathBuf,
}

impl Scene {
    fn new(rights: &str) -> Scene {
        let store = NixStore::new(Release::Host);
        let starts = store.folder().join("starts");
        let named = MACHINES.iter().chain([&("machine0", "")]);
        let (machines, tables): (Vec<Builder>, Vec<String>) = named
            .map(|(name, feature)| {
                let builder = Builder::start(&store, &Release::Host, name);
                builder.configure_nix("extra-system-features = foo bar baz");
                let only = if feature.is_empty() {
                    String::new()
                } else {
                    format!("mandatory-features = ['{feature}']")
                };
                let table = builder.table(&only);
                (builder, table)
            })
            .unzip();
        let file = settings(&store, &format!("lanes = 0\n{}", tables.concat()));
        let door = RemoteBuilder::of(Cache::of(store, &["--config", &file], &[]), rights);
        Scene { door, _machines: machines, starts }
    }

    /// A machine that has every build done by the server, with these settings more.
    fn client(&self, release: &Release, more: &[(&str, &str)]) -> Client {
        let builder = format!("{} foo,bar,baz,ca-derivations", self.door.sshd.builder());
        let settings = [&[("builders", &*builder)], more].concat();
        let store_dir = self.door.cache.store.store_dir();
        Client::with_settings(release.clone(), &store_dir, &settings).with_ssh(&self.door.sshd.ssh_options())
    }

    /// `remote-<name>`, which says FOO BAR BAZ, and the derivations that it is made from.
    fn graph(&self, kind: Kind, name: &str) -> (Derivation, Derivation) {
        let made = |part: &str, script: &str, says: &str| {
            let full = format!("{part}-{name}");
            let note = note_start(&self.door.cache.store, &self.starts, &full);
            let derivation = Derivation::new(&full, &format!("echo 'hi from {part}'\n{note}{script}"));
            match kind {
                Kind::InputAddressed => derivation,
                Kind::Floating => derivation
                    .attribute("__contentAddressed", "true")
                    .attribute("outputHashMode", "\"recursive\"")
                    .attribute("outputHashAlgo", "\"sha256\""),
                Kind::Fixed => {
                    let digest = Sha256::digest(format!("{says}\n"));
                    let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                    derivation
                        .attribute("outputHash", &format!("\"{hash}\""))
                        .attribute("outputHashAlgo", "\"sha256\"")
                        .attribute("outputHashMode", "\"flat\"")
                }
            }
        };
        let needs = |derivation: Derivation, feature: &str| {
            derivation.attribute("requiredSystemFeatures", &format!("[ \"{feature}\" ]"))
        };
        // Equal fixed outputs of two names are two paths, so each has its own words.
        let one = needs(made("input-1", &format!("echo 'FOO {name}' > $out"), &format!("FOO {name}")), "foo");
        let two = needs(made("input-2", &format!("echo 'BAR {name}' > $out"), &format!("BAR {name}")), "bar");
        let script = "read -r x rest < $two\necho \"$x BAZ $rest\" > $out";
        let three = needs(made("input-3", script, &format!("BAR BAZ {name}")), "baz").input("two", &two);
        let script = "read -r x rest < $one\nread -r y z rest < $three\necho \"$x $y $z $rest\" > $out";
        let top = made("remote", script, &format!("FOO BAR BAZ {name}"));
        (top.input("one", &one).input("three", &three), one)
    }

    fn noted(&self, name: &str) -> Vec<String> {
        let noted = std::fs::read_to_string(&self.starts).unwrap_or_default();
        let suffix = format!("-{name} ");
        let mut noted: Vec<String> = noted
            .lines()
            .filter(|line| line.contains(&suffix))
            .map(|line| line.replace(&suffix, " "))
            .collect();
        noted.sort();
        noted
    }

    /// Builds the graph; each part on the machine that has its feature, once.
    #[track_caller]
    fn assert_built(&self, client: &Client, kind: Kind, name: &str) {
        let (top, one) = self.graph(kind, name);
        let built = realise(client, &top).must_succeed();
        let path = PathBuf::from(built.text().lines().last().unwrap_or_default());
        let says = std::fs::read_to_string(client.physical(&path)).expect("the client has it");
        assert_eq!(says, format!("FOO BAR BAZ {name}\n"));
        assert_eq!(
            self.noted(name),
            ["input-1 machine1", "input-2 machine2", "input-3 machine3", "remote machine0"]
        );
        // The client has the logs of what was built for it.
        let log = client.run("nix-store", &["--read-log", &client.instantiate(&one)]).must_succeed();
        assert!(log.text().contains("hi from input-1"), "{log}");
    }
}

fn realise(client: &Client, derivation: &Derivation) -> Finished {
    let drv = client.instantiate(derivation);
    client.run("nix-store", &["--realise", &drv])
}

#[test]
fn input_addressed_derivations_are_built_for_releases_that_hear_that_they_are_not_trusted() {
    let scene = Scene::new("read,build,push");
    for release in Release::all() {
        let name = release.name().to_owned();
        let client = scene.client(&release, &[]);
        if release == Release::Host {
            // It takes for granted that it is trusted.
            let refused = realise(&client, &scene.graph(Kind::InputAddressed, &name).0).must_fail();
            assert!(refused.stderr.contains("\"vouch\""), "{refused}");
            continue;
        }
        scene.assert_built(&client, Kind::InputAddressed, &name);
    }
}

#[test]
fn input_addressed_derivations_are_built_for_every_release_that_is_trusted() {
    let scene = Scene::new("read,build,push,vouch");
    for release in Release::all() {
        let name = release.name().to_owned();
        let folder = scene.door.cache.store.folder().join(format!("hook-{name}"));
        std::fs::create_dir_all(&folder).expect("the folder of a test can be written to");
        let (hook, ran) = (folder.join("hook"), folder.join("ran"));
        write(&hook, &format!("#!/bin/sh\necho \"$DRV_PATH\" >> {}\n", ran.display()));
        std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
        let client = scene.client(&release, &[("post-build-hook", text(&hook))]);
        scene.assert_built(&client, Kind::InputAddressed, &name);
        // What was built elsewhere counts as built. Nix 2.8 names no outputs of it.
        let ran = std::fs::read_to_string(&ran).unwrap_or_default();
        assert!(ran.contains(&format!("-remote-{name}.drv")), "{name}: {ran:?}");
    }
}

#[test]
fn derivations_with_fixed_outputs_are_built_for_everybody() {
    let scene = Scene::new("read,build,push");
    for release in Release::all() {
        let client = scene.client(&release, &[]);
        scene.assert_built(&client, Kind::Fixed, release.name());
    }
}

#[test]
fn floating_outputs_are_refused_in_words() {
    let scene = Scene::new("read,build,push,vouch");
    for release in Release::all() {
        let name = release.name().to_owned();
        let features = [("experimental-features", "nix-command ca-derivations")];
        let client = scene.client(&release, &features);
        let refused = realise(&client, &scene.graph(Kind::Floating, &name).0).must_fail();
        assert!(refused.stderr.contains("content-addressed"), "{name}: {refused}");
        assert_eq!(scene.noted(&name), [""; 0]);
    }
}

#[test]
fn checking_what_was_built_is_refused_in_words() {
    let scene = Scene::new("read,build,push");
    for release in Release::all() {
        let name = release.name().to_owned();
        let client = scene.client(&release, &[]);
        let drv = client.instantiate(&Derivation::new(&format!("checked-{name}"), "echo made > $out"));
        let url = scene.door.sshd.url();
        client.run("nix", &["copy", "--derivation", "--to", &url, &drv]).must_succeed();
        client.run("nix-store", &["--store", &url, "--realise", &drv]).must_succeed();
        let refused = client.run("nix-store", &["--store", &url, "--realise", "--check", &drv]).must_fail();
        assert!(refused.stderr.contains("repairing and checking"), "{name}: {refused}");
        assert!(!client.has(Path::new(&drv.replace(".drv", ""))), "{name}");
    }
}
