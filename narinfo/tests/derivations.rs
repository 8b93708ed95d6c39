//! .drv files that the real Nix wrote, compared with what the real Nix says of them.

mod support;

use std::collections::BTreeSet;
use std::fs;

use narinfo::derivation::{DERIVATION_BYTES_MAX, Error};
use narinfo::{Derivation, StoreDir, StorePath};
use support::Nix;

/// Instantiates attributes of a set, parses the .drv of each in the order of their names, and compares it
/// with Nix.
fn instantiate(nix: &Nix, set: &str) -> Vec<(StorePath, Derivation)> {
    let common = "system = \"x86_64-linux\"; builder = \"/bin/sh\";";
    let expression = format!("let d = attributes: derivation ({{ {common} }} // attributes); in {set}");
    let drvs = nix.text("nix-instantiate", &["-E", &expression]);
    drvs.lines()
        .map(|line| {
            // An output other than "out" is named after an exclamation mark.
            let drv = nix.parse(line.split('!').next().unwrap_or(line));
            let derivation = parse(nix, &drv);
            as_nix_says(nix, &drv, &derivation);
            (drv, derivation)
        })
        .collect()
}

fn parse(nix: &Nix, drv: &StorePath) -> Derivation {
    let bytes = fs::read(nix.full(drv)).expect("a .drv");
    Derivation::parse(&nix.store_dir(), drv, &bytes).unwrap_or_else(|error| panic!("{drv}: {error}"))
}

fn as_nix_says(nix: &Nix, drv: &StorePath, derivation: &Derivation) {
    let full = nix.full(drv);
    let references: BTreeSet<StorePath> =
        nix.paths("nix-store", &["-q", "--references", &full]).into_iter().collect();
    let inputs = derivation.input_derivations.union(&derivation.input_sources).cloned().collect();
    assert_eq!(references, inputs, "{drv}");
    assert!(derivation.input_derivations.iter().all(StorePath::is_derivation), "{drv}");
    assert_eq!(drv.name(), format!("{}.drv", derivation.name));
    if derivation.outputs.values().all(Option::is_some) {
        let theirs: BTreeSet<StorePath> =
            nix.paths("nix-store", &["-q", "--outputs", &full]).into_iter().collect();
        let ours: BTreeSet<StorePath> = derivation.outputs.values().flatten().cloned().collect();
        assert_eq!(ours, theirs, "{drv}");
    }
    let json = nix.text("nix", &["show-derivation", &full]);
    assert!(json.contains(&format!("\"system\": \"{}\"", derivation.system)), "{json}");
    for (output, path) in &derivation.outputs {
        let path = path.as_ref().map(|path| format!("\"path\": \"{}\"", nix.full(path)));
        assert!(json.contains(&format!("\"{output}\": {{")), "{output}: {json}");
        assert!(path.is_none_or(|path| json.contains(&path)), "{output}: {json}");
    }
}

/// Each output and the name of its path.
fn output_names(derivation: &Derivation) -> Vec<String> {
    let name = |path: &Option<StorePath>| path.as_ref().map_or("?", StorePath::name).to_owned();
    derivation.outputs.iter().map(|(output, path)| format!("{output}: {}", name(path))).collect()
}

#[test]
fn every_output_is_there_by_its_name() {
    let nix = Nix::new();
    let all = instantiate(
        &nix,
        "[ (d { name = \"one\"; }) (d { name = \"many-1.0\"; outputs = [ \"out\" \"dev\" \"man\" ]; }) \
                                 (d { name = \"no-out\"; outputs = [ \"lib\" ]; }) ]",
    );
    assert_eq!(output_names(&all[0].1), ["out: one"]);
    let many = ["dev: many-1.0-dev", "man: many-1.0-man", "out: many-1.0"];
    assert_eq!(output_names(&all[1].1), many);
    assert_eq!(output_names(&all[2].1), ["lib: no-out-lib"]);
    assert_eq!((all[0].1.system.as_str(), all[0].1.name.as_str()), ("x86_64-linux", "one"));
}

#[test]
fn inputs_are_derivations_and_sources() {
    let nix = Nix::new();
    fs::write(nix.path("source.txt"), "a source").expect("a file");
    let source = nix.path("source.txt");
    let all = instantiate(
        &nix,
        &format!(
            "let a = d {{ name = \"a\"; outputs = [ \"out\" \"dev\" ]; }}; in [ a (d {{ name = \"b\"; a = a.dev; src = {}; \
             text = builtins.toFile \"text\" \"x\"; }}) ]",
            source.display()
        ),
    );
    let [(a, first), (_, second)] = all.as_slice() else { panic!("two derivations") };
    assert_eq!((first.input_derivations.len(), first.input_sources.len()), (0, 0));
    assert_eq!(second.input_derivations, BTreeSet::from([a.clone()]));
    let names: BTreeSet<&str> = second.input_sources.iter().map(StorePath::name).collect();
    assert_eq!(names, BTreeSet::from(["source.txt", "text"]));
}

#[test]
fn inputs_need_not_be_there() {
    let nix = Nix::new();
    let all = instantiate(&nix, "let a = d { name = \"a\"; }; in [ a (d { name = \"b\"; inherit a; }) ]");
    let bytes = fs::read(nix.full(&all[1].0)).expect("a .drv");
    fs::remove_file(nix.full(&all[0].0)).expect("removed");
    assert_eq!(Derivation::parse(&nix.store_dir(), &all[1].0, &bytes).expect("a derivation"), all[1].1);
}

#[test]
fn fixed_outputs_are_known() {
    let nix = Nix::new();
    let fixed = |name: &str, rest: &str| format!("(d {{ name = \"{name}\"; {rest} }})");
    let sha256 =
        "outputHashAlgo = \"sha256\"; outputHash = \"0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\";";
    let all = [
        fixed("flat.tar.gz", sha256),
        fixed("recursive", &format!("{sha256} outputHashMode = \"recursive\";")),
        fixed(
            "sha1",
            "outputHashAlgo = \"sha1\"; outputHash = \"da39a3ee5e6b4b0d3255bfef95601890afd80709\";",
        ),
        fixed("md5", "outputHashAlgo = \"md5\"; outputHash = \"d41d8cd98f00b204e9800998ecf8427e\";"),
        fixed("sri", "outputHash = \"sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\";"),
        fixed(
            "sri-recursive",
            "outputHashMode = \"recursive\"; outputHash = \"sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\";",
        ),
    ];
    for (drv, derivation) in instantiate(&nix, &format!("[ {} ]", all.join(" "))) {
        let [path] = derivation.outputs.values().collect::<Vec<_>>()[..] else { panic!("{drv}: one output") };
        assert_eq!(path.as_ref().map(StorePath::name), drv.name().strip_suffix(".drv"));
    }
}

#[test]
fn outputs_that_only_the_build_tells_are_none() {
    let nix = Nix::new();
    let floating = "outputHashMode = \"recursive\"; outputHashAlgo = \"sha256\";";
    let set = format!(
        "let ca = d {{ name = \"ca\"; __contentAddressed = true; outputs = [ \"out\" \"dev\" ]; {floating} }}; \
         in [ ca (d {{ name = \"after\"; inherit ca; }}) (d {{ name = \"impure\"; __impure = true; {floating} }}) ]"
    );
    let all = instantiate(&nix, &set);
    assert_eq!(all.len(), 3);
    for (drv, derivation) in all {
        assert!(!derivation.outputs.is_empty(), "{drv}");
        assert!(derivation.outputs.values().all(Option::is_none), "{drv}");
    }
}

#[test]
fn names_have_every_character_they_may() {
    let nix = Nix::new();
    let names = ["a+b", "a?b", "a=b", "a.b", "a_b", "a-b", "+?=._-", "Z9", ".hidden"];
    let mut accepted = 0;
    for name in names {
        let full = format!("[ (d {{ name = \"{name}\"; outputs = [ \"out\" \"x+y\" ]; }}) ]");
        // Nix 2.8 takes no dot at the beginning; what it does not make need not be read.
        let attempt = nix.attempt(
            "nix-instantiate",
            &["-E", &format!("derivation {{ name = \"{name}\"; system = \"x\"; builder = \"x\"; }}")],
        );
        if attempt.status.success() {
            let all = instantiate(&nix, &full);
            assert_eq!(output_names(&all[0].1), [format!("out: {name}"), format!("x+y: {name}-x+y")]);
            accepted += 1;
        }
    }
    assert!(accepted >= 8, "Nix took {accepted} of the names");
}

#[test]
fn odd_texts_do_not_confuse_the_reader() {
    let nix = Nix::new();
    let odd = r#"quote = "a\"b"; backslash = "a\\b"; lines = "a\nb\r\tc";
                 fake = "[(\"out\",\"/x\",\"\",\"\")]"; args = [ "])" "\")" "ü" "" ];"#;
    let all = instantiate(&nix, &format!("[ (d {{ name = \"odd\"; {odd} }}) ]"));
    assert_eq!(output_names(&all[0].1), ["out: odd"]);
}

#[test]
fn arguments_need_not_be_text() {
    let nix = Nix::new();
    let latin1 = nix.path("latin1");
    fs::write(&latin1, b"caf\xe9 \xff\xfe \xe2\x82").expect("a file");
    let argument = format!("(builtins.readFile {})", latin1.display());
    let all = format!(
        "let a = d {{ name = \"a\"; args = [ {argument} \"x\" ]; }}; \
         in [ a (d {{ name = \"b\"; inherit a; text = {argument}; outputs = [ \"out\" \"dev\" ]; }}) ]"
    );
    // Nix's own JSON has no room for such bytes, so that its other answers must do.
    let common = "system = \"x\"; builder = \"x\";";
    let expression = format!("let d = attributes: derivation ({{ {common} }} // attributes); in {all}");
    let drvs = nix.paths("nix-instantiate", &["-E", &expression]);
    for drv in drvs {
        let bytes = fs::read(nix.full(&drv)).expect("a .drv");
        assert!(std::str::from_utf8(&bytes).is_err(), "{drv} is text");
        let derivation = parse(&nix, &drv);
        let ours: BTreeSet<StorePath> = derivation.outputs.values().flatten().cloned().collect();
        let theirs = nix.paths("nix-store", &["-q", "--outputs", &nix.full(&drv)]).into_iter().collect();
        assert_eq!(ours, theirs);
        let references =
            nix.paths("nix-store", &["-q", "--references", &nix.full(&drv)]).into_iter().collect();
        assert_eq!(derivation.input_derivations, references);
    }
}

#[test]
fn required_features_come_from_the_environment_or_the_structured_attributes() {
    let nix = Nix::new();
    let features = "requiredSystemFeatures = [ \"kvm\" \"big-parallel\" ];";
    let set = format!(
        "[ (d {{ name = \"plain\"; {features} }}) (d {{ name = \"structured\"; __structuredAttrs = true; {features} }}) \
         (d {{ name = \"none\"; }}) (d {{ name = \"empty\"; requiredSystemFeatures = [ ]; }}) ]"
    );
    let all = instantiate(&nix, &set);
    let expected = BTreeSet::from(["big-parallel".to_owned(), "kvm".to_owned()]);
    let found: Vec<_> = all.iter().map(|(_, derivation)| derivation.required_features.clone()).collect();
    assert_eq!(found, [expected.clone(), expected, BTreeSet::new(), BTreeSet::new()]);
}

#[test]
fn what_nix_builds_itself_is_known_by_its_builder() {
    let nix = Nix::new();
    let download = "builder = \"builtin:fetchurl\"; url = \"file:///x\";";
    let set = format!("[ (d {{ name = \"download\"; {download} }}) (d {{ name = \"plain\"; }}) ]");
    let found: Vec<_> = instantiate(&nix, &set).iter().map(|(_, derivation)| derivation.is_builtin).collect();
    assert_eq!(found, [true, false]);
}

#[test]
fn what_is_no_derivation_is_refused() {
    let nix = Nix::new();
    let all = instantiate(&nix, "[ (d { name = \"x\"; }) ]");
    let (drv, _) = &all[0];
    let bytes = fs::read(nix.full(drv)).expect("a .drv");
    let refused = |what: &str, bytes: &[u8]| {
        let result = Derivation::parse(&nix.store_dir(), drv, bytes);
        assert!(matches!(result, Err(Error::Malformed(_) | Error::StorePath(_))), "{what}: {result:?}");
    };
    for end in 0..bytes.len() {
        refused("a truncated one", &bytes[..end]);
    }
    refused("one with a tail", &[&bytes[..], b"\n"].concat());
    refused("a page", b"<html></html>");
    let text = String::from_utf8(bytes.clone()).expect("text");
    refused("another store's", text.replace(nix.store_dir().as_str(), "/other/store").as_bytes());
    refused(
        "an output out of the store",
        text.replacen(nix.store_dir().as_str(), "/etc/../etc", 1).as_bytes(),
    );
    let other = StoreDir::default();
    assert!(Derivation::parse(&other, drv, &bytes).is_err(), "read as another store's");
    let no_drv: StorePath = format!("{}-x", drv.hash()).parse().expect("a path");
    assert!(matches!(Derivation::parse(&nix.store_dir(), &no_drv, &bytes), Err(Error::Name(_))));
    let large = vec![b' '; DERIVATION_BYTES_MAX + 1];
    assert!(matches!(Derivation::parse(&nix.store_dir(), drv, &large), Err(Error::TooLarge(_))));
}

#[test]
fn deep_nesting_does_not_break_us() {
    let drv: StorePath = "0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-x.drv".parse().expect("a path");
    let input = format!("(\"/nix/store/{drv}\",");
    let nested =
        [format!("DrvWithVersion(\"xp-dyn-drv\",[],[{input}"), "([],[(\"a\",".repeat(100_000)].concat();
    let json = format!("Derive([],[],[],\"x\",\"x\",[],[(\"__json\",\"{{\\\"a\\\":{}", "[".repeat(1_000_000));
    let closed = format!("{json}{}}}\")])", "]".repeat(1_000_000));
    for text in [nested, json, closed, "[".repeat(1_000_000)] {
        assert!(Derivation::parse(&StoreDir::default(), &drv, text.as_bytes()).is_err());
    }
}
