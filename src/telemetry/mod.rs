//! Reports of the server about its work: the log, in one of several forms, and traces. Numbers are in the
//! metrics of each component. A line of the log has no control characters, whatever text of clients or
//! builders is in it.

mod fields;
mod journal;
mod json;
mod text;
#[cfg(feature = "otel")]
mod traces;

use std::io;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

use journal::SystemJournal;
use json::JsonLines;
use text::TextFields;

/// Target of spans, which are in traces alone: a line of the log has the same data in its own fields.
pub const TRACE: &str = "ondine::trace";
/// Variable that filters the log.
const FILTER: &str = "ONDINE_LOG";
/// Targets of this program, whose log lines belong to the span that they are written in.
#[cfg(feature = "otel")]
const PROGRAM: &str = "ondine";

/// Settings of the log and of traces.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Form of the log.
    pub log_format: LogFormat,
    /// Collector of traces.
    pub otlp_endpoint: Option<OtlpEndpoint>,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people on standard error.
    #[default]
    Text,
    /// JSON objects on standard error, one a line.
    Json,
    /// Entries of systemd's journal, with fields of their own.
    Journald,
}

/// Address of an OpenTelemetry collector that takes OTLP over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpEndpoint(String);

impl OtlpEndpoint {
    /// Values for the setting, for its documentation.
    pub const EXPECTED: &str = "http://HOST… or https://HOST…, without a password or a query";

    /// Reads the address, without the path of a signal.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"))?;
        let is_plain = rest.chars().all(|c| c.is_ascii_graphic() && !"@?#\"<>\\^`{|}".contains(c));
        let has_host = !rest.is_empty() && !rest.starts_with(['/', ':']);
        (is_plain && has_host).then(|| Self(text.trim_end_matches('/').to_owned()))
    }
}

/// Why the server cannot report as its settings want it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This build has no traces.
    #[error(
        "this program was built without traces, so otlp-endpoint = {0} cannot be used; build it with the feature `otel`"
    )]
    NoTraces(String),
    /// There is no journal.
    #[error(
        "log-format = journald cannot be used, since {socket} takes no entry: set text or json, or run systemd's journal"
    )]
    SystemJournal {
        /// Socket of the journal.
        socket: String,
        /// The system's error.
        source: io::Error,
    },
    /// The exporter of traces cannot be made.
    #[error("traces cannot be sent to otlp-endpoint = {endpoint}: {reason}")]
    Traces {
        /// The address.
        endpoint: String,
        /// The defect.
        reason: String,
    },
}

/// Reports that go on; spans that wait are sent on drop.
#[derive(Debug, Default)]
pub struct Telemetry {
    #[cfg(feature = "otel")]
    _traces: Option<traces::TraceExport>,
}

/// Tries if the settings can be used, and reports nothing.
///
/// # Errors
/// They cannot.
pub fn check(settings: &Settings) -> Result<(), Error> {
    if settings.log_format == LogFormat::Journald {
        SystemJournal::open()?;
    }
    #[cfg(not(feature = "otel"))]
    if let Some(OtlpEndpoint(endpoint)) = &settings.otlp_endpoint {
        return Err(Error::NoTraces(endpoint.clone()));
    }
    Ok(())
}

/// Starts the log on stderr in the form for people, for commands.
pub fn start_text_log() {
    tracing_subscriber::registry().with(text_log().with_filter(wanted())).init();
}

/// Starts the log and the traces of a server. ONDINE_LOG filters the log in the syntax of [`Targets`]: a
/// level, or levels for parts of the program.
///
/// # Errors
/// The settings cannot be used.
pub fn start(settings: &Settings) -> Result<Telemetry, Error> {
    check(settings)?;
    let log = match settings.log_format {
        LogFormat::Text => text_log(),
        LogFormat::Json => {
            let lines = fmt::layer().with_writer(io::stderr).event_format(JsonLines);
            lines.log_internal_errors(false).boxed()
        }
        LogFormat::Journald => SystemJournal::open()?.boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(log.with_filter(wanted()));
    #[cfg(feature = "otel")]
    if let Some(OtlpEndpoint(endpoint)) = &settings.otlp_endpoint {
        let (layer, export) = traces::export(endpoint)?;
        let lines_and_spans = Targets::new().with_target(PROGRAM, LevelFilter::INFO);
        subscriber.with(layer.with_filter(lines_and_spans)).init();
        return Ok(Telemetry { _traces: Some(export) });
    }
    subscriber.init();
    Ok(Telemetry::default())
}

fn text_log() -> Box<dyn Layer<Registry> + Send + Sync> {
    let is_terminal = io::IsTerminal::is_terminal(&io::stderr());
    let lines = fmt::layer().with_ansi(is_terminal).with_writer(io::stderr).fmt_fields(TextFields);
    // Errors of the log would be written to where it cannot be written, with a panic.
    lines.log_internal_errors(false).boxed()
}

/// The events of the log: spans are not among them.
fn wanted() -> Targets {
    let wanted = std::env::var(FILTER).ok().and_then(|wanted| wanted.parse::<Targets>().ok());
    let wanted = wanted.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    wanted.with_target(TRACE, LevelFilter::OFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_has_an_address_without_secrets_and_paths_of_signals_are_added_to_it() {
        let read = |text: &str| OtlpEndpoint::parse(text).map(|OtlpEndpoint(text)| text);
        for good in ["http://127.0.0.1:4318", "https://otel.example.org/tenant/a", "http://[::1]:4318"] {
            assert_eq!(read(good).as_deref(), Some(good));
        }
        assert_eq!(read("http://collector:4318/").as_deref(), Some("http://collector:4318"));
        for bad in
            ["", "collector:4318", "grpc://collector", "http://", "http:///v1", "http://a b", "https://u:p@h"]
        {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[cfg(not(feature = "otel"))]
    #[test]
    fn a_build_without_traces_refuses_a_collector_by_the_names_of_the_setting_and_the_feature() {
        let settings =
            Settings { otlp_endpoint: OtlpEndpoint::parse("http://c:4318"), ..Settings::default() };
        let error = check(&settings).expect_err("no traces").to_string();
        assert!(error.contains("otlp-endpoint = http://c:4318") && error.contains("`otel`"), "{error}");
    }
}
