//! Types of settings that are tables with settings of their own.

use super::{Arity, Given, Setting, Value, apply, check_names};
#[cfg(test)]
use super::{Described, FileType};
use crate::config::error::{Location, Problem};
use crate::config::raw::{RawContent, RawTable, RawValue};

/// A list of tables, each of which makes an `I`.
pub(in crate::config) struct Tables<T, I: 'static> {
    /// The table's location, for errors: " in [[upstream]]".
    pub(in crate::config) within: &'static str,
    pub(in crate::config) placeholder: &'static str,
    /// One of them.
    pub(in crate::config) expected: &'static str,
    pub(in crate::config) keys: &'static [Setting<I>],
    /// Reads the short form, which flags and variables have.
    pub(in crate::config) short: fn(&str, &Location) -> Vec<(&'static str, RawContent)>,
    /// Takes what the keys have made. The table is for errors that several keys make together.
    pub(in crate::config) add: fn(&mut T, I, &RawTable) -> Result<(), Problem>,
}

impl<T, I: Default> Tables<T, I> {
    fn table(&self, given: Given<'_>) -> Result<RawTable, Problem> {
        match &given.value.content {
            RawContent::Table(table) => Ok(table.clone()),
            RawContent::Text(text) => {
                let location = &given.value.location;
                let entries = (self.short)(text, location).into_iter();
                let entries =
                    entries.map(|(key, content)| (key, RawValue { content, location: location.clone() }));
                Ok(RawTable::new(location.clone(), entries))
            }
            _ => Err(given.refuse(self.expected)),
        }
    }
}

impl<T, I: Default> Value<T> for Tables<T, I> {
    fn set(&self, to: &mut T, given: Given<'_>) -> Result<(), Problem> {
        for item in given.list().ok_or_else(|| given.refuse(&Value::<T>::accepted(self)))? {
            let (table, mut made) = (self.table(item)?, I::default());
            apply(self.keys.iter(), &mut made, &table, self.within)?;
            (self.add)(to, made, &table)?;
        }
        Ok(())
    }

    fn accepted(&self) -> String {
        format!("a list, each item {}", self.expected)
    }

    fn placeholder(&self) -> &'static str {
        self.placeholder
    }

    fn arity(&self) -> Arity {
        Arity::Tables
    }

    fn check_names(&self, given: Given<'_>) -> Result<(), Problem> {
        if let RawValue { content: RawContent::Table(_), location } = given.value {
            return Err(Problem::SingleTable { location: location.clone(), name: given.name });
        }
        let tables = given.list().into_iter().flatten().filter_map(|item| item.value.table());
        for table in tables {
            check_names(self.keys.iter(), table, self.within)?;
        }
        Ok(())
    }

    #[cfg(test)]
    fn keys(&self) -> Vec<Described> {
        self.keys.iter().map(Setting::describe).collect()
    }

    #[cfg(test)]
    fn file_type(&self) -> FileType {
        FileType::Tables
    }
}

/// A single table, which makes an `I`.
pub(in crate::config) struct Table<T, I: 'static> {
    /// The table's location, for errors.
    pub(in crate::config) within: &'static str,
    pub(in crate::config) expected: &'static str,
    pub(in crate::config) keys: &'static [Setting<I>],
    /// Takes what the keys have made, unless they do not go together.
    pub(in crate::config) set: fn(&mut T, I) -> Option<()>,
}

impl<T, I: Default> Value<T> for Table<T, I> {
    fn set(&self, to: &mut T, given: Given<'_>) -> Result<(), Problem> {
        let table = given.value.table().ok_or_else(|| given.refuse(self.expected))?;
        let mut made = I::default();
        apply(self.keys.iter(), &mut made, table, self.within)?;
        (self.set)(to, made).ok_or_else(|| given.refuse(self.expected))
    }

    fn accepted(&self) -> String {
        self.expected.to_owned()
    }

    fn placeholder(&self) -> &'static str {
        "TABLE"
    }

    fn check_names(&self, given: Given<'_>) -> Result<(), Problem> {
        given.value.table().map_or(Ok(()), |table| check_names(self.keys.iter(), table, self.within))
    }

    #[cfg(test)]
    fn keys(&self) -> Vec<Described> {
        self.keys.iter().map(Setting::describe).collect()
    }

    #[cfg(test)]
    fn file_type(&self) -> FileType {
        FileType::Table
    }
}
