//! `POST /api/v1/missing`: the paths that a client has to upload, from the index alone.

use narinfo::StorePath;

use crate::escape::Line;
use crate::http::answer::json;
use crate::http::api::{MissingPathsAnswer, MissingPathsRequest};
use crate::http::call::Call;
use crate::http::error::Error;
use crate::http::put::FILE_WITHIN;
use crate::http::request_body::{self, BodyBounds};
use crate::http::response_future::ResponseFuture;

/// Paths in one question.
const PATHS_MAX: usize = 10_000;
/// Bytes of one question: each path has 255 at most, and the store's directory before it.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;

pub(in crate::http) fn missing(call: Call<'_>) -> Option<ResponseFuture> {
    let (service, body) = (call.service.clone(), call.body);
    Some(ResponseFuture::pending(async move {
        let bounds = BodyBounds { bytes_max: BODY_BYTES_MAX, time_max: FILE_WITHIN };
        let MissingPathsRequest { paths } = request_body::json_within(body, bounds).await?;
        if paths.len() > PATHS_MAX {
            return Err(Error::BadRequest(format!(
                "{} paths at once, at most {PATHS_MAX} are looked up: ask in parts",
                paths.len()
            )));
        }
        let store_dir = &service.state.store_dir;
        let parse = |path: &String| {
            let parsed = StorePath::parse_either(store_dir, path);
            parsed.map_err(|error| Error::BadRequest(Line(error).to_string()))
        };
        let paths = paths.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let missing = service.state.importer.missing(paths).await?;
        Ok(json(&MissingPathsAnswer { missing: missing.iter().map(ToString::to_string).collect() }))
    }))
}
