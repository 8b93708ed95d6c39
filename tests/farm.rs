//! Builders over ssh: each derivation is built once, on a machine that can build it, and its outputs come
//! back verified and signed, without passing the local Nix store.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support;
use crate::support::builder::{note_start, settings};
use crate::support::cache::{Asked, assert_narinfo};
use crate::support::derivations::{curious_tree, multiple_outputs, noise, text_file};
use crate::support::process::{run, wait_until};
use crate::support::{Builder, Cache, Client, Derivation, Gate, Instantiated, NixStore, Release};

/// Time limit of a change of state: this machine may be very busy.
const SOON: Duration = Duration::from_secs(120);

/// A server of a store, with these lines of settings.
#[track_caller]
fn serve(store: NixStore, lines: &str) -> Cache {
    let file = settings(&store, lines);
    Cache::of(store, &["--config", &file], &[])
}

/// The lines that builds have noted.
fn noted(file: &Path) -> Vec<String> {
    std::fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// The builders as the API shows them.
#[track_caller]
fn builders(cache: &Cache) -> Vec<serde_json::Value> {
    let answer = cache.http.get("/api/v1/builders");
    serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error}: {}", answer.text()))
}

/// Waits until a builder has this state.
#[track_caller]
fn wait_for_state(cache: &Cache, name: &str, state: &str) {
    wait_until(&format!("builder {name} is {state}"), SOON, || {
        builders(cache).iter().any(|builder| builder["name"] == name && builder["state"] == state)
    });
}

/// Drains or resumes a builder.
#[track_caller]
fn change(cache: &Cache, verb: &str, name: &str) {
    let mut command = cache.ondine.command("builders");
    command.args([verb, name, "--state-dir", support::text(&cache.ondine.state_dir())]);
    run(command).must_succeed();
}

/// A derivation that notes where it is built, waits at a gate, and makes a file.
fn gated(store: &NixStore, starts: &Path, gate: &Gate, name: &str) -> Derivation {
    let script = format!("{}{}echo {name} > $out", note_start(store, starts, name), gate.script(name));
    Derivation::new(name, &script)
}

#[test]
fn a_closure_is_built_elsewhere_and_served_without_passing_the_local_store() {
    for release in Release::all() {
        let store = NixStore::new(Release::Host);
        let starts = store.folder().join("starts");
        let builder = Builder::start(&store, &release, "far");
        let script = format!("{}ln -s $dev $out", note_start(&store, &starts, "top"));
        let top = Derivation::new("top", &script)
            .input_output("dev", &multiple_outputs("several"), "dev")
            .input("tree", &curious_tree("tree"));
        let top = store.instantiate(&top);
        let cache = serve(store, &format!("lanes = 0\n{}", builder.table("")));
        let answer = cache.ask(top.out());
        assert_narinfo(&answer, top.out());
        assert!(!cache.store.is_valid(top.out()), "{}: it was built here", release.name());
        assert!(builder.own_place(top.out()).symlink_metadata().is_ok());
        assert_eq!(noted(&starts), ["top far"], "{}", release.name());
        let client = Client::new(Release::Host, &cache.store.store_dir());
        client.copy(&cache.ondine.substituter(), &[top.out()]).must_succeed();
    }
}

#[test]
fn what_prefers_the_local_machine_is_built_there_from_what_others_have_built() {
    let store = NixStore::new(Release::Host);
    let starts = store.folder().join("starts");
    let builder = Builder::start(&store, &Release::Host, "far");
    let script = format!("{}echo far > $out", note_start(&store, &starts, "input"));
    let input = Derivation::new("input", &script).attribute("requiredSystemFeatures", "[ \"moon-dust\" ]");
    let script = format!("{}cat $input > $out", note_start(&store, &starts, "top"));
    let top = Derivation::new("top", &script).attribute("preferLocalBuild", "true").input("input", &input);
    let top = store.instantiate(&top);
    let cache = serve(store, &builder.table("features = ['moon-dust']"));
    assert_narinfo(&cache.ask(top.out()), top.out());
    assert_eq!(noted(&starts), ["input far", "top nobody"]);
}

#[test]
fn a_build_that_fails_elsewhere_has_failed_and_its_log_is_here() {
    let store = NixStore::new(Release::Host);
    let starts = store.folder().join("starts");
    let (one, two) =
        (Builder::start(&store, &Release::Host, "one"), Builder::start(&store, &Release::Host, "two"));
    let script = format!("{}echo 'famous last words'\nexit 3", note_start(&store, &starts, "wrong"));
    let wrong = store.instantiate(&Derivation::new("wrong", &script));
    let cache = serve(store, &format!("lanes = 0\n{}{}", one.table(""), two.table("")));
    let answer = cache.ask(wrong.out());
    assert_eq!(answer.status, 404, "{}", answer.text());
    assert!(answer.text().contains("exit code 3"), "{}", answer.text());
    assert_eq!(noted(&starts).len(), 1, "it is built once");
    let drv = wrong.drv.file_name().expect("a name").to_string_lossy().into_owned();
    let log = cache.http.get(&format!("/log/{drv}"));
    assert!(log.text().contains("famous last words"), "{}", log.text());
}

#[test]
fn sixty_derivations_over_three_builders_start_in_the_order_of_their_requests() {
    let releases = Release::all();
    let store = NixStore::new(Release::Host);
    let starts = store.folder().join("starts");
    let machines: Vec<Builder> = (0..3)
        .map(|number| Builder::start(&store, &releases[number % releases.len()], &format!("m{number}")))
        .collect();
    let tables: String = machines.iter().map(|machine| machine.table("")).collect();
    let note = |name: &str| note_start(&store, &starts, name);
    let requests: Vec<Instantiated> = (0..12)
        .map(|request| {
            let mut top = Derivation::new(&format!("top-{request}"), "echo $a $b $c $d > $out");
            for input in ["a", "b", "c", "d"] {
                let name = format!("{request}-{input}");
                let script = format!("{}sleep 0.3\necho {name} > $out", note(&name));
                top = top.input(input, &Derivation::new(&name, &script));
            }
            store.instantiate(&top)
        })
        .collect();
    let gate = store.gate();
    let mut first = Derivation::new("first", "echo $a $b $c > $out");
    for name in ["a", "b", "c"] {
        let script = format!("{}echo {name} > $out", gate.script(name));
        first = first.input(name, &Derivation::new(&format!("first-{name}"), &script));
    }
    let first = store.instantiate(&first);
    let cache = serve(store, &format!("lanes = 0\n{tables}"));
    // All of them stand in line while every machine is busy.
    let mut asked: Vec<Asked> = vec![cache.ask_in_background(first.out())];
    gate.wait_for_starts(3);
    for (before, request) in requests.iter().enumerate() {
        asked.push(cache.ask_in_background(request.out()));
        wait_until("it stands in line", SOON, || cache.queued().len() == before + 2);
    }
    gate.open();
    for (answer, out) in asked.into_iter().zip(std::iter::once(&first).chain(&requests)) {
        assert_narinfo(&answer.answer(), out.out());
    }
    let lines = noted(&starts);
    let names: Vec<&str> = lines.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names.len(), 48, "each is built once: {lines:?}");
    let order: Vec<usize> = names
        .iter()
        .map(|name| name.split('-').next().and_then(|n| n.parse().ok()).expect("a number"))
        .collect();
    for (at, request) in order.iter().enumerate() {
        // The starts of the other two machines may be noted a moment later.
        let overtaken = order[at + 1..].iter().filter(|later| *later < request).count();
        assert!(
            overtaken <= 2,
            "{overtaken} derivations of older requests start after {}: {lines:?}",
            names[at]
        );
    }
    for machine in ["m0", "m1", "m2"] {
        let built = lines.iter().filter(|line| line.ends_with(machine)).count();
        assert!(built >= 8, "{machine} has built {built} of 48");
    }
}

/// Two machines; the one that begins a build gets into `trouble`, and the other one ends it.
#[track_caller]
fn elsewhere(more: &str, trouble: impl Fn(&mut Builder), back: impl Fn(&mut Builder)) {
    let store = NixStore::new(Release::Host);
    let (starts, gate) = (store.folder().join("starts"), store.gate());
    let mut machines = [
        Builder::start(&store, &Release::Host, "one"),
        Builder::start(&store, Release::all().last().expect("the host's at least"), "two"),
    ];
    let tables: String = machines.iter().map(|machine| machine.table(more)).collect();
    let hit = store.instantiate(&gated(&store, &starts, &gate, "hit"));
    let later = store.instantiate(&text_file("later", "built by either"));
    let cache = serve(store, &format!("lanes = 0\n{tables}"));
    wait_for_state(&cache, "one", "up");
    wait_for_state(&cache, "two", "up");
    let asked = cache.ask_in_background(hit.out());
    gate.wait_for_starts(1);
    let first = noted(&starts)[0].clone();
    let (name, other) = if first.ends_with("one") { ("one", "two") } else { ("two", "one") };
    let at = usize::from(name == "two");
    trouble(&mut machines[at]);
    // It begins elsewhere while the gate is closed still.
    gate.wait_for_starts(2);
    assert_eq!(noted(&starts)[1], format!("hit {other}"));
    gate.open();
    assert_narinfo(&asked.answer(), hit.out());
    back(&mut machines[at]);
    wait_for_state(&cache, name, "up");
    assert_narinfo(&cache.ask(later.out()), later.out());
    assert_eq!(noted(&starts).len(), 2);
    let lost = builders(&cache).into_iter().find(|builder| builder["name"] == name).expect("it is listed");
    assert_eq!((&lost["lost"], lost["last_error"].is_string()), (&serde_json::json!(1), true), "{lost}");
}

#[test]
fn a_builder_that_is_killed_loses_its_build_to_another_and_comes_back() {
    elsewhere("", Builder::kill, Builder::start_again);
}

#[test]
fn a_builder_that_answers_no_more_loses_its_build_to_another() {
    elsewhere("", |builder| builder.freeze(), |builder| builder.thaw());
}

#[test]
fn a_builder_whose_nix_hangs_loses_its_build_to_another() {
    elsewhere("max-silent = '5s'", |builder| builder.freeze_nix(), |builder| builder.thaw());
}

#[test]
fn a_builder_with_a_full_disk_loses_its_builds_to_another() {
    let store = NixStore::new(Release::Host);
    let starts = store.folder().join("starts");
    let full = Builder::with_disk(&store, &Release::Host, "full", Some("size=4m"));
    let roomy = Builder::start(&store, &Release::Host, "roomy");
    let names = ["a", "b", "c", "d"];
    let made = names.map(|name| {
        let script = format!("{}head -c 3000000 /dev/urandom > $out", note_start(&store, &starts, name));
        store.instantiate(&Derivation::new(name, &script))
    });
    let cache = serve(store, &format!("lanes = 0\n{}{}", full.table(""), roomy.table("")));
    full.disk().fill();
    let asked = made.each_ref().map(|made| cache.ask_in_background(made.out()));
    for (asked, made) in asked.into_iter().zip(&made) {
        assert_narinfo(&asked.answer(), made.out());
    }
    let lines = noted(&starts);
    for name in names {
        assert!(lines.contains(&format!("{name} roomy")), "{lines:?}");
    }
}

#[test]
fn those_who_wait_for_a_builder_that_is_away_are_told_why_in_the_words_of_ssh() {
    let store = NixStore::new(Release::Host);
    let mut builder = Builder::start(&store, &Release::Host, "away");
    builder.kill();
    let waits = store.instantiate(&text_file("waits", "for its builder"));
    let cache = serve(store, &format!("lanes = 0\n{}", builder.table("")));
    let asked = cache.ask_in_background(waits.out());
    let mut stalled = String::new();
    wait_until("it is told why", SOON, || {
        let queue = cache.http.get("/api/v1/queue");
        let queue: serde_json::Value = serde_json::from_slice(&queue.body).expect("the queue is JSON");
        stalled = queue["stalled"].as_str().unwrap_or_default().to_owned();
        stalled.contains("builder away") && stalled.contains("Connection refused")
    });
    builder.start_again();
    assert_narinfo(&asked.answer(), waits.out());
}

#[test]
fn a_server_that_is_killed_goes_on_with_what_its_builders_were_at() {
    let store = NixStore::new(Release::Host);
    let (starts, gate) = (store.folder().join("starts"), store.gate());
    let builder = Builder::start(&store, &Release::Host, "far");
    let input = Derivation::new("input", &format!("{}echo > $out", note_start(&store, &starts, "input")));
    let top = gated(&store, &starts, &gate, "top").input("input", &input);
    let top = store.instantiate(&top);
    let mut cache = serve(store, &format!("lanes = 0\n{}", builder.table("")));
    let asked = cache.ask_in_background(top.out());
    gate.wait_for_starts(1);
    cache.ondine.kill9();
    drop(asked);
    gate.open();
    cache.ondine.start_again();
    // Nobody asks again, and it is built all the same.
    wait_until("it is built", SOON, || {
        cache.http.get(&format!("/cached{}", support::addresses::narinfo_address(top.out()))).status == 200
    });
    let inputs = noted(&starts).iter().filter(|line| line.starts_with("input")).count();
    assert_eq!(inputs, 1, "what was built is not built again");
}

#[test]
fn what_a_builder_has_built_for_a_server_that_was_killed_is_taken_from_there() {
    let store = NixStore::new(Release::Host);
    let (starts, gate) = (store.folder().join("starts"), store.gate());
    let first = Builder::start(&store, &Release::Host, "first");
    let other = Builder::start(&store, &Release::Host, "other");
    let top = store.instantiate(&gated(&store, &starts, &gate, "top"));
    let exported = store.folder().join("exported");
    let export = format!("nix-store --export {} > {}", top.drv.display(), exported.display());
    run(store.command("sh", &["-c", &export])).must_succeed();
    let tables = format!("{}{}", first.table("weight = 2"), other.table(""));
    let mut cache = serve(store, &format!("lanes = 0\n{tables}"));
    for name in ["first", "other"] {
        wait_for_state(&cache, name, "up");
    }
    let asked = cache.ask_in_background(top.out());
    gate.wait_for_starts(1);
    cache.ondine.kill9();
    drop(asked);
    gate.open();
    // As if it had come to its end there in the moment of the kill.
    let import = format!("nix-store --import < {}", exported.display());
    run(other.nix_command("sh", &["-c", &import])).must_succeed();
    run(other.nix_command("nix-store", &["--realise", support::text(&top.drv)])).must_succeed();
    cache.ondine.start_again();
    wait_until("it is served", SOON, || {
        cache.http.get(&format!("/cached{}", support::addresses::narinfo_address(top.out()))).status == 200
    });
    assert_eq!(noted(&starts), ["top first", "top other"], "it is not built again");
    wait_until("the server tells of it", SOON, || {
        cache.ondine.log().contains("built before the server was started")
    });
}

#[test]
fn a_large_input_is_fetched_by_the_builder_where_it_may_and_copied_where_it_cannot() {
    let store = NixStore::new(Release::Host);
    let able = Builder::start(&store, Release::all().last().expect("the host's at least"), "able");
    let unable = Builder::start(&store, &Release::Host, "unable");
    let input_drv = noise("input", 3_000_000).attribute("preferLocalBuild", "true");
    let input = store.instantiate(&input_drv);
    let drv = |name: &str| {
        let top = Derivation::new(name, "read -rn 10 start < $input || :\necho $input > $out");
        store.instantiate(
            &top.input("input", &input_drv).attribute("requiredSystemFeatures", "[ \"moon-dust\" ]"),
        )
    };
    let (by_able, by_unable) = (drv("by-able"), drv("by-unable"));
    // Built here, and served. The server keeps its address over a restart.
    let mut cache = serve(store, &able.table(""));
    assert_narinfo(&cache.ask(input.out()), input.out());
    let lines = format!(
        "{}{}",
        able.table(&format!("features = ['moon-dust']\nweight = 2\ncache-url = '{}'", cache.ondine.url())),
        unable.table("features = ['moon-dust']\ncache-url = 'http://127.0.0.1:1'")
    );
    settings(&cache.store, &lines);
    cache.ondine.kill9();
    cache.ondine.start_again();
    for name in ["able", "unable"] {
        wait_for_state(&cache, name, "up");
    }
    assert_narinfo(&cache.ask(by_able.out()), by_able.out());
    assert!(able.has(input.out()));
    let fetched = || cache.ondine.log().contains("a builder has fetched inputs");
    assert!(fetched(), "{}", cache.ondine.log());
    change(&cache, "drain", "able");
    assert_narinfo(&cache.ask(by_unable.out()), by_unable.out());
    assert!(unable.has(input.out()), "it was copied");
}

#[test]
fn a_builder_that_fails_what_another_one_builds_is_told_and_another_one_is_tried() {
    let store = NixStore::new(Release::Host);
    let starts = store.folder().join("starts");
    let (one, two) =
        (Builder::start(&store, &Release::Host, "one"), Builder::start(&store, &Release::Host, "two"));
    let script = format!(
        "{}read -r machine < {}/machine || :\nif [ $machine = one ]; then exit 3; fi\necho made > $out",
        note_start(&store, &starts, "fussy"),
        store.folder().display()
    );
    let fussy = store.instantiate(&Derivation::new("fussy", &script));
    let tables = format!("{}{}", one.table("weight = 2"), two.table(""));
    let cache = serve(store, &format!("lanes = 0\n{tables}"));
    for name in ["one", "two"] {
        wait_for_state(&cache, name, "up");
    }
    assert_eq!(cache.ask(fussy.out()).status, 404);
    let mut retry = cache.ondine.command("retry");
    let state_dir = cache.ondine.state_dir();
    retry.args([support::text(&fussy.drv), "--state-dir", support::text(&state_dir)]);
    run(retry).must_succeed();
    assert_narinfo(&cache.ask(fussy.out()), fussy.out());
    assert_eq!(noted(&starts), ["fussy one", "fussy two"]);
    for builder in builders(&cache) {
        assert_eq!(builder["disagreements"], 1, "{builder}");
        let told = builder["last_disagreement"].as_str().unwrap_or_default();
        assert!(told.ends_with("-fussy.drv failed on one, and was built on two"), "{builder}");
    }
    assert!(cache.ondine.log().contains("two builders disagree"));
}

#[test]
fn what_is_built_on_two_machines_is_compared_and_what_was_first_is_served() {
    let store = NixStore::new(Release::Host);
    let starts = store.folder().join("starts");
    let (one, two) =
        (Builder::start(&store, &Release::Host, "one"), Builder::start(&store, &Release::Host, "two"));
    let drv = |name: &str, what: &str| {
        let script = format!("{}echo {what} > $out", note_start(&store, &starts, name));
        store.instantiate(&Derivation::new(name, &script))
    };
    let (steady, whim) = (drv("steady", "always"), drv("whim", "$RANDOM $RANDOM"));
    let cache = serve(store, &format!("lanes = 0\nrepeat = 2\n{}{}", one.table(""), two.table("")));
    for (made, same) in [(steady, true), (whim, false)] {
        let hash = cache.narinfo(made.out());
        let mut path = serde_json::Value::Null;
        wait_until("it is compared", SOON, || {
            let name = support::addresses::base_name(made.out());
            let answer = cache.http.get(&format!("/api/v1/paths/{}", &name[..32]));
            path = serde_json::from_slice(&answer.body).expect("JSON");
            path["comparison"].is_object()
        });
        assert_eq!(path["comparison"]["same"], same, "{path}");
        let other = path["comparison"]["upstream"].as_str().unwrap_or_default();
        assert!(other == "builder one" || other == "builder two", "{path}");
        let field = |narinfo: &str| support::addresses::field(narinfo, "NarHash").to_owned();
        assert_eq!(field(&cache.narinfo(made.out())), field(&hash), "what was first is served");
    }
    assert_eq!(noted(&starts).len(), 4, "each is built twice: {:?}", noted(&starts));
}

#[test]
fn a_drained_builder_is_drained_after_a_restart_too() {
    let store = NixStore::new(Release::Host);
    let builder = Builder::start(&store, &Release::Host, "far");
    let mut cache = serve(store, &builder.table(""));
    change(&cache, "drain", "far");
    cache.ondine.kill9();
    cache.ondine.start_again();
    wait_for_state(&cache, "far", "drained");
    change(&cache, "resume", "far");
    cache.ondine.kill9();
    cache.ondine.start_again();
    wait_for_state(&cache, "far", "up");
}

#[test]
fn machines_in_nixs_syntax_build_and_are_drained_and_resumed() {
    let store = NixStore::new(Release::Host);
    let starts = store.folder().join("starts");
    let builder = Builder::start(&store, &Release::Host, "far");
    let system = store.nix(&["eval", "--raw", "--impure", "--expr", "builtins.currentSystem"]);
    let machines: PathBuf = store.folder().join("machines");
    std::fs::write(&machines, builder.line(&system, 2)).expect("the folder of a test can be written to");
    let drv = |name: &str| {
        let script = format!("{}echo {name} > $out", note_start(&store, &starts, name));
        store.instantiate(&Derivation::new(name, &script))
    };
    let (first, second) = (drv("first"), drv("second"));
    let cache = serve(store, &format!("lanes = 1\nbuilders = '@{}'\n", machines.display()));
    let control = |arguments: &[&str]| {
        let mut command = cache.ondine.command("builders");
        command.args(arguments).args(["--state-dir", support::text(&cache.ondine.state_dir())]);
        run(command)
    };
    control(&["drain", "local"]).must_succeed();
    assert!(control(&["drain", "nobody"]).must_fail().stderr.contains("no builder is called nobody"));
    assert_narinfo(&cache.ask(first.out()), first.out());
    let table = control(&[]).must_succeed().text();
    assert!(table.contains("drained") && table.contains("127.0.0.1"), "{table}");
    control(&["resume", "local"]).must_succeed();
    control(&["drain", "127.0.0.1"]).must_succeed();
    assert_narinfo(&cache.ask(second.out()), second.out());
    assert_eq!(noted(&starts), ["first far", "second nobody"]);
    let metrics = cache.http.get("/metrics").text();
    let line = "ondine_builder_builds_total{builder=\"127.0.0.1\",outcome=\"built\"} 1";
    assert!(metrics.contains(line), "{metrics}");
}
