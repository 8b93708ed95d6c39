//! `ondine completions`: registers completion with a shell. The shell then runs this program for each word,
//! so that names and hashes come from the running server. Must never wait long, and never fail aloud.

use std::ffi::{OsStr, OsString};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context;
use clap::{Arg, Args, Command, ValueEnum};
use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::Shells;
use narinfo::StorePathHash;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::control::ServerArgs;

/// Variable by which a shell asks for candidates instead of running a command.
const VARIABLE: &str = "ONDINE_COMPLETE";
/// Time that the server is given to answer, while someone waits for the candidates.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Attributes that are asked for at most; a terminal shows no more.
const ATTRIBUTES_MAX: usize = 200;

/// Flags of commands that name a package set, each with a value after it.
const FLAGS_WITH_VALUES: [&str; 4] = ["--server", "--token-file", "--state-dir", "--system"];

#[derive(Args, Debug)]
pub(super) struct Completions {
    /// Shell that the script is for
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Completions {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let shell = match self.shell {
            Shell::Bash => "bash",
            Shell::Zsh => "zsh",
            Shell::Fish => "fish",
        };
        let shells = Shells::builtins();
        let shell = shells.completer(shell).context("clap_complete has no such shell")?;
        let mut script = Vec::new();
        shell.write_registration(VARIABLE, "ondine", "ondine", "ondine", &mut script)?;
        print!("{}", String::from_utf8(script)?);
        Ok(())
    }
}

/// Prints candidates and ends the program, where a shell asks for them. Must be called before any thread is
/// started: it changes the environment.
pub fn complete() {
    CompleteEnv::with_factory(command).var(VARIABLE).complete();
}

/// The command line, with a source of candidates for each argument that names something of the server.
fn command() -> Command {
    let mut command = super::help::command();
    // Arguments are there once the commands are built.
    command.build();
    with_candidates(command)
}

fn with_candidates(command: Command) -> Command {
    let name = command.get_name().to_owned();
    command.mut_subcommands(with_candidates).mut_args(|argument| match candidates_of(&name, &argument) {
        Some(candidates) => argument.add(ArgValueCompleter::new(move |word: &OsStr| {
            word.to_str().map(candidates).unwrap_or_default()
        })),
        None => argument,
    })
}

type Candidates = fn(&str) -> Vec<CompletionCandidate>;

/// Candidates of an argument of a command. Most names of arguments mean the same in all commands.
fn candidates_of(command: &str, argument: &Arg) -> Option<Candidates> {
    if !argument.is_positional() {
        return None;
    }
    match (command, argument.get_id().as_str()) {
        (_, "set") | ("refresh", "name") => Some(sets),
        (_, "pattern" | "attribute") => Some(attributes),
        (_, "what" | "hash") => Some(things),
        ("cancel", "number") => Some(requests),
        _ => None,
    }
}

fn sets(word: &str) -> Vec<CompletionCandidate> {
    texts(&ask("/api/v1/catalogue"), "name").filter_map(|name| candidate(word, name, None)).collect()
}

/// Attributes of the package set that the command line names before this word.
fn attributes(word: &str) -> Vec<CompletionCandidate> {
    let words: Vec<String> =
        completed_words().iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let set = first_positional(words.iter().skip_while(|word| *word != "attributes").skip(1));
    set.map(|set| attributes_of(set, word)).unwrap_or_default()
}

/// The first word that is neither a flag nor the value of one.
fn first_positional<'w>(mut words: impl Iterator<Item = &'w String>) -> Option<&'w str> {
    loop {
        let word = words.next()?;
        if FLAGS_WITH_VALUES.contains(&word.as_str()) {
            words.next();
        } else if !word.starts_with('-') {
            return Some(word);
        }
    }
}

/// Numbers of the requests that wait.
fn requests(word: &str) -> Vec<CompletionCandidate> {
    let queue = ask("/api/v1/queue");
    let requests = queue["requests"].as_array().into_iter().flatten();
    requests
        .filter_map(|request| {
            let help = request["derivation"].as_str().map(str::to_owned);
            candidate(word, &request["id"].as_u64()?.to_string(), help)
        })
        .collect()
}

fn attributes_of(set: &str, word: &str) -> Vec<CompletionCandidate> {
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let (set, pattern) = (encoded(set), encoded(&format!("{word}*")));
    let page = ask(&format!("/api/v1/catalogue/{set}/?limit={ATTRIBUTES_MAX}&q={pattern}"));
    let attributes = page.get("attributes").cloned().unwrap_or_default();
    let lines = attributes.as_array().into_iter().flatten();
    lines
        .filter_map(|line| {
            let help = line["name"].as_str().map(str::to_owned);
            candidate(word, line["attribute"].as_str()?, help)
        })
        .collect()
}

/// Hashes and names that commands such as `retry`, `pin` and `unpin` take: requests, failures, pins, and the
/// attributes of every package set.
fn things(word: &str) -> Vec<CompletionCandidate> {
    let described = |path: &str, help: &str, fields: [&'static str; 2]| -> Vec<CompletionCandidate> {
        let answer = ask(path);
        let found = fields.map(|field| texts(&answer, field).map(str::to_owned).collect::<Vec<_>>());
        let help = Some(help.to_owned());
        found.concat().iter().filter_map(|text| candidate(word, hash_of(text), help.clone())).collect()
    };
    let mut found = described("/api/v1/failures", "failed", ["derivation", ""]);
    found.extend(described("/api/v1/pins", "pinned", ["name", "hash"]));
    let queue = ask("/api/v1/queue");
    for (list, help) in [("running", "is built"), ("requests", "waits")] {
        let listed = texts(&queue[list], "derivation");
        found.extend(listed.filter_map(|path| candidate(word, hash_of(path), Some(help.to_owned()))));
    }
    for set in texts(&ask("/api/v1/catalogue"), "name") {
        found.extend(attributes_of(set, word));
    }
    found
}

/// The hash of a store path; anything else is left as it is.
fn hash_of(text: &str) -> &str {
    let name = text.rsplit('/').next().unwrap_or(text);
    match name.split_once('-') {
        Some((hash, _)) if hash.parse::<StorePathHash>().is_ok() => hash,
        _ => text,
    }
}

/// Texts of a field in a list of objects.
fn texts<'v>(list: &'v Value, field: &'v str) -> impl Iterator<Item = &'v str> {
    list.as_array().into_iter().flatten().filter_map(move |entry| entry[field].as_str())
}

/// A candidate for a word that it begins with; none with control characters, which a terminal would obey.
fn candidate(word: &str, text: &str, help: Option<String>) -> Option<CompletionCandidate> {
    let is_shown = text.starts_with(word) && !text.chars().any(char::is_control);
    let help = help.filter(|help| !help.chars().any(char::is_control));
    is_shown.then(|| CompletionCandidate::new(text).help(help.map(Into::into)))
}

/// The server's answer, or nothing: a server that is down or slow has no candidates.
fn ask(path: &str) -> Value {
    let (sender, answer) = mpsc::channel();
    let path = path.to_owned();
    std::thread::spawn(move || sender.send(asked(&path)));
    answer.recv_timeout(ANSWER_WITHIN).ok().flatten().unwrap_or_default()
}

fn asked(path: &str) -> Option<Value> {
    let named = |flag: &str, variable: &str| {
        flag_value(flag).or_else(|| std::env::var_os(variable).filter(|value| !value.is_empty()))
    };
    let args = ServerArgs {
        server: named("--server", "ONDINE_SERVER").and_then(|server| server.into_string().ok()),
        token_file: named("--token-file", "ONDINE_TOKEN_FILE").map(Into::into),
        ..ServerArgs::default()
    };
    let choice = args.choice(named("--state-dir", "ONDINE_STATE_DIR").map(Into::into));
    let remote = choice.connect().ok()?;
    let runtime = super::runtime().ok()?;
    runtime.block_on(async { remote.get(path.trim_start_matches('/')).await?.json().await }).ok()
}

/// Words of the command line that is completed, which stand after `--` in the program's own.
fn completed_words() -> Vec<OsString> {
    std::env::args_os().skip_while(|word| word != "--").skip(1).collect()
}

/// Value of a flag on the command line that is completed. bash breaks words at an equals sign.
fn flag_value(flag: &str) -> Option<OsString> {
    let words = completed_words();
    let mut after = words.iter().skip_while(|word| *word != flag).skip(1).filter(|word| *word != "=");
    let joined = words.iter().filter_map(|word| word.to_str()?.strip_prefix(flag)?.strip_prefix('='));
    after.next().cloned().or_else(|| joined.map(OsString::from).next())
}
