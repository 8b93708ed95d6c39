//! The settings page of the documentation, made from the table, and the means to compare a committed page
//! with what it is made from.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::setting::{DefaultValue, Described};
use super::table;

/// Columns of a generated page.
const COLUMNS: usize = 110;

const INTRODUCTION: &str = "\
# Settings

<!-- Generated from src/config/table. Do not edit: change the table, then run
     UPDATE=1 cargo test --lib page -->

Every setting has one name and can be written in three places. A flag wins over a variable, a
variable over the settings file.

| place | how `hold` is written |
|---|---|
| flag of `ondine serve` | `--hold 5s` |
| variable | `ONDINE_HOLD=5s` |
| settings file (TOML, `--config FILE`) | `hold = \"5s\"` |

In the file, durations are texts with a unit (`\"250ms\"`, `\"20s\"`, `\"5m\"`, `\"24h\"`, `\"30d\"`). Sizes are
numbers of bytes, or texts with a unit: K, M and G count in thousands (`\"100G\"`), KiB, MiB and GiB in 1024s
(`\"512MiB\"`). Lists are written in brackets (`[\"store\", \"catalogue\"]`); flags and variables separate their
items by commas. Underscores in names count as dashes. `ondine check-config FILE` checks a file without
starting a server.
";

/// The whole page.
fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    for group in table::GROUPS {
        page += &format!("\n## {}\n", group.title);
        group.settings.iter().for_each(|setting| describe(&mut page, &setting.describe(), 3, ""));
    }
    page
}

fn describe(page: &mut String, setting: &Described, level: usize, within: &str) {
    let Described { name, doc, accepted, default, keys, .. } = setting;
    let default = match default {
        DefaultValue::Is("") | DefaultValue::Described(_) => default.show().map(str::to_owned),
        DefaultValue::Is(text) => Some(format!("`{text}`")),
        DefaultValue::Required => Some("none, it is required".to_owned()),
    };
    *page += &format!("\n{} `{name}`{within}\n\n{}\n", "#".repeat(level), wrap(doc, ""));
    *page += &format!("\n{}", wrap(&format!("- Accepts: {accepted}"), "  "));
    *page += &format!("\n{}\n", wrap(&format!("- Default: {}", default.unwrap_or_default()), "  "));
    let within = match *name {
        "source" => " in `source`".to_owned(),
        name => format!(" in `[[{name}]]`"),
    };
    keys.iter().for_each(|key| describe(page, key, level + 1, &within));
}

#[test]
fn the_settings_page_says_what_the_table_says() {
    compare("docs/settings.md", &page());
}

#[test]
fn the_options_of_the_nixos_module_page_are_those_of_the_table() {
    let options: Vec<_> = table::settings().map(|setting| module_option(&setting.describe())).collect();
    let text = serde_json::to_string_pretty(&options).expect("JSON of texts and numbers");
    compare("nixos-module/settings.json", &(text + "\n"));
}

/// A setting as an option of the NixOS module.
fn module_option(setting: &Described) -> Value {
    let Described { name, doc, accepted, default, file_type, keys } = setting;
    let default = match default {
        DefaultValue::Required => None,
        other => other.show(),
    };
    let keys: Vec<_> = keys.iter().map(module_option).collect();
    json!({
        "name": name, "doc": doc, "accepted": accepted, "default": default, "value": file_type,
        "required": setting.default == DefaultValue::Required, "keys": keys,
    })
}

/// Compares a committed page with what it should be, or writes it where the variable UPDATE is set.
pub(crate) fn compare(page: &str, expected: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, expected).unwrap_or_else(|error| panic!("{page}: {error}"));
    }
    let committed = fs::read_to_string(&file).unwrap_or_default();
    let differing = committed.lines().zip(expected.lines()).position(|(is, should)| is != should);
    let line = differing.unwrap_or_else(|| committed.lines().count().min(expected.lines().count())) + 1;
    assert!(
        committed == expected,
        "{page}:{line} is not what the program says; make it anew: UPDATE=1 cargo test --lib page"
    );
}

/// The text in lines of [`COLUMNS`], each but the first with an indent.
pub(crate) fn wrap(text: &str, indent: &str) -> String {
    let (mut wrapped, mut column) = (String::new(), 0);
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > COLUMNS {
            wrapped += "\n";
            wrapped += indent;
            column = indent.len();
        } else if column > 0 {
            wrapped.push(' ');
            column += 1;
        }
        wrapped += word;
        column += length;
    }
    wrapped
}

/// True for an option of `serve` that is on the settings page: it stands under the title of a group.
pub(crate) fn is_setting(option: &clap::Arg) -> bool {
    table::GROUPS.iter().any(|group| option.get_help_heading() == Some(group.title))
}
