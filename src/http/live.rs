//! Server-sent events without end of the server's work: `queue` when a build begins or ends or a request
//! comes or goes, `log` with lines of the builds that run, and comments in between.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use narinfo::StorePath;

use super::Service;
use super::answer;
use super::api::QueueChange;
use super::call::{Call, parameters};
use super::error::Error;
use super::events::{LogFollower, event_text};
use super::page;
use super::response_future::ResponseFuture;
use super::stream_body::{Aborted, BodyWriter, stream_body};
use crate::build::QueuePulse;
use crate::caller::{Action, CallerKey, may};
use crate::shares::{ClientShare, ShareBounds};

/// Streams at a time, in the whole server and of one client.
pub(super) const STREAMS: ShareBounds =
    ShareBounds { all: 256, of_one: 32, open_of_one: 32, within: Duration::ZERO };
/// Interval at which the queue is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Logs that one stream follows at a time.
const LOGS_MAX: usize = 8;
/// Bytes of a log that has begun before the stream, of which a client gets the end.
const LOG_BYTES_BEFORE: u64 = 64 * 1024;

pub(super) fn get(call: Call<'_>) -> Option<ResponseFuture> {
    let caller = page::caller(&call);
    if let Err(refusal) = may(&caller, Action::Read) {
        return Some(ResponseFuture::failed(Error::Refused(refusal)));
    }
    let only = match only(call.query) {
        Ok(only) => only,
        Err(reason) => return Some(ResponseFuture::failed(Error::BadRequest(reason))),
    };
    let Some(share) = call.service.streams.try_take(caller.key()) else {
        let ShareBounds { all, of_one, .. } = STREAMS;
        let reason = format!(
            "too many follow the events already: {of_one} streams of one client, or {all} of all; ask again later"
        );
        return Some(ResponseFuture::failed(Error::Unavailable(reason)));
    };
    let service = call.service.clone();
    let body = stream_body(|writer| async move {
        tokio::select! {
            () = write(&service, only, share, writer) => Ok(()),
            () = service.stopping() => Err(Aborted),
        }
    });
    Some(ResponseFuture::ready(answer::streamed(answer::EVENTS, body)))
}

/// The one derivation whose log is wanted.
fn only(query: Option<&str>) -> Result<Option<StorePath>, String> {
    let mut only = None;
    for (key, value) in parameters(query) {
        let drv = value.filter(|_| key == "derivation").and_then(|value| StorePath::parse(&value).ok());
        only = Some(drv.ok_or("expected derivation, the base name of one")?);
    }
    Ok(only)
}

async fn write(
    service: &Service,
    only: Option<StorePath>,
    _: ClientShare<CallerKey>,
    mut writer: BodyWriter,
) {
    let (builds, logs) = (&service.state.builds, &service.state.logs);
    let mut followers: Vec<LogFollower> = Vec::new();
    let (mut told, mut told_at) = (None, Instant::now());
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        let lines = tokio::select! {
            lines = next_lines(&mut followers) => Some(lines),
            _ = ticks.tick() => None,
        };
        if let Some(lines) = lines {
            writer.send(lines).await;
            told_at = Instant::now();
            continue;
        }
        let pulse = builds.pulse();
        followers.retain(|follower| {
            follower.is_following() || pulse.running.iter().any(|drv| follower.is_of(drv))
        });
        for drv in pulse.running.iter().filter(|drv| only.as_ref().is_none_or(|only| only == *drv)) {
            let is_new = followers.iter().all(|follower| !follower.is_of(drv));
            if is_new && followers.len() < LOGS_MAX {
                followers.extend(LogFollower::of_running(logs, drv, LOG_BYTES_BEFORE).await);
            }
        }
        if told.as_ref() != Some(&pulse) {
            writer.send(event_text("queue", &QueueChange::from(pulse.clone()))).await;
            (told, told_at) = (Some(pulse), Instant::now());
        } else if told_at.elapsed() >= service.state.settings.keep_alive {
            writer.send(": nothing new\n\n").await;
            told_at = Instant::now();
        }
    }
}

/// An event with the next lines of any of the logs. May be dropped and called again.
async fn next_lines(followers: &mut [LogFollower]) -> String {
    poll_fn(|context| {
        for follower in &mut *followers {
            let lines = pin!(follower.next_lines());
            if let Poll::Ready(lines) = lines.poll(context) {
                return Poll::Ready(lines);
            }
        }
        Poll::Pending
    })
    .await
}

impl From<QueuePulse> for QueueChange {
    fn from(QueuePulse { running, waiting, ended, stalled }: QueuePulse) -> Self {
        Self { running: running.iter().map(ToString::to_string).collect(), waiting, ended, stalled }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_events_are_of_all_builds_or_of_one() {
        let drv = "0123456789abcdfghijklmnpqrsvwxyz-a.drv";
        assert_eq!(only(None), Ok(None));
        assert_eq!(only(Some(&format!("derivation={drv}"))).map(|drv| drv.is_some()), Ok(true));
        for query in ["derivation=x", "drv=a", "derivation=%ff"] {
            assert!(only(Some(query)).is_err(), "{query}");
        }
    }
}
