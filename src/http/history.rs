//! Use of the server hour by hour: recorded every minute, and told as JSON.

use std::time::{Duration, SystemTime};

use super::Service;
use super::answer::json;
use super::api::{HourOfUse, unix_seconds};
use super::call::{Call, parameters};
use super::error::Error;
use super::metric_values::MetricValues;
use super::response_future::ResponseFuture;
use super::traffic::RequestEnds;
use crate::index;
use crate::model::{BuildingUse, HourRow};

/// Time between two records.
const RECORD_EVERY: Duration = Duration::from_secs(60);
/// Hours that are kept: 90 days.
const HOURS_MAX: u64 = 90 * 24;
/// Hours in an answer by default.
const HOURS_DEFAULT: u64 = 7 * 24;
const HOUR_SECONDS: u64 = 3600;

/// The hours of the last days.
pub(super) fn get(call: Call<'_>) -> Option<ResponseFuture> {
    let hours = match hours(call.query) {
        Ok(hours) => hours,
        Err(reason) => return Some(ResponseFuture::failed(Error::BadRequest(reason))),
    };
    let service = call.service.clone();
    Some(ResponseFuture::pending(async move { Ok(json(&latest(&service, hours).await?)) }))
}

fn hours(query: Option<&str>) -> Result<u64, String> {
    let mut hours = HOURS_DEFAULT;
    for (key, value) in parameters(query) {
        let number = value.filter(|_| key == "hours").and_then(|value| value.parse().ok());
        let number = number.filter(|hours| (1..=HOURS_MAX).contains(hours));
        hours = number.ok_or_else(|| format!("expected hours, a number from 1 to {HOURS_MAX}"))?;
    }
    Ok(hours)
}

/// So many hours, the present one included, as far as there was any use in them.
pub(super) async fn latest(service: &Service, hours: u64) -> Result<Vec<HourOfUse>, Error> {
    let first = (this_hour() + 1).saturating_sub(hours);
    let rows = service.state.index.hours(first).await;
    let mut rows = rows.map_err(unreadable)?;
    let counts = service.state.index.counts().await.map_err(unreadable)?;
    let hour = this_hour();
    if rows.last().is_none_or(|row| row.hour != hour) {
        rows.push(HourRow { hour, ..HourRow::default() });
    }
    // Its totals are those of now, whenever they were recorded.
    if let Some(row) = rows.last_mut() {
        (row.paths, row.nars, row.nar_bytes) = (counts.paths, counts.nars, counts.nar_bytes);
    }
    Ok(rows.into_iter().map(HourOfUse::from).collect())
}

fn unreadable(error: index::Error) -> Error {
    Error::index(&error, "the history cannot be read")
}

/// The hour that it is, in hours since 1970.
pub(super) fn this_hour() -> u64 {
    unix_seconds(SystemTime::now()) / HOUR_SECONDS
}

/// Records the use of the server, for as long as it runs.
pub(super) async fn record(service: &Service) {
    let mut before = (service.traffic.ends(), BuildingUse::default());
    loop {
        let now = (service.traffic.ends(), MetricValues::now(service).building());
        match record_since(service, before, now).await {
            Ok(()) => before = now,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot record the use of this hour; tried again in a minute");
            }
        }
        tokio::time::sleep(RECORD_EVERY).await;
    }
}

/// Events until some moment: ends of requests, and builds.
type Events = (RequestEnds, BuildingUse);

async fn record_since(
    service: &Service,
    (before, built_before): Events,
    (now, built_now): Events,
) -> Result<(), index::Error> {
    let index = &service.state.index;
    let counts = index.counts().await?;
    let hour = this_hour();
    let row = HourRow {
        hour,
        paths: counts.paths,
        nars: counts.nars,
        nar_bytes: counts.nar_bytes,
        hits: now.hits - before.hits,
        misses: now.misses - before.misses,
        built: now.built - before.built,
        failed: now.failed - before.failed,
        building: built_now.with(built_before, u64::saturating_sub),
    };
    index.record_hour(row, hour.saturating_sub(HOURS_MAX)).await
}

impl From<HourRow> for HourOfUse {
    fn from(row: HourRow) -> Self {
        let HourRow { hour, paths, nars, nar_bytes, hits, misses, built, failed, building } = row;
        let BuildingUse {
            builds,
            build_millis,
            waits,
            wait_millis,
            joined,
            prebuilds,
            prebuild_millis,
            taken_over,
        } = building;
        Self {
            begins_at: hour * HOUR_SECONDS,
            paths,
            nars,
            nar_bytes,
            hits,
            misses,
            built,
            failed,
            builds,
            build_seconds: seconds(build_millis),
            waits,
            wait_seconds: seconds(wait_millis),
            joined,
            prebuilds,
            prebuild_seconds: seconds(prebuild_millis),
            taken_over,
        }
    }
}

fn seconds(millis: u64) -> f64 {
    Duration::from_millis(millis).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_hours_is_within_its_bounds() {
        assert_eq!(hours(None), Ok(HOURS_DEFAULT));
        assert_eq!(hours(Some("hours=24")), Ok(24));
        for query in ["hours=0", "hours=2161", "hours=x", "days=1"] {
            assert!(hours(Some(query)).is_err(), "{query}");
        }
    }
}
