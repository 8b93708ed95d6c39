//! The command-line page of the documentation, made from clap's definition of the commands. The committed
//! page is compared with it.

use clap::{Arg, Command, CommandFactory};

use super::Cli;
use crate::config::page::{compare, is_setting, wrap};

const INTRODUCTION: &str = "\
# Command line

<!-- Generated from src/cli. Do not edit: change the commands there, then run
     UPDATE=1 cargo test --lib page -->

Commands print results to stdout, and errors and the log to stderr. Control characters in text from others
are escaped (`\\u{1b}`).

| exit code | |
|---|---|
| 0 | success |
| 1 | failure |
| 2 | wrong command line, or settings that are missing or wrong |
| 3 | the server cannot be reached |
| 4 | the server refuses |
| 141 | the reader of the output has gone, as `head` does |

`--json` prints the answer of the HTTP API; commands that follow progress print an object with `failed` and
`line` in each line. A command that fails prints an object with `error` to stdout then, too. Colours and bars
are for terminals alone; the variable `NO_COLOR` turns colours off.

Every command that asks a server takes it from `--server`, else uses the control socket of the server with the
`--state-dir` that is given, else takes it from the variable `ONDINE_SERVER` or from the user's file
`~/.config/ondine/config.toml`, else uses the control socket of a server on this machine, in
`~/.local/state/ondine` or `/var/lib/ondine`, else takes it from the system's file `/etc/ondine/config.toml`.
`ondine use --write` writes the user's file, and with `--system` the system's. The control socket is for the
server's user and root, who may do everything; elsewhere the rights of the token count. Both files have the
keys `server`, and `token` or `token-file`. A token comes from `--token-file`, the variable `ONDINE_TOKEN`,
the server's URL, the file that names the server, or a netrc file: `NETRC` or `~/.netrc`, then those of Nix.
Any user name will do there.

The variable `ONDINE_LOG` filters the log: a level (`error`, `warn`, `info`, `debug`, `trace`), or levels for
parts of the program, such as `info,ondine::build=debug`.
";

#[test]
fn the_command_line_page_says_what_the_program_says() {
    let mut cli = Cli::command();
    cli.build();
    let mut page = INTRODUCTION.to_owned();
    commands(&mut page, &cli);
    compare("docs/command-line.md", &page);
}

/// Descriptions of the commands that do something: a group that needs one of its commands does nothing
/// itself.
fn commands(page: &mut String, group: &Command) {
    for command in group.get_subcommands().filter(|command| command.get_name() != "help") {
        if !command.is_subcommand_required_set() {
            *page += &describe(command);
        }
        commands(page, command);
    }
}

fn describe(command: &Command) -> String {
    let name = command.get_bin_name().expect("the commands are built");
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    let about =
        command.get_long_about().or(command.get_about()).expect("each command says what it does").to_string();
    let mut text = format!("\n## `{name}`\n\n```\n{usage}\n```\n");
    for paragraph in about.split("\n\n") {
        // clap takes the full stop from a text of one paragraph.
        text += &format!("\n{}.\n", wrap(paragraph.trim_end_matches('.'), ""));
    }
    let is_listed = |argument: &&Arg| {
        !is_setting(argument) && argument.get_id() != "help" && argument.get_id() != "version"
    };
    let arguments: Vec<String> = command.get_arguments().filter(is_listed).map(describe_argument).collect();
    if !arguments.is_empty() {
        text += &format!("\n{}", arguments.concat());
    }
    if command.get_arguments().any(is_setting) {
        text += "\nEvery [setting](settings.md) is an option, too.\n";
    }
    text
}

fn describe_argument(argument: &Arg) -> String {
    let help =
        argument.get_long_help().or(argument.get_help()).expect("each argument has a text").to_string();
    let variable = argument
        .get_env()
        .map(|variable| format!(" (variable `{}`)", variable.display()))
        .unwrap_or_default();
    // The first paragraph: the rest of a setting is on the settings page.
    let help = help.split("\n\n").next().unwrap_or_default().trim_end_matches('.');
    let short = argument.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
    wrap(&format!("- `{short}{argument}`{variable}: {help}."), "  ") + "\n"
}

#[test]
fn the_page_of_commands_has_each_that_does_something_and_short_options() {
    let mut cli = Cli::command();
    cli.build();
    let mut page = String::new();
    commands(&mut page, &cli);
    for heading in ["builders", "builders drain", "key rotate", "serve"] {
        assert!(page.contains(&format!("\n## `ondine {heading}`\n")), "no section on {heading}");
    }
    assert!(!page.contains("## `ondine key`\n"), "a group is no command");
    for option in ["- `-w, --watch`: ", "- `-f, --follow`: ", "- `-v, --verbose`: "] {
        assert!(page.contains(option), "no {option}");
    }
}
