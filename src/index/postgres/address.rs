//! Address of the database, with its password and its TLS, made of the setting's URL. Must never show the
//! password.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::Error;
use crate::index::location::PostgresUrl;

/// Name by which the server lists our connections, unless the URL has another one.
const APPLICATION: &str = "ondine";
/// Time for which the kernel waits for an acknowledgement before a connection counts as lost.
const UNACKNOWLEDGED_FOR: Duration = Duration::from_secs(5);
/// Time within which the system of a host is to take a connection.
const HOST_FOR: Duration = Duration::from_secs(3);

/// Reason why an address cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The URL does not parse.
    #[error("the setting index is no URL of PostgreSQL, which is such as postgres://user@host:5432/database")]
    Url(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The TLS mode is unknown, or protects nothing.
    #[error("sslmode={0} is not accepted in the setting index; disable and verify-full are")]
    SslMode(String),
    /// A file cannot be read.
    #[error("cannot read {}, which the setting {setting} names", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The setting.
        setting: &'static str,
        /// Error of the system.
        source: std::io::Error,
    },
    /// The certificates cannot be used.
    #[error("sslrootcert in the setting index names no file of PEM certificates")]
    Certificates(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Address of the database.
#[derive(Clone)]
pub(super) struct DatabaseAddress {
    config: Config,
    root_certificates: Option<PathBuf>,
}

impl DatabaseAddress {
    /// Reads the URL, and the password: of the file, of the URL, or of the user's password file.
    ///
    /// # Errors
    /// A wrong URL, or a file that cannot be read.
    pub(super) fn new(url: &PostgresUrl, password_file: Option<&Path>) -> Result<Self, AddressError> {
        let (url, own) = split(url.with_password());
        let mut config: Config = url.parse().map_err(|error| AddressError::Url(Box::new(error)))?;
        config.tcp_user_timeout(UNACKNOWLEDGED_FOR).keepalives_idle(UNACKNOWLEDGED_FOR);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(HOST_FOR);
        }
        if config.get_application_name().is_none() {
            config.application_name(APPLICATION);
        }
        // Of several servers the one that takes writes.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        let is_near = config.get_hosts().iter().all(is_near);
        config.ssl_mode(match own.ssl_mode.as_deref() {
            Some("disable") => SslMode::Disable,
            Some("require" | "verify-ca" | "verify-full") => SslMode::Require,
            Some(other) => return Err(AddressError::SslMode(other.to_owned())),
            None if is_near => SslMode::Disable,
            None => SslMode::Require,
        });
        if let Some(file) = password_file {
            let password = read(file, "index-password-file")?;
            config.password(password.trim_end_matches(['\n', '\r']));
        } else if config.get_password().is_none()
            && let Some(password) = user_password(&config)
        {
            config.password(password);
        }
        Ok(Self { config, root_certificates: own.root_certificates })
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// TLS that trusts the system's certificates, or those that the URL names.
    ///
    /// # Errors
    /// Certificates that cannot be read.
    pub(super) fn tls(&self) -> Result<MakeRustlsConnect, Error> {
        let mut roots = rustls::RootCertStore::empty();
        if self.config.get_ssl_mode() == SslMode::Require {
            for certificate in self.certificates()? {
                // One that is malformed vouches for nobody.
                let _ = roots.add(certificate);
            }
        }
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Tls(Box::new(error)))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(MakeRustlsConnect::new(tls))
    }

    fn certificates(&self) -> Result<Vec<rustls::pki_types::CertificateDer<'static>>, Error> {
        use rustls::pki_types::{CertificateDer, pem::PemObject};
        let Some(file) = &self.root_certificates else {
            return Ok(rustls_native_certs::load_native_certs().certs);
        };
        let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
        read.map_err(|error| Error::Tls(Box::new(AddressError::Certificates(Box::new(error)))))
    }
}

/// True for a host whose bytes stay on this machine.
fn is_near(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
        }
    }
}

/// Parameters of the URL that the driver does not know, or not as libpq does.
#[derive(Debug, Default, PartialEq, Eq)]
struct OwnParameters {
    ssl_mode: Option<String>,
    root_certificates: Option<PathBuf>,
}

/// Takes our own parameters out of a URL.
fn split(url: &str) -> (String, OwnParameters) {
    let (place, query) = url.split_once('?').unwrap_or((url, ""));
    let mut own = OwnParameters::default();
    let decoded = |value: &str| percent_encoding::percent_decode_str(value).decode_utf8_lossy().into_owned();
    let mut rest = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sslmode", mode)) => own.ssl_mode = Some(decoded(mode)),
            Some(("sslrootcert", file)) => own.root_certificates = Some(decoded(file).into()),
            _ => rest.push(pair),
        }
    }
    let query = if rest.is_empty() { String::new() } else { format!("?{}", rest.join("&")) };
    (format!("{place}{query}"), own)
}

fn read(file: &Path, setting: &'static str) -> Result<String, AddressError> {
    fs::read_to_string(file).map_err(|source| AddressError::File { file: file.to_owned(), setting, source })
}

/// The password in the file that PGPASSFILE names, or in ~/.pgpass; `None` where nothing there fits.
fn user_password(config: &Config) -> Option<String> {
    let file = match std::env::var_os("PGPASSFILE") {
        Some(file) => PathBuf::from(file),
        None => Path::new(&std::env::var_os("HOME")?).join(".pgpass"),
    };
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        _ => "localhost".to_owned(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432).to_string();
    let user = config.get_user().unwrap_or_default();
    let database = config.get_dbname().unwrap_or(user);
    password_for(&fs::read_to_string(file).ok()?, &[&host, &port, database, user])
}

/// The password of the first line whose fields are these, or `*`:
/// <https://www.postgresql.org/docs/15/libpq-pgpass.html>.
fn password_for(lines: &str, wanted: &[&str; 4]) -> Option<String> {
    lines.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = fields(line);
        let (password, place) = fields.split_last().filter(|(_, place)| place.len() == wanted.len())?;
        let fits = place.iter().zip(wanted).all(|(field, wanted)| field == "*" || field == wanted);
        fits.then(|| password.clone())
    })
}

/// Fields between colons; a backslash takes the next character as it is.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            ':' => fields.push(String::new()),
            '\\' => fields.last_mut().into_iter().for_each(|field| field.extend(characters.next())),
            other => fields.last_mut().into_iter().for_each(|field| field.push(other)),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::IndexLocation;

    fn address(url: &str, password_file: Option<&Path>) -> Result<DatabaseAddress, AddressError> {
        let Some(IndexLocation::Postgres(url)) = IndexLocation::parse(url) else { panic!("no URL: {url}") };
        DatabaseAddress::new(&url, password_file)
    }

    #[test]
    fn bytes_leave_this_machine_through_tls_alone() {
        let mode = |url| address(url, None).expect("an address").config.get_ssl_mode();
        assert_eq!(mode("postgres://u@db.example.org/x"), SslMode::Require);
        assert_eq!(mode("postgres://u@db.example.org/x?sslmode=verify-full"), SslMode::Require);
        assert_eq!(mode("postgres://u@db.example.org/x?sslmode=disable"), SslMode::Disable);
        assert_eq!(mode("postgres://u@localhost/x"), SslMode::Disable);
        assert_eq!(mode("postgres:///x?host=/run/postgresql&user=u"), SslMode::Disable);
        let refused = address("postgres://u@h/x?sslmode=prefer", None).err().expect("refused").to_string();
        assert!(refused.contains("sslmode=prefer") && refused.contains("verify-full"), "{refused}");
    }

    #[test]
    fn a_password_comes_from_the_file_that_the_setting_names_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("password");
        std::fs::write(&file, "of the file\n").expect("written");
        let password = |address: DatabaseAddress| address.config.get_password().map(<[u8]>::to_vec);
        let url = "postgres://u:of-the-url@h/x";
        assert_eq!(password(address(url, Some(&file)).expect("read")), Some(b"of the file".to_vec()));
        assert_eq!(password(address(url, None).expect("read")), Some(b"of-the-url".to_vec()));
        let missing = folder.path().join("missing");
        let refused = address(url, Some(&missing)).err().expect("refused").to_string();
        assert!(refused.contains("index-password-file") && refused.contains("missing"), "{refused}");
    }

    #[test]
    fn lines_of_a_password_file_are_read_as_libpq_reads_them() {
        let lines = "# h:1:d:u:comment\nh:1:other:u:no\nh:*:d:u:a\\:b\\\\c\n*:*:*:*:rest\n";
        assert_eq!(password_for(lines, &["h", "1", "d", "u"]).as_deref(), Some("a:b\\c"));
        assert_eq!(password_for(lines, &["i", "1", "d", "u"]).as_deref(), Some("rest"));
        assert_eq!(password_for("h:1:d:u:x", &["i", "1", "d", "u"]), None);
    }
}
