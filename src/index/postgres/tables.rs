//! Tables of PostgreSQL as they are copied to or from another backend.

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::session::{DatabaseSession, column};
use super::transaction::{Domain, quiet};
use super::upkeep::RECOMPUTE;
use super::{Error, Postgres};
use crate::index::backend::BackendFuture;
use crate::index::columns::{signed, unsigned};
use crate::index::tables::{Cell, CellRow, ColumnType, IndexTable, TABLES, TableStore};

/// Tables whose triggers have nothing to do while rows are inserted as they are.
const WITH_TRIGGERS: [&str; 3] = ["path", "nar", "upstream_nar"];

impl TableStore for Postgres {
    fn rows(
        &self,
        table: &'static IndexTable,
        after: Option<CellRow>,
        max: u32,
    ) -> BackendFuture<'_, Vec<CellRow>> {
        self.read((table, after, max), |session, (table, after, max)| {
            Box::pin(async move {
                let (names, keys) = (table.column_names(), table.key_names());
                let places: Vec<String> = (1..=table.key).map(|place| format!("${place}")).collect();
                let behind = match after {
                    Some(_) => format!("WHERE ({keys}) > ({})", places.join(", ")),
                    None => String::new(),
                };
                let sql = format!("SELECT {names} FROM {} {behind} ORDER BY {keys} LIMIT {max}", table.name);
                let values: Vec<&(dyn ToSql + Sync)> = after.iter().flatten().map(value).collect();
                let rows = session.rows(&sql, &values).await?;
                rows.iter().map(|row| cells(row, table.columns)).collect()
            })
        })
    }

    fn count(&self, table: &'static IndexTable) -> BackendFuture<'_, u64> {
        self.read(table, |session, table| {
            Box::pin(async move {
                let sql = format!("SELECT count(*) FROM {}", table.name);
                Ok(unsigned(column(&session.one(&sql, &[]).await?, 0)?))
            })
        })
    }

    fn last_key(&self, table: &'static IndexTable) -> BackendFuture<'_, Option<CellRow>> {
        self.read(table, |session, table| {
            Box::pin(async move {
                let keys: Vec<String> =
                    table.key_columns().iter().map(|(name, _)| format!("{name} DESC")).collect();
                let (names, order) = (table.key_names(), keys.join(", "));
                let sql = format!("SELECT {names} FROM {} ORDER BY {order} LIMIT 1", table.name);
                let row = session.row(&sql, &[]).await?;
                row.map(|row| cells(&row, table.key_columns())).transpose()
            })
        })
    }

    fn insert(&self, table: &'static IndexTable, rows: Vec<CellRow>) -> BackendFuture<'_, ()> {
        self.write(Domain::Paths, (table, rows), |session, (table, rows)| {
            Box::pin(async move { insert(session, table, rows).await.map(quiet) })
        })
    }

    fn request_number(&self) -> BackendFuture<'_, u64> {
        self.read((), |session, ()| {
            Box::pin(async move {
                Ok(unsigned(column(&session.one("SELECT latest FROM request_number", &[]).await?, 0)?))
            })
        })
    }

    fn begin_copy(&self, source: String) -> BackendFuture<'_, bool> {
        self.write(Domain::Paths, source, |session, source| {
            Box::pin(async move {
                let sql = "SELECT obj_description('path'::regclass, 'pg_class')";
                let marked: Option<String> = column(&session.one(sql, &[]).await?, 0)?;
                if marked.as_deref() == Some(mark(source).as_str()) {
                    return Ok(quiet(true));
                }
                for table in TABLES {
                    let sql = format!("SELECT EXISTS (SELECT 1 FROM {})", table.name);
                    if column(&session.one(&sql, &[]).await?, 0)? {
                        return Ok(quiet(false));
                    }
                }
                let quoted = mark(source).replace('\'', "''");
                session.batch(&format!("COMMENT ON TABLE path IS '{quoted}'")).await?;
                set_triggers(session, "DISABLE").await?;
                Ok(quiet(true))
            })
        })
    }

    fn finish_copy(&self, request_number: u64) -> BackendFuture<'_, ()> {
        self.write(Domain::Paths, signed(request_number), |session, request_number| {
            Box::pin(async move {
                set_triggers(session, "ENABLE").await?;
                for table in TABLES.iter().filter(|table| table.is_numbered) {
                    let sql = format!(
                        "SELECT setval(pg_get_serial_sequence('{name}', 'id'), coalesce(max(id), 0) + 1, false) FROM {name}",
                        name = table.name
                    );
                    session.row(&sql, &[]).await?;
                }
                session.execute(RECOMPUTE, &[]).await?;
                session.execute("UPDATE request_number SET latest = $1", &[request_number]).await?;
                session.batch("COMMENT ON TABLE path IS NULL").await?;
                let everything = crate::index::backend::Changes { everything: true, ..Default::default() };
                Ok((everything, ()))
            })
        })
    }
}

/// Comment on the table of paths as long as a copy is not whole.
fn mark(source: &str) -> String {
    format!("copying {source}")
}

async fn set_triggers(session: &DatabaseSession, word: &str) -> Result<(), Error> {
    for table in WITH_TRIGGERS {
        session.batch(&format!("ALTER TABLE {table} {word} TRIGGER USER")).await?;
    }
    Ok(())
}

async fn insert(session: &DatabaseSession, table: &IndexTable, rows: &[CellRow]) -> Result<(), Error> {
    let kind = |kind: ColumnType| match kind {
        ColumnType::Integer => "bigint",
        ColumnType::Boolean => "boolean",
        ColumnType::Text => "text",
        ColumnType::Bytes => "bytea",
    };
    let arrays = table.columns.iter().enumerate();
    let arrays: Vec<String> =
        arrays.map(|(index, (_, column))| format!("${}::{}[]", index + 1, kind(*column))).collect();
    let sql = format!(
        "INSERT INTO {} ({}) SELECT * FROM unnest({})",
        table.name,
        table.column_names(),
        arrays.join(", ")
    );
    let columns: Vec<Box<dyn ToSql + Sync + Send>> =
        table.columns.iter().enumerate().map(|(index, (_, kind))| array(rows, index, *kind)).collect();
    let values: Vec<&(dyn ToSql + Sync)> =
        columns.iter().map(|column| &**column as &(dyn ToSql + Sync)).collect();
    session.execute(&sql, &values).await.map(drop)
}

/// A column of many rows.
fn array(rows: &[CellRow], index: usize, kind: ColumnType) -> Box<dyn ToSql + Sync + Send> {
    fn all<T>(rows: &[CellRow], index: usize, of: fn(&Cell) -> Option<T>) -> Vec<Option<T>> {
        rows.iter().map(|row| row.get(index).and_then(of)).collect()
    }
    match kind {
        ColumnType::Integer => Box::new(all(rows, index, |cell| match cell {
            Cell::Integer(number) => Some(*number),
            _ => None,
        })),
        ColumnType::Boolean => Box::new(all(rows, index, |cell| match cell {
            Cell::Boolean(is_true) => Some(*is_true),
            _ => None,
        })),
        ColumnType::Text => Box::new(all(rows, index, |cell| match cell {
            Cell::Text(text) => Some(super::rows::text(text)),
            _ => None,
        })),
        ColumnType::Bytes => Box::new(all(rows, index, |cell| match cell {
            Cell::Bytes(bytes) => Some(bytes.clone()),
            _ => None,
        })),
    }
}

fn value(cell: &Cell) -> &(dyn ToSql + Sync) {
    match cell {
        Cell::Null => &None::<i64>,
        Cell::Integer(number) => number,
        Cell::Boolean(is_true) => is_true,
        Cell::Text(text) => text,
        Cell::Bytes(bytes) => bytes,
    }
}

fn cells(row: &Row, columns: &[(&str, ColumnType)]) -> Result<CellRow, Error> {
    let cell = |(index, (_, kind)): (usize, &(&str, ColumnType))| {
        Ok(match kind {
            ColumnType::Integer => column::<Option<i64>>(row, index)?.map(Cell::Integer),
            ColumnType::Boolean => column::<Option<bool>>(row, index)?.map(Cell::Boolean),
            ColumnType::Text => column::<Option<String>>(row, index)?.map(Cell::Text),
            ColumnType::Bytes => column::<Option<Vec<u8>>>(row, index)?.map(Cell::Bytes),
        }
        .unwrap_or(Cell::Null))
    };
    columns.iter().enumerate().map(cell).collect()
}
