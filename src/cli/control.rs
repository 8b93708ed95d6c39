//! Talks to a running server over its control socket, in the same HTTP as everyone else.

use std::path::Path;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::header;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::serve::CONTROL_SOCKET;

/// Bytes of an answer at most.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The body of `GET path` from the server of `state_dir`.
pub(super) fn get(state_dir: &Path, path: &str) -> anyhow::Result<String> {
    let socket = state_dir.join(CONTROL_SOCKET);
    super::runtime()?.block_on(async {
        let stream = UnixStream::connect(&socket).await.with_context(|| {
            format!("no server answers at {}; is it running, with this state directory?", socket.display())
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::get(path).header(header::HOST, "localhost").body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!(error)).context("the answer could not be read")?;
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        if !status.is_success() {
            bail!("the server answered {status}: {}", text.trim_end());
        }
        Ok(text)
    })
}
