//! Logs that the Nix daemon keeps of all its builds: plain or compressed, in its own log directory.
//! Only regular files there are read, decompressed on the way and within a bound.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use narinfo::{Compression, StorePath};

use crate::decode;
use crate::tail_file::reading;

/// The folder of logs in the log directory (Nix's src/libstore/local-fs-store.cc).
const FOLDER: &str = "drvs";
/// Names of logs end in one of these: as `compress-build-log` says, and as other tools leave them.
const ENDINGS: [(&str, Compression); 4] = [
    ("", Compression::None),
    (".bz2", Compression::Bzip2),
    (".zst", Compression::Zstd),
    (".xz", Compression::Xz),
];
/// Characters of a derivation's name that are a folder.
const PREFIX_CHARS: usize = 2;
/// Bytes that are read at a time.
const CHUNK_BYTES: u64 = 64 * 1024;

/// The log directory of a Nix daemon.
#[derive(Clone, Debug)]
pub struct DaemonLogs {
    dir: PathBuf,
    bytes_max: u64,
}

/// A log of the daemon that is being read.
pub struct DaemonLog {
    /// Taken while it is read, and gone at its end.
    plain: Option<Box<dyn Read + Send>>,
    /// Plain bytes that may come still.
    left: u64,
    bytes_max: u64,
}

impl DaemonLogs {
    /// The logs in this directory, of each so many bytes at most.
    #[must_use]
    pub fn new(dir: PathBuf, bytes_max: u64) -> Self {
        Self { dir, bytes_max }
    }

    /// The log of a derivation, if there is one. Blocks for as long as opening a file takes.
    ///
    /// # Errors
    /// The log is there and cannot be opened.
    pub fn open(&self, drv: &StorePath) -> io::Result<Option<DaemonLog>> {
        let name = drv.to_string();
        let (prefix, rest) = name.split_at(PREFIX_CHARS);
        let folder = self.dir.join(FOLDER);
        // Very old releases have no folders within that one.
        for place in [folder.join(prefix).join(rest), folder.join(&name)] {
            for (ending, compression) in ENDINGS {
                let mut path = place.clone().into_os_string();
                path.push(ending);
                if let Some(file) = regular_file(Path::new(&path))? {
                    let plain = decode::plain(compression, file)?;
                    let (left, bytes_max) = (self.bytes_max, self.bytes_max);
                    return Ok(Some(DaemonLog { plain: Some(plain), left, bytes_max }));
                }
            }
        }
        Ok(None)
    }
}

/// Follows no link, and waits for nobody who might write into a pipe.
fn regular_file(path: &Path) -> io::Result<Option<File>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => Ok(file.metadata()?.is_file().then_some(file)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        // What O_NOFOLLOW says of a link.
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => Ok(None),
        Err(error) => Err(error),
    }
}

impl DaemonLog {
    /// The next bytes; `None` at the end. The last ones say so where something is missing.
    ///
    /// # Errors
    /// The file cannot be read or decompressed.
    pub async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        let Some(mut plain) = self.plain.take() else { return Ok(None) };
        if self.left == 0 {
            let more = reading(move || Ok(plain.read(&mut [0])? > 0)).await.unwrap_or(true);
            let max = self.bytes_max;
            return Ok(more.then(|| {
                format!(
                    "\n[the rest is left out: the log has more than {max} bytes (setting max-build-log-bytes)]\n"
                )
                .into()
            }));
        }
        let wanted = usize::try_from(self.left.min(CHUNK_BYTES)).unwrap_or(usize::MAX);
        let read = reading(move || {
            let mut buffer = vec![0; wanted];
            let read = plain.read(&mut buffer)?;
            buffer.truncate(read);
            Ok((plain, buffer))
        });
        match read.await {
            Ok((_, buffer)) if buffer.is_empty() => Ok(None),
            Ok((plain, buffer)) => {
                self.left -= buffer.len() as u64;
                self.plain = Some(plain);
                Ok(Some(buffer.into()))
            }
            // Nix completes a compressed log when the build has ended.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Ok(Some("[the log is not complete: its build runs still, or was broken off]\n".into()))
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use super::*;

    fn drv() -> StorePath {
        StorePath::parse("0123456789abcdfghijklmnpqrsvwxyz-p.drv").expect("a path")
    }

    /// Logs of up to 100 bytes, and where that of the derivation is.
    fn logs() -> (tempfile::TempDir, DaemonLogs, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("drvs/01");
        fs::create_dir_all(&place).expect("made");
        let logs = DaemonLogs::new(folder.path().to_owned(), 100);
        (folder, logs, place.join("23456789abcdfghijklmnpqrsvwxyz-p.drv"))
    }

    async fn read(logs: &DaemonLogs) -> io::Result<Option<String>> {
        let Some(mut log) = logs.open(&drv())? else { return Ok(None) };
        let mut text = String::new();
        while let Some(chunk) = log.next_chunk().await? {
            text += std::str::from_utf8(&chunk).expect("text");
        }
        Ok(Some(text))
    }

    fn bzip2(text: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(text).expect("compressed");
        encoder.finish().expect("compressed")
    }

    #[tokio::test]
    async fn a_log_is_read_plain_and_in_each_compression_and_wherever_it_lies() {
        let zstd = zstd::encode_all(&b"words\n"[..], 1).expect("compressed");
        for (ending, bytes) in [("", b"words\n".to_vec()), (".bz2", bzip2(b"words\n")), (".zst", zstd)] {
            let (folder, logs, place) = logs();
            assert_eq!(read(&logs).await.expect("readable"), None);
            let file = format!("{}{ending}", place.display());
            fs::write(&file, &bytes).expect("written");
            assert_eq!(read(&logs).await.expect("readable").as_deref(), Some("words\n"), "{ending}");
            fs::rename(&file, folder.path().join(format!("drvs/{}{ending}", drv()))).expect("moved");
            assert_eq!(read(&logs).await.expect("readable").as_deref(), Some("words\n"), "{ending}");
        }
    }

    #[tokio::test]
    async fn a_log_that_is_too_long_or_not_complete_says_so_at_its_end() {
        let (_folder, logs, place) = logs();
        let file = format!("{}.bz2", place.display());
        fs::write(&file, bzip2(&[b'x'; 100])).expect("written");
        assert_eq!(read(&logs).await.expect("readable"), Some("x".repeat(100)));
        // Ten million bytes in few.
        fs::write(&file, bzip2(&vec![b'x'; 10_000_000])).expect("written");
        let read_all = read(&logs).await.expect("readable").expect("there");
        assert!(read_all.starts_with(&"x".repeat(100)) && read_all.len() < 300, "{read_all}");
        assert!(read_all.contains("more than 100 bytes"), "{read_all}");
        let whole = bzip2(b"words\n");
        fs::write(&file, &whole[..whole.len() - 5]).expect("written");
        assert!(read(&logs).await.expect("readable").expect("there").contains("not complete"));
        fs::write(&file, b"no bzip2 file").expect("written");
        read(&logs).await.expect_err("it is damaged");
    }

    #[tokio::test]
    async fn what_is_no_regular_file_is_no_log() {
        let (folder, logs, place) = logs();
        let elsewhere = folder.path().join("secret");
        fs::write(&elsewhere, "secret").expect("written");
        symlink(&elsewhere, &place).expect("linked");
        assert_eq!(read(&logs).await.expect("no error"), None);
        fs::remove_file(&place).expect("removed");
        fs::create_dir(&place).expect("made");
        assert_eq!(read(&logs).await.expect("no error"), None);
        fs::remove_dir(&place).expect("removed");
        let made = std::process::Command::new("mkfifo").arg(&place).status().expect("coreutils");
        assert!(made.success());
        assert_eq!(read(&logs).await.expect("no error"), None);
    }
}
