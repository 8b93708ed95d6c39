//! `nar-access.sh`: single files out of a path of the cache, as the client reads them from the NAR.

use super::scene::Scene;
use super::support::{Cache, Derivation, Release, text};

/// A tree with names that sort unlike their paths, empty files, and text that is not ASCII.
fn tree() -> Derivation {
    let script = "mkdir -p $out/foo $out/zyx; touch $out/foo-x $out/foo/bar $out/foo/baz $out/qux
        printf 'äöü ß Æ ¢«»”\\n' > $out/foo/data; ln -s foo/data $out/link";
    Derivation::new("nar-index-a", script)
}

#[test]
fn files_are_listed_and_read_as_they_are_in_the_store() {
    for release in Release::all() {
        let scene = Scene::of(&release, Cache::new(&[]), &tree());
        let (url, top) = (scene.cache.ondine.url(), text(scene.top.out()));
        let nix = |arguments: &[&str]| scene.client.run("nix", arguments);

        let listed = nix(&["store", "ls", "--recursive", "--store", &url, top]).must_succeed().text();
        let mut listed: Vec<&str> = listed.lines().map(|line| line.trim_start_matches("./")).collect();
        listed.retain(|line| !line.is_empty() && *line != ".");
        listed.sort_unstable();
        let expected = ["foo", "foo-x", "foo/bar", "foo/baz", "foo/data", "link", "qux", "zyx"];
        assert_eq!(listed.iter().map(|line| line.trim_start_matches('/')).collect::<Vec<_>>(), expected);

        let data = nix(&["store", "cat", "--store", &url, &format!("{top}/foo/data")]).must_succeed();
        assert_eq!(
            data.stdout,
            std::fs::read(scene.top.out().join("foo/data")).expect("built"),
            "{release:?}"
        );
        let json = nix(&["store", "ls", "--json", "--store", &url, &format!("{top}/foo/bar")]).must_succeed();
        let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
        assert_eq!((&json["type"], &json["size"]), (&"regular".into(), &0.into()), "{release:?}");
    }
}

#[test]
fn a_path_or_a_file_that_is_not_there_is_said_to_be_missing() {
    for release in Release::all() {
        let scene = Scene::of(&release, Cache::new(&[]), &tree());
        let (url, top) = (scene.cache.ondine.url(), text(scene.top.out()));
        let file = scene.client.run("nix", &["store", "cat", "--store", &url, &format!("{top}/xyzzy")]);
        assert!(file.must_fail().stderr.contains("does not exist"), "{release:?}");
        let unknown = format!("{}/{}-foo", scene.store().store_dir().display(), "9".repeat(32));
        let path = scene.client.run("nix", &["store", "cat", "--store", &url, &format!("{unknown}/foo")]);
        let said = path.must_fail().stderr;
        assert!(said.contains("valid"), "{release:?}: {said}");
    }
}
