//! Settings of the state directory, of storage elsewhere and of compression.

use std::path::PathBuf;

use crate::config::draft::SettingsDraft;
use crate::config::setting::{Bytes, DefaultValue, List, Number, OneOf, Setting, SomeOf, Text};
use crate::http::TrustedProxies;
use crate::index::IndexLocation;
use crate::nar_store::BucketUrl;
use crate::serve::{Role, Roles};

pub(super) const SETTINGS: &[Setting<SettingsDraft>] = &[
    Setting {
        name: "state-dir",
        doc: "Directory of the index, the NARs, the logs and the signing key. The first start creates it.",
        default: DefaultValue::Described("$STATE_DIRECTORY, else ~/.local/state/ondine"),
        value: &Text {
            placeholder: "DIR",
            expected: "the path of a directory",
            parse: |text| Some(PathBuf::from(text)),
            set: |to: &mut SettingsDraft, directory| to.settings.state_dir = directory,
        },
    },
    Setting {
        name: "index",
        doc: "Database of the index: `sqlite`, a file in the state directory, or the URL of a PostgreSQL from version 13 on, \
              such as `postgres://ondine@db.example.org/ondine`. Its parameters are those of libpq; `sslmode` is `disable` \
              or `verify-full`, which is the default except on this machine. See `ondine migrate`.",
        default: DefaultValue::Is("sqlite"),
        value: &Text {
            placeholder: "DATABASE",
            expected: "sqlite, or the URL of a PostgreSQL",
            parse: IndexLocation::parse,
            set: |to: &mut SettingsDraft, location| to.settings.index.location = location,
        },
    },
    Setting {
        name: "index-password-file",
        doc: "File with the password for PostgreSQL. Without it the password is that of the URL, or of the file that \
              PGPASSFILE names, else of ~/.pgpass.",
        default: DefaultValue::Described("none"),
        value: &Text {
            placeholder: "FILE",
            expected: "the path of a file",
            parse: |text| Some(PathBuf::from(text)),
            set: |to: &mut SettingsDraft, file| to.settings.index.password_file = Some(file),
        },
    },
    Setting {
        name: "roles",
        doc: "Parts of this server where several share an index in PostgreSQL and a bucket: `\"serve\"` answers clients, \
              `\"schedule\"` builds, evicts and evaluates package sets while no other server does.",
        default: DefaultValue::Is("serve,schedule"),
        value: &SomeOf {
            placeholder: "ROLES",
            choices: &[("serve", Role::Serve), ("schedule", Role::Schedule)],
            set: |to: &mut SettingsDraft, roles| to.settings.roles = Roles::of(&roles),
        },
    },
    Setting {
        name: "nar-store",
        doc: "Bucket that NARs are stored in, instead of the state directory: of Amazon S3 or another object store with its \
              API (`s3://`), of Google Cloud Storage (`gs://`) or of Azure Blob Storage (`az://`). With `s3://` it must \
              honour conditional puts (`If-None-Match`), and the region and the endpoint may be left to the environment \
              (`AWS_REGION`, `AWS_ENDPOINT_URL`). Percent signs encode what an address cannot have.",
        default: DefaultValue::Described("the state directory"),
        value: &Text {
            placeholder: "URL",
            expected: BucketUrl::EXPECTED,
            parse: BucketUrl::parse,
            set: |to: &mut SettingsDraft, url| to.settings.nar_store.bucket = Some(url),
        },
    },
    Setting {
        name: "nar-store-credentials",
        doc: "File with the credentials of that bucket. Of S3: lines `aws_access_key_id=…`, `aws_secret_access_key=…` and \
              perhaps `aws_session_token=…`. Of Google: the JSON key of a service account. Of Azure: a connection string, \
              or lines `AccountName=…` and `AccountKey=…` or `SharedAccessSignature=…`. It is an absolute path, or a name \
              in `$CREDENTIALS_DIRECTORY` (systemd's `LoadCredential=`).",
        default: DefaultValue::Described(
            "the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, \
             AZURE_STORAGE_ACCOUNT_KEY), else the role of the machine",
        ),
        value: &Text {
            placeholder: "FILE",
            expected: "the path of a file",
            parse: |text| Some(PathBuf::from(text)),
            set: |to: &mut SettingsDraft, file| to.settings.nar_store.credentials_file = Some(file),
        },
    },
    Setting {
        name: "nar-store-publish",
        doc: "Files that are published in that bucket beside the NARs. With `\"narinfo\"` it is a complete binary cache that \
              clients read without this server: it has the narinfo of each path whose closure is stored there.",
        default: DefaultValue::Is("none"),
        value: &OneOf {
            placeholder: "FILES",
            choices: &[("none", false), ("narinfo", true)],
            set: |to: &mut SettingsDraft, publishes| to.settings.nar_store.publishes = publishes,
        },
    },
    Setting {
        name: "nar-cache-bytes",
        doc: "Disk space for copies of NARs that are stored in a bucket. They outlive the server. The least recently \
              used ones make room for what is asked for a second time. 0 is none.",
        default: DefaultValue::Is("16GiB"),
        value: &Bytes {
            min: 0,
            set: |to: &mut SettingsDraft, bytes| to.settings.nar_store.copy_bytes_max = bytes,
        },
    },
    Setting {
        name: "serve-nars",
        doc: "Way in which clients get NARs that are stored in a bucket. With `\"proxy\"` the server sends them; with \
              `\"redirect\"` clients are redirected to the bucket, at addresses that anybody can use for 15 minutes. \
              Small NARs, plain ones and those that are not stored yet are sent by the server all the same. Credentials \
              that cannot sign addresses are refused.",
        default: DefaultValue::Is("proxy"),
        value: &OneOf {
            placeholder: "WAY",
            choices: &[("proxy", false), ("redirect", true)],
            set: |to: &mut SettingsDraft, redirects| to.settings.nar_store.redirects = redirects,
        },
    },
    Setting {
        name: "redirect-networks",
        doc: "Networks whose clients are redirected with `serve-nars = \"redirect\"`; the server sends NARs to all \
              others.",
        default: DefaultValue::Is("0.0.0.0/0,::/0"),
        value: &List {
            placeholder: "NETWORK",
            expected: "an address or a network, such as 10.0.0.0/8",
            parse: TrustedProxies::parse_network,
            set: |to: &mut SettingsDraft, networks| to.settings.nar_store.redirect_networks = networks,
        },
    },
    Setting {
        name: "zstd-level",
        doc: "Compression level of stored NARs, from 1 (fast) to 19 (small).",
        default: DefaultValue::Is("1"),
        value: &Number {
            accepted: 1..=19,
            set: |to: &mut SettingsDraft, level| to.settings.nar_store.zstd_level = level,
        },
    },
    Setting {
        name: "zstd-threads",
        doc: "Threads that compress one NAR. Levels above 9 use one thread all the same.",
        default: DefaultValue::Described("one for each core, at most 4"),
        value: &Number {
            accepted: 1..=64,
            set: |to: &mut SettingsDraft, threads| to.settings.nar_store.zstd_threads = threads,
        },
    },
];
