//! NARs written token by token, so that they can be wrong on purpose.

/// The bytes of a NAR, or of a part of one.
#[derive(Clone, Debug, Default)]
pub struct Nar(pub Vec<u8>);

impl Nar {
    /// The beginning of every NAR.
    pub fn new() -> Self {
        Self::default().token(b"nix-archive-1")
    }

    /// A length, the bytes, zeros up to a multiple of 8.
    pub fn token(self, bytes: &[u8]) -> Self {
        self.padded_token(bytes, 0)
    }

    /// The same with another byte as padding.
    pub fn padded_token(mut self, bytes: &[u8], padding: u8) -> Self {
        self.0.extend((bytes.len() as u64).to_le_bytes());
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(8), padding);
        self
    }

    pub fn tokens(self, tokens: &[&str]) -> Self {
        tokens.iter().fold(self, |nar, token| nar.token(token.as_bytes()))
    }

    pub fn file(self, contents: &[u8]) -> Self {
        self.tokens(&["(", "type", "regular", "contents"]).token(contents).tokens(&[")"])
    }

    pub fn symlink(self, target: &[u8]) -> Self {
        self.tokens(&["(", "type", "symlink", "target"]).token(target).tokens(&[")"])
    }

    /// A folder with what `children` adds.
    pub fn folder(self, children: impl FnOnce(Self) -> Self) -> Self {
        children(self.tokens(&["(", "type", "directory"])).tokens(&[")"])
    }

    /// A child of a folder.
    pub fn entry(self, name: &[u8], child: impl FnOnce(Self) -> Self) -> Self {
        child(self.tokens(&["entry", "(", "name"]).token(name).tokens(&["node"])).tokens(&[")"])
    }

    /// A folder in a folder, `depth` times, with a file in the innermost.
    pub fn nested(depth: usize) -> Self {
        let opening = (0..depth).fold(Self::new(), |nar, _| {
            nar.tokens(&["(", "type", "directory", "entry", "(", "name", "d", "node"])
        });
        (0..depth).fold(opening.file(b""), |nar, _| nar.tokens(&[")", ")"]))
    }
}
