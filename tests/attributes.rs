//! Attributes and their names: the same in every way to evaluate a set, with every release of Nix. Real
//! evaluations and real daemons.

use std::path::PathBuf;
use std::time::Duration;

use crate::support::addresses::base_name;
use crate::support::package_set::{dump, get, refresh, small, told_in};
use crate::support::programs::{install_eval_jobs, path};
use crate::support::{NixStore, Ondine, PackageSet, Release, derivations, text, wait_until};

const SOON: Duration = Duration::from_secs(60);
/// The sets of a server: one evaluated as a whole, one attribute by attribute.
const SETS: [&str; 2] = ["full", "lazy"];
/// The server's word that it evaluates with nix-eval-jobs.
const JOBS: &str = "evaluating with nix-eval-jobs";

/// A server with a set of each kind from one source.
#[track_caller]
fn serve(store: &NixStore, source: &str, more: &str) -> Ondine {
    let table = |name: &str, index: &str| {
        format!(
            "[[catalogue]]\nname = '{name}'\nindex = '{index}'\nrefresh = 'manual'\nsource = {{ {source} }}\n{more}\n"
        )
    };
    let settings = store.folder().join("settings.toml");
    let sets = table("full", "full") + &table("lazy", "lazy");
    std::fs::write(&settings, format!("build-from = ['catalogue']\n{sets}")).expect("written");
    let ondine = Ondine::start_with(store, &["--config", text(&settings)], &[("PATH", &path(store))]);
    for set in SETS {
        wait_until("there is a generation", SOON, || {
            get(&ondine, &format!("/api/v1/catalogue/{set}")).text().contains("\"current\": true")
        });
    }
    ondine
}

fn expression(set: &PackageSet) -> String {
    format!("expression = '{}'", set.file().display())
}

/// The contents that a download leads to, as a client resolves the address.
#[track_caller]
fn download(ondine: &Ondine, name: &str) -> Vec<u8> {
    let address = format!("/get/{name}");
    let found = get(ondine, &address);
    assert_eq!(found.status, 302, "{name}: {}", found.text());
    let mut place = found.header("location").expect("a place");
    let mut folder = address.rsplit_once('/').expect("a folder").0;
    while let Some(rest) = place.strip_prefix("../") {
        (place, folder) = (rest, folder.rsplit_once('/').expect("not above the top").0);
    }
    let contents = get(ondine, &format!("{folder}/{place}"));
    assert_eq!(contents.status, 200, "{name}: {folder}/{place}: {}", contents.text());
    contents.body
}

fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.';
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[test]
fn an_attribute_is_its_own_output_however_it_is_evaluated() {
    for release in Release::all() {
        let store = NixStore::new(release);
        let name = store.release().name();
        let _daemon = store.daemon();
        let several = derivations::multiple_outputs("several").to_nix();
        let bin_first = derivations::Derivation::new("bin-first", "echo bin > $bin; echo out > $out")
            .outputs(&["bin", "out"]);
        let by_hand = format!(
            "(let it = {several}; in {{ type = \"derivation\"; inherit (it) name drvPath; outPath = it.doc.outPath; }})"
        );
        let set = PackageSet::new([
            ("bin-first".to_owned(), bin_first.to_nix()),
            ("by-hand".to_owned(), by_hand),
            ("lib".to_owned(), format!("{several}.lib")),
            ("nested".to_owned(), format!("{{ recurseForDerivations = true; multi = {several}; }}")),
        ]);
        let attributes =
            ["bin-first", "by-hand", "lib", "nested.multi", "nested.multi.dev", "nested.multi.dev.lib"];
        let paths: Vec<(PathBuf, PathBuf)> = set.all_paths(&store, &attributes);
        let walked = serve(&store, &expression(&set), "");
        let check = |ondine: &Ondine, sets: &[&str]| {
            for set in sets {
                for (attribute, (drv, out)) in attributes.iter().zip(&paths) {
                    let contents = download(ondine, &format!("{set}/{attribute}"));
                    assert!(
                        contents == dump(&store, out),
                        "{name}: {set}/{attribute} is not {}",
                        out.display()
                    );
                    let told = told_in(ondine, &format!("{set}/{attribute}"));
                    assert_eq!(
                        (&told["derivation"], &told["attribute"]),
                        (&base_name(drv).into(), &(*attribute).into())
                    );
                    let own = told["output"].as_str().expect("a name").to_owned();
                    let outputs = told["outputs"].as_array().expect("a list").iter();
                    let own = outputs.filter(|output| output["name"] == own).map(|output| &output["path"]);
                    assert_eq!(own.collect::<Vec<_>>(), [base_name(out)], "{name}: {set}/{attribute}");
                }
                // An output that is named wins.
                let (_, lib) = &paths[2];
                assert!(download(ondine, &format!("{set}/nested.multi.dev^lib")) == dump(&store, lib));
                for nothing in ["nested.multi.nope", "nested.multi.dev.nope", "nested.nope.dev", "lib.x.y"] {
                    let answer = get(ondine, &format!("/get/{set}/{nothing}"));
                    assert_eq!(answer.status, 404, "{name}: {set}/{nothing}");
                    assert!(
                        answer.text().contains(&format!("has no {nothing}")),
                        "{name}: {}",
                        answer.text()
                    );
                }
            }
        };
        check(&walked, &SETS);
        drop(walked);
        install_eval_jobs(&store);
        let by_jobs = serve(&store, &expression(&set), "");
        assert!(by_jobs.log().contains(JOBS), "{name}: {}", by_jobs.log());
        check(&by_jobs, &["full"]);
    }
}

#[test]
fn a_name_has_one_spelling_and_is_read_bare_where_that_is_unambiguous() {
    // As Nix writes it, and bare.
    let names = [
        ("\"007\"", "007"),
        ("\"ca^ret\"", "ca^ret"),
        ("\"dot.ted\"", "\"dot.ted\""),
        ("\"if\"", "if"),
        ("\"line\\nbreak\"", "line\nbreak"),
        ("\"per%20cent\"", "per%20cent"),
        ("\"plus+plus\"", "plus+plus"),
        ("\"q\\\"uote\"", "\"q\\\"uote\""),
        ("\"slash/ed\"", "slash/ed"),
        ("\"with space\"", "with space"),
        ("\"ümlaut\"", "ümlaut"),
        ("plain-1", "plain-1"),
    ];
    let set = PackageSet::new([]);
    let all: String = names
        .iter()
        .map(|(name, _)| {
            format!("{name} = {};\n", small("x").1.replace("echo 'x'", &format!("echo '{}'", encoded(name))))
        })
        .collect();
    set.write_text(&format!("{{ {all} nested = {{ recurseForDerivations = true; {all} }}; }}"));
    for release in Release::all() {
        let store = NixStore::new(release);
        let name = store.release().name();
        let _daemon = store.daemon();
        let nix: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        let paths = set.all_paths(&store, &nix);
        let ondine = serve(&store, &expression(&set), "");
        let check = |sets: &[&str]| {
            for set in sets {
                for ((written, bare), (drv, _)) in names.iter().zip(&paths) {
                    for spelling in [written, bare] {
                        for prefix in ["", "nested.", "\"nested\"."] {
                            let address = format!("{set}/{}", encoded(&format!("{prefix}{spelling}")));
                            let told = told_in(&ondine, &address);
                            assert_eq!(told["derivation"], base_name(drv), "{name}: {address}");
                            let prefix = prefix.replace('"', "");
                            assert_eq!(told["attribute"], format!("{prefix}{written}"), "{name}: {address}");
                        }
                    }
                }
                // Slashes that are not encoded, and an output behind a quoted name.
                for address in ["slash/ed", "nested.%22slash/ed%22", "%22ca%5Eret%22^out", "%22slash%2Fed%22"]
                {
                    download(&ondine, &format!("{set}/{address}"));
                    download(&ondine, &format!("{set}/{address}?compression=zstd"));
                }
            }
        };
        check(&SETS);
        install_eval_jobs(&store);
        let refreshed = refresh(&ondine).must_succeed().text();
        assert!(
            refreshed.contains("full: nothing changed") && ondine.log().contains(JOBS),
            "{name}: {refreshed}"
        );
        check(&["full"]);
    }
}

#[test]
fn of_a_flake_the_packages_come_before_the_legacy_ones_as_nix_build_has_it() {
    for release in Release::all() {
        let store = NixStore::new(release);
        let name = store.release().name();
        let _daemon = store.daemon();
        let flake = store.folder().join("flake");
        std::fs::create_dir_all(&flake).expect("a folder");
        let system = store.nix(&["eval", "--impure", "--raw", "--expr", "builtins.currentSystem"]);
        let nix = |name: &str| small(name).1.replace("builtins.currentSystem", &format!("{system:?}"));
        let outputs = format!(
            "{{ outputs = {{ self }}: {{\n packages.{system} = {{ default = {}; a = {}; broken = throw \"words of broken\"; }};\n \
             legacyPackages.{system} = {{ default = {}; a = {}; b = {}; broken = {}; }};\n }}; }}",
            nix("packages-default"),
            nix("packages-a"),
            nix("legacy-default"),
            nix("legacy-a"),
            nix("legacy-b"),
            nix("legacy-broken")
        );
        std::fs::write(flake.join("flake.nix"), outputs).expect("written");
        let drv =
            |name: &str| base_name(&store.instantiate(&derivations::text_file(name, name)).drv).to_owned();
        let source = format!("flake = 'path:{}'", flake.display());
        let check = |ondine: &Ondine| {
            for set in SETS {
                for (attribute, is) in
                    [("default", "packages-default"), ("a", "packages-a"), ("b", "legacy-b")]
                {
                    let told = told_in(ondine, &format!("{set}/{attribute}"));
                    assert_eq!(told["derivation"], drv(is), "{name}: {set}/{attribute}");
                }
                let broken = get(ondine, &format!("/api/v1/catalogue/{set}/broken")).text();
                assert!(broken.contains("words of broken"), "{name}: {broken}");
            }
            let size = &told_in(ondine, "full")["generations"][0];
            assert_eq!((&size["attributes"], &size["errors"]), (&3.into(), &1.into()), "{name}: {size:#}");
        };
        check(&serve(&store, &source, ""));
        install_eval_jobs(&store);
        let by_jobs = serve(&store, &source, "");
        assert!(by_jobs.log().contains(JOBS), "{name}: {}", by_jobs.log());
        check(&by_jobs);
    }
}

#[test]
fn a_source_that_is_a_derivation_itself_is_called_default_in_either_way() {
    let set = PackageSet::new([]);
    set.write_text(&small("whole").1);
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let ondine = serve(&store, &expression(&set), "");
    let drv = base_name(&store.instantiate(&derivations::text_file("whole", "whole")).drv).to_owned();
    for set in SETS {
        assert_eq!(told_in(&ondine, &format!("{set}/default"))["derivation"], drv);
    }
}

#[test]
fn attributes_to_be_walked_are_named_as_they_are_anywhere() {
    let set = PackageSet::new([]);
    set.write_text(&format!(
        "{{ \"a.b\".\"c d\" = {{ e = {}; }}; other = throw \"not walked\"; }}",
        small("e").1
    ));
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let source = format!("{}, attributes = ['\"a.b\".c d']", expression(&set));
    let ondine = serve(&store, &source, "");
    let drv = base_name(&store.instantiate(&derivations::text_file("e", "e")).drv).to_owned();
    for set in SETS {
        let told = told_in(&ondine, &format!("{set}/%22a.b%22.c%20d.e"));
        assert_eq!(
            (&told["derivation"], &told["attribute"]),
            (&drv.clone().into(), &"\"a.b\".\"c d\".e".into())
        );
    }
}
