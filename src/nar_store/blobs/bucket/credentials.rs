//! Credentials of a bucket from a file, in the usual form of its service. Must never show in a message, an
//! answer or a log.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use object_store::aws::AmazonS3Builder;

use crate::upstream::located;

/// Bytes of a file with credentials at most.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Reasons for a file that has another form.
const AMAZON_FORM: &str = "two lines are needed, aws_access_key_id=… and aws_secret_access_key=…";
const GOOGLE_FORM: &str = "the JSON of a service account is needed, as `gcloud iam service-accounts keys create` \
                           writes it, or that of a user (`gcloud auth application-default login`)";
const AZURE_FORM: &str = "a connection string is needed, or lines AccountName=… and AccountKey=… or \
                          SharedAccessSignature=…";
const AZURE_ENDPOINT: &str =
    "the endpoint of this connection string is not heeded: name it by ?endpoint=URL of nar-store";

/// The endpoints of a connection string that need not be named.
const AZURE_SUFFIX: &str = "core.windows.net";

/// Keys of Amazon's form; no `Debug`, since they must not show.
pub(super) struct AmazonKeys {
    id: String,
    secret: String,
    session: Option<String>,
}

/// A key for Google, with the same reserve.
pub(super) enum GoogleKey {
    /// The JSON of a service account.
    ServiceAccount(String),
    /// A file with the JSON of a user.
    User(PathBuf),
}

/// Keys for Azure, with the same reserve.
pub(super) struct AzureKeys {
    pub(super) account: Option<String>,
    pub(super) secret: AzureSecret,
}

/// The secret of [`AzureKeys`].
pub(super) enum AzureSecret {
    /// The key of the storage account.
    Key(String),
    /// A shared access signature.
    Sas(String),
}

impl AmazonKeys {
    pub(super) fn read(file: &Path) -> io::Result<Self> {
        let (_, text) = read(file)?;
        Self::parse(&text).ok_or_else(|| malformed(file, AMAZON_FORM))
    }

    fn parse(text: &str) -> Option<Self> {
        let value_of = |wanted: &str| value_of(text.lines(), &[wanted]);
        Some(Self {
            id: value_of("aws_access_key_id")?,
            secret: value_of("aws_secret_access_key")?,
            session: value_of("aws_session_token"),
        })
    }

    pub(super) fn apply(self, builder: AmazonS3Builder) -> AmazonS3Builder {
        let builder = builder.with_access_key_id(self.id).with_secret_access_key(self.secret);
        match self.session {
            Some(session) => builder.with_token(session),
            None => builder,
        }
    }
}

impl GoogleKey {
    pub(super) fn read(file: &Path) -> io::Result<Self> {
        let (path, text) = read(file)?;
        Self::parse(path, text).ok_or_else(|| malformed(file, GOOGLE_FORM))
    }

    fn parse(path: PathBuf, text: String) -> Option<Self> {
        let json: serde_json::Value = narinfo::json::from_str(&text).ok()?;
        let has = |names: &[&str]| names.iter().all(|name| json[name].is_string());
        match json["type"].as_str() {
            Some("service_account") if has(&["client_email", "private_key", "private_key_id"]) => {
                Some(Self::ServiceAccount(text))
            }
            Some("authorized_user") if has(&["client_id", "client_secret", "refresh_token"]) => {
                Some(Self::User(path))
            }
            _ => None,
        }
    }
}

impl AzureKeys {
    pub(super) fn read(file: &Path) -> io::Result<Self> {
        let (_, text) = read(file)?;
        Self::parse(&text).map_err(|reason| malformed(file, reason))
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        let value_of = |names: &[&str]| value_of(text.split(['\n', ';']), names);
        let is_elsewhere = value_of(&["BlobEndpoint"]).is_some()
            || value_of(&["EndpointSuffix"]).is_some_and(|suffix| suffix != AZURE_SUFFIX);
        if is_elsewhere {
            return Err(AZURE_ENDPOINT);
        }
        let account = value_of(&["AccountName", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"]);
        let key = value_of(&["AccountKey", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY"]);
        let sas = || value_of(&["SharedAccessSignature", "AZURE_STORAGE_SAS_TOKEN"]);
        let secret = key.map(AzureSecret::Key).or_else(|| sas().map(AzureSecret::Sas));
        Ok(Self { account, secret: secret.ok_or(AZURE_FORM)? })
    }
}

/// Reads a file, or one of this name among systemd's credentials.
fn read(file: &Path) -> io::Result<(PathBuf, String)> {
    let path = located("nar-store-credentials", file).map_err(io::Error::other)?;
    let mut text = String::new();
    let opened = File::open(&path).and_then(|opened| opened.take(FILE_BYTES_MAX).read_to_string(&mut text));
    opened.map_err(|error| named(file, &error))?;
    Ok((path, text))
}

fn malformed(file: &Path, form: &str) -> io::Error {
    named(file, &io::Error::new(io::ErrorKind::InvalidData, form))
}

fn named(file: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", file.display()))
}

/// The value of the first entry `NAME=VALUE` that has one of these names, in capitals or not.
fn value_of<'t>(entries: impl Iterator<Item = &'t str>, names: &[&str]) -> Option<String> {
    let is_wanted = |name: &str| names.iter().any(|wanted| name.trim().eq_ignore_ascii_case(wanted));
    let mut entries = entries.filter_map(|entry| entry.split_once('='));
    let (_, value) = entries.find(|(name, _)| is_wanted(name))?;
    Some(value.trim().to_owned()).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_amazon_has_both_keys_and_perhaps_a_session() {
        let parse = AmazonKeys::parse;
        let parsed = parse("[default]\naws_access_key_id = AK\nAWS_SECRET_ACCESS_KEY=a=b/c\n").expect("good");
        assert_eq!((&*parsed.id, &*parsed.secret, parsed.session), ("AK", "a=b/c", None));
        let parsed =
            parse("aws_access_key_id=a\naws_secret_access_key=b\naws_session_token=c").expect("good");
        assert_eq!(parsed.session.as_deref(), Some("c"));
        for bad in ["", "a:b", "aws_access_key_id=a", "aws_access_key_id=\naws_secret_access_key=b"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_file_of_google_is_that_of_a_service_account_or_a_user() {
        let parse = |text: &str| GoogleKey::parse("key".into(), text.to_owned());
        let account =
            r#"{"type":"service_account","client_email":"a@b","private_key":"p","private_key_id":"i"}"#;
        assert!(matches!(parse(account), Some(GoogleKey::ServiceAccount(text)) if text == account));
        let user = r#"{"type":"authorized_user","client_id":"a","client_secret":"b","refresh_token":"c"}"#;
        assert!(matches!(parse(user), Some(GoogleKey::User(_))));
        let federated = r#"{"type":"external_account","audience":"a"}"#;
        for bad in ["", "key", "[]", "{}", federated, &account.replace("private_key\"", "key\"")] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_file_of_azure_is_a_connection_string_or_has_lines_of_a_key_or_a_signature() {
        let parse = |text: &str| match AzureKeys::parse(text)? {
            AzureKeys { account, secret: AzureSecret::Key(key) } => Ok((account, format!("key {key}"))),
            AzureKeys { account, secret: AzureSecret::Sas(sas) } => Ok((account, format!("sas {sas}"))),
        };
        let acme = || Some("acme".to_owned());
        for (good, expected) in [
            (
                "DefaultEndpointsProtocol=https;AccountName=acme;AccountKey=a+b/c==;EndpointSuffix=core.windows.net\n",
                (acme(), "key a+b/c=="),
            ),
            ("AZURE_STORAGE_ACCOUNT_NAME=acme\nazure_storage_account_key = a==\n", (acme(), "key a==")),
            ("AccountName=acme\nSharedAccessSignature=sv=1&sig=a%3D\n", (acme(), "sas sv=1&sig=a%3D")),
            ("AccountKey=a==", (None, "key a==")),
        ] {
            let (account, secret) = expected;
            assert_eq!(parse(good), Ok((account, secret.to_owned())), "{good}");
        }
        for bad in ["", "AccountName=acme", "AccountKey="] {
            assert_eq!(parse(bad), Err(AZURE_FORM), "{bad}");
        }
        for elsewhere in
            ["AccountKey=a;BlobEndpoint=https://h", "AccountKey=a;EndpointSuffix=core.example.cn"]
        {
            assert_eq!(parse(elsewhere), Err(AZURE_ENDPOINT), "{elsewhere}");
        }
    }
}
