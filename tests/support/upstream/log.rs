//! Log of a server of another cache: of each request, its head as it came, when it came, and what was sent.

use std::time::Instant;

/// One request.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The request line and the headers, as they came.
    pub head: String,
    /// Moment at which the head was complete.
    pub at: Instant,
    /// Moment at which the first byte of the body was handed to the network.
    pub first_byte: Option<Instant>,
    /// Bytes of the body that were handed to the network.
    pub sent: u64,
    /// True once the answer is over, well or not.
    pub over: bool,
}

impl Seen {
    pub(super) fn new(head: String) -> Seen {
        Seen { head, at: Instant::now(), first_byte: None, sent: 0, over: false }
    }

    /// `GET`, `HEAD`.
    pub fn method(&self) -> &str {
        self.head.split(' ').next().unwrap_or_default()
    }

    /// The address asked for, such as `/nar/….nar.xz`.
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        let mut values = lines.filter(|(known, _)| known.eq_ignore_ascii_case(name));
        values.next().map(|(_, value)| value.trim())
    }

    /// The first byte that its Range asks for: 0 when it asks for all.
    pub fn starts_at(&self) -> u64 {
        let range = self.header("range").and_then(|range| range.strip_prefix("bytes="));
        range.and_then(|range| range.split('-').next()?.parse().ok()).unwrap_or(0)
    }
}
