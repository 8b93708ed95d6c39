//! Keys and signatures, both ways between us and the real Nix.

mod support;

use std::fs;

use narinfo::{KeyName, NarInfo, PathInfo, PublicKey, SecretKey, Signature, SignatureError, StorePath};
use support::{Nix, expression};

/// A key pair that Nix made: the texts of both files.
fn nix_key(nix: &Nix, name: &str) -> (String, String) {
    let (secret, public) = (nix.path("secret"), nix.path("public"));
    let arguments = ["--generate-binary-cache-key", name, secret.to_str().unwrap(), public.to_str().unwrap()];
    nix.bytes("nix-store", &arguments);
    (fs::read_to_string(secret).expect("a key"), fs::read_to_string(public).expect("a key"))
}

/// A path with two references and itself, which is not content-addressed: nothing but a signature makes it
/// trusted.
fn built(nix: &Nix) -> StorePath {
    let dependency = |name: &str| expression(&format!("name = \"{name}\";"), "echo x > $out");
    let attributes =
        format!("name = \"top\"; a = {}; b = {};", dependency("first+1"), dependency("second_2"));
    nix.build(&expression(&attributes, "echo $a $b $out > $out"))
}

/// The text that Nix signs of `path`.
fn fingerprint(nix: &Nix, path: &StorePath) -> String {
    let full = nix.full(path);
    let info = PathInfo {
        path: path.clone(),
        nar_hash: nix.text("nix-store", &["-q", "--hash", &full]).parse().expect("a hash"),
        nar_size: nix.text("nix-store", &["-q", "--size", &full]).parse().expect("a size"),
        references: nix.paths("nix-store", &["-q", "--references", &full]).into_iter().collect(),
        deriver: None,
        ca: None,
        signatures: Vec::new(),
    };
    info.fingerprint(&nix.store_dir())
}

/// Signs `path` with Nix and a key file of this text, and returns what was signed.
fn sign_with_nix(nix: &Nix, secret: &str, path: &StorePath) -> Vec<Signature> {
    let file = nix.path("key-for-signing");
    fs::write(&file, secret).expect("a key file");
    nix.bytes("nix", &["store", "sign", "-k", file.to_str().unwrap(), &nix.full(path)]);
    let line = nix.text("nix", &["path-info", "--sigs", &nix.full(path)]);
    line.split_whitespace()
        .filter(|word| word.contains(':'))
        .map(|word| word.parse().expect("a signature"))
        .collect()
}

fn nix_verifies(nix: &Nix, path: &StorePath, public: &str) -> bool {
    let full = nix.full(path);
    let arguments =
        ["store", "verify", "--sigs-needed", "1", "--option", "trusted-public-keys", public, full.as_str()];
    nix.attempt("nix", &arguments).status.success()
}

#[test]
fn a_key_of_nix_signs_here_what_it_signs_there() {
    let nix = Nix::new();
    let (secret, public) = nix_key(&nix, "cache.example.org-1");
    let key: SecretKey = secret.parse().expect("Nix's secret key");
    let verifier: PublicKey = public.parse().expect("Nix's public key");
    assert_eq!(key.to_secret_string().as_str(), secret);
    assert_eq!((key.public_key().to_string(), verifier.to_string()), (public.clone(), public));
    let path = built(&nix);
    let fingerprint = fingerprint(&nix, &path);
    let signatures = sign_with_nix(&nix, &secret, &path);
    assert_eq!(signatures, [key.sign(&fingerprint)]);
    assert!(verifier.verify(&signatures[0], &fingerprint));
    assert_eq!(signatures[0].name().to_string(), "cache.example.org-1");
}

#[test]
fn a_key_of_ours_is_one_to_nix() {
    let nix = Nix::new();
    let key = SecretKey::generate("ondine-1".parse().expect("a name"));
    let path = built(&nix);
    let public = key.public_key().to_string();
    assert!(!nix_verifies(&nix, &path, &public), "nothing is signed yet");
    let signatures = sign_with_nix(&nix, &key.to_secret_string(), &path);
    assert_eq!(signatures, [key.sign(&fingerprint(&nix, &path))]);
    assert!(nix_verifies(&nix, &path, &public));
    let other = SecretKey::generate("ondine-1".parse().expect("a name")).public_key();
    assert!(!nix_verifies(&nix, &path, &other.to_string()), "another key of the same name");
}

#[test]
fn nix_trusts_a_cache_that_we_signed() {
    let nix = Nix::new();
    let path = built(&nix);
    let cache = nix.path("binary-cache");
    nix.bytes("nix", &["copy", "--to", &format!("file://{}", cache.display()), &nix.full(&path)]);
    let key = SecretKey::generate("ondine-1".parse().expect("a name"));
    let mut narinfos = 0;
    for entry in fs::read_dir(&cache).expect("a cache") {
        let file = entry.expect("an entry").path();
        if file.extension().is_some_and(|extension| extension == "narinfo") {
            let mut info =
                NarInfo::parse(&nix.store_dir(), &fs::read(&file).expect("a narinfo")).expect("a narinfo");
            assert!(info.path_info.signatures.is_empty());
            info.path_info.signatures.push(key.sign(&info.path_info.fingerprint(&nix.store_dir())));
            fs::write(&file, info.render(&nix.store_dir())).expect("our narinfo");
            narinfos += 1;
        }
    }
    assert_eq!(narinfos, 3, "the path and what it refers to");
    let store = format!("file://{}", cache.display());
    let verify = |public: &PublicKey| {
        let (public, full) = (public.to_string(), nix.full(&path));
        let arguments = ["store", "verify", "--recursive", "--sigs-needed", "1", "--store", store.as_str()];
        let rest = ["--option", "trusted-public-keys", public.as_str(), full.as_str()];
        nix.attempt("nix", &[&arguments[..], &rest[..]].concat()).status.success()
    };
    assert!(verify(&key.public_key()));
    assert!(!verify(&SecretKey::generate("ondine-1".parse().expect("a name")).public_key()));
}

#[test]
fn a_signature_is_of_one_name_key_and_text() {
    let key = SecretKey::generate("a-1".parse().expect("a name"));
    let signature = key.sign("1;text");
    assert!(key.public_key().verify(&signature, "1;text"));
    assert!(!key.public_key().verify(&signature, "1;texT"));
    assert!(!key.public_key().verify(&signature, ""));
    let renamed = |text: String| format!("b-1{}", text.strip_prefix("a-1").expect("the name"));
    let other_name: PublicKey = renamed(key.public_key().to_string()).parse().expect("a key");
    assert!(!other_name.verify(&signature, "1;text"), "the key of another name");
    assert!(other_name.verify(&renamed(signature.to_string()).parse().expect("a signature"), "1;text"));
    let other_key = SecretKey::generate("a-1".parse().expect("a name")).public_key();
    assert!(!other_key.verify(&signature, "1;text"), "another key of that name");
}

#[test]
fn malformed_keys_and_signatures_are_refused() {
    let key = SecretKey::generate("a-1".parse().expect("a name"));
    let other = SecretKey::generate("a-1".parse().expect("a name"));
    let forms = [key.to_secret_string().to_string(), key.public_key().to_string(), key.sign("x").to_string()];
    let refused = |text: &str| {
        assert!(text.parse::<SecretKey>().is_err(), "{text:?} as a secret key");
        assert!(text.parse::<PublicKey>().is_err(), "{text:?} as a public key");
        assert!(text.parse::<Signature>().is_err(), "{text:?} as a signature");
    };
    for form in &forms {
        let (name, encoded) = form.split_once(':').expect("a colon");
        for text in [
            String::new(),
            ":".to_owned(),
            name.to_owned(),
            encoded.to_owned(),
            format!(":{encoded}"),
            format!("{name}:"),
            format!("{name};{encoded}"),
            format!("{name}: {encoded}"),
            format!("{name}:{encoded} "),
            format!("{name}:{encoded}\n\n"),
            format!("{name}:{encoded}\r\n"),
            format!("a b:{encoded}"),
            format!("a\n:{encoded}"),
            format!("\0:{encoded}"),
            format!("{name}:x:{encoded}"),
            format!("{name}:{}", &encoded[4..]),
            format!("{name}:AAAA{encoded}"),
            format!("{name}:{}", encoded.trim_end_matches('=')),
            format!("{name}:{}", "A".repeat(64 * 1024)),
            format!("{}:{encoded}", "n".repeat(256)),
        ] {
            // A signature and a secret key have the same length, so each form is tried with its own kind of
            // text.
            if text != *form {
                refused(&text);
            }
        }
    }
    // The halves of two keys.
    let decode = |text: &str| text.split_once(':').expect("a colon").1.as_bytes().to_vec();
    let mixed = [&decode(&forms[0])[..44], &decode(&other.to_secret_string())[44..]].concat();
    let mixed = format!("a-1:{}", String::from_utf8(mixed).expect("base64"));
    assert_eq!(mixed.parse::<SecretKey>().expect_err("two keys"), SignatureError::Halves);
}

#[test]
fn a_newline_after_a_secret_key_is_tolerated() {
    let key = SecretKey::generate("a-1".parse().expect("a name"));
    let text = format!("{}\n", key.to_secret_string().as_str());
    assert_eq!(text.parse::<SecretKey>().expect("a key").public_key(), key.public_key());
}

#[test]
fn a_secret_key_does_not_show_itself() {
    let key = SecretKey::generate("a-1".parse().expect("a name"));
    let shown = format!("{key:?}");
    let secret = key.to_secret_string();
    let encoded = secret.split_once(':').expect("a colon").1;
    assert!(shown.contains("a-1") && !shown.contains(&encoded[..16]), "{shown}");
    let error = format!("x{}", secret.as_str()).replace(':', ";").parse::<SecretKey>().expect_err("no colon");
    assert!(!format!("{error} {error:?}").contains(&encoded[..16]));
}

#[test]
fn a_name_has_no_colon_and_no_white_space() {
    for name in ["cache.example.org-1", "a", "ü", "+/="] {
        assert_eq!(name.parse::<KeyName>().expect("a name").to_string(), name);
    }
    for name in ["", ":", "a:b", " ", "a b", "a\t", "a\n", "a\0", "a\u{a0}b"] {
        assert!(name.parse::<KeyName>().is_err(), "{name:?} was accepted");
    }
}
