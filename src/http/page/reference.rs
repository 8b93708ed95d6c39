//! The HTTP API for people: every address of the table of endpoints, by who reads it.

use askama::Template;

use super::super::call::Call;
use super::super::endpoint::{Endpoint, Verb};
use super::super::error::Audience;
use super::super::response_future::ResponseFuture;
use super::visitor::{PageFrame, answer, respond};
use crate::caller::Action;

#[derive(Template)]
#[template(path = "reference.html", config = "src/http/page/askama.toml")]
struct ReferencePage {
    shell: PageFrame,
    groups: Vec<EndpointGroup>,
}

/// Endpoints for one kind of readers.
struct EndpointGroup {
    title: &'static str,
    id: &'static str,
    rows: Vec<EndpointRow>,
}

/// An endpoint.
struct EndpointRow {
    verb: &'static str,
    pattern: &'static str,
    summary: &'static str,
    right: Option<&'static str>,
    query: &'static [(&'static str, &'static str)],
    /// True for an address that can be opened as it is.
    opens: bool,
}

impl EndpointRow {
    fn new(endpoint: &Endpoint) -> Self {
        let pattern = endpoint.pattern.as_str();
        let needs_right = !endpoint.open && endpoint.action != Action::Read;
        Self {
            verb: endpoint.verb.as_str(),
            pattern,
            summary: endpoint.summary,
            right: needs_right.then(|| endpoint.action.name()),
            query: endpoint.query,
            opens: endpoint.verb == Verb::Get && !pattern.contains('<'),
        }
    }

    /// Parts of a text in turns: words, and code.
    fn in_turns(text: &'static str) -> impl Iterator<Item = &'static str> {
        text.split('`')
    }

    /// The address from the cache's own folder.
    fn address(&self) -> &'static str {
        self.pattern.trim_start_matches('/')
    }
}

/// The page.
pub(in crate::http) fn get(call: Call<'_>) -> Option<ResponseFuture> {
    let endpoints = call.service.endpoints();
    respond(&call, Action::Read, |_, visitor| async move {
        let group = |title, id, is_in: fn(&Endpoint) -> bool| EndpointGroup {
            title,
            id,
            rows: endpoints.iter().filter(|endpoint| is_in(endpoint)).map(EndpointRow::new).collect(),
        };
        let groups = vec![
            group("API", "api", |row| row.audience == Audience::Api),
            group("Cache", "cache", |row| row.audience == Audience::Cache),
            group("Uploads", "uploads", |row| row.audience == Audience::Upload),
            group("People and monitoring", "people", |row| row.audience == Audience::Person),
        ];
        Ok(answer(&ReferencePage { shell: visitor.shell("HTTP API", "reference"), groups }))
    })
}
