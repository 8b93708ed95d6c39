//! Bounds of the queue, and the reasons why a request has no place in it.

use std::net::IpAddr;
use std::sync::Arc;

use narinfo::StorePath;

use super::State;
use crate::build::Settings;

/// Why a request has no place in the queue.
#[derive(Debug, thiserror::Error)]
pub enum NotQueued {
    /// The bound on all requests is reached.
    #[error("{0} builds wait already (setting max-queued); ask again when some are done")]
    ForAll(usize),
    /// The bound on the requests of one client is reached.
    #[error(
        "{0} builds wait for this client already (setting max-queued-per-client); ask again when some are done"
    )]
    ForClient(usize),
    /// The queue that several servers share cannot be written, for this reason.
    #[error("the queue cannot be written: {0}")]
    Unrecorded(Arc<str>),
    /// A request for the same derivation waits, and may be built elsewhere.
    #[error(
        "request {id} for it is in the queue already, for {}: end that with `ondine cancel {id}` first, or leave \
         out the builder", builder_or_any(.builder.as_deref())
    )]
    ForOthers {
        /// The request.
        id: u64,
        /// Its builder.
        builder: Option<String>,
    },
    /// Another machine builds the derivation now.
    #[error("it is being built on {0} already")]
    BuiltOn(String),
}

fn builder_or_any(builder: Option<&str>) -> String {
    builder.map_or_else(|| "any builder".to_owned(), |builder| format!("the builder {builder}"))
}

impl State {
    /// Checks that one more request is accepted, beside `more` that are under way.
    pub(super) fn room_for(
        &self,
        drv: &StorePath,
        client: Option<IpAddr>,
        more: usize,
        settings: &Settings,
    ) -> Result<(), NotQueued> {
        if self.queue.request_for(drv).is_some() {
            return Ok(());
        }
        let Settings { queued_max, queued_per_client_max, .. } = *settings;
        if self.queue.len() + more >= queued_max {
            return Err(NotQueued::ForAll(queued_max));
        }
        match client {
            Some(client) if self.waiters.of_client(client) + more >= queued_per_client_max => {
                Err(NotQueued::ForClient(queued_per_client_max))
            }
            _ => Ok(()),
        }
    }

    /// Refuses to have a derivation built on one builder alone that is built elsewhere, or may be for others.
    pub(super) fn may_be_built_on(&self, builder: &str, drv: &StorePath) -> Result<(), NotQueued> {
        if let Some(id) = self.queue.request_for(drv) {
            let theirs = self.waiters.get(id).and_then(|request| request.builder.clone());
            if theirs.as_deref() != Some(builder) {
                return Err(NotQueued::ForOthers { id: id.0, builder: theirs });
            }
        }
        match self.machines.machine_of(drv) {
            Some(other) if other != builder => Err(NotQueued::BuiltOn(other.to_owned())),
            _ => Ok(()),
        }
    }
}
