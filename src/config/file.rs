//! The settings file: read, with the line of each value. Names are checked before values, in tables too, so
//! that a misspelt one is reported with the nearest that exists.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::error::{Location, Problem};
use super::raw::{RawContent, RawTable, RawValue};
use super::{Error, RawSettings, setting, table};
use crate::upstream::without_secrets;

impl RawSettings {
    /// Reads a settings file. Dashes and underscores in names are the same.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML, names a setting twice or names one that does not exist.
    pub fn read(file: &Path) -> Result<Self, Error> {
        let text =
            fs::read_to_string(file).map_err(|source| Problem::Read { file: file.to_owned(), source })?;
        let reader = Reader { file: file.into(), text: &text };
        let root = reader.table(reader.root()?.get_ref(), Location::Default)?;
        setting::check_names(table::settings(), &root, "")?;
        Ok(Self(root))
    }
}

struct Reader<'t> {
    file: Arc<Path>,
    text: &'t str,
}

impl<'t> Reader<'t> {
    /// Errors show the line, without what is secret in it.
    fn root(&self) -> Result<Spanned<DeTable<'t>>, Problem> {
        DeTable::parse(self.text).map_err(|error| {
            let shown = DeTable::parse(&without_secrets(self.text)).err();
            Problem::Toml { file: self.file.to_path_buf(), source: Box::new(shown.unwrap_or(error)) }
        })
    }

    fn table(&self, table: &DeTable<'_>, location: Location) -> Result<RawTable, Problem> {
        let mut entries: Vec<_> = table.iter().collect();
        // The order of the file: the parser has sorted them by name.
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut raw = RawTable::new(location, []);
        for (key, value) in entries {
            let location = self.location(key.span().start);
            raw.insert(key.get_ref(), self.value(value.get_ref(), location)?)?;
        }
        Ok(raw)
    }

    fn value(&self, value: &DeValue<'_>, location: Location) -> Result<RawValue, Problem> {
        let content = match value {
            DeValue::String(text) => RawContent::Text(text.to_string()),
            DeValue::Integer(number) => integer(number),
            DeValue::Boolean(value) => RawContent::Bool(*value),
            DeValue::Array(values) => {
                let item = |item: &Spanned<DeValue<'_>>| {
                    self.value(item.get_ref(), self.location(item.span().start))
                };
                RawContent::List(values.iter().map(item).collect::<Result<_, _>>()?)
            }
            DeValue::Table(table) => RawContent::Table(self.table(table, location.clone())?),
            DeValue::Float(number) => RawContent::Other(number.as_str().to_owned()),
            DeValue::Datetime(time) => RawContent::Other(time.to_string()),
        };
        Ok(RawValue { content, location })
    }

    fn location(&self, byte: usize) -> Location {
        Location::File { file: Arc::clone(&self.file), line: self.text[..byte].matches('\n').count() + 1 }
    }
}

fn integer(number: &DeInteger<'_>) -> RawContent {
    let parsed = i64::from_str_radix(number.as_str(), number.radix());
    parsed.map_or_else(|_| RawContent::Other(number.as_str().to_owned()), RawContent::Number)
}
