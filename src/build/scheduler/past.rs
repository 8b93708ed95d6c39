//! Requests that have ended, for those who ask later how: the latest ones, within a bound.

use std::collections::{HashMap, VecDeque};

use crate::build::view::{RequestState, RequestView};

/// Requests that are remembered after their end.
const PAST_MAX: usize = 10_000;
/// Characters of a reason that are remembered: an index of failures has the whole of it for longer.
const REASON_CHARS_MAX: usize = 2_000;

/// The latest requests that have ended.
#[derive(Default)]
pub(super) struct Past {
    requests: HashMap<u64, RequestView>,
    /// Their numbers, in the order of their ends.
    order: VecDeque<u64>,
}

impl Past {
    pub(super) fn get(&self, id: u64) -> Option<&RequestView> {
        self.requests.get(&id)
    }

    /// The last one that ended first.
    pub(super) fn latest(&self) -> impl Iterator<Item = &RequestView> {
        self.order.iter().rev().filter_map(|id| self.requests.get(id))
    }

    /// Remembers one more, and forgets the one that ended first where there are too many.
    pub(super) fn push(&mut self, mut request: RequestView) {
        if let RequestState::Failed { reason, .. } | RequestState::Refused { reason } = &mut request.state
            && let Some((end, _)) = reason.char_indices().nth(REASON_CHARS_MAX)
        {
            reason.truncate(end);
            reason.push('…');
        }
        if self.order.len() >= PAST_MAX
            && let Some(first) = self.order.pop_front()
        {
            self.requests.remove(&first);
        }
        self.order.push_back(request.id);
        self.requests.insert(request.id, request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(id: u64, reason: &str) -> RequestView {
        RequestView {
            id,
            derivation: "a.drv".to_owned(),
            asked_at: 0,
            ended_at: Some(0),
            clients: 0,
            builder: None,
            state: RequestState::Refused { reason: reason.to_owned() },
            outlook: None,
        }
    }

    #[test]
    fn the_latest_are_remembered_and_none_of_them_takes_more_than_its_share() {
        let mut past = Past::default();
        for id in 0..=PAST_MAX as u64 {
            past.push(ended(id, "why"));
        }
        assert!(past.get(0).is_none() && past.get(1).is_some());
        assert_eq!((past.requests.len(), past.order.len()), (PAST_MAX, PAST_MAX));
        assert_eq!(past.latest().next().map(|request| request.id), Some(PAST_MAX as u64));
        past.push(ended(u64::MAX, &"é".repeat(REASON_CHARS_MAX + 1)));
        let last = past.get(u64::MAX).map(|request| request.state.clone());
        let Some(RequestState::Refused { reason }) = last else { panic!("not remembered") };
        assert_eq!(reason.chars().count(), REASON_CHARS_MAX + 1);
    }
}
