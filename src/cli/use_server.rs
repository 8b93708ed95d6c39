//! `ondine use`: checks a server, and shows or writes the lines by which the Nix of this machine uses it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use narinfo::CacheInfo;
use serde::Serialize;

use super::control::OutputArgs;
use super::output::OutputError;
use crate::escape::Line;
use crate::nix::{Environment, netrc_file};
use crate::remote::nix_conf::{self, ConfLine, ConfLines};
use crate::remote::{self, Remote, ServerAddress, ServerChoice, ServerIdentity, UserTrust, programs};

/// Mode of a new nix.conf: it has no secrets.
const CONF_MODE: u32 = 0o644;
/// Mode of a new netrc file.
const NETRC_MODE: u32 = 0o600;
/// A file that NixOS has.
const NIXOS_MARK: &str = "/etc/NIXOS";

#[derive(Args, Debug)]
pub(super) struct UseServer {
    /// URL of the server
    #[arg(env = "ONDINE_SERVER", hide_env_values = true, value_name = "URL")]
    server: String,
    /// Adds the lines to nix.conf and, where there is a token, to a netrc file, and names the server to the
    /// other commands
    #[arg(long)]
    write: bool,
    /// Means the nix.conf of the system instead of the user's
    #[arg(long)]
    system: bool,
    /// Shows a NixOS module instead
    #[arg(long, conflicts_with_all = ["write", "system", "json"])]
    nixos: bool,
    /// File with a token [default: the variable ONDINE_TOKEN, ~/.config/ondine/config.toml, or a netrc file]
    #[arg(long, env = "ONDINE_TOKEN_FILE", hide_env_values = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// The lines that the Nix of this machine lacks for a server, and what was done about them.
#[derive(Serialize)]
struct UseReport<'a> {
    server: &'a str,
    version: &'a str,
    /// The nix.conf.
    conf: &'a Path,
    /// The netrc file, where there is a token.
    netrc: Option<&'a PathBuf>,
    /// Lines that the nix.conf lacked.
    missing: Vec<String>,
    /// True where Nix trusts the user, null where it does not say.
    trust: Option<bool>,
    /// Files that were written.
    wrote: Vec<PathBuf>,
}

/// The files to change.
struct Files {
    conf: PathBuf,
    netrc: PathBuf,
    /// The one that names the server to commands of ondine.
    own: PathBuf,
}

impl UseServer {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let choice = ServerChoice {
            server: Some(self.server.clone()),
            token_file: self.token_file.clone(),
            ..ServerChoice::default()
        };
        let remote = choice.connect()?;
        super::runtime()?.block_on(self.check_and_show(&remote))
    }

    async fn check_and_show(&self, remote: &Remote) -> anyhow::Result<ExitCode> {
        let identity = check(remote).await?;
        let url = remote.shown().to_owned();
        let settings = programs::settings().await?;
        let mut lines = lines(&url, &identity, &settings);
        if self.nixos {
            print!("{}\n{}", about_server(&url, &identity), nixos(&lines, remote.credentials().has_login()));
            return Ok(ExitCode::SUCCESS);
        }
        let files = self.files(&settings)?;
        let trust = programs::trust(&settings).await;
        let has_token = remote.credentials().password().is_some();
        if has_token && settings.get("netrc-file").is_none_or(|file| Path::new(file) != files.netrc) {
            let value = files.netrc.display().to_string();
            lines.0.push(ConfLine::Value { setting: "netrc-file", value });
        }
        let text = read(&files.conf)?;
        let missing: Vec<String> = lines.missing_in(&text).iter().map(|line| line.text()).collect();
        if !self.output.json {
            print!("{}", about_server(&url, &identity));
            self.show(&files, &missing, has_token.then(|| host(remote)), trust)?;
        }
        let own = server_line(&files.own, &url)?;
        if let (OwnFile::Other(other), false) = (&own, self.output.json) {
            println!(
                "{} names another server, {}: commands of ondine go on asking that one.",
                files.own.display(),
                Line(other)
            );
        }
        if let (OwnFile::Add(_), false, false) = (&own, self.output.json, self.write) {
            println!("{} names no server, so commands of ondine need --server.", files.own.display());
        }
        let wrote =
            if self.write { self.write(trust, &files, &lines, &text, &own, remote)? } else { Vec::new() };
        if self.output.json {
            let netrc = has_token.then_some(&files.netrc);
            let (conf, version) = (&files.conf, &identity.version);
            let report =
                UseReport { server: &url, version, conf, netrc, missing, trust: trust.known(), wrote };
            println!("{}", serde_json::to_string_pretty(&report)?);
            return Ok(ExitCode::SUCCESS);
        }
        if !self.write && (!missing.is_empty() || matches!(own, OwnFile::Add(_))) {
            let (system, by) = match (self.system, trust) {
                (true, _) => (" --system", ""),
                (false, UserTrust::NotTrusted) => (" --system", ", as root"),
                (false, UserTrust::Trusted | UserTrust::Unknown) => ("", ""),
            };
            println!("Add them with: {}{system}{by}", command_to_write(&url, self.token_file.as_deref()));
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Shows the lines that are missing, the login for a host, and who is trusted.
    fn show(
        &self,
        files: &Files,
        missing: &[String],
        login: Option<String>,
        trust: UserTrust,
    ) -> Result<(), OutputError> {
        if missing.is_empty() {
            println!("\n{} has all lines that are needed.", files.conf.display());
        } else {
            let verb = if self.write { "Lines that are added to" } else { "Lines for" };
            println!("\n{verb} {}:\n", files.conf.display());
            for line in missing {
                println!("    {line}");
            }
        }
        if let Some(host) = login {
            println!("\nThe token belongs to {}:\n", files.netrc.display());
            println!("    machine {host} login ondine password (the token)");
            let of_system = netrc_file();
            if files.netrc != of_system && of_system.exists() {
                println!(
                    "\nNix reads one netrc file, from then on {} alone: copy the entries of {} that are still needed.",
                    files.netrc.display(),
                    of_system.display()
                );
            }
        }
        println!("\n{}", self.about(trust));
        Ok(())
    }

    fn files(&self, settings: &BTreeMap<String, String>) -> anyhow::Result<Files> {
        let of_system = netrc_file();
        if self.system {
            let conf = of_system.with_file_name("nix.conf");
            let netrc = settings.get("netrc-file").map_or(of_system, PathBuf::from);
            return Ok(Files { conf, netrc, own: remote::system_file() });
        }
        let folder =
            remote::nix_conf_dir_of_user().context("HOME is not set, so there is no nix.conf of a user")?;
        // A file that the user has named stays the one.
        let named = settings.get("netrc-file").map(PathBuf::from).filter(|named| *named != of_system);
        let netrc = named.unwrap_or_else(|| folder.join("netrc"));
        let own =
            remote::user_file().context("HOME is not set, so there is no folder of a user's settings")?;
        Ok(Files { conf: folder.join("nix.conf"), netrc, own })
    }

    /// Advice on the trust that the lines need.
    fn about(&self, trust: UserTrust) -> &'static str {
        match (self.system, trust) {
            (true, _) => "The lines are in effect for every user once the Nix daemon was restarted.",
            (false, UserTrust::Trusted) => {
                "Nix trusts this user, so lines in the user's nix.conf are in effect."
            }
            (false, UserTrust::NotTrusted) => {
                "Nix does not trust this user: its daemon ignores substituters and keys in the user's nix.conf. They \
                 belong to the system's, or the user to trusted-users."
            }
            (false, UserTrust::Unknown) => {
                "Nix does not say if it trusts this user. If it ignores the lines, run the command with --system."
            }
        }
    }

    fn write(
        &self,
        trust: UserTrust,
        files: &Files,
        lines: &ConfLines,
        text: &str,
        own: &OwnFile,
        remote: &Remote,
    ) -> anyhow::Result<Vec<PathBuf>> {
        if !self.system && trust == UserTrust::NotTrusted {
            bail!("nothing was written, since Nix would ignore it");
        }
        let environment = Environment::from_env()?;
        for file in [&files.conf, &files.netrc] {
            let is_managed = nix_conf::target(file).starts_with(environment.store_dir.to_string())
                || (self.system && Path::new(NIXOS_MARK).exists());
            if is_managed {
                bail!(
                    "{} is made by NixOS or another configuration, which would undo a change: add the lines there \
                     (ondine use --nixos shows them)",
                    file.display()
                );
            }
        }
        let mut wrote = Vec::new();
        let mut replace = |file: &Path, text: &str, mode| {
            let replaced = nix_conf::replace(file, text, mode);
            replaced.with_context(|| format!("cannot write {}", file.display()))?;
            if !self.output.json {
                println!("Wrote {}.", file.display());
            }
            wrote.push(file.to_owned());
            anyhow::Ok(())
        };
        // The token first: lines that need it are of no use before.
        if let Some(password) = remote.credentials().password() {
            let netrc = read(&files.netrc)?;
            if let Some(text) = nix_conf::netrc_with(&netrc, &host(remote), password) {
                replace(&files.netrc, &text, NETRC_MODE)?;
            }
        }
        if let Some(text) = lines.added_to(text) {
            replace(&files.conf, &text, CONF_MODE)?;
        }
        if let OwnFile::Add(text) = own {
            replace(&files.own, text, CONF_MODE)?;
        }
        Ok(wrote)
    }
}

/// The state of the file that names the server to commands of ondine.
enum OwnFile {
    /// This server is named.
    Named,
    /// Another one is named, and the file stays as it is.
    Other(String),
    /// None is named; the text of the file with this one.
    Add(String),
}

fn server_line(file: &Path, url: &str) -> anyhow::Result<OwnFile> {
    Ok(match remote::server_of_file(file.to_owned())? {
        None => OwnFile::Add(format!("server = {}\n{}", toml::Value::from(url), read(file)?)),
        Some(named) if named.trim_end_matches('/') == url => OwnFile::Named,
        Some(other) => OwnFile::Other(crate::upstream::without_secrets(&other)),
    })
}

/// The command that writes the lines for a server, with the file of its token where one was given.
pub(super) fn command_to_write(url: &str, token_file: Option<&Path>) -> String {
    let token = token_file.map(|file| format!(" --token-file {}", file.display())).unwrap_or_default();
    format!("ondine use {url}{token} --write")
}

fn about_server(url: &str, identity: &ServerIdentity) -> String {
    let (version, store_dir) = (Line(&identity.version), Line(&identity.store_dir));
    format!("{url} is Ondine {version}; its store directory is {store_dir}\n")
}

fn read(file: &Path) -> anyhow::Result<String> {
    nix_conf::read(file).with_context(|| format!("cannot read {}", file.display()))
}

fn host(remote: &Remote) -> String {
    match remote.address() {
        ServerAddress::Url(url) => url.host_str().unwrap_or_default().to_owned(),
        ServerAddress::Socket(_) => "localhost".to_owned(),
    }
}

/// The server's description of itself, if it is one that this machine can use.
async fn check(remote: &Remote) -> anyhow::Result<ServerIdentity> {
    let info = remote.get("nix-cache-info").await?.text().await?;
    let info = CacheInfo::parse(info.as_bytes())
        .ok()
        .filter(|_| info.contains("StoreDir"))
        .ok_or_else(|| remote.not_ondine("its nix-cache-info is none"))?;
    let identity = remote.identity().await?;
    if identity.public_keys.is_empty() {
        bail!("{} has no key to sign with, so no client can trust it", remote.shown());
    }
    let own = Environment::from_env()?.store_dir;
    if info.store_dir != own {
        bail!(
            "{} serves paths of the store {}, but the Nix of this machine has {own}: it would use none of them",
            remote.shown(),
            info.store_dir
        );
    }
    Ok(identity)
}

fn lines(url: &str, identity: &ServerIdentity, settings: &BTreeMap<String, String>) -> ConfLines {
    let mut lines = vec![ConfLine::Item { setting: "substituters", value: url.to_owned() }];
    // The first key is the one that clients are told to trust.
    lines.extend(
        identity
            .public_keys
            .first()
            .map(|key| ConfLine::Item { setting: "trusted-public-keys", value: Line(key).to_string() }),
    );
    // Without it Nix builds derivations with preferLocalBuild or allowSubstitutes = false itself; releases
    // before 2.19 do not know it.
    if settings.contains_key("always-allow-substitutes") {
        lines.push(ConfLine::Value { setting: "always-allow-substitutes", value: "true".to_owned() });
    }
    ConfLines(lines)
}

fn nixos(lines: &ConfLines, has_token: bool) -> String {
    let settings: String = lines.0.iter().map(|line| format!("    {}\n", line.nixos())).collect();
    let netrc = match has_token {
        true => {
            "    # A file outside of the store, with the line: machine HOST login ondine password TOKEN\n    netrc-file = \
             \"/etc/nix/netrc\";\n"
        }
        false => "",
    };
    format!("{{\n  nix.settings = {{\n{settings}{netrc}  }};\n}}\n")
}
