//! Realisations, beside those that the real Nix makes, signs and copies into a cache.

mod support;

use std::fs;

use narinfo::{
    DrvOutput, OutputName, REALISATION_BYTES_MAX, Realisation, RealisationError, SecretKey, StorePath,
};
use support::{Nix, expression};

/// Two content-addressed derivations, the second of which refers to the first.
fn chain() -> String {
    let attributes = |name: &str| {
        format!(
            "name = \"{name}\"; __contentAddressed = true; outputHashMode = \"recursive\"; outputHashAlgo = \"sha256\";"
        )
    };
    let first = expression(&attributes("first"), "echo first > $out");
    expression(
        &format!("{} first = {first}; outputs = [ \"out\" \"dev\" ];", attributes("second")),
        "echo $first > $out; echo dev > $dev",
    )
}

/// The realisations that Nix puts into a cache, each with its file's name, where `key` signs what is built.
fn made_by_nix(nix: &Nix, key: &SecretKey) -> Vec<(DrvOutput, String)> {
    let file = nix.path("key");
    fs::write(&file, key.to_secret_string().as_str()).expect("a key file");
    let cache = nix.path("binary-cache");
    let secret = ["--option", "secret-key-files", file.to_str().expect("UTF-8")];
    let to = format!("file://{}", cache.display());
    let expr = chain();
    nix.bytes("nix", &[&["build", "--no-link", "--impure", "--expr", &expr], &secret[..]].concat());
    nix.bytes("nix", &["copy", "--to", &to, "--impure", "--expr", &expr]);
    let files = fs::read_dir(cache.join("realisations")).expect("Nix has copied realisations");
    let made = files.map(|file| {
        let file = file.expect("a readable folder");
        let name = format!("realisations/{}", file.file_name().to_str().expect("UTF-8"));
        let id = DrvOutput::from_file(&name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(id.file(), name);
        (id, fs::read_to_string(file.path()).expect("a realisation"))
    });
    made.collect()
}

fn new_key(name: &str) -> SecretKey {
    SecretKey::generate(name.parse().expect("the name of a key"))
}

#[test]
fn what_nix_signs_is_read_verified_signed_alike_and_written_alike() {
    let (nix, key) = (Nix::new(), new_key("builder-1"));
    let made = made_by_nix(&nix, &key);
    assert!(made.len() >= 2, "Nix made {made:?}");
    let mut with_dependencies = 0;
    for (id, text) in made {
        let realisation =
            Realisation::parse(&id, text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(realisation.render(), text);
        assert!(realisation.is_trusted(&[key.public_key()]), "{text}");
        assert!(!realisation.is_trusted(&[new_key("builder-1").public_key()]), "{text}");
        with_dependencies += usize::from(!realisation.dependencies().is_empty());

        let unsigned = text.replace(&format!("\"{}\"", realisation.signatures()[0]), "");
        let mut again = Realisation::parse(&id, unsigned.as_bytes()).expect("without its signature");
        assert!(!again.is_trusted(&[key.public_key()]));
        again.sign(&key);
        assert_eq!(again.signatures()[0], realisation.signatures()[0], "{text}");
    }
    assert!(with_dependencies > 0, "no realisation of Nix has dependencies");
}

#[test]
fn one_with_dependencies_is_signed_also_for_clients_that_leave_them_out() {
    let (nix, key) = (Nix::new(), new_key("builder-1"));
    for (id, text) in made_by_nix(&nix, &key) {
        let mut realisation = Realisation::parse(&id, text.as_bytes()).expect("a realisation");
        realisation.sign(&key);
        let count = if realisation.dependencies().is_empty() { 1 } else { 2 };
        assert_eq!(realisation.signatures().len(), count, "{}", realisation.render());
        // As Nix 2.34 takes it.
        let bare = Realisation::new(id, realisation.path().clone());
        let signs = |signature| key.public_key().verify(signature, &bare.fingerprint());
        assert!(realisation.signatures().iter().any(signs));
    }
}

/// A name by path, as from Nix 2.35 on.
fn by_path() -> DrvOutput {
    let file = format!("build-trace-v2/{HASH}-bar.drv/dev.doi");
    let id = DrvOutput::from_file(&file).expect("a name");
    assert_eq!(id.file(), file);
    id
}

const HASH: &str = "0123456789abcdfghijklmnpqrsvwxyz";

/// No Nix here speaks this format yet: it is what the source of Nix 2.35 says.
#[test]
fn a_realisation_by_path_is_signed_with_the_name_that_its_file_leaves_out() {
    let (id, key) = (by_path(), new_key("k-1"));
    let mut realisation =
        Realisation::new(id.clone(), StorePath::parse(&format!("{HASH}-foo")).expect("a path"));
    assert_eq!(
        realisation.fingerprint(),
        format!(
            "{{\"key\":{{\"drvPath\":\"{HASH}-bar.drv\",\"outputName\":\"dev\"}},\"value\":{{\"outPath\":\"{HASH}-foo\"}}}}"
        )
    );
    assert_eq!(realisation.render(), format!("{{\"outPath\":\"{HASH}-foo\",\"signatures\":[]}}"));
    realisation.sign(&key);
    let signature = realisation.signatures()[0].to_string();
    let (name, base64) = signature.split_once(':').expect("two parts");
    let parts = format!("{{\"keyName\":\"{name}\",\"sig\":\"{base64}\"}}");
    assert_eq!(realisation.render(), format!("{{\"outPath\":\"{HASH}-foo\",\"signatures\":[{parts}]}}"));
    for written in [parts.clone(), format!("\"{signature}\"")] {
        let text = format!("{{\"outPath\":\"{HASH}-foo\",\"signatures\":[{written}]}}");
        assert_eq!(Realisation::parse(&id, text.as_bytes()).expect("read"), realisation);
    }
    // The fields in their order, which a derived reader takes for the object.
    let in_a_row = format!("[\"{name}\",\"{base64}\"]");
    for wrong in [realisation.render().replace(&parts, &in_a_row), format!("[\"{HASH}-foo\",[]]")] {
        let read = Realisation::parse(&id, wrong.as_bytes());
        assert!(matches!(read, Err(RealisationError::Json(_))), "{wrong}: {read:?}");
    }
    let other = DrvOutput::from_file(&format!("build-trace-v2/{HASH}-bar.drv/out.doi")).expect("a name");
    let moved = Realisation::parse(&other, realisation.render().as_bytes()).expect("read");
    assert!(realisation.is_trusted(&[key.public_key()]) && !moved.is_trusted(&[key.public_key()]));
}

#[test]
fn what_names_no_output_is_refused() {
    let hex = "0f".repeat(32);
    let good = format!("realisations/sha256:{hex}!out.doi");
    assert_eq!(DrvOutput::from_file(&good).expect("a name").file(), good);
    for bad in [
        String::new(),
        format!("sha256:{hex}!out.doi"),
        format!("realisations/sha256:{hex}!out"),
        format!("realisations/sha256:{hex}!.doi"),
        format!("realisations/sha256:{hex}.doi"),
        format!("realisations/sha256:{hex}!a/b.doi"),
        format!("realisations/sha256:{hex}!a!b.doi"),
        format!("realisations/sha256:{hex}!{}.doi", "a".repeat(212)),
        format!("realisations/sha256:{}!out.doi", hex.to_uppercase()),
        format!("realisations/sha256:{}!out.doi", &hex[1..]),
        format!("realisations/sha512:{hex}!out.doi"),
        format!("realisations/{hex}!out.doi"),
        format!("realisations/../sha256:{hex}!out.doi"),
        format!("build-trace-v2/{HASH}-bar/out.doi"),
        format!("build-trace-v2/{HASH}-bar.drv.doi"),
        format!("build-trace-v2/{HASH}-bar.drv/.doi"),
        format!("build-trace-v2/{HASH}-bar.drv/a/b.doi"),
        format!("build-trace-v2/sha256:{hex}!out.doi"),
        format!("build-trace-v1/{HASH}-bar.drv/out.doi"),
    ] {
        assert!(DrvOutput::from_file(&bad).is_err(), "{bad}");
    }
    for bad in ["", "a b", "a/b", "größe", "a\n", "a\"b", "a^b"] {
        assert!(bad.parse::<OutputName>().is_err(), "{bad:?}");
    }
}

#[test]
fn a_realisation_that_is_malformed_or_of_something_else_is_refused() {
    let hex = "0f".repeat(32);
    let id: DrvOutput = format!("sha256:{hex}!out").parse().expect("a name");
    let written = |id: &str, path: &str, more: &str| {
        format!(
            "{{\"dependentRealisations\":{{}},\"id\":\"{id}\",\"outPath\":\"{path}\",\"signatures\":[]{more}}}"
        )
    };
    let path = format!("{HASH}-foo");
    assert!(Realisation::parse(&id, written(&id.to_string(), &path, "").as_bytes()).is_ok());
    let another = written(&format!("sha256:{hex}!dev"), &path, "");
    assert!(matches!(Realisation::parse(&id, another.as_bytes()), Err(RealisationError::Another(_))));
    let large = written(&id.to_string(), &path, &" ".repeat(REALISATION_BYTES_MAX));
    assert!(matches!(Realisation::parse(&id, large.as_bytes()), Err(RealisationError::TooLarge(_))));
    for bad in [
        String::new(),
        "null".into(),
        "[]".into(),
        "{}".into(),
        "[".repeat(100_000),
        written(&id.to_string(), &format!("/nix/store/{path}"), ""),
        written(&id.to_string(), "../../etc/passwd", ""),
        written(&id.to_string(), &path, ",\"more\":1"),
        written(&id.to_string(), &path, ",\"id\":\"twice\""),
        written(&id.to_string(), &path, "}{"),
        written(&id.to_string(), &path, "").replace("[]", "[\"no signature\"]"),
        written(&id.to_string(), &path, "").replace("[]", "[7]"),
        // The fields in their order, which a derived reader takes for the object.
        format!("[{{}},\"{id}\",\"{path}\",[]]"),
        written(&id.to_string(), &path, "").replace("{}", "{\"no id\":\"x\"}"),
        written(&id.to_string(), &path, "").replace("{}", &format!("{{\"{id}\":\"no path\"}}")),
    ] {
        let excerpt: String = bad.chars().take(200).collect();
        assert!(Realisation::parse(&id, bad.as_bytes()).is_err(), "{excerpt}");
    }
}
