//! The server that a command speaks to and the token that it shows: from the command line, the environment,
//! the user's file, a server on this machine, the system's file, and netrc files. A token in a file is for
//! the server in that file alone.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use reqwest::Url;
use serde::Deserialize;

use super::connection::{Remote, ServerAddress};
use super::error::Error;
use super::places::{nix_conf_dir_of_user, shown_file, system_file, user_file};
use crate::escape::Line;
use crate::state_dir::LOCK;
use crate::upstream::{Credentials, NetrcFile};

/// The variable with the URL of a server.
const SERVER_VARIABLE: &str = "ONDINE_SERVER";
/// The variable with a token.
const TOKEN_VARIABLE: &str = "ONDINE_TOKEN";
/// Bytes of a token at most.
const TOKEN_BYTES_MAX: usize = 4096;

/// The server and the token as the command line gives them.
#[derive(Clone, Debug, Default)]
pub struct ServerChoice {
    /// URL of the server.
    pub server: Option<String>,
    /// File with a token.
    pub token_file: Option<PathBuf>,
    /// State directory of a server on this machine, where one is named.
    pub state_dir: Option<PathBuf>,
    /// State directories of servers on this machine, where nothing is named: the first that has one.
    pub default_state_dirs: Vec<PathBuf>,
}

/// A file with a server and a token: the user's, or the system's.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ClientFile {
    server: Option<String>,
    token: Option<String>,
    token_file: Option<PathBuf>,
    /// Its place, for messages.
    #[serde(skip)]
    place: PathBuf,
}

impl ServerChoice {
    /// A client of the server.
    ///
    /// # Errors
    /// No server is named, or a file cannot be read.
    pub fn connect(&self) -> Result<Remote, Error> {
        // Who names a state directory needs nothing of a file that may not be readable.
        let is_local = self.state_dir.is_some() && self.server.as_deref().unwrap_or_default().is_empty();
        let file = if is_local { ClientFile::default() } else { ClientFile::read(user_file())? };
        let (address, file) = self.address(file)?;
        let ((address, credentials), place) = match address {
            Named::Socket(state_dir) => {
                return Remote::new(ServerAddress::of_state_dir(&state_dir), Credentials::default());
            }
            Named::Url(url) => self.credentials(&url, &file)?,
        };
        Ok(Remote::new(address, credentials)?.with_credentials_of(place))
    }

    /// The server that is named, and the file whose token may be for it.
    fn address(&self, of_user: ClientFile) -> Result<(Named, ClientFile), Error> {
        let given = self.server.clone().filter(|server| !server.is_empty());
        if let (None, Some(state_dir)) = (&given, &self.state_dir) {
            return Ok((Named::Socket(state_dir.clone()), of_user));
        }
        let variable = || env::var(SERVER_VARIABLE).ok().filter(|server| !server.is_empty());
        if let Some(server) = given.or_else(variable).or_else(|| of_user.server.clone()) {
            return Ok((Named::Url(parse_server(&server)?), of_user));
        }
        let here = |is_there: fn(&Path) -> bool| self.default_state_dirs.iter().find(|dir| is_there(dir));
        if let Some(state_dir) = here(has_socket) {
            return Ok((Named::Socket(state_dir.clone()), of_user));
        }
        let of_system = ClientFile::read(Some(system_file()))?;
        if let Some(server) = &of_system.server {
            return Ok((Named::Url(parse_server(server)?), of_system));
        }
        // A server that is stopped has left its files, and is named in the error.
        if let Some(state_dir) = here(has_state) {
            return Ok((Named::Socket(state_dir.clone()), of_user));
        }
        Err(Error::Settings(format!(
            "no server is named, and none is found on this machine: give its address with --server URL, in the variable \
             ONDINE_SERVER, or as `server = \"URL\"` in {}, which `ondine use URL --write` does; for a server on this \
             machine give its --state-dir",
            shown_file()
        )))
    }

    /// The address without credentials, the credentials, and the place that they were found in.
    fn credentials(&self, url: &Url, file: &ClientFile) -> Result<(PlaceAndLogin, Option<String>), Error> {
        let mut url = url.clone();
        let of_url = Credentials::take_from(&mut url);
        let given = match self.token()? {
            None if !of_url.has_login() && file.is_about(&url) => file.token()?,
            given => given,
        };
        let (mut credentials, mut place) = match given {
            Some(FoundToken { token, place }) => (Credentials::of_token(token), Some(place)),
            None => {
                let place = of_url.has_login().then(|| "its URL".to_owned());
                (of_url, place)
            }
        };
        for netrc in netrc_files() {
            credentials.complete_from(&netrc, &url).map_err(|error| Error::Settings(error.to_string()))?;
            if place.is_none() && credentials.has_login() {
                place = Some(netrc.path().display().to_string());
            }
        }
        Ok(((ServerAddress::Url(url), credentials), place))
    }

    /// The token of the command line or of the environment.
    fn token(&self) -> Result<Option<FoundToken>, Error> {
        if let Some(file) = &self.token_file {
            return read_token(file).map(Some);
        }
        let variable = env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty());
        variable.map(|token| checked(&token, &format!("the variable {TOKEN_VARIABLE}"))).transpose()
    }
}

/// A server, and what it is asked with.
type PlaceAndLogin = (ServerAddress, Credentials);

/// A token, and the place that it was found in.
struct FoundToken {
    token: String,
    place: String,
}

/// Place of a server, with credentials that its URL may have.
enum Named {
    Url(Url),
    Socket(PathBuf),
}

/// True for a state directory with a control socket, or one that this user may not look into.
fn has_socket(state_dir: &Path) -> bool {
    match state_dir.join(crate::serve::CONTROL_SOCKET).try_exists() {
        Ok(exists) => exists,
        Err(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
    }
}

/// True for a state directory that a server has used.
fn has_state(state_dir: &Path) -> bool {
    state_dir.join(LOCK).exists()
}

/// The server that the user's file names, or the system's where that is meant.
///
/// # Errors
/// The file cannot be read or understood.
pub fn server_of_file(file: PathBuf) -> Result<Option<String>, Error> {
    Ok(ClientFile::read(Some(file))?.server)
}

/// The address of a server; one without a scheme is https, as people write them.
///
/// # Errors
/// The text is no URL.
pub fn parse_server(server: &str) -> Result<Url, Error> {
    // The text may have a password in it, and one that is no URL in a place where it is not recognised.
    let wrong = || {
        let shown = if server.contains('@') { String::new() } else { format!(" {}", Line(server)) };
        Error::Settings(format!(
            "the server's address{shown} is no URL: expected one such as https://cache.example.org"
        ))
    };
    let url = match server.contains("://") {
        true => Url::parse(server),
        false => Url::parse(&format!("https://{server}")),
    };
    let url = url.map_err(|_| wrong())?;
    if matches!(url.scheme(), "http" | "https") && url.host_str().is_some() { Ok(url) } else { Err(wrong()) }
}

impl ClientFile {
    /// The file at this place; an empty one where there is none.
    fn read(place: Option<PathBuf>) -> Result<Self, Error> {
        let Some(place) = place else { return Ok(Self::default()) };
        let text = match fs::read_to_string(&place) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => {
                return Err(Error::Settings(format!("{} cannot be read: {error}", place.display())));
            }
        };
        // toml's own message shows the line, which may have the token.
        let parsed: Result<Self, toml::de::Error> = toml::from_str(&text);
        let parsed = parsed.map_err(|error| {
            let before = error.span().map_or("", |span| &text[..span.start.min(text.len())]);
            let line = before.matches('\n').count() + 1;
            Error::Settings(format!(
                "{}:{line}: expected `server`, `token` and `token-file`, each with a text in quotes",
                place.display()
            ))
        })?;
        Ok(Self { place, ..parsed })
    }

    /// True where the file names the server of this URL.
    fn is_about(&self, url: &Url) -> bool {
        let server = self.server.as_deref().and_then(|server| parse_server(server).ok());
        server.is_some_and(|mut server| {
            let _ = Credentials::take_from(&mut server);
            server.origin() == url.origin()
        })
    }

    fn token(&self) -> Result<Option<FoundToken>, Error> {
        match (&self.token, &self.token_file) {
            (Some(token), _) => checked(token, &self.place.display().to_string()).map(Some),
            (None, Some(file)) => read_token(file).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// A token alone in a file.
fn read_token(file: &Path) -> Result<FoundToken, Error> {
    let text = fs::read_to_string(file).map_err(|error| {
        Error::Settings(format!("the token file {} cannot be read: {error}", file.display()))
    })?;
    checked(text.trim(), &file.display().to_string())
}

/// The token, if it may be one. Its text is not shown.
fn checked(token: &str, place: &str) -> Result<FoundToken, Error> {
    let is_token = !token.is_empty() && token.len() <= TOKEN_BYTES_MAX;
    if is_token && token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(FoundToken { token: token.to_owned(), place: place.to_owned() });
    }
    Err(Error::Settings(format!(
        "{place} holds no token: one word is expected, as `ondine token new` prints it"
    )))
}

/// The user's netrc file, then Nix's: the files that `curl` and Nix read.
fn netrc_files() -> Vec<NetrcFile> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut files = Vec::new();
    match variable("NETRC") {
        Some(file) => files.push(NetrcFile::Named(file)),
        None => files.extend(variable("HOME").map(|home| NetrcFile::OfNix(home.join(".netrc")))),
    }
    files.extend(nix_conf_dir_of_user().map(|dir| NetrcFile::OfNix(dir.join("netrc"))));
    let system = variable("NIX_CONF_DIR").unwrap_or_else(|| "/etc/nix".into());
    files.push(NetrcFile::OfNix(system.join("netrc")));
    files
}
