//! Numbers, times and names as pages show them.

use std::fmt::{self, Display};
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::super::api::unix_seconds;

/// Bytes, such as `12.3 MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ByteCount(pub(super) u64);

impl Display for ByteCount {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", ByteSize::b(self.0).display().iec())
    }
}

/// A number with commas between thousands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count(pub(super) u64);

impl Display for Count {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                formatter.write_str(",")?;
            }
            write!(formatter, "{digit}")?;
        }
        Ok(())
    }
}

/// Seconds, such as `3 min 20 s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span(pub(super) u64);

impl Display for Span {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(seconds) = *self;
        let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
        match (days, hours, minutes) {
            (0, 0, 0) => write!(formatter, "{seconds} s"),
            (0, 0, _) if seconds.is_multiple_of(60) => write!(formatter, "{minutes} min"),
            (0, 0, 0..10) => write!(formatter, "{minutes} min {} s", seconds % 60),
            (0, 0, _) => write!(formatter, "{minutes} min"),
            (0, _, 0) => write!(formatter, "{hours} h"),
            (0, ..) => write!(formatter, "{hours} h {minutes} min"),
            (1, 0, _) => write!(formatter, "1 day"),
            (0..3, ..) => write!(formatter, "{days} d {hours} h"),
            _ => write!(formatter, "{days} days"),
        }
    }
}

/// Seconds with a decimal where there are few.
pub(super) fn short_seconds(seconds: f64) -> String {
    match seconds {
        ..0.1 => "under 0.1 s".to_owned(),
        ..10.0 => format!("{seconds:.1} s"),
        _ => Span(seconds.round() as u64).to_string(),
    }
}

/// A moment, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageTime(pub(super) u64);

impl PageTime {
    /// For programs, such as `2026-11-30T12:00:00Z`.
    pub(super) fn iso(&self) -> String {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(self.0);
        humantime::format_rfc3339_seconds(time).to_string()
    }

    /// Distance from now.
    pub(super) fn ago(&self) -> String {
        let now = unix_seconds(SystemTime::now());
        match (now.checked_sub(self.0), self.0.saturating_sub(now)) {
            (Some(0..5), _) => "just now".to_owned(),
            (Some(past), _) => format!("{} ago", Span(past)),
            (None, ahead) => format!("in {}", Span(ahead)),
        }
    }
}

impl PageTime {
    /// Time until then; nothing for what is over.
    pub(super) fn left(&self) -> Span {
        Span(self.0.saturating_sub(unix_seconds(SystemTime::now())))
    }
}

/// A store path or derivation by its base name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PathLabel {
    pub(super) base: String,
}

impl PathLabel {
    pub(super) fn new(base: impl Into<String>) -> Self {
        Self { base: base.into() }
    }

    /// The hash part.
    pub(super) fn hash(&self) -> &str {
        self.base.split_once('-').map_or("", |(hash, _)| hash)
    }

    /// The name, without the hash and without `.drv`.
    pub(super) fn name(&self) -> &str {
        let name = self.base.split_once('-').map_or(&*self.base, |(_, name)| name);
        name.strip_suffix(".drv").unwrap_or(name)
    }

    /// The same for an address.
    pub(super) fn address(&self) -> String {
        encoded(&self.base)
    }
}

/// Bytes of an address that are escaped: all but those that need it nowhere, and that no shell looks at.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A text as a part of an address.
pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

/// The fields of a form, in which a plus stands for a space, as any query has them.
pub(super) fn form_encoded(text: &str) -> String {
    text.replace('+', "%20")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_short_and_whole() {
        assert_eq!(
            [0, 999, 12_000, 1_234_567].map(|n| Count(n).to_string()),
            ["0", "999", "12,000", "1,234,567"]
        );
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (200, "3 min 20 s"),
            (1250, "20 min"),
            (7200, "2 h"),
            (7260, "2 h 1 min"),
            (90_000, "1 d 1 h"),
            (864_000, "10 days"),
        ] {
            assert_eq!(Span(seconds).to_string(), text);
        }
        assert_eq!(PageTime(0).iso(), "1970-01-01T00:00:00Z");
        assert_eq!(ByteCount(3 * 1024 * 1024).to_string(), "3.0 MiB");
    }

    #[test]
    fn a_name_is_told_from_its_hash_and_ending() {
        let label = PathLabel::new("0123456789abcdfghijklmnpqrsvwxyz-a-1.drv");
        assert_eq!((label.hash(), label.name()), ("0123456789abcdfghijklmnpqrsvwxyz", "a-1"));
        assert_eq!(encoded("a.b-1?b/c'\"+"), "a.b-1%3Fb%2Fc%27%22%2B");
    }
}
