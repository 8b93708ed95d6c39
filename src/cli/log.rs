//! The log on stderr. Each event is one line without control characters, whatever text of clients or builders
//! is in it.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::causes::with_causes;
use crate::escape::Escaping;

/// Starts the log on stderr. ONDINE_LOG filters it in the syntax of [`Targets`]: a level, or levels for parts
/// of the program.
pub(super) fn to_stderr() {
    let wanted = std::env::var("ONDINE_LOG").ok().and_then(|wanted| wanted.parse::<Targets>().ok());
    let wanted = wanted.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .fmt_fields(Fields)
        .finish()
        .with(wanted)
        .init();
}

/// Writes the message and the fields of an event, each value escaped.
struct Fields;

impl<'writer> FormatFields<'writer> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut values = Values { to: Escaping::line(writer), is_first: true, written: Ok(()) };
        fields.record(&mut values);
        values.written
    }
}

struct Values<'writer> {
    to: Escaping<Writer<'writer>>,
    is_first: bool,
    written: fmt::Result,
}

impl Visit for Values<'_> {
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
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nothing panics").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_line_whatever_it_tells_of() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .fmt_fields(Fields)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let bad = "\u{1b}[31mX\n2026-01-01 forged\r\0\u{9b}\u{202e}";
            let error = io::Error::other(bad);
            let error = &error as &dyn std::error::Error;
            tracing::warn!(display = %bad, debug = ?bad, plain = bad, error, number = 7, "told: {bad}");
        });
        let text = String::from_utf8(log.0.lock().expect("nothing panics").clone()).expect("UTF-8");
        assert_eq!(text.lines().count(), 1, "{text:?}");
        let acting = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!text.contains(acting) && text.ends_with('\n'), "{text:?}");
        assert_eq!(text.matches("\\nnot").count(), 0);
        assert_eq!(text.matches("X\\n2026-01-01 forged").count(), 5, "{text}");
        assert!(text.contains(" number=7"), "{text}");
    }
}
