//! Count of the NARs under way that a client waits for: background packing gives way to them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Inner, Priority};

/// Guard of the count of NARs that a client waits for.
pub(super) struct Awaited(Option<Arc<Inner>>);

impl Awaited {
    pub(super) fn new(inner: &Arc<Inner>, priority: Priority) -> Self {
        let counted = (priority == Priority::Client).then(|| Arc::clone(inner));
        if let Some(inner) = &counted {
            inner.awaited.fetch_add(1, Ordering::Relaxed);
        }
        Self(counted)
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if let Some(inner) = &self.0 {
            inner.awaited.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
