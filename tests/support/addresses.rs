//! Where the cache answers for a store path, and what a field of a narinfo says.

use std::path::Path;

/// The last part of a store path.
#[track_caller]
pub fn base_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).expect("a store path has a name")
}

/// `/<hash>.narinfo`, for a store path that need not exist.
#[track_caller]
pub fn narinfo_address(path: &Path) -> String {
    format!("/{}.narinfo", &base_name(path)[..32])
}

/// `/log/<derivation>`, with what a URL gives a meaning of its own encoded.
#[track_caller]
pub fn log_address(drv: &Path) -> String {
    format!("/log/{}", base_name(drv).replace('?', "%3F"))
}

/// The value of a narinfo's field, which must be there.
#[track_caller]
pub fn field<'a>(narinfo: &'a str, name: &str) -> &'a str {
    let values = fields(narinfo, name);
    values.first().copied().unwrap_or_else(|| panic!("no {name} in {narinfo}"))
}

/// The values of every line of a narinfo that has this name.
pub fn fields<'a>(narinfo: &'a str, name: &str) -> Vec<&'a str> {
    let lines = narinfo.lines();
    lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).collect()
}
