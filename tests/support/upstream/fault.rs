//! Faults of an answer of another cache, one variant each, and a valve that holds an answer until the test
//! opens it.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// One way to misbehave. Numbers of bytes are of the body of this one answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status and a short text.
    Status(u16),
    /// The same, with so many seconds in a Retry-After.
    RetryAfter(u16, u64),
    /// The connection is closed before anything is sent.
    CloseEarly,
    /// Nothing is ever sent, and the connection stays open.
    Silence,
    /// The headers at once, then one byte a second.
    Drip,
    /// So many bytes a second.
    Rate(u64),
    /// The right length is promised; after so many bytes the connection is closed.
    Cut(usize),
    /// In chunks; after so many bytes the connection is closed without the last chunk.
    ChunksCut(usize),
    /// In chunks, ended as if so many bytes were all.
    ChunksEnd(usize),
    /// No length and no chunks; after so many bytes the connection is closed, which is how such a body ends.
    CloseEnds(usize),
    /// A shorter length is promised, and kept.
    ShortLength(usize),
    /// In chunks: the body, and then zeros without end.
    Endless,
    /// The whole body, though a part was asked for.
    NoRange,
    /// The part that was asked for, with its Content-Range, but as if it were the whole (status 200).
    PartCalledWhole,
    /// The part that was asked for, in chunks, and not a word of that.
    PartUnsaid,
    /// Of a part that was asked for, the right number of bytes, one of which is wrong.
    PartSpoilt,
    /// Another body.
    Instead(Arc<Vec<u8>>),
    /// A redirect to this address.
    Redirect(String),
    /// The body as it is, said to be in this Content-Encoding.
    Encoded(String),
    /// All is well, but later.
    Late(Duration),
    /// All is well, once the valve is open.
    Held(Valve),
}

/// Closed until it is opened; clones are the same valve.
#[derive(Clone, Debug, Default)]
pub struct Valve(Arc<(Mutex<bool>, Condvar)>);

impl Valve {
    /// A closed one.
    pub fn new() -> Valve {
        Valve::default()
    }

    /// Lets everything pass from here on.
    pub fn open(&self) {
        *self.0.0.lock().expect("nothing panics with a valve locked") = true;
        self.0.1.notify_all();
    }

    /// Waits until it is open.
    pub fn pass(&self) {
        let open = self.0.0.lock().expect("nothing panics with a valve locked");
        drop(self.0.1.wait_while(open, |open| !*open).expect("nothing panics with a valve locked"));
    }
}
