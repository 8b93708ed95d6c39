//! Settings as they are written, before anything is known of their types: each value with the location where
//! it stands.

use std::fmt;

use super::error::{Location, Problem};
use crate::upstream::without_secrets;

/// A table as it is written: the whole file, or one within it. Dashes and underscores in names are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct RawTable {
    pub(super) location: Location,
    entries: Vec<(String, RawValue)>,
}

/// A value as it is written.
#[derive(Clone, Debug)]
pub(super) struct RawValue {
    pub(super) content: RawContent,
    pub(super) location: Location,
}

/// The text, number or list that is written.
#[derive(Clone, Debug)]
pub(super) enum RawContent {
    Text(String),
    Number(i64),
    Bool(bool),
    List(Vec<RawValue>),
    Table(RawTable),
    /// A value of a type that no setting has, as it is written.
    Other(String),
}

impl RawTable {
    pub(super) fn new(
        location: Location,
        entries: impl IntoIterator<Item = (&'static str, RawValue)>,
    ) -> Self {
        let entries = entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Self { location, entries }
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// The table has one of this name.
    pub(super) fn insert(&mut self, key: &str, value: RawValue) -> Result<(), Problem> {
        let key = key.replace('_', "-");
        if self.get(&key).is_some() {
            return Err(Problem::Twice { location: value.location, key });
        }
        self.entries.push((key, value));
        Ok(())
    }

    pub(super) fn get(&self, key: &str) -> Option<&RawValue> {
        self.entries.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &RawValue)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// These entries, and those of `other` that are not among them.
    pub(super) fn or(mut self, other: Self) -> Self {
        let new = other.entries.into_iter().filter(|(key, _)| self.get(key).is_none()).collect::<Vec<_>>();
        self.entries.extend(new);
        self
    }

    /// Error about the value of a key, or about its absence.
    pub(super) fn refuse(
        &self,
        name: &'static str,
        within: &'static str,
        reason: impl Into<String>,
    ) -> Problem {
        let absent =
            || RawValue { content: RawContent::Other("unset".to_owned()), location: self.location.clone() };
        let value = self.get(name).cloned().unwrap_or_else(absent);
        value.refuse(name, within, reason)
    }
}

impl RawContent {
    /// A list of texts.
    pub(super) fn list<'t>(texts: impl Iterator<Item = &'t str>, location: &Location) -> Self {
        let item = |text: &str| RawValue { content: Self::Text(text.to_owned()), location: location.clone() };
        Self::List(texts.map(item).collect())
    }
}

impl RawValue {
    /// A default value.
    pub(super) fn of_default(content: RawContent) -> Self {
        Self { content, location: Location::Default }
    }

    /// Error about this value.
    pub(super) fn refuse(
        &self,
        name: &'static str,
        within: &'static str,
        reason: impl Into<String>,
    ) -> Problem {
        let value = without_secrets(&self.to_string());
        Problem::Value { location: self.location.clone(), name, within, value, reason: reason.into() }
    }

    /// Values of a file have types; those of flags and variables are texts.
    pub(super) fn is_in_file(&self) -> bool {
        matches!(self.location, Location::File { .. })
    }

    pub(super) fn table(&self) -> Option<&RawTable> {
        match &self.content {
            RawContent::Table(table) => Some(table),
            _ => None,
        }
    }
}

impl fmt::Display for RawValue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.content {
            RawContent::Text(text) | RawContent::Other(text) => formatter.write_str(text),
            RawContent::Number(number) => write!(formatter, "{number}"),
            RawContent::Bool(value) => write!(formatter, "{value}"),
            RawContent::List(values) => {
                let values: Vec<String> = values.iter().map(ToString::to_string).collect();
                write!(formatter, "[{}]", values.join(", "))
            }
            RawContent::Table(table) => {
                let entries = table.entries().map(|(key, value)| format!("{key} = {value}"));
                write!(formatter, "{{ {} }}", entries.collect::<Vec<_>>().join(", "))
            }
        }
    }
}
