//! A real server whose tasks panic: the server ends with an error, or goes on without them.

use std::path::Path;
use std::time::Instant;

use clap::{Args, Command, FromArgMatches};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::*;
use crate::config::RawSettings;

/// Time in which a server has to do what it is expected to do.
const SOON: Duration = Duration::from_secs(60);

/// A server on a free port without any Nix store.
async fn server(folder: &Path) -> Server {
    let command = RawSettings::augment_args(Command::new("settings").no_binary_name(true));
    let state_dir = folder.join("state").display().to_string();
    let flags = ["--state-dir", &state_dir, "--listen", "127.0.0.1:0", "--key-name", "test-1"];
    let matches = command.try_get_matches_from(flags).expect("flags that exist");
    let raw = RawSettings::from_arg_matches(&matches).expect("settings");
    let mut settings = raw.resolve().expect("settings");
    settings.nix = nix::Environment {
        store_dir: narinfo::StoreDir::default(),
        state_dir: folder.join("nix"),
        log_dir: folder.join("nix-log"),
        socket: folder.join("no-socket"),
    };
    // A child that another test has just forked holds every open file, so the lock too, until its own program
    // begins.
    let begun = Instant::now();
    loop {
        match Server::open(settings.clone()).await {
            Err(Error::State(state_dir::Error::Locked(_))) if begun.elapsed() < SOON => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            opened => return opened.expect("opened"),
        }
    }
}

/// The status line of an answer.
async fn status(server: &str) -> String {
    let mut stream = TcpStream::connect(server).await.expect("it listens");
    let request = "GET /nix-cache-info HTTP/1.1\r\nHost: ondine\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    answer.lines().next().unwrap_or_default().to_owned()
}

fn address(server: &Server) -> String {
    let Some(Listener::Tcp(listener)) = server.listeners.first() else { panic!("it has no address") };
    listener.local_addr().expect("it is bound").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_ends_with_an_error_when_a_task_that_it_cannot_do_without_panics() {
    for vital in [true, false] {
        let folder = tempfile::tempdir().expect("a folder");
        let server = server(folder.path()).await;
        let (tasks, control) = (server.tasks.clone(), server.control.clone());
        let running = tokio::spawn(server.run(std::future::pending()));
        let panics = async { panic!("a bug") };
        if vital {
            tasks.vital("broken", panics)
        } else {
            tasks.needed("broken", panics)
        }
        let ended = timeout(SOON, running).await.expect("it ends").expect("it does not panic itself");
        assert!(matches!(ended, Err(Error::Stopped("broken"))), "{ended:?}");
        assert!(!control.exists(), "it ends in order");
        // Its lock is free: whatever restarts it need not wait.
        drop(self::server(folder.path()).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_goes_on_serving_when_another_task_panics_and_restarts_it_if_it_can_begin_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = server(folder.path()).await;
    let (tasks, address) = (server.tasks.clone(), address(&server));
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(server.run(async move { drop(stopped.await) }));
    let (panicked, mut panics) = tokio::sync::mpsc::unbounded_channel();
    let optional = panicked.clone();
    tasks.optional("careless", async move {
        let _ = optional.send("careless");
        panic!("a bug");
    });
    tasks.restarted("stubborn", move || {
        let panicked = panicked.clone();
        async move {
            let _ = panicked.send("stubborn");
            panic!("a bug");
        }
    });
    let begun = Instant::now();
    let mut counted = (0, 0);
    while counted.1 < 3 {
        match timeout(SOON, panics.recv()).await.expect("it is restarted") {
            Some("careless") => counted.0 += 1,
            _ => counted.1 += 1,
        }
    }
    assert_eq!(counted.0, 1, "careless ran again within {:?}", begun.elapsed());
    assert_eq!(status(&address).await, "HTTP/1.1 200 OK");
    drop(stop);
    timeout(SOON, running).await.expect("it ends").expect("no panic").expect("it ends well");
}
