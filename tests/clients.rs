//! A stock Nix of every release gets what was never built: each client with the host's daemon, and the host's
//! client with each daemon. Signatures are required, only our key is trusted, and what arrives is alike byte
//! for byte.
//!
//! Prints one line for each pair, and writes it to the file that ONDINE_TEST_MATRIX_REPORT names, for CI to
//! count.

use std::io::Write;

use crate::support;
use crate::support::derivations::{ODD_NAME, chain, curious_tree, multiple_outputs};
use crate::support::{Client, Derivation, NixStore, Ondine, Release, nar_digest};

/// Four derivations that need each other, one with more outputs than one, which end in two that are asked
/// for.
fn sample() -> [Derivation; 2] {
    let tree = curious_tree("tree");
    let several = multiple_outputs("several");
    let row = chain("row", 3, |number| format!("echo building number {number}\n"));
    let script = "mkdir $out; ln -s $tree $out/tree; ln -s $dev $out/dev; cp $row $out/row";
    let odd = Derivation::new(ODD_NAME, script)
        .input("tree", &tree)
        .input_output("dev", &several, "dev")
        .input("row", &row);
    [odd, several]
}

/// One round trip: nothing is built, the client asks, and holds in the end what the server's store holds.
fn round_trip(client_release: &Release, daemon_release: &Release) {
    let store = NixStore::new(daemon_release.clone());
    let _daemon = store.daemon();
    let [odd, several] = sample().map(|derivation| store.instantiate(&derivation));
    let wanted = [odd.out(), several.output("out"), several.output("doc")];
    assert!(wanted.iter().all(|path| !path.exists()), "something is built before anyone asks");
    let ondine = Ondine::start(&store, &[]);
    let client = Client::new(client_release.clone(), &store.store_dir());

    client.fetch(&ondine.substituter(), &wanted).must_succeed();

    for path in closure(&store, &wanted) {
        assert!(client.has(&path), "the client does not have {}", path.display());
        assert_eq!(client.nar_digest(&path), nar_digest(&path), "{} differs", path.display());
    }
    report(&format!("matrix: client {}, daemon {}: ok", client_release.version(), daemon_release.version()));
}

/// The paths and all that they refer to, as the server's Nix knows them.
fn closure(store: &NixStore, paths: &[&std::path::Path]) -> Vec<std::path::PathBuf> {
    let mut arguments = vec!["--query", "--requisites"];
    arguments.extend(paths.iter().map(|path| support::text(path)));
    let closure: Vec<_> = store.nix_store(&arguments).lines().map(Into::into).collect();
    assert!(closure.len() >= 6, "the sample's closure is smaller than it should be: {closure:?}");
    closure
}

fn report(line: &str) {
    println!("{line}");
    if let Some(path) = std::env::var_os("ONDINE_TEST_MATRIX_REPORT") {
        let file = std::fs::File::options().create(true).append(true).open(&path);
        file.and_then(|mut file| writeln!(file, "{line}"))
            .unwrap_or_else(|error| panic!("cannot write the report {}: {error}", path.to_string_lossy()));
    }
}

#[test]
fn a_client_of_every_release_gets_what_was_never_built() {
    for client in Release::all() {
        round_trip(&client, &Release::Host);
    }
}

#[test]
fn a_daemon_of_every_release_builds_what_a_client_asks_for() {
    for daemon in Release::all().into_iter().filter(|release| *release != Release::Host) {
        round_trip(&Release::Host, &daemon);
    }
}
