//! Settings of signing keys and of the isolation of evaluators.

use narinfo::KeyName;

use crate::catalogue::Isolation;
use crate::config::draft::SettingsDraft;
use crate::config::setting::{DefaultValue, List, OneOf, Setting, Text};
use crate::key::WantedName;

pub(super) const SETTINGS: &[Setting<SettingsDraft>] = &[
    Setting {
        name: "key-name",
        doc: "Name of the signing key that the first start creates. It has no effect afterwards.",
        default: DefaultValue::Described("HOSTNAME-1"),
        value: &Text {
            placeholder: "NAME",
            expected: "a name without a colon and without white space",
            parse: |text| text.parse::<KeyName>().ok(),
            set: |to: &mut SettingsDraft, name| to.settings.key_name = WantedName { name, given: true },
        },
    },
    Setting {
        name: "signing-key",
        doc: "Files of the signing keys, used instead of those in the state directory. Clients are told to trust the \
              first.",
        default: DefaultValue::Described("the keys in the state directory"),
        value: &List {
            placeholder: "FILE",
            expected: "the path of a file",
            parse: |text| Some(text.into()),
            set: |to: &mut SettingsDraft, files| to.settings.signing_keys = files,
        },
    },
    Setting {
        name: "evaluator-isolation",
        doc: "Isolation of the evaluators of package sets by the kernel. With `\"required\"` nothing is evaluated \
              without it; `\"none\"` is for machines where all package sets are trusted.",
        default: DefaultValue::Is("required"),
        value: &OneOf {
            placeholder: "ISOLATION",
            choices: &[("required", Isolation::Required), ("none", Isolation::None)],
            set: |to: &mut SettingsDraft, isolation| to.settings.catalogue.isolation = isolation,
        },
    },
];
