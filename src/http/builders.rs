//! The machines that build: their list as JSON, and whether anything more is built on one.

use super::answer::{self, json};
use super::call::Call;
use super::error::Error;
use super::response_future::ResponseFuture;
use super::status::builder_list;

/// No machine of this name.
#[derive(Debug, thiserror::Error)]
#[error("no builder is called {0}; ondine builders lists them")]
struct NoSuchBuilder(String);

pub(super) fn list(call: Call<'_>) -> Option<ResponseFuture> {
    Some(ResponseFuture::ready(json(&builder_list(call.service))))
}

pub(super) fn change(call: Call<'_>) -> Option<ResponseFuture> {
    let drain = match call.arguments[1] {
        "drain" => true,
        "resume" => false,
        _ => return None,
    };
    let name = call.arguments[0].to_owned();
    let (builds, drained) = (call.service.state.builds.clone(), call.service.state.drained.clone());
    Some(ResponseFuture::pending(async move {
        if !builds.drain(&name, drain) {
            return Err(Error::not_found(NoSuchBuilder(name)));
        }
        let recorded = {
            let name = name.clone();
            tokio::task::spawn_blocking(move || drained.set(&name, drain)).await
        };
        recorded.unwrap_or_else(|panic| Err(std::io::Error::other(panic))).map_err(|error| {
            Error::internal(&error, "it is so until the next start only, because that cannot be recorded")
        })?;
        let done = if drain { "drained: nothing more is built on" } else { "resumed:" };
        Ok(answer::ready(answer::TEXT, format!("{done} {name}\n")))
    }))
}
