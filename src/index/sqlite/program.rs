//! Programs of packages: what was read of NARs, joined with the outputs of package sets; and what
//! descriptions of packages say.

use narinfo::NarHash;
use rusqlite::{Transaction, params};

use super::rows::corrupt;
use super::{Error, Sqlite};
use crate::index::backend::{BackendFuture, Programs};
use crate::model::{AttributeName, ProgramOwner};

/// Packages by what was read of their outputs. A path that was evicted lately can be built again. In this
/// order of tables, since SQLite would rather begin with all paths.
const BY_CONTENTS: &str = "SELECT name, attribute, system, hash FROM \
     (SELECT s.name, a.attribute, a.system, h.hash, s.id FROM program p \
      CROSS JOIN path h ON h.nar_hash = p.nar_hash \
      CROSS JOIN catalogue_output o ON o.hash = h.hash AND o.last IS NULL \
      CROSS JOIN catalogue_attribute a ON a.drv = o.drv AND a.set_id = o.set_id AND NOT a.denied \
      CROSS JOIN catalogue_set s ON s.id = a.set_id WHERE p.name = ?1 \
      UNION SELECT s.name, a.attribute, a.system, h.hash, s.id FROM program p \
      CROSS JOIN former_nar h ON h.nar_hash = p.nar_hash \
      CROSS JOIN catalogue_output o ON o.hash = h.hash AND o.last IS NULL \
      CROSS JOIN catalogue_attribute a ON a.drv = o.drv AND a.set_id = o.set_id AND NOT a.denied \
      CROSS JOIN catalogue_set s ON s.id = a.set_id WHERE p.name = ?1) owners \
     ORDER BY length(attribute), attribute, id, system, hash LIMIT ?2";
/// Packages by what their descriptions say.
const BY_DESCRIPTION: &str = "SELECT s.name, a.attribute, a.system, NULL FROM catalogue_attribute a \
     JOIN catalogue_set s ON s.id = a.set_id \
     WHERE a.program = ?1 AND a.drv IS NOT NULL AND NOT a.denied \
     ORDER BY length(a.attribute), a.attribute, s.id, a.system LIMIT ?2";
/// Names that begin so. The end of the range is behind every character.
const LIKE: &str = "SELECT DISTINCT name FROM program WHERE name >= ?1 AND name < ?1 || char(1114111) \
     UNION SELECT DISTINCT program FROM catalogue_attribute WHERE program >= ?1 AND program < ?1 || char(1114111) \
     ORDER BY 1 LIMIT ?2";

impl Programs for Sqlite {
    fn record_programs(&self, nar: NarHash, programs: Vec<String>) -> BackendFuture<'_, ()> {
        self.write(move |transaction| insert_programs(transaction, nar, &programs))
    }

    fn programs_of(&self, nar: NarHash, max: u32) -> BackendFuture<'_, Vec<String>> {
        self.read(move |connection| {
            let mut statement = connection
                .prepare_cached("SELECT name FROM program WHERE nar_hash = ?1 ORDER BY name LIMIT ?2")?;
            let names = statement.query_map(params![nar.as_bytes(), max], |row| row.get(0))?;
            Ok(names.collect::<Result<_, _>>()?)
        })
    }

    fn program_owners(&self, program: String, max: u32) -> BackendFuture<'_, Vec<ProgramOwner>> {
        self.read(move |connection| {
            let mut found = Vec::new();
            for sql in [BY_DESCRIPTION, BY_CONTENTS] {
                let mut statement = connection.prepare_cached(sql)?;
                let mut rows = statement.query(params![program, max])?;
                while let Some(row) = rows.next()? {
                    let name =
                        AttributeName { set: row.get(0)?, attribute: row.get(1)?, system: row.get(2)? };
                    let path: Option<String> = row.get(3)?;
                    let path = path.map(|hash| hash.parse().map_err(|error| corrupt(&hash, error)));
                    found.push(ProgramOwner { name, path: path.transpose()? });
                }
            }
            found.truncate(max as usize);
            Ok(found)
        })
    }

    fn programs_like(&self, beginning: String, max: u32) -> BackendFuture<'_, Vec<String>> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(LIKE)?;
            let names = statement.query_map(params![beginning, max], |row| row.get(0))?;
            Ok(names.collect::<Result<_, _>>()?)
        })
    }
}

/// Records the names of a NAR's programs.
pub(super) fn insert_programs(
    transaction: &Transaction<'_>,
    nar: NarHash,
    programs: &[String],
) -> Result<(), Error> {
    let mut insert = transaction.prepare_cached("INSERT OR IGNORE INTO program VALUES (?1, ?2)")?;
    for program in programs {
        insert.execute(params![program, nar.as_bytes()])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::sqlite::plans::scans;

    #[test]
    fn a_program_is_found_without_reading_all_paths_or_attributes() {
        for sql in [BY_CONTENTS, BY_DESCRIPTION, LIKE] {
            let mut scans = scans("", sql, params!["x", 1]);
            scans.retain(|step| step != "SCAN owners");
            assert!(scans.is_empty(), "{scans:?} in {sql}");
        }
    }
}
