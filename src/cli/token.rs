//! `ondine token`: tokens of clients of a running server.

use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use clap::{Args, Subcommand};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::StateDir;
use super::control::{self, OTHER_VERSION, WriteMethod};
use crate::config::lifetime;
use crate::http::{IssueRequest, IssuedToken, TokenView};

/// Path of tokens in the API.
const TOKENS: &str = "/api/v1/tokens";

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Makes a token, and prints it this one time.
    New(NewTokenArguments),
    /// Lists the tokens, without their secrets.
    List(StateDir),
    /// Revokes a token: from then on it is refused.
    Revoke {
        /// Name or number of the token
        token: String,
        #[command(flatten)]
        state_dir: StateDir,
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
    state_dir: StateDir,
}

impl TokenCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::New(new) => new.run()?,
            Self::List(state_dir) => {
                let tokens = control::get(&state_dir.path()?, TOKENS)?;
                let tokens: Vec<TokenView> = serde_json::from_str(&tokens).context(OTHER_VERSION)?;
                print!("{}", table(&tokens));
            }
            Self::Revoke { token, state_dir } => {
                let path = format!("{TOKENS}/{}", utf8_percent_encode(&token, NON_ALPHANUMERIC));
                return control::follow(WriteMethod::Delete, &state_dir.path()?, &path);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl NewTokenArguments {
    /// Prints the token alone, so that a script can take it.
    fn run(self) -> anyhow::Result<()> {
        let request = IssueRequest {
            name: self.name,
            rights: self.may,
            only: self.only,
            expires_seconds: self.expires.map(|lifetime| lifetime.as_secs()),
            max_queued: self.max_queued,
        };
        let issued = control::exchange(&self.state_dir.path()?, TOKENS, &request)?;
        let IssuedToken { token, .. } = serde_json::from_str(&issued).context(OTHER_VERSION)?;
        println!("{token}");
        Ok(())
    }
}

/// A line for each token.
fn table(tokens: &[TokenView]) -> String {
    if tokens.is_empty() {
        return "there is no token\n".to_owned();
    }
    let time = |seconds: Option<u64>| match seconds {
        Some(seconds) => {
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
        }
        None => "never".to_owned(),
    };
    let width = tokens.iter().map(|token| token.name.len()).max().unwrap_or_default().max(4);
    let mut table = format!("{:>4}  {:width$}  {:20}  {:20}  RIGHTS\n", "ID", "NAME", "EXPIRES", "LAST USED");
    for TokenView { id, name, rights, only, expires_at, used_at, max_queued, .. } in tokens {
        let mut limits = rights.join(",");
        if !only.is_empty() {
            limits += &format!("; only {}", only.join(", "));
        }
        if let Some(max) = max_queued {
            limits += &format!("; at most {max} queued");
        }
        let (expires, used) = (time(*expires_at), time(*used_at));
        table += &format!("{id:>4}  {name:width$}  {expires:20}  {used:20}  {limits}\n");
    }
    table
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
        let expected = "  ID  NAME    EXPIRES               LAST USED             RIGHTS
   1  ci      never                 never                 read,push
  12  laptop  1970-01-02T00:00:00Z  1970-01-02T00:00:00Z  read,push; only a-*, b; at most 86400 queued
";
        assert_eq!(table(&tokens), expected);
        assert_eq!(table(&[]), "there is no token\n");
    }
}
