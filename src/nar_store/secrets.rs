//! Texts that no NAR may hold, such as the signing keys: everybody could fetch them. Searches bytes as they
//! pass, also where two reads meet.

use std::io::{self, Read};
use std::ops::Deref;
use std::sync::Arc;

use memchr::memmem::Finder;

/// Bytes that are searched at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// Reason for a NAR that holds one.
const FOUND: &str = "it has the signing key of this cache in it, which must stay secret";

/// Secret texts; clones share them.
#[derive(Clone, Default)]
pub struct Secrets(Arc<[Finder<'static>]>);

/// Never shows one.
impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Secrets").field(&self.0.len()).finish()
    }
}

impl Secrets {
    /// Signing keys in their form `name:base64`, of which the secret half is searched for.
    pub fn of_keys(texts: impl IntoIterator<Item: Deref<Target = String>>) -> Self {
        let finder = |text: &str| {
            let secret = text.rsplit(':').next().unwrap_or(text).trim_end_matches('=');
            Finder::new(secret.as_bytes()).into_owned()
        };
        Self(texts.into_iter().map(|text| finder(&text)).collect())
    }

    /// True if a file or stream holds one. Blocking.
    ///
    /// # Errors
    /// The input cannot be read.
    pub fn are_in(&self, input: impl Read) -> io::Result<bool> {
        let (mut search, mut input) = (self.search(), input);
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match input.read(&mut buffer)? {
                0 => return Ok(false),
                read if search.finds(&buffer[..read]) => return Ok(true),
                _ => {}
            }
        }
    }

    /// An input that fails once it holds one.
    pub(super) fn refused_in<R: Read>(&self, input: R) -> impl Read + use<R> {
        Refusing { input, search: self.search() }
    }

    fn search(&self) -> SecretSearch {
        let overlap = self.0.iter().map(|finder| finder.needle().len().saturating_sub(1)).max();
        SecretSearch { secrets: self.clone(), overlap: overlap.unwrap_or(0), tail: Vec::new() }
    }
}

/// A search under way.
struct SecretSearch {
    secrets: Secrets,
    /// Bytes before a read in which a secret may begin, at most.
    overlap: usize,
    /// The end of what has been searched.
    tail: Vec<u8>,
}

impl SecretSearch {
    fn finds(&mut self, bytes: &[u8]) -> bool {
        let is_in = |bytes: &[u8]| self.secrets.0.iter().any(|finder| finder.find(bytes).is_some());
        let found = is_in(bytes);
        // Where the two meet.
        self.tail.extend_from_slice(&bytes[..bytes.len().min(self.overlap)]);
        let found = found || is_in(&self.tail);
        if bytes.len() >= self.overlap {
            self.tail.clear();
            self.tail.extend_from_slice(&bytes[bytes.len() - self.overlap..]);
        } else {
            self.tail.drain(..self.tail.len().saturating_sub(self.overlap));
        }
        found
    }
}

struct Refusing<R> {
    input: R,
    search: SecretSearch,
}

impl<R: Read> Read for Refusing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        if self.search.finds(&buffer[..read]) { Err(io::Error::other(FOUND)) } else { Ok(read) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in pieces of so many.
    struct Pieces<'b>(&'b [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let bytes = buffer.len().min(self.1);
            self.0.read(&mut buffer[..bytes])
        }
    }

    #[test]
    fn a_key_is_found_wherever_reads_meet_and_refuses_what_it_is_in() {
        let text = format!("c2VjcmV0{}==", "c2Vj".repeat(20));
        let keys = [Box::new(format!("a:{}", "other".repeat(20))), Box::new(format!("b:{text}"))];
        let secrets = Secrets::of_keys(keys);
        assert_eq!(format!("{secrets:?}"), "Secrets(2)");
        for before in [0, 1, CHUNK_BYTES - 100, CHUNK_BYTES - 40, CHUNK_BYTES - 1, 2 * CHUNK_BYTES - 50] {
            let mut bytes = vec![b'x'; before];
            bytes.extend(text.as_bytes());
            let whole = bytes.len();
            for piece in [7, 86, 100, CHUNK_BYTES] {
                assert!(secrets.are_in(Pieces(&bytes, piece)).expect("read"), "{before} {piece}");
                let refused = io::copy(&mut secrets.refused_in(Pieces(&bytes, piece)), &mut io::sink());
                assert!(refused.is_err_and(|error| error.to_string() == FOUND), "{before} {piece}");
            }
            bytes.truncate(whole - 3);
            for piece in [7, 86, CHUNK_BYTES] {
                assert!(!secrets.are_in(Pieces(&bytes, piece)).expect("read"), "{before} {piece}");
                let passed = io::copy(&mut secrets.refused_in(Pieces(&bytes, piece)), &mut io::sink());
                assert_eq!(passed.expect("read"), bytes.len() as u64);
            }
        }
    }
}
