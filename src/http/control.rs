//! What changes something, and is done for those alone who come in through the control socket: they may administer.

use hyper::{Method, Uri};
use percent_encoding::percent_decode_str;

use super::{Coming, Service, answer, catalogue, failures, keeping, later, now, pins};
use crate::catalogue::SetName;
use crate::keep::{Check, Pinned};
use crate::retry::Failed;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Command {
    /// `POST /api/v1/catalogue`, or one set below it.
    Refresh(Option<SetName>),
    /// `POST /api/v1/pins/<what>`
    Pin(Pinned),
    /// `DELETE /api/v1/pins/<what>`
    Unpin(Pinned),
    /// `POST /api/v1/gc?dry-run&max-bytes=<number>`
    Collect {
        /// Instead of the limit of the settings.
        max_bytes: Option<u64>,
        /// Whether it is only to be told.
        dry_run: bool,
    },
    /// `POST /api/v1/fsck?verify&repair`
    Check(Check),
    /// `POST /api/v1/failures/<what>/retry?forget-only`
    Retry {
        /// The failure.
        what: Failed,
        /// Whether the next request is to build it, and not this one.
        forget_only: bool,
    },
}

/// Does it, or answers that there is no such thing to do.
pub(super) fn answer(service: Service, method: &Method, uri: &Uri) -> Coming {
    match Command::parse(method, uri) {
        Some(Command::Refresh(name)) => now(catalogue::refresh(&service, name)),
        Some(Command::Pin(what)) => later(async move { pins::pin(&service, what).await }),
        Some(Command::Unpin(what)) => later(async move { pins::unpin(&service, what).await }),
        Some(Command::Collect { max_bytes, dry_run }) => now(keeping::collect(&service, max_bytes, dry_run)),
        Some(Command::Check(check)) => now(keeping::check(&service, check)),
        Some(Command::Retry { what, forget_only }) => {
            later(async move { failures::retry(&service, what, forget_only).await })
        }
        None => now(answer::method_not_allowed(true)),
    }
}

impl Command {
    fn parse(method: &Method, uri: &Uri) -> Option<Self> {
        let path = percent_decode_str(uri.path().strip_prefix("/api/v1/")?).decode_utf8().ok()?;
        let (what, name) = path.split_once('/').map_or((&*path, None), |(what, name)| (what, Some(name)));
        let options: Vec<(&str, &str)> = uri
            .query()
            .into_iter()
            .flat_map(|query| query.split('&'))
            .map(|option| option.split_once('=').unwrap_or((option, "")))
            .collect();
        let given = |name: &str| options.iter().find(|(option, _)| *option == name).map(|(_, value)| *value);
        match (method, what, name) {
            (&Method::POST, "catalogue", None) => Some(Self::Refresh(None)),
            (&Method::POST, "catalogue", Some(name)) => SetName::new(name).map(Some).map(Self::Refresh),
            (&Method::POST, "pins", Some(name)) => Pinned::parse(name).map(Self::Pin),
            (&Method::DELETE, "pins", Some(name)) => Pinned::parse(name).map(Self::Unpin),
            (&Method::POST, "failures", Some(name)) => {
                let what = Failed::parse(name.strip_suffix("/retry")?)?;
                Some(Self::Retry { what, forget_only: given("forget-only").is_some() })
            }
            (&Method::POST, "gc", None) => {
                let max_bytes = given("max-bytes").map(str::parse).transpose().ok()?;
                Some(Self::Collect { max_bytes, dry_run: given("dry-run").is_some() })
            }
            (&Method::POST, "fsck", None) => {
                let (verify, repair) = (given("verify").is_some(), given("repair").is_some());
                Some(Self::Check(Check { verify, repair }))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_documented_is_understood_and_nothing_else() {
        let attribute = || Pinned::Attribute("a+b.c".to_owned());
        let (post, delete) = (Method::POST, Method::DELETE);
        for (method, uri, command) in [
            (&post, "/api/v1/catalogue", Some(Command::Refresh(None))),
            (&post, "/api/v1/catalogue/pkgs", Some(Command::Refresh(SetName::new("pkgs")))),
            (&post, "/api/v1/pins/a%2Bb.c", Some(Command::Pin(attribute()))),
            (&delete, "/api/v1/pins/a+b.c", Some(Command::Unpin(attribute()))),
            (&post, "/api/v1/gc", Some(Command::Collect { max_bytes: None, dry_run: false })),
            (
                &post,
                "/api/v1/gc?dry-run&max-bytes=7",
                Some(Command::Collect { max_bytes: Some(7), dry_run: true }),
            ),
            (&post, "/api/v1/fsck?repair", Some(Command::Check(Check { verify: false, repair: true }))),
            (
                &post,
                "/api/v1/failures/set%2Fa%2Bb/retry?forget-only",
                Some(Command::Retry { what: Failed::Name("set/a+b".to_owned()), forget_only: true }),
            ),
            (&post, "/api/v1/failures/a", None),
            (&post, "/api/v1/failures//retry", None),
            (&post, "/api/v1/gc?max-bytes=all", None),
            (&post, "/api/v1/pins", None),
            (&post, "/api/v1/catalogue/no%20name", None),
            (&delete, "/api/v1/catalogue", None),
            (&Method::PUT, "/api/v1/pins/a", None),
            (&post, "/nix-cache-info", None),
        ] {
            assert_eq!(Command::parse(method, &uri.parse().expect("an address")), command, "{method} {uri}");
        }
    }
}
