//! Tokens of clients. They are few, and all of them are read at once.

use std::time::SystemTime;

use rusqlite::{OptionalExtension, params};

use super::Sqlite;
use super::rows::{from_unix, signed, to_unix, unsigned};
use crate::index::backend::{BackendFuture, Tokens};
use crate::model::{NewToken, TokenRow};

impl Tokens for Sqlite {
    fn add_token(&self, token: NewToken) -> BackendFuture<'_, Option<u64>> {
        self.write(move |transaction| {
            let id: Option<i64> = transaction
                .query_row(
                    "INSERT INTO token (name, digest, rights, patterns, created_at, expires_at, queued_max) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (name) DO NOTHING RETURNING id",
                    params![
                        token.name,
                        token.digest,
                        token.rights.join(" "),
                        token.patterns.join("\n"),
                        to_unix(token.created_at),
                        token.expires_at.map(to_unix),
                        token.queued_max.map(signed),
                    ],
                    |row| row.get(0),
                )
                .optional()?;
            Ok(id.map(unsigned))
        })
    }

    fn tokens(&self) -> BackendFuture<'_, Vec<TokenRow>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT id, name, digest, rights, patterns, created_at, expires_at, queued_max, used_at \
                     FROM token ORDER BY id",
            )?;
            let rows = statement.query_map([], |row| {
                let (rights, patterns): (String, String) = (row.get(3)?, row.get(4)?);
                Ok(TokenRow {
                    id: unsigned(row.get(0)?),
                    token: NewToken {
                        name: row.get(1)?,
                        digest: row.get(2)?,
                        rights: rights.split_ascii_whitespace().map(str::to_owned).collect(),
                        patterns: patterns.lines().map(str::to_owned).collect(),
                        created_at: from_unix(row.get(5)?),
                        expires_at: row.get::<_, Option<i64>>(6)?.map(from_unix),
                        queued_max: row.get::<_, Option<i64>>(7)?.map(unsigned),
                    },
                    used_at: row.get::<_, Option<i64>>(8)?.map(from_unix),
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    fn remove_token(&self, id: u64) -> BackendFuture<'_, bool> {
        self.write(move |transaction| {
            Ok(transaction.execute("DELETE FROM token WHERE id = ?1", [signed(id)])? > 0)
        })
    }

    fn record_token_uses(&self, uses: Vec<(u64, SystemTime)>) -> BackendFuture<'_, ()> {
        self.write(move |transaction| {
            let mut update = transaction.prepare_cached(
                "UPDATE token SET used_at = ?2 WHERE id = ?1 AND (used_at IS NULL OR used_at < ?2)",
            )?;
            for (id, at) in &uses {
                update.execute(params![signed(*id), to_unix(*at)])?;
            }
            Ok(())
        })
    }
}
