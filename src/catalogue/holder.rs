//! The holder of a generation: a file in the Nix store that refers to its derivations, and has a GC root of
//! ours.

use std::collections::BTreeSet;

use narinfo::StorePath;

use super::Tools;
use super::error::RefreshError;
use super::settings::SetName;
use crate::nix::Daemon;

/// Writes the holder of `derivations`, other than that of any generation for which `which` is different, and
/// protects it until its root is released. Gives its path.
///
/// # Errors
/// If one of the derivations is not valid (any more), or the daemon or the file system fails.
pub(super) async fn hold(
    tools: &Tools,
    daemon: &mut Daemon,
    set: &SetName,
    which: &str,
    derivations: &BTreeSet<StorePath>,
) -> Result<StorePath, RefreshError> {
    let name = format!("ondine-{set}");
    let text = format!("Who holds this file holds the derivations of the package set {set}.\n{which}\n");
    let holder = daemon.add_text(&name, &text, derivations).await?;
    tools.roots.hold(daemon, [&holder]).await?;
    // Of a connection that looked for a collection's socket in the moment before it was there, Nix 2.5 to 2.9
    // tells no collection anything any more. One that was under way before the root stood may have taken the
    // holder; a new connection tells it.
    tools.pool.get_fresh().await?.add_text(&name, &text, derivations).await?;
    Ok(holder)
}
