//! Traces: spans of requests, builds and upstreams go to an OpenTelemetry collector, as OTLP over HTTP. They
//! are sent together every few seconds by a thread of their own; where they come faster than they can be
//! sent, some are dropped, and nothing waits for them. Headers, resource attributes and sampling are those of
//! OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_HEADERS, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, SpanData};
use tracing::Subscriber;
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::registry::LookupSpan;

use super::Error;

/// Name of the service, unless OTEL_SERVICE_NAME has another.
const SERVICE: &str = "ondine";
/// Path of traces at a collector (<https://opentelemetry.io/docs/specs/otlp/#otlphttp-request>).
const PATH: &str = "/v1/traces";
/// Time limit of one request to the collector.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that spans are given at the end of the program.
const LAST_SPANS_FOR: Duration = Duration::from_secs(3);

/// The export of spans; those that wait are sent on drop.
#[derive(Debug)]
pub(super) struct TraceExport(SdkTracerProvider);

impl Drop for TraceExport {
    fn drop(&mut self) {
        // What is lost then is nobody's loss but the trace's.
        let _ = self.0.shutdown_with_timeout(LAST_SPANS_FOR);
    }
}

/// A layer that records spans, and the export of what it records.
pub(super) fn export<S>(endpoint: &str) -> Result<(OpenTelemetryLayer<S, SdkTracer>, TraceExport), Error>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let failed = |reason: String| Error::Traces { endpoint: endpoint.to_owned(), reason };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client().map_err(failed)?)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{endpoint}{PATH}"))
        .with_timeout(REQUEST_TIMEOUT)
        .build()
        .map_err(|error| failed(error.to_string()))?;
    let collector = Collector { exporter, endpoint: endpoint.to_owned(), is_failing: AtomicBool::new(false) };
    let mut resource =
        Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name(SERVICE);
    }
    let provider =
        SdkTracerProvider::builder().with_batch_exporter(collector).with_resource(resource.build()).build();
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(SERVICE))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false);
    Ok((layer, TraceExport(provider)))
}

/// The HTTP client of the exporter's thread. It is made on a thread of its own, since it has a runtime.
fn client() -> Result<reqwest::blocking::Client, String> {
    // An error means that there is one already, which is as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let make = || reqwest::blocking::Client::builder().timeout(REQUEST_TIMEOUT).build();
    let made = std::thread::spawn(make).join().map_err(|_| "no HTTP client can be made".to_owned())?;
    made.map_err(|error| crate::causes::with_causes(&error))
}

/// The exporter to a collector. Logs when that stops taking spans, and when it does again.
#[derive(Debug)]
struct Collector {
    exporter: SpanExporter,
    endpoint: String,
    is_failing: AtomicBool,
}

impl opentelemetry_sdk::trace::SpanExporter for Collector {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let sent = self.exporter.export(batch).await;
        let was_failing = self.is_failing.swap(sent.is_err(), Ordering::Relaxed);
        let endpoint = &self.endpoint;
        match &sent {
            Err(error) if !was_failing => {
                tracing::warn!(endpoint, %error, "the collector takes no spans; they are dropped until it does");
            }
            Ok(()) if was_failing => tracing::info!(endpoint, "the collector takes spans again"),
            _ => {}
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
