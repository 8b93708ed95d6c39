//! Findings of `ondine doctor`: what was found, why it matters, and what to do.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use serde::Serialize;

use crate::cli::screen::{Screen, Tone};
use crate::escape::{Line, Lines};
use crate::plural::counted;

/// Permission bits of everyone but the owner.
const OTHERS: u32 = 0o077;

/// Weight of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum FindingLevel {
    /// Nothing is wrong.
    Ok,
    /// Right for some, and not for all.
    Note,
    /// Something works less well than it could, or is at risk.
    Warning,
    /// Something does not work.
    Error,
}

/// A finding.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    /// The thing that was looked at.
    check: &'static str,
    level: FindingLevel,
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
    /// True if it was mended just now.
    fixed: bool,
}

/// All findings, and the permission to mend.
#[derive(Debug, Default)]
pub(super) struct DoctorReport {
    findings: Vec<Finding>,
    fix: bool,
}

impl DoctorReport {
    /// An empty report, which mends what is safe to mend where `fix` is true.
    pub(super) fn new(fix: bool) -> Self {
        Self { findings: Vec::new(), fix }
    }

    pub(super) fn ok(&mut self, check: &'static str, what: impl Into<String>) {
        let (level, what) = (FindingLevel::Ok, what.into());
        self.findings.push(Finding { check, level, what, why: None, advice: None, fixed: false });
    }

    pub(super) fn add(
        &mut self,
        level: FindingLevel,
        check: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        advice: impl Into<String>,
    ) {
        let (why, advice) = (Some(why.into()), Some(advice.into()));
        self.findings.push(Finding { check, level, what: what.into(), why, advice, fixed: false });
    }

    /// Finds a file or directory that others than its owner may open, and takes their permissions where that
    /// is wanted.
    pub(super) fn private(&mut self, check: &'static str, path: &Path, why: &str) {
        let shown = path.display();
        let Ok(metadata) = fs::metadata(path) else { return };
        let mode = metadata.mode() & 0o7777;
        if mode & OTHERS == 0 {
            return self.ok(check, format!("{shown} is private"));
        }
        let private = mode & !OTHERS;
        let what = format!("{shown} has the mode {mode:o}, so others may open it");
        let advice = format!("chmod {private:o} {shown} (--fix does it)");
        self.add(FindingLevel::Warning, check, what, why, advice);
        if self.fix && fs::set_permissions(path, fs::Permissions::from_mode(private)).is_ok() {
            self.findings.last_mut().expect("one was just added").fixed = true;
        }
    }

    /// True if something does not work, and was not mended.
    pub(super) fn has_errors(&self) -> bool {
        self.findings.iter().any(|finding| finding.level == FindingLevel::Error && !finding.fixed)
    }

    /// The findings as a list of objects.
    pub(super) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(&self.findings)
    }

    /// The findings for a person.
    pub(super) fn text(&self, screen: Screen) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let Finding { check, level, what, why, advice, fixed } = finding;
            let (word, tone) = match level {
                _ if *fixed => ("fixed", Tone::Good),
                FindingLevel::Ok => ("ok", Tone::Good),
                FindingLevel::Note => ("note", Tone::Plain),
                FindingLevel::Warning => ("warning", Tone::Warning),
                FindingLevel::Error => ("error", Tone::Bad),
            };
            text += &format!("{}  {check:14}{}\n", screen.say(&format!("{word:7}"), tone), Line(what));
            for (label, words) in [("why", why), ("do", advice)] {
                if let Some(words) = words.as_ref().filter(|_| !fixed) {
                    let words = Lines(words).to_string().replace('\n', "\n               ");
                    text += &format!("         {label:5} {words}\n");
                }
            }
        }
        let count =
            |wanted| self.findings.iter().filter(|finding| finding.level == wanted && !finding.fixed).count();
        let (errors, warnings) = (count(FindingLevel::Error), count(FindingLevel::Warning));
        let checks = counted(self.findings.len(), "check", "checks");
        let errors = counted(errors, "error", "errors");
        text + &format!("\n{checks}: {errors}, {}\n", counted(warnings, "warning", "warnings"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_says_what_why_and_what_to_do_and_is_mended_where_that_is_wanted() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("key");
        fs::write(&file, "secret").expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("set");
        let mut report = DoctorReport::new(false);
        report.ok("substituters", "answer");
        report.private("keys", &file, "others could sign");
        let shown = file.display();
        let expected = format!(
            "ok       substituters  answer\nwarning  keys          {shown} has the mode 644, so others may open it\n         \
             why   others could sign\n         do    chmod 600 {shown} (--fix does it)\n\n2 checks: 0 errors, 1 warning\n"
        );
        assert_eq!(report.text(Screen::default()), expected);
        assert!(!report.has_errors());
        let mut mending = DoctorReport::new(true);
        mending.private("keys", &file, "others could sign");
        assert!(mending.text(Screen::default()).starts_with("fixed    keys"));
        assert_eq!(fs::metadata(&file).expect("there").mode() & 0o777, 0o600);
        mending.add(FindingLevel::Error, "daemon", "is away", "nothing is built", "start it");
        assert!(mending.has_errors() && mending.json().expect("JSON").contains("\"level\": \"error\""));
    }
}
