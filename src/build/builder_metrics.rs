//! Metrics of the machines that build, made anew each time they are read: their number is small.

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::view::{BuilderState, BuilderView};

/// Labels of a machine's metric.
type Labels = Vec<(&'static str, String)>;

/// All of it in the OpenMetrics text format, without its end.
pub(super) fn write(builders: &[BuilderView], out: &mut String) {
    let mut registry = Registry::with_prefix("ondine_builder");
    let gauge = |registry: &mut Registry, name: &str, help: &str| {
        let family: Family<Labels, Gauge> = Family::default();
        registry.register(name, help, family.clone());
        family
    };
    let up = gauge(&mut registry, "up", "1 while the machine can be used, else 0");
    let slots = gauge(&mut registry, "slots", "Builds at a time on the machine");
    let running = gauge(&mut registry, "running", "Builds that run on the machine now");
    let builds: Family<Labels, Counter> = Family::default();
    let help = "Builds on the machine: built, failed, or lost with it and built elsewhere";
    registry.register("builds", help, builds.clone());
    let disagreements: Family<Labels, Counter> = Family::default();
    let help = "Derivations that failed on the machine and were built on another one, or the reverse";
    registry.register("disagreements", help, disagreements.clone());
    for builder in builders {
        let label = || vec![("builder", builder.name.clone())];
        up.get_or_create(&label()).set((builder.state == BuilderState::Up).into());
        disagreements.get_or_create(&label()).inc_by(builder.disagreements);
        slots.get_or_create(&label()).set(count(builder.slots));
        running.get_or_create(&label()).set(count(builder.running.len()));
        for (outcome, times) in [("built", builder.built), ("failed", builder.failed), ("lost", builder.lost)]
        {
            let labels = vec![("builder", builder.name.clone()), ("outcome", outcome.to_owned())];
            builds.get_or_create(&labels).inc_by(times);
        }
    }
    // Writing to a string does not fail.
    let _ = text::encode_registry(out, &registry);
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
