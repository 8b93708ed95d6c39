//! The last failure of something that may work again, kept until it has: what a health check tells, and what
//! waits for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::causes::with_causes;

/// A failure and its end; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Trouble(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    reason: Mutex<Option<String>>,
    noted: Notify,
}

impl Trouble {
    /// Notes a failure and its reason.
    pub fn note(&self, error: &(dyn std::error::Error + 'static)) {
        *self.reason() = Some(with_causes(error));
        self.0.noted.notify_one();
    }

    /// Notes a success. True if it had failed before.
    pub fn clear(&self) -> bool {
        self.reason().take().is_some()
    }

    /// Why it failed last, unless it has worked since.
    #[must_use]
    pub fn get(&self) -> Option<String> {
        self.reason().clone()
    }

    /// Resolves once it has failed since this resolved last.
    pub async fn noted(&self) {
        self.0.noted.notified().await;
    }

    fn reason(&self) -> MutexGuard<'_, Option<String>> {
        self.0.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
