//! Table of the measurements at each size, with their growth and its targets.

use serde_json::{Value, json};

use crate::serving::report::Spread;

/// Factor by which the largest index may be worse than the smallest.
const GROWTH_MAX: f64 = 1.15;

/// Target of a row.
#[derive(Clone, Copy)]
pub enum Wanted {
    /// Shown without a target.
    Nothing,
    /// That it stays as small as it is at the smallest size, within [`GROWTH_MAX`].
    FlatCost,
    /// That it stays as large.
    FlatSpeed,
    /// At most so much, up to so many paths.
    AtMost(f64, u64),
}

/// All rows.
pub struct Table<'a> {
    sizes: &'a [u64],
    rows: Vec<Row>,
}

/// A row: for each size a sample of every round.
struct Row {
    name: &'static str,
    unit: &'static str,
    wanted: Wanted,
    samples: Vec<Vec<f64>>,
}

impl<'a> Table<'a> {
    /// A table without rows for these sizes.
    pub fn new(sizes: &'a [u64]) -> Table<'a> {
        Table { sizes, rows: Vec::new() }
    }

    /// One sample, at the size with this number. The first of a row decides its place.
    pub fn add(&mut self, name: &'static str, unit: &'static str, wanted: Wanted, size: usize, value: f64) {
        let at = self.rows.iter().position(|row| (row.name, row.unit) == (name, unit)).unwrap_or_else(|| {
            self.rows.push(Row { name, unit, wanted, samples: vec![Vec::new(); self.sizes.len()] });
            self.rows.len() - 1
        });
        self.rows[at].samples[size].push(value);
    }

    /// Prints it. Whether all targets are met.
    pub fn print(&self) -> bool {
        let columns: Vec<String> = self.sizes.iter().map(|paths| format!("{paths} paths")).collect();
        println!("Median (least to most) of all rounds; growth is that of the last size over the first:\n");
        println!(
            "| | | {} | growth | |\n|---|---|{}---|---|",
            columns.join(" | "),
            "---|".repeat(columns.len())
        );
        for row in &self.rows {
            let said = row.holds(self.sizes).map_or("", |holds| if holds { "ok" } else { "MISSED" });
            let values: Vec<String> = row.spreads().map(|spread| spread.to_string()).collect();
            println!(
                "| {} | {} | {} | {} x | {said} |",
                row.name,
                row.unit,
                values.join(" | "),
                row.growth()
            );
        }
        self.rows.iter().all(|row| row.holds(self.sizes) != Some(false))
    }

    /// All samples.
    pub fn json(&self) -> Value {
        let row = |row: &Row| {
            json!({
                "name": row.name, "unit": row.unit, "samples": row.samples, "growth": row.growth().median,
                "holds": row.holds(self.sizes),
            })
        };
        self.rows.iter().map(row).collect()
    }
}

impl Row {
    fn spreads(&self) -> impl Iterator<Item = Spread> {
        self.samples.iter().map(|samples| Spread::of(samples))
    }

    /// The largest size in proportion to the smallest, round by round: both were measured under the same
    /// conditions.
    fn growth(&self) -> Spread {
        let [first, last] =
            [self.samples.first(), self.samples.last()].map(|one| one.expect("there is a size"));
        Spread::of(&last.iter().zip(first).map(|(last, first)| last / first).collect::<Vec<_>>())
    }

    /// True if the target is met; `None` without one.
    fn holds(&self, sizes: &[u64]) -> Option<bool> {
        match self.wanted {
            Wanted::Nothing => None,
            Wanted::FlatCost => Some(self.growth().median <= GROWTH_MAX),
            Wanted::FlatSpeed => Some(self.growth().median >= 1.0 / GROWTH_MAX),
            Wanted::AtMost(most, paths) => {
                let mut judged = self.spreads().zip(sizes).filter(|(_, size)| **size <= paths);
                Some(judged.all(|(spread, _)| spread.median <= most))
            }
        }
    }
}
