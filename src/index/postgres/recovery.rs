//! Rows as another index has them, into one that is not served from yet. The latest record of a path counts.

use std::collections::BTreeMap;

use narinfo::StorePathHash;

use super::nar::upsert_nars;
use super::paths::insert_paths;
use super::rows::hash_texts;
use super::session::{DatabaseSession, column};
use super::transaction::Domain;
use super::{Error, Postgres, pushed, upstream};
use crate::index::Recorded;
use crate::index::backend::{BackendFuture, Changes, Recovered, RecoveryStore};
use crate::model::PushedDerivation;

/// Removes paths that refer to something that is not served; what refers to those is found by the next call.
const FORGET: &str = "DELETE FROM path p WHERE EXISTS \
    (SELECT 1 FROM unnest(string_to_array(p.refs, ' ')) AS each (base) WHERE NOT EXISTS \
    (SELECT 1 FROM path q WHERE q.hash = substr(each.base, 1, 32) AND q.name = substr(each.base, 34)))";

impl RecoveryStore for Postgres {
    fn restore_pushed(&self, pushed: Vec<PushedDerivation>) -> BackendFuture<'_, u64> {
        self.write(Domain::Paths, pushed, |session, pushed| {
            Box::pin(async move {
                let names: Vec<String> = pushed.iter().map(|derivation| derivation.drv.to_string()).collect();
                let sql = "SELECT base FROM unnest($1::text[]) AS pushed (base) WHERE EXISTS \
                    (SELECT 1 FROM path WHERE hash = substr(base, 1, 32) AND name = substr(base, 34))";
                let rows = session.rows(sql, &[&names]).await?;
                let served = rows.iter().map(|row| column(row, 0)).collect::<Result<Vec<String>, _>>()?;
                let restored: Vec<PushedDerivation> = pushed
                    .iter()
                    .filter(|derivation| served.contains(&derivation.drv.to_string()))
                    .cloned()
                    .collect();
                pushed::insert(session, &restored).await?;
                Ok((everything(Vec::new()), restored.len() as u64))
            })
        })
    }

    fn recover(&self, batch: Vec<Recovered>) -> BackendFuture<'_, ()> {
        self.write(Domain::Paths, batch, |session, batch| Box::pin(recover(session, batch)))
    }

    fn forget_incomplete(&self) -> BackendFuture<'_, u64> {
        self.write(Domain::Paths, (), |session, ()| {
            Box::pin(async move {
                let mut forgotten = 0;
                loop {
                    match session.execute(FORGET, &[]).await? {
                        0 => return Ok((everything(Vec::new()), forgotten)),
                        some => forgotten += some,
                    }
                }
            })
        })
    }
}

fn everything(added: Vec<StorePathHash>) -> Changes {
    Changes { added, everything: true, ..Changes::default() }
}

async fn recover(session: &DatabaseSession, batch: &[Recovered]) -> Result<(Changes, ()), Error> {
    let mut latest: BTreeMap<StorePathHash, Option<&Recorded>> = BTreeMap::new();
    for recovered in batch {
        match recovered {
            Recovered::Served(recorded) => latest.insert(recorded.path.info.path.hash(), Some(recorded)),
            Recovered::Gone(hash) => latest.insert(*hash, None),
        };
    }
    session.execute("DELETE FROM path WHERE hash = ANY($1)", &[&hash_texts(latest.keys())]).await?;
    let served: Vec<&Recorded> = latest.values().copied().flatten().collect();
    let paths: Vec<_> = served.iter().map(|recorded| recorded.path.clone()).collect();
    insert_paths(session, &paths).await?;
    let nars: Vec<_> = served.iter().filter_map(|recorded| recorded.packed).collect();
    upsert_nars(session, &nars).await?;
    let upstreams: Vec<_> = served.iter().flat_map(|recorded| &recorded.upstreams).cloned().collect();
    upstream::insert(session, &upstreams).await?;
    Ok((everything(paths.iter().map(|path| path.info.path.hash()).collect()), ()))
}
