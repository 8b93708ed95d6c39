//! Values of the server's own metrics, read from the text that Prometheus gets, so that each is counted once.

use super::{Service, status};
use crate::model::BuildingUse;

/// Values of metrics by name and labels.
pub(super) struct MetricValues(String);

impl MetricValues {
    /// Those of the server, as they are now.
    pub(super) fn now(service: &Service) -> Self {
        Self(status::metrics_text(service))
    }

    /// Builds and waits since the start.
    pub(super) fn building(&self) -> BuildingUse {
        const MILLIS: f64 = 1000.0;
        let built = ["outcome=\"built\""];
        BuildingUse {
            builds: self.count("ondine_build_seconds_count", &built),
            build_millis: (self.sum("ondine_build_seconds_sum", &built) * MILLIS) as u64,
            waits: self.count("ondine_queue_wait_seconds_count", &[]),
            wait_millis: (self.sum("ondine_queue_wait_seconds_sum", &[]) * MILLIS) as u64,
            joined: self.count("ondine_queue_asked_total", &["outcome=\"joined\""]),
            prebuilds: self.count("ondine_prebuild_seconds_count", &built),
            prebuild_millis: (self.sum("ondine_prebuild_seconds_sum", &built) * MILLIS) as u64,
            taken_over: self.count("ondine_prebuild_seconds_count", &["outcome=\"taken_over\""]),
        }
    }

    /// The sum of all values of a metric that have these labels.
    pub(super) fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let lines = self.0.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    pub(super) fn count(&self, name: &str, labels: &[&str]) -> u64 {
        self.sum(name, labels) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read_by_their_whole_name_and_labels() {
        let text = "# HELP a x\na_total{route=\"b\",outcome=\"hit\"} 3\na_total{route=\"c\",outcome=\"hit\"} 4.5\na_totals 9\nb 2\n";
        let values = MetricValues(text.to_owned());
        assert_eq!(values.sum("a_total", &["outcome=\"hit\""]), 7.5);
        assert_eq!(values.count("a_total", &["route=\"c\""]), 4);
        assert_eq!(values.count("b", &[]), 2);
        assert_eq!(values.count("a", &[]), 0);
    }
}
