//! Bodies of requests: read within bounds of bytes, time and memory. Whoever sends one slowly may lose its
//! right meanwhile: it is asked for again at the end of each, before anything takes effect.

use std::error::Error as StdError;
use std::ops::Deref;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Collected, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use serde::de::DeserializeOwned;

use super::body_memory::BodyMemory;
use super::error::Error;
use crate::caller::{Action, Caller, CallerKey, may};
use crate::shares::{ClientShare, ShareBounds, Shares};

/// Bounds of a body.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyBounds {
    pub(super) bytes_max: usize,
    /// From the first look at it to its end.
    pub(super) time_max: Duration,
}

/// Bounds of the arguments of an endpoint.
const ARGUMENTS: BodyBounds = BodyBounds { bytes_max: 64 * 1024, time_max: Duration::from_secs(30) };
/// Bytes of a body that takes no share of the memory for bodies.
const FREE_BYTES_MAX: usize = 64 * 1024;
/// Bytes in one unit of that memory.
const UNIT_BYTES: usize = 1024 * 1024;
/// MiB of bodies in memory, and those of one client, as many as a log of 64 MiB takes.
pub(super) const MEMORY: ShareBounds =
    ShareBounds { all: 256, of_one: 128, open_of_one: 128, within: Duration::from_secs(120) };

/// A body that has not been read.
pub(super) struct RequestBody<B = Incoming> {
    bytes: B,
    /// None where nobody reads it.
    sender: Option<BodySender>,
    /// Bytes that it may have once it is decoded.
    decoded_bytes_max: usize,
}

/// The client that sends a body.
pub(super) struct BodySender {
    pub(super) caller: Caller,
    /// The right that it must still have at the end; none where a handler knows the caller better.
    pub(super) right: Option<Action>,
    pub(super) memory: Shares<CallerKey>,
}

/// All of a body, with its share of the memory for bodies.
pub(super) struct WholeBody {
    bytes: Bytes,
    _memory: Option<ClientShare<CallerKey>>,
}

impl Deref for WholeBody {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl WholeBody {
    /// The bytes, and the same with others in their place: those that they decode to.
    pub(super) fn replaced(self) -> (Bytes, impl FnOnce(Bytes) -> Self) {
        let Self { bytes, _memory } = self;
        (bytes, |decoded| Self { bytes: decoded, _memory })
    }
}

/// A body as JSON; an empty one is the default.
pub(super) async fn json<T, B>(body: RequestBody<B>) -> Result<T, Error>
where
    T: DeserializeOwned + Default,
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    json_within(body, ARGUMENTS).await
}

/// The same within bounds of its own.
pub(super) async fn json_within<T, B>(body: RequestBody<B>, bounds: BodyBounds) -> Result<T, Error>
where
    T: DeserializeOwned + Default,
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    match &body.collect(bounds).await?[..] {
        [] => Ok(T::default()),
        bytes => narinfo::json::from_slice(bytes).map_err(|error| {
            Error::BadRequest(format!("the body of the request is not as it must be: {error}"))
        }),
    }
}

impl<B> RequestBody<B> {
    pub(super) fn new(bytes: B, sender: Option<BodySender>) -> Self {
        Self { bytes, sender, decoded_bytes_max: 0 }
    }

    /// The same, which takes memory for so many bytes more.
    pub(super) fn with_decoded(mut self, bytes_max: usize) -> Self {
        self.decoded_bytes_max = bytes_max;
        self
    }

    /// The body as it comes, for a reader that asks for the right at its end itself.
    pub(super) fn into_stream(self) -> B {
        self.bytes
    }
}

impl<B> RequestBody<B>
where
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    /// All of it.
    pub(super) async fn collect(self, bounds: BodyBounds) -> Result<WholeBody, Error> {
        let BodyBounds { bytes_max, time_max } = bounds;
        self.check_length(bytes_max)?;
        let memory = self.memory(bytes_max).await?;
        let whole = tokio::time::timeout(time_max, whole(self.bytes, bytes_max));
        let bytes = whole.await.map_err(|_| Error::TooSlow)??;
        check_right(self.sender.as_ref())?;
        Ok(WholeBody { bytes, _memory: memory })
    }

    /// Reads it to its end, and keeps nothing of it.
    pub(super) async fn discard(self, bounds: BodyBounds) -> Result<(), Error> {
        let BodyBounds { bytes_max, time_max } = bounds;
        self.check_length(bytes_max)?;
        let mut body = std::pin::pin!(Limited::new(self.bytes, bytes_max));
        let reading = async {
            while let Some(frame) = body.frame().await {
                frame.map_err(|error| broken(&*error, bytes_max))?;
            }
            Ok::<(), Error>(())
        };
        tokio::time::timeout(time_max, reading).await.map_err(|_| Error::TooSlow)??;
        check_right(self.sender.as_ref())
    }

    /// Its head may say that it is too large.
    fn check_length(&self, bytes_max: usize) -> Result<(), Error> {
        let is_larger = self.bytes.size_hint().lower() > bytes_max as u64;
        if is_larger { Err(Error::TooLarge(bytes_max)) } else { Ok(()) }
    }

    /// Waits for its share of the memory for bodies.
    async fn memory(&self, bytes_max: usize) -> Result<Option<ClientShare<CallerKey>>, Error> {
        let bytes = length_max(&self.bytes, bytes_max).saturating_add(self.decoded_bytes_max);
        let Some(sender) = self.sender.as_ref().filter(|_| bytes > FREE_BYTES_MAX) else { return Ok(None) };
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        let share = sender.memory.take(sender.caller.key(), units).await;
        let too_much = |_| Error::unavailable("too much is being sent at once: try again in a moment");
        share.map(Some).map_err(too_much)
    }
}

/// Bytes that the body may have, by its head.
fn length_max(body: &impl Body, bytes_max: usize) -> usize {
    let length = body.size_hint().upper().and_then(|bytes| usize::try_from(bytes).ok());
    length.unwrap_or(bytes_max).min(bytes_max)
}

async fn whole<B>(body: B, bytes_max: usize) -> Result<Bytes, Error>
where
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let length_max = length_max(&body, bytes_max);
    let mut body = std::pin::pin!(Limited::new(body, bytes_max));
    if length_max <= FREE_BYTES_MAX {
        let collected = body.collect().await;
        return collected.map(Collected::to_bytes).map_err(|error| broken(&*error, bytes_max));
    }
    let no_memory = |error| Error::internal(&error, "the body of the request cannot be read");
    let mut memory = BodyMemory::new(length_max).map_err(no_memory)?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&*error, bytes_max))?;
        if frame.into_data().is_ok_and(|bytes| !memory.push(bytes)) {
            return Err(Error::TooLarge(length_max));
        }
    }
    Ok(memory.into_bytes())
}

fn broken(error: &(dyn StdError + Send + Sync + 'static), bytes_max: usize) -> Error {
    if error.is::<LengthLimitError>() {
        return Error::TooLarge(bytes_max);
    }
    Error::BadRequest(format!("the body of the request broke off: {error}"))
}

fn check_right(sender: Option<&BodySender>) -> Result<(), Error> {
    match sender {
        Some(BodySender { caller, right: Some(right), .. }) => may(caller, *right).map_err(Error::Refused),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{Empty, Full};

    use super::super::stream_body::{Aborted, stream_body};
    use super::*;

    const BOUNDS: BodyBounds = BodyBounds { bytes_max: 8, time_max: Duration::from_millis(50) };

    fn body<B>(bytes: B) -> RequestBody<B> {
        RequestBody::new(bytes, None)
    }

    #[tokio::test]
    async fn a_body_within_its_bounds_is_read_whole_and_any_other_is_refused_for_what_it_is() {
        let whole = body(Full::new(Bytes::from("8 bytes!"))).collect(BOUNDS).await.expect("read");
        assert_eq!(&whole[..], b"8 bytes!");
        // One that is not read into the heap.
        let pieces = stream_body(|mut writer| async move {
            for _ in 0..3 {
                writer.send("x".repeat(FREE_BYTES_MAX)).await;
            }
            Ok(())
        });
        let large = BodyBounds { bytes_max: 3 * FREE_BYTES_MAX, time_max: Duration::from_secs(60) };
        let whole = body(pieces).collect(large).await.expect("read");
        assert!(whole.len() == 3 * FREE_BYTES_MAX && whole.iter().all(|byte| *byte == b'x'));
        body(Full::new(Bytes::from("8 bytes!"))).discard(BOUNDS).await.expect("read");
        // Of unknown length.
        let growing = || {
            stream_body(|mut writer| async move {
                for _ in 0..3 {
                    writer.send("abc").await;
                }
                Ok(())
            })
        };
        for large in [
            body(Full::new(Bytes::from("9 bytes!!"))).collect(BOUNDS).await.map(drop),
            body(Full::new(Bytes::from("9 bytes!!"))).discard(BOUNDS).await,
            body(growing()).collect(BOUNDS).await.map(drop),
            body(growing()).discard(BOUNDS).await,
        ] {
            assert!(matches!(large, Err(Error::TooLarge(8))), "{large:?}");
        }
        let cut = body(stream_body(|_| async { Err(Aborted) })).collect(BOUNDS).await.map(drop);
        assert!(matches!(cut, Err(Error::BadRequest(_))), "{cut:?}");
        let slow = body(stream_body(|_| std::future::pending())).collect(BOUNDS).await.map(drop);
        assert!(matches!(slow, Err(Error::TooSlow)), "{slow:?}");
        let slow = body(stream_body(|_| std::future::pending())).discard(BOUNDS).await;
        assert!(matches!(slow, Err(Error::TooSlow)), "{slow:?}");
    }

    #[tokio::test]
    async fn arguments_are_json_or_nothing() {
        let read = |text: &'static str| json::<Vec<u8>, _>(body(Full::new(Bytes::from(text))));
        assert_eq!(read("[1]").await.expect("read"), [1]);
        assert_eq!(json::<Vec<u8>, _>(body(Empty::<Bytes>::new())).await.expect("read"), [0; 0]);
        #[derive(Default, serde::Deserialize)]
        struct Arguments {
            number: u8,
        }
        let read_one = |text: &'static str| json::<Arguments, _>(body(Full::new(Bytes::from(text))));
        assert_eq!(read_one("{\"number\": 1}").await.expect("read").number, 1);
        for wrong in ["[1]", "[]", "1", "{\"number\": 1} 2"] {
            assert!(matches!(read_one(wrong).await.map(drop), Err(Error::BadRequest(_))), "{wrong}");
        }
        let wrong = read("{").await;
        assert!(matches!(&wrong, Err(Error::BadRequest(reason)) if reason.contains("line 1")), "{wrong:?}");
    }
}
