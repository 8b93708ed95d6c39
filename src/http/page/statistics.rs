//! Statistics: the last days hour by hour, from the index, and what the metrics have counted since the start.

use askama::Template;

use super::super::Service;
use super::super::api::HourOfUse;
use super::super::call::Call;
use super::super::error::Error;
use super::super::history;
use super::super::metric_values::MetricValues;
use super::super::response_future::ResponseFuture;
use super::chart::{Chart, Series};
use super::format::{ByteCount, Count, Span, short_seconds};
use super::visitor::{PageFrame, Visitor, answer, respond};
use crate::caller::Action;
use crate::model::BuildingUse;

/// Hours that are drawn: today's and those of six days before.
const DAY_HOURS: u64 = 24;
const DAYS_DRAWN: u64 = 7;
/// A mean of nothing.
const NOTHING: &str = "–";

#[derive(Template)]
#[template(path = "statistics.html", config = "src/http/page/askama.toml")]
struct StatisticsPage {
    shell: PageFrame,
    requests: Chart,
    building: Chart,
    sizes: Chart,
    latest_size: ByteCount,
    week: UseFigures,
    groups: [FigureGroup; 3],
}

/// Rows of the table below one heading: a label, and its value of the week and since the start.
struct FigureGroup {
    title: &'static str,
    rows: Vec<(&'static str, String, String)>,
}

/// Requests and builds of a time.
#[derive(Clone, Copy, Default)]
struct UseFigures {
    hits: u64,
    misses: u64,
    after_build: u64,
    failed: u64,
    building: BuildingUse,
}

impl UseFigures {
    fn of_hours(hours: &[HourOfUse]) -> Self {
        hours.iter().fold(Self::default(), |sum, hour| Self {
            hits: sum.hits + hour.hits,
            misses: sum.misses + hour.misses,
            after_build: sum.after_build + hour.built,
            failed: sum.failed + hour.failed,
            building: sum.building.with(building(hour), |one, other| one + other),
        })
    }

    fn since_start(values: &MetricValues) -> Self {
        let requests = |outcome: &str| {
            let label = format!("outcome=\"{outcome}\"");
            let of = |route: &str| {
                values.count("ondine_http_requests_total", &[&format!("route=\"{route}\""), &label])
            };
            // Files of what is served are no requests for a package.
            let of_files = if matches!(outcome, "built" | "failed") { of("file") } else { 0 };
            of("narinfo") + of("get") + of_files
        };
        Self {
            hits: requests("hit"),
            misses: requests("miss"),
            after_build: requests("built"),
            failed: requests("failed"),
            building: values.building(),
        }
    }

    fn hit_share(&self) -> String {
        let asked = self.hits + self.misses + self.after_build;
        if asked == 0 {
            NOTHING.to_owned()
        } else {
            format!("{:.1} %", self.hits as f64 * 100.0 / asked as f64)
        }
    }

    fn mean_build(&self) -> String {
        mean(self.building.build_millis, self.building.builds)
    }

    fn mean_wait(&self) -> String {
        mean(self.building.wait_millis, self.building.waits)
    }

    /// Building that did not happen because requests joined others, by the mean of all builds.
    fn saved(&self) -> Span {
        let BuildingUse { builds, build_millis, joined, .. } = self.building;
        Span(joined.saturating_mul(build_millis) / builds.max(1) / 1000)
    }

    fn hits(&self) -> Count {
        Count(self.hits)
    }

    fn builds(&self) -> Count {
        Count(self.building.builds)
    }

    /// Values in the order of the labels of [`figure_groups`].
    fn groups(&self) -> [Vec<String>; 3] {
        let BuildingUse { build_millis, joined, prebuilds, prebuild_millis, taken_over, .. } = self.building;
        let count = |number| Count(number).to_string();
        let span = |millis: u64| Span(millis / 1000).to_string();
        let (hits, failed) = (count(self.hits), count(self.failed));
        let requests = vec![hits, count(self.after_build), count(self.misses), failed, self.hit_share()];
        let builds = vec![
            self.builds().to_string(),
            span(build_millis),
            self.mean_build(),
            self.mean_wait(),
            count(joined),
            self.saved().to_string(),
        ];
        [requests, builds, vec![count(prebuilds), span(prebuild_millis), count(taken_over)]]
    }
}

fn figure_groups(week: &UseFigures, start: &UseFigures) -> [FigureGroup; 3] {
    const LABELS: [(&str, &[&str]); 3] = [
        (
            "Requests",
            &["Answered at once", "Answered after a build", "Misses", "Failed", "Share answered at once"],
        ),
        (
            "Builds",
            &[
                "Builds",
                "Time of builds",
                "Mean build",
                "Mean wait in the queue, before building",
                "Requests that joined another",
                "Building saved by joining, about",
            ],
        ),
        ("Pre-building", &["Built ahead of requests", "Time of those builds", "Taken over by a request"]),
    ];
    let mut values = week.groups().into_iter().zip(start.groups());
    LABELS.map(|(title, labels)| {
        let (week, start) = values.next().unwrap_or_default();
        let rows = labels.iter().zip(week.into_iter().zip(start));
        FigureGroup { title, rows: rows.map(|(label, (week, start))| (*label, week, start)).collect() }
    })
}

fn mean(millis: u64, count: u64) -> String {
    if count == 0 { NOTHING.to_owned() } else { short_seconds(millis as f64 / 1000.0 / count as f64) }
}

fn building(hour: &HourOfUse) -> BuildingUse {
    let millis = |seconds: f64| (seconds * 1000.0).round() as u64;
    BuildingUse {
        builds: hour.builds,
        build_millis: millis(hour.build_seconds),
        waits: hour.waits,
        wait_millis: millis(hour.wait_seconds),
        joined: hour.joined,
        prebuilds: hour.prebuilds,
        prebuild_millis: millis(hour.prebuild_seconds),
        taken_over: hour.taken_over,
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
    let hours = latest_hours(service).await?;
    let week = UseFigures::of_hours(&hours);
    let start = UseFigures::since_start(&MetricValues::now(service));
    Ok(StatisticsPage {
        shell: visitor.shell("Statistics", "statistics"),
        requests: requests_chart(&hours),
        building: building_chart(&hours),
        latest_size: ByteCount(hours.last().map_or(0, |hour| hour.nar_bytes)),
        sizes: sizes_chart(&hours),
        groups: figure_groups(&week, &start),
        week,
    })
}

/// The hours that are drawn, up to the present one.
pub(super) async fn latest_hours(service: &Service) -> Result<Vec<HourOfUse>, Error> {
    Ok(hours_without_gaps(&history::latest(service, DAYS_DRAWN * DAY_HOURS).await?, history::this_hour()))
}

/// Those without use have the totals of the ones before.
fn hours_without_gaps(known: &[HourOfUse], last: u64) -> Vec<HourOfUse> {
    let (mut hours, mut known) = (Vec::new(), known.iter().peekable());
    let mut totals = HourOfUse::default();
    let first = (last / DAY_HOURS + 1).saturating_sub(DAYS_DRAWN) * DAY_HOURS;
    for hour in first..=last {
        let begins_at = hour * 3600;
        while let Some(row) = known.next_if(|row| row.begins_at < begins_at) {
            totals = totals_of(row);
        }
        let row = known.next_if(|row| row.begins_at == begins_at).copied();
        totals = totals_of(&row.unwrap_or(totals));
        hours.push(HourOfUse { begins_at, ..row.unwrap_or(totals) });
    }
    hours
}

fn totals_of(row: &HourOfUse) -> HourOfUse {
    let HourOfUse { paths, nars, nar_bytes, .. } = *row;
    HourOfUse { paths, nars, nar_bytes, ..HourOfUse::default() }
}

/// Names of the days that are drawn, by the hour that the first of them begins with.
fn days(hours: &[HourOfUse]) -> Vec<String> {
    const NAMES: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    let first = hours.first().map_or(0, |hour| hour.begins_at / 3600 / DAY_HOURS);
    let name = |day| NAMES.iter().cycle().nth((day % DAYS_DRAWN) as usize).copied().unwrap_or_default();
    (first..first + DAYS_DRAWN).map(|day| name(day).to_owned()).collect()
}

/// Values of all hours of the days that are drawn: nothing in those to come.
fn values(hours: &[HourOfUse], value: impl Fn(&HourOfUse) -> u64) -> Vec<u64> {
    let to_come = (DAYS_DRAWN * DAY_HOURS) as usize - hours.len();
    hours.iter().map(value).chain(std::iter::repeat_n(0, to_come)).collect()
}

fn requests_chart(hours: &[HourOfUse]) -> Chart {
    let series = vec![
        Series { name: "hits", class: "s-good", values: values(hours, |hour| hour.hits) },
        Series { name: "after a build", class: "s-accent", values: values(hours, |hour| hour.built) },
        Series { name: "misses", class: "s-dim", values: values(hours, |hour| hour.misses) },
        Series { name: "failed", class: "s-bad", values: values(hours, |hour| hour.failed) },
    ];
    Chart::bars(series, |value| Count(value).to_string()).with_parts(days(hours))
}

fn building_chart(hours: &[HourOfUse]) -> Chart {
    let values = |value: fn(&BuildingUse) -> u64| values(hours, |hour| value(&building(hour)));
    let series = vec![
        Series { name: "for requests", class: "s-accent", values: values(|hour| hour.build_millis) },
        Series { name: "ahead of requests", class: "s-good", values: values(|hour| hour.prebuild_millis) },
    ];
    Chart::bars(series, |millis| short_seconds(millis as f64 / 1000.0)).with_parts(days(hours))
}

/// Size of the NAR store at the end of each hour.
pub(super) fn sizes_chart(hours: &[HourOfUse]) -> Chart {
    let values = hours.iter().map(|hour| hour.nar_bytes).collect();
    let series = Series { name: "NAR store", class: "s-area", values };
    let count = (DAYS_DRAWN * DAY_HOURS) as usize;
    Chart::steps(series, count, |value| ByteCount(value).to_string()).with_parts(days(hours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_time_are_sums_and_means_of_its_hours() {
        let hour = |builds, build_seconds, joined| HourOfUse {
            hits: 3,
            misses: 1,
            builds,
            build_seconds,
            joined,
            waits: 2,
            wait_seconds: 5.0,
            ..HourOfUse::default()
        };
        let week = UseFigures::of_hours(&[hour(1, 10.0, 0), hour(3, 30.0, 6)]);
        assert_eq!((week.hits, week.building.builds, week.building.build_millis), (6, 4, 40_000));
        assert_eq!((week.hit_share().as_str(), week.mean_build().as_str()), ("75.0 %", "10 s"));
        assert_eq!((week.mean_wait().as_str(), week.saved()), ("2.5 s", Span(60)));
        let nothing = UseFigures::default();
        assert_eq!((nothing.hit_share().as_str(), nothing.mean_build().as_str()), (NOTHING, NOTHING));
        for group in figure_groups(&week, &nothing) {
            let complete = group.rows.iter().all(|(_, week, start)| !week.is_empty() && !start.is_empty());
            assert!(complete && group.rows.len() >= 3, "{}", group.title);
        }
    }

    #[test]
    fn an_hour_without_use_has_the_totals_of_the_one_before() {
        let last = 2_946 * DAY_HOURS + 5;
        let row = |hour, nar_bytes| HourOfUse {
            begins_at: hour * 3600,
            nar_bytes,
            hits: 3,
            ..HourOfUse::default()
        };
        // The first one is of a day before those that are drawn.
        let hours = hours_without_gaps(&[row(last - 7 * DAY_HOURS, 5), row(last - 2, 7)], last);
        assert_eq!(hours.len() as u64, 6 * DAY_HOURS + 6);
        let tail: Vec<(u64, u64)> =
            hours[hours.len() - 4..].iter().map(|hour| (hour.nar_bytes, hour.hits)).collect();
        assert_eq!(tail, [(5, 0), (7, 3), (7, 0), (7, 0)]);
        assert_eq!(days(&hours), ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"]);
        assert_eq!(values(&hours, |hour| hour.hits).len() as u64, DAYS_DRAWN * DAY_HOURS);
    }
}
