//! Feed of changes to the follower: our own writes at once, those of other servers as PostgreSQL tells of
//! them. Each change has a number without gaps, so that whoever missed some reads them. While nobody tells of
//! changes, the follower answers "maybe".

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use narinfo::StorePathHash;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Client, Row, Statement};

use super::Error;
use super::hosts::TIMELINE;
use super::session::{Connector, Sessions, column};
use crate::index::backend::{ASK_EVERY, Changes, Follower};
use crate::index::columns::{signed, unsigned};

/// Payload of what tells of a change of the queue.
pub(super) const QUEUE: &str = "queue";
/// Changes that are read at once.
const CHANGES_AT_ONCE: i64 = 500;
/// Time for which it may take to answer.
const ANSWER_FOR: Duration = Duration::from_secs(3);
/// Pauses before the server is connected to again.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The latest number, and changes from one on. One statement, so that both are of the same moment.
const CHANGES: &str = "SELECT p.latest, c.sequence, c.added, c.changed, c.removed, c.everything \
    FROM change_position p LEFT JOIN change c ON c.sequence > $1 ORDER BY c.sequence LIMIT $2";

/// The feed; clones share it.
#[derive(Clone, Default)]
pub(super) struct ChangeFeed(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when changes of others are to be read.
    behind: Notify,
    /// Notified when changes are told, at the start and after an interruption.
    live: Notify,
    /// Notified when the queue that several servers share may have changed.
    queue: Notify,
}

#[derive(Default)]
struct State {
    /// Number of the latest change that the follower has; `None` before the first connection.
    position: Option<u64>,
    /// Our own changes that others come before.
    early: BTreeMap<u64, Changes>,
    follower: Option<Arc<dyn Follower>>,
    /// True while changes of others are told.
    live: bool,
    /// Timeline of the server, which is another one after a failover.
    timeline: Option<String>,
}

impl State {
    /// Applies a change if it is the next one.
    fn apply(&mut self, sequence: u64, changes: &Changes) {
        if self.position.is_none_or(|position| sequence <= position) {
            return;
        }
        self.position = Some(sequence);
        self.early = self.early.split_off(&(sequence + 1));
        if let Some(follower) = &self.follower {
            follower.apply(sequence, changes);
        }
    }

    /// Applies our own changes as far as none is missing before them.
    fn apply_early(&mut self) {
        while let Some(position) = self.position
            && let Some(changes) = self.early.remove(&(position + 1))
        {
            self.apply(position + 1, &changes);
        }
    }

    /// Goes on at a number; whatever came before it was missed.
    fn restart(&mut self, latest: u64) {
        self.position = Some(latest);
        self.early.clear();
        if let Some(follower) = &self.follower {
            follower.restarted(latest);
        }
    }
}

impl ChangeFeed {
    pub(super) fn follow(&self, follower: Arc<dyn Follower>) {
        let mut state = self.state();
        if !state.live {
            follower.interrupted();
        }
        state.follower = Some(follower);
    }

    /// Applies a change of ours that is committed, and all that came before it. Where those cannot be read,
    /// the follower answers "maybe" from now on.
    pub(super) async fn committed(&self, sessions: &Sessions, sequence: u64, changes: Changes) {
        let missing = {
            let mut state = self.state();
            if state.position.is_some_and(|position| sequence > position) {
                state.early.insert(sequence, changes);
                state.apply_early();
            }
            // While changes are missed the follower does not rely on any.
            state.live && state.position.is_some_and(|position| sequence > position)
        };
        if missing && self.catch_up(sessions).await.is_err() {
            self.interrupt();
        }
    }

    /// Reads what was committed before a change of ours.
    async fn catch_up(&self, sessions: &Sessions) -> Result<(), Error> {
        let session = sessions.get().await?;
        loop {
            let position = self.position();
            let rows = answered(session.rows(CHANGES, &[&signed(position), &CHANGES_AT_ONCE])).await??;
            if self.apply_rows(position, &rows)? {
                return Ok(());
            }
        }
    }

    /// Tells the follower of all changes, for as long as it is awaited.
    pub(super) async fn listen(&self, connector: &Connector) {
        let mut pause = PAUSE;
        loop {
            let Err(error) = self.listen_once(connector).await;
            if self.state().live {
                pause = PAUSE;
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    error,
                    "connection to PostgreSQL lost; hits in memory are served, all else waits. Connecting again"
                );
            }
            self.interrupt();
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Listens on a connection until that is lost.
    async fn listen_once(&self, connector: &Connector) -> Result<Infallible, Error> {
        let (client, mut connection) = connector.connect().await?;
        let told = Arc::clone(&self.0);
        let driven = async move {
            while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
                let AsyncMessage::Notification(notification) = message? else { continue };
                match notification.payload() {
                    QUEUE => told.queue.notify_one(),
                    sequence if sequence.parse().is_ok_and(|sequence: u64| !told.has(sequence)) => {
                        told.behind.notify_one();
                    }
                    _ => {}
                }
            }
            Err(Error::Away("PostgreSQL has closed the connection".into()))
        };
        tokio::select! {
            ended = driven => ended,
            ended = self.ask(&client) => ended,
        }
    }

    async fn ask(&self, client: &Client) -> Result<Infallible, Error> {
        let (timeline, statement) = answered(begin(client)).await??;
        let mut anew = self.set_timeline(timeline);
        loop {
            let position = if anew { 0 } else { self.position() };
            let rows = answered(client.query(&statement, &[&signed(position), &CHANGES_AT_ONCE])).await??;
            if std::mem::take(&mut anew) {
                self.state().restart(latest(&rows)?);
                continue;
            }
            if self.apply_rows(position, &rows)? {
                self.resume();
                // Whatever was told until now was read.
                let _ = timeout(ASK_EVERY, self.0.behind.notified()).await;
            }
        }
    }

    /// Notes the timeline of the server. True where everything is to be read again: at the start, and where
    /// another server has taken over, which may lack what the follower knows.
    fn set_timeline(&self, timeline: String) -> bool {
        let mut state = self.state();
        let is_same = state.timeline.as_ref() == Some(&timeline);
        state.timeline = Some(timeline);
        !is_same
    }

    /// Applies changes that were read after the one with the number `asked`. True where those were all.
    fn apply_rows(&self, asked: u64, rows: &[Row]) -> Result<bool, Error> {
        let latest = latest(rows)?;
        let first = rows.first().map_or(Ok(None), |row| column::<Option<i64>>(row, 1))?.map(unsigned);
        let mut state = self.state();
        if latest < asked {
            // The database was restored, or this is another one.
            state.restart(latest);
            return Ok(true);
        }
        if first.map_or(latest > asked, |first| first > asked + 1) {
            // Those between are not on record any more. Our own may have come meanwhile.
            let latest = state.position.map_or(latest, |position| position.max(latest));
            state.restart(latest);
            return Ok(true);
        }
        for row in rows {
            if let Some(sequence) = column::<Option<i64>>(row, 1)?.map(unsigned) {
                state.apply(sequence, &changes(row)?);
            }
        }
        state.apply_early();
        Ok(state.position >= Some(latest))
    }

    /// Resolves once the queue may have changed, and some time after that was looked for last.
    pub(super) async fn queue_changed(&self) {
        let _ = timeout(ASK_EVERY, self.0.queue.notified()).await;
    }

    fn interrupt(&self) {
        let mut state = self.state();
        if std::mem::take(&mut state.live)
            && let Some(follower) = &state.follower
        {
            follower.interrupted();
        }
    }

    fn resume(&self) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.live, true) {
            if let Some(follower) = &state.follower {
                follower.resumed();
            }
            self.0.live.notify_one();
            // What was told meanwhile was missed.
            self.0.queue.notify_one();
        }
    }

    fn position(&self) -> u64 {
        self.state().position.unwrap_or_default()
    }

    /// True while changes of others are told: the server answers.
    pub(super) fn is_live(&self) -> bool {
        self.state().live
    }

    /// Resolves once changes are told for the first time.
    pub(super) async fn live(&self) {
        self.0.live.notified().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, sequence: u64) -> bool {
        self.state().position.is_some_and(|position| sequence <= position)
    }
}

/// Has the server tell of changes from now on. Gives its timeline, and the statement that reads changes.
async fn begin(client: &Client) -> Result<(String, Statement), Error> {
    let schema: String = column(&client.query_one("SELECT current_schema()", &[]).await?, 0)?;
    client.batch_execute(&format!("LISTEN \"ondine_{}\"", schema.replace('"', "\"\""))).await?;
    let timeline = column(&client.query_one(TIMELINE, &[]).await?, 0)?;
    Ok((timeline, client.prepare(CHANGES).await?))
}

/// An answer of a server that does not hang.
async fn answered<T>(asked: impl Future<Output = T>) -> Result<T, Error> {
    timeout(ANSWER_FOR, asked).await.map_err(|_| Error::Slow(ANSWER_FOR))
}

/// The latest number, in every row.
fn latest(rows: &[Row]) -> Result<u64, Error> {
    rows.first().map_or(Ok(0), |row| column(row, 0).map(unsigned))
}

fn changes(row: &Row) -> Result<Changes, Error> {
    let hashes = |index| -> Result<Vec<StorePathHash>, Error> {
        let texts: Vec<&str> = column(row, index)?;
        // A hash that is none is never asked for.
        Ok(texts.into_iter().filter_map(|text| text.parse().ok()).collect())
    };
    Ok(Changes { added: hashes(2)?, changed: hashes(3)?, removed: hashes(4)?, everything: column(row, 5)? })
}
