//! Values as they are written, in the file and as flags: addresses, durations, bytes, numbers. An error says how to write one.

use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::{Deserializer, Error, Unexpected, Visitor};

const ADDRESS: &str = "an address and a port, such as \"127.0.0.1:8080\" or \"[::]:8080\"";
const DURATION: &str = "a duration, such as \"20s\" or \"24h\"";
const BYTES: &str = "a number of bytes, such as 1048576, \"512MiB\" or \"100G\"";
const SECONDS: &str = "a number of seconds, or a duration such as \"10h\"";
const NUMBER: &str = "a whole number";

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("write {ADDRESS}"))
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write {DURATION}"))
}

/// Bytes, with or without a unit: those of `G` and `GB` are 10^9, of `GiB` 2^30.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    text.parse::<ByteSize>().map(|size| size.as_u64()).map_err(|_| format!("write {BYTES}"))
}

/// Whole seconds.
pub(super) fn seconds(text: &str) -> Result<u64, String> {
    let number = text.parse::<u64>().ok();
    let whole = || humantime::parse_duration(text).ok().map(|duration| duration.as_secs());
    number.or_else(whole).ok_or_else(|| format!("write {SECONDS}"))
}

pub(super) fn written_address<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    from.deserialize_any(Written { expecting: ADDRESS, text: Some(address), number: None }).map(Some)
}

pub(super) fn written_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    from.deserialize_any(Written { expecting: DURATION, text: Some(duration), number: None }).map(Some)
}

pub(super) fn written_bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let number = |number: i64| number.try_into().ok();
    from.deserialize_any(Written { expecting: BYTES, text: Some(bytes), number: Some(number) }).map(Some)
}

pub(super) fn written_seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let number = |number: i64| number.try_into().ok();
    from.deserialize_any(Written { expecting: SECONDS, text: Some(seconds), number: Some(number) }).map(Some)
}

pub(super) fn written_number<'de, D: Deserializer<'de>, T: TryFrom<i64>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    let number = |number: i64| number.try_into().ok();
    from.deserialize_any(Written { expecting: NUMBER, text: None, number: Some(number) }).map(Some)
}

type Parse<T> = fn(&str) -> Result<T, String>;

/// A value that is written as a text, as a number, or as either.
struct Written<T> {
    expecting: &'static str,
    text: Option<Parse<T>>,
    number: Option<fn(i64) -> Option<T>>,
}

impl<T> Visitor<'_> for Written<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.expecting)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        match self.text {
            Some(parse) => parse(text).map_err(E::custom),
            None => Err(E::invalid_type(Unexpected::Str(text), &self)),
        }
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        match self.number {
            Some(convert) => {
                convert(number).ok_or_else(|| E::custom(format_args!("{number} is out of bounds")))
            }
            None => Err(E::invalid_type(Unexpected::Signed(number), &self)),
        }
    }
}

/// The names of a table's keys.
pub(super) fn fields<'de, T: serde::Deserialize<'de>>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // Always an error: nothing is given.
    let _ = T::deserialize(Fields { names: &mut names, lifetime: PhantomData });
    names
}

/// Takes the names that a struct asks for, and gives it nothing.
struct Fields<'a, 'de> {
    names: &'a mut &'static [&'static str],
    lifetime: PhantomData<&'de ()>,
}

impl<'de> Deserializer<'de> for Fields<'_, 'de> {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("nothing is given"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.names = fields;
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_with_the_units_that_people_use() {
        for (text, expected) in [
            ("1048576", 1 << 20),
            ("512MiB", 512 << 20),
            ("512 MiB", 512 << 20),
            ("100G", 100_000_000_000),
            ("100GB", 100_000_000_000),
            ("1.5GiB", 3 << 29),
            ("0", 0),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "much", "-1", "5 apples"] {
            assert!(bytes(text).is_err_and(|error| error.contains("512MiB")), "{text}");
        }
    }

    #[test]
    fn seconds_are_a_number_or_a_duration() {
        assert_eq!((seconds("90"), seconds("90s"), seconds("10h")), (Ok(90), Ok(90), Ok(36_000)));
        assert!(seconds("soon").is_err());
    }
}
