//! Trouble of other caches that passes: it is never told as a 404 while it may pass, nobody waits for a sick
//! upstream who can be served without it, and what was promised and cannot be kept is had from elsewhere, or
//! taken back.

use std::time::{Duration, Instant};

use crate::support;
use crate::support::addresses::{field, narinfo_address};
use crate::support::cache::{assert_missing, assert_narinfo};
use crate::support::derivations::{noise, text_file};
use crate::support::upstream::counted;
use crate::support::{
    Cache, Client, Compression, Derivation, Ending, Fault, NixStore, Release, Sample, Upstream, wait_until,
};

/// Time limit of what takes no time, on a machine that does much else.
const SOON: Duration = Duration::from_secs(60);

/// A server whose store lost a path that the caches behind it have.
struct Behind {
    cache: Cache,
    upstreams: Vec<Upstream>,
    sample: Sample,
}

impl Behind {
    /// So many upstreams, the first preferred; with the derivation still there or not.
    fn new(derivation: &Derivation, upstreams: usize, known: bool, arguments: &[&str]) -> Behind {
        let store = NixStore::new(Release::Host);
        let sample = Sample::new(&store, derivation);
        let copied = || Upstream::of(sample.copied(&store, Compression::Zstd));
        let upstreams: Vec<Upstream> = (0..upstreams).map(|_| copied()).collect();
        if known {
            sample.collect(&store)
        } else {
            sample.collect_with_derivation(&store)
        }
        let more = |number| format!("priority = {number}\nstall-timeout = \"2s\"\nconnect-timeout = \"1s\"");
        let numbered = upstreams.iter().enumerate();
        let tables: Vec<_> = numbered.map(|(number, upstream)| upstream.table(&more(number))).collect();
        let cache = Cache::behind(store, &tables, arguments);
        Behind { cache, upstreams, sample }
    }

    fn nar_address(&self) -> String {
        format!("/{}", field(&self.cache.narinfo(&self.sample.path), "URL"))
    }

    #[track_caller]
    fn assert_is_nar(&self, answer: &support::http::Response) {
        assert_eq!(answer.status, 200, "{}", answer.text());
        self.sample.assert_is_nar(&zstd::decode_all(&answer.body[..]).expect("a zstd file"));
    }
}

fn passing() -> Vec<Fault> {
    vec![
        Fault::Status(503),
        Fault::Status(500),
        Fault::Status(408),
        Fault::Status(429),
        Fault::RetryAfter(429, 1),
        Fault::CloseEarly,
        Fault::Cut(100),
    ]
}

// Narinfos.

#[test]
fn one_transient_failure_of_an_upstream_is_never_a_404() {
    for fault in passing().into_iter().chain([Fault::Silence]) {
        let said = format!("{fault:?}");
        let behind = Behind::new(&text_file("sample", "text"), 1, false, &[]);
        let Behind { cache, upstreams, sample } = &behind;
        upstreams[0].server.fault_times(".narinfo", 1, fault.clone());
        let answer = cache.ask(&sample.path);
        assert_eq!(answer.status, 200, "{said}: {}", answer.text());
        assert_narinfo(&answer, &sample.path);
        upstreams[0].server.fault_times("/nar/", 1, fault);
        behind.assert_is_nar(&cache.http.get(&behind.nar_address()));
    }
}

#[test]
fn what_passes_within_the_budget_costs_neither_a_head_nor_a_cached_answer() {
    let Behind { cache, upstreams, sample } =
        &Behind::new(&text_file("sample", "text"), 1, false, &["--upstream-lookup-timeout", "10s"]);
    let address = narinfo_address(&sample.path);
    upstreams[0].server.fault_times(".narinfo", 2, Fault::Status(503));
    assert_eq!(cache.http.head(&address).status, 200);
    assert_eq!(counted(&cache.ondine, "narinfos", &["failed"]), 0);
}

#[test]
fn an_upstream_that_restarts_is_waited_for_and_the_wait_is_told() {
    let Behind { cache, mut upstreams, sample } =
        Behind::new(&text_file("sample", "text"), 1, false, &["--hold", "0s", "--keep-alive-interval", "1s"]);
    upstreams[0].server.stop();
    let mut asked = cache.http.open(&narinfo_address(&sample.path), &[]);
    let mut lines = String::new();
    // Long enough for the upstream to be left alone for a while: that is trouble, too, not absence.
    while !lines.contains("is not asked for a while") {
        lines += &String::from_utf8_lossy(&asked.next_piece().expect("a line about the wait"));
    }
    assert!(lines.contains("cannot be reached") && lines.contains("transient-retry"), "{lines}");
    let client = cache.client(&[]);
    let fetching = client.start_fetch(&cache.ondine.substituter(), &[&sample.path]);
    upstreams[0].server.start_again();
    let (rest, ending) = asked.read_to_end();
    assert_eq!(ending, Ending::Complete);
    assert!(String::from_utf8_lossy(&rest).contains("StorePath: "), "{}", String::from_utf8_lossy(&rest));
    fetching.finish_within(2 * SOON).must_succeed();
    sample.assert_held_by(&client);
}

#[test]
fn trouble_that_lasts_is_final_after_the_setting_and_sooner_for_whoever_is_not_held() {
    let Behind { cache, mut upstreams, sample } =
        Behind::new(&text_file("sample", "text"), 1, false, &["--transient-retry", "4s", "--hold", "250s"]);
    upstreams[0].server.stop();
    let address = narinfo_address(&sample.path);
    let begun = Instant::now();
    assert_missing(&cache.ask(&sample.path), &["cannot be reached"]);
    assert!(begun.elapsed() >= Duration::from_secs(4), "{:?}", begun.elapsed());
    drop(cache);
    let Behind { cache, mut upstreams, .. } =
        Behind::new(&text_file("sample", "text"), 1, false, &["--hold", "1s"]);
    upstreams[0].server.stop();
    for cached in [true, false] {
        let begun = Instant::now();
        let status = match cached {
            true => cache.http.get(&format!("/cached{address}")).status,
            false => cache.http.head(&address).status,
        };
        assert_eq!(status, 404);
        assert!(begun.elapsed() < Duration::from_secs(20), "{cached}: {:?}", begun.elapsed());
    }
}

#[test]
fn a_client_that_was_cut_off_after_the_setting_hears_why_at_once() {
    let arguments = ["--transient-retry", "3s", "--hold", "0s", "--keep-alive-interval", "1s"];
    let Behind { cache, mut upstreams, sample } =
        Behind::new(&text_file("sample", "text"), 1, false, &arguments);
    upstreams[0].server.stop();
    let mut asked = cache.http.open(&narinfo_address(&sample.path), &[]);
    assert!(matches!(asked.read_to_end().1, Ending::Cut(_)));
    let raw = format!("GET {} HTTP/1.0\r\n\r\n", narinfo_address(&sample.path));
    let (answer, closed) = support::http::raw(cache.ondine.address(), raw.as_bytes(), Duration::from_secs(3));
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(closed && answer.contains(" 404 ") && answer.contains("cannot be reached"), "{answer}");
}

#[test]
fn nobody_waits_for_a_sick_upstream_who_can_be_served_without_it() {
    let Behind { cache, upstreams, sample } = Behind::new(&text_file("sample", "text"), 2, false, &[]);
    for fault in [Fault::Status(503), Fault::Silence] {
        upstreams[0].server.mend();
        upstreams[0].server.fault("", fault.clone());
        let store = &cache.store;
        let built =
            store.instantiate(&text_file(&format!("built-{}", upstreams[0].server.seen().len()), "text"));
        for path in [&*sample.path, built.out()] {
            let begun = Instant::now();
            let answer = cache.ask(path);
            assert_narinfo(&answer, path);
            assert!(!answer.text().contains("transient-retry"), "{}", answer.text());
            assert!(begun.elapsed() < Duration::from_secs(15), "{fault:?}: {:?}", begun.elapsed());
        }
    }
}

// NARs that were promised.

#[test]
fn a_promise_that_the_upstream_does_not_keep_is_kept_by_a_build_while_the_client_waits() {
    for fault in [Fault::Status(500), Fault::Status(401), Fault::Status(404), Fault::CloseEarly] {
        let said = format!("{fault:?}");
        let behind = Behind::new(&text_file("sample", "text"), 1, true, &["--transient-retry", "2s"]);
        let address = behind.nar_address();
        let Behind { cache, upstreams, .. } = &behind;
        upstreams[0].server.fault("/nar/", fault);
        // Nix itself asks it, too, before it builds.
        upstreams[0].server.fault(".narinfo", Fault::Status(404));
        let answer = cache.http.get(&address);
        assert_eq!(answer.status, 200, "{said}: {}", answer.text());
        behind.assert_is_nar(&answer);
    }
}

#[test]
fn a_promise_is_kept_by_another_upstream_or_by_the_local_store() {
    for local in [false, true] {
        let behind = Behind::new(&noise("noise", 100_000), 2, local, &["--transient-retry", "2s"]);
        let address = behind.nar_address();
        let Behind { cache, upstreams, sample } = &behind;
        upstreams[0].server.fault("/nar/", Fault::Status(500));
        if local {
            upstreams[1].server.fault("/nar/", Fault::Status(500));
            cache.store.realise(&sample.drv);
        }
        behind.assert_is_nar(&cache.http.get(&address));
    }
}

#[test]
fn a_promise_that_nobody_can_keep_is_taken_back_and_the_next_answer_is_decided_anew() {
    let whim = Derivation::new("whim", "echo $RANDOM $$ $RANDOM > \"$out\"");
    let Behind { cache, upstreams, sample } = Behind::new(&whim, 1, true, &["--transient-retry", "2s"]);
    let before = cache.narinfo(&sample.path);
    upstreams[0].server.fault("/nar/", Fault::Status(500));
    let old = format!("/{}", field(&before, "URL"));
    assert_eq!(cache.http.get(&format!("/cached{}", narinfo_address(&sample.path))).status, 200);
    upstreams[0].server.fault(".narinfo", Fault::Status(404));
    // It is built again, and comes out otherwise: whoever holds the old narinfo learns that.
    assert_missing(&cache.http.get(&old), &["other contents by now"]);
    let after = cache.narinfo(&sample.path);
    assert_ne!(field(&after, "NarHash"), field(&before, "NarHash"));
    assert_missing(&cache.http.get(&old), &["other contents by now"]);
    let client = cache.client(&[]);
    client.fetch(&cache.ondine.substituter(), &[&sample.path]).must_succeed();

    let Behind { cache, upstreams, sample } =
        Behind::new(&text_file("lonely", "text"), 1, false, &["--transient-retry", "2s"]);
    let narinfo = cache.narinfo(&sample.path);
    upstreams[0].server.fault("/nar/", Fault::Status(500));
    let begun = Instant::now();
    assert_missing(&cache.http.get(&format!("/{}", field(&narinfo, "URL"))), &[]);
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_missing(&cache.ask(&sample.path), &["did not have the contents it promises"]);
}

#[test]
fn a_nar_whose_upstream_is_away_for_a_moment_is_waited_for_and_stays_promised() {
    let behind = Behind::new(&text_file("sample", "text"), 1, false, &[]);
    let address = behind.nar_address();
    let Behind { cache, mut upstreams, sample } = behind;
    upstreams[0].server.stop();
    let (http, nar) = (support::Http::new(&cache.ondine.url()), address.clone());
    let waiting = std::thread::spawn(move || http.get(&nar));
    std::thread::sleep(Duration::from_secs(3));
    assert!(!waiting.is_finished(), "it was not waited for");
    upstreams[0].server.start_again();
    wait_until("the answer comes", SOON, || waiting.is_finished());
    let answer = waiting.join().expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
    sample.assert_served_by(&cache.ondine);
}

// Transfers that break off.

/// Bytes of a NAR that comes over several connections, and where it breaks off.
const LARGE_BYTES: u32 = 3_000_000;
const BREAK_AT: usize = 1_000_000;

#[test]
fn a_transfer_is_resumed_whatever_the_upstream_calls_the_rest() {
    for fault in [None, Some(Fault::NoRange), Some(Fault::PartCalledWhole)] {
        let said = format!("{fault:?}");
        let behind = Behind::new(&noise("noise", LARGE_BYTES), 1, false, &[]);
        let address = behind.nar_address();
        let Behind { cache, upstreams, .. } = &behind;
        if let Some(fault) = fault {
            upstreams[0].server.fault("/nar/", fault);
        }
        upstreams[0].server.fault_times("/nar/", 1, Fault::Cut(BREAK_AT));
        behind.assert_is_nar(&cache.http.get(&address));
        assert_eq!(upstreams[0].server.seen_of("/nar/").len(), 2, "{said}");
        assert_eq!(counted(&cache.ondine, "nars", &["refused", "failed"]), 0, "{said}");
    }
}

#[test]
fn parts_that_do_not_fit_are_fetched_anew_over_one_connection_before_anyone_is_blamed() {
    for fault in [Fault::PartUnsaid, Fault::PartSpoilt] {
        let said = format!("{fault:?}");
        let behind = Behind::new(&noise("noise", LARGE_BYTES), 1, false, &[]);
        let address = behind.nar_address();
        let Behind { cache, upstreams, sample } = &behind;
        upstreams[0].server.fault("/nar/", fault);
        upstreams[0].server.fault_times("/nar/", 1, Fault::Cut(BREAK_AT));
        // Whoever has seen the first part cannot be helped but by asking again.
        let first = cache.http.try_open(&address, &[]).map(|mut answer| answer.read_to_end().1);
        if first.as_ref().is_ok_and(|ending| *ending == Ending::Complete) {
            println!("{said}: at once");
        }
        upstreams[0].server.fault_times("/nar/", 1, Fault::Cut(BREAK_AT));
        behind.assert_is_nar(&cache.http.get(&address));
        assert_eq!(counted(&cache.ondine, "nars", &["refused"]), 0, "{said}");
        assert_narinfo(&cache.ask(&sample.path), &sample.path);
    }
}

#[test]
fn a_client_of_every_release_gets_a_path_through_an_upstream_that_fails_now_and_then() {
    for release in Release::all() {
        let Behind { cache, upstreams, sample } = Behind::new(&noise("noise", LARGE_BYTES), 1, false, &[]);
        upstreams[0].server.fault_times("/nar/", 1, Fault::Cut(BREAK_AT));
        upstreams[0].server.fault_times("/nar/", 2, Fault::Status(503));
        upstreams[0].server.fault_times(".narinfo", 3, Fault::Status(503));
        let client = Client::new(release.clone(), &cache.store.store_dir());
        client.fetch(&cache.ondine.substituter(), &[&sample.path]).must_succeed();
        sample.assert_held_by(&client);
    }
}
