//! Credentials of other caches reach those caches and nobody else: no client, no log, no metric, no file of
//! this server or of Nix, and no other host. What takes them is served from here.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support;
use crate::support::addresses::{base_name, field};
use crate::support::derivations::closure_of_20;
use crate::support::process::run;
use crate::support::store::{Folder, write};
use crate::support::upstream::{Seen, stored_nars, table};
use crate::support::{
    Cache, Compression, Derivation, Fault, FileServer, NixStore, Release, Sample, Upstream, text,
};

const SECRET: &str = "hunter2secret";
/// `bob:hunter2secret` in base 64.
const ENCODED: &str = "Ym9iOmh1bnRlcjJzZWNyZXQ=";

/// A way to give an upstream's credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Url,
    Query,
    File,
    Bearer,
    Netrc,
    NixNetrc,
}

/// A closure that only an upstream behind a lock has.
struct Locked {
    secrets: Folder,
    cache: Cache,
    upstream: Upstream,
    sample: Sample,
}

fn knows(way: Way, seen: &Seen) -> bool {
    let authorization = seen.header("authorization").unwrap_or_default();
    match way {
        Way::Query => seen.target().ends_with(&format!("?token={SECRET}")),
        Way::Bearer => authorization == format!("Bearer {SECRET}"),
        Way::Url | Way::File | Way::Netrc | Way::NixNetrc => authorization == format!("Basic {ENCODED}"),
    }
}

impl Locked {
    fn new(way: Way, more: &str) -> Locked {
        let store = NixStore::new(Release::Host);
        let sample = Sample::new(&store, &closure_of_20("sample"));
        let upstream = Upstream::of(sample.copied(&store, Compression::Xz));
        sample.collect_with_derivation(&store);
        upstream.server.guard(move |seen| knows(way, seen));
        let (secrets, url) = (Folder::new(), upstream.server.url());
        let file = secrets.path().join("secret");
        let (url, more) = match way {
            Way::Url => (url.replace("://", &format!("://bob:{SECRET}@")), more.to_owned()),
            Way::Query => (format!("{url}?token={SECRET}"), more.to_owned()),
            Way::File | Way::Bearer => (url, format!("credentials-file = \"secret\"\n{more}")),
            Way::Netrc | Way::NixNetrc => (url, more.to_owned()),
        };
        match way {
            Way::File => write(&file, &format!("bob:{SECRET}\n")),
            Way::Bearer => write(&file, &format!("Bearer {SECRET}\n")),
            Way::Netrc | Way::NixNetrc => {
                let nix = store.folder().join("etc/netrc");
                let file = if way == Way::Netrc { &file } else { &nix };
                write(file, &format!("machine 127.0.0.1 login bob password {SECRET}\n"));
            }
            _ => {}
        }
        let settings = secrets.path().join("ondine.toml");
        write(&settings, &table(&url, &[&upstream.cache.public_key()], &more));
        let mut arguments = vec!["--config", text(&settings)];
        if way == Way::Netrc {
            arguments.extend(["--netrc-file", text(&file)]);
        }
        // As systemd has it.
        let variables = [("CREDENTIALS_DIRECTORY", text(secrets.path()))];
        let cache = Cache::of(store, &arguments, &variables);
        Locked { secrets, cache, upstream, sample }
    }

    /// Everything that the server tells anyone, and everything that it and Nix have on disk.
    fn assert_tells_nobody(&self, said: &str) {
        let hash = &base_name(&self.sample.path)[..32];
        let narinfo = self.cache.narinfo(&self.sample.path);
        let nar = format!("/{}", field(&narinfo, "URL").trim_end_matches(".zst"));
        for address in [
            "/".to_owned(),
            "/metrics".to_owned(),
            "/api/v1/status".to_owned(),
            format!("/api/v1/paths/{hash}"),
            format!("/{hash}.narinfo"),
            format!("/{}.narinfo", "0".repeat(32)),
            format!("{nar}.xz"),
            format!("{nar}.bz2"),
        ] {
            let answer = self.cache.http.get(&address);
            assert!(answer.header("location").is_none(), "{said}: {address}: {:?}", answer.headers);
            assert_no_secret(
                &format!("{said}: {address}"),
                format!("{:?} {}", answer.headers, answer.text()),
            );
        }
        assert_no_secret(said, self.cache.ondine.log());
        assert_no_secret(said, self.cache.daemon.log());
        for folder in [self.cache.store.folder().to_owned(), self.cache.ondine.state_dir()] {
            for file in files_below(&folder) {
                let bytes = std::fs::read(&file).unwrap_or_default();
                if file.file_name().is_none_or(|name| name != "netrc") {
                    let said = format!("{said}: {}", file.display());
                    assert_no_secret(&said, String::from_utf8_lossy(&bytes).into_owned());
                }
            }
        }
    }
}

#[track_caller]
fn assert_no_secret(said: &str, text: String) {
    for secret in [SECRET, ENCODED] {
        assert!(!text.contains(secret), "{said}: {text:.5000}");
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let (mut folders, mut files) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files
}

#[test]
fn credentials_open_an_upstream_and_are_told_to_nobody() {
    for way in [Way::Url, Way::Query, Way::File, Way::Bearer, Way::Netrc, Way::NixNetrc] {
        let more = if way == Way::File { "mode = \"redirect\"" } else { "" };
        let locked = Locked::new(way, more);
        let (cache, sample) = (&locked.cache, &locked.sample);
        // An address in full is one of the same origin, too.
        let (path, upstream) = (&sample.path, &locked.upstream);
        let nar = format!("{}/{}", upstream.server.url(), field(&upstream.cache.narinfo(path), "URL"));
        upstream.cache.set(path, "URL", &nar);
        let client = cache.client(&[]);
        client.fetch(&cache.ondine.substituter(), &[path]).must_succeed();
        sample.assert_held_by(&client);
        assert_eq!(stored_nars(&cache.ondine).len(), sample.closure.len(), "{way:?}: served from here");
        // A build is told of the upstream, which the daemon asks on its own account.
        let built = cache.store.instantiate(&Derivation::new("built", "echo built > $out"));
        cache.narinfo(built.out());
        locked.assert_tells_nobody(&format!("{way:?}"));
        assert!(locked.secrets.path().is_dir());
    }
}

#[test]
fn credentials_do_not_follow_to_another_host_and_return_with_a_redirect_to_the_own() {
    let store = NixStore::new(Release::Host);
    let sample = Sample::new(&store, &support::derivations::text_file("sample", "text"));
    let upstream = Upstream::of(sample.copied(&store, Compression::Xz));
    sample.collect_with_derivation(&store);
    // Stands for any other host: the server finds it by a proxy.
    let other = FileServer::new(upstream.cache.folder());
    let nar = format!("/{}", field(&upstream.cache.narinfo(&sample.path), "URL"));
    upstream.server.fault_times(&nar, 1, Fault::Redirect(format!("http://other.example.org{nar}")));
    other.fault(&nar, Fault::Redirect(format!("{}/hop{nar}", upstream.server.url())));
    upstream.server.fault_times("/hop/", 1, Fault::Instead(upstream.cache.nar_bytes(&sample.path).into()));
    upstream.server.guard(|seen| knows(Way::Url, seen));
    let flag = upstream.flag().replace("://", &format!("://bob:{SECRET}@"));
    let proxy = other.url().replace("127.0.0.1", "localhost");
    let variables = [("http_proxy", &*proxy), ("no_proxy", "127.0.0.1")];
    let cache = Cache::of(store, &["--upstream", &flag], &variables);
    let client = cache.client(&[]);
    client.fetch(&cache.ondine.substituter(), &[&sample.path]).must_succeed();
    let [seen] = &other.seen()[..] else { panic!("it was asked once: {:?}", other.seen()) };
    assert!(seen.target().starts_with("http://other.example.org/nar/"), "{seen:?}");
    assert_no_secret("another host", seen.head.clone());
    assert!(upstream.server.seen_of("/hop/")[0].header("authorization").is_some());
}

#[test]
fn messages_about_settings_show_no_secret() {
    let folder = Folder::new();
    let file = folder.path().join("ondine.toml");
    let state = folder.path().join("state");
    let key = "k-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
    let url = format!("https://bob:{SECRET}@cache.example.org/?token={SECRET}");
    let keys = format!("public-keys = [\"{key}\"]");
    let secret = folder.path().join("secret");
    write(&secret, &format!("{SECRET}\n"));
    for (said, expected) in [
        (format!("[[upstream]]\nurl = \"{url}\"\n"), "public-keys"),
        (format!("[[upstream]]\nurl = \"{url}#x\"\n{keys}\n"), "https://HOST"),
        (format!("[[upstream]]\nurl = \"gopher://bob:{SECRET}@h\"\n{keys}\n"), "https://HOST"),
        (format!("[[upstream]]\nurl = \"http://bob:{SECRET}@127.0.0.1:8080\"\n{keys}\n"), "another cache"),
        (format!("upstream = [{{ url = \"{url}\", prio = 3 }}]\n"), "prio"),
        (format!("upstream = [{{ url = \"{url}\", {keys} }}\n"), "line 2"),
        (format!("upstream = \"{url}\"\n"), ":2: upstream = "),
        (format!("[[upstream]]\nurl = \"{url}\"\n{keys}\ncredentials-file = \"/x\"\n"), "credentials-file"),
        (
            format!("[[upstream]]\nurl = \"https://h\"\n{keys}\ncredentials-file = \"{}\"\n", text(&secret)),
            "USER:PASSWORD",
        ),
        (
            format!("netrc-file = \"{}\"\n[[upstream]]\nurl = \"https://h\"\n{keys}\n", text(&secret)),
            "line 1",
        ),
        (
            "netrc-file = \"/nonexistent/netrc\"\n[[upstream]]\nurl = \"file:///x\"\n".to_owned() + &keys,
            "/nonexistent",
        ),
    ] {
        write(&file, &format!("state-dir = \"{}\"\n{said}", text(&state)));
        let refused = run(command(&["check-config", text(&file)])).must_fail().stderr;
        assert!(refused.contains(expected), "{said}: {refused}");
        assert_no_secret(&said, refused.clone());
        let mut serve = command(&["serve", "--listen", "127.0.0.1:8080", "--config", text(&file)]);
        serve.env("NIX_DAEMON_SOCKET_PATH", "/nonexistent/socket");
        assert_no_secret(&said, run(serve).must_fail().stderr);
    }
    let mut help = command(&["serve", "--help"]);
    help.env("ONDINE_UPSTREAM", &url);
    assert_no_secret("help", run(help).must_succeed().text());
    // Systemd gives it when the service starts.
    let named = format!("[[upstream]]\nurl = \"https://h\"\n{keys}\ncredentials-file = \"upstream-0\"\n");
    write(&file, &format!("state-dir = \"{}\"\n{named}", text(&state)));
    run(command(&["check-config", "--listen", "127.0.0.1:0", text(&file)])).must_succeed();
    let mut serve = command(&["serve", "--listen", "127.0.0.1:0", "--config", text(&file)]);
    serve.env("NIX_DAEMON_SOCKET_PATH", "/nonexistent/socket");
    let refused = run(serve).must_fail().stderr;
    assert!(refused.contains("LoadCredential=upstream-0"), "{refused}");
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ondine"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).args(arguments);
    command
}
