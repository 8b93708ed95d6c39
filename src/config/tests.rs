//! Settings as they may be written, and where they are refused.

use std::fs;

use clap::{Args, Command, FromArgMatches};

use super::error::Problem;
use super::setting::{DefaultValue, Described};
use super::*;

fn read(text: &str) -> Result<RawSettings, Error> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), text).expect("written");
    RawSettings::read(file.path())
}

fn resolve(text: &str) -> Result<Settings, Error> {
    read(&format!("state-dir = '/s'\n{text}"))?.resolve()
}

fn flags(arguments: &[&str]) -> RawSettings {
    let command = RawSettings::augment_args(Command::new("settings").no_binary_name(true));
    let matches = command.try_get_matches_from(arguments).expect("flags that exist");
    RawSettings::from_arg_matches(&matches).expect("settings")
}

/// The error with its causes, without the random name of the file, which may spell a word.
fn message(error: &Error) -> String {
    let text = crate::causes::with_causes(error);
    let word = |word: &str| match word.split_once("/.tmp") {
        Some((_, name)) => name.split_once(':').map(|(_, line)| format!(":{line}")).unwrap_or_default(),
        None => word.to_owned(),
    };
    text.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

/// All settings with the keys of their tables.
fn described() -> Vec<Described> {
    fn add(all: &mut Vec<Described>, settings: Vec<Described>) {
        for mut setting in settings {
            let keys = std::mem::take(&mut setting.keys);
            all.push(setting);
            add(all, keys);
        }
    }
    let mut all = Vec::new();
    add(&mut all, table::settings().map(setting::Setting::describe).collect());
    all
}

#[test]
fn each_setting_has_one_entry_with_a_paragraph_of_documentation() {
    let names: Vec<&str> = table::settings().map(|setting| setting.name).collect();
    let mut unique = names.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), names.len(), "{names:?}");
    for Described { name, doc, accepted, default, .. } in described() {
        assert!(doc.ends_with('.') && !doc.contains('\n') && !doc.contains("  "), "{name}: {doc:?}");
        assert!(!accepted.is_empty(), "{name}");
        assert!(
            default == DefaultValue::Required || default.show().is_some_and(|text| !text.is_empty()),
            "{name}"
        );
        let first = doc.split(' ').next().unwrap_or_default();
        assert!(
            !["What", "Who", "Whether", "How", "It", "When", "Such", "All"].contains(&first),
            "{name}: {doc}"
        );
    }
}

#[test]
fn every_default_is_accepted_and_reaches_its_field() {
    let settings = resolve("").expect("the defaults are good");
    assert_eq!(settings.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(settings.http.hold.as_secs(), 20);
    assert_eq!(settings.build.build_max.map(|time| time.as_secs()), Some(36_000));
    assert_eq!(settings.retention.max_bytes, None);
    assert_eq!(settings.substitute.build_from.len(), 2);
    assert_eq!(settings.nar_store.plain_bytes_max, 4 << 30);
    assert!(!settings.key_name.given && settings.upstream.caches.is_empty());
}

/// Every setting.
const ALL: &str = "\
    listen = '[::1]:0'\npublic-url = 'https://c'\ntrusted-proxies = ['::1']\nwrite-timeout = '7s'\n\
    drain-timeout = '5s'\nhold = '1s'\nkeep-alive-interval = '2s'\ntransient-retry = '2m'\npriority = 30\n\
    want-mass-query = true\nnarinfo-memory-bytes = 9\nnar-memory-bytes = '1K'\nplain-nar-cache-bytes = '2KiB'\n\
    build-from = ['store']\nbuild-cores = 2\nbuild-systems = ['a-linux']\nbuild-features = ['kvm']\n\
    builders = '@/no/machines'\nmax-jobs = 0\nmax-build-time = '1m'\nmax-silent-time = '0s'\n\
    max-build-log-bytes = 4096\nmax-total-log-bytes = '8KiB'\npermanent-failure-ttl = '1h'\n\
    transient-failure-ttl = '1m'\nlanes = 2\novertake-budget = '0s'\novertake-share = 10\n\
    background-daemon = '/b'\nprebuild = '22:00-06:00'\nprebuild-time-per-day = '60s'\n\
    max-derivations-per-request = 7\nmax-queued = 5\nmax-queued-per-client = 2\nabandon-after = '9s'\n\
    repeat = 2\nabandon-asked-after = '9m'\nunknown-wait = '9s'\n\
    upstream-lookup-timeout = '3s'\nnegative-ttl = '1m'\nnetrc-file = '/n'\nmax-upstream-nar-bytes = '8M'\n\
    state-dir = '/s'\nindex = 'postgres://h/d'\nindex-password-file = '/p'\nroles = ['serve']\n\
    nar-store = 's3://nars/a?region=r'\nnar-store-credentials = '/k'\nnar-cache-bytes = 9\n\
    nar-store-publish = 'narinfo'\nserve-nars = 'redirect'\nredirect-networks = ['10.0.0.0/8']\n\
    zstd-level = 3\nzstd-threads = 3\nmax-nar-store-bytes = '9G'\nmin-free-bytes = 9\n\
    eviction-grace = '3m'\nscrub-interval = '1d'\nkey-name = 'k-1'\nsigning-key = ['/k']\n\
    evaluator-isolation = 'none'\nread = 'token'\nbuild = 'token'\nmax-requests-per-second = 9\n\
    max-request-burst = 9\ntrusted-keys = ['k-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=']\nkeep-pushed = '9d'\n\
    log-format = 'json'\notlp-endpoint = 'http://c:4318'\n\
    [[builder]]\nname = 'b'\nssh = 'nix@b:22'\nkey-file = '/k'\nknown-hosts = '/h'\nremote-program = 'p'\n\
    systems = ['a-linux']\nfeatures = ['kvm']\nmandatory-features = ['big']\nslots = 2\nspeed = 3\nmax-silent = '1m'\n\
    weight = 2\ncache-url = 'https://c'\n\
    [[oidc]]\nissuer = 'https://i'\naudience = 'a'\nclaims = ['a=b']\nmay = ['pin']\nonly = ['p*']\nkeys-fresh-for = '1h'\n\
    [[upstream]]\nurl = 'https://cache.example.org'\npublic-keys = ['cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=']\n\
    priority = 4\nmode = 'redirect'\nconnect-timeout = '1s'\nstall-timeout = '9s'\ncredentials-file = '/c'\n\
    private-targets = true\n\
    [[catalogue]]\nname = 'pkgs'\nsource = { expression = '/p', attributes = ['a.b'] }\nindex = 'lazy'\n\
    systems = ['a-linux']\nrefresh = '1h'\nallow = ['a*']\ndeny = ['b*']\nstatic-attributes = 'musl'\nretain = '1d'\n\
    import-from-derivation = true\nnix-path = ['x=/x']\nallowed-uris = ['https://x']\ntimeout = '2h'\n\
    attribute-timeout = '1m'\nmax-memory-bytes = '1GiB'\n\
    [[catalogue]]\nname = 'flake'\nsource.flake = 'github:a/b'\nrefresh = 'manual'\n\
    [[catalogue]]\nname = 'directory'\nsource.directory = '/d'\n";

#[test]
fn every_setting_can_be_written_in_the_file_with_dashes_and_with_underscores() {
    for Described { name, .. } in described() {
        let written = |line: &str| line.contains(&format!("{name} =")) || line.contains(&format!("[{name}]"));
        assert!(
            ALL.lines().any(|line| written(line) || line.contains(&format!("source.{name}"))),
            "{name} is not written"
        );
    }
    // A background lane goes with one lane on this machine alone.
    let one_lane = ALL.replace("background-daemon = '/b'\n", "");
    let underscores = one_lane.lines().map(|line| match line.split_once(" = ") {
        Some((key, value)) => format!("{} = {value}\n", key.replace('-', "_")),
        None => format!("{line}\n"),
    });
    for text in [&one_lane, &underscores.collect()] {
        let settings =
            read(text).and_then(RawSettings::resolve).unwrap_or_else(|error| panic!("{}", message(&error)));
        assert_eq!(settings.upstream.caches[0].stall_timeout.as_secs(), 9);
        assert_eq!(settings.catalogue.sets[0].evaluation.memory_bytes_max, 1 << 30);
        assert_eq!((settings.nar_store.memory_bytes_max, settings.nar_bytes_max), (1_000, Some(8_000_000)));
        assert_eq!((settings.build.silent_max, settings.catalogue.sets[1].refresh), (None, None));
    }
}

#[test]
fn a_setting_is_the_same_as_a_flag() {
    let settings = flags(&[
        "--state-dir",
        "/s",
        "--hold",
        "1s",
        "--lanes",
        "2",
        "--max-nar-store-bytes",
        "1GiB",
        "--want-mass-query",
        "--build-from",
        "--trusted-proxies",
        "10.0.0.0/8,::1",
        "--upstream",
        "https://a k:AA==",
        "--catalogue",
        "a flake:nixpkgs",
        "--catalogue",
        "b directory:/b",
    ]);
    // An upstream's key must be one.
    let error = settings.clone().resolve().expect_err("no key");
    assert!(message(&error).starts_with("--upstream: public-keys = k:AA== in [[upstream]]: "), "{error}");
    let settings =
        flags(&["--upstream", "https://a cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="])
            .or(settings);
    let settings = settings.resolve().unwrap_or_else(|error| panic!("{}", message(&error)));
    assert_eq!((settings.http.hold.as_secs(), settings.build.lanes.get()), (1, 2));
    assert_eq!((settings.retention.max_bytes, settings.http.want_mass_query), (Some(1 << 30), true));
    assert_eq!((settings.substitute.build_from.len(), settings.http.trusted_proxies.0.len()), (0, 2));
    assert_eq!((settings.upstream.caches.len(), settings.catalogue.sets.len()), (1, 2));
}

#[test]
fn a_flag_wins_over_the_file() {
    let merged = flags(&["--priority", "10"])
        .or(read("state-dir = '/s'\npriority = 20\nzstd-level = 7").expect("a good file"));
    let settings = merged.resolve().expect("good settings");
    assert_eq!((settings.http.priority, settings.nar_store.zstd_level), (10, 7));
}

#[test]
fn a_name_that_is_unknown_or_written_twice_is_refused_with_its_line() {
    for (text, expected) in [
        ("priority = 1\nprioritty = 3", ":2: there is no setting \"prioritty\"; did you mean \"priority\"?"),
        ("zstd_level = 4\nzstd-level = 5", ":2: zstd-level is set a second time"),
        (
            "[[upstream]]\nurl = 'x'\nstal_timeout = '1s'",
            ":3: there is no setting \"stal-timeout\" in [[upstream]]; did you mean \"stall-timeout\"?",
        ),
        ("[[catalogue]]\nname = 'x'\ntimeot = '1s'", "did you mean \"timeout\"?"),
        (
            "[[catalogue]]\nsource = { flak = 'x' }",
            ":2: there is no setting \"flak\" in the source of a [[catalogue]]; did you mean \"flake\"?",
        ),
        ("[upstream]\nurl = 'x'", ":1: there may be several, so write [[upstream]]"),
    ] {
        let error = read(text).expect_err("a bad name").to_string();
        assert!(error.contains(expected), "{text}: no {expected:?} in {error}");
    }
    assert!(matches!(read("= 3"), Err(Error(Problem::Toml { .. }))));
}

#[test]
fn a_wrong_value_is_an_error_with_its_line_the_setting_and_the_accepted_values() {
    for (text, expected) in [
        (
            "priority = 1\nhold = 'soon'",
            ":3: hold = soon: expected a duration (20s, 5m, 24h) from 0s to 250s",
        ),
        ("hold = 5", ":2: hold = 5: expected a duration (20s, 5m, 24h) from 0s to 250s"),
        ("hold = '251s'", "hold = 251s: expected a duration (20s, 5m, 24h) from 0s to 250s"),
        (
            "build-from = ['stor']",
            "build-from = stor: expected \"store\" or \"catalogue\"; did you mean \"store\"?",
        ),
        ("evaluator-isolation = 'requird'", "expected \"required\" or \"none\"; did you mean \"required\"?"),
        (
            "[[upstream]]\nurl = 'https://x'\nmode = 'redirct'",
            ":4: mode = redirct in [[upstream]]: expected \"cache\", \"redirect\" or \"build-only\"; did you mean \"redirect\"?",
        ),
        ("[[upstream]]\npublic-keys = []", ":2: url is missing in [[upstream]]"),
        ("[[upstream]]\nurl = 'https://user:secret@x/'\n", "it needs public-keys"),
        ("[[catalogue]]\nname = 'x'\nsource = { flake = 'x', directory = '/x' }", ":4: source = "),
        (
            "[[catalogue]]\nname = 'x'\nsource = { flake = 'x' }\nmax-memory-bytes = '1MiB'",
            ":5: max-memory-bytes = 1MiB in [[catalogue]]: expected a number of bytes (1048576, 512MiB, 100G), 256MiB or more",
        ),
        ("[[catalogue]]\nname = 'x'\nsource = { flake = 'x' }\nindex = 'lasy'", "did you mean \"lazy\"?"),
    ] {
        let error = message(&resolve(text).expect_err("a bad value"));
        assert!(error.contains(expected), "{text}: no {expected:?} in {error}");
        assert!(!error.contains("secret"), "{error}");
    }
    let error = message(&flags(&["--state-dir", "/s", "--lanes", "two"]).resolve().expect_err("no number"));
    assert_eq!(error, "--lanes: lanes = two: expected a whole number from 0 to 32");
}

#[test]
fn a_value_of_the_wrong_type_is_refused_in_words_that_need_no_source_code() {
    let mut refused = 0;
    for setting in table::settings() {
        for value in ["true", "'x'", "-1", "1.5", "[[]]", "{ a = 1 }", "1979-05-27"] {
            let text = format!("{} = {value}", setting.name);
            let Err(error) = read(&text).and_then(|file| file.or(flags(&["--state-dir", "/s"])).resolve())
            else {
                continue;
            };
            let text = message(&error);
            for words in ["u64", "u32", "i32", "usize", "struct", "enum", "Raw", "Some("] {
                assert!(!text.contains(words), "{} = {value}: {words:?} in {text}", setting.name);
            }
            refused += 1;
        }
    }
    assert!(refused > 200, "only {refused} values were refused");
}

#[test]
fn a_value_out_of_bounds_is_refused() {
    for text in [
        "hold = '251s'",
        "keep-alive-interval = '0s'",
        "zstd-level = 20",
        "zstd-threads = 0",
        "eviction-grace = '8d'",
        "transient-retry = '25h'",
        "scrub-interval = '500ms'",
        "key-name = 'a:b'",
        "drain-timeout = '2h'",
        "write-timeout = '0s'",
        "public-url = 'cache.example.org'",
        "public-url = 'https://user:secret@cache.example.org'",
        "trusted-proxies = ['proxy.example.org']",
        "lanes = 33",
        "log-format = 'syslog'",
        "otlp-endpoint = 'collector:4318'",
        "prebuild = 'nights'",
        "prebuild = 'always'\nbuild-from = []",
        "max-derivations-per-request = 0",
        "overtake-share = 101",
        "max-build-log-bytes = 0",
        "max-build-log-bytes = 1023",
        "max-build-log-bytes = 5000\nmax-total-log-bytes = 4999",
        "overtake-budget = '8d'",
        "overtake-budget = '5m'\nlanes = 2",
        "background-daemon = '/b'\nlanes = 2",
        "background-daemon = '/b'\novertake-budget = '5m'",
        "[[upstream]]\nurl = 'https://x'",
        "[[upstream]]\nurl = 'file:///x'\nmode = 'redirect'\npublic-keys = []",
        "[[catalogue]]\nname = 'x'\nsource = { attributes = ['a'] }",
        "[[catalogue]]\nname = 'x'\nsource = { expression = 'relative' }",
        "[[catalogue]]\nname = 'x'\nsource = { flake = 'x' }\nsystems = []",
        "[[catalogue]]\nname = 'x'\nsource = { flake = 'x' }\nrefresh = '1s'",
    ] {
        assert!(matches!(resolve(text), Err(Error(Problem::Value { .. }))), "{text}");
    }
}
