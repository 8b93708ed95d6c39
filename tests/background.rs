//! The background lane: a second Nix daemon of the same store, whose builds have less weight, builds what is
//! short while the first one builds in the order of the queue; and its refusal where it would have as much
//! weight.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::support;
use crate::support::cache::assert_narinfo;
use crate::support::process::run;
use crate::support::{Cache, Derivation, NixStore, Ondine, Release, text};

/// A control group with a tenth of the usual weight, gone with the test. Made only when ONDINE_TEST_CGROUPS
/// is set: it takes root and writable control groups.
struct LightGroup(PathBuf);

impl LightGroup {
    fn new() -> LightGroup {
        let name = format!("ondine-test-{}", std::process::id());
        let (group, file, weight) = if fs::exists("/sys/fs/cgroup/cpu/cpu.shares").unwrap_or(false) {
            (PathBuf::from("/sys/fs/cgroup/cpu").join(name), "cpu.shares", "102")
        } else {
            (PathBuf::from("/sys/fs/cgroup").join(name), "cpu.weight", "10")
        };
        fs::create_dir(&group).unwrap_or_else(|error| panic!("{}: {error}", group.display()));
        let group = LightGroup(group);
        group.write(file, weight);
        group
    }

    fn take_in(&self, process: u32) {
        self.write("cgroup.procs", &process.to_string());
    }

    fn write(&self, file: &str, value: &str) {
        fs::write(self.0.join(file), value)
            .unwrap_or_else(|error| panic!("{}: {error}; unset ONDINE_TEST_CGROUPS", self.0.display()));
    }
}

impl Drop for LightGroup {
    fn drop(&mut self) {
        // Its last process may take a moment to go.
        for _ in 0..50 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn a_background_lane_of_equal_weight_is_refused_with_what_to_do() {
    let store = NixStore::new(Release::Host);
    let (_first, _second) = (store.daemon(), store.second_daemon());
    let state = tempfile::tempdir().expect("a folder");
    let refused = |socket: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ondine"));
        command.envs(store.variables()).args(["serve", "--listen", "127.0.0.1:0", "--state-dir"]);
        command.arg(state.path()).args(["--background-daemon", socket]);
        run(command).must_fail().stderr
    };
    let second = store.folder().join("socket-2");
    let why = refused(text(&second));
    assert!(why.contains("as much weight") && why.contains("CPUWeight"), "{why}");
    let why = refused("/nowhere");
    assert!(why.contains("both Nix daemons must answer"), "{why}");
}

#[test]
fn what_is_short_is_built_in_the_background_while_the_oldest_goes_on() {
    if std::env::var_os("ONDINE_TEST_CGROUPS").is_none() {
        eprintln!("not tried: ONDINE_TEST_CGROUPS is not set");
        return;
    }
    let light = LightGroup::new();
    let store = NixStore::new(Release::Host);
    let (daemon, second) = (store.daemon(), store.second_daemon());
    light.take_in(second.id());
    let socket = store.folder().join("socket-2");
    let ondine = Ondine::start(&store, &["--background-daemon", text(&socket)]);
    let http = support::Http::new(&ondine.url());
    let cache = Cache { http, ondine, daemon, store };
    let short = |version: &str| {
        let name = format!("short-{version}");
        cache.store.instantiate(&Derivation::new(&name, &format!("echo {name} > $out")))
    };
    assert_narinfo(&cache.ask(short("1.0").out()), short("1.0").out());
    let main = cache.store.gate();
    let [first, long] = ["first", "long"].map(|name| cache.gated(name, &main));
    let waiting = [cache.ask_in_background(first.out()), cache.ask_in_background(long.out())];
    main.wait_for_starts(2);
    let mut starts = main.starts();
    starts.sort_unstable();
    assert_eq!(starts, ["first", "long"], "one in each lane");
    main.open();
    for (waiting, wanted) in waiting.into_iter().zip([&first, &long]) {
        assert_narinfo(&waiting.answer(), wanted.out());
    }
    main.close();
    let next = cache.gated("next", &main);
    let waiting = cache.ask_in_background(next.out());
    main.wait_for_starts(3);
    assert_narinfo(&cache.ask(short("1.1").out()), short("1.1").out());
    main.open();
    assert_narinfo(&waiting.answer(), next.out());
}
