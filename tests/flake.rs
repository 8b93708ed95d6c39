//! The flake evaluates with every release of Nix, without the network: a small flake stands for nixpkgs.

use std::path::Path;
use std::process::Command;

use crate::support::process::run;
use crate::support::{NixStore, Release, text};

/// Files of the project that the flake needs.
const PARTS: [&str; 5] = ["flake.nix", "packaging", "nixos-module", "Cargo.toml", "Cargo.lock"];

/// A `nix` command on a copy of the flake, which can be read by any release.
fn nix(store: &NixStore, flake: &Path, arguments: &[&str]) -> Command {
    let nixpkgs = format!("path:{}", flake.join("nixpkgs").display());
    let features = ["--extra-experimental-features", "nix-command flakes", "--offline"];
    let overridden = ["--no-write-lock-file", "--override-input", "nixpkgs", &nixpkgs];
    store.command("nix", &[&features[..], arguments, &overridden[..]].concat())
}

#[test]
fn the_flake_has_package_overlay_modules_shell_and_app_in_every_release_of_nix() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for release in Release::all() {
        let name = release.name().to_owned();
        let store = NixStore::new(release);
        let flake = store.folder().join("flake");
        std::fs::create_dir(&flake).expect("the test's folder can be written to");
        for part in PARTS {
            let mut copy = Command::new("cp");
            copy.arg("-r").arg(root.join(part)).arg(&flake);
            run(copy).must_succeed();
        }
        let mut copy = Command::new("cp");
        copy.arg("-r").arg(root.join("tests/nixos-module/nixpkgs")).arg(flake.join("nixpkgs"));
        run(copy).must_succeed();
        let reference = format!("path:{}", text(&flake));

        let check = nix(&store, &flake, &["flake", "check", "--no-build", &reference]);
        run(check).must_succeed();
        let shown = run(nix(&store, &flake, &["flake", "show", "--json", &reference])).must_succeed().text();
        for part in
            ["apps", "checks", "devShells", "nixosModules", "overlays", "packages", "vm-test-run-ondine"]
        {
            assert!(shown.contains(&format!("\"{part}\"")), "{name}: no {part} in {shown}");
        }
        let package = format!("{reference}#packages.x86_64-linux.default.name");
        let package = run(nix(&store, &flake, &["eval", "--raw", &package])).must_succeed().text();
        assert_eq!(package, format!("ondine-{}", env!("CARGO_PKG_VERSION")), "{name}");
        let program = format!("{reference}#apps.x86_64-linux.default.program");
        let program = run(nix(&store, &flake, &["eval", "--raw", &program])).must_succeed().text();
        assert!(program.ends_with("/bin/ondine"), "{name}: {program}");
    }
}
