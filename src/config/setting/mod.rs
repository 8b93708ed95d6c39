//! A setting as the table defines it, once: name, type with its unit and bounds, default, documentation, and
//! the field that it is for. Flags, variables, keys of the file, errors, `--help` and the settings page all
//! come from it.

mod forms;
mod tables;
mod units;

use super::error::{Location, Problem, nearest};
use super::raw::{RawContent, RawTable, RawValue};
pub(super) use forms::{Bool, Bytes, List, Number, OneOf, SomeOf, Text, Time, TimeOr};
pub(super) use tables::{Table, Tables};
pub(crate) use units::{bytes, lifetime};

/// A setting whose value goes into a `T`.
pub(super) struct Setting<T: 'static> {
    /// Key in the file; the flag and the variable are named after it.
    pub(super) name: &'static str,
    /// One paragraph, of which the first sentence stands alone in `-h`.
    pub(super) doc: &'static str,
    pub(super) default: DefaultValue,
    pub(super) value: &'static dyn Value<T>,
}

/// Value of a setting that is not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DefaultValue {
    /// Written as in a flag.
    Is(&'static str),
    /// Found out, or left to another program; the text describes it.
    Described(&'static str),
    /// None: it must be written.
    Required,
}

/// Type of a setting.
pub(super) trait Value<T> {
    /// Reads the value and stores it.
    ///
    /// # Errors
    /// The value has another type, or is out of bounds.
    fn set(&self, to: &mut T, given: Given<'_>) -> Result<(), Problem>;

    /// Accepted values, for errors and documentation: "a whole number from 1 to 19".
    fn accepted(&self) -> String;

    /// Stands for the value in `--help`.
    fn placeholder(&self) -> &'static str;

    /// Number of values that a flag takes.
    fn arity(&self) -> Arity {
        Arity::One
    }

    /// Checks the names of a table's keys.
    ///
    /// # Errors
    /// One is unknown.
    fn check_names(&self, _given: Given<'_>) -> Result<(), Problem> {
        Ok(())
    }

    /// Documentation of a table's keys.
    #[cfg(test)]
    fn keys(&self) -> Vec<Described> {
        Vec::new()
    }

    /// Type in the settings file, for the NixOS module.
    #[cfg(test)]
    fn file_type(&self) -> FileType;
}

/// Type of a setting in the settings file. An end of a range that is not worth checking is `None`.
#[cfg(test)]
#[derive(Debug, serde::Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(super) enum FileType {
    Bool,
    Number { min: i64, max: Option<i64> },
    Bytes,
    Text,
    Texts,
    Word { words: Vec<&'static str> },
    Words { words: Vec<&'static str> },
    Table,
    Tables,
}

/// Number of values that a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arity {
    One,
    /// None stands for "true".
    Optional,
    /// Any number, separated by commas.
    List,
    /// At least one, each the short form of a table, separated by commas.
    Tables,
}

/// A setting as the settings page describes it.
#[cfg(test)]
pub(super) struct Described {
    pub(super) name: &'static str,
    pub(super) doc: &'static str,
    pub(super) accepted: String,
    pub(super) default: DefaultValue,
    pub(super) file_type: FileType,
    /// Keys of its own table, if it is one.
    pub(super) keys: Vec<Described>,
}

/// The value of a setting as it is written.
#[derive(Clone, Copy)]
pub(super) struct Given<'r> {
    pub(super) name: &'static str,
    /// The table that it is in, for errors: " in [[upstream]]".
    pub(super) within: &'static str,
    pub(super) value: &'r RawValue,
}

impl<'r> Given<'r> {
    fn text(&self) -> Option<&'r str> {
        match &self.value.content {
            RawContent::Text(text) => Some(text),
            _ => None,
        }
    }

    fn list(&self) -> Option<impl Iterator<Item = Given<'r>> + use<'r>> {
        let Self { name, within, .. } = *self;
        match &self.value.content {
            RawContent::List(values) => Some(values.iter().map(move |value| Given { name, within, value })),
            _ => None,
        }
    }

    /// Error that says what would have been accepted.
    fn refuse(&self, expected: &str) -> Problem {
        self.value.refuse(self.name, self.within, format!("expected {expected}"))
    }
}

impl DefaultValue {
    /// The default as documentation has it, if there is one.
    pub(super) fn show(self) -> Option<&'static str> {
        match self {
            Self::Is("") => Some("none"),
            Self::Is(text) | Self::Described(text) => Some(text),
            Self::Required => None,
        }
    }
}

impl<T> Setting<T> {
    #[cfg(test)]
    pub(super) fn describe(&self) -> Described {
        let Self { name, doc, default, value } = *self;
        let (accepted, file_type, keys) = (value.accepted(), value.file_type(), value.keys());
        Described { name, doc, accepted, default, file_type, keys }
    }

    /// The default, as if it were written.
    fn default_value(&self) -> Result<Option<RawValue>, &'static str> {
        match self.default {
            DefaultValue::Is(text) if matches!(self.value.arity(), Arity::List | Arity::Tables) => {
                let items = text.split(',').filter(|item| !item.is_empty());
                Ok(Some(RawValue::of_default(RawContent::list(items, &Location::Default))))
            }
            DefaultValue::Is(text) => Ok(Some(RawValue::of_default(RawContent::Text(text.to_owned())))),
            DefaultValue::Described(_) => Ok(None),
            DefaultValue::Required => Err(self.name),
        }
    }
}

/// Stores each setting's value, or else its default, in the order of the settings.
///
/// # Errors
/// A value is not as it must be, or one that is required is not written.
pub(super) fn apply<'s, T: 'static>(
    settings: impl Iterator<Item = &'s Setting<T>>,
    to: &mut T,
    table: &RawTable,
    within: &'static str,
) -> Result<(), Problem> {
    for setting in settings {
        let missing = |name| Problem::Missing { location: table.location.clone(), name, within };
        let default;
        let value = match table.get(setting.name) {
            Some(value) => value,
            None => match setting.default_value().map_err(missing)? {
                Some(value) => {
                    default = value;
                    &default
                }
                None => continue,
            },
        };
        setting.value.set(to, Given { name: setting.name, within, value })?;
    }
    Ok(())
}

/// Checks that each key of a table is one of the settings, and so on in tables within it, in the order of the
/// file.
///
/// # Errors
/// One is not; the error names the nearest that is.
pub(super) fn check_names<'s, T: 'static>(
    settings: impl Iterator<Item = &'s Setting<T>> + Clone,
    table: &RawTable,
    within: &'static str,
) -> Result<(), Problem> {
    for (key, value) in table.entries() {
        let Some(setting) = settings.clone().find(|setting| setting.name == key) else {
            return Err(Problem::Unknown {
                location: value.location.clone(),
                key: key.to_owned(),
                within,
                nearest: nearest(key, settings.map(|setting| setting.name)),
            });
        };
        setting.value.check_names(Given { name: setting.name, within, value })?;
    }
    Ok(())
}
