//! `ondine du`: the disk space of a server's NARs, by package set and by closure.

use std::process::ExitCode;

use clap::Args;

use super::control::{OutputArgs, ServerArgs};
use super::screen::{Screen, TableField, size};
use crate::http::UsageReport;
use crate::plural::counted;

#[derive(Args, Debug)]
pub(super) struct DiskUsage {
    /// Closures that are listed, the largest first
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
}

impl DiskUsage {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let path = format!("/api/v1/usage?limit={}", self.limit);
        self.server.open()?.show(&path, self.output, usage)
    }
}

fn usage(report: &UsageReport, screen: Screen) -> String {
    let mut text = format!("{} with {}\n", counted(report.nars, "NAR", "NARs"), size(report.nar_bytes));
    if !report.package_sets.is_empty() {
        let rows = report.package_sets.iter().map(|set| {
            vec![
                TableField::text(&set.name),
                TableField::number(set.outputs),
                TableField::number(set.paths),
                TableField::number(size(set.bytes)),
            ]
        });
        text += &format!("\n{}", screen.table(&["PACKAGE SET", "OUTPUTS", "CLOSURE PATHS", "SIZE"], rows));
    }
    if !report.closures.is_empty() {
        let rows = report.closures.iter().map(|closure| {
            vec![
                TableField::number(size(closure.bytes)),
                TableField::number(size(closure.exclusive_bytes)),
                TableField::number(closure.paths),
                TableField::text(&closure.path),
            ]
        });
        text += &format!("\n{}", screen.table(&["CLOSURE SIZE", "ITS ALONE", "PATHS", "CLOSURE OF"], rows));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_listed_by_set_and_by_closure() {
        let report = r#"{"nars": 3, "nar_bytes": 4096, "package_sets": [{"name": "pkgs", "outputs": 1, "paths": 2, "bytes": 1024}],
            "closures": [{"path": "0-hello-2.12.drv", "paths": 2, "bytes": 2048, "exclusive_bytes": 1024}]}"#;
        let report: UsageReport = serde_json::from_str(report).expect("JSON");
        let expected = "\
3 NARs with 4.0 KiB

PACKAGE SET  OUTPUTS  CLOSURE PATHS     SIZE
pkgs               1              2  1.0 KiB

CLOSURE SIZE  ITS ALONE  PATHS  CLOSURE OF
     2.0 KiB    1.0 KiB      2  0-hello-2.12.drv
";
        assert_eq!(usage(&report, Screen::default()), expected);
        let empty: UsageReport =
            serde_json::from_str(r#"{"nars": 0, "nar_bytes": 0, "package_sets": [], "closures": []}"#)
                .expect("JSON");
        assert_eq!(usage(&empty, Screen::default()), "0 NARs with 0 B\n");
    }
}
