//! A stand-in for Google Cloud Storage in this program: the part of its XML API that a client of buckets
//! uses, as Google documents it, with authorization, preconditions and uploads in parts. No emulator that can
//! be installed has that part. Not the service itself: what it does otherwise than documented is not seen
//! here.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use md5::{Digest, Md5};
use percent_encoding::percent_decode_str;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, RsaPublicKeyComponents};
use serde_json::{Value, json};

use super::buckets::TestBucket;
use super::process::run;
use super::store::Folder;

/// The service account that it knows.
const EMAIL: &str = "test@ondine.iam.gserviceaccount.com";
/// Bytes of a part that is not the last one, at least.
const PART_BYTES_MIN: usize = 5 << 20;
/// Host for which addresses are signed.
const SIGNED_HOST: &str = "storage.googleapis.com";

/// A fresh bucket.
pub struct GoogleBucket {
    name: String,
    service: &'static Service,
}

struct Service {
    port: u16,
    account: String,
    key: RsaKeyPair,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Place, StoredObject>,
    /// By their numbers, each with its place.
    uploads: HashMap<String, (Place, BTreeMap<usize, Bytes>)>,
    generation: u64,
}

#[derive(Clone)]
struct StoredObject {
    bytes: Bytes,
    e_tag: String,
    generation: u64,
    stored: jiff::Timestamp,
}

/// Bucket and key of an object.
type Place = (String, String);
type Answer = Response<Full<Bytes>>;

impl Service {
    fn shared() -> &'static Service {
        static SERVICE: OnceLock<&Service> = OnceLock::new();
        SERVICE.get_or_init(|| {
            let listener =
                std::net::TcpListener::bind("127.0.0.1:0").expect("the loopback interface has ports");
            listener.set_nonblocking(true).expect("a socket can be so");
            let port = listener.local_addr().expect("an address").port();
            let (account, key) = account();
            let service: &Service =
                Box::leak(Box::new(Service { port, account, key, state: Mutex::default() }));
            std::thread::spawn(move || serve(service, listener));
            service
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics with this locked")
    }

    /// True for the token, or the address, that the key of the account has signed.
    fn is_authorized(&self, request: &Request<Incoming>, parameters: &[(String, String)]) -> bool {
        let public = RsaPublicKeyComponents::<Vec<u8>>::from(self.key.public());
        let is_signed = |text: &str, signature: &[u8]| {
            public.verify(&RSA_PKCS1_2048_8192_SHA256, text.as_bytes(), signature).is_ok()
        };
        if let Some(token) = header(request.headers(), "authorization").strip_prefix("Bearer ") {
            let Some((signed, signature)) = token.rsplit_once('.') else { return false };
            let decoded = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap_or_default();
            let claims = signed.split_once('.').map(|(_, claims)| decoded(claims)).unwrap_or_default();
            let claims: Value = serde_json::from_slice(&claims).unwrap_or_default();
            return claims["iss"] == EMAIL && is_signed(signed, &decoded(signature));
        }
        let value = |name: &str| parameter(parameters, name).unwrap_or_default();
        let query = request.uri().query().unwrap_or_default();
        let mut signed: Vec<_> =
            query.split('&').filter(|pair| !pair.starts_with("X-Goog-Signature=")).collect();
        signed.sort_unstable();
        let [method, path, signed] = [request.method().as_str(), request.uri().path(), &signed.join("&")];
        let canonical = format!("{method}\n{path}\n{signed}\nhost:{SIGNED_HOST}\n\nhost\nUNSIGNED-PAYLOAD");
        let scope = value("X-Goog-Credential").split_once('/').map(|(_, scope)| scope).unwrap_or_default();
        let hash = hex(ring::digest::digest(&ring::digest::SHA256, canonical.as_bytes()).as_ref());
        let text = format!("GOOG4-RSA-SHA256\n{}\n{scope}\n{hash}", value("X-Goog-Date"));
        header(request.headers(), "host") == SIGNED_HOST
            && is_signed(&text, &unhex(value("X-Goog-Signature")))
    }
}

/// The JSON of the service account, and its key, which openssl makes, since ring makes none.
fn account() -> (String, RsaKeyPair) {
    let mut openssl = std::process::Command::new("openssl");
    openssl.args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]);
    let pem = run(openssl).must_succeed().text();
    let der: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let key = RsaKeyPair::from_pkcs8(&STANDARD.decode(der).expect("base64")).expect("a key of openssl");
    let account = json!({
        "type": "service_account", "client_email": EMAIL, "private_key": pem, "private_key_id": "1",
    });
    (account.to_string(), key)
}

fn serve(service: &'static Service, listener: std::net::TcpListener) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        while let Ok((stream, _)) = listener.accept().await {
            let answer =
                service_fn(move |request| async move { Ok::<_, Infallible>(answer(service, request).await) });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer),
            );
        }
    });
}

async fn answer(service: &Service, request: Request<Incoming>) -> Answer {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let pair = |pair: &str| pair.split_once('=').map(|(name, value)| (decoded(name), decoded(value)));
    let parameters: Vec<_> = request.uri().query().unwrap_or_default().split('&').filter_map(pair).collect();
    if !service.is_authorized(&request, &parameters) {
        return error(StatusCode::FORBIDDEN, "AccessDenied");
    }
    let path = decoded(request.uri().path().trim_start_matches('/'));
    let (bucket, key) = path.split_once('/').unwrap_or((&path, ""));
    let place = (bucket.to_owned(), key.to_owned());
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return error(StatusCode::BAD_REQUEST, "IncompleteBody") };
    let (body, mut state) = (body.to_bytes(), service.state());
    let value = |name: &str| parameter(&parameters, name);
    match (&head.method, value("uploadId"), value("partNumber")) {
        (&Method::GET, ..) if key.is_empty() => state.list(bucket, &parameters),
        (&Method::POST, id, _) => state.upload(place, id, &head.headers, &body),
        (&Method::PUT, Some(id), Some(number)) => state.put_part(id, number, body),
        (&Method::DELETE, Some(id), _) => match state.uploads.remove(id) {
            Some(_) => status(StatusCode::NO_CONTENT),
            None => error(StatusCode::NOT_FOUND, "NoSuchUpload"),
        },
        (&Method::PUT, ..) => state.put(place, &head.headers, body),
        (&Method::DELETE, ..) => match state.objects.remove(&place) {
            Some(_) => status(StatusCode::NO_CONTENT),
            None => error(StatusCode::NOT_FOUND, "NoSuchKey"),
        },
        (&Method::GET | &Method::HEAD, ..) => state.get(&place, &head.headers, head.method == Method::GET),
        _ => error(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
    }
}

impl State {
    fn store(&mut self, place: Place, bytes: Bytes, e_tag: String) -> StoredObject {
        self.generation += 1;
        let object =
            StoredObject { bytes, e_tag, generation: self.generation, stored: jiff::Timestamp::now() };
        self.objects.insert(place, object.clone());
        object
    }

    fn put(&mut self, place: Place, headers: &HeaderMap, body: Bytes) -> Answer {
        if header(headers, "x-goog-if-generation-match") == "0" && self.objects.contains_key(&place) {
            return error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
        }
        let source = header(headers, "x-goog-copy-source");
        if source.is_empty() {
            let e_tag = format!("\"{}\"", hex(&Md5::digest(&body)));
            return described(StatusCode::OK, &self.store(place, body, e_tag), Bytes::new());
        }
        let source = percent_decode_str(source).decode_utf8_lossy().into_owned();
        let (bucket, key) = source.trim_start_matches('/').split_once('/').unwrap_or_default();
        let Some(copied) = self.objects.get(&(bucket.to_owned(), key.to_owned())).cloned() else {
            return error(StatusCode::NOT_FOUND, "NoSuchKey");
        };
        let object = self.store(place, copied.bytes, copied.e_tag);
        xml(&format!("<CopyObjectResult><ETag>{}</ETag></CopyObjectResult>", object.e_tag))
    }

    fn get(&self, place: &Place, headers: &HeaderMap, has_body: bool) -> Answer {
        let Some(object) = self.objects.get(place) else { return error(StatusCode::NOT_FOUND, "NoSuchKey") };
        let wanted = header(headers, "if-match");
        if !wanted.is_empty() && wanted != object.e_tag {
            return error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
        }
        let length = object.bytes.len();
        if !has_body {
            let mut answer = described(StatusCode::OK, object, Bytes::new());
            answer.headers_mut().insert("content-length", length.into());
            return answer;
        }
        let Some((from, to)) =
            header(headers, "range").strip_prefix("bytes=").and_then(|range| range.split_once('-'))
        else {
            return described(StatusCode::OK, object, object.bytes.clone());
        };
        let (from, to) =
            (from.parse().unwrap_or(0), to.parse().map_or(length, |to: usize| length.min(to + 1)));
        if from >= to {
            return error(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange");
        }
        let mut answer = described(StatusCode::PARTIAL_CONTENT, object, object.bytes.slice(from..to));
        let range = format!("bytes {from}-{}/{length}", to - 1);
        answer.headers_mut().insert("content-range", range.parse().expect("a header"));
        answer
    }

    /// Begins or completes an upload in parts. Neither takes a condition.
    fn upload(&mut self, place: Place, id: Option<&str>, headers: &HeaderMap, body: &Bytes) -> Answer {
        if headers.keys().any(|name| name.as_str().contains("if-")) {
            return error(StatusCode::BAD_REQUEST, "NotImplemented");
        }
        let Some(id) = id else {
            self.generation += 1;
            let id = format!("upload-{}", self.generation);
            self.uploads.insert(id.clone(), (place, BTreeMap::new()));
            return xml(&format!(
                "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
            ));
        };
        let Some((_, parts)) = self.uploads.remove(id).filter(|(of, _)| *of == place) else {
            return error(StatusCode::NOT_FOUND, "NoSuchUpload");
        };
        let named = String::from_utf8_lossy(body).matches("<PartNumber>").count();
        let is_small = parts.values().rev().skip(1).any(|part| part.len() < PART_BYTES_MIN);
        if named != parts.len() || is_small || parts.keys().ne((1..=named).collect::<Vec<_>>().iter()) {
            return error(StatusCode::BAD_REQUEST, "InvalidPart");
        }
        let bytes: Vec<u8> = parts.values().flatten().copied().collect();
        let e_tag = format!("\"{}-{named}\"", hex(&Md5::digest(id)));
        let object = self.store(place, bytes.into(), e_tag);
        xml(&format!(
            "<CompleteMultipartUploadResult><ETag>{}</ETag></CompleteMultipartUploadResult>",
            object.e_tag
        ))
    }

    fn put_part(&mut self, id: &str, number: &str, body: Bytes) -> Answer {
        let Some((_, parts)) = self.uploads.get_mut(id) else {
            return error(StatusCode::NOT_FOUND, "NoSuchUpload");
        };
        let mut answer = status(StatusCode::OK);
        let e_tag = format!("\"{}\"", hex(&Md5::digest(&body)));
        parts.insert(number.parse().expect("a number"), body);
        answer.headers_mut().insert("etag", e_tag.parse().expect("a header"));
        answer
    }

    fn list(&self, bucket: &str, parameters: &[(String, String)]) -> Answer {
        if bucket.ends_with("missing") {
            return error(StatusCode::NOT_FOUND, "NoSuchBucket");
        }
        let value = |name: &str| parameter(parameters, name).unwrap_or_default();
        let (prefix, most) = (value("prefix"), value("max-keys").parse().unwrap_or(1000));
        let after = value("continuation-token").max(value("start-after"));
        let is_deep = |key: &str| !value("delimiter").is_empty() && key[prefix.len()..].contains('/');
        let mut found = self.objects.iter().filter(|((of, key), _)| {
            of == bucket && key.starts_with(prefix) && **key > *after && !is_deep(key)
        });
        let mut list = String::new();
        let mut last = "";
        for ((_, key), StoredObject { bytes, e_tag, stored, .. }) in found.by_ref().take(most) {
            let size = bytes.len();
            list += &format!(
                "<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>{stored}</LastModified><ETag>{e_tag}</ETag></Contents>"
            );
            last = key;
        }
        if found.next().is_some() {
            list += &format!("<NextContinuationToken>{last}</NextContinuationToken>");
        }
        xml(&format!("<ListBucketResult>{list}</ListBucketResult>"))
    }
}

fn described(status: StatusCode, object: &StoredObject, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let stored = object.stored.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let headers = [
        ("etag", &object.e_tag),
        ("last-modified", &stored),
        ("x-goog-generation", &object.generation.to_string()),
    ];
    for (name, value) in headers {
        answer.headers_mut().insert(name, value.parse().expect("a header"));
    }
    answer
}

fn status(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}

fn error(code: StatusCode, name: &str) -> Answer {
    let mut answer = xml(&format!("<Error><Code>{name}</Code></Error>"));
    *answer.status_mut() = code;
    answer
}

fn xml(text: &str) -> Answer {
    Response::new(Full::new(format!("<?xml version='1.0' encoding='UTF-8'?>{text}").into()))
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> &'h str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn parameter<'p>(parameters: &'p [(String, String)], name: &str) -> Option<&'p str> {
    parameters.iter().find(|(of, _)| of == name).map(|(_, value)| value.as_str())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).filter_map(|at| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()).collect()
}

impl GoogleBucket {
    /// An empty one.
    pub fn new() -> GoogleBucket {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("test-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        GoogleBucket { name, service: Service::shared() }
    }

    /// A token of the account, for those who have no key of it.
    pub fn token(&self) -> String {
        let parts = [json!({ "alg": "RS256", "typ": "JWT" }), json!({ "iss": EMAIL })];
        let message = parts.map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let mut signature = vec![0; self.service.key.public().modulus_len()];
        let random = ring::rand::SystemRandom::new();
        let signed = self.service.key.sign(&RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature);
        signed.expect("signed");
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// Credentials that look like those of the account, with another key.
    pub fn other_credentials() -> String {
        account().0
    }

    fn place(&self, key: &str) -> Place {
        (self.name.clone(), format!("cache/{key}"))
    }
}

impl TestBucket for GoogleBucket {
    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.service.port)
    }

    fn url_through(&self, address: &str) -> String {
        format!("gs://{}/cache?endpoint=http://{address}&allow-http=true", self.name)
    }

    fn credentials(&self) -> String {
        self.service.account.clone()
    }

    fn secret(&self) -> String {
        let account: Value = serde_json::from_str(&self.service.account).expect("JSON");
        let mut lines = account["private_key"].as_str().expect("a key").lines();
        lines.nth(1).expect("a line of the key").to_owned()
    }

    fn keys(&self) -> Vec<String> {
        let state = self.service.state();
        let ours = state.objects.keys().filter(|(bucket, _)| *bucket == self.name);
        ours.map(|(_, key)| key.trim_start_matches("cache/").to_owned()).collect()
    }

    fn get(&self, key: &str) -> Vec<u8> {
        self.service.state().objects[&self.place(key)].bytes.to_vec()
    }

    fn put(&self, key: &str, bytes: &[u8]) {
        let e_tag = format!("\"{}\"", hex(&Md5::digest(bytes)));
        self.service.state().store(self.place(key), bytes.to_vec().into(), e_tag);
    }

    fn uploads(&self) -> usize {
        let staged = self.keys().iter().filter(|key| key.starts_with("uploads/")).count();
        let state = self.service.state();
        staged + state.uploads.values().filter(|((bucket, _), _)| *bucket == self.name).count()
    }
}
