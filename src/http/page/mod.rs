//! Pages for people with a browser, rendered here from what the API gives. Reading order: visitor, format,
//! assets, then one file for each kind of page. Everything works without scripts. Must never put a text
//! into a page but through a template, which escapes it.

mod assets;
mod chart;
mod derivation;
mod failures;
mod format;
mod graph;
mod home;
mod log_text;
mod packages;
mod path;
mod reference;
mod search;
mod session;
mod sign_in;
mod statistics;
mod treemap;
mod visitor;

pub(super) use assets::get as asset;
use format::encoded;

pub(super) use derivation::get as derivation;
pub(super) use failures::{list as failures, retry};
pub(super) use home::get as home;
pub(super) use packages::{attribute, list as packages, set};
pub(super) use path::get as path;
pub(super) use reference::get as reference;
pub(super) use search::get as search;
pub(super) use sign_in::{sign_in, sign_in_form, sign_out, theme};
pub(super) use statistics::get as statistics;
pub(super) use visitor::{LostBrowser, caller};

/// Address, name and mark of further parts of the site in the navigation.
const MORE_SECTIONS: &[(&str, &str, &str)] =
    &[("statistics", "Statistics", "statistics"), ("reference", "API", "reference")];
