//! Credentials of other caches: from a URL, a file of their own or a netrc file, sent to the origin that they
//! are for, and to no other. Must never show in a message, an answer or a log: neither `Debug` nor an error
//! has any part of them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use reqwest::{RequestBuilder, Url};

use super::netrc::{self, Netrc};

/// Directory in which systemd gives a service its credentials.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
/// Bytes of a file with credentials at most.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Reason why credentials are not available.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{setting} = {}: the server's user cannot read it", file.display())]
    Read {
        /// The setting that names it.
        setting: &'static str,
        /// The file.
        file: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A name without a path, outside of systemd.
    #[error(
        "{setting} = {}: a name without a path is one in ${CREDENTIALS_DIRECTORY}, which is not set; start the service with \
         LoadCredential={}:/PATH, or write an absolute path",
        file.display(),
        file.display()
    )]
    NoDirectory {
        /// The setting that names it.
        setting: &'static str,
        /// The name.
        file: PathBuf,
    },
    /// Neither of the two forms.
    #[error("{}: one line is needed, USER:PASSWORD or \"Bearer TOKEN\"", .0.display())]
    Form(PathBuf),
    /// No netrc file.
    #[error("{}, {reason}", file.display())]
    Netrc {
        /// The file.
        file: PathBuf,
        /// The place in it.
        reason: String,
    },
}

/// Place of the netrc file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetrcFile {
    /// Nix's own, which need not be there and which others than root may not be able to read.
    OfNix(PathBuf),
    /// One that is named.
    Named(PathBuf),
}

/// Credentials of one upstream, if any.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    login: Option<Login>,
    /// The query of its URL, such as `token=…`.
    query: Option<String>,
}

#[derive(Clone, PartialEq, Eq)]
enum Login {
    Basic { user: String, password: String },
    Bearer(String),
}

impl Credentials {
    /// Takes the credentials out of a URL.
    #[must_use]
    pub fn take_from(url: &mut Url) -> Self {
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let (user, password) = (decoded(url.username()), url.password().map(decoded));
        let login = (!user.is_empty() || password.is_some())
            .then(|| Login::Basic { user, password: password.unwrap_or_default() });
        let query = url.query().filter(|query| !query.is_empty()).map(str::to_owned);
        url.set_query(None);
        // Only URLs that cannot have either refuse.
        let _ = url.set_password(None);
        let _ = url.set_username("");
        Self { login, query }
    }

    /// A token alone.
    #[must_use]
    pub fn of_token(token: String) -> Self {
        Self { login: Some(Login::Bearer(token)), query: None }
    }

    /// True without any credentials.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.login.is_none() && self.query.is_none()
    }

    /// True if a user, a password or a token is among them.
    #[must_use]
    pub fn has_login(&self) -> bool {
        self.login.is_some()
    }

    /// Adds what a file has, as `credentials-file` names it.
    pub(super) fn read(&mut self, file: &Path) -> Result<(), Error> {
        let file = located("credentials-file", file)?;
        let text = read("credentials-file", &file)?;
        let text = text.trim_end_matches(['\r', '\n']);
        let login = match text.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                Some(Login::Bearer(token.trim().to_owned()))
            }
            _ => text.split_once(':').map(|(user, password)| Login::Basic {
                user: user.to_owned(),
                password: password.to_owned(),
            }),
        };
        self.login = Some(login.filter(|_| !text.contains(char::is_control)).ok_or(Error::Form(file))?);
        Ok(())
    }

    /// Adds what a netrc file has for the host, where there is no login yet.
    pub(super) fn complete(&mut self, netrc: &Netrc, url: &Url) {
        if self.login.is_none() && url.scheme() != "file" {
            let found = url.host_str().and_then(|host| netrc.login(host));
            self.login = found.map(|(user, password)| Login::Basic { user, password });
        }
    }

    /// Adds what this netrc file has for the host, where there is no login yet.
    ///
    /// # Errors
    /// The file cannot be read, or has another form.
    pub fn complete_from(&mut self, netrc: &NetrcFile, url: &Url) -> Result<(), Error> {
        if self.login.is_none() {
            self.complete(&netrc.read()?, url);
        }
        Ok(())
    }

    /// The password or the token, for the user's own files.
    #[must_use]
    pub fn password(&self) -> Option<&str> {
        match &self.login {
            None => None,
            Some(Login::Basic { password: secret, .. } | Login::Bearer(secret)) => Some(secret),
        }
    }

    /// The address with the query that goes to its origin.
    #[must_use]
    pub fn extend(&self, mut url: Url) -> Url {
        if let Some(query) = &self.query {
            let all = match url.query() {
                // A redirect may have kept it.
                Some(there) if there.contains(query.as_str()) => return url,
                Some(there) => format!("{there}&{query}"),
                None => query.clone(),
            };
            url.set_query(Some(&all));
        }
        url
    }

    /// The request with the login.
    pub fn authorize(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.login {
            None => request,
            Some(Login::Basic { user, password }) => request.basic_auth(user, Some(password)),
            Some(Login::Bearer(token)) => request.bearer_auth(token),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "Credentials(none)" } else { "Credentials(…)" })
    }
}

/// Nix's file where no variable says otherwise.
impl Default for NetrcFile {
    fn default() -> Self {
        Self::OfNix(PathBuf::from("/etc/nix/netrc"))
    }
}

impl NetrcFile {
    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::OfNix(file) | Self::Named(file) => file,
        }
    }

    /// Reads it.
    pub(super) fn read(&self) -> Result<Netrc, Error> {
        let (file, text) = match self {
            Self::Named(file) => {
                let file = located("netrc-file", file)?;
                let text = read("netrc-file", &file)?;
                (file, text)
            }
            Self::OfNix(file) => match read("netrc-file", file) {
                Ok(text) => (file.clone(), text),
                Err(error) => {
                    if file.exists() {
                        tracing::info!(
                            file = %file.display(),
                            "Nix's netrc file cannot be read by this user: credentials in it are not sent to upstreams; \
                             netrc-file or credentials-file may name a file that can"
                        );
                    }
                    tracing::debug!(error = &error as &dyn std::error::Error, "no netrc file");
                    return Ok(Netrc::default());
                }
            },
        };
        Netrc::parse(&text).map_err(|netrc_error: netrc::Error| {
            let reason = netrc_error.to_string();
            Error::Netrc { file, reason }
        })
    }
}

/// Place of a file with credentials: an absolute path, or a name among those that systemd gives a service.
///
/// # Errors
/// The file is a name, and systemd gives none.
pub fn located(setting: &'static str, file: &Path) -> Result<PathBuf, Error> {
    if file.is_absolute() {
        return Ok(file.to_owned());
    }
    let directory = std::env::var_os(CREDENTIALS_DIRECTORY).filter(|directory| !directory.is_empty());
    match directory {
        Some(directory) => Ok(Path::new(&directory).join(file)),
        None => Err(Error::NoDirectory { setting, file: file.to_owned() }),
    }
}

fn read(setting: &'static str, file: &Path) -> Result<String, Error> {
    let mut text = String::new();
    let opened = File::open(file).and_then(|opened| opened.take(FILE_BYTES_MAX).read_to_string(&mut text));
    match opened {
        Ok(_) => Ok(text),
        Err(source) => Err(Error::Read { setting, file: file.to_owned(), source }),
    }
}

/// The text with what may be secret in its URLs struck out, character by character: userinfo and queries.
#[must_use]
pub fn without_secrets(text: &str) -> String {
    let is_end = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>');
    let (mut shown, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        let (url, behind) = after.split_at(after.find(is_end).unwrap_or(after.len()));
        let (place, query) = url.split_at(url.find('?').map_or(url.len(), |at| at + 1));
        // A password with a slash or a question mark in it, which it should not have, is none that may show.
        let secret = url.rfind('@').unwrap_or(0);
        let struck = |text: &str| "*".repeat(text.chars().count());
        shown.push_str(before);
        if secret >= place.len() {
            shown += &struck(url);
        } else {
            shown += &struck(&place[..secret]);
            shown += &place[secret..];
            shown += &struck(query);
        }
        rest = behind;
    }
    shown + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_left_without_its_secrets_and_they_go_along() {
        let mut url: Url = "http://bob:p%40ss@cache.example.org/x?token=t".parse().expect("a URL");
        let credentials = Credentials::take_from(&mut url);
        assert_eq!(url.as_str(), "http://cache.example.org/x");
        assert_eq!(
            format!("{credentials:?} {:?}", Credentials::default()),
            "Credentials(…) Credentials(none)"
        );
        let login = Login::Basic { user: "bob".into(), password: "p@ss".into() };
        assert!(credentials.login == Some(login) && !credentials.is_empty());
        for (before, after) in [("", "?token=t"), ("?a=b", "?a=b&token=t"), ("?token=t", "?token=t")] {
            let file: Url = format!("http://cache.example.org/x/nar/1.nar{before}").parse().expect("a URL");
            let expected = format!("http://cache.example.org/x/nar/1.nar{after}");
            assert_eq!(credentials.extend(file).as_str(), expected);
        }
    }

    #[test]
    fn a_file_has_a_user_and_a_password_or_a_token() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("secret");
        let read = |text: &str| {
            std::fs::write(&file, text).expect("written");
            let mut credentials = Credentials::default();
            credentials.read(&file).map(|()| credentials.login)
        };
        let basic = |user: &str, password: &str| {
            Some(Login::Basic { user: user.to_owned(), password: password.to_owned() })
        };
        assert!(read("bob:a:b c\n").expect("good") == basic("bob", "a:b c"));
        assert!(read(":token").expect("good") == basic("", "token"));
        assert!(read("bearer abc\r\n").expect("good") == Some(Login::Bearer("abc".to_owned())));
        for bad in ["", "secret", "machine a\nlogin b:c\n", "a:b\nc:d"] {
            let error = read(bad).err().expect("neither").to_string();
            assert!(error.contains("USER:PASSWORD") && !error.contains("a:b"), "{error}");
        }
    }

    #[test]
    fn secrets_in_urls_are_struck_out_of_messages() {
        for (text, expected) in [
            ("url = \"http://bob:secret@host/x\"", "url = \"http://**********@host/x\""),
            ("http://host/x?token=s y", "http://host/x?******* y"),
            ("'https://u:p?q@h' https://a.b/c", "'https://*******' https://a.b/c"),
            ("http://bob:a/b@h", "http://*******@h"),
            ("no URL at all?", "no URL at all?"),
        ] {
            let shown = without_secrets(text);
            assert_eq!(shown.chars().count(), text.chars().count(), "{shown}");
            assert!(!shown.contains("secret") && !shown.contains("token"), "{shown}");
            if !text.contains("p?q") {
                assert_eq!(shown, expected);
            }
        }
    }
}
