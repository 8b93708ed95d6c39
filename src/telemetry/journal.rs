//! The log as entries of systemd's journal, with a field for each field of an event: `ONDINE_DRV`,
//! `ONDINE_REQUEST`, … The protocol is systemd's (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL>), a datagram
//! for each entry. tracing-journald would show errors without their causes.

use std::fmt::Write;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use super::Error;
use super::fields::EventFields;
use crate::escape::Line;

/// Socket of the journal.
const SOCKET: &str = "/run/systemd/journal/socket";
/// Name of the program in the journal.
const IDENTIFIER: &str = "ondine";
/// Prefix of fields, which keeps them apart from those of the journal itself.
const PREFIX: &str = "ONDINE_";
/// Characters of a field's name that the journal takes.
const NAME_CHARS_MAX: usize = 64;
/// Bytes of a value at most: all values of an entry are to fit a datagram.
const VALUE_BYTES_MAX: usize = 16 * 1024;

/// Sends events to the journal.
#[derive(Debug)]
pub(super) struct SystemJournal {
    socket: UnixDatagram,
    place: PathBuf,
}

impl SystemJournal {
    /// The journal of this machine.
    pub(super) fn open() -> Result<Self, Error> {
        let opened = Self::at(Path::new(SOCKET));
        opened.map_err(|source| Error::SystemJournal { socket: SOCKET.to_owned(), source })
    }

    fn at(place: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        // An empty datagram is no entry, and finds out if anyone takes one.
        socket.send_to(&[], place)?;
        Ok(Self { socket, place: place.to_owned() })
    }
}

impl<S: Subscriber> Layer<S> for SystemJournal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let entry = entry(event);
        // To its place, and not over a connection: the journal may have been restarted.
        if let Err(error) = self.socket.send_to(&entry.bytes, &self.place) {
            // Not by eprintln, which panics where that cannot be written, either.
            let line = format!("{} (not in the journal: {error})\n", entry.message);
            let _ = io::Write::write_all(&mut io::stderr(), line.as_bytes());
        }
    }
}

/// An entry of the journal.
struct JournalEntry {
    /// As in the log for people.
    message: String,
    bytes: Vec<u8>,
}

fn entry(event: &Event<'_>) -> JournalEntry {
    let EventFields { mut message, others } = EventFields::of(event);
    let others: Vec<(&str, String)> = others.into_iter().map(|(name, value)| (name, text(value))).collect();
    for (name, value) in &others {
        // Writing to a string does not fail.
        let _ = write!(message, " {name}={value}");
    }
    let message = Line(cut(&message)).to_string();
    let metadata = event.metadata();
    let priority = match *metadata.level() {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    };
    let mut bytes = Vec::with_capacity(512);
    for (name, value) in [
        ("MESSAGE", &*message),
        ("PRIORITY", priority),
        ("SYSLOG_IDENTIFIER", IDENTIFIER),
        ("TARGET", metadata.target()),
    ] {
        add(&mut bytes, name, value);
    }
    for (name, value) in &others {
        add(&mut bytes, &field_name(name), cut(value));
    }
    JournalEntry { message, bytes }
}

/// Adds a field in the form that takes any bytes: name, newline, length, value, newline.
fn add(bytes: &mut Vec<u8>, name: &str, value: &str) {
    bytes.extend_from_slice(name.as_bytes());
    bytes.push(b'\n');
    bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
    bytes.extend_from_slice(value.as_bytes());
    bytes.push(b'\n');
}

/// Capital letters, digits and underscores.
fn field_name(name: &str) -> String {
    let name = format!("{PREFIX}{name}").to_uppercase();
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(NAME_CHARS_MAX).collect()
}

fn text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// The beginning of a value.
fn cut(value: &str) -> &str {
    &value[..value.floor_char_boundary(VALUE_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::telemetry::fields::tests::write_an_event;

    /// Fields of an entry, read as the protocol says.
    fn fields(mut bytes: &[u8]) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (name, rest) = (&bytes[..end], &bytes[end + 1..]);
            let (length, rest) = rest.split_first_chunk::<8>().expect("a length");
            let length = usize::try_from(u64::from_le_bytes(*length)).expect("a short value");
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
            assert_eq!(rest[length], b'\n');
            fields.insert(text(name), text(&rest[..length]));
            bytes = &rest[length + 1..];
        }
        assert!(bytes.is_empty());
        fields
    }

    #[test]
    fn an_event_is_one_entry_with_a_field_for_each_of_its_fields() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("socket");
        assert!(SystemJournal::at(&place).is_err(), "there is no journal");
        let journal = UnixDatagram::bind(&place).expect("bound");
        write_an_event(SystemJournal::at(&place).expect("a journal"));
        let mut received = vec![0; 64 * 1024];
        assert_eq!(journal.recv(&mut received).expect("the trial"), 0);
        let length = journal.recv(&mut received).expect("the entry");
        let fields = fields(&received[..length]);
        let bad = "\u{1b}[31mX\n2026-01-01 forged\r\0\u{9b}\u{202e}";
        for (name, value) in [
            ("PRIORITY", "4"),
            ("SYSLOG_IDENTIFIER", "ondine"),
            ("ONDINE_NUMBER", "7"),
            ("ONDINE_PLAIN", bad),
            ("ONDINE_ERROR", bad),
        ] {
            assert_eq!(fields.get(name).map(String::as_str), Some(value), "{name}: {fields:?}");
        }
        let message = &fields["MESSAGE"];
        let acting = |c: char| c.is_control() || c == '\u{202e}';
        assert!(!message.contains(acting) && message.contains(" number=7"), "{message:?}");
        assert!(!fields.contains_key("ONDINE_ABSENT"));
    }

    #[test]
    fn names_are_those_that_the_journal_takes_and_long_values_are_cut() {
        assert_eq!(field_name("otel.status-code"), "ONDINE_OTEL_STATUS_CODE");
        assert_eq!(field_name(&"x".repeat(100)).len(), NAME_CHARS_MAX);
        assert_eq!(cut(&"ü".repeat(VALUE_BYTES_MAX)).len(), VALUE_BYTES_MAX);
        assert_eq!(cut("short"), "short");
    }
}
