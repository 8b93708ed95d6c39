//! Builds on one builder that is named: there and nowhere else, over a restart, too; or the reason why not.

use std::path::Path;
use std::time::Duration;

use crate::support::builder::{note_start, settings};
use crate::support::cache::assert_narinfo;
use crate::support::process::{Finished, run, wait_until};
use crate::support::{Background, Builder, Cache, Client, Derivation, Gate, NixStore, Release, text};

/// Time limit of a change of state: this machine may be very busy.
const SOON: Duration = Duration::from_secs(120);
/// Exit codes, as they are documented.
const FAILURE: i32 = 1;
const REFUSED: i32 = 4;

/// A server with builders, and a laptop.
struct Scene {
    cache: Cache,
    laptop: Client,
    token: String,
}

impl Scene {
    /// With these lines of settings.
    fn new(store: NixStore, lines: &str) -> Scene {
        let file = settings(&store, lines);
        let cache = Cache::of(store, &["--config", &file], &[]);
        let laptop = Client::new(Release::Host, &cache.store.store_dir());
        let token = cache.ondine.new_token("laptop", "read,build,push,admin", &[]);
        Scene { cache, laptop, token }
    }

    fn command(&self, drv: &str, builder: &str, token: &str) -> std::process::Command {
        let (url, arguments) = (self.cache.ondine.url(), ["build", drv, "--on", builder, "--no-link"]);
        self.laptop.ondine_command(&arguments, &[("ONDINE_SERVER", &*url), ("ONDINE_TOKEN", token)])
    }

    fn build_on(&self, drv: &str, builder: &str) -> Finished {
        run(self.command(drv, builder, &self.token))
    }

    /// Drains or resumes a builder.
    fn change(&self, verb: &str, builder: &str) {
        let mut command = self.cache.ondine.command("builders");
        command.args([verb, builder, "--state-dir", text(&self.cache.ondine.state_dir())]);
        run(command).must_succeed();
    }

    fn queue(&self) -> serde_json::Value {
        serde_json::from_slice(&self.cache.http.get("/api/v1/queue").body).expect("the queue is JSON")
    }
}

fn noted(file: &Path) -> Vec<String> {
    std::fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// A derivation that notes where it is built, and waits at a gate.
fn gated(store: &NixStore, starts: &Path, gate: &Gate, name: &str) -> Derivation {
    let script = format!("{}{}echo {name} > $out", note_start(store, starts, name), gate.script(name));
    Derivation::new(name, &script)
}

#[test]
fn what_is_asked_for_is_built_on_the_builder_that_is_named_and_its_inputs_where_they_would_be() {
    let store = NixStore::new(Release::Host);
    let starts = store.folder().join("starts");
    let far = Builder::start(&store, Release::all().last().expect("the host's at least"), "far");
    let drv = |name: &str| {
        Derivation::new(name, &format!("{}cat $input > $out", note_start(&store, &starts, name)))
            .attribute("preferLocalBuild", "true")
            .input("input", &input(&store, &starts))
    };
    let (there, here) = (drv("there"), drv("here"));
    let scene = Scene::new(store, &format!("lanes = 1\n{}", far.table("")));
    for (derivation, builder) in [(&there, "far"), (&here, "local")] {
        let built = scene.build_on(&scene.laptop.instantiate(derivation), builder).must_succeed();
        assert!(scene.laptop.has(Path::new(&built.text())), "{built}");
    }
    assert_eq!(noted(&starts), ["input nobody", "there far", "here nobody"]);
}

fn input(store: &NixStore, starts: &Path) -> Derivation {
    let script = format!("{}echo made > $out", note_start(store, starts, "input"));
    Derivation::new("input", &script).attribute("preferLocalBuild", "true")
}

#[test]
fn a_builder_that_is_unknown_drained_or_unfit_is_refused_with_the_reason_and_so_is_who_may_not() {
    let store = NixStore::new(Release::Host);
    let (starts, gate) = (store.folder().join("starts"), store.gate());
    let one = Builder::start(&store, &Release::Host, "one");
    let two = Builder::start(&store, &Release::Host, "two");
    let (waits, dusty) = (gated(&store, &starts, &gate, "waits"), input(&store, &starts));
    let dusty = dusty.attribute("requiredSystemFeatures", "[ \"moon-dust\" ]");
    let features = two.table("features = ['moon-dust']");
    let scene = Scene::new(store, &format!("lanes = 0\n{}{features}", one.table("")));
    let (waits, dusty) = (scene.laptop.instantiate(&waits), scene.laptop.instantiate(&dusty));

    let unknown = scene.build_on(&dusty, "three").must_fail();
    assert!(unknown.stderr.contains("no builder is called three; there are one, two"), "{unknown}");
    assert_eq!(unknown.status.code(), Some(FAILURE), "{unknown}");

    scene.change("drain", "two");
    let drained = scene.build_on(&dusty, "two").must_fail();
    assert!(drained.stderr.contains("ondine builders resume two"), "{drained}");
    scene.change("resume", "two");

    let unfit = scene.build_on(&dusty, "one").must_fail();
    assert_eq!(unfit.status.code(), Some(REFUSED), "{unfit}");
    assert!(unfit.stderr.contains("the builder one cannot build it: it lacks feature moon-dust"), "{unfit}");
    // Others may, and that one could not is remembered by nobody.
    scene.build_on(&dusty, "two").must_succeed();

    let may_build = scene.cache.ondine.new_token("builder", "read,build,push", &[]);
    let refused = run(scene.command(&waits, "one", &may_build)).must_fail();
    assert_eq!(refused.status.code(), Some(REFUSED), "{refused}");
    assert!(refused.stderr.contains("\"admin\""), "{refused}");

    let asked = Background::start(scene.command(&waits, "one", &scene.token));
    gate.wait_for_starts(1);
    assert_eq!(scene.queue()["requests"][0]["on"], "one");
    let taken = scene.build_on(&waits, "two").must_fail();
    assert_eq!(taken.status.code(), Some(REFUSED), "{taken}");
    assert!(taken.stderr.contains("in the queue already, for the builder one"), "{taken}");
    gate.open();
    asked.finish().must_succeed();
    assert_eq!(noted(&starts), ["input two", "waits one"]);
}

#[test]
fn a_request_for_a_builder_that_is_away_waits_for_it_over_a_restart_though_another_one_is_idle() {
    let store = NixStore::new(Release::Host);
    let starts = store.folder().join("starts");
    let idle = Builder::start(&store, &Release::Host, "idle");
    let mut away = Builder::start(&store, &Release::Host, "away");
    let drv = |name: &str| {
        Derivation::new(name, &format!("{}echo {name} > $out", note_start(&store, &starts, name)))
    };
    let (top, other) = (drv("top"), store.instantiate(&drv("other")));
    let tables = format!("{}{}", idle.table(""), away.table(""));
    away.kill();
    let mut scene = Scene::new(store, &format!("lanes = 0\n{tables}"));
    let drv = scene.laptop.instantiate(&top);
    let asked = Background::start(scene.command(&drv, "away", &scene.token));
    let waits = |scene: &Scene| {
        let queue = scene.queue();
        let stalled = queue["stalled"].as_str().unwrap_or_default().to_owned();
        queue["requests"][0]["on"] == "away" && stalled.contains("builder away")
    };
    wait_until("it waits for its builder", SOON, || waits(&scene));
    scene.cache.ondine.kill9();
    scene.cache.ondine.start_again();
    wait_until("it waits for its builder again", SOON, || waits(&scene));
    // A younger one is not kept waiting.
    assert_narinfo(&scene.cache.ask(other.out()), other.out());
    away.start_again();
    asked.finish().must_succeed();
    assert_eq!(noted(&starts), ["other idle", "top away"]);
    let shown: serde_json::Value =
        serde_json::from_slice(&scene.cache.http.get("/api/v1/builds").body).expect("JSON");
    let on: Vec<&serde_json::Value> =
        shown["ended"].as_array().expect("a list").iter().map(|request| &request["on"]).collect();
    assert_eq!(on, [&serde_json::json!("away"), &serde_json::Value::Null], "{shown}");
}
