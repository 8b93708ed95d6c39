//! Derivations that a client sends with the paths that they are built from, because the server does not know
//! them: kept until they are built. Their outputs are believed on the word of the client alone.

use std::time::Duration;

use super::answer;
use super::call::Call;
use super::error::Error;
use super::request_body::{self, BodyBounds};
use super::response_future::ResponseFuture;
use crate::caller::{Action, may_for};
use crate::model::DerivationText;
use crate::nix::{SentDerivation, UnresolvedError};

/// Bounds of a derivation.
const BODY: BodyBounds = BodyBounds { bytes_max: 16 * 1024 * 1024, time_max: Duration::from_secs(60) };

/// Takes one whose outputs nothing that is known makes.
pub(super) fn take(call: Call<'_>) -> Option<ResponseFuture> {
    let (service, caller, body) = (call.service.clone(), call.caller, call.body);
    Some(ResponseFuture::pending(async move {
        let text: DerivationText = request_body::json_within(body, BODY).await?;
        let state = &service.state;
        let sent = SentDerivation::parse(&state.store_dir, &text)?;
        // A token may be bound to names.
        for path in std::iter::once(&sent.drv).chain(&sent.outputs) {
            may_for(&caller, Action::Vouch, path.name()).map_err(Error::Refused)?;
        }
        for output in &sent.outputs {
            if let Some(maker) = state.substitute.other_maker(output, &sent.drv).await? {
                return Err(Error::Conflict(format!(
                    "{output} is made by {maker}, which is known: ask for it"
                )));
            }
        }
        let kept = state.substitute.local.sent().clone();
        let keeping = tokio::task::spawn_blocking(move || kept.keep(sent, &text)).await;
        keeping.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked).into()))?;
        Ok(answer::ready(answer::TEXT, "taken: it can be built\n"))
    }))
}

impl From<UnresolvedError> for Error {
    fn from(error: UnresolvedError) -> Self {
        match error {
            UnresolvedError::Malformed(_) => Self::BadRequest(error.to_string()),
            UnresolvedError::TooMany => Self::unavailable(error),
            UnresolvedError::Io(_) => Self::internal(&error, "the derivation cannot be kept"),
        }
    }
}
