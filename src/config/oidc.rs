//! Keys of an [[oidc]] table, and the short form of a flag.

use std::time::Duration;

use super::draft::SettingsDraft;
use super::error::{Location, Problem};
use super::raw::{RawContent, RawTable};
use super::setting::{DefaultValue, List, Setting, SomeOf, Text, Time};
use crate::auth::OidcSettings;
use crate::caller::Action;
use crate::http::PublicUrl;
use crate::name_pattern::NamePattern;

pub(super) const WITHIN: &str = " in [[oidc]]";

/// Rights that an identity token may have: all but to administer, which is for people.
const RIGHTS: &[(&str, Action)] = &[
    ("read", Action::Read),
    ("build", Action::Build),
    ("push", Action::Push),
    ("vouch", Action::Vouch),
    ("refresh", Action::Refresh),
    ("cancel", Action::Cancel),
    ("pin", Action::Pin),
];

/// Keys of the table.
pub(super) const KEYS: &[Setting<RawOidc>] = &[
    Setting {
        name: "issuer",
        doc: "Address of the issuer, exactly as its tokens name it (`iss`). Its keys are found through its \
              `.well-known/openid-configuration`.",
        default: DefaultValue::Required,
        value: &Text {
            placeholder: "URL",
            expected: "https://HOST…, or http:// of this machine",
            parse: issuer,
            set: |to: &mut RawOidc, issuer| to.issuer = issuer,
        },
    },
    Setting {
        name: "audience",
        doc: "Audience that a token must be for (`aud`), such as the address of this cache.",
        default: DefaultValue::Required,
        value: &Text {
            placeholder: "TEXT",
            expected: "a text",
            parse: |text| (!text.is_empty()).then(|| text.to_owned()),
            set: |to: &mut RawOidc, audience| to.audience = audience,
        },
    },
    Setting {
        name: "claims",
        doc: "Claims that a token must have, each `NAME=PATTERN`; `*` stands for anything. All must match. At least one \
              is needed: a public CI system signs tokens for everyone.",
        default: DefaultValue::Required,
        value: &List {
            placeholder: "CLAIM",
            expected: "NAME=PATTERN, such as \"repository=acme/*\"",
            parse: claim,
            set: |to: &mut RawOidc, claims| to.claims = claims,
        },
    },
    Setting {
        name: "may",
        doc: "Rights of such a token.",
        default: DefaultValue::Is("read,build,push"),
        value: &SomeOf {
            placeholder: "RIGHTS",
            choices: RIGHTS,
            set: |to: &mut RawOidc, rights| to.rights = rights,
        },
    },
    Setting {
        name: "only",
        doc: "Patterns of the names that it may push, build and pin, such as `hello-*`.",
        default: DefaultValue::Described("all names"),
        value: &List {
            placeholder: "PATTERN",
            expected: "a name, in which `*` stands for anything",
            parse: |text| Some(NamePattern::new(text)),
            set: |to: &mut RawOidc, patterns| to.only = patterns,
        },
    },
    Setting {
        name: "keys-fresh-for",
        doc: "Time after which the keys of the issuer are read again, at the next token. A key that the issuer has \
              withdrawn is refused from then on.",
        default: DefaultValue::Is("30m"),
        value: &Time {
            accepted: Duration::from_secs(1)..=Duration::from_secs(86_400),
            set: |to: &mut RawOidc, time| to.keys_fresh_for = time,
        },
    },
];

/// The keys of one table, read.
#[derive(Default)]
pub(super) struct RawOidc {
    issuer: String,
    audience: String,
    claims: Vec<(String, NamePattern)>,
    rights: Vec<Action>,
    only: Vec<NamePattern>,
    keys_fresh_for: Duration,
}

/// Reads `ISSUER AUDIENCE CLAIM…`, as a flag has it.
pub(super) fn short(text: &str, location: &Location) -> Vec<(&'static str, RawContent)> {
    let mut words = text.split_whitespace();
    let mut next = || RawContent::Text(words.next().unwrap_or_default().to_owned());
    let (issuer, audience) = (next(), next());
    vec![("issuer", issuer), ("audience", audience), ("claims", RawContent::list(words, location))]
}

/// Adds an issuer to the settings.
///
/// # Errors
/// The issuer has no claims.
pub(super) fn add(to: &mut SettingsDraft, read: RawOidc, table: &RawTable) -> Result<(), Problem> {
    let RawOidc { issuer, audience, claims, rights, only, keys_fresh_for } = read;
    if claims.iter().all(|(_, pattern)| pattern.as_str().chars().all(|c| c == '*')) {
        return Err(table.refuse(
            "claims",
            WITHIN,
            "expected at least one claim that not every token matches",
        ));
    }
    let oidc = OidcSettings { issuer, audience, claims, rights, only, keys_fresh_for };
    to.settings.auth.oidc.push(oidc);
    Ok(())
}

/// Keys over http could be anybody's, save on this machine.
fn issuer(text: &str) -> Option<String> {
    text.parse::<PublicUrl>().ok()?;
    let near = ["http://127.0.0.1", "http://[::1]", "http://localhost"];
    let ends = |rest: &str| rest.is_empty() || rest.starts_with([':', '/']);
    let is_near = near.iter().any(|prefix| text.strip_prefix(prefix).is_some_and(ends));
    (text.starts_with("https://") || is_near).then(|| text.to_owned())
}

fn claim(text: &str) -> Option<(String, NamePattern)> {
    let (name, pattern) = text.split_once('=')?;
    (!name.is_empty() && !pattern.is_empty()).then(|| (name.to_owned(), NamePattern::new(pattern)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_is_asked_over_https_or_on_this_machine() {
        for text in ["https://token.actions.githubusercontent.com", "https://a/b/", "http://127.0.0.1:80/x"] {
            assert_eq!(issuer(text).as_deref(), Some(text));
        }
        for text in [
            "http://a",
            "http://127.0.0.1.evil.example",
            "http://localhost.evil",
            "ftp://a",
            "https://a?b",
            "",
        ] {
            assert_eq!(issuer(text), None, "{text}");
        }
    }

    #[test]
    fn a_claim_is_a_name_and_a_pattern() {
        let parsed = claim("sub=repo:acme/a=b:*").expect("a claim");
        assert_eq!((&*parsed.0, parsed.1.as_str()), ("sub", "repo:acme/a=b:*"));
        assert!(claim("sub").is_none() && claim("=x").is_none() && claim("sub=").is_none());
    }
}
