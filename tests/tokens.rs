//! Tokens: what a client may do with one and without, on every endpoint and with stock clients of every
//! release; and where the secret of one never is.

use std::time::Duration;

use crate::support;
use crate::support::addresses::{field, narinfo_address};
use crate::support::cache::{assert_missing, assert_narinfo, status_of};
use crate::support::process::run;
use crate::support::store::{Folder, write};
use crate::support::tokens::{bearer, json_of, send, send_body};
use crate::support::{Cache, Client, Derivation, Release, text};

/// Names of all rights.
const RIGHTS: [&str; 8] = ["read", "build", "push", "vouch", "refresh", "cancel", "pin", "admin"];
/// The hash of a path that nothing makes.
const HASH: &str = "0123456789abcdfghijklmnpqrsvwxyz";
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

/// The endpoints of the server: method, path and right; none for an endpoint that is for all.
fn endpoints(cache: &Cache, authorization: &str) -> Vec<(String, String, Option<String>)> {
    let document = cache.http.get_with("/api/v1/openapi.json", &[("authorization", authorization)]);
    let document: serde_json::Value = serde_json::from_slice(&document.body).expect("JSON");
    let mut endpoints = Vec::new();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (verb, operation) in operations.as_object().expect("operations") {
            let right = operation["x-ondine-right"].as_str().map(str::to_owned);
            // Events have no end.
            let verb = if path == "/api/v1/events" { "head" } else { verb };
            // A page has its address only where the argument is a path.
            let path = match &**path {
                "/paths/{hash}" => format!("/paths/{HASH}"),
                "/derivations/{derivation}" => format!("/derivations/{HASH}-p.drv"),
                path => path.replace(['{', '}'], ""),
            };
            endpoints.push((verb.to_uppercase(), path, right));
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
    let all = ["/", "/assets/file", "/healthz", "/readyz", "/sign-in", "/sign-in", "/sign-out", "/theme"];
    assert_eq!(open.collect::<Vec<_>>(), all);
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
    // A cache between that several share would give it to everyone.
    let authorization = format!("Bearer {made}");
    let narinfo =
        cache.http.get_with(&narinfo_address(built.out()), &[("authorization", &authorization)]).text();
    let nar = format!("/{}", field(&narinfo, "URL"));
    for path in [&*nar, &narinfo_address(built.out()).replace("narinfo", "ls")] {
        let answer = cache.http.get_with(path, &[("authorization", &authorization)]);
        let kept = answer.header("cache-control").unwrap_or_default();
        assert!(kept.starts_with("private") && !kept.contains("public"), "{path}: {kept}");
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
    let other_end = if valid.ends_with('0') { '1' } else { '0' };
    let forged = format!("{}{other_end}", &valid[..valid.len() - 1]);
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
    let identity = format!("eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJodHRwczovL2V4YW1wbGUifQ.{secret}");
    for path in [
        format!("/?token={made}"),
        format!("/{made}/x.narinfo"),
        format!("/api/v1/status?t={made}"),
        format!("/log/{}", made.replace('_', "%5F")),
        format!("/log/{}", made.replace('_', "%255F")),
        format!("/log/{identity}"),
    ] {
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
    let unknown = format!("Bearer ondine_99_{}", "0".repeat(52));
    let guess = || cache.http.get_with("/api/v1/status", &[("authorization", &unknown)]).status;
    let guesses: Vec<u16> = (0..12).map(|_| guess()).collect();
    assert!(guesses.contains(&429), "{guesses:?}");
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
