//! What the house keeps: every file says what it is, imports form no cycle, formats know no runtime, status codes and SQL
//! stand where they belong, each dependency has its reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a source file at most, tests at its end included.
const FILE_LINES_MAX: usize = 500;
/// Sentences of a file's doc at most.
const DOC_SENTENCES_MAX: usize = 5;
/// Words of the README at most, code included.
const README_WORDS_MAX: usize = 900;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `folder`, with its path from the root of the project.
fn rust_files(folder: &str) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("a readable file");
                files.insert(path.strip_prefix(root()).expect("below it").display().to_string(), text);
            }
        }
    }
    assert!(!files.is_empty(), "no Rust file in {folder}");
    files
}

fn all_files() -> BTreeMap<String, String> {
    ["src", "tests", "benches", "narinfo/src", "narinfo/tests"].into_iter().flat_map(rust_files).collect()
}

#[test]
fn every_file_opens_with_what_it_is_in_a_few_sentences() {
    for (file, text) in all_files() {
        let doc: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("//!")).collect();
        assert!(!doc.is_empty(), "{file} does not open with //! lines");
        // A dot, not one within a name or an abbreviation.
        let sentences = doc.join(" ").split_inclusive(['.', ':']).filter(|s| s.trim().ends_with('.')).count();
        assert!(
            (1..=DOC_SENTENCES_MAX * 3).contains(&sentences),
            "{file}: the doc has {sentences} sentences"
        );
        assert!(doc.len() <= 8, "{file}: the doc has {} lines; details belong to the items", doc.len());
    }
}

#[test]
fn every_file_can_be_held_in_mind() {
    for (file, text) in all_files() {
        let lines = text.lines().count();
        assert!(
            lines <= FILE_LINES_MAX,
            "{file} has {lines} lines, more than {FILE_LINES_MAX}: find a wall in it"
        );
    }
}

#[test]
fn one_file_alone_may_be_unsafe() {
    let unsafe_files = all_files().into_iter().filter(|(file, text)| {
        // Not this line, but every use of the word as code.
        *file != "tests/tidy.rs" && (text.contains("unsafe {") || text.contains("allow(unsafe_code)"))
    });
    assert_eq!(unsafe_files.map(|(file, _)| file).collect::<Vec<_>>(), ["src/nar_store/mapped.rs"]);
}

#[test]
fn imports_form_no_cycle() {
    for (folder, names) in [("src", "crate"), ("narinfo/src", "crate")] {
        let files = rust_files(folder);
        // Between the top modules, and between the parts of each; a folder's mod.rs speaks for the folder as a whole.
        let mut rooms: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
        for (file, text) in &files {
            let module = module_of(file, folder);
            for target in imports(text, &module, names) {
                let shared = module.iter().zip(&target).take_while(|(a, b)| a == b).count();
                let (Some(from), Some(to)) = (module.get(shared), target.get(shared)) else { continue };
                let room = module[..shared].join("::");
                rooms.entry(room).or_default().entry(from.clone()).or_default().insert(to.clone());
            }
        }
        assert!(rooms.len() > 1, "{folder}: no imports were found, which cannot be");
        for (room, edges) in rooms {
            if let Some(cycle) = cycle(&edges) {
                panic!("{folder}, room {room:?}: these import each other: {}", cycle.join(" -> "));
            }
        }
    }
}

#[test]
fn the_check_for_cycles_finds_them() {
    let edges = |pairs: &[(&str, &str)]| {
        let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in pairs {
            edges.entry((*from).into()).or_default().insert((*to).into());
        }
        edges
    };
    assert!(cycle(&edges(&[("a", "b"), ("b", "c"), ("c", "a")])).is_some());
    assert!(cycle(&edges(&[("a", "b"), ("a", "c"), ("b", "c")])).is_none());
    let found =
        imports("use crate::a::{b, c::D};\nfn f() { crate::e::g(); super::h::i() }", &["x".into()], "crate");
    for path in [&["a", "b"][..], &["a", "c", "D"], &["e", "g"], &["h", "i"]] {
        assert!(found.iter().any(|p| p == path), "{path:?} not in {found:?}");
    }
}

/// The module path of a file: `src/build/queue.rs` is build::queue, `src/build/mod.rs` is build.
fn module_of(file: &str, folder: &str) -> Vec<String> {
    let path = Path::new(file).strip_prefix(folder).expect("in the folder").with_extension("");
    let mut module: Vec<String> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        module.pop();
    }
    module
}

/// Every path below `crate` or `super` that the text names, from the root of the crate. Tests within files are left out.
fn imports(text: &str, module: &[String], krate: &str) -> Vec<Vec<String>> {
    let code: String = text
        .split("#[cfg(test)]\nmod tests")
        .next()
        .unwrap_or_default()
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut found = Vec::new();
    for (keyword, up) in [(krate, module.len()), ("super", 1)] {
        for (at, _) in code.match_indices(&format!("{keyword}::")) {
            let own_word = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
            if own_word && up <= module.len() {
                let base = module[..module.len() - up].to_vec();
                tree(&code[at + keyword.len() + 2..], &base, &mut found);
            }
        }
    }
    found
}

/// Reads a use tree (`a::{b, c::d}`) or a plain path, and adds each of its paths to `found`. Gives the rest of the text.
fn tree<'a>(mut text: &'a str, base: &[String], found: &mut Vec<Vec<String>>) -> &'a str {
    let mut path = base.to_vec();
    loop {
        text = text.trim_start();
        if let Some(inner) = text.strip_prefix('{') {
            text = inner.trim_start();
            while !text.starts_with('}') && !text.is_empty() {
                text = tree(text, &path, found).trim_start();
                text = text.strip_prefix(',').unwrap_or(text).trim_start();
            }
            return text.strip_prefix('}').unwrap_or(text);
        }
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        if name.is_empty() {
            return text.get(1..).unwrap_or_default();
        }
        if name != "self" {
            path.push(name.to_owned());
        }
        match rest.strip_prefix("::") {
            Some(more) => text = more,
            None => {
                found.push(path);
                // `as name` belongs to the item before it.
                let rest = rest.trim_start();
                return match rest.strip_prefix("as ") {
                    Some(alias) => alias.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'),
                    None => rest,
                };
            }
        }
    }
}

fn cycle(edges: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn visit(
        node: &str,
        edges: &BTreeMap<String, BTreeSet<String>>,
        trail: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        if let Some(start) = trail.iter().position(|seen| seen == node) {
            return Some(trail[start..].iter().cloned().chain([node.to_owned()]).collect());
        }
        if !done.contains(node) {
            trail.push(node.to_owned());
            for next in edges.get(node).into_iter().flatten() {
                if let Some(cycle) = visit(next, edges, trail, done) {
                    return Some(cycle);
                }
            }
            trail.pop();
            done.insert(node.to_owned());
        }
        None
    }
    let mut done = BTreeSet::new();
    edges.keys().find_map(|node| visit(node, edges, &mut Vec::new(), &mut done))
}

/// Fails for every file outside `allowed` that has one of `words`.
fn only_in(files: BTreeMap<String, String>, words: &[&str], allowed: &[&str]) {
    let mut seen = 0;
    for (file, text) in files {
        for word in words {
            if text.contains(word) {
                seen += 1;
                assert!(allowed.iter().any(|place| file.starts_with(place)), "{file} has {word:?}");
            }
        }
    }
    assert!(allowed.is_empty() || seen > 0, "{words:?} is nowhere: this check checks nothing");
}

#[test]
fn the_formats_know_no_runtime() {
    only_in(rust_files("narinfo/src"), &["tokio", "hyper", "rusqlite", "reqwest", "async fn", ".await"], &[]);
    let manifest = fs::read_to_string(root().join("narinfo/Cargo.toml")).expect("the manifest");
    for name in ["tokio", "hyper", "reqwest", "rusqlite"] {
        assert!(!manifest.contains(name), "narinfo depends on {name}");
    }
}

#[test]
fn status_codes_stand_in_two_files() {
    only_in(rust_files("src"), &["StatusCode"], &["src/http/answer.rs", "src/http/error.rs"]);
}

#[test]
fn sql_stands_in_the_index_and_beside_the_database_of_nix() {
    only_in(
        rust_files("src"),
        &["rusqlite", "SELECT "],
        &["src/index/", "src/nix/database.rs", "src/nix/database_tests.rs"],
    );
}

#[test]
fn http_stands_at_the_edges() {
    only_in(rust_files("src"), &["hyper"], &["src/http/", "src/cli/control.rs", "src/upstream/proxies.rs"]);
}

#[test]
fn other_caches_are_asked_in_one_place() {
    only_in(rust_files("src"), &["reqwest"], &["src/upstream/", "src/config/upstream.rs"]);
}

#[test]
fn the_young_crates_are_named_by_their_wrappers_alone() {
    only_in(all_files_but_this(), &["nix_archive::"], &["narinfo/src/nar/"]);
    let wrappers = ["narinfo/src/store_path.rs", "narinfo/src/content_address.rs", "narinfo/src/derivation/"];
    only_in(all_files_but_this(), &["nix_derivation::"], &wrappers);
}

fn all_files_but_this() -> BTreeMap<String, String> {
    all_files().into_iter().filter(|(file, _)| file != "tests/tidy.rs").collect()
}

#[test]
fn every_dependency_has_its_reason() {
    for manifest in ["Cargo.toml", "narinfo/Cargo.toml"] {
        let text = fs::read_to_string(root().join(manifest)).expect("the manifest");
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
fn every_test_that_the_table_of_faults_names_exists() {
    let table = fs::read_to_string(root().join("tests/README.md")).expect("the table");
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
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { root().join(page) } else { root().join(folder).join(file) };
            let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{page} links to {target}: {e}"));
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
    let readme = fs::read_to_string(root().join("README.md")).expect("the README");
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
