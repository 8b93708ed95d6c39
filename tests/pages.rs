//! Pages for people, as a browser gets them over HTTP. What needs a browser to be seen is in `browser.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support;
use crate::support::addresses::base_name;
use crate::support::package_set::{small, wait_for_generation};
use crate::support::{Cache, Derivation, Http, NixStore, PackageSet, Release, derivations, text, wait_until};

/// Time limit of a change of state.
const SOON: Duration = Duration::from_secs(60);
/// Bytes of the first page with its style and script, at most.
const FIRST_PAGE_BYTES_MAX: usize = 60_000;
/// The media types that a browser accepts.
const HTML: (&str, &str) = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8");

/// The text of a page, which must be one.
#[track_caller]
fn page(http: &Http, address: &str) -> String {
    let answer = http.get_with(address, &[HTML]);
    assert_eq!(answer.status, 200, "{address}: {}", answer.text());
    assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"), "{address}");
    let policy = answer.header("content-security-policy").unwrap_or_default();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{address}: {policy}");
    let text = answer.text();
    assert!(!text.contains("style=") && !text.contains("onclick"), "{address} has inline code");
    assert!(text.ends_with("</html>\n") || text.ends_with("</html>"), "{address} is cut");
    text
}

/// The addresses of style and script of a page.
fn assets(page: &str) -> Vec<String> {
    let found = page.split(['"', '\'']).filter(|text| text.starts_with("./assets/"));
    found.map(|address| address.trim_start_matches('.').to_owned()).collect()
}

/// Sends a form as a browser does, with these cookies.
#[track_caller]
fn send(http: &Http, address: &str, fields: &str, cookie: &str) -> support::http::Response {
    http.post_form(address, fields, &[("cookie", cookie)])
}

#[test]
fn a_browser_gets_a_small_page_and_curl_the_text() {
    let cache = Cache::new(&[]);
    let text = cache.http.get("/").text();
    assert!(text.starts_with("Ondine:") && text.contains("extra-substituters = "), "{text}");
    let home = page(&cache.http, "/");
    assert!(home.contains("Use this cache") && home.contains(cache.ondine.public_key()), "{home}");
    let mut bytes = home.len();
    let assets = assets(&home);
    assert_eq!(assets.len(), 3, "{assets:?}");
    for asset in assets {
        let answer = cache.http.get(&asset);
        assert_eq!(answer.status, 200, "{asset}");
        assert!(answer.header("cache-control").is_some_and(|cached| cached.contains("immutable")), "{asset}");
        bytes += answer.body.len();
    }
    assert!(bytes < FIRST_PAGE_BYTES_MAX, "the first page has {bytes} bytes");
    for address in ["/packages", "/failures", "/search", "/search?q=nothing", "/sign-in"] {
        page(&cache.http, address);
    }
    let missing = cache.http.get_with("/packages/nope/", &[HTML]);
    assert_eq!(missing.status, 404);
    assert!(missing.text().contains("there is no package set nope"), "{}", missing.text());
    // An address that nothing has is a page for a browser, and text for all others.
    for address in ["/nosuch", "/a/b/nosuch", "/paths/nosuch"] {
        let missing = cache.http.get_with(address, &[HTML]);
        let content_type = missing.header("content-type").unwrap_or_default().to_owned();
        assert_eq!((missing.status, &*content_type), (404, "text/html; charset=utf-8"), "{address}");
        assert!(missing.text().contains("nothing has this address"), "{}", missing.text());
    }
    for address in ["/nosuch", "/api/v1/nosuch", "/0123.narinfo"] {
        let missing = cache.http.get(address);
        assert!(missing.status == 404 && !missing.text().contains("<html"), "{}", missing.text());
    }
}

#[test]
fn packages_are_listed_searched_and_shown_with_the_ways_to_get_them() {
    let store = NixStore::new(Release::Host);
    let failing = ("failing".to_owned(), derivations::failing("failing").to_nix());
    let set = PackageSet::new(["hello", "help", "other"].map(small).into_iter().chain([failing]));
    let settings = set.settings("", "");
    let cache = Cache::of(store, &["--config", text(&settings)], &[]);
    wait_for_generation(&cache.ondine);
    assert!(page(&cache.http, "/packages").contains("packages/pkgs/"));
    let listed = page(&cache.http, "/packages/pkgs/?q=hel");
    assert!(listed.contains(">hello</a>") && listed.contains(">help</a>") && !listed.contains(">other</a>"));
    let found = page(&cache.http, "/search?q=hel");
    assert!(found.contains("packages/pkgs/hello") && !found.contains("packages/pkgs/other"), "{found}");
    let package = page(&cache.http, "/packages/pkgs/hello");
    assert!(package.contains("nix build ") && package.contains("/get/pkgs/hello"), "{package}");
    assert!(package.contains("not built"), "{package}");
    let (_, out) = set.paths(&cache.store, "hello");
    assert_eq!(cache.ask(&out).status, 200);
    let package = page(&cache.http, "/packages/pkgs/hello");
    assert!(package.contains("../../paths/") && package.contains(">served<"), "{package}");
    // By its hash, too.
    let hash = &base_name(&out)[..32];
    assert!(page(&cache.http, &format!("/search?q={hash}")).contains(&format!("paths/{hash}")));
    // One that has failed offers its log and a retry, and no download that would fail.
    let (drv, failing) = set.paths(&cache.store, "failing");
    assert_eq!(cache.ask(&failing).status, 404);
    let package = page(&cache.http, "/packages/pkgs/failing");
    assert!(package.contains(&format!("log/{}", base_name(&drv))) && package.contains("Sign in to retry"));
    assert!(!package.contains("Get it") && !package.contains("/get/pkgs/failing"), "{package}");
    // What a path needs are others.
    let own = cache.store.instantiate(&Derivation::new("own-1.0", "echo $out > $out"));
    assert_eq!(cache.ask(own.out()).status, 200);
    let shown = page(&cache.http, &format!("/paths/{}", &base_name(own.out())[..32]));
    assert!(shown.contains("It refers to no other path."), "{shown}");
}

#[test]
fn a_failure_is_shown_and_retried_with_a_token_and_its_form_alone() {
    let cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let below = Derivation::new("below-1.0", &format!("{}echo why; exit 3", gate.note("below")));
    let top = Derivation::new("top-1.0", "echo $below > $out").input("below", &below);
    let (top, below) = (cache.store.instantiate(&top), cache.store.instantiate(&below));
    assert_eq!(cache.ask(top.out()).status, 404);
    let shown = page(&cache.http, "/failures");
    assert!(!shown.contains("tried again"), "the server tries nothing by itself: {shown}");
    for words in
        ["below-1.0", "top-1.0", "exit code 3", "Blocks 1 derivation", "remembered for", "Sign in to retry"]
    {
        assert!(shown.contains(words), "no {words:?} in {shown}");
    }
    assert!(!shown.contains("Build it again"), "{shown}");
    let retry = format!("/failures/{}/retry", base_name(&below.drv));
    assert_eq!(send(&cache.http, &retry, "", "").status, 401);

    assert!(page(&cache.http, "/sign-in").contains("--may read,build,cancel"));
    let reader = cache.ondine.new_token("reader", "read", &[]);
    let signed_in = send(&cache.http, "/sign-in", &format!("token={reader}&back=failures"), "");
    let cookie =
        signed_in.header("set-cookie").and_then(|cookie| cookie.split(';').next()).expect("a cookie");
    let shown = cache.http.get_with("/failures", &[HTML, ("cookie", cookie)]).text();
    assert!(
        shown.contains("Retrying needs the right to cancel") && !shown.contains("Sign in to retry"),
        "{shown}"
    );
    let token = cache.ondine.new_token("ops", "cancel", &[]);
    let refused = send(&cache.http, "/sign-in", "token=ondine_1_wrong&back=failures", "");
    assert_eq!(refused.status, 400, "{}", refused.text());
    let signed_in = send(&cache.http, "/sign-in", &format!("token={token}&back=failures"), "");
    assert_eq!((signed_in.status, signed_in.header("location")), (302, Some("./failures")));
    let cookie = signed_in.header("set-cookie").expect("a cookie").to_owned();
    for part in ["HttpOnly", "SameSite=Strict", "Max-Age=2592000"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    let cookie = cookie.split(';').next().expect("its value");
    let shown = cache.http.get_with("/failures", &[HTML, ("cookie", cookie)]).text();
    assert!(shown.contains("Build it again") && shown.contains("Sign out"), "{shown}");
    let proof = shown.split("name=\"proof\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
    let proof = format!("proof={}", proof.expect("a proof"));

    // The cookie alone does nothing: not for a form of another site, nor for the API.
    assert_eq!(send(&cache.http, &retry, "", cookie).status, 400);
    let foreign = [("cookie", cookie), ("sec-fetch-site", "cross-site")];
    assert_eq!(cache.http.post_form(&retry, &proof, &foreign).status, 400);
    for address in ["/sign-in", "/theme"] {
        for origin in
            ["https://elsewhere.example", "null", &cache.ondine.url().replace("127.0.0.1", "127.0.0.2")]
        {
            let answer = cache.http.post_form(address, &format!("token={token}"), &[("origin", origin)]);
            assert!(answer.status == 400 && answer.header("set-cookie").is_none(), "{address} of {origin}");
        }
        let own = cache.ondine.url();
        let answer = cache.http.post_form(address, &format!("token={token}"), &[("origin", &own)]);
        assert_eq!(answer.status, 302, "{}", answer.text());
    }
    for back in ["%0d%0aX-A:%201", "a%00", "%5c%5celsewhere.example", "\u{fc}"] {
        let answer = send(&cache.http, "/theme", &format!("theme=dark&back={back}"), "");
        assert_eq!((answer.status, answer.header("location")), (302, Some("./")), "{back}");
    }
    let api = format!("/api/v1{retry}");
    assert_eq!(cache.http.post_form(&api, "", &[("cookie", cookie)]).status, 401);
    assert_eq!(gate.starts().len(), 1, "nothing was retried");
    assert_eq!(send(&cache.http, &retry, &proof, cookie).status, 302);
    wait_until("it is built again", SOON, || gate.starts().len() == 2);
}

#[test]
fn hostile_names_and_hosts_stay_text() {
    let store = NixStore::new(Release::Host);
    let name = "\"<script>alert(1)</script>\"".to_owned();
    let broken = "throw \"<img src=x onerror=alert(1)>\"".to_owned();
    let attributes = BTreeMap::from([(name, small("a").1), ("broken".to_owned(), broken)]);
    let set = PackageSet::new(attributes);
    let settings = set.settings("", "");
    let cache = Cache::of(store, &["--config", text(&settings)], &[]);
    wait_for_generation(&cache.ondine);
    let search = "/search?q=%3Cscript%3Ealert(2)%3C/script%3E";
    for address in ["/packages/pkgs/", search, "/packages/pkgs/%22%3Cscript%3Ealert(1)%3C%2Fscript%3E%22"] {
        let text = page(&cache.http, address);
        assert!(text.contains("alert(") && !text.contains("<script>alert"), "{address}: {text}");
        assert!(!text.contains("<img"), "{address}: {text}");
    }
    let host = "evil.example\"><script>alert(3)</script>";
    let answer = support::http::raw(
        cache.ondine.address(),
        format!("GET / HTTP/1.1\r\nHost: {host}\r\nAccept: text/html\r\nConnection: close\r\n\r\n")
            .as_bytes(),
        SOON,
    );
    assert!(!String::from_utf8_lossy(&answer.0).contains("<script>alert"), "{answer:?}");
    let back = "/sign-in?back=%22%3E%3Cscript%3Ealert(4)%3C/script%3E";
    assert!(!page(&cache.http, back).contains("<script>alert"));
    let sent = send(&cache.http, "/theme", "theme=dark&back=//evil.example/", "");
    assert_eq!((sent.status, sent.header("location")), (302, Some("./evil.example/")));
}

#[test]
fn those_who_may_not_read_are_asked_to_sign_in_and_then_see_the_pages() {
    let cache = Cache::new(&["--read", "token"]);
    for address in ["/", "/packages", "/failures", "/search?q=a"] {
        let answer = cache.http.get_with(address, &[HTML]);
        assert_eq!(answer.status, 401, "{address}");
        let text = answer.text();
        assert!(text.contains("Sign in with a token") && text.contains("ondine token new"), "{text}");
    }
    assert_eq!(cache.http.get("/api/v1/events").status, 401);
    let token = cache.ondine.new_token("eyes", "read", &[]);
    let cookie = format!("ondine_token={token}");
    let home = cache.http.get_with("/", &[HTML, ("cookie", &cookie)]);
    assert_eq!(home.status, 200, "{}", home.text());
    assert_eq!(cache.http.get_with("/api/v1/status", &[("cookie", &cookie)]).status, 401);
}

#[test]
fn events_tell_of_builds_and_their_logs() {
    let cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let script = format!("echo first line; {}echo second line; echo x > $out", gate.script("slow"));
    let slow = cache.store.instantiate(&Derivation::new("slow", &script));
    let mut events = cache.http.open("/api/v1/events", &[]);
    let mut seen = events.read_until("\"running\":[]");
    assert!(seen.contains("event: queue"), "{seen}");
    let asked = cache.ask_in_background(slow.out());
    seen = events.read_until("first line");
    assert!(seen.contains(base_name(&slow.drv)) && seen.contains("event: log"), "{seen}");
    assert!(page(&cache.http, "/").contains("first line"));
    gate.open();
    events.read_until("second line");
    events.read_until("\"ended\":1");
    assert_eq!(asked.answer().status, 200);
    let home = page(&cache.http, "/");
    assert!(home.contains("Recent builds") && home.contains("state served"), "{home}");
    let others: Vec<_> = (0..31).map(|_| cache.http.open("/api/v1/events", &[])).collect();
    assert!(others.iter().all(|stream| stream.status == 200));
    let refused = cache.http.get("/api/v1/events");
    assert!(
        refused.status == 503 && refused.text().contains("32 streams of one client"),
        "{}",
        refused.text()
    );
    let token = cache.ondine.new_token("other", "read", &[]);
    let authorization = format!("Bearer {token}");
    let own = cache.http.open("/api/v1/events", &[("authorization", &authorization)]);
    assert_eq!(own.status, 200, "a token has a share of its own");
    let wrong = cache.http.get("/api/v1/events?derivation=x");
    assert_eq!(wrong.status, 400, "{}", wrong.text());
}

#[test]
fn a_path_is_shown_with_both_ways_of_its_references_and_a_package_with_what_needs_it() {
    let store = NixStore::new(Release::Host);
    let below = Derivation::new("below-1.0", "echo below > $out");
    let top = Derivation::new("top-1.0", "echo $below > $out").input("below", &below);
    let set = PackageSet::new([("below".to_owned(), below.to_nix()), ("top".to_owned(), top.to_nix())]);
    let settings = set.settings("", "");
    let cache = Cache::of(store, &["--config", text(&settings)], &[]);
    wait_for_generation(&cache.ondine);
    let ((_, below), (_, top)) = (set.paths(&cache.store, "below"), set.paths(&cache.store, "top"));
    assert_eq!(cache.ask(&top).status, 200);
    let hash = |path: &std::path::Path| base_name(path)[..32].to_owned();
    let shown = page(&cache.http, &format!("/paths/{}", hash(&top)));
    assert!(shown.contains(&format!("?at={}#closure", hash(&below))) && shown.contains("2 paths"), "{shown}");
    let shown = page(&cache.http, &format!("/paths/{}", hash(&below)));
    assert!(shown.contains(&format!("href=\"{}\">top-1.0", hash(&top))), "{shown}");
    let told = cache.http.get(&format!("/api/v1/paths/{}", hash(&below))).text();
    assert!(told.contains("\"referrers\": [") && told.contains(base_name(&top)), "{told}");
    let shown = page(&cache.http, "/packages/pkgs/below");
    assert!(shown.contains("packages/pkgs/top") && shown.contains("Latest build"), "{shown}");
    assert!(page(&cache.http, "/statistics").contains("Answered after a build"));
    let told = cache.http.get("/api/v1/history?hours=1").text();
    assert!(told.contains("\"paths\": 2"), "{told}");
    let drv = cache.store.instantiate(&Derivation::new("x", "exit 1"));
    let log = page(&cache.http, &format!("/derivations/{}", base_name(&drv.drv)));
    assert!(log.contains("not built"), "{log}");
}
