//! A build hook for daemons without remote builders. Nix starts its own hook for each build, only to hear
//! that no other machine can build it, which takes longer than a short build. Daemons that do not trust us
//! keep their own hook.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Says what Nix's own hook says when there are no remote builders, then hears out the daemon.
const SCRIPT: &str = "\
#!/bin/sh
echo '# decline-permanently' >&2
while read -r ignored; do :; done
";

/// Writes the hook into `dir`, an absolute path. Gives the setting that names it, for
/// [`Options::extra`](super::Options).
///
/// # Errors
/// If the file cannot be written.
pub fn without_remote_builders(dir: &Path) -> io::Result<(String, String)> {
    let file = dir.join("build-hook");
    // Nix splits the setting at white space.
    let path = file.to_str().filter(|path| !path.contains(char::is_whitespace));
    let path = path.ok_or_else(|| io::Error::other("its path has white space or is not UTF-8"))?.to_owned();
    fs::write(&file, SCRIPT)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    Ok(("build-hook".to_owned(), path))
}
