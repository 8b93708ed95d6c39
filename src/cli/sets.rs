//! `ondine sets`: the package sets of a server.

use std::process::ExitCode;

use clap::Args;

use super::control::{OutputArgs, ServerArgs};
use super::screen::{Screen, TableField, Tone};
use crate::http::PackageSet;

/// Characters of a failure in a table.
const FAILURE_CHARS_MAX: usize = 200;

#[derive(Args, Debug)]
pub(super) struct Sets {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    server: ServerArgs,
}

impl Sets {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let shown = |list: &Vec<PackageSet>, screen: Screen| match list.is_empty() {
            true => "There is no package set ([[catalogue]] in the settings).\n".to_owned(),
            false => sets(list, screen),
        };
        self.server.open()?.show("/api/v1/catalogue", self.output, shown)
    }
}

/// A row for each set.
pub(super) fn sets(sets: &[PackageSet], screen: Screen) -> String {
    let rows = sets.iter().map(|set| {
        let current = set.generations.iter().find(|generation| generation.current);
        let count = |count: Option<u64>| count.map_or_else(|| TableField::text("-"), TableField::number);
        let errors = current.map(|generation| generation.errors);
        let state = match &set.failure {
            Some(failure) => {
                TableField::short(&format!("failed: {failure}"), FAILURE_CHARS_MAX).tone(Tone::Bad)
            }
            None => TableField::text(&set.state),
        };
        vec![
            TableField::text(&set.name),
            count(current.map(|generation| generation.attributes)),
            count(current.map(|generation| generation.derivations)),
            count(errors).tone(if errors.unwrap_or_default() > 0 { Tone::Warning } else { Tone::Plain }),
            TableField::option(current.map(|generation| screen.moment(generation.made_at))),
            state,
        ]
    });
    screen.table(&["PACKAGE SET", "ATTRIBUTES", "DERIVATIONS", "ERRORS", "EVALUATED AT", "STATE"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_listed_with_their_counts_and_failures() {
        let list = r#"[{"name": "pkgs", "source": "s", "systems": [], "index": "full", "refresh_seconds": null, "keep_seconds": 1,
            "state": "idle", "tried_at": 1, "failure": null, "generations": [{"id": 1, "current": true, "made_at": 86400,
            "replaced_at": null, "attributes": 10, "denied": 0, "errors": 2, "derivations": 300}]},
            {"name": "b", "source": "s", "systems": [], "index": "lazy", "refresh_seconds": null, "keep_seconds": 1,
            "state": "idle", "tried_at": 1, "failure": "no\nsuch file", "generations": []}]"#;
        let list: Vec<PackageSet> = serde_json::from_str(list).expect("JSON");
        let expected = "\
PACKAGE SET  ATTRIBUTES  DERIVATIONS  ERRORS  EVALUATED AT          STATE
pkgs         10          300          2       1970-01-02T00:00:00Z  idle
b            -           -            -       -                     failed: no such file
";
        assert_eq!(sets(&list, Screen::default()), expected);
    }
}
