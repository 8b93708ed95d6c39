//! The stage of each scenario: the graph of derivations that Nix's suite uses most, a server that has built
//! it, and a client.

use std::path::Path;

use super::support::{
    Cache, Client, Derivation, Finished, Instantiated, NixStore, Release, Substituter, text,
};

/// `dependencies-top`, whose closure has `input-0` and `input-2`, but not `input-1`, which is needed to build
/// it.
pub fn dependencies() -> Derivation {
    let zero = Derivation::new("dependencies-input-0", "mkdir $out; echo BAR > $out/bar");
    let one = Derivation::new("dependencies-input-1", "mkdir $out; echo one > $out/one");
    let two = "mkdir $out; cat $one/one > $out/two; ln -s $zero $out/input-0";
    let two = Derivation::new("dependencies-input-2", two).input("one", &one).input("zero", &zero);
    let top = "echo FOO
        mkdir $out; ln -s $two $out/input-2; ln -s $zero $out/input-0
        echo FOOBAR > $out/foobar; echo 'echo program' > $out/program; chmod +x $out/program";
    Derivation::new("dependencies-top", top).input("two", &two).input("zero", &zero)
}

/// A server that has built `top`, and the client of one release.
pub struct Scene {
    pub cache: Cache,
    pub client: Client,
    pub top: Instantiated,
}

impl Scene {
    /// A server with these arguments.
    #[track_caller]
    pub fn new(release: &Release, arguments: &[&str]) -> Scene {
        Scene::of(release, Cache::new(arguments), &dependencies())
    }

    /// A server that has built `derivation`.
    #[track_caller]
    pub fn of(release: &Release, cache: Cache, derivation: &Derivation) -> Scene {
        let top = cache.store.instantiate(derivation);
        cache.narinfo(top.out());
        let client = Client::new(release.clone(), &cache.store.store_dir());
        Scene { cache, client, top }
    }

    /// Runs a program of the client with the server as its only substituter.
    #[track_caller]
    pub fn run(&self, program: &str, arguments: &[&str]) -> Finished {
        self.run_from(&self.cache.ondine.substituter(), program, arguments)
    }

    /// The same with another key trusted.
    #[track_caller]
    pub fn run_from(&self, from: &Substituter, program: &str, arguments: &[&str]) -> Finished {
        let options =
            ["--option", "substituters", &from.url, "--option", "trusted-public-keys", &from.public_key];
        self.client.run(program, &[arguments, &options].concat())
    }

    /// `nix-store --realise` of the top.
    #[track_caller]
    pub fn realise(&self) -> Finished {
        self.run("nix-store", &["--realise", text(self.top.out())])
    }

    /// A store directory beside the server's own.
    pub fn store(&self) -> &NixStore {
        &self.cache.store
    }
}

/// The names of store paths, one a line, without their hashes, sorted.
pub fn names(listed: &str) -> Vec<String> {
    let base_name =
        |line: &str| Path::new(line).file_name().unwrap_or_default().to_string_lossy()[33..].to_owned();
    let mut names: Vec<String> = listed.lines().map(base_name).collect();
    names.sort();
    names
}
