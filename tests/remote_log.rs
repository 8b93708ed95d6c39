//! `ondine log`: the log of a build on the server, for a user on another machine.

use std::time::Duration;

use crate::support::process::run;
use crate::support::{
    Background, Client, Derivation, Http, NixStore, Ondine, Release, derivations, text, wait_until,
};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_log_is_printed_by_path_whole_or_followed_to_its_end() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let server = Ondine::start(&store, &[]);
    let client = Client::new(Release::Host, &store.store_dir());
    let gate = store.gate();
    let script =
        ["echo -e 'first \\e[31mred\\e[0m line'\n", &gate.script("slow"), "echo last line; echo done > $out"];
    let slow = store.instantiate(&Derivation::new("slow", &script.concat()));
    let build = client.start_fetch(&server.substituter(), &[slow.out()]);
    let url = server.url();
    let log = |arguments: &[&str]| {
        let all = [&["log", text(slow.out()), "--server", &url], arguments].concat();
        client.ondine_command(&all, &[])
    };
    wait_until("the build has a log", LIMIT, || {
        Http::new(&server.url()).get("/api/v1/queue").text().contains("building")
            && run(log(&[])).text().contains("first")
    });
    let so_far = run(log(&[])).must_succeed();
    assert_eq!(so_far.text(), "first red line", "what acts on a terminal is gone");
    assert!(so_far.stderr.contains("-f follows"), "{so_far}");

    let follower = Background::start(log(&["-f"]));
    std::thread::sleep(Duration::from_millis(500));
    gate.open();
    let followed = follower.finish_within(LIMIT).must_succeed();
    assert_eq!(followed.text(), "first red line\nlast line");
    build.finish().must_succeed();
    let whole = run(log(&[])).must_succeed();
    assert_eq!(whole.text(), "first red line\nlast line");
    assert!(whole.stderr.is_empty(), "{whole}");
}

#[test]
fn no_log_and_no_server_are_told_in_words() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let mut server = Ondine::start(&store, &[]);
    let client = Client::new(Release::Host, &store.store_dir());
    let sample = store.instantiate(&derivations::text_file("sample", "hello"));
    let log = |server: &str| client.ondine(&["log", text(&sample.drv), "--server", server]).must_fail();
    let none = log(&server.url());
    assert!(none.stderr.contains("no log: ") && none.status.code() == Some(1), "{none}");
    // The control socket of the server's machine gives the same.
    let mut here = server.command("log");
    here.args([text(&sample.drv), "--state-dir", text(&server.state_dir())]);
    assert_eq!(run(here).must_fail().stderr, none.stderr);
    server.kill9();
    let gone = log(&server.url());
    assert!(gone.stderr.contains("nothing listens") && gone.status.code() == Some(3), "{gone}");
    let unnamed = client.ondine(&["log", text(&sample.drv)]).must_fail();
    assert!(unnamed.stderr.contains("--server URL") && unnamed.status.code() == Some(2), "{unnamed}");
    let file = client.home().join(".config/ondine/config.toml");
    std::fs::create_dir_all(file.parent().expect("a folder")).expect("made");
    std::fs::write(&file, format!("server = \"{}\"\ntoken = \"SECRET\"\nservr = 1\n", server.url()))
        .expect("written");
    let wrong = client.ondine(&["log", text(&sample.drv)]).must_fail();
    assert!(wrong.stderr.contains("config.toml:3: ") && !wrong.stderr.contains("SECRET"), "{wrong}");
    std::fs::write(&file, format!("server = \"{}\"\ntoken = \"SECRET\"\n", server.url())).expect("written");
    server.start_again();
    assert_eq!(client.ondine(&["log", text(&sample.drv)]).must_fail().stderr, none.stderr);
}
