//! Denials of a package set: a derivation is denied under all of its names, however the set is evaluated and
//! by whatever name it is reached, and names that people make up leave nothing behind. Real evaluations and a
//! real daemon.

use crate::support::addresses::narinfo_address;
use crate::support::package_set::{api, get, must_be_had, refresh, small, told, wait_for_generation};
use crate::support::programs::{install_eval_jobs, path};
use crate::support::{NixStore, Ondine, PackageSet, Release, derivations, text};

const CATALOGUE_ONLY: &str = "build-from = ['catalogue']";
/// As in a folder of packages that knows itself.
const DENY: &str = "deny = ['secret', 'nested.hidden', 'wild-*', 'part*.deep', '*-unfree-*', '\"sp ace\"']";

/// A set with denied attributes, and others that lead to the same derivations.
fn set() -> PackageSet {
    let set = PackageSet::new([]);
    let thing = |name: &str| small(name).1;
    set.write_text(&format!(
        "let self = {{\n\
         alias = self.secret;\n\
         fine = {};\n\
         nested = {{ recurseForDerivations = true; hidden = {}; open = {}; again = self.\"sp ace\"; }};\n\
         other = self.nested.hidden // {{ name = \"harmless\"; }};\n\
         parts = {{ recurseForDerivations = true; deep = {}; }};\n\
         pkgs = self;\n\
         renamed = {} // {{ name = \"harmless\"; }};\n\
         secret = {};\n\
         \"sp ace\" = {};\n\
         throws = throw \"words of throws\";\n\
         wild-one = {};\n\
         wrapped = {{ recurseForDerivations = true; one = self.wild-one; }};\n\
         }}; in self",
        thing("fine"),
        thing("hidden-thing"),
        thing("open"),
        thing("deep-thing"),
        thing("x-unfree-1"),
        thing("secret-thing"),
        thing("space"),
        thing("wild-thing"),
    ));
    set
}

/// Refused by every one of these names, and then by hash, too.
#[track_caller]
fn assert_denied(store: &NixStore, set: &PackageSet, ondine: &Ondine, names: &[&str]) {
    for name in names {
        let nix = name.replace("%22", "\"").replace("%20", " ");
        let (_, out) = set.paths(store, &nix);
        assert_eq!(told(ondine, name)["denied"], true, "{name}");
        for address in [format!("/get/pkgs/{name}"), narinfo_address(&out)] {
            let answer = get(ondine, &address);
            let is_denied = answer.status == 404 && answer.text().contains("the package set pkgs denies");
            assert!(is_denied, "{name}: {address}: {}", answer.text());
        }
        assert!(!store.is_valid(&out), "{name} was built");
    }
}

#[test]
fn what_is_denied_is_so_under_every_name_that_a_walk_finds() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let set = set();
    let settings = set.settings(CATALOGUE_ONLY, DENY);
    let ondine = Ondine::start_with(&store, &["--config", text(&settings)], &[("PATH", &path(&store))]);
    wait_for_generation(&ondine);
    let names = [
        "alias",
        "nested.again",
        "nested.hidden",
        "other",
        "parts.deep",
        "renamed",
        "secret",
        "%22sp%20ace%22",
        "wild-one",
        "wrapped.one",
    ];
    assert_eq!(api(&ondine)["generations"][0]["denied"], names.len(), "{:#}", api(&ondine));
    assert_denied(&store, &set, &ondine, &names);
    install_eval_jobs(&store);
    refresh(&ondine).must_succeed();
    assert!(ondine.log().contains("evaluating with nix-eval-jobs"), "{}", ondine.log());
    assert_denied(&store, &set, &ondine, &names);
    for name in ["fine", "nested.open"] {
        assert_eq!(told(&ondine, name)["denied"], false);
        must_be_had(&ondine, &set.paths(&store, name).1);
    }
}

#[test]
fn what_is_denied_is_so_by_whatever_name_a_lazy_set_is_asked_for_it() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let set = set();
    // Each of them by another name first.
    for names in [
        &["pkgs.secret", "alias", "pkgs.pkgs.alias", "secret"][..],
        &["other", "pkgs.nested.hidden", "nested.hidden"],
        &["pkgs.parts.deep", "parts.deep"],
        &["pkgs.renamed", "renamed"],
        &["nested.again", "%22sp%20ace%22", "pkgs.%22sp%20ace%22"],
        &["wrapped.one", "pkgs.wild-one", "wild-one"],
    ] {
        let ondine = set.serve(&store, CATALOGUE_ONLY, &format!("index = 'lazy'\n{DENY}"));
        wait_for_generation(&ondine);
        assert_denied(&store, &set, &ondine, names);
        for name in ["pkgs.fine", "fine", "pkgs.pkgs.nested.open"] {
            assert_eq!(told(&ondine, name)["denied"], false);
            assert_eq!(get(&ondine, &format!("/get/pkgs/{name}")).status, 302, "{name}");
        }
    }
}

#[test]
fn what_is_denied_by_one_name_and_needed_by_what_is_not_is_an_input_and_nothing_by_name() {
    let input = derivations::text_file("input", "an input");
    let user = derivations::Derivation::new("user", "echo $input > $out").input("input", &input);
    let set = PackageSet::new([("input".to_owned(), input.to_nix()), ("user".to_owned(), user.to_nix())]);
    for index in ["full", "lazy"] {
        let store = NixStore::new(Release::Host);
        let _daemon = store.daemon();
        let ondine = set.serve(&store, CATALOGUE_ONLY, &format!("index = '{index}'\ndeny = ['input']"));
        wait_for_generation(&ondine);
        assert_eq!(told(&ondine, "user")["denied"], false);
        let refused = get(&ondine, "/get/pkgs/input");
        let is_denied = refused.status == 404 && refused.text().contains("the package set pkgs denies");
        assert!(is_denied, "{index}: {}", refused.text());
        assert_eq!(get(&ondine, "/get/pkgs/user").status, 302, "{index}");
        // It is there now, and nothing has to be built for it.
        must_be_had(&ondine, &set.paths(&store, "input").1);
        assert_eq!(get(&ondine, "/get/pkgs/input").status, 302, "{index}");
    }
}

#[test]
fn names_that_people_make_up_leave_no_row() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let set = set();
    let mut ondine = set.serve(&store, CATALOGUE_ONLY, "index = 'lazy'");
    wait_for_generation(&ondine);
    let count = |ondine: &Ondine| api(ondine)["generations"][0]["errors"].as_u64().expect("a number");
    for round in 0..2 {
        for number in 0..4 {
            for name in [
                format!("throws.invented{round}{number}"),
                format!("pkgs.throws.invented{round}{number}.more"),
            ] {
                let answer = get(&ondine, &format!("/get/pkgs/{name}"));
                assert_eq!(answer.status, 404);
                assert!(answer.text().contains("words of throws"), "{name}: {}", answer.text());
                assert!(!answer.text().contains("invented"), "it is blamed on {name}: {}", answer.text());
            }
            let nothing = get(&ondine, &format!("/get/pkgs/fine.invented{round}{number}"));
            assert!(nothing.text().contains("has no fine.invented"), "{}", nothing.text());
        }
        assert_eq!(count(&ondine), 2, "{:#}", api(&ondine)["errors"]);
        ondine.crash_and_restart();
    }
    let errors = api(&ondine)["errors"].clone();
    let listed: Vec<&str> =
        errors.as_array().expect("a list").iter().filter_map(|e| e["attribute"].as_str()).collect();
    assert_eq!(listed, ["pkgs.throws", "throws"]);
}
