//! Package sets with nix-eval-jobs, where it is on the server's PATH: what a walk finds is found, and
//! whatever goes wrong with it, a walk takes its place. Where a release has none, the program is a script
//! that evaluates with the real Nix.

use std::time::Duration;

use crate::support::package_set::{
    EATS, LOOPS, PRINTS, api, must_be_had, refresh, small, wait_for_generation,
};
use crate::support::programs::{EVAL_JOBS, install, install_eval_jobs, path, remove};
use crate::support::{Http, NixStore, Ondine, PackageSet, Release, derivations, process, text, wait_until};

const PROGRAM: &str = "nix-eval-jobs";
const LIMITS: &str = "attribute-timeout = '10s'\nmax-memory-bytes = 536870912";
/// Said when it evaluates.
const EVALUATING: &str = "evaluating with nix-eval-jobs";
/// Said when a walk takes its place.
const AGAIN: &str = "evaluating again with nix-instantiate";

fn serve(store: &NixStore, set: &PackageSet) -> Ondine {
    let settings = set.settings("build-from = ['catalogue']", LIMITS);
    Ondine::start_with(store, &["--config", text(&settings)], &[("PATH", &path(store))])
}

/// An attribute's derivation, and where it failed.
fn looked_up(ondine: &Ondine, attribute: &str) -> serde_json::Value {
    let told = Http::new(&ondine.url()).get(&format!("/api/v1/catalogue/pkgs/{attribute}")).text();
    serde_json::from_str(&told).unwrap_or_else(|error| panic!("{attribute}: {error}: {told}"))
}

/// The errors of the set: attributes, and what is the matter with each.
fn errors(ondine: &Ondine) -> Vec<(String, String)> {
    let told = api(ondine);
    let field = |error: &serde_json::Value, name: &str| error[name].as_str().expect("a text").to_owned();
    let errors = told["errors"].as_array().expect("a list").iter();
    errors.map(|error| (field(error, "attribute"), field(error, "error"))).collect()
}

fn count(ondine: &Ondine, words: &str) -> usize {
    ondine.log().matches(words).count()
}

#[test]
fn it_finds_what_a_walk_finds_with_all_that_may_be_wrong() {
    for release in Release::all() {
        let store = NixStore::new(release);
        let name = store.release().name();
        let _daemon = store.daemon();
        let thing = |name: &str| derivations::text_file(name, name).to_nix();
        let built =
            "import (derivation { name = \"i\"; system = builtins.currentSystem; builder = \"/bin/sh\"; })";
        let odd = format!(
            "{{ recurseForDerivations = true; \"x.y\" = {}; \"2048\" = {}; \"a%2Eb\" = {}; \"q\\\"\" = {}; \"s p\" = {}; t = {}; }}",
            thing("dot"),
            thing("number"),
            thing("percent"),
            thing("quote"),
            thing("space"),
            "throw \"words of odd.t\""
        );
        let deep = format!(
            "{{ recurseForDerivations = true; b = {{ recurseForDerivations = true; c = {}; }}; }}",
            thing("deep")
        );
        let set = PackageSet::new([
            ("a".to_owned(), "abort \"words of a\"".to_owned()),
            ("deep".to_owned(), deep),
            ("eats".to_owned(), EATS.to_owned()),
            ("function".to_owned(), format!("{{ x ? 1 }}: {}", thing("function"))),
            ("hidden".to_owned(), format!("{{ h = {}; }}", thing("hidden"))),
            ("i".to_owned(), built.to_owned()),
            ("l".to_owned(), "let l = l; in l".to_owned()),
            (
                "loops".to_owned(),
                format!("{{ recurseForDerivations = true; l = {LOOPS}; z = {}; }}", thing("after")),
            ),
            ("m".to_owned(), "(1 + \"m\")".to_owned()),
            ("odd".to_owned(), odd),
            ("prints".to_owned(), PRINTS.to_owned()),
            ("r".to_owned(), "builtins.readFile \"/etc/hostname\"".to_owned()),
            small("s"),
            ("t".to_owned(), "throw \"words of t\"".to_owned()),
        ]);
        let ondine = serve(&store, &set);
        wait_for_generation(&ondine);
        let attributes = [
            "deep.b.c",
            "loops.z",
            "odd.\"x.y\"",
            "odd.2048",
            "odd.a%252Eb",
            "odd.\"q%5C%22\"",
            "odd.s%20p",
            "s",
        ];
        let known = |ondine: &Ondine| {
            let drv = |attribute| looked_up(ondine, attribute)["derivation"].as_str().map(str::to_owned);
            (api(ondine)["generations"][0]["attributes"].clone(), attributes.map(drv))
        };
        let (walked, walk_errors) = (known(&ondine), errors(&ondine));
        assert_eq!(walked.0, attributes.len(), "{name}: {:#}", api(&ondine));
        assert!(walked.1.iter().all(Option::is_some), "{name}: {walked:?}");
        install_eval_jobs(&store);
        refresh(&ondine).must_succeed();
        assert_eq!((count(&ondine, EVALUATING), count(&ondine, AGAIN)), (1, 0), "{name}: {}", ondine.log());
        assert_eq!(known(&ondine), walked, "{name}");
        let job_errors = errors(&ondine);
        let names = |errors: &[(String, String)]| -> Vec<String> {
            errors.iter().map(|(attribute, _)| attribute.clone()).collect()
        };
        assert_eq!(names(&job_errors), names(&walk_errors), "{name}");
        for (attribute, word) in [
            ("a", "words of a"),
            ("eats", "memory"),
            ("i", "allow-import-from-derivation"),
            ("l", "infinite recursion"),
            ("loops.l", "attribute-timeout"),
            ("odd.t", "words of odd.t"),
            ("prints", "32 MiB"),
            ("r", "restricted mode"),
            ("t", "words of t"),
        ] {
            for errors in [&job_errors, &walk_errors] {
                let error = errors.iter().find(|error| error.0 == attribute);
                assert!(
                    error.is_some_and(|error| error.1.contains(word)),
                    "{name}: {attribute}: {errors:#?}"
                );
            }
        }
        set.wait_until_nothing_evaluates();
    }
}

#[test]
fn it_makes_the_generation_that_a_walk_makes_in_whatever_order() {
    for release in Release::all() {
        let store = NixStore::new(release);
        let _daemon = store.daemon();
        let nested = format!("{{ recurseForDerivations = true; n = {}; }}", small("n").1);
        let set = PackageSet::new([
            small("a"),
            ("b".to_owned(), nested),
            small("c"),
            ("d".to_owned(), "1".to_owned()),
        ]);
        let ondine = serve(&store, &set);
        wait_for_generation(&ondine);
        install_eval_jobs(&store);
        let text = refresh(&ondine).must_succeed().text();
        assert!(text.contains("nothing changed: 3 attributes"), "{}: {text}", store.release().name());
        set.write_text(&format!("{{ z = {}; }}", small("z").1));
        refresh(&ondine).must_succeed();
        remove(&store, PROGRAM);
        let text = refresh(&ondine).must_succeed().text();
        assert!(text.contains("nothing changed: 1 attributes"), "{}: {text}", store.release().name());
        assert_eq!((count(&ondine, EVALUATING), count(&ondine, AGAIN)), (2, 0));
        store.gc();
        must_be_had(&ondine, &set.paths(&store, "z").1);
    }
}

#[test]
fn whatever_goes_wrong_with_it_a_walk_takes_its_place() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let mut set = PackageSet::new([small("a"), small("b"), small("c")]);
    let ondine = serve(&store, &set);
    wait_for_generation(&ondine);
    install(&store, "whole", EVAL_JOBS);
    let whole = "\"${0%/*}/whole\"";
    let faults = [
        ("echo 'this is no JSON'".to_owned(), "makes no sense"),
        (format!("{whole} \"$@\" | sed '$s/...$//'"), "makes no sense"),
        (
            "echo '{\"attr\":\"x\",\"attrPath\":[\"x\"],\"drvPath\":\"/x.drv\"}'".to_owned(),
            "not an attribute of this set",
        ),
        (format!("{whole} \"$@\" 2>/dev/null | head -n 2; kill -s SEGV $$"), "nix-eval-jobs failed"),
        (format!("{whole} \"$@\" | head -n 1; exit 1"), "nix-eval-jobs"),
        ("exit 0".to_owned(), "came to no attribute"),
        ("echo \"error: unrecognised flag '--workers'\" >&2; exit 1".to_owned(), "unrecognised flag"),
        ("printf 'error: %s\\n' first last >&2; exit 1".to_owned(), "nix-eval-jobs failed: error: last"),
        ("exec sleep 1000".to_owned(), "attribute-timeout"),
        ("exec yes \"$(printf %99999s)\" >&2".to_owned(), "32 MiB"),
        // As releases before 2.28 do.
        (format!("exec {whole} \"$@\" --option restrict-eval false"), "does not heed restrict-eval"),
    ];
    for (number, (fault, words)) in faults.iter().enumerate() {
        install(&store, PROGRAM, fault);
        let name = format!("n{number}");
        set.attributes.extend([small(&name)]);
        set.write();
        refresh(&ondine).must_succeed();
        let log = ondine.log();
        let warnings: Vec<&str> = log.lines().filter(|line| line.contains(AGAIN)).collect();
        assert_eq!(warnings.len(), number + 1, "{fault}: {log}");
        assert!(warnings[number].contains(words), "{fault}: {}", warnings[number]);
        assert_eq!(api(&ondine)["generations"][0]["attributes"], 4 + number);
        must_be_had(&ondine, &set.paths(&store, &name).1);
    }
    set.wait_until_nothing_evaluates();
    // Where a walk fails, too, what was known goes on.
    let (_, out) = set.paths(&store, "a");
    set.write_text("{ a = ");
    let failed = refresh(&ondine).must_fail().text();
    assert!(failed.contains("unexpected end of file"), "{failed}");
    store.gc();
    must_be_had(&ondine, &out);
}

#[test]
fn a_set_that_brings_it_down_again_and_again_is_left_to_a_walk() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let dies = |number| (format!("dies{number}"), "throw \"dies\"".to_owned());
    let set = PackageSet::new((0..4).map(dies).chain([small("a"), small("z")]));
    // As where an attribute kills its worker: nothing is told of it but that it was begun.
    let dying = "printf '%s\\n' \"$printed\"\n        exit\n";
    assert!(EVAL_JOBS.contains(dying));
    install(&store, PROGRAM, &EVAL_JOBS.replace(dying, "echo 'error: killed' >&2\n        exit 1\n"));
    let ondine = serve(&store, &set);
    wait_for_generation(&ondine);
    let log = ondine.log();
    assert!(log.contains(AGAIN) && log.contains("dies0, dies1, dies2, dies3"), "{log}");
    let told = api(&ondine);
    assert_eq!((&told["generations"][0]["attributes"], errors(&ondine).len()), (&2.into(), 4), "{told:#}");
    // One less, and what is left is walked.
    set.write_text(&format!(
        "{{ d1 = throw \"1\"; d2 = throw \"2\"; d3 = throw \"3\"; y = {}; }}",
        small("y").1
    ));
    refresh(&ondine).must_succeed();
    assert_eq!((count(&ondine, EVALUATING), count(&ondine, AGAIN)), (2, 1), "{}", ondine.log());
    let told = api(&ondine);
    assert_eq!((&told["generations"][0]["attributes"], errors(&ondine).len()), (&1.into(), 3), "{told:#}");
}

#[test]
fn a_server_killed_while_it_evaluates_leaves_nothing_of_it() {
    for release in Release::all() {
        let store = NixStore::new(release);
        let _daemon = store.daemon();
        let set = PackageSet::new([small("a"), ("loops".to_owned(), LOOPS.to_owned())]);
        install_eval_jobs(&store);
        let mut ondine = serve(&store, &set);
        wait_until("the loop is reached", Duration::from_secs(30), || {
            process::runs(text(&set.file()))
                && api(&ondine)["state"].as_str().is_some_and(|state| state.contains("1 attributes"))
        });
        ondine.kill9();
        set.wait_until_nothing_evaluates();
    }
}
