//! Statistics: the last days hour by hour, and what the metrics have counted since the start.

use askama::Template;

use super::super::Service;
use super::super::api::HourOfUse;
use super::super::call::Call;
use super::super::error::Error;
use super::super::response_future::ResponseFuture;
use super::super::{history, status};
use super::chart::{Chart, Series};
use super::format::{ByteCount, Count, Span, short_seconds};
use super::visitor::{PageFrame, Visitor, answer, respond};
use crate::caller::Action;

/// Hours that are drawn.
const HOURS_DRAWN: u64 = 7 * 24;

#[derive(Template)]
#[template(path = "statistics.html", config = "src/http/page/askama.toml")]
struct StatisticsPage {
    shell: PageFrame,
    requests: Chart,
    sizes: Chart,
    latest_size: ByteCount,
    hits: Count,
    misses: Count,
    built: Count,
    failed: Count,
    hit_share: Option<String>,
    sent: ByteCount,
    builds: Count,
    build_time: Span,
    mean_build: Option<String>,
    mean_wait: Option<String>,
    joined: Count,
    saved: Span,
    prebuilds: Count,
    prebuild_time: Span,
    taken_over: Count,
}

/// Values of metrics by name and labels.
struct MetricValues(String);

impl MetricValues {
    /// The sum of all values of a metric that have these labels.
    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let lines = self.0.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    fn count(&self, name: &str, labels: &[&str]) -> u64 {
        self.sum(name, labels) as u64
    }
}

/// The page.
pub(in crate::http) fn get(call: Call<'_>) -> Option<ResponseFuture> {
    respond(
        &call,
        Action::Read,
        |service, visitor| async move { Ok(answer(&page(&service, &visitor).await?)) },
    )
}

async fn page(service: &Service, visitor: &Visitor) -> Result<StatisticsPage, Error> {
    let hours = hours_without_gaps(&history::latest(service, HOURS_DRAWN).await?);
    let values = MetricValues(status::metrics_text(service));
    let narinfos = |outcome: &str| {
        let label = format!("outcome=\"{outcome}\"");
        ["narinfo", "get"]
            .map(|route| values.count("ondine_http_requests_total", &[&format!("route=\"{route}\""), &label]))
            .iter()
            .sum::<u64>()
    };
    let (hits, misses, built) = (narinfos("hit"), narinfos("miss"), narinfos("built"));
    let asked = hits + misses + built;
    let built_label = ["outcome=\"built\""];
    let builds = values.count("ondine_build_seconds_count", &built_label);
    let build_seconds = values.sum("ondine_build_seconds_sum", &built_label);
    let waits = values.count("ondine_queue_wait_seconds_count", &[]);
    let joined = values.count("ondine_queue_asked_total", &["outcome=\"joined\""]);
    let mean = |sum: f64, count: u64| (count > 0).then(|| sum / count as f64);
    let mean_build = mean(build_seconds, builds);
    let whole = |seconds: f64| Span(seconds.round() as u64);
    Ok(StatisticsPage {
        shell: visitor.shell("Statistics", "statistics"),
        requests: requests_chart(&hours),
        latest_size: ByteCount(hours.last().map_or(0, |hour| hour.nar_bytes)),
        sizes: sizes_chart(&hours),
        hits: Count(hits),
        misses: Count(misses),
        built: Count(built),
        failed: Count(narinfos("failed")),
        hit_share: (asked > 0).then(|| format!("{:.1} %", hits as f64 * 100.0 / asked as f64)),
        sent: ByteCount(values.count("ondine_http_response_bytes_total", &[])),
        builds: Count(builds),
        build_time: whole(build_seconds),
        mean_build: mean_build.map(short_seconds),
        mean_wait: mean(values.sum("ondine_queue_wait_seconds_sum", &[]), waits).map(short_seconds),
        joined: Count(joined),
        saved: whole(joined as f64 * mean_build.unwrap_or_default()),
        prebuilds: Count(values.count("ondine_prebuild_seconds_count", &built_label)),
        prebuild_time: whole(values.sum("ondine_prebuild_seconds_sum", &built_label)),
        taken_over: Count(values.count("ondine_prebuild_seconds_count", &["outcome=\"taken_over\""])),
    })
}

/// The hours that are drawn: those without use have the totals of the ones before.
fn hours_without_gaps(known: &[HourOfUse]) -> Vec<HourOfUse> {
    let last = history::this_hour();
    let (mut hours, mut known) = (Vec::new(), known.iter().peekable());
    let mut totals = HourOfUse::default();
    for hour in (last + 1).saturating_sub(HOURS_DRAWN)..=last {
        let begins_at = hour * 3600;
        let row = known.next_if(|row| row.begins_at == begins_at).copied();
        let HourOfUse { paths, nars, nar_bytes, .. } = row.unwrap_or(totals);
        totals = HourOfUse { paths, nars, nar_bytes, ..HourOfUse::default() };
        hours.push(HourOfUse { begins_at, ..row.unwrap_or(totals) });
    }
    hours
}

fn requests_chart(hours: &[HourOfUse]) -> Chart {
    let values = |value: fn(&HourOfUse) -> u64| hours.iter().map(value).collect();
    let series = vec![
        Series { name: "hits", class: "s-good", values: values(|hour| hour.hits) },
        Series { name: "after a build", class: "s-accent", values: values(|hour| hour.built) },
        Series { name: "misses", class: "s-dim", values: values(|hour| hour.misses) },
        Series { name: "failed", class: "s-bad", values: values(|hour| hour.failed) },
    ];
    Chart::bars(series, |value| Count(value).to_string())
}

fn sizes_chart(hours: &[HourOfUse]) -> Chart {
    let values = hours.iter().map(|hour| hour.nar_bytes).collect();
    let series = vec![Series { name: "NAR store", class: "s-accent", values }];
    Chart::area(series, |value| ByteCount(value).to_string())
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

    #[test]
    fn an_hour_without_use_has_the_totals_of_the_one_before() {
        let last = history::this_hour();
        let row = HourOfUse { begins_at: (last - 2) * 3600, nar_bytes: 7, hits: 3, ..HourOfUse::default() };
        let hours = hours_without_gaps(&[row]);
        assert_eq!(hours.len() as u64, HOURS_DRAWN);
        let tail: Vec<(u64, u64)> =
            hours[hours.len() - 4..].iter().map(|hour| (hour.nar_bytes, hour.hits)).collect();
        assert_eq!(tail, [(0, 0), (7, 3), (7, 0), (7, 0)]);
    }
}
