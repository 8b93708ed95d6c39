//! Our client against real Nix daemons: the host's, and those in the chroots that ONDINE_TEST_CHROOTS lists
//! (colons between them). Then against fake ones that do what a daemon must not. Every daemon has a store of
//! its own under a temporary folder.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support;
use crate::support::derivations::{self, Derivation};
use crate::support::{NixStore, Release, text, wait_until};
use narinfo::{StoreDir, StorePath};
use ondine::nix::{
    BuildEvent, BuildStatus, BuildTarget, Daemon, DaemonError, Database, DatabaseError, Derivations,
    Environment, Handshake, LocalStore, NEWEST_PROTOCOL, OLDEST_PROTOCOL, Options, Pool, Trust, ValidPath,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// A daemon and its store.
pub struct Nix {
    daemon: support::Daemon,
    pub store: NixStore,
    pub environment: Environment,
}

impl Nix {
    fn start(release: Release) -> Self {
        let store = NixStore::new(release);
        // Two first connections at once may fail, because both make the store.
        store.nix_store(&["--init"]);
        let store_dir = StoreDir::new(text(&store.store_dir())).expect("a store directory");
        let (state_dir, log_dir) = (store.state_dir(), store.folder().join("log"));
        let environment = Environment { store_dir, state_dir, log_dir, socket: store.socket() };
        Self { daemon: store.daemon(), store, environment }
    }

    /// Every daemon that there is to test with.
    pub fn all() -> impl Iterator<Item = Self> {
        Release::all().into_iter().map(Self::start)
    }

    pub fn instantiate(&self, derivation: &Derivation) -> StorePath {
        let drv = self.store.instantiate(derivation).drv;
        StorePath::parse_in(&self.environment.store_dir, text(&drv)).expect("a store path")
    }

    pub fn full(&self, path: &StorePath) -> String {
        path.in_dir(&self.environment.store_dir)
    }

    pub async fn connect(&self) -> Daemon {
        let mut daemon = Daemon::connect(&self.environment).await.expect("connected");
        daemon.set_options(&Options::default()).await.expect("set");
        daemon
    }

    fn pool(&self) -> Pool {
        Pool::new(self.environment.clone(), Options::default())
    }
}

pub fn all_of(drv: &StorePath) -> BuildTarget {
    BuildTarget::All { drv: drv.clone() }
}

/// The lines that a builder printed.
fn lines_of(events: &[BuildEvent], of: &StorePath) -> Vec<String> {
    let line = |event: &BuildEvent| match event {
        BuildEvent::LogLine { drv, line, .. } if drv.as_ref() == Some(of) => Some(line.clone()),
        _ => None,
    };
    events.iter().filter_map(line).collect()
}

#[tokio::test]
async fn every_daemon_tells_its_protocol_and_what_it_thinks_of_us() {
    for nix in Nix::all() {
        let daemon = nix.connect().await;
        assert!((OLDEST_PROTOCOL..=NEWEST_PROTOCOL).contains(&daemon.version()));
        assert!(daemon.nix_version().starts_with("2."), "{:?}", daemon.nix_version());
        let can_tell = daemon.version() > OLDEST_PROTOCOL;
        assert_eq!(daemon.trust() == Trust::Unknown, !can_tell, "{:?}", daemon);
        println!("{} speaks {}, {:?}", daemon.nix_version(), daemon.version(), daemon.trust());
    }
}

#[tokio::test]
async fn what_is_built_is_described_as_nix_describes_it() {
    for nix in Nix::all() {
        let a = derivations::text_file("a", "a");
        let drv = nix.instantiate(&Derivation::new("b", "mkdir $out; echo $out $a > $out/f").input("a", &a));
        let mut daemon = nix.connect().await;
        let outputs = daemon.query_derivation_output_map(&drv).await.expect("known");
        let out = outputs["out"].clone().expect("known before the build");
        assert!(!daemon.is_valid_path(&out).await.expect("asked"));
        assert_eq!(daemon.query_path_info(&out).await.expect("asked"), None);
        assert_eq!(daemon.query_path_from_hash_part(out.hash()).await.expect("asked"), None);
        let derivers = daemon.query_valid_derivers(&out).await.expect("asked");
        assert_eq!(derivers, BTreeSet::from([drv.clone()]), "also before the build");

        let result = daemon.build(&all_of(&drv), |_| {}).await.expect("a result");
        assert_eq!((result.status, result.message.as_str()), (BuildStatus::Built, ""));
        assert_eq!(result.outputs.get("out"), Some(&out));

        assert!(daemon.is_valid_path(&out).await.expect("asked"));
        assert_eq!(daemon.query_path_from_hash_part(out.hash()).await.expect("asked"), Some(out.clone()));
        let ValidPath { info, ultimate, registration_time } =
            daemon.query_path_info(&out).await.expect("asked").expect("valid");
        let query = |what: &str| nix.store.nix_store(&["--query", what, &nix.full(&out)]);
        assert_eq!(info.nar_hash, query("--hash").parse().expect("a hash"));
        assert_eq!(info.nar_size.to_string(), query("--size"));
        assert_eq!(info.deriver, Some(drv.clone()));
        let references: BTreeSet<String> = info.references.iter().map(|path| nix.full(path)).collect();
        assert_eq!(references, query("--references").lines().map(Into::into).collect());
        assert_eq!(references.len(), 2, "its input and itself");
        assert!(ultimate && info.signatures.is_empty() && info.ca.is_none() && registration_time > 0);
        let drv_info = daemon.query_path_info(&drv).await.expect("asked").expect("valid");
        assert!(drv_info.info.ca.is_some(), "derivations are content-addressed");
        let all = daemon.query_all_valid_paths().await.expect("asked");
        assert!(all.contains(&out) && all.contains(&drv) && all.len() >= 4);

        let again = daemon.build(&all_of(&drv), |_| {}).await.expect("a result");
        assert_eq!((again.status, again.outputs), (BuildStatus::AlreadyValid, result.outputs));
        assert!(daemon.usable());
    }
}

#[tokio::test]
async fn lines_of_a_build_come_as_they_are_printed_with_their_derivation() {
    for nix in Nix::all() {
        let a = Derivation::new("a", "echo from a; echo a > $out");
        let script = r"echo -e '\033[1mbold'; echo -e 'not \xff UTF-8'; echo err >&2; echo $a > $out";
        let (input, drv) =
            (nix.instantiate(&a), nix.instantiate(&Derivation::new("b", script).input("a", &a)));
        let mut daemon = nix.connect().await;
        let mut events = Vec::new();
        daemon.build(&all_of(&drv), |event| events.push(event)).await.expect("a result");
        assert_eq!(lines_of(&events, &input), ["from a"]);
        assert_eq!(lines_of(&events, &drv), ["\u{1b}[1mbold", "not \u{fffd} UTF-8", "err"], "{events:?}");
        for drv in [input, drv] {
            assert!(events.contains(&BuildEvent::Started { drv, machine: String::new() }), "{events:?}");
        }
    }
}

#[tokio::test]
async fn a_build_that_fails_says_why_and_leaves_the_connection_usable() {
    for nix in Nix::all() {
        let bad = Derivation::new("bad", "echo it breaks; exit 3");
        let above = nix.instantiate(&Derivation::new("above", "echo $x > $out").input("x", &bad));
        let drv = nix.instantiate(&bad);
        let mut daemon = nix.connect().await;
        let mut events = Vec::new();
        let result = daemon.build(&all_of(&drv), |event| events.push(event)).await.expect("a result");
        assert_eq!(result.status, BuildStatus::PermanentFailure, "{result:?}");
        assert!(result.message.contains("exit code"), "{result:?}");
        assert!(result.outputs.is_empty());
        assert_eq!(lines_of(&events, &drv), ["it breaks"]);

        let mut events = Vec::new();
        let result = daemon.build(&all_of(&above), |event| events.push(event)).await.expect("a result");
        assert_eq!(result.status, BuildStatus::DependencyFailed, "{result:?}");
        assert_eq!(lines_of(&events, &drv), ["it breaks"], "the log of the dependency comes too");
        assert!(daemon.is_valid_path(&drv).await.expect("still usable"));
    }
}

#[tokio::test]
async fn a_silent_build_is_stopped_by_the_options() {
    for nix in Nix::all() {
        let drv = nix.instantiate(&Derivation::new("silent", "sleep 60"));
        let mut daemon = nix.connect().await;
        daemon.set_options(&Options { max_silent_seconds: 1, ..Options::default() }).await.expect("set");
        let result = daemon.build(&all_of(&drv), |_| {}).await.expect("a result");
        assert_eq!(result.status, BuildStatus::TimedOut, "{result:?}");
    }
}

#[tokio::test]
async fn some_outputs_or_all_of_them_can_be_asked_for() {
    for nix in Nix::all() {
        let multiple = Derivation::new("m", "echo o > $out; echo d > $dev; echo m > $man");
        let drv = nix.instantiate(&multiple.outputs(&["out", "dev", "man"]));
        let mut daemon = nix.connect().await;
        let known = daemon.query_derivation_output_map(&drv).await.expect("known");
        let known: Vec<_> = known.into_iter().map(|(name, path)| (name, path.expect("static"))).collect();
        let outputs = BTreeSet::from(["dev".to_owned(), "man".to_owned()]);
        let some = BuildTarget::Outputs { drv: drv.clone(), outputs: outputs.clone() };
        let missing = daemon.query_missing(std::slice::from_ref(&some)).await.expect("asked");
        assert_eq!(missing.will_build, BTreeSet::from([drv.clone()]));
        let built = daemon.build(&some, |_| {}).await.expect("a result").outputs;
        assert!(outputs.iter().all(|name| built.contains_key(name)), "{built:?}");
        assert!(built.iter().all(|(name, path)| known.contains(&(name.clone(), path.clone()))));
        let built = daemon.build(&all_of(&drv), |_| {}).await.expect("a result").outputs;
        assert_eq!(built.into_iter().collect::<Vec<_>>(), known);
    }
}

#[tokio::test]
async fn what_a_build_needs_is_known_before_it_starts() {
    for nix in Nix::all() {
        let a = derivations::text_file("a", "a");
        let drv = nix.instantiate(&Derivation::new("b", "echo $a > $out").input("a", &a));
        let input = nix.instantiate(&a);
        let mut daemon = nix.connect().await;
        let missing = daemon.query_missing(&[all_of(&drv)]).await.expect("asked");
        assert_eq!(missing.will_build, BTreeSet::from([input.clone(), drv.clone()]));
        assert!(missing.will_substitute.is_empty() && missing.unknown.is_empty());
        daemon.build(&all_of(&input), |_| {}).await.expect("a result");
        let missing = daemon.query_missing(&[all_of(&drv)]).await.expect("asked");
        assert_eq!(missing.will_build, BTreeSet::from([drv.clone()]));

        let gone =
            StorePath::parse(&drv.to_string().replace(&drv.hash().to_string()[..4], "0000")).expect("a path");
        let unknown = daemon.query_missing(&[all_of(&gone)]).await.expect("asked").unknown;
        assert_eq!(unknown, BTreeSet::from([gone.clone()]));
        let error = daemon.query_derivation_output_map(&gone).await.expect_err("not valid");
        assert!(matches!(&error, DaemonError::Nix(text) if text.contains("is not valid")), "{error:?}");
        assert!(!error.is_connection_lost() && daemon.usable());
        daemon.is_valid_path(&drv).await.expect("an error of Nix ends the operation, not the connection");
    }
}

#[tokio::test]
async fn roots_hold_what_they_should_for_as_long_as_they_should() {
    for nix in Nix::all() {
        let [rooted, temporary, loose] =
            ["rooted", "temporary", "loose"].map(|name| nix.instantiate(&derivations::text_file(name, name)));
        let mut daemon = nix.connect().await;
        let link = nix.store.folder().join("root");
        symlink(nix.full(&rooted), &link).expect("a link");
        daemon.add_indirect_root(&link).await.expect("added");
        daemon.add_temp_root(&temporary).await.expect("added");
        nix.store.gc();
        for (path, valid) in [(&rooted, true), (&temporary, true), (&loose, false)] {
            assert_eq!(daemon.is_valid_path(path).await.expect("asked"), valid, "{path}");
        }
        drop(daemon);
        let mut daemon = nix.connect().await;
        let begun = Instant::now();
        while daemon.is_valid_path(&temporary).await.expect("asked") {
            assert!(begun.elapsed() < Duration::from_secs(20), "held without its connection");
            nix.store.gc();
        }
        assert!(daemon.is_valid_path(&rooted).await.expect("asked"));
    }
}

#[tokio::test]
async fn outputs_that_are_not_built_lead_to_their_derivations() {
    for nix in Nix::all() {
        let drv = nix.instantiate(&derivations::multiple_outputs("multiple"));
        let database = Database::lazy(&nix.environment);
        let mut daemon = nix.connect().await;
        let outputs = daemon.query_derivation_output_map(&drv).await.expect("known");
        let derivations = Derivations::default();
        let local = LocalStore::new(nix.environment.clone(), nix.pool());
        for (output, path) in outputs {
            let path = path.expect("static");
            let known = database.derivers_of(path.hash()).expect("read");
            assert_eq!(
                (known.len(), &known[0].path, &known[0].drv, &known[0].output),
                (1, &path, &drv, &output)
            );
            assert_eq!(derivations.derivers_of(&mut daemon, path.hash()).await.expect("read"), known);
            assert_eq!(local.derivers_of(path.hash()).await.expect("read"), std::slice::from_ref(&drv));
            assert_eq!(database.valid_path(path.hash()).expect("read"), None);
        }
        assert_eq!(database.valid_path(drv.hash()).expect("read"), Some(drv.clone()));
        assert_eq!(local.valid_path(drv.hash()).await.expect("read"), Some(drv.clone()));
        let nobody = "0".repeat(32).parse().expect("a hash");
        assert!(database.derivers_of(nobody).expect("read").is_empty());
        assert!(derivations.derivers_of(&mut daemon, nobody).await.expect("read").is_empty());
    }
}

#[tokio::test]
async fn the_daemon_answers_where_the_database_cannot() {
    let nix = Nix::start(Release::Host);
    let drv = nix.instantiate(&derivations::text_file("x", "x"));
    let nowhere = Environment { state_dir: nix.store.folder().join("nowhere"), ..nix.environment.clone() };
    let error = Database::open(&nowhere).expect_err("there is none");
    assert!(
        matches!(error, DatabaseError::Missing { .. }) && error.to_string().contains("nowhere/db/db.sqlite")
    );
    let local = LocalStore::new(nowhere, nix.pool());
    let out = nix.connect().await.query_derivation_output_map(&drv).await.expect("known")["out"].clone();
    let out = out.expect("static");
    assert_eq!(local.derivers_of(out.hash()).await.expect("asked"), std::slice::from_ref(&drv));
    assert_eq!(local.valid_path(drv.hash()).await.expect("asked"), Some(drv));
    assert_eq!(local.valid_path(out.hash()).await.expect("asked"), None);
}

#[tokio::test]
async fn a_database_that_is_replaced_is_read_anew() {
    let (first, second) = (Nix::start(Release::Host), Nix::start(Release::Host));
    let drv = second.instantiate(&derivations::text_file("x", "x"));
    let _writers = (first.connect().await, second.connect().await);
    let place = tempfile::tempdir().expect("a folder");
    let db = place.path().join("db");
    let environment = Environment { state_dir: place.path().to_owned(), ..second.environment.clone() };
    symlink(first.environment.state_dir.join("db"), &db).expect("a link");
    let database = Database::open(&environment).expect("opened");
    assert_eq!(database.valid_path(drv.hash()).expect("read"), None);
    std::fs::remove_file(&db).expect("removed");
    assert!(matches!(database.valid_path(drv.hash()), Err(DatabaseError::Missing { .. })));
    symlink(second.environment.state_dir.join("db"), &db).expect("a link");
    assert_eq!(database.valid_path(drv.hash()).expect("read"), Some(drv));
}

#[tokio::test]
async fn an_abandoned_build_spoils_its_connection_and_ends_with_it() {
    for nix in Nix::all() {
        let running = nix.store.folder().join("running");
        let script = format!("echo $$ >> {}; while :; do sleep 0.1; done", running.display());
        let drv = nix.instantiate(&Derivation::new("endless", &script));
        let pool = nix.pool();
        let mut daemon = pool.get().await.expect("connected");
        let builder = || std::fs::read_to_string(&running).ok()?.trim().parse::<u32>().ok();
        let target = all_of(&drv);
        tokio::select! {
            result = daemon.build(&target, |_| {}) => panic!("it has no end: {result:?}"),
            () = async { while builder().is_none() { tokio::time::sleep(Duration::from_millis(20)).await } } => {}
        }
        assert!(!daemon.usable());
        let error = daemon.is_valid_path(&drv).await.expect_err("a reply to the build might come");
        assert!(matches!(error, DaemonError::Unusable) && error.is_connection_lost());
        drop(daemon);
        let builder = Path::new("/proc").join(builder().expect("it has begun").to_string());
        wait_until("the builder ends", Duration::from_secs(30), || !builder.exists());
        assert!(pool.get().await.expect("another one").is_valid_path(&drv).await.expect("asked"));
    }
}

#[tokio::test]
async fn the_pool_hands_a_connection_out_again_unless_it_holds_roots_or_is_dead() {
    let mut nix = Nix::start(Release::Host);
    let drv = nix.instantiate(&derivations::text_file("x", "x"));
    // The daemon logs each connection that it accepts.
    let connections = |nix: &Nix| nix.daemon.log().matches("accepted connection").count();
    let pool = nix.pool();
    assert!(pool.get().await.expect("connected").is_valid_path(&drv).await.expect("asked"));
    let first = connections(&nix);
    let mut daemon = pool.get().await.expect("the same");
    assert_eq!(connections(&nix), first);
    daemon.add_temp_root(&drv).await.expect("added");
    drop(daemon);
    let daemon = pool.get().await.expect("another");
    assert!(!daemon.has_temp_roots());
    drop(daemon);

    nix.daemon.restart();
    // The runtime learns of the hang-up by itself; how fast is not promised.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(pool.get().await.expect("a new one").is_valid_path(&drv).await.expect("asked"));
}

#[tokio::test]
async fn a_daemon_that_dies_in_mid_build_is_a_lost_connection() {
    let mut nix = Nix::start(Release::Host);
    let drv = nix.instantiate(&Derivation::new("x", "echo on; sleep 60"));
    let mut daemon = nix.connect().await;
    let (started, mut start) = tokio::sync::mpsc::unbounded_channel();
    let building = tokio::spawn(async move {
        let outcome = daemon.build(&all_of(&drv), |event| drop(started.send(event))).await;
        (outcome, daemon.usable())
    });
    while !matches!(start.recv().await, Some(BuildEvent::LogLine { .. })) {}
    nix.daemon.stop();
    let (outcome, usable) = building.await.expect("no panic");
    let error = outcome.expect_err("it was killed");
    assert!(error.is_connection_lost() && !usable, "{error:?}");
    let error = Daemon::connect(&nix.environment).await.expect_err("nobody there");
    assert!(matches!(error, DaemonError::Connect { .. }) && error.is_connection_lost());
    assert!(error.to_string().contains(nix.environment.socket.to_str().expect("UTF-8")), "{error}");
}

/// Words as they are on the wire.
fn words(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

const MAGIC: u64 = 0x6478_696f;
const LAST: u64 = 0x616c_7473;

/// A good handshake of protocol 1.34, by a daemon without a version of Nix.
fn good_handshake() -> Vec<u8> {
    words(&[MAGIC, 0x122, 0, LAST])
}

/// A connection to a daemon that says `answer` whatever it is asked, and then hangs up, or keeps silent.
async fn fake(answer: Vec<u8>, hang_up: bool) -> Result<Daemon, DaemonError> {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    tokio::spawn(async move {
        let _ = theirs.write_all(&answer).await;
        if hang_up {
            let _ = theirs.shutdown().await;
        }
        // Reads on, so that nobody waits for room in the socket.
        let _ = theirs.read_to_end(&mut Vec::new()).await;
    });
    Handshake::over(ours, StoreDir::default(), Duration::from_secs(2)).perform().await
}

#[tokio::test]
async fn whatever_is_no_daemon_we_speak_with_is_told_apart_from_it_clearly() {
    for (answer, hang_up, expected) in [
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            false,
            "its first 8 bytes are HTTP/1.1, where 0x6478696f is needed",
        ),
        (vec![0xff; 64], false, "not a Nix daemon"),
        (words(&[MAGIC, 0x115]), false, "speaks protocol 1.21, but 1.34 to 1.38 is needed"),
        (words(&[MAGIC, 0x121]), false, "install Nix 2.8 or newer"),
        (words(&[MAGIC, 0x201]), false, "speaks protocol 2.1"),
        (words(&[MAGIC, u64::MAX]), false, "speaks protocol"),
        (Vec::new(), true, "allowed-users"),
        (b"HTT".to_vec(), true, "closed the connection during the handshake"),
        (words(&[MAGIC]), true, "closed the connection during the handshake"),
        (
            words(&[MAGIC, 0x126, u64::MAX]),
            false,
            "announced a list of features of size 18446744073709551615",
        ),
        (words(&[MAGIC, 0x122, u64::MAX]), false, "announced the version of Nix of size"),
        (words(&[MAGIC, 0x123, 0, 3, LAST]), false, "3 is no kind of trust"),
        (words(&[MAGIC, 0x122, 0, 1]), false, "0x1 is no kind of frame"),
        (Vec::new(), false, "did not answer within 2 s"),
        (words(&[MAGIC, 0x122]), false, "did not answer within 2 s"),
    ] {
        let error = fake(answer, hang_up).await.expect_err("refused").to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
    fake(good_handshake(), false).await.expect("a daemon");
    fake(words(&[MAGIC, 0x1ff, 0, 0, 0, LAST]), false)
        .await
        .expect("a daemon of the future still speaks 1.38");
}

#[tokio::test]
async fn a_daemon_that_misbehaves_costs_only_its_connection() {
    let path = StorePath::parse(&format!("{}-x", "a".repeat(32))).expect("a path");
    let error_frame = [words(&[0x6378_7470, 5]), b"Error\0\0\0".to_vec()].concat();
    for (answer, hang_up, expected) in [
        (words(&[]), true, "closed the connection"),
        (words(&[LAST]), true, "closed the connection"),
        (words(&[0x6f6c_6d67, 100, 0]), true, "closed the connection"),
        (words(&[0x6f6c_6d67, u64::MAX]), false, "announced a message of size"),
        (words(&[0x6f6c_6d67, 1 << 40]), false, "at most 67108864 is accepted"),
        (words(&[0x5253_4c54, 1, 101, 1 << 50]), false, "a list of fields"),
        (words(&[0x5253_4c54, 1, 101, 1, 7]), false, "7 is no kind of field"),
        (words(&[0x6461_7461, 10]), false, "asks for data"),
        (words(&[0x6461_7416, 0]), false, "sends data"),
        (words(&[0x1234]), false, "0x1234 is no kind of frame"),
        ([error_frame, words(&[0, 0, 0, 1])].concat(), false, "has a position"),
        (words(&[LAST, 1, 3, 0x7a_7978]), false, "\"xyz\" is no store path"),
        (words(&[LAST, 1, 3, 0x17a_7978 << 8]), false, "padded"),
    ] {
        let mut daemon = fake([good_handshake(), answer].concat(), hang_up).await.expect("a daemon");
        let error = daemon.query_path_info(&path).await.expect_err("it misbehaves");
        assert!(error.to_string().contains(expected), "{error:?} lacks {expected:?}");
        assert!(!daemon.usable());
        assert!(matches!(daemon.is_valid_path(&path).await, Err(DaemonError::Unusable)));
    }
}

#[tokio::test]
async fn an_error_has_its_traces_and_its_escape_codes() {
    let text = |text: &str| {
        let mut bytes = words(&[text.len() as u64]);
        bytes.extend_from_slice(text.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    };
    let frame = [
        words(&[0x6378_7470]),
        text("Error"),
        words(&[0]),
        text(""),
        text("\u{1b}[31mno\u{1b}[0m"),
        words(&[0, 2, 0]),
        text("while a"),
        words(&[0]),
        text("while b"),
    ];
    let answer = [good_handshake(), frame.concat(), words(&[LAST, 1])].concat();
    let mut daemon = fake(answer, false).await.expect("a daemon");
    let path = StorePath::parse(&format!("{}-x", "a".repeat(32))).expect("a path");
    let error = daemon.is_valid_path(&path).await.expect_err("an error");
    assert_eq!(error.to_string(), "\u{1b}[31mno\u{1b}[0m\nwhile a\nwhile b");
    assert!(daemon.is_valid_path(&path).await.expect("the connection is still good"));
}
