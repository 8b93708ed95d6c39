//! The settings file: read, and every error in it told with its line. Names are checked before values, in tables too, so that a
//! misspelt one is told with the nearest that exists.

use std::fs;
use std::path::Path;

use serde::de::{self, DeserializeOwned};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::catalogue::{WrittenSet, WrittenSource};
use super::upstream::WrittenUpstream;
use super::values::fields;
use super::{Error, Written, known_settings, nearest};
use crate::upstream::without_secrets;

impl Written {
    /// Reads a settings file. Dashes and underscores in names are the same.
    ///
    /// # Errors
    /// When it cannot be read, is no TOML, names an unknown setting or has a value of the wrong type.
    pub fn read(file: &Path) -> Result<Self, Error> {
        let text = read(file)?;
        // What is no TOML is told by the parser below.
        if let Ok(table) = DeTable::parse(&text) {
            Names { file, text: &text }.check(table.get_ref())?;
        }
        parsed(file, &text)
    }
}

impl Error {
    /// The same error with the line where its value stands in `file`, if it does: `written` is what was read there.
    #[must_use]
    pub fn in_file(self, file: &Path, written: Written) -> Self {
        let Self::Bounds { setting, value, .. } = &self else { return self };
        // Where the file alone is as wrong, no flag or variable is to blame.
        let blamed = matches!(
            written.resolve(),
            Err(Self::Bounds { setting: other, value: same, .. }) if other == *setting && same == *value
        );
        let Some(line) = read(file).ok().filter(|_| blamed).and_then(|text| line_of(&text, setting, value))
        else {
            return self;
        };
        Self::At { file: file.to_owned(), line, error: Box::new(self) }
    }
}

/// What is written in the text of a file. Errors show the line, without what is secret in it.
fn parsed<T: DeserializeOwned>(file: &Path, text: &str) -> Result<T, Error> {
    toml::from_str(text).map_err(|error| {
        let shown = toml::from_str::<T>(&without_secrets(text)).err();
        let source = shown.unwrap_or_else(|| de::Error::custom(without_secrets(error.message())));
        Error::Toml { file: file.to_owned(), source: Box::new(source) }
    })
}

fn read(file: &Path) -> Result<String, Error> {
    fs::read_to_string(file).map_err(|source| Error::Read { file: file.to_owned(), source })
}

fn same_name(written: &str, name: &str) -> bool {
    written.replace('_', "-") == name
}

fn line_at(text: &str, byte: usize) -> usize {
    text[..byte].matches('\n').count() + 1
}

/// The line of a setting (`hold`), or of that key of a table (`upstream url`) that has the value.
fn line_of(text: &str, setting: &str, value: &str) -> Option<usize> {
    let root = DeTable::parse(text).ok()?;
    let mut words = setting.split(' ');
    let mut found = values_of(&[root.get_ref()], words.next()?);
    for word in words {
        let tables: Vec<_> = found.into_iter().flat_map(tables_in).collect();
        found = values_of(&tables, word);
    }
    let exact = found.iter().find(|found| found.get_ref().as_str() == Some(value));
    // Of several, one that is written in another way cannot be told from the rest.
    let only = || found.first().filter(|_| found.len() == 1);
    exact.or_else(only).map(|found| line_at(text, found.span().start))
}

/// A table, or the tables of a list.
fn tables_in<'t, 'i>(value: &'t Spanned<DeValue<'i>>) -> Vec<&'t DeTable<'i>> {
    match value.get_ref() {
        DeValue::Table(table) => vec![table],
        DeValue::Array(values) => values.iter().filter_map(|value| value.get_ref().as_table()).collect(),
        _ => Vec::new(),
    }
}

fn values_of<'t, 'i>(tables: &[&'t DeTable<'i>], name: &str) -> Vec<&'t Spanned<DeValue<'i>>> {
    let entries = tables.iter().flat_map(|table| table.iter());
    entries.filter(|(key, _)| same_name(key.get_ref(), name)).map(|(_, value)| value).collect()
}

/// Looks at the names in a file.
struct Names<'f> {
    file: &'f Path,
    text: &'f str,
}

impl Names<'_> {
    fn check(&self, root: &DeTable<'_>) -> Result<(), Error> {
        self.known(root, &known_settings(), "")?;
        for (name, place, known) in [
            ("upstream", " in [[upstream]]", fields::<WrittenUpstream>()),
            ("catalogue", " in [[catalogue]]", fields::<WrittenSet>()),
        ] {
            for value in values_of(&[root], name) {
                if let DeValue::Table(_) = value.get_ref() {
                    return Err(Error::SingleTable {
                        file: self.file.to_owned(),
                        line: line_at(self.text, value.span().start),
                        name,
                    });
                }
                for table in tables_in(value) {
                    self.known(table, &names(known), place)?;
                    for source in values_of(&[table], "source").into_iter().flat_map(tables_in) {
                        let known = names(fields::<WrittenSource>());
                        self.known(source, &known, " in the source of a package set")?;
                    }
                }
            }
        }
        Ok(())
    }

    fn known(&self, table: &DeTable<'_>, known: &[String], place: &'static str) -> Result<(), Error> {
        let is_known = |key: &str| known.iter().any(|name| same_name(key, name));
        // In the order of the file.
        let unknown = table.keys().filter(|key| !is_known(key.get_ref()));
        match unknown.min_by_key(|key| key.span().start) {
            None => Ok(()),
            Some(key) => Err(Error::Unknown {
                file: self.file.to_owned(),
                line: line_at(self.text, key.span().start),
                key: key.get_ref().to_string(),
                place,
                nearest: nearest(&key.get_ref().replace('_', "-"), known),
            }),
        }
    }
}

fn names(fields: &[&str]) -> Vec<String> {
    // Aliases have underscores; they are accepted, not advised.
    fields.iter().filter(|field| !field.contains('_')).map(|field| (*field).to_owned()).collect()
}
