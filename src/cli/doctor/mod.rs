//! `ondine doctor`: looks at a server or a client, says of each finding what it is, why it matters and what
//! to do, and mends what is safe to mend. Must never change anything else.

mod builders;
mod client;
mod daemon;
mod finding;
mod machine;
mod network;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::control::OutputArgs;
use super::screen::Screen;
use crate::config::UnlistedSettings;
use crate::remote::{ServerChoice, programs};
use crate::serve;
use finding::{DoctorReport, FindingLevel};

/// Settings file of the packages.
const CONFIG: &str = "/etc/ondine/ondine.toml";

#[derive(Args, Debug)]
pub(super) struct Doctor {
    /// Looks at the Nix of this machine as a client of a server, instead of at the server on it
    #[arg(long)]
    client: bool,
    /// Mends what is safe to mend: the modes of files
    #[arg(long)]
    fix: bool,
    #[command(flatten)]
    output: OutputArgs,
    /// URL of the server, for --client [default: `server` in ~/.config/ondine/config.toml]
    #[arg(long, env = "ONDINE_SERVER", hide_env_values = true, value_name = "URL")]
    server: Option<String>,
    /// File with a token, for --client [default: as for other commands]
    #[arg(long, env = "ONDINE_TOKEN_FILE", hide_env_values = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Settings file (TOML) of the server [default: /etc/ondine/ondine.toml, where there is one]
    #[arg(long, env = "ONDINE_CONFIG", hide_env_values = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: UnlistedSettings,
}

impl Doctor {
    /// Fails when something does not work.
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut report = DoctorReport::new(self.fix);
        let output = self.output;
        if self.client {
            let token_file = self.token_file;
            let choice = ServerChoice {
                server: self.server,
                token_file: token_file.clone(),
                ..ServerChoice::default()
            };
            let remote = choice.connect()?;
            super::runtime()?.block_on(client::check(&remote, token_file.as_deref(), &mut report))?;
        } else {
            self.check_server(&mut report)?;
        }
        match output.json {
            true => println!("{}", report.json()?),
            false => print!("{}", report.text(Screen::stdout())),
        }
        Ok(if report.has_errors() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn check_server(self, report: &mut DoctorReport) -> anyhow::Result<()> {
        let file = self.config.or_else(|| Some(PathBuf::from(CONFIG)).filter(|file| file.exists()));
        let settings = super::resolve(self.settings.0, file.as_deref())?;
        let running = network::running(&settings, report);
        super::runtime()?.block_on(async {
            start(&settings, file.as_deref(), report).await;
            let nix = programs::settings().await.unwrap_or_default();
            daemon::check(&settings.nix, &nix, report).await;
            machine::check(&settings, report).await;
            network::upstreams(&settings, running.as_ref(), report).await;
            if let Some(status) = &running {
                builders::check(&settings.farm.builders, &status.builders, report);
                network::public_address(&settings, status, report).await;
                network::own_loop(status, &nix, report);
            }
        });
        Ok(())
    }
}

/// The checks that each start makes, too, with the settings of this file.
async fn start(settings: &serve::Settings, file: Option<&Path>, report: &mut DoctorReport) {
    let of = match file {
        Some(file) => format!("the settings of {}", file.display()),
        None => "the settings of this command, which has no settings file".to_owned(),
    };
    match serve::check(settings.clone()).await {
        // An address that was not tried is that of the server that runs, which has told its own.
        Ok(checked) => {
            report.ok("settings", format!("a server would start with {of}"));
            for warning in checked.warnings {
                report.add(
                    FindingLevel::Note,
                    "settings",
                    warning,
                    "the server would start all the same",
                    "change what the message names, unless it is meant to be so",
                );
            }
        }
        Err(error) => report.add(
            FindingLevel::Error,
            "settings",
            crate::causes::with_causes(&error),
            format!("a server does not start with {of}"),
            "change what the message names; ondine check-config FILE tries it again",
        ),
    }
}
