//! Credentials of a bucket from a file, in the form of Amazon's own. Must never show in a message, an answer
//! or a log.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use object_store::aws::AmazonS3Builder;

use crate::upstream::located;

/// Bytes of a file with credentials at most.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Reason for a file that has not both keys.
const FORM: &str = "two lines are needed, aws_access_key_id=… and aws_secret_access_key=…";

/// Credentials; no `Debug`, since they must not show.
pub(super) struct BucketCredentials {
    id: String,
    secret: String,
    session: Option<String>,
}

impl BucketCredentials {
    pub(super) fn apply(self, builder: AmazonS3Builder) -> AmazonS3Builder {
        let builder = builder.with_access_key_id(self.id).with_secret_access_key(self.secret);
        match self.session {
            Some(session) => builder.with_token(session),
            None => builder,
        }
    }
}

/// Reads a file, or one of this name among systemd's credentials.
pub(super) fn read(file: &Path) -> io::Result<BucketCredentials> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", file.display()));
    let path = located("nar-store-credentials", file).map_err(io::Error::other)?;
    let mut text = String::new();
    let opened = File::open(path).and_then(|opened| opened.take(FILE_BYTES_MAX).read_to_string(&mut text));
    opened.map_err(named)?;
    parse(&text).ok_or_else(|| named(io::Error::new(io::ErrorKind::InvalidData, FORM)))
}

fn parse(text: &str) -> Option<BucketCredentials> {
    let value_of = |wanted: &str| {
        let mut entries = text.lines().filter_map(|line| line.split_once('='));
        let (_, value) = entries.find(|(name, _)| name.trim().eq_ignore_ascii_case(wanted))?;
        Some(value.trim().to_owned()).filter(|value| !value.is_empty())
    };
    Some(BucketCredentials {
        id: value_of("aws_access_key_id")?,
        secret: value_of("aws_secret_access_key")?,
        session: value_of("aws_session_token"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_both_keys_and_perhaps_a_session() {
        let parsed = parse("[default]\naws_access_key_id = AK\nAWS_SECRET_ACCESS_KEY=a=b/c\n").expect("good");
        assert_eq!((&*parsed.id, &*parsed.secret, parsed.session), ("AK", "a=b/c", None));
        let parsed =
            parse("aws_access_key_id=a\naws_secret_access_key=b\naws_session_token=c").expect("good");
        assert_eq!(parsed.session.as_deref(), Some("c"));
        for bad in ["", "a:b", "aws_access_key_id=a", "aws_access_key_id=\naws_secret_access_key=b"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
