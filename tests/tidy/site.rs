//! The documentation as a site: mdBook builds it without a warning, and every link of it leads somewhere.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use super::files::{read, root};

/// Names mdBook's program, where it is not on PATH.
const PROGRAM: &str = "ONDINE_TEST_MDBOOK";
/// Pages that mdBook adds: one for what is missing, whose links begin at the root of a server, and frames of
/// the contents, whose links are those of a page in their parent.
const ADDED: [&str; 2] = ["404.html", "toc.html"];

#[test]
#[ignore = "needs mdBook (cargo install mdbook, or ONDINE_TEST_MDBOOK)"]
fn the_site_is_built_and_no_link_of_it_is_broken() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = std::env::var(PROGRAM).unwrap_or_else(|_| "mdbook".to_owned());
    let mut mdbook = Command::new(&program);
    mdbook.arg("build").arg("--dest-dir").arg(folder.path()).current_dir(root());
    let built = mdbook.output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let told = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success() && !told.contains("WARN") && !told.contains("ERROR"), "{told}");

    let pages = pages(folder.path());
    let listed = read("docs/SUMMARY.md").matches(".md)").count();
    assert!(pages.len() >= listed, "{} of {listed} pages: {:?}", pages.len(), pages.keys());
    let (mut links, mut broken) = (0, Vec::new());
    for (page, html) in pages.iter().filter(|(page, _)| !ADDED.contains(&&***page)) {
        for link in targets(html) {
            links += 1;
            if let Err(fault) = follow(folder.path(), page, &link, &pages) {
                broken.push(format!("{page}: {link}: {fault}"));
            }
        }
    }
    assert!(links > 500, "only {links} links were found");
    assert!(broken.is_empty(), "{} of {links} links are broken:\n{}", broken.len(), broken.join("\n"));
}

/// The pages of the site, each with its path from the site's folder.
fn pages(site: &Path) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(site).expect("the site").map(|entry| entry.expect("an entry").path());
    let pages = entries.filter(|path| path.extension().is_some_and(|ending| ending == "html"));
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    pages.map(|path| (name(&path), std::fs::read_to_string(&path).expect("a page"))).collect()
}

/// Targets of links, images, styles and scripts within the site.
fn targets(html: &str) -> Vec<String> {
    let values = [" href=\"", " src=\""].into_iter().flat_map(|attribute| html.split(attribute).skip(1));
    let values = values.map(|rest| rest.split('"').next().unwrap_or_default().replace("&amp;", "&"));
    let leads_out = |target: &String| target.contains("://") || target.starts_with("data:");
    values.filter(|target| !leads_out(target)).collect()
}

/// Looks for the file, and for the heading in it.
fn follow(site: &Path, page: &str, link: &str, pages: &BTreeMap<String, String>) -> Result<(), String> {
    let (place, heading) = link.split_once('#').unwrap_or((link, ""));
    let place = place.split('?').next().unwrap_or_default();
    let file = if place.is_empty() { PathBuf::from(page) } else { PathBuf::from(place) };
    if !file.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err("it leads out of the site".to_owned());
    }
    if !site.join(&file).is_file() {
        return Err("no such file".to_owned());
    }
    let html = pages.get(file.to_string_lossy().trim_start_matches("./"));
    match html {
        Some(html) if !heading.is_empty() && !html.contains(&format!("id=\"{heading}\"")) => {
            Err("no such heading".to_owned())
        }
        _ => Ok(()),
    }
}

#[test]
fn links_of_a_page_are_found_and_followed() {
    let site = tempfile::tempdir().expect("a folder");
    let html =
        "<a href=\"b.html#there\">b</a><img src=\"./a.html\"><a href=\"https://x\">x</a><a href=\"#here\">";
    let found = targets(html);
    assert_eq!(found, ["b.html#there", "#here", "./a.html"]);
    for (name, html) in [("a.html", html), ("b.html", "<h2 id=\"there\">")] {
        std::fs::write(site.path().join(name), html).expect("written");
    }
    let pages = pages(site.path());
    let follow = |link: &str| follow(site.path(), "a.html", link, &pages);
    assert!(
        follow("b.html#there").is_ok() && follow("./a.html").is_ok() && follow("b.html?highlight=x").is_ok()
    );
    for broken in ["#here", "b.html#nowhere", "c.html", "../b.html", "/b.html"] {
        assert!(follow(broken).is_err(), "{broken}");
    }
}
