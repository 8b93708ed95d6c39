//! The queue as it is kept over a restart: the requests in their order, how long builds took, how often each
//! attribute of a package set was asked for, and how long was pre-built.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_postgres::Row;

use super::rows::{base_name, text};
use super::session::{DatabaseSession, Params, column};
use super::transaction::{Domain, quiet};
use super::{Error, Postgres};
use crate::index::backend::{BackendFuture, DemandStore, QueueLog};
use crate::index::columns::{DamagedRow, from_unix, millis, signed, to_unix, unsigned};
use crate::model::{AttributeName, DemandRow, DurationRow, RequestRow};

/// Columns of a request, as [`request`] reads them.
pub(super) const REQUEST_COLUMNS: &str =
    "id, drv, started, asked_at, asked_by, due_owner, charged, earned, builder";
/// Durations that are kept of each kind of work.
const DURATIONS_KEPT: i64 = 5;

impl QueueLog for Postgres {
    fn requests(&self) -> BackendFuture<'_, (Vec<RequestRow>, u64)> {
        self.read((), |session, ()| {
            Box::pin(async move {
                let sql = format!("SELECT {REQUEST_COLUMNS} FROM request ORDER BY id");
                let rows = session.rows(&sql, &[]).await?;
                let found = rows.iter().map(request).collect::<Result<_, _>>()?;
                let latest = session.one("SELECT latest FROM request_number", &[]).await?;
                Ok((found, unsigned(column(&latest, 0)?)))
            })
        })
    }

    fn record_queue(
        &self,
        requests: Vec<RequestRow>,
        gone: Vec<u64>,
        durations: Vec<DurationRow>,
    ) -> BackendFuture<'_, ()> {
        let gone: Vec<i64> = gone.into_iter().map(signed).collect();
        // What the leader of several servers has in its queue was asked for in the table, and may have been
        // cancelled there.
        let is_shared = self.fence.is_some();
        let data = (requests, gone, durations, is_shared);
        self.write(Domain::Rest, data, |session, (requests, gone, durations, is_shared)| {
            Box::pin(async move {
                if !requests.is_empty() {
                    record_requests(session, requests, *is_shared).await?;
                }
                if !gone.is_empty() {
                    session.execute("DELETE FROM request WHERE id = ANY($1)", &[gone]).await?;
                }
                if !durations.is_empty() {
                    record_durations(session, durations).await?;
                }
                Ok(quiet(()))
            })
        })
    }

    fn durations(&self) -> BackendFuture<'_, Vec<DurationRow>> {
        self.read((), |session, ()| {
            Box::pin(async move {
                let rows = session.rows("SELECT work, millis, built FROM duration ORDER BY id", &[]).await?;
                let duration = |row: &Row| {
                    let took = Duration::from_millis(unsigned(column(row, 1)?));
                    Ok(DurationRow { work: column(row, 0)?, took, built: column(row, 2)? })
                };
                rows.iter().map(duration).collect()
            })
        })
    }
}

pub(super) fn request(row: &Row) -> Result<RequestRow, Error> {
    let (drv, asked_by): (&str, Option<&str>) = (column(row, 1)?, column(row, 4)?);
    let asked_by =
        asked_by.map(|address| address.parse().map_err(|e| DamagedRow::new(drv, e))).transpose()?;
    let duration = |index| Ok::<_, Error>(Duration::from_millis(unsigned(column(row, index)?)));
    Ok(RequestRow {
        id: unsigned(column(row, 0)?),
        drv: base_name(row, 1)?,
        started: column(row, 2)?,
        asked_at: from_unix(column(row, 3)?),
        asked_by,
        due_owner: column::<Option<i64>>(row, 5)?.map(unsigned),
        charged: duration(6)?,
        earned: duration(7)?,
        builder: column(row, 8)?,
    })
}

async fn record_requests(
    session: &DatabaseSession,
    requests: &[RequestRow],
    only_known: bool,
) -> Result<(), Error> {
    // The last row of each counts.
    let latest: BTreeMap<u64, &RequestRow> = requests.iter().map(|request| (request.id, request)).collect();
    let sql = "INSERT INTO request (id, drv, started, asked_at, asked_by, due_owner, charged, earned, builder) \
        SELECT * FROM unnest($1::bigint[], $2::text[], $3::boolean[], $4::bigint[], $5::text[], $6::bigint[], \
        $7::bigint[], $8::bigint[], $9::text[]) AS new (id) \
        WHERE NOT $10 OR EXISTS (SELECT 1 FROM request r WHERE r.id = new.id) \
        ON CONFLICT (id) DO UPDATE SET drv = excluded.drv, started = excluded.started, asked_at = excluded.asked_at, \
        asked_by = excluded.asked_by, due_owner = excluded.due_owner, charged = excluded.charged, \
        earned = excluded.earned, builder = excluded.builder";
    let rows = || latest.values();
    let ids: Vec<i64> = rows().map(|request| signed(request.id)).collect();
    let drvs: Vec<String> = rows().map(|request| request.drv.to_string()).collect();
    let started: Vec<bool> = rows().map(|request| request.started).collect();
    let times: Vec<i64> = rows().map(|request| to_unix(request.asked_at)).collect();
    let clients: Vec<Option<String>> =
        rows().map(|request| request.asked_by.map(|address| address.to_string())).collect();
    let owners: Vec<Option<i64>> = rows().map(|request| request.due_owner.map(signed)).collect();
    let charged: Vec<i64> = rows().map(|request| millis(request.charged)).collect();
    let earned: Vec<i64> = rows().map(|request| millis(request.earned)).collect();
    let builders: Vec<Option<&str>> = rows().map(|request| request.builder.as_deref()).collect();
    let values: Params<'_> =
        &[&ids, &drvs, &started, &times, &clients, &owners, &charged, &earned, &builders, &only_known];
    session.execute(sql, values).await?;
    let sql = "UPDATE request_number SET latest = greatest(latest, $1)";
    session.execute(sql, &[&ids.into_iter().max().unwrap_or_default()]).await.map(drop)
}

async fn record_durations(session: &DatabaseSession, durations: &[DurationRow]) -> Result<(), Error> {
    let sql = "INSERT INTO duration (work, millis, built) SELECT work, millis, built \
        FROM unnest($1::text[], $2::bigint[], $3::boolean[]) WITH ORDINALITY AS new (work, millis, built, place) \
        ORDER BY place";
    let works: Vec<String> = durations.iter().map(|duration| text(&duration.work)).collect();
    let times: Vec<i64> = durations.iter().map(|duration| millis(duration.took)).collect();
    let built: Vec<bool> = durations.iter().map(|duration| duration.built).collect();
    session.execute(sql, &[&works, &times, &built]).await?;
    let sql = "DELETE FROM duration USING (SELECT id, row_number() OVER (PARTITION BY work ORDER BY id DESC) AS place \
        FROM duration WHERE work = ANY($1)) AS ordered WHERE ordered.id = duration.id AND ordered.place > $2";
    session.execute(sql, &[&works, &DURATIONS_KEPT]).await.map(drop)
}

impl DemandStore for Postgres {
    fn demand(&self) -> BackendFuture<'_, Vec<DemandRow>> {
        self.read((), |session, ()| {
            Box::pin(async move {
                let sql = "SELECT set_name, attribute, system, day, asked FROM demand \
                    ORDER BY day, set_name, attribute, system";
                let demand = |row: &Row| {
                    let (set, attribute, system) = (column(row, 0)?, column(row, 1)?, column(row, 2)?);
                    let asked = unsigned(column(row, 4)?);
                    Ok(DemandRow {
                        name: AttributeName { set, attribute, system },
                        day: unsigned(column(row, 3)?),
                        asked: u32::try_from(asked).unwrap_or(u32::MAX),
                    })
                };
                session.rows(sql, &[]).await?.iter().map(demand).collect()
            })
        })
    }

    fn record_demand(&self, rows: Vec<DemandRow>, first_day: u64) -> BackendFuture<'_, ()> {
        self.write(Domain::Rest, (rows, signed(first_day)), |session, (rows, first_day)| {
            Box::pin(async move {
                session.execute("DELETE FROM demand WHERE day < $1", &[first_day]).await?;
                let latest: BTreeMap<_, _> =
                    rows.iter().map(|row| ((row.day, &row.name), row.asked)).collect();
                let sql = "INSERT INTO demand (day, set_name, attribute, system, asked) \
                    SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::bigint[]) \
                    ON CONFLICT (day, set_name, attribute, system) DO UPDATE SET asked = excluded.asked";
                let days: Vec<i64> = latest.keys().map(|(day, _)| signed(*day)).collect();
                let sets: Vec<&String> = latest.keys().map(|(_, name)| &name.set).collect();
                let attributes: Vec<String> = latest.keys().map(|(_, name)| text(&name.attribute)).collect();
                let systems: Vec<&String> = latest.keys().map(|(_, name)| &name.system).collect();
                let asked: Vec<i64> = latest.values().map(|asked| i64::from(*asked)).collect();
                session.execute(sql, &[&days, &sets, &attributes, &systems, &asked]).await?;
                Ok(quiet(()))
            })
        })
    }

    fn prebuilt(&self) -> BackendFuture<'_, (u64, Duration)> {
        self.read((), |session, ()| {
            Box::pin(async move {
                let Some(row) = session.row("SELECT day, millis FROM prebuilt", &[]).await? else {
                    return Ok((0, Duration::ZERO));
                };
                Ok((unsigned(column(&row, 0)?), Duration::from_millis(unsigned(column(&row, 1)?))))
            })
        })
    }

    fn record_prebuilt(&self, day: u64, spent: Duration) -> BackendFuture<'_, ()> {
        self.write(Domain::Rest, (signed(day), millis(spent)), |session, (day, spent)| {
            Box::pin(async move {
                session.execute("DELETE FROM prebuilt", &[]).await?;
                session.execute("INSERT INTO prebuilt (day, millis) VALUES ($1, $2)", &[day, spent]).await?;
                Ok(quiet(()))
            })
        })
    }
}
