//! Bodies of requests: read whole, within bounds of bytes and time.

use std::error::Error as StdError;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body;
use serde::de::DeserializeOwned;

use super::error::Error;

/// Bounds of a body.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyBounds {
    pub(super) bytes_max: usize,
    /// From the first look at it to its end.
    pub(super) time_max: Duration,
}

/// Bounds of the arguments of an endpoint.
const ARGUMENTS: BodyBounds = BodyBounds { bytes_max: 64 * 1024, time_max: Duration::from_secs(30) };

/// A body as JSON; an empty one is the default.
pub(super) async fn json<T, B>(body: B) -> Result<T, Error>
where
    T: DeserializeOwned + Default,
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    json_within(body, ARGUMENTS).await
}

/// The same within bounds of its own.
pub(super) async fn json_within<T, B>(body: B, bounds: BodyBounds) -> Result<T, Error>
where
    T: DeserializeOwned + Default,
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    match &collect(body, bounds).await?[..] {
        [] => Ok(T::default()),
        bytes => serde_json::from_slice(bytes).map_err(|error| {
            Error::BadRequest(format!("the body of the request is not as it must be: {error}"))
        }),
    }
}

/// All of a body.
pub(super) async fn collect<B>(body: B, bounds: BodyBounds) -> Result<Bytes, Error>
where
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let BodyBounds { bytes_max, time_max } = bounds;
    // Its head may say so.
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(Error::TooLarge(bytes_max));
    }
    match tokio::time::timeout(time_max, Limited::new(body, bytes_max).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Error::TooLarge(bytes_max)),
        Ok(Err(error)) => Err(Error::BadRequest(format!("the body of the request broke off: {error}"))),
        Err(_) => Err(Error::TooSlow),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{Empty, Full};

    use super::super::stream_body::{Aborted, stream_body};
    use super::*;

    const BOUNDS: BodyBounds = BodyBounds { bytes_max: 8, time_max: Duration::from_millis(50) };

    #[tokio::test]
    async fn a_body_within_its_bounds_is_read_whole_and_any_other_is_refused_for_what_it_is() {
        assert_eq!(collect(Full::new(Bytes::from("8 bytes!")), BOUNDS).await.expect("read"), "8 bytes!");
        let large = collect(Full::new(Bytes::from("9 bytes!!")), BOUNDS).await;
        assert!(matches!(large, Err(Error::TooLarge(8))), "{large:?}");
        // Of unknown length.
        let growing = stream_body(|mut writer| async move {
            for _ in 0..3 {
                writer.send("abc").await;
            }
            Ok(())
        });
        let large = collect(growing, BOUNDS).await;
        assert!(matches!(large, Err(Error::TooLarge(8))), "{large:?}");
        let cut = collect(stream_body(|_| async { Err(Aborted) }), BOUNDS).await;
        assert!(matches!(cut, Err(Error::BadRequest(_))), "{cut:?}");
        let slow = collect(stream_body(|_| std::future::pending()), BOUNDS).await;
        assert!(matches!(slow, Err(Error::TooSlow)), "{slow:?}");
    }

    #[tokio::test]
    async fn arguments_are_json_or_nothing() {
        let read = |text: &'static str| json::<Vec<u8>, _>(Full::new(Bytes::from(text)));
        assert_eq!(read("[1]").await.expect("read"), [1]);
        assert_eq!(json::<Vec<u8>, _>(Empty::<Bytes>::new()).await.expect("read"), [0; 0]);
        let wrong = read("{").await;
        assert!(matches!(&wrong, Err(Error::BadRequest(reason)) if reason.contains("line 1")), "{wrong:?}");
    }
}
