//! One store path: its contents, what it needs and what needs it, and why it is kept.

use askama::Template;
use narinfo::StorePathHash;

use super::super::Service;
use super::super::api::PathDetails;
use super::super::call::{Call, parameters};
use super::super::error::Error;
use super::super::response_future::ResponseFuture;
use super::super::status::{self, REFERRERS_MAX};
use super::format::{ByteCount, Count, PathLabel, Span};
use super::treemap::{CLOSURE_MAX, Treemap};
use super::visitor::{PageFrame, Visitor, answer, respond};
use crate::caller::Action;

/// References that are listed, of a path that may have a hundred thousand.
const REFERENCES_SHOWN: usize = 200;

#[derive(Template)]
#[template(path = "path.html", config = "src/http/page/askama.toml")]
struct PathPage {
    shell: PageFrame,
    label: PathLabel,
    details: PathDetails,
    size: ByteCount,
    file_size: Option<ByteCount>,
    /// Paths that it needs, of which only some are listed.
    needed: Count,
    references: Vec<PathLabel>,
    referrers: Vec<PathLabel>,
    deriver: Option<PathLabel>,
    /// Time for which it is retained after its last use, of a pushed derivation.
    pushed: Option<Span>,
    treemap: Treemap,
    /// The path whose closure is drawn, where it is another one.
    zoomed: Option<PathLabel>,
    store_dir: String,
}

/// The page.
pub(in crate::http) fn get(call: Call<'_>) -> Option<ResponseFuture> {
    let hash: StorePathHash = call.arguments[0].parse().ok()?;
    let at = parameters(call.query).find(|(key, _)| *key == "at").and_then(|(_, at)| at);
    let at = at.and_then(|at| at.parse::<StorePathHash>().ok()).filter(|at| *at != hash);
    respond(&call, Action::Read, |service, visitor| async move {
        Ok(answer(&page(&service, &visitor, hash, at).await?))
    })
}

async fn page(
    service: &Service,
    visitor: &Visitor,
    hash: StorePathHash,
    at: Option<StorePathHash>,
) -> Result<PathPage, Error> {
    let details = status::path_details(service, hash).await?;
    let unreadable = |error| Error::index(&error, "a closure cannot be read");
    let index = &service.state.index;
    let mut rows = index.closure(at.unwrap_or(hash), CLOSURE_MAX).await.map_err(unreadable)?;
    if rows.is_empty() && at.is_some() {
        rows = index.closure(hash, CLOSURE_MAX).await.map_err(unreadable)?;
    }
    let root = rows.first().map(|row| row.info.path.clone());
    // A path that refers to itself does not need another one for that.
    let needed = || details.references.iter().filter(|name| **name != details.path);
    let label = PathLabel::new(&*details.path);
    let named = index.pushed_named(format!("{}.drv", label.name())).await;
    let is_pushed = named
        .map_err(|error| Error::index(&error, "pushed derivations cannot be read"))?
        .iter()
        .any(|drv| drv.to_string() == details.path);
    Ok(PathPage {
        shell: visitor.shell(label.name(), ""),
        size: ByteCount(details.nar_size),
        file_size: details.file_size.map(ByteCount),
        needed: Count(needed().count() as u64),
        references: needed().take(REFERENCES_SHOWN).map(|name| PathLabel::new(&**name)).collect(),
        referrers: details.referrers.iter().map(|name| PathLabel::new(&**name)).collect(),
        deriver: details.deriver.as_ref().map(|deriver| PathLabel::new(&**deriver)),
        pushed: is_pushed.then(|| Span(service.state.retention.keep_pushed().as_secs())),
        treemap: Treemap::new(&rows),
        zoomed: root.map(|root| PathLabel::new(root.to_string())).filter(|root| *root != label),
        store_dir: service.state.store_dir.to_string(),
        label,
        details,
    })
}

impl PathPage {
    fn has_more_references(&self) -> bool {
        self.needed.0 > self.references.len() as u64
    }

    fn has_more_referrers(&self) -> bool {
        self.referrers.len() >= REFERRERS_MAX as usize
    }
}
