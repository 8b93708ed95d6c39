//! The log of a server in each form: lines for people and JSON, with the ids of requests and builds that
//! pages and the API show, too.

use std::time::Duration;

use crate::support::addresses::{base_name, narinfo_address};
use crate::support::{Cache, Derivation, NixStore, Release, wait_until};
use serde_json::Value;

/// Time limit of what takes no time, on a machine that does much else.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn lines_of_json_have_the_numbers_of_requests_and_the_names_of_builds_that_the_api_has() {
    let cache = Cache::of(
        NixStore::new(Release::Host),
        &["--log-format", "json"],
        &[("ONDINE_LOG", "info,ondine::access=debug")],
    );
    let built = cache.store.instantiate(&Derivation::new("built", "echo > $out"));
    cache.narinfo(built.out());
    let (drv, address) = (base_name(&built.drv), narinfo_address(built.out()));
    wait_until("its access is logged", SOON, || cache.ondine.log().contains(&address));
    let log = cache.ondine.log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let line = |message: &str| {
        let found = lines.iter().find(|line| line["message"] == message);
        found.unwrap_or_else(|| panic!("no {message:?} in {log}"))
    };
    let requests = cache.http.get("/api/v1/builds");
    let requests: Value = serde_json::from_slice(&requests.body).expect("JSON");
    assert_eq!(requests["ended"][0]["derivation"], drv, "{requests}");
    let number = &requests["ended"][0]["id"];
    assert!(number.is_u64(), "{requests}");
    for message in ["request planned", "building", "built", "delivered"] {
        let line = line(message);
        assert_eq!((&line["drv"], &line["request"]), (&drv.into(), number), "{line}");
        assert_eq!((&line["level"], line["time"].is_string()), (&"info".into(), true), "{line}");
    }
    assert_eq!(line("built")["builder"], "local");
    let line = line("request");
    assert_eq!((&line["status"], &line["path"]), (&200.into(), &address.into()), "{line}");
    assert!(line["milliseconds"].is_u64(), "{line}");
}

#[test]
fn lines_for_people_have_the_same_ids() {
    let cache = Cache::new(&[]);
    let built = cache.store.instantiate(&Derivation::new("built", "exit 1"));
    assert_eq!(cache.ask(built.out()).status, 404);
    let drv = base_name(&built.drv);
    wait_until("the failure is logged", SOON, || cache.ondine.log().contains("build failed"));
    let log = cache.ondine.log();
    let line = log.lines().find(|line| line.contains("build failed")).expect("a line");
    for words in [&format!("drv={drv}"), "request=1", "builder=\"local\"", "reason="] {
        assert!(line.contains(words), "no {words} in {line}");
    }
}
