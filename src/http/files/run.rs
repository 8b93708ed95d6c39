//! `/run/<set>/<attribute>`: a shell script that fetches the closure of a package into a folder of the user's
//! and runs a program of it there. The script is made of a fixed text and quoted values; it builds nothing
//! itself, but what it fetches is built first where need be.

use hyper::header::HeaderValue;

use super::image::name_and_version;
use crate::http::answer::{self, Answer};
use crate::http::by_name::PackageAddress;
use crate::http::call::{Call, parameters};
use crate::http::delivery::DeliveryRequest;
use crate::http::error::Error;
use crate::http::response_future::ResponseFuture;

/// The script behind its values.
const SCRIPT: &str = include_str!("run.sh");
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("text/x-shellscript; charset=utf-8");
/// Output that has programs where they are apart from the rest.
const PROGRAM_OUTPUTS: [&str; 1] = ["bin"];

pub(in crate::http) fn run(call: Call<'_>) -> Option<ResponseFuture> {
    let [set, attribute, ..] = call.arguments;
    let package = PackageAddress::parse([set, attribute], call.query, &["system", "program"])?;
    let program = parameters(call.query).find(|(key, _)| *key == "program").and_then(|(_, value)| value);
    let last = attribute.rsplit('.').next().unwrap_or_default().trim_matches('"').to_owned();
    let state = &call.service.state;
    let url = state.settings.public_url.clone().or_else(|| call.asked_url());
    let url = url.unwrap_or_else(|| state.url.clone()).to_string();
    let asked = DeliveryRequest::of(call);
    Some(ResponseFuture::pending(async move { answer(&asked, &package, &url, program, last).await }))
}

async fn answer(
    asked: &DeliveryRequest,
    package: &PackageAddress,
    url: &str,
    program: Option<String>,
    last: String,
) -> Result<Answer, Error> {
    let named = package.find(&asked.service).await?;
    let output = named.outputs(&PROGRAM_OUTPUTS).into_iter().next().unwrap_or(named);
    let path = output.path()?;
    let (name, _) = name_and_version(path.name());
    let described = output.named.program.clone();
    let programs = match program {
        Some(program) => vec![program],
        None => described.into_iter().chain([last, name]).collect(),
    };
    let programs: Vec<String> = programs.iter().map(|program| quoted(program)).collect();
    let store_dir = &asked.service.state.store_dir;
    let script = format!(
        "#!/bin/sh\n# Fetches and runs a program of a package; made by Ondine, a Nix binary cache.\n\
         url={}\nhash={}\nstore={}\npath={}\nprograms() {{ printf '%s\\n' {}; }}\n{SCRIPT}",
        quoted(url.trim_end_matches('/')),
        quoted(path.hash().as_str()),
        quoted(store_dir.as_str()),
        quoted(&path.in_dir(store_dir)),
        programs.join(" "),
    );
    Ok(answer::ready(MEDIA_TYPE, script))
}

/// A word of the shell that is just this text, in one line.
fn quoted(text: &str) -> String {
    let line: String = text.chars().filter(|c| !c.is_control()).collect();
    format!("'{}'", line.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_single_words_of_the_shell_whatever_is_in_them() {
        let hostile = "a'; rm -rf \"$HOME\" `id`\n$(x)\\";
        let script = format!("printf %s {}", quoted(hostile));
        let printed = std::process::Command::new("sh").args(["-c", &script]).output().expect("a shell");
        assert_eq!(String::from_utf8_lossy(&printed.stdout), hostile.replace('\n', ""));
    }
}
