//! Traces: spans of requests, builds and upstreams, as a collector receives them by OTLP over HTTP, with the
//! ids that the log and the API have. The collector is a small one, which reads what the protocol says
//! (opentelemetry-proto's trace.proto) and keeps it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::addresses::{base_name, field, narinfo_address};
use crate::support::{
    Cache, Compression, Derivation, NixStore, Release, Sample, Upstream, derivations, wait_until,
};

/// Time limit of what takes no time, on a machine that does much else.
const SOON: Duration = Duration::from_secs(60);
/// Milliseconds between two exports, by OpenTelemetry's own variable.
const EXPORT_EVERY: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "100");

/// A span as it was received.
#[derive(Clone, Debug, Default)]
struct ReceivedSpan {
    name: String,
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    attributes: BTreeMap<String, String>,
    /// Code of the status: 2 is an error.
    status: u64,
}

/// A collector that keeps all spans.
struct Collector {
    url: String,
    spans: Arc<Mutex<Vec<ReceivedSpan>>>,
    /// Services that sent spans.
    services: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    fn start() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (spans, services) = (Arc::default(), Arc::default());
        let collector = Collector { url, spans: Arc::clone(&spans), services: Arc::clone(&services) };
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (spans, services) = (Arc::clone(&spans), Arc::clone(&services));
                std::thread::spawn(move || serve(client, &spans, &services));
            }
        });
        collector
    }

    fn named(&self, name: &str) -> Vec<ReceivedSpan> {
        let spans = self.spans.lock().expect("nothing panics");
        spans.iter().filter(|span| span.name == name).cloned().collect()
    }

    /// The span of this name that has this attribute.
    #[track_caller]
    fn wait_for(&self, name: &str, attribute: &str, value: &str) -> ReceivedSpan {
        let found = || {
            let has =
                |span: &ReceivedSpan| span.attributes.get(attribute).is_some_and(|found| found == value);
            self.named(name).into_iter().find(has)
        };
        wait_until(&format!("{name} with {attribute} = {value} is there"), SOON, || found().is_some());
        found().expect("it was there")
    }
}

/// Answers requests of a connection.
fn serve(client: TcpStream, spans: &Mutex<Vec<ReceivedSpan>>, services: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(client.try_clone().expect("another handle"));
    let mut client = client;
    loop {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or_default() == 0 {
                return;
            }
            if line == "\r\n" {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().expect("a length");
            }
            head += &line;
        }
        assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
        assert!(head.to_lowercase().contains("content-type: application/x-protobuf"), "{head}");
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("a body");
        read_request(&body, &mut spans.lock().expect("nothing panics"), services);
        let answer = "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n";
        if client.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// A field of a message.
enum WireValue<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message with their numbers (<https://protobuf.dev/programming-guides/encoding/>).
fn fields(mut bytes: &[u8]) -> Vec<(u64, WireValue<'_>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let (first, rest) = bytes.split_first().expect("a whole number");
            *bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return value;
            }
            shift += 7;
        }
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let taken = match key & 7 {
            0 => {
                fields.push((key >> 3, WireValue::Number(varint(&mut bytes))));
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)).expect("a short one"),
            5 => 4,
            other => panic!("no such wire type: {other}"),
        };
        let (value, rest) = bytes.split_at(taken);
        bytes = rest;
        fields.push((key >> 3, WireValue::Bytes(value)));
    }
    fields
}

/// The messages of one field.
fn messages(bytes: &[u8], number: u64) -> impl Iterator<Item = &[u8]> {
    fields(bytes).into_iter().filter_map(move |(at, value)| match value {
        WireValue::Bytes(bytes) if at == number => Some(bytes),
        _ => None,
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// `KeyValue` with an `AnyValue`.
fn attribute(bytes: &[u8]) -> (String, String) {
    let key = messages(bytes, 1).next().map(text).unwrap_or_default();
    let value = messages(bytes, 2).flat_map(fields).next();
    let value = match value {
        Some((_, WireValue::Bytes(bytes))) => text(bytes),
        Some((_, WireValue::Number(number))) => number.to_string(),
        None => String::new(),
    };
    (key, value)
}

/// `ExportTraceServiceRequest`: resources, in each its scopes, in each its spans.
fn read_request(bytes: &[u8], spans: &mut Vec<ReceivedSpan>, services: &Mutex<Vec<String>>) {
    for of_resource in messages(bytes, 1) {
        let attributes = messages(of_resource, 1).flat_map(|resource| messages(resource, 1)).map(attribute);
        let names = attributes.filter(|(name, _)| name == "service.name").map(|(_, value)| value);
        services.lock().expect("nothing panics").extend(names);
        for span in messages(of_resource, 2).flat_map(|of_scope| messages(of_scope, 2)) {
            let bytes = |number| messages(span, number).next().unwrap_or_default().to_vec();
            let status = messages(span, 15).flat_map(fields).find_map(|(number, value)| match value {
                WireValue::Number(code) if number == 3 => Some(code),
                _ => None,
            });
            spans.push(ReceivedSpan {
                name: text(&bytes(5)),
                trace: bytes(1),
                id: bytes(2),
                parent: bytes(4),
                attributes: messages(span, 9).map(attribute).collect(),
                status: status.unwrap_or_default(),
            });
        }
    }
}

#[test]
fn a_request_its_lookups_and_its_build_are_spans_with_the_ids_of_the_log() {
    let collector = Collector::start();
    let store = NixStore::new(Release::Host);
    let sample = Sample::new(&store, &derivations::text_file("sample", "a sample"));
    let upstream = Upstream::of(sample.copied(&store, Compression::Xz));
    sample.collect(&store);
    let file = crate::support::upstream::settings_file(&store, &[upstream.table("")]);
    let arguments = ["--config", &file, "--otlp-endpoint", &collector.url];
    let mut cache = Cache::of(store, &arguments, &[EXPORT_EVERY]);

    let built = cache.store.instantiate(&Derivation::new("built", "echo > $out"));
    cache.narinfo(built.out());
    let request = collector.wait_for("http request", "path", &narinfo_address(built.out()));
    let has = |span: &ReceivedSpan, name: &str, value: &str| {
        assert_eq!(span.attributes.get(name).map(String::as_str), Some(value), "{name}: {span:?}");
    };
    for (name, value) in [
        ("method", "GET"),
        ("route", "narinfo"),
        ("status", "200"),
        ("outcome", "built"),
        ("client", "127.0.0.1"),
        ("request", "1"),
    ] {
        has(&request, name, value);
    }
    assert!(request.parent.is_empty() && request.status == 0, "{request:?}");
    let build = collector.wait_for("build", "drv", base_name(&built.drv));
    for (name, value) in [("request", "1"), ("builder", "local"), ("outcome", "built")] {
        has(&build, name, value);
    }
    let lookup = collector.wait_for("upstream lookup", "key", &base_name(built.out())[..32]);
    assert_eq!((&lookup.trace, &lookup.parent), (&request.trace, &request.id), "{lookup:?} in {request:?}");
    has(&lookup, "upstream", &upstream.server.url());
    has(&lookup, "outcome", "Missing");

    // A NAR of the upstream, and a build that fails.
    let narinfo = cache.narinfo(&sample.path);
    assert_eq!(cache.http.get(&format!("/{}", field(&narinfo, "URL"))).status, 200);
    let fetch = collector.wait_for("upstream fetch", "upstream", &upstream.server.url());
    assert!(fetch.attributes["bytes"].parse::<u64>().is_ok_and(|bytes| bytes > 0), "{fetch:?}");
    let failing = cache.store.instantiate(&derivations::failing("failing"));
    assert_eq!(cache.ask(failing.out()).status, 404);
    let failed = collector.wait_for("build", "drv", base_name(&failing.drv));
    has(&failed, "outcome", "failed");
    assert_eq!(failed.status, 2, "{failed:?}");

    // What waits is sent at the end.
    cache.http.get("/api/v1/catalogue/last-question");
    assert!(cache.ondine.sigterm().success());
    collector.wait_for("http request", "path", "/api/v1/catalogue/last-question");
    assert!(collector.services.lock().expect("nothing panics").iter().all(|name| name == "ondine"));
    // Spans are no lines of the log.
    assert!(!cache.ondine.log().contains("upstream lookup"), "{}", cache.ondine.log());
}

#[test]
fn a_collector_that_is_away_stops_nothing_and_is_told_once() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    let url = format!("http://{free}");
    let mut cache = Cache::of(NixStore::new(Release::Host), &["--otlp-endpoint", &url], &[EXPORT_EVERY]);
    let told = |log: &str| log.matches("the collector takes no spans").count();
    for name in ["one", "two", "three"] {
        let built = cache.store.instantiate(&Derivation::new(name, "echo > $out"));
        cache.narinfo(built.out());
        wait_until("it is told", SOON, || told(&cache.ondine.log()) == 1);
    }
    assert!(cache.ondine.sigterm().success());
    let log = cache.ondine.log();
    assert_eq!(told(&log), 1, "{log}");
    assert!(log.contains(&url), "{log}");
}
