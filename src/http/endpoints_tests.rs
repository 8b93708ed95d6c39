//! The table of endpoints: each row is reached, and the documentation has exactly these.

use std::collections::BTreeSet;
use std::path::Path;

use super::endpoint::Endpoint;
use super::endpoints::ENDPOINTS;

#[test]
fn every_row_is_reached_and_says_what_it_is() {
    for (at, endpoint) in ENDPOINTS.iter().enumerate() {
        let address = endpoint.pattern.as_str().replace(['<', '>'], "");
        let first = ENDPOINTS
            .iter()
            .position(|row| row.verb == endpoint.verb && row.pattern.matches(&address).is_some());
        assert_eq!(first, Some(at), "{address}");
        assert!(!endpoint.summary.is_empty() && !endpoint.summary.ends_with('.'), "{address}");
    }
}

#[test]
fn the_documentation_names_exactly_these_endpoints() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/http-api.md");
    let text = std::fs::read_to_string(&page).expect("a readable page");
    let rows =
        text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(cell, _)| cell));
    let is_endpoint = |cell: &&str| {
        cell.split_once(' ').is_some_and(|(verb, path)| verb != "HEAD" && path.starts_with('/'))
    };
    let named: Vec<&str> = rows.filter(is_endpoint).filter(|cell| *cell != "GET /cached/…").collect();
    let named: BTreeSet<String> = named.into_iter().map(str::to_owned).collect();
    let address = |row: &Endpoint| format!("{} {}", row.verb.as_str(), row.pattern.as_str());
    let ours: BTreeSet<String> = ENDPOINTS.iter().map(address).collect();
    let table: String =
        ENDPOINTS.iter().map(|row| format!("| `{}` | {} |\n", address(row), row.summary)).collect();
    assert_eq!(named, ours, "{} must have these rows:\n{table}", page.display());
}
