//! Output that cannot be written: a full disk is an error in words, a reader that has enough is none, and
//! nothing panics. A token that nobody has seen does not live.

use std::fs::OpenOptions;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::process::{Background, run};
use crate::support::{Cache, text, wait_until};

const SOON: Duration = Duration::from_secs(60);

/// Exit code and standard error of a command whose standard output is this.
fn ended(mut command: Command, output: impl Into<Stdio>) -> (Option<i32>, String) {
    let command = command.stdin(Stdio::null()).stdout(output).stderr(Stdio::piped());
    let ended = command.spawn().expect("it starts").wait_with_output().expect("it ends");
    (ended.status.code(), String::from_utf8_lossy(&ended.stderr).into_owned())
}

fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").expect("there is one").into()
}

/// The end of a pipe that nobody reads.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

#[test]
fn what_cannot_be_printed_is_an_error_in_words_and_a_reader_that_has_gone_is_silent() {
    let cache = Cache::new(&[]);
    let state_dir = cache.ondine.state_dir();
    for line in [
        "status",
        "status --json",
        "queue",
        "queue --watch",
        "builds",
        "gc",
        "token list",
        "upstreams",
        "key show",
        "key list",
        "doctor",
        "completions bash",
    ] {
        let command = || {
            let mut words = line.split(' ');
            let mut command = cache.ondine.command(words.next().expect("a command"));
            command.args(words);
            if !line.starts_with("completions") {
                command.args(["--state-dir", text(&state_dir)]);
            }
            command
        };
        let (code, said) = ended(command(), full());
        assert!(
            code == Some(1) && said.contains("cannot write to the standard output"),
            "{line}: {code:?} {said}"
        );
        assert!(said.contains("No space left") && !said.contains("panicked"), "{line}: {said}");
        assert_eq!(ended(command(), closed_pipe()), (Some(141), String::new()), "{line}");
        // Nothing is left to say it to.
        let mut mute = command();
        let status = mute.stdout(full()).stderr(full()).status().expect("it starts");
        assert_eq!(status.code(), Some(1), "{line}");
    }
}

#[test]
fn a_token_that_could_not_be_printed_is_revoked() {
    let cache = Cache::new(&[]);
    let state_dir = cache.ondine.state_dir();
    for output in [full(), closed_pipe()] {
        let mut new = cache.ondine.command("token");
        new.args(["new", "--name", "lost", "--may", "read", "--state-dir", text(&state_dir)]);
        let (code, said) = ended(new, output);
        assert!(code == Some(1) && said.contains("lost could not be printed"), "{code:?} {said}");
        assert!(said.contains("was revoked") && !said.contains("panicked"), "{said}");
        let mut list = cache.ondine.command("token");
        list.args(["list", "--json", "--state-dir", text(&state_dir)]);
        assert_eq!(run(list).must_succeed().text(), "[]");
    }
}

#[test]
fn a_server_serves_although_its_address_and_its_log_cannot_be_written() {
    let mut cache = Cache::new(&[]);
    let state_dir = cache.ondine.state_dir();
    assert!(cache.ondine.sigterm().success());
    for place in ["> /dev/full", "> /dev/full 2> /dev/full"] {
        let mut server = cache.ondine.command("serve");
        server.args(["--listen", "127.0.0.1:0", "--state-dir", text(&state_dir)]);
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec \"$0\" \"$@\" {place}")]).arg(server.get_program());
        shell.args(server.get_args()).env_clear();
        shell.envs(server.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut server = Background::start(shell);
        wait_until("it answers", SOON, || {
            assert!(server.is_running(), "{place}");
            let mut status = cache.ondine.command("status");
            status.args(["--json", "--state-dir", text(&state_dir)]);
            run(status).succeeded()
        });
        assert!(server.is_running(), "{place}");
        server.terminate();
        let ended = server.finish().must_succeed();
        if !place.contains("2>") {
            // The log tells the address then.
            let warning = ended.stderr.lines().find(|line| line.contains("cannot print the address"));
            assert!(warning.is_some_and(|line| line.contains("http://127.0.0.1:")), "{ended}");
        }
    }
}
