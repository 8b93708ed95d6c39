//! A shell's part of the program: completion of commands and of names of the running server, and man pages.

use std::path::Path;
use std::process::Command;

use crate::support::process::run;
use crate::support::{NixStore, Ondine, PackageSet, Release, package_set, text};

/// Headings of a help in groups, that of the options which every command has among them.
const HEADINGS_MIN: usize = 3;
/// Lines of a help text that fit a screen.
const SCREEN_LINES: usize = 40;

fn ondine(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ondine"));
    command.args(arguments).env_remove("ONDINE_STATE_DIR");
    command
}

/// The commands that the help has, in groups.
fn commands() -> Vec<String> {
    let help = run(ondine(&["--help"])).must_succeed().text();
    let groups = help.split("\nOptions:").next().expect("the commands");
    let rows = groups.lines().filter_map(|line| line.strip_prefix("  ")?.split("  ").next());
    let commands: Vec<String> = rows.flat_map(|names| names.split(", ")).map(str::to_owned).collect();
    assert!(commands.contains(&"serve".to_owned()) && commands.len() > 8, "{help}");
    commands
}

/// Candidates that bash offers for the last of these words.
fn offered_by_bash(state_dir: &Path, words: &[&str]) -> Vec<String> {
    let program = Path::new(env!("CARGO_BIN_EXE_ondine")).parent().expect("a folder");
    let script = "source <(ondine completions bash); COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); COMP_TYPE=9; \
                  $(complete -p ondine | sed 's/.*-F \\([^ ]*\\).*/\\1/') \
                  ondine \"${COMP_WORDS[-1]}\"; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash");
    let path = format!("{}:/usr/bin:/bin", program.display());
    bash.env("PATH", path).env("ONDINE_STATE_DIR", state_dir);
    bash.args(["--norc", "-c", script, "bash", "ondine"]).args(words);
    run(bash).must_succeed().text().lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn bash_completes_commands_flags_sets_and_attributes_of_the_running_server() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let set =
        PackageSet::new([package_set::small("hello"), package_set::small("help"), package_set::small("jq")]);
    let server: Ondine = set.serve(&store, "", "");
    package_set::wait_for_generation(&server);
    let state_dir = server.state_dir();
    let offered = |words: &[&str]| offered_by_bash(&state_dir, words);
    assert_eq!(offered(&["attr"]), ["attributes"]);
    assert!(offered(&["serve", "--max-nar"]).contains(&"--max-nar-store-bytes".to_owned()));
    assert_eq!(offered(&["attributes", ""])[0], "pkgs");
    assert_eq!(offered(&["attributes", "pkgs", "hel"]), ["hello", "help"]);
    assert_eq!(offered(&["pin", "j"]), ["jq"]);
    // A server that is named by its URL is asked in the same way.
    let by_url = |words: &[&str]| offered_by_bash(Path::new("/nonexistent"), words);
    assert_eq!(by_url(&["attributes", "--server", &server.url(), "pkgs", "hel"]), ["hello", "help"]);
    assert_eq!(by_url(&["refresh", "--server", &server.url(), ""])[0], "pkgs");
    server.start_stopping();
    let without_server = offered_by_bash(Path::new("/nonexistent"), &["attributes", "p"]);
    assert_eq!(without_server, Vec::<String>::new());
}

#[test]
fn every_shell_gets_a_script_that_asks_the_program() {
    for (shell, command) in [("bash", "complete "), ("zsh", "compdef"), ("fish", "complete ")] {
        let script = run(ondine(&["completions", shell])).must_succeed().text();
        assert!(script.contains(command) && script.contains("ONDINE_COMPLETE"), "{script}");
        assert!(!script.contains("target/"), "names the program by its place of today: {script}");
    }
    let refused = run(ondine(&["completions", "tcsh"])).must_fail().stderr;
    assert!(refused.contains("[possible values: bash, zsh, fish]"), "{refused}");
}

#[test]
fn each_command_has_a_man_page_that_man_can_show() {
    let dir = tempfile::tempdir().expect("a folder");
    let pages = dir.path().join("new/man1");
    run(ondine(&["man", text(&pages)])).must_succeed();
    for command in commands().into_iter().filter(|command| command != "help") {
        let page = std::fs::read_to_string(pages.join(format!("ondine-{command}.1"))).expect("a page");
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
    }
    let settings = std::fs::read_to_string(pages.join("ondine-serve.1")).expect("a page");
    assert!(settings.contains("max\\-nar\\-store\\-bytes"), "{settings}");
}

#[test]
fn the_help_of_each_command_fits_a_screen_or_is_in_groups() {
    for command in commands() {
        let shown = run(ondine(&["help", &command])).must_succeed().text();
        let is_heading = |line: &&str| line.ends_with(':') && !line.starts_with(' ') && *line != "Arguments:";
        let grouped = shown.lines().filter(is_heading).count() >= HEADINGS_MIN;
        assert!(
            grouped || shown.lines().count() <= SCREEN_LINES,
            "{command} needs more than a screen:\n{shown}"
        );
    }
}
