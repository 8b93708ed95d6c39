//! The contents of a NAR that has one file and no folder, such as that of a derivation.

use std::io::{self, Read};

/// Words before the length of the file: magic, and the beginning of a file that is not executable.
const HEAD: [&str; 5] = ["nix-archive-1", "(", "type", "regular", "contents"];
/// Words behind its padding.
const TAIL: [&str; 1] = [")"];

/// Bytes of the only file in a NAR, `bytes_max` at most. The file must not be executable.
///
/// # Errors
/// The input fails, is no such NAR, or has more bytes.
pub fn only_file(nar: &mut dyn Read, bytes_max: usize) -> io::Result<Vec<u8>> {
    expect(nar, &words(&HEAD))?;
    let mut length = [0; 8];
    nar.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > bytes_max as u64 {
        return Err(refused(&format!(
            "the file in the NAR has {length} bytes, at most {bytes_max} are read"
        )));
    }
    let mut contents = Vec::new();
    // Grows with what comes, whatever was announced.
    nar.take(length).read_to_end(&mut contents)?;
    if contents.len() as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut rest = vec![0; padding(contents.len())];
    rest.extend(words(&TAIL));
    expect(nar, &rest)?;
    Ok(contents)
}

fn expect(nar: &mut dyn Read, expected: &[u8]) -> io::Result<()> {
    let mut found = vec![0; expected.len()];
    nar.read_exact(&mut found)?;
    if found == expected { Ok(()) } else { Err(refused("the NAR is not that of one file")) }
}

fn words(words: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in words {
        bytes.extend((word.len() as u64).to_le_bytes());
        bytes.extend(word.as_bytes());
        bytes.resize(bytes.len() + padding(word.len()), 0);
    }
    bytes
}

fn padding(length: usize) -> usize {
    length.next_multiple_of(8) - length
}

fn refused(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nar_of(contents: &[u8], mode: u32) -> Vec<u8> {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        std::fs::write(&file, contents).expect("written");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("set");
        let mut nar = Vec::new();
        super::super::dump(&file, &mut nar).expect("a NAR");
        nar
    }

    #[test]
    fn the_only_file_is_read_and_anything_else_is_refused() {
        for length in [0, 1, 7, 8, 9, 1000] {
            let contents = vec![b'x'; length];
            let nar = nar_of(&contents, 0o644);
            assert_eq!(only_file(&mut &nar[..], 1000).expect("read"), contents);
            assert!(only_file(&mut &nar[..nar.len() - 1], 1000).is_err());
        }
        assert!(only_file(&mut &nar_of(&[0; 1001], 0o644)[..], 1000).is_err());
        assert!(only_file(&mut &nar_of(b"x", 0o755)[..], 1000).is_err());
    }
}
