//! Types of single values and of lists.

use std::ops::RangeInclusive;
use std::time::Duration;

#[cfg(test)]
use super::FileType;
use super::units::{BYTES, DURATION, bytes, duration, show_bytes, show_duration};
use super::{Arity, Given, Value};
use crate::config::error::{Problem, nearest};
use crate::config::raw::RawContent;

/// Yes or no.
pub(in crate::config) struct Bool<T>(pub(in crate::config) fn(&mut T, bool));

impl<T> Value<T> for Bool<T> {
    fn set(&self, to: &mut T, given: Given<'_>) -> Result<(), Problem> {
        let value = match &given.value.content {
            RawContent::Bool(value) => *value,
            RawContent::Text(text) if !given.value.is_in_file() => {
                text.parse().map_err(|_| given.refuse(&Value::<T>::accepted(self)))?
            }
            _ => return Err(given.refuse(&Value::<T>::accepted(self))),
        };
        (self.0)(to, value);
        Ok(())
    }

    fn accepted(&self) -> String {
        "true or false".to_owned()
    }

    fn placeholder(&self) -> &'static str {
        "BOOL"
    }

    fn arity(&self) -> Arity {
        Arity::Optional
    }

    #[cfg(test)]
    fn file_type(&self) -> FileType {
        FileType::Bool
    }
}

/// A whole number within bounds. A range that ends at `u32::MAX` or above has no end that is worth saying.
pub(in crate::config) struct Number<T, N> {
    pub(in crate::config) accepted: RangeInclusive<i64>,
    pub(in crate::config) set: fn(&mut T, N),
}

impl<T, N: TryFrom<i64>> Value<T> for Number<T, N> {
    fn set(&self, to: &mut T, given: Given<'_>) -> Result<(), Problem> {
        let number = match &given.value.content {
            RawContent::Number(number) => Some(*number),
            RawContent::Text(text) if !given.value.is_in_file() => text.parse().ok(),
            _ => None,
        };
        let number = number.filter(|number| self.accepted.contains(number));
        let number = number.and_then(|number| N::try_from(number).ok());
        (self.set)(to, number.ok_or_else(|| given.refuse(&Value::<T>::accepted(self)))?);
        Ok(())
    }

    fn accepted(&self) -> String {
        let (start, end) = (self.accepted.start(), self.accepted.end());
        match *end < u32::MAX.into() {
            true => format!("a whole number from {start} to {end}"),
            false => format!("a whole number, {start} or more"),
        }
    }

    fn placeholder(&self) -> &'static str {
        "N"
    }

    #[cfg(test)]
    fn file_type(&self) -> FileType {
        let max = Some(*self.accepted.end()).filter(|end| *end < u32::MAX.into());
        FileType::Number { min: *self.accepted.start(), max }
    }
}

/// A number of bytes, with or without a unit.
pub(in crate::config) struct Bytes<T> {
    pub(in crate::config) min: u64,
    pub(in crate::config) set: fn(&mut T, u64),
}

impl<T> Value<T> for Bytes<T> {
    fn set(&self, to: &mut T, given: Given<'_>) -> Result<(), Problem> {
        let number = match &given.value.content {
            RawContent::Number(number) => u64::try_from(*number).ok(),
            RawContent::Text(text) => bytes(text).ok(),
            _ => None,
        };
        let number = number.filter(|number| *number >= self.min);
        (self.set)(to, number.ok_or_else(|| given.refuse(&Value::<T>::accepted(self)))?);
        Ok(())
    }

    fn accepted(&self) -> String {
        match self.min {
            0 => BYTES.to_owned(),
            min => format!("{BYTES}, {} or more", show_bytes(min)),
        }
    }

    fn placeholder(&self) -> &'static str {
        "BYTES"
    }

    #[cfg(test)]
    fn file_type(&self) -> FileType {
        FileType::Bytes
    }
}

/// A duration with its unit, within bounds. A range that ends at `Duration::MAX` has no end.
pub(in crate::config) struct Time<T> {
    pub(in crate::config) accepted: RangeInclusive<Duration>,
    pub(in crate::config) set: fn(&mut T, Duration),
}

impl<T> Value<T> for Time<T> {
    fn set(&self, to: &mut T, given: Given<'_>) -> Result<(), Problem> {
        let value = given.text().and_then(duration).filter(|value| self.accepted.contains(value));
        (self.set)(to, value.ok_or_else(|| given.refuse(&Value::<T>::accepted(self)))?);
        Ok(())
    }

    fn accepted(&self) -> String {
        durations(&self.accepted)
    }

    fn placeholder(&self) -> &'static str {
        "DURATION"
    }

    #[cfg(test)]
    fn file_type(&self) -> FileType {
        FileType::Text
    }
}

/// A duration as [`Time`] has it, or a word that stands for none.
pub(in crate::config) struct TimeOr<T> {
    pub(in crate::config) none: &'static str,
    pub(in crate::config) accepted: RangeInclusive<Duration>,
    pub(in crate::config) set: fn(&mut T, Option<Duration>),
}

impl<T> Value<T> for TimeOr<T> {
    fn set(&self, to: &mut T, given: Given<'_>) -> Result<(), Problem> {
        let none = |text: &str| {
            text == self.none || duration(text).is_some_and(|time| duration(self.none) == Some(time))
        };
        let value = match given.text() {
            Some(text) if none(text) => None,
            text => {
                let value = text.and_then(duration).filter(|value| self.accepted.contains(value));
                Some(value.ok_or_else(|| given.refuse(&Value::<T>::accepted(self)))?)
            }
        };
        (self.set)(to, value);
        Ok(())
    }

    fn accepted(&self) -> String {
        format!("{}, or \"{}\"", durations(&self.accepted), self.none)
    }

    fn placeholder(&self) -> &'static str {
        "DURATION"
    }

    #[cfg(test)]
    fn file_type(&self) -> FileType {
        FileType::Text
    }
}

fn durations(accepted: &RangeInclusive<Duration>) -> String {
    let (start, end) = (show_duration(*accepted.start()), *accepted.end());
    match (accepted.start().is_zero(), end == Duration::MAX) {
        (true, true) => DURATION.to_owned(),
        (false, true) => format!("{DURATION}, {start} or more"),
        _ => format!("{DURATION} from {start} to {}", show_duration(end)),
    }
}

/// A text with a form of its own.
pub(in crate::config) struct Text<T, I> {
    pub(in crate::config) placeholder: &'static str,
    pub(in crate::config) expected: &'static str,
    pub(in crate::config) parse: fn(&str) -> Option<I>,
    pub(in crate::config) set: fn(&mut T, I),
}

impl<T, I> Value<T> for Text<T, I> {
    fn set(&self, to: &mut T, given: Given<'_>) -> Result<(), Problem> {
        let value = given.text().and_then(self.parse).ok_or_else(|| given.refuse(self.expected))?;
        (self.set)(to, value);
        Ok(())
    }

    fn accepted(&self) -> String {
        self.expected.to_owned()
    }

    fn placeholder(&self) -> &'static str {
        self.placeholder
    }

    #[cfg(test)]
    fn file_type(&self) -> FileType {
        FileType::Text
    }
}

/// A list of texts, each with the same form.
pub(in crate::config) struct List<T, I> {
    pub(in crate::config) placeholder: &'static str,
    /// One of them.
    pub(in crate::config) expected: &'static str,
    pub(in crate::config) parse: fn(&str) -> Option<I>,
    pub(in crate::config) set: fn(&mut T, Vec<I>),
}

impl<T, I> Value<T> for List<T, I> {
    fn set(&self, to: &mut T, given: Given<'_>) -> Result<(), Problem> {
        let items = given.list().ok_or_else(|| given.refuse(&Value::<T>::accepted(self)))?;
        let parse =
            |item: Given<'_>| item.text().and_then(self.parse).ok_or_else(|| item.refuse(self.expected));
        (self.set)(to, items.map(parse).collect::<Result<_, _>>()?);
        Ok(())
    }

    fn accepted(&self) -> String {
        format!("a list, each item {}", self.expected)
    }

    fn placeholder(&self) -> &'static str {
        self.placeholder
    }

    fn arity(&self) -> Arity {
        Arity::List
    }

    #[cfg(test)]
    fn file_type(&self) -> FileType {
        FileType::Texts
    }
}

/// One of a few words.
pub(in crate::config) struct OneOf<T, C: 'static> {
    pub(in crate::config) placeholder: &'static str,
    pub(in crate::config) choices: &'static [(&'static str, C)],
    pub(in crate::config) set: fn(&mut T, C),
}

impl<T, C: Copy> Value<T> for OneOf<T, C> {
    fn set(&self, to: &mut T, given: Given<'_>) -> Result<(), Problem> {
        (self.set)(to, chosen(self.choices, given, &words(self.choices, "or"))?);
        Ok(())
    }

    fn accepted(&self) -> String {
        words(self.choices, "or")
    }

    fn placeholder(&self) -> &'static str {
        self.placeholder
    }

    #[cfg(test)]
    fn file_type(&self) -> FileType {
        FileType::Word { words: self.choices.iter().map(|(word, _)| *word).collect() }
    }
}

/// A list of some of a few words.
pub(in crate::config) struct SomeOf<T, C: 'static> {
    pub(in crate::config) placeholder: &'static str,
    pub(in crate::config) choices: &'static [(&'static str, C)],
    pub(in crate::config) set: fn(&mut T, Vec<C>),
}

impl<T, C: Copy> Value<T> for SomeOf<T, C> {
    fn set(&self, to: &mut T, given: Given<'_>) -> Result<(), Problem> {
        let items = given.list().ok_or_else(|| given.refuse(&Value::<T>::accepted(self)))?;
        let item = |item| chosen(self.choices, item, &words(self.choices, "or"));
        (self.set)(to, items.map(item).collect::<Result<_, _>>()?);
        Ok(())
    }

    fn accepted(&self) -> String {
        format!("a list of {}, or an empty one", words(self.choices, "and"))
    }

    fn placeholder(&self) -> &'static str {
        self.placeholder
    }

    fn arity(&self) -> Arity {
        Arity::List
    }

    #[cfg(test)]
    fn file_type(&self) -> FileType {
        FileType::Words { words: self.choices.iter().map(|(word, _)| *word).collect() }
    }
}

fn chosen<C: Copy>(choices: &[(&'static str, C)], given: Given<'_>, expected: &str) -> Result<C, Problem> {
    let text = given.text().ok_or_else(|| given.refuse(expected))?;
    let found = choices.iter().find(|(word, _)| *word == text);
    let near = || nearest(text, choices.iter().map(|(word, _)| *word));
    let refused = || given.refuse(&format!("{expected}; did you mean \"{}\"?", near()));
    found.map(|(_, choice)| *choice).ok_or_else(refused)
}

/// The words, quoted: `"a", "b" or "c"`.
fn words<C>(choices: &[(&'static str, C)], conjunction: &str) -> String {
    let quoted: Vec<String> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} {conjunction} {last}", rest.join(", ")),
        None => String::new(),
    }
}
