//! Attribute paths, in the one spelling that every set, address and command has for them: Nix's own. A name
//! that is no identifier is quoted when it is written; it may be read bare wherever that is unambiguous.

use std::fmt;

use narinfo::StorePath;

/// Words that Nix does not take for a bare name.
const KEYWORDS: [&str; 9] = ["assert", "else", "if", "in", "inherit", "let", "rec", "then", "with"];

/// The names that lead from a set to one of its attributes; at least one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttributePath(Vec<String>);

/// A derivation as an attribute has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FoundDerivation {
    pub(super) drv: StorePath,
    /// Its name, which need not be that of the file.
    pub(super) name: String,
    /// The output that the attribute itself is: its name, or its path where evaluation gives no name; `None`
    /// where that gives neither.
    pub(super) output: Option<String>,
    /// The program that it is run by, where its description says so.
    pub(super) program: Option<String>,
}

impl FoundDerivation {
    /// The names of the attribute and of its derivation.
    pub(super) fn names(&self) -> [&str; 2] {
        [&self.name, self.drv.name().trim_end_matches(".drv")]
    }
}

/// A derivation, or why there is none.
pub(super) type Evaluated = Result<FoundDerivation, String>;

/// An attribute path as someone has written it, with the output behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The attribute.
    pub path: AttributePath,
    /// The output named after a `^` outside of quotes.
    pub output: Option<String>,
    /// The attribute that is meant where there is none at `path`: the `^` is a part of its name.
    pub otherwise: Option<AttributePath>,
}

impl AttributePath {
    /// A path of these names; `None` without any.
    #[must_use]
    pub fn new(names: Vec<String>) -> Option<Self> {
        (!names.is_empty()).then_some(Self(names))
    }

    /// The path of a source that is a derivation itself.
    #[must_use]
    pub fn of_the_whole() -> Self {
        Self(vec!["default".to_owned()])
    }

    /// The path that is written so: names with dots between them, each quoted, or bare where it has neither a
    /// dot nor a quote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (path, rest) = read(text, &['.'])?;
        rest.is_empty().then_some(path)
    }

    /// The names.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// The names with dots between them and nothing quoted: what a pattern may be written for, and no
    /// spelling to be read.
    #[must_use]
    pub fn bare(&self) -> String {
        self.0.join(".")
    }

    /// The path without its last name, and that name; `None` where it has no other.
    #[must_use]
    pub fn split_last(&self) -> Option<(Self, &str)> {
        let (last, before) = self.0.split_last()?;
        Some((Self::new(before.to_vec())?, last))
    }
}

impl Selection {
    /// Parses an attribute path, perhaps with `^` and an output.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (path, rest) = read(text, &['.', '^'])?;
        let Some(output) = rest.strip_prefix('^') else {
            return Some(Self { path, output: None, otherwise: None });
        };
        let otherwise = AttributePath::parse(text);
        match output {
            "" => None,
            _ if output.contains(['/', '"', '^', '\0']) => {
                otherwise.map(|path| Self { path, output: None, otherwise: None })
            }
            _ => Some(Self { path, output: Some(output.to_owned()), otherwise }),
        }
    }
}

/// Reads names with dots between them, and gives what comes after. A bare name ends at each of `ends`.
fn read<'a>(text: &'a str, ends: &[char]) -> Option<(AttributePath, &'a str)> {
    let (mut names, mut rest) = (Vec::new(), text);
    loop {
        let name = match rest.strip_prefix('"') {
            Some(after) => {
                let (name, after) = quoted(after)?;
                rest = after;
                name
            }
            None => {
                let (name, after) = rest.split_at(rest.find(ends).unwrap_or(rest.len()));
                rest = after;
                if name.is_empty() || name.contains('"') {
                    return None;
                }
                name.to_owned()
            }
        };
        // Nix has no such string.
        if name.contains('\0') {
            return None;
        }
        names.push(name);
        match rest.strip_prefix('.') {
            Some(after) => rest = after,
            None => break,
        }
    }
    // Behind a quoted name comes nothing but what ends a bare one.
    (rest.is_empty() || rest.starts_with(ends)).then_some((AttributePath(names), rest))
}

/// Reads the inside of a quoted name to its closing quote, and gives what comes after.
fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut name, mut characters) = (String::new(), text.chars());
    loop {
        name.push(match characters.next()? {
            '"' => return Some((name, characters.as_str())),
            '\\' => match characters.next()? {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                other => other,
            },
            other => other,
        });
    }
}

fn is_bare(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && characters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '\'' | '-'))
        && !KEYWORDS.contains(&name)
}

impl fmt::Display for AttributePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, name) in self.0.iter().enumerate() {
            if number > 0 {
                formatter.write_str(".")?;
            }
            if is_bare(name) { formatter.write_str(name)? } else { formatter.write_str(&in_quotes(name))? }
        }
        Ok(())
    }
}

/// A string as Nix writes it.
pub(super) fn in_quotes(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${");
    format!("\"{}\"", text.replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Option<Vec<String>> {
        AttributePath::parse(text).map(|path| path.0)
    }

    fn path(names: &[&str]) -> AttributePath {
        AttributePath(names.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_path_has_one_spelling_and_is_read_bare_where_that_is_unambiguous() {
        for (given, written, bare) in [
            (&["hello"][..], "hello", Some("hello")),
            (&["a", "b'-_9"], "a.b'-_9", None),
            (&["slash/ed"], "\"slash/ed\"", Some("slash/ed")),
            (&["007"], "\"007\"", Some("007")),
            (&["odd", "2048"], "odd.\"2048\"", Some("odd.2048")),
            (&["with space"], "\"with space\"", Some("with space")),
            (&["plus+plus"], "\"plus+plus\"", Some("plus+plus")),
            (&["ca^ret"], "\"ca^ret\"", Some("ca^ret")),
            (&["per%cent", "ümlaut"], "\"per%cent\".\"ümlaut\"", Some("per%cent.ümlaut")),
            (&["dot.ted", "x"], "\"dot.ted\".x", None),
            (&["q\"uote"], "\"q\\\"uote\"", None),
            (&["back\\slash"], "\"back\\\\slash\"", Some("back\\slash")),
            (&["${x}"], "\"\\${x}\"", Some("${x}")),
            (&["line\nbreak\r\t"], "\"line\\nbreak\\r\\t\"", Some("line\nbreak\r\t")),
            (&["if"], "\"if\"", Some("if")),
            (&[""], "\"\"", None),
        ] {
            assert_eq!(path(given).to_string(), written);
            assert_eq!(names(written).as_deref(), Some(&path(given).0[..]), "{written}");
            if let Some(bare) = bare {
                assert_eq!(names(bare).as_deref(), Some(&path(given).0[..]), "{bare}");
            }
        }
        for text in ["", ".", "a.", ".a", "a..b", "\"a", "a\"b", "\"a\"b", "\"a\\", "a\0", "\"\0\""] {
            assert_eq!(names(text), None, "{text:?}");
        }
    }

    #[test]
    fn an_output_stands_behind_a_caret_outside_of_quotes() {
        let parse = |text: &str| Selection::parse(text).map(|found| (found.path.to_string(), found.output));
        let found = |path: &str, output: Option<&str>| Some((path.to_owned(), output.map(str::to_owned)));
        assert_eq!(parse("a.b"), found("a.b", None));
        assert_eq!(parse("a.b^dev"), found("a.b", Some("dev")));
        assert_eq!(parse("\"a^b\""), found("\"a^b\"", None));
        assert_eq!(parse("\"a^b\"^dev"), found("\"a^b\"", Some("dev")));
        // A name that nothing else can be meant by.
        assert_eq!(parse("a^b^c"), found("\"a^b^c\"", None));
        for text in ["^out", "a^", "\"a\"^", "a.^b", "\"a\"^b^c"] {
            assert_eq!(parse(text), None, "{text}");
        }
        let otherwise = |text: &str| Selection::parse(text).and_then(|found| found.otherwise);
        assert_eq!(otherwise("x.a^b"), Some(path(&["x", "a^b"])));
        assert_eq!((otherwise("a"), otherwise("\"a^b\"^dev")), (None, None));
    }
}
