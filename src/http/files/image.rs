//! `/image/…`: a path and all that it refers to as an OCI image.

use narinfo::nar::{EntryKind, Listing, ListingEntry};

use super::closure::{NamedPath, archive_body};
use crate::contents::{ImageConfig, closure_digest};
use crate::http::answer::{self, Answer};
use crate::http::by_name::NamedOutput;
use crate::http::call::Call;
use crate::http::delivery::{Delivery, DeliveryRequest};
use crate::http::error::Error;
use crate::http::range::is_known;
use crate::http::response_future::ResponseFuture;
use crate::index::CachedNarInfo;

/// Names of processors in OCI, where they differ from those of Nix.
const ARCHITECTURES: [(&str, &str); 6] = [
    ("x86_64", "amd64"),
    ("aarch64", "arm64"),
    ("i686", "386"),
    ("x86", "386"),
    ("armv7l", "arm"),
    ("powerpc64le", "ppc64le"),
];

pub(in crate::http) fn image(call: Call<'_>) -> Option<ResponseFuture> {
    let path = NamedPath::parse(&call)?;
    let asked = DeliveryRequest::of(call);
    Some(ResponseFuture::pending(async move {
        let package = path.package(&asked).await?;
        match path.delivered(&asked).await? {
            Delivery::Ready(ready) => answer(&asked, &ready, package.as_ref()).await,
            Delivery::Pending(answer) => Ok(answer),
        }
    }))
}

async fn answer(
    asked: &DeliveryRequest,
    ready: &CachedNarInfo,
    package: Option<&NamedOutput>,
) -> Result<Answer, Error> {
    let state = &asked.service.state;
    let rows = state.contents.closure(ready.path.hash()).await?;
    let listing = state.contents.listing(ready.nar_hash).await?;
    let path = ready.path.in_dir(&state.store_dir);
    let (name, version) = name_and_version(ready.path.name());
    let described = package.and_then(|package| package.named.program.as_deref());
    let program = main_program(&listing, described.into_iter().chain([&*name]));
    let config = ImageConfig {
        name: format!("{}:{}", reference(&name), reference(version.as_deref().unwrap_or("latest"))),
        architecture: architecture(package.map(|package| &*package.named.system)),
        folder: format!("{path}/bin"),
        entrypoint: program.map(|program| format!("{path}/bin/{program}")),
    };
    let etag = format!("\"{}-{}-image\"", closure_digest(&rows), config.architecture);
    if is_known(&asked.headers, &etag) {
        return Ok(answer::still_the_same(&etag));
    }
    let body = if asked.head { answer::empty() } else { archive_body(state.contents.image(rows, config)?) };
    let answer = answer::made_anew(answer::TAR, &etag, body);
    Ok(asked.counted(answer::saved_as(answer, &format!("{}.tar", ready.path.name()))))
}

/// The processor of a system, or of this machine, as OCI calls it.
fn architecture(system: Option<&str>) -> String {
    let processor = system.and_then(|system| system.split('-').next()).unwrap_or(std::env::consts::ARCH);
    let known = ARCHITECTURES.iter().find(|(nix, _)| *nix == processor);
    known.map_or(processor, |(_, oci)| oci).to_owned()
}

/// The first of these programs that there is; else the only one.
fn main_program<'n>(listing: &Listing, mut names: impl Iterator<Item = &'n str>) -> Option<String> {
    let folder = listing.root().child(b"bin")?;
    if let Some(name) = names.find(|name| folder.child(name.as_bytes()).is_some()) {
        return Some(name.to_owned());
    }
    let is_program = |entry: &ListingEntry<'_>| !matches!(entry.kind(), EntryKind::Directory);
    let mut programs = folder.children().filter(is_program);
    let only = programs.next().filter(|_| programs.next().is_none())?;
    String::from_utf8(only.name().to_vec()).ok()
}

/// Name and version of a package by the name of its path: the version begins after the first dash that no
/// letter follows, as in Nix.
pub(super) fn name_and_version(name: &str) -> (String, Option<String>) {
    let is_start = |at: &usize| name[at + 1..].chars().next().is_some_and(|c| !c.is_alphabetic());
    match name.match_indices('-').map(|(at, _)| at).find(is_start) {
        Some(at) => (name[..at].to_owned(), Some(name[at + 1..].to_owned())),
        None => (name.to_owned(), None),
    }
}

/// A part of an image's name, in the characters that those may have.
fn reference(text: &str) -> String {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' || c == '-';
    let plain: String = text.to_ascii_lowercase().chars().map(|c| if allowed(c) { c } else { '-' }).collect();
    let trimmed = plain.trim_matches(['.', '-']);
    if trimmed.is_empty() { "image".to_owned() } else { trimmed.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_parted_from_its_version_and_written_as_images_are_called() {
        for (path, name, version) in [
            ("hello-2.12.1", "hello", Some("2.12.1")),
            ("python3.11-requests-2.31.0", "python3.11-requests", Some("2.31.0")),
            ("jq", "jq", None),
            ("a-", "a-", None),
        ] {
            assert_eq!(name_and_version(path), (name.to_owned(), version.map(str::to_owned)), "{path}");
        }
        assert_eq!((reference("GTK+3_x"), reference("++")), ("gtk-3-x".to_owned(), "image".to_owned()));
        assert_eq!(
            (architecture(Some("x86_64-linux")), architecture(Some("s390x-linux"))),
            ("amd64".to_owned(), "s390x".to_owned())
        );
    }
}
