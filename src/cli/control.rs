//! Talks to a running server over its control socket, in the same HTTP as everyone else.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::header;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::escape::Lines;
use crate::serve::CONTROL_SOCKET;

/// Bytes of an answer at most.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The body of `GET path` from the server of `state_dir`.
pub(super) fn get(state_dir: &Path, path: &str) -> anyhow::Result<String> {
    super::runtime()?.block_on(async { whole(ask(state_dir, Method::GET, path).await?).await })
}

/// Prints the body of `GET path`. Fails, after it is printed, when it tells of an error.
pub(super) fn show(state_dir: &Path, path: &str) -> anyhow::Result<ExitCode> {
    let told = super::runtime()?.block_on(async { told(ask(state_dir, Method::GET, path).await?).await })?;
    match told {
        Ok(text) => print!("{text}"),
        Err(text) => {
            print!("{text}");
            bail!("{}", reason(&text));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// How something is done.
#[derive(Clone, Copy, Debug)]
pub(super) enum Do {
    Post,
    Delete,
}

/// Has the server of `state_dir` do something, and prints each line about it as it comes. Fails when one says so; the server
/// goes on whether or not somebody looks.
pub(super) fn follow(what: Do, state_dir: &Path, path: &str) -> anyhow::Result<ExitCode> {
    let method = match what {
        Do::Post => Method::POST,
        Do::Delete => Method::DELETE,
    };
    super::runtime()?.block_on(async {
        let mut response = ask(state_dir, method, path).await?;
        if !response.status().is_success() {
            return whole(response).await.map(|_| ExitCode::FAILURE);
        }
        let (mut ended, mut line) = (ExitCode::SUCCESS, Vec::new());
        while let Some(frame) = response.frame().await {
            let frame = frame.context("the answer was cut: has the server stopped?")?;
            for byte in frame.data_ref().into_iter().flatten() {
                if *byte == b'\n' {
                    if line.starts_with(b"failed:") {
                        ended = ExitCode::FAILURE;
                    }
                    println!("{}", String::from_utf8_lossy(&line));
                    line.clear();
                } else if line.len() < ANSWER_BYTES_MAX {
                    line.push(*byte);
                }
            }
        }
        Ok(ended)
    })
}

async fn ask(state_dir: &Path, method: Method, path: &str) -> anyhow::Result<Response<Incoming>> {
    let socket = state_dir.join(CONTROL_SOCKET);
    let stream = UnixStream::connect(&socket).await.map_err(|error| {
        let advice = unreachable_advice(&error);
        anyhow::Error::new(error).context(format!("{}: {advice}", socket.display()))
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
    Ok(sender.send_request(request.body(Empty::<Bytes>::new())?).await?)
}

/// The way out for someone who cannot reach the server.
fn unreachable_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "this user may not use the server's control socket: run the command as the user that runs the server, or as root"
        }
        _ => "no server answers here; is it running, with this state directory (--state-dir)?",
    }
}

async fn whole(response: Response<Incoming>) -> anyhow::Result<String> {
    told(response).await?.map_err(|text| anyhow::anyhow!("{}", reason(&text)))
}

/// The body, as an error where it tells of one.
async fn told(response: Response<Incoming>) -> anyhow::Result<Result<String, String>> {
    let is_error = !response.status().is_success();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error)).context("the answer could not be read")?;
    let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    Ok(if is_error { Err(text) } else { Ok(text) })
}

/// What an answer that tells of an error says of it.
fn reason(text: &str) -> String {
    #[derive(serde::Deserialize)]
    struct Told {
        error: String,
    }
    let told = serde_json::from_str(text).map(|Told { error }| error);
    Lines(told.unwrap_or_else(|_| text.trim_end().to_owned())).to_string()
}
