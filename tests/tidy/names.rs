//! Names of types: one meaning each in the whole program.

use std::collections::{BTreeMap, BTreeSet};

use syn::visit::{self, Visit};

use super::files::{is_for_tests, parse, rust_files, without_tests};

/// Names that every module may have for its own: the first three are read with the module's (`index::Error`),
/// the others are private parts of a handle.
const CONVENTIONAL: [&str; 6] = ["Error", "Metrics", "Settings", "Inner", "Shared", "State"];
#[test]
fn no_two_types_have_one_name() {
    let mut places: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (file, text) in without_tests(rust_files("src")) {
        let mut types = Types(Vec::new());
        types.visit_file(&parse(&file, &text));
        for name in types.0 {
            places.entry(name).or_default().insert(file.clone());
        }
    }
    assert!(places.len() > 300, "only {} types were found", places.len());
    places.retain(|name, files| files.len() > 1 && !CONVENTIONAL.contains(&&**name));
    let lines: Vec<String> = places.iter().map(|(name, files)| format!("{name}: {files:?}")).collect();
    assert!(lines.is_empty(), "these names stand for several types:\n{}", lines.join("\n"));
}

/// The types that a file defines, tests left out.
struct Types(Vec<String>);

impl<'ast> Visit<'ast> for Types {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_for_tests(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item(&mut self, item: &'ast syn::Item) {
        let named = match item {
            syn::Item::Struct(item) => Some((&item.ident, &item.attrs)),
            syn::Item::Enum(item) => Some((&item.ident, &item.attrs)),
            syn::Item::Union(item) => Some((&item.ident, &item.attrs)),
            syn::Item::Trait(item) => Some((&item.ident, &item.attrs)),
            syn::Item::Type(item) => Some((&item.ident, &item.attrs)),
            _ => None,
        };
        if let Some((name, attributes)) = named
            && !is_for_tests(attributes)
        {
            self.0.push(name.to_string());
        }
        visit::visit_item(self, item);
    }
}

#[test]
fn types_are_found_in_functions_and_not_in_tests() {
    let text = "struct A;\nfn f() { enum B {} }\n#[cfg(test)]\nmod tests { struct C; }\ntrait D { type E; }";
    let mut types = Types(Vec::new());
    types.visit_file(&parse("x.rs", text));
    assert_eq!(types.0, ["A", "B", "D"]);
}
