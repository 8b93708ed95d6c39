//! Failures that are remembered, and the retry of one.

use std::collections::HashMap;
use std::sync::Arc;

use askama::Template;

use super::super::call::Call;
use super::super::error::Error;
use super::super::response_future::ResponseFuture;
use super::super::{answer as answers, failures};
use super::format::{PageTime, PathLabel};
use super::home::FailureLine;
use super::sign_in::PageForm;
use super::visitor::{PageFrame, Visitor, answer, respond};
use crate::caller::{Action, Rights, may};
use crate::retry::Failed;

/// Failures of one cause, which comes first.
struct FailureGroup {
    cause: PathLabel,
    first: FailureLine,
    until: PageTime,
    /// Derivations that cannot be built because of it.
    blocked: Vec<FailureLine>,
}

impl FailureGroup {
    /// Those whose names are shown.
    fn shown(&self) -> &[FailureLine] {
        &self.blocked[..self.blocked.len().min(BLOCKED_SHOWN)]
    }
}

#[derive(Template)]
#[template(path = "failures.html", config = "src/http/page/askama.toml")]
struct FailuresPage {
    shell: PageFrame,
    groups: Vec<FailureGroup>,
    /// Causes that are not shown.
    left_out: usize,
    total: usize,
    retry: RetryOffer,
}

/// Causes that are shown.
const CAUSES_SHOWN: usize = 100;
/// Derivations that a cause blocks, of which the names are shown.
pub(super) const BLOCKED_SHOWN: usize = 200;

/// Offer to build something that failed again.
pub(super) struct RetryOffer {
    /// True for a visitor whose forms are taken.
    pub(super) is_open: bool,
    /// Rights that the token of a visitor who has signed in lacks.
    pub(super) lacks: Option<String>,
}

impl RetryOffer {
    pub(super) fn of(visitor: &Visitor) -> Self {
        let lacks: Rights =
            [Action::Cancel, Action::Build].into_iter().filter(|action| !visitor.may(*action)).collect();
        let is_signed_in = visitor.session.is_some();
        let lacks_any = lacks != Rights::default();
        Self {
            is_open: is_signed_in && !lacks_any,
            lacks: (is_signed_in && lacks_any).then(|| lacks.to_string().replace(',', " and ")),
        }
    }
}

/// All failures, each with what it blocks.
pub(in crate::http) fn list(call: Call<'_>) -> Option<ResponseFuture> {
    respond(&call, Action::Read, |service, visitor| async move {
        let remembered = failures::remembered(&service).await?;
        let total = remembered.len();
        let mut groups: Vec<FailureGroup> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for failure in remembered {
            let (line, until) = (FailureLine::new(failure), PageTime(0));
            match places.get(&line.cause.base) {
                Some(place) => groups[*place].blocked.push(line),
                None => {
                    places.insert(line.cause.base.clone(), groups.len());
                    let until = PageTime(line.failure.until.max(until.0));
                    groups.push(FailureGroup {
                        cause: line.cause.clone(),
                        first: line,
                        until,
                        blocked: Vec::new(),
                    });
                }
            }
        }
        for group in &mut groups {
            // The cause itself stands first, where it is remembered.
            if group.first.label != group.cause
                && let Some(at) = group.blocked.iter().position(|line| line.label == group.cause)
            {
                std::mem::swap(&mut group.first, &mut group.blocked[at]);
            }
        }
        let left_out = groups.len().saturating_sub(CAUSES_SHOWN);
        groups.truncate(CAUSES_SHOWN);
        let (shell, retry) = (visitor.shell("Failures", "failures"), RetryOffer::of(&visitor));
        Ok(answer(&FailuresPage { shell, groups, left_out, total, retry }))
    })
}

/// Has a failed derivation built again, for a visitor who may.
pub(in crate::http) fn retry(call: Call<'_>) -> Option<ResponseFuture> {
    let what = Failed::parse(call.arguments[0])?;
    let (service, visitor) = (call.service.clone(), Arc::new(Visitor::of(&call)));
    let (asked, headers, body) = (call.arguments[0].to_owned(), call.headers, call.body);
    Some(ResponseFuture::pending(async move {
        let done = async {
            let form = PageForm::read(&visitor, &headers, body).await?;
            may(&visitor.caller, Action::Cancel).map_err(Error::Refused)?;
            form.check(&visitor)?;
            failures::retried(&service, what, false, &visitor.caller).await
        };
        Ok(match done.await {
            Ok(_) => {
                let label = PathLabel::new(asked);
                answers::redirect(&format!("{}derivations/{}", visitor.root, label.address()))
            }
            Err(error) => visitor.error(error),
        })
    }))
}
