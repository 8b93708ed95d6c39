//! Package sets with every release of Nix that there is to test with: its evaluator, its daemon.
//! The evaluator is the one on the server's PATH, which these tests lead into the release.

use std::path::Path;

use crate::support;
use crate::support::addresses::base_name;
use crate::support::package_set::{api, must_be_had, refresh, wait_for_generation};
use crate::support::{Derivation, Http, NixStore, Ondine, PackageSet, Release, derivations, programs, text};

fn serve(store: &NixStore, settings: &Path) -> Ondine {
    Ondine::start_with(store, &["--config", text(settings)], &[("PATH", &programs::path(store))])
}

#[test]
fn every_release_evaluates_a_set_with_all_that_may_be_wrong_with_it() {
    for release in Release::all() {
        let store = NixStore::new(release);
        let _daemon = store.daemon();
        let several = derivations::multiple_outputs("several");
        let user = Derivation::new("user", "echo $lib > $out").input_output("lib", &several, "lib");
        let mut set = PackageSet::new([
            ("a".to_owned(), "abort \"words of a\"".to_owned()),
            ("i".to_owned(), "import (derivation { name = \"i\"; system = builtins.currentSystem; builder = \"/bin/sh\"; })".to_owned()),
            ("l".to_owned(), "let l = l; in l".to_owned()),
            ("m".to_owned(), "(1 + \"m\")".to_owned()),
            ("nested".to_owned(), format!("{{ recurseForDerivations = true; \"x.y\" = {}; }}", user.to_nix())),
            ("r".to_owned(), "builtins.readFile \"/etc/hostname\"".to_owned()),
            ("s".to_owned(), several.to_nix()),
            ("t".to_owned(), "throw \"words of t\"".to_owned()),
        ]);
        let ondine = serve(&store, &set.settings("build-from = ['catalogue']", ""));
        wait_for_generation(&ondine);
        let told = api(&ondine);
        let name = store.release().name();
        assert_eq!(told["generations"][0]["attributes"], 2, "{name}: {told:#}");
        let errors = told["errors"].as_array().expect("a list");
        let listed: Vec<&str> = errors.iter().filter_map(|error| error["attribute"].as_str()).collect();
        assert_eq!(listed, ["a", "i", "l", "m", "r", "t"], "{name}: {told:#}");
        for (number, words) in [(0, "words of a"), (2, "infinite recursion"), (5, "words of t")] {
            assert!(errors[number]["error"].as_str().expect("a text").contains(words), "{name}: {told:#}");
        }
        store.gc();
        must_be_had(&ondine, &set.paths(&store, "nested.\"x.y\"").1);
        must_be_had(&ondine, &set.paths(&store, "s").1);
        set.attributes.insert("z".into(), derivations::text_file("z", "z").to_nix());
        set.write();
        refresh(&ondine).must_succeed();
        store.gc();
        must_be_had(&ondine, &set.paths(&store, "z").1);
    }
}

#[test]
fn every_release_evaluates_a_flake_whole_and_lazily() {
    for release in Release::all() {
        let store = NixStore::new(release);
        let _daemon = store.daemon();
        let flake = store.folder().join("flake");
        std::fs::create_dir_all(&flake).expect("a folder");
        let system = store.nix(&["eval", "--impure", "--raw", "--expr", "builtins.currentSystem"]);
        let nix = derivations::text_file("of-a-flake", "x")
            .to_nix()
            .replace("builtins.currentSystem", &format!("{system:?}"));
        let outputs = format!("{{ outputs = {{ self }}: {{ legacyPackages.{system}.f = {nix}; }}; }}");
        std::fs::write(flake.join("flake.nix"), outputs).expect("written");
        let settings = store.folder().join("settings.toml");
        let table = |name: &str, more: &str| {
            format!(
                "[[catalogue]]\nname = '{name}'\nsource = {{ flake = 'path:{}' }}\n{more}\n",
                flake.display()
            )
        };
        std::fs::write(&settings, table("lazy", "index = 'lazy'") + &table("pkgs", "")).expect("written");
        let ondine = serve(&store, &settings);
        wait_for_generation(&ondine);
        let told = api(&ondine);
        assert_eq!(told["generations"][0]["attributes"], 1, "{}: {told:#}", store.release().name());
        store.gc();
        let instantiated = store.instantiate(&derivations::text_file("of-a-flake", "x"));
        must_be_had(&ondine, instantiated.out());
        let look_up = |attribute: &str| {
            Http::new(&ondine.url()).get(&format!("/api/v1/catalogue/lazy/{attribute}")).text()
        };
        let drv = base_name(&instantiated.drv);
        assert!(look_up("f").contains(drv), "{}: {}", store.release().name(), look_up("f"));
        assert!(look_up("g").contains("no g"), "{}: {}", store.release().name(), look_up("g"));
    }
}

#[test]
fn every_release_evaluates_flakes_of_git_repositories() {
    for release in Release::all() {
        let store = NixStore::new(release);
        let _daemon = store.daemon();
        let system = store.nix(&["eval", "--impure", "--raw", "--expr", "builtins.currentSystem"]);
        let repository = store.folder().join("repository");
        std::fs::create_dir_all(repository.join("sub")).expect("a folder");
        let flake = |name: &str| {
            let nix = derivations::text_file("x", "x").to_nix();
            let nix = nix.replace("builtins.currentSystem", &format!("{system:?}"));
            let nix =
                nix.replace("name = \"x\"", &format!("name = \"{name}-${{self.shortRev or \"dirty\"}}\""));
            format!("{{ outputs = {{ self }}: {{ packages.{system}.f = {nix}; }}; }}")
        };
        std::fs::write(repository.join("flake.nix"), flake("top")).expect("written");
        std::fs::write(repository.join("sub/flake.nix"), flake("sub")).expect("written");
        let git = |arguments: &[&str]| {
            let mut command = std::process::Command::new("git");
            command.arg("-C").arg(&repository).args(["-c", "user.name=x", "-c", "user.email=x@example.org"]);
            support::process::run({
                command.args(arguments);
                command
            })
            .must_succeed()
            .text()
        };
        git(&["init", "--quiet"]);
        git(&["add", "."]);
        git(&["commit", "--quiet", "-m", "x"]);
        let revision = git(&["rev-parse", "HEAD"]);
        let place = repository.display();
        let sets = [
            format!("url flake:git+file://{place}"),
            format!("sub flake:{place}/sub"),
            format!("dir flake:git+file://{place}?dir=sub"),
        ];
        let path = programs::path(&store);
        let ondine = Ondine::start_with(&store, &["--catalogue", &sets.join(",")], &[("PATH", &path)]);
        let name = store.release().name();
        refresh(&ondine).must_succeed();
        let look_up = |set: &str| Http::new(&ondine.url()).get(&format!("/api/v1/catalogue/{set}/f")).text();
        for (set, own) in [("url", "top"), ("sub", "sub"), ("dir", "sub")] {
            let wanted = format!("-{own}-{}.drv", &revision[..7]);
            assert!(look_up(set).contains(&wanted), "{name} {set}: {}", look_up(set));
        }
        std::fs::write(repository.join("flake.nix"), flake("changed")).expect("written");
        refresh(&ondine).must_succeed();
        assert!(look_up("url").contains("-changed-dirty.drv"), "{name}: {}", look_up("url"));
    }
}
