//! `/<hash>.ls`: the listing of a NAR in Nix's format, made of the NAR itself, encoded as the client accepts.

use narinfo::StorePathHash;

use crate::http::accept;
use crate::http::answer::{self, Answer};
use crate::http::call::Call;
use crate::http::delivery::{Delivery, DeliveryRequest};
use crate::http::error::Error;
use crate::http::range::is_known;
use crate::http::response_future::ResponseFuture;

pub(in crate::http) fn listing(call: Call<'_>) -> Option<ResponseFuture> {
    let hash: StorePathHash = call.arguments[0].parse().ok()?;
    let asked = DeliveryRequest::of(call);
    Some(ResponseFuture::pending(async move { answer(&asked, hash).await }))
}

async fn answer(asked: &DeliveryRequest, hash: StorePathHash) -> Result<Answer, Error> {
    let nar = match asked.path(hash, asked.on_miss.clone()).await? {
        Delivery::Ready(ready) => ready.nar_hash,
        Delivery::Pending(answer) => return Ok(answer),
    };
    let encoding = accept::encoding(&asked.headers);
    let etag = format!("\"{}-ls{}\"", nar.to_nixbase32(), encoding.map_or("", |encoding| encoding.name()));
    if is_known(&asked.headers, &etag) {
        return Ok(answer::still_the_same(&etag));
    }
    if asked.head {
        return Ok(answer::derived(answer::JSON, &etag, encoding, answer::empty()));
    }
    let listing = asked.service.state.contents.listing(nar).await?;
    let rendered = tokio::task::spawn_blocking(move || {
        let mut json = Vec::new();
        listing.write_json(&mut json)?;
        encoding.map_or(Ok(json.clone()), |encoding| encoding.encode(&json))
    });
    let rendered = rendered.await.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)));
    let body = rendered.map_err(|error| Error::internal(&error, "the listing cannot be written"))?;
    Ok(answer::derived(answer::JSON, &etag, encoding, answer::full(body)))
}
