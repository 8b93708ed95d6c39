//! Contents of a package set, listed and searched by address and by command, and pinned by a name that says
//! which set is meant. Real evaluations.

use crate::support::addresses::base_name;
use crate::support::package_set::small;
use crate::support::{Http, NixStore, Ondine, PackageSet, Release, derivations, text, wait_until};
use serde_json::{Value, json};

const SOON: std::time::Duration = std::time::Duration::from_secs(60);

/// A server with these sets, each with what its table has besides.
#[track_caller]
fn serve(store: &NixStore, sets: &[(&str, &PackageSet, &str)]) -> Ondine {
    let table = |(name, set, more): &(&str, &PackageSet, &str)| {
        let file = set.file();
        format!(
            "[[catalogue]]\nname = '{name}'\nrefresh = 'manual'\nsource = {{ expression = '{}' }}\n{more}\n",
            file.display()
        )
    };
    let settings = store.folder().join("settings.toml");
    std::fs::write(&settings, sets.iter().map(table).collect::<String>()).expect("written");
    let ondine = Ondine::start(store, &["--config", text(&settings)]);
    for (name, ..) in sets {
        wait_until("there is a generation", SOON, || {
            get(&ondine, name).1["generations"][0]["current"] == true
        });
    }
    ondine
}

/// The status and the JSON of an address below that of all sets.
fn get(ondine: &Ondine, address: &str) -> (u16, Value) {
    let answer = Http::new(&ondine.url()).get(&format!("/api/v1/catalogue/{address}"));
    let value =
        serde_json::from_str(&answer.text()).unwrap_or_else(|e| panic!("{address}: {e}: {}", answer.text()));
    (answer.status, value)
}

/// The names of the attributes of a page, and what the next one begins after.
#[track_caller]
fn page(ondine: &Ondine, address: &str) -> (Vec<String>, Value) {
    let (status, page) = get(ondine, address);
    assert_eq!(status, 200, "{address}: {page:#}");
    let names = page["attributes"].as_array().expect("a list").iter();
    let names = names.map(|line| line["attribute"].as_str().expect("a text").to_owned());
    (names.collect(), page["next"].clone())
}

#[test]
fn a_set_is_listed_page_by_page_and_looked_through() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let packages = (0..25).map(|number| small(&format!("p{number:02}")));
    let set = PackageSet::new(packages.chain([
        ("\"007\"".to_owned(), small("bond").1),
        ("broken".to_owned(), "throw \"words of broken\"".to_owned()),
        (
            "nested".to_owned(),
            format!("{{ recurseForDerivations = true; Curl_x = {}; }}", small("curl-8.0").1),
        ),
        ("secret".to_owned(), small("secret-1.0").1),
        ("several".to_owned(), derivations::multiple_outputs("several").to_nix()),
    ]));
    let ondine = serve(&store, &[("pkgs", &set, "deny = ['secret']"), ("lazy", &set, "index = 'lazy'")]);

    let (first, next) = page(&ondine, "pkgs/?limit=20");
    assert_eq!((first.len(), &first[0], &next), (20, &"\"007\"".to_owned(), &json!(first[19])));
    let next = next.as_str().expect("a name").replace('"', "%22");
    let (second, end) = page(&ondine, &format!("pkgs/?limit=20&after={next}"));
    assert_eq!((first.len() + second.len(), end), (30, Value::Null));
    assert_eq!(page(&ondine, "pkgs/").0, [first, second].concat());
    for (query, names) in [
        ("q=p0", (0..10).map(|n| format!("p{n:02}")).collect()),
        ("q=P*4", vec!["p04".to_owned(), "p14".to_owned(), "p24".to_owned()]),
        ("q=curl", vec!["nested.Curl_x".to_owned()]),
        ("q=curl-*", vec!["nested.Curl_x".to_owned()]),
        ("q=*-1.0", vec!["secret".to_owned()]),
        ("q=%5F", vec!["nested.Curl_x".to_owned()]),
        ("q=007*", vec!["\"007\"".to_owned()]),
        ("q=%25", vec![]),
        ("q=nope", vec![]),
    ] {
        assert_eq!(page(&ondine, &format!("pkgs/?{query}")).0, names, "{query}");
    }
    let (_, secret) = get(&ondine, "pkgs/?q=secret");
    let (drv, _) = set.paths(&store, "secret");
    let line = json!({
        "attribute": "secret", "name": "secret-1.0", "derivation": base_name(&drv), "output": "out", "denied": true, "error": null
    });
    assert_eq!(
        (&secret["attributes"], &secret["complete"], &secret["set"]),
        (&json!([line]), &json!(true), &json!("pkgs"))
    );
    let (_, broken) = get(&ondine, "pkgs/?q=broken");
    assert!(
        broken["attributes"][0]["error"].as_str().is_some_and(|e| e.contains("words of broken")),
        "{broken:#}"
    );

    // What is asked wrongly is told so.
    for (address, status, word) in [
        ("pkgs/?limit=0", 400, "limit"),
        ("pkgs/?query=x", 400, "query"),
        ("pkgs/?system=pdp11-linux", 404, "pdp11-linux"),
        ("nope/", 404, "no package set nope"),
    ] {
        let (is, told) = get(&ondine, address);
        assert!(
            is == status && told["error"].as_str().is_some_and(|e| e.contains(word)),
            "{address}: {is} {told:#}"
        );
    }

    // A lazy set has what was asked for.
    assert_eq!(page(&ondine, "lazy/").0, [""; 0]);
    assert_eq!(get(&ondine, "lazy/p07").0, 200);
    assert_eq!(page(&ondine, "lazy/").0, ["p07"]);
    assert_eq!(get(&ondine, "lazy/").1["complete"], false);

    // The same by a command.
    let all = ondine.run("attributes", &["pkgs"]).must_succeed().text();
    assert_eq!(all.lines().count(), 30, "{all}");
    assert!(all.contains("p03\tp03") && all.contains("secret\tsecret-1.0 (denied)"), "{all}");
    assert!(
        all.lines()
            .any(|line| line.starts_with("broken\tcannot be evaluated") && line.contains("words of broken"))
    );
    assert_eq!(ondine.run("attributes", &["pkgs", "CURL"]).must_succeed().text(), "nested.Curl_x\tcurl-8.0");
    ondine.run("attributes", &["pkgs", "nothing-like-that"]).must_fail();
    let lazy = ondine.run("attributes", &["lazy"]).must_succeed();
    assert!(lazy.stderr.contains("only attributes that were requested by name"), "{lazy}");
    let unknown = ondine.run("attributes", &["nope"]).must_fail();
    assert!(unknown.stderr.contains("no package set nope") && !unknown.stderr.contains("404"), "{unknown}");
}

#[test]
fn a_pin_names_its_set_and_one_that_may_be_of_several_is_refused_with_the_choices() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let set = |version: &str, more: (String, String)| {
        let greet = derivations::text_file(&format!("greet-{version}"), version).to_nix();
        PackageSet::new([("greet".to_owned(), greet), ("\"slash/ed\"".to_owned(), small(version).1), more])
    };
    let several = ("several".to_owned(), derivations::multiple_outputs("several").to_nix());
    let (one, two) = (set("one", several), set("two", small("only-two")));
    let ondine = serve(&store, &[("team", &one, ""), ("other", &two, "index = 'lazy'")]);
    let out = |set: &PackageSet, attribute: &str| base_name(&set.paths(&store, attribute).1).to_owned();
    let pinned = || ondine.run("pins", &[]).must_succeed().text();

    let refused = ondine.run("pin", &["greet"]).must_fail();
    assert!(refused.stderr.contains("team/greet") && refused.stderr.contains("other/greet"), "{refused}");
    assert!(pinned().contains("Nothing is pinned"));
    for (name, set) in [("team/greet", &one), ("other/greet", &two)] {
        let told = ondine.run("pin", &[name]).must_succeed().text();
        assert!(told.contains(&out(set, "greet")) && told.lines().count() == 1, "{told}");
        assert!(pinned().contains(name), "{}", pinned());
    }
    // One that only one of them has needs no set, however lazy that is.
    let told = ondine.run("pin", &["only-two"]).must_succeed().text();
    assert!(told.contains(&out(&two, "only-two")), "{told}");
    // A slash may be a part of the name.
    for (name, set) in [("team/slash/ed", &one), ("other/\"slash/ed\"", &two)] {
        let told = ondine.run("pin", &[name]).must_succeed().text();
        assert!(told.contains(&out(set, "\"slash/ed\"")), "{name}: {told}");
    }
    let told = ondine.run("pin", &["several^dev"]).must_succeed().text();
    assert!(told.lines().count() == 1 && told.contains(&out(&one, "several.dev")), "{told}");
    let told = ondine.run("pin", &["team/several"]).must_succeed().text();
    assert_eq!(told.lines().count(), 4, "{told}");
    for (name, word) in [
        ("nope", "no attribute nope"),
        ("team/nope", "no attribute team/nope"),
        ("team/several^nope", "no output nope"),
        ("nope/greet", "no attribute nope/greet"),
    ] {
        let refused = ondine.run("pin", &[name]).must_fail();
        assert!(refused.stderr.contains(word), "{refused}");
    }

    // A pin has one name: with its set or without, as it was pinned.
    let refused = ondine.run("unpin", &["greet"]).must_fail();
    assert!(refused.stderr.contains("there are other/greet, team/greet"), "{refused}");
    let unpinned = |name: &str| ondine.run("unpin", &[name]).must_succeed().text();
    // A path that is not served has no name here.
    let hash = out(&one, "greet")[..32].to_owned();
    assert_eq!(unpinned("team/greet"), format!("unpinned: team/greet ({hash})"));
    let refused = ondine.run("unpin", &["greet"]).must_fail();
    assert!(
        refused.stderr.contains("there are other/greet") && pinned().contains("other/greet"),
        "{refused}"
    );
    assert!(unpinned("only-two").starts_with("unpinned: only-two "));
    assert!(unpinned("team/slash/ed").starts_with("unpinned: team/\"slash/ed\" "));
    let refused = ondine.run("unpin", &["only-two"]).must_fail();
    assert!(refused.stderr.contains("no such pin"), "{refused}");
    // By the name of a derivation, too, which stands for its attribute.
    let told = ondine.run("pin", &["greet-one"]).must_succeed().text();
    assert!(told.contains(&out(&one, "greet")) && pinned().contains("team/greet"), "{told}");
}
