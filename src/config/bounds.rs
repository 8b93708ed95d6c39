//! What a value may be: an error names the setting, its value, and what is needed instead.

use std::time::Duration;

use super::Error;

/// The error for a value that is not as it must be.
pub(super) fn wrong(setting: &'static str, value: impl ToString, expected: &'static str) -> Error {
    Error::Bounds { setting, value: value.to_string(), expected }
}

/// An error that names the setting, unless its value is as it must be.
pub(super) fn check(
    setting: &'static str,
    value: impl ToString,
    fits: bool,
    expected: &'static str,
) -> Result<(), Error> {
    if fits { Ok(()) } else { Err(wrong(setting, value, expected)) }
}

pub(super) fn within(
    setting: &'static str,
    value: Duration,
    min: Duration,
    max: Duration,
    expected: &'static str,
) -> Result<(), Error> {
    check(setting, humantime::format_duration(value), (min..=max).contains(&value), expected)
}

pub(super) fn within_numbers(
    setting: &'static str,
    value: i64,
    min: i64,
    max: i64,
    expected: &'static str,
) -> Result<(), Error> {
    check(setting, value, (min..=max).contains(&value), expected)
}
