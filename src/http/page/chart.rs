//! Charts, laid out here as parts of a drawing: stacked bars, and steps.

use std::fmt::Write;

/// Size of a drawing.
pub(super) const WIDTH: f64 = 1000.0;
pub(super) const HEIGHT: f64 = 220.0;
/// Room above the highest value.
const TOP: f64 = 14.0;

/// Values of one kind, in their order.
pub(super) struct Series {
    pub(super) name: &'static str,
    /// Class of the style sheet.
    pub(super) class: &'static str,
    pub(super) values: Vec<u64>,
}

/// The outline of one series, in SVG's language.
pub(super) struct Outline {
    pub(super) name: &'static str,
    pub(super) class: &'static str,
    pub(super) path: String,
}

/// A chart.
pub(super) struct Chart {
    pub(super) outlines: Vec<Outline>,
    /// The highest value, for the scale.
    pub(super) highest: String,
    /// True where all values are zero.
    pub(super) is_empty: bool,
    pub(super) width: f64,
    pub(super) height: f64,
    /// Names of equal parts of the width.
    pub(super) parts: Vec<String>,
}

impl Chart {
    /// Bars of all series, one above the other.
    pub(super) fn bars(series: Vec<Series>, written: impl Fn(u64) -> String) -> Self {
        let count = series.first().map_or(0, |series| series.values.len());
        let sums: Vec<u64> =
            (0..count).map(|at| series.iter().map(|series| series.values[at]).sum()).collect();
        let highest = sums.iter().copied().max().unwrap_or(0);
        let (step, mut below) = (WIDTH / count.max(1) as f64, vec![0; count]);
        let mut outlines = Vec::new();
        for Series { name, class, values } in series {
            let mut path = String::new();
            for (at, value) in values.into_iter().enumerate().filter(|(_, value)| *value > 0) {
                let (x, from, to) =
                    (at as f64 * step, level(below[at], highest), level(below[at] + value, highest));
                // Writing to a string does not fail.
                let _ =
                    write!(path, "M{x:.1} {from:.1}V{to:.1}h{:.1}V{from:.1}z", step - (step * 0.12).max(1.0));
                below[at] += value;
            }
            outlines.push(Outline { name, class, path });
        }
        Self::of(outlines, highest, written)
    }

    /// Steps as high as some values, of which `count` fill the width.
    pub(super) fn steps(series: Series, count: usize, written: impl Fn(u64) -> String) -> Self {
        let Series { name, class, values } = series;
        let highest = values.iter().copied().max().unwrap_or(0);
        let step = WIDTH / count.max(1) as f64;
        let mut path = String::new();
        // Those before the first are not zero, but unknown.
        let first = values.iter().position(|value| *value > 0).unwrap_or(values.len());
        for (at, value) in values.into_iter().enumerate().skip(first) {
            let command = if path.is_empty() { 'M' } else { 'L' };
            // Writing to a string does not fail.
            let _ = write!(path, "{command}{:.1} {:.1}h{step:.1}", at as f64 * step, level(value, highest));
        }
        if !path.is_empty() {
            let _ = write!(path, "V{HEIGHT:.1}H{:.1}z", first as f64 * step);
        }
        Self::of(vec![Outline { name, class, path }], highest, written)
    }

    fn of(outlines: Vec<Outline>, highest: u64, written: impl Fn(u64) -> String) -> Self {
        let (width, height) = (WIDTH, HEIGHT);
        Self { outlines, highest: written(highest), is_empty: highest == 0, width, height, parts: Vec::new() }
    }

    /// The same with a grid of parts that have names.
    pub(super) fn with_parts(self, parts: Vec<String>) -> Self {
        Self { parts, ..self }
    }

    /// Lines of the grid, in SVG's language.
    pub(super) fn grid(&self) -> String {
        let mut lines = format!("M0 {TOP}H{WIDTH}M0 {}H{WIDTH}", f64::midpoint(TOP, HEIGHT));
        for at in 1..self.parts.len() {
            let _ = write!(lines, "M{:.1} 0V{HEIGHT}", at as f64 * WIDTH / self.parts.len() as f64);
        }
        lines
    }
}

/// Height of a value in the drawing, from its top.
fn level(value: u64, highest: u64) -> f64 {
    HEIGHT - value as f64 / highest.max(1) as f64 * (HEIGHT - TOP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_stand_on_each_other_and_the_highest_reaches_the_scale() {
        let series = |values: &[u64]| Series { name: "n", class: "c", values: values.to_vec() };
        let chart = Chart::bars(vec![series(&[1, 0]), series(&[1, 4])], |value| value.to_string());
        assert_eq!((chart.highest.as_str(), chart.is_empty), ("4", false));
        let middle = level(1, 4);
        assert!(chart.outlines[0].path.contains(&format!("V{middle:.1}")));
        assert!(chart.outlines[1].path.starts_with(&format!("M0.0 {middle:.1}V{:.1}", level(2, 4))));
        assert!(chart.outlines[1].path.contains(&format!("V{TOP:.1}h")));
        let steps = Chart::steps(series(&[0, 2, 4]), 4, |value| value.to_string());
        let path = format!("M250.0 {:.1}h250.0L500.0 {TOP:.1}h250.0V{HEIGHT:.1}H250.0z", level(2, 4));
        assert_eq!(steps.outlines[0].path, path);
        let empty = Chart::steps(series(&[0, 0]), 2, |value| value.to_string());
        assert!(empty.is_empty && empty.outlines[0].path.is_empty());
    }
}
