//! Imports: none in a circle, and none against the order of `src/lib.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

use super::files::{is_for_tests, parse, read, rust_files, without_tests};

type Edges = BTreeMap<String, BTreeSet<String>>;

/// The imports within each room, between its parts; a folder's mod.rs speaks for the folder as a whole.
fn rooms(folder: &str) -> BTreeMap<String, Edges> {
    let mut rooms: BTreeMap<String, Edges> = BTreeMap::new();
    for (file, text) in without_tests(rust_files(folder)) {
        let module = module_of(&file, folder);
        for target in imports(&parse(&file, &text), &module) {
            let shared = module.iter().zip(&target).take_while(|(a, b)| a == b).count();
            let (Some(from), Some(to)) = (module.get(shared), target.get(shared)) else { continue };
            let room = module[..shared].join("::");
            rooms.entry(room).or_default().entry(from.clone()).or_default().insert(to.clone());
        }
    }
    assert!(rooms.len() > 1, "{folder}: no imports were found, which cannot be");
    rooms
}

#[test]
fn imports_form_no_cycle() {
    for folder in ["src", "narinfo/src"] {
        for (room, edges) in rooms(folder) {
            if let Some(cycle) = cycle(&edges) {
                panic!("{folder}, room {room:?}: these import each other: {}", cycle.join(" -> "));
            }
        }
    }
}

#[test]
fn imports_point_down_the_list_of_the_library() {
    let order: Vec<String> = parse("src/lib.rs", &read("src/lib.rs"))
        .items
        .iter()
        .filter_map(
            |item| if let syn::Item::Mod(module) = item { Some(module.ident.to_string()) } else { None },
        )
        .collect();
    let place = |name: &String| order.iter().position(|module| module == name);
    let (mut seen, mut against) = (0, Vec::new());
    for (from, targets) in &rooms("src")[""] {
        for to in targets {
            let (Some(from_at), Some(to_at)) = (place(from), place(to)) else { continue };
            seen += 1;
            if from_at > to_at {
                against.push(format!("{from} imports {to}, which src/lib.rs lists before it"));
            }
        }
    }
    assert!(seen > 30, "only {seen} imports were found");
    assert!(against.is_empty(), "{}", against.join("\n"));
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

/// Every path below `crate`, `super` or `self` in a file, from the root of the crate. Tests within files are
/// left out.
fn imports(file: &syn::File, module: &[String]) -> Vec<Vec<String>> {
    let mut imports = Imports { module: module.to_vec(), found: Vec::new() };
    imports.visit_file(file);
    imports.found
}

struct Imports {
    module: Vec<String>,
    found: Vec<Vec<String>>,
}

impl Imports {
    /// Notes a path if it begins within this crate.
    fn note(&mut self, path: &[String]) {
        let mut base = match path.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self" | "super") => self.module.clone(),
            _ => return,
        };
        for part in path {
            match part.as_str() {
                "crate" | "self" => {}
                "super" => {
                    base.pop();
                }
                name => base.push(name.to_owned()),
            }
        }
        self.found.push(base);
    }

    fn use_tree(&mut self, tree: &syn::UseTree, mut path: Vec<String>) {
        match tree {
            syn::UseTree::Path(part) => {
                path.push(part.ident.to_string());
                self.use_tree(&part.tree, path);
            }
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.use_tree(tree, path.clone()));
            }
            syn::UseTree::Name(name) => {
                path.push(name.ident.to_string());
                self.note(&path);
            }
            syn::UseTree::Rename(name) => {
                path.push(name.ident.to_string());
                self.note(&path);
            }
            _ => self.note(&path),
        }
    }

    /// Notes the paths among the tokens of a macro, which are not parsed.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(name) => {
                    if colons != 2 {
                        self.note(&std::mem::take(&mut path));
                    }
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                other => {
                    self.note(&std::mem::take(&mut path));
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        self.note(&path);
    }
}

impl<'ast> Visit<'ast> for Imports {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_for_tests(&module.attrs) {
            self.module.push(module.ident.to_string());
            visit::visit_item_mod(self, module);
            self.module.pop();
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !is_for_tests(&item.attrs) {
            self.use_tree(&item.tree, Vec::new());
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.note(&parts);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }
}

fn cycle(edges: &Edges) -> Option<Vec<String>> {
    fn visit(
        node: &str,
        edges: &Edges,
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

#[test]
fn the_check_for_cycles_finds_them() {
    let edges = |pairs: &[(&str, &str)]| {
        let mut edges = Edges::new();
        for (from, to) in pairs {
            edges.entry((*from).into()).or_default().insert((*to).into());
        }
        edges
    };
    assert!(cycle(&edges(&[("a", "b"), ("b", "c"), ("c", "a")])).is_some());
    assert!(cycle(&edges(&[("a", "b"), ("a", "c"), ("b", "c")])).is_none());
}

#[test]
fn imports_are_found_wherever_they_are() {
    let text = "use crate::a::{b, c::D as E};\nfn f(_: crate::e::G) { super::h::i(); m!(1, crate::j::k(2)) }\n\
                mod inner { use super::l::M; }\n#[cfg(test)]\nmod tests { use crate::n::o; }";
    let found = imports(&parse("x.rs", text), &["x".into()]);
    let paths: [&[&str]; 6] =
        [&["a", "b"], &["a", "c", "D"], &["e", "G"], &["h", "i"], &["j", "k"], &["x", "l", "M"]];
    for path in paths {
        assert!(found.iter().any(|found| found == path), "{path:?} not in {found:?}");
    }
    assert!(!found.iter().any(|path| path.contains(&"n".to_owned())), "{found:?}");
}
