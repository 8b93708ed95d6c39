//! Connection threads, one for each core, each with a current-thread runtime. A connection stays with its
//! thread, so that no task is woken on one core by another. Large answers are a third faster than with the
//! multi-thread runtime that this replaced, and small ones a tenth. The control socket does without: its
//! callers are few.

use std::convert::Infallible;
use std::io;
use std::num::NonZero;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// The threads. They end with all their connections when this is dropped.
pub(super) struct ConnectionThreads(Vec<ConnectionThread>);

struct ConnectionThread {
    runtime: Handle,
    /// Shared by each connection of this thread.
    connections: Arc<()>,
    /// Nothing is ever sent.
    _alive: oneshot::Sender<Infallible>,
}

/// Counts a connection on its thread for as long as it is open.
pub(super) struct ConnectionGuard {
    /// Number of its thread.
    pub(super) thread: usize,
    _counted: Arc<()>,
}

/// Number of connection threads.
pub(super) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

impl ConnectionThreads {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub(super) fn start() -> io::Result<Self> {
        (0..threads()).map(|_| ConnectionThread::start()).collect::<io::Result<_>>().map(Self)
    }

    /// Spawns `connection` for `stream` on the thread with the fewest connections.
    ///
    /// # Errors
    /// The stream cannot be registered with the runtime.
    pub(super) fn spawn<C>(
        &self,
        stream: TcpStream,
        connection: impl FnOnce(TcpStream, ConnectionGuard) -> C,
    ) -> io::Result<()>
    where
        C: Future<Output = ()> + Send + 'static,
    {
        let threads = self.0.iter().enumerate();
        let fewest = threads.min_by_key(|(_, thread)| Arc::strong_count(&thread.connections));
        let (number, thread) = fewest.ok_or(io::ErrorKind::NotConnected)?;
        let stream = stream.into_std()?;
        // A stream registers with the runtime that is entered.
        let _entered = thread.runtime.enter();
        let guard = ConnectionGuard { thread: number, _counted: Arc::clone(&thread.connections) };
        thread.runtime.spawn(connection(TcpStream::from_std(stream)?, guard));
        Ok(())
    }
}

impl ConnectionThread {
    fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (alive, ended) = oneshot::channel::<Infallible>();
        let thread = Self { runtime: runtime.handle().clone(), connections: Arc::new(()), _alive: alive };
        std::thread::Builder::new().name("connections".into()).spawn(move || {
            // The sender never sends: an error is its end.
            let _ = runtime.block_on(ended);
            // Blocking reads of files are not waited for.
            runtime.shutdown_background();
        })?;
        Ok(thread)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn connections_are_shared_out_evenly_and_end_with_the_threads() {
        let threads = ConnectionThreads::start().expect("threads");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let mut clients = Vec::new();
        for _ in 0..2 * threads.0.len() {
            clients.push(TcpStream::connect(address).await.expect("connected"));
            let (stream, _) = listener.accept().await.expect("accepted");
            let for_ever = |stream, guard| async move {
                let _held: (TcpStream, ConnectionGuard) = (stream, guard);
                std::future::pending().await
            };
            threads.spawn(stream, for_ever).expect("spawned");
        }
        // Two each, and the thread's own.
        assert!(threads.0.iter().all(|thread| Arc::strong_count(&thread.connections) == 3));
        drop(threads);
        for mut client in clients {
            assert_eq!(client.read(&mut [0]).await.expect("the end"), 0);
        }
    }
}
