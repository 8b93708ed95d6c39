//! `ondine token`: tokens of clients of a running server.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::control::{OutputArgs, ServerArgs, WriteMethod};
use super::screen::{Screen, TableField};
use crate::config::lifetime;
use crate::http::{IssueRequest, IssuedToken, TokenView};

/// Path of tokens in the API.
const TOKENS: &str = "/api/v1/tokens";

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Makes a token, and prints it this one time.
    New(NewTokenArguments),
    /// Lists the tokens, without their secrets.
    List {
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Revokes a token: from then on it is refused.
    Revoke {
        /// Name or number of the token
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        token: String,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        server: ServerArgs,
    },
}

#[derive(Args, Debug)]
pub(super) struct NewTokenArguments {
    /// Name for people: letters, digits, `.`, `_` and `-`
    #[arg(long)]
    name: String,
    /// Rights, separated by commas: read, build, push, vouch, refresh, cancel, pin, admin
    #[arg(long, value_name = "RIGHTS", value_delimiter = ',', required = true)]
    may: Vec<String>,
    /// Pattern of the names that may be pushed, built and pinned, such as `hello-*`; may be repeated
    /// [default: all names]
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// Time until it expires, such as 90d [default: never]
    #[arg(long, value_name = "DURATION", value_parser = lifetime)]
    expires: Option<Duration>,
    /// Requests for builds that may wait at a time [default: as any client]
    #[arg(long, value_name = "NUMBER")]
    max_queued: Option<u64>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
}

impl TokenCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::New(new) => new.run(),
            Self::List { output, server } => {
                let shown = |list: &Vec<TokenView>, screen| table(list, screen);
                server.open()?.show(TOKENS, output, shown)
            }
            Self::Revoke { token, output, server } => {
                let path = format!("{TOKENS}/{}", utf8_percent_encode(&token, NON_ALPHANUMERIC));
                server.open()?.follow(WriteMethod::Delete, &path, output)
            }
        }
    }
}

impl NewTokenArguments {
    /// Prints the token alone, so that a script can take it. One that nobody could read is revoked.
    fn run(self) -> anyhow::Result<ExitCode> {
        let request = IssueRequest {
            name: self.name,
            rights: self.may,
            only: self.only,
            expires_seconds: self.expires.map(|lifetime| lifetime.as_secs()),
            max_queued: self.max_queued,
        };
        let session = self.server.open()?;
        let issued: IssuedToken = session.exchange(TOKENS, &request)?;
        let Err(error) = print(&issued, self.output) else { return Ok(ExitCode::SUCCESS) };
        let name = &request.name;
        // Not as the end of a pipe: what was asked for has not been done.
        let reason = format!("the new token {name} could not be printed ({error:#})");
        match session.remove(&format!("{TOKENS}/{}", issued.id)) {
            Ok(()) => bail!("{reason}, and was revoked: nobody has seen it"),
            Err(error) => {
                let advice =
                    format!("run `ondine token revoke {name}`, since it is valid and nobody has seen it");
                Err(error.context(format!("{reason}; {advice}")))
            }
        }
    }
}

fn print(issued: &IssuedToken, output: OutputArgs) -> anyhow::Result<()> {
    match output.json {
        true => println!("{}", serde_json::to_string(issued)?),
        false => println!("{}", issued.token),
    }
    Ok(())
}

/// A row for each token.
fn table(tokens: &[TokenView], screen: Screen) -> String {
    if tokens.is_empty() {
        return "There is no token.\n".to_owned();
    }
    let moment = |unix: Option<u64>| unix.map_or_else(|| "never".to_owned(), |unix| screen.moment(unix));
    let rows = tokens.iter().map(|token| {
        let TokenView { id, name, rights, only, expires_at, used_at, max_queued, .. } = token;
        let mut limits = rights.join(",");
        if !only.is_empty() {
            limits += &format!("; only {}", only.join(", "));
        }
        if let Some(max) = max_queued {
            limits += &format!("; at most {max} queued");
        }
        vec![
            TableField::number(id),
            TableField::text(name),
            TableField::text(moment(*expires_at)),
            TableField::text(moment(*used_at)),
            TableField::text(limits),
        ]
    });
    screen.table(&["ID", "NAME", "EXPIRES", "LAST USED", "RIGHTS"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_listed_in_columns_with_their_rights_and_limits() {
        let token = |id, name: &str, only: &[&str], used_at| TokenView {
            id,
            name: name.to_owned(),
            rights: vec!["read".to_owned(), "push".to_owned()],
            only: only.iter().map(ToString::to_string).collect(),
            created_at: 0,
            expires_at: used_at,
            used_at,
            max_queued: used_at,
        };
        let tokens = [token(1, "ci", &[], None), token(12, "laptop", &["a-*", "b"], Some(86_400))];
        let expected = "\
ID  NAME    EXPIRES               LAST USED             RIGHTS
 1  ci      never                 never                 read,push
12  laptop  1970-01-02T00:00:00Z  1970-01-02T00:00:00Z  read,push; only a-*, b; at most 86400 queued
";
        assert_eq!(table(&tokens, Screen::default()), expected);
        assert_eq!(table(&[], Screen::default()), "There is no token.\n");
    }
}
