//! The entries of a directory, as a page for browsers and as JSON for everyone else.

use std::fmt::Write;

use narinfo::StorePathHash;
use narinfo::nar::{EntryKind, ListingEntry, name_in_json};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

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
    path: &[u8],
    found: &ResolvedFile,
) -> Answer {
    let below = name_in_json(path);
    let listing = DirectoryListing {
        path: format!("{}/{below}", found.path).trim_end_matches('/').to_owned(),
        entries: children(found).map(entry).collect(),
        listing: format!("/{hash}.ls"),
    };
    if preference(&asked.headers) == Preference::Html {
        // Relative to the address, which may be without a slash at its end.
        let folder = if path.ends_with(b"/") {
            String::new()
        } else {
            let last = path.rsplit(|byte| *byte == b'/').next().filter(|name| !name.is_empty());
            format!("{}/", last.map_or_else(|| hash.to_string(), encoded))
        };
        let links = children(found).map(|child| format!("{folder}{}", encoded(child.name())));
        return answer::plain_page(page(&listing, links));
    }
    answer::json(&listing)
}

fn children(found: &ResolvedFile) -> impl Iterator<Item = ListingEntry<'_>> {
    let directory = found.listing.entry(found.entry);
    directory.into_iter().flat_map(ListingEntry::children).take(ENTRIES_MAX)
}

fn entry(child: ListingEntry<'_>) -> DirectoryEntry {
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
}

/// A page with the entries, each with the link that leads to it from the address of the page.
fn page(listing: &DirectoryListing, links: impl Iterator<Item = String>) -> String {
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
    for (DirectoryEntry { name, kind, size, target, .. }, link) in listing.entries.iter().zip(links) {
        let slash = if *kind == DirectoryEntryType::Directory { "/" } else { "" };
        let arrow = target.as_deref().map(|target| format!(" → {}", text(target))).unwrap_or_default();
        let size = size.map(|size| size.to_string()).unwrap_or_default();
        let shown = text(name);
        // Writing to a string cannot fail.
        let _ = writeln!(
            html,
            "<tr><td><a href=\"{link}{slash}\">{shown}{slash}</a>{arrow}</td><td>{size}</td></tr>"
        );
    }
    html + "</table>\n</html>\n"
}

/// The bytes of a name, which need not be UTF-8, within an address.
fn encoded(name: &[u8]) -> String {
    percent_encode(name, IN_NAME).to_string()
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
        let names = [&b"a b?<&\""[..], b"bin", b"l\xff"];
        let html = page(&listing, names.into_iter().map(|name| format!("up/{}", encoded(name))));
        assert!(!html.contains("<script>") && !html.contains("<x>"), "{html}");
        for part in [
            "href=\"up/a%20b%3F%3C%26%22\"",
            "href=\"up/bin/\">bin/</a>",
            "href=\"up/l%FF\">l</a> → &lt;x&gt;",
        ] {
            assert!(html.contains(part), "no {part} in {html}");
        }
    }
}
