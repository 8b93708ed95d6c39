//! `ondine use`: a new user's first command. What it writes is what real Nix then goes by.

use std::os::unix::fs::PermissionsExt;

use crate::support;
use crate::support::process::{Finished, run};
use crate::support::{Client, FileServer, NixStore, Ondine, Release, derivations, text};

fn a_server() -> (NixStore, support::Daemon, Ondine) {
    let store = NixStore::new(Release::Host);
    let daemon = store.daemon();
    let ondine = Ondine::start(&store, &[]);
    (store, daemon, ondine)
}

fn both(finished: &Finished) -> String {
    format!("{}\n{}", finished.text(), finished.stderr)
}

/// True if the release has the setting, by its own list.
fn knows(client: &Client, setting: &str) -> bool {
    let list = client.run("nix", &["--extra-experimental-features", "nix-command", "show-config"]);
    list.must_succeed().text().lines().any(|line| line.starts_with(setting))
}

#[test]
fn what_it_writes_lets_every_release_have_a_path_built() {
    let (store, _daemon, server) = a_server();
    for release in Release::all() {
        let name = release.name().to_owned();
        let sample = store.instantiate(&derivations::text_file(&format!("sample-{name}"), "hello"));
        let client = Client::new(release, &store.store_dir());
        let conf = client.home().join(".config/nix/nix.conf");

        let shown = client.ondine(&["use", &server.url()]).must_succeed().text();
        let has = |line: String| shown.lines().any(|other| other.trim() == line);
        assert!(has(format!("extra-substituters = {}", server.url())), "{name}: {shown}");
        assert!(has(format!("extra-trusted-public-keys = {}", server.public_key())), "{name}: {shown}");
        let always = "always-allow-substitutes";
        assert_eq!(has(format!("{always} = true")), knows(&client, always), "{name}: {shown}");
        assert!(shown.contains("Nix trusts this user"), "{name}: {shown}");
        assert!(!conf.exists(), "{name}: it only shows");

        client.ondine(&["use", &server.url(), "--write"]).must_succeed();
        let written = std::fs::read_to_string(&conf).expect("the user's nix.conf");
        let again = client.ondine(&["use", &format!("{}/", server.url()), "--write"]).must_succeed();
        assert!(again.text().contains("has all lines"), "{name}: {again}");
        assert_eq!(std::fs::read_to_string(&conf).expect("still there"), written, "{name}");
        // The other commands ask this server from now on.
        let own = std::fs::read_to_string(client.home().join(".config/ondine/config.toml")).expect("a file");
        assert_eq!(own, format!("server = \"{}\"\n", server.url()), "{name}");
        let sets = client.ondine(&["sets"]).must_succeed().text();
        assert!(sets.contains("There is no package set"), "{name}: {sets}");

        // No option names the server: the file does. It may not build by itself.
        client.run("nix-store", &["--realise", text(sample.out())]).must_succeed();
        assert!(client.has(sample.out()), "{name}");
    }
}

#[test]
fn a_user_whom_nix_does_not_trust_is_told_and_nothing_useless_is_written() {
    let (_store, _daemon, server) = a_server();
    for release in Release::all() {
        let name = release.name().to_owned();
        let machine = NixStore::with_settings(release, &[("trusted-users", "nobody")]);
        let _daemon = machine.daemon();
        let user_conf = machine.folder().join("home/.config/nix/nix.conf");
        let system_conf = machine.folder().join("etc/nix.conf");

        // Its store has another directory, which is told before anything else.
        let other = run(machine.ondine(&["use", &server.url()])).must_fail();
        assert!(other.stderr.contains("it would use none of them"), "{name}: {other}");

        let own = Ondine::start(&machine, &[]);
        let refused = run(machine.ondine(&["use", &own.url(), "--write"])).must_fail();
        assert!(both(&refused).contains("Nix does not trust this user"), "{name}: {refused}");
        assert!(refused.stderr.contains("nothing was written"), "{name}: {refused}");
        assert!(!user_conf.exists(), "{name}");

        run(machine.ondine(&["use", &own.url(), "--write", "--system"])).must_succeed();
        let written = std::fs::read_to_string(&system_conf).expect("the system's nix.conf");
        assert!(written.starts_with("sandbox = false\n"), "{name}: {written}");
        assert!(written.contains(&format!("extra-substituters = {}\n", own.url())), "{name}: {written}");
    }
}

#[test]
fn a_token_goes_to_a_private_file_and_is_never_shown() {
    let (store, _daemon, server) = a_server();
    let client = Client::new(Release::Host, &store.store_dir());
    let secret = "SECRETsecret0123456789";
    let write = |variables: &[(&str, &str)]| {
        let arguments = ["use", &server.url(), "--write"];
        run(client.ondine_command(&arguments, variables))
    };
    let written = write(&[("ONDINE_TOKEN", secret)]).must_succeed();
    assert!(!both(&written).contains(secret), "{written}");
    let netrc = client.home().join(".config/nix/netrc");
    let expected = format!("machine 127.0.0.1 login ondine password {secret}\n");
    assert_eq!(std::fs::read_to_string(&netrc).expect("the user's netrc"), expected);
    assert_eq!(netrc.metadata().expect("there").permissions().mode() & 0o777, 0o600);
    let conf = std::fs::read_to_string(client.home().join(".config/nix/nix.conf")).expect("the nix.conf");
    assert!(
        conf.contains(&format!("netrc-file = {}\n", netrc.display())) && !conf.contains(secret),
        "{conf}"
    );
    // Nix reads one netrc file, so the system's is not read any more.
    let of_system = client.home().with_file_name("etc").join("netrc");
    let told = format!("copy the entries of {}", of_system.display());
    assert!(!written.text().contains("copy the entries"), "{written}");
    std::fs::write(&of_system, "machine other login a password b\n").expect("written");
    assert!(write(&[("ONDINE_TOKEN", secret)]).must_succeed().text().contains(&told));
    // From now on it is found where Nix finds it.
    let again = write(&[]).must_succeed();
    assert!(again.text().contains("The token belongs to"), "{again}");
    assert_eq!(std::fs::read_to_string(&netrc).expect("the user's netrc"), expected);

    let report = client.ondine_command(&["use", &server.url(), "--write", "--json"], &[]);
    let report = run(report).must_succeed().text();
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report["missing"], serde_json::json!([]), "{report}");
    assert_eq!(report["netrc"], text(&netrc), "{report}");

    let wrong = write(&[("ONDINE_TOKEN", "two words")]).must_fail();
    assert_eq!(wrong.status.code(), Some(2), "{wrong}");
    assert!(!both(&wrong).contains("two words"), "{wrong}");
}

#[test]
fn a_nixos_module_is_shown_that_parses() {
    let (store, _daemon, server) = a_server();
    let shown = run(store.ondine(&["use", &server.url(), "--nixos"])).must_succeed().text();
    let module = &shown[shown.find("{\n").expect("a module")..];
    let expression = format!("({module}).nix.settings");
    let settings = store.command("nix-instantiate", &["--eval", "--strict", "--json", "--expr", &expression]);
    let settings: serde_json::Value =
        serde_json::from_str(&run(settings).must_succeed().text()).expect("JSON");
    assert_eq!(settings["substituters"], serde_json::json!([server.url()]));
    assert_eq!(settings["trusted-public-keys"], serde_json::json!([server.public_key()]));
}

#[test]
fn an_address_that_is_no_ondine_is_told_in_words() {
    let store = NixStore::new(Release::Host);
    let client = Client::new(Release::Host, &store.store_dir());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let nowhere = format!("http://{}", taken.local_addr().expect("an address"));
    drop(taken);
    let folder = tempfile::tempdir().expect("a folder");
    let info = format!("StoreDir: {}\n", store.store_dir().display());
    std::fs::write(folder.path().join("nix-cache-info"), info).expect("written");
    let other = FileServer::new(folder.path().to_owned());
    let (_store, _daemon, server) = a_server();
    for (server, code, words) in [
        (&*nowhere, 3, "nothing listens at this address"),
        (&other.url(), 3, "is no Ondine"),
        (&format!("{}/api", server.url()), 3, "nothing of one is below /api"),
        ("ftp://example.org", 2, "the server's address ftp://example.org is no URL"),
        ("http://bob:pass word@", 2, "the server's address is no URL"),
        ("http://no-such-host.invalid", 3, "cannot be reached"),
    ] {
        let refused = client.ondine(&["use", server]).must_fail();
        assert_eq!(refused.status.code(), Some(code), "{refused}");
        assert!(refused.stderr.contains(words) && !refused.stderr.contains("pass word"), "{refused}");
    }
}
