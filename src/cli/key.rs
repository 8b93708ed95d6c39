//! `ondine key`: the signing keys of a state directory, which a server reads when it starts.

use clap::Subcommand;
use narinfo::KeyName;

use super::StateDir;
use super::control::OutputArgs;
use crate::key::{self, Keys};

/// Advice after a change.
const RESTART: &str = "restart the server to sign with";

#[derive(Debug, Subcommand)]
pub(super) enum Key {
    /// Prints the public key, for trusted-public-keys of clients.
    Show {
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        state_dir: StateDir,
    },
    /// Prints the public keys of all signing keys, first the one that clients are told to trust.
    List {
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        state_dir: StateDir,
    },
    /// Creates another key, which signs beside the others.
    New {
        /// Name of the key, as clients will know it
        name: KeyName,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        state_dir: StateDir,
    },
    /// Creates a key that clients are told to trust, while the present one goes on signing.
    Rotate {
        /// Name of the new key [default: the present name with the number at its end raised]
        name: Option<KeyName>,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        state_dir: StateDir,
    },
    /// Stops signing with a key that clients no longer trust, or that was lost.
    Retire {
        /// Name of the key
        name: KeyName,
        /// Retires it even if no server has run with the key that clients are told to trust
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        state_dir: StateDir,
    },
}

impl Key {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Show { output, state_dir } => {
                show(Keys::read(&state_dir.path()?, &[])?.public().take(1), output)?;
            }
            Self::List { output, state_dir } => show(Keys::read(&state_dir.path()?, &[])?.public(), output)?,
            Self::New { name, output, state_dir } => {
                show([key::create(&state_dir.path()?, name)?], output)?;
                eprintln!("{RESTART} it, too; served paths get its signature beside the others");
            }
            Self::Rotate { name, output, state_dir } => {
                show([key::rotate(&state_dir.path()?, name)?], output)?;
                eprintln!(
                    "{RESTART} it; add it to trusted-public-keys of clients, and retire the earlier key once \
                     all have it"
                );
            }
            Self::Retire { name, force, state_dir } => {
                key::retire(&state_dir.path()?, &name, force)?;
                eprintln!("restart the server to stop signing with {name}");
            }
        }
        Ok(())
    }
}

fn show(keys: impl IntoIterator<Item = narinfo::PublicKey>, output: OutputArgs) -> anyhow::Result<()> {
    let keys: Vec<String> = keys.into_iter().map(|key| key.to_string()).collect();
    match output.json {
        true => println!("{}", serde_json::to_string(&keys)?),
        false => keys.iter().try_for_each(|key| {
            println!("{key}");
            anyhow::Ok(())
        })?,
    }
    Ok(())
}
