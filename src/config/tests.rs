//! What may be written, and where it is refused.

use std::fs;

use super::*;

fn read(text: &str) -> Result<Written, Error> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), text).expect("written");
    Written::read(file.path())
}

#[test]
fn every_setting_can_be_written_in_the_file_and_set_by_a_variable() {
    let command = Written::augment_args(Command::new("settings"));
    let written = read(
        "listen = '[::1]:0'\nstate-dir = '/s'\nkey-name = 'k-1'\nsigning-key = ['/k']\nevaluator-isolation = 'required'\nbuild-from = ['store']\n\
         upstream-lookup-timeout = '3s'\nnegative-ttl = '1m'\nnetrc-file = '/n'\nbuild-cores = 2\n\
         build-systems = ['a-linux']\nbuild-features = ['kvm']\nmax-derivations-per-request = 7\nlanes = 2\n\
         builders = '@/etc/nix/machines'\nmax-jobs = 0\novertake-budget = '5m'\novertake-share = 10\nbackground-daemon = '/b'\n\
         prebuild = '22:00-06:00'\nprebuild-time-per-day = 60\nmax-queued = 5\nabandon-after = '9s'\nmax-queued-per-client = 2\nmax-build-time = 60\nmax-silent-time = 30\n\
         max-build-log-bytes = 4096\nmax-total-log-bytes = 8192\nhold = '1s'\nkeep-alive-interval = '2s'\n\
         permanent-failure-ttl = '1h'\ntransient-failure-ttl = '1m'\ntransient-retry = '2m'\npriority = 30\nwant-mass-query = true\nnarinfo-memory-bytes = 9\n\
         max-nar-store-bytes = 9\nmin-free-bytes = 9\nscrub-interval = '1d'\neviction-grace = '3m'\nzstd-level = 1\nzstd-threads = 3\nnar-memory-bytes = 1\nplain-nar-cache-bytes = 2\ndrain-timeout = '5s'\nwrite-timeout = '7s'\n\
         public-url = 'https://c'\ntrusted-proxies = ['::1']\n\
         max-upstream-nar-bytes = 8\n\
         [[upstream]]\nurl = 'https://cache.example.org'\npublic-keys = ['k:AA==']\npriority = 4\nmode = 'redirect'\n\
         connect-timeout = '1s'\nstall-timeout = '9s'\ncredentials-file = '/c'\nprivate-targets = true\n\
         [[catalogue]]\nname = 'pkgs'\nsource = {expression = '/p', attributes = ['a.b']}\nsystems = ['a-linux']\n\
         refresh = '1h'\nindex = 'lazy'\nallow = ['a*']\ndeny = ['b*']\nretain = '1d'\nimport-from-derivation = true\n\
         nix-path = ['p=/p']\nallowed-uris = ['https://x']\ntimeout = '1m'\nattribute-timeout = '1s'\n\
         max-memory-bytes = 1073741824\n",
    )
    .expect("a good file");
    let debug = format!("{written:?}");
    assert!(!debug.contains("None"), "a setting is not in this file: {debug}");
    for arg in command.get_arguments() {
        let flag = arg.get_long().expect("every setting is a flag");
        let variable = format!("ONDINE_{}", flag.replace('-', "_").to_uppercase());
        assert_eq!(arg.get_env().and_then(|v| v.to_str()), Some(&*variable));
    }
}

#[test]
fn an_unknown_key_is_an_error_that_names_the_nearest_setting() {
    let error = read("prioritty = 3").expect_err("no such setting").to_string();
    assert!(error.contains("\"prioritty\"") && error.contains("\"priority\""), "{error}");
}

#[test]
fn dashes_and_underscores_are_the_same_but_not_both_at_once() {
    assert_eq!(read("zstd_level = 4").expect("a good file").zstd_level, Some(4));
    assert!(matches!(read("zstd_level = 4\nzstd-level = 5"), Err(Error::Toml { .. })));
}

#[test]
fn a_wrong_value_is_an_error_that_says_where() {
    let error = read("priority = 1\nhold = 'soon'").expect_err("no duration");
    let text = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(text.contains("line 2") && text.contains("20s"), "{text}");
    assert!(matches!(read("= 3"), Err(Error::Toml { .. })));
}

#[test]
fn a_value_of_the_wrong_type_is_told_in_words_that_need_no_source_code() {
    for setting in known_settings() {
        for value in ["true", "'x'", "-1", "1.5", "[[]]", "{ a = 1 }"] {
            let Err(error) = read(&format!("{setting} = {value}")) else { continue };
            let text = format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
            // The name of the temporary file is random: it may spell one of the words.
            let text =
                text.split_whitespace().filter(|word| !word.contains("/.tmp")).collect::<Vec<_>>().join(" ");
            for words in ["u64", "u32", "i32", "usize", "struct", "enum", "Written"] {
                assert!(!text.contains(words), "{setting} = {value}: {words:?} in {text}");
            }
        }
    }
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
    ] {
        let written = read(&format!("state-dir = '/s'\n{text}")).expect("a good file");
        assert!(matches!(written.resolve(), Err(Error::Bounds { .. })), "{text}");
    }
}

#[test]
fn a_flag_wins_over_the_file() {
    let flag = Written { priority: Some(10), ..Written::default() };
    let merged = flag.or(read("priority = 20\nzstd-level = 7").expect("a good file"));
    assert_eq!((merged.priority, merged.zstd_level), (Some(10), Some(7)));
}
