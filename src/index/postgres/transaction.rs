//! Reads and writes: each is tried again, within a bound, where the connection was lost or the server rolled
//! it back for another one's sake. A write happens once: where the connection is lost during its commit, the
//! server is asked for the fate of that transaction.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Row;

use super::Error;
use super::feed::ChangeFeed;
use super::session::{Connector, DatabaseSession, Interrupted, Sessions, column};
use crate::index::backend::{Changes, WRITE_AGAIN_FOR};
use crate::index::columns::{signed, unsigned};
use crate::index::condition::IndexCondition;
use crate::model::Term;

/// Time after which a read that found nobody is not tried again.
const READ_AGAIN_FOR: Duration = Duration::from_secs(2);
/// Time that a read may take.
const READ_FOR: Duration = Duration::from_secs(10);
/// Time that a read may take while the server does not tell of changes.
const HANGING_READ_FOR: Duration = Duration::from_secs(1);
/// Time that a write may take: a generation of all of nixpkgs takes some ten seconds.
const WRITE_FOR: Duration = Duration::from_secs(300);
/// Pauses between two tries.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Opens a write. One whose server hangs is ended by the database: it holds locks that others wait for.
pub(super) const BEGIN: &str = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '3s'";
/// The term of a fenced write, which cannot end before the commit.
const FENCE: &str = "SELECT 1 FROM leadership WHERE epoch = $1 AND holder = $2 FOR SHARE";
/// Takes the lock of a domain, and gives the number of the transaction.
const LOCK: &str = "SELECT pg_advisory_xact_lock($1, hashtext(current_schema())), pg_current_xact_id()::text, \
    substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
/// Fate of a transaction, and the timeline of who tells it.
const FATE: &str =
    "SELECT pg_xact_status($1::text::xid8), substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
/// Class of our advisory locks; the other half is the schema's name.
const LOCKS: i32 = 0x6f6e_6469;

/// The work of a read or a write. It is called again for each try, with the same data.
pub(super) type Work<D, T> =
    for<'a> fn(&'a DatabaseSession, &'a D) -> Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// Writes that exclude each other, as all writes of SQLite do: none of them sees a part of another one, and
/// nothing is published that refers to what is being evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Domain {
    /// Paths, their NARs, and their order.
    Paths,
    /// Package sets.
    Sets,
    /// Failures, the queue, tokens, and all else.
    Rest,
}

impl Domain {
    const ALL: [Self; 3] = [Self::Paths, Self::Sets, Self::Rest];

    /// Number of its lock.
    fn lock(self) -> i32 {
        LOCKS + self as i32
    }
}

/// Parts that reads and writes need; clones share them.
#[derive(Clone)]
pub(super) struct Transactor(Arc<Shared>);

struct Shared {
    connector: Connector,
    sessions: Sessions,
    feed: ChangeFeed,
    condition: IndexCondition,
    /// One write of each domain at a time: those that wait have no connection meanwhile.
    turns: BTreeMap<Domain, Mutex<()>>,
}

/// A value of a write that changes no answer.
pub(super) fn quiet<T>(value: T) -> (Changes, T) {
    (Changes::default(), value)
}

impl Transactor {
    pub(super) fn new(connector: Connector, feed: ChangeFeed) -> Result<Self, Error> {
        let sessions = Sessions::new(&connector)?;
        let turns = Domain::ALL.into_iter().map(|domain| (domain, Mutex::new(()))).collect();
        let condition = IndexCondition::default();
        Ok(Self(Arc::new(Shared { connector, sessions, feed, condition, turns })))
    }

    pub(super) fn feed(&self) -> &ChangeFeed {
        &self.0.feed
    }

    pub(super) fn condition(&self) -> &IndexCondition {
        &self.0.condition
    }

    pub(super) fn connector(&self) -> &Connector {
        &self.0.connector
    }

    pub(super) fn close(&self) {
        self.0.sessions.close();
    }

    pub(super) async fn session(&self) -> Result<DatabaseSession, Error> {
        self.0.sessions.get().await
    }

    pub(super) async fn read<D: Sync, T>(&self, data: D, work: Work<D, T>) -> Result<T, Error> {
        // Where nobody answers, whoever waits for that asks again.
        let is_live = self.0.feed.is_live();
        let mut tries = Tries::within(if is_live { READ_AGAIN_FOR } else { Duration::ZERO });
        let time = if is_live { READ_FOR } else { HANGING_READ_FOR };
        loop {
            let outcome = self.try_read(&data, work, time).await;
            self.0.condition.note_read(&outcome);
            match outcome {
                Err(error) if tries.again_after(&error).await => {}
                outcome => return outcome,
            }
        }
    }

    async fn try_read<D: Sync, T>(&self, data: &D, work: Work<D, T>, time: Duration) -> Result<T, Error> {
        let session = timeout(time, self.session()).await.map_err(|_| Error::Slow(time))??;
        let read = session.within(time, work(&session, data)).await;
        read.map_err(|interrupted| interrupted.end(session))
    }

    /// Runs a write in one transaction. It is done to its end also when the caller has gone: its changes are
    /// told before anyone can learn that it is done.
    pub(super) async fn write<D: Send + Sync + 'static, T: Send + 'static>(
        &self,
        domain: Domain,
        fence: Option<Term>,
        data: D,
        work: Work<D, (Changes, T)>,
    ) -> Result<T, Error> {
        let database = self.clone();
        let written = self.0.connector.runtime().spawn(async move {
            let outcome = database.write_here(domain, fence.as_ref(), &data, work).await;
            database.0.condition.note_write(&outcome);
            outcome
        });
        match written.await {
            Ok(outcome) => outcome,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime ends.
            Err(error) => Err(Error::Away(Box::new(error))),
        }
    }

    async fn write_here<D: Sync, T>(
        &self,
        domain: Domain,
        fence: Option<&Term>,
        data: &D,
        work: Work<D, (Changes, T)>,
    ) -> Result<T, Error> {
        let mut tries = Tries::within(WRITE_AGAIN_FOR);
        let _turn = match self.0.turns.get(&domain) {
            Some(turn) => Some(turn.lock().await),
            None => None,
        };
        loop {
            match self.try_write(domain, fence, data, work, &mut tries).await {
                Err(error) if tries.again_after(&error).await => {}
                outcome => return outcome,
            }
        }
    }

    async fn try_write<D: Sync, T>(
        &self,
        domain: Domain,
        fence: Option<&Term>,
        data: &D,
        work: Work<D, (Changes, T)>,
        tries: &mut Tries,
    ) -> Result<T, Error> {
        let session = self.session().await?;
        let transaction = async {
            session.batch(BEGIN).await?;
            let id = TransactionId::of(&session.one(LOCK, &[&domain.lock()]).await?, 1)?;
            if let Some(Term { epoch, holder }) = fence
                && session.row(FENCE, &[&signed(*epoch), &holder.0]).await?.is_none()
            {
                return Err(Error::Superseded);
            }
            let (changes, value) = work(&session, data).await?;
            let sequence = record(&session, &changes).await?;
            Ok::<_, Error>((id, sequence, changes, value))
        };
        let (id, sequence, changes, value) = match session.within(WRITE_FOR, transaction).await {
            Ok(done) => done,
            Err(Interrupted::Failed(error)) => {
                match session.within(READ_FOR, session.batch("ROLLBACK")).await {
                    Ok(()) => {}
                    Err(_) => session.discard(),
                }
                return Err(error);
            }
            Err(Interrupted::Broken(error)) => {
                session.discard();
                return Err(error);
            }
        };
        match session.within(READ_FOR, session.batch("COMMIT")).await {
            Ok(()) => drop(session),
            Err(Interrupted::Failed(error)) if error.is_rolled_back() => return Err(error),
            Err(Interrupted::Failed(error) | Interrupted::Broken(error)) => {
                session.discard();
                if !self.was_committed(&id, tries).await? {
                    return Err(error);
                }
            }
        }
        if let Some(sequence) = sequence {
            self.0.feed.committed(&self.0.sessions, sequence, changes).await;
        }
        Ok(value)
    }

    /// The fate of a transaction whose commit was not answered.
    async fn was_committed(&self, id: &TransactionId, tries: &mut Tries) -> Result<bool, Error> {
        loop {
            match self.ask_for_fate(id).await {
                // A replica was promoted. It may have got the transaction, or have given its number again.
                Ok((_, timeline)) if timeline != id.timeline => return Err(Error::Unknown),
                Ok((Some(status), _)) if status == "committed" => return Ok(true),
                Ok((Some(status), _)) if status == "aborted" => return Ok(false),
                // A number that the server has not given yet: it is another one, which lacks the transaction.
                Err(Error::Sql(_)) => return Ok(false),
                // The server has not noticed yet that we are gone, or is away.
                Ok(_) | Err(_) => {
                    if !tries.pause().await {
                        return Err(Error::Unknown);
                    }
                }
            }
        }
    }

    /// The fate of a transaction, where the server knows it, and the timeline of the server.
    async fn ask_for_fate(&self, id: &TransactionId) -> Result<(Option<String>, String), Error> {
        let session = self.session().await?;
        let asked = async {
            let row = session.one(FATE, &[&id.number]).await?;
            Ok((column(&row, 0)?, column(&row, 1)?))
        };
        // The server may hang, as it may have within the commit.
        let told = session.within(READ_FOR, asked).await;
        told.map_err(|interrupted| interrupted.end(session))
    }
}

/// Number of a transaction, which is its own on one timeline alone.
struct TransactionId {
    number: String,
    timeline: String,
}

impl TransactionId {
    /// Number and timeline in the columns of a row from `first` on.
    fn of(row: &Row, first: usize) -> Result<Self, Error> {
        Ok(Self { number: column(row, first)?, timeline: column(row, first + 1)? })
    }
}

/// Records the changes of a transaction for all servers, and gives their number. The last statement: the lock
/// of that number is held until the commit.
async fn record(session: &DatabaseSession, changes: &Changes) -> Result<Option<u64>, Error> {
    if changes.is_empty() {
        return Ok(None);
    }
    let sql = "WITH next AS (UPDATE change_position SET latest = latest + 1 RETURNING latest) \
        INSERT INTO change (sequence, added, changed, removed, everything) SELECT latest, $1, $2, $3, $4 FROM next \
        RETURNING sequence, pg_notify('ondine_' || current_schema(), sequence::text)";
    let texts = |hashes: &[narinfo::StorePathHash]| -> Vec<String> {
        hashes.iter().map(|hash| hash.as_str().to_owned()).collect()
    };
    let [added, changed, removed] =
        [&changes.added, &changes.changed, &changes.removed].map(|all| texts(all));
    let row = session.one(sql, &[&added, &changed, &removed, &changes.everything]).await?;
    Ok(Some(unsigned(column(&row, 0)?)))
}

/// Tries of one request, with growing pauses between them.
struct Tries {
    until: Instant,
    pause: Duration,
}

impl Tries {
    fn within(bound: Duration) -> Self {
        Self { until: Instant::now() + bound, pause: PAUSE }
    }

    /// Pauses before another try. False where this was the last one, or another one is of no use.
    async fn again_after(&mut self, error: &Error) -> bool {
        (error.is_away() || error.is_rolled_back()) && self.pause().await
    }

    /// False once the time is over.
    async fn pause(&mut self) -> bool {
        if Instant::now() + self.pause >= self.until {
            return false;
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        true
    }
}
