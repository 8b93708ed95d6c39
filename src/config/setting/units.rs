//! Durations and bytes with their units, as people write them and as they are shown.

use std::time::Duration;

use bytesize::ByteSize;

/// Example values, the same wherever bytes are expected.
pub(super) const BYTES: &str = "a number of bytes (1048576, 512MiB, 100G)";
/// Example values, the same wherever a duration is expected.
pub(super) const DURATION: &str = "a duration (20s, 5m, 24h)";

/// Bytes, with or without a unit: those of `G` and `GB` are 10^9, of `GiB` 2^30.
///
/// # Errors
/// The text is no number of bytes; the error says how to write one.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    text.parse::<ByteSize>().map(|size| size.as_u64()).map_err(|_| format!("expected {BYTES}"))
}

/// A duration with its unit.
pub(super) fn duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok()
}

/// A duration with its unit, for a flag of a command.
///
/// # Errors
/// The text is no duration; the error says how to write one.
pub(crate) fn lifetime(text: &str) -> Result<Duration, String> {
    duration(text).ok_or_else(|| "expected a duration (12h, 90d)".to_owned())
}

/// The duration in the largest unit that divides it: `250s`, `1h`.
pub(super) fn show_duration(duration: Duration) -> String {
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
    let millis = duration.as_millis();
    let fitting = units.into_iter().find(|(_, size)| millis > 0 && millis.is_multiple_of(*size));
    let (unit, size) = fitting.unwrap_or(("s", 1_000));
    format!("{}{unit}", millis / size)
}

/// The bytes in the largest unit that divides them: `256MiB`.
pub(super) fn show_bytes(bytes: u64) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let fitting = units.into_iter().find(|(_, size)| bytes > 0 && bytes.is_multiple_of(*size));
    fitting.map_or_else(|| bytes.to_string(), |(unit, size)| format!("{}{unit}", bytes / size))
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
            ("4K", 4_000),
            ("4KiB", 4_096),
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
    fn what_is_shown_can_be_written() {
        for text in ["0s", "100ms", "250s", "1m", "1h", "30d"] {
            assert_eq!(show_duration(duration(text).expect("a duration")), text);
        }
        for text in ["0", "1KiB", "256MiB", "4GiB", "1000"] {
            assert_eq!(show_bytes(bytes(text).expect("bytes")), text);
        }
    }
}
