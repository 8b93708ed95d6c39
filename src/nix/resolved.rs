//! Resolved derivations that clients have sent to be built: no Nix store has their files, so they are kept
//! here while they are needed, over a restart, too. And their build by a daemon, which has to trust this
//! user: nothing proves that their outputs are theirs.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use narinfo::derivation::{ResolvedDerivation, ResolvedOutput};
use narinfo::{Derivation, StoreDir, StorePath, StorePathHash};

use super::database::Outputs;
use super::operation::BUILD_DERIVATION;
use super::wire::RequestBytes;
use crate::model::DerivationText;

/// Derivations that are kept at most, and the bytes of their texts together.
const KEPT_MAX: usize = 1_000;
const KEPT_BYTES_MAX: usize = 64 << 20;
/// Time for which one is kept that nobody has built: who sends it asks for it at once.
const KEPT_FOR: Duration = Duration::from_secs(300);
/// Ending of the files.
const ENDING: &str = ".json";

/// Why a derivation is not taken.
#[derive(Debug, thiserror::Error)]
pub enum UnresolvedError {
    /// A part of the derivation is not as it must be.
    #[error("the derivation is not as it must be: {0}")]
    Malformed(String),
    /// There are too many.
    #[error(
        "{KEPT_MAX} such derivations, or {KEPT_BYTES_MAX} bytes of them, wait already; send it again later"
    )]
    TooMany,
    /// The derivation cannot be written.
    #[error("it cannot be kept")]
    Io(#[from] io::Error),
}

/// A derivation that was sent.
#[derive(Debug)]
pub struct SentDerivation {
    /// Its name.
    pub drv: StorePath,
    /// Its parts.
    pub resolved: ResolvedDerivation,
    /// The same as a `.drv` file would say it.
    pub outline: Derivation,
    /// Its outputs.
    pub outputs: Vec<StorePath>,
}

/// The derivations that are kept; clones share them.
#[derive(Clone, Debug, Default)]
pub struct SentDerivations(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Their files; none where nothing is kept over a restart.
    folder: Option<PathBuf>,
    kept: RwLock<Kept>,
    /// Their number: looked at for every hash that is asked for.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Kept {
    derivations: HashMap<StorePath, (Arc<SentDerivation>, Instant)>,
    makers: HashMap<StorePathHash, Vec<StorePath>>,
    bytes: usize,
}

impl SentDerivation {
    /// Checks the text of one.
    ///
    /// # Errors
    /// The text is malformed.
    pub fn parse(store_dir: &StoreDir, text: &DerivationText) -> Result<Self, UnresolvedError> {
        let malformed = |reason: String| UnresolvedError::Malformed(reason);
        let path = |name: &String| {
            StorePath::parse(name).map_err(|error| UnresolvedError::Malformed(format!("{name:?}: {error}")))
        };
        let drv = path(&text.derivation)?;
        let Some(name) = drv.name().strip_suffix(".drv") else {
            return Err(malformed(format!("{drv} is no derivation")));
        };
        let mut outputs = std::collections::BTreeMap::new();
        for (output, known) in &text.outputs {
            let known = path(known)?;
            let expected = if output == "out" { name.to_owned() } else { format!("{name}-{output}") };
            if known.name() != expected {
                return Err(malformed(format!("{known} is not the name of its output {output:?}")));
            }
            outputs.insert(output.clone(), ResolvedOutput { path: Some(known), ..ResolvedOutput::default() });
        }
        if outputs.is_empty() {
            return Err(malformed("it has no output".to_owned()));
        }
        let resolved = ResolvedDerivation {
            outputs,
            inputs: text.inputs.iter().map(path).collect::<Result<_, _>>()?,
            system: text.system.clone(),
            builder: text.builder.clone(),
            arguments: text.arguments.clone(),
            environment: text.environment.clone(),
        };
        let outline = Derivation::parse(store_dir, &drv, resolved.to_aterm(store_dir).as_bytes());
        let outline = outline.map_err(|error| malformed(error.to_string()))?;
        let outputs = resolved.outputs.values().filter_map(|output| output.path.clone()).collect();
        Ok(Self { drv, resolved, outline, outputs })
    }
}

impl SentDerivation {
    /// A request that it is built, without the mode.
    pub(super) fn to_wire(&self, dir: &StoreDir) -> RequestBytes {
        let ResolvedDerivation { outputs, inputs, system, builder, arguments, environment } = &self.resolved;
        let request = RequestBytes::default().number(BUILD_DERIVATION).text(&self.drv.in_dir(dir));
        let request = outputs.iter().fold(request.number(outputs.len() as u64), |request, (name, output)| {
            let path = output.path.as_ref().map(|path| path.in_dir(dir)).unwrap_or_default();
            request.text(name).text(&path).text(&output.method).text(&output.hash)
        });
        let inputs: Vec<String> = inputs.iter().map(|path| path.in_dir(dir)).collect();
        let request = request.texts(&inputs).text(system).text(builder).texts(arguments);
        let variables = environment.iter();
        variables.fold(request.number(environment.len() as u64), |request, (name, value)| {
            request.text(name).text(value)
        })
    }
}

/// The text of a derivation as it is sent; `None` where an output is known only after the build.
#[must_use]
pub fn derivation_text(drv: &StorePath, resolved: &ResolvedDerivation) -> Option<DerivationText> {
    let outputs = resolved.output_paths()?.into_iter();
    Some(DerivationText {
        derivation: drv.to_string(),
        outputs: outputs.map(|(name, path)| (name, path.to_string())).collect(),
        inputs: resolved.inputs.iter().map(ToString::to_string).collect(),
        system: resolved.system.clone(),
        builder: resolved.builder.clone(),
        arguments: resolved.arguments.clone(),
        environment: resolved.environment.clone(),
    })
}

impl SentDerivations {
    /// Those of this folder, which is made where it is not there. A file that cannot be read is removed: who
    /// has sent it sends it again.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn open(folder: &Path, store_dir: &StoreDir) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let kept = Self(Arc::new(Shared { folder: Some(folder.to_owned()), ..Shared::default() }));
        for entry in fs::read_dir(folder)? {
            let file = entry?.path();
            let parsed = || {
                let text: DerivationText = narinfo::json::from_slice(&fs::read(&file).ok()?).ok()?;
                Some((SentDerivation::parse(store_dir, &text).ok()?, text_bytes(&text)))
            };
            match parsed() {
                Some((sent, bytes)) => kept.insert(sent, bytes),
                None => {
                    tracing::warn!(file = %file.display(), "removed the file of a derivation that cannot be read");
                    fs::remove_file(&file)?;
                }
            }
        }
        Ok(kept)
    }

    /// Keeps a derivation, of this text. Blocks until it is on the disk.
    ///
    /// # Errors
    /// There are too many, or it cannot be written.
    pub fn keep(&self, sent: SentDerivation, text: &DerivationText) -> Result<(), UnresolvedError> {
        let (drv, bytes) = (&sent.drv, text_bytes(text));
        {
            let kept = self.read();
            let is_new = !kept.derivations.contains_key(drv);
            if is_new && (kept.derivations.len() >= KEPT_MAX || kept.bytes + bytes > KEPT_BYTES_MAX) {
                return Err(UnresolvedError::TooMany);
            }
        }
        if let Some(folder) = &self.0.folder {
            let mut draft = tempfile::NamedTempFile::new_in(folder)?;
            draft.write_all(&serde_json::to_vec(text).map_err(io::Error::other)?)?;
            draft.as_file().sync_all()?;
            draft.persist(folder.join(format!("{drv}{ENDING}"))).map_err(|error| error.error)?;
            File::open(folder)?.sync_all()?;
        }
        self.insert(sent, bytes);
        Ok(())
    }

    fn insert(&self, sent: SentDerivation, bytes: usize) {
        let mut kept = self.write();
        let drv = sent.drv.clone();
        for output in &sent.outputs {
            let makers = kept.makers.entry(output.hash()).or_default();
            if !makers.contains(&drv) {
                makers.push(drv.clone());
            }
        }
        if kept.derivations.insert(drv, (Arc::new(sent), Instant::now())).is_none() {
            kept.bytes += bytes;
        }
        self.0.count.store(kept.derivations.len(), Ordering::Release);
    }

    /// The derivation of this name.
    #[must_use]
    pub fn find(&self, drv: &StorePath) -> Option<Arc<SentDerivation>> {
        if self.is_empty() {
            return None;
        }
        self.read().derivations.get(drv).map(|(sent, _)| Arc::clone(sent))
    }

    /// The derivations that give an output with this hash.
    #[must_use]
    pub fn makers_of(&self, hash: StorePathHash) -> Vec<StorePath> {
        if self.is_empty() {
            return Vec::new();
        }
        self.read().makers.get(&hash).cloned().unwrap_or_default()
    }

    /// The outputs of a derivation by name.
    pub(super) fn outputs_of(&self, drv: &StorePath) -> Option<Outputs> {
        Some(self.find(drv)?.outline.outputs.clone())
    }

    /// Forgets those that nobody has asked to build lately.
    pub fn expire(&self, is_needed: impl Fn(&StorePath) -> bool) {
        if self.is_empty() {
            return;
        }
        let is_old = |at: &Instant| at.elapsed() >= KEPT_FOR;
        let old: Vec<StorePath> = {
            let kept = self.read();
            let old = kept.derivations.iter().filter(|(_, (_, at))| is_old(at));
            old.map(|(drv, _)| drv.clone()).collect()
        };
        for drv in old.into_iter().filter(|drv| !is_needed(drv)) {
            self.forget(&drv);
        }
    }

    fn forget(&self, drv: &StorePath) {
        let mut kept = self.write();
        let Some((sent, _)) = kept.derivations.remove(drv) else { return };
        let text = derivation_text(drv, &sent.resolved);
        kept.bytes = kept.bytes.saturating_sub(text.as_ref().map_or(0, text_bytes));
        for output in &sent.outputs {
            if let Some(makers) = kept.makers.get_mut(&output.hash()) {
                makers.retain(|maker| maker != drv);
                if makers.is_empty() {
                    kept.makers.remove(&output.hash());
                }
            }
        }
        self.0.count.store(kept.derivations.len(), Ordering::Release);
        drop(kept);
        if let Some(folder) = &self.0.folder
            && let Err(error) = fs::remove_file(folder.join(format!("{drv}{ENDING}")))
        {
            tracing::warn!(%drv, %error, "cannot remove the file of a derivation; check the state directory");
        }
    }

    fn is_empty(&self) -> bool {
        self.0.count.load(Ordering::Acquire) == 0
    }

    fn read(&self) -> RwLockReadGuard<'_, Kept> {
        self.0.kept.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Kept> {
        self.0.kept.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Bytes of a text in memory, roughly.
fn text_bytes(text: &DerivationText) -> usize {
    let DerivationText { derivation, outputs, inputs, system, builder, arguments, environment } = text;
    let pair = |(name, value): (&String, &String)| name.len() + value.len();
    derivation.len()
        + system.len()
        + builder.len()
        + outputs.iter().map(pair).sum::<usize>()
        + inputs.iter().map(String::len).sum::<usize>()
        + arguments.iter().map(String::len).sum::<usize>()
        + environment.iter().map(pair).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(start: char, name: &str) -> String {
        format!("{}-{name}", start.to_string().repeat(32))
    }

    fn text(start: char) -> DerivationText {
        DerivationText {
            derivation: path(start, "p-1.drv"),
            outputs: [("out", "p-1"), ("dev", "p-1-dev")]
                .map(|(name, output)| (name.to_owned(), path(start, output)))
                .into(),
            inputs: [path('i', "input")].into(),
            system: "x86_64-linux".to_owned(),
            builder: "/bin/sh".to_owned(),
            arguments: vec!["-c".to_owned()],
            environment: [("requiredSystemFeatures".to_owned(), "kvm".to_owned())].into(),
        }
    }

    fn parsed(text: &DerivationText) -> SentDerivation {
        SentDerivation::parse(&StoreDir::default(), text).expect("as it must be")
    }

    #[test]
    fn a_derivation_is_known_by_its_outputs_until_nobody_needs_it_over_a_restart_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let store_dir = StoreDir::default();
        let open = || SentDerivations::open(folder.path(), &store_dir).expect("opened");
        let sent = open();
        let drv = parsed(&text('a')).drv;
        sent.keep(parsed(&text('a')), &text('a')).expect("kept");
        sent.keep(parsed(&text('a')), &text('a')).expect("kept again");
        for sent in [sent, open()] {
            let output = StorePath::parse(&path('a', "p-1-dev")).expect("a path");
            assert_eq!(sent.makers_of(output.hash()), std::slice::from_ref(&drv));
            let found = sent.find(&drv).expect("it is kept");
            assert!(found.outline.required_features.contains("kvm") && found.outputs.contains(&output));
            assert_eq!(derivation_text(&drv, &found.resolved), Some(text('a')));
            sent.expire(|_| false);
            assert!(sent.find(&drv).is_some(), "it was sent lately");
            sent.forget(&drv);
            assert!(sent.find(&drv).is_none() && sent.makers_of(output.hash()).is_empty());
            assert_eq!(sent.read().bytes, 0);
            sent.keep(parsed(&text('a')), &text('a')).expect("kept");
        }
        fs::write(folder.path().join("damaged.json"), "{").expect("written");
        assert!(open().find(&drv).is_some() && !folder.path().join("damaged.json").exists());
    }

    #[test]
    fn outputs_have_the_names_of_their_derivation_and_there_is_one() {
        let parse = |text: &DerivationText| SentDerivation::parse(&StoreDir::default(), text);
        assert!(parse(&text('a')).is_ok());
        let other = [("out".to_owned(), path('a', "glibc-2.40"))].into();
        for malformed in [
            DerivationText { outputs: other, ..text('a') },
            DerivationText { outputs: Default::default(), ..text('a') },
            DerivationText { derivation: path('a', "p-1"), ..text('a') },
            DerivationText { inputs: ["../x".to_owned()].into(), ..text('a') },
        ] {
            assert!(parse(&malformed).is_err(), "{malformed:?}");
        }
    }

    #[test]
    fn no_more_are_kept_than_there_is_room_for() {
        let sent = SentDerivations::default();
        let large = DerivationText { builder: "x".repeat(KEPT_BYTES_MAX / 2), ..text('a') };
        sent.keep(parsed(&large), &large).expect("kept");
        let other = DerivationText { builder: "x".repeat(KEPT_BYTES_MAX / 2), ..text('b') };
        let refused = sent.keep(parsed(&other), &other);
        assert!(matches!(refused, Err(UnresolvedError::TooMany)), "{refused:?}");
        sent.keep(parsed(&large), &large).expect("the same again");
    }
}
