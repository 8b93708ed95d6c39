//! Walls: each crate and each duty has its room, and types of a crate underneath do not show outside of it.

use std::collections::BTreeMap;

use syn::visit::{self, Visit};

use super::files::{
    all_files, all_files_but_these, is_for_tests, parse, read, rust_files, sources, without_tests,
};

/// Crates whose types stand in public signatures only within these places.
const FOREIGN: [(&str, &[&str]); 17] = [
    ("rusqlite", &["src/index/sqlite/", "src/nix/database.rs", "src/remote/attic/database.rs"]),
    ("tokio_postgres", &["src/index/postgres/"]),
    ("deadpool_postgres", &["src/index/postgres/"]),
    ("hyper", &["src/http/", "src/upstream/proxies.rs"]),
    ("hyper_util", &["src/http/", "src/upstream/proxies.rs"]),
    ("http_body_util", &["src/http/"]),
    ("reqwest", &["src/upstream/", "src/remote/"]),
    ("rustls", &["src/upstream/", "src/index/postgres/"]),
    ("clap", &["src/cli/", "src/config/"]),
    ("toml", &["src/config/"]),
    ("anyhow", &["src/cli/", "src/main.rs"]),
    ("landlock", &["src/catalogue/sandbox.rs"]),
    ("memmap2", &["src/nar_store/mapped.rs"]),
    ("zstd", &["src/nar_store/", "src/decode/"]),
    ("object_store", &["src/nar_store/blobs/bucket/"]),
    ("nix_archive", &["narinfo/src/nar/"]),
    ("nix_derivation", &["narinfo/src/derivation/"]),
];

#[test]
fn types_of_a_crate_stand_in_public_signatures_of_its_room_alone() {
    let (mut seen, mut outside) = (0, Vec::new());
    for (file, text) in without_tests(sources()) {
        for (item, krate) in foreign(&parse(&file, &text)) {
            seen += 1;
            let (_, rooms) = FOREIGN.iter().find(|(name, _)| *name == krate).expect("one of these");
            if !rooms.iter().any(|room| file.starts_with(room)) {
                outside.push(format!("{file}: {item} has a type of {krate}, whose room is {rooms:?}"));
            }
        }
    }
    assert!(seen > 5, "only {seen} were found");
    assert!(outside.is_empty(), "{}", outside.join("\n"));
}

/// The public items of a file that have a type of a foreign crate, each with the crate.
fn foreign(file: &syn::File) -> Vec<(String, String)> {
    let mut names = Names::default();
    names.visit_file(file);
    let mut signatures = Signatures { names: names.0, item: String::new(), found: Vec::new() };
    signatures.visit_file(file);
    signatures.found
}

fn is_foreign(krate: &str) -> bool {
    FOREIGN.iter().any(|(name, _)| *name == krate)
}

/// Names that a file imports from foreign crates, each with the crate.
#[derive(Default)]
struct Names(BTreeMap<String, String>);

impl Names {
    fn tree(&mut self, tree: &syn::UseTree, krate: &str, last: &str) {
        match tree {
            syn::UseTree::Path(path) => self.tree(&path.tree, krate, &path.ident.to_string()),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(tree, krate, last)),
            syn::UseTree::Name(name) => {
                let name = name.ident.to_string();
                let name = if name == "self" { last.to_owned() } else { name };
                self.0.insert(name, krate.to_owned());
            }
            syn::UseTree::Rename(name) => {
                self.0.insert(name.rename.to_string(), krate.to_owned());
            }
            _ => {}
        }
    }
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if let syn::UseTree::Path(path) = &item.tree {
            let krate = path.ident.to_string();
            if is_foreign(&krate) {
                self.tree(&path.tree, &krate, &krate);
            }
        }
    }
}

struct Signatures {
    names: BTreeMap<String, String>,
    /// The item whose signature is visited; empty outside of one.
    item: String,
    found: Vec<(String, String)>,
}

impl Signatures {
    fn within(&mut self, item: impl ToString, visit: impl FnOnce(&mut Self)) {
        self.item = item.to_string();
        visit(self);
        self.item = String::new();
    }
}

fn is_public(visibility: &syn::Visibility) -> bool {
    matches!(visibility, syn::Visibility::Public(_))
}

impl<'ast> Visit<'ast> for Signatures {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_for_tests(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if !self.item.is_empty()
            && let Some(first) = path.segments.first()
        {
            let first = first.ident.to_string();
            let krate = self.names.get(&first).cloned().or(is_foreign(&first).then_some(first));
            self.found.extend(krate.map(|krate| (self.item.clone(), krate)));
        }
        visit::visit_path(self, path);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if is_public(&item.vis) {
            self.within(&item.sig.ident, |all| all.visit_signature(&item.sig));
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if is_public(&item.vis) {
            self.within(&item.sig.ident, |all| all.visit_signature(&item.sig));
        }
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        if is_public(&item.vis) {
            for field in item.fields.iter().filter(|field| is_public(&field.vis)) {
                self.within(&item.ident, |all| all.visit_type(&field.ty));
            }
        }
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        if is_public(&item.vis) {
            for field in item.variants.iter().flat_map(|variant| &variant.fields) {
                self.within(&item.ident, |all| all.visit_type(&field.ty));
            }
        }
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        if is_public(&item.vis) {
            for item in &item.items {
                if let syn::TraitItem::Fn(function) = item {
                    self.within(&function.sig.ident, |all| all.visit_signature(&function.sig));
                }
            }
        }
    }

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        if is_public(&item.vis) {
            self.within(&item.ident, |all| all.visit_type(&item.ty));
        }
    }
}

#[test]
fn foreign_types_are_found_in_every_kind_of_signature() {
    let text = "use hyper::{Request, body::Bytes as B};\nuse clap;\npub fn a(_: Request<u8>) {}\nfn b(_: B) {}\n\
                pub struct C { pub d: Vec<B>, e: Request<()> }\npub enum F { G(rusqlite::Error) }\n\
                impl C { pub fn h(&self) -> Option<B> { None } fn i(&self, _: B) {} }\npub trait J { fn k(_: B); }\n\
                pub type L = toml::Value;";
    let found = foreign(&parse("x.rs", text));
    let found: Vec<(&str, &str)> = found.iter().map(|(item, krate)| (&**item, &**krate)).collect();
    assert_eq!(
        found,
        [("a", "hyper"), ("C", "hyper"), ("F", "rusqlite"), ("h", "hyper"), ("k", "hyper"), ("L", "toml")]
    );
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
fn one_file_alone_may_be_unsafe() {
    let unsafe_files = all_files_but_these().into_iter().filter(|(_, text)| {
        // Every use of the word as code.
        text.contains("unsafe {") || text.contains("allow(unsafe_code)")
    });
    assert_eq!(unsafe_files.map(|(file, _)| file).collect::<Vec<_>>(), ["src/nar_store/mapped.rs"]);
}

#[test]
fn the_formats_know_no_runtime() {
    only_in(rust_files("narinfo/src"), &["tokio", "hyper", "rusqlite", "reqwest", "async fn", ".await"], &[]);
    let manifest = read("narinfo/Cargo.toml");
    for name in ["tokio", "hyper", "reqwest", "rusqlite"] {
        assert!(!manifest.contains(name), "narinfo depends on {name}");
    }
}

#[test]
fn status_codes_stand_in_two_files() {
    only_in(rust_files("src"), &["StatusCode"], &["src/http/answer.rs", "src/http/error.rs"]);
}

#[test]
fn sql_stands_in_the_index_and_beside_the_databases_of_others() {
    let nix = ["src/nix/database.rs", "src/nix/database_tests.rs"];
    only_in(
        rust_files("src"),
        &["rusqlite", "SELECT "],
        &["src/index/", nix[0], nix[1], "src/remote/attic/database.rs"],
    );
}

#[test]
fn http_stands_at_the_edges() {
    only_in(rust_files("src"), &["hyper"], &["src/http/", "src/upstream/proxies.rs"]);
}

/// Derived readers take an array for an object: the reader of the formats does not.
#[test]
fn json_is_read_by_one_reader() {
    let mut files = without_tests(sources());
    for text in files.values_mut() {
        text.truncate(text.find("\n#[cfg(test)]\nmod tests {").unwrap_or(text.len()));
    }
    let words = ["serde_json::from_s", "serde_json::from_reader", "serde_json::Deserializer"];
    only_in(files, &words, &["narinfo/src/json.rs"]);
}

#[test]
fn other_servers_are_asked_in_three_places() {
    let clients = ["src/upstream/", "src/remote/", "src/config/upstream.rs", "src/nar_store/blobs/bucket/"];
    let collector = ["src/telemetry/traces.rs"];
    only_in(rust_files("src"), &["reqwest"], &[&clients[..], &collector].concat());
}

#[test]
fn the_young_crates_are_named_by_their_wrappers_alone() {
    only_in(all_files_but_these(), &["nix_archive::"], &["narinfo/src/nar/"]);
    let wrappers = ["narinfo/src/store_path.rs", "narinfo/src/content_address.rs", "narinfo/src/derivation/"];
    only_in(all_files_but_these(), &["nix_derivation::"], &wrappers);
}

#[test]
fn every_file_opens_with_what_it_is_in_a_few_sentences() {
    /// Sentences of a file's doc at most, and the lines that they may take.
    const SENTENCES_MAX: usize = 15;
    const LINES_MAX: usize = 8;
    for (file, text) in all_files() {
        let doc: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("//!")).collect();
        assert!(!doc.is_empty(), "{file} does not open with //! lines");
        // A dot, not one within a name or an abbreviation.
        let sentences = doc.join(" ").split_inclusive(['.', ':']).filter(|s| s.trim().ends_with('.')).count();
        assert!((1..=SENTENCES_MAX).contains(&sentences), "{file}: the doc has {sentences} sentences");
        let lines = doc.len();
        assert!(lines <= LINES_MAX, "{file}: the doc has {lines} lines; details belong to the items");
    }
}

#[test]
fn every_file_can_be_held_in_mind() {
    /// Lines of a source file at most, tests at its end included.
    const FILE_LINES_MAX: usize = 500;
    for (file, text) in all_files() {
        let lines = text.lines().count();
        assert!(
            lines <= FILE_LINES_MAX,
            "{file} has {lines} lines, more than {FILE_LINES_MAX}: find a wall in it"
        );
    }
}
