//! Style, script and icon of the pages, compiled in. Their addresses have the hash of their contents, so
//! that browsers keep them for ever.

use std::sync::OnceLock;

use hyper::header::HeaderValue;
use sha2::{Digest, Sha256};

use super::super::answer;
use super::super::call::Call;
use super::super::response_future::ResponseFuture;

/// Characters of a hash in an address.
const HASH_CHARS: usize = 12;

/// A file that pages refer to.
pub(super) struct Asset {
    name: &'static str,
    ending: &'static str,
    media_type: &'static str,
    contents: &'static [u8],
    hash: OnceLock<String>,
}

pub(super) static STYLE: Asset =
    Asset::new("style", "css", "text/css; charset=utf-8", include_bytes!("assets/style.css"));
pub(super) static SCRIPT: Asset =
    Asset::new("script", "js", "text/javascript; charset=utf-8", include_bytes!("assets/script.js"));
static ICON: Asset = Asset::new("icon", "svg", "image/svg+xml", include_bytes!("assets/icon.svg"));

impl Asset {
    const fn new(
        name: &'static str,
        ending: &'static str,
        media_type: &'static str,
        contents: &'static [u8],
    ) -> Self {
        Self { name, ending, media_type, contents, hash: OnceLock::new() }
    }

    fn hash(&self) -> &str {
        self.hash.get_or_init(|| {
            let digest = Sha256::digest(self.contents);
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            hex[..HASH_CHARS].to_owned()
        })
    }

    /// Its address, from the cache's own folder.
    pub(super) fn address(&self) -> String {
        format!("assets/{}.{}.{}", self.name, self.hash(), self.ending)
    }
}

/// The icon for browsers that ask for it by its name alone have its latest contents.
pub(in crate::http) fn get(call: Call<'_>) -> Option<ResponseFuture> {
    let path = call.path.trim_start_matches('/');
    let is_asked = |asset: &&&Asset| {
        asset.address() == path || path == format!("assets/{}.{}", asset.name, asset.ending)
    };
    let asset = [&STYLE, &SCRIPT, &ICON].iter().find(is_asked).copied()?;
    Some(ResponseFuture::ready(answer::asset(HeaderValue::from_static(asset.media_type), asset.contents)))
}
