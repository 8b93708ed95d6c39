//! The data of an event: its message and its fields, with errors and their causes.

use std::fmt;

use serde_json::Value;
use tracing::Event;
use tracing::field::{Field, Visit};

use crate::causes::with_causes;

/// Name of the field with the message.
const MESSAGE: &str = "message";

/// Message and fields of an event.
#[derive(Debug, Default)]
pub(super) struct EventFields {
    pub(super) message: String,
    /// In the order in which they were written.
    pub(super) others: Vec<(&'static str, Value)>,
}

impl EventFields {
    pub(super) fn of(event: &Event<'_>) -> Self {
        let mut fields = Self::default();
        event.record(&mut fields);
        fields
    }

    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            (MESSAGE, Value::String(message)) => self.message = message,
            (name, value) => self.others.push((name, value)),
        }
    }
}

impl Visit for EventFields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        match u64::try_from(value) {
            Ok(value) => self.record_u64(field, value),
            Err(_) => self.record_debug(field, &value),
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }

    fn record_error(&mut self, field: &Field, error: &(dyn std::error::Error + 'static)) {
        self.add(field, with_causes(error).into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}").into());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::SubscriberExt;

    /// A log in memory; clones share it.
    #[derive(Clone, Default)]
    pub(in crate::telemetry) struct MemoryLog(Arc<Mutex<Vec<u8>>>);

    impl io::Write for MemoryLog {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nothing panics").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MemoryLog {
        pub(in crate::telemetry) fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("nothing panics").clone()).expect("UTF-8")
        }
    }

    /// Writes an event with fields of every kind, and text that acts on a terminal in each.
    pub(in crate::telemetry) fn write_an_event(
        layer: impl Layer<tracing_subscriber::Registry> + Send + Sync + 'static,
    ) {
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let bad = "\u{1b}[31mX\n2026-01-01 forged\r\0\u{9b}\u{202e}";
            let error = io::Error::other(bad);
            let error = &error as &dyn std::error::Error;
            tracing::warn!(display = %bad, debug = ?bad, plain = bad, error, number = 7, absent = None::<u64>, "told: {bad}");
        });
    }
}
