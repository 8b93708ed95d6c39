//! The help of the program: its commands in groups, related ones in one line, so that it fits a screen.

use clap::{Command, CommandFactory};

use super::Cli;

/// Commands in a row, and their text; a single command may have its own instead.
type CommandRow = (&'static [&'static str], &'static str);

/// Commands that belong together, under a title.
const GROUPS: &[(&str, &[CommandRow])] = &[
    (
        "Use a server",
        &[
            (&["use"], "Checks a server, and sets up the Nix of this machine for it"),
            (&["build"], ""),
            (&["push"], ""),
            (&["log"], ""),
            (&["why"], "Explains why something is served, waits, failed or is unknown"),
        ],
    ),
    (
        "Look at a server",
        &[
            (&["status", "top"], "Show the server at a glance, once or as it goes on"),
            (&["queue", "builds"], "List what is built and waits; what has ended"),
            (&["sets", "attributes"], "List package sets, and the attributes of one"),
            (&["du"], "Shows what takes the disk space"),
            (&["failures", "pins", "upstreams"], "List remembered failures, pins, other caches"),
            (&["builders"], "Lists the machines that build, and drains one"),
        ],
    ),
    (
        "Change what a server does",
        &[
            (&["refresh"], "Evaluates a package set anew"),
            (&["retry", "cancel"], "Build again what failed; end a request"),
            (&["pin", "unpin"], "Protect a path from eviction, or no longer"),
            (&["gc", "fsck"], "Evict NARs above the limit; check the NAR store"),
            (&["token"], "Makes, lists and revokes tokens, which give clients rights"),
        ],
    ),
    (
        "Run a server",
        &[
            (&["serve"], ""),
            (&["stdio"], "Serves one Nix client as a remote builder, for sshd"),
            (&["check-config", "doctor"], "Check a settings file; find what is wrong here"),
            (&["key"], ""),
            (&["import"], "Uploads a cache in a directory, or that of an attic server"),
            (&["backup", "recover"], "Copy keys and index; rebuild a lost or damaged index"),
            (&["migrate"], "Copies the index to another database"),
            (&["try"], ""),
        ],
    ),
    ("Other", &[(&["completions", "man"], "Print a script for a shell; write man pages"), (&["help"], "")]),
];

/// clap's template for the help of the program, with the commands in groups.
pub(super) fn template(command: &Command) -> String {
    let mut text = "{about-with-newline}\n{usage-heading} {usage}\n".to_owned();
    let about = |name: &str| {
        let found = command.get_subcommands().find(|command| command.get_name() == name);
        found.and_then(Command::get_about).map(ToString::to_string).unwrap_or_default()
    };
    let names = |row: &[&str]| row.join(", ");
    let grouped: Vec<&str> = GROUPS
        .iter()
        .flat_map(|(_, rows)| rows.iter())
        .flat_map(|(names, _)| names.iter().copied())
        .collect();
    let others = command.get_subcommands().map(Command::get_name).filter(|name| !grouped.contains(name));
    let others: Vec<(String, String)> = others.map(|name| (name.to_owned(), about(name))).collect();
    let groups = GROUPS.iter().map(|(title, rows)| {
        let rows = rows.iter().map(|(row, words)| match (row, *words) {
            (["help"], _) => ("help".to_owned(), "Shows this, or the help of a command".to_owned()),
            ([name], "") => ((*name).to_owned(), about(name)),
            (row, words) => (names(row), words.to_owned()),
        });
        (*title, rows.collect::<Vec<_>>())
    });
    let mut groups: Vec<_> = groups.collect();
    if let Some((_, last)) = groups.last_mut() {
        last.splice(0..0, others);
    }
    let width =
        groups.iter().flat_map(|(_, rows)| rows).map(|(names, _)| names.len()).max().unwrap_or_default();
    for (title, rows) in groups {
        text += &format!("\n{title}:\n");
        for (names, words) in rows {
            text += &format!("  {names:width$}  {words}\n");
        }
    }
    text + "\nOptions:\n{options}\n"
}

/// The command line as it is parsed and shown.
pub(super) fn command() -> Command {
    let command = Cli::command();
    let template = template(&command);
    command.help_template(template)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of a screen, with room for the prompt.
    const SCREEN_LINES: usize = 44;
    const SCREEN_COLUMNS: usize = 100;

    #[test]
    fn the_help_has_every_command_once_and_fits_a_screen() {
        let help = command().render_help().to_string();
        assert!(help.lines().count() <= SCREEN_LINES, "{} lines:\n{help}", help.lines().count());
        assert!(help.lines().all(|line| line.chars().count() <= SCREEN_COLUMNS), "{help}");
        for command in Cli::command().get_subcommands() {
            let named = help.lines().filter(|line| line.starts_with("  ")).filter(|line| {
                let names = line.trim_start().split("  ").next().unwrap_or_default();
                names.split(", ").any(|name| name == command.get_name())
            });
            assert_eq!(named.count(), 1, "{} in:\n{help}", command.get_name());
        }
    }

    #[test]
    fn a_command_beside_a_server_has_its_own_options_alone_in_its_help() {
        let mut command = Cli::command();
        command.build();
        for name in ["doctor", "check-config", "recover", "backup", "migrate"] {
            let command = command.find_subcommand_mut(name).expect("a command");
            let help = command.render_long_help().to_string();
            assert!(help.contains("ondine serve --help"), "{name}: {help}");
            assert!(!help.contains("--hold") && help.lines().count() < SCREEN_LINES, "{name}: {help}");
        }
        let serve = command.find_subcommand_mut("serve").expect("a command").render_long_help().to_string();
        assert!(serve.contains("--hold <"), "{serve}");
        let status = command.find_subcommand_mut("status").expect("a command").render_help().to_string();
        assert!(
            status.contains("server on this machine that is meant") && !status.contains("first start"),
            "{status}"
        );
    }
}
