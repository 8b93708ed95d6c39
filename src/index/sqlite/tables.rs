//! Tables of SQLite as they are copied to or from another backend.

use rusqlite::types::{Value, ValueRef};
use rusqlite::{OptionalExtension, Row, params_from_iter};

use super::stored::COUNTED;
use super::writer::drop_triggers;
use super::{Error, Sqlite, rows};
use crate::index::backend::BackendFuture;
use crate::index::tables::{Cell, CellRow, ColumnType, IndexTable, TableStore};

impl TableStore for Sqlite {
    fn rows(
        &self,
        table: &'static IndexTable,
        after: Option<CellRow>,
        max: u32,
    ) -> BackendFuture<'_, Vec<CellRow>> {
        self.read(move |connection| {
            let (names, keys) = (table.column_names(), table.key_names());
            let places: Vec<String> = (1..=table.key).map(|place| format!("?{place}")).collect();
            let behind = match after {
                Some(_) => format!("WHERE ({keys}) > ({})", places.join(", ")),
                None => String::new(),
            };
            let sql = format!("SELECT {names} FROM {} {behind} ORDER BY {keys} LIMIT {max}", table.name);
            let mut statement = connection.prepare_cached(&sql)?;
            let after = after.into_iter().flatten().map(value);
            let mut found = Vec::new();
            let mut rows = statement.query(params_from_iter(after))?;
            while let Some(row) = rows.next()? {
                found.push(cells(row, table.columns)?);
            }
            Ok(found)
        })
    }

    fn count(&self, table: &'static IndexTable) -> BackendFuture<'_, u64> {
        self.read(move |connection| {
            let sql = format!("SELECT count(*) FROM {}", table.name);
            Ok(rows::unsigned(connection.query_row(&sql, [], |row| row.get(0))?))
        })
    }

    fn last_key(&self, table: &'static IndexTable) -> BackendFuture<'_, Option<CellRow>> {
        self.read(move |connection| {
            let keys: Vec<String> =
                table.key_columns().iter().map(|(name, _)| format!("{name} DESC")).collect();
            let (names, order) = (table.key_names(), keys.join(", "));
            let sql = format!("SELECT {names} FROM {} ORDER BY {order} LIMIT 1", table.name);
            let mut statement = connection.prepare(&sql)?;
            let mut rows = statement.query([])?;
            rows.next()?.map(|row| cells(row, table.key_columns())).transpose()
        })
    }

    fn insert(&self, table: &'static IndexTable, rows: Vec<CellRow>) -> BackendFuture<'_, ()> {
        self.write(move |transaction| {
            let places = vec!["?"; table.columns.len()].join(", ");
            let sql = format!("INSERT INTO {} ({}) VALUES ({places})", table.name, table.column_names());
            let mut insert = transaction.prepare_cached(&sql)?;
            for row in rows {
                insert.execute(params_from_iter(row.into_iter().map(value)))?;
            }
            Ok(())
        })
    }

    fn request_number(&self) -> BackendFuture<'_, u64> {
        self.read(|connection| {
            let sql = "SELECT seq FROM sqlite_sequence WHERE name = 'request'";
            let last: Option<i64> = connection.query_row(sql, [], |row| row.get(0)).optional()?;
            Ok(rows::unsigned(last.unwrap_or(0)))
        })
    }

    fn begin_copy(&self, _: String) -> BackendFuture<'_, bool> {
        self.write(|transaction| {
            // They have nothing to do while rows are inserted as they are.
            drop_triggers(transaction)?;
            Ok(true)
        })
    }

    fn finish_copy(&self, request_number: u64) -> BackendFuture<'_, ()> {
        self.write(move |transaction| {
            transaction.execute_batch(include_str!("triggers.sql"))?;
            transaction.execute_batch(&format!("DELETE FROM stored; INSERT INTO stored {}", COUNTED))?;
            transaction.execute("DELETE FROM sqlite_sequence WHERE name = 'request'", [])?;
            transaction.execute(
                "INSERT INTO sqlite_sequence (name, seq) VALUES ('request', ?1)",
                [rows::signed(request_number)],
            )?;
            Ok(())
        })
    }
}

/// The columns of a row, as types of their table.
fn cells(row: &Row<'_>, columns: &[(&str, ColumnType)]) -> Result<CellRow, Error> {
    let cell = |(index, (_, kind)): (usize, &(&str, ColumnType))| {
        Ok(match (row.get_ref(index)?, kind) {
            (ValueRef::Integer(number), ColumnType::Boolean) => Cell::Boolean(number != 0),
            (ValueRef::Integer(number), _) => Cell::Integer(number),
            (ValueRef::Text(text), _) => Cell::Text(String::from_utf8_lossy(text).into_owned()),
            (ValueRef::Blob(bytes), _) => Cell::Bytes(bytes.to_vec()),
            _ => Cell::Null,
        })
    };
    columns.iter().enumerate().map(cell).collect()
}

fn value(cell: Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Integer(number) => Value::Integer(number),
        Cell::Boolean(is_true) => Value::Integer(is_true.into()),
        Cell::Text(text) => Value::Text(text),
        Cell::Bytes(bytes) => Value::Blob(bytes),
    }
}
