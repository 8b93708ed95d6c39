//! Memory budget of large decoders. Some caches need a window of 128 MiB, and any may ask for it: such
//! decoders wait until others have ended, first come, first served. Ordinary decoders wait for nobody, so
//! that a slow upstream does not hold up others.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes of all large decoders together: two of the largest, four of `xz -9`.
const BUDGET_BYTES: u64 = 272 * 1024 * 1024;
/// Bytes of the largest ordinary decoder: a window of 8 MiB, as of `xz -6` and `zstd -19`, and its tables.
const ORDINARY_BYTES: u64 = 10 * 1024 * 1024 + 512 * 1024;

static BUDGET: Budget = Budget::new(BUDGET_BYTES);

/// Bytes that are handed out in strict FIFO order.
#[derive(Debug)]
struct Budget {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    free: u64,
    /// Ticket of the next one who asks, and the ticket whose turn it is.
    next: u64,
    turn: u64,
}

impl Budget {
    const fn new(bytes: u64) -> Self {
        Self { state: Mutex::new(State { free: bytes, next: 0, turn: 0 }), changed: Condvar::new() }
    }

    fn take(&self, bytes: u64) {
        let mut state = self.lock();
        let own = state.next;
        state.next += 1;
        let wait = |state: &mut State| state.turn != own || state.free < bytes;
        let mut state = self.changed.wait_while(state, wait).unwrap_or_else(PoisonError::into_inner);
        state.free -= bytes;
        state.turn += 1;
        self.changed.notify_all();
    }

    fn give_back(&self, bytes: u64) {
        self.lock().free += bytes;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reserved bytes of the budget, given back on drop.
#[derive(Debug)]
pub(super) struct Reservation {
    of: &'static Budget,
    bytes: u64,
}

impl Reservation {
    /// Reserves nothing yet.
    pub(super) fn none() -> Self {
        Self { of: &BUDGET, bytes: 0 }
    }

    /// Reserves so many bytes. Blocking.
    pub(super) fn of(bytes: u64) -> Self {
        let mut reservation = Self::none();
        reservation.grow_to(bytes);
        reservation
    }

    /// Grows the reservation to at least so many bytes. Gives back the bytes it has before it waits for more,
    /// so that no two wait for each other: the decoder must not need them meanwhile. Blocking.
    pub(super) fn grow_to(&mut self, bytes: u64) {
        let bytes = bytes.min(BUDGET_BYTES);
        if bytes > self.bytes.max(ORDINARY_BYTES) {
            self.of.give_back(std::mem::take(&mut self.bytes));
            self.of.take(bytes);
            self.bytes = bytes;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.of.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn no_more_is_handed_out_than_there_is_and_in_the_order_of_asking() {
        let budget: &'static Budget = Box::leak(Box::new(Budget::new(100)));
        budget.take(100);
        let (told, ends) = channel();
        let mut asking = Vec::new();
        for (number, bytes) in [60, 50, 1].into_iter().enumerate() {
            let told = told.clone();
            asking.push(std::thread::spawn(move || {
                budget.take(bytes);
                told.send(number).expect("the test listens");
                budget.give_back(bytes);
            }));
            // In the queue before the next one asks.
            while budget.lock().next < 2 + number as u64 {
                std::thread::yield_now();
            }
        }
        assert!(ends.try_recv().is_err(), "somebody got what is not there");
        budget.give_back(100);
        asking.into_iter().for_each(|thread| thread.join().expect("it got its bytes"));
        let order: Vec<usize> = ends.try_iter().collect();
        assert_eq!((order[0], order.len()), (0, 3));
        assert_eq!(budget.lock().free, 100);
    }

    #[test]
    fn an_ordinary_decoder_takes_nothing_and_a_large_one_gives_back_what_it_has() {
        let budget: &'static Budget = Box::leak(Box::new(Budget::new(BUDGET_BYTES)));
        let mut reservation = Reservation { of: budget, bytes: 0 };
        for (bytes, taken) in [
            (ORDINARY_BYTES, 0),
            (ORDINARY_BYTES + 1, ORDINARY_BYTES + 1),
            (20 << 20, 20 << 20),
            (1, 20 << 20),
            (BUDGET_BYTES, BUDGET_BYTES),
        ] {
            reservation.grow_to(bytes);
            assert_eq!(budget.lock().free, BUDGET_BYTES - taken, "{bytes}");
        }
        drop(reservation);
        assert_eq!(budget.lock().free, BUDGET_BYTES);
    }
}
