//! `ondine push`: paths that a machine has built are uploaded, verified, and served to others.

use std::path::{Path, PathBuf};

use crate::support::process::{Finished, run};
use crate::support::{Cache, Client, Ondine, Release, derivations, text};

fn push(machine: &Client, server: &Ondine, token: &str, paths: &[&str]) -> Finished {
    let (url, mut arguments) = (server.url(), vec!["push"]);
    arguments.extend(paths);
    run(machine.ondine_command(&arguments, &[("ONDINE_SERVER", &*url), ("ONDINE_TOKEN", token)]))
}

#[test]
fn what_a_machine_has_built_is_uploaded_once_and_served_byte_for_byte() {
    let cache = Cache::new(&[]);
    let (store, server) = (&cache.store, &cache.ondine);
    let token = server.new_token("all", "read,push,vouch", &[]);
    for release in Release::all() {
        let name = release.name().to_owned();
        let machine = Client::with_settings(release.clone(), &store.store_dir(), &[("max-jobs", "1")]);
        let row = derivations::row_of_outputs(&format!("row-{name}"), 30);
        let tree = derivations::curious_tree(&format!("tree-{name}"));
        let large = derivations::noise(&format!("large-{name}"), 5 * 1024 * 1024);
        let mut paths: Vec<PathBuf> = Vec::new();
        for derivation in [row, tree, large] {
            paths.extend(machine.build(&derivation));
        }
        assert_eq!(paths.len(), 32, "{name}");
        let tops: Vec<&str> = paths.iter().map(|path| text(path)).collect();
        let pushed = push(&machine, server, &token, &tops).must_succeed();
        assert!(pushed.text().starts_with("uploaded 32 of 32 paths"), "{name}: {pushed}");
        let again = push(&machine, server, &token, &tops).must_succeed();
        assert!(again.text().starts_with("uploaded 0 of 32 paths"), "{name}: {again}");

        let other = Client::new(release, &store.store_dir());
        let wanted: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        other.fetch(&server.substituter(), &wanted).must_succeed();
        for path in wanted {
            assert_eq!(other.nar_digest(path), machine.nar_digest(path), "{name}: {}", path.display());
        }
    }
}

#[test]
fn who_may_not_push_or_has_nothing_to_push_is_told_in_words() {
    let cache = Cache::new(&[]);
    let (store, server) = (&cache.store, &cache.ondine);
    let machine = Client::with_settings(Release::Host, &store.store_dir(), &[("max-jobs", "1")]);
    let sample = derivations::text_file("sample", "hello");
    let (drv, built) = (machine.instantiate(&sample), machine.build(&sample));
    let out = text(&built[0]).to_owned();
    let url = server.url();
    let nobody = machine.ondine(&["push", "--server", &url, &out]).must_fail();
    assert!(nobody.status.code() == Some(4) && nobody.stderr.contains("No token was sent"), "{nobody}");
    let reader = push(&machine, server, &server.new_token("reader", "read", &[]), &[&out]).must_fail();
    assert!(reader.status.code() == Some(4) && reader.stderr.contains("push"), "{reader}");
    let wrong = push(&machine, server, "no-such-token", &[&out]).must_fail();
    assert!(
        wrong.status.code() == Some(4) && wrong.stderr.contains("of the variable ONDINE_TOKEN"),
        "{wrong}"
    );
    assert!(!wrong.stderr.contains("no-such-token"), "{wrong}");
    let token = server.new_token("pusher", "read,push", &[]);
    let absent = push(&machine, server, &token, &["/nonexistent"]).must_fail();
    assert!(absent.stderr.contains("/nonexistent cannot be read"), "{absent}");
    let elsewhere = push(&machine, server, &token, &["/etc/passwd"]).must_fail();
    assert!(elsewhere.stderr.contains("is not in the store"), "{elsewhere}");
    // Without `vouch` nobody believes what no trusted key has signed; a derivation names its contents.
    let unsigned = push(&machine, server, &token, &[&out]).must_fail();
    assert!(unsigned.stderr.contains("sign"), "{unsigned}");
    let counts = push(&machine, server, &token, &["--json", &drv]).must_succeed().text();
    let counts: serde_json::Value = serde_json::from_str(&counts).expect("JSON");
    assert!(counts["sent"] == 1 && counts["paths"] == 1, "{counts}");
}
