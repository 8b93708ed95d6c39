//! The threads that drive connections, one for each core. A connection stays with the thread that it was given to, so that nobody
//! is woken on one core for what another one is at: what large answers lose by that is a third of their speed.

use std::convert::Infallible;
use std::io;
use std::num::NonZero;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// The threads. They end, and with them what they drive, when this is dropped.
pub(super) struct Drivers(Vec<Driver>);

struct Driver {
    runtime: Handle,
    /// Shared by each connection that this one has.
    connections: Arc<()>,
    /// Nothing is ever sent.
    _lives: oneshot::Sender<Infallible>,
}

/// Held by a connection for as long as it is open.
pub(super) struct Driven {
    /// The number of its thread.
    pub(super) thread: usize,
    _by: Arc<()>,
}

/// Threads of connections that there are.
pub(super) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

impl Drivers {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system gives none.
    pub(super) fn start() -> io::Result<Self> {
        (0..threads()).map(|_| Driver::start()).collect::<io::Result<_>>().map(Self)
    }

    /// Has the thread that has the fewest connections drive `stream` as `connection` says.
    ///
    /// # Errors
    /// When the stream cannot be watched.
    pub(super) fn drive<C>(
        &self,
        stream: TcpStream,
        connection: impl FnOnce(TcpStream, Driven) -> C,
    ) -> io::Result<()>
    where
        C: Future<Output = ()> + Send + 'static,
    {
        let drivers = self.0.iter().enumerate();
        let fewest = drivers.min_by_key(|(_, driver)| Arc::strong_count(&driver.connections));
        let (thread, driver) = fewest.ok_or(io::ErrorKind::NotConnected)?;
        let stream = stream.into_std()?;
        // It is watched by the runtime that is entered.
        let _entered = driver.runtime.enter();
        let driven = Driven { thread, _by: Arc::clone(&driver.connections) };
        driver.runtime.spawn(connection(TcpStream::from_std(stream)?, driven));
        Ok(())
    }
}

impl Driver {
    fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (lives, ended) = oneshot::channel::<Infallible>();
        let driver = Self { runtime: runtime.handle().clone(), connections: Arc::new(()), _lives: lives };
        std::thread::Builder::new().name("connections".into()).spawn(move || {
            // An error is the end of whoever might send.
            let _ = runtime.block_on(ended);
            // Whoever reads a file for it is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(driver)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn connections_are_shared_out_evenly_and_end_with_the_threads() {
        let drivers = Drivers::start().expect("threads");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let mut clients = Vec::new();
        for _ in 0..2 * drivers.0.len() {
            clients.push(TcpStream::connect(address).await.expect("connected"));
            let (stream, _) = listener.accept().await.expect("accepted");
            let for_ever = |stream, driven| async move {
                let _held: (TcpStream, Driven) = (stream, driven);
                std::future::pending().await
            };
            drivers.drive(stream, for_ever).expect("driven");
        }
        // Two each, and the thread's own.
        assert!(drivers.0.iter().all(|driver| Arc::strong_count(&driver.connections) == 3));
        drop(drivers);
        for mut client in clients {
            assert_eq!(client.read(&mut [0]).await.expect("the end"), 0);
        }
    }
}
