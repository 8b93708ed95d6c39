//! Conversions of the index's rows and the queue's views into the JSON types of the API.

use std::time::SystemTime;

use narinfo::StoreDir;

use super::builds::{BuildItem, BuildItemOutput, BuildItemState};
use super::paths::{AttributeVersion, PathComparison};
use super::server::{CacheCounts, UpstreamHealth, UpstreamMode, UpstreamStatus};
use super::types::{
    AttributeLine, EvaluationFailure, EvaluationTime, PackageSetGeneration, PinView, QueueStatus,
    RememberedFailure, RequestPhase, RequestPlace, RequestStatus, RunningBuild, TokenView,
};
use crate::build::{Outlook, QueueView, RequestState, RequestView, RunningView};
use crate::catalogue::Indexing;
use crate::model::{
    AttributeRow, Comparison, Counts, Failure, Generation, NewToken, PinRow, TokenRow, VersionRow,
};
use crate::requests::{ItemOutput, ItemState, RequestItem};
use crate::upstream::{Mode, UpstreamView};

impl From<VersionRow> for AttributeVersion {
    fn from(version: VersionRow) -> Self {
        let VersionRow { drv, first, last, since, until } = version;
        let (since, until) = (unix_seconds(since), until.map(unix_seconds));
        Self { derivation: drv.to_string(), first, last, since, until }
    }
}

impl BuildItem {
    /// A finding about the item `asked` for, with the paths of its outputs in this store.
    pub fn new(asked: String, item: RequestItem, store_dir: &StoreDir) -> Self {
        let RequestItem { state, drv, request, place, reason, outputs } = item;
        let output = |ItemOutput { name, path, served }: ItemOutput| BuildItemOutput {
            name: name.unwrap_or_default(),
            path: path.map(|path| path.in_dir(store_dir)),
            served,
        };
        // The path of an unknown hash is unknown, too.
        let outputs = outputs.into_iter().filter(|output| output.name.is_some() || output.path.is_some());
        Self {
            asked,
            state: state.into(),
            derivation: drv.map(|drv| drv.to_string()),
            request,
            place,
            reason,
            outputs: outputs.map(output).collect(),
        }
    }
}

impl From<ItemState> for BuildItemState {
    fn from(state: ItemState) -> Self {
        match state {
            ItemState::Served => Self::Served,
            ItemState::Building => Self::Building,
            ItemState::Queued => Self::Queued,
            ItemState::Known => Self::Known,
            ItemState::Failed => Self::Failed,
            ItemState::Refused => Self::Refused,
            ItemState::Unknown => Self::Unknown,
        }
    }
}

/// Unix seconds of a time; 0 for one before 1970.
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl From<Counts> for CacheCounts {
    fn from(counts: Counts) -> Self {
        let Counts { paths, nars, nar_bytes, failures, reproduced, not_reproduced } = counts;
        Self { paths, nars, nar_bytes, failures, reproduced, not_reproduced }
    }
}

impl From<UpstreamView> for UpstreamStatus {
    fn from(view: UpstreamView) -> Self {
        let UpstreamView { name, priority, mode, rests, failure, public_keys, counts } = view;
        Self {
            name,
            priority,
            mode: match mode {
                Mode::Cache => UpstreamMode::Cache,
                Mode::Redirect => UpstreamMode::Redirect,
                Mode::BuildOnly => UpstreamMode::BuildOnly,
            },
            health: match (rests, &failure) {
                (true, _) => UpstreamHealth::Resting,
                (false, Some(_)) => UpstreamHealth::Failing,
                (false, None) => UpstreamHealth::Answers,
            },
            failure,
            public_keys,
            found: counts.found,
            missing: counts.missing,
            refused: counts.refused,
            failed: counts.failed,
            fetched_bytes: counts.fetched_bytes,
        }
    }
}

impl From<TokenRow> for TokenView {
    fn from(TokenRow { id, token, used_at }: TokenRow) -> Self {
        let NewToken { name, rights, patterns, created_at, expires_at, queued_max, .. } = token;
        Self {
            id,
            name,
            rights,
            only: patterns,
            created_at: unix_seconds(created_at),
            expires_at: expires_at.map(unix_seconds),
            used_at: used_at.map(unix_seconds),
            max_queued: queued_max,
        }
    }
}

impl From<QueueView> for QueueStatus {
    fn from(view: QueueView) -> Self {
        Self {
            running: view.running.into_iter().map(RunningBuild::from).collect(),
            total: view.total,
            requests: view.requests.into_iter().map(RequestStatus::from).collect(),
            stalled: view.stalled,
        }
    }
}

impl From<RunningView> for RunningBuild {
    fn from(view: RunningView) -> Self {
        let RunningView { derivation, seconds, expected_seconds, request, builder, prebuild } = view;
        Self { derivation, seconds, expected_seconds, request, builder, prebuild }
    }
}

impl From<RequestView> for RequestStatus {
    fn from(view: RequestView) -> Self {
        Self {
            id: view.id,
            derivation: view.derivation,
            asked_at: view.asked_at,
            ended_at: view.ended_at,
            clients: view.clients,
            on: view.builder,
            phase: view.state.into(),
            place: view.outlook.map(RequestPlace::from),
        }
    }
}

impl From<RequestState> for RequestPhase {
    fn from(state: RequestState) -> Self {
        match state {
            RequestState::Waiting => Self::Waiting,
            RequestState::Building { building } => Self::Building { building },
            RequestState::Delivering => Self::Delivering,
            RequestState::Served => Self::Served,
            RequestState::Failed { cause, reason } => Self::Failed { cause, reason },
            RequestState::Refused { reason } => Self::Refused { reason },
            RequestState::Dropped => Self::Dropped,
            RequestState::Cancelled => Self::Cancelled,
        }
    }
}

impl From<Outlook> for RequestPlace {
    fn from(outlook: Outlook) -> Self {
        let Outlook { position, of, built, lacked, known_seconds, unknown, eta_seconds } = outlook;
        Self { position, of, built, lacked, known_seconds, unknown, eta_seconds }
    }
}

impl From<Comparison> for PathComparison {
    fn from(comparison: Comparison) -> Self {
        let Comparison { upstream, nar_hash, same } = comparison;
        Self { upstream, nar_hash: nar_hash.to_string(), same }
    }
}

impl From<Indexing> for EvaluationTime {
    fn from(indexing: Indexing) -> Self {
        match indexing {
            Indexing::Full => Self::Full,
            Indexing::Lazy => Self::Lazy,
        }
    }
}

impl From<Generation> for PackageSetGeneration {
    fn from(generation: Generation) -> Self {
        Self {
            id: generation.id,
            current: generation.replaced_at.is_none(),
            made_at: unix_seconds(generation.made_at),
            replaced_at: generation.replaced_at.map(unix_seconds),
            attributes: generation.size.attributes,
            denied: generation.size.denied,
            errors: generation.size.errors,
            derivations: generation.size.derivations,
        }
    }
}

impl From<AttributeRow> for EvaluationFailure {
    fn from(row: AttributeRow) -> Self {
        let error = row.outcome.err().unwrap_or_default();
        Self { attribute: row.attribute, system: row.system, error }
    }
}

impl From<AttributeRow> for AttributeLine {
    fn from(row: AttributeRow) -> Self {
        let drv = row.outcome.as_ref().ok();
        // Where evaluation has a path instead, its description has the name.
        let output = row.output.filter(|output| !output.contains('/'));
        Self {
            attribute: row.attribute,
            name: drv.map(|drv| drv.name().trim_end_matches(".drv").to_owned()),
            derivation: drv.map(ToString::to_string),
            output,
            denied: row.denied,
            error: row.outcome.err(),
        }
    }
}

impl From<Failure> for RememberedFailure {
    fn from(failure: Failure) -> Self {
        Self {
            derivation: failure.drv.to_string(),
            class: failure.class.as_str().to_owned(),
            log: format!("/log/{}", failure.cause),
            cause: failure.cause.to_string(),
            reason: failure.reason,
            since: unix_seconds(failure.failed_at),
            until: unix_seconds(failure.expires_at),
        }
    }
}

impl From<PinRow> for PinView {
    fn from(row: PinRow) -> Self {
        let path = row.path.map(|path| path.to_string());
        Self { name: row.name, hash: row.hash.to_string(), path, pinned_at: unix_seconds(row.pinned_at) }
    }
}
