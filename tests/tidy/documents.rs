//! The documentation is true: files and tests that it names exist, links lead somewhere, pages are readable
//! in a terminal.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::files::{read, root, rust_files};
use super::prose::COMMENT_COLUMNS_MAX;

/// Words of the README at most, code included.
const README_WORDS_MAX: usize = 900;

#[test]
fn every_dependency_has_its_reason() {
    for manifest in ["Cargo.toml", "narinfo/Cargo.toml"] {
        let text = read(manifest);
        let (mut within, mut before, mut count) = (false, "", 0);
        for line in text.lines() {
            if line.starts_with('[') {
                within = line == "[dependencies]";
            } else if within && line.contains('=') {
                count += 1;
                let grouped = before.contains('=');
                assert!(before.starts_with("# ") || grouped, "{manifest}: no reason above {line}");
            }
            before = line;
        }
        assert!(count > 3, "{manifest}: no dependencies were found, which cannot be");
    }
}

#[test]
fn every_file_of_tests_is_a_part_of_a_program() {
    let (manifest, server) = (read("Cargo.toml"), read("tests/main.rs"));
    for file in rust_files("tests").into_keys() {
        let Some(name) = file.strip_prefix("tests/").and_then(|name| name.strip_suffix(".rs")) else {
            continue;
        };
        if name == "main" || name.contains('/') {
            continue;
        }
        let runs = server.contains(&format!("\nmod {name};\n"))
            || manifest.contains(&format!("path = \"tests/{name}.rs\"\n"));
        assert!(runs, "{file} is in no program: name it in tests/main.rs, or no test of it ever runs");
    }
}

#[test]
fn every_test_that_the_table_of_faults_names_exists() {
    let table = read("tests/README.md");
    let named: Vec<(&str, &str)> = table
        .lines()
        .filter_map(|line| line.strip_suffix("` |")?.rsplit('`').next()?.split_once("::"))
        .collect();
    assert!(named.len() > 40, "only {} rows were found", named.len());
    for (file, name) in named {
        let path = root().join(format!("tests/{file}.rs"));
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(text.contains(&format!("#[test]\nfn {name}()")), "{file} has no test called {name}");
    }
}

#[test]
fn every_file_that_the_documentation_names_exists() {
    let mut named = 0;
    for (page, text) in documentation() {
        for code in text.split('`').skip(1).step_by(2) {
            let folders = ["src/", "narinfo/", "tests/", "nixos-module/", "benches/", "docs/"];
            if folders.iter().any(|folder| code.starts_with(folder)) && !code.contains([' ', '*']) {
                named += 1;
                assert!(root().join(code).exists(), "{page} names {code}, which is not there");
            }
        }
    }
    assert!(named > 40, "only {named} were found");
}

#[test]
fn every_link_of_the_documentation_leads_somewhere() {
    let pages = documentation();
    let mut links = 0;
    for (page, text) in &pages {
        let folder = Path::new(page).parent().expect("a page is in a folder");
        for (_, rest) in text.match_indices("](").map(|(at, _)| text.split_at(at + 2)) {
            let target = rest.split(')').next().unwrap_or_default();
            if target.contains("://") {
                continue;
            }
            links += 1;
            // The site has the pages of docs/ alone.
            let leaves = page.starts_with("docs/") && target.starts_with("..");
            assert!(!leaves, "{page} links to {target}, which is not on the site: name the file instead");
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { root().join(page) } else { root().join(folder).join(file) };
            // An image has no headings.
            let bytes = fs::read(&file).unwrap_or_else(|e| panic!("{page} links to {target}: {e}"));
            let text = String::from_utf8_lossy(&bytes);
            assert!(
                heading.is_empty() || anchors(&text).any(|anchor| anchor == heading),
                "{page} links to {target}, a heading that is not there"
            );
        }
    }
    assert!(links > 20, "only {links} links were found");
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> impl Iterator<Item = String> {
    page.lines().filter(|line| line.starts_with('#')).map(|line| {
        let words = line.trim_start_matches('#').trim().to_lowercase();
        words
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
            .collect::<String>()
            .replace(' ', "-")
    })
}

#[test]
fn the_readme_is_a_front_door() {
    let readme = read("README.md");
    let words = readme.split_whitespace().count();
    assert!(words <= README_WORDS_MAX, "README.md has {words} words; details belong in docs/");
}

/// The README and every page of docs/, with its path from the root of the project.
fn documentation() -> BTreeMap<String, String> {
    let entries = fs::read_dir(root().join("docs")).expect("the folder of pages");
    let pages = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    let pages = pages.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}"));
    let pages = pages.chain(["README.md".to_owned()]);
    pages.map(|page| (page.clone(), fs::read_to_string(root().join(page)).expect("a page"))).collect()
}

#[test]
fn the_site_has_every_page() {
    let summary = read("docs/SUMMARY.md");
    for page in documentation().into_keys().filter_map(|page| page.strip_prefix("docs/").map(str::to_owned)) {
        let is_listed = page == "SUMMARY.md" || summary.contains(&format!("]({page})"));
        assert!(is_listed, "docs/SUMMARY.md, the contents of the site, lacks {page}");
    }
    let book = read("book.toml");
    assert!(book.contains("src = \"docs\""), "{book}");
}

#[test]
fn pages_are_narrow() {
    for (page, text) in documentation() {
        let mut code = false;
        for (at, line) in text.lines().enumerate() {
            code ^= line.trim_start().starts_with("```");
            // Rows of tables cannot be broken.
            let columns = if code || line.starts_with('|') { 0 } else { line.chars().count() };
            assert!(columns <= COMMENT_COLUMNS_MAX, "{page}:{} has {columns} columns", at + 1);
        }
    }
}
