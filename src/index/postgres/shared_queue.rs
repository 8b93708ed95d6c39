//! The queue that several servers add to: requests in the order of one sequence, the servers that hold each,
//! and endings. All writes exclude each other by the lock of their domain, so numbers follow the order of the
//! commits, and nothing is dropped that is just being asked for.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::SystemTime;

use narinfo::StorePath;
use tokio_postgres::Row;

use super::feed::QUEUE;
use super::queue::{REQUEST_COLUMNS, request};
use super::rows::{base_name, failure_row, text};
use super::session::{DatabaseSession, column};
use super::transaction::{Domain, quiet};
use super::{Error, Postgres};
use crate::index::backend::BackendFuture;
use crate::index::columns::{class_number, signed, to_unix, unsigned};
use crate::model::{EndingRow, Failure, NodeId, QueueNews, QueueOutcome, Term};

/// New requests, numbered in the order in which they were asked for.
const ADD: &str = "WITH asked AS (SELECT drv, min(place) AS place, (array_agg(asked_by ORDER BY place))[1] AS asked_by \
    FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS a (drv, asked_by, place) GROUP BY drv), \
    new AS (SELECT drv, asked_by, row_number() OVER (ORDER BY place) AS number FROM asked a \
    WHERE NOT EXISTS (SELECT 1 FROM request r WHERE r.drv = a.drv)), \
    numbers AS (UPDATE request_number SET latest = latest + (SELECT count(*) FROM new) \
    RETURNING latest - (SELECT count(*) FROM new) AS before) \
    INSERT INTO request (id, drv, started, asked_at, asked_by, due_owner, charged, earned, builder) \
    SELECT before + number, drv, false, $3, asked_by, NULL, 0, 0, $4::text FROM new, numbers";
/// Number of the request for each, in their order.
const NUMBERS: &str = "SELECT (SELECT min(id) FROM request r WHERE r.drv = a.drv) \
    FROM unnest($1::text[]) WITH ORDINALITY AS a (drv, place) ORDER BY place";
const ALIVE: &str = "INSERT INTO node (id, seen_at) VALUES ($1, clock_timestamp()) \
    ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at";
const HOLD: &str = "INSERT INTO request_node (request, node) SELECT id, $2 FROM request WHERE id = ANY($1) \
    ON CONFLICT DO NOTHING";
const LET_GO: &str = "DELETE FROM request_node WHERE node = $2 AND NOT request = ANY($1)";
const MISSING: &str = "SELECT wanted FROM unnest($1::bigint[]) AS wanted \
    WHERE NOT EXISTS (SELECT 1 FROM request WHERE id = wanted)";
/// Requests without a server that was heard of lately.
const UNHELD: &str = "SELECT id, drv FROM request WHERE id = ANY($1) AND NOT EXISTS (SELECT 1 FROM request_node h \
    JOIN node n ON n.id = h.node WHERE h.request = request.id AND n.seen_at > clock_timestamp() - interval '60 seconds')";
/// A request that has ended already is in the queue no more: whoever records that again, because no answer
/// came the first time, ends nothing twice.
const END: &str = "INSERT INTO ending (request, drv, epoch, outcome, class, cause, reason, failed_at, expires_at) \
    SELECT request, drv, $9, outcome, class, cause, reason, failed_at, expires_at \
    FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::bigint[], $8::bigint[]) \
    WITH ORDINALITY AS e (request, drv, outcome, class, cause, reason, failed_at, expires_at, place) \
    WHERE EXISTS (SELECT 1 FROM request r WHERE r.id = e.request) ORDER BY place";
const LEAVE: &str = "DELETE FROM request WHERE id = ANY($1)";
const NOTIFY: &str = "SELECT pg_notify('ondine_' || current_schema(), $1)";
/// Endings that are read at once, each with the latest position.
const ENDINGS: &str = "SELECT drv, class, cause, reason, failed_at, expires_at, sequence, request, outcome \
    FROM ending WHERE sequence > $1 ORDER BY sequence";

impl Postgres {
    pub(super) fn add_requests(
        &self,
        node: NodeId,
        asked: Vec<(StorePath, Option<IpAddr>)>,
        builder: Option<String>,
    ) -> BackendFuture<'_, Vec<u64>> {
        self.write(Domain::Rest, (node, asked, builder), |session, (node, asked, builder)| {
            Box::pin(async move {
                let drvs: Vec<String> = asked.iter().map(|(drv, _)| drv.to_string()).collect();
                let clients: Vec<Option<String>> =
                    asked.iter().map(|(_, client)| client.map(|client| client.to_string())).collect();
                session.execute(ADD, &[&drvs, &clients, &to_unix(SystemTime::now()), builder]).await?;
                let rows = session.rows(NUMBERS, &[&drvs]).await?;
                let ids: Vec<i64> = rows.iter().map(|row| column(row, 0)).collect::<Result<_, _>>()?;
                session.execute(ALIVE, &[&node.0]).await?;
                session.execute(HOLD, &[&ids, &node.0]).await?;
                session.rows(NOTIFY, &[&QUEUE]).await?;
                Ok(quiet(ids.into_iter().map(unsigned).collect()))
            })
        })
    }

    pub(super) fn hold_requests(&self, node: NodeId, requests: Vec<u64>) -> BackendFuture<'_, Vec<u64>> {
        let ids: Vec<i64> = requests.into_iter().map(signed).collect();
        self.write(Domain::Rest, (node, ids), |session, (node, ids)| {
            Box::pin(async move {
                session.execute(ALIVE, &[&node.0]).await?;
                session.execute(LET_GO, &[ids, &node.0]).await?;
                session.execute(HOLD, &[ids, &node.0]).await?;
                let rows = session.rows(MISSING, &[ids]).await?;
                let missing: Vec<i64> = rows.iter().map(|row| column(row, 0)).collect::<Result<_, _>>()?;
                Ok(quiet(missing.into_iter().map(unsigned).collect()))
            })
        })
    }

    pub(super) fn read_queue_news(
        &self,
        after_request: u64,
        after_ending: u64,
    ) -> BackendFuture<'_, QueueNews> {
        self.read((signed(after_request), signed(after_ending)), |session, (after_request, after_ending)| {
            Box::pin(async move {
                // Requests first: one that ends between the two comes with its ending.
                let sql = format!("SELECT {REQUEST_COLUMNS} FROM request WHERE id > $1 ORDER BY id");
                let rows = session.rows(&sql, &[after_request]).await?;
                let requests: Vec<_> = rows.iter().map(request).collect::<Result<_, _>>()?;
                let latest_request = requests.last().map_or(unsigned(*after_request), |request| request.id);
                let rows = session.rows(ENDINGS, &[after_ending]).await?;
                let endings = rows.iter().map(ending).collect::<Result<_, _>>()?;
                let latest_ending =
                    rows.last().map_or(Ok(*after_ending), |row| column(row, 6)).map(unsigned)?;
                Ok(QueueNews { requests, latest_request, endings, latest_ending })
            })
        })
    }

    pub(super) fn record_endings(&self, endings: Vec<EndingRow>) -> BackendFuture<'_, ()> {
        let epoch = self.fence.as_ref().map(|term| signed(term.epoch));
        self.write(Domain::Rest, (endings, epoch), |session, (endings, epoch)| {
            Box::pin(async move { end(session, endings, *epoch).await.map(quiet) })
        })
    }

    pub(super) fn record_ends_of_unheld(
        &self,
        requests: Vec<u64>,
        outcome: QueueOutcome,
    ) -> BackendFuture<'_, Vec<u64>> {
        let ids: Vec<i64> = requests.into_iter().map(signed).collect();
        let epoch = self.fence.as_ref().map(|Term { epoch, .. }| signed(*epoch));
        self.write(Domain::Rest, (ids, outcome, epoch), |session, (ids, outcome, epoch)| {
            Box::pin(async move {
                let mut endings = Vec::new();
                for row in session.rows(UNHELD, &[ids]).await? {
                    let request = unsigned(column(&row, 0)?);
                    endings.push(EndingRow { request, drv: base_name(&row, 1)?, outcome: outcome.clone() });
                }
                end(session, &endings, *epoch).await?;
                Ok(quiet(endings.into_iter().map(|ending| ending.request).collect()))
            })
        })
    }
}

async fn end(session: &DatabaseSession, endings: &[EndingRow], epoch: Option<i64>) -> Result<(), Error> {
    // The last ending of each counts.
    let latest: BTreeMap<u64, &EndingRow> = endings.iter().map(|ending| (ending.request, ending)).collect();
    if latest.is_empty() {
        return Ok(());
    }
    let failure = |ending: &&EndingRow| match &ending.outcome {
        QueueOutcome::Failed(failure) => Some(failure.clone()),
        QueueOutcome::Served | QueueOutcome::Dropped | QueueOutcome::Cancelled => None,
    };
    let failures: Vec<Option<Failure>> = latest.values().map(failure).collect();
    let failures = || failures.iter().map(Option::as_ref);
    let ids: Vec<i64> = latest.keys().copied().map(signed).collect();
    let drvs: Vec<String> = latest.values().map(|ending| ending.drv.to_string()).collect();
    let outcomes: Vec<i64> = latest.values().map(|ending| outcome_number(&ending.outcome)).collect();
    let classes: Vec<Option<i64>> = failures().map(|failed| Some(class_number(failed?.class))).collect();
    let causes: Vec<Option<String>> = failures().map(|failed| Some(failed?.cause.to_string())).collect();
    let reasons: Vec<Option<String>> = failures().map(|failed| Some(text(&failed?.reason))).collect();
    let tried: Vec<Option<i64>> = failures().map(|failed| Some(to_unix(failed?.failed_at))).collect();
    let until: Vec<Option<i64>> = failures().map(|failed| Some(to_unix(failed?.expires_at))).collect();
    session
        .execute(END, &[&ids, &drvs, &outcomes, &classes, &causes, &reasons, &tried, &until, &epoch])
        .await?;
    session.execute(LEAVE, &[&ids]).await?;
    session.rows(NOTIFY, &[&QUEUE]).await.map(drop)
}

fn outcome_number(outcome: &QueueOutcome) -> i64 {
    match outcome {
        QueueOutcome::Served => 0,
        QueueOutcome::Failed(_) => 1,
        QueueOutcome::Dropped => 2,
        QueueOutcome::Cancelled => 3,
    }
}

fn ending(row: &Row) -> Result<EndingRow, Error> {
    let outcome = match column::<i64>(row, 8)? {
        0 => QueueOutcome::Served,
        1 => QueueOutcome::Failed(failure_row(row)?),
        2 => QueueOutcome::Dropped,
        _ => QueueOutcome::Cancelled,
    };
    Ok(EndingRow { request: unsigned(column(row, 7)?), drv: base_name(row, 0)?, outcome })
}
