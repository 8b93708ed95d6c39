//! The files of the project, as text and as syntax trees.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[track_caller]
pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every Rust file below `folder`, with its path from the root of the project.
pub fn rust_files(folder: &str) -> BTreeMap<String, String> {
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

/// The Rust files of the program and of the formats, without tests beside them.
pub fn sources() -> BTreeMap<String, String> {
    ["src", "narinfo/src"].into_iter().flat_map(rust_files).collect()
}

pub fn all_files() -> BTreeMap<String, String> {
    ["src", "tests", "benches", "narinfo/src", "narinfo/tests"].into_iter().flat_map(rust_files).collect()
}

/// The same without files that are compiled for tests alone.
pub fn without_tests(mut files: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let modules: Vec<String> = files.iter().flat_map(|(file, text)| test_modules(file, text)).collect();
    files.retain(|file, _| {
        !modules.iter().any(|module| {
            file.strip_prefix(module.as_str()).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        })
    });
    files
}

/// The modules that a file declares for tests alone, each with its path and no ending.
fn test_modules(file: &str, text: &str) -> Vec<String> {
    let folder = file.trim_end_matches(".rs");
    let folder = ["/mod", "/lib", "/main"].iter().find_map(|end| folder.strip_suffix(end)).unwrap_or(folder);
    let modules = parse(file, text).items.into_iter().filter_map(|item| match item {
        syn::Item::Mod(module) if is_for_tests(&module.attrs) => Some(format!("{folder}/{}", module.ident)),
        _ => None,
    });
    modules.collect()
}

/// All files but these checks, which name what they look for.
pub fn all_files_but_these() -> BTreeMap<String, String> {
    all_files().into_iter().filter(|(file, _)| !file.starts_with("tests/tidy/")).collect()
}

#[track_caller]
pub fn parse(file: &str, text: &str) -> syn::File {
    syn::parse_file(text).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// True for what is compiled for tests alone.
pub fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) => {
            list.path.is_ident("cfg")
                && list.tokens.clone().into_iter().any(|token| token.to_string() == "test")
        }
        _ => false,
    })
}
