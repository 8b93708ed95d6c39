//! Places of debugging symbols: by the build id of a program, the NAR and the file in it that has them, as
//! clients upload them with `index-debug-info`. A client names the file in which it uploads the NAR, before
//! it does so; what it says counts once a narinfo with that file was published, as far as the NAR has it.
//! Small files in a folder of the state directory, bounded in number. Must never name a NAR whose path was
//! not published, nor exchange a place whose NAR is served.

mod announced;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use narinfo::{Compression, NarHash};

use crate::caller::CallerKey;
use announced::Announced;

/// Build ids that are kept at most; more are not, and the log says so.
const KEPT_MAX: usize = 200_000;
/// Hexadecimal digits of a build id: most have 40.
const ID_DIGITS: std::ops::RangeInclusive<usize> = 16..=128;
/// Bytes of the path of a file in a NAR, at most.
const MEMBER_BYTES_MAX: usize = 4096;
/// Digits that name the folder of an id.
const FOLDER_DIGITS: usize = 2;

/// Build id of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildId(String);

impl BuildId {
    /// Parses the digits, with `.debug` behind them or without.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_suffix(".debug").unwrap_or(text);
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (ID_DIGITS.contains(&digits.len()) && digits.bytes().all(is_digit)).then(|| Self(digits.to_owned()))
    }
}

/// The places; clones share them.
#[derive(Clone)]
pub struct DebugInfo(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    kept: AtomicUsize,
    announced: Announced,
}

impl DebugInfo {
    /// Opens the folder, which is made where it is not there.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let mut kept = 0;
        for folder in fs::read_dir(dir)? {
            let folder = folder?.path();
            if folder.is_dir() {
                kept += fs::read_dir(folder)?.count();
            }
        }
        let (kept, announced) = (AtomicUsize::new(kept), Announced::default());
        Ok(Self(Arc::new(Inner { dir: dir.to_owned(), kept, announced })))
    }

    /// Notes that the NAR in the uploaded file of this name has symbols at `member`. False where the file or
    /// the member has not the name of one, or the uploader has announced as much as it may.
    #[must_use]
    pub fn announce(&self, uploader: CallerKey, id: BuildId, file: &str, member: &str) -> bool {
        let is_path = !member.is_empty() && member.len() <= MEMBER_BYTES_MAX;
        let is_below = member.split('/').all(|name| !matches!(name, "" | "." | ".."));
        if !is_nar_file(file) || !is_path || !is_below || member.contains(|c: char| c.is_control()) {
            return false;
        }
        self.0.announced.add(uploader, file, id, member)
    }

    /// Takes what this uploader has announced for the uploaded file of this name: each id with the path of
    /// its file.
    #[must_use]
    pub fn take_announced(&self, uploader: CallerKey, file: &str) -> Vec<(BuildId, String)> {
        self.0.announced.take(uploader, file)
    }

    /// The NAR and the file in it that has the symbols of a program. Blocking.
    ///
    /// # Errors
    /// The place cannot be read.
    pub fn find(&self, id: &BuildId) -> io::Result<Option<(NarHash, String)>> {
        let text = match fs::read_to_string(self.0.file_of(id)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let found = text.trim_end().split_once('\n');
        Ok(found.and_then(|(nar, member)| Some((NarHash::from_nixbase32(nar).ok()?, member.to_owned()))))
    }

    /// Keeps the place of the symbols of a program. An earlier one is replaced. Blocking.
    ///
    /// # Errors
    /// The place cannot be written; the NAR is served all the same.
    pub fn keep(&self, id: &BuildId, nar: NarHash, member: &str) -> io::Result<()> {
        let file = self.0.file_of(id);
        if !file.exists() && self.0.kept.fetch_add(1, Ordering::Relaxed) >= KEPT_MAX {
            self.0.kept.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(kept = KEPT_MAX, "place of debugging symbols not kept: there are too many");
            return Ok(());
        }
        let folder = file.parent().unwrap_or(&self.0.dir);
        fs::create_dir_all(folder)?;
        let mut written = tempfile::NamedTempFile::new_in(&self.0.dir)?;
        writeln!(written, "{}\n{member}", nar.to_nixbase32())?;
        written.persist(&file).map(drop).map_err(|failed| failed.error)
    }
}

/// True for the name of an uploaded NAR: its hash, `.nar`, and the ending of a compression or none.
fn is_nar_file(name: &str) -> bool {
    let Some((hash, ending)) = name.split_once(".nar") else { return false };
    let is_ending = ending.is_empty() || Compression::from_file_ending(ending).is_some();
    NarHash::from_nixbase32(hash).is_ok() && is_ending
}

impl Inner {
    fn file_of(&self, id: &BuildId) -> PathBuf {
        let (folder, rest) = id.0.split_at(FOLDER_DIGITS);
        self.dir.join(folder).join(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: &str) -> BuildId {
        BuildId::parse(&digit.repeat(40)).expect("an id")
    }

    #[test]
    fn a_place_is_announced_by_the_file_of_its_nar_and_is_there_after_a_restart_once_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let info = DebugInfo::open(folder.path()).expect("opened");
        let nar = NarHash::from_nixbase32(&"1".repeat(52)).expect("a hash");
        let member = "lib/debug/.build-id/aa/bb.debug";
        let (ci, stranger) = (CallerKey::Token(1), CallerKey::Token(2));
        let [x, y] = ["0", "1"].map(|digit| format!("{}.nar.xz", digit.repeat(52)));
        assert!(info.announce(ci, id("a"), &x, member));
        assert!(info.announce(ci, id("b"), &x, member));
        assert_eq!(info.find(&id("a")).expect("readable"), None);
        assert_eq!(info.take_announced(ci, &y), []);
        assert_eq!(info.take_announced(stranger, &x), []);
        let announced = info.take_announced(ci, &x);
        assert_eq!(announced, [(id("a"), member.to_owned()), (id("b"), member.to_owned())]);
        assert_eq!(info.take_announced(ci, &x), []);
        for (id, member) in &announced {
            info.keep(id, nar, member).expect("written");
        }
        let again = DebugInfo::open(folder.path()).expect("opened");
        assert_eq!(again.find(&id("b")).expect("readable"), Some((nar, member.to_owned())));
        assert_eq!(again.0.kept.load(Ordering::Relaxed), 2);
        for member in ["", "../x", "a//b", "/a", "a\nb"] {
            assert!(!info.announce(ci, id("c"), &y, member), "{member:?}");
        }
        for file in ["", "y.nar.xz", &y[1..], &y.replace(".xz", ".exe"), &"a".repeat(60_000)] {
            assert!(!info.announce(ci, id("c"), file, member), "{file:.60?}");
        }
    }

    #[test]
    fn a_build_id_has_hexadecimal_digits() {
        assert_eq!(BuildId::parse(&format!("{}.debug", "a1".repeat(20))), BuildId::parse(&"a1".repeat(20)));
        for text in ["", "ab", "../../../../../../etc", &"A".repeat(40), &"a".repeat(129), &"g".repeat(40)] {
            assert_eq!(BuildId::parse(text), None, "{text}");
        }
    }
}
