//! Files of a standard binary cache in the bucket: `PREFIX/nix-cache-info` and `PREFIX/<hash>.narinfo`,
//! beside the folder of the NARs.

use std::io;

use narinfo::NarHash;
use object_store::list::PaginatedListOptions;
use object_store::path::Path as Key;
use object_store::{Attribute, Attributes};

use super::super::{Blobs, CacheFile, CacheFiles, LIST_PAGE_MAX};
use super::{Bucket, folder};

/// Time for which what stands between a client and the bucket may go by a narinfo, which goes when its NAR
/// does.
const FRESH_FOR: &str = "max-age=300";

impl Bucket {
    fn file(&self, name: &str) -> Key {
        Key::from(format!("{}{name}", folder(&self.0.url, "")))
    }
}

impl CacheFiles for Bucket {
    fn put_file(&self, name: &str, text: String) -> io::Result<()> {
        let media_type =
            if name.ends_with(".narinfo") { "text/x-nix-narinfo" } else { "text/x-nix-cache-info" };
        let attributes = [(Attribute::ContentType, media_type), (Attribute::CacheControl, FRESH_FOR)];
        self.wait(self.0.store.put(&self.file(name), text, Attributes::from_iter(attributes)))
    }

    fn read_file(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.wait(self.0.store.get(&self.file(name)))?.map(Into::into))
    }

    fn delete_file(&self, name: &str) -> io::Result<()> {
        self.wait(self.0.store.delete(&self.file(name)))
    }

    fn list_files(&self, page: Option<String>) -> io::Result<(Vec<CacheFile>, Option<String>)> {
        let prefix = folder(&self.0.url, "");
        let options = PaginatedListOptions {
            // What is in folders is left out.
            delimiter: Some("/".into()),
            max_keys: Some(LIST_PAGE_MAX),
            page_token: page,
            ..Default::default()
        };
        let page = self.wait(self.0.store.list(&prefix, options))?;
        let files = page.objects.into_iter().filter_map(|object| {
            let name = object.meta.location.as_ref().strip_prefix(&prefix)?.to_owned();
            Some(CacheFile { name, tag: object.tag })
        });
        Ok((files.collect(), page.next))
    }

    fn has_nar(&self, key: NarHash) -> io::Result<bool> {
        Ok(self.head(&self.place_of(key))?.is_some())
    }

    fn list_nars(&self, after: Option<NarHash>) -> io::Result<Vec<NarHash>> {
        self.list(after)
    }

    fn usual_tag(&self, text: &str) -> String {
        self.0.store.tag_of(text)
    }
}
