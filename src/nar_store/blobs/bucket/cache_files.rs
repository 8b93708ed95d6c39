//! Files of a standard binary cache in the bucket: `PREFIX/nix-cache-info` and `PREFIX/<hash>.narinfo`,
//! beside the folder of the NARs.

use std::io;

use md5::{Digest, Md5};
use narinfo::NarHash;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path as Key;
use object_store::{Attribute, Attributes, Error, ObjectStore, ObjectStoreExt, PutOptions};

use super::super::{CacheFile, CacheFiles, LIST_PAGE_MAX};
use super::{Bucket, failed, folder, version_of};

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
        let attributes = Attributes::from_iter(attributes);
        let options = PutOptions { attributes, ..Default::default() };
        self.wait(self.0.store.put_opts(&self.file(name), text.into(), options)).map(drop)
    }

    fn read_file(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let file = self.file(name);
        let got = async { self.0.store.get(&file).await?.bytes().await };
        match self.0.runtime.block_on(got) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(&self.0.url, error)),
        }
    }

    fn delete_file(&self, name: &str) -> io::Result<()> {
        match self.0.runtime.block_on(self.0.store.delete(&self.file(name))) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(&self.0.url, error)),
        }
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
        let prefix_wanted = Some(&*prefix).filter(|prefix| !prefix.is_empty());
        let listed = self.wait(self.0.store.list_paginated(prefix_wanted, options))?;
        let files = listed.result.objects.into_iter().filter_map(|object| {
            let name = object.location.as_ref().strip_prefix(&prefix)?.to_owned();
            Some(CacheFile { name, tag: version_of(object.e_tag.as_deref().unwrap_or_default()).to_string() })
        });
        Ok((files.collect(), listed.page_token))
    }

    fn has_nar(&self, key: NarHash) -> io::Result<bool> {
        Ok(self.head(&self.place_of(key))?.is_some())
    }

    /// The MD5 of what was put at once is its ETag, unless the store encrypts it with a key of its own.
    fn usual_tag(&self, text: &str) -> String {
        Md5::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
