//! Tables that every backend in SQL has, as the copy of an index from one to the other reads and writes them.
//! Tables that follow from others are left out: totals are computed, generations under way begin anew.

use super::backend::BackendFuture;

/// Type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ColumnType {
    Integer,
    Boolean,
    Text,
    Bytes,
}

/// Value of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    Null,
    Integer(i64),
    Boolean(bool),
    Text(String),
    Bytes(Vec<u8>),
}

/// A row, in the order of the table's columns.
pub(super) type CellRow = Vec<Cell>;

/// A table.
pub(super) struct IndexTable {
    pub(super) name: &'static str,
    pub(super) columns: &'static [(&'static str, ColumnType)],
    /// Number of columns that are its key: the first ones.
    pub(super) key: usize,
    /// True where rows are numbered, and no number is given twice.
    pub(super) is_numbered: bool,
}

impl IndexTable {
    /// Names of its columns.
    pub(super) fn column_names(&self) -> String {
        let names: Vec<&str> = self.columns.iter().map(|(name, _)| *name).collect();
        names.join(", ")
    }

    /// Names of the columns of its key.
    pub(super) fn key_names(&self) -> String {
        let names: Vec<&str> = self.columns[..self.key].iter().map(|(name, _)| *name).collect();
        names.join(", ")
    }

    /// The columns of its key.
    pub(super) fn key_columns(&self) -> &'static [(&'static str, ColumnType)] {
        &self.columns[..self.key]
    }
}

/// A backend whose tables can be copied. While it is written to, nobody else may use it.
pub(super) trait TableStore: Sync {
    /// Rows behind a key, in the order of keys; a batch, empty at the end.
    fn rows(
        &self,
        table: &'static IndexTable,
        after: Option<CellRow>,
        max: u32,
    ) -> BackendFuture<'_, Vec<CellRow>>;

    /// Number of rows.
    fn count(&self, table: &'static IndexTable) -> BackendFuture<'_, u64>;

    /// The last key, behind which a copy that was interrupted goes on.
    fn last_key(&self, table: &'static IndexTable) -> BackendFuture<'_, Option<CellRow>>;

    /// Inserts rows as they are: nothing follows from them.
    fn insert(&self, table: &'static IndexTable, rows: Vec<CellRow>) -> BackendFuture<'_, ()>;

    /// The highest number that any request ever had.
    fn request_number(&self) -> BackendFuture<'_, u64>;

    /// Marks an empty index as one that is being copied from `source`. False where it is not empty, and no
    /// copy of that one.
    fn begin_copy(&self, source: String) -> BackendFuture<'_, bool>;

    /// Makes a whole copy an index: numbers go on where those of the source were.
    fn finish_copy(&self, request_number: u64) -> BackendFuture<'_, ()>;
}

macro_rules! table {
    ($name:literal, $key:literal, $numbered:literal, $($column:literal $kind:ident),*) => {
        IndexTable {
            name: $name,
            columns: &[$(($column, ColumnType::$kind)),*],
            key: $key,
            is_numbered: $numbered,
        }
    };
}

/// All tables that are copied, in this order: what others refer to comes first.
pub(super) static TABLES: &[IndexTable] = &[
    table!(
        "path", 1, false, "hash" Text, "name" Text, "nar_hash" Bytes, "nar_size" Integer, "refs" Text,
        "deriver" Text, "ca" Text, "sigs" Text, "added_at" Integer, "built" Boolean
    ),
    table!("eviction_order", 1, false, "hash" Text, "needed_at" Integer),
    table!(
        "nar", 1, false, "nar_hash" Bytes, "file_hash" Bytes, "file_size" Integer, "packed_at" Integer
    ),
    table!(
        "upstream_nar", 2, false, "nar_hash" Bytes, "upstream" Text, "url" Text, "compression" Text,
        "file_hash" Bytes, "file_size" Integer, "redirect" Boolean
    ),
    table!("upstream", 1, false, "url" Text, "redirect" Boolean),
    table!("to_pack", 1, false, "nar_hash" Bytes),
    table!(
        "comparison", 1, false, "hash" Text, "looked_at" Integer, "upstream" Text, "nar_hash" Bytes,
        "same" Boolean
    ),
    table!("realisation", 1, false, "file" Text, "path" Text, "body" Text, "added_at" Integer),
    table!("pin", 2, false, "hash" Text, "name" Text, "pinned_at" Integer),
    table!("former_nar", 1, false, "nar_hash" Bytes, "hash" Text, "gone_at" Integer),
    table!(
        "failure", 1, false, "drv" Text, "class" Integer, "cause" Text, "reason" Text, "failed_at" Integer,
        "expires_at" Integer
    ),
    table!(
        "request", 1, false, "id" Integer, "drv" Text, "started" Boolean, "asked_at" Integer,
        "asked_by" Text, "due_owner" Integer, "charged" Integer, "earned" Integer, "builder" Text
    ),
    table!("duration", 1, true, "id" Integer, "work" Text, "millis" Integer, "built" Boolean),
    table!(
        "catalogue_set", 1, true, "id" Integer, "name" Text, "tried_at" Integer, "failure" Text
    ),
    table!(
        "catalogue_generation", 1, true, "id" Integer, "set_id" Integer, "made_by" Text, "holder" Text,
        "made_at" Integer, "replaced_at" Integer, "attributes" Integer, "denied" Integer,
        "errors" Integer, "derivations" Integer
    ),
    table!(
        "catalogue_attribute", 3, false, "set_id" Integer, "attribute" Text, "system" Text, "drv" Text,
        "error" Text, "denied" Boolean, "output" Text, "program" Text
    ),
    table!(
        "catalogue_version", 4, false, "set_id" Integer, "attribute" Text, "system" Text, "first" Integer,
        "drv" Text, "since" Integer, "last" Integer
    ),
    table!(
        "catalogue_output", 4, false, "hash" Text, "drv" Text, "set_id" Integer, "first" Integer,
        "last" Integer, "denied" Boolean
    ),
    table!(
        "demand", 4, false, "day" Integer, "set_name" Text, "attribute" Text, "system" Text,
        "asked" Integer
    ),
    table!("prebuilt", 1, false, "day" Integer, "millis" Integer),
    table!(
        "token", 1, true, "id" Integer, "name" Text, "digest" Bytes, "rights" Text, "patterns" Text,
        "created_at" Integer, "expires_at" Integer, "queued_max" Integer, "used_at" Integer
    ),
    table!(
        "pushed_derivation", 1, false, "hash" Text, "name" Text, "input_hash" Bytes,
        "is_fixed" Boolean, "used_at" Integer
    ),
    table!("pushed_output", 3, false, "hash" Text, "drv" Text, "output" Text, "name" Text),
    table!("program", 2, false, "name" Text, "nar_hash" Bytes),
    table!("reference", 2, false, "target" Text, "source" Text),
    table!(
        "history", 1, false, "hour" Integer, "paths" Integer, "nars" Integer, "nar_bytes" Integer,
        "hits" Integer, "misses" Integer, "built" Integer, "failed" Integer, "builds" Integer,
        "build_millis" Integer, "waits" Integer, "wait_millis" Integer, "joined" Integer,
        "prebuilds" Integer, "prebuild_millis" Integer, "taken_over" Integer
    ),
];
