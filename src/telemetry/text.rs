//! The log for people. Each event is one line without control characters, whatever text of clients or
//! builders is in it.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

use crate::causes::with_causes;
use crate::escape::Escaping;

/// Writes the message and the fields of an event, each value escaped.
pub(super) struct TextFields;

impl<'writer> FormatFields<'writer> for TextFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut values = TextValues { to: Escaping::line(writer), is_first: true, written: Ok(()) };
        fields.record(&mut values);
        values.written
    }
}

struct TextValues<'writer> {
    to: Escaping<Writer<'writer>>,
    is_first: bool,
    written: fmt::Result,
}

impl Visit for TextValues<'_> {
    fn record_error(&mut self, field: &Field, error: &(dyn std::error::Error + 'static)) {
        self.record_str(field, &with_causes(error));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let space = if std::mem::take(&mut self.is_first) { "" } else { " " };
        let written = match field.name() {
            "message" => write!(self.to, "{space}{value:?}"),
            name => write!(self.to, "{space}{name}={value:?}"),
        };
        self.written = self.written.and(written);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::fields::tests::{MemoryLog, write_an_event};

    #[test]
    fn an_event_is_one_line_whatever_it_tells_of() {
        let log = MemoryLog::default();
        let writer = log.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
        write_an_event(layer.with_ansi(false).fmt_fields(TextFields));
        let text = log.text();
        assert_eq!(text.lines().count(), 1, "{text:?}");
        let acting = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!text.contains(acting) && text.ends_with('\n'), "{text:?}");
        assert_eq!(text.matches("\\nnot").count(), 0);
        assert_eq!(text.matches("X\\n2026-01-01 forged").count(), 5, "{text}");
        assert!(text.contains(" number=7"), "{text}");
    }
}
