//! Requests to a running server over its control socket, in the HTTP of its API.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::escape::Lines;
use crate::serve::CONTROL_SOCKET;

/// Bytes of a response, or of one line of it, at most.
const RESPONSE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Error for a response in an unknown form.
pub(super) const OTHER_VERSION: &str =
    "the server's response cannot be parsed; run the command with the version of ondine that the server runs";

/// Body of `GET path` from the server of `state_dir`.
///
/// # Errors
/// When the server cannot be reached or reports an error.
pub(super) fn get(state_dir: &Path, path: &str) -> anyhow::Result<String> {
    super::runtime()?.block_on(async { whole(ask(state_dir, Method::GET, path, Bytes::new()).await?).await })
}

/// Prints the body of `GET path`.
///
/// # Errors
/// When the server cannot be reached, or reports an error in a body that was printed all the same.
pub(super) fn show(state_dir: &Path, path: &str) -> anyhow::Result<ExitCode> {
    let body = super::runtime()?
        .block_on(async { body(ask(state_dir, Method::GET, path, Bytes::new()).await?).await })?;
    match body {
        Ok(text) => print!("{text}"),
        Err(text) => {
            print!("{text}");
            bail!("{}", reason(&text));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Method of a request that changes something.
#[derive(Clone, Copy, Debug)]
pub(super) enum WriteMethod {
    Post,
    Delete,
}

/// Prints each line of the server's progress as it arrives. The exit code is a failure when a line reports
/// one. The server goes on when the command is ended.
///
/// # Errors
/// When the server cannot be reached or reports an error.
pub(super) fn follow(action: WriteMethod, state_dir: &Path, path: &str) -> anyhow::Result<ExitCode> {
    follow_request(action, state_dir, path, Bytes::new())
}

/// The same for a POST with arguments.
///
/// # Errors
/// When the server cannot be reached or reports an error.
pub(super) fn post(
    state_dir: &Path,
    path: &str,
    arguments: &impl serde::Serialize,
) -> anyhow::Result<ExitCode> {
    follow_request(WriteMethod::Post, state_dir, path, serde_json::to_vec(arguments)?.into())
}

/// Body of the answer to a POST with arguments.
///
/// # Errors
/// When the server cannot be reached or reports an error.
pub(super) fn exchange(
    state_dir: &Path,
    path: &str,
    arguments: &impl serde::Serialize,
) -> anyhow::Result<String> {
    let body: Bytes = serde_json::to_vec(arguments)?.into();
    super::runtime()?.block_on(async { whole(ask(state_dir, Method::POST, path, body).await?).await })
}

fn follow_request(
    action: WriteMethod,
    state_dir: &Path,
    path: &str,
    body: Bytes,
) -> anyhow::Result<ExitCode> {
    let method = match action {
        WriteMethod::Post => Method::POST,
        WriteMethod::Delete => Method::DELETE,
    };
    super::runtime()?.block_on(async {
        let mut response = ask(state_dir, method, path, body).await?;
        if !response.status().is_success() {
            return whole(response).await.map(|_| ExitCode::FAILURE);
        }
        let (mut exit_code, mut line) = (ExitCode::SUCCESS, Vec::new());
        while let Some(frame) = response.frame().await {
            let frame = frame.context("the connection was closed before the end: has the server stopped?")?;
            for byte in frame.data_ref().into_iter().flatten() {
                if *byte == b'\n' {
                    if line.starts_with(b"failed:") {
                        exit_code = ExitCode::FAILURE;
                    }
                    println!("{}", String::from_utf8_lossy(&line));
                    line.clear();
                } else if line.len() < RESPONSE_BYTES_MAX {
                    line.push(*byte);
                }
            }
        }
        Ok(exit_code)
    })
}

async fn ask(
    state_dir: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> anyhow::Result<Response<Incoming>> {
    let socket = state_dir.join(CONTROL_SOCKET);
    let stream = UnixStream::connect(&socket).await.map_err(|error| {
        let advice = unreachable_advice(&error);
        anyhow::Error::new(error).context(format!("{}: {advice}", socket.display()))
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
    Ok(sender.send_request(request.body(Full::new(body))?).await?)
}

/// Advice for someone who cannot reach the server.
fn unreachable_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "this user may not use the server's control socket: run the command as the user that runs the \
             server, or as root"
        }
        _ => "no server answers here; is it running, with this state directory (--state-dir)?",
    }
}

async fn whole(response: Response<Incoming>) -> anyhow::Result<String> {
    body(response).await?.map_err(|text| anyhow::anyhow!("{}", reason(&text)))
}

/// The body, as `Err` where the server reports an error.
async fn body(response: Response<Incoming>) -> anyhow::Result<Result<String, String>> {
    let is_error = !response.status().is_success();
    let collected = Limited::new(response.into_body(), RESPONSE_BYTES_MAX).collect().await;
    let collected =
        collected.map_err(|error| anyhow::anyhow!(error)).context("the response cannot be read")?;
    let text = String::from_utf8_lossy(&collected.to_bytes()).into_owned();
    Ok(if is_error { Err(text) } else { Ok(text) })
}

/// The server's reason, from a body that reports an error.
fn reason(text: &str) -> String {
    #[derive(serde::Deserialize)]
    struct ErrorReply {
        error: String,
    }
    let error = serde_json::from_str(text).map(|ErrorReply { error }| error);
    Lines(error.unwrap_or_else(|_| text.trim_end().to_owned())).to_string()
}
