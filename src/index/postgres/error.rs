//! Errors of the index in PostgreSQL. Whoever uses the index sees only the kinds that every backend has, each
//! with one of these as its opaque source. Must never tell a password.

use deadpool_postgres::PoolError;
use tokio_postgres::error::SqlState;

use crate::index;
use crate::index::columns::DamagedRow;
use crate::index::condition::ConditionError;

/// Class of errors by which the server refuses a transaction that may be tried again.
const ROLLED_BACK: &str = "40";
/// Class of errors of the connection.
const CONNECTION: &str = "08";

/// Reason why PostgreSQL could not answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The server does not answer, or has ended the connection.
    #[error(
        "PostgreSQL does not answer; what is in memory is served, all else waits. Check the server that the setting \
         index names"
    )]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server does not let this client in, or has no such database.
    #[error(
        "PostgreSQL refuses the connection; check the user, the password and the database in the setting index"
    )]
    Refused(#[source] tokio_postgres::Error),
    /// The connection was lost while a transaction was committed, and nobody can tell if it was.
    #[error(
        "PostgreSQL went away during a commit, or a replica took over, and nobody has told if it was done; it is tried again"
    )]
    Unknown,
    /// The server takes longer than it may.
    #[error("PostgreSQL takes longer than {0:?} for a request")]
    Slow(std::time::Duration),
    /// The term of the leader has ended.
    #[error("another server has taken over the scheduling of builds")]
    Superseded,
    /// The schema was made by a newer version.
    #[error("the index in PostgreSQL has schema {found}, this version knows {known}")]
    Newer {
        /// Its schema.
        found: i64,
        /// The newest schema that this version knows.
        known: i64,
    },
    /// The index is a copy that is not whole.
    #[error("the index in PostgreSQL is not whole ({0}): run the same `ondine migrate` again")]
    Copying(String),
    /// The schema cannot be made or migrated.
    #[error(
        "cannot bring the schema of the index up to date; the user needs the right to create tables and functions"
    )]
    Schema(#[source] refinery::Error),
    /// The database holds texts in another encoding.
    #[error("the database has the encoding {0}; create it with ENCODING 'UTF8'")]
    Encoding(String),
    /// Certificates or TLS cannot be set up.
    #[error("cannot set up TLS for PostgreSQL")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A row does not parse.
    #[error(transparent)]
    Damaged(#[from] DamagedRow),
    /// The server refused the statement.
    #[error("PostgreSQL refused the request")]
    Sql(#[source] tokio_postgres::Error),
}

impl Error {
    /// True where the transaction was rolled back for the sake of another one.
    pub(super) fn is_rolled_back(&self) -> bool {
        matches!(self, Self::Sql(error) if error.code().is_some_and(|code| code.code().starts_with(ROLLED_BACK)))
    }

    /// True where the connection is lost, or the server is not ready.
    pub(super) fn is_away(&self) -> bool {
        matches!(self, Self::Away(_))
    }
}

impl ConditionError for Error {
    const DAMAGE: &'static str = "the index in PostgreSQL is damaged; restore it from a backup";

    /// True where the system of the server refuses a write, as on a full disk.
    fn is_refused_by_the_system(&self) -> bool {
        let refused = [
            SqlState::DISK_FULL,
            SqlState::IO_ERROR,
            SqlState::OUT_OF_MEMORY,
            SqlState::READ_ONLY_SQL_TRANSACTION,
            SqlState::INSUFFICIENT_PRIVILEGE,
        ];
        matches!(self, Self::Sql(error) if error.code().is_some_and(|code| refused.contains(code)))
    }

    /// True for corruption: a row or a page is not as it was written.
    fn is_damage(&self) -> bool {
        let damaged = [SqlState::DATA_CORRUPTED, SqlState::INDEX_CORRUPTED];
        match self {
            Self::Damaged(_) => true,
            Self::Sql(error) => error.code().is_some_and(|code| damaged.contains(code)),
            _ => false,
        }
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(code) = error.code() else {
            // Whatever is not of the server is of the connection, save values that do not fit their columns.
            let is_of_a_value = error.to_string().contains("serializ");
            return if is_of_a_value { Self::Sql(error) } else { Self::Away(Box::new(error)) };
        };
        let away = [
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::TOO_MANY_CONNECTIONS,
            SqlState::IDLE_SESSION_TIMEOUT,
            SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
        ];
        let refused = [
            SqlState::INVALID_PASSWORD,
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            SqlState::INVALID_CATALOG_NAME,
        ];
        if away.contains(code) || code.code().starts_with(CONNECTION) {
            Self::Away(Box::new(error))
        } else if refused.contains(code) {
            Self::Refused(error)
        } else {
            Self::Sql(error)
        }
    }
}

impl From<PoolError> for Error {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => error.into(),
            error => Self::Away(Box::new(error)),
        }
    }
}

impl From<Error> for index::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Superseded => Self::Superseded,
            Error::Newer { found, known } => Self::Newer { index: "in PostgreSQL".to_owned(), found, known },
            Error::Damaged(DamagedRow { row, source }) => {
                Self::Corrupt { row: format!("the row of {row}"), source }
            }
            error if error.is_damage() => {
                Self::Corrupt { row: "a page of PostgreSQL".to_owned(), source: Box::new(error) }
            }
            error => Self::Unavailable(Box::new(error)),
        }
    }
}
