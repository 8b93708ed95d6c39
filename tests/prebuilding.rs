//! Pre-building: attributes that people asked for are built anew after a bump, before anyone asks, and give
//! way to everyone who does. A real daemon; builds stop at gates, so that a test knows what runs.
//! tests/prebuild.rs has the bounds.

use std::time::{Duration, SystemTime};

use crate::support::addresses::narinfo_address;
use crate::support::package_set::{must_be_had, refresh, wait_for_generation};
use crate::support::{
    Derivation, Gate, Http, NixStore, Ondine, PackageSet, Release, derivations, text, wait_until,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
/// Time enough for a build to start that must not.
const A_WHILE: Duration = Duration::from_millis(1500);
/// The server's local time: east of Greenwich, wherever the machine is.
const HOURS_EAST: u64 = 5;

fn text_file(name: &str, text: &str) -> (String, String) {
    (name.to_owned(), derivations::text_file(name, text).to_nix())
}

/// Version `version` of what is called `name`, which waits at the gate.
fn gated(gate: &Gate, name: &str, version: &str) -> (String, String) {
    let script = format!("{}echo {version} > $out", gate.script(version));
    (name.to_owned(), Derivation::new(&format!("{name}-1.{version}"), &script).to_nix())
}

fn json(ondine: &Ondine, address: &str) -> Value {
    let told = Http::new(&ondine.url()).get(address);
    assert_eq!(told.status, 200, "{address}: {}", told.text());
    serde_json::from_str(&told.text()).expect("JSON")
}

fn told(ondine: &Ondine, attribute: &str) -> Value {
    json(ondine, &format!("/api/v1/catalogue/pkgs/{attribute}"))
}

fn is_served(ondine: &Ondine, attribute: &str) -> bool {
    told(ondine, attribute)["outputs"][0]["served"] == true
}

fn wait_until_counted(ondine: &Ondine, attribute: &str, times: u32) {
    wait_until("the request is counted", SOON, || told(ondine, attribute)["asked"] == times);
}

#[track_caller]
fn metric(ondine: &Ondine, name: &str) -> f64 {
    let metrics = Http::new(&ondine.url()).get("/metrics").text();
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().expect("a number"))
}

#[track_caller]
fn bump(set: &mut PackageSet, ondine: &Ondine, changed: (String, String)) {
    set.attributes.extend([changed]);
    set.write();
    refresh(ondine).must_succeed();
}

#[test]
fn what_people_asked_for_is_built_anew_after_a_bump_and_gives_way_to_who_asks_for_something_else() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let gate = store.gate();
    let mut set = PackageSet::new([text_file("a", "1"), text_file("b", "1"), text_file("c", "1")]);
    let ondine = set.serve(&store, "build-from = ['catalogue']\nprebuild = 'always'", "");
    wait_for_generation(&ondine);
    must_be_had(&ondine, &set.paths(&store, "a").1);
    wait_until_counted(&ondine, "a", 1);

    bump(&mut set, &ondine, gated(&gate, "a", "2"));
    gate.wait_for_starts(1);
    let running = &json(&ondine, "/api/v1/queue")["running"][0];
    assert_eq!(
        (&running["prebuild"], &running["request"]),
        (&Value::Bool(true), &Value::Null),
        "{running:#}"
    );
    // Someone needs something else: at once, though the gate is closed.
    must_be_had(&ondine, &set.paths(&store, "b").1);
    assert_eq!(metric(&ondine, "ondine_prebuild_seconds_count{outcome=\"stopped\"}"), 1.0);
    gate.wait_for_starts(2);
    assert!(!is_served(&ondine, "a"));
    gate.open();
    wait_until("it is served unasked", SOON, || is_served(&ondine, "a"));
    assert_eq!(gate.starts(), ["2", "2"]);
    assert_eq!(metric(&ondine, "ondine_prebuild_seconds_count{outcome=\"built\"}"), 1.0);
    assert!(metric(&ondine, "ondine_prebuilt_today_seconds") > 0.0);
    assert!(!is_served(&ondine, "c"), "nobody ever asked for it");
    // What is pre-built is kept without the Nix store.
    let out = set.paths(&store, "a").1;
    wait_until("nothing holds it there any more", SOON, || {
        store.gc();
        !store.is_valid(&out)
    });
    must_be_had(&ondine, &out);

    // Someone needs just what is pre-built: it goes on, and is theirs.
    gate.close();
    bump(&mut set, &ondine, gated(&gate, "a", "3"));
    gate.wait_for_starts(3);
    let out = set.paths(&store, "a").1;
    let url = ondine.url();
    let asked = std::thread::spawn(move || Http::new(&url).get(&narinfo_address(&out)).status);
    wait_until("it is taken over", SOON, || {
        let running = &json(&ondine, "/api/v1/queue")["running"][0];
        running["prebuild"] == false && running["request"].is_u64()
    });
    gate.open();
    assert_eq!(asked.join().expect("an answer"), 200);
    assert_eq!(gate.starts(), ["2", "2", "3"]);

    // What fails when it is pre-built fails for nobody who waits.
    bump(&mut set, &ondine, ("a".to_owned(), derivations::failing("a-1.4").to_nix()));
    wait_until("the failure is known", SOON, || !told(&ondine, "a")["failure"].is_null());
    assert_eq!(metric(&ondine, "ondine_prebuild_seconds_count{outcome=\"failed\"}"), 1.0);
}

#[test]
fn nothing_is_prebuilt_outside_its_hours_nor_beyond_its_seconds_also_after_a_restart() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let gate = store.gate();
    let mut set = PackageSet::new([text_file("a", "1")]);
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let hour = since.as_secs() / 3600 + HOURS_EAST;
    let settings = |from: u64, seconds: u32| {
        let hours = format!("{:02}:00-{:02}:00", (hour + from) % 24, (hour + from + 2) % 24);
        format!("build-from = ['catalogue']\nprebuild = '{hours}'\nprebuild-time-per-day = '{seconds}s'")
    };
    let file = set.settings(&settings(2, 3), "");
    let zone = format!("EAST-{HOURS_EAST}");
    let mut ondine = Ondine::start_with(&store, &["--config", text(&file)], &[("TZ", &zone)]);
    wait_for_generation(&ondine);
    must_be_had(&ondine, &set.paths(&store, "a").1);
    wait_until_counted(&ondine, "a", 1);
    bump(&mut set, &ondine, gated(&gate, "a", "2"));
    std::thread::sleep(A_WHILE);
    assert_eq!(gate.starts(), [""; 0], "it is not the time");

    // Within its hours, what was asked for before the restart is built, for three seconds.
    ondine.kill9();
    set.settings(&settings(0, 3), "");
    ondine.start_again();
    gate.wait_for_starts(1);
    assert_eq!(told(&ondine, "a")["asked"], 1);
    wait_until("its seconds are over", SOON, || {
        metric(&ondine, "ondine_prebuild_seconds_count{outcome=\"stopped\"}") == 1.0
    });
    assert!((2.9..10.0).contains(&metric(&ondine, "ondine_prebuilt_today_seconds")));
    std::thread::sleep(A_WHILE);
    ondine.kill9();
    ondine.start_again();
    std::thread::sleep(A_WHILE);
    assert_eq!(gate.starts(), ["2"], "there were no seconds left");

    // With more of them it goes on.
    ondine.kill9();
    set.settings(&settings(0, 3600), "");
    ondine.start_again();
    gate.wait_for_starts(2);
    gate.open();
    wait_until("it is served unasked", SOON, || is_served(&ondine, "a"));
}
