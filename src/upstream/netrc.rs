//! Logins in a netrc file, as libcurl, and so Nix, reads them: the first `machine` of a host's name, else
//! `default`. Must never show a word of the file: any of them may be a password.

use std::iter::Peekable;
use std::str::Chars;

/// Line of a netrc file that cannot be understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "line {0}: only \"machine NAME\", \"default\", \"login\", \"password\", \"account\" and \"macdef\" are known, each but \
     default with a value"
)]
pub(super) struct Error(usize);

/// Logins of hosts.
#[derive(Default)]
pub(super) struct Netrc(Vec<NetrcEntry>);

#[derive(Default)]
struct NetrcEntry {
    /// `None` for any host.
    host: Option<String>,
    user: Option<String>,
    password: Option<String>,
}

impl Netrc {
    /// Reads the text of a file.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let mut words = Words { chars: text.chars().peekable(), line: 1 };
        let mut entries: Vec<NetrcEntry> = Vec::new();
        while let Some(keyword) = words.next()? {
            let line = words.line;
            let mut value = || words.next()?.ok_or(Error(line));
            match (keyword.to_ascii_lowercase().as_str(), entries.last_mut()) {
                ("machine", _) => entries.push(NetrcEntry { host: Some(value()?), ..NetrcEntry::default() }),
                ("default", _) => entries.push(NetrcEntry::default()),
                ("login", Some(entry)) => entry.user = Some(value()?),
                ("password", Some(entry)) => entry.password = Some(value()?),
                ("account", Some(_)) => drop(value()?),
                ("macdef", _) => words.skip_macro(),
                _ => return Err(Error(line)),
            }
        }
        Ok(Self(entries))
    }

    /// User and password for a host.
    pub(super) fn login(&self, host: &str) -> Option<(String, String)> {
        let fits =
            |entry: &&NetrcEntry| entry.host.as_ref().is_none_or(|name| name.eq_ignore_ascii_case(host));
        let NetrcEntry { user, password, .. } = self.0.iter().find(fits)?;
        let has_either = user.is_some() || password.is_some();
        has_either.then(|| (user.clone().unwrap_or_default(), password.clone().unwrap_or_default()))
    }
}

struct Words<'a> {
    chars: Peekable<Chars<'a>>,
    line: usize,
}

impl Words<'_> {
    /// The next word, which may be in quotes; comments are passed over.
    fn next(&mut self) -> Result<Option<String>, Error> {
        while let Some(c) = self.chars.peek().copied() {
            match c {
                '#' => self.skip_line(),
                c if c.is_ascii_whitespace() => drop(self.take()),
                '"' => return self.quoted().map(Some),
                _ => {
                    let mut word = String::new();
                    while self.chars.peek().is_some_and(|c| !c.is_ascii_whitespace()) {
                        word.extend(self.take());
                    }
                    return Ok(Some(word));
                }
            }
        }
        Ok(None)
    }

    fn take(&mut self) -> Option<char> {
        let c = self.chars.next();
        self.line += usize::from(c == Some('\n'));
        c
    }

    fn quoted(&mut self) -> Result<String, Error> {
        let (line, mut word) = (self.line, String::new());
        self.take();
        loop {
            match self.take() {
                Some('"') => return Ok(word),
                Some('\\') => word.push(match self.take() {
                    Some('n') => '\n',
                    Some('r') => '\r',
                    Some('t') => '\t',
                    Some(c) => c,
                    None => return Err(Error(line)),
                }),
                None | Some('\n') => return Err(Error(line)),
                Some(c) => word.push(c),
            }
        }
    }

    /// The rest of the line; whether there was something on it.
    fn skip_line(&mut self) {
        while self.take().is_some_and(|c| c != '\n') {}
    }

    /// Up to an empty line.
    fn skip_macro(&mut self) {
        self.skip_line();
        while self.chars.peek().is_some_and(|c| !matches!(c, '\n' | '\r')) {
            self.skip_line();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(text: &str, host: &str) -> Option<(String, String)> {
        Netrc::parse(text).expect("a netrc file").login(host)
    }

    #[test]
    fn the_first_machine_of_a_name_counts_and_default_is_for_the_rest() {
        let text = "machine a.example.org login alice password one\n# machine b.example.org\n\
             MACHINE B.example.org\n\tlogin bob # his\n\tpassword \"two \\\"words\\\"\"\nmacdef init\n machine c\n\n\
             machine a.example.org login mallory password three\nmachine token.example.org password only\n\
             machine nobody.example.org account x\ndefault login anonymous password me";
        for (host, expected) in [
            ("a.example.org", Some(("alice", "one"))),
            ("b.example.ORG", Some(("bob", "two \"words\""))),
            ("token.example.org", Some(("", "only"))),
            ("nobody.example.org", None),
            ("c", Some(("anonymous", "me"))),
        ] {
            let expected = expected.map(|(user, password)| (user.to_owned(), password.to_owned()));
            assert_eq!(login(text, host), expected, "{host}");
        }
        assert_eq!(login("", "a"), None);
    }

    #[test]
    fn what_is_not_understood_is_told_by_its_line_and_never_shown() {
        for (text, line) in [
            ("machine a\nlogin b\nsecret\n", 3),
            ("login b", 1),
            ("machine", 1),
            ("machine a password \"secret", 1),
            ("machine a\n\npassword", 3),
        ] {
            let error = Netrc::parse(text).err().expect("no netrc file");
            assert_eq!(error, Error(line), "{text}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
