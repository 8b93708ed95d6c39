//! A package set in a file that a test writes anew for each bump, and a server that has it.
//! Attributes are Nix texts, so that broken ones stand beside whole ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::addresses::narinfo_address;
use super::derivations;
use super::http::{Http, Response};
use super::ondine::Ondine;
use super::process::{self, Background, Finished, wait_until};
use super::store::{Folder, NixStore, text, write};

/// An attribute that goes on for ever without more memory.
pub const LOOPS: &str = "let many = builtins.genList (x: x) 10000; over = next: n: builtins.foldl' next n many; \
                     in over (a: _: over (a: _: over (a: _: over (a: b: a + b) a) a) a) 0";
/// Takes all memory there is, within a fraction of a second.
pub const EATS: &str = "builtins.foldl' (list: n: list ++ list) [ 0 ] (builtins.genList (n: n) 60)";
/// Prints without end.
pub const PRINTS: &str = "let line = builtins.concatStringsSep \"\" (builtins.genList (x: \"garbage\") 20000); in \
                      builtins.foldl' (a: n: builtins.trace line a) 0 (builtins.genList (x: x) 1000000)";
/// Time limit of an evaluator's end.
const END_LIMIT: Duration = Duration::from_secs(30);
/// Time limit of a first generation.
const FIRST_LIMIT: Duration = Duration::from_secs(60);

/// A set called `pkgs`, of which each attribute is a piece of Nix.
pub struct PackageSet {
    folder: Arc<Folder>,
    /// The attributes.
    pub attributes: BTreeMap<String, String>,
}

impl PackageSet {
    /// A set with these attributes, written to a file.
    #[track_caller]
    pub fn new(attributes: impl IntoIterator<Item = (String, String)>) -> PackageSet {
        let set =
            PackageSet { folder: Arc::new(Folder::new()), attributes: attributes.into_iter().collect() };
        set.write();
        set
    }

    /// Where its file is.
    pub fn file(&self) -> PathBuf {
        self.folder.subfolder("set").join("default.nix")
    }

    /// Writes the attributes as they are now.
    #[track_caller]
    pub fn write(&self) {
        let lines = self.attributes.iter().map(|(name, nix)| format!("  {name} = {nix};\n"));
        self.write_text(&format!("{{\n{}}}\n", lines.collect::<String>()));
    }

    /// Writes something else in their place.
    #[track_caller]
    pub fn write_text(&self, nix: &str) {
        write(&self.file(), nix);
    }

    /// A settings file that has this set, refreshed on demand, with these lines in its table and those before
    /// all tables.
    #[track_caller]
    pub fn settings(&self, before: &str, within: &str) -> PathBuf {
        let file = self.folder.path().join("settings.toml");
        write(
            &file,
            &format!(
                "{before}\n[[catalogue]]\nname = 'pkgs'\nrefresh = 'manual'\nsource = {{ expression = '{}' }}\n{within}\n",
                self.file().display()
            ),
        );
        file
    }

    /// A server that has this set, with nothing else said.
    #[track_caller]
    pub fn serve(&self, store: &NixStore, before: &str, within: &str) -> Ondine {
        Ondine::start(store, &["--config", text(&self.settings(before, within))])
    }

    /// Until no evaluator of this set is left.
    #[track_caller]
    pub fn wait_until_nothing_evaluates(&self) {
        wait_until("no evaluator is left", END_LIMIT, || !process::runs(text(&self.file())));
    }

    /// The paths of an attribute's derivation and of its first output, as Nix computes them without writing
    /// anything.
    #[track_caller]
    pub fn paths(&self, store: &NixStore, attribute: &str) -> (PathBuf, PathBuf) {
        let (drv, out) = self.all_paths(store, &[attribute]).pop().expect("one for one");
        (drv, out)
    }

    /// The same for several attributes.
    #[track_caller]
    pub fn all_paths(&self, store: &NixStore, attributes: &[&str]) -> Vec<(PathBuf, PathBuf)> {
        let each: Vec<String> =
            attributes.iter().map(|name| format!("[ set.{name}.drvPath set.{name}.outPath ]")).collect();
        let nix = format!("let set = import {}; in [ {} ]", self.file().display(), each.join(" "));
        let arguments = ["--eval", "--strict", "--json", "--expr", &nix];
        let told = process::run(store.command("nix-instantiate", &arguments)).must_succeed().text();
        serde_json::from_str(&told).expect("pairs of paths")
    }
}

/// An attribute of this name that gives a small derivation.
pub fn small(name: &str) -> (String, String) {
    (name.to_owned(), derivations::text_file(name, name).to_nix())
}

/// The answer of the server at this address.
#[track_caller]
pub fn get(ondine: &Ondine, address: &str) -> Response {
    Http::new(&ondine.url()).get(address)
}

/// The JSON of a set (`pkgs`), or of one of its attributes (`pkgs/hello`).
#[track_caller]
pub fn told_in(ondine: &Ondine, name: &str) -> serde_json::Value {
    let told = get(ondine, &format!("/api/v1/catalogue/{name}"));
    assert_eq!(told.status, 200, "{name}: {}", told.text());
    serde_json::from_str(&told.text()).expect("JSON")
}

/// The JSON of the set `pkgs`.
#[track_caller]
pub fn api(ondine: &Ondine) -> serde_json::Value {
    told_in(ondine, "pkgs")
}

/// The JSON of an attribute of the set `pkgs`.
#[track_caller]
pub fn told(ondine: &Ondine, attribute: &str) -> serde_json::Value {
    told_in(ondine, &format!("pkgs/{attribute}"))
}

/// The NAR that Nix makes of a path.
#[track_caller]
pub fn dump(store: &NixStore, path: &Path) -> Vec<u8> {
    process::run(store.command("nix-store", &["--dump", text(path)])).must_succeed().stdout
}

/// Waits for the first generation of the set `pkgs`.
#[track_caller]
pub fn wait_for_generation(ondine: &Ondine) {
    wait_until("there is a generation", FIRST_LIMIT, || api(ondine)["generations"][0]["current"] == true);
}

/// Asks for a path until it is there, or fails the test with the reason why it is not to be had.
#[track_caller]
pub fn must_be_had(ondine: &Ondine, out: &Path) {
    let answer = Http::new(&ondine.url()).get(&narinfo_address(out));
    assert_eq!(answer.status, 200, "{}: {}", out.display(), answer.text());
}

/// `ondine refresh`, to its end.
#[track_caller]
pub fn refresh(ondine: &Ondine) -> Finished {
    start_refresh(ondine).finish()
}

/// `ondine refresh` in the background.
#[track_caller]
pub fn start_refresh(ondine: &Ondine) -> Background {
    let mut command = ondine.command("refresh");
    command.args(["--state-dir", text(&ondine.state_dir())]);
    Background::start(command)
}

/// The paths that Nix has a root for below `folder`.
pub fn links(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder of roots").filter_map(Result::ok);
    entries.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect()
}
