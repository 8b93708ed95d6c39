//! The reach of tokens: one that is bound to names touches no other, and nobody ends the requests of others.

use std::time::Duration;

use crate::support;
use crate::support::addresses::narinfo_address;
use crate::support::cache::{assert_missing, status_of};
use crate::support::tokens::{bearer, json_of, send, send_body};
use crate::support::{Cache, Derivation};

/// Time that an answer may take.
const SOON: Duration = Duration::from_secs(60);

/// The number of a request for the build of a derivation, which this client begins.
fn request_for(cache: &Cache, drv: &std::path::Path, authorization: &str) -> String {
    let drv = support::addresses::base_name(drv);
    let body = serde_json::json!({ "derivations": [drv], "start": true }).to_string();
    let answer = send_body(cache, "POST", "/api/v1/builds", Some(authorization), &body);
    json_of(&answer)["items"][0]["request"].as_u64().unwrap_or_else(|| panic!("{answer}")).to_string()
}

#[test]
fn a_token_that_is_bound_to_names_reaches_no_other_by_any_way() {
    let cache = Cache::new(&["--read", "token", "--build", "token"]);
    let gate = cache.store.gate();
    let admin = bearer(&cache, "admin", "admin", &[]);
    let bound = bearer(&cache, "bound", "read,build,push,vouch,cancel,pin", &["--only", "p-*"]);
    let failed = cache.failing("q", &gate, "exit 1");
    let ask = |path| cache.http.get_with(&narinfo_address(path), &[("authorization", &admin)]);
    assert_missing(
        &ask(failed.out()),
        &["failed with exit code 1", "the end of the log:\n", "famous last words"],
    );
    let [own, other] = ["p-own", "other"]
        .map(|name| cache.store.instantiate(&Derivation::new(name, &format!("echo {name} > $out"))));
    for built in [&own, &other] {
        assert_eq!(ask(built.out()).status, 200);
    }
    let base = support::addresses::base_name;
    let hash = |path| &base(path)[..32];
    let is_pinned =
        || cache.http.get_with("/api/v1/pins", &[("authorization", &admin)]).text().contains("-other");
    let send = |verb, path: &str, body: &str| {
        let answer = send_body(&cache, verb, path, Some(&bound), body);
        (status_of(answer.as_bytes()), answer)
    };
    let refused = |verb, path: &str, body: &str| {
        let (status, answer) = send(verb, path, body);
        assert!(status == 403 && answer.contains("token bound has the right"), "{verb} {path}: {answer}");
    };
    for body in ["", "{\"forget_only\": true}"] {
        refused("POST", &format!("/api/v1/failures/{}/retry", base(&failed.drv)), body);
    }
    assert_missing(
        &ask(failed.out()),
        &["failed with exit code 1", "the end of the log:\n", "famous last words"],
    );
    assert_eq!(gate.starts().len(), 1, "nothing was forgotten");
    refused("POST", &format!("/api/v1/pins/{}", hash(other.out())), "");
    // A name that is none of the hash's proves nothing, whether or not the path is served.
    for path in [other.out(), failed.out()] {
        let (status, answer) = send("POST", &format!("/api/v1/pins/{}-p-own", hash(path)), "");
        assert!(status == 400 && answer.contains("is not what its hash names"), "{answer}");
    }
    let nobodys = "0123456789abcdfghijklmnpqrsvwxyz-p-own";
    refused("POST", &format!("/api/v1/pins/{nobodys}"), "");
    assert!(!is_pinned());
    let pin = format!("/api/v1/pins/{}", base(other.out()));
    let pinned = send_body(&cache, "POST", &pin, Some(&admin), "");
    assert!(is_pinned(), "{pinned}");
    refused("DELETE", &pin, "");
    refused("DELETE", &format!("/api/v1/pins/{}", hash(other.out())), "");
    assert!(is_pinned());
    refused("PUT", &format!("/log/{}", base(&other.drv)), "forged");
    let realisation = format!("{{\"outPath\": \"{}\", \"signatures\": []}}", base(own.out()));
    refused("PUT", &format!("/build-trace-v2/{}/out.doi", base(&other.drv)), &realisation);
    // The output of another derivation of a name that is allowed.
    let wrong = format!("/build-trace-v2/{}-p-new.drv/out.doi", hash(own.out()));
    let (status, answer) = send("PUT", &wrong, &realisation);
    assert!(status == 400 && answer.contains("has not the name"), "{answer}");
    for (verb, path, body) in [
        ("PUT", format!("/build-trace-v2/{}/out.doi", base(&own.drv)), &*realisation),
        ("PUT", format!("/log/{}-p-new.drv", hash(own.out())), "words"),
        ("POST", format!("/api/v1/pins/{}", base(own.out())), ""),
        ("DELETE", format!("/api/v1/pins/{}", base(own.out())), ""),
    ] {
        let (status, answer) = send(verb, &path, body);
        assert_eq!(status, 200, "{answer}");
    }
}

#[test]
fn a_request_is_cancelled_by_its_owner_or_an_administrator_and_so_is_a_retry() {
    let cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let [owner, stranger] = ["owner", "stranger"].map(|name| bearer(&cache, name, "build,cancel", &[]));
    let admin = bearer(&cache, "admin", "admin", &[]);
    let failed = ["one", "two", "three"].map(|name| cache.failing(name, &gate, "exit 1"));
    for failed in &failed {
        assert_missing(
            &cache.ask(failed.out()),
            &["failed with exit code 1", "the end of the log:\n", "famous last words"],
        );
    }
    let running = cache.gated("running", &gate);
    let running = request_for(&cache, &running.drv, &owner);
    gate.wait_for_starts(4);
    let cancel = |number: &str, authorization: &str| {
        send(&cache, "DELETE", &format!("/api/v1/builds/{number}"), Some(authorization))
    };
    let must_be_refused = |number: &str| {
        let refused = cancel(number, &stranger);
        assert!(status_of(refused.as_bytes()) == 403 && refused.contains("another client's"), "{refused}");
    };
    let retry = |failed: &support::Instantiated, authorization: &str| {
        let path = format!("/api/v1/failures/{}/retry", support::addresses::base_name(&failed.drv));
        send(&cache, "POST", &path, Some(authorization))
    };
    let [one, two, three] = &failed;
    for (failed, canceller) in [(one, &owner), (two, &admin)] {
        let asked = retry(failed, &owner);
        let number =
            asked.split("request ").nth(1).and_then(|rest| rest.split('.').next()).expect("a number");
        must_be_refused(number);
        let told = cancel(number, canceller);
        assert!(told.contains(&format!("cancelled: request {number}")), "{told}");
    }
    // A retry takes up a place of its token.
    let full = bearer(&cache, "full", "build,cancel", &["--max-queued", "1"]);
    let held = cache.gated("held", &gate);
    let held = request_for(&cache, &held.drv, &full);
    let asked = retry(three, &full);
    assert!(asked.contains("not queued: refused: 1 builds wait for the token full"), "{asked}");

    // Whoever leaves has a time to return in, which nobody else ends.
    let left = cache.gated("left", &gate);
    drop(cache.stand_in_line(left.out()));
    let abandoned = || {
        let list: serde_json::Value =
            serde_json::from_str(&cache.http.get("/api/v1/builds").text()).expect("JSON");
        let requests = list["requests"].as_array().expect("requests").clone();
        let is_left = |request: &serde_json::Value| request["clients"] == 0;
        requests.into_iter().find(is_left).and_then(|request| request["id"].as_u64())
    };
    support::wait_until("the client has left", SOON, || abandoned().is_some());
    let number = abandoned().expect("it waits").to_string();
    must_be_refused(&number);
    let seen = send(&cache, "GET", &format!("/api/v1/builds/{number}"), Some(&stranger));
    assert_eq!(status_of(seen.as_bytes()), 200);
    let told = cancel(&number, &stranger);
    assert!(told.contains("given up: "), "{told}");
    cache.wait_for_queue(&["running", "held", "left"]);
    for (number, owner) in [(&running, &owner), (&held, &full)] {
        must_be_refused(number);
        let told = cancel(number, owner);
        assert!(told.contains("cancelled: "), "{told}");
    }
    gate.open();
}

#[test]
fn where_building_needs_a_token_a_retry_needs_the_right_to_build() {
    let cache = Cache::new(&["--build", "token"]);
    let gate = cache.store.gate();
    let failed = cache.failing("failed", &gate, "exit 1");
    let builder = bearer(&cache, "builder", "build", &[]);
    let answer = cache.http.get_with(&narinfo_address(failed.out()), &[("authorization", &builder)]);
    assert_missing(&answer, &["failed with exit code 1", "the end of the log:\n", "famous last words"]);
    let canceller = bearer(&cache, "canceller", "cancel", &[]);
    let path = format!("/api/v1/failures/{}/retry", support::addresses::base_name(&failed.drv));
    let retry = |body| send_body(&cache, "POST", &path, Some(&canceller), body);
    let refused = retry("");
    assert_eq!(status_of(refused.as_bytes()), 403, "{refused}");
    assert!(refused.contains("lacks the right \\\"build\\\""), "{refused}");
    let forgotten = retry("{\"forget_only\": true}");
    assert!(forgotten.contains("forgotten: "), "{forgotten}");
    assert_eq!(gate.starts().len(), 1);
}
