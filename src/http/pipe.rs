//! A body that is written over time. It is cut unless its writer says that it is complete,
//! so that no error, no panic and no shutdown can make half an answer look whole.

use std::io;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};

use super::answer::Body;

/// Pieces that may be under way to a client that reads slowly.
const PIECES_UNSENT_MAX: usize = 2;

/// The writing end.
pub(super) struct Pipe(Option<Sender<Bytes, io::Error>>);

/// The client has left.
pub(super) struct ClientGone;

/// A body and the end to write it with.
pub(super) fn pipe() -> (Pipe, Body) {
    let (sender, body) = Channel::new(PIECES_UNSENT_MAX);
    (Pipe(Some(sender)), body.boxed_unsync())
}

impl Pipe {
    /// Sends a piece, once there is room for it.
    pub(super) async fn send(&mut self, piece: impl Into<Bytes>) -> Result<(), ClientGone> {
        match &mut self.0 {
            Some(sender) => sender.send_data(piece.into()).await.map_err(|_| ClientGone),
            None => Err(ClientGone),
        }
    }

    /// The body is complete.
    pub(super) fn complete(mut self) {
        self.0 = None;
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            sender.abort(io::Error::other("cut: the answer could not be completed"));
        }
    }
}
