//! Tokens of clients.

use std::time::SystemTime;

use tokio_postgres::Row;

use super::rows::{hash, text};
use super::session::column;
use super::transaction::{Domain, quiet};
use super::{Error, Postgres};
use crate::index::backend::{BackendFuture, Tokens};
use crate::index::columns::{from_unix, signed, to_unix, unsigned};
use crate::model::{NewToken, TokenRow};

impl Tokens for Postgres {
    fn add_token(&self, token: NewToken) -> BackendFuture<'_, Option<u64>> {
        self.write(Domain::Rest, token, |session, token| {
            Box::pin(async move {
                let sql = "INSERT INTO token (name, digest, rights, patterns, created_at, expires_at, queued_max) \
                    VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (name) DO NOTHING RETURNING id";
                let (name, digest) = (text(&token.name), &token.digest[..]);
                let (rights, patterns) = (token.rights.join(" "), text(&token.patterns.join("\n")));
                let (created_at, expires_at) = (to_unix(token.created_at), token.expires_at.map(to_unix));
                let queued_max = token.queued_max.map(signed);
                let row = session
                    .row(sql, &[&name, &digest, &rights, &patterns, &created_at, &expires_at, &queued_max])
                    .await?;
                Ok(quiet(row.map(|row| column(&row, 0).map(unsigned)).transpose()?))
            })
        })
    }

    fn tokens(&self) -> BackendFuture<'_, Vec<TokenRow>> {
        self.read((), |session, ()| {
            Box::pin(async move {
                let sql = "SELECT id, name, digest, rights, patterns, created_at, expires_at, queued_max, used_at \
                    FROM token ORDER BY id";
                session.rows(sql, &[]).await?.iter().map(token).collect()
            })
        })
    }

    fn remove_token(&self, id: u64) -> BackendFuture<'_, bool> {
        self.write(Domain::Rest, signed(id), |session, id| {
            Box::pin(async move {
                Ok(quiet(session.execute("DELETE FROM token WHERE id = $1", &[id]).await? > 0))
            })
        })
    }

    fn record_token_uses(&self, uses: Vec<(u64, SystemTime)>) -> BackendFuture<'_, ()> {
        self.write(Domain::Rest, uses, |session, uses| {
            Box::pin(async move {
                let sql = "UPDATE token SET used_at = used.at FROM (SELECT id, max(at) AS at \
                    FROM unnest($1::bigint[], $2::bigint[]) AS new (id, at) GROUP BY id) AS used \
                    WHERE token.id = used.id AND (used_at IS NULL OR used_at < used.at)";
                let ids: Vec<i64> = uses.iter().map(|(id, _)| signed(*id)).collect();
                let times: Vec<i64> = uses.iter().map(|(_, at)| to_unix(*at)).collect();
                session.execute(sql, &[&ids, &times]).await?;
                Ok(quiet(()))
            })
        })
    }
}

fn token(row: &Row) -> Result<TokenRow, Error> {
    let (rights, patterns): (&str, &str) = (column(row, 3)?, column(row, 4)?);
    Ok(TokenRow {
        id: unsigned(column(row, 0)?),
        token: NewToken {
            name: column(row, 1)?,
            digest: hash(row, 2)?,
            rights: rights.split_ascii_whitespace().map(str::to_owned).collect(),
            patterns: patterns.lines().map(str::to_owned).collect(),
            created_at: from_unix(column(row, 5)?),
            expires_at: column::<Option<i64>>(row, 6)?.map(from_unix),
            queued_max: column::<Option<i64>>(row, 7)?.map(unsigned),
        },
        used_at: column::<Option<i64>>(row, 8)?.map(from_unix),
    })
}
