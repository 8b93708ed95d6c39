//! The log as JSON: one object a line, with the fields of the event beside `time`, `level`, `target` and
//! `message`. tracing-subscriber's own form shows an error without its causes, and leaves characters in it
//! that act on a terminal.

use std::fmt;

use serde_json::{Map, Value};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::fields::EventFields;
use crate::escape;

/// Writes each event as an object.
pub(super) struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let EventFields { message, others } = EventFields::of(event);
        let mut object: Map<String, Value> =
            others.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let metadata = event.metadata();
        for (name, value) in [
            ("time", jiff::Timestamp::now().to_string()),
            ("level", metadata.level().as_str().to_lowercase()),
            ("target", metadata.target().to_owned()),
            ("message", message),
        ] {
            object.insert(name.to_owned(), value.into());
        }
        writeln!(writer, "{}", escape::json(Value::Object(object).to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::fields::tests::{MemoryLog, write_an_event};

    #[test]
    fn an_event_is_one_line_of_json_with_its_fields_and_nothing_that_acts_on_a_terminal() {
        let log = MemoryLog::default();
        let writer = log.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
        write_an_event(layer.event_format(JsonLines));
        let text = log.text();
        assert_eq!(text.lines().count(), 1, "{text:?}");
        assert!(!text.trim_end().contains(escape::acts), "{text:?}");
        let line: Value = serde_json::from_str(&text).expect("JSON");
        let bad = "\u{1b}[31mX\n2026-01-01 forged\r\0\u{9b}\u{202e}";
        assert_eq!(
            (&line["level"], &line["number"], &line["absent"]),
            (&"warn".into(), &7.into(), &Value::Null)
        );
        assert_eq!((&line["plain"], &line["error"]), (&bad.into(), &bad.into()));
        assert_eq!(line["message"], format!("told: {bad}"));
        let time = line["time"].as_str().expect("a text").parse::<jiff::Timestamp>();
        assert!(time.is_ok() && line["target"].as_str().is_some_and(|target| target.starts_with("ondine::")));
    }
}
