//! Settings as flags and ONDINE_ variables: clap's arguments, made from the table.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::error::Location;
use super::raw::{RawContent, RawTable, RawValue};
use super::setting::{Arity, Setting};
use super::{RawSettings, StateDir, UnlistedSettings, table};

/// Setting that commands other than `serve` take, too.
const STATE_DIR: &str = "state-dir";
/// Its short and its long text there.
const STATE_DIR_HELP: (&str, &str) = (
    "State directory of the server on this machine that is meant",
    "State directory of the server on this machine that is meant. A command that asks a server uses the control socket \
     in it.\n\nWithout it: $STATE_DIRECTORY, else ~/.local/state/ondine, else /var/lib/ondine.",
);

impl Args for RawSettings {
    fn augment_args(command: Command) -> Command {
        table::GROUPS.iter().fold(command, |command, group| {
            command.args(group.settings.iter().map(|setting| argument(setting).help_heading(group.title)))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for RawSettings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut settings = Self::default();
        settings.update_from_arg_matches(matches)?;
        Ok(settings)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let written = table::settings().filter_map(|setting| Some((setting.name, value(setting, matches)?)));
        self.0 = RawTable::new(Location::Default, written).or(std::mem::take(&mut self.0));
        Ok(())
    }
}

impl Args for UnlistedSettings {
    fn augment_args(command: Command) -> Command {
        let command = table::GROUPS.iter().fold(command, |command, group| {
            let arguments = group.settings.iter().map(argument);
            command.args(arguments.map(|argument| argument.help_heading(group.title).hide(true)))
        });
        command.after_help(
            "Every setting of the server is an option, too, such as --state-dir: see ondine serve --help.",
        )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for UnlistedSettings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        RawSettings::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl Args for StateDir {
    fn augment_args(command: Command) -> Command {
        let arguments = table::settings().filter(|setting| setting.name == STATE_DIR).map(argument);
        command.args(arguments.map(|argument| argument.help(STATE_DIR_HELP.0).long_help(STATE_DIR_HELP.1)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for StateDir {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let setting = table::settings().filter(|setting| setting.name == STATE_DIR);
        let written = setting.filter_map(|setting| Some((setting.name, value(setting, matches)?)));
        Ok(Self(RawSettings(RawTable::new(Location::Default, written))))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Name of the variable of a setting.
pub(super) fn variable(setting: &str) -> String {
    format!("ONDINE_{}", setting.replace('-', "_").to_uppercase())
}

fn argument<T>(setting: &Setting<T>) -> Arg {
    let (name, doc) = (setting.name, setting.doc);
    let brief = doc.split_once(". ").map_or(doc, |(brief, _)| brief).trim_end_matches('.');
    let default = setting.default.show().map(|text| format!(" [default: {text}]")).unwrap_or_default();
    // clap keeps the names of variables for as long as the program runs.
    let variable: &str = variable(name).leak();
    let argument = Arg::new(name)
        .long(name)
        .env(variable)
        .hide_env_values(true)
        .value_name(setting.value.placeholder())
        .help(format!("{brief}{default}"))
        .long_help(format!("{doc}\n\nAccepts {}{default}", setting.value.accepted()));
    match setting.value.arity() {
        Arity::One => argument.action(ArgAction::Set),
        Arity::Optional => argument.num_args(0..=1).default_missing_value("true"),
        Arity::List => argument.action(ArgAction::Append).num_args(0..).value_delimiter(','),
        Arity::Tables => argument.action(ArgAction::Append).value_delimiter(','),
    }
}

/// The value that a flag or else a variable gives a setting.
fn value<T>(setting: &Setting<T>, matches: &ArgMatches) -> Option<RawValue> {
    let name = setting.name;
    let location = match matches.value_source(name)? {
        ValueSource::CommandLine => Location::Flag(name),
        ValueSource::EnvVariable => Location::Variable(variable(name)),
        _ => return None,
    };
    let mut texts = matches.get_many::<String>(name).into_iter().flatten().cloned();
    let content = match setting.value.arity() {
        Arity::One | Arity::Optional => RawContent::Text(texts.next_back()?),
        Arity::List | Arity::Tables => {
            let item = |text| RawValue { content: RawContent::Text(text), location: location.clone() };
            RawContent::List(texts.filter(|text| !text.is_empty()).map(item).collect())
        }
    };
    Some(RawValue { content, location })
}
