//! Search over everything that has a name: attributes of package sets, store paths and derivations.

use askama::Template;

use super::super::Service;
use super::super::api::{AttributeLine, BuildItemState, Explanation};
use super::super::call::{Call, parameters};
use super::super::error::Error;
use super::super::listing::ListingQuery;
use super::super::response_future::ResponseFuture;
use super::super::{explain, listing};
use super::format::{PathLabel, encoded, form_encoded};
use super::visitor::{PageFrame, answer, respond};
use crate::caller::Action;
use crate::catalogue::SetName;
use crate::retry::Failed;
use crate::substitute::OnMiss;

/// Attributes of one set that are shown.
const FOUND_MAX: u32 = 50;

/// Attributes of a set that match.
struct FoundIn {
    set: String,
    attributes: Vec<AttributeLine>,
    has_more: bool,
}

#[derive(Template)]
#[template(path = "search.html", config = "src/http/page/askama.toml")]
struct SearchPage {
    shell: PageFrame,
    text: String,
    sets: Vec<FoundIn>,
    /// The one thing that has exactly this name.
    exact: Option<Explanation>,
}

impl SearchPage {
    fn is_empty(&self) -> bool {
        self.exact.is_none() && self.sets.iter().all(|found| found.attributes.is_empty())
    }

    fn link(&self, attribute: &str) -> String {
        encoded(attribute)
    }

    fn label(&self, derivation: &str) -> PathLabel {
        PathLabel::new(derivation.rsplit('/').next().unwrap_or_default())
    }
}

/// The results for `?q=`.
pub(in crate::http) fn get(call: Call<'_>) -> Option<ResponseFuture> {
    let query = call.query.map(form_encoded);
    let text = parameters(query.as_deref()).find(|(key, _)| *key == "q").and_then(|(_, text)| text);
    let text = text.map(|text| text.trim().to_owned()).unwrap_or_default();
    let on_miss = call.on_miss().without_building();
    respond(&call, Action::Read, |service, visitor| async move {
        let (mut sets, mut exact) = (Vec::new(), None);
        if !text.is_empty() {
            sets = found(&service, &text).await?;
            exact = exactly(&service, &text, on_miss).await;
        }
        Ok(answer(&SearchPage { shell: visitor.shell("Search", "search"), text, sets, exact }))
    })
}

async fn found(service: &Service, text: &str) -> Result<Vec<FoundIn>, Error> {
    let names: Vec<SetName> = service.state.catalogue.sets().map(|(set, _)| set.name.clone()).collect();
    let mut sets = Vec::new();
    for name in names {
        let query =
            ListingQuery { like: Some(text.to_owned()), system: None, after: String::new(), max: FOUND_MAX };
        // A set without a generation has nothing to be found.
        let Ok(page) = listing::page(service, &name, query).await else { continue };
        let mut attributes = page.attributes;
        // The shortest name is the nearest.
        attributes.sort_by_key(|line| line.attribute.len());
        sets.push(FoundIn { set: page.set, attributes, has_more: page.next.is_some() });
    }
    Ok(sets)
}

/// The path or derivation that is named by its hash.
async fn exactly(service: &Service, text: &str, on_miss: OnMiss) -> Option<Explanation> {
    let what = Failed::parse(text).filter(|what| !matches!(what, Failed::Name(_)))?;
    let explained = explain::explain(service, text.to_owned(), what, on_miss).await.ok()?;
    Some(explained).filter(|explained| explained.item.state != BuildItemState::Unknown)
}
