//! `ondine attributes`: the attributes of a package set, requested from a running server page by page.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::control::{OutputArgs, ServerArgs};
use crate::escape::{Line, in_one_line};
use crate::http::{AttributeLine, AttributePage};

/// Attributes in one response.
const PAGE: u32 = 1000;
/// Characters of an error, at most.
const ERROR_CHARS_MAX: usize = 200;

#[derive(Args, Debug)]
pub(super) struct Attributes {
    /// Name of the package set
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    set: String,
    /// Part of the attribute or of the name of its derivation; a pattern with `*` must match all of it
    pattern: Option<String>,
    /// System that the set is evaluated for [default: its first]
    #[arg(long)]
    system: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
}

impl Attributes {
    /// Fails when there is no such attribute.
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Self { set, pattern, system, output, server } = self;
        let session = server.open()?;
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let mut address = format!("/api/v1/catalogue/{}/?limit={PAGE}", encoded(&set));
        for (name, value) in [("q", &pattern), ("system", &system)] {
            address.extend(value.iter().map(|value| format!("&{name}={}", encoded(value))));
        }
        let (mut after, mut count) = (String::new(), 0);
        loop {
            let page: AttributePage = session.read(&format!("{address}&after={}", encoded(&after)))?;
            count += page.attributes.len();
            for attribute in &page.attributes {
                let line = if output.json { serde_json::to_string(attribute)? } else { line(attribute) };
                println!("{line}");
            }
            match page.next {
                Some(next) => after = next,
                None => {
                    if !page.complete {
                        eprintln!(
                            "{set} has index = \"lazy\": only attributes that were requested by name are listed"
                        );
                    }
                    break;
                }
            }
        }
        match (count, pattern) {
            (0, Some(pattern)) => {
                bail!("the package set {set} has no attribute that matches {}", Line(pattern))
            }
            (0, None) => bail!("the package set {set} has no attributes"),
            _ => Ok(ExitCode::SUCCESS),
        }
    }
}

/// The attribute, a tab, and the name of its derivation or its error.
fn line(attribute: &AttributeLine) -> String {
    let AttributeLine { attribute, name, denied, error, .. } = attribute;
    let derivation = match (name, error) {
        (Some(name), _) => name.clone(),
        (None, error) => {
            let error = error.as_deref().unwrap_or_default();
            format!("cannot be evaluated: {}", in_one_line(error, ERROR_CHARS_MAX))
        }
    };
    format!("{}\t{}{}", Line(attribute), Line(derivation), if *denied { " (denied)" } else { "" })
}
