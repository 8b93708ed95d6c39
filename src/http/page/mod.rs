//! Pages for people with a browser, rendered here from what the API gives. Reading order: visitor, format,
//! assets, then one file for each kind of page. Everything works without scripts. Must never put a text
//! into a page but through a template, which escapes it.

mod assets;
mod failures;
mod format;
mod home;
mod packages;
mod search;
mod session;
mod sign_in;
mod visitor;

pub(super) use assets::get as asset;
use format::encoded;

pub(super) use failures::{list as failures, retry};
pub(super) use home::get as home;
pub(super) use packages::{attribute, list as packages, set};
pub(super) use search::get as search;
pub(super) use sign_in::{sign_in, sign_in_form, sign_out, theme};
pub(super) use visitor::caller;

/// Address, name and mark of further parts of the site in the navigation.
const MORE_SECTIONS: &[(&str, &str, &str)] = &[];
