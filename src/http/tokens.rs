//! Tokens: made, listed, revoked. A token's text is in one answer, that to its making, and nowhere else.

use std::time::Duration;

use super::answer::{self, Answer, json};
use super::api::{IssueRequest, IssuedToken, TokenView};
use super::call::Call;
use super::error::Error;
use super::response_future::ResponseFuture;
use super::{Service, request_body};
use crate::auth::{self, TokenRequest};

pub(super) fn list(call: Call<'_>) -> Option<ResponseFuture> {
    let service = call.service.clone();
    Some(ResponseFuture::pending(async move { all(&service).await }))
}

pub(super) fn issue(call: Call<'_>) -> Option<ResponseFuture> {
    let (service, body) = (call.service.clone(), call.body);
    Some(ResponseFuture::pending(async move {
        let IssueRequest { name, rights, only, expires_seconds, max_queued } =
            request_body::json(body).await?;
        let lifetime = expires_seconds.map(Duration::from_secs);
        let request = TokenRequest { name, rights, patterns: only, lifetime, queued_max: max_queued };
        let token = service.state.auth.issue(request).await?;
        Ok(json(&IssuedToken { id: token.id(), token: token.reveal() }))
    }))
}

pub(super) fn revoke(call: Call<'_>) -> Option<ResponseFuture> {
    let (service, what) = (call.service.clone(), call.arguments[0].to_owned());
    Some(ResponseFuture::pending(async move {
        let name = service.state.auth.revoke(&what).await?;
        Ok(answer::ready(answer::TEXT, format!("revoked: {name}\n")))
    }))
}

async fn all(service: &Service) -> Result<Answer, Error> {
    let rows = service.state.auth.list().await;
    let rows = rows.map_err(|error| Error::index(&error, "the tokens cannot be read"))?;
    Ok(json(&rows.into_iter().map(TokenView::from).collect::<Vec<_>>()))
}

impl From<auth::Error> for Error {
    fn from(error: auth::Error) -> Self {
        match error {
            auth::Error::BadRequest(reason) => Self::BadRequest(reason),
            auth::Error::NoSuchToken(_) => Self::not_found(error),
            auth::Error::Index(error) => Self::index(&error, "the tokens cannot be changed"),
            auth::Error::Randomness(_) => Self::internal(&error, "no token can be made"),
        }
    }
}
