//! The queue of pushes: a hook returns at once, an outage of the server loses nothing, and one sender uploads
//! in the order in which paths came, however often it is killed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support;
use crate::support::process::{Background, Finished, run, wait_until};
use crate::support::store::Folder;
use crate::support::{Cache, Client, Ondine, Release, derivations, text};

/// Time for what a loaded machine does in a few seconds.
const SOON: Duration = Duration::from_secs(120);

/// A machine whose Nix queues what it builds.
struct Machine {
    client: Client,
    folder: Folder,
}

impl Machine {
    fn new(release: &Release, store_dir: &Path) -> Machine {
        let folder = Folder::new();
        let (program, hook) = (folder.path().join("ondine"), folder.path().join("hook"));
        std::fs::copy(support::process::program(), &program).expect("copied");
        let script = format!(
            "#!/bin/sh\nset -f\n\
             exec {} push --queue {} ${{OUT_PATHS:-$(nix-store --query --outputs \"$DRV_PATH\")}}\n",
            text(&program),
            text(&folder.path().join("queue"))
        );
        std::fs::write(&hook, script).expect("written");
        run(command("chmod", &["+x", text(&hook)])).must_succeed();
        let settings = [("max-jobs", "1"), ("post-build-hook", text(&hook))];
        Machine { client: Client::with_settings(release.clone(), store_dir, &settings), folder }
    }

    fn queue(&self) -> PathBuf {
        self.folder.path().join("queue")
    }

    /// Names of the entries that wait.
    fn waiting(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.queue().join("waiting")).expect("the queue is there");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }

    fn sender(&self, server: &Ondine, token: &str, follow: bool) -> Command {
        let (url, queue) = (server.url(), self.queue());
        let mut words = vec!["push", "--send-queue", text(&queue), "--server", &url];
        words.extend(follow.then_some("--follow"));
        self.client.ondine_command(&words, &[("ONDINE_TOKEN", token)])
    }

    fn send(&self, server: &Ondine, token: &str) -> Finished {
        run(self.sender(server, token, false))
    }

    fn shown(&self) -> String {
        self.client.ondine(&["push", "--queue", text(&self.queue())]).must_succeed().text()
    }
}

fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

fn served(cache: &Cache) -> u64 {
    let status = support::Http::new(&cache.ondine.url()).get("/api/v1/status").text();
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    status.pointer("/cache/paths").and_then(serde_json::Value::as_u64).expect("a number")
}

#[test]
fn what_is_built_while_the_server_is_away_is_uploaded_when_it_is_back() {
    let mut cache = Cache::new(&[]);
    let token = cache.ondine.new_token("builder", "read,push,vouch", &[]);
    for release in Release::all() {
        let name = release.name().to_owned();
        let machine = Machine::new(&release, &cache.store.store_dir());
        cache.ondine.kill9();
        let mut paths = machine.client.build(&derivations::multiple_outputs(&format!("several-{name}")));
        paths.extend(
            machine.client.build(&derivations::chain(&format!("chain-{name}"), 3, |_| String::new())),
        );
        assert_eq!(machine.waiting().len(), 4, "{name}: an entry for each build");
        // The queue alone holds them from now on.
        machine.client.run("nix-store", &["--gc"]).must_succeed();
        paths.iter().for_each(|path| assert!(machine.client.has(path), "{name}: {}", path.display()));

        let sender = Background::start(machine.sender(&cache.ondine, &token, true));
        let second = || machine.send(&cache.ondine, &token);
        wait_until("the first sender has the queue", SOON, || machine.shown().contains("a sender runs"));
        let second = second().must_fail();
        assert!(second.stderr.contains("another sender"), "{name}: {second}");
        cache.ondine.start_again();
        wait_until("the queue is empty", SOON, || machine.waiting().is_empty());
        sender.kill();

        let other = Client::new(release, &cache.store.store_dir());
        let wanted: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        other.fetch(&cache.ondine.substituter(), &wanted).must_succeed();
        for path in wanted {
            assert_eq!(other.nar_digest(path), machine.client.nar_digest(path), "{name}: {}", path.display());
        }
        assert!(machine.shown().starts_with("0 waiting, 0 refused; no sender runs"), "{}", machine.shown());
        machine.client.run("nix-store", &["--gc"]).must_succeed();
        assert!(!machine.client.has(&paths[0]), "{name}: what was sent is not held any more");
    }
}

#[test]
fn a_sender_that_is_killed_again_and_again_loses_nothing() {
    let cache = Cache::new(&[]);
    let token = cache.ondine.new_token("builder", "read,push,vouch", &[]);
    let machine = Machine::new(&Release::Host, &cache.store.store_dir());
    let row = derivations::row_of_outputs("row", 150);
    let large = derivations::noise("large", 8 * 1024 * 1024);
    let mut paths = machine.client.build(&large);
    paths.extend(machine.client.build(&row));
    assert_eq!(machine.waiting().len(), 2);
    for step in [1, 20, 60, 100] {
        let sender = Background::start(machine.sender(&cache.ondine, &token, false));
        wait_until("some more is served", SOON, || served(&cache) >= step || machine.waiting().is_empty());
        sender.kill();
    }
    machine.send(&cache.ondine, &token).must_succeed();
    assert!(machine.waiting().is_empty());
    assert_eq!(served(&cache), 151);
    let other = Client::new(Release::Host, &cache.store.store_dir());
    let wanted: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    other.copy(&cache.ondine.cached(), &wanted).must_succeed();
}

#[test]
fn an_entry_that_the_server_refuses_holds_up_no_other_and_is_sent_once_it_may() {
    let cache = Cache::new(&[]);
    let machine = Machine::new(&Release::Host, &cache.store.store_dir());
    let built = machine.client.build(&derivations::text_file("unsigned", "hello"));
    let drv = machine.client.instantiate(&derivations::text_file("other", "there"));
    let queue = machine.queue();
    machine.client.ondine(&["push", "--queue", text(&queue), &drv]).must_succeed();
    // Nobody vouches for an output that no trusted key has signed; a derivation names its contents.
    let weak = cache.ondine.new_token("weak", "read,push", &[]);
    let sent = machine.send(&cache.ondine, &weak).must_fail();
    assert!(sent.stderr.contains("set aside") && sent.stderr.contains("vouch"), "{sent}");
    assert_eq!(served(&cache), 1, "the derivation behind it");
    let shown = machine.shown();
    assert!(shown.starts_with("0 waiting, 1 refused") && shown.contains(text(&built[0])), "{shown}");
    machine.client.run("nix-store", &["--gc"]).must_succeed();
    assert!(machine.client.has(&built[0]), "what was refused is held, too");
    let strong = cache.ondine.new_token("strong", "read,push,vouch", &[]);
    machine.send(&cache.ondine, &strong).must_succeed();
    assert_eq!(served(&cache), 2);
    assert!(machine.shown().starts_with("0 waiting, 0 refused"));
    let outside = machine.client.ondine(&["push", "--queue", text(&queue), "/etc/passwd"]).must_fail();
    assert!(outside.stderr.contains("is not in the store"), "{outside}");
}
