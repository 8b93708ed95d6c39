//! Command lines of evaluators for each kind of source: the arguments of `nix-instantiate`, which are the
//! same in all releases, and of `nix-eval-jobs`. The evaluated expression walks the attributes and reports
//! them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use narinfo::{StoreDir, StorePath};
use percent_encoding::percent_decode_str;

use super::attribute::{AttributePath, Evaluated, FoundDerivation, in_quotes};
use super::gateway::AllowedHosts;
use super::settings::{Evaluation, SetSource};
use crate::nix::{Daemon, DaemonError};

/// A file that `nix-eval-jobs` must not be able to read: only an unrestricted evaluation sees it.
const OUTSIDE: &str = "/bin/sh";
/// The expression that walks.
const WALK: &str = include_str!("walk.nix");
/// Files of Nix in a folder.
const DEFAULT_NIX: &str = "default.nix";
/// An attribute: the root from which it is reached, and the names from there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
pub(super) struct AttributePlace {
    /// The number of the root.
    pub(super) root: usize,
    /// The names.
    pub(super) path: Vec<String>,
}

/// The purpose of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EvaluatorRun {
    /// All attributes.
    Walk,
    /// Those from there on, with that one or without it.
    Resume {
        /// From where.
        from: AttributePlace,
        /// That one is walked, too.
        again: bool,
    },
    /// Only to see the error of that one.
    Explain(AttributePlace),
    /// That one alone.
    Only(AttributePlace),
    /// All attributes, by `nix-eval-jobs`.
    Jobs {
        /// Number of parallel evaluators.
        workers: u64,
        /// Bytes of memory with which a worker gives way to a fresh one.
        memory_bytes: u64,
        /// Attributes that are left out.
        skip: Vec<AttributePlace>,
    },
}

/// A source that is ready to be evaluated: its paths are found.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    /// A function that gives the roots as a list, in Nix.
    roots: String,
    /// Prefixes of the attributes of each root.
    pub(super) prefixes: Vec<Vec<String>>,
    /// Settings of Nix, and what `<…>` finds.
    settings: Vec<(&'static str, String)>,
    search_path: Vec<String>,
    /// The flake, as the settings have it or pinned.
    pub(super) flake: Option<String>,
    /// Folders and files that it is read from, and those of them that are copied or listed as a whole.
    pub(super) reads: BTreeSet<PathBuf>,
    pub(super) reads_whole: BTreeSet<PathBuf>,
    /// Where it may fetch from.
    pub(super) reach: AllowedHosts,
    /// The attribute that is walked with all below it; `None` is all.
    within: Option<AttributePlace>,
}

/// Finds the paths of a source. Blocks for moments.
///
/// # Errors
/// Something is not there.
pub(super) fn prepare(origin: &SetSource, evaluation: &Evaluation) -> std::io::Result<Prepared> {
    let mut prepared = Prepared::new(evaluation)?;
    match origin {
        SetSource::Flake(reference) => {
            prepared.set("extra-experimental-features", "flakes");
            prepared.reach.add(reference);
            if let Some(path) = local_flake(reference) {
                prepared.reads.extend(git_folders(&path));
                prepared.reads.insert(path.clone());
                prepared.reads_whole.insert(path);
            }
            let outputs = ["packages", "legacyPackages"];
            let roots = outputs.map(|output| format!("(flake.{output}.${{system}} or {{ }})"));
            prepared.prefixes = vec![Vec::new(); roots.len()];
            prepared.roots = format!("[ {} ]", roots.join(" "));
            prepared.flake = Some(reference.clone());
        }
        SetSource::Expression { file, attributes } => {
            let file = file.canonicalize()?;
            // The folder, since a file reads those beside it.
            prepared.read(if file.is_dir() { &file } else { file.parent().unwrap_or(&file) });
            let top = format!("call (import {})", in_quotes(&utf8(&file)?));
            let root = |path: &Vec<String>| {
                let names: Vec<String> = path.iter().map(|name| format!(".{}", in_quotes(name))).collect();
                format!("(top{})", names.concat())
            };
            let named = attributes.iter().map(|path| path.names().to_vec());
            let prefixes = if attributes.is_empty() { vec![Vec::new()] } else { named.collect() };
            let roots: Vec<String> = prefixes.iter().map(root).collect();
            prepared.roots = format!("let top = {top}; in [ {} ]", roots.join(" "));
            prepared.prefixes = prefixes;
        }
        SetSource::Directory(directory) if directory.join(DEFAULT_NIX).exists() => {
            let whole = SetSource::Expression { file: directory.clone(), attributes: Vec::new() };
            return prepare(&whole, evaluation);
        }
        SetSource::Directory(directory) => {
            let directory = directory.canonicalize()?;
            prepared.read(&directory);
            prepared.roots = folder(&utf8(&directory)?);
            prepared.prefixes = vec![Vec::new()];
            prepared.reads_whole.insert(directory);
        }
    }
    Ok(prepared)
}

/// The folder or file of a flake on this machine. Nix takes the whole of a Git repository where a path is in
/// one.
fn local_flake(reference: &str) -> Option<PathBuf> {
    let (kind, path) = match reference.split_once(':') {
        Some((kind, path)) => (kind, path),
        None => ("", reference),
    };
    let path = path.split(['?', '#']).next()?;
    let path = percent_decode_str(path).decode_utf8().ok()?;
    let is_local = match kind {
        "" => path.starts_with('/'),
        "path" => true,
        kind => kind == "file" || kind.ends_with("+file"),
    };
    // Evaluators run in the root folder.
    let path = is_local.then(|| Path::new("/").join(path.trim_start_matches("//")))?;
    let repository = path.ancestors().find(|folder| kind.is_empty() && folder.join(".git").exists());
    Some(repository.map(Path::to_owned).unwrap_or(path))
}

/// Where Git has what a work tree of a repository elsewhere is taken from.
fn git_folders(tree: &Path) -> Vec<PathBuf> {
    let link = std::fs::read_to_string(tree.join(".git")).ok();
    let folder =
        link.as_deref().and_then(|link| link.strip_prefix("gitdir:")).map(|path| tree.join(path.trim()));
    // Of a further work tree it is REPOSITORY/.git/worktrees/NAME.
    let whole = |folder: &PathBuf| {
        let is_further = folder.parent().is_some_and(|parent| parent.ends_with("worktrees"));
        folder.ancestors().nth(if is_further { 2 } else { 0 }).map(Path::to_owned)
    };
    folder.as_ref().and_then(whole).into_iter().collect()
}

/// The links to derivations in a folder, each with the name of its attribute and what it leads to. Blocks for
/// moments.
///
/// # Errors
/// If the folder cannot be read.
pub(super) fn links(origin: &SetSource) -> std::io::Result<Vec<(AttributePath, PathBuf)>> {
    let SetSource::Directory(directory) = origin else { return Ok(Vec::new()) };
    let mut links = Vec::new();
    for entry in directory.read_dir()? {
        let entry = entry?;
        let name = entry.file_name().to_str().and_then(|name| name.strip_suffix(".drv")).map(str::to_owned);
        if let Some(attribute) = name.and_then(|name| AttributePath::new(vec![name])) {
            let target = entry.path().read_link().unwrap_or_else(|_| entry.path());
            links.push((attribute, target));
        }
    }
    links.sort();
    Ok(links)
}

/// The derivation that a link leads to.
///
/// # Errors
/// The daemon does not answer.
pub(super) async fn linked(
    store_dir: &StoreDir,
    target: &Path,
    daemon: &mut Daemon,
) -> Result<Evaluated, DaemonError> {
    let drv = target.to_str().and_then(|path| StorePath::parse_in(store_dir, path).ok());
    match drv.filter(StorePath::is_derivation) {
        Some(drv) if daemon.is_valid_path(&drv).await? => {
            let name = drv.name().trim_end_matches(".drv").to_owned();
            Ok(Ok(FoundDerivation { drv, name, output: None, program: None }))
        }
        _ => Ok(Err(format!("{} is no derivation in the Nix store", target.display()))),
    }
}

/// A set with an attribute for each Nix file, each folder with a default.nix, of a folder.
fn folder(directory: &str) -> String {
    format!(
        r#"let
  folder = {directory};
  entries = builtins.readDir folder;
  attribute = file:
    let stem = builtins.match "(.*)[.]nix" file; within = folder + "/" + file + "/{DEFAULT_NIX}"; in
    if stem != null && entries.${{file}} != "directory" then [ {{ name = builtins.head stem; value = call (import (folder + "/" + file)); }} ]
    else if stem == null && entries.${{file}} != "regular" && builtins.pathExists within
    then [ {{ name = file; value = call (import within); }} ]
    else [ ];
in [ (builtins.listToAttrs (builtins.concatLists (map attribute (builtins.attrNames entries)))) ]"#,
        directory = in_quotes(directory)
    )
}

impl Prepared {
    /// A source of which nothing is known but what it may do.
    fn new(evaluation: &Evaluation) -> std::io::Result<Self> {
        let mut prepared = Self {
            roots: String::new(),
            prefixes: Vec::new(),
            settings: Vec::new(),
            search_path: Vec::new(),
            flake: None,
            reads: BTreeSet::new(),
            reads_whole: BTreeSet::new(),
            reach: AllowedHosts::default(),
            within: None,
        };
        let import = evaluation.import_from_derivation.to_string();
        let uris = evaluation.allowed_uris.join(" ");
        for (name, value) in [
            ("restrict-eval", "true"),
            ("allow-import-from-derivation", &import),
            ("allowed-uris", &uris),
            ("allow-unsafe-native-code-during-evaluation", "false"),
        ] {
            prepared.set(name, value);
        }
        evaluation.allowed_uris.iter().for_each(|uri| prepared.reach.add(uri));
        for entry in &evaluation.nix_path {
            let (name, path) =
                entry.split_once('=').map_or((None, &**entry), |(name, path)| (Some(name), path));
            // Nix wants to be told of what a symlink leads to. What is no path is left as it is.
            let path = if path.starts_with('/') {
                let path = PathBuf::from(path).canonicalize()?;
                prepared.reads.insert(path.clone());
                utf8(&path)?
            } else {
                prepared.reach.add(path);
                path.to_owned()
            };
            let entry = name.map_or(path.clone(), |name| format!("{name}={path}"));
            prepared.search_path.push(entry);
        }
        Ok(prepared)
    }

    /// Has Nix evaluate with this setting, whatever its configuration says.
    pub(super) fn set(&mut self, name: &'static str, value: &str) {
        self.settings.push((name, value.to_owned()));
    }

    /// Those settings as arguments.
    pub(super) fn settings(&self) -> impl Iterator<Item = String> {
        let each = self.settings.iter();
        each.flat_map(|(name, value)| ["--option".to_owned(), (*name).to_owned(), value.clone()])
    }

    /// Lets the evaluator read a folder or file.
    fn read(&mut self, path: &Path) {
        self.search_path.push(format!("ondine-source={}", path.display()));
        self.reads.insert(path.to_owned());
    }

    /// Of which only that attribute is walked, with all below it.
    pub(super) fn within(&self, place: AttributePlace) -> Self {
        Self { within: Some(place), ..self.clone() }
    }

    /// Where an attribute of this path may be.
    pub(super) fn places(&self, path: &[String]) -> impl Iterator<Item = AttributePlace> {
        let prefixes = self.prefixes.iter().enumerate();
        prefixes.filter_map(|(root, prefix)| {
            Some(AttributePlace { root, path: path.strip_prefix(&**prefix)?.to_vec() })
        })
    }

    /// The arguments of a run for a system, which marks what it tells with `token`.
    pub(super) fn arguments(&self, system: &str, token: &str, run: &EvaluatorRun) -> Vec<String> {
        let mut arguments = ["--log-format", "raw"].map(str::to_owned).to_vec();
        arguments.extend(self.settings());
        arguments.extend(self.search_path.iter().flat_map(|entry| ["-I".to_owned(), entry.clone()]));
        let [mut resume, mut explain, mut only, mut jobs] = ["null"; 4].map(str::to_owned);
        match run {
            EvaluatorRun::Walk => {}
            EvaluatorRun::Resume { from, again } => resume = place(from, &format!("again = {again};")),
            EvaluatorRun::Explain(at) => explain = place(at, ""),
            EvaluatorRun::Only(at) => only = place(at, ""),
            EvaluatorRun::Jobs { workers, memory_bytes, skip } => {
                let skip: Vec<String> = skip.iter().map(|at| place(at, "")).collect();
                jobs = format!("{{ outside = {}; skip = [ {} ]; }}", in_quotes(OUTSIDE), skip.join(" "));
                let mebibytes = memory_bytes / (1024 * 1024);
                let bounds = [("--workers", *workers), ("--max-memory-size", mebibytes)];
                arguments.extend(
                    bounds.into_iter().flat_map(|(name, value)| [name.to_owned(), value.to_string()]),
                );
            }
        }
        let within = self.within.as_ref().map_or("null".to_owned(), |at| place(at, ""));
        let system = in_quotes(system);
        let flake = self.flake.as_ref();
        let flake = flake.map(|flake| format!("let flake = builtins.getFlake {}; in ", in_quotes(flake)));
        let expression = format!(
            "({WALK}) {{ token = {token}; system = {system}; resume = {resume}; explain = {explain}; \
             only = {only}; within = {within}; jobs = {jobs}; \
             getRoots = {{ call }}: let system = {system}; in {flake}{roots}; }}",
            flake = flake.unwrap_or_default(),
            token = in_quotes(token),
            roots = self.roots
        );
        let option = ["--option", "system"].map(str::to_owned);
        arguments.extend(option.into_iter().chain([system.trim_matches('"').to_owned()]));
        arguments.extend(["--expr".to_owned(), expression]);
        arguments
    }
}

/// Attributes that a pattern stands for: those below a path whose names are like its last part.
pub(super) struct Target {
    /// The names that lead to where they are.
    prefix: Vec<String>,
    /// Pattern of their own names, in which `*` matches anything.
    last: String,
}

impl Target {
    /// `None` where a pattern may stand for what is anywhere.
    pub(super) fn of(pattern: &str) -> Option<Self> {
        let (last, prefix) = AttributePath::parse(pattern)?
            .names()
            .split_last()
            .map(|(last, prefix)| (last.clone(), prefix.to_vec()))?;
        let is_anywhere = pattern == "*" || prefix.iter().any(|name| name.contains('*'));
        (!is_anywhere).then_some(Self { prefix, last })
    }
}

impl Prepared {
    /// Of which only these attributes are walked, each at a path of one name, and nothing below them; none of
    /// those of a target that are more than `max`.
    pub(super) fn of_targets(&self, targets: &[Target], max: usize) -> Self {
        let mut wanted = Vec::new();
        for (root, prefix) in self.prefixes.iter().enumerate() {
            for target in targets {
                let names: Vec<&String> = target.prefix.iter().chain([&target.last]).collect();
                let is_below = names.len() >= prefix.len() && names.iter().zip(prefix).all(|(a, b)| *a == b);
                if !is_below {
                    continue;
                }
                let below: Vec<String> =
                    names[prefix.len()..].iter().rev().skip(1).rev().map(|name| in_quotes(name)).collect();
                let last = (names.len() > prefix.len()).then(|| in_quotes(&expression(&target.last)));
                let last = last.unwrap_or("null".to_owned());
                wanted.push(format!("{{ root = {root}; path = [ {} ]; last = {last}; }}", below.join(" ")));
            }
        }
        let roots = format!(
            r#"let
  all = {roots};
  step = value: name: if builtins.isAttrs value && value ? ${{name}} then value.${{name}} else null;
  of = {{ root, path, last }}:
    let
      top = builtins.elemAt all root;
      within = builtins.foldl' step top path;
      isLike = name: builtins.match last name != null;
      names = if builtins.isAttrs within then builtins.filter isLike (builtins.attrNames within) else [ ];
      found = builtins.tryEval (builtins.seq (builtins.length names) names);
      one = path: value: {{
        name = "${{toString root}} ${{builtins.toJSON path}}";
        value = if builtins.isAttrs value && value.type or null == "derivation" then value else null;
      }};
    in
    if last == null then [ (one [ ] top) ]
    else if !found.success || builtins.length found.value > {max} then [ ]
    else map (name: one (path ++ [ name ]) within.${{name}}) found.value;
in [ (builtins.listToAttrs (builtins.concatMap of [ {wanted} ])) ]"#,
            roots = self.roots,
            wanted = wanted.join(" ")
        );
        Self { roots, prefixes: vec![Vec::new()], within: None, ..self.clone() }
    }
}

/// A pattern as an extended regular expression.
fn expression(pattern: &str) -> String {
    let character = |c: char| match c {
        '*' => ".*".to_owned(),
        '.' | '[' | '\\' | '(' | ')' | '+' | '?' | '{' | '|' | '^' | '$' => format!("\\{c}"),
        c => c.to_string(),
    };
    pattern.chars().map(character).collect()
}

fn place(place: &AttributePlace, more: &str) -> String {
    let path: Vec<String> = place.path.iter().map(|name| in_quotes(name)).collect();
    format!("{{ root = {}; path = [ {} ]; {more} }}", place.root, path.join(" "))
}

fn utf8(path: &Path) -> std::io::Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| std::io::Error::other(format!("{} is not UTF-8, which Nix needs", path.display())))
}
