//! The entries of a directory, as a page for browsers and as JSON for everyone else.

use std::fmt::Write;

use narinfo::StorePathHash;
use narinfo::nar::{EntryKind, ListingEntry, name_in_json};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::contents::ResolvedFile;
use crate::escape::Line;
use crate::http::accept::{Preference, preference};
use crate::http::answer::{self, Answer};
use crate::http::api::{DirectoryEntry, DirectoryEntryType, DirectoryListing};
use crate::http::delivery::DeliveryRequest;

/// Entries of a directory in an answer at most; the listing of the NAR has all.
const ENTRIES_MAX: usize = 10_000;
/// Bytes that need no escape in a name within an address.
const IN_NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'+');

/// The entries of what was found at a path.
pub(super) fn answer(
    asked: &DeliveryRequest,
    hash: StorePathHash,
    path: &str,
    found: &ResolvedFile,
) -> Answer {
    let listing = DirectoryListing {
        path: format!("{}/{path}", found.path).trim_end_matches('/').to_owned(),
        entries: entries(found),
        listing: format!("/{hash}.ls"),
    };
    if preference(&asked.headers) == Preference::Html {
        // Relative to the address, which may be without a slash at its end.
        let folder = if path.ends_with('/') {
            String::new()
        } else {
            let last = path.rsplit('/').next().filter(|name| !name.is_empty());
            format!("{}/", last.map_or_else(|| hash.to_string(), encoded))
        };
        return answer::plain_page(page(&listing, &folder));
    }
    answer::json(&listing)
}

fn entries(found: &ResolvedFile) -> Vec<DirectoryEntry> {
    let directory = found.listing.entry(found.entry);
    let children = directory.into_iter().flat_map(ListingEntry::children).take(ENTRIES_MAX);
    let entry = |child: ListingEntry<'_>| {
        let name = name_in_json(child.name()).into_owned();
        let (kind, size, executable, target) = match child.kind() {
            EntryKind::Directory => (DirectoryEntryType::Directory, None, false, None),
            EntryKind::Regular { executable, bytes, .. } => {
                (DirectoryEntryType::Regular, Some(bytes), executable, None)
            }
            EntryKind::Symlink(target) => {
                let target = name_in_json(target).into_owned();
                (DirectoryEntryType::Symlink, None, false, Some(target))
            }
        };
        DirectoryEntry { name, kind, size, executable, target }
    };
    children.map(entry).collect()
}

/// A page with the entries; `folder` leads from its address to them.
fn page(listing: &DirectoryListing, folder: &str) -> String {
    let title = text(&listing.path);
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }} \
         body {{ max-width: 70rem; margin: 2rem auto; padding: 0 1rem }} \
         h1 {{ font-size: 1.2rem; overflow-wrap: anywhere }} table {{ border-spacing: 0 }} \
         td {{ padding: .1rem 1.5rem .1rem 0; overflow-wrap: anywhere }} \
         td + td {{ text-align: right; font-variant-numeric: tabular-nums }}</style>\n<h1>{title}</h1>\n<table>\n"
    );
    for DirectoryEntry { name, kind, size, target, .. } in &listing.entries {
        let slash = if *kind == DirectoryEntryType::Directory { "/" } else { "" };
        let arrow = target.as_deref().map(|target| format!(" → {}", text(target))).unwrap_or_default();
        let size = size.map(|size| size.to_string()).unwrap_or_default();
        let (link, shown) = (encoded(name), text(name));
        // Writing to a string cannot fail.
        let _ = writeln!(
            html,
            "<tr><td><a href=\"{folder}{link}{slash}\">{shown}{slash}</a>{arrow}</td><td>{size}</td></tr>"
        );
    }
    html + "</table>\n</html>\n"
}

fn encoded(name: &str) -> String {
    utf8_percent_encode(name, IN_NAME).to_string()
}

/// Text within HTML.
fn text(text: &str) -> String {
    let escaped = Line(text).to_string();
    escaped.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_text_in_the_page_and_lead_to_their_files() {
        let entry = |name: &str, kind, target: Option<&str>| DirectoryEntry {
            name: name.to_owned(),
            kind,
            size: Some(7).filter(|_| kind == DirectoryEntryType::Regular),
            executable: false,
            target: target.map(str::to_owned),
        };
        let listing = DirectoryListing {
            path: "x<script>".to_owned(),
            entries: vec![
                entry("a b?<&\"", DirectoryEntryType::Regular, None),
                entry("bin", DirectoryEntryType::Directory, None),
                entry("l", DirectoryEntryType::Symlink, Some("<x>")),
            ],
            listing: String::new(),
        };
        let html = page(&listing, "up/");
        assert!(!html.contains("<script>") && !html.contains("<x>"), "{html}");
        for part in ["href=\"up/a%20b%3F%3C%26%22\"", "href=\"up/bin/\">bin/</a>", "l</a> → &lt;x&gt;"] {
            assert!(html.contains(part), "no {part} in {html}");
        }
    }
}
