//! Plans of queries, to see that none of them reads more than it needs.

use rusqlite::{Connection, Params};

use crate::index::Index;

/// Steps of SQLite's plan for a query of a new index, on a connection with this setup.
pub(super) fn steps(setup: &str, sql: &str, params: impl Params) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("index");
    drop(Index::open(&file).expect("opened"));
    let connection = Connection::open(&file).expect("opened");
    connection.execute_batch(setup).expect("set up");
    let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect("SQL");
    let steps = plan.query_map(params, |row| row.get("detail")).expect("a plan");
    steps.map(|step| step.expect("a step")).collect()
}

/// Those of them that read all of something.
pub(super) fn scans(setup: &str, sql: &str, params: impl Params) -> Vec<String> {
    let mut steps = steps(setup, sql, params);
    steps.retain(|step| step.starts_with("SCAN"));
    steps
}
