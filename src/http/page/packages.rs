//! Package sets, their attributes, and one package.

use askama::Template;

use super::super::Service;
use super::super::api::{
    AttributeDependant, AttributeDetails, AttributeOutput, AttributePage, AttributeVersion, PackageSet,
    PathDetails,
};
use super::super::by_name::{PackageAddress, described, description};
use super::super::call::Call;
use super::super::error::Error;
use super::super::listing::ListingQuery;
use super::super::response_future::ResponseFuture;
use super::super::{catalogue, listing, status};
use super::chart::{Chart, Series};
use super::failures::RetryOffer;
use super::format::{ByteCount, Count, PageTime, PathLabel, encoded, form_encoded, short_seconds};
use super::treemap::{CLOSURE_MAX, Treemap};
use super::visitor::{PageFrame, Visitor, answer, respond};
use crate::caller::Action;
use crate::catalogue::SetName;

/// A set in the list.
struct SetLine {
    set: PackageSet,
    made: Option<PageTime>,
    attributes: Count,
    derivations: Count,
    errors: Count,
}

#[derive(Template)]
#[template(path = "sets.html", config = "src/http/page/askama.toml")]
struct SetsPage {
    shell: PageFrame,
    sets: Vec<SetLine>,
}

#[derive(Template)]
#[template(path = "set.html", config = "src/http/page/askama.toml")]
struct SetPage {
    shell: PageFrame,
    page: AttributePage,
    query: ListingQuery,
    next: Option<String>,
}

#[derive(Template)]
#[template(path = "package.html", config = "src/http/page/askama.toml")]
struct PackagePage {
    shell: PageFrame,
    details: AttributeDetails,
    drv: PathLabel,
    outputs: Vec<OutputLine>,
    url: String,
    public_key: String,
    store_dir: String,
    /// The part of `/get/` addresses.
    address: String,
    build_times: Option<Chart>,
    dependants: Vec<DependantLine>,
    versions: Vec<VersionLine>,
    /// Programs of its outputs.
    programs: Vec<String>,
    /// The program that is offered, and whether there may be any.
    program: Option<String>,
    may_run: bool,
    /// Failed, and not served: there is nothing to get.
    is_missing: bool,
    retry: RetryOffer,
    closure: Option<Treemap>,
    facts: Vec<PackageFact>,
}

/// A figure below the name of a package: its label, its value, and a remark.
type PackageFact = (&'static str, String, String);

/// Derivations of one name that a package had one after the other.
struct VersionLine {
    /// The latest of them.
    label: PathLabel,
    since: PageTime,
    until: Option<PageTime>,
    /// Number of derivations.
    derivations: usize,
}

impl VersionLine {
    /// Versions, the latest first, of derivations in the same order.
    fn of(versions: Vec<AttributeVersion>) -> Vec<Self> {
        let mut lines: Vec<Self> = Vec::new();
        for AttributeVersion { derivation, since, until, .. } in versions {
            let (label, since) = (PathLabel::new(derivation), PageTime(since));
            match lines.last_mut().filter(|line| line.label.name() == label.name()) {
                Some(line) => (line.since, line.derivations) = (since, line.derivations + 1),
                None => lines.push(Self { label, since, until: until.map(PageTime), derivations: 1 }),
            }
        }
        lines
    }
}

/// A derivation that needs a package.
struct DependantLine {
    label: PathLabel,
    /// Address from the cache's own folder.
    address: String,
}

impl DependantLine {
    fn new(dependant: AttributeDependant) -> Self {
        let AttributeDependant { derivation, set, attribute } = dependant;
        let label = PathLabel::new(derivation);
        let address = match set.zip(attribute) {
            Some((set, attribute)) => format!("packages/{}/{}", encoded(&set), encoded(&attribute)),
            None => format!("derivations/{}", label.address()),
        };
        Self { label, address }
    }
}

/// An output of a package.
struct OutputLine {
    output: AttributeOutput,
    details: Option<PathDetails>,
}

impl OutputLine {
    fn size(&self) -> Option<ByteCount> {
        self.details.as_ref().map(|details| ByteCount(details.nar_size))
    }

    fn file_size(&self) -> Option<ByteCount> {
        self.details.as_ref().and_then(|details| details.file_size).map(ByteCount)
    }
}

impl PackagePage {
    /// The folder of store paths' pages.
    fn paths(&self) -> String {
        format!("{}paths/", self.shell.root)
    }
}

impl SetPage {
    fn like(&self) -> &str {
        self.query.like.as_deref().unwrap_or_default()
    }

    /// Address of an attribute, from that of the list.
    fn link(&self, attribute: &str) -> String {
        encoded(attribute)
    }
}

/// The sets.
pub(in crate::http) fn list(call: Call<'_>) -> Option<ResponseFuture> {
    respond(&call, Action::Read, |service, visitor| async move {
        let sets = catalogue::sets(&service).await?.into_iter().map(set_line).collect();
        Ok(answer(&SetsPage { shell: visitor.shell("Packages", "packages"), sets }))
    })
}

fn set_line(set: PackageSet) -> SetLine {
    let current = set.generations.iter().find(|generation| generation.current);
    let count =
        |number: fn(&super::super::api::PackageSetGeneration) -> u64| Count(current.map_or(0, number));
    SetLine {
        made: current.map(|generation| PageTime(generation.made_at)),
        attributes: count(|generation| generation.attributes),
        derivations: count(|generation| generation.derivations),
        errors: count(|generation| generation.errors),
        set,
    }
}

/// The attributes of a set, page by page.
pub(in crate::http) fn set(call: Call<'_>) -> Option<ResponseFuture> {
    let (name, query) =
        (SetName::new(call.arguments[0])?, ListingQuery::parse(call.query.map(form_encoded).as_deref()));
    respond(&call, Action::Read, |service, visitor| async move {
        let query = query.map_err(Error::BadRequest)?;
        let page = listing::page(&service, &name, query.clone()).await?;
        let next = page.next.as_deref().map(|after| {
            let like = query.like.as_deref().map(|like| format!("q={}&", encoded(like))).unwrap_or_default();
            format!("?{like}after={}", encoded(after))
        });
        Ok(answer(&SetPage { shell: visitor.shell(name.to_string(), "packages"), page, query, next }))
    })
}

/// One package.
pub(in crate::http) fn attribute(call: Call<'_>) -> Option<ResponseFuture> {
    let address = described(&call)?;
    respond(&call, Action::Read, |service, visitor| async move {
        Ok(answer(&package(&service, &visitor, &address).await?))
    })
}

async fn package(
    service: &Service,
    visitor: &Visitor,
    address: &PackageAddress,
) -> Result<PackagePage, Error> {
    let mut details = description(service, address).await?;
    let mut outputs = Vec::new();
    for output in std::mem::take(&mut details.outputs) {
        let hash = output.hash.as_ref().filter(|_| output.served).and_then(|hash| hash.parse().ok());
        let found = match hash {
            Some(hash) => status::path_details(service, hash).await.ok(),
            None => None,
        };
        outputs.push(OutputLine { output, details: found });
    }
    let served = outputs.iter().filter(|line| line.output.served).find_map(|line| line.output.hash.as_ref());
    let closure = match served.and_then(|hash| hash.parse().ok()) {
        Some(hash) => {
            let rows = service.state.index.closure(hash, CLOSURE_MAX).await;
            Some(Treemap::new(&rows.map_err(|error| Error::index(&error, "a closure cannot be read"))?))
        }
        None => None,
    };
    let dependants = std::mem::take(&mut details.dependants);
    let versions = VersionLine::of(std::mem::take(&mut details.versions));
    let programs: Vec<String> =
        outputs.iter_mut().flat_map(|line| std::mem::take(&mut line.output.programs)).collect();
    let is_served = outputs.iter().any(|line| line.output.served);
    Ok(PackagePage {
        shell: visitor.shell(details.attribute.clone(), "packages"),
        drv: PathLabel::new(&*details.derivation),
        url: visitor.url.clone(),
        public_key: service.state.public_keys.first().cloned().unwrap_or_default(),
        store_dir: service.state.store_dir.to_string(),
        build_times: build_times(&details.build_seconds),
        program: offered_program(&details, &programs),
        may_run: !is_served || !programs.is_empty() || details.main_program.is_some(),
        is_missing: details.failure.is_some() && !is_served,
        retry: RetryOffer::of(visitor),
        programs,
        versions,
        dependants: dependants.into_iter().map(DependantLine::new).collect(),
        facts: facts(&details, &outputs, closure.as_ref()),
        closure,
        address: format!("{}/{}", encoded(&details.set), encoded(&details.attribute)),
        outputs,
        details,
    })
}

/// Figures of a package, as far as they are known.
fn facts(details: &AttributeDetails, outputs: &[OutputLine], closure: Option<&Treemap>) -> Vec<PackageFact> {
    let mut facts = Vec::new();
    if let Some(size) = outputs.iter().find_map(OutputLine::size) {
        facts.push(("Size", size.to_string(), String::new()));
    }
    if let Some(closure) = closure {
        let more = if closure.is_cut { " and more" } else { "" };
        facts.push((
            "With all it needs",
            closure.whole.to_string(),
            format!("{} paths{more}", closure.paths),
        ));
    }
    if let Some(seconds) = details.build_seconds.last() {
        facts.push(("Latest build", short_seconds(*seconds), String::new()));
    }
    if let Some(asked) = details.asked {
        facts.push(("Asked for", format!("{} ×", Count(asked.into())), "in four weeks".to_owned()));
    }
    facts
}

/// The program by which a package is run, as far as that is known.
fn offered_program(details: &AttributeDetails, programs: &[String]) -> Option<String> {
    let last = details.attribute.rsplit('.').next().unwrap_or_default();
    let by_name = || programs.iter().find(|program| *program == last);
    let only = || programs.first().filter(|_| programs.len() == 1);
    details.main_program.as_ref().or_else(by_name).or_else(only).cloned()
}

/// A chart of the latest builds; `None` for less than two.
fn build_times(seconds: &[f64]) -> Option<Chart> {
    const MILLIS: f64 = 1000.0;
    let values: Vec<u64> = seconds.iter().map(|seconds| (seconds * MILLIS) as u64).collect();
    let written = |millis: u64| short_seconds(millis as f64 / MILLIS);
    let series = Series { name: "build times", class: "s-accent", values };
    (seconds.len() > 1).then(|| Chart::bars(vec![series], written))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivations_of_one_name_in_a_row_are_one_version() {
        let version = |derivation: &str, since, until| AttributeVersion {
            derivation: format!("{}-{derivation}.drv", "0".repeat(32)),
            first: since,
            last: until,
            since,
            until,
        };
        let lines = VersionLine::of(vec![
            version("a-2", 30, None),
            version("a-2", 20, Some(30)),
            version("a-1", 10, Some(20)),
            version("a-2", 5, Some(10)),
        ]);
        let shown: Vec<_> = lines
            .iter()
            .map(|line| (line.label.name(), line.since.0, line.until.map(|until| until.0), line.derivations))
            .collect();
        assert_eq!(shown, [("a-2", 20, None, 2), ("a-1", 10, Some(20), 1), ("a-2", 5, Some(10), 1)]);
    }
}
