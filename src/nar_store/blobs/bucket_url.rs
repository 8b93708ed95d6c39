//! The address of a bucket as a setting has it: `s3://BUCKET/PREFIX?region=…&endpoint=…&allow-http=true`, or
//! `gs://` or `az://` for the other services. Has no credentials, so that it can be shown.

use std::fmt;

use percent_encoding::percent_decode_str;

/// Service that has a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BucketService {
    /// Amazon S3, or another object store with its API.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage, where a bucket is called a container.
    Azure,
}

impl BucketService {
    const ALL: [Self; 3] = [Self::S3, Self::Google, Self::Azure];

    /// Scheme of its addresses.
    #[must_use]
    pub fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Google => "gs",
            Self::Azure => "az",
        }
    }
}

/// A bucket, and the prefix of all keys in it that are ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketUrl {
    /// The service that has it.
    pub service: BucketService,
    /// Its name.
    pub bucket: String,
    /// Beginning of every key, without the slash that follows it; may be empty.
    pub prefix: String,
    /// Its region; the environment's where there is none. Of S3 alone.
    pub region: Option<String>,
    /// The storage account that has it; the credentials' where there is none. Of Azure alone.
    pub account: Option<String>,
    /// Address of the storage where that is not the usual one of the service.
    pub endpoint: Option<String>,
    /// Permission for an endpoint without TLS.
    pub allow_http: bool,
    /// True where the endpoint has the bucket in its host name. Of S3 alone.
    pub virtual_hosted: bool,
}

impl BucketUrl {
    /// Form of an address, for messages.
    pub const EXPECTED: &str = "s3://BUCKET, gs://BUCKET or az://CONTAINER, each with /PREFIX and with ?endpoint=URL and \
                                &allow-http=true where needed, s3 also with &region=NAME and &virtual-hosted=true, az with \
                                &account=NAME; credentials stand elsewhere";

    /// Reads an address. `None` where it has another form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let service = BucketService::ALL.into_iter().find(|service| service.scheme() == scheme)?;
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
            service,
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            region: None,
            account: None,
            endpoint: None,
            allow_http: false,
            virtual_hosted: false,
        })?;
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=')?;
            let value = percent_decode_str(value).decode_utf8().ok()?.into_owned();
            match (name, service) {
                ("endpoint", _) => url.endpoint = Some(value.trim_end_matches('/').to_owned()),
                ("allow-http", _) => url.allow_http = value.parse().ok()?,
                ("region", BucketService::S3) => url.region = Some(value),
                ("virtual-hosted", BucketService::S3) => url.virtual_hosted = value.parse().ok()?,
                // It becomes a part of a host name.
                ("account", BucketService::Azure) if value.chars().all(|c| c.is_ascii_alphanumeric()) => {
                    url.account = Some(value).filter(|account| !account.is_empty());
                }
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
        let Self { service, bucket, prefix, .. } = self;
        let slash = if prefix.is_empty() { "" } else { "/" };
        write!(f, "{}://{bucket}{slash}{prefix}", service.scheme())
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
            service: BucketService::S3,
            bucket: "nars".into(),
            prefix: "a/b".into(),
            region: Some("eu-1".into()),
            account: None,
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
            "r2://nars",
            "gs://",
            "gs://nars?region=eu-1",
            "gs://nars?account=a",
            "az://nars?virtual-hosted=true",
            "az://nars?account=a.example.org/",
            "az://nars?endpoint=http://h",
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

    #[test]
    fn each_service_has_its_scheme_and_its_parameters() {
        let google = BucketUrl::parse("gs://nars/a?endpoint=https://h").expect("an address");
        assert_eq!((google.service, &*google.bucket, &*google.prefix), (BucketService::Google, "nars", "a"));
        let azure = BucketUrl::parse("az://nars/a?account=acme&endpoint=https://h/acme").expect("an address");
        assert_eq!((azure.service, azure.account.as_deref()), (BucketService::Azure, Some("acme")));
        for (url, shown) in [(google, "gs://nars/a"), (azure, "az://nars/a")] {
            assert_eq!(url.to_string(), shown);
        }
    }
}
