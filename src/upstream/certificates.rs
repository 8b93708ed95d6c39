//! Certificate authorities by which https upstreams are verified: a file that Nix's variable or OpenSSL's
//! names, else those of the system. None at all is no error before something needs one.

use std::env;
use std::path::Path;

use reqwest::Certificate;

/// Variables that name a file of certificates, the first that is set being used, as Nix does.
const VARIABLES: [&str; 2] = ["NIX_SSL_CERT_FILE", "SSL_CERT_FILE"];

/// Certificate authorities, or the reason for which there are none.
#[derive(Clone, Debug)]
pub struct Authorities(Result<Vec<Certificate>, String>);

impl Authorities {
    /// None, for those who verify nothing.
    #[must_use]
    pub fn none() -> Self {
        Self(Ok(Vec::new()))
    }

    /// Those that the environment names.
    #[must_use]
    pub fn load() -> Self {
        let named = VARIABLES.into_iter().find_map(|name| {
            let file = env::var_os(name).filter(|file| !file.is_empty())?;
            Some((name, file))
        });
        let (from, loaded) = match &named {
            Some((name, file)) => {
                let file = Path::new(file);
                let loaded = rustls_native_certs::load_certs_from_paths(Some(file), None);
                (format!("{name} = {}", file.display()), loaded)
            }
            None => ("the system".to_owned(), rustls_native_certs::load_native_certs()),
        };
        let usable = loaded.certs.iter().filter_map(|der| Certificate::from_der(der).ok());
        let usable: Vec<Certificate> = usable.collect();
        if !usable.is_empty() {
            return Self(Ok(usable));
        }
        let errors: Vec<String> = loaded.errors.iter().map(ToString::to_string).collect();
        let errors = if errors.is_empty() { "none was found".to_owned() } else { errors.join(", ") };
        Self(Err(format!(
            "no CA certificates could be loaded from {from} ({errors}): install them (ca-certificates), or name a file of them \
             in NIX_SSL_CERT_FILE"
        )))
    }

    /// The certificates; none where there are none.
    #[must_use]
    pub fn certificates(&self) -> Vec<Certificate> {
        self.0.clone().unwrap_or_default()
    }

    /// The reason for which nothing can be verified, if so.
    #[must_use]
    pub fn lacking(&self) -> Option<&str> {
        self.0.as_ref().err().map(String::as_str)
    }
}
