//! Table of measurements: of each thing one line for each kind of server, the first of which the others are
//! held against.

use serde_json::{Value, json};

use crate::serving::report::Spread;

/// Target of a measurement.
#[derive(Clone, Copy)]
pub enum Goal {
    /// Shown without a target.
    Nothing,
    /// In proportion to the first kind of server, at least.
    RatioAtLeast(f64),
    /// In proportion to the first kind of server, no further from 1 than this, either way.
    Flat(f64),
    /// By itself, at most.
    AtMost(f64),
}

/// All measurements, in the order in which they were first made.
#[derive(Default)]
pub struct Comparison(Vec<Compared>);

/// Samples of one thing, of each kind of server, in the order of the rounds.
struct Compared {
    name: &'static str,
    unit: &'static str,
    goal: Goal,
    kinds: Vec<(String, Vec<f64>)>,
}

impl Comparison {
    /// Adds one sample of a kind of server.
    pub fn add(&mut self, name: &'static str, unit: &'static str, goal: Goal, kind: &str, value: f64) {
        let at = self.0.iter().position(|row| (row.name, row.unit) == (name, unit)).unwrap_or_else(|| {
            self.0.push(Compared { name, unit, goal, kinds: Vec::new() });
            self.0.len() - 1
        });
        let kinds = &mut self.0[at].kinds;
        match kinds.iter_mut().find(|(known, _)| known == kind) {
            Some((_, samples)) => samples.push(value),
            None => kinds.push((kind.to_owned(), vec![value])),
        }
    }

    /// Prints it. True if all targets are met.
    pub fn print(&self) -> bool {
        println!("Median (least to most); a ratio is to the first of its kind, round by round:\n");
        println!("| | | | measured | ratio | wanted | |\n|---|---|---|---|---|---|---|");
        let mut met = true;
        for row in &self.0 {
            for (kind, samples) in &row.kinds {
                let ratio = row.ratio(samples);
                let shown = ratio.map(|ratio| format!("{ratio} x")).unwrap_or_default();
                let holds = row.holds(samples);
                let verdict = holds.map_or("", |holds| if holds { "ok" } else { "MISSED" });
                let wanted = if holds.is_some() { row.wanted() } else { String::new() };
                let Compared { name, unit, .. } = row;
                println!(
                    "| {name} | {unit} | {kind} | {} | {shown} | {wanted} | {verdict} |",
                    Spread::of(samples)
                );
                met &= holds != Some(false);
            }
        }
        met
    }

    /// All samples.
    pub fn json(&self) -> Value {
        let row = |row: &Compared| {
            let kinds = row.kinds.iter().map(|(kind, samples)| {
                json!({"kind": kind, "samples": samples, "ratio": row.ratio(samples).map(|ratio| ratio.median),
                    "holds": row.holds(samples)})
            });
            json!({"name": row.name, "unit": row.unit, "wanted": row.wanted(), "kinds": kinds.collect::<Vec<_>>()})
        };
        self.0.iter().map(row).collect()
    }
}

impl Compared {
    /// Samples in proportion to those of the first kind of server; `None` for that one itself.
    fn ratio(&self, samples: &[f64]) -> Option<Spread> {
        let (_, first) = self.kinds.first()?;
        if std::ptr::eq(first.as_slice(), samples) {
            return None;
        }
        Some(Spread::of(&samples.iter().zip(first).map(|(one, first)| one / first).collect::<Vec<_>>()))
    }

    /// True if the target is met; `None` without one.
    fn holds(&self, samples: &[f64]) -> Option<bool> {
        match self.goal {
            Goal::Nothing => None,
            Goal::RatioAtLeast(least) => self.ratio(samples).map(|ratio| ratio.median >= least),
            Goal::Flat(most) => self.ratio(samples).map(|ratio| (ratio.median - 1.0).abs() <= most),
            Goal::AtMost(most) => Some(Spread::of(samples).median <= most),
        }
    }

    fn wanted(&self) -> String {
        match self.goal {
            Goal::Nothing => String::new(),
            Goal::RatioAtLeast(least) => format!(">= {least} x"),
            Goal::Flat(most) => format!("1 x, within {most}"),
            Goal::AtMost(most) => format!("<= {most}"),
        }
    }
}
