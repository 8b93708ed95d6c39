//! Requests of any method with tokens.

use std::time::Duration;

use super::cache::Cache;
use super::http::raw;

/// Time that an answer may take.
const SOON: Duration = Duration::from_secs(60);

/// The value of a header Authorization with a new token of these rights.
#[track_caller]
pub fn bearer(cache: &Cache, name: &str, rights: &str, more: &[&str]) -> String {
    format!("Bearer {}", cache.ondine.new_token(name, rights, more))
}

/// A request of any method without a body, its answer as text.
#[track_caller]
pub fn send(cache: &Cache, verb: &str, path: &str, authorization: Option<&str>) -> String {
    send_body(cache, verb, path, authorization, "")
}

/// The same with a body.
#[track_caller]
pub fn send_body(cache: &Cache, verb: &str, path: &str, authorization: Option<&str>, body: &str) -> String {
    let authorization = authorization.map(|value| format!("Authorization: {value}\r\n")).unwrap_or_default();
    let length = body.len();
    let request = format!(
        "{verb} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{authorization}\r\n{body}"
    );
    let (answer, closed) = raw(cache.ondine.address(), request.as_bytes(), SOON);
    assert!(closed, "{verb} {path} was not answered in time");
    String::from_utf8_lossy(&answer).into_owned()
}

/// The JSON in an answer.
#[track_caller]
pub fn json_of(answer: &str) -> serde_json::Value {
    let body = answer.split("\r\n\r\n").nth(1).expect("a body");
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
}
