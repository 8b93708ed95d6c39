//! Settings of access, of signing keys and of the isolation of evaluators.

use std::num::NonZeroU32;

use narinfo::KeyName;

use crate::auth::Access;
use crate::catalogue::Isolation;
use crate::config::draft::SettingsDraft;
use crate::config::oidc;
use crate::config::setting::{DefaultValue, List, Number, OneOf, Setting, Tables, Text};
use crate::key::WantedName;

/// Choices of who has a right.
const ACCESS: &[(&str, Access)] = &[("public", Access::Public), ("token", Access::Token)];

pub(super) const SETTINGS: &[Setting<SettingsDraft>] = &[
    Setting {
        name: "read",
        doc: "Clients that may read the cache and the state of the server: all, or those with a token that has the \
              right `read`. `/healthz`, `/readyz` and the text at `/` (address, public key and endpoints) are for all; pages \
              are not.",
        default: DefaultValue::Is("public"),
        value: &OneOf {
            placeholder: "ACCESS",
            choices: ACCESS,
            set: |to: &mut SettingsDraft, access| to.settings.auth.read = access,
        },
    },
    Setting {
        name: "build",
        doc: "Clients that may have missing paths built: all, or those with a token that has the right `build`. Others \
              are served what is there.",
        default: DefaultValue::Is("public"),
        value: &OneOf {
            placeholder: "ACCESS",
            choices: ACCESS,
            set: |to: &mut SettingsDraft, access| to.settings.auth.build = access,
        },
    },
    Setting {
        name: "oidc",
        doc: "Issuers of identity tokens, such as CI systems, whose tokens give rights by their claims. In the file each \
              is a table [[oidc]]; a flag has `\"ISSUER AUDIENCE CLAIM=PATTERN…\"`.",
        default: DefaultValue::Is(""),
        value: &Tables {
            within: oidc::WITHIN,
            placeholder: "ISSUER",
            expected: "a table with issuer, audience and claims, or \"ISSUER AUDIENCE CLAIM=PATTERN…\"",
            keys: oidc::KEYS,
            short: oidc::short,
            add: oidc::add,
        },
    },
    Setting {
        name: "max-requests-per-second",
        doc: "Requests that a client may make in a second, save those that memory answers; 0 is any number. A client \
              is a token, an IPv4 address or an IPv6 network (/64). Narinfos above it wait, other requests are refused.",
        default: DefaultValue::Is("0"),
        value: &Number {
            accepted: 0..=u32::MAX as i64,
            set: |to: &mut SettingsDraft, number| to.settings.auth.rate.per_second = NonZeroU32::new(number),
        },
    },
    Setting {
        name: "max-request-burst",
        doc: "Requests that a client may make at once, where max-requests-per-second limits them.",
        default: DefaultValue::Is("200"),
        value: &Number {
            accepted: 1..=u32::MAX as i64,
            set: |to: &mut SettingsDraft, number| to.settings.auth.rate.burst = NonZeroU32::new(number),
        },
    },
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
