//! Requests through the API: many items at once, each told apart and built in order, without a connection
//! that stands for them; and their end, however that comes. Real builds by real daemons.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support;
use crate::support::addresses::base_name;
use crate::support::cache::{assert_narinfo, status_of};
use crate::support::http::raw;
use crate::support::package_set::wait_for_generation;
use crate::support::process::run;
use crate::support::tokens::send_body;
use crate::support::{Cache, Derivation, Http, NixStore, PackageSet, Release, derivations, text, wait_until};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

/// The items of an answer to a request for builds.
#[track_caller]
fn ask(http: &Http, body: &Value) -> Vec<Value> {
    let answer = http.post_json("/api/v1/builds", body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer: Value = serde_json::from_slice(&answer.body).expect("JSON");
    answer["items"].as_array().expect("items").clone()
}

#[track_caller]
fn get(http: &Http, address: &str) -> Value {
    let answer = http.get(address);
    assert_eq!(answer.status, 200, "{address}: {}", answer.text());
    serde_json::from_slice(&answer.body).expect("JSON")
}

/// States of items, in their order.
fn states(items: &[Value]) -> Vec<&str> {
    items.iter().map(|item| item["state"].as_str().expect("a state")).collect()
}

/// Hash of a store path.
fn hash(path: &Path) -> &str {
    &base_name(path)[..32]
}

/// `ondine cancel NUMBER` beside the server.
fn cancel(cache: &Cache, number: &Value) -> support::Finished {
    let mut program = cache.ondine.command("cancel");
    program.arg(number.to_string()).arg("--state-dir").arg(cache.ondine.state_dir());
    run(program)
}

#[test]
fn items_are_told_apart_and_built_in_the_order_in_which_they_were_asked_for() {
    let cache = Cache::new(&["--abandon-after", "1s"]);
    let gate = cache.store.gate();
    let served = cache.store.instantiate(&derivations::text_file("served", "1"));
    cache.narinfo(served.out());
    let failed = cache.failing("failed", &gate, "exit 3");
    assert_eq!(cache.ask(failed.out()).status, 404);
    let [first, second] = ["first", "second"].map(|name| cache.gated(name, &gate));
    let several = cache.store.instantiate(&derivations::multiple_outputs("several"));
    let foreign = cache.store.instantiate(&Derivation::new("foreign", "echo > $out").system("m68k-linux"));
    let nobody = "0123456789abcdfghijklmnpqrsvwxyz";
    let body = json!({
        "derivations": [
            text(&served.drv),
            base_name(&failed.drv),
            base_name(&first.drv),
            format!("{}^doc,dev", base_name(&several.drv)),
            format!("{nobody}-nobody.drv"),
            base_name(&foreign.drv),
        ],
        "hashes": [hash(second.out()), hash(served.out()), nobody],
    });
    let mut only = body.clone();
    only["start"] = json!(false);

    // Nothing is started by looking.
    let items = ask(&cache.http, &only);
    let expected = ["served", "failed", "known", "known", "unknown", "known", "known", "served", "unknown"];
    assert_eq!(states(&items), expected, "{items:#?}");
    assert!(items.iter().all(|item| item.get("request").is_none()), "{items:#?}");
    assert_eq!(cache.queued(), [""; 0]);

    let items = ask(&cache.http, &body);
    let asked: Vec<&str> = items.iter().map(|item| item["asked"].as_str().expect("as asked")).collect();
    assert_eq!((asked[0], asked[6]), (text(&served.drv), hash(second.out())));
    assert_eq!((states(&items)[0], states(&items)[1], states(&items)[4]), ("served", "failed", "unknown"));
    assert!(items[1]["reason"].as_str().is_some_and(|reason| reason.contains("exit code 3")), "{}", items[1]);
    assert!(items[4]["reason"].as_str().is_some_and(|reason| reason.contains("push it")), "{}", items[4]);
    assert_eq!(items[6]["derivation"], base_name(&second.drv));
    let outputs = items[3]["outputs"].as_array().expect("outputs");
    let names: Vec<&Value> = outputs.iter().map(|output| &output["name"]).collect();
    assert_eq!(names, ["doc", "dev"]);
    assert_eq!(outputs[1]["path"], text(several.output("dev")));
    let numbers: Vec<u64> =
        [2, 3, 5, 6].iter().map(|at| items[*at]["request"].as_u64().expect("it is in the queue")).collect();
    assert!(numbers.is_sorted(), "{numbers:?}");
    assert_eq!((&items[2]["place"], &items[6]["place"]), (&json!(1), &json!(4)), "{items:#?}");

    // No connection stands for them, and they stay. The refused one is told to be so by its number.
    gate.wait_for_starts(2);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(cache.queued(), ["first", "several", "second"]);
    let refused = get(&cache.http, &format!("/api/v1/builds/{}", numbers[2]));
    assert_eq!(refused["state"], "refused", "{refused}");
    assert!(refused["reason"].as_str().is_some_and(|reason| reason.contains("m68k-linux")), "{refused}");
    let items = ask(&cache.http, &json!({ "derivations": [base_name(&first.drv)], "start": false }));
    assert_eq!(states(&items), ["building"], "{items:?}");

    // A poll returns when its time is over, or when the request has ended.
    let begun = Instant::now();
    let waiting = get(&cache.http, &format!("/api/v1/builds/{}?wait=1", numbers[3]));
    assert_eq!(waiting["state"], "waiting");
    assert!((1..20).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    let poll = {
        let (http, address) =
            (Http::new(&cache.ondine.url()), format!("/api/v1/builds/{}?wait=60", numbers[3]));
        std::thread::spawn(move || get(&http, &address))
    };
    std::thread::sleep(Duration::from_millis(500));
    gate.open();
    wait_until("the poll returns", SOON, || poll.is_finished());
    assert_eq!(poll.join().expect("answered")["state"], "served");
    assert_eq!(gate.starts(), ["failed", "first", "second"]);
    cache.assert_served(first.out());
    cache.assert_served(several.output("doc"));
    assert_eq!(states(&ask(&cache.http, &body))[..4], ["served", "failed", "served", "served"]);

    let list = get(&cache.http, "/api/v1/builds");
    let ended: Vec<&Value> =
        list["ended"].as_array().expect("a list").iter().map(|request| &request["id"]).collect();
    let place = |number: u64| ended.iter().position(|id| **id == json!(number)).expect("it has ended");
    // The second may end before the one with several outputs, which take longer to be delivered.
    assert!(list["total"] == 0 && place(numbers[3]) < place(numbers[0]), "{list}");
}

#[test]
fn attributes_are_asked_for_by_their_sets() {
    let set = PackageSet::new([
        ("several".to_owned(), derivations::multiple_outputs("several").to_nix()),
        ("secret".to_owned(), derivations::text_file("secret", "denied").to_nix()),
        ("broken".to_owned(), "abort \"words of broken\"".to_owned()),
    ]);
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let ondine = set.serve(&store, "build-from = ['catalogue']", "deny = ['secret']");
    wait_for_generation(&ondine);
    let http = Http::new(&ondine.url());
    let attribute = |name: &str| json!({ "set": "pkgs", "attribute": name });
    let body = json!({ "attributes": [
        attribute("several"), attribute("several^dev"), attribute("secret"), attribute("broken"), attribute("none"),
        json!({ "set": "others", "attribute": "a" }),
    ] });
    let items = ask(&http, &body);
    assert_eq!(states(&items)[2..], ["refused", "failed", "unknown", "unknown"], "{items:#?}");
    assert!(items[0]["request"].is_u64() && items[0]["request"] == items[1]["request"], "{items:#?}");
    assert_eq!(items[1]["outputs"][0]["name"], "dev");
    assert!(items[3]["reason"].as_str().is_some_and(|reason| reason.contains("words of broken")));
    let ended = get(&http, &format!("/api/v1/builds/{}?wait=60", items[0]["request"]));
    assert_eq!(ended["state"], "served", "{ended}");
    assert_eq!(states(&ask(&http, &body))[..2], ["served", "served"]);

    // Of a derivation that no set has, the catalogue's server says so.
    let own = store.instantiate(&derivations::text_file("own", "1"));
    let items = ask(&http, &json!({ "derivations": [base_name(&own.drv)] }));
    assert_eq!(states(&items), ["refused"], "{items:?}");
    assert!(items[0]["reason"].as_str().is_some_and(|reason| reason.contains("build-from")), "{items:?}");
}

#[test]
fn a_request_that_its_owner_forgets_leaves_the_queue_and_one_that_is_polled_stays() {
    let cache = Cache::new(&["--abandon-after", "1s", "--abandon-asked-after", "3s"]);
    let gate = cache.store.gate();
    let [running, polled, forgotten] =
        ["running", "polled", "forgotten"].map(|name| cache.gated(name, &gate));
    let _waits = cache.ask_in_background(running.out());
    gate.wait_for_starts(1);
    let drvs = [base_name(&polled.drv), base_name(&forgotten.drv)];
    let items = ask(&cache.http, &json!({ "derivations": drvs }));
    assert_eq!(states(&items), ["queued", "queued"]);
    let (polled, forgotten) = (&items[0]["request"], &items[1]["request"]);
    // Whoever polls one for longer than that keeps it.
    for _ in 0..8 {
        get(&cache.http, &format!("/api/v1/builds/{polled}?wait=1"));
    }
    cache.wait_for_queue(&["running", "polled"]);
    assert_eq!(get(&cache.http, &format!("/api/v1/builds/{forgotten}"))["state"], "dropped");
    gate.open();
    let ended = get(&cache.http, &format!("/api/v1/builds/{polled}?wait=60"));
    assert_eq!(ended["state"], "served", "{ended}");
}

#[test]
fn a_request_is_found_again_after_a_restart_by_whoever_polls_it() {
    let mut cache = Cache::new(&["--abandon-after", "4s"]);
    let gate = cache.store.gate();
    let [first, second, third] = ["first", "second", "third"].map(|name| cache.gated(name, &gate));
    let drvs = [&first, &second, &third].map(|drv| base_name(&drv.drv));
    let items = ask(&cache.http, &json!({ "derivations": drvs }));
    gate.wait_for_starts(1);
    cache.ondine.crash_and_restart();
    let again = get(&cache.http, &format!("/api/v1/builds/{}", items[2]["request"]));
    assert_eq!(again["derivation"], base_name(&third.drv));
    // Of the first something was built before; nobody asks for the second any more.
    cache.wait_for_queue(&["first", "third"]);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(cache.queued(), ["first", "third"]);
    gate.open();
    let ended = get(&cache.http, &format!("/api/v1/builds/{}?wait=60", items[2]["request"]));
    assert_eq!(ended["state"], "served", "{ended}");
}

#[test]
fn what_is_cancelled_stops_and_what_others_wait_for_goes_on() {
    let cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let input = Derivation::new("input", &format!("{}echo > $out", gate.note("input")));
    let script = format!("{}echo $input > $out", gate.script("alone"));
    let alone = cache.store.instantiate(&Derivation::new("alone", &script).input("input", &input));
    let shared = cache.gated("shared", &gate);
    let items = ask(&cache.http, &json!({ "derivations": [base_name(&alone.drv), base_name(&shared.drv)] }));
    let waits = cache.ask_in_background(shared.out());
    gate.wait_for_starts(2);
    let shared_number = &items[1]["request"];
    wait_until("both wait for it", SOON, || {
        get(&cache.http, &format!("/api/v1/builds/{shared_number}"))["clients"] == 2
    });

    let told = cancel(&cache, &items[0]["request"]).must_succeed().text();
    assert!(told.starts_with("cancelled: "), "{told}");
    let cancelled = get(&cache.http, &format!("/api/v1/builds/{}", items[0]["request"]));
    assert_eq!(cancelled["state"], "cancelled");
    // Its build is stopped: the only lane is free for the next one.
    gate.wait_for_starts(3);
    assert_eq!(gate.starts(), ["input", "alone", "shared"]);

    let told = cancel(&cache, shared_number).must_succeed().text();
    assert!(told.starts_with("goes on: another client waits"), "{told}");
    assert_eq!(cache.queued(), ["shared"]);
    gate.open();
    assert_narinfo(&waits.answer(), shared.out());
    let none = cancel(&cache, shared_number);
    assert!(!none.succeeded() && none.stderr.contains("has ended: served"), "{}", none.stderr);

    // It was no failure, and is built for the next who asks.
    let items = ask(&cache.http, &json!({ "hashes": [hash(alone.out())] }));
    let ended = get(&cache.http, &format!("/api/v1/builds/{}?wait=60", items[0]["request"]));
    assert_eq!(ended["state"], "served", "{ended}");
    assert_eq!(gate.starts(), ["input", "alone", "shared", "alone"], "its input was built already");
}

#[test]
fn what_makes_no_request_is_refused_with_the_reason() {
    let cache = Cache::new(&[]);
    let many = vec!["0123456789abcdfghijklmnpqrsvwxyz"; 10_001];
    for (body, words) in [
        (json!({ "derivations": ["a.drv"] }), "a.drv is no derivation"),
        (json!({ "hashes": ["\u{1b}[31m"] }), "no hash of a store path"),
        (json!({ "attributes": [{ "set": "a/b", "attribute": "c" }] }), "no attribute"),
        (json!({ "hashes": many }), "more than 10000"),
        (json!({ "hash": [] }), "unknown field"),
    ] {
        let answer = cache.http.post_json("/api/v1/builds", &body);
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert!(answer.text().contains(words) && !answer.text().contains('\u{1b}'), "{}", answer.text());
    }
    let large =
        format!("POST /api/v1/builds HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", (4 << 20) + 1);
    let (answer, closed) = raw(cache.ondine.address(), large.as_bytes(), SOON);
    assert_eq!((status_of(&answer), closed), (413, true));
    assert_eq!(ask(&cache.http, &json!({})), [Value::Null; 0]);
    assert_eq!(cache.http.get("/api/v1/builds/1?wait=301").status, 400);
    assert_eq!(cache.http.get("/api/v1/builds/1?wait=1").status, 404);
}

#[test]
fn a_request_is_followed_as_events_to_its_end() {
    let cache = Cache::new(&["--keep-alive-interval", "1s"]);
    let gate = cache.store.gate();
    let script = format!("echo 'first \u{1b}[31mline'\n{}echo 'last line'; echo > $out", gate.script("slow"));
    let slow = cache.store.instantiate(&Derivation::new("slow", &script));
    let items = ask(&cache.http, &json!({ "derivations": [base_name(&slow.drv)] }));
    let address = format!("/api/v1/builds/{}", items[0]["request"]);
    let mut events = cache.http.open(&address, &[("accept", "text/event-stream")]);
    assert_eq!((events.status, events.header("content-type")), (200, Some("text/event-stream")));
    gate.wait_for_starts(1);
    let mut text = String::new();
    while !(text.contains("first line") && text.contains("\n\n: ")) {
        let piece = events.next_piece().unwrap_or_else(|ending| panic!("{ending:?} after {text}"));
        text += &String::from_utf8(piece).expect("text");
    }
    gate.open();
    let (rest, ending) = events.read_to_end();
    assert_eq!(ending, support::Ending::Complete);
    text += &String::from_utf8(rest).expect("text");
    let told: Vec<(&str, Value)> = text
        .split("\n\n")
        .filter_map(|event| event.strip_prefix("event: ")?.split_once("\ndata: "))
        .map(|(name, data)| (name, serde_json::from_str(data).expect("JSON")))
        .collect();
    let (name, end) = told.last().expect("events");
    assert_eq!((*name, &end["state"]), ("end", &json!("served")));
    assert!(told.iter().any(|(name, state)| *name == "state" && state["state"] == "building"), "{text}");
    let lines: Vec<&Value> = told
        .iter()
        .filter(|(name, _)| *name == "log")
        .flat_map(|(_, log)| log["lines"].as_array().expect("lines"))
        .collect();
    assert_eq!(lines, ["first line", "last line"]);
    // One that has ended has its end at once, and one that never was is none.
    let ended = cache.http.get_with(&address, &[("accept", "text/event-stream")]).text();
    assert!(ended.starts_with("event: end\n"), "{ended}");
    let none = cache.http.get_with("/api/v1/builds/999", &[("accept", "text/event-stream")]);
    assert_eq!(none.status, 404);
}

#[test]
fn what_is_built_or_waits_is_explained_by_its_name() {
    let cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let [running, waiting] = ["running-1.0", "waiting-2.0"].map(|name| cache.gated(name, &gate));
    let http = &cache.http;
    ask(http, &json!({"derivations": [text(&running.drv), text(&waiting.drv)]}));
    let state = |name: &str| get(http, &format!("/api/v1/explain/{name}"))["state"].clone();
    wait_until("the first is built", SOON, || state("running-1.0") == "building");
    assert_eq!([state("running"), state("waiting"), state("waiting-2.0")], ["building", "queued", "queued"]);
    gate.open();
    wait_until("both are served", SOON, || state("running") == "served" && state("waiting") == "served");
}

#[test]
fn a_hash_a_path_a_derivation_and_a_name_are_explained() {
    let foreign = Derivation::new("foreign-1.0", "echo 1 > $out").system("pdp11-linux");
    let above = Derivation::new("above-1.0", "echo $foreign > $out").input("foreign", &foreign);
    let set = PackageSet::new([
        ("served".to_owned(), derivations::text_file("served-1.0", "1").to_nix()),
        ("failing".to_owned(), derivations::failing("failing").to_nix()),
        ("foreign".to_owned(), foreign.to_nix()),
        ("above".to_owned(), above.to_nix()),
        ("broken".to_owned(), "abort \"words of broken\"".to_owned()),
    ]);
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let ondine = set.serve(&store, "", "");
    wait_for_generation(&ondine);
    let http = Http::new(&ondine.url());
    let paths = set.all_paths(&store, &["served", "failing"]);
    let explain = |what: &str| get(&http, &format!("/api/v1/explain/{what}"));
    // Before anyone has asked for it, and by the name of its derivation, too.
    for name in ["served", "served-1.0", "pkgs/served-1.0", hash(&paths[0].0)] {
        let told = explain(name);
        assert_eq!((&told["state"], &told["derivation"]), (&json!("known"), &json!(base_name(&paths[0].0))));
    }
    for name in ["foreign", "above"] {
        let told = explain(name);
        assert_eq!(told["state"], "refused", "{told}");
        assert!(
            told["reason"].as_str().is_some_and(|reason| reason.contains("system pdp11-linux")),
            "{told}"
        );
    }
    let told = explain("broken");
    assert_eq!(told["state"], "failed", "{told}");
    assert_eq!(told["advice"], "repair the expression, then `ondine refresh pkgs`");
    for (_, out) in &paths {
        http.get(&support::addresses::narinfo_address(out));
    }
    let (served_drv, served) = &paths[0];
    let names = ["served", "pkgs/served", "served-1.0"];
    let paths_of_it = [hash(served), base_name(served), base_name(served_drv), hash(served_drv)];
    for what in names.into_iter().chain(paths_of_it) {
        let told = explain(what);
        assert_eq!((&told["asked"], &told["state"]), (&json!(what), &json!("served")), "{told}");
        assert_eq!(told["made_by"], json!(["this server"]), "{told}");
        assert_eq!(told["derivation"], base_name(served_drv), "the log is that of its derivation: {told}");
        assert!(told["notes"][1].as_str().is_some_and(|note| note.contains("always-allow-substitutes")));
    }
    let (failing_drv, failing) = &paths[1];
    for what in ["failing", hash(failing), base_name(failing_drv), hash(failing_drv)] {
        let told = explain(what);
        assert_eq!(told["state"], "failed", "{told}");
        assert_eq!(told["log"], format!("/log/{}", base_name(failing_drv)));
        assert!(told["retry_at"].as_u64() > told["failed_since"].as_u64(), "{told}");
        assert!(told["advice"].as_str().is_some_and(|advice| advice.contains("ondine retry")), "{told}");
    }
    let told = explain("0123456789abcdfghijklmnpqrsvwxyz");
    assert_eq!(told["state"], "unknown");
    assert!(told["advice"].as_str().is_some_and(|advice| advice.contains("nix copy --derivation")), "{told}");
    let told = explain("no-such-1.0");
    assert_eq!(told["state"], "unknown");
    assert!(
        told["reason"].as_str().is_some_and(|reason| reason.contains("no package set has no-such-1.0,")),
        "{told}"
    );
    assert_eq!(http.get("/api/v1/explain/%22").status, 404);
}

#[test]
fn very_many_items_are_answered_from_memory_and_the_index() {
    const SERVED: usize = 500;
    let cache = Cache::new(&[]);
    let row = cache.store.instantiate(&derivations::row_of_outputs("row", SERVED));
    cache.narinfo(row.output(&format!("o{SERVED}")));
    let unknown = |number: usize| format!("{number:0>32}");
    let served = row.outputs.iter().map(|(_, path)| hash(path).to_owned());
    let hashes: Vec<String> = served.chain((0..10_000 - SERVED).map(unknown)).collect();
    for _ in 0..3 {
        let begun = Instant::now();
        let items = ask(&cache.http, &json!({ "hashes": hashes }));
        println!("10,000 hashes, {SERVED} of them served: {:?}", begun.elapsed());
        assert!(items[..SERVED].iter().all(|item| item["state"] == "served"));
        assert!(items[SERVED..].iter().all(|item| item["state"] == "unknown"));
    }
}

#[test]
fn arguments_are_objects_and_a_parameter_has_one_value() {
    let cache = Cache::new(&[]);
    for wrong in [
        "[]",
        "[[], [], [], true, null]",
        "{\"attributes\": [[\"set\", \"hello\", null]]}",
        "{\"hashes\": []} 1",
    ] {
        let answer = send_body(&cache, "POST", "/api/v1/builds", None, wrong);
        assert!(answer.starts_with("HTTP/1.1 400"), "{wrong}: {answer}");
    }
    for (query, status) in [("wait=0&wait=1", 400), ("wait=0&wait=0", 404), ("wait=0", 404)] {
        let answer = cache.http.get(&format!("/api/v1/builds/7?{query}"));
        assert_eq!(answer.status, status, "{query}: {}", answer.text());
    }
    for path in ["/get/set/?limit=1&limit=2", "/bin/tool?system=a&system=b"] {
        let answer = cache.http.get(path);
        assert!(answer.status == 400 && answer.text().contains("two values"), "{path}: {}", answer.text());
    }
}
