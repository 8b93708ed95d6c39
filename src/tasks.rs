//! Tasks of the server: each has a name, and this file alone decides what follows when one of them panics:
//! the server stops, the task is restarted, or its work is left undone. Work that someone waits for is
//! spawned by its component, which answers for it.

use std::any::Any;
use std::future::pending;
use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

/// Pause before a task that panicked is restarted.
const RESTART_AFTER: Duration = if cfg!(test) { Duration::from_millis(1) } else { Duration::from_secs(10) };

/// Spawner of tasks on the runtime that it was made in; clones share it. The tasks run until their
/// [`Supervisor`] stops them or is dropped.
#[derive(Clone)]
pub struct Tasks {
    runtime: Handle,
    stopping: watch::Receiver<bool>,
    /// Number of tasks that run.
    running: Arc<watch::Sender<usize>>,
    /// Names of tasks without which the server cannot go on.
    ended: mpsc::UnboundedSender<&'static str>,
}

/// Supervisor of a server's tasks: it learns of those without which the server cannot go on, and stops all.
pub struct Supervisor {
    stop: watch::Sender<bool>,
    running: watch::Receiver<usize>,
    ended: mpsc::UnboundedReceiver<&'static str>,
}

/// One task that counts as running, for as long as this exists.
struct TaskCount(Arc<watch::Sender<usize>>);

impl TaskCount {
    fn new(running: &Arc<watch::Sender<usize>>) -> Self {
        running.send_modify(|running| *running += 1);
        Self(Arc::clone(running))
    }
}

impl Drop for TaskCount {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}

/// Runs work that blocks on a thread that may wait, and gives its outcome. Its panic goes on here. Where the
/// runtime shuts down before the work has begun, this never resolves: who waits is about to be dropped.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => unfinished(error).await,
    }
}

/// Goes on with the panic of a task. Of one that was cancelled by the shutdown of the runtime there is
/// nothing to wait for but that.
pub async fn unfinished(error: JoinError) -> ! {
    match error.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(_) => pending().await,
    }
}

impl Tasks {
    /// A spawner without tasks, and its supervisor. Must be called within a tokio runtime.
    #[must_use]
    pub fn new() -> (Self, Supervisor) {
        let (stop, stopping) = watch::channel(false);
        let (running, running_count) = watch::channel(0);
        let (ended, vital_ended) = mpsc::unbounded_channel();
        let tasks = Self { runtime: Handle::current(), stopping, running: Arc::new(running), ended };
        (tasks, Supervisor { stop, running: running_count, ended: vital_ended })
    }

    /// Runs a task that must not end before the server: its end, by a panic or not, ends the server.
    pub fn vital(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let ended = self.ended.clone();
        self.spawn(async move {
            match attempt(task).await {
                Ok(()) => tracing::error!(task = name, "task ended too early; the server stops"),
                Err(panic) => log_panic(name, &panic, "the server stops"),
            }
            // An error means that the server stops anyway.
            let _ = ended.send(name);
        });
    }

    /// Runs a task without whose work the server cannot go on: a panic ends the server, its end does not.
    pub fn needed(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let ended = self.ended.clone();
        self.spawn(async move {
            if let Err(panic) = attempt(task).await {
                log_panic(name, &panic, "the server stops");
                let _ = ended.send(name);
            }
        });
    }

    /// Runs a task that can begin anew: where it panics, it is made again after a pause.
    pub fn restarted<F>(&self, name: &'static str, mut make: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn(async move {
            while let Err(panic) = attempt(make()).await {
                log_panic(name, &panic, "it is restarted");
                sleep(RESTART_AFTER).await;
            }
        });
    }

    /// Runs a task whose work can be left undone: where it panics, that is logged, and the server goes on
    /// without it.
    pub fn optional(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(async move {
            if let Err(panic) = attempt(task).await {
                log_panic(name, &panic, "its work is left undone");
            }
        });
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let (count, mut stopping) = (TaskCount::new(&self.running), self.stopping.clone());
        self.runtime.spawn(async move {
            let _count = count;
            tokio::select! {
                () = task => {}
                // An error means that nobody supervises any more, which is the same.
                _ = stopping.wait_for(|stopping| *stopping) => {}
            }
        });
    }
}

impl Supervisor {
    /// Resolves with the name of a task without which the server cannot go on.
    pub async fn ended(&mut self) -> &'static str {
        match self.ended.recv().await {
            Some(name) => name,
            // All spawners are gone, and their tasks with them.
            None => std::future::pending().await,
        }
    }

    /// Aborts all tasks, and waits until they are gone, for so long at most. False when one was not gone by
    /// then.
    pub async fn stop(mut self, within: Duration) -> bool {
        self.stop.send_replace(true);
        let gone = self.running.wait_for(|running| *running == 0);
        timeout(within, pin!(gone)).await.is_ok()
    }
}

/// Text of a panic.
type Panic = String;

/// Runs a future in a task of its own, which ends with this.
async fn attempt(task: impl Future<Output = ()> + Send + 'static) -> Result<(), Panic> {
    let mut set = JoinSet::new();
    set.spawn(task);
    match set.join_next().await {
        Some(Err(error)) if error.is_panic() => Err(text(&*error.into_panic())),
        _ => Ok(()),
    }
}

fn text(panic: &(dyn Any + Send)) -> Panic {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no text".to_owned())
}

/// A panic is a bug of this server: its place is in the message that the panic itself has printed.
fn log_panic(name: &'static str, panic: &str, consequence: &str) {
    tracing::error!(task = name, panic, "task panicked because of a bug; {consequence}; please report it");
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_task_that_the_server_cannot_do_without_is_told_to_the_supervisor_by_its_name() {
        let (tasks, mut supervisor) = Tasks::new();
        tasks.vital("steady", std::future::pending());
        tasks.optional("careless", async { panic!("nobody minds") });
        tasks.needed("done", async {});
        tasks.vital("broken", async { panic!("a bug") });
        assert_eq!(timeout(SOON, supervisor.ended()).await, Ok("broken"));
        tasks.vital("short", async {});
        assert_eq!(timeout(SOON, supervisor.ended()).await, Ok("short"));
        tasks.needed("undone", async { panic!("a bug") });
        assert_eq!(timeout(SOON, supervisor.ended()).await, Ok("undone"));
        assert!(supervisor.stop(SOON).await);
    }

    #[tokio::test]
    async fn a_task_that_can_begin_anew_is_restarted_until_it_ends_well() {
        let (tasks, supervisor) = Tasks::new();
        let (runs, done) = (Arc::new(AtomicU32::new(0)), Arc::new(tokio::sync::Notify::new()));
        tasks.restarted("stubborn", {
            let (runs, done) = (Arc::clone(&runs), Arc::clone(&done));
            move || {
                let (runs, done) = (Arc::clone(&runs), Arc::clone(&done));
                async move {
                    assert!(runs.fetch_add(1, Ordering::Relaxed) >= 2, "not yet");
                    done.notify_one();
                }
            }
        });
        timeout(SOON, done.notified()).await.expect("it ends well at last");
        assert!(supervisor.stop(SOON).await);
        assert_eq!(runs.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn no_task_outlives_the_stop_of_its_supervisor() {
        let (tasks, supervisor) = Tasks::new();
        let held = Arc::new(());
        let hold = || {
            let held = Arc::clone(&held);
            async move {
                let _held = held;
                std::future::pending().await
            }
        };
        tasks.vital("one", hold());
        tasks.optional("other", hold());
        assert!(supervisor.stop(SOON).await);
        assert_eq!(Arc::strong_count(&held), 1, "a task goes on");
    }

    #[tokio::test]
    async fn a_panic_of_blocking_work_goes_on_and_a_cancelled_task_is_waited_for_with_the_runtime() {
        let panicked = tokio::spawn(blocking(|| panic!("on purpose"))).await.expect_err("a panic");
        assert!(panicked.is_panic());
        assert_eq!(blocking(|| 7).await, 7);
        let cancelled = tokio::spawn(pending::<()>());
        cancelled.abort();
        let error = cancelled.await.expect_err("cancelled");
        assert!(timeout(Duration::from_millis(20), unfinished(error)).await.is_err());
    }
}
