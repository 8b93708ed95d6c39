//! Dashboards and alerts ask for metrics that the server has, and each alert says what to do about it.

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::{Http, NixStore, PackageSet, Release, package_set};

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Names of metrics in a text.
fn metrics(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("ondine_")).collect()
}

#[test]
fn each_metric_is_documented_and_those_of_the_dashboard_and_the_alerts_exist() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let set = PackageSet::new([package_set::small("hello")]);
    let server = set.serve(&store, "max-nar-store-bytes = \"1GiB\"\n", "");
    package_set::wait_for_generation(&server);
    let served = Http::new(&server.url()).get("/metrics").text();
    let families: BTreeSet<&str> =
        served.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let page = read("docs/operations.md");
    for family in &families {
        assert!(page.contains(&format!("`{family}")), "docs/operations.md has no {family}");
    }
    for (file, least) in [("dashboards/grafana.json", 15), ("dashboards/alerts.yaml", 8)] {
        let text = read(file);
        let named = metrics(&text);
        assert!(named.len() >= least, "{file} names only {named:?}");
        for name in named {
            let family = ["_total", "_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix))
                .unwrap_or(name);
            assert!(families.contains(family), "{file}: the server has no {name}, only {families:?}");
        }
    }
}

#[test]
fn each_alert_has_a_section_that_says_what_to_do() {
    let (rules, page) = (read("dashboards/alerts.yaml"), read("docs/alerts.md"));
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 8, "only {alerts:?}");
    for alert in &alerts {
        assert!(page.contains(&format!("\n## {alert}\n")), "docs/alerts.md has no section {alert}");
        let runbook = format!("runbook: docs/alerts.md#{}", alert.to_lowercase());
        assert!(rules.contains(&runbook), "{alert} does not name its section");
    }
    let sections = page.lines().filter(|line| line.starts_with("## ")).count();
    assert_eq!(sections, alerts.len(), "a section without an alert");
}

#[test]
fn the_dashboard_is_one_that_grafana_takes() {
    let dashboard: serde_json::Value = serde_json::from_str(&read("dashboards/grafana.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "two panels have the id {}", panel["id"]);
        let targets = panel["targets"].as_array().map_or(0, Vec::len);
        assert!(panel["type"] == "row" || targets > 0, "{} asks for nothing", panel["title"]);
    }
    assert!(ids.len() > 10);
}
