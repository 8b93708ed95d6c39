//! `ondine build`: a laptop that may not build has its own expressions built by the server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support;
use crate::support::process::{Finished, run};
use crate::support::{Background, Cache, Client, Derivation, Release, derivations, text, wait_until};

/// Time for what a loaded machine does in a few seconds.
const SOON: Duration = Duration::from_secs(120);

struct Scene {
    cache: Cache,
    token: String,
}

impl Scene {
    fn new(rights: &str) -> Scene {
        let cache = Cache::new(&[]);
        let token = cache.ondine.new_token("laptop", rights, &[]);
        Scene { cache, token }
    }

    /// `ondine` on the laptop, in its home folder.
    fn ondine(&self, laptop: &Client, arguments: &[&str]) -> Finished {
        let url = self.cache.ondine.url();
        let variables = [("ONDINE_SERVER", &*url), ("ONDINE_TOKEN", &*self.token)];
        let mut command = laptop.ondine_command(arguments, &variables);
        command.current_dir(laptop.home());
        run(command)
    }
}

/// Two derivations with a source of their own, as a file in the home folder of the laptop.
fn write_expression(laptop: &Client, name: &str) -> PathBuf {
    let folder = laptop.home().join("project");
    std::fs::create_dir_all(&folder).expect("made");
    std::fs::write(folder.join("source"), format!("the source of {name}\n")).expect("written");
    let below = derivations::text_file(&format!("below-{name}"), "below").attribute("unused", "./source");
    let top = Derivation::new(
        &format!("top-{name}"),
        "mkdir $out; read -r line < $source; echo \"$line\" > $out/line; ln -s $below $out/below; echo d > $doc",
    );
    let top = top.outputs(&["out", "doc"]).input("below", &below).attribute("source", "./source");
    let failing = derivations::failing(&format!("failing-{name}"));
    let file = folder.join("default.nix");
    std::fs::write(&file, format!("{{ top = {}; failing = {}; }}", top.to_nix(), failing.to_nix()))
        .expect("written");
    file
}

#[test]
fn a_laptop_that_may_not_build_has_its_own_expression_built() {
    let scene = Scene::new("read,build,push");
    for release in Release::all() {
        let name = release.name().to_owned();
        let laptop = Client::new(release, &scene.cache.store.store_dir());
        let file = write_expression(&laptop, &name);
        let link = laptop.home().join("outcome");
        let arguments = ["build", "--file", text(&file), "top", "-o", text(&link)];
        let built = scene.ondine(&laptop, &arguments).must_succeed();
        let paths: Vec<PathBuf> = built.text().lines().map(PathBuf::from).collect();
        assert_eq!(paths.len(), 2, "{name}: {built}");
        let out = std::fs::read_link(&link).expect("a symlink to the result");
        assert!(paths.contains(&out) && laptop.has(&out), "{name}: {built}");
        let line = std::fs::read_to_string(laptop.physical(&out).join("line")).expect("the result");
        assert_eq!(line, format!("the source of {name}\n"));
        assert!(laptop.home().join("outcome-doc").is_symlink(), "{name}");
        // The symlinks hold it.
        laptop.run("nix-store", &["--gc"]).must_succeed();
        assert!(laptop.has(&out), "{name}");

        // Again, all is there, and nothing of it is sent or built.
        let json = ["build", "--file", text(&file), "top", "--no-link", "--json"];
        let json: serde_json::Value =
            serde_json::from_str(&scene.ondine(&laptop, &json).must_succeed().text()).expect("JSON");
        assert_eq!(json[0]["outputs"]["out"].as_str().map(Path::new), Some(&*out), "{name}: {json}");
        let drv = json[0]["drvPath"].as_str().expect("the derivation").to_owned();

        let failed = scene.ondine(&laptop, &["build", "--file", text(&file), "failing"]).must_fail();
        assert_eq!(failed.status.code(), Some(1), "{name}: {failed}");
        assert!(failed.stderr.contains("the last words of a failing build"), "{name}: {failed}");
        assert!(drv.ends_with(&format!("-top-{name}.drv")), "{name}: {json}");
    }
}

#[test]
fn a_flake_and_a_derivation_are_built_where_the_release_has_them() {
    let scene = Scene::new("read,build,push");
    for release in Release::all() {
        let name = release.name().to_owned();
        let laptop = Client::new(release, &scene.cache.store.store_dir());
        let folder = laptop.home().join("flake");
        std::fs::create_dir_all(&folder).expect("made");
        let sample = derivations::text_file(&format!("flake-{name}"), "of a flake").system("x86_64-linux");
        let flake = format!("{{ outputs = _: {{ packages.x86_64-linux.sample = {}; }}; }}", sample.to_nix());
        std::fs::write(folder.join("flake.nix"), flake).expect("written");
        let installable = format!("path:{}#sample", folder.display());
        let built = scene.ondine(&laptop, &["build", &installable, "--no-link"]).must_succeed();
        assert!(laptop.has(Path::new(&built.text())), "{name}: {built}");

        let drv = laptop.instantiate(&derivations::text_file(&name, "d"));
        let built = scene.ondine(&laptop, &["build", &drv, "--no-link"]).must_succeed();
        assert!(laptop.has(Path::new(&built.text())), "{name}: {built}");
    }
}

#[test]
fn a_terminal_shows_the_phase_and_the_last_line_of_a_build_while_it_is_waited_for() {
    let scene = Scene::new("read,build,push");
    let laptop = Client::new(Release::Host, &scene.cache.store.store_dir());
    let gate = scene.cache.store.gate();
    let script = format!("echo 'a line of the log'; {}echo made > $out", gate.script("slow"));
    let drv = laptop.instantiate(&Derivation::new("slow", &script));
    let typescript = laptop.home().join("typescript");
    let shown = || std::fs::read(&typescript).map(|text| String::from_utf8_lossy(&text).into_owned());
    let words = format!("{} build {drv} --no-link", support::process::program());
    let (url, token) = (scene.cache.ondine.url(), scene.token.clone());
    let mut command = laptop.command("script", &["-qefc", &words, text(&typescript)]);
    command.envs([("ONDINE_SERVER", &*url), ("ONDINE_TOKEN", &*token), ("TERM", "xterm")]);
    let building = Background::start(command);
    gate.wait_for_starts(1);
    wait_until("the terminal shows the build", SOON, || {
        let shown = shown().unwrap_or_default();
        shown.contains("slow [") && shown.contains("building") && shown.contains("a line of the log")
    });
    gate.open();
    building.finish().must_succeed();
    let shown = shown().expect("what was shown");
    assert!(shown.contains("[1/1]") && shown.contains("slow: built"), "{shown}");
    assert!(
        shown.trim_end().lines().any(|line| line.trim().ends_with("-slow")),
        "the path at the end: {shown}"
    );
}

#[test]
fn who_may_not_push_is_refused_with_the_right_that_is_lacking() {
    let scene = Scene::new("read,build");
    let laptop = Client::new(Release::Host, &scene.cache.store.store_dir());
    let file = write_expression(&laptop, "refused");
    let refused = scene.ondine(&laptop, &["build", "--file", text(&file), "top"]).must_fail();
    assert_eq!(refused.status.code(), Some(4), "{refused}");
    assert!(refused.stderr.contains("push") && !refused.stderr.contains(&scene.token), "{refused}");
    let wrong = scene.ondine(&laptop, &["build", "--file", "/nonexistent.nix"]).must_fail();
    assert_eq!(wrong.status.code(), Some(1), "{wrong}");
}
