//! Pages in a real browser, headless Chromium. They need Debian's `chromium-driver`, and ONDINE_TEST_AXE,
//! which names the file of axe-core; so they are ignored, and `.ci/run` runs them.

#[path = "../support/mod.rs"]
mod support;

mod images;
mod scene;

use std::collections::BTreeMap;
use std::time::Duration;

use scene::Scene;
use serde_json::Value;
use support::addresses::base_name;
use support::package_set::{small, told, wait_for_generation};
use support::{Browser, Cache, Derivation, NixStore, PackageSet, Release, text, wait_until};

/// Time limit of a change of state.
const SOON: Duration = Duration::from_secs(60);
/// Names the file of axe-core (<https://github.com/dequelabs/axe-core>).
const AXE: &str = "ONDINE_TEST_AXE";
/// The enter key of WebDriver.
const ENTER: &str = "\u{e007}";

#[track_caller]
fn no_errors(browser: &Browser) {
    assert_eq!(browser.console_errors(), [""; 0]);
}

#[test]
#[ignore = "needs chromium-driver"]
fn the_log_of_a_build_appears_while_it_runs_and_the_queue_moves_by_itself() {
    let cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let script = format!(
        "echo before the gate\n{}echo behind the gate\n{}echo x > $out",
        gate.script("a"),
        gate.script("b")
    );
    let first = cache.store.instantiate(&Derivation::new("first-1.0", &script));
    let second = cache.gated("second-2.0", &gate);
    let browser = Browser::start();
    browser.open(&cache.ondine.url());
    browser.wait_for("Nothing to build");
    let asked = cache.ask_in_background(first.out());
    browser.wait_for("Building first-1.0");
    browser.wait_for("before the gate");
    assert!(!browser.text().contains("behind the gate"));
    let waiting = cache.ask_in_background(second.out());
    browser.wait_for("1 waiting");
    browser.wait_for("second-2.0");
    gate.open();
    assert_eq!((asked.answer().status, waiting.answer().status), (200, 200));
    browser.wait_for("Nothing to build");
    let ended = "[...document.querySelectorAll('.state.served')].length === 2";
    browser.wait_until_true("both are among the recent builds", ended);
    // The page of the derivation has the whole log, with a link for each line.
    browser.open(&format!("{}/derivations/{}#L2", cache.ondine.url(), base_name(&first.drv)));
    browser.wait_for("behind the gate");
    browser.wait_until_true(
        "a line is marked",
        "document.querySelector('.line:target').textContent.includes('behind')",
    );
    no_errors(&browser);
}

#[test]
#[ignore = "needs chromium-driver"]
fn the_page_of_a_running_build_follows_its_log_to_the_end() {
    let cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let script = format!("echo one\n{}echo two; echo x > $out", gate.script("a"));
    let slow = cache.store.instantiate(&Derivation::new("slow-1.0", &script));
    let asked = cache.ask_in_background(slow.out());
    gate.wait_for_starts(1);
    let browser = Browser::start();
    browser.open(&format!("{}/derivations/{}", cache.ondine.url(), base_name(&slow.drv)));
    browser.wait_for("one");
    browser.wait_for("building");
    gate.open();
    assert_eq!(asked.answer().status, 200);
    browser.wait_for("two");
    browser.wait_for("served");
    no_errors(&browser);
}

#[test]
#[ignore = "needs chromium-driver"]
fn search_finds_a_package_from_the_keyboard() {
    let store = NixStore::new(Release::Host);
    let set = PackageSet::new(["hello", "other"].map(small));
    let cache = Cache::of(store, &["--config", text(&set.settings("", ""))], &[]);
    wait_for_generation(&cache.ondine);
    let browser = Browser::start();
    browser.open(&cache.ondine.url());
    browser.type_into("body", "/");
    browser.wait_until_true("the search has the focus", "document.activeElement.name === 'q'");
    browser.type_into(".find input", &format!("hel{ENTER}"));
    browser.wait_for("hello");
    browser.click(".lines a");
    browser.wait_for("Get it");
    let derivation = told(&cache.ondine, "hello")["outputs"][0]["path"].clone();
    assert!(browser.text().contains(derivation.as_str().expect("a path")), "{}", browser.text());
    no_errors(&browser);
}

#[test]
#[ignore = "needs chromium-driver"]
fn a_failure_shows_its_reason_and_is_retried_with_a_token_and_not_without() {
    let cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let failing = cache.failing("broken-1.0", &gate, "exit 3");
    assert_eq!(cache.ask(failing.out()).status, 404);
    let browser = Browser::start();
    browser.open(&format!("{}/failures", cache.ondine.url()));
    browser.wait_for("failed with exit code 3");
    assert!(!browser.text().contains("Build it again"));
    let token = cache.ondine.new_token("ops", "cancel", &[]);
    browser.click(".failure a[href*='sign-in?back=failures']");
    browser.type_into("#token", &format!("{token}{ENTER}"));
    browser.wait_for("Build it again");
    assert_eq!(browser.run("return document.cookie"), "", "scripts see the token");
    browser.click(".failure form button");
    wait_until("it is built again", SOON, || gate.starts().len() == 2);
    browser.wait_for("Why it failed");
    browser.click("form[action$='sign-out'] button");
    browser.wait_for("Sign in");
    no_errors(&browser);
}

#[test]
#[ignore = "needs chromium-driver"]
fn hostile_texts_stay_text() {
    let store = NixStore::new(Release::Host);
    let evil = "<img src=x onerror=document.title=666><script>document.title=666</script>";
    let broken = format!("throw \"{evil}\"");
    let name = format!("\"{}\"", "<script>document.title=666</script>");
    let set = PackageSet::new([(name, small("a").1), ("broken".to_owned(), broken), small("b")]);
    let cache = Cache::of(store, &["--config", text(&set.settings("", ""))], &[]);
    wait_for_generation(&cache.ondine);
    let gate = cache.store.gate();
    let words = format!(
        "printf '\\033]0;{evil}\\007{evil}\\033[31m{evil}\\n'\nprintf '\\033[38;5;1m\\033[999m{evil}\\n'\nexit 3"
    );
    let failing = cache.failing("evil", &gate, &words);
    assert_eq!(cache.ask(failing.out()).status, 404);
    let browser = Browser::start();
    let url = cache.ondine.url();
    let drv = base_name(&failing.drv).to_owned();
    for address in [
        "/".to_owned(),
        "/failures".to_owned(),
        format!("/derivations/{drv}"),
        "/packages/pkgs/".to_owned(),
        "/search?q=%3Cscript%3Edocument.title%3D666%3C/script%3E".to_owned(),
        "/packages/pkgs/broken".to_owned(),
        "/sign-in?back=javascript:document.title=666".to_owned(),
    ] {
        browser.open(&format!("{url}{address}"));
        let foreign =
            browser.run("return document.querySelectorAll('img, script:not([src]), [onerror]').length");
        assert_eq!(foreign, 0, "{address}");
        assert_ne!(browser.run("return document.title"), "666", "{address}");
    }
    browser.open(&format!("{url}/derivations/{drv}"));
    assert!(browser.text().contains(evil), "{}", browser.text());
    // The set's page answers 404 for what cannot be evaluated, which the console tells.
    let errors = browser.console_errors();
    assert!(errors.iter().all(|error| error.contains("404")), "{errors:?}");
}

#[test]
#[ignore = "needs chromium-driver"]
fn a_closure_is_zoomed_into_and_a_log_is_searched() {
    let scene = Scene::new(10, 5, &[]);
    let pages: BTreeMap<_, _> = scene.pages().into_iter().collect();
    let browser = Browser::start();
    browser.resize(1280, 1000);
    browser.open(&pages["path"]);
    let whole = "document.querySelectorAll('svg.treemap.wide a').length";
    let tiles = browser.run(&format!("return {whole}"));
    browser.click("svg.treemap.wide a.group text");
    browser.wait_for("Back to all of git-2.47.1");
    browser.wait_until_true("the part is drawn alone", &format!("{whole} < {tiles}"));
    browser.click("a[href='?#closure']");
    browser.wait_until_true("the whole is drawn again", &format!("{whole} === {tiles}"));

    browser.open(&pages["failed"]);
    browser.type_into("#find", &format!("member NAMED{ENTER}"));
    browser.wait_until_true(
        "lines with the text are left",
        "[...document.querySelectorAll('.line')].every((line) => line.textContent.includes('member named'))",
    );
    browser.click(".line a");
    browser.wait_until_true(
        "the line stands among others",
        "document.querySelector('.line:target').textContent.includes('member named') && \
         document.querySelectorAll('.line').length > 2",
    );
    browser.open(&pages["derivation"]);
    browser.click("details summary");
    browser.wait_until_true("a phase is folded", "!document.querySelector('details').open");
    let state = "document.querySelector('svg.graph.wide a.node.served').getAttribute('aria-label')";
    assert_eq!(browser.run(&format!("return {state}")), "bash-5.2p37: served");
    no_errors(&browser);
}

#[test]
#[ignore = "needs chromium-driver"]
fn the_overview_shows_the_machines_and_a_package_its_doors_and_versions() {
    let scene = Scene::new(10, 5, &[]);
    let pages: BTreeMap<_, _> = scene.pages().into_iter().collect();
    let browser = Browser::start();
    browser.resize(1280, 1000);
    browser.open(&pages["home"]);
    let drawn = "[...document.querySelectorAll('.chart svg path:not(.grid)')].some((path) => path.getBBox().width > 100)";
    browser.wait_until_true("the growth of the cache is drawn", drawn);
    for words in ["ampere", "basalt", "aarch64-linux", "http://127.0.0.1:9", "cached here"] {
        browser.wait_for(words);
    }
    browser.open(&pages["statistics"]);
    browser.wait_until_true("the use is drawn", drawn);
    browser.open(&pages["package"]);
    let text = browser.text();
    for words in
        ["/run/pkgs/curl", "/bin/pkgs/curl/curl", "/closure/pkgs/curl.tar.zst", "/image/pkgs/curl.tar"]
    {
        assert!(text.contains(words), "no {words} in {text}");
    }
    for words in ["7 paths", "curl-8.10.1", "curl-8.11.0", "git-2.47.1"] {
        assert!(text.contains(words), "no {words} in {text}");
    }
    no_errors(&browser);
}

#[test]
#[ignore = "needs chromium-driver and axe-core"]
fn every_page_is_sound_for_all_readers_in_both_themes() {
    let axe = std::env::var(AXE).unwrap_or_else(|_| panic!("{AXE} names no file"));
    let axe = std::fs::read_to_string(axe).expect("axe-core");
    let scene = Scene::new(150, 20, &[]);
    let browser = Browser::start();
    for (name, address) in scene.pages() {
        for (width, dark) in [(390, false), (1280, true), (1280, false), (2560, true)] {
            browser.resize(width, 1000);
            browser.prefer_dark(dark);
            browser.open(&address);
            let overflow = browser.run("return document.documentElement.scrollWidth - innerWidth");
            assert!(
                overflow.as_i64().is_some_and(|more| more <= 0),
                "{name} is wider than {width}: {overflow}"
            );
            browser.run(&axe);
            let found = browser.run_async(
                "const done = arguments[0]; axe.run({ resultTypes: ['violations'] }).then((result) => done(result.violations))",
            );
            let serious: Vec<String> = found
                .as_array()
                .expect("a list")
                .iter()
                .filter(|fault| {
                    ["serious", "critical"].contains(&fault["impact"].as_str().unwrap_or_default())
                })
                .map(|fault| format!("{}: {}", fault["id"], fault["nodes"][0]["html"]))
                .collect();
            assert_eq!(serious, [""; 0], "{name} at {width}, dark: {dark}");
        }
    }
    no_errors(&browser);
}

#[test]
#[ignore = "needs chromium-driver"]
fn pages_work_without_scripts_and_the_theme_can_be_chosen() {
    let cache = Cache::new(&[]);
    let browser = Browser::start();
    browser.allow_scripts(false);
    browser.prefer_dark(false);
    browser.open(&cache.ondine.url());
    let paper = || browser.run("return getComputedStyle(document.body).backgroundColor");
    let light = paper();
    browser.click("button[name='theme']");
    browser.wait_until_true("it is dark", "document.documentElement.dataset.theme === 'dark'");
    assert_ne!(paper(), light);
    browser.type_into(".find input", &format!("nothing{ENTER}"));
    browser.wait_for("Nothing has this name");
    assert_ne!(paper(), light, "the theme stays");
    let dead: Value =
        browser.run("return [...document.querySelectorAll('form')].filter((form) => !form.action).length");
    assert_eq!(dead, 0);
}

/// Names the program of schemathesis (<https://schemathesis.readthedocs.io/>).
const SCHEMATHESIS: &str = "ONDINE_TEST_SCHEMATHESIS";

#[test]
#[ignore = "needs schemathesis"]
fn every_answer_of_the_api_is_as_its_openapi_document_says() {
    let program = std::env::var(SCHEMATHESIS).unwrap_or_else(|_| panic!("{SCHEMATHESIS} names no program"));
    let scene = Scene::new(150, 20, &[]);
    let url = scene.cache.ondine.url();
    let token = scene.cache.ondine.new_token("tests", "read,build,cancel,pin", &[]);
    let mut command = std::process::Command::new(program);
    // It leaves a folder where it runs.
    let folder = tempfile::tempdir().expect("a folder");
    command.current_dir(folder.path());
    command.args(["run", &format!("{url}/api/v1/openapi.json"), "--url", &url]);
    command.args(["--header", &format!("Authorization: Bearer {token}")]);
    // The events have no end.
    command.args(["--include-path-regex", "^/api/", "--exclude-path", "/api/v1/events"]);
    command.args(["--checks", "not_a_server_error,response_schema_conformance,content_type_conformance"]);
    command.args(["--phases", "examples,coverage,fuzzing", "--max-examples", "15", "--seed", "1"]);
    command.args(["--generation-database", "none", "--request-timeout", "60"]);
    let told = support::process::run(command);
    assert!(told.succeeded(), "{}\n{}", told.text(), told.stderr);
}
