//! Attributes of a package set as JSON, page by page: all, or those that match. Evaluates nothing.

use super::Service;
use super::accept::{Preference, preference};
use super::answer::{self, json};
use super::api::{AttributeLine, AttributePage};
use super::call::{Call, parameters};
use super::error::Error;
use super::response_future::ResponseFuture;
use crate::catalogue::{Indexing, NoSuchName, SetName};
use crate::escape::Line;
use crate::model::Search;

/// Attributes in a page by default.
const LISTED_DEFAULT: u32 = 100;
/// Attributes in a page at most.
const LISTED_MAX: u32 = 1000;

/// Query of a list of attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListingQuery {
    /// Part of the name, or a pattern with `*`.
    pub(super) like: Option<String>,
    /// The system that is named.
    pub(super) system: Option<String>,
    /// The attribute after which the page begins.
    pub(super) after: String,
    /// Attributes at most.
    pub(super) max: u32,
}

/// The same for people: a browser is sent to the page of the set.
pub(super) fn for_people(call: Call<'_>) -> Option<ResponseFuture> {
    let set = SetName::new(call.arguments[0])?;
    if preference(&call.headers) != Preference::Html {
        return get(call);
    }
    let query = call.query.map(|query| format!("?{query}")).unwrap_or_default();
    Some(ResponseFuture::ready(answer::redirect(&format!("../../packages/{set}/{query}"))))
}

/// The address of a set's attributes without its slash.
pub(super) fn with_slash(call: Call<'_>) -> Option<ResponseFuture> {
    let set = SetName::new(call.arguments[0])?;
    let query = call.query.map(|query| format!("?{query}")).unwrap_or_default();
    Some(ResponseFuture::ready(answer::redirect(&format!("{set}/{query}"))))
}

pub(super) fn get(call: Call<'_>) -> Option<ResponseFuture> {
    let (set, wanted) = (SetName::new(call.arguments[0])?, ListingQuery::parse(call.query));
    let wanted = match wanted {
        Ok(wanted) => wanted,
        Err(reason) => return Some(ResponseFuture::failed(Error::BadRequest(reason))),
    };
    let service = call.service.clone();
    Some(ResponseFuture::pending(async move { Ok(json(&page(&service, &set, wanted).await?)) }))
}

/// A page of a set's attributes.
pub(super) async fn page(
    service: &Service,
    set: &SetName,
    wanted: ListingQuery,
) -> Result<AttributePage, Error> {
    let ListingQuery { like, system, after, max } = wanted;
    let Some((settings, _)) = service.state.catalogue.sets().find(|(settings, _)| settings.name == *set)
    else {
        return Err(service.state.catalogue.no_such_set(set).into());
    };
    let system = settings.system(system.as_deref())?.to_owned();
    // One more row shows that there is another page.
    let search = Search { like, after, system: system.clone(), max: max + 1 };
    let found = service.state.index.listed(set.to_string(), search).await;
    let found = found.map_err(|error| Error::index(&error, "attributes cannot be listed"))?;
    let Some((generation, mut rows)) = found else {
        return Err(Error::not_found(NoSuchName::NoGeneration(set.clone())));
    };
    let has_more = rows.len() > max as usize;
    rows.truncate(max as usize);
    Ok(AttributePage {
        set: set.to_string(),
        generation,
        system,
        complete: settings.indexing == Indexing::Full,
        next: rows.last().filter(|_| has_more).map(|row| row.attribute.clone()),
        attributes: rows.into_iter().map(AttributeLine::from).collect(),
    })
}

impl ListingQuery {
    pub(super) fn parse(query: Option<&str>) -> Result<Self, String> {
        let mut wanted = Self { like: None, system: None, after: String::new(), max: LISTED_DEFAULT };
        for (key, value) in parameters(query) {
            let value: String = value.ok_or_else(|| format!("{} is no UTF-8", Line(key)))?;
            match key {
                "q" => wanted.like = Some(value).filter(|like| !like.is_empty()),
                "system" => wanted.system = Some(value),
                "after" => wanted.after = value,
                "limit" => {
                    let max = value.parse().ok().filter(|max| (1..=LISTED_MAX).contains(max));
                    wanted.max = max.ok_or_else(|| format!("limit is a number from 1 to {LISTED_MAX}"))?;
                }
                _ => return Err(format!("there is no {}, but q, system, after and limit", Line(key))),
            }
        }
        Ok(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_attributes_is_looked_through_and_goes_page_by_page() {
        let wanted = |like: Option<&str>, system: Option<&str>, after: &str, max| ListingQuery {
            like: like.map(str::to_owned),
            system: system.map(str::to_owned),
            after: after.to_owned(),
            max,
        };
        assert_eq!(ListingQuery::parse(None), Ok(wanted(None, None, "", 100)));
        assert_eq!(ListingQuery::parse(Some("q=")), Ok(wanted(None, None, "", 100)));
        let all = "q=py%2a&system=a-linux&after=%22a+b%22&limit=1000";
        assert_eq!(ListingQuery::parse(Some(all)), Ok(wanted(Some("py*"), Some("a-linux"), "\"a+b\"", 1000)));
        for query in ["limit=0", "limit=1001", "limit=x", "page=2", "q=%ff"] {
            assert!(ListingQuery::parse(Some(query)).is_err(), "{query}");
        }
    }
}
