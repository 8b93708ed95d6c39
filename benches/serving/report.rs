//! Measurements beside their targets: a table of all figures, a table of the targets, and the same
//! as JSON.

use serde_json::{Value, json};

use super::machine;
use super::servers::EARLIER;

/// The server whose figures are judged, and the one they are held against.
const JUDGED: (&str, &str) = ("Ondine", "nginx");

/// Rate of an earlier build that must be reached at least.
const EARLIER_RATIO: f64 = 0.97;

/// The unit of what one request costs this program, not the server.
pub const LOAD_UNIT: &str = "CPU µs/request of the load";

/// Judgement of a figure.
#[derive(Clone, Copy)]
pub enum Target {
    /// In proportion to nginx, at least.
    RatioAtLeast(f64),
    /// In proportion to nginx, at most.
    RatioAtMost(f64),
    /// By itself, at most.
    AtMost(f64),
    /// In proportion to the best peer, at least; not judged without one.
    PeersAtLeast(f64),
}

/// Samples of one thing, for each server, in the order of the rounds.
struct Metric {
    name: String,
    unit: &'static str,
    target: Option<Target>,
    servers: Vec<(String, Vec<f64>)>,
}

/// Measurements of a run.
#[derive(Default)]
pub struct Report {
    metrics: Vec<Metric>,
    /// Servers that are measured beside, and were there already.
    peers: Vec<String>,
    /// The share of the machine that others had, of 1, in each measurement.
    others: Vec<f64>,
    /// Servers that did not answer as they should.
    trouble: Vec<String>,
}

/// The middle of samples, and their ends.
#[derive(Clone, Copy)]
pub struct Spread {
    /// The middle.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

impl Spread {
    /// That of at least one sample.
    pub fn of(samples: &[f64]) -> Spread {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Spread { median, least: sorted[0], most: sorted[sorted.len() - 1] }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Spread { median, least, most } = *self;
        write!(out, "{}", figure(median))?;
        if least < most { write!(out, " ({} to {})", figure(least), figure(most)) } else { Ok(()) }
    }
}

impl Report {
    /// An empty one, with peers of these names.
    pub fn new(peers: Vec<String>) -> Report {
        Report { peers, ..Report::default() }
    }

    /// One sample. The first of a metric decides its place in the tables.
    pub fn add(&mut self, name: &str, unit: &'static str, target: Option<Target>, server: &str, value: f64) {
        let at = self
            .metrics
            .iter()
            .position(|metric| (&*metric.name, metric.unit) == (name, unit))
            .unwrap_or_else(|| {
                self.metrics.push(Metric { name: name.to_owned(), unit, target, servers: Vec::new() });
                self.metrics.len() - 1
            });
        let servers = &mut self.metrics[at].servers;
        match servers.iter_mut().find(|(known, _)| known == server) {
            Some((_, samples)) => samples.push(value),
            None => servers.push((server.to_owned(), vec![value])),
        }
    }

    /// The share of the machine that others had meanwhile.
    pub fn note_others(&mut self, share: f64) {
        self.others.push(share);
    }

    /// Something could not be measured.
    pub fn note_trouble(&mut self, server: &str, what: &str, error: &std::io::Error) {
        let line = format!("{server}, {what}: {error}");
        eprintln!("not measured: {line}");
        self.trouble.push(line);
    }

    /// Prints what is held against an earlier build. Whether nothing is slower or dearer than may be.
    fn print_earlier(&self) -> bool {
        let compared: Vec<(&Metric, Spread)> = self
            .metrics
            .iter()
            .filter(|metric| metric.unit != LOAD_UNIT)
            .filter_map(|metric| Some((metric, metric.in_proportion_to(metric.samples(EARLIER)?)?)))
            .collect();
        if compared.is_empty() {
            return true;
        }
        println!(
            "\n{} / {EARLIER}, round by round:\n\n| | | wanted | measured | |\n|---|---|---|---|---|",
            JUDGED.0
        );
        let mut holds = true;
        for (metric, spread) in compared {
            let is_rate = metric.unit.ends_with("/s");
            let (wanted, held) = if is_rate {
                (format!(">= {EARLIER_RATIO} x"), spread.median >= EARLIER_RATIO)
            } else {
                (format!("<= {:.2} x", 1.0 / EARLIER_RATIO), spread.median <= 1.0 / EARLIER_RATIO)
            };
            let verdict = if held { "ok" } else { "MISSED" };
            println!("| {} | {} | {wanted} | {spread} x | {verdict} |", metric.name, metric.unit);
            holds &= held;
        }
        holds
    }

    /// Prints all tables. Whether all targets are met.
    pub fn print(&self) -> bool {
        let mut names: Vec<&str> = Vec::new();
        for (server, _) in self.metrics.iter().flat_map(|metric| &metric.servers) {
            if !names.contains(&server.as_str()) {
                names.push(server);
            }
        }
        println!(
            "\nMedian (least to most) of all rounds; GB are those of the plain NAR in whatever form it came:\n"
        );
        println!("| | | {} |\n|---|---|{}", names.join(" | "), "---|".repeat(names.len()));
        for metric in &self.metrics {
            let cells = names.iter().map(|name| {
                metric.samples(name).map(|samples| Spread::of(samples).to_string()).unwrap_or_default()
            });
            println!("| {} | {} | {} |", metric.name, metric.unit, cells.collect::<Vec<_>>().join(" | "));
        }
        println!("\n{} / {} (or peers), round by round, and what is wanted:\n", JUDGED.0, JUDGED.1);
        println!("| | | wanted | measured | |\n|---|---|---|---|---|");
        let checks: Vec<Check> = self.checks().collect();
        for check in &checks {
            let holds = if check.holds() { "ok" } else { "MISSED" };
            println!(
                "| {} | {} | {} | {} | {holds} |",
                check.name,
                check.unit,
                check.wanted(),
                check.measured()
            );
        }
        if !self.others.is_empty() {
            let Spread { median, least, most } = Spread::of(&self.others);
            let percent = |share: f64| format!("{:.0} %", share * 100.0);
            println!(
                "\nOthers had {} of this machine meanwhile ({} to {}).",
                percent(median),
                percent(least),
                percent(most)
            );
        }
        let as_before = self.print_earlier();
        self.print_load();
        self.trouble.iter().for_each(|line| println!("Not measured: {line}"));
        checks.iter().all(Check::holds) && as_before && self.trouble.is_empty()
    }

    /// Rate that the load alone could reach, beside each figure.
    fn print_load(&self) {
        for metric in self.metrics.iter().filter(|metric| metric.unit == LOAD_UNIT) {
            let Some(samples) = metric.samples(JUDGED.1) else { continue };
            let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
            let most = cores * 1e6 / Spread::of(samples).median;
            println!("{}: the load alone could ask this machine {most:.0} times a second.", metric.name);
        }
    }

    fn checks(&self) -> impl Iterator<Item = Check<'_>> {
        self.metrics.iter().filter_map(|metric| metric.check(&self.peers))
    }

    /// All samples, and the checks.
    pub fn json(&self) -> Value {
        let metrics = self.metrics.iter().map(|metric| {
            let servers = metric.servers.iter().map(|(server, samples)| {
                let Spread { median, least, most } = Spread::of(samples);
                (server.clone(), json!({"median": median, "min": least, "max": most, "samples": samples}))
            });
            let servers: serde_json::Map<String, Value> = servers.collect();
            json!({"name": metric.name, "unit": metric.unit, "servers": servers})
        });
        let checks = self.checks().map(|check| {
            let Spread { median, least, most } = check.spread;
            json!({"name": check.name, "unit": check.unit, "wanted": check.wanted(), "median": median, "min": least, "max": most, "holds": check.holds()})
        });
        json!({
            "bench": "serving",
            "conditions": machine::conditions(),
            "metrics": metrics.collect::<Vec<_>>(),
            "checks": checks.collect::<Vec<_>>(),
            "others_share": self.others,
            "not_measured": self.trouble,
        })
    }
}

/// A target and what was seen of it.
struct Check<'m> {
    name: &'m str,
    unit: &'static str,
    target: Target,
    spread: Spread,
}

impl Metric {
    fn samples(&self, server: &str) -> Option<&[f64]> {
        self.servers.iter().find(|(name, _)| name == server).map(|(_, samples)| samples.as_slice())
    }

    /// The judged server's samples in proportion to these. Both of a round were measured one after the other,
    /// under the same conditions.
    fn in_proportion_to(&self, against: &[f64]) -> Option<Spread> {
        let judged = self.samples(JUDGED.0)?;
        Some(Spread::of(&judged.iter().zip(against).map(|(a, b)| a / b).collect::<Vec<_>>()))
    }

    fn check(&self, peers: &[String]) -> Option<Check<'_>> {
        let target = self.target?;
        let spread = match target {
            Target::AtMost(_) => Spread::of(self.samples(JUDGED.0)?),
            Target::RatioAtLeast(_) | Target::RatioAtMost(_) => {
                self.in_proportion_to(self.samples(JUDGED.1)?)?
            }
            Target::PeersAtLeast(_) => {
                let peers = peers.iter().filter_map(|peer| self.in_proportion_to(self.samples(peer)?));
                peers.min_by(|one, other| one.median.total_cmp(&other.median))?
            }
        };
        Some(Check { name: &self.name, unit: self.unit, target, spread })
    }
}

impl Check<'_> {
    fn holds(&self) -> bool {
        match self.target {
            Target::RatioAtLeast(least) | Target::PeersAtLeast(least) => self.spread.median >= least,
            Target::RatioAtMost(most) | Target::AtMost(most) => self.spread.median <= most,
        }
    }

    fn wanted(&self) -> String {
        match self.target {
            Target::RatioAtLeast(least) => format!(">= {least} x"),
            Target::RatioAtMost(most) => format!("<= {most} x"),
            Target::AtMost(most) => format!("<= {most}"),
            Target::PeersAtLeast(least) => format!(">= {least} x the best peer"),
        }
    }

    fn measured(&self) -> String {
        match self.target {
            Target::AtMost(_) => self.spread.to_string(),
            _ => format!("{} x", self.spread),
        }
    }
}

/// Three digits or so.
fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        large if large >= 100.0 => format!("{value:.0}"),
        some if some >= 10.0 => format!("{value:.1}"),
        few if few >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
