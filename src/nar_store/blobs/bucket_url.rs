//! The address of a bucket as a setting has it: `s3://BUCKET/PREFIX?region=…&endpoint=…&allow-http=true`. Has
//! no credentials, so that it can be shown.

use std::fmt;

use percent_encoding::percent_decode_str;

/// A bucket, and the prefix of all keys in it that are ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketUrl {
    /// Its name.
    pub bucket: String,
    /// Beginning of every key, without the slash that follows it; may be empty.
    pub prefix: String,
    /// Its region; the environment's where there is none.
    pub region: Option<String>,
    /// Address of the storage where that is not Amazon's.
    pub endpoint: Option<String>,
    /// Permission for an endpoint without TLS.
    pub allow_http: bool,
    /// True where the endpoint has the bucket in its host name.
    pub virtual_hosted: bool,
}

impl BucketUrl {
    /// Form of an address, for messages.
    pub const EXPECTED: &str = "s3://BUCKET, s3://BUCKET/PREFIX, each with ?region=NAME, &endpoint=URL, &allow-http=true and \
                                &virtual-hosted=true where needed; credentials stand elsewhere";

    /// Reads an address. `None` where it has another form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("s3://")?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let of_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        let of_prefix =
            |part: &str| !part.is_empty() && part != "." && part != ".." && part.chars().all(of_name);
        let prefix = prefix.trim_end_matches('/');
        let fits = !bucket.is_empty()
            && bucket.chars().all(of_name)
            && (prefix.is_empty() || prefix.split('/').all(of_prefix));
        let mut url = fits.then(|| Self {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            region: None,
            endpoint: None,
            allow_http: false,
            virtual_hosted: false,
        })?;
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=')?;
            let value = percent_decode_str(value).decode_utf8().ok()?.into_owned();
            match name {
                "region" => url.region = Some(value),
                "endpoint" => url.endpoint = Some(value.trim_end_matches('/').to_owned()),
                "allow-http" => url.allow_http = value.parse().ok()?,
                "virtual-hosted" => url.virtual_hosted = value.parse().ok()?,
                _ => return None,
            }
        }
        url.endpoint.as_deref().is_none_or(|endpoint| url.allows(endpoint)).then_some(url)
    }

    fn allows(&self, endpoint: &str) -> bool {
        let host = match endpoint.split_once("://") {
            Some(("https", host)) => host,
            Some(("http", host)) if self.allow_http => host,
            _ => return false,
        };
        // A user and a password there would be shown.
        !host.is_empty() && !host.contains(['@', '?', '#'])
    }
}

impl fmt::Display for BucketUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bucket, prefix, .. } = self;
        write!(f, "s3://{bucket}{}{prefix}", if prefix.is_empty() { "" } else { "/" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_bucket_a_prefix_and_known_parameters() {
        let url =
            BucketUrl::parse("s3://nars/a/b/?region=eu-1&endpoint=http%3A%2F%2F127.0.0.1:1/&allow-http=true");
        let expected = BucketUrl {
            bucket: "nars".into(),
            prefix: "a/b".into(),
            region: Some("eu-1".into()),
            endpoint: Some("http://127.0.0.1:1".into()),
            allow_http: true,
            virtual_hosted: false,
        };
        assert_eq!(url.as_ref().map(ToString::to_string).as_deref(), Some("s3://nars/a/b"));
        assert_eq!(url, Some(expected));
        assert_eq!(BucketUrl::parse("s3://nars").map(|url| url.to_string()).as_deref(), Some("s3://nars"));
        for bad in [
            "",
            "nars",
            "s3://",
            "s3:///a",
            "gs://nars",
            "s3://nars/a//b",
            "s3://nars/../b",
            "s3://nars?zone=1",
            "s3://nars?endpoint=http://h",
            "s3://nars?endpoint=https://a:b@h",
            "s3://nars?allow-http=perhaps",
            "s3://key:secret@nars",
            "s3://nars?endpoint=ftp://h&allow-http=true",
        ] {
            assert_eq!(BucketUrl::parse(bad), None, "{bad}");
        }
    }
}
