//! Settings of the state directory and of compression.

use std::path::PathBuf;

use crate::config::draft::SettingsDraft;
use crate::config::setting::{DefaultValue, Number, Setting, Text};
use crate::index::IndexLocation;

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
