//! The requests to the service that has a bucket, and all that differs between the services: of S3, Google
//! Cloud Storage and Azure Blob Storage, this file alone knows with which one it talks.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use md5::{Digest, Md5};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as Key;
use object_store::signer::{Method, Signer};
use object_store::{
    Attributes, CopyMode, CopyOptions, Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutOptions, PutPayload,
};

use super::super::{BucketService, BucketUrl};
use super::transport::ListedHashes;
use super::{folder, version_of};
use crate::causes::with_causes;

/// Folder of objects that are put in parts before they have their names, where the last step cannot be
/// conditional.
const STAGED: &str = "uploads";
/// Bytes of a name there that others cannot have.
const STAGED_NAME_BYTES: usize = 8;

/// Requests that every service answers.
trait ServiceRequests: ObjectStore + MultipartStore + PaginatedListStore + Signer {}

impl<T: ObjectStore + MultipartStore + PaginatedListStore + Signer> ServiceRequests for T {}

/// Way in which addresses are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signing {
    /// With a key that is here.
    Here,
    /// By the service, which is asked to and may refuse.
    Service,
    /// Not at all, for this reason.
    Impossible(&'static str),
}

/// A client of the service, of one bucket. What fails for a time has been tried again already.
#[derive(Clone, Debug)]
pub(super) struct ServiceClient {
    requests: Arc<dyn ServiceRequests>,
    service: BucketService,
    signing: Signing,
}

/// An object of a list.
pub(super) struct ListedObject {
    pub(super) meta: ObjectMeta,
    /// Tag of its contents: what [`ServiceClient::tag_of`] gives for them, as a rule.
    pub(super) tag: String,
}

/// A page of a list.
pub(super) struct Page {
    pub(super) objects: Vec<ListedObject>,
    /// Token of the next page, if there is one.
    pub(super) next: Option<String>,
}

/// An upload in parts.
#[derive(Clone, Debug)]
pub(super) struct PartsUpload {
    /// Key that the parts are sent to.
    pub(super) at: Key,
    /// Its number; empty where it has none.
    pub(super) id: String,
}

impl ServiceClient {
    pub(super) fn new(
        requests: impl ObjectStore + MultipartStore + PaginatedListStore + Signer,
        service: BucketService,
        signing: Signing,
    ) -> Self {
        Self { requests: Arc::new(requests), service, signing }
    }

    pub(super) fn signing(&self) -> Signing {
        self.signing
    }

    /// Size and version of an object, if it is there.
    pub(super) async fn head(&self, place: &Key) -> object_store::Result<Option<ObjectMeta>> {
        if_there(self.requests.head(place).await)
    }

    /// All bytes of an object, if it is there.
    pub(super) async fn get(&self, place: &Key) -> object_store::Result<Option<Bytes>> {
        if_there(async { self.requests.get(place).await?.bytes().await }.await)
    }

    /// The bytes of a part of an object, which must have this ETag.
    pub(super) async fn read(
        &self,
        place: &Key,
        e_tag: Option<String>,
        part: Range<u64>,
    ) -> object_store::Result<Bytes> {
        let range = Some(GetRange::Bounded(part));
        let options = GetOptions { if_match: e_tag, range, ..Default::default() };
        self.requests.get_opts(place, options).await?.bytes().await
    }

    /// Puts an object in the place of what is there.
    pub(super) async fn put(
        &self,
        place: &Key,
        bytes: impl Into<PutPayload>,
        attributes: Attributes,
    ) -> object_store::Result<()> {
        let options = PutOptions { attributes, ..Default::default() };
        self.requests.put_opts(place, bytes.into(), options).await.map(drop)
    }

    /// Puts an object where there is none.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] or [`Error::Precondition`] where there is one, or another put is in the way.
    pub(super) async fn put_new(&self, place: &Key, bytes: Bytes) -> object_store::Result<()> {
        let options = PutOptions { mode: PutMode::Create, ..Default::default() };
        self.requests.put_opts(place, bytes.into(), options).await.map(drop)
    }

    /// Deletes an object, if it is there.
    pub(super) async fn delete(&self, place: &Key) -> object_store::Result<()> {
        if_there(self.requests.delete(place).await).map(drop)
    }

    /// Copies an object to the place of what is there.
    pub(super) async fn copy(&self, from: &Key, to: &Key) -> object_store::Result<()> {
        self.requests.copy(from, to).await
    }

    /// A page of a list, in the order of the keys. Not every service heeds an offset.
    pub(super) async fn list(
        &self,
        prefix: &str,
        options: PaginatedListOptions,
    ) -> object_store::Result<Page> {
        let prefix = Some(prefix).filter(|prefix| !prefix.is_empty());
        let listed = self.requests.list_paginated(prefix, options).await?;
        let hashes = listed.result.extensions.get::<ListedHashes>();
        let object = |meta: ObjectMeta| {
            let hash = hashes.and_then(|hashes| hashes.get(meta.location.as_ref()));
            let tag = hash.unwrap_or_else(|| meta.e_tag.as_deref().unwrap_or_default());
            ListedObject { tag: version_of(tag).to_string(), meta }
        };
        Ok(Page { objects: listed.result.objects.into_iter().map(object).collect(), next: listed.page_token })
    }

    /// Tag that an object with these contents has in a list. Services that encrypt objects with keys of their
    /// own may have another one.
    pub(super) fn tag_of(&self, text: &str) -> String {
        use base64::Engine;
        let hash = Md5::digest(text);
        match self.service {
            // ETag of what was put at once.
            BucketService::S3 | BucketService::Google => {
                hash.iter().map(|byte| format!("{byte:02x}")).collect()
            }
            // The hash beside it.
            BucketService::Azure => base64::engine::general_purpose::STANDARD.encode(hash),
        }
    }

    /// Address at which anybody can get an object for this time.
    pub(super) async fn signed(&self, place: &Key, lifetime: Duration) -> object_store::Result<String> {
        self.requests.signed_url(Method::GET, place, lifetime).await.map(Into::into)
    }

    /// Key that the parts of an object are sent to. Google overwrites what is at the key of an upload in
    /// parts, and refuses conditions: there it is another one.
    pub(super) fn parts_place(&self, url: &BucketUrl, place: &Key) -> object_store::Result<Key> {
        if self.service != BucketService::Google {
            return Ok(place.clone());
        }
        let mut name = [0; STAGED_NAME_BYTES];
        getrandom::fill(&mut name)
            .map_err(|error| Error::Generic { store: "upload", source: error.to_string().into() })?;
        let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
        let of = place.filename().unwrap_or_default();
        Ok(Key::from(format!("{}{of}.{name}", folder(url, STAGED))))
    }

    /// Begins an upload in parts to a key that [`ServiceClient::parts_place`] gave.
    pub(super) async fn begin_parts(&self, at: Key) -> object_store::Result<PartsUpload> {
        let id = self.requests.create_multipart(&at).await?;
        Ok(PartsUpload { at, id })
    }

    /// Sends a part; the first has the number 0.
    pub(super) async fn put_part(
        &self,
        upload: &PartsUpload,
        number: usize,
        part: Bytes,
    ) -> object_store::Result<PartId> {
        self.requests.put_part(&upload.at, &upload.id, number, part.into()).await
    }

    /// Makes the parts the object at `place`, where there is none; its ETag, where another upload may win at
    /// the same moment.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] or [`Error::Precondition`] where there is one, or another upload is in the
    /// way.
    pub(super) async fn complete(
        &self,
        upload: &PartsUpload,
        parts: Vec<PartId>,
        place: &Key,
    ) -> object_store::Result<Option<String>> {
        let completed = self.requests.complete_multipart(&upload.at, &upload.id, parts).await;
        match (self.service, completed) {
            (BucketService::S3 | BucketService::Azure, Ok(put)) => Ok(put.e_tag),
            // The blob has become another one meanwhile, and went: it took the parts along.
            (BucketService::Azure, Err(error)) if says(&error, "InvalidBlockList") => {
                Err(Error::AlreadyExists { path: place.to_string(), source: error.into() })
            }
            (BucketService::S3 | BucketService::Azure, Err(error)) => Err(error),
            // An answer that was lost had completed it: nobody else knows its key.
            (BucketService::Google, Err(error)) if !says(&error, "NoSuchUpload") => Err(error),
            (BucketService::Google, _) => {
                let options = CopyOptions::new().with_mode(CopyMode::Create);
                self.requests.copy_opts(&upload.at, place, options).await.map(|()| None)
            }
        }
    }

    /// Removes what an upload in parts has left. Azure does it by itself after a week, and knows no request
    /// for it.
    pub(super) async fn abandon(&self, upload: &PartsUpload) -> object_store::Result<()> {
        if_there(self.requests.abort_multipart(&upload.at, &upload.id).await)?;
        match self.service {
            BucketService::S3 | BucketService::Azure => Ok(()),
            BucketService::Google => self.delete(&upload.at).await,
        }
    }
}

/// The answer, if there is the object that it is about.
fn if_there<T>(answer: object_store::Result<T>) -> object_store::Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// True if the service has refused a request with this code, which the crate does not tell otherwise.
pub(super) fn says(error: &Error, code: &str) -> bool {
    with_causes(error).contains(code)
}

#[cfg(test)]
mod tests {
    use super::super::client::client;
    use super::*;
    use crate::support::{AzureContainer, GoogleBucket, TestBucket};

    /// A client of a bucket with its credentials, and a key in it.
    fn opened(bucket: &dyn TestBucket, credentials: &str) -> (ServiceClient, BucketUrl, Key) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), credentials).expect("written");
        let url = BucketUrl::parse(&bucket.url()).expect("an address");
        (client(&url, Some(file.path())).expect("a client"), url, Key::from("cache/nar/object"))
    }

    /// An upload of one part to `place`.
    async fn uploaded(client: &ServiceClient, url: &BucketUrl, place: &Key) -> (PartsUpload, Vec<PartId>) {
        let at = client.parts_place(url, place).expect("a key");
        let upload = client.begin_parts(at).await.expect("begun");
        let part = client.put_part(&upload, 0, "bytes".into()).await.expect("sent");
        (upload, vec![part])
    }

    #[tokio::test]
    async fn an_upload_in_parts_to_azure_that_another_one_has_overtaken_replaces_nothing() {
        let Some(container) = AzureContainer::new() else { return };
        // A signature is sent along, and a key signs the condition, too.
        for (credentials, name) in
            [(container.credentials(), "by-key"), (AzureContainer::signed_credentials(), "by-signature")]
        {
            let (client, url, _) = opened(&container, &credentials);
            let place = Key::from(format!("cache/nar/{name}"));
            let (upload, parts) = uploaded(&client, &url, &place).await;
            let (rival, rival_parts) = uploaded(&client, &url, &place).await;
            client.complete(&rival, rival_parts, &place).await.expect("nothing is in the way");
            let late = client.complete(&upload, parts, &place).await;
            assert!(matches!(late, Err(Error::AlreadyExists { .. })), "{late:?}");
        }
    }

    #[tokio::test]
    async fn an_upload_to_google_whose_completion_was_not_heard_of_is_the_object_all_the_same() {
        let bucket = GoogleBucket::new();
        let (client, url, place) = opened(&bucket, &bucket.credentials());
        let (upload, parts) = uploaded(&client, &url, &place).await;
        let completed = client.requests.complete_multipart(&upload.at, &upload.id, parts.clone()).await;
        completed.expect("completed");
        client.complete(&upload, parts.clone(), &place).await.expect("it is the object");
        let late = client.complete(&upload, parts.clone(), &place).await;
        assert!(matches!(late, Err(Error::AlreadyExists { .. })), "{late:?}");
        client.abandon(&upload).await.expect("removed");
        assert_eq!((bucket.keys(), bucket.uploads()), (vec!["nar/object".to_owned()], 0));
        let late = client.complete(&upload, parts, &place).await;
        assert!(late.is_err(), "{late:?}");
    }
}
