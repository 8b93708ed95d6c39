//! Tokens: what a client may do with one and without, on every endpoint and with stock clients of every
//! release; and where the secret of one never is.

mod support;

use std::time::Duration;

use support::addresses::{field, narinfo_address};
use support::cache::{assert_missing, assert_narinfo, status_of};
use support::http::raw;
use support::process::run;
use support::store::{Folder, write};
use support::{Cache, Client, Derivation, Release, text};

/// Names of all rights.
const RIGHTS: [&str; 8] = ["read", "build", "push", "vouch", "refresh", "cancel", "pin", "admin"];
/// Time that an answer may take.
const SOON: Duration = Duration::from_secs(60);
/// Settings under which a client without a token may do nothing.
const CLOSED: [&str; 4] = ["--read", "token", "--build", "token"];

/// Runs `ondine token` with these arguments.
fn token(cache: &Cache, arguments: &[&str]) -> support::Finished {
    let mut program = cache.ondine.command("token");
    program.args(arguments).arg("--state-dir").arg(cache.ondine.state_dir());
    run(program)
}

/// The value of a header Authorization with a new token of these rights.
fn bearer(cache: &Cache, name: &str, rights: &str, more: &[&str]) -> String {
    format!("Bearer {}", cache.ondine.new_token(name, rights, more))
}

/// A request of any method without a body, its answer as text.
fn send(cache: &Cache, verb: &str, path: &str, authorization: Option<&str>) -> String {
    send_body(cache, verb, path, authorization, "")
}

/// The same with a body.
fn send_body(cache: &Cache, verb: &str, path: &str, authorization: Option<&str>, body: &str) -> String {
    let authorization = authorization.map(|value| format!("Authorization: {value}\r\n")).unwrap_or_default();
    let length = body.len();
    let request = format!(
        "{verb} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{authorization}\r\n{body}"
    );
    let (answer, closed) = raw(cache.ondine.address(), request.as_bytes(), SOON);
    assert!(closed, "{verb} {path} was not answered in time");
    String::from_utf8_lossy(&answer).into_owned()
}

/// The JSON in an answer.
fn json_of(answer: &str) -> serde_json::Value {
    let body = answer.split("\r\n\r\n").nth(1).expect("a body");
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

/// The number of a request for the build of a derivation, which this client begins.
fn request_for(cache: &Cache, drv: &std::path::Path, authorization: &str) -> String {
    let drv = support::addresses::base_name(drv);
    let body = serde_json::json!({ "derivations": [drv], "start": true }).to_string();
    let answer = send_body(cache, "POST", "/api/v1/builds", Some(authorization), &body);
    json_of(&answer)["items"][0]["request"].as_u64().unwrap_or_else(|| panic!("{answer}")).to_string()
}

/// The endpoints of the server: method, path and right; none for an endpoint that is for all.
fn endpoints(cache: &Cache, authorization: &str) -> Vec<(String, String, Option<String>)> {
    let document = cache.http.get_with("/api/v1/openapi.json", &[("authorization", authorization)]);
    let document: serde_json::Value = serde_json::from_slice(&document.body).expect("JSON");
    let mut endpoints = Vec::new();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (verb, operation) in operations.as_object().expect("operations") {
            let right = operation["x-ondine-right"].as_str().map(str::to_owned);
            endpoints.push((verb.to_uppercase(), path.replace(['{', '}'], ""), right));
        }
    }
    endpoints
}

#[test]
fn every_endpoint_is_closed_to_everyone_and_open_to_the_right_that_it_names() {
    let cache = Cache::new(&CLOSED);
    let tokens = RIGHTS.map(|right| (right, bearer(&cache, right, right, &[])));
    let endpoints = endpoints(&cache, &tokens[0].1);
    let open = endpoints.iter().filter(|(.., right)| right.is_none()).map(|(_, path, _)| &**path);
    assert_eq!(open.collect::<Vec<_>>(), ["/", "/healthz", "/readyz"]);
    assert!(endpoints.len() > 30, "only {} were found", endpoints.len());
    for (verb, path, needed) in &endpoints {
        let callers = [("nobody", None)]
            .into_iter()
            .chain(tokens.iter().map(|(right, authorization)| (*right, Some(&**authorization))));
        for (right, authorization) in callers {
            let answer = send(&cache, verb, path, authorization);
            let allowed = needed.as_deref().is_none_or(|needed| needed == right || right == "admin");
            let status = status_of(answer.as_bytes());
            // A client of Nix takes anything but 404 for trouble with the whole cache.
            let refused = [401, 403].contains(&status) || (status == 404 && answer.contains("refused: "));
            assert_eq!(refused, !allowed, "{verb} {path} as {right}: {answer}");
            if refused && status != 404 {
                assert_eq!(status, if authorization.is_none() { 401 } else { 403 }, "{verb} {path}");
            }
        }
    }
}

#[test]
fn by_default_everyone_may_read_and_build_and_nothing_else() {
    let cache = Cache::new(&[]);
    let reader = bearer(&cache, "reader", "read", &[]);
    for (verb, path, right) in endpoints(&cache, &reader) {
        let status = status_of(send(&cache, &verb, &path, None).as_bytes());
        let allowed = right.as_deref().is_none_or(|right| ["read", "build"].contains(&right));
        assert_eq!(status == 401, !allowed, "{verb} {path}: {status}");
    }
    let built = cache.store.instantiate(&Derivation::new("p", "echo p > $out"));
    assert_narinfo(&cache.ask(built.out()), built.out());
}

#[test]
fn a_stock_client_of_every_release_reads_with_a_token_in_netrc_and_is_told_why_without() {
    let cache = Cache::new(&["--read", "token"]);
    let made = cache.ondine.new_token("laptop", "read", &[]);
    let built = cache.store.instantiate(&Derivation::new("p", "echo p > $out"));
    let folder = Folder::new();
    let netrc = folder.path().join("netrc");
    write(&netrc, &format!("machine 127.0.0.1 login anyone password {made}\n"));
    for release in Release::all() {
        let stranger = Client::new(release.clone(), &cache.store.store_dir());
        let told = stranger.fetch(&cache.ondine.substituter(), &[built.out()]).must_fail();
        // 2.8 shows no body of a 401.
        let words = if release == Release::Host {
            "does not appear to be a binary cache"
        } else {
            "the right \"read\""
        };
        assert!(told.stderr.contains(words), "{}: {told}", release.name());
        let settings = [("netrc-file", text(&netrc))];
        let client = Client::with_settings(release, &cache.store.store_dir(), &settings);
        client.fetch(&cache.ondine.substituter(), &[built.out()]).must_succeed();
        assert!(client.has(built.out()));
    }
    let list = token(&cache, &["list"]).must_succeed().text();
    assert!(list.contains("laptop") && !list.contains(&made) && !list.contains("never  never"), "{list}");
}

#[test]
fn with_build_for_tokens_alone_others_are_served_what_is_there_and_told_what_they_lack() {
    let cache = Cache::new(&["--build", "token"]);
    let built = cache.store.instantiate(&Derivation::new("p", "echo p > $out"));
    assert_missing(&cache.ask(built.out()), &["not built: ", "-p.drv makes it", "the right \"build\""]);
    let reader = bearer(&cache, "reader", "read", &[]);
    let address = narinfo_address(built.out());
    let answer = cache.http.get_with(&address, &[("authorization", &reader)]);
    assert_missing(&answer, &["the right \"build\""]);
    let builder = bearer(&cache, "builder", "build", &[]);
    let answer = cache.http.get_with(&format!("/cached{address}"), &[("authorization", &builder)]);
    assert_missing(&answer, &["not built yet"]);
    assert_narinfo(&cache.http.get_with(&address, &[("authorization", &builder)]), built.out());
    assert_narinfo(&cache.ask(built.out()), built.out());
}

#[test]
fn a_token_that_is_not_valid_is_refused_with_the_reason_and_reads_what_everyone_may() {
    let mut cache = Cache::new(&[]);
    let expired = bearer(&cache, "old", "push", &["--expires", "0s"]);
    let revoked = bearer(&cache, "gone", "push", &[]);
    let valid = bearer(&cache, "ci", "push", &["--expires", "1d"]);
    let status =
        |cache: &Cache, value: &str| cache.http.get_with("/api/v1/status", &[("authorization", value)]);
    assert_eq!(status(&cache, &revoked).status, 200);
    token(&cache, &["revoke", "gone"]).must_succeed();
    let forged = format!("{}0", &valid[..valid.len() - 1]);
    let cut = &valid[..valid.len() - 1];
    let cases =
        [(&*expired, "token old has expired"), (&revoked, "revoked"), (&forged, "unknown"), (cut, "unknown")];
    for restarted in [false, true] {
        for (authorization, reason) in cases {
            let answer = status(&cache, authorization);
            assert_eq!((answer.status, answer.header("www-authenticate").is_some()), (401, true));
            assert!(
                answer.text().contains(reason) && answer.text().contains("unauthorized"),
                "{}",
                answer.text()
            );
            let answer = cache.http.get_with("/nix-cache-info", &[("authorization", authorization)]);
            assert_eq!(answer.status, 401, "the one answer whose reason clients of Nix show");
            let hash = "/0123456789abcdfghijklmnpqrsvwxyz.narinfo";
            let answer = cache.http.get_with(hash, &[("authorization", authorization)]);
            assert!(answer.status == 404 && answer.text().starts_with("unknown: "), "{}", answer.text());
        }
        assert_eq!(status(&cache, &valid).status, 200);
        // Credentials of a proxy before the server are none of its own.
        assert_eq!(status(&cache, "Basic dXNlcjpwYXNzd29yZA==").status, 200);
        if !restarted {
            cache.ondine.crash_and_restart();
        }
    }
    let refused = token(&cache, &["revoke", "gone"]).must_fail();
    assert!(refused.stderr.contains("there is no token gone"), "{refused}");
    let refused = token(&cache, &["new", "--name", "x", "--may", "fly"]).must_fail();
    assert!(refused.stderr.contains("there is no right \"fly\""), "{refused}");
    let refused = token(&cache, &["new", "--name", "ci", "--may", "read"]).must_fail();
    assert!(refused.stderr.contains("a token ci already"), "{refused}");
}

#[test]
fn the_secret_of_a_token_is_in_no_log_no_metric_no_answer_and_no_file() {
    let cache = Cache::of(
        support::NixStore::new(Release::Host),
        &[],
        &[("ONDINE_LOG", "debug,ondine::access=debug")],
    );
    let made = cache.ondine.new_token("ci", "read,admin", &[]);
    let secret = made.rsplit('_').next().expect("a secret");
    let basic = format!("Bearer {made}");
    let metrics = cache.http.get_with("/metrics", &[("authorization", &basic)]).text();
    let list = cache.http.get_with("/api/v1/tokens", &[("authorization", &basic)]).text();
    assert!(list.contains("\"ci\""), "{list}");
    for path in [format!("/?token={made}"), format!("/{made}/x.narinfo"), format!("/api/v1/status?t={made}")]
    {
        let answer = cache.http.get(&path);
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert!(answer.text().contains("has a token in it") && !answer.text().contains(secret));
    }
    for (place, text) in [("log", cache.ondine.log()), ("metrics", metrics), ("list", list)] {
        assert!(!text.contains(secret), "the {place} has the secret");
    }
    assert!(cache.ondine.log().contains("token made"), "{}", cache.ondine.log());
    let mut seen = 0;
    for entry in std::fs::read_dir(cache.ondine.state_dir()).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            let bytes = std::fs::read(&path).expect("a readable file");
            assert!(memchr_in(&bytes, secret.as_bytes()).is_none(), "{} has the secret", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 2, "only {seen} files were looked at");
}

fn memchr_in(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[test]
fn a_client_that_asks_too_often_is_told_when_it_may_and_a_narinfo_waits() {
    let cache = Cache::new(&["--max-requests-per-second", "4", "--max-request-burst", "4"]);
    let status = || cache.http.get("/api/v1/status");
    let answers: Vec<_> = (0..12).map(|_| status()).collect();
    let refused = answers.iter().find(|answer| answer.status == 429).expect("one of them is refused");
    let after: u64 = refused.header("retry-after").expect("a time").parse().expect("seconds");
    assert!((1..=2).contains(&after) && refused.text().contains("too-fast"), "{}", refused.text());
    // One that is not known at once, so that memory does not answer it.
    let built = cache.store.instantiate(&Derivation::new("p", "echo p > $out"));
    let begun = std::time::Instant::now();
    for _ in 0..8 {
        let answer = cache.ask(built.out());
        assert_narinfo(&answer, built.out());
        assert_eq!(field(&answer.text(), "Compression"), "zstd");
    }
    assert!(begun.elapsed() < SOON);
    let ci = bearer(&cache, "ci", "read", &[]);
    let own = cache.http.get_with("/api/v1/status", &[("authorization", &ci)]);
    assert_eq!(own.status, 200, "a token has a rate of its own");
}

#[test]
fn a_token_may_be_bound_to_names_and_to_a_number_of_builds_that_wait() {
    let cache = Cache::new(&CLOSED);
    let gate = cache.store.gate();
    let [first, second, other] = ["p-one", "p-two", "q"].map(|name| cache.gated(name, &gate));
    let bound = bearer(&cache, "bound", "read,build,pin", &["--only", "p-*", "--max-queued", "1"]);
    let ask = |path: &std::path::Path| cache.http.open(&narinfo_address(path), &[("authorization", &bound)]);
    let refused = cache.http.get_with(&narinfo_address(other.out()), &[("authorization", &bound)]);
    assert_missing(&refused, &["token bound", "for names such as p-* alone, and q is none"]);
    let asked = {
        let (address, bound) = (cache.ondine.url(), bound.clone());
        let path = narinfo_address(first.out());
        std::thread::spawn(move || support::Http::new(&address).get_with(&path, &[("authorization", &bound)]))
    };
    support::wait_until("the first build starts", SOON, || gate.starts().len() == 1);
    let refused = cache.http.get_with(&narinfo_address(second.out()), &[("authorization", &bound)]);
    assert_missing(&refused, &["1 builds wait for the token bound"]);
    let pin = |path: &std::path::Path| {
        let name = support::addresses::base_name(path);
        status_of(send(&cache, "POST", &format!("/api/v1/pins/{name}"), Some(&bound)).as_bytes())
    };
    assert_eq!((pin(first.out()), pin(other.out())), (200, 403));
    gate.open();
    assert_narinfo(&asked.join().expect("an answer"), first.out());
    assert_eq!(ask(second.out()).status, 200);
}

#[test]
fn builds_that_wait_for_a_token_are_counted_together_whatever_asked_for_them() {
    let cache = Cache::new(&CLOSED);
    let gate = cache.store.gate();
    let [first, second] = ["one", "two"].map(|name| cache.gated(name, &gate));
    let bound = bearer(&cache, "bound", "read,build,cancel", &["--max-queued", "1"]);
    let hash = |path: &std::path::Path| support::addresses::base_name(path)[..32].to_owned();
    let ask = |hashes: &[String]| {
        let body = serde_json::json!({ "hashes": hashes, "start": true }).to_string();
        let answer = json_of(&send_body(&cache, "POST", "/api/v1/builds", Some(&bound), &body));
        answer["items"].as_array().expect("items").clone()
    };
    let both = ask(&[hash(first.out()), hash(second.out())]);
    assert!(both[0]["request"].is_u64(), "{both:?}");
    assert_eq!(both[1]["state"], "refused", "{both:?}");
    // What waits already is asked for again without another place.
    assert!(ask(&[hash(first.out())])[0]["request"].is_u64());
    let refused = cache.http.get_with(&narinfo_address(second.out()), &[("authorization", &bound)]);
    assert_missing(&refused, &["1 builds wait for the token bound"]);
    gate.open();
    let served = || ask(&[hash(first.out())])[0]["state"] == "served";
    support::wait_until("the first is built", SOON, served);
    let freed = || ask(&[hash(second.out())])[0]["state"] != "refused";
    support::wait_until("its place is free", SOON, freed);
}

#[test]
fn what_a_token_may_not_have_built_is_explained_as_refused() {
    let cache = Cache::new(&["--build", "token"]);
    let sample = cache.store.instantiate(&support::derivations::text_file("sample", "text"));
    let address = format!("/api/v1/explain/{}", support::addresses::base_name(sample.out()));
    let state = |authorization: &[(&str, &str)]| {
        let answer = cache.http.get_with(&address, authorization);
        assert_eq!(answer.status, 200, "{}", answer.text());
        serde_json::from_slice::<serde_json::Value>(&answer.body).expect("JSON")
    };
    let refused = state(&[]);
    let reason = refused["reason"].as_str().unwrap_or_default();
    assert!(refused["state"] == "refused" && reason.contains("--may read,build"), "{refused}");
    let builder = bearer(&cache, "builder", "read,build", &[]);
    assert_eq!(state(&[("authorization", &builder)])["state"], "known");
}

#[test]
fn a_token_that_is_bound_to_names_reaches_no_other_by_any_way() {
    let cache = Cache::new(&CLOSED);
    let gate = cache.store.gate();
    let admin = bearer(&cache, "admin", "admin", &[]);
    let bound = bearer(&cache, "bound", "read,build,push,vouch,cancel,pin", &["--only", "p-*"]);
    let failed = cache.failing("q", &gate, "exit 1");
    let ask = |path| cache.http.get_with(&narinfo_address(path), &[("authorization", &admin)]);
    assert_missing(&ask(failed.out()), &["famous last words"]);
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
    assert_missing(&ask(failed.out()), &["famous last words"]);
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
        assert_missing(&cache.ask(failed.out()), &["famous last words"]);
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
        let number = asked.split("request ").nth(1).unwrap_or_else(|| panic!("{asked}")).trim();
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
    assert_missing(&answer, &["famous last words"]);
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
