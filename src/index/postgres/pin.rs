//! Pins: paths that are retained with their closures, however long nobody uses them, and served or not.

use std::time::SystemTime;

use narinfo::StorePathHash;

use super::rows::{base_name, hash_texts, path_hash, text};
use super::session::{DatabaseSession, column};
use super::transaction::{Domain, quiet};
use super::{Error, Postgres};
use crate::index::backend::{BackendFuture, Pins};
use crate::index::columns::{from_unix, to_unix, unsigned};
use crate::model::PinRow;

impl Pins for Postgres {
    fn pin(&self, name: String, hashes: Vec<StorePathHash>) -> BackendFuture<'_, ()> {
        let now = SystemTime::now();
        let pin = |hash| PinRow { hash, name: name.clone(), pinned_at: now, path: None };
        self.restore_pins(hashes.into_iter().map(pin).collect())
    }

    fn unpin(&self, name: String, hash: Option<StorePathHash>) -> BackendFuture<'_, usize> {
        self.write(Domain::Paths, (text(&name), hash), |session, (name, hash)| {
            Box::pin(async move {
                let hash = hash.as_ref().map(StorePathHash::as_str);
                let removed =
                    session.execute("DELETE FROM pin WHERE name = $1 OR hash = $2", &[name, &hash]).await?;
                Ok(quiet(usize::try_from(removed).unwrap_or(usize::MAX)))
            })
        })
    }

    fn pins(&self) -> BackendFuture<'_, Vec<PinRow>> {
        self.read((), |session, ()| {
            Box::pin(async move {
                let sql = "SELECT pin.hash, pin.name, pin.pinned_at, p.hash || '-' || p.name \
                    FROM pin LEFT JOIN path p ON p.hash = pin.hash ORDER BY pin.name, pin.hash";
                let mut found = Vec::new();
                for row in session.rows(sql, &[]).await? {
                    let path: Option<&str> = column(&row, 3)?;
                    found.push(PinRow {
                        hash: path_hash(&row, 0)?,
                        name: column(&row, 1)?,
                        pinned_at: from_unix(column(&row, 2)?),
                        path: path.map(|_| base_name(&row, 3)).transpose()?,
                    });
                }
                Ok(found)
            })
        })
    }

    fn pin_count(&self) -> BackendFuture<'_, u64> {
        self.read((), |session, ()| {
            Box::pin(
                async move { Ok(unsigned(column(&session.one("SELECT count(*) FROM pin", &[]).await?, 0)?)) },
            )
        })
    }

    fn restore_pins(&self, pins: Vec<PinRow>) -> BackendFuture<'_, ()> {
        self.write(Domain::Paths, pins, |session, pins| {
            Box::pin(async move { insert(session, pins).await.map(quiet) })
        })
    }
}

/// Inserts pins; those that are there keep their time.
async fn insert(session: &DatabaseSession, pins: &[PinRow]) -> Result<(), Error> {
    let sql = "INSERT INTO pin (hash, name, pinned_at) SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) \
        ON CONFLICT DO NOTHING";
    let hashes = hash_texts(pins.iter().map(|pin| &pin.hash));
    let names: Vec<String> = pins.iter().map(|pin| text(&pin.name)).collect();
    let times: Vec<i64> = pins.iter().map(|pin| to_unix(pin.pinned_at)).collect();
    session.execute(sql, &[&hashes, &names, &times]).await.map(drop)
}
