//! Arguments of `ondine build`, evaluated by the Nix of this machine to derivations and their outputs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use narinfo::{Derivation, StoreDir, StorePath};

use crate::nix::Environment;
use crate::remote::programs::{Messages, output};

/// Something to be built or fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RemoteTarget {
    /// Its derivation; none for a store path.
    pub(super) drv: Option<StorePath>,
    /// The wanted outputs, by name.
    pub(super) outputs: BTreeMap<String, StorePath>,
}

/// Targets, and what holds their derivations.
pub(super) struct EvaluatedTargets {
    pub(super) targets: Vec<RemoteTarget>,
    _roots: tempfile::TempDir,
}

/// Source of attributes.
#[derive(Clone, Copy, Debug)]
pub(super) enum AttributesOf<'a> {
    /// The arguments are installables.
    Nothing,
    File(&'a str),
    Expression(&'a str),
}

/// Evaluates the arguments.
pub(super) async fn evaluate(
    from: AttributesOf<'_>,
    arguments: &[String],
) -> anyhow::Result<EvaluatedTargets> {
    let store_dir = Environment::from_env()?.store_dir;
    let roots = tempfile::Builder::new().prefix("ondine-build-").tempdir()?;
    let targets = match from {
        AttributesOf::Nothing => installables(&store_dir, arguments).await?,
        AttributesOf::File(file) => instantiate(&store_dir, &[file], arguments, roots.path()).await?,
        AttributesOf::Expression(text) => {
            instantiate(&store_dir, &["--expr", text], arguments, roots.path()).await?
        }
    };
    Ok(EvaluatedTargets { targets, _roots: roots })
}

async fn instantiate(
    store_dir: &StoreDir,
    from: &[&str],
    attributes: &[String],
    roots: &Path,
) -> anyhow::Result<Vec<RemoteTarget>> {
    let root = roots.join("drv").to_string_lossy().into_owned();
    let mut words = from.to_vec();
    words.extend(attributes.iter().flat_map(|attribute| ["-A", attribute]));
    words.extend(["--add-root", &root, "--indirect"]);
    let mut targets = Vec::new();
    for line in output("nix-instantiate", words, Messages::Shown).await?.lines() {
        // An output that is not the first one is named behind the symlink.
        let (link, wanted) = line.split_once('!').unwrap_or((line, "*"));
        let drv =
            std::fs::read_link(link).with_context(|| format!("{link} is no symlink to a derivation"))?;
        targets.push(target(store_dir, &drv, wanted)?);
    }
    Ok(targets)
}

async fn installables(store_dir: &StoreDir, arguments: &[String]) -> anyhow::Result<Vec<RemoteTarget>> {
    let (here, mut targets) = ([".".to_owned()], Vec::new());
    for installable in if arguments.is_empty() { &here[..] } else { arguments } {
        let (name, wanted) = installable.rsplit_once('^').unwrap_or((installable, "*"));
        if !Path::new(name).starts_with(store_dir.to_string()) {
            let words = ["path-info", "--derivation", name];
            for drv in output("nix", words, Messages::Shown).await?.lines() {
                targets.push(target(store_dir, Path::new(drv), wanted)?);
            }
        } else if name.ends_with(".drv") {
            targets.push(target(store_dir, Path::new(name), wanted)?);
        } else {
            let path = StorePath::parse_in(store_dir, name).with_context(|| name.to_owned())?;
            targets.push(RemoteTarget { drv: None, outputs: BTreeMap::from([("out".to_owned(), path)]) });
        }
    }
    Ok(targets)
}

/// A derivation with the outputs of these names, joined by commas; `*` for all.
fn target(store_dir: &StoreDir, drv: &Path, wanted: &str) -> anyhow::Result<RemoteTarget> {
    let shown = drv.display().to_string();
    let name = StorePath::parse_in(store_dir, &shown).with_context(|| shown.clone())?;
    let bytes = std::fs::read(drv).with_context(|| format!("{shown} cannot be read"))?;
    let derivation = Derivation::parse(store_dir, &name, &bytes).with_context(|| shown.clone())?;
    let mut outputs = BTreeMap::new();
    for (output, path) in &derivation.outputs {
        if wanted != "*" && !wanted.split(',').any(|wanted| wanted == output) {
            continue;
        }
        let Some(path) = path else {
            bail!(
                "{shown}: the path of its output {output} is known only after the build (it is content-addressed); \
                 use the server as a substituter instead (ondine use)"
            );
        };
        outputs.insert(output.clone(), path.clone());
    }
    if outputs.is_empty() {
        bail!("{shown} has no output {wanted}");
    }
    Ok(RemoteTarget { drv: Some(name), outputs })
}
