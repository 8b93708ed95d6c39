//! The database that holds the index, as the setting names it. Must never show a password.

use std::fmt;
use std::path::PathBuf;

/// Settings of the index.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The database.
    pub location: IndexLocation,
    /// File with the password for PostgreSQL.
    pub password_file: Option<PathBuf>,
}

/// The database that holds the index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum IndexLocation {
    /// SQLite, in the state directory.
    #[default]
    Sqlite,
    /// PostgreSQL.
    Postgres(PostgresUrl),
}

impl IndexLocation {
    /// Reads `sqlite` or the URL of a PostgreSQL.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "sqlite" => Some(Self::Sqlite),
            _ => PostgresUrl::parse(text).map(Self::Postgres),
        }
    }
}

impl fmt::Display for IndexLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite => f.write_str("sqlite"),
            Self::Postgres(url) => url.fmt(f),
        }
    }
}

/// A build that lacks the backend.
#[cfg(not(feature = "postgres"))]
#[derive(Debug, thiserror::Error)]
#[error(
    "this program was built without PostgreSQL, so {0} cannot be used; build it with the feature `postgres`"
)]
pub(super) struct NoPostgres(pub(super) PostgresUrl);

/// URL of a database in PostgreSQL, perhaps with a password.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl(String);

impl PostgresUrl {
    /// Takes every URL: one that is refused here would be shown, with its password. It is read when the index
    /// is opened.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        (!scheme.is_empty() && !rest.is_empty()).then(|| Self(text.to_owned()))
    }

    /// The URL as it was given, with its password.
    #[cfg(feature = "postgres")]
    pub(super) fn with_password(&self) -> &str {
        &self.0
    }
}

/// Without the password.
impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("postgres", &self.0));
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        // A host has no @, a password may.
        let (user, host) = place.rsplit_once('@').unwrap_or(("", place));
        let name = user.split(':').next().unwrap_or_default();
        let at = if name.is_empty() { "" } else { "@" };
        write!(f, "{scheme}://{name}{at}{host}")?;
        let shown = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("password="));
        for (place, pair) in shown.enumerate() {
            write!(f, "{}{pair}", if place == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        for (given, shown) in [
            ("postgres://u:se@cret@h:5/db?sslmode=require", "postgres://u@h:5/db?sslmode=require"),
            ("postgresql://h/db?password=secret&application_name=x", "postgresql://h/db?application_name=x"),
            ("postgres:///db?host=/run&password=secret", "postgres:///db?host=/run"),
            ("sqlite", "sqlite"),
        ] {
            let location = IndexLocation::parse(given).expect("a location");
            assert_eq!(location.to_string(), shown);
            assert!(!format!("{location:?}").contains("cret"), "{location:?}");
        }
        for wrong in ["", "postgres", "postgres://", "/var/lib/index"] {
            assert_eq!(IndexLocation::parse(wrong), None, "{wrong}");
        }
    }
}
