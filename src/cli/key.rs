//! `ondine key`: the signing keys of a state directory. A running server reads them at its next start.

use clap::Subcommand;
use narinfo::KeyName;

use super::StateDir;
use crate::key::{self, Keys};

/// What takes effect when.
const RESTART: &str = "restart the server to have it signed with";

#[derive(Debug, Subcommand)]
pub(super) enum Key {
    /// Print the public key: what goes into a client's trusted-public-keys.
    Show(StateDir),
    /// Print the public keys of all that signs, the one that clients are told to trust first.
    List(StateDir),
    /// Make a further key, which signs beside the others.
    New {
        /// Name of the key, as clients will know it; each key needs its own
        name: KeyName,
        #[command(flatten)]
        state_dir: StateDir,
    },
    /// Make a new key that clients are told to trust; the present one goes on signing beside it.
    Rotate {
        /// Name of the new key [default: the present name with the number at its end raised]
        name: Option<KeyName>,
        #[command(flatten)]
        state_dir: StateDir,
    },
    /// Sign no more with a key that clients trust no more, or that was lost.
    Retire {
        /// Name of the key
        name: KeyName,
        #[command(flatten)]
        state_dir: StateDir,
    },
}

impl Key {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Show(state_dir) => print(Keys::read(&state_dir.path()?, &[])?.public().take(1)),
            Self::List(state_dir) => print(Keys::read(&state_dir.path()?, &[])?.public()),
            Self::New { name, state_dir } => {
                print([key::create(&state_dir.path()?, name)?]);
                eprintln!("{RESTART} it beside the others; what is served already is signed with it, too");
            }
            Self::Rotate { name, state_dir } => {
                print([key::rotate(&state_dir.path()?, name)?]);
                eprintln!(
                    "{RESTART} it; give it to clients, and retire the earlier key once all of them have it"
                );
            }
            Self::Retire { name, state_dir } => {
                key::retire(&state_dir.path()?, &name)?;
                eprintln!("restart the server to have nothing more signed with {name}");
            }
        }
        Ok(())
    }
}

fn print(keys: impl IntoIterator<Item = narinfo::PublicKey>) {
    keys.into_iter().for_each(|key| println!("{key}"));
}
